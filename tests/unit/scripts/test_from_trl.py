"""docs/start/from-trl.md: every key that it names is one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from alignment.config.loading import _keys
from ppo.config import PPOStageConfig

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "start" / "from-trl.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| `(\w+)` \| (none|`[^|]+`) \|", PAGE, re.MULTILINE)
# The fields that TRL 1.12's PPOConfig adds to TrainingArguments, from its source.
THEIRS = {
    "dataset_num_proc", "num_mini_batches", "total_episodes", "local_rollout_forward_batch_size",
    "num_sample_generations", "response_length", "stop_token", "stop_token_id", "temperature", "missing_eos_penalty",
    "sft_model_path", "world_size", "num_total_batches", "micro_batch_size", "local_batch_size", "batch_size",
    "local_mini_batch_size", "mini_batch_size", "push_to_hub", "reward_model_path", "model_adapter_name",
    "ref_adapter_name", "num_ppo_epochs", "whiten_rewards", "kl_coef", "kl_estimator", "cliprange", "vf_coef",
    "cliprange_value", "gamma", "lam", "ds3_gather_for_generation",
}  # fmt: skip


def test_each_of_their_fields_has_a_row():
    assert {name for name, _ in ROWS} >= THEIRS


@pytest.mark.parametrize(
    "ours", sorted(set(re.findall(r"`((?:model|data|rewards|rollout|ppo|ptx|training|tracking)\.\w+)", PAGE)))
)
def test_each_key_of_ours_is_one(ours):
    assert ours in set(_keys(PPOStageConfig))
