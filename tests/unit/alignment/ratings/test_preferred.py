"""SFT on a ratings file learns the answers that people preferred."""

import pytest
from helpers.tiny import make_tokenizer

from alignment.config.sections import DataConfig
from alignment.data.parsing import to_examples
from alignment.data.reading import Reading
from alignment.data.records import Comparison
from alignment.data.row_files import DataError
from alignment.ratings import Gold, RatingsStore
from alignment.ratings.preferred import open_demonstrations
from reward.data import rated_items
from sft.data import encode_data, training_texts


def question(text):
    return [{"role": "user", "content": text}]


def vote(store, labeler, wanted):
    """Let a labeler vote for the texts `wanted`, a tie where none of them is shown; rankings go from best to worst."""
    while (assignment := store.claim(labeler)) is not None:
        shown = assignment.completions
        if len(shown) == 2:
            side = "left" if shown[0] in wanted else "right" if shown[1] in wanted else "tie"
            store.submit(assignment, side, seconds=1.0)
        elif len(shown) == 1:
            store.submit(assignment, "scored", seconds=1.0, score=7)
        else:
            order = sorted(shown, key=wanted.index)
            store.submit(assignment, "ranked", seconds=1.0, ranks_shown=[order.index(text) + 1 for text in shown])


def learned(path):
    tokenizer = make_tokenizer()
    data = encode_data(DataConfig(train=str(path), eval_share=0.0), tokenizer)
    texts = [tokenizer.decode([t for t in row if t != -100], skip_special_tokens=True) for row in data.train["labels"]]
    return [text.strip() for text in texts], data


def test_the_answer_that_most_people_preferred_is_learned_and_ties_are_counted(tmp_path):
    path = tmp_path / "ratings.db"
    with RatingsStore(path, create=True, seed=0) as store:
        store.add_item(question("pair"), [{"text": "worse"}, {"text": "better"}], need=3)
        store.add_item(question("even"), [{"text": "this"}, {"text": "that"}], need=3)
        store.add_item(question("rank"), [{"text": "low"}, {"text": "top"}, {"text": "mid"}], need=3, kind="rank")
        store.add_item(question("alone"), [{"text": "fine"}], need=3, kind="single")
        for labeler, wanted in {
            "ann": ["better", "top", "mid", "low"],
            "bob": ["better", "mid", "top", "low"],
            "cyd": ["worse", "top", "mid", "low"],
        }.items():
            vote(store, labeler, wanted)
    texts, data = learned(path)
    assert texts == ["better", "top"]
    assert data.notes == [
        "1 skipped: no answer was preferred: a tie",
        "1 skipped: an answer rated by itself is preferred to no other",
    ]
    (mark,) = data.fingerprints["train"]
    assert (mark["rows"], mark["ratings"], mark["labelers"]) == (2, 12, 3)
    assert "better" in set(training_texts(DataConfig(train=str(path), eval_share=0.0)))


def rewriting(store, item, labeler, choice, rewrites, **more):
    store.import_rating(item, labeler, choice, answers={"rewrites": rewrites}, **more)


def test_a_rewritten_answer_is_learned_and_names_its_author_by_the_hash(tmp_path):
    path = tmp_path / "ratings.db"
    with RatingsStore(path, create=True, seed=0) as store:
        pairs = [store.add_item(question(f"q{i}"), [{"text": f"a{i}"}, {"text": f"b{i}"}], need=2) for i in range(4)]
        single = store.add_item(question("alone"), [{"text": "fine"}], kind="single")
        gold = store.add_item(question("g"), [{"text": "c"}, {"text": "d"}], gold=Gold(choice="first"))
        rewriting(store, pairs[0], "ann", "first", ["mended winner", None])  # instead of the winner
        rewriting(store, pairs[1], "ann", "first", [None, "mended loser"])  # beside the winner
        rewriting(store, pairs[2], "ann", "tie", [None, "twice"])  # a tie alone teaches nothing
        rewriting(store, pairs[2], "bob", "tie", [None, "twice"])
        rewriting(store, pairs[3], "bob", "first", ["a3", None])  # nothing was changed
        rewriting(store, single, "bob", "scored", ["finer"], score=3)
        rewriting(store, gold, "bob", "first", ["not learned", None], why="gold", order_shown=[0, 1])
        ann, bob = map(store.people.labeler_hash, ("ann", "bob"))
    texts, data = learned(path)
    assert texts == ["mended winner", "mended loser", "a1", "twice", "a3", "finer"]
    assert [note for note in data.notes if "skipped" in note] == ["1 skipped: no answer was preferred: a tie"]
    (mark,) = data.fingerprints["train"]
    assert mark["rewritten_by"] == {ann: 3, bob: 3} and mark["labeler_hashes"] == {ann: 3, bob: 3}
    config = DataConfig(train=str(path), eval_share=0.0)
    places = [example.place for _, example in Reading(config, to_examples, open_demonstrations)]
    assert places[0] == f"{path}:item 1 rewritten by {ann}" and places[3] == f"{path}:item 3 rewritten by {ann}, {bob}"


def test_the_reward_model_learns_that_the_rewritten_answer_is_better(tmp_path):
    path = tmp_path / "ratings.db"
    with RatingsStore(path, create=True) as store:
        pair = store.add_item(question("q"), [{"text": "a"}, {"text": "b"}], need=3)
        single = store.add_item(question("alone"), [{"text": "fine"}], kind="single")
        for labeler, text in (("ann", "b, mended"), ("bob", "b, mended"), ("cyd", "b, otherwise")):
            rewriting(store, pair, labeler, "first", [None, text])
        rewriting(store, single, "ann", "scored", ["finer"], score=3)
        hashed = {name: store.people.labeler_hash(name) for name in ("ann", "bob", "cyd")}
    rows = [row for _, row in rated_items(str(path)) if isinstance(row, Comparison)]
    found = {(row.first, row.second): {(vote.labeler, vote.choice) for vote in row.votes} for row in rows}
    assert found == {
        ("b, mended", "b"): {(hashed["ann"], "first"), (hashed["bob"], "first")},
        ("b, otherwise", "b"): {(hashed["cyd"], "first")},
        ("a", "b"): {(name, "first") for name in hashed.values()},
        ("finer", "fine"): {(hashed["ann"], "first")},
    }
    only = [row for _, row in rated_items(str(path), {hashed["cyd"]}) if isinstance(row, Comparison)]
    assert [(row.first, row.second) for row in only] == [("b, otherwise", "b"), ("a", "b")]


def test_a_ratings_file_without_ratings_says_what_to_do(tmp_path):
    RatingsStore(tmp_path / "r.db", create=True).close()
    with pytest.raises(DataError, match="nothing is rated yet; rate some with: alignment rate --db"):
        learned(tmp_path / "r.db")
