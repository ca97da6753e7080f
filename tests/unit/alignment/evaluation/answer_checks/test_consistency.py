"""Consistency over several wordings of one question."""

import pytest
from helpers.comparing import contest, question

from alignment.errors import UserError
from alignment.evaluation.answer_checks.consistency import ConsistencyJudge
from alignment.evaluation.judgments import KnownJudgments

PROMPTS = [question(f"{topic}, wording {n}", topic=topic) for topic in ("hours", "fees") for n in range(3)]


def judged(tmp_path, prompts, **answers):
    judge = ConsistencyJudge("topic", prompts)
    return judge, judge.judge(contest(prompts, **answers), KnownJudgments(tmp_path / "judgments.jsonl"))


def test_agreement_is_the_mean_over_pairs_of_wordings(tmp_path):
    """By hand: F1 of (nine, nine) 1, of (nine, at ten) 0 twice: 1/3; and (two words of three shared) 2/3."""
    judge, judgments = judged(
        tmp_path,
        PROMPTS,
        steady=["Nine.", "nine", "Nine!", "one euro", "One euro", "one euro."],
        shaky=["Nine.", "nine", "At ten.", "one euro only", "one euro daily", "one euro gladly"],
    )
    alike, same, other = judge.measures
    assert list(alike.values["steady"].values()) == [1.0, 1.0]
    assert list(alike.values["shaky"].values()) == pytest.approx([1 / 3, 2 / 3])
    assert list(same.values["shaky"].values()) == pytest.approx([1 / 3, 0.0])
    assert set(other.values["steady"].values()) == {0.0}
    assert [(each.outcome, each.scores) for each in judgments] == [
        (1.0, (1.0, pytest.approx(1 / 3))),
        (1.0, (1.0, pytest.approx(2 / 3))),
    ]
    assert judge.identity.unit == "question"


def test_a_model_that_says_one_thing_to_everything_is_seen(tmp_path):
    judge, _ = judged(tmp_path, PROMPTS, parrot=["Please ask the desk"] * 6, other=["a1", "a2", "a3", "b1", "b2", "b3"])
    values = {measure.name: set(measure.values["parrot"].values()) for measure in judge.measures}
    assert values == {"alike (F1)": {1.0}, "the same": {1.0}, "other questions": {1.0}}


def test_a_lone_wording_is_left_out_and_counted(tmp_path):
    prompts = [*PROMPTS, question("Alone", topic="parking"), question("No topic"), question("Empty", topic="")]
    judge, judgments = judged(tmp_path, prompts, a=["x"] * 9, b=["y"] * 9)
    assert len(judgments) == 2
    assert judge.notes[1].startswith("3 prompts are the only wording")


def test_without_shared_values_the_columns_are_named():
    with pytest.raises(UserError, match=r"no two prompts share a value of topic; .*columns of the prompts: id"):
        ConsistencyJudge("topic", [question("a", id=1), question("b", id=2)])
