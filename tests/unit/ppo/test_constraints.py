"""Components of the score, bounds on their means, and the multipliers that keep them."""

import math

import pytest
import torch
from pydantic import ValidationError

from ppo.algorithm import ScoreStats
from ppo.bounds import Bound, parse_bounds
from ppo.components import Components
from ppo.config import PPOStageConfig, RewardsConfig
from ppo.constraints import LIMIT, Lagrangian
from ppo.controllers import RewardScaler

ANSWERS = {"good": torch.tensor([1.0, 3.0, 5.0, 7.0]), "safe": torch.tensor([10.0, 20.0, 30.0, 40.0])}
GOOD_STD, SAFE_STD = math.sqrt(5.0), math.sqrt(125.0)


def config(reward_weights=None, others=(), **rewards):
    values = {
        "name": "x",
        "model": {"policy": "p", "reward": "r", "reward_weights": reward_weights or {}},
        "data": {"train": "x"},
        "rewards": {"others": list(others), **rewards},
        "registry": {"name": "x"},
    }
    return PPOStageConfig.model_validate(values)


def lagrangian(*bounds, horizon=100.0, each=False):
    settings = {"constraints": {bound.name: bound.text for bound in bounds}}
    components = Components({"good": 1.0, "safe": 0.0}, RewardsConfig(**settings))
    components.observe(ANSWERS)
    scaler = RewardScaler("reference")
    scaler.observe(components.total(ANSWERS))
    return Lagrangian(bounds, components, scaler, horizon)


def test_bounds_of_both_sides():
    above, below = parse_bounds({"safe": ">= 0.2", "toxic.x": "<=-1e-1"})
    assert above == Bound("safe", 1, 0.2) and below == Bound("toxic.x", -1, -0.1)
    assert above.slack(0.5) == pytest.approx(0.3) and below.slack(0.0) == pytest.approx(-0.1)
    assert above.text == ">= 0.2"


@pytest.mark.parametrize("text", ["0.2", "> 0.2", ">= x", ">= 1 2", "", ">= nan", "=> 1"])
def test_what_is_no_bound_is_refused_with_an_example(text):
    with pytest.raises(ValueError, match=r'is no bound; write ">= 0.2"'):
        parse_bounds({"safe": text})


def test_weights_and_bounds_are_of_components_that_there_are():
    weights = {"helpful": 1.0, "harmless": 0}
    assert config(weights, constraints={"harmless": ">= 0.2"}).rewards.bounds == (Bound("harmless", 1, 0.2),)
    assert config(weights, [{"function": "m:fit"}], constraints={"fit": "<= 1"}).rewards.bounds[0].sign == -1
    assert config(constraints={"model": ">= 0"}, others=[{"function": "m:fit"}]).rewards.bounds[0].name == "model"
    for settings, said in (
        ({"reward_weights": weights, "constraints": {"harmles": ">= 0"}}, "did you mean 'harmless'"),
        ({"reward_weights": {"a": 0.0}}, "nothing to maximise"),
        ({"normalize": "each"}, "for several components of the score, and there is one"),
        ({"constraints": {"model": "0.2"}}, "is no bound"),
    ):
        with pytest.raises(ValidationError, match=said):
            config(**settings)


def test_the_score_is_the_weighted_sum_and_a_weight_of_0_leaves_out():
    total = Components({"good": 2.0, "safe": 0.0}, RewardsConfig()).total(ANSWERS)
    assert total.tolist() == [2.0, 6.0, 10.0, 14.0]


def test_each_component_is_normalised_by_its_own_first_scores():
    components = Components({"good": 1.0, "safe": 0.5}, RewardsConfig(normalize="each"))
    components.observe(ANSWERS)
    components.observe({name: 100 * values for name, values in ANSWERS.items()})  # a scale of its first scores alone
    by_hand = (ANSWERS["good"] - 4) / GOOD_STD + 0.5 * (ANSWERS["safe"] - 25) / SAFE_STD
    torch.testing.assert_close(components.total(ANSWERS), by_hand)
    again = Components({"good": 1.0, "safe": 0.5}, RewardsConfig(normalize="each"))
    again.load_state_dict(components.state_dict())
    torch.testing.assert_close(again.total(ANSWERS), by_hand)


def test_a_multiplier_adds_the_constraint_in_points_of_the_score():
    found = lagrangian(Bound("safe", 1, 28.0))
    unit = GOOD_STD / SAFE_STD  # it starts at one standard deviation for one
    assert found.multiplier("safe") == pytest.approx(unit)
    assert found.scale == 2.0
    shaped = found.shape(ANSWERS["good"], ANSWERS)
    torch.testing.assert_close(shaped, ANSWERS["good"] + unit * (ANSWERS["safe"] - 28))
    below = lagrangian(Bound("safe", -1, 28.0)).shape(ANSWERS["good"], ANSWERS)
    torch.testing.assert_close(below, ANSWERS["good"] - unit * (ANSWERS["safe"] - 28))


@pytest.mark.parametrize(("sign", "mean", "expected"), [
    (1, 28 - 0.15 * SAFE_STD, 0.5), (1, 28 + 0.03 * SAFE_STD, -0.1), (1, -1e9, 1.0), (-1, 28 + 0.06 * SAFE_STD, 0.2),
])  # fmt: skip
def test_a_step_is_what_is_missing_over_three_tenths_of_a_standard_deviation(sign, mean, expected):
    found = lagrangian(Bound("safe", sign, 28.0), horizon=200.0)
    before = found.multiplier("safe")
    found.update({"reward/safe": mean}, 50)
    assert found.multiplier("safe") == pytest.approx(before * math.exp(expected * 50 / 200))


def test_a_multiplier_has_ends_and_comes_back_from_a_checkpoint():
    found = lagrangian(Bound("safe", 1, 28.0), horizon=1.0)
    for _ in range(20):
        found.update({"reward/safe": 0.0}, 1)
    assert found.multiplier("safe") == pytest.approx(math.exp(LIMIT) * GOOD_STD / SAFE_STD)
    again = lagrangian(Bound("safe", 1, 28.0))
    again.load_state_dict(found.state_dict())
    assert again.multiplier("safe") == found.multiplier("safe")
    for _ in range(40):
        found.update({"reward/safe": 50.0}, 1)
    assert found.multiplier("safe") == pytest.approx(math.exp(-LIMIT) * GOOD_STD / SAFE_STD)


def test_what_is_journaled():
    found = lagrangian(Bound("safe", 1, 28.0))
    assert found.metrics({"reward/safe": 25.0}) == {"multiplier/safe": found.multiplier("safe"), "slack/safe": -3.0}


def test_without_constraints_there_is_nothing():
    components = Components({"good": 1.0}, RewardsConfig())
    assert Lagrangian.for_run((), components, RewardScaler(None), 64, 100) is None
    assert components.state_dict() == {}
    assert ScoreStats() == RewardScaler(None).stats
