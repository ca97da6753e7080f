"""The sections that a config of any stage has, for commands that are of none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from alignment.config.loading import read_values, validate
from alignment.config.sections import DataConfig, ModelConfig, Section
from alignment.errors import ConfigError


class Recipe(Section):
    """What a stage's config says of its data and of the model that it starts from; its other sections are not read."""

    data: DataConfig
    model: ModelConfig
    stage: str | None = None
    """The stage whose config it is, if its other sections tell."""
    objective: str = "pairs"
    """`reward.objective`."""


def _stage_of(path: Path, values: dict[str, Any]) -> str | None:
    if isinstance(values.get("model"), dict) and "policy" in values["model"]:
        return "ppo"
    if "reward" in values:
        return "reward"
    return path.parent.name if path.parent.name in ("sft", "reward") else None


def read_recipe(path: Path) -> Recipe:
    """Read a config of SFT, the reward model or PPO; of PPO's models the policy alone is looked at.

    Raises:
        ConfigError: no config, or a mistake in one of the two sections.
    """
    values = read_values(path)
    model = values.get("model")
    if isinstance(model, dict) and not {"name", "policy"} & set(model):
        raise ConfigError(f"{path}: its model section has neither model.name nor, as PPO's, model.policy; add one")
    if isinstance(model, dict) and "policy" in model:
        model = {"name": model["policy"], "trust_remote_code": model.get("trust_remote_code", False)}
    found = {"data": values.get("data"), "model": model, "stage": _stage_of(path, values)}
    if isinstance(values.get("reward"), dict):
        found["objective"] = values["reward"].get("objective")
    return validate(Recipe, {name: value for name, value in found.items() if value is not None}, str(path))
