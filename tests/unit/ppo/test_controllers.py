"""The KL coefficient and the scale of the rewards, against numbers by hand and against numpy over all scores."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ppo.algorithm import ScoreStats
from ppo.controllers import KLController, RewardScaler

SCORES = st.lists(st.lists(st.floats(-50, 50), min_size=1, max_size=6), min_size=1, max_size=5)


@pytest.mark.parametrize(("kl", "expected"), [(12.0, 0.201024), (3.0, 0.198976), (6.6, 0.200512), (6.0, 0.2)])
def test_the_coefficient_follows_the_error_of_the_kl(kl, expected):
    controller = KLController(0.2, 6.0, 10000.0)
    controller.update(kl, 256)
    assert controller.value == pytest.approx(expected, abs=1e-9)


def test_a_long_run_adapts_over_ten_thousand_episodes_and_a_short_one_over_a_sixth():
    horizons = [KLController.for_run(0.1, 6.0, 64, iterations).horizon for iterations in (1000, 120, 3)]
    assert horizons == [10_000, 1280, 64]  # never so short that one iteration changes it by more than a fifth


def test_without_a_target_the_coefficient_stays():
    controller = KLController(0.2, None, 10000.0)
    controller.update(50.0, 256)
    assert controller.value == 0.2


def test_a_controller_comes_back_from_its_state():
    one, other = KLController(0.2, 6.0, 100.0), KLController(0.5, 6.0, 100.0)
    one.update(9.0, 10)
    other.load_state_dict(one.state_dict())
    for controller in (one, other):
        controller.update(2.0, 10)
    assert one.value == other.value != 0.2


def test_a_fixed_coefficient_is_the_configs_on_resume():
    controller = KLController(0.5, None, 100.0)
    controller.load_state_dict(KLController(0.05, None, 100.0).state_dict())
    assert controller.value == 0.5


def tensors(batches):
    return [torch.tensor(batch, dtype=torch.float64) for batch in batches]


@given(SCORES)
@settings(max_examples=100, deadline=None)
def test_the_running_unit_is_that_of_all_scores_so_far(batches):
    scaler, seen = RewardScaler("running"), []
    for batch in tensors(batches):
        seen += batch.tolist()
        mean, std = np.mean(seen), np.std(seen)
        scaler.observe(batch)
        found = scaler(batch)
        if std > 1e-4:
            torch.testing.assert_close(found, (batch - mean) / std, rtol=1e-5, atol=1e-5)
    assert torch.isfinite(found).all()


def scaled(scaler, values):
    scores = torch.tensor(values)
    scaler.observe(scores)
    return scaler(scores)


def test_the_reference_unit_is_that_of_the_first_scores():
    scaler = RewardScaler("reference")
    torch.testing.assert_close(scaled(scaler, [1.0, 3.0]), torch.tensor([-1.0, 1.0]))
    torch.testing.assert_close(scaled(scaler, [5.0, 2.0]), torch.tensor([3.0, 0.0]))
    assert scaler.stats == scaler.start == scaler.penalty_stats == ScoreStats(2.0, 1.0)


def test_the_reference_unit_waits_for_scores_that_differ():
    """As those of a sparse reward, which no response has at first."""
    scaler = RewardScaler("reference")
    assert scaled(scaler, [0.0, 0.0]).tolist() == [0.0, 0.0]
    found = scaled(scaler, [1.0, 0.0])
    torch.testing.assert_close(found, (torch.tensor([1.0, 0.0]) - 0.25) / np.std([0, 0, 1, 0]).item())
    torch.testing.assert_close(scaled(scaler, [1.0, 0.0]), found)  # and stays


@pytest.mark.parametrize(("mode", "expected"), [("running", 0.0), ("reference", 0.0), (None, 2.5)])
def test_scores_without_a_spread_are_not_stretched(mode, expected):
    scaler = RewardScaler(mode)
    for _ in range(2):
        assert scaled(scaler, [2.5]).tolist() == [expected]


@pytest.mark.parametrize("size", [1.0, 1e3, 1e6])
def test_rounding_is_no_spread(size):
    """float32 at 1e6 has steps of .06: such differences say nothing of the scores."""
    scaler = RewardScaler("reference")
    scaler.observe(torch.tensor([size, size * (1 + 2**-23)]))
    assert scaler.stats.std == 1.0


def test_costs_keep_the_unit_of_the_start_while_scores_run():
    scaler = RewardScaler("running")
    scaler.observe(torch.tensor([1.0, 3.0]))
    scaler.observe(torch.tensor([11.0, 13.0]))
    assert scaler.penalty_stats == ScoreStats(2.0, 1.0)
    assert scaler.stats == ScoreStats(7.0, pytest.approx(np.std([1, 3, 11, 13])))
    raw = RewardScaler(None)
    raw.observe(torch.tensor([1.0, 3.0]))
    assert (raw.stats, raw.penalty_stats, raw.start) == (ScoreStats(), ScoreStats(), ScoreStats(2.0, 1.0))


@given(SCORES, st.sampled_from(["running", "reference"]))
@settings(max_examples=50, deadline=None)
def test_two_processes_scale_as_one(batches, mode):
    """Each has half of the scores; the sums that it asks for are those of both."""
    doubled = [batch * 2 for batch in batches]
    whole, half = RewardScaler(mode), RewardScaler(mode)
    for batch, both in zip(tensors(batches), tensors(doubled), strict=True):
        half.observe(batch, lambda x: 2 * x)
        whole.observe(both)
        torch.testing.assert_close(half(batch), whole(batch), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("mode", ["running", "reference", None])
def test_a_scaler_comes_back_from_its_state(mode):
    one, other = RewardScaler(mode), RewardScaler(mode)
    one.observe(torch.tensor([1.0, 4.0]))
    other.load_state_dict(one.state_dict())
    for scaler in (one, other):
        scaler.observe(torch.tensor([2.0, 9.0]))
    assert (one.stats, one.start) == (other.stats, other.start)
