"""The reward stage's config. `training` takes every argument of `trl.RewardConfig` by its own name, and `members`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from alignment.config.sections import NonNegative, Section, TrainerConfig


class RewardSection(Section):
    """What is learned from the ratings."""

    objective: Literal["pairs", "regression"] = "pairs"
    """`pairs`: of two completions the preferred one shall score higher. `regression`: a score shall be near the
    rating, in standard deviations of the ratings; for rows of `prompt`, `completion`, `rating` and items rated 1-7."""
    margin: NonNegative = 0.0
    """By how much a completion that was judged much better (strength 3) should be ahead; better (2) asks for two
    thirds of it, slightly better (1) for one third, a tie or a vote without strength for none."""
    label_smoothing: Annotated[float, Field(ge=0.0, lt=0.5)] = 0.0
    """Share of the votes that is taken for mistaken. A tie stays a tie."""
    labelers: tuple[str, ...] = ()
    """Learn from the ratings of these labelers alone, and be judged by theirs: names, or the hashes that manifests
    show. In databases, and in files that say who voted. Empty: everybody's. The labelers who are left out can train a
    second reward model, PPO's `model.held_out_reward`. Configs of runs hold hashes in place of a database's names."""
    use_reliability: bool = False
    """Let a labeler's votes weigh as much as they agree with the others' where several judged the same item
    (one-coin Dawid-Skene, shrunk for labelers with few of those)."""
    shared_prefix: Literal["auto", "off"] = "auto"
    """`auto`: compute the prompt of several completions once where the architecture allows it, and say so where it
    does not. The scores are the same."""
    demonstrations: str | None = None
    """Demonstrations over which the published scores average 0. None: those that the model's SFT stage learned from."""

    @model_validator(mode="after")
    def _keys_of_the_objective(self) -> Self:
        """A key that the objective would pass over in silence is a promise not kept."""
        for key in ("margin", "label_smoothing"):
            if getattr(self, key) and self.objective != "pairs":
                raise ValueError(f"{key} is only for objective=pairs, found objective={self.objective}")
        return self


class RewardStageConfig(TrainerConfig):
    """Sections: name, model, data, reward, training, registry, tracking."""

    reward: RewardSection = RewardSection()

    def of_member(self, number: int = 0, first_seed: int = 0) -> Self:
        """The run of one member of an ensemble, as that of a single model: the n-th one's seeds are n further on."""
        training = {name: value for name, value in self.training.items() if name != "members"}
        if number:
            training["seed"] = first_seed + number
            if training.get("data_seed") is not None:
                training["data_seed"] += number
        return self.model_copy(update={"training": training})


@dataclass(frozen=True)
class EnsembleArguments:
    """What `training` takes here beside TRL's arguments."""

    members: int = 1
    """How many models are trained, with the seeds `seed`, `seed + 1` and so on; all are published as one version."""

    @classmethod
    def of(cls, training: Mapping[str, Any]) -> Self:
        """Those in a `training` section."""
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
