"""Each alarm on a course that calls for it, when it begins and when it ends; and silence on courses that do not."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppo.alarms import IN_A_ROW, UNEXPLAINED_FROM, WATCHED, Alarm, Alarms, not_better, watched

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
    "sampler gap": ("rollout/sampler_gap_mean", lambda step: 1e-3 if step > 5 else 1e-6, 6),
}


@pytest.mark.parametrize("name", CASES)
def test_each_alarm_speaks_once_when_it_begins(stage_config, name):
    key, course, first = CASES[name]
    ((step, said, text),) = run(stage_config, {key: course})
    assert (step, said) == (first, name)
    assert any(hint in text for hint in ("raise", "look at", "read", "lower", "see"))  # what to do


def test_each_alarm_is_watched_and_says_how_bad_it_is():
    assert {*CASES, "over-optimisation", "component fell", "constraint", "gain from ending"} == set(WATCHED)
    assert {Alarm(name, "text").level for name in WATCHED} == {"error", "warning"}
    assert Alarm("exploding KL", "text").level == Alarm("over-optimisation", None).level == "error"
    assert Alarm("length drift", "text").level == "warning"


def test_only_an_engine_that_is_not_the_policy_is_watched_for_its_gap_and_only_bounds_for_being_kept(stage_config):
    assert set(WATCHED) - set(watched(stage_config())) == {"sampler gap", "constraint"}
    bounded = stage_config(rollout={"vllm": {}}, rewards={"constraints": {"model": ">= 0"}})
    assert watched(bounded) == list(WATCHED)


@pytest.mark.parametrize(("bound", "mean", "said"), [
    (">= 0.2", 0.5, False), (">= 0.2", 0.1, False), (">= 0.2", -0.1, True),
    ("<= 0.2", 0.5, True), ("<= 0.2", 0.1, False),
])  # fmt: skip
def test_a_bound_that_is_missed_beyond_noise_is_said_and_ends(stage_config, bound, mean, said):
    """With a standard error of .05, a mean of .1 may be one of .2."""
    rewards = {"constraints": {"model": bound}}
    course = {step: held_out(0.0, errors=0.05, raw=0.0, model=mean if step == 10 else 0.2) for step in (0, 10, 20)}
    found = [each for each in run(stage_config, {}, course, rewards=rewards) if each[1] == "constraint"]
    assert [step for step, _, _ in found] == ([10, 20] if said else [])
    if said:
        assert f"model is {mean:.2f}, and the bound is {bound}" in found[0][2] and found[1][2] is None


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


# --- a score that rises while what the user wants does not

VADER = {"rewards": {"others": [{"function": "vader:sentiment"}]}, "model": {"policy": "p", "reward": None}}
TWO = {"rewards": {"others": [{"function": "f:polite"}, {"function": "f:words", "weight": -0.5}]}}


def held_out(score, ended=0.9, errors=None, **parts):
    """An evaluation; the parts in the user's own unit, `raw` their sum."""
    found = {"eval/score": score, "eval/ended": ended}
    found |= {"eval/raw_score" if name == "raw" else f"eval/reward/{name}": value for name, value in parts.items()}
    if errors is not None:
        found |= {"eval/score_se": errors, "eval/raw_score_se": errors}
        found |= {f"eval/reward_se/{name}": errors for name in parts if name != "raw"}
    return found


def test_a_policy_that_learned_only_to_stop_fails_in_words_of_its_own_function(stage_config):
    """As it was seen: VADER sentiment, 32 tokens; the score rose with the answers that end, the sentiment fell."""
    start = held_out(-0.53, 0.4, raw=0.16, sentiment=0.16) | {"eval/finished_raw_score": 0.2}
    end = held_out(0.07, 1.0, raw=0.0, sentiment=0.0) | {"eval/finished_raw_score": 0.0}
    said = run(stage_config, {}, {0: start, 20: end}, **VADER)
    assert {name for _, name, _ in said} == {"component fell", "gain from ending"}
    assert Alarm("gain from ending", "").level == "error"
    texts = {name: text for _, name, text in said}
    assert "sentiment 0.16 -> 0.00" in texts["component fell"]
    ending = texts["gain from ending"]
    for words in ("from ending alone (answers that end: 40% -> 100%)", "-0.53 -> 0.07", "the function vader:sentiment",
                  "0.16 -> 0.00", "of answers that end 0.20 -> 0.00", "rewards.missing_eos_penalty"):  # fmt: skip
        assert words in ending
    assert "reward model" not in ending + texts["component fell"]


@pytest.mark.parametrize(
    ("before", "after", "names"),
    [
        ({"raw": 0.2, "sentiment": 0.2}, {"raw": 0.4, "sentiment": 0.4}, set()),  # the reward rises too
        ({"raw": 0.2, "sentiment": 0.2}, {"raw": 0.19, "sentiment": 0.19}, {"gain from ending"}),  # as good as flat
        ({"raw": 0.2, "sentiment": 0.2}, {"raw": 0.1, "sentiment": 0.1}, {"gain from ending", "component fell"}),
    ],
)
def test_what_rises_and_what_does_not(stage_config, before, after, names):
    said = run(stage_config, {}, {0: held_out(-0.5, 0.5, **before), 20: held_out(0.5, 0.9, **after)}, **VADER)
    assert {name for _, name, _ in said} == names


def test_a_part_that_falls_is_told_by_the_sign_of_its_weight(stage_config):
    def fallen(**change):
        start = {"model": 1.0, "polite": 0.5, "words": 40.0}
        evaluations = {0: held_out(0.0, raw=0.0, **start), 20: held_out(1.0, raw=1.0, **start | change)}
        return [text for _, name, text in run(stage_config, {}, evaluations, **TWO) if name == "component fell"]

    assert fallen(words=20.0) == [] and fallen(polite=0.9) == []  # fewer words are wanted here
    (more_words,) = fallen(words=60.0)
    assert "words 40.00 -> 60.00" in more_words and "rewards.others" in more_words
    (ruder,) = fallen(polite=0.2)
    assert "polite 0.50 -> 0.20" in ruder
    (worse,) = fallen(model=0.5, words=60.0)
    assert "the reward model 1.00 -> 0.50, words" in worse


def test_noise_is_no_finding(stage_config):
    """A fall and a rise of two standard errors of the difference; three of a fall that matters are one."""
    sqrt2 = 2**0.5

    def names(score, fall):
        start = held_out(0.0, raw=0.0, errors=0.1, model=1.0)
        end = held_out(score * 0.1 * sqrt2, raw=1.0, errors=0.1, model=1.0 - fall * 0.1 * sqrt2)
        return {name for _, name, _ in run(stage_config, {}, {0: start, 20: end})}

    assert names(2.0, 3.0) == names(3.0, 2.0) == set()
    assert names(3.0, 3.0) == {"component fell"}


@pytest.mark.parametrize(("after", "told"), [(0.97, False), (0.9, True)])
def test_a_fall_that_is_sure_and_small_is_no_finding(stage_config, after, told):
    evaluations = {
        0: held_out(0.0, raw=0.0, errors=0.001, model=1.0),
        20: held_out(1.0, raw=1.0, errors=0.001, model=after),
    }
    assert bool(run(stage_config, {}, evaluations)) == told


def test_a_component_that_comes_back_is_cleared_and_the_start_outlives_a_checkpoint(stage_config):
    alarms, resumed = Alarms(stage_config()), Alarms(stage_config())
    alarms.begin(held_out(0.0, model=1.0))
    resumed.load_state_dict(alarms.state_dict())
    assert [alarm.name for alarm in resumed.check(1, HEALTHY, held_out(1.0, model=0.5))] == ["component fell"]
    assert resumed.check(2, HEALTHY, held_out(2.0, model=1.5)) == [Alarm("component fell", None)]


def test_without_a_reward_model_no_text_speaks_of_one(stage_config):
    courses = {CASES[name][0]: CASES[name][1] for name in CASES if name not in ("negative KL", "truncation")}
    evaluations = {0: at(0.0, 0.0) | held_out(0.0, 0.5, raw=1.0, sentiment=1.0),
                   20: at(1.0, -0.5) | held_out(1.0, 0.9, raw=0.5, sentiment=0.5)}  # fmt: skip
    texts = [text for _, _, text in run(stage_config, courses, evaluations, **VADER)]
    texts += [text for _, _, text in run(stage_config, {CASES["truncation"][0]: CASES["truncation"][1]}, **VADER)]
    assert len(texts) == len(set(WATCHED) - {"negative KL", "constraint"})
    assert [text for text in texts if "reward model" in text.replace("held-out reward model", "")] == []
    assert sum("vader:sentiment" in text for text in texts) == 5
    with_model = [text for _, _, text in run(stage_config, courses, evaluations)]
    assert sum("reward model" in text for text in with_model) >= 4


def test_the_table_of_checks_knows_every_alarm_and_how_long_it_takes_to_be_raised():
    from alignment.reports import checks
    from alignment.training.data_check import DATA_WATCHED

    declared = {check.key: check for check in checks.PPO}
    assert {*WATCHED, *DATA_WATCHED, "stopped", "better than the start"} == declared.keys() - {"end", "finite"}
    assert declared["critic"].values == UNEXPLAINED_FROM + IN_A_ROW
    assert declared["negative KL"].values == declared["length sought"].values == IN_A_ROW


@pytest.mark.parametrize(
    ("interval", "level"), [((0.55, 0.65), None), ((0.45, 0.55), "warning"), ((0.3, 0.4), "error")]
)
def test_a_win_rate_that_does_not_show_a_gain_is_said(interval, level):
    low, high = interval
    found = not_better({"win_rate": (low + high) / 2, "win_rate_low": low, "win_rate_high": high})
    assert (found and found[0]) == level
    assert not_better({"score": 1.0}) is None


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
