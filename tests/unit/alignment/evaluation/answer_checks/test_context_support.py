"""Support by a given text: planted inventions are found, and what word overlap cannot see is shown."""

import json

import pytest
from helpers.chat_server import ChatServer, completion
from helpers.comparing import contest, question

from alignment.errors import UserError
from alignment.evaluation.answer_checks.context_support import SupportScorer, claims_nothing, supported_share
from alignment.evaluation.answer_checks.model_verdicts import ModelVerdicts
from alignment.evaluation.drawing import DrawOptions, open_endpoint
from alignment.evaluation.judgments import KnownJudgments
from alignment.evaluation.score_judges import ScoreJudge

TEXT = "The library opens at nine on weekdays. A card costs 5 euros. Mrs Keller leads the reading group on Tuesday."


@pytest.mark.parametrize(
    ("answer", "share"),
    [
        ("The library opens at nine.", 1.0),
        ("A card costs 5 euros.", 1.0),
        ("A card costs five euros.", 1.0),
        ("A card costs 7 euros.", 3 / 4),  # card, cost and euro, and not 7
        ("Mr Baumann leads the reading group.", 3 / 5),  # mr and baumann are invented
        ("Pets receive vaccinations upstairs.", 0.0),
        ("I don't know.", 1.0),
        ("The text does not say when it closes.", 1.0),
        ("", 1.0),
        ("Yes.", 1.0),
    ],
    ids=["words", "number", "number word", "wrong number", "name", "all", "unknown", "not said", "empty", "yes"],
)
def test_the_share_of_words_names_and_numbers(answer, share):
    assert supported_share(answer, TEXT) == pytest.approx(share)


def test_an_answer_that_says_unknown_and_then_invents_claims_something():
    assert not claims_nothing("I don't know. Perhaps 17 euros.", TEXT)
    assert not claims_nothing("I don't know. " + "But Baumann says it moved away. " * 6, TEXT)
    assert claims_nothing("I don't know.", TEXT)


def test_what_word_overlap_cannot_see():
    """The named weakness: an invention in the text's own words passes, and a paraphrase fails."""
    assert supported_share("Mrs Keller opens the library on Tuesday.", TEXT) == 1.0
    assert supported_share("Doors unlock from Monday through Friday.", TEXT) == 0.0


PROMPTS = [question(f"Q{n}", context=[{"text": TEXT}, {"text": "Parking is free."}]) for n in range(3)]
FAITHFUL = ["The library opens at nine.", "Parking is free.", "I don't know."]
PLANTED = ["The library opens at 8.", "Parking costs 12 francs.", "Ask Baumann upstairs."]


def means(judge):
    return {m.name: {side: sum(v.values()) / len(v) for side, v in m.values.items()} for m in judge.measures}


def test_planted_inventions_lose(tmp_path):
    judge = ScoreJudge(SupportScorer("context", PROMPTS, None))
    found = judge.judge(contest(PROMPTS, faithful=FAITHFUL, planted=PLANTED), KnownJudgments(tmp_path / "j.jsonl"))
    assert [each.outcome for each in found] == [1.0] * 3
    assert means(judge)["supported"]["faithful"] == 1.0 and means(judge)["supported"]["planted"] < 0.5
    assert means(judge)["with a foreign number"] == {"faithful": 0.0, "planted": pytest.approx(2 / 3)}
    assert means(judge)["claims nothing"] == {"faithful": pytest.approx(1 / 3), "planted": 0.0}
    assert "stopped 43%" in judge.notes[0]


def test_a_model_is_shown_the_text_and_sees_what_words_do_not(tmp_path):
    twisted = "Mrs Keller opens the library on Tuesday."

    def reads(prompt, seen):
        assert TEXT in prompt.split("=== request")[0]
        answer = prompt.split("=== answer\n")[1].split("\n=== end")[0]
        return completion(json.dumps({"reason": "So.", "verdict": "unsupported" if answer == twisted else "partly"}))

    with ChatServer(reads) as server:
        model = ModelVerdicts(open_endpoint(f"{server.url}#m", DrawOptions()), "m")
        judge = ScoreJudge(SupportScorer("context", PROMPTS, model), model.at_a_time)
        judge.judge(contest(PROMPTS, a=FAITHFUL, b=[twisted] * 3), KnownJudgments(tmp_path / "j.jsonl"))
    assert means(judge)["supported"] == {"a": 0.5, "b": 0.0}
    assert judge.identity.name == "support=context by model=m" and judge.notes == []


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({}, "--by support=context: a row has no text there; its columns: none"),
        ({"page": "x"}, "its columns: page"),
        ({"context": " "}, "has an empty text there"),
    ],
    ids=["none", "other", "empty"],
)
def test_a_row_without_its_text_is_named(columns, message):
    with pytest.raises(UserError, match=message):
        SupportScorer("context", [question("Q", **columns)], None)
