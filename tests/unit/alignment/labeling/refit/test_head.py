"""The refitted head: against torch's optimizer, the stage's own loss, and exact leave-one-out refits."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from alignment.labeling.refit.head import choose_l2, fit_head, losses, probabilities, projection
from reward.loss import pair_loss


@pytest.fixture
def pairs():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((80, 5))
    targets = rng.choice([0.0, 0.5, 1.0, 2 / 3], 80)
    return x, targets, rng.random(80) * 3


def test_the_head_is_the_minimum_that_torch_finds(pairs):
    x, targets, weights = (torch.tensor(each) for each in pairs)
    head = torch.zeros(5, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([head], max_iter=500, tolerance_grad=1e-12, tolerance_change=1e-15)

    def closure():
        optimizer.zero_grad()
        loss = torch.nn.functional.binary_cross_entropy_with_logits(x @ head, targets, weights, reduction="sum")
        loss = loss + 0.7 / 2 * head @ head
        loss.backward()
        return loss

    optimizer.step(closure)
    assert fit_head(*pairs, l2=0.7) == pytest.approx(head.detach().numpy(), abs=1e-6)


def test_losses_are_those_of_the_reward_stage(pairs):
    x, targets, weights = pairs
    scores = x.sum(1)
    zero = torch.zeros(len(scores))
    stage = pair_loss(torch.tensor(scores), zero, torch.tensor(targets), torch.tensor(weights), float(weights.sum()))
    assert weights @ losses(scores, targets) / weights.sum() == pytest.approx(stage.item(), rel=1e-6)


def test_huge_scores_do_not_overflow():
    with np.errstate(over="raise", invalid="raise"):
        assert losses(np.array([1e4, -1e4]), np.array([1.0, 0.0])).tolist() == [0.0, 0.0]
        assert probabilities(np.array([1e4, -1e4])).tolist() == [1.0, 0.0]


def test_pairs_without_weight_change_nothing(pairs):
    x, targets, weights = pairs
    weights[:40] = 0
    assert fit_head(x, targets, weights, 1.0) == pytest.approx(fit_head(x[40:], targets[40:], weights[40:], 1.0))


def test_votes_that_a_plane_separates_have_a_finite_head():
    x = np.array([[1.0], [2.0], [-1.0]])
    head = fit_head(x, np.array([1.0, 1.0, 0.0]), np.ones(3), 0.03)
    # The optimum by hand: the gradient of the three losses is l2 * head.
    assert sum(abs(each) * (1 - probabilities(abs(each) * head)[0]) for each in (1, 2, 1)) == pytest.approx(
        0.03 * head[0]
    )


def test_a_projection_keeps_the_directions_in_which_differences_vary():
    rng = np.random.default_rng(1)
    few = rng.standard_normal((200, 3)) @ rng.standard_normal((3, 40))
    found = projection(few + 1e-4 * rng.standard_normal((200, 40)), 3)
    onto = found.directions @ np.linalg.pinv(found.directions)
    assert few @ onto == pytest.approx(few, abs=1e-2)
    assert np.mean(np.sum(found(few) ** 2, axis=1)) == pytest.approx(1.0, rel=1e-3)
    assert projection(np.zeros((4, 6)), 3)(np.ones(6)).shape == (
        3,
    )  # equal answers: no direction, and no division by 0


def test_the_penalty_is_strong_for_noise_and_weak_for_what_can_be_learned():
    rng = np.random.default_rng(2)
    x = rng.standard_normal((300, 10)) / np.sqrt(10)
    logits = x @ (12 * rng.standard_normal(10))
    learned = choose_l2(x, (logits > 0).astype(float), np.ones(300), range(300))
    noise = choose_l2(x, rng.integers(2, size=300).astype(float), np.ones(300), range(300))
    assert (learned, noise) == (1.0, 30.0)
