"""What a reward model's training is made of: the data as questions, the model to start from, the arguments."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from transformers import (
    AutoConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from trl import RewardConfig

from alignment.config.arguments import trainer_arguments
from alignment.config.sections import ADAPTERS, SCRATCH
from alignment.data.check import DataReport, Inspector
from alignment.data.reading import Records
from alignment.distributed import processes
from alignment.errors import ConfigError
from alignment.models import methods
from alignment.models.classifiers import AnyClassifier
from alignment.models.lengths import check_length
from alignment.models.scalar import load_scalar_model
from alignment.models.tokenizers import fit_embeddings
from alignment.registry import Registry
from alignment.runs.run import Run
from alignment.training import publishing, start_model
from alignment.training.arguments import make_arguments as make_trl_arguments
from alignment.training.data_check import check_before_training
from reward.config import DEFAULTS, EnsembleArguments, RewardStageConfig
from reward.data import Encoding, Judgement, encode, labeler_weights, read_judgements
from reward.demonstrations import Zero, find_zero
from reward.questions import Question, Scale, rating_scale, standardised

PROBE = 8


@dataclass(frozen=True)
class PreparedReward:
    """What a trainer is made of: the model to start from, the judgements as token ids, and the arguments."""

    seed: int
    registry: Registry
    start: start_model.StartModel
    train_set: Records[Judgement]
    eval_set: Records[Judgement]
    train: list[Question]
    held_out: list[Question]
    left_out: dict[str, int]
    reliability: dict[str, float] | None
    """What a vote of each labeler counts; None: all alike."""
    scale: Scale | None
    """Of the ratings, for `objective: regression`: a score s says `mean + std * (s + score_bias)`."""
    zero: Zero
    arguments: RewardConfig
    report: DataReport
    """What the check of the data found."""

    @property
    def num_pairs(self) -> tuple[int, int]:
        """Pairs to learn from, and held out."""
        train, held_out = (sum(len(question.pairs) for question in part) for part in (self.train, self.held_out))
        return train, held_out

    @property
    def probe(self) -> list[Question]:
        """What is scored before and after saving: short questions, since it is done once more for each best model."""
        return sorted(self.train, key=lambda question: max(question.lengths))[:PROBE]


def prepare(config: RewardStageConfig, run: Run | None = None) -> PreparedReward:
    """Read the data, find the model to start from (as the run has pinned it), and encode the judgements with its
    tokenizer; writes nothing."""
    _check(config)
    given = trainer_arguments(RewardConfig, DEFAULTS, config.training, beside=[EnsembleArguments])
    seed = given.get("seed", 42)
    config = config.of_member()
    processes.start_processes()
    registry = publishing.open_registry(config, run)
    train_set, eval_set = read_judgements(config.data, config.reward)
    where = config.data.parts[0].path
    reliability = labeler_weights(train_set.items, where) if config.reward.use_reliability else None
    start = start_model.start_model(config, registry, (), "reward")
    check_length(start.source.config_path, config.data.max_length, "data.max_length", config.model.trust_remote_code)
    if EnsembleArguments.of(given).members > 1 and config.model.method in ADAPTERS:
        _check_shared_base(config, start)
    inspector = Inspector(config.data, start.tokenizer) if processes.is_main_process() else None
    train, left_out = _encode(config, train_set, start.tokenizer, reliability, inspector, held_out=False)
    # Held-out votes all count alike: a model is not to be judged by those alone that agree with each other.
    held_out, _ = _encode(config, eval_set, start.tokenizer, None, inspector, held_out=True)
    data_report = processes.on_main_process(lambda: check_before_training(config, inspector))
    scale = rating_scale(train) if config.reward.objective == "regression" else None
    if scale is not None:
        train, held_out = standardised(train, scale), standardised(held_out, scale)
    zero = processes.on_main_process(lambda: find_zero(config, registry, start.source, start.tokenizer, train))
    arguments = make_arguments(config, no_eval=not held_out)
    return PreparedReward(
        seed, registry, start, train_set, eval_set, train, held_out, left_out, reliability, scale, zero, arguments,
        data_report,
    )  # fmt: skip


def make_arguments(config: RewardStageConfig, no_eval: bool) -> RewardConfig:
    """TRL's arguments; `no_eval`: there is nothing to evaluate on."""
    defaults = methods.with_learning_rate(DEFAULTS, config.model)
    return make_trl_arguments(RewardConfig, config, defaults, max_length=None, no_eval=no_eval)


def untrained(config: RewardStageConfig, prepared: PreparedReward) -> PreTrainedModel:
    """The body of the starting model with its new head: the same each time, since an adapter is merged onto it."""
    model = load_scalar_model(prepared.start.source, config.model, prepared.seed).model
    fit_embeddings(model, prepared.start.tokenizer)
    return model


def _encode(
    config: RewardStageConfig,
    records: Records[Judgement],
    tokenizer: PreTrainedTokenizerBase,
    reliability: dict[str, float] | None,
    inspector: Inspector | None,
    held_out: bool,
) -> Encoding:
    # A share of few prompts may hold nothing that compares; a file that was named for it should.
    required = not held_out or config.data.eval is not None
    if inspector is None:
        return encode(records.items, tokenizer, config.data, config.reward, reliability, required=required)
    for where, reason in records.bad:
        inspector.add_bad(where, reason)
    note = partial(inspector.look, held_out=held_out)
    return encode(records.items, tokenizer, config.data, config.reward, reliability, note, required)


def _check(config: RewardStageConfig) -> None:
    processes.on_main_process(lambda: methods.check(config.model, processes.launched_zero_stage()))
    if config.model.name.startswith(SCRATCH):
        raise ConfigError(
            "model.name: a reward model starts from a trained policy, not from scratch; "
            "train one with python -m sft and name it here"
        )
    if config.model.merge == "original":
        raise ConfigError(
            "model.merge=original makes another model of an adapter on quantized weights, whose scores were never "
            "checked; take it out"
        )
    if config.training.get("label_smoothing_factor"):
        raise ConfigError("training.label_smoothing_factor is for labels of classes; set reward.label_smoothing")
    if config.reward.objective != "pairs" and config.training.get("center_rewards_coefficient"):
        raise ConfigError(
            "training.center_rewards_coefficient is only for reward.objective=pairs: ratings are centered already"
        )


def _check_shared_base(config: RewardStageConfig, start: start_model.StartModel) -> None:
    """Adapters share a base only where all that is drawn anew beside it is the head."""
    path, trust = start.source.config_path, config.model.trust_remote_code
    with torch.device("meta"):
        shape = AutoConfig.from_pretrained(path, trust_remote_code=trust)
        model = AnyClassifier.from_config(shape, trust_remote_code=trust)
    if not isinstance(getattr(model, "score", None), nn.Linear):
        raise ConfigError(
            f"training.members: an encoder ({type(model).__name__}) has more that is new than its head, so adapters "
            "cannot share a base; set model.method=full"
        )
