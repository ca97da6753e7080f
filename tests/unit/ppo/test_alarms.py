"""Each alarm on a course that calls for it, when it begins and when it ends; and silence on courses that do not."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppo.alarms import WATCHED, Alarm, Alarms

HEALTHY = {
    "rollout/kl": 2.0,
    "rollout/length": 40.0,
    "rollout/ended": 0.95,
    "policy/entropy": 2.0,
    "value/explained_variance": 0.4,
}


def run(stage_config, courses, evaluations=None, steps=20, **sections):
    """All alarms of a course: (iteration, name, text or None where it ends)."""
    alarms = Alarms(stage_config(**sections))
    said = []
    alarms.begin((evaluations or {}).get(0))
    for step in range(1, steps + 1):
        stats = {**HEALTHY, **{name: course(step) for name, course in courses.items()}}
        evaluation = (evaluations or {}).get(step)
        said += [(step, alarm.name, alarm.text) for alarm in alarms.check(step, stats, evaluation)]
    return said


CASES = {
    "negative KL": ("rollout/kl", lambda step: -0.5 if step > 4 else 0.1, 7),
    "exploding KL": ("rollout/kl", lambda step: 10.0 * step, 6),
    "entropy collapse": ("policy/entropy", lambda step: 2.0 if step < 9 else 0.1, 9),
    "truncation": ("rollout/ended", lambda step: 1 - 0.03 * step, 7),
    "critic": ("value/explained_variance", lambda step: -1.0, 13),
    "length drift": ("rollout/length", lambda step: 40.0 + 3 * (step - 1), 8),
    "length sought": ("rollout/length_correlation", lambda step: 0.6 if step > 2 else 0.1, 5),
}


@pytest.mark.parametrize("name", CASES)
def test_each_alarm_speaks_once_when_it_begins(stage_config, name):
    key, course, first = CASES[name]
    ((step, said, text),) = run(stage_config, {key: course})
    assert (step, said) == (first, name)
    assert any(hint in text for hint in ("raise", "look at", "read", "lower", "see"))  # what to do


def test_each_alarm_is_watched_and_says_how_bad_it_is():
    assert {*CASES, "over-optimisation"} == set(WATCHED)
    assert {Alarm(name, "text").level for name in WATCHED} == {"error", "warning"}
    assert Alarm("exploding KL", "text").level == Alarm("over-optimisation", None).level == "error"
    assert Alarm("length drift", "text").level == "warning"


def test_an_alarm_says_when_it_ends_and_speaks_again_after_that(stage_config):
    said = run(stage_config, {"rollout/ended": lambda step: 0.5 if step in (3, 4, 9) else 1.0})
    assert [(step, name, text is not None) for step, name, text in said] == [
        (3, "truncation", True), (5, "truncation", False), (9, "truncation", True), (10, "truncation", False),
    ]  # fmt: skip


def test_one_negative_kl_is_chance(stage_config):
    assert run(stage_config, {"rollout/kl": lambda step: -0.3 if step % 3 else 0.2}) == []


def test_a_target_says_what_is_too_much(stage_config):
    said = run(stage_config, {"rollout/kl": lambda step: 6.0 * step}, ppo={"kl_target": 6.0})
    assert [(step, name) for step, name, _ in said] == [(6, "exploding KL")]
    assert "alarm at 30" in said[0][2]


def at(score, held):
    return {"eval/score": score, "eval/held_out_score": held}


@pytest.mark.parametrize(
    ("evaluations", "first"),
    [
        ({0: at(0.0, 0.0), 20: at(1.0, -0.5)}, 20),  # with eval_steps=0: the start and the end
        ({0: at(1.0, 0.0), 5: at(2.0, 1e-4), 10: at(3.0, 2e-4)}, 5),  # as good as flat
        ({0: at(0.0, 1.0), 5: at(0.015, 0.99), 10: at(0.03, 0.98)}, 10),  # too slow to be seen from one to the next
        ({0: at(0.0, 0.0), 5: at(0.03, 0.02), 10: at(0.06, 0.04)}, None),  # slow, and the held-out score follows
        ({0: at(0.0, 0.5), 5: at(1.0, 0.55), 10: at(2.0, 0.6)}, None),  # that of a smaller scale follows
        ({0: at(0.0, 0.0), 5: at(-1.0, -1.0), 10: at(0.0, 0.0)}, None),
        ({0: at(1.0, 0.0), 5: at(-1.0, 1e-4), 10: at(1.0, 0.0)}, None),  # a dip is not what to rise from
    ],
)
def test_over_optimisation_is_seen_from_the_best_evaluation_on(stage_config, evaluations, first):
    said = run(stage_config, {}, evaluations)
    assert [step for step, _, _ in said] == ([] if first is None else [first])


def test_a_reward_that_rises_alone_is_over_optimised(stage_config):
    evaluations = {0: at(0.0, 0.0), 5: at(1.0, 0.5), 10: at(1.5, 0.45), 15: at(1.6, 0.4), 20: at(1.7, 0.6)}
    (step, name, text), (end, *ended) = run(stage_config, {}, evaluations)
    assert (step, name) == (10, "over-optimisation")
    assert "rose by 0.50" in text
    assert (end, *ended) == (20, "over-optimisation", None)  # the held-out score rose again at 20
    alone = {step: {"eval/score": float(step)} for step in (5, 10)}
    assert run(stage_config, {}, alone) == []


def test_without_a_critic_nothing_is_said_of_one(stage_config):
    alarms = Alarms(stage_config())
    stats = {name: value for name, value in HEALTHY.items() if not name.startswith("value/")}
    assert [alarms.check(step, stats) for step in range(1, 20)] == [[]] * 19


@given(
    st.lists(
        st.tuples(st.floats(0, 10), st.floats(21, 59), st.floats(0.8, 1), st.floats(0.5, 3), st.floats(0, 1)),
        min_size=1,
    )
)
@settings(max_examples=50, deadline=None)
def test_healthy_courses_are_silent(course):
    from ppo.config import PPOStageConfig

    values = {"name": "t", "model": {"policy": "p", "reward": "r"}, "data": {"train": "n"}, "registry": {"name": "t"}}
    alarms = Alarms(PPOStageConfig.model_validate(values))
    assert alarms.check(0, HEALTHY) == []
    for step, (kl, length, ended, entropy, explained) in enumerate(course, 1):
        stats = dict(zip(HEALTHY, (kl, length, ended, entropy, explained), strict=True))
        assert alarms.check(step, stats) == []


def test_alarms_come_back_from_their_state(stage_config):
    stats = {**HEALTHY, "rollout/ended": 0.5}
    one, other = Alarms(stage_config()), Alarms(stage_config())
    assert len(one.check(1, stats)) == 1
    other.load_state_dict(one.state_dict())
    assert other.check(2, stats) == one.check(2, stats) == []
