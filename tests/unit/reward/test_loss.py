"""The losses against torch's own and a sum by hand; and TRL's, by its own `compute_loss`."""

import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F
from trl import RewardTrainer

from reward.loss import pair_loss, regression_loss, smoothed

scores = st.lists(st.floats(-30, 30, width=32), min_size=3, max_size=3).map(torch.tensor)


def ones(value=1.0):
    return torch.full((3,), value)


@given(scores, scores)
def test_one_vote_each_is_bradley_terry(first, second):
    loss = pair_loss(first, second, ones(), ones(), 3.0)
    torch.testing.assert_close(loss, -F.logsigmoid(first - second).mean())
    reversed_votes = pair_loss(second, first, ones(0.0), ones(), 3.0)
    torch.testing.assert_close(reversed_votes, loss)


@given(scores.map(lambda x: x / 3), scores.map(lambda x: x / 3), st.floats(0, 1))
def test_a_share_of_votes_is_torchs_binary_cross_entropy(first, second, share):
    p = torch.sigmoid((first - second).double())
    expected = F.binary_cross_entropy(p, ones(share).double())
    torch.testing.assert_close(
        pair_loss(first, second, ones(share), ones(), 3.0).double(), expected, atol=1e-4, rtol=1e-3
    )


def test_a_tie_pulls_two_scores_together():
    first = torch.tensor([2.0], requires_grad=True)
    second = torch.tensor([-1.0])
    pair_loss(first, second, torch.tensor([0.5]), torch.tensor([1.0]), 1.0).backward()
    assert first.grad.item() == pytest.approx(1 / (1 + math.exp(-3)) - 0.5)
    assert pair_loss(second, second, torch.tensor([0.5]), torch.tensor([1.0]), 1.0).item() == pytest.approx(math.log(2))


def test_weights_count_pairs_more_than_once():
    first, second = torch.tensor([1.0, -2.0]), torch.tensor([0.5, 1.0])
    weighted = pair_loss(first, second, torch.tensor([1.0, 0.0]), torch.tensor([3.0, 1.0]), 4.0)
    repeated = pair_loss(
        torch.tensor([1.0, 1.0, 1.0, -2.0]),
        torch.tensor([0.5, 0.5, 0.5, 1.0]),
        torch.tensor([1.0, 1, 1, 0]),
        torch.ones(4),
        4.0,
    )
    torch.testing.assert_close(weighted, repeated)


def test_differences_are_taken_in_float32():
    first, second = torch.tensor([9.0, 9.0]).bfloat16(), torch.tensor([8.0, 9.0]).bfloat16()
    loss = pair_loss(first, second, torch.ones(2).bfloat16(), torch.ones(2).bfloat16(), 2.0)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx((math.log1p(math.exp(-1)) + math.log(2)) / 2, rel=1e-6)


@given(scores, scores, st.lists(st.floats(-3, 3, width=32), min_size=3, max_size=3), st.floats(0, 1))
def test_at_two_completions_it_is_trls_loss_margin_and_centering(chosen, rejected, margin, coefficient):
    """TRL's own method, on a model that only gives scores."""
    margin = torch.tensor(margin)
    model = SimpleNamespace(training=True)
    trainer = SimpleNamespace(
        model=model,
        args=SimpleNamespace(center_rewards_coefficient=coefficient or None),
        accelerator=SimpleNamespace(gather=lambda x: x, gather_for_metrics=lambda x: x),
        _metrics={"train": {name: [] for name in ("min_reward", "mean_reward", "max_reward", "accuracy", "margin")}},
        _total_train_tokens=0,
        _tp_size=1,
    )
    inputs = {"margin": margin, "attention_mask": torch.ones(6, 1)}
    logits = torch.cat([chosen, rejected]).unsqueeze(1)
    theirs = RewardTrainer.compute_loss(trainer, lambda **inputs: SimpleNamespace(logits=logits), inputs)
    ours = pair_loss(chosen, rejected, ones(), ones(), 3.0, margin, coefficient)
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)
    # The same pairs the other way round, `second` preferred.
    swapped = pair_loss(rejected, chosen, ones(0.0), ones(), 3.0, -margin, coefficient)
    torch.testing.assert_close(swapped, theirs, atol=1e-6, rtol=1e-6)


def test_smoothing_leaves_a_tie_a_tie_and_takes_a_share_of_each_side():
    target = torch.tensor([0.0, 0.25, 0.5, 1.0])
    torch.testing.assert_close(smoothed(target, 0.1), torch.tensor([0.1, 0.3, 0.5, 0.9]))
    assert torch.equal(smoothed(target, 0.0), target)


def test_smoothing_is_the_loss_of_votes_that_are_sometimes_the_other_way():
    first, second = torch.tensor([1.5, -0.5, 2.0]), torch.tensor([0.0, 1.0, 1.0])
    mixed = 0.9 * pair_loss(first, second, ones(), ones(), 3.0) + 0.1 * pair_loss(first, second, ones(0.0), ones(), 3.0)
    torch.testing.assert_close(pair_loss(first, second, smoothed(ones(), 0.1), ones(), 3.0), mixed)


def test_regression_is_the_weighted_squared_error():
    found = regression_loss(torch.tensor([1.0, 2.0, 5.0]), torch.tensor([0.0, 4.0, 0.0]), torch.tensor([1.0, 3, 0]), 4)
    assert found.item() == pytest.approx((1 + 3 * 4) / 4)
    rounded = regression_loss(torch.tensor([9.0]).bfloat16(), torch.tensor([8.99]), torch.ones(1), 1)
    assert rounded.item() == pytest.approx(1e-4, rel=1e-3)
