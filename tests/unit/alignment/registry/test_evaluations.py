"""Evaluations beside a version: appended, never changed, and named by `promote --require`."""

import json
from datetime import UTC, datetime

import pytest

from alignment.registry import RegistryError
from alignment.registry.doctor import examine
from alignment.registry.evaluations import WinRecord, add_evaluation, evaluations_of, newest_evaluations
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
