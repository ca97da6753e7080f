"""Masked statistics against numbers worked by hand, numpy, and torch's own distributions."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alignment.tensors import (
    entropy_from_logits,
    last_kept,
    logprobs_from_logits,
    masked_mean,
    masked_moments,
    pad_rows,
    position_ids,
    whiten,
)

ADVANTAGES = torch.tensor([[0.52675, 0.765, 0.7]])
masks = st.lists(st.lists(st.booleans(), min_size=4, max_size=4), min_size=1, max_size=5)


def test_whiten_uses_the_biased_variance_as_openai_does():
    everything = torch.ones(1, 3, dtype=torch.bool)
    expected = torch.tensor([[-1.364081, 1.005243, 0.358838]])  # unbiased: -1.113768, .820778, .292990
    torch.testing.assert_close(whiten(ADVANTAGES, everything), expected, atol=1e-5, rtol=0)
    kept_mean = whiten(ADVANTAGES, everything, shift_mean=False)
    torch.testing.assert_close(kept_mean, expected + ADVANTAGES.mean(), atol=1e-5, rtol=0)


def test_whiten_ignores_what_the_mask_leaves_out():
    x = torch.cat([ADVANTAGES, torch.tensor([[1e6, math.nan]])], dim=1)
    mask = torch.tensor([[True, True, True, False, False]])
    whole = whiten(ADVANTAGES, torch.ones(1, 3, dtype=torch.bool))
    torch.testing.assert_close(whiten(x, mask), torch.cat([whole, torch.zeros(1, 2)], dim=1))


@pytest.mark.parametrize("kept", [0, 1])
def test_whiten_leaves_fewer_than_two_values_as_they_are(kept):
    x, mask = torch.tensor([[5.0, 7.0]]), torch.tensor([[kept > 0, False]])
    assert whiten(x, mask).tolist() == [[5.0 if kept else 0.0, 0.0]]


def test_whiten_over_processes_equals_whiten_over_all_rows():
    x, mask = torch.randn(6, 5, generator=torch.Generator().manual_seed(0)), torch.rand(6, 5) > 0.3
    parts = [(x[:1], mask[:1]), (x[1:], mask[1:])]
    halves = []
    for mine, (x_mine, mask_mine) in enumerate(parts):
        x_other, mask_other = parts[1 - mine]
        calls = iter(
            [
                torch.stack([mask_other.sum().double(), x_other[mask_other].double().sum()]),
                ((x_other[mask_other].double() - x[mask].double().mean()) ** 2).sum().reshape(1),
            ]
        )
        halves.append(whiten(x_mine, mask_mine, reduce=lambda sums, calls=calls: sums + next(calls)))
    torch.testing.assert_close(torch.cat(halves), whiten(x, mask), atol=1e-6, rtol=1e-6)


def test_moments_keep_their_digits_beside_a_large_mean():
    x = torch.tensor([[1e6, 1e6 + 0.5, 1e6 + 1.0]])
    count, mean, variance = masked_moments(x, torch.ones_like(x, dtype=torch.bool))
    assert (count.item(), mean.item()) == (3, 1e6 + 0.5)
    assert variance.item() == pytest.approx(1 / 6, rel=1e-12)  # sum(x^2) - n mean^2 in float32 gives nothing like it


@given(masks, st.integers(0, 99))
def test_masked_mean_equals_numpy(rows, seed):
    mask = torch.tensor(rows)
    x = torch.randn(mask.shape, generator=torch.Generator().manual_seed(seed))
    expected = np.ma.array(x.numpy(), mask=~mask.numpy()).mean() if mask.any() else 0.0
    assert masked_mean(x, mask).item() == pytest.approx(float(expected), abs=1e-6)
    assert masked_mean(torch.where(mask, x, math.nan), mask).item() == pytest.approx(float(expected), abs=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_and_entropy_equal_torch_distributions(temperature):
    generator = torch.Generator().manual_seed(0)
    logits = 5 * torch.randn(2, 3, 11, generator=generator)
    ids = torch.randint(11, (2, 3), generator=generator)
    oracle = torch.distributions.Categorical(logits=logits.double() / temperature)
    torch.testing.assert_close(
        logprobs_from_logits(logits, ids, temperature).double(), oracle.log_prob(ids), atol=1e-5, rtol=0
    )
    torch.testing.assert_close(entropy_from_logits(logits, temperature).double(), oracle.entropy(), atol=1e-5, rtol=0)
    assert logprobs_from_logits(logits.bfloat16(), ids).dtype == torch.float32


@given(masks)
def test_last_kept_and_positions_equal_a_plain_loop(rows):
    mask = torch.tensor(rows)
    for row, last, positions in zip(rows, last_kept(mask).tolist(), position_ids(mask).tolist(), strict=True):
        if any(row):
            assert last == max(index for index, kept in enumerate(row) if kept)
        assert all(positions[index] == sum(row[:index]) for index in range(len(row)) if row[index])
        assert min(positions) >= 0


@settings(max_examples=30)
@given(st.lists(st.lists(st.integers(1, 99), min_size=1, max_size=6), min_size=1, max_size=4))
def test_pad_rows_pads_one_side_only(rows):
    for side in ("left", "right"):
        ids, mask = pad_rows(rows, 0, side)
        assert ids.dtype == torch.long
        assert mask.dtype == torch.bool
        assert [row[kept].tolist() for row, kept in zip(ids, mask, strict=True)] == rows
        assert (ids[~mask] == 0).all()
        edge = mask[:, -1] if side == "left" else mask[:, 0]
        assert edge.all()


def test_pad_rows_rounds_the_width_up():
    for longest, width in ((1, 8), (8, 8), (9, 16)):
        ids, mask = pad_rows([[5] * longest, [5]], 0, "right", multiple_of=8)
        assert ids.shape == mask.shape == (2, width)
        assert (ids.sum(1).tolist(), mask.sum(1).tolist()) == ([5 * longest, 5], [longest, 1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_gradient_of_logprobs_is_that_of_log_softmax(dtype: torch.dtype, temperature: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn(2, 5, 11, generator=generator)).to(dtype).requires_grad_()
    ids = torch.randint(11, (2, 5), generator=generator)
    weights = torch.randn(2, 5, generator=generator)
    (logprobs_from_logits(logits, ids, temperature) * weights).sum().backward()
    theirs = logits.detach().double().requires_grad_()
    expected = torch.log_softmax(theirs / temperature, -1).gather(-1, ids[..., None])[..., 0]
    (expected * weights).sum().backward()
    assert logits.grad is not None and logits.grad.dtype == dtype
    torch.testing.assert_close(logits.grad.double(), theirs.grad, atol=1e-6 if dtype == torch.float32 else 1e-2, rtol=0)
