"""The reward stage's config. `training` takes every argument of `trl.RewardConfig` by its own name, and `members`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from alignment.config.arguments import SHARED_ARGUMENTS, TrainerSection
from alignment.config.sections import NonNegative, Section, TrainerConfig


class RewardSection(Section):
    """The objective of the reward model and the votes that it is trained on."""

    objective: Literal["pairs", "regression"] = "pairs"
    """`pairs`: the preferred one of two completions should score higher. `regression`: a score should be near the
    standardized rating; for rows of `prompt`, `completion`, `rating` and items rated 1-7."""
    attributes: tuple[str, ...] = ()
    """A head, and so a score, for each of these attributes (`[helpful, harmless]`), on one body and in one pass. A row
    judges them in its key `attributes` or in columns of these names, and need not judge all; `overall` is its vote or
    rating of the whole. Empty: one head, which learns that. docs/guides/reward-model.md."""
    margin: NonNegative = 0.0
    """Score margin for a completion that was voted much better (strength 3); better (2) has two thirds of it, slightly
    better (1) one third, a tie or a vote without strength none."""
    label_smoothing: Annotated[float, Field(ge=0.0, lt=0.5)] = 0.0
    """Fraction of the votes that is assumed to be wrong. A tie stays a tie."""
    labelers: tuple[str, ...] = ()
    """Train and evaluate on the ratings of these labelers only: names, or the hashes in manifests. It applies to
    ratings files and to files that name the voters. Empty: all labelers. The other labelers can train a second reward
    model, PPO's `model.held_out_reward`. A run's config holds hashes instead of the names in a ratings file."""
    use_reliability: bool = False
    """Weight a labeler's votes by their agreement with the other labelers of the same items (one-coin Dawid-Skene,
    shrunk for labelers with few common items)."""
    demonstrations: str | None = None
    """Demonstrations over which the published scores average 0. None: the training data of the model's SFT stage."""

    @model_validator(mode="after")
    def _keys_of_the_objective(self) -> Self:
        """Reject keys that the objective ignores."""
        for key in ("margin", "label_smoothing", "attributes"):
            if getattr(self, key) and self.objective != "pairs":
                raise ValueError(f"{key} is only for objective=pairs, found objective={self.objective}")
        return self

    @field_validator("attributes")
    @classmethod
    def _names_of_heads(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        """Names stand in those of metrics (`eval/accuracy/helpful`), so they are plain words, each once."""
        for name in names:
            if not re.fullmatch(r"[A-Za-z][\w.-]*", name):
                raise ValueError(f"{name!r} is no name of an attribute; write a word, such as helpful or fact_errors")
        if len(set(names)) < len(names):
            raise ValueError(f"a name stands twice in {', '.join(names)}; take one out")
        return names

    @property
    def heads(self) -> tuple[str, ...]:
        """The attribute of each head; that of the only one is empty without `attributes`."""
        return self.attributes or ("",)

    @property
    def score_names(self) -> tuple[str, ...]:
        """The names of several scores; empty for one, since a model with one is a plain reward model."""
        return self.attributes if len(self.attributes) > 1 else ()


@dataclass(frozen=True)
class EnsembleArguments:
    """Arguments of `training` beyond TRL's."""

    members: int = 1
    """Number of models to train, with the seeds `seed`, `seed + 1` and so on; all are published as one version."""

    @classmethod
    def of(cls, training: Mapping[str, Any]) -> Self:
        """The arguments of a `training` section."""
        return cls(**{field.name: training[field.name] for field in fields(cls) if field.name in training})


DEFAULTS = {
    "gradient_checkpointing": False,
    # One epoch: pairs share prompts, and a second pass overfits (InstructGPT section 3.5; TRL has 3, and 1e-4 below).
    "num_train_epochs": 1,
    "learning_rate": 9e-6,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.03,
    "logging_steps": 10,
    "logging_nan_inf_filter": False,
    "eval_strategy": "no",
}


class RewardStageConfig(TrainerConfig):
    """Sections: name, model, data, reward, training, registry, tracking."""

    removed_keys: ClassVar[dict[str, str]] = TrainerConfig.removed_keys | {
        "reward.shared_prefix": "use training.packing=false for `off`; `auto` is the default"
    }
    trainer: ClassVar[TrainerSection] = TrainerSection("RewardConfig", DEFAULTS, (*SHARED_ARGUMENTS, EnsembleArguments))

    reward: RewardSection = RewardSection()

    def of_member(self, index: int = 0, first_seed: int = 0) -> Self:
        """The config of one member of an ensemble as a single model; the n-th member's seeds are increased by n."""
        training = {name: value for name, value in self.training.items() if name != "members"}
        if index:
            training["seed"] = first_seed + index
            if training.get("data_seed") is not None:
                training["data_seed"] += index
        return self.model_copy(update={"training": training})
