"""The mathematics, against numbers worked by hand and sums written out term by term."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import tensor

from alignment.tensors import whiten
from ppo.algorithm import (
    ScoreStats,
    estimate_advantages,
    group_advantages,
    kl_loss,
    penalise_missing_eos,
    policy_loss,
    returns_to_go,
    shape_rewards,
    truncated_importance_weights,
    value_loss,
    without_spread,
)

ONE = tensor([[True]])
CLIP = (0.2, 0.2)
ALL = tensor([[True, True, True]])
REWARDS, VALUES = tensor([[-0.1, 0.2, 1.0]]), tensor([[0.5, 0.4, 0.3]])


def close(actual, expected, tolerance=1e-6):
    pair = (torch.as_tensor(x, dtype=torch.float64) for x in (actual, expected))
    torch.testing.assert_close(*pair, rtol=0, atol=tolerance)


@st.composite
def episodes(draw):
    """(lengths, width, seed) of a batch of responses."""
    width = draw(st.integers(1, 9))
    lengths = draw(st.lists(st.integers(1, width), min_size=1, max_size=5))
    return lengths, width, draw(st.integers(0, 2**31))


def batch_of(lengths, width, seed, count):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.arange(width) < tensor(lengths)[:, None]
    return mask, [torch.randn(len(lengths), width, generator=generator, dtype=torch.float64) for _ in range(count)]


# --- rewards -------------------------------------------------------------------------------------------------------


def test_kl_lowers_the_reward_and_the_score_stands_on_the_last_kept_token():
    mask = tensor([[True, True, False], [True, True, True], [True, False, False]])
    kl = tensor([[0.2, -0.4, 9.0], [1.0, 2.0, 3.0], [0.1, 9.0, 9.0]])
    rewards = shape_rewards(tensor([1.0, -2.0, 0.5]), kl, mask, 0.1)
    close(rewards, tensor([[-0.02, 1.04, 0.0], [-0.1, -0.2, -2.3], [0.49, 0.0, 0.0]]))


def test_the_score_on_eos_gives_069_where_one_slot_later_gives_06525():
    """A policy that ends at once: kl term -.01, V .3, V after the end .25, score 1, lambda .95."""
    mask, values = tensor([[True, False]]), tensor([[0.3, 0.25]])
    rewards = shape_rewards(tensor([1.0]), tensor([[0.1, 0.0]]), mask, 0.1)
    advantages, _ = estimate_advantages(rewards, values, mask, 1.0, 0.95)
    close(advantages, tensor([[0.69, 0.0]]))
    later, _ = estimate_advantages(tensor([[-0.01, 1.0]]), values, tensor([[True, True]]), 1.0, 0.95)
    close(later[0, 0], 0.6525)


@given(episodes(), st.floats(0, 2))
@settings(max_examples=50, deadline=None)
def test_shaped_rewards_sum_to_the_score_less_the_kl(shape, kl_coef):
    mask, (kl, scores) = batch_of(*shape, 2)
    rewards = shape_rewards(scores[:, 0], kl, mask, kl_coef)
    expected = [
        float(score) - kl_coef * sum(row[:length].tolist())
        for score, row, length in zip(scores[:, 0], kl, shape[0], strict=True)
    ]
    close(rewards.sum(1), tensor(expected, dtype=torch.float64), 1e-9)
    assert (rewards[~mask] == 0).all()


def test_a_penalty_lowers_the_score_of_an_unfinished_response():
    """Three deviations of 2 are 6."""
    scores, ended = tensor([5.0, -7.0, 2.0]), tensor([True, False, False])
    assert penalise_missing_eos(scores, ended, ScoreStats(), 3.0).tolist() == [5.0, -10.0, -1.0]
    assert penalise_missing_eos(scores, ended, ScoreStats(4.0, 2.0), 3.0).tolist() == [5.0, -13.0, -4.0]
    assert penalise_missing_eos(scores, ended, ScoreStats(4.0, 2.0), None).tolist() == [5.0, -7.0, 2.0]


@given(st.floats(0.1, 30), st.floats(-5, 5))
@settings(max_examples=30, deadline=None)
def test_penalised_scores_scale_and_shift_with_the_scores(factor, shift):
    generator = torch.Generator().manual_seed(0)
    scores, ended = torch.randn(20, generator=generator).double(), torch.arange(20) % 3 > 0
    plain = penalise_missing_eos(scores, ended, ScoreStats(0.5, 2.0), 3.0)
    stats = ScoreStats(factor * 0.5 + shift, factor * 2.0)
    scaled = penalise_missing_eos(factor * scores + shift, ended, stats, 3.0)
    close(stats.normalise(scaled), ScoreStats(0.5, 2.0).normalise(plain), 1e-9)


# --- advantages ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("gae_lambda", "expected"), [(0.95, [0.52675, 0.765, 0.7]), (1.0, [0.6, 0.8, 0.7])])
def test_the_worked_example_of_gae(gae_lambda, expected):
    advantages, returns = estimate_advantages(REWARDS, VALUES, ALL, 1.0, gae_lambda)
    close(advantages, tensor([expected]))
    close(returns, tensor([expected]) + VALUES)


def test_returns_are_of_unwhitened_advantages():
    _, returns = estimate_advantages(REWARDS, VALUES, ALL, 1.0, 0.95)
    close(returns, tensor([[1.02675, 1.165, 1.0]]))


@given(episodes(), st.floats(0, 1), st.floats(0, 1))
@settings(max_examples=100, deadline=None)
def test_gae_is_the_double_sum_over_what_is_kept(shape, gamma, gae_lambda):
    """A_t = sum over l >= t of (gamma lambda)^(l-t) (r_l + gamma V_(l+1) - V_l), and nothing after the end counts."""
    lengths, width, _ = shape
    mask, (rewards, values) = batch_of(*shape, 2)
    advantages, returns = estimate_advantages(rewards, values, mask, gamma, gae_lambda)
    expected = np.zeros((len(lengths), width))
    for row, length in enumerate(lengths):
        r, v = rewards[row, :length].tolist(), [*values[row, :length].tolist(), 0.0]
        for t in range(length):
            for later in range(t, length):
                delta = r[later] + gamma * v[later + 1] - v[later]
                expected[row, t] += (gamma * gae_lambda) ** (later - t) * delta
    close(advantages, torch.from_numpy(expected), 1e-9)
    close(returns, torch.from_numpy(expected) + torch.where(mask, values, 0.0), 1e-9)


@given(episodes())
@settings(max_examples=50, deadline=None)
def test_what_stands_in_the_padding_reaches_no_advantage(shape):
    mask, (rewards, values) = batch_of(*shape, 2)
    clean = estimate_advantages(rewards, values, mask, 0.9, 0.8)
    dirty = estimate_advantages(
        torch.where(mask, rewards, math.nan), torch.where(mask, values, math.inf), mask, 0.9, 0.8
    )
    for a, b in zip(clean, dirty, strict=True):
        assert torch.equal(a, b)


@given(episodes(), st.floats(0, 1))
@settings(max_examples=50, deadline=None)
def test_returns_to_go_are_discounted_sums(shape, gamma):
    mask, (rewards,) = batch_of(*shape, 1)
    expected = torch.zeros_like(rewards)
    for row, length in enumerate(shape[0]):
        for t in range(length):
            expected[row, t] = sum(gamma ** (k - t) * float(rewards[row, k]) for k in range(t, length))
    close(returns_to_go(torch.where(mask, rewards, math.nan), mask, gamma), expected, 1e-9)


def test_a_return_of_lambda_one_is_the_return_to_go():
    _, returns = estimate_advantages(REWARDS, VALUES, ALL, 0.9, 1.0)
    close(returns, returns_to_go(REWARDS, ALL, 0.9))


def test_rloo_compares_with_the_others():
    """[1, 0, .5, .5]: 1 is 2/3 above the mean of the others, 0 as much below."""
    mask = tensor([[True, True], [True, False], [True, True], [True, True]])
    rewards = tensor([[0.4, 0.6], [0.0, math.nan], [0.25, 0.25], [0.0, 0.5]])
    advantages = group_advantages(rewards, mask, "rloo", 4)
    close(advantages[:, 0], tensor([2 / 3, -2 / 3, 0.0, 0.0]))
    close(advantages[:, 1], tensor([2 / 3, 0.0, 0.0, 0.0]))  # 0 where masked


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=6), st.integers(1, 3))
@settings(max_examples=50, deadline=None)
def test_group_advantages_written_out(totals, groups):
    size = len(totals)
    rewards = (
        tensor(totals * groups, dtype=torch.float64)[:, None] + torch.arange(groups).repeat_interleave(size)[:, None]
    )
    mask = torch.ones_like(rewards, dtype=torch.bool)
    others = [(sum(totals) - own) / (size - 1) for own in totals]
    loo = [own - other for own, other in zip(totals, others, strict=True)]
    close(group_advantages(rewards, mask, "rloo", size)[:, 0], tensor(loo * groups, dtype=torch.float64), 1e-9)
    mean, std = np.mean(totals), np.std(totals, ddof=1)
    grpo = [(own - mean) / (std + 1e-4) for own in totals]
    close(group_advantages(rewards, mask, "grpo", size)[:, 0], tensor(grpo * groups, dtype=torch.float64), 1e-6)
    plain = tensor([own - mean for own in totals] * groups, dtype=torch.float64)
    for estimator in ("dr_grpo", "reinforce++-baseline"):
        close(group_advantages(rewards, mask, estimator, size)[:, 0], plain, 1e-9)


def test_groups_whose_scores_are_all_alike():
    scores = tensor([1.0, 1.0, 0.0, 1e-3, 1000.0, 1000.0001, 0.0, 0.0])
    assert without_spread(scores, 2).tolist() == [True, False, True, True]


def test_whitening_has_the_biased_variance():
    advantages, _ = estimate_advantages(REWARDS, VALUES, ALL, 1.0, 0.95)
    close(whiten(advantages, ALL), tensor([[-1.364081, 1.005243, 0.358838]]), 2e-6)


# --- losses --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected", "clipped"),
    [(1.5, 1.0, -1.2, 1), (1.5, -1.0, 1.5, 0), (0.5, 1.0, -0.5, 0), (0.5, -1.0, 0.8, 1)],
)
def test_the_four_cases_of_the_clipped_surrogate(ratio, advantage, expected, clipped):
    logprobs = tensor([[math.log(ratio) - 2.0]], requires_grad=True)
    result = policy_loss(logprobs, tensor([[-2.0]]), tensor([[advantage]]), ONE, CLIP, tensor(1.0))
    close(result.loss, expected)
    close(result.ratio_sum, ratio)
    close(result.kl_sum, (ratio - 1) - math.log(ratio))
    assert int(result.num_clipped) == clipped
    result.loss.backward()
    # d(-A r)/d(log pi) = -A r where the surrogate is not clipped, and nothing where it is.
    close(logprobs.grad, tensor([[0.0 if clipped else -advantage * ratio]]))


@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_a_huge_ratio_is_finite_and_pulls_no_more(advantage):
    logprobs = tensor([[0.0]], requires_grad=True)
    result = policy_loss(logprobs, tensor([[-1000.0]]), tensor([[advantage]]), ONE, CLIP, tensor(1.0))
    close(result.ratio_sum, math.exp(20.0), 1e3)
    result.loss.backward()
    assert torch.isfinite(result.loss)
    assert logprobs.grad.tolist() == [[0.0]]


@pytest.mark.parametrize(("returned", "expected", "clipped"), [(1.0, 0.045, 1), (0.6, 0.08, 0)])
def test_the_two_cases_of_the_value_loss(returned, expected, clipped):
    result = value_loss(tensor([[1.0]]), tensor([[0.5]]), tensor([[returned]]), ONE, 0.2, tensor(1.0))
    close(result.loss, expected)
    assert int(result.num_clipped) == clipped


def test_a_token_weighs_the_same_in_a_short_and_in_a_long_response():
    """Not a mean of row means: nine tokens of -1 and one of +9 average 0."""
    mask = tensor([[True] * 9, [True] + [False] * 8])
    advantages = torch.where(tensor([[True], [False]]), tensor(1.0), tensor(-9.0)).expand(2, 9)
    zeros = torch.zeros(2, 9)
    close(policy_loss(zeros, zeros, advantages, mask, CLIP, mask.sum()).loss, 0.0)


@given(episodes())
@settings(max_examples=50, deadline=None)
def test_padding_reaches_no_loss_statistic_or_gradient(shape):
    mask, (new, old, target) = batch_of(*shape, 3)
    count = mask.sum()

    def run(garbage):
        inputs = [torch.where(mask, x, garbage) for x in (new, old, target)]
        out = []
        for function, clip_range in ((policy_loss, CLIP), (value_loss, 0.2)):
            leaf = inputs[0].clone().requires_grad_()
            result = function(leaf, inputs[1], inputs[2], mask, clip_range, count)
            result.loss.backward()
            out += [*result, leaf.grad]
        return out

    for clean, dirty in zip(run(0.0), run(math.nan), strict=True):
        torch.testing.assert_close(clean, dirty, rtol=0, atol=0)


@given(episodes(), st.floats(0.05, 0.5))
@settings(max_examples=50, deadline=None)
def test_losses_are_sums_over_tokens_written_out(shape, clip_range):
    lengths, _, _ = shape
    mask, (new, old, target) = batch_of(*shape, 3)
    policy = value = kl = ratio_sum = 0.0
    for row, length in enumerate(lengths):
        for t in range(length):
            n, o, a = float(new[row, t]), float(old[row, t]), float(target[row, t])
            ratio = math.exp(n - o)
            policy -= min(ratio * a, min(max(ratio, 1 - clip_range), 1 + clip_range) * a)
            near = min(max(n, o - clip_range), o + clip_range)
            value += 0.5 * max((n - a) ** 2, (near - a) ** 2)
            kl += ratio - 1 - (n - o)
            ratio_sum += ratio
    count = mask.sum()
    result = policy_loss(new, old, target, mask, (clip_range, clip_range), count)
    close(result.loss, policy / sum(lengths), 1e-9)
    close(result.kl_sum, kl, 1e-9)
    close(result.ratio_sum, ratio_sum, 1e-9)
    close(value_loss(new, old, target, mask, clip_range, count).loss, value / sum(lengths), 1e-9)


@pytest.mark.parametrize(("ratio", "expected"), [(1.25, -1.25), (1.5, -1.3), (0.5, -0.5)])
def test_the_upper_side_of_the_clip_can_be_another(ratio, expected):
    logprobs = tensor([[math.log(ratio)]])
    close(policy_loss(logprobs, tensor([[0.0]]), tensor([[1.0]]), ONE, (0.2, 0.3), 1.0).loss, expected)


# --- expectations, by enumeration ----------------------------------------------------------------------------------


LOGITS, OTHER, REFERENCE = (torch.randn(7, generator=torch.Generator().manual_seed(n)).double() for n in (1, 2, 3))


def expected_gradient(loss, sampler):
    """Of a token's loss, over tokens drawn from softmax(sampler): (7,) by the logits of the policy."""
    logits = LOGITS.clone().requires_grad_()
    logprobs = logits.log_softmax(0)
    probabilities = sampler.softmax(0)
    total = sum(p * loss(logprobs[token][None], token) for token, p in enumerate(probabilities))
    return torch.autograd.grad(total, logits)[0]


def kl_gradient():
    logits = LOGITS.clone().requires_grad_()
    logp, ref = logits.log_softmax(0), REFERENCE.log_softmax(0)
    kl = (logp.exp() * (logp - ref)).sum()
    return torch.autograd.grad(kl, logits)[0]


@pytest.mark.parametrize("sampler", [LOGITS, OTHER], ids=["on-policy", "off-policy"])
def test_the_kl_in_the_loss_has_the_gradient_of_the_kl(sampler):
    old, ref, kept = sampler.log_softmax(0), REFERENCE.log_softmax(0), tensor([True])
    gradient = expected_gradient(lambda lp, t: kl_loss(lp, old[t][None], ref[t][None], kept, 1.0), sampler)
    close(gradient, kl_gradient(), 1e-9)


def test_k1_in_the_loss_would_have_no_gradient_at_all():
    ref = REFERENCE.log_softmax(0)
    close(expected_gradient(lambda lp, t: lp[0] - ref[t], LOGITS), torch.zeros(7), 1e-12)


def test_the_value_of_the_kl_in_the_loss():
    """logp -1, reference -1.2: k2 is .02."""
    at = (tensor([-1.0]), tensor([-1.0]), tensor([-1.2]), tensor([True]))
    close(kl_loss(*at, 1.0), 0.02)


def test_the_policy_gradient_at_ratio_one():
    """d E[A] / d logits = sum over tokens of p A (1 - p) ...: autograd of the expectation itself."""
    advantages = torch.randn(7, generator=torch.Generator().manual_seed(9)).double()
    old = LOGITS.log_softmax(0)
    found = expected_gradient(
        lambda lp, t: policy_loss(lp, old[t][None], advantages[t][None], tensor([True]), CLIP, 1.0).loss, LOGITS
    )
    logits = LOGITS.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(-(logits.softmax(0) * advantages).sum(), logits)
    close(found, wanted, 1e-9)


@pytest.mark.parametrize(("cap", "unbiased"), [(1e6, True), (1.1, False)])
def test_importance_weights_undo_the_other_sampler(cap, unbiased):
    """Uncapped, the expected gradient over another model's tokens is the policy's own."""
    advantages = torch.randn(7, generator=torch.Generator().manual_seed(9)).double()
    old, other = LOGITS.log_softmax(0), OTHER.log_softmax(0)

    def loss(logprobs, token):
        weights = truncated_importance_weights(old[token][None], other[token][None], tensor([True]), cap)
        arguments = (logprobs, old[token][None], advantages[token][None], tensor([True]), CLIP, 1.0)
        return policy_loss(*arguments, weights=weights).loss

    found = expected_gradient(loss, OTHER)
    logits = LOGITS.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(-(logits.softmax(0) * advantages).sum(), logits)
    assert ((found - wanted).abs().max() < 1e-9) == unbiased


def test_importance_weights_by_hand():
    weights = truncated_importance_weights(
        tensor([-1.0, -1.0, -1.0]), tensor([-2.0, -1.5, math.nan]), tensor([True, True, False]), 2.0
    )
    close(weights, tensor([2.0, math.exp(0.5), 1.0]))
