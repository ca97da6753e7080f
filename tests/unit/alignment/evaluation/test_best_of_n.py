"""Best-of-n against all subsets one by one, against fresh draws, and its KL against an integral."""

import itertools
import math

import numpy as np
import pytest

from alignment.evaluation.best_of_n import best_of_n_table, expected_best, kl_bound, sizes_of


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_it_is_the_mean_over_all_subsets(n):
    rng = np.random.default_rng(n)
    scores, judged = rng.normal(size=(3, 5)), rng.normal(size=(3, 5))
    by_score, by_judge = expected_best(scores, n), expected_best(scores, n, judged)
    for prompt in range(3):
        best = [max(subset, key=lambda i: scores[prompt, i]) for subset in itertools.combinations(range(5), n)]
        assert by_score[prompt] == pytest.approx(np.mean([scores[prompt, i] for i in best]))
        assert by_judge[prompt] == pytest.approx(np.mean([judged[prompt, i] for i in best]))


def test_among_equal_scores_the_best_is_any_of_them():
    scores, judged = np.array([[1.0, 1.0, 0.0, 1.0]]), np.array([[3.0, 6.0, 100.0, 9.0]])
    assert expected_best(scores, 4, judged)[0] == pytest.approx(6.0)
    orders = [
        [score + 1e-9 * order[i] for i, score in enumerate(scores[0])] for order in itertools.permutations(range(4))
    ]
    broken = [expected_best(np.array([order]), 2, judged)[0] for order in orders]
    assert expected_best(scores, 2, judged)[0] == pytest.approx(np.mean(broken))


def test_it_is_unbiased():
    rng = np.random.default_rng(0)
    found = expected_best(rng.normal(size=(40_000, 6)), 4)
    fresh = rng.normal(size=(40_000, 4)).max(1)
    error = math.hypot(found.std(), fresh.std()) / math.sqrt(40_000)
    assert abs(found.mean() - fresh.mean()) < 4 * error
    assert found.std() < fresh.std()  # six answers say more of the best of four than four do


@pytest.mark.parametrize("n", [1, 2, 16, 64])
def test_the_bound_is_the_kl_of_continuous_scores(n):
    quantile = (np.arange(2_000_000) + 0.5) / 2_000_000  # of an answer's score: its density is n q^(n-1)
    log_density = math.log(n) + (n - 1) * np.log(quantile)
    assert kl_bound(n) == pytest.approx(float(np.mean(np.exp(log_density) * log_density)), abs=1e-4)


def test_a_table_has_the_powers_of_two_and_the_last():
    assert [sizes_of(most) for most in (1, 2, 6, 64)] == [[1], [1, 2], [1, 2, 4, 6], [1, 2, 4, 8, 16, 32, 64]]
    rows = best_of_n_table([[0.0, 1.0, 2.0], [1.0, 1.0, 4.0]], ["a", "b"], [[5.0, 5.0, 1.0], [5.0, 5.0, 3.0]])
    assert [row["n"] for row in rows] == [1, 2, 3]
    assert rows[0]["score"] == pytest.approx(1.5) and rows[-1]["score"] == pytest.approx(3.0)
    assert rows[-1]["held_out_score"] == pytest.approx(2.0)
    assert rows[-1]["score_ci"][0] <= 3.0 <= rows[-1]["score_ci"][1]
    assert "held_out_score" not in best_of_n_table([[0.0, 1.0]])[0]
