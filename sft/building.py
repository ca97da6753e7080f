"""Build SFT's trainer and decide whether rows are packed."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel, set_seed
from trl import SFTConfig

from alignment.config.arguments import PackingArguments
from alignment.distributed import heartbeat, one_reader
from alignment.distributed.processes import say
from alignment.errors import ConfigError
from alignment.models import trainable
from alignment.models.adapters import without_adapter
from alignment.models.classifiers import why_no_scores
from alignment.models.packing import why_not_packed
from alignment.training import methods as training_methods
from alignment.training.arguments import refused_arguments
from sft.config import SFTStageConfig
from sft.packing import PackingCollator, pack_attention
from sft.prepare import PreparedSFT
from sft.selfcheck import SelfCheck
from sft.trainer import SFTTrainer


def build_trainer(config: SFTStageConfig, prepared: PreparedSFT) -> SFTTrainer:
    """Load the model and wrap it in the trainer."""
    heartbeat.enter("loading the model", patient=True)
    set_seed(prepared.seed)
    with one_reader.reading_once():
        policy = trainable.load_trainable(prepared.start.source, prepared.start.tokenizer, config.model)
    collator = _packing_collator(config, prepared, policy)
    with refused_arguments():
        trainer = SFTTrainer(
            model=policy,
            args=prepared.arguments,
            train_dataset=prepared.data.train,
            eval_dataset=prepared.data.eval if len(prepared.data.eval) else None,
            data_collator=collator,
            processing_class=prepared.start.tokenizer,
            penalty=training_methods.regularisation,
        )
    training_methods.attach(trainer, config.model)
    if reason := why_no_scores(without_adapter(policy).config, config.model.trust_remote_code):
        say(f"sft: python -m reward will not start from this model: {reason}")
    SelfCheck(trainer, asked=bool(config.training.get("packing"))).attach()
    if not packs_rows(trainer) and "train_sampling_strategy" not in config.training:
        prepared.arguments.train_sampling_strategy = "group_by_length"
    return trainer


def packs_rows(trainer: SFTTrainer) -> bool:
    """Return whether the trainer packs rows."""
    return isinstance(trainer.data_collator, PackingCollator) and trainer.data_collator.packed


def _packing_collator(config: SFTStageConfig, prepared: PreparedSFT, policy: nn.Module) -> PackingCollator | None:
    """The packing collator, or None if rows are padded: by `training.packing=false`, or because the model needs it.

    Raises:
        ConfigError: training.packing is true, and rows cannot be packed.
    """
    asked = PackingArguments.of(config.training).packing
    if asked is False:
        return None
    model = without_adapter(policy)
    reason = why_not_packed(model, config.data.max_length)
    if balances_router(model, prepared.arguments):
        reason = (
            "its router's load-balancing loss needs padded rows (training.router_aux_loss_coef=0 trains without it)"
        )
    for name in ("neftune_noise_alpha", "pad_to_multiple_of", "torch_compile"):
        if getattr(prepared.arguments, name):
            reason = f"training.{name} needs padded rows"
    if reason is None:
        return pack_attention(model, prepared.start.tokenizer.pad_token_id)
    if asked:
        raise ConfigError(
            f"training.packing: rows of {type(model).__name__} cannot be packed: {reason}; remove the key"
        )
    return None


def balances_router(model: PreTrainedModel, arguments: SFTConfig) -> bool:
    """Return whether the loss has a router's load-balancing term: in a mixture of experts, unless it is set to 0."""
    text_config, asked = model.config.get_text_config(), arguments.router_aux_loss_coef
    coefficient = getattr(text_config, "router_aux_loss_coef", 0.0) if asked is None else asked
    return hasattr(text_config, "output_router_logits") and bool(coefficient)
