"""JSON answers: valid by a schema or at all, in a fence, and schemas that cannot be used."""

import json

import pytest
from helpers.comparing import contest, question

from alignment.errors import UserError
from alignment.evaluation.answer_checks.json_answers import JsonScorer
from alignment.evaluation.answers import SideAnswer
from alignment.evaluation.judgments import KnownJudgments
from alignment.evaluation.score_judges import ScoreJudge

SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "people": {"$ref": "#/$defs/count"}},
    "required": ["city", "people"],
    "$defs": {"count": {"type": "integer", "minimum": 0}},
}


@pytest.fixture
def schema(tmp_path):
    def write(content):
        path = tmp_path / "answer.schema.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return str(path)

    return write


def score(scorer, *texts):
    return scorer.scores([question("Q")] * len(texts), [SideAnswer(text) for text in texts])


@pytest.mark.parametrize(
    ("text", "by_schema", "at_all"),
    [
        ('{"city": "Bern", "people": 140000}', 1.0, 1.0),
        ('  {"city": "Bern", "people": 0}\n', 1.0, 1.0),
        ('```json\n{"city": "Bern", "people": 3}\n```', 1.0, 1.0),
        ('```\n{"city": "Bern", "people": 3}\n```', 1.0, 1.0),
        ('{"city": "Bern", "people": -1}', 0.0, 1.0),
        ('{"city": "Bern"}', 0.0, 1.0),
        ("[1, 2]", 0.0, 1.0),
        ('{"city": "Bern", "people": 3', 0.0, 0.0),
        ('Here you are: {"city": "Bern", "people": 3}', 0.0, 0.0),
        ("{'city': 'Bern', 'people': 3}", 0.0, 0.0),
        ('{"city": "Bern", "people": NaN}', 0.0, 0.0),
        ("[" * 100_000, 0.0, 0.0),
        ("", 0.0, 0.0),
    ],
    ids=[
        "right", "space", "json fence", "fence", "minimum", "missing", "list", "cut", "prose", "quotes", "NaN", "deep",
        "empty"
    ],
)  # fmt: skip
def test_an_answer_is_valid_or_not(schema, text, by_schema, at_all):
    assert score(JsonScorer(schema(SCHEMA)), text) == [by_schema]
    assert score(JsonScorer(None), text) == [at_all]


def test_fenced_answers_are_told_apart_and_the_first_fault_is_named(schema, tmp_path):
    good, fenced, bad = '{"city": "B", "people": 1}', '```json\n{"city": "B", "people": 1}\n```', '{"city": 5}'
    found = contest([question(f"Q{n}") for n in range(4)], a=[good] * 4, b=[good, fenced, bad, SideAnswer("{", False)])
    judge = ScoreJudge(JsonScorer(schema(SCHEMA)))
    judgments = judge.judge(found, KnownJudgments(tmp_path / "judgments.jsonl"))
    assert [each.outcome for each in judgments] == [0.5, 0.5, 1.0, 1.0]
    means = {
        measure.name: {side: sum(values.values()) / 4 for side, values in measure.values.items()}
        for measure in judge.measures
    }
    assert means == {"valid JSON": {"a": 1.0, "b": 0.5}, "and not fenced": {"a": 1.0, "b": 0.25}}
    (note,) = judge.notes
    assert note.startswith("b: 2 of 4 answers are wrong, first: $") and "1 answers were cut off" in note


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not a JSON schema"),
        ({"type": "objekt"}, "not a JSON schema: 'objekt' is not valid"),
        ([], "not a JSON schema"),
        ({"type": "string", "pattern": "("}, r"not a JSON schema: '\(' is not a 'regex'"),
    ],
    ids=["cut", "type", "list", "pattern"],
)
def test_a_wrong_schema_is_refused_at_once(schema, content, message):
    with pytest.raises(UserError, match=message):
        JsonScorer(schema(content))


def test_a_missing_schema_is_named(tmp_path):
    with pytest.raises(UserError, match=r"none.json: cannot be read: No such file.*--by json=.* takes a file"):
        JsonScorer(str(tmp_path / "none.json"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"$ref": "other.json"}, "'other.json' is not in the file"),
        ({"$ref": "http://127.0.0.1:9/s.json"}, "is not in the file"),
        ({"$ref": "#"}, "the schema refers to itself"),
    ],
    ids=["file", "address", "circle"],
)
def test_a_schema_that_cannot_be_followed_is_one_line(schema, content, message):
    with pytest.raises(UserError, match=message) as caught:
        score(JsonScorer(schema(content)), '"text"')
    assert "--by json=" in str(caught.value)


def test_an_edited_schema_is_another_judge(schema):
    one, two = (JsonScorer(schema(content)).identity for content in (SCHEMA, {"type": "array"}))
    assert one.name == two.name and one.digest != two.digest
    assert one.text == "valid JSON by answer.schema.json"
