"""Direct preference optimization (Rafailov et al. 2023): a baseline of PPO, on the judgements of its reward model.

TRL's DPOTrainer trains. Rows are rendered as in the stages, and the policy is published with its lineage. It is a
baseline and no stage: it has no run folder, no checkpoints and no resume.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, ClassVar

import datasets
import trl
from transformers import PreTrainedTokenizerBase, set_seed

from alignment.config.arguments import SHARED_ARGUMENTS, TrainerSection
from alignment.config.sections import ADAPTERS, TrainerConfig
from alignment.data.messages import with_answer
from alignment.data.records import Comparison
from alignment.data.row_files import DataError
from alignment.distributed import heartbeat
from alignment.errors import ConfigError, UserError
from alignment.models import trainable
from alignment.models.policies import load_policy
from alignment.models.sources import ModelSource, find_model
from alignment.models.tokenizers import load_tokenizer
from alignment.registry import Registry, Version
from alignment.runs.journal import Journal
from alignment.runs.run import Run
from alignment.templates.rendering import encode_conversation, encode_prompt
from alignment.terminal import counted, one_line, say
from alignment.training import callbacks, opening, publishing
from alignment.training import methods as training_methods
from alignment.training.arguments import make_arguments, refused_arguments

FEATURES = datasets.Features(
    {name: datasets.Sequence(datasets.Value("int32")) for name in ("prompt_ids", "chosen_ids", "rejected_ids")}
)
FEW_PAIRS = 50
"""With fewer pairs a baseline says little."""
DEFAULTS = {
    "gradient_checkpointing": False,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.03,
    "num_train_epochs": 1,
    "logging_steps": 10,
    "logging_nan_inf_filter": False,
    "eval_strategy": "epoch",
}


class DPOBaselineConfig(TrainerConfig):
    """Sections: name, model, data, training, registry, tracking, as in the stages."""

    trainer: ClassVar[TrainerSection] = TrainerSection("DPOConfig", DEFAULTS)


def train_dpo(
    config: DPOBaselineConfig,
    train: Sequence[Comparison],
    held_out: Sequence[Comparison],
    fingerprints: Sequence[dict[str, Any]],
) -> Version:
    """Train `model.name` on judgements and publish the policy. Ties are left out: DPO's loss has no place for them.

    Raises:
        ConfigError: a key that this baseline does not read, or several processes.
        DataError: no pair is left.
        UserError: the loss is not finite.
    """
    _refuse_unread(config)
    heartbeat.enter("encoding the pairs", patient=True)
    registry = opening.open_registry(config)
    source = find_model(config.model.name, registry, role="policy")
    tokenizer = load_tokenizer(source, config.model)
    left_out: Counter[str] = Counter()
    train_rows = encode_pairs(train, tokenizer, config.data.max_length, left_out)
    eval_rows = encode_pairs(held_out, tokenizer, config.data.max_length)
    _say_pairs(len(train_rows), len(eval_rows), left_out)
    if not len(train_rows):
        raise DataError(
            f"{config.data.parts[0].path}: none of the {len(train)} training pairs is left: each is a tie or longer "
            f"than data.max_length={config.data.max_length}"
        )
    with tempfile.TemporaryDirectory() as folder:
        arguments = make_arguments(trl.DPOConfig, _in(config, folder), DEFAULTS, no_eval=not eval_rows, max_length=None)
        heartbeat.enter("loading the model", patient=True)
        set_seed(arguments.seed)
        trainer = _trainer(config, source, tokenizer, arguments, train_rows, eval_rows)
        callbacks.attach(trainer, Journal(Path(folder), None, None, enabled=False), f"dpo {config.name}")
        heartbeat.enter("training", patient=True)
        outcome = trainer.train()
        heartbeat.enter("evaluating", patient=True)
        figures = trainer.evaluate() if eval_rows else {}
        metrics = {
            "steps": outcome.global_step,
            "beta": arguments.beta,
            "pairs": len(train_rows),
            "pairs_left_out": len(train) - len(train_rows),
            "train_loss": outcome.training_loss,
        }
        if eval_rows:
            accuracy = figures["eval_rewards/accuracies"]
            metrics |= {"eval_loss": figures["eval_loss"], "eval_accuracy": accuracy, "eval_pairs": len(eval_rows)}
        if not all(math.isfinite(value) for value in metrics.values()):
            raise UserError("training diverged; lower training.learning_rate; nothing was published")
        heartbeat.enter("saving and publishing the model", patient=True)
        trainer.save_model(f"{folder}/model")
        return _publish(config, registry, source, Path(folder, "model"), fingerprints, metrics, arguments.seed)


def _refuse_unread(config: DPOBaselineConfig) -> None:
    """Refuse what the stages read and this does not, so that nothing given is ignored."""
    shared = {field.name for each in SHARED_ARGUMENTS for field in fields(each)}
    unread = [f"training.{name}" for name in config.training if name in shared]
    unread += [f"tracking.{name}" for name in sorted(config.tracking.model_fields_set)]
    unread += ["data.too_long"] if "too_long" in config.data.model_fields_set else []
    if unread:
        raise ConfigError(
            f"{unread[0]}: alignment baseline dpo does not read it, for it has no run folder, no checkpoints and no "
            "packing, and leaves long pairs out; take it out"
        )
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("alignment baseline dpo runs on one process; start it without accelerate launch")


def _say_pairs(used: int, held_out: int, left_out: Counter[str]) -> None:
    """How many pairs are learned from, how many are left out and why; and that few show little."""
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in left_out.items())
    line = f"dpo: learns from {counted(used, 'pair')}, {held_out:,} held out"
    say(one_line(line + (f"; left out: {reasons}" if reasons else "")))
    if 0 < used < FEW_PAIRS:
        say(f"dpo: {counted(used, 'pair')}: fewer than {FEW_PAIRS} show little of what DPO can do; rate more")


def encode_pairs(
    pairs: Iterable[Comparison],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    left_out: Counter[str] | None = None,
) -> datasets.Dataset:
    """Rows of `prompt_ids`, `chosen_ids` and `rejected_ids`, the preferred answer as chosen.

    Ties, and pairs with an answer longer than `max_length` tokens with its prompt, have no row.

    Args:
        left_out: gets the reasons, with how many pairs each has.
    """
    left_out = Counter() if left_out is None else left_out
    rows: dict[str, list[list[int]]] = {name: [] for name in FEATURES}
    for pair in pairs:
        if pair.target == 0.5:
            left_out["tied"] += 1
            continue
        answers = (pair.first, pair.second) if pair.target > 0.5 else (pair.second, pair.first)
        prompt = encode_prompt(tokenizer, pair.prompt)
        whole = [encode_conversation(tokenizer, with_answer(pair.prompt, text)) for text in answers]
        if max(len(each.input_ids) for each in whole) > max_length:
            left_out[f"longer than data.max_length={max_length} tokens"] += 1
            continue
        # The last turn alone: what a template changes in earlier turns does not belong to the answer.
        chosen, rejected = (each.input_ids[-each.num_response_tokens :] for each in whole)
        for name, ids in zip(rows, (prompt, chosen, rejected), strict=True):
            rows[name].append(ids)
    return datasets.Dataset.from_dict(rows, features=FEATURES)


class _EncodedDPOTrainer(trl.DPOTrainer):
    """A DPOTrainer on rows of token ids. TRL would render them again, without the suite's ends of answers."""

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset


def _trainer(
    config: DPOBaselineConfig,
    source: ModelSource,
    tokenizer: PreTrainedTokenizerBase,
    arguments: trl.DPOConfig,
    train_rows: datasets.Dataset,
    eval_rows: datasets.Dataset,
) -> trl.DPOTrainer:
    """The trainer of `model.method`; without an adapter, the reference is a second copy of the model."""
    policy = trainable.load_trainable(source, tokenizer, config.model)
    whole = config.model.method not in ADAPTERS
    with refused_arguments():
        trainer = _EncodedDPOTrainer(
            model=policy,
            ref_model=load_policy(source, config.model) if whole else None,
            args=arguments,
            train_dataset=train_rows,
            eval_dataset=eval_rows if len(eval_rows) else None,
            processing_class=tokenizer,
        )
    training_methods.attach(trainer, config.model)
    return trainer


def _in(config: DPOBaselineConfig, folder: str) -> DPOBaselineConfig:
    return config.model_copy(update={"tracking": config.tracking.model_copy(update={"runs": folder})})


def _publish(
    config: DPOBaselineConfig,
    registry: Registry,
    source: ModelSource,
    folder: Path,
    fingerprints: Sequence[dict[str, Any]],
    metrics: dict[str, Any],
    seed: int,
) -> Version:
    """Publish the saved policy, or adapter, with the model that it started from and the judgements behind it."""
    base = trainable.base_of(source, config.model)
    return publishing.publish(
        config,
        registry,
        publishing.only_model(folder, base),
        stage="dpo",
        role="policy",
        parents=[source.parent("init")],
        base=base.as_base() if base else None,
        data=fingerprints,
        metrics=metrics,
        seed=seed,
        run=Run(),
        has_folder=False,
    )
