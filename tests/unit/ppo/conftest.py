"""Fixtures around the twelve-token world of `digits`."""

from __future__ import annotations

import pytest
from helpers.digits import CONTENTS, build_models, prompts_of

from alignment.distributed import processes
from alignment.runs.journal import Journal
from ppo.config import PPOStageConfig
from ppo.loading import finalize_models
from ppo.loop import Loop
from ppo.prompts import encode_prompts, prompt_limit


@pytest.fixture
def models():
    return build_models(ref_seed=7)


@pytest.fixture
def prompts():
    """Eight prompts of one to six tokens."""
    return prompts_of(*CONTENTS)


@pytest.fixture
def stage_config(tmp_path):
    """A config for the eight prompts in one minibatch; sections can be changed by keyword."""

    def build(**sections):
        values = {
            "name": "tiny",
            "model": {"policy": "p", "reward": "r"},
            "data": {"train": "none", "max_length": 20},
            "rollout": {"batch_size": 8, "max_new_tokens": 9},
            "ppo": {"num_epochs": 1},
            "training": {"max_steps": 4, "learning_rate": 1e-3, "warmup_steps": 0},
            "registry": {"name": "tiny", "path": str(tmp_path / "registry")},
            "tracking": {"runs": str(tmp_path / "runs"), "wandb": "disabled"},
        }
        for name, changes in sections.items():
            values[name] = {**values.get(name, {}), **changes}
        return PPOStageConfig.model_validate(values)

    return build


@pytest.fixture
def make_loop(tmp_path, prompts):
    """The real loop around models, on this process."""

    def build(models, config, held_out=(), ptx_rows=(), journal=None):
        finalize_models(models, config)
        encoded, encoded_held_out = (
            encode_prompts(each, models.tokenizer, prompt_limit(config), config.data.too_long)[0]
            for each in (prompts, held_out)
        )
        journal = journal or Journal(tmp_path, enabled=False)
        return Loop(config, models, processes.make_accelerator(), journal, encoded, encoded_held_out, ptx_rows)

    return build
