"""Intervals against formulas: the mean is exact, the interval is that of the normal approximation, groups widen it.
And judging: what is sampled depends on the seed, not on the batch."""

import numpy as np
import pytest
from helpers import tiny

from alignment.evaluation.judge import bootstrap_mean, judge_policy, win_rate


def test_the_value_is_the_weighted_mean_and_n_counts_values():
    estimate = bootstrap_mean([1.0, 0.0, 4.0], weights=[1, 1, 2])
    assert estimate["value"] == pytest.approx(9 / 4)
    assert estimate["n"] == 3


def test_the_interval_is_that_of_the_normal_approximation():
    values = np.random.default_rng(3).normal(2.0, 1.0, 400)
    low, high = bootstrap_mean(values.tolist())["ci"]
    half = 1.96 * values.std() / 20
    assert low == pytest.approx(values.mean() - half, abs=0.015)
    assert high == pytest.approx(values.mean() + half, abs=0.015)


def test_repeating_each_value_within_its_prompt_does_not_narrow_the_interval():
    values = np.random.default_rng(0).normal(size=60).tolist()
    prompts = list(range(60))
    once = bootstrap_mean(values, prompts)["ci"]
    ten_times = bootstrap_mean(values * 10, prompts * 10)
    assert ten_times["n"] == 600
    assert ten_times["ci"] == pytest.approx(once)
    by_value = bootstrap_mean(values * 10)["ci"]
    assert by_value[1] - by_value[0] < 0.5 * (once[1] - once[0])


def test_the_interval_covers_the_truth_about_95_times_in_100():
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(200):
        low, high = bootstrap_mean(rng.normal(size=50).tolist(), num_resamples=200)["ci"]
        hits += low <= 0.0 <= high
    assert 0.89 <= hits / 200 <= 0.99


def test_the_seed_decides_and_the_order_of_groups_does_not_matter_to_the_value():
    values, groups = [float(number**2) for number in range(20)], [number // 2 for number in range(20)]
    assert bootstrap_mean(values, groups, seed=1) == bootstrap_mean(values, groups, seed=1)
    assert bootstrap_mean(values, groups, seed=1)["ci"] != bootstrap_mean(values, groups, seed=2)["ci"]
    assert bootstrap_mean(values[::-1], groups[::-1])["value"] == bootstrap_mean(values, groups)["value"]


def test_win_rate_counts_a_tie_as_one_half():
    estimate = win_rate([1.0, 2.0, 3.0, 0.0], [0.0, 2.0, 4.0, 0.0])
    assert estimate["value"] == (1 + 0.5 + 0 + 0.5) / 4
    assert win_rate([1.0] * 5, [0.0] * 5)["ci"] == (1.0, 1.0)


def test_a_judged_answer_depends_on_the_seed_and_not_on_the_batch(tmp_path, tokenizer):
    policy, reference = (tiny.make_policy(tokenizer, seed=seed) for seed in (0, 1))
    reward_model = tiny.make_scalar(tmp_path, reference, tokenizer)
    prompts = [[{"role": "user", "content": text}] for text in ("When does it open?", "Hi", "How long? " * 5)]

    def judge(ours=policy, **options):
        return judge_policy(ours, reference, reward_model, tokenizer, prompts, max_new_tokens=6, **options)

    first, one_by_one, other = judge(batch_size=3), judge(batch_size=1), judge(seed=1)
    assert [answer.text for answer in first] == [answer.text for answer in one_by_one]
    assert [answer.score for answer in first] == pytest.approx([answer.score for answer in one_by_one], rel=1e-4)
    assert [answer.kl for answer in first] == pytest.approx([answer.kl for answer in one_by_one], rel=1e-4)
    assert all(a.text != b.text for a, b in zip(first, other, strict=True))
    assert all(answer.kl > 1 for answer in first)
    assert [answer.kl for answer in judge(reference)] == [0.0] * 3


def test_a_held_out_reward_model_scores_the_same_answers(tmp_path, tokenizer):
    policy = tiny.make_policy(tokenizer, seed=0)
    trained, held_out = (
        tiny.make_scalar(tmp_path / str(n), tiny.make_policy(tokenizer, seed=n), tokenizer) for n in (1, 2)
    )
    prompts = [[{"role": "user", "content": text}] for text in ("When does it open?", "Hi")]
    settings = {"max_new_tokens": 6, "batch_size": 1}
    both = judge_policy(policy, policy, trained, tokenizer, prompts, held_out_reward=held_out, **settings)
    alone = judge_policy(policy, policy, held_out, tokenizer, prompts, **settings)
    assert [row.held_out_score for row in both] == pytest.approx([row.score for row in alone], rel=1e-5)
    assert [row.held_out_score for row in both] != pytest.approx([row.score for row in both], rel=1e-2)
    assert [row.held_out_score for row in alone] == [None, None]
