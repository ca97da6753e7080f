"""Verdicts: what was not measured has not passed, an early end shows no gain, a win rate says who judged."""

import json
from pathlib import Path

import pytest
from helpers.journals import CONFIGS, make_run
from typer.testing import CliRunner

import alignment.cli.main
from alignment.reports import checks
from alignment.reports import verdicts as verdicts_module
from alignment.reports.judges import judge_of, reward_parts
from alignment.reports.review import review
from alignment.reports.verdicts import Verdict, headline, short_summary, verdicts, worst
from alignment.runs import metrics
from alignment.runs.journal import Journal
from alignment.runs.record import RunRecord

WATCHED = [check.key for check in checks.PPO if check not in checks.COMMON]
NAMES = ("watching", {"names": WATCHED})
ITERATION = {"rollout/score": 1.0, "rollout/kl": 1.0, "policy/entropy": 1.0, "rollout/length": 9.0, "rollout/ended": 1,
             "rollout/length_correlation": 0.1, "value/explained_variance": 0.5,
             "rollout/sampler_gap_mean": 1e-6, "slack/model": 0.1}  # fmt: skip
EVALUATION = {"eval/score": 1.0, "eval/raw_score": 1.0, "eval/reward/model": 1.0, "eval/held_out_score": 1.0}
WON = {"eval/win_rate": 0.75, "eval/win_rate_low": 0.5, "eval/win_rate_high": 0.875}
ROWS = {0: EVALUATION} | dict.fromkeys(range(1, 20), ITERATION) | {20: ITERATION | EVALUATION | WON}
MODEL = {"policy": "p", "reward": "rm@v1", "held_out_reward": "other-rm"}


def test_the_evidence_of_each_check_is_a_metric_that_its_stage_can_journal() -> None:
    for stage, found in checks.STAGES.items():
        for name in {name for check in found for name in check.evidence}:
            metrics.check(stage, name)


def outcomes(path: Path) -> dict[str, str]:
    return {verdict.name: verdict.outcome for verdict in verdicts(RunRecord.read(path))}


def reasons(path: Path) -> dict[str, str]:
    return {verdict.name: verdict.reason for verdict in verdicts(RunRecord.read(path))}


def unmeasured(path: Path) -> set[str]:
    return {name for name, outcome in outcomes(path).items() if outcome == "not measured"}


def without(*metrics: str) -> dict[int, dict[str, float]]:
    return {step: {name: value for name, value in row.items() if name not in metrics} for step, row in ROWS.items()}


def test_a_whole_run_in_which_nothing_was_found_has_passed(tmp_path):
    make_run(tmp_path / "r", rows=ROWS, events=[NAMES], model=MODEL)
    assert set(outcomes(tmp_path / "r").values()) == {"pass"}


@pytest.mark.parametrize(
    ("gone", "missing"),
    [
        (("eval/held_out_score",), {"over-optimisation"}),
        (("value/explained_variance",), {"critic"}),
        (("rollout/length_correlation",), {"length sought"}),
        (("rollout/sampler_gap_mean",), {"sampler gap"}),
        (("eval/raw_score",), {"gain from ending"}),
        (("slack/model",), {"constraint"}),
        (("eval/reward/model",), {"component fell", "constraint"}),
        (
            (*EVALUATION, *WON),
            {"over-optimisation", "component fell", "constraint", "gain from ending", "better than the start"},
        ),
    ],
)
def test_a_check_whose_input_is_missing_was_not_measured(tmp_path, gone, missing):
    make_run(tmp_path / "r", rows=without(*gone), events=[NAMES], model=MODEL)
    assert unmeasured(tmp_path / "r") == missing
    for name in missing:
        assert reasons(tmp_path / "r")[name].startswith(
            f"it needs {checks.find('ppo', name).needs}; the journal has no "
        )


def test_a_run_that_ended_before_an_alarm_could_be_raised_was_not_checked_for_it(tmp_path):
    rows = dict.fromkeys(range(1, 3), ITERATION)
    make_run(tmp_path / "r", rows=rows, events=[NAMES], model=MODEL)
    found = unmeasured(tmp_path / "r")
    assert {"critic", "negative KL", "length sought"} <= found
    assert "the journal has 2 values of value/explained_variance" in reasons(tmp_path / "r")["critic"]
    assert not {"exploding KL", "truncation", "entropy collapse"} & found


def test_values_that_were_not_finite_measure_nothing(tmp_path):
    rows = {step: {"eval/win_rate": float("nan")} for step in range(3)}
    make_run(tmp_path / "r", rows=rows, events=[("watching", {"names": ["better than the start"]})])
    assert outcomes(tmp_path / "r")["better than the start"] == "not measured"


@pytest.mark.parametrize(
    ("code", "events", "said"),
    [
        (0, (), None),
        (75, (), "preempted at step 20 of 30"),
        (1, (), "failed at step 20 of 30"),
        (None, (), "is running or was killed at step 20 of 30"),
        (0, (("stopped", {"step": 20}),), "stopped early, at step 20 of 30"),
    ],
)
def test_a_run_that_ended_early_is_not_better_than_the_start(tmp_path, code, events, said):
    make_run(
        tmp_path / "r", rows=ROWS, events=[NAMES, *events], exit_code=code, model=MODEL, training={"max_steps": 30}
    )
    outcome, reason = (found(tmp_path / "r")["better than the start"] for found in (outcomes, reasons))
    assert outcome == ("pass" if said is None else "not measured")
    assert said is None or said in reason
    assert "wins 75.0% (95%: 50.0 to 87.5%) of the held-out prompts, judged by the held-out reward model" in reason
    assert ("stopped early at step 20" in reasons(tmp_path / "r")["end"]) == bool(events)


def test_a_run_without_a_win_rate_is_not_better_than_the_start(tmp_path):
    make_run(tmp_path / "r", rows=without(*WON), events=[NAMES], model=MODEL)
    assert outcomes(tmp_path / "r")["better than the start"] == "not measured"


def test_a_stage_says_what_it_could_not_measure(tmp_path):
    make_run(tmp_path / "r", "reward", {9: {"eval/length_baseline": 0.5}})
    with Journal(tmp_path / "r") as written:
        written.watching(["ties", "no overlap", "chance"])
        written.not_measured(9, "ties", "there are 3 and 20")
        written.finding(9, "no overlap", "note", "nobody shared a pair")
        written.not_measured(9, "no overlap", "no two votes")
        written.finding(9, "chance", "warning", "as good as guessing")
        written.not_measured(9, "chance", "a warning is a measurement")
    found = outcomes(tmp_path / "r")
    assert (found["ties"], found["no overlap"], found["chance"]) == ("not measured", "not measured", "warn")
    assert reasons(tmp_path / "r")["ties"] == "there are 3 and 20"


def test_members_of_an_ensemble_are_checked_by_their_own_metrics(tmp_path):
    rows = {step: {"eval/loss": 1.0, "member-1/train/loss": 1.0} for step in (1, 2)}
    make_run(tmp_path / "r", "reward", rows, events=[("watching", {"names": ["overfitting", "member-1 overfitting"]})])
    found = {verdict.name: verdict for verdict in verdicts(RunRecord.read(tmp_path / "r"))}
    assert found["overfitting"].outcome == "pass"
    assert found["member-1 overfitting"].outcome == "not measured"
    assert found["member-1 overfitting"].title == "no overfitting (member-1)"


# --- of all checks together


def of(*found: str) -> list[Verdict]:
    """`w` warn, `f` fail, `p` pass, `n` not measured, `N` not measured and important."""
    names = {"f": "fail", "w": "warn", "p": "pass", "n": "not measured", "N": "not measured"}
    return [Verdict(str(number), names[each], "", important=each == "N") for number, each in enumerate("".join(found))]


@pytest.mark.parametrize(
    ("found", "outcome", "short", "line"),
    [
        ("pp", "pass", "pass", "All 2 checks passed"),
        ("ppn", "pass", "pass, 1 not measured", "2 of 3 checks passed, 1 not measured"),
        ("ppNn", "not measured", "2 not measured", "2 of 4 checks passed, 2 not measured"),
        ("pwN", "warn", "warn, 1 not measured", "1 of 3 checks to look at, 1 not measured"),
        ("pfwN", "fail", "fail, 1 not measured", "1 of 4 checks failed, 1 to look at, 1 not measured"),
    ],
)
def test_what_was_not_measured_does_not_fail_a_run_and_is_counted(found, outcome, short, line):
    assert (worst(of(found)), short_summary(of(found)), headline(of(found))) == (outcome, short, line)


# --- the table


@pytest.mark.parametrize("stage", checks.STAGES)
def test_each_check_has_a_name_and_says_what_it_looks_at(stage):
    every = checks.STAGES[stage]
    assert len({check.key for check in every}) == len({check.name for check in every}) == len(every)
    for check in every:
        assert check.about.endswith(".") and len(check.about) > 40
        assert bool(check.needs) or not check.evidence


def test_every_stage_watches_what_the_table_has():
    from alignment.training.callbacks import OVERFITTING
    from alignment.training.data_check import DATA_WATCHED
    from reward.evaluation.findings import WATCHED as REPORT
    from reward.train import LABELS

    common = {check.key for check in checks.COMMON}
    assert {*DATA_WATCHED, OVERFITTING} == {check.key for check in checks.SFT} - common
    kinds = {kind.replace("_", " ") for kind in REPORT}
    assert kinds | {*DATA_WATCHED, OVERFITTING, LABELS} == {check.key for check in checks.REWARD} - common


# --- who judged


@pytest.mark.parametrize(
    ("model", "others", "kind", "words"),
    [
        (
            {"reward": "rm@v1"},
            [],
            "reward model",
            "the reward model that it was trained on (rm@v1), which is biased upward",
        ),
        (MODEL, [], "held-out reward model", "the held-out reward model other-rm"),
        (
            {},
            [{"function": "a.b:polite"}],
            "function",
            "the reward function that it was trained on (a.b:polite), which",
        ),
        ({}, [{"url": "http://me:key@host:1/x"}], "service", "the reward service that it was trained on (host), which"),
        ({"reward": "rm"}, [{"function": "a:b"}], "sum", "the sum of rewards that it was trained on (model, b), which"),
    ],
)
def test_who_judges_is_read_from_the_config(model, others, kind, words):
    judge = judge_of({"model": {"policy": "p"} | model, "rewards": {"others": others}, "ppo": {}})
    assert judge.kind == kind and words in judge.text and "key" not in judge.text
    assert judge.is_independent == (kind == "held-out reward model") == ("biased" not in judge.text)


def test_no_other_stage_has_a_judge():
    assert judge_of(CONFIGS["sft"]) is judge_of(CONFIGS["reward"]) is judge_of(CONFIGS["ppo"]) is None


def test_parts_of_the_reward_are_named_as_ppo_names_them(tmp_path, monkeypatch):
    from ppo.config import RewardsConfig
    from ppo.reward_sources import load_sources

    (tmp_path / "my_rewards.py").write_text("def polite(prompts, responses, **columns):\n    return [0.0]\n")
    monkeypatch.syspath_prepend(tmp_path)
    function = {"function": "my_rewards:polite"}
    others = [function | {"weight": 2.0}, function, {"url": "http://h/x", "weight": -1.0}, {"url": "http://model/"}]
    sources = load_sources(RewardsConfig.model_validate({"others": others}), [])
    parts = reward_parts({"model": {}, "rewards": {"others": others}})
    assert [(name, weight) for name, _, weight in parts] == [(source.name, source.weight) for source in sources]
    assert [name for name, _, _ in parts] == ["polite", "polite-1", "h", "model-3"]


@pytest.fixture
def shown(tmp_path, monkeypatch):
    monkeypatch.setenv("ALIGNMENT_REGISTRY", str(tmp_path / "registry"))
    monkeypatch.chdir(tmp_path)
    own = {"policy": "p", "reward": "rm@v1"}
    make_run(tmp_path / "runs" / "one", rows=without("eval/held_out_score"), events=[NAMES], model=own)
    make_run(tmp_path / "runs" / "two", rows=ROWS, events=[NAMES], model=MODEL)

    def run(*arguments):
        done = CliRunner().invoke(alignment.cli.main.app, ["runs", *arguments])
        assert done.exit_code == 0, done.output
        return done.stdout

    return run


def test_the_commands_say_who_judged_and_what_was_not_measured(shown):
    listed = {row["name"]: row for row in json.loads(shown("list", "--json"))["runs"]}
    assert (listed["one"]["verdict"], listed["one"]["not_measured"]) == ("not measured", ["over-optimisation"])
    assert listed["two"]["verdict"] == "pass" and listed["two"]["judged_by"] == "the held-out reward model other-rm"
    text = shown("list")
    assert "1 not measured" in text and "eval/win_rate 0.75 (by its own reward model)" in text
    text = shown("show", "one")
    assert "not measured" in text and "held-out judge agrees" in text and "it needs a second reward model" in text
    assert "judged by its own reward model" in text and "which is biased upward" in text
    text = shown("compare", "one", "two")
    assert "judged by" in text and "rm@v1" in text and "held-out reward model other-rm" in text
    assert "held-out judge agrees" in text
    text = shown("watch", "one", "--once")
    assert "not measured 1" in text and "win rate judged by its own reward model" in text


def test_a_review_keeps_what_was_not_measured(shown, tmp_path):
    said = review(RunRecord.read(tmp_path / "runs" / "one"), "approve", "reads well", "Ada")
    assert said.verdict == "not measured"
    assert said.caveat == "the run was not checked for: held-out judge agrees"
    assert review(RunRecord.read(tmp_path / "runs" / "two"), "approve", "reads well", "Ada").caveat is None


def test_wandbs_summary_has_the_verdict_and_the_judge(tmp_path):
    make_run(tmp_path / "r", rows=without("eval/held_out_score"), events=[NAMES], exit_code=None,
             model={"policy": "p", "reward": "rm"})  # fmt: skip
    found = verdicts_module.summary_of(tmp_path / "r", 0)
    assert (found["verdict"], found["check/held-out judge agrees"]) == ("not measured", "not measured")
    assert found["check/better than the start"] == found["check/run finished"] == "pass"
    assert "which is biased upward" in found["win_rate_judged_by"]
    assert verdicts_module.summary_of(tmp_path / "r", 75)["check/better than the start"] == "not measured"
    assert verdicts_module.summary_of(tmp_path / "nothing") == {}
