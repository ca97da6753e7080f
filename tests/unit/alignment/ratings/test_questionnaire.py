"""What is asked of labelers beside the choice: the YAML file, its versions, and the answers in the store."""

from pathlib import Path
from typing import Any

import pytest

from alignment.errors import UserError
from alignment.labeling.import_export import import_file
from alignment.ratings import Assignment, RatingsStore
from alignment.ratings.questionnaire import TAG_KEYS, Attribute, Questionnaire, as_seen, as_stored, read_questionnaire

HELPS = Attribute(name="helps", ask="Which helps more?", scale="pair")
TRUE = Attribute(name="true", ask="Is it true?")
ASKED = Questionnaire(attributes=(HELPS, TRUE), tags={"w": "wrong facts", "l": "too long"})
QUESTION = [{"role": "user", "content": "q"}]


@pytest.fixture
def store(tmp_path: Path):
    with RatingsStore(tmp_path / "ratings.db", create=True) as store:
        store.settings.repeat_share = 0.0
        yield store


def claimed(store: RatingsStore, labeler: str = "ada") -> Assignment:
    assignment = store.claim(labeler)
    assert assignment is not None
    return assignment


def test_a_file_is_read_in_the_order_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "questions.yaml"
    path.write_text(
        "attributes:\n  - name: helps\n    ask: Which helps more?\n    scale: pair\n"
        "  - name: true_\n    ask: |\n      Is it\n      true?\noverall: Which, all in all?\n"
        "tags: {w: wrong facts, l: too long}\n"
    )
    read = read_questionnaire(path)
    assert [(each.name, each.ask, each.scale) for each in read.attributes] == [
        ("helps", "Which helps more?", "pair"),
        ("true_", "Is it true?", "1-7"),  # two lines would break the screen
    ]
    assert (read.overall, list(read.tags)) == ("Which, all in all?", ["w", "l"])
    assert [each.name for each in read.of_kind("rank")] == ["true_"]
    path.write_text("")
    assert read_questionnaire(path) == Questionnaire()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("atributes: []", "unknown key 'atributes'; did you mean 'attributes'?"),
        (
            "attributes:\n  - name: a\n    ask: b\n    scal: pair",
            "unknown key 'attributes.0.scal'; did you mean 'attrib",
        ),
        ("attributes:\n  - name: a\n    ask: b\n    scale: 1-5", "attributes.0.scale: .*'pair' or '1-7', found '1-5'"),
        ("attributes:\n  - name: a", "attributes.0: expected `name: helpful` and `ask: .*`, found {'name': 'a'}"),
        ("attributes:\n  - {name: A b, ask: c}", "name 'A b': expected at most 32 of a-z"),
        ("attributes:\n  - {name: a, ask: c}\n  - {name: a, ask: d}", "two attributes have the name a"),
        ("attributes:\n  - {name: a, ask: ' '}", "attributes.0.ask: expected words, found nothing"),
        ("tags: {s: slow}", f"the key 's' cannot be had; use one of {' '.join(TAG_KEYS)}"),
        ("tags: {w: wrong, l: wrong}", "two tags have the words 'wrong'"),
        ("tags: {1: wrong}", "tags"),
        ("- a", "expected `key: value` lines, found a list"),
        ("tags: {w: a, w: b}", "key 'w' stands twice"),
    ],
)
def test_mistakes_in_the_file_are_named(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "questions.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=reason) as caught:
        read_questionnaire(path)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no.yaml: no such file; name a YAML file of questions"):
        read_questionnaire(tmp_path / "no.yaml")


def test_a_rating_keeps_the_version_that_it_was_given_under(store: RatingsStore) -> None:
    for number in range(4):
        store.add_item([{"role": "user", "content": f"q{number}"}], [{"text": "a"}, {"text": "b"}])
    shown_before = claimed(store, "bob")
    versions = []
    for asked in (ASKED, ASKED, Questionnaire(), Questionnaire(tags={"w": "wrong"})):
        store.settings.ask(asked)
        versions.append(len(store.settings.wordings("questions")))
    assert versions == [1, 1, 2, 3]
    assert store.settings.questionnaire(1) == ASKED and store.settings.questionnaire(2) == Questionnaire()
    store.submit(shown_before, "left", 1.0)  # nothing was asked when it was shown
    given = claimed(store)
    store.submit(given, "left", 1.0, answers={"tags": ["wrong"]})
    assert [(rating.questions, rating.answers) for rating in store.ratings()] == [
        (None, None),
        (3, {"tags": ["wrong"]}),
    ]


@pytest.mark.parametrize(
    ("answers", "reason"),
    [
        ({}, "answers to no attribute: expected helps, true"),
        ({"attributes": {"helps": 1}}, "answers to helps: expected helps, true"),
        ({"attributes": {"helps": [1, 1], "true": [1, 1]}}, "helps is .* on the scale pair"),
        ({"attributes": {"helps": 1, "true": 2}}, "true is 2: expected an answer on the scale 1-7"),
        (
            {"attributes": {"helps": 1, "true": [1, 2]}, "tags": ["no"]},
            "tag 'no': expected one of wrong facts, too long",
        ),
    ],
)
def test_an_answer_that_does_not_fit_what_was_asked_is_refused(
    store: RatingsStore, answers: dict[str, Any], reason: str
) -> None:
    store.add_item(QUESTION, [{"text": "a"}, {"text": "b"}])
    store.settings.ask(ASKED)
    with pytest.raises(UserError, match=reason):
        store.submit(claimed(store), "left", 1.0, answers=answers)
    assert store.ratings() == []
    store.submit(claimed(store), "skip", 1.0)  # who skips answers nothing
    assert [rating.answers for rating in store.ratings(skips=True)] == [None]


def test_answers_are_stored_by_completion_whatever_the_sides(store: RatingsStore) -> None:
    for number in range(12):
        store.add_item([{"role": "user", "content": f"q{number}"}], [{"text": "good"}, {"text": "bad"}])
    store.settings.ask(ASKED)
    sides = set()
    for _ in range(12):
        assignment = claimed(store)
        good = assignment.completions.index("good")
        sides.add(good)
        seen = {
            "attributes": {"helps": 3 if good == 0 else -3, "true": [7, 1] if good == 0 else [1, 7]},
            "tags": ["too long"],
        }
        store.submit(assignment, "left", 1.0, answers=seen)
        rating = store.last_rating("ada")
        assert rating is not None
        assert rating.answers == {"attributes": {"helps": 3, "true": [7, 1]}, "tags": ["too long"]}
        assert as_seen(rating.answers, assignment.order_shown) == seen
    assert sides == {0, 1}
    assert store.undo("ada") is not None
    assert claimed(store).questions == 1 and len(store.ratings()) == 11


def test_a_ranking_of_three_comes_back_in_the_order_shown() -> None:
    order = (2, 0, 1)  # the third completion was shown first
    stored = as_stored({"attributes": {"true": [7, 5, 3]}, "tags": []}, order)
    assert stored == {"attributes": {"true": [5, 3, 7]}}
    assert as_seen(stored, order) == {"attributes": {"true": [7, 5, 3]}}
    assert as_stored({"attributes": {}, "tags": []}, order) is None


def test_other_answers_to_the_questions_are_other_data(store: RatingsStore) -> None:
    """Attributes are trained on, so two files that differ in them alone have other digests."""
    item = store.add_item(QUESTION, [{"text": "a"}, {"text": "b"}])
    digests = {store.fingerprint()["sha256"]}
    for labeler, answers in (
        ("ada", None),
        ("bob", {"attributes": {"helps": 1}}),
        ("cyd", {"attributes": {"helps": 2}}),
    ):
        store.people.forget("ada" if labeler != "ada" else "nobody")
        store.people.forget("bob")
        assert store.import_rating(item, labeler, "first", answers=answers)
        digests.add(store.fingerprint()["sha256"])
        assert not store.import_rating(item, labeler, "first", answers=answers)
        with pytest.raises(UserError, match="answered item 1 already, and otherwise"):
            store.import_rating(item, labeler, "first", answers={"attributes": {"helps": -3}})
    assert len(digests) == 4


def test_the_example_of_the_guide_is_a_questionnaire(tmp_path: Path) -> None:
    guide = (Path(__file__).resolve().parents[4] / "docs" / "guides" / "rating.md").read_text(encoding="utf-8")
    section = guide.partition("### Questions")[2].partition("\n## ")[0]
    path = tmp_path / "questions.yaml"
    path.write_text(section.partition("```yaml\n")[2].partition("```")[0])
    read = read_questionnaire(path)
    assert [(each.name, each.scale) for each in read.attributes] == [("helpful", "pair"), ("harmless", "1-7")]
    assert read.tags["w"] == "wrong facts" and read.rewrite and read.comments and read.overall
    said = section.partition("Free letters are ")[2].partition(" |")[0]
    assert said.replace(" and ", ", ").split(", ") == list(TAG_KEYS)
    assert set(Questionnaire.model_fields) == {
        row.split("`")[1] for row in section.splitlines() if row.startswith("| `")
    }


def test_the_line_of_the_guide_is_read(tmp_path: Path) -> None:
    guide = Path(__file__).resolve().parents[4] / "docs" / "guides" / "ratings-quality.md"
    line = guide.read_text(encoding="utf-8").partition("```json\n")[2].partition("```")[0]
    path = tmp_path / "ratings.jsonl"
    path.write_text(" ".join(line.split()))
    with RatingsStore(tmp_path / "new.db", create=True) as store:
        assert import_file(store, "jsonl", path)["new_ratings"] == 1
        assert store.settings.guideline == "Be kind."
        rating = store.ratings()[0]
        assert rating.answers is not None and rating.answers["attributes"] == {"helpful": 2, "harmless": [7, 3]}
