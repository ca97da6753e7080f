"""Advice names keys that exist: each `section.key` that a string in the code or a page names is in a stage's config."""

from __future__ import annotations

import ast
import re
from dataclasses import fields
from pathlib import Path

import pytest
from pydantic import BaseModel
from trl import RewardConfig, SFTConfig

from alignment.config.arguments import BestModelArguments, CheckpointArguments
from alignment.config.sections import Section
from ppo.config import PPOStageConfig
from reward.config import EnsembleArguments, RewardStageConfig
from sft.config import SFTStageConfig

ROOT = Path(__file__).parents[2]
SECTIONS = ("model", "data", "training", "rollout", "ppo", "rewards", "ptx", "reward", "registry", "tracking")
KEY = re.compile(rf"(?<![\w./@-])({'|'.join(SECTIONS)})((?:\.\w+)+)")
TRAINERS = (SFTConfig, RewardConfig, BestModelArguments, CheckpointArguments, EnsembleArguments)
NOT_KEYS = {
    "model.generate", "model.merge", "model.get_base_model", "registry.load", "registry.publish", "ppo.prepare",
    "reward.shared_prefix",
}  # fmt: skip
"""Calls of objects that have a section's name, and the removed key that reward/config.py lists."""
ENDINGS = (".py", ".yaml", ".jsonl", ".safetensors", ".md", ".sbatch", ".db", ".gguf")


def keys_of(model: type[BaseModel], prefix: str = "") -> set[str]:
    found = set()
    for name, field in model.model_fields.items():
        found.add(prefix + name)
        for kind in sections_in(field.annotation):
            found |= keys_of(kind, f"{prefix}{name}.")
    return found


def sections_in(annotation: object) -> list[type[Section]]:
    """The sections that a key holds, in an Optional or a tuple too."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    return [kind for part in getattr(annotation, "__args__", ()) for kind in sections_in(part)]


@pytest.fixture(scope="module")
def keys() -> set[str]:
    found = {key for stage in (SFTStageConfig, RewardStageConfig, PPOStageConfig) for key in keys_of(stage)}
    return found | {f"training.{field.name}" for arguments in TRAINERS for field in fields(arguments)}


def named_in(text: str) -> list[str]:
    return [match[0] for match in KEY.finditer(text)]


def is_module(name: str) -> bool:
    """`ppo.algorithm.truncated_importance_weights`: what a module of a stage has."""
    folder, module, *_ = name.split(".")
    return (ROOT / folder / f"{module}.py").exists() or (ROOT / folder / module).is_dir()


def unknown(text: str, keys: set[str]) -> list[str]:
    free = ("model.adapter.", "model.scratch.", "model.layers.", "model.embed_tokens", "model.norm")
    return [
        name
        for name in named_in(text)
        if name not in keys
        and name not in NOT_KEYS
        and not is_module(name)
        and not name.startswith(free)
        and not name.endswith(ENDINGS)
    ]


def test_every_key_that_a_message_names_exists(keys):
    wrong = []
    for folder in ("alignment", "sft", "reward", "ppo", "scripts"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            if path.name == "removed_keys.py":  # tests/unit/ppo/test_config.py reads what these tables advise
                continue
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    wrong += [f"{path.relative_to(ROOT)}:{node.lineno}: {name}" for name in unknown(node.value, keys)]
    assert wrong == []


@pytest.mark.parametrize("pattern", ["README.md", "docs/**/*.md", "configs/*/*.yaml"])
def test_every_key_that_a_page_names_exists(keys, pattern):
    pages = sorted(path for path in ROOT.glob(pattern) if "development" not in path.parts)  # those tell of what was
    wrong = [f"{path.relative_to(ROOT)}: {name}" for path in pages for name in unknown(path.read_text(), keys)]
    assert pages
    assert wrong == []


def test_a_key_that_does_not_exist_is_found(keys):
    assert unknown("keep rollout.missing_eos_penalty low, or set data.eval_shares", keys) == [
        "rollout.missing_eos_penalty", "data.eval_shares",
    ]  # fmt: skip
    assert unknown("rewards.missing_eos_penalty, rewards.others, rollout.vllm.server_base_url", keys) == []
    assert named_in("RUN/model.safetensors, ../data.jsonl, `ppo.kl_coef=0`") == ["ppo.kl_coef"]
