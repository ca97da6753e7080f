"""Intervals of what was chosen as the best of several: luck in the choice must not reach the reported figure."""

import numpy as np
import pytest

from alignment.intervals import choosing_half, win_rate
from alignment.training.best_model import held_out_halves

PROMPTS, EVALUATIONS, RUNS = 100, 10, 300


def false_alarms(halves: bool) -> tuple[float, float]:
    """Share of runs whose interval for the best of ten evaluations excludes 50%, and the mean win rate reported. No
    policy is better than the start: all scores are drawn alike, the start's once for each run."""
    rng = np.random.default_rng(0)
    chooses = np.array(choosing_half(range(PROMPTS)))
    choosing, reporting = (chooses, ~chooses) if halves else (np.ones_like(chooses), np.ones_like(chooses))
    excluded, values = 0, []
    for _ in range(RUNS):
        start, scores = rng.normal(size=PROMPTS), rng.normal(size=(EVALUATIONS, PROMPTS))
        best = scores[(scores > start)[:, choosing].mean(1).argmax()]
        rate = win_rate(best[reporting], start[reporting])
        excluded += not rate["ci"][0] <= 0.5 <= rate["ci"][1]
        values.append(rate["value"])
    return excluded / RUNS, float(np.mean(values))


def test_the_best_of_ten_evaluations_owes_its_lead_to_luck_unless_other_prompts_report_it():
    new, new_value = false_alarms(halves=True)
    old, old_value = false_alarms(halves=False)
    assert new <= 0.05
    assert old > 2 * new
    assert new_value == pytest.approx(0.5, abs=0.015)
    assert old_value > 0.53


def test_half_of_the_prompts_choose_and_the_same_in_whatever_order():
    groups = [f"prompt {n % 7}" for n in range(20)]
    chooses = dict(zip(groups, choosing_half(groups), strict=True))
    assert sum(chooses.values()) == 4
    assert choosing_half(groups[::-1]) == [chooses[group] for group in groups[::-1]]
    assert [chooses[group] for group in groups] == choosing_half(groups)  # no prompt is on both sides


def test_all_rows_report_where_no_best_model_is_kept_or_there_is_one_prompt():
    everything = ([0, 1, 2], [0, 1, 2])
    assert held_out_halves({}, ["a", "b", "c"]) == everything
    assert held_out_halves({"load_best_model_at_end": True}, ["a", "a", "a"]) == everything
    choosing, reporting = held_out_halves({"early_stopping_patience": 1}, ["a", "b", "a"])
    assert sorted(choosing + reporting) == [0, 1, 2] and {0, 2} in (set(choosing), set(reporting))
