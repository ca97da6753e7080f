"""Batch sizes divide as the plan says, or the message gives a size that does."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignment.config import ConfigError
from ppo.config import PPOStageConfig, batch_plan
from ppo.train import plan

VALUES = {
    "name": "tiny",
    "model": {"policy": "p", "reward": "r"},
    "data": {"train": "none"},
    "registry": {"name": "tiny"},
}


def config_of(batch_size, num_minibatches, per_device):
    return PPOStageConfig.model_validate(
        VALUES
        | {
            "rollout": {"batch_size": batch_size},
            "ppo": {"num_minibatches": num_minibatches},
            "training": {"per_device_train_batch_size": per_device},
        }
    )


SIZES = (st.integers(1, 96), st.integers(1, 6), st.integers(1, 20), st.integers(1, 5))


@given(*SIZES)
@settings(max_examples=200, deadline=None)
def test_a_plan_multiplies_back_to_the_rollout(batch_size, num_minibatches, per_device, world_size):
    try:
        sizes = batch_plan(config_of(batch_size, num_minibatches, per_device), world_size)
    except ConfigError:
        step = world_size * num_minibatches
        assert batch_size % step or (batch_size // step) % min(per_device, batch_size // step)
        return
    assert sizes.microbatch <= per_device
    assert sizes.microbatch * sizes.accumulation == sizes.minibatch
    assert sizes.minibatch * num_minibatches == sizes.episodes
    assert sizes.episodes * world_size == batch_size


@given(*SIZES)
@settings(max_examples=200, deadline=None)
def test_following_the_message_leads_to_a_plan(batch_size, num_minibatches, per_device, world_size):
    for _ in range(2):  # the rollout may not divide, and then the microbatch may not
        try:
            batch_plan(config_of(batch_size, num_minibatches, per_device), world_size)
            return
        except ConfigError as error:
            key, size = re.match(r".*?(\w+)=\d+ does not divide.* use (\d+)$", str(error)).groups()
        if key == "batch_size":
            batch_size = int(size)
        else:
            assert key == "per_device_train_batch_size"
            per_device = int(size)
    batch_plan(config_of(batch_size, num_minibatches, per_device), world_size)


def test_fewer_rows_than_a_microbatch_are_one_microbatch():
    sizes = batch_plan(config_of(12, 2, 8), 2)
    assert (sizes.episodes, sizes.minibatch, sizes.microbatch, sizes.accumulation) == (6, 3, 3, 1)


@pytest.mark.parametrize(
    ("section", "values"),
    [
        ("rollout", {"temperature": 0}),
        ("rollout", {"top_k": 50}),
        ("ppo", {"gamma": 1.01}),
        ("ppo", {"kl_coef": -0.1}),
        ("ppo", {"clip_range": 0}),
        ("training", {"max_steps": 0}),
        ("training", {"lr_scheduler_type": "linaer"}),
    ],
)
def test_values_that_make_no_sense_are_refused(section, values):
    with pytest.raises(ValueError, match=next(iter(values))):
        PPOStageConfig.model_validate(VALUES | {section: values})


def test_long_prompts_are_cut_and_nothing_else():
    config = PPOStageConfig.model_validate(VALUES | {"data": {"train": "none", "too_long": "drop"}})
    with pytest.raises(ConfigError, match=r"data\.too_long=drop: .* leave it at trim_prompt"):
        plan(config, 1)
