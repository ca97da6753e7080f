"""What the config refuses, with which words; and batch sizes divide as the plan says, or the message says which do."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignment.config.loading import validate
from alignment.errors import ConfigError
from ppo.config import PPOStageConfig, batch_plan

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


def test_demonstrations_divide_over_processes():
    config = build(ptx={"train": "x.jsonl", "batch_size": 7})
    with pytest.raises(ConfigError, match=r"ptx\.batch_size=7 does not divide into 2 processes; use 8"):
        batch_plan(config, 2)
    batch_plan(config, 1)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"rollout": {"temperature": 0}}, "rollout.temperature"),
        ({"rollout": {"top_k": 50}}, "take them out, or set allow_filtered=true"),
        ({"rollout": {"top_p": 0.9}}, "the KL is then biased and can be negative"),
        ({"ppo": {"gamma": 1.01}}, "ppo.gamma"),
        ({"ppo": {"kl_coef": -0.1}}, "ppo.kl_coef"),
        ({"ppo": {"kl_estimator": "k3"}}, "k3 in the reward converges to another policy"),
        ({"ppo": {"kl_estimator": "k2"}}, "k2 in the reward converges to another policy"),
        ({"ppo": {"kl_in": "loss", "kl_estimator": "k1"}}, "k1 in the loss has an expected gradient of zero"),
        ({"ppo": {"dual_clip": 0.5}}, "ppo.dual_clip"),
        ({"ppo": {"advantage_estimator": "rloo"}}, "set rollout.num_generations=4"),
        (
            {"ppo": {"advantage_estimator": "reinforce++", "value_warmup_steps": 2}},
            "value_warmup_steps is of the critic",
        ),
        ({"ppo": {"kl_horizon": 500}}, "kl_horizon is for adapting kl_coef; set kl_target"),
        ({"ppo": {"kl_target": 6, "kl_coef": 0}}, "0 stays 0"),
        ({"ppo": {"kl_target": 6, "kl_horizon": 63}}, "ppo.kl_horizon=63 is less than rollout.batch_size=64"),
        ({"ppo": {"value_warmup_steps": 1000}}, "leaves the policy none of training.max_steps=1000"),
        ({"rollout": {"importance_cap": 3}}, "importance_cap corrects what vLLM samples"),
        ({"rewards": {"overlong_penalty": 2}}, "set overlong_buffer to how many"),
        (
            {"rewards": {"others": [{"function": "a:b"}], "model_weight": 2}, "model": {"policy": "p"}},
            "rewards.model_weight is the reward model's; set model.reward, or take it out",
        ),
        ({"ptx": {"coef": 1}}, "set ptx.train"),
        (
            {"ppo": {"advantage_estimator": "grpo", "gamma": 0.9}, "rollout": {"num_generations": 2}},
            "gamma is 1 with advantage_estimator=grpo",
        ),
        ({"training": {"max_steps": 0}}, "training.max_steps"),
        ({"training": {"lr_scheduler_type": "linaer"}}, "training.lr_scheduler_type"),
        ({"training": {"per_device_train_batch_size": 8}}, "unknown key 'training.per_device_train_batch_size'"),
        ({"rewards": {"missing_eos_score": -1, "missing_eos_penalty": 1}}, "keep one of them"),
        ({"rewards": {"overlong_buffer": 65}}, "rewards.overlong_buffer=65 is more than rollout.max_new_tokens=64"),
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
        {"rollout": {"top_k": 50, "allow_filtered": True}},
        {"ppo": {"kl_in": "loss"}},
        {"ppo": {"kl_in": "loss", "kl_estimator": "k3"}},
        {"ppo": {"advantage_estimator": "rloo"}, "rollout": {"num_generations": 2}},
        {"ppo": {"advantage_estimator": "reinforce++", "gamma": 0.9}},
        {"ppo": {"advantage_estimator": "reinforce++", "vf_coef": 0.5}, "training": {"value_learning_rate": 1e-4}},
        {"rewards": {"missing_eos_penalty": 1}},
        {"rewards": {"others": [{"function": "a:b"}]}, "model": {"policy": "p"}},
    ],
)
def test_what_makes_sense_is_taken(sections):
    build(**sections)
