"""Prepare the training of a reward model: the initial model, the data as questions, and TRL's arguments."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

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
from alignment.distributed import processes, zero3
from alignment.errors import ConfigError, ModelError
from alignment.models import methods
from alignment.models.classifiers import AnyClassifier
from alignment.models.lengths import check_length
from alignment.models.scalar import load_scalar_model
from alignment.models.tokenizers import fit_embeddings
from alignment.registry import Registry
from alignment.runs.run import Run
from alignment.training import opening, start_model
from alignment.training.arguments import make_arguments as make_trl_arguments
from alignment.training.data_check import check_before_training
from reward.config import DEFAULTS, EnsembleArguments, RewardStageConfig
from reward.data import Encoding, Judgement, encode, labeler_weights, read_judgements
from reward.demonstrations import NormalizationSet, find_normalization_set
from reward.questions import Question, Scale, rating_scale, standardize

PROBE = 8


@dataclass(frozen=True)
class PreparedReward:
    """The inputs of a trainer: the initial model, the judgements as token ids, and the arguments."""

    seed: int
    registry: Registry
    start: start_model.StartModel
    train_set: Records[Judgement]
    eval_set: Records[Judgement]
    train: list[Question]
    held_out: list[Question]
    left_out: dict[str, int]
    reliability: dict[str, float] | None
    """The weight of each labeler's votes; None: equal weights."""
    scale: Scale | None
    """Scale of the ratings for `objective: regression`: a score s means `mean + std * (s + score_bias)`."""
    normalization: NormalizationSet
    arguments: RewardConfig
    report: DataReport
    """The report of the data check."""

    @property
    def num_pairs(self) -> tuple[int, int]:
        """Numbers of training and held-out pairs."""
        train, held_out = (sum(len(question.pairs) for question in part) for part in (self.train, self.held_out))
        return train, held_out

    @property
    def probe(self) -> list[Question]:
        """Questions that are scored before and after saving; they are short, because every best model is saved."""
        return sorted(self.train, key=lambda question: max(question.lengths))[:PROBE]


def prepare(config: RewardStageConfig, run: Run | None = None) -> PreparedReward:
    """Read the data, find the initial model (pinned by the run), and encode the judgements; nothing is written."""
    _check(config)
    training = trainer_arguments(RewardConfig, DEFAULTS, config.training, beside=[EnsembleArguments])
    seed = training.get("seed", 42)
    config = config.of_member()
    processes.start_processes()
    registry = opening.open_registry(config, run)
    train_set, eval_set = read_judgements(config.data, config.reward)
    source = config.data.parts[0].path
    reliability = labeler_weights(train_set.items, source) if config.reward.use_reliability else None
    start = start_model.start_model(config, registry, (), "reward")
    check_length(start.source.config_path, config.data.max_length, "data.max_length", config.model.trust_remote_code)
    if EnsembleArguments.of(training).members > 1 and config.model.method in ADAPTERS:
        _check_shared_base(config, start)
    inspector = Inspector(config.data, start.tokenizer, stage="reward") if processes.is_main_process() else None
    train, left_out = _encode(config, train_set, start.tokenizer, reliability, inspector, held_out=False)
    # Held-out votes have equal weights: a model should not be evaluated only on labelers who agree with each other.
    held_out, _ = _encode(config, eval_set, start.tokenizer, None, inspector, held_out=True)
    data_report = processes.on_main_process(lambda: check_before_training(config, inspector))
    scale = rating_scale(train) if config.reward.objective == "regression" else None
    if scale is not None:
        train, held_out = standardize(train, scale), standardize(held_out, scale)
    normalization = processes.on_main_process(
        lambda: find_normalization_set(config, registry, start.source, start.tokenizer, train)
    )
    arguments = make_arguments(config, no_eval=not held_out)
    return PreparedReward(
        seed, registry, start, train_set, eval_set, train, held_out, left_out, reliability, scale, normalization,
        arguments, data_report,
    )  # fmt: skip


def make_arguments(config: RewardStageConfig, no_eval: bool) -> RewardConfig:
    """TRL's arguments; `no_eval` is true if nothing is held out."""
    defaults = methods.with_learning_rate(DEFAULTS, config.model)
    return make_trl_arguments(RewardConfig, config, defaults, max_length=None, no_eval=no_eval)


def initial_model(config: RewardStageConfig, prepared: PreparedReward) -> PreTrainedModel:
    """The initial model's body with a new head; deterministic, because an adapter is merged onto it later."""
    source, heads = prepared.start.source, config.reward.score_names
    scalar = load_scalar_model(source, config.model, prepared.seed, heads=heads)
    if scalar.heads != heads:
        raise ModelError(
            f"{source.label}: a reward model of {', '.join(scalar.heads)}, which cannot go on as one of "
            f"{', '.join(heads) or 'one score'}; set reward.attributes=[{', '.join(scalar.heads)}], or start from the "
            "policy"
        )
    fit_embeddings(scalar.model, prepared.start.tokenizer)
    return scalar.model


def _encode(
    config: RewardStageConfig,
    records: Records[Judgement],
    tokenizer: PreTrainedTokenizerBase,
    reliability: dict[str, float] | None,
    inspector: Inspector | None,
    held_out: bool,
) -> Encoding:
    # A held-out fraction of few prompts may have no usable comparison; a file named in data.eval must have one.
    required = not held_out or config.data.eval is not None
    if inspector is None:
        return encode(records.items, tokenizer, config.data, config.reward, reliability, required=required)
    inspector.add_unused(records.unused)
    for where, reason in records.bad:
        inspector.add_bad(where, reason)
    note = partial(inspector.look, held_out=held_out)
    return encode(records.items, tokenizer, config.data, config.reward, reliability, note, required)


def _check(config: RewardStageConfig) -> None:
    stage, fsdp = processes.launched_zero_stage(), processes.under_fsdp()
    processes.on_main_process(lambda: methods.check(config.model, stage, fsdp=fsdp))
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
    if config.reward.score_names and EnsembleArguments.of(config.training).members > 1:
        raise ConfigError(
            "training.members: an ensemble has one score for each member; train the members of each attribute by "
            "itself, or take training.members out"
        )
    if config.training.get("label_smoothing_factor"):
        raise ConfigError("training.label_smoothing_factor is for labels of classes; set reward.label_smoothing")
    if config.reward.objective != "pairs" and config.training.get("center_rewards_coefficient"):
        raise ConfigError(
            "training.center_rewards_coefficient is only for reward.objective=pairs: ratings are centered already"
        )


def _check_shared_base(config: RewardStageConfig, start: start_model.StartModel) -> None:
    """Refuse an ensemble of adapters on a base that has new weights besides the head."""
    path, trust = start.source.config_path, config.model.trust_remote_code
    with zero3.on_meta_device():
        shape = AutoConfig.from_pretrained(path, trust_remote_code=trust)
        model = AnyClassifier.from_config(shape, trust_remote_code=trust)
    if not isinstance(getattr(model, "score", None), nn.Linear):
        raise ConfigError(
            f"training.members: an encoder ({type(model).__name__}) has new weights besides its head, so adapters "
            "cannot share a base; set model.method=full"
        )
