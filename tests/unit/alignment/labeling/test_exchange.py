"""Ratings into files and back: nothing lost in our own format, and in others what they say, in numbers."""

import io
import json
import os
import random
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from alignment.data.openassistant import tree_rankings
from alignment.data.parsing import to_comparisons
from alignment.data.row_files import BadRow, read_rows
from alignment.errors import UserError
from alignment.labeling.formats.table import FORMATS, WRITTEN
from alignment.labeling.import_export import export_file, forget, import_file, show_forgotten
from alignment.ratings import Completion, Gold, RatingsStore
from alignment.ratings.questionnaire import Attribute, Questionnaire
from alignment.registry import Registry

SHARED = Path(os.environ.get("ALIGNMENT_TEST_DATA") or Path(__file__).resolve().parents[5] / "shared" / "data")
PUBLISHED = {
    "pandalm": "pandalm/testset-v1.json",
    "qa-feedback": "qa-feedback/feedback.json",
    "hh": "hh-harmless/pairs.jsonl.gz",
    "oasst": "oasst/trees.jsonl",
}


def published(format):
    path = SHARED / PUBLISHED[format]
    if not path.exists():
        pytest.skip(f"no {PUBLISHED[format]}; name the folder of published data in ALIGNMENT_TEST_DATA")
    return path


GOOD = {
    "kind": "pair",
    "prompt": [{"role": "user", "content": "q"}],
    "completions": [{"text": "a"}, {"text": "b"}],
    "ratings": [{"labeler": "ann", "choice": "first", "strength": 2}],
}


@pytest.fixture
def store(tmp_path):
    with RatingsStore(tmp_path / "ratings.db", create=True) as store:
        yield store


def question(text):
    return [{"role": "user", "content": text}]


def rows_of(path):
    return [row for _, row in read_rows(path)]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


# --- our own format: nothing is lost ---------------------------------------------------------------------------------


def content(store):
    """All items and ratings, free of the numbers and times that a file of its own gives them."""
    items = store.items()
    keys = {item.id: item.key for item in items}
    ratings = [
        (
            keys[r.item], r.labeler, r.kind, r.order_shown, r.choice, r.strength, r.ranks, r.score, r.seconds,
            r.comment, r.flags, r.claimed_at, r.done_at, r.why, r.view, r.answers, r.guideline, r.questions,
        )
        for r in store.ratings(skips=True)
    ]  # fmt: skip
    told = [(i.key, i.kind, i.prompt, i.completions, i.need, i.metadata, i.gold) for i in items]
    wordings = [store.settings.wordings(kind) for kind in ("guideline", "questions")]
    return told, sorted(ratings, key=repr), store.people.simulated(), wordings if items else []


texts = st.text(max_size=12) | st.sampled_from(
    ["\ud800", "\x1b]52;c;x\x07", "\u2028\u202e", "\n\nHuman: a", "<script>"]
)


ASKED = [
    Questionnaire(),
    Questionnaire(
        attributes=(Attribute(name="helps", ask="Which?", scale="pair"), Attribute(name="true", ask="Is it?")),
        tags={"w": "wrong", "l": "too long"},
        rewrite=True,
        comments=True,
        spans=("wrong",),
    ),
    Questionnaire(tags={"l": "too long"}),
]


def random_answers(store, assignment, rng):
    """Answers to whatever is asked of an item."""
    asked = store.settings.questionnaire(assignment.questions)
    attributes = {
        each.name: rng.randrange(-3, 4)
        if each.scale == "pair"
        else [rng.randrange(1, 8) for _ in assignment.completions]
        for each in asked.attributes
        if each.scale == "1-7" or assignment.kind == "pair"
    }
    answers = {"attributes": attributes, "tags": [tag for tag in asked.tags.values() if rng.random() < 0.5]}
    if asked.rewrite:
        for key in ("rewrites", "comments"):
            answers[key] = [rng.choice([None, "new", "\ud800\r\n\x1b"]) for _ in assignment.completions]
        answers["spans"] = [[[0, len(text), "wrong"]] if text else [] for text in assignment.completions]
    return answers


def random_store(path, rng, words):
    """A store that labelers worked on: every kind of item, controls, skips, repeats, undo, and imported answers."""
    store = RatingsStore(path, create=True, seed=rng.randrange(100))
    store.settings.gold_share, store.settings.repeat_share = 0.2, 0.4
    store.settings.calibration = rng.randrange(2)
    for number in range(rng.randrange(1, 8)):
        kind, sizes = rng.choice([("pair", [2]), ("rank", [2, 3, 9]), ("single", [1])])
        size = rng.choice(sizes)
        completions = [
            Completion(rng.choice(words), rng.random() < 0.5, rng.choice([None, "sft@v1"]), rng.choice([None, 7]))
            for _ in range(size)
        ]
        gold = {
            "pair": Gold(choice="first", reason=rng.choice(words)),
            "rank": Gold(ranks=tuple(rng.randrange(1, size + 1) for _ in range(size))),
            "single": Gold(score=3),
        }[kind]
        prompt = [{"role": "system", "content": rng.choice(words)}, *question(rng.choice(words))][rng.randrange(2) :]
        for copy in range(rng.choice([1, 1, 2])):
            store.add_item(
                prompt,
                completions,
                rng.randrange(1, 4),
                {"n": number, "w": rng.choice(words)},
                kind,
                gold if rng.random() < 0.3 else None,
                copy,
            )
    for _ in range(rng.randrange(25)):
        if rng.random() < 0.2:
            store.settings.guideline = rng.choice(words)
        if rng.random() < 0.2:
            store.settings.ask(rng.choice(ASKED))
        assignment = store.claim(rng.choice(["ann", "bob", "cyd"]))
        if assignment is None:
            continue
        size = len(assignment.completions)
        more = {"comment": rng.choice(words), "flags": rng.choice([(), ("flagged",), ("both_bad", "flagged")])}
        more |= {"view": rng.choice([None, "raw", "rendered"]), "answers": random_answers(store, assignment, rng)}
        seconds = rng.random() * 100
        if rng.random() < 0.1:
            store.submit(assignment, "skip", seconds, **more)
        elif assignment.kind == "pair":
            choice = rng.choice(["left", "right", "tie"])
            strength = None if choice == "tie" else rng.choice([None, 1, 2, 3])
            store.submit(assignment, choice, seconds, strength, **more)
        elif assignment.kind == "rank":
            ranks = [rng.randrange(1, size + 1) for _ in range(size)]
            store.submit(assignment, "ranked", seconds, ranks_shown=ranks, **more)
        else:
            store.submit(assignment, "scored", seconds, score=rng.randrange(1, 8), **more)
        if rng.random() < 0.1:
            store.undo(assignment.labeler)
    for item in store.items():
        if item.kind == "pair" and rng.random() < 0.3:
            store.import_rating(item.id, "far away", rng.choice(["first", "second", "tie"]))
    if rng.random() < 0.5:
        store.people.mark_simulated("bob")
    return store


@given(st.integers(0, 2**32), st.lists(texts, min_size=2, max_size=6))
@settings(max_examples=25, deadline=None)
def test_export_then_import_into_a_fresh_store_loses_nothing(tmp_path_factory, seed, words):
    folder = tmp_path_factory.mktemp("round")
    with random_store(folder / "a.db", random.Random(seed), words) as store:
        before = content(store)
        done = export_file(store, "jsonl", folder / "out.jsonl")
    assert done["left_out"] == {}
    assert done["rows"] == len(before[0])
    assert done["ratings"] == len(before[1])
    with RatingsStore(folder / "b.db", create=True) as other:
        read = import_file(other, "jsonl", folder / "out.jsonl")
        after = content(other)
        assert (after[:2], after[3]) == (before[:2], before[3])
        assert after[2] == before[2] & {rating[1] for rating in before[1]}
        assert (read["new_items"], read["new_ratings"], read["bad"]) == (len(before[0]), len(before[1]), {})
        again = import_file(other, "jsonl", folder / "out.jsonl")
        assert (again["new_items"], again["new_ratings"], again["ratings"]) == (0, 0, len(before[1]))
        assert content(other) == after


def test_versions_of_a_file_are_told_apart_from_those_of_the_store(store, tmp_path):
    """A store with questions of its own keeps them; what was asked elsewhere has a version only if it is the same."""
    asked = [{"at": 5, "text": ""}, {"at": 7.5, "text": '{"tags": {"w": "wrong"}}'}]
    ratings = [
        {"labeler": name, "choice": "first", "questions": version, "guideline": 1, "answers": {"tags": ["wrong"]}}
        for name, version in (("ann", 1), ("bob", 2), ("cyd", 3))
    ]
    row = GOOD | {"ratings": ratings, "wordings": {"questions": asked}}
    path = write(tmp_path / "in.jsonl", [row])
    for _ in range(2):
        import_file(store, "jsonl", path)
        assert [(w.version, w.at, w.text) for w in store.settings.wordings("questions")] == [
            (1, 5.0, ""),
            (2, 7.5, '{"tags": {"w": "wrong"}}'),
        ]
        assert [(r.questions, r.guideline) for r in store.ratings()] == [(1, None), (2, None), (None, None)]
    assert store.settings.questionnaire(2).tags == {"w": "wrong"}
    with RatingsStore(tmp_path / "own.db", create=True) as own:
        own.settings.ask(Questionnaire(tags={"w": "wrong"}))
        import_file(own, "jsonl", path)
        assert [r.questions for r in own.ratings()] == [None, 1, None]
        assert len(own.settings.wordings("questions")) == 1
        assert own.ratings()[0].answers == {"tags": ["wrong"]}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"view": "blurred"}, "view of rating 1 is 'blurred'; expected raw, rendered or null"),
        ({"guideline": 0}, "guideline of rating 1 is 0; expected the number of a version"),
        ({"questions": True}, "questions of rating 1 is True"),
        ({"answers": []}, "answers of rating 1 must be an object"),
        ({"answers": {"attributes": {"helps": 4}}}, "helps is 4: expected a number from -3 to 3, or a list of 2"),
        ({"answers": {"attributes": {"helps": True}}}, "helps is True"),
        ({"answers": {"attributes": {"true": [1, 8]}}}, r"true is \[1, 8\]"),
        ({"answers": {"attributes": {"true": [1]}}}, "list of 2 numbers from 1 to 7"),
        ({"answers": {"attributes": {"No": 1}}}, "names and values"),
        ({"answers": {"tags": ["a", "a"]}}, "tags of answers must be a list of texts, each once"),
        ({"answers": {"tag": []}}, "unknown key 'tag'"),
        ({"answers": {"rewrites": ["x"]}}, "rewrites of answers must be a list of 2, each a text or null"),
        ({"answers": {"comments": ["", None]}}, "comments of answers must be a list of 2"),
        ({"answers": {"spans": [[], [[0, 1]]]}}, "spans of answers must be a list of 2 lists"),
        ({"answers": {"spans": [[], [[1, 1, "k"]]]}}, "each span .start, end, kind."),
        ({"answers": {"spans": [[], [[0, 2, "k"]]]}}, "a span of rating 1 ends after the 1 characters there are"),
    ],
)
def test_answers_that_cannot_be_are_refused_by_name(store, tmp_path, change, reason):
    row = GOOD | {"ratings": [GOOD["ratings"][0] | change]}
    with pytest.raises(UserError, match=reason):
        import_file(store, "jsonl", write(tmp_path / "in.jsonl", [row]))


@pytest.mark.parametrize(
    ("wordings", "reason"),
    [
        ([1], "'wordings' must be an object"),
        ({"rules": []}, "unknown key 'rules'"),
        ({"guideline": [{"at": 1}]}, "no key 'text'"),
        ({"guideline": [{"at": -1, "text": ""}]}, "needs a time and a text"),
        ({"questions": [{"at": 1, "text": "[" * 100_000}]}, "no JSON object"),
        ({"questions": [{"at": 1, "text": '{"tag": {}}'}]}, "unknown key 'tag'; did you mean 'tags'"),
    ],
)
def test_wordings_that_cannot_be_are_refused_by_name(store, tmp_path, wordings, reason):
    with pytest.raises(UserError, match=reason):
        import_file(store, "jsonl", write(tmp_path / "in.jsonl", [GOOD | {"wordings": wordings}]))


def test_a_repeat_comes_in_beside_the_answer_that_it_repeats(store, tmp_path):
    ratings = [
        {"labeler": "ann", "choice": "first", "why": "random", "order_shown": [0, 1]},
        {"labeler": "ann", "choice": "second", "why": "repeat", "order_shown": [1, 0]},
    ]
    done = import_file(store, "jsonl", write(tmp_path / "in.jsonl", [GOOD | {"ratings": ratings}]))
    assert done["new_ratings"] == 2
    assert [(rating.why, rating.choice) for rating in store.ratings()] == [("random", "first"), ("repeat", "second")]


def test_items_of_equal_texts_stay_apart_within_a_file(store, tmp_path):
    path = write(tmp_path / "in.jsonl", [GOOD, GOOD])
    assert import_file(store, "jsonl", path)["new_items"] == 2
    assert import_file(store, "jsonl", path)["new_items"] == 0
    assert len(store.ratings()) == 2


def test_files_of_several_labelers_come_together(tmp_path):
    for name, choice in (("ann", "left"), ("bob", "right")):
        with RatingsStore(tmp_path / f"{name}.db", create=True) as store:
            store.add_item(question("q"), [{"text": "a"}, {"text": "b"}], need=1)
            store.submit(store.claim(name), choice, 1.0)
            export_file(store, "jsonl", tmp_path / f"{name}.jsonl")
    with RatingsStore(tmp_path / "all.db", create=True) as store:
        for name in ("ann", "bob"):
            import_file(store, "jsonl", tmp_path / f"{name}.jsonl")
        assert len(store.items()) == 1
        assert [rating.labeler for rating in store.ratings()] == ["ann", "bob"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"kind": "pear"}, "an item's kind is 'pear'"),
        ({"prompt": "q"}, "'prompt' must be a list of messages"),
        ({"prompt": [{"role": "user"}]}, 'expected {"role"'),
        ({"completions": [{"text": "a"}]}, "takes 1 or more messages and 2 completion"),
        ({"completions": [{"text": "a"}, {"text": "b", "ended": 1}]}, "ended is true or false"),
        ({"completions": [{"text": "a"}, "b"]}, "must be an object with a text"),
        ({"need": 0}, "need is how many"),
        ({"need": 10**30}, "below 2**32"),
        ({"need": "2"}, "'need' must be a whole number"),
        ({"gold": {"score": 3}}, "gold of a pair item"),
        ({"gold": {"choice": "skip"}}, "gold of a pair item is skip"),
        ({"gold": {"choice": ""}}, "answer is ''"),
        ({"gold": {"right": 1}}, "unknown key 'right'"),
        ({"extra": 1}, "unknown key 'extra'"),
        ({"metadata": [1]}, "'metadata' must be an object"),
        ({"metadata": {"x": float("nan")}}, "metadata has NaN"),
        ({"ratings": [{"labeler": "ann"}]}, "rating 1 has no key 'choice'"),
        ({"ratings": [{"labeler": " ", "choice": "tie"}]}, "expected a name"),
        ({"ratings": [{"labeler": "ann", "choice": "left"}]}, "answer is 'left'"),
        ({"ratings": [{"labeler": "ann", "choice": "tie", "strength": 1}]}, "strength 1 of tie"),
        ({"ratings": [{"labeler": "ann", "choice": "tie", "seconds": -1}]}, "seconds of rating 1 is -1"),
        ({"ratings": [{"labeler": "ann", "choice": "tie", "given": 3}]}, "given 3 of tie: expected a number"),
        ({"ratings": [{"labeler": "ann", "choice": "tie", "seconds": 10**400}]}, "seconds of rating 1 is inf"),
        ({"ratings": [{"labeler": "ann", "choice": "tie", "done_at": float("nan")}]}, "done_at of rating 1 is nan"),
        ({"ratings": [{"labeler": "ann", "choice": "tie", "done_at": "now"}]}, "done_at of rating 1 is 'now'"),
        ({"ratings": [{"labeler": "ann", "choice": "tie", "why": "because"}]}, "why of rating 1 is 'because'"),
        ({"ratings": [{"labeler": "ann", "choice": "tie", "why": "random"}]}, "order_shown of rating 1"),
        ({"ratings": [{"labeler": "ann", "choice": "tie", "order_shown": [0, 0]}]}, "order_shown of rating 1"),
        ({"ratings": [{"labeler": "ann", "choice": "tie", "flags": "x"}]}, "comment and flags of rating 1"),
        ({"ratings": [{"labeler": "ann", "choice": "tie"}] * 2}, "has two ratings of this item"),
    ],
)
def test_a_bad_line_is_named_and_nothing_is_imported(store, tmp_path, change, reason):
    path = write(tmp_path / "in.jsonl", [GOOD, GOOD | change])
    with pytest.raises(UserError) as error:
        import_file(store, "jsonl", path)
    assert reason in str(error.value)
    assert str(error.value).startswith(f"{path}:2: ")
    assert "\n" not in str(error.value)
    assert store.items() == []
    assert store.ratings() == []


def test_one_bad_line_in_a_hundred_is_set_aside_and_two_stop_everything(store, tmp_path):
    rows = [GOOD | {"prompt": question(str(number))} for number in range(99)]
    done = import_file(store, "jsonl", write(tmp_path / "one.jsonl", [*rows, {"kind": "pair"}]))
    assert (done["rows"], done["items"], done["ratings"]) == (100, 99, 99)
    assert list(done["bad"]) == [f"{tmp_path / 'one.jsonl'}:100"]
    more = [GOOD | {"prompt": question(f"new {number}")} for number in range(98)]
    with pytest.raises(UserError, match=r"2 of 100 rows cannot be used"):
        import_file(store, "jsonl", write(tmp_path / "two.jsonl", [*more, {}, []]))
    assert len(store.items()) == 99


def test_an_answer_that_contradicts_an_earlier_one_is_set_aside(store, tmp_path):
    rows = [GOOD | {"prompt": question(str(number))} for number in range(100)]
    import_file(store, "jsonl", write(tmp_path / "a.jsonl", rows))
    rows[7] = rows[7] | {"ratings": [{"labeler": "ann", "choice": "second"}]}
    done = import_file(store, "jsonl", write(tmp_path / "b.jsonl", rows))
    assert list(done["bad"]) == [f"{tmp_path / 'b.jsonl'}:8"]
    assert all("the first answer is kept" in reason for reason in done["bad"].values())
    assert done["new_ratings"] == 0
    assert {rating.choice for rating in store.ratings()} == {"first"}


def test_mistakes_are_named(store, tmp_path):
    with pytest.raises(UserError, match=r"--format hhh: no such format; expected one of jsonl, label-studio, argilla"):
        import_file(store, "hhh", tmp_path / "x")
    with pytest.raises(UserError, match="no such file"):
        import_file(store, "hh", tmp_path / "x.jsonl")
    with pytest.raises(UserError, match="found the keys kind, prompt, completions, ratings"):
        import_file(store, "hh", write(tmp_path / "own.jsonl", [GOOD]))
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(UserError, match="no rows in it"):
        import_file(store, "jsonl", tmp_path / "empty.jsonl")
    with pytest.raises(UserError, match="nothing to write as hh: it has no items"):
        export_file(store, "hh", tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()
    import_file(store, "jsonl", tmp_path / "own.jsonl")
    with pytest.raises(UserError, match=r"use \.jsonl, \.jsonl\.gz"):
        export_file(store, "hh", tmp_path / "out.txt")
    export_file(store, "hh", tmp_path / "out.jsonl")
    with pytest.raises(UserError, match="exists already"):
        export_file(store, "hh", tmp_path / "out.jsonl")


def test_every_format_says_what_it_drops():
    for name, format in FORMATS.items():
        assert len(format.import_drops) > 5, name
        assert (len(format.export_drops) > 5) == (name in WRITTEN), name
    for name in ("hh", "pandalm", "qa-feedback", "oasst"):
        assert "seconds" in FORMATS[name].export_drops
        assert "comments" in FORMATS[name].export_drops
    assert "ties" in FORMATS["hh"].export_drops


# --- published files: the numbers reconcile --------------------------------------------------------------------------


def test_pandalm_there_and_back(store, tmp_path):
    path = published("pandalm")
    done = import_file(store, "pandalm", path)
    assert (done["rows"], done["items"], done["ratings"], done["bad"]) == (999, 999, 2997, {})
    again = import_file(store, "pandalm", path)
    assert (again["new_items"], again["new_ratings"]) == (0, 0)
    written = export_file(store, "pandalm", tmp_path / "out.json")
    assert (written["rows"], written["left_out"]) == (999, {})
    before, after = json.loads(path.read_text()), json.loads((tmp_path / "out.json").read_text())
    as_text = {True: "True", False: "False"}
    for row in before:
        for key in ("response1", "response2"):
            row[key] = as_text[row[key]] if isinstance(row[key], bool) else row[key]
    assert after == before
    models = {completion.model for item in store.items() for completion in item.completions}
    assert models == {"bloom-7b", "cerebras-gpt-6.7B", "llama-7b", "opt-7b", "pythia-6.9b"}


def test_qa_feedback_there_and_back(store, tmp_path):
    path = published("qa-feedback")
    done = import_file(store, "qa-feedback", path)
    assert (done["rows"], done["items"], done["ratings"], done["bad"]) == (350, 2100, 2100, {})
    assert import_file(store, "qa-feedback", path)["new_ratings"] == 0
    assert Counter(rating.choice for rating in store.ratings()) == {"first": 1144, "second": 696, "tie": 260}
    written = export_file(store, "qa-feedback", tmp_path / "out.json")
    assert (written["rows"], written["left_out"]) == (350, {})
    assert json.loads((tmp_path / "out.json").read_text()) == json.loads(path.read_text())


def test_hh_there_and_back(store, tmp_path):
    path = published("hh")
    good = []
    for row in rows_of(path):
        try:
            good += [pair for pair in to_comparisons(row) if type(pair.first) is type(pair.second) is str]
        except BadRow:
            continue
    done = import_file(store, "hh", path)
    assert (done["rows"], done["items"], len(done["bad"])) == (1606, len(good), 1606 - len(good))
    assert import_file(store, "hh", path)["new_ratings"] == 0
    choices = Counter(rating.choice for rating in store.ratings())
    assert abs(choices["first"] - choices["second"]) < 150  # which stands first says nothing about the winner
    written = export_file(store, "hh", tmp_path / "out.jsonl")
    assert written["rows"] + sum(written["left_out"].values()) == len(good)
    assert written["rows"] == len(good)
    back = [pair for row in rows_of(tmp_path / "out.jsonl") for pair in to_comparisons(row)]
    assert [(p.prompt, p.first, p.second) for p in back] == [(p.prompt, p.first, p.second) for p in good]


def test_oasst_there_and_back(store, tmp_path):
    path = published("oasst")
    before = [ranking for row in rows_of(path) for ranking in tree_rankings(row)]
    done = import_file(store, "oasst", path)
    assert (done["rows"], done["items"], done["ratings"]) == (100, 212, 212)
    assert done["passed_over"] == {}
    assert import_file(store, "oasst", path)["new_items"] == 0
    assert Counter(len(item.completions) for item in store.items()) == Counter(len(r.ranks) for r in before)
    written = export_file(store, "oasst", tmp_path / "out.jsonl")
    assert (written["rows"], written["left_out"]) == (100, {})
    after = [ranking for row in rows_of(tmp_path / "out.jsonl") for ranking in tree_rankings(row)]
    assert sorted(map(repr, after)) == sorted(map(repr, before))
    ids = [[row["message_tree_id"], row["prompt"]["message_id"]] for row in rows_of(tmp_path / "out.jsonl")]
    assert ids == [[row["message_tree_id"], row["prompt"]["message_id"]] for row in rows_of(path)]


# --- a store of our own in the formats of others ---------------------------------------------------------------------


@pytest.fixture
def rated(store):
    """A pair with a majority, a tied one, a ranking by two, a score, one nobody rated, and a gold item."""
    pair = store.add_item(question("pair"), [{"text": "a", "model": "m1"}, {"text": "b", "model": "m2"}], need=3)
    tied = store.add_item(question("tied"), [{"text": "a"}, {"text": "b"}], need=2)
    rank = store.add_item(question("rank"), [{"text": t} for t in "xyz"], need=2, kind="rank")
    single = store.add_item(question("single"), [{"text": "s"}], kind="single")
    store.add_item(question("unrated"), [{"text": "a"}, {"text": "b"}])
    gold = store.add_item(question("gold"), [{"text": "a"}, {"text": "b"}], gold=Gold(choice="first"))
    for labeler, choice in (("ann", "second"), ("bob", "second"), ("cyd", "first")):
        store.import_rating(pair, labeler, choice, strength=3)
    store.import_rating(tied, "ann", "first")
    store.import_rating(tied, "bob", "second")
    store.import_rating(rank, "ann", "ranked", ranks=[1, 2, 2])
    store.import_rating(rank, "bob", "ranked", ranks=[3, 1, 2])
    store.import_rating(single, "ann", "scored", score=5)
    store.import_rating(gold, "ann", "first", why="gold", order_shown=[0, 1])
    return store


LEFT_OUT = {"single items (scores of one answer)": 1, "items without a rating that counts": 2}


def test_hh_has_the_majoritys_choices_and_counts_what_it_leaves_out(rated, tmp_path):
    """Of the ranking, ann says x > y = z and bob y > z > x: y before z has one vote and a tie, the others one each."""
    done = export_file(rated, "hh", tmp_path / "out.jsonl")
    pairs = [(row["chosen"], row["rejected"]) for row in rows_of(tmp_path / "out.jsonl")]
    assert pairs == [
        ("\n\nHuman: pair\n\nAssistant: b", "\n\nHuman: pair\n\nAssistant: a"),
        ("\n\nHuman: rank\n\nAssistant: y", "\n\nHuman: rank\n\nAssistant: z"),
    ]
    assert done["left_out"] == LEFT_OUT | {"ties": 3}


def test_hh_leaves_out_what_would_be_read_as_another_conversation(store, tmp_path):
    for number, (prompt, answers) in enumerate(
        [
            ([{"role": "system", "content": "Be kind."}, *question("q")], ["a", "b"]),
            (question("q"), ["a\n\nHuman: b", "c"]),
            (question("q"), ["a", " "]),
            (question("q"), [" a ", "b"]),
        ]
    ):
        item = store.add_item(prompt, [{"text": text} for text in answers], metadata={"n": number})
        store.import_rating(item, "ann", "first")
    done = export_file(store, "hh", tmp_path / "out.jsonl")
    assert done["rows"] == 1
    assert list(done["left_out"].values()) == [3]


def test_pandalm_has_a_column_for_each_labeler(rated, tmp_path):
    done = export_file(rated, "pandalm", tmp_path / "out.jsonl")
    rows = rows_of(tmp_path / "out.jsonl")
    assert done["rows"] == len(rows) == 1 + 1 + 3
    votes = {"annotator1": 2, "annotator2": 2, "annotator3": 1}
    assert rows[0] == {
        "idx": 1, "instruction": "pair", "input": "", "cmp_key": "m1_m2", "response1": "a", "response2": "b", **votes,
    }  # fmt: skip
    assert [rows[1][f"annotator{n}"] for n in (1, 2, 3)] == [1, 2, None]
    assert done["left_out"] == LEFT_OUT
    (comparison,) = to_comparisons(rows[1])
    assert [vote.choice for vote in comparison.votes] == ["first", "second"]


def test_qa_feedback_has_a_row_for_each_ranking_and_each_pair_of_its_own(rated, tmp_path):
    done = export_file(rated, "qa-feedback", tmp_path / "out.json")
    rows = json.loads((tmp_path / "out.json").read_text())
    assert [(row["question"], row["preference"]) for row in rows] == [("pair", [2]), ("tied", [0]), ("rank", [0, 0, 1])]
    assert [row["prediction 3"] for row in rows if "prediction 3" in row] == ["z"]
    assert done["left_out"] == LEFT_OUT
    assert len([pair for row in rows for pair in to_comparisons(row)]) == 5


def test_a_set_of_pairs_that_is_not_rated_as_a_whole_is_left_out(store, tmp_path):
    row = {"question": "q", "passages": [], "preference": [1, 2, 0], **{f"prediction {n}": f"p{n}" for n in (1, 2, 3)}}
    path = write(tmp_path / "in.jsonl", [row, row | {"preference": [2, 2, 2]}])
    assert import_file(store, "qa-feedback", path)["items"] == 6
    export_file(store, "qa-feedback", tmp_path / "all.jsonl")
    assert [row["preference"] for row in rows_of(tmp_path / "all.jsonl")] == [[1, 2, 0], [2, 2, 2]]
    store._db.execute("DELETE FROM rating WHERE id = 2")
    done = export_file(store, "qa-feedback", tmp_path / "part.jsonl")
    assert done["rows"] == 1
    assert done["left_out"]["pairs of a set that is not rated as a whole"] == 2


def test_a_tree_has_the_mean_ranks_and_holds_a_conversation_once(rated, tmp_path):
    """ann ranks x y z as 1 2 2, bob as 3 1 2: sums 4, 3, 4, so y is best and the others are equal."""
    longer = [*question("rank"), {"role": "assistant", "content": "y"}, *question("more")]
    item = rated.add_item(longer, [{"text": "u"}, {"text": "v"}], kind="rank")
    rated.import_rating(item, "ann", "ranked", ranks=[2, 1])
    again = rated.add_item(question("rank"), [{"text": "x"}, {"text": "w"}])
    rated.import_rating(again, "ann", "first")
    done = export_file(rated, "oasst", tmp_path / "out.jsonl")
    rows = rows_of(tmp_path / "out.jsonl")
    found = {
        r.prompt[-1]["content"]: dict(zip(r.completions, r.ranks, strict=True)) for t in rows for r in tree_rankings(t)
    }
    assert found == {
        "pair": {"b": 0, "a": 1},
        "tied": {"a": 0, "b": 0},
        "rank": {"y": 0, "x": 1, "z": 1},
        "more": {"v": 0, "u": 1},
    }
    assert done["rows"] == 3
    assert done["left_out"] == LEFT_OUT | {"items on a question whose answers stand ranked in the tree already": 1}
    models = [reply.get("model_name") for reply in rows[0]["prompt"]["replies"]]
    assert sorted(models) == ["m1", "m2"]


# --- forget ----------------------------------------------------------------------------------------------------------


def test_forget_lists_the_models_that_learned_from_a_labeler(tmp_path):
    db, registry = tmp_path / "ratings.db", Registry(tmp_path / "registry")
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").write_bytes(b"\2\0\0\0\0\0\0\0{}")
    with RatingsStore(db, create=True) as store:
        for number in range(3):
            item = store.add_item(question(str(number)), [{"text": "a"}, {"text": "b"}])
            store.import_rating(item, "ann", "first")
            store.import_rating(item, "bob", "second")
        mark = {"name": db.name, **store.fingerprint()}
        hashed = store.people.labeler_hash("ann")
    without = mark | {"labeler_hashes": {"0" * 16: 3}}
    from alignment.registry.manifest import Parent

    def publish(name, **more):
        return registry.publish(name, model, stage="reward", role="reward", **more)

    trained = publish("rm", data=[mark, mark | {"use": "eval"}])
    publish("rm", data=[without])
    publish("judged", data=[without, mark | {"use": "eval"}])
    policy = publish("policy", parents=[Parent(ref=trained.ref, digest=trained.digest, role="reward")])
    publish("grandchild", parents=[Parent(ref=policy.ref, digest=policy.digest, role="init")])

    found = forget(db, "ann", registry.path)
    assert found == {
        "labeler": "ann",
        "hash": hashed,
        "ratings": 3,
        "registry": str(registry.path),
        "versions": 5,
        "models": [
            {"ref": "rm@v1", "ratings": 3, "through": []},
            {"ref": "grandchild@v1", "ratings": 0, "through": ["rm@v1"]},
            {"ref": "policy@v1", "ratings": 0, "through": ["rm@v1"]},
        ],
        "unreadable": [],
    }
    stream = io.StringIO()
    show_forgotten(found, Console(file=stream, width=80, markup=False))
    assert "ann: 3 ratings removed" in stream.getvalue()
    assert "no ratings by this name" not in stream.getvalue()
    assert "policy@v1: made with rm@v1" in stream.getvalue()
    assert "rm@v1: trained on 3 ratings of theirs" in stream.getvalue()
    with RatingsStore(db) as store:
        assert {rating.labeler for rating in store.ratings()} == {"bob"}
    assert b"ann" not in db.read_bytes()
    (registry.path / "models" / "rm" / "v000002" / "manifest.json").write_text("{")
    nobody = forget(db, "cyd", registry.path)
    assert (nobody["ratings"], nobody["models"]) == (0, [])
    assert [text.split(":")[0] for text in nobody["unreadable"]] == ["rm@v2"]
    for folder, said in ((registry.path, "No model in"), (tmp_path / "other", "There are no models in")):
        stream = io.StringIO()
        show_forgotten(forget(db, "cyd", folder), Console(file=stream, width=1000, markup=False))
        assert f"{said} the registry {folder}" in stream.getvalue()
        assert "no ratings by this name" in stream.getvalue()


def test_an_import_says_how_its_file_was_read(store, tmp_path):
    path = tmp_path / "p.csv"
    path.write_text("sep=;\ninstruction;input;response1;response2;annotator1\nSort.;;1, 2;2, 1;1\n")
    done = import_file(store, "pandalm", path)
    assert (done["new_ratings"], done["notes"]) == (1, [f"{path}: read as semicolon-separated"])
