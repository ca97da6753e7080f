"""The study of intervals: truths by brute force, rows that differ, and a page of made-up figures."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from studies import intervals as study


@pytest.mark.parametrize(
    "world", [study.StudiedWorld(), study.StudiedWorld(2.0, 3.0, 0.5, 1), study.StudiedWorld(leans=(-1.0, 2.0))]
)
def test_a_worlds_truth_is_the_mean_of_many_votes(world):
    outcomes, prompt = world.votes(np.random.default_rng(0), 200_000)
    means = np.bincount(prompt, outcomes) / np.bincount(prompt)
    assert world.truth() == pytest.approx(means.mean(), abs=4 * means.std() / len(means) ** 0.5)
    assert set(np.unique(outcomes)) == {0.0, 0.5, 1.0}


def test_no_row_stands_twice_and_each_can_be_run():
    rows = list(study.rows())
    assert len({(row.method, row.world, row.prompts) for row in rows}) == len(rows)
    for method in {row.method for row in rows}:
        row = next(row for row in rows if row.method == method and row.prompts in (50, 200))
        (low, high), truth = row.study(np.random.default_rng(0))
        assert low < high and 0 < abs(truth) < 1


def test_an_interval_of_labelers_who_lean_is_too_narrow_for_others():
    """Which is what the page warns of: the study can tell a wrong interval from a right one."""
    held = [
        study.coverage(study.StudiedRow("", "", 200, functools.partial(study.leaning_study, 4, others)), 20)[0]
        for others in (False, True)
    ]
    assert held[0] > 0.8 > 0.7 > held[1]


def test_a_judge_saves_more_where_people_are_right_or_vote_three_times():
    assert study.votes_needed(0.95, 1, 3) < study.votes_needed(0.8, 1, 3) > study.votes_needed(0.8, 3, 3)


def test_the_page_has_a_line_for_each_figure():
    row = study.StudiedRow("win rate", "a world", 50, lambda rng: ((0.0, 1.0), 0.5))
    text = study.page([(row, 0.951, 0.1)], {"no ties": 0.04}, ["saved"], 500)
    assert "| win rate | a world | 50 | 95.1% | 0.100 |" in text and "| no ties | 4.0% |" in text
    assert "to 1.9 points" in text and text.endswith("saved\n")
