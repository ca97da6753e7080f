"""What the config refuses, with which words; and batch sizes divide as the plan says, or the message says which do."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignment.config.loading import validate
from alignment.config.reference import keys
from alignment.errors import ConfigError
from ppo.batch_plan import batch_plan, check_copies
from ppo.config import PPOStageConfig
from ppo.removed_keys import REMOVED_KEYS

VALUES = {
    "name": "tiny",
    "model": {"policy": "p", "reward": "r"},
    "data": {"train": "none"},
    "registry": {"name": "tiny"},
}


def build(**sections):
    return validate(PPOStageConfig, VALUES | sections, "tiny.yaml")


def config_of(batch_size, num_minibatches, num_generations):
    return build(
        rollout={"batch_size": batch_size, "num_generations": num_generations}, ppo={"num_minibatches": num_minibatches}
    )


SIZES = (st.integers(1, 96), st.integers(1, 6), st.integers(1, 5), st.integers(1, 5))


@given(*SIZES)
@settings(max_examples=200, deadline=None)
def test_a_plan_multiplies_back_to_the_rollout(batch_size, num_minibatches, num_generations, world_size):
    config = config_of(batch_size, num_minibatches, num_generations)
    try:
        sizes = batch_plan(config, world_size)
    except ConfigError:
        assert batch_size % (world_size * num_minibatches) or batch_size % (world_size * num_generations)
        return
    assert sizes.prompts * num_generations == sizes.episodes
    assert sizes.minibatch * num_minibatches == batch_size == sizes.episodes * world_size
    assert sizes.minibatch % world_size == 0  # each process has an equal part of each


def test_processes_that_share_a_copy_of_vllm_divide_the_launch():
    rollout = {"batch_size": 24, "vllm": {"tensor_parallel_size": 4}}
    check_copies(build(rollout=rollout), 8)
    assert batch_plan(build(rollout=rollout), 1).episodes == 24  # a dry run
    with pytest.raises(ConfigError, match=r"tensor_parallel_size=4 does not divide the 6 processes; use 2, or another"):
        check_copies(build(rollout=rollout), 6)


@given(*SIZES)
@settings(max_examples=200, deadline=None)
def test_every_size_that_the_message_names_divides(batch_size, num_minibatches, num_generations, world_size):
    message = None
    try:
        batch_plan(config_of(batch_size, num_minibatches, num_generations), world_size)
    except ConfigError as error:
        message = str(error)
    if message is None:
        return
    sizes = [int(size) for size in re.search(r"; use (.*)$", message).group(1).split(" or ")]
    assert f"rollout.batch_size={batch_size}" in message
    for size in sizes:
        batch_plan(config_of(size, num_minibatches, num_generations), world_size)
    assert sizes[-1] > batch_size
    assert len(sizes) == 1 or sizes[0] < batch_size


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"rollout": {"temperature": 0}}, "rollout.temperature"),
        ({"ppo": {"kl_coef": -0.1}}, "ppo.kl_coef"),
        ({"ppo": {"advantage_estimator": "rloo"}}, "set rollout.num_generations=4"),
        (
            {"ppo": {"advantage_estimator": "reinforce++", "value_pretrain": "rollouts"}},
            "value_pretrain is of the critic",
        ),
        ({"ppo": {"kl_target": 6, "kl_coef": 0}}, "0 stays 0"),
        ({"ptx": {"coef": 1}}, "set ptx.train"),
        ({"training": {"max_steps": 0}}, "training.max_steps"),
        ({"training": {"lr_scheduler_type": "linaer"}}, "training.lr_scheduler_type"),
        ({"training": {"per_device_train_batch_size": 8}}, "unknown key 'training.per_device_train_batch_size'"),
        ({"model": {"policy": "p"}}, "nothing gives a reward"),
        ({"rewards": {"others": [{"weight": 2}]}}, "either `function` or `url`"),
        ({"rewards": {"others": [{"function": "a:b", "url": "http://x"}]}}, "either `function` or `url`"),
        ({"rewards": {"others": [{"function": "a.b"}]}}, "module:function"),
        ({"rewards": {"others": [{"function": "a:b", "timeout": 1}]}}, "timeout is only for `url`"),
    ],
)
def test_values_that_make_no_sense_are_refused(sections, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        build(**sections)


@pytest.mark.parametrize(
    "sections",
    [
        {"ppo": {"kl_in": "loss"}},
        {"ppo": {"clip_range": [0.2, 0.28]}},
        {"ppo": {"advantage_estimator": "rloo"}, "rollout": {"num_generations": 2}},
        {"ppo": {"advantage_estimator": "reinforce++", "vf_coef": 0.5}, "training": {"value_learning_rate": 1e-4}},
        {"rewards": {"missing_eos_penalty": 1}},
        {"rewards": {"others": [{"function": "a:b"}]}, "model": {"policy": "p"}},
    ],
)
def test_what_makes_sense_is_taken(sections):
    build(**sections)


@pytest.mark.parametrize("key", PPOStageConfig.removed_keys)
def test_a_removed_key_is_refused_with_what_to_do_instead(key):
    *parents, last = key.split(".")
    value = {last: 1}
    if parents[-1] == "others":
        value = [value | {"url": "http://x"}]
    for parent in reversed(parents):
        value = {parent: value}
    (section,) = value
    sections = value if section != "model" else {"model": VALUES["model"] | value["model"]}
    with pytest.raises(ConfigError, match=re.escape(f"was taken out: {PPOStageConfig.removed_keys[key]}")):
        build(**sections)


def test_what_to_do_instead_can_be_done():
    """The keys that the table names are keys."""
    named = {
        name
        for advice in REMOVED_KEYS.values()
        for name in re.findall(r"\b(?:ppo|rewards|rollout|training)[.\w]*\.\w+", advice)
    }
    assert len(named) > 8
    assert named <= {key.name for key in keys(PPOStageConfig)}


def test_the_clip_has_two_sides():
    assert build().ppo.clip_sides == (0.2, 0.2)
    assert build(ppo={"clip_range": [0.2, 0.28]}).ppo.clip_sides == (0.2, 0.28)
