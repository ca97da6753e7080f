"""Ratings to the files of other tools and back: the documented shapes, and nothing lost but what is named."""

import json
import re
from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from alignment.errors import UserError
from alignment.labeling.formats.table import FORMATS, recognised
from alignment.labeling.import_export import export_file, import_file
from alignment.ratings import Completion, RatingsStore
from alignment.ratings.questionnaire import Attribute, Questionnaire

TOOLS = ("argilla", "label-studio")
OTHERWISE = ("comments", "rewrites", "comments on single answers", "rankings, of which the pairs stay")
SHAPES = (*TOOLS, "trl", "trl-unpaired", "openai", "helpsteer")
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Yes?"},
    {"role": "user", "content": 'Say "x"\n\u202eRTL \U0001f389'},
]
QUESTION = [{"role": "user", "content": "Why?"}]
ASKED = Questionnaire(
    attributes=(
        Attribute(name="helpful", ask="Which answer helps more?", scale="pair"),
        Attribute(name="clear", ask="How clear is it?"),
    ),
    tags={"l": "too long", "w": "wrong facts"},
    rewrite=True,
    comments=True,
    spans=("rude", "off topic"),
)
FULL = {
    "attributes": {"helpful": -2, "clear": [7, 3]},
    "tags": ["too long", "wrong facts"],
    "rewrites": [None, 'Better "so"\nB'],
    "comments": ["fine", '{"a": 1}'],
    "spans": [[[0, 2, "rude"], [3, 5, "off topic"]], []],
}


def open_store(path):
    return RatingsStore(path, create=True)


def pair(store, prompt=CHAT, texts=("Hello there", '{"a": [1]}'), **more):
    return store.add_item(prompt, [Completion(text) for text in texts], **more)


def everything(store):
    """A pair with all kinds of answers, a ranking and a single answer."""
    store.settings.ask(ASKED)
    item = pair(store)
    store.import_rating(
        item, "ada", "first", strength=2, comment="a\nb", flags=["both_bad"], seconds=2.5, questions=1, answers=FULL
    )
    store.import_rating(item, "bob", "tie", answers={"attributes": {"helpful": 0, "clear": [1, 1]}}, questions=1)
    store.import_rating(item, "cy", "skip")
    store.import_rating(item, "dee", "second")
    ranking = pair(store, QUESTION, ("A", "B", "C"), kind="rank")
    store.import_rating(ranking, "ada", "ranked", ranks=[2, 1, 2], comment="B is best", answers={"tags": ["too long"]})
    single = pair(store, QUESTION, ("S",), kind="single")
    store.import_rating(single, "bob", "scored", score=6, answers={"attributes": {"clear": [4]}}, questions=1)


def votes_of(store, hashed):
    """What was voted, apart from whose numbers and dates it has."""
    items = {item.id: item for item in store.items()}
    return [
        (
            [dict(turn) for turn in items[vote.item].prompt],
            [each.text for each in items[vote.item].completions],
            hashed(vote.labeler),
            (vote.choice, vote.strength, vote.ranks, vote.score, vote.comment, vote.flags, vote.answers),
        )
        for vote in store.ratings()
    ]


def exported(store, format, path):
    result = export_file(store, format, path)
    return result, [json.loads(line) for line in path.read_text().split("\n")[:-1]]


def lost(result):
    words = result.get("not_in_this_format", "").removesuffix("; --format jsonl keeps them")
    return {what: int(count) for what, count in re.findall(r"(?:^|, )(.+?) \((\d+)\)", words)}


# --- there and back ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", SHAPES)
def test_export_import_export_is_the_same_file(tmp_path, format):
    with open_store(tmp_path / "1.db") as store:
        everything(store)
        _, rows = exported(store, format, tmp_path / "1.jsonl")
    assert recognised(rows[0]) == format
    with open_store(tmp_path / "2.db") as store:
        result = import_file(store, "auto", tmp_path / "1.jsonl")
        again = import_file(store, "auto", tmp_path / "1.jsonl")
        exported(store, format, tmp_path / "2.jsonl")
    assert (result["format"], result["bad"], result["passed_over"]) == (format, {}, {})
    assert (again["new_items"], again["new_ratings"]) == (0, 0)
    assert (tmp_path / "1.jsonl").read_text() == (tmp_path / "2.jsonl").read_text()


@pytest.mark.parametrize("format", TOOLS)
@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
def test_tools_bring_back_every_kind_of_answer(tmp_path, format, suffix):
    path = tmp_path / f"export{suffix}"
    with open_store(tmp_path / "1.db") as store:
        everything(store)
        result = export_file(store, format, path)
        before = votes_of(store, store.people.labeler_hash)
    with open_store(tmp_path / "2.db") as store:
        import_file(store, "auto", path)
        assert votes_of(store, str) == before
        asked = store.settings.questionnaire(1)
        assert {vote.questions for vote in store.ratings() if vote.answers} == {1}
    assert [(each.name, each.scale) for each in asked.attributes] == [("helpful", "pair"), ("clear", "1-7")]
    assert set(asked.tags.values()) == set(ASKED.tags.values())
    assert (asked.rewrite, asked.comments, set(asked.spans)) == (True, True, {"rude", "off topic"})
    assert result["left_out"] == {"skips": 1}
    seconds = {"seconds taken": 1} if format == "argilla" else {}
    names = {"names of labelers": 3, "versions of the guideline and of the questions' words": 1}
    assert lost(result) == seconds | {"dates": 5} | names


def test_what_is_lost_is_counted(tmp_path):
    with open_store(tmp_path / "r.db") as store:
        everything(store)
        store.settings.guideline = "Be kind."
        item = store.add_item(
            QUESTION,
            [Completion("x", ended=False, model="m@v1", tokens=3), Completion("y", model="n@v1")],
            3,
            {"topic": "tea"},
        )
        store.import_rating(item, "eve", "second", order_shown=[1, 0], view="raw")
        result, _ = exported(store, "openai", tmp_path / "r.jsonl")
    assert result["left_out"] == {"skips": 1, "ties": 2, "scores of one answer": 1}
    assert lost(result) == {
        "rankings, of which the pairs stay": 1,
        "labelers of votes": 4,
        "degrees of preference": 1,
        "comments": 2,
        "flags": 1,
        "seconds taken": 1,
        "orders shown": 1,
        "views": 1,
        "dates": 4,
        "answers on attributes": 2,
        "tags": 3,
        "rewrites": 1,
        "comments on single answers": 2,
        "spans": 2,
        "wanted numbers of votes": 1,
        "metadata of items": 1,
        "models of answers": 2,
        "marks of answers that hit the length limit": 1,
        "token counts": 1,
        "versions of the guideline and of the questions' words": 2,
    }


def test_nothing_lost_has_no_line_and_no_file_names_a_labeler_or_a_model(tmp_path):
    with open_store(tmp_path / "r.db") as store:
        everything(store)
        item = store.add_item(QUESTION, [Completion("x", model="secret@v1"), Completion("y", model="secret@v2")])
        store.import_rating(item, "ada lovelace", "first")
        for format in SHAPES:
            export_file(store, format, tmp_path / f"{format}.jsonl")
            text = (tmp_path / f"{format}.jsonl").read_text()
            assert "lovelace" not in text and "secret" not in text, format
        assert "not_in_this_format" not in export_file(store, "jsonl", tmp_path / "own.jsonl")


def test_a_vote_that_the_file_would_turn_into_another_is_left_out(tmp_path):
    with open_store(tmp_path / "r.db") as store:
        for texts in (("same", "same"), ("", "x"), ("fine", "good")):
            store.import_rating(pair(store, QUESTION, texts), "ada", "first")
        result, rows = exported(store, "trl", tmp_path / "r.jsonl")
    assert [row["chosen"][0]["content"] for row in rows] == ["fine"]
    assert result["rows"] == 1 and sum(result["left_out"].values()) == 2
    assert all(reason.startswith("rows that would not come back (") for reason in result["left_out"])


def test_a_verdict_stands_for_the_votes_and_controls_stay_out(tmp_path):
    with open_store(tmp_path / "r.db") as store:
        item = pair(store, QUESTION, ("x", "y"))
        store.import_rating(item, "ada", "first")
        store.import_rating(item, "bob", "second")
        store.import_rating(item, "rita", "second", why="verdict", order_shown=[0, 1])
        store.import_rating(item, "ada", "first", why="repeat", order_shown=[1, 0])
        result, rows = exported(store, "argilla", tmp_path / "r.jsonl")
    assert [each["value"] for each in rows[0]["responses"]["preference"]] == ["response_b is better"]
    assert result["left_out"] == {
        "votes in whose place a verdict stands": 2,
        "answers to control items and repeats": 1,
    }
    assert lost(result)["marks of verdicts"] == 1


TEXT = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12) | st.sampled_from(
    [
        '"',
        "tie",
        "response_a",
        "both bad",
        "skip",
        "\x00",
        "\u202eabc",
        "\U0001f389",
        "[1]",
        '{"text": "t"}',
        "a\r\nb",
        "1",
    ]
)


@st.composite
def answered(draw, size):
    """Answers to the questions, on answers of two characters or more."""
    both = st.lists(st.integers(1, 7), min_size=size, max_size=size)
    texts = st.lists(st.none() | TEXT, min_size=size, max_size=size)
    found = {"attributes": {"clear": draw(both)}, "tags": draw(st.sets(st.sampled_from(["too long", "wrong facts"])))}
    found = {key: list(value) if key == "tags" else value for key, value in found.items()}
    if size == 2:
        found["attributes"]["helpful"] = draw(st.integers(-3, 3))
    for key in ("rewrites", "comments"):
        found |= {key: each} if any(each := draw(texts)) else {}
    return found


@st.composite
def voted(draw):
    kind = draw(st.sampled_from(["pair", "rank", "single"]))
    size = {"pair": 2, "rank": draw(st.integers(2, 4)), "single": 1}[kind]
    texts = draw(st.lists(TEXT, min_size=size, max_size=size, unique=True))
    prompt = [{"role": "system", "content": draw(TEXT)}] * draw(st.integers(0, 1))
    prompt += [{"role": "user", "content": draw(TEXT)}, {"role": "assistant", "content": draw(TEXT)}] * draw(
        st.integers(0, 1)
    )
    prompt += [{"role": "user", "content": draw(TEXT)}]
    said = {"comment": draw(st.just("") | TEXT), "answers": draw(st.none() | answered(size))}
    if kind == "pair":
        choice = draw(st.sampled_from(["first", "second", "tie", "skip"]))
        said |= {"strength": draw(st.none() | st.integers(1, 3))} if choice in ("first", "second") else {}
    elif kind == "rank":
        choice, said["ranks"] = "ranked", draw(st.lists(st.integers(1, 3), min_size=size, max_size=size))
    else:
        choice, said["score"] = "scored", draw(st.integers(1, 7))
    if choice == "skip":
        said = {}
    return kind, prompt, texts, choice, said


@given(st.lists(voted(), min_size=1, max_size=4), st.sampled_from(SHAPES))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_texts_come_back_or_are_counted(tmp_path_factory, votes, format):
    folder = tmp_path_factory.mktemp("any")
    with open_store(folder / "1.db") as store:
        for kind, prompt, texts, choice, said in votes:
            try:
                item = pair(store, prompt, texts, kind=kind)
                store.import_rating(item, "ada", choice, **said)
            except UserError:
                continue  # another vote of ada's on the same item
        single = store.add_item(QUESTION, [Completion("S")], kind="single")
        store.import_rating(single, "zoe", "scored", score=7)
        store.import_rating(pair(store, QUESTION, ("x", "y")), "zoe", "first")  # each format has something to write
        before = votes_of(store, store.people.labeler_hash)
        result, _ = exported(store, format, folder / "1.jsonl")
    with open_store(folder / "2.db") as store:
        back = import_file(store, "auto" if format in TOOLS else format, folder / "1.jsonl")
        exported(store, format, folder / "2.jsonl")
        after = votes_of(store, str)
    assert not back["bad"] and back["rows"] == result["rows"]
    assert without_numbers(folder / "1.jsonl") == without_numbers(folder / "2.jsonl")
    if format in TOOLS:
        missing = Counter(map(repr, before)) - Counter(map(repr, after))
        counted = sum(count for reason, count in result["left_out"].items() if "come back" in reason)
        other = sum(lost(result).get(what, 0) for what in OTHERWISE)
        assert len(missing) <= counted + other
        assert len(after) == len(before) - counted
    else:
        assert {text for _, texts, *_ in after for text in texts} <= {text for _, texts, *_ in before for text in texts}


def without_numbers(path):
    rows = [json.loads(line) for line in path.read_text().split("\n")[:-1]]
    return [{key: value for key, value in row.items() if key != "id"} for row in rows]


# --- the documented shapes -----------------------------------------------------------------------------------------


def one_vote(store):
    item = pair(store, QUESTION, ("No", "Yes"))
    store.import_rating(
        item, "0123456789abcdef", "second", strength=3, comment="c", seconds=4.0,
        answers={
            "attributes": {"clear": [2, 6]}, "tags": ["too long"],
            "comments": [None, "ok"], "spans": [[[0, 1, "rude"]], []],
        },
    )  # fmt: skip


def shape(tmp_path, format):
    with open_store(tmp_path / "r.db") as store:
        one_vote(store)
        return exported(store, format, tmp_path / "r.jsonl")[1]


def test_a_record_of_argilla(tmp_path):
    by = {"user_id": "0123456789abcdef"}
    assert shape(tmp_path, "argilla") == [
        {
            "id": "1",
            "status": "completed",
            "fields": {"prompt": QUESTION, "response_a": "No", "response_b": "Yes"},
            "metadata": {},
            "suggestions": {},
            "responses": {
                "preference": [{"value": "response_b is much better"} | by],
                "comment": [{"value": "c"} | by],
                "tags": [{"value": ["too long"]} | by],
                "attribute_clear_response_a": [{"value": 2} | by],
                "attribute_clear_response_b": [{"value": 6} | by],
                "comment_response_b": [{"value": "ok"} | by],
                "spans_response_a": [{"value": [{"start": 0, "end": 1, "label": "rude"}]} | by],
            },
            "vectors": {},
        }
    ]


def test_a_task_of_label_studio(tmp_path):
    def part(name, at, type, value):
        return {"from_name": name, "to_name": at, "type": type, "value": value}

    assert shape(tmp_path, "label-studio") == [
        {
            "id": 1,
            "data": {"prompt": QUESTION, "response_a": "No", "response_b": "Yes"},
            "annotations": [
                {
                    "completed_by": {"id": 1, "username": "0123456789abcdef"},
                    "was_cancelled": False,
                    "lead_time": 4.0,
                    "result": [
                        part("preference", "prompt", "choices", {"choices": ["response_b is much better"]}),
                        part("comment", "prompt", "textarea", {"text": ["c"]}),
                        part("tags", "prompt", "choices", {"choices": ["too long"]}),
                        part("attribute_clear_response_a", "response_a", "rating", {"rating": 2}),
                        part("attribute_clear_response_b", "response_b", "rating", {"rating": 6}),
                        part("comment_response_b", "response_b", "textarea", {"text": ["ok"]}),
                        part(
                            "spans_response_a",
                            "response_a",
                            "labels",
                            {"start": 0, "end": 1, "text": "N", "labels": ["rude"]},
                        ),
                    ],
                }
            ],
        }
    ]


def test_a_row_of_openais_preference_file(tmp_path):
    assert shape(tmp_path, "openai") == [
        {
            "input": {"messages": QUESTION, "tools": [], "parallel_tool_calls": True},
            "preferred_output": [{"role": "assistant", "content": "Yes"}],
            "non_preferred_output": [{"role": "assistant", "content": "No"}],
        }
    ]


def test_a_pair_of_helpsteer_3_and_a_score_of_helpsteer_2(tmp_path):
    vote = {"score": 3, "reasoning": "c", "feedback1": None, "feedback2": "ok"}
    assert shape(tmp_path, "helpsteer") == [
        {
            "context": QUESTION,
            "response1": "No",
            "response2": "Yes",
            "overall_preference": 3,
            "individual_preference": [vote],
        }
    ]
    row = {"prompt": "q", "response": "r", "helpfulness": 3, "correctness": 4, "coherence": 2, "complexity": 1}
    row |= {"verbosity": 0}
    (tmp_path / "in.jsonl").write_text(json.dumps(row) + "\n")
    with open_store(tmp_path / "2.db") as store:
        result = import_file(store, "auto", tmp_path / "in.jsonl")
        attributes = {"correctness": [7], "coherence": [4], "complexity": [3], "verbosity": [1]}
        assert store.ratings()[0].answers == {"attributes": attributes}
        assert "questions were made of the answers: correctness (1-7), coherence (1-7)" in result["notes"][0]
        again, rows = exported(store, "helpsteer", tmp_path / "out.jsonl")
    assert rows == [row]
    assert lost(again) == {
        "dates": 1,
        "versions of the guideline and of the questions' words": 1,
        "labelers of votes": 1,
    }


def test_trl_reads_its_files(tmp_path):
    data_utils = pytest.importorskip("trl.data_utils")
    with open_store(tmp_path / "r.db") as store:
        everything(store)
        _, pairs = exported(store, "trl", tmp_path / "pairs.jsonl")
        _, unpaired = exported(store, "trl-unpaired", tmp_path / "unpaired.jsonl")
    from datasets import Dataset

    for rows in (pairs, unpaired):
        assert all(data_utils.is_conversational(row) for row in rows)
    named = {"prompt", "chosen", "rejected"}
    told = data_utils.unpair_preference_dataset(Dataset.from_list([{key: row[key] for key in named} for row in pairs]))
    assert set(told.column_names) == {"prompt", "completion", "label"} == set(unpaired[0]) - {"labeler"}
    assert told["label"] == [True] * len(pairs) + [False] * len(pairs)
    assert pairs[0]["prompt"] == CHAT and unpaired == [
        {
            "prompt": QUESTION,
            "completion": [{"role": "assistant", "content": "S"}],
            "label": True,
            "labeler": unpaired[0]["labeler"],
        }
    ]


# --- questions of the file and of the database -----------------------------------------------------------------------


@pytest.mark.parametrize("format", TOOLS)
def test_questions_that_are_there_are_kept_or_the_file_is_refused(tmp_path, format):
    path = tmp_path / "r.jsonl"
    with open_store(tmp_path / "1.db") as store:
        everything(store)
        exported(store, format, path)
    with open_store(tmp_path / "2.db") as store:
        store.settings.ask(ASKED)
        import_file(store, "auto", path)
        assert [each.version for each in store.settings.wordings("questions")] == [1]
        assert store.settings.questionnaire(1) == ASKED
        assert {vote.questions for vote in store.ratings() if vote.answers} == {1}
    for asked, missing in (
        (ASKED.model_copy(update={"attributes": ASKED.attributes[:1]}), "the attribute 'clear'"),
        (ASKED.model_copy(update={"tags": {"l": "too long"}}), "the tag 'wrong facts'"),
        (ASKED.model_copy(update={"spans": ("rude",)}), "the kind of span 'off topic'"),
        (ASKED.model_copy(update={"rewrite": False}), "rewritten answers"),
    ):
        with open_store(tmp_path / f"{missing[:12]}.db") as store:
            store.settings.ask(asked)
            with pytest.raises(UserError, match=f"found {missing} .*in the file to import, which the questions here"):
                import_file(store, "auto", path)
            assert not store.items() and not store.ratings()


def test_answers_that_no_questions_can_hold_are_kept_with_a_note(tmp_path):
    rows = [
        {
            "id": str(place),
            "fields": {"prompt": f"q{place}", "response_a": "x", "response_b": "y"},
            "responses": {
                "preference": [{"value": "response_a", "user_id": "u"}],
                "tags": [{"value": [f"tag {place}"], "user_id": "u"}],
            },
        }
        for place in range(15)
    ]
    (tmp_path / "in.json").write_text(json.dumps(rows))
    with open_store(tmp_path / "r.db") as store:
        result = import_file(store, "auto", tmp_path / "in.json")
        assert [vote.answers["tags"] for vote in store.ratings()] == [[f"tag {place}"] for place in range(15)]
        assert {vote.questions for vote in store.ratings()} == {None}
    assert result["notes"] == [
        "the answers to questions are kept without a version of the questions: 15 tags, and at most 14 can be asked for"
    ]


def test_peoples_own_questions_beside_a_choice_are_attributes(tmp_path):
    fields = {"prompt": "q", "response-1": "right", "response-2": "wrong"}
    said = {
        "overall": "response-2",
        "Style!": "response-1",
        "style": "response-2",
        "clarity-response-1": 5,
        "clarity-response-2": 2,
        "depth-response-1": 3,
        "length-response-1": 9,
        "mood": "blue",
    }
    responses = {name: [{"value": value, "user_id": "u"}] for name, value in said.items()}
    (tmp_path / "in.json").write_text(json.dumps([{"id": "1", "fields": fields, "responses": responses}]))
    with open_store(tmp_path / "r.db") as store:
        result = import_file(store, "auto", tmp_path / "in.json")
        (vote,) = store.ratings()
    assert (vote.choice, vote.answers) == ("second", {"attributes": {"style": 2, "clarity": [5, 2]}})
    assert result["passed_over"] == {
        "a second answer to 'style', which 'style' is as a name of a question": 1,
        "a number for 'depth' at some of the answers alone": 1,
        "a number for 'length-response-1' that is not a whole number from 1 to 7": 1,
        "an answer to 'mood', which is no choice between two answers": 1,
    }


def test_every_written_format_says_what_it_has_no_room_for():
    assert set(SHAPES) < {name for name, format in FORMATS.items() if format.write and format.export_drops}
