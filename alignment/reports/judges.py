"""The judge of a PPO run's held-out answers, without which a win rate cannot be interpreted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlsplit

Kind = Literal["held-out reward model", "reward model", "function", "service", "sum", "people"]
UNKNOWN = "an unknown judge"
FLATTERS = "which is biased upward: training maximised it"


@dataclass(frozen=True)
class Judge:
    """The judge of a win rate.

    Args:
        name: a model's reference, a function, or a service's host.
    """

    kind: Kind
    name: str

    @property
    def is_independent(self) -> bool:
        """Whether the judge is not part of the training objective."""
        return self.kind in ("held-out reward model", "people")

    @property
    def text(self) -> str:
        """The judge in a sentence after "judged by"."""
        match self.kind:
            case "people":
                return "people"
            case "held-out reward model":
                return f"the held-out reward model {self.name}"
            case "sum":
                return f"the sum of rewards that it was trained on ({self.name}), {FLATTERS}"
            case kind:
                description = {"function": "reward function", "service": "reward service"}.get(kind, kind)
                return f"the {description} that it was trained on ({self.name}), {FLATTERS}"

    @property
    def short(self) -> str:
        """The judge in a table cell."""
        return self.kind if self.is_independent else f"its own {'rewards' if self.kind == 'sum' else self.kind}"

    @property
    def short_text(self) -> str:
        """A shorter text after "judged by"."""
        if self.is_independent:
            return self.text
        return f"its training reward ({self.name}), which is biased upward"


def judge_of(config: Mapping[str, Any]) -> Judge | None:
    """The judge of a PPO run; None for another stage, or a config without a reward."""
    model, rewards = config.get("model") or {}, config.get("rewards") or {}
    if not isinstance(config.get("ppo"), Mapping) or not isinstance(model, Mapping):
        return None
    if model.get("held_out_reward"):
        return Judge("held-out reward model", str(model["held_out_reward"]))
    parts = [part for part in reward_parts(config) if part[2]]
    if not parts:
        return None
    if len(parts) > 1:
        return Judge("sum", ", ".join(name for name, _, _ in parts))
    name, kind, _ = parts[0]
    if kind == "function":
        name = next(str(each["function"]) for each in rewards["others"] if each.get("weight", 1.0) and each["function"])
    return Judge(kind, str(model["reward"]) if kind == "reward model" else name)


def reward_parts(config: Mapping[str, Any]) -> list[tuple[str, Kind, float]]:
    """The name in the journal (`reward/NAME`), kind and weight of each component of the score."""
    model, rewards = config.get("model") or {}, config.get("rewards") or {}
    parts: list[tuple[str, Kind, float]] = []
    if heads := model.get("reward_weights"):
        parts += [(str(name), "reward model", float(weight)) for name, weight in heads.items()]
    elif model.get("reward"):
        parts.append(("model", "reward model", float(rewards.get("model_weight", 1.0))))
    taken = {"model", "score_std", *(name for name, _, _ in parts)}
    for index, entry in enumerate(rewards.get("others") or ()):
        function = entry.get("function")
        name = str(function).rpartition(":")[2] if function else str(urlsplit(str(entry.get("url"))).hostname)
        if name in taken:
            name = f"{name}-{index}"
        taken.add(name)
        parts.append((name, "function" if function else "service", float(entry.get("weight", 1.0))))
    return parts
