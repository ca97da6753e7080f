"""Figures by hand; and which policy of a course of evaluations is kept."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alignment.errors import ConfigError
from alignment.intervals import win_rate
from ppo.best_of_n import number_of_draws
from ppo.best_policy import BestPolicy, check_selection
from ppo.config import PPOStageConfig, TrainingConfig
from ppo.evaluation import HeldOutAnswers, answer_metrics, halves


def judged(scores, held_out=None):
    count = len(scores)
    parts = {"model": scores, "polite": [score / 2 for score in scores]}
    raw = [score + 1 for score in scores]
    return HeldOutAnswers(
        scores, raw, parts, held_out, [2.0] * count, [3, 5][:count], [True, False][:count], [""] * count
    )


def test_figures_are_means_and_a_share_of_prompts():
    now, start = judged([1.0, 3.0], [0.0, 1.0]), judged([2.0, 2.0], [1.0, 1.0])
    found = answer_metrics(now, start, ["a", "b"])
    assert {name: found[name] for name in ("score", "held_out_score", "kl", "length", "ended")} == {
        "score": 2.0,
        "held_out_score": 0.5,
        "kl": 2.0,
        "length": 4.0,
        "ended": 0.5,
    }
    assert found["win_rate"] == 0.25  # by the held-out model: one lost, one tie
    assert found["win_rate_low"] <= 0.25 <= found["win_rate_high"]
    assert answer_metrics(judged([1.0, 3.0]), judged([2.0, 2.0]), ["a", "b"])["win_rate"] == 0.5
    assert "win_rate" not in answer_metrics(now, None, ["a", "b"])
    assert (found["raw_score"], found["finished_raw_score"]) == (3.0, 2.0)
    assert (found["reward/model"], found["reward/polite"]) == (2.0, 1.0)
    assert found["score_se"] == found["raw_score_se"] == found["reward_se/model"] == pytest.approx(1.0)  # sqrt(2 / 2)
    assert "finished_raw_score" not in answer_metrics(replace(now, ended=[False, False]), None, ["a", "b"])


def test_the_half_that_chooses_and_the_half_that_reports_share_no_prompt():
    groups = ["a", "b", "c", "a", "d", "b"]
    chooses, reports = halves(groups)
    assert sorted(chooses + reports) == list(range(6))
    assert not {groups[row] for row in chooses} & {groups[row] for row in reports}
    assert halves(["a", "a"]) == ([0, 1], [0, 1])  # nothing to divide
    now = judged([1.0, 3.0], [0.0, 1.0])
    assert now.only([1]) == HeldOutAnswers(
        [3.0], [4.0], {"model": [3.0], "polite": [1.5]}, [1.0], [2.0], [5], [False], [""]
    )


def test_what_is_reported_of_the_best_is_of_the_half_that_did_not_choose(tmp_path):
    best = BestPolicy(TrainingConfig(), tmp_path)
    for step, (chooses, reported) in enumerate([(0.0, 0.5), (2.0, 0.4), (1.0, 9.0)]):
        best.consider(step, evaluation(chooses), evaluation(reported), dict)
    assert (best.step, best.metrics["score"]) == (1, 0.4)


def test_the_best_of_many_is_not_flattered():
    """No policy is better than the start; ten evaluations of a hundred prompts, 300 runs. The interval of the one that
    is published lies above a half in at most 5% of them; on the prompts that chose it, it would in many more."""
    generator = np.random.default_rng(0)
    groups = [str(number) for number in range(100)]
    chooses, reports = halves(groups)
    honest = flattered = 0
    for _ in range(300):
        best = None
        for wins in generator.integers(0, 2, size=(10, 100)).astype(float):
            if best is None or wins[list(chooses)].mean() > best[list(chooses)].mean():
                best = wins
        low = {half: win_rate(best[list(half)], np.full(50, 0.5))["ci"][0] for half in (tuple(chooses), tuple(reports))}
        honest += low[tuple(reports)] > 0.5
        flattered += low[tuple(chooses)] > 0.5
    assert honest <= 0.05 * 300
    assert flattered > 0.1 * 300


def course(tmp_path, evaluations, **training):
    """Steps at which a policy was kept; the keeper."""
    best, kept = BestPolicy(TrainingConfig(**training), tmp_path), []
    for step, found in enumerate(evaluations):
        if best.consider(step, found, found, lambda step=step: {"w": torch.tensor([float(step)])}):
            kept.append(step)
    return kept, best


def evaluation(score, kl=1.0, **more):
    return {"score": score, "kl": kl, **more}


def test_the_highest_score_is_kept_and_the_first_of_equals(tmp_path):
    kept, best = course(tmp_path, [evaluation(x) for x in (0.0, 2.0, 1.0, 2.0, math.nan)])
    assert kept == [0, 1]
    assert best.step == 1
    assert best.weights()["w"].tolist() == [1.0]


def test_the_held_out_model_decides_where_there_is_one(tmp_path):
    pairs = [(0.0, 0.5), (3.0, 0.9), (5.0, 0.2)]
    kept, best = course(tmp_path, [evaluation(score, held_out_score=held) for score, held in pairs])
    assert (kept, best.step) == ([0, 1], 1)


def test_beyond_the_ceiling_of_the_kl_nothing_is_kept(tmp_path):
    kept, _ = course(
        tmp_path, [evaluation(0, 0.0), evaluation(1, 5.0), evaluation(0.5, 2.0), evaluation(2, math.nan)], max_kl=4.0
    )
    assert kept == [0, 2]


def test_patience_counts_evaluations_in_a_row(tmp_path):
    scores = [0, 1, 0.5, 2, 1.9]
    _, best = course(tmp_path, [evaluation(x) for x in scores], early_stopping_patience=2)
    assert not best.should_stop
    _, best = course(tmp_path, [evaluation(x) for x in [*scores, 1.8]], early_stopping_patience=2)
    assert best.should_stop


def test_before_there_is_a_best_one_nothing_is_worse(tmp_path):
    """A start beyond the ceiling, as from another reference, would end the run before its first iteration."""
    course_of = [evaluation(0, 9.0), evaluation(1, 8.0), evaluation(0.5, 2.0), evaluation(0.4, 2.0)]
    kept, best = course(tmp_path, course_of[:2], max_kl=4.0, early_stopping_patience=1)
    assert (kept, best.should_stop) == ([], False)
    kept, best = course(tmp_path, course_of, max_kl=4.0, early_stopping_patience=1)
    assert (kept, best.should_stop) == ([2], True)


def test_the_last_is_published_where_the_best_is_not_asked_for(tmp_path):
    kept, best = course(tmp_path, [evaluation(1), evaluation(2)], load_best_model_at_end=False)
    assert (kept, best.weights(), best.should_stop) == ([], None, False)


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=12))
@settings(max_examples=50, deadline=None)
def test_what_is_kept_is_the_maximum(tmp_path_factory, scores):
    kept, best = course(tmp_path_factory.mktemp("best"), [evaluation(x) for x in scores])
    assert best.metrics["score"] == max(scores)
    assert best.step == scores.index(max(scores))
    assert kept[-1] == best.step


def test_a_keeper_comes_back_from_its_state(tmp_path):
    training = {"early_stopping_patience": 2}
    _, best = course(tmp_path, [evaluation(x) for x in (0, 3, 1)], **training)
    again = BestPolicy(TrainingConfig(**training), tmp_path)
    again.load_state_dict(best.state_dict())
    assert not again.consider(3, evaluation(2), evaluation(2), dict)
    assert again.should_stop
    assert again.weights()["w"].tolist() == [1.0]


@pytest.mark.parametrize(
    ("training", "held_out", "message"),
    [
        ({"early_stopping_patience": 2}, 5, "set training.eval_steps"),
        ({"early_stopping_patience": 2, "eval_steps": 1, "load_best_model_at_end": False}, 5, "load_best_model_at_end"),
        ({"max_kl": 2, "load_best_model_at_end": False}, 5, "load_best_model_at_end"),
        ({"eval_steps": 1}, 0, "training.eval_steps needs held-out prompts"),
        ({"max_kl": 2}, 0, "training.max_kl needs held-out prompts"),
    ],
)
def test_choosing_needs_evaluations(training, held_out, message):
    with pytest.raises(ConfigError, match=message):
        check_selection(TrainingConfig(**training), held_out)


def test_nothing_held_out_and_nothing_asked_is_fine():
    check_selection(TrainingConfig(), 0)
    check_selection(TrainingConfig(eval_steps=2, early_stopping_patience=1, max_kl=3.0), 4)


@pytest.mark.parametrize(
    ("prompts", "training", "batch_size", "draws"),
    [
        (0, {}, 64, 0),
        (100, {"max_steps": 25, "eval_steps": 5}, 64, 4),  # six evaluations: 0, 5, ..., 25
        (100, {"max_steps": 24, "eval_steps": 3}, 64, 8),  # nine: 0, 3, ..., 24
        (100, {"max_steps": 10}, 8, 2),  # the first and the last
        (100, {"max_steps": 1000}, 64, 32),  # 5% of 64,000 episodes are 32 for each prompt
        (10, {"max_steps": 1000}, 64, 64),
    ],
)
def test_best_of_n_costs_no_more_than_the_evaluations_or_a_twentieth(prompts, training, batch_size, draws):
    config = PPOStageConfig.model_validate(
        {"name": "r", "model": {"policy": "p", "reward": "r"}, "data": {"train": "f"}, "registry": {"name": "ppo"},
         "training": training, "rollout": {"batch_size": batch_size}}
    )  # fmt: skip
    assert number_of_draws(config, prompts) == draws
