"""Evaluations beside a version: appended, never changed, and named by `promote --require`."""

import json
from datetime import UTC, datetime

import pytest

from alignment.registry import RegistryError
from alignment.registry.doctor import examine
from alignment.registry.evaluations import (
    FigureRecord,
    WinRecord,
    add_evaluation,
    evaluations_of,
    newest_evaluations,
)
from alignment.registry.promotion import caveats, promote

RM = {"judge": "reward=rm@v1", "judged_by": "the reward model rm@v1"}


@pytest.fixture
def version(registry, source):
    return registry.publish("m", source, stage="sft", role="policy", metrics={"eval_kl": 4.0})


def evaluation(version, **fields):
    values = {
        "at": datetime.now(UTC), "by": "ann@host", "digest": version.digest, "against": "sft@v1", "judge": "people",
        "judged_by": "people", "prompts": "p.jsonl", "n": 50, "win_rate": 0.6, "low": 0.55, "high": 0.65, "wins": 30,
        "ties": 0, "losses": 20,
    }  # fmt: skip
    return WinRecord(**values | fields)


def figure(version, **fields):
    values = {
        "at": datetime.now(UTC), "by": "ann@host", "digest": version.digest, "command": "eval", "figure": "acc",
        "value": 0.4, "low": 0.3, "high": 0.5, "n": 500, "unit": "questions", "judge": "lm-eval",
        "judged_by": "lm-eval 0.4", "data": "arc_easy", "data_sha256": "0" * 64,
    }  # fmt: skip
    return FigureRecord(**values | fields)


JSON = {"command": "compare", "figure": "valid JSON", "is_share": True, "unit": "prompts", "judge": "json",
        "judged_by": "a JSON check", "data": "p.jsonl"}  # fmt: skip
FORGOT = {"value": -0.02, "low": -0.05, "high": 0.01, "against": "sft@v1"}


def test_evaluations_are_appended_and_the_newest_of_an_opponent_and_judge_counts(registry, version):
    assert add_evaluation(registry, version, evaluation(version))
    assert add_evaluation(registry, version, evaluation(version, **RM))
    assert add_evaluation(registry, version, evaluation(version, win_rate=0.7, high=0.8))
    assert [(each.judge, each.win_rate) for each in evaluations_of(registry, version)] == [
        ("people", 0.6), ("reward=rm@v1", 0.6), ("people", 0.7),
    ]  # fmt: skip
    assert [each.win_rate for each in newest_evaluations(registry, version)] == [0.7, 0.6]
    folder = registry.path / "models" / "m" / "evaluations" / "v000001"
    assert sorted(path.name for path in folder.iterdir()) == [f"{number:08d}.json" for number in (1, 2, 3)]
    assert not [problem for problem in examine(registry, hash_files=False) if problem.kind == "stray"]


def test_the_same_result_again_is_not_written_twice(registry, version):
    assert add_evaluation(registry, version, evaluation(version))
    assert not add_evaluation(registry, version, evaluation(version, by="bob@host"))
    assert add_evaluation(registry, version, evaluation(version, wins=31, losses=19))
    assert add_evaluation(registry, version, evaluation(version))  # back again: the newest says otherwise
    assert len(evaluations_of(registry, version)) == 3


def test_a_damaged_or_foreign_evaluation_is_named(registry, version):
    add_evaluation(registry, version, evaluation(version))
    path = registry.path / "models" / "m" / "evaluations" / "v000001" / "00000001.json"
    good = json.loads(path.read_text())
    path.write_text(json.dumps(good | {"n": 0}))
    with pytest.raises(RegistryError, match=r"00000001.json is damaged: n: "):
        evaluations_of(registry, version)
    path.write_text(json.dumps(good | {"digest": "sha256:" + "0" * 64}))
    with pytest.raises(RegistryError, match="is an evaluation of sha256:0000"):
        evaluations_of(registry, version)


@pytest.mark.parametrize(
    "name",
    ["compare.win_rate", "compare.people.win_rate", "compare.sft@v1.win_rate", "compare.sft@v1.people.win_rate"],
)
def test_one_evaluation_is_meant_by_each_of_its_names(registry, version, name):
    add_evaluation(registry, version, evaluation(version))
    assert promote(registry, "m@v1", "prod", require=[f"{name}>=0.6", f"{name}.low>0.5", f"{name}.n>=50"]) == version
    with pytest.raises(RegistryError, match=rf"{name}\.low is 0\.55, required {name}\.low>0\.56"):
        promote(registry, "m@v1", "prod", require=[f"{name}.low>0.56"])


def test_a_name_that_several_fit_is_refused_and_the_whole_ones_are_given(registry, version):
    add_evaluation(registry, version, evaluation(version))
    add_evaluation(registry, version, evaluation(version, **RM))
    add_evaluation(registry, version, evaluation(version, against="base@v1"))
    for name, fitting in (
        ("compare.win_rate.low", ["sft@v1.people", "sft@v1.reward=rm@v1", "base@v1.people"]),
        ("compare.people.win_rate", ["sft@v1.people", "base@v1.people"]),
    ):
        with pytest.raises(RegistryError) as caught:
            promote(registry, "m@v1", "prod", require=[f"{name}>=0.5"])
        whole = " or ".join(f"compare.{each}.win_rate" for each in fitting)
        assert f"{name} of m@v1 may be {whole}; name one of them" in str(caught.value)
    promote(registry, "m@v1", "prod", require=["compare.base@v1.win_rate>=0.6", "compare.reward=rm@v1.win_rate>=0.6"])
    (move,) = registry.alias_history("m", "prod")
    assert move.required == ("compare.base@v1.win_rate>=0.6", "compare.reward=rm@v1.win_rate>=0.6")


def test_an_unknown_name_gets_the_nearest(registry, version):
    add_evaluation(registry, version, evaluation(version))
    with pytest.raises(RegistryError, match=r"has no metric 'compare.winrate'; did you mean compare.win_rate"):
        promote(registry, "m@v1", "prod", require=["compare.winrate>=0.5"])


def test_a_judge_that_the_version_was_trained_on_warns_and_alone_more_so(registry, version):
    add_evaluation(registry, version, evaluation(version, trained_on=True, **RM))
    add_evaluation(registry, version, evaluation(version))
    trained = (
        "m@v1: its win rate against sft@v1 is judged by the reward model rm@v1 on 50 prompts, which it was trained on"
    )
    by_model, by_people = "compare.reward=rm@v1.win_rate>0.5", "compare.people.win_rate>0.5"
    told, alone = caveats(registry, version, [by_model])
    assert told == trained and "no other judge was required than the one that it was trained on" in alone
    assert caveats(registry, version, [by_model, by_people]) == [
        trained, "m@v1: its win rate against sft@v1 is judged by people on 50 prompts",
    ]  # fmt: skip
    assert caveats(registry, version, ["eval_kl<5"]) == []


def test_figures_stand_beside_win_rates_and_the_newest_of_each_counts(registry, version):
    told = [figure(version), figure(version, **FORGOT), figure(version, **JSON), evaluation(version)]
    assert all(add_evaluation(registry, version, each) for each in told)
    assert evaluations_of(registry, version) == told
    assert not add_evaluation(registry, version, figure(version))
    assert add_evaluation(registry, version, figure(version, value=0.45))
    assert [each.value for each in newest_evaluations(registry, version)] == [0.45, -0.02, 0.4, 0.6]
    assert [each.text.rpartition(", ")[0] for each in told[:3]] == [
        "acc 0.4 (0.3 to 0.5) on 500 questions of arc_easy, judged by lm-eval 0.4",
        "change of acc from sft@v1 -0.02 (-0.05 to +0.01) on 500 questions of arc_easy, judged by lm-eval 0.4",
        "valid JSON 40% (30% to 50%) on 500 prompts of p.jsonl, judged by a JSON check",
    ]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("eval.acc", 0.4), ("eval.arc_easy.acc.low", 0.3), ("eval.arc_easy.lm-eval.acc.n", 500),
        ("eval.lm-eval.acc", 0.4),
        ("eval.acc.change.low", -0.05), ("eval.sft@v1.acc.change", -0.02),
        ("eval.sft@v1.arc_easy.lm-eval.acc.change.high", 0.01), ("compare.valid_json.low", 0.3),
        ("compare.p.jsonl.json.valid_json", 0.4), ("compare.win_rate", 0.6),
    ],
)  # fmt: skip
def test_a_figure_is_required_by_each_of_its_names(registry, version, name, value):
    for each in (figure(version), figure(version, **FORGOT), figure(version, **JSON), evaluation(version)):
        add_evaluation(registry, version, each)
    promote(registry, "m@v1", "prod", require=[f"{name}>={value}"])
    with pytest.raises(RegistryError, match="m@v1 is not promoted to 'prod'"):
        promote(registry, "m@v1", "prod", require=[f"{name}>{value}"])


def test_a_figure_on_two_files_needs_the_name_of_one_and_one_without_an_interval_has_no_ends(registry, version):
    add_evaluation(registry, version, figure(version, low=None, high=None))
    add_evaluation(registry, version, figure(version, data="hellaswag"))
    with pytest.raises(RegistryError, match=r"may be eval.arc_easy.lm-eval.acc or eval.hellaswag.lm-eval.acc; name"):
        promote(registry, "m@v1", "prod", require=["eval.acc>=0.4"])
    with pytest.raises(RegistryError, match=r"has no metric 'eval.arc_easy.acc.low'"):
        promote(registry, "m@v1", "prod", require=["eval.arc_easy.acc.low>=0.1"])
    assert promote(registry, "m@v1", "prod", require=["eval.arc_easy.acc>=0.4"]) == version


def test_a_promotion_says_who_judged_a_figure_and_a_task_is_no_other_judge(registry, version):
    add_evaluation(registry, version, figure(version))
    add_evaluation(registry, version, evaluation(version, trained_on=True, **RM))
    task, trained, alone = caveats(registry, version, ["eval.acc>0.1", "compare.win_rate>0.5"])
    assert task == "m@v1: its acc is judged by lm-eval 0.4 on 500 questions of arc_easy"
    assert "which it was trained on" in trained and "no other judge was required" in alone


def test_doctor_names_a_damaged_evaluation(registry, version):
    add_evaluation(registry, version, figure(version))
    path = registry.path / "models" / "m" / "evaluations" / "v000001" / "00000001.json"
    path.write_text(path.read_text().replace("0.4,", '"high",'))
    (found,) = [each for each in examine(registry, hash_files=False) if each.kind == "evaluation"]
    assert "00000001.json is damaged: value: " in found.problem and found.repair is None


def test_figures_of_the_same_prompts_are_one_whatever_their_file_is_called(registry, version):
    again = JSON | {"data": "answers.jsonl"}
    other = JSON | {"data": "q.jsonl", "data_sha256": "1" * 64}
    for fields in (JSON, other, again | {"value": 0.45}, other | {"data_sha256": "2" * 64, "value": 0.31}):
        assert add_evaluation(registry, version, figure(version, **fields))
    newest = newest_evaluations(registry, version)
    assert [(each.data, each.value) for each in newest] == [("answers.jsonl", 0.45), ("q.jsonl", 0.31)]
    promote(registry, "m@v1", "prod", require=["compare.answers.jsonl.valid_json>=0.45"])
    add_evaluation(registry, version, figure(version, **JSON | {"data": "q.jsonl", "value": 0.47}))
    assert [(each.data, each.value) for each in newest_evaluations(registry, version)] == [("q.jsonl", 0.47)]
    for task in ("arc_easy", "arc_chat"):  # two tasks may ask the same questions in other words
        add_evaluation(registry, version, figure(version, data=task))
    assert len(newest_evaluations(registry, version)) == 3
