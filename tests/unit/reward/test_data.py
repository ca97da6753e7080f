"""Comparisons from the ratings store and from files, and as padded batches."""

import json

import pytest
import tiny
import torch

from alignment.config import DataConfig
from alignment.data import CHOICES, Comparison, DataError
from alignment.ratings import RatingsStore
from reward.data import PairCollator, as_dataset, encode_comparisons, read_comparisons

PROMPT = ({"role": "user", "content": "How long can I keep a book?"},)


SPLITS = 0  # a seed that parts the two rated prompts of `database`


def rate(store, labeler, choices):
    """Give a labeler's choices in item order: `choices` maps the first completion's text to what is chosen."""
    items = {item.id: item for item in store.items()}
    while (assignment := store.claim(labeler)) is not None:
        item = items[assignment.item]
        choice = choices[item.completions[0].text]
        if choice in ("first", "second"):
            wanted = item.completions[0 if choice == "first" else 1].text
            shown = "left" if assignment.completions[0] == wanted else "right"
        else:
            shown = choice
        store.submit(assignment, shown, seconds=1.0)


@pytest.fixture
def database(tmp_path):
    path = tmp_path / "ratings.db"
    with RatingsStore(path, create=True, seed=0) as store:
        for number in range(4):
            prompt = [{"role": "user", "content": f"Question {number}?"}]
            second = {"text": "same 2"} if number == 2 else {"text": f"other {number}"}
            store.add_item(prompt, [{"text": f"same {number}"}, second], need=3)
        rate(store, "ann", {"same 0": "first", "same 1": "second", "same 2": "first", "same 3": "skip"})
        rate(store, "bob", {"same 0": "first", "same 1": "tie", "same 2": "tie", "same 3": "skip"})
        rate(store, "cyd", {"same 0": "second", "same 1": "skip", "same 2": "first", "same 3": "skip"})
    return path


def test_ratings_become_votes_and_skips_do_not_count(database):
    records, _ = read_comparisons(DataConfig(train=str(database), eval_share=0.0))
    found = [(row.first, row.second, *map(row.count, CHOICES)) for row in records.items]
    assert found == [("same 0", "other 0", 2, 1, 0), ("same 1", "other 1", 0, 1, 1)]
    assert records.notes == ["1 passed over: both completions of a rated pair are the same"]
    assert records.items[0].target == pytest.approx(2 / 3)
    assert records.items[1].target == 0.25
    assert [row.place for row in records.items] == [f"{database}:item 1", f"{database}:item 2"]
    (mark,) = records.fingerprints
    assert (mark["rows"], mark["ratings"], mark["labelers"]) == (2, 8, 3)


def test_a_database_without_ratings_says_what_to_do(tmp_path):
    RatingsStore(tmp_path / "r.db", create=True).close()
    with pytest.raises(DataError, match=r"no rated pairs yet; rate some with scripts/rate\.py --db"):
        read_comparisons(DataConfig(train=str(tmp_path / "r.db")))


def test_a_source_is_told_by_its_header_and_train_and_eval_may_differ(database, tmp_path):
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("".join(json.dumps({"prompt": f"p{n}", "chosen": "a", "rejected": "b"}) + "\n" for n in range(5)))
    disguised = database.rename(tmp_path / "ratings.jsonl")
    train, held_out = read_comparisons(DataConfig(train=str(disguised), eval=str(pairs)))
    assert (len(train.items), len(held_out.items)) == (2, 5)
    train, held_out = read_comparisons(DataConfig(train=str(pairs), eval=str(disguised)))
    assert (len(train.items), len(held_out.items)) == (5, 2)
    train, held_out = read_comparisons(DataConfig(train=str(disguised), eval_share=0.5, split_seed=SPLITS))
    assert len(train.items) + len(held_out.items) == 2
    assert train.fingerprints[0]["rows"] == len(train.items)
    assert f"0.5 held out, seed {SPLITS}" in train.fingerprints[0]["split"]
    with pytest.raises(DataError, match="no such file"):
        read_comparisons(DataConfig(train=str(tmp_path / "none.db")))


def test_ratings_that_are_all_ties_teach_nothing_and_are_refused(tmp_path):
    with RatingsStore(tmp_path / "r.db", create=True) as store:
        store.add_item(PROMPT, [{"text": "a"}, {"text": "b"}])
        rate(store, "ann", {"a": "tie"})
    with pytest.raises(DataError, match=r"each of the 1 pairs to learn from is a tie.*rate more pairs"):
        read_comparisons(DataConfig(train=str(tmp_path / "r.db"), eval_share=0.0))


def test_both_sides_share_the_prompt_and_end_in_eos(tokenizer):
    (row,), left_out = encode_comparisons([Comparison(PROMPT, "Three weeks.", "Ask us.")], tokenizer, 200)
    assert left_out == {"too_long": 0, "identical": 0}
    for ids, answer in ((row.first_ids, "Three weeks."), (row.second_ids, "Ask us.")):
        text = tokenizer.decode(ids)
        assert text.endswith(answer + tokenizer.eos_token)
        assert text.count(PROMPT[0]["content"]) == 1


def test_pairs_that_say_nothing_are_left_out_and_counted(tokenizer):
    comparisons = [
        Comparison(PROMPT, "a", "b"),
        Comparison(PROMPT, "word " * 80, "b"),
        Comparison(PROMPT, "b", "word " * 80),
        Comparison(PROMPT, "same", " same\n"),  # equal once rendered
    ]
    encoded, left_out = encode_comparisons(comparisons, tokenizer, 60)
    assert [row.comparison for row in encoded] == comparisons[:1]
    assert left_out == {"too_long": 2, "identical": 1}
    with pytest.raises(DataError, match=r"none of the 2 comparisons can be used.*raise data\.max_length=60"):
        encode_comparisons(comparisons[1:3], tokenizer, 60)


def test_a_comparison_is_measured_by_its_longer_side(tokenizer):
    noted = []
    comparisons = [
        Comparison(PROMPT, "a", "b c d e f", place="r:1"),
        Comparison(PROMPT, "word " * 80, "b", place="r:2"),
    ]
    encode_comparisons(comparisons, tokenizer, 60, note=lambda *row: noted.append(row))
    (first, whole, kept), (second, too_long, left) = noted
    assert [first, second] == comparisons
    assert "b c d e f" in tokenizer.decode(whole.input_ids)
    assert kept == whole
    assert len(too_long.input_ids) > 60
    assert left is None


def test_a_batch_is_all_first_sides_then_all_second_sides(tokenizer):
    encoded, _ = encode_comparisons(
        [Comparison(PROMPT, "a", "bb b", tiny.votes(3, 1)), Comparison(PROMPT, "ccc cc", "d", tiny.votes(0, 0, 2))],
        tokenizer,
        200,
    )
    rows = list(as_dataset(encoded))
    batch = PairCollator(tokenizer.pad_token_id)(rows)
    expected = [row.first_ids for row in encoded] + [row.second_ids for row in encoded]
    assert [
        ids[mask].tolist() for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ] == expected
    assert batch["attention_mask"][:, 0].all()  # right-padded
    assert (batch["input_ids"][~batch["attention_mask"]] == tokenizer.pad_token_id).all()
    torch.testing.assert_close(batch["target"], torch.tensor([0.75, 0.5]))
    assert batch["weight"].tolist() == [4.0, 2.0]
    wider = PairCollator(tokenizer.pad_token_id, pad_to_multiple_of=64)(rows)
    width = batch["input_ids"].shape[1]
    assert wider["input_ids"].shape[1] == 64 > width
    assert torch.equal(wider["input_ids"][:, :width], batch["input_ids"])
    assert not wider["attention_mask"][:, width:].any()
