"""The held-out report, worked by hand."""

import math

import pytest
import tiny
import torch

from alignment.data import Comparison
from reward.data import EncodedComparison
from reward.evaluate import order, report, score_pairs, vote_accuracy


def comparison(prompt, first, second, tie=0):
    return Comparison(({"role": "user", "content": prompt},), "x", "y", tiny.votes(first, second, tie))


def test_accuracy_counts_votes_not_pairs_and_leaves_ties_out():
    rows = [comparison("a", 3, 1), comparison("b", 0, 1, 5), comparison("c", 0, 0, 2), comparison("d", 1, 0)]
    says = [1.0, 1.0, 1.0, 0.5]
    found = vote_accuracy(rows, says.__getitem__)
    assert found["value"] == pytest.approx((3 + 0 + 0.5) / 6)
    assert found["n"] == 6
    assert found["ci"][0] <= found["value"] <= found["ci"][1]
    assert vote_accuracy(rows[2:3], says.__getitem__) is None


def test_order_knows_a_tie():
    assert (order(2, 1), order(1, 2), order(1, 1)) == (1.0, 0.0, 0.5)


def test_the_report_gives_accuracy_log_loss_and_the_length_baseline():
    pairs = [
        EncodedComparison(comparison("a", 1, 0), [1, 2, 3], [1, 2]),  # right, longer is better
        EncodedComparison(comparison("b", 0, 2), [1], [1, 2]),  # wrong, longer is better
        EncodedComparison(comparison("c", 1, 1), [1, 2], [1]),
        EncodedComparison(comparison("d", 0, 0, 1), [1, 2], [1]),
    ]
    scores = [(1.0, -1.0), (0.5, 0.0), (2.0, 0.0), (800.0, -800.0)]
    found = report(pairs, scores)
    assert found["accuracy"]["value"] == pytest.approx((1 + 0 + 1) / 5)
    assert found["length_baseline"]["value"] == pytest.approx((1 + 2 + 1) / 5)

    def softplus(x):
        return math.log1p(math.exp(x))

    total = softplus(-2) + 2 * softplus(0.5) + (softplus(-2) + softplus(2)) + 800
    assert found["log_loss"]["value"] == pytest.approx(total / 6)


def test_scores_come_in_order_and_do_not_depend_on_the_batch(tokenizer, tmp_path):
    scalar = tiny.make_scalar(tmp_path, tiny.make_policy(tokenizer), tokenizer)
    generator = torch.Generator().manual_seed(0)

    def ids():
        return [
            *torch.randint(3, 300, (int(torch.randint(1, 12, (), generator=generator)),), generator=generator).tolist(),
            2,
        ]

    pairs = [EncodedComparison(comparison("a", 1, 0), ids(), ids()) for _ in range(9)]
    alone = [
        tuple(
            scalar.score(torch.tensor([side]), torch.ones(1, len(side), dtype=torch.bool)).item()
            for side in (p.first_ids, p.second_ids)
        )
        for p in pairs
    ]
    scalar.train()
    for batch_size in (1, 4, 64):
        found = score_pairs(scalar, pairs, tokenizer.pad_token_id, batch_size)
        torch.testing.assert_close(torch.tensor(found), torch.tensor(alone), atol=1e-5, rtol=1e-5)
    assert not scalar.training
