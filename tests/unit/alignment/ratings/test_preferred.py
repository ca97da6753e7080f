"""SFT on a ratings file learns the answers that people preferred."""

import pytest
from helpers.tiny import make_tokenizer

from alignment.config.sections import DataConfig
from alignment.data.row_files import DataError
from alignment.ratings import RatingsStore
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


def test_a_ratings_file_without_ratings_says_what_to_do(tmp_path):
    RatingsStore(tmp_path / "r.db", create=True).close()
    with pytest.raises(DataError, match="nothing is rated yet; rate some with: alignment rate --db"):
        learned(tmp_path / "r.db")
