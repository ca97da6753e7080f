"""Judges that score answers: Python functions and references."""

from pathlib import Path

import pytest
import sacrebleu
from helpers.comparing import contest, question

from alignment.errors import UserError
from alignment.evaluation.drawing import DrawOptions
from alignment.evaluation.judging import open_judges
from alignment.evaluation.judgments import KnownJudgments
from alignment.evaluation.score_judges import FunctionScorer, ReferenceScorer, ScoreJudge, likeness_by
from alignment.registry import Registry

PROMPTS = [question(f"Q{number}", goal=number, reference="the cat sat") for number in range(3)]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def known(here):
    return KnownJudgments(here / "judgments.jsonl")


def test_the_higher_score_wins_and_equal_scores_tie(here):
    Path("near.py").write_text(
        "def near(prompts, responses, goal):\n    return [-abs(len(r) - g) for r, g in zip(responses, goal)]\n"
    )
    judge = ScoreJudge(FunctionScorer("near.py:near", PROMPTS))
    found = judge.judge(contest(PROMPTS, a=["", "xxx", "x"], b=["y", "y", "yyy"]), known(here))
    assert [judgment.outcome for judgment in found] == [1.0, 0.0, 0.5]
    assert [judgment.scores for judgment in found] == [(0.0, -1.0), (-2.0, 0.0), (-1.0, -1.0)]
    assert {(judgment.judge, judgment.a, judgment.b) for judgment in found} == {("python=near.py:near", "a", "b")}


def test_an_answer_is_scored_once_until_the_judge_is_edited(here):
    source = (
        "calls = []\ndef size(prompts, responses):\n    calls.extend(responses)\n"
        "    return [{0} * len(r) for r in responses]\n"
    )
    Path("size.py").write_text(source.format(1))

    def scored(**answers):
        judge = ScoreJudge(FunctionScorer("size.py:size", PROMPTS))
        before = known(here)
        found = judge.judge(contest(PROMPTS, **answers), before)
        before.write(found)
        return judge._scorer._function._function.__globals__["calls"], [judgment.outcome for judgment in found]

    assert scored(a=["1", "22", "3"], b=["", "4", "55"]) == (["1", "22", "3", "", "4", "55"], [1.0, 1.0, 0.0])
    assert scored(a=["1", "22", "3"], b=["", "4", "666"]) == (["666"], [1.0, 1.0, 0.0])
    Path("size.py").write_text(source.format(-1))
    calls, outcomes = scored(a=["1", "22", "3"], b=["", "4", "666"])
    assert len(calls) == 6 and outcomes == [0.0, 0.0, 1.0]


@pytest.mark.parametrize(
    ("metric", "answer", "reference", "expected"),
    [
        ("exact", "The Cat sat!", "a cat sat", 1.0),
        ("exact", "the cat sat down", "the cat sat", 0.0),
        ("f1", "cat sat down", "the cat sat", 2 * 2 / (3 + 2)),
        ("f1", "dog", "the cat sat", 0.0),
        ("f1", "sat sat", "sat", 2 * 1 / 3),
        ("f1", "", "the", 1.0),  # articles alone are no words
        ("chrf", "the cat sat", "the cat sat", 1.0),
        ("chrf", "the cat", "the cat sat", sacrebleu.sentence_chrf("the cat", ["the cat sat"]).score / 100),
    ],
)
def test_likeness_with_a_reference(metric, answer, reference, expected):
    assert likeness_by(metric)(answer, reference) == pytest.approx(expected)


def test_a_prompt_without_a_reference_is_named():
    with pytest.raises(UserError, match="--by references: a row of the prompts has no reference answer"):
        ReferenceScorer("f1", [*PROMPTS, question("Why?")])


@pytest.mark.parametrize(
    ("by", "message"),
    [
        (["persons"], "--by persons: expected one of people, reward=REF"),
        (["reward"], "--by reward: expected one of"),
        (["python=judge.py"], "--by python=judge.py: expected one of"),
        (["references=bleu"], "expected references, or references= one of exact, f1, chrf"),
        (["people"], "--by people: name the ratings file"),
        (["references=f1", "references"], "--by references=f1 stands twice"),
        (["model=http://h/v1"], "the model's name is missing; write it behind a #"),
        (["python=no_such_file.py:f"], "no_such_file.py cannot be imported"),
    ],
)
def test_a_judge_that_cannot_judge_is_refused_at_once(here, by, message):
    with pytest.raises(UserError) as caught:
        open_judges(by, PROMPTS, {}, Registry("registry"), DrawOptions())
    assert message in str(caught.value)


def test_a_ratings_file_that_nobody_reads_is_refused(here):
    with pytest.raises(UserError, match=r"--db r.db: read by --by people alone"):
        open_judges(["references=f1"], PROMPTS, {}, Registry("registry"), DrawOptions(), Path("r.db"))


def test_a_missing_extra_is_one_line(here, monkeypatch):
    monkeypatch.setattr("alignment.errors.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"--by references=chrf needs sacrebleu.*\[evaluation\]"):
        open_judges(["references"], PROMPTS, {}, Registry("registry"), DrawOptions())
