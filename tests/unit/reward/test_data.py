"""Comparisons from the ratings store and from files, and as padded batches."""

import json
from types import SimpleNamespace

import pytest

from alignment.config.sections import DataConfig
from alignment.data.reading import DataError
from alignment.data.records import CHOICES, Comparison, CompletionRating, Vote
from alignment.ratings import RatingsStore
from reward.config import RewardSection
from reward.data import _of_attributes, encode, labeler_weights, rated_pairs, read_judgements

PROMPT = ({"role": "user", "content": "How long can I keep a book?"},)


def read(config, **settings):
    return read_judgements(config, RewardSection(**settings))


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
    records, _ = read(DataConfig(train=str(database), eval_share=0.0))
    found = [(row.first, row.second, *map(row.count, CHOICES)) for row in records.items]
    assert found == [("same 0", "other 0", 2, 1, 0), ("same 1", "other 1", 0, 1, 1)]
    assert records.notes == ["1 skipped: both completions of a rated pair are the same"]
    assert records.items[0].target == pytest.approx(2 / 3)
    assert records.items[1].target == 0.25
    assert [row.place for row in records.items] == [f"{database}:item 1", f"{database}:item 2"]
    (mark,) = records.fingerprints
    assert (mark["rows"], mark["ratings"], mark["labelers"]) == (2, 8, 3)


def test_a_database_without_ratings_says_what_to_do(tmp_path):
    RatingsStore(tmp_path / "r.db", create=True).close()
    with pytest.raises(DataError, match=r"nothing is rated yet; rate some with: alignment rate --db"):
        read(DataConfig(train=str(tmp_path / "r.db")))


def test_a_source_is_told_by_its_header_and_train_and_eval_may_differ(database, tmp_path):
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("".join(json.dumps({"prompt": f"p{n}", "chosen": "a", "rejected": "b"}) + "\n" for n in range(5)))
    disguised = database.rename(tmp_path / "ratings.jsonl")
    train, held_out = read(DataConfig(train=str(disguised), eval=str(pairs)))
    assert (len(train.items), len(held_out.items)) == (2, 5)
    train, held_out = read(DataConfig(train=str(pairs), eval=str(disguised)))
    assert (len(train.items), len(held_out.items)) == (5, 2)
    train, held_out = read(DataConfig(train=str(disguised), eval_share=0.5, split_seed=SPLITS))
    assert len(train.items) + len(held_out.items) == 2
    assert train.fingerprints[0]["rows"] == len(train.items)
    assert f"0.5 held out, seed {SPLITS}" in train.fingerprints[0]["split"]
    with pytest.raises(DataError, match="no such file"):
        read(DataConfig(train=str(tmp_path / "none.db")))


def test_ratings_that_are_all_ties_teach_nothing_and_are_refused(tmp_path):
    with RatingsStore(tmp_path / "r.db", create=True) as store:
        store.add_item(PROMPT, [{"text": "a"}, {"text": "b"}])
        rate(store, "ann", {"a": "tie"})
    with pytest.raises(DataError, match=r"each of the 1 training pairs is a tie.*rate more pairs"):
        read(DataConfig(train=str(tmp_path / "r.db"), eval_share=0.0))


# --- rankings and single ratings -------------------------------------------------------------------------------------


def answer(store, labeler, ranks=None, score=None):
    """Rank each ranking by `ranks` of its texts, score each single item by `score` of its text."""
    while (shown := store.claim(labeler)) is not None:
        if shown.kind == "rank":
            store.submit(shown, "ranked", 1.0, ranks_shown=tuple(ranks[text] for text in shown.completions))
        else:
            store.submit(shown, "scored", 1.0, score=score[shown.completions[0]])


def test_a_ranking_becomes_all_its_pairs_and_keeps_who_said_what(tmp_path):
    with RatingsStore(tmp_path / "r.db", create=True) as store:
        store.add_item(PROMPT, [{"text": text} for text in "abc"], need=2, kind="rank")
        answer(store, "ann", {"a": 1, "b": 2, "c": 2})
        answer(store, "bob", {"a": 2, "b": 1, "c": 3})
        ann, bob = (store.people.labeler_hash(name) for name in ("ann", "bob"))  # names stay in the database
    records, _ = read(DataConfig(train=str(tmp_path / "r.db"), eval_share=0.0))
    found = {
        (row.first, row.second): (row.size, *((vote.labeler, vote.choice) for vote in row.votes))
        for row in records.items
    }
    assert found == {
        ("a", "b"): (3, (ann, "first"), (bob, "second")),
        ("a", "c"): (3, (ann, "first"), (bob, "first")),
        ("b", "c"): (3, (ann, "tie"), (bob, "first")),
    }
    assert [row.weight for row in records.items] == [pytest.approx(2 / 3)] * 3


def test_single_ratings_are_compared_within_a_prompt_and_a_labeler(tmp_path):
    with RatingsStore(tmp_path / "r.db", create=True) as store:
        for text in "abc":
            store.add_item(PROMPT, [{"text": text}], need=2, kind="single")
        answer(store, "ann", score={"a": 6, "b": 5, "c": 5})
        answer(store, "bob", score={"a": 1, "b": 3, "c": 2})
        ann, bob = (store.people.labeler_hash(name) for name in ("ann", "bob"))
    records, _ = read(DataConfig(train=str(tmp_path / "r.db"), eval_share=0.0))
    assert {(row.completion, row.labeler, row.rating) for row in records.items} == {
        ("a", ann, 6), ("a", bob, 1), ("b", ann, 5), ("b", bob, 3), ("c", ann, 5), ("c", bob, 2),
    }  # fmt: skip
    pairs = {}
    for row in rated_pairs(records.items):
        for vote in row.votes:
            flipped = {"first": "second", "second": "first", "tie": "tie"}
            swap = row.first > row.second
            pair = (row.second, row.first) if swap else (row.first, row.second)
            pairs.setdefault(pair, []).append((vote.labeler, flipped[vote.choice] if swap else vote.choice))
        assert row.size == 3
    assert {pair: set(votes) for pair, votes in pairs.items()} == {
        ("a", "b"): {(ann, "first"), (bob, "second")},
        ("a", "c"): {(ann, "first"), (bob, "second")},
        ("b", "c"): {(ann, "tie"), (bob, "first")},
    }


def test_gold_and_repeated_answers_are_not_learned_from(tmp_path):
    with RatingsStore(tmp_path / "r.db", create=True) as store:
        from alignment.ratings import Gold

        store.add_item(PROMPT, [{"text": "a"}, {"text": "b"}], gold=Gold(choice="first"))
        store.settings.calibration = 1
        other = ({"role": "user", "content": "And a film?"},)
        store.add_item(other, [{"text": "c"}, {"text": "d"}])
        while (shown := store.claim("ann")) is not None:
            store.submit(shown, "left", 1.0)
    records, _ = read(DataConfig(train=str(tmp_path / "r.db"), eval_share=0.0))
    assert [(row.first, row.second) for row in records.items] == [("c", "d")]


ROWS = [("p", "a", 4), ("p", "b", 2.5), ("p", "c", 4), ("q", "d", 1), ("q", "d", 3), ("q", "e", 2)]


def rating_file(tmp_path, rows=ROWS, **more):
    path = tmp_path / "ratings.jsonl"
    lines = [{"prompt": prompt, "completion": text, "rating": value, **more} for prompt, text, value in rows]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def test_rows_of_ratings_become_pairs_or_numbers(tmp_path, tokenizer):
    config = DataConfig(train=rating_file(tmp_path), eval_share=0.0, max_length=60)
    records, _ = read(config)
    found = [(row.first, row.second, [vote.choice for vote in row.votes]) for row in rated_pairs(records.items)]
    # d was rated twice: its first rating is compared with e's first one, and there is no second one of e's.
    assert found == [("a", "b", ["first"]), ("a", "c", ["tie"]), ("b", "c", ["second"]), ("d", "e", ["second"])]
    questions, left_out = encode(records.items, tokenizer, config, RewardSection(objective="regression"))
    assert [question.ratings for question in questions] == [(4.0, 2.5, 4.0), (2.0, 2.0)]
    assert [question.rating_weights for question in questions] == [(1, 1, 1), (2, 1)]
    assert [len(question.pairs) for question in questions] == [3, 1]
    assert not any(left_out.values())


def test_ratings_of_different_labelers_are_not_compared():
    prompt = PROMPT
    rows = [
        CompletionRating(prompt, "a", 7, "ann"),
        CompletionRating(prompt, "b", 1, "bob"),
        CompletionRating(prompt, "b", 6, "ann"),
    ]
    (pair,) = rated_pairs(rows)
    assert (pair.first, pair.second, pair.votes) == ("a", "b", (Vote("first", None, "ann"),))


def test_what_one_labeler_rated_weighs_as_one_ranking_whatever_others_rated():
    sheets = {"ann": "abc", "bob": "cde", "cyd": "xy"}
    rows = [CompletionRating(PROMPT, text, ord(text), labeler) for labeler, texts in sheets.items() for text in texts]
    pairs = rated_pairs(rows)
    for labeler, texts in sheets.items():
        own = [pair for pair in pairs if pair.votes[0].labeler == labeler]
        assert {pair.size for pair in own} == {len(texts)}
        assert sum(pair.weight for pair in own) == pytest.approx(1)


def test_equal_answers_of_a_ranking_are_left_out_and_counted(tmp_path, tokenizer):
    path = tmp_path / "ranks.jsonl"
    path.write_text(json.dumps({"prompt": "p", "completions": ["a", "b", "a"], "ranks": [1, 2, 3]}) + "\n")
    config = DataConfig(train=str(path), eval_share=0.0, max_length=60)
    records, _ = read(config)
    (question,), left_out = encode(records.items, tokenizer, config, RewardSection())
    assert left_out["identical"] == 1
    assert [(pair.comparison.first, pair.comparison.second) for pair in question.pairs] == [("a", "b"), ("b", "a")]


def test_a_held_out_share_may_hold_nothing_to_compare(tokenizer):
    rows = [CompletionRating(PROMPT, "a", 7.0, "ann")]
    config = DataConfig(train="r.jsonl")
    assert encode(rows, tokenizer, config, RewardSection(), required=False).questions == []
    with pytest.raises(DataError, match=r"none of the 1 judgements.*objective=pairs cannot use any of them"):
        encode(rows, tokenizer, config, RewardSection())


@pytest.mark.parametrize(
    ("rows", "more", "settings", "says"),
    [
        ([("p", "a", 1), ("q", "b", 2)], {}, {}, "the 2 training ratings give no pair"),
        ([("p", "a", 1), ("p", "b", 1)], {}, {"objective": "regression"}, "found 2 ratings with 1 values"),
        ([("p", "a", "good")], {}, {}, "'rating' must be a number, found 'good'"),
        ([("p", "a", True)], {}, {}, "'rating' must be a number, found True"),
        ([("p", "a", 1)], {"labeler": [3]}, {}, "'labeler' must be a string, found list"),
    ],
)
def test_ratings_that_teach_nothing_are_refused(tmp_path, rows, more, settings, says):
    with pytest.raises(DataError, match=says):
        read(DataConfig(train=rating_file(tmp_path, rows, **more), eval_share=0.0), **settings)


def test_what_the_objective_cannot_use_is_refused(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps({"prompt": "p", "chosen": "a", "rejected": "b"}) + "\n")
    config = DataConfig(train=str(path), eval_share=0.0)
    with pytest.raises(DataError, match=r"reward\.objective=regression needs differing ratings.*found 0 ratings"):
        read(config, objective="regression")
    with pytest.raises(DataError, match=r"reward\.margin=0\.5 needs votes with a strength"):
        read(config, margin=0.5)


def test_a_labeler_who_disagrees_with_all_others_weighs_less():
    def item(number, **choices):
        votes = tuple(Vote(choice, None, labeler) for labeler, choice in choices.items())
        return Comparison(({"role": "user", "content": str(number)},), "a", "b", votes)

    sides = ["first", "second"]
    rows = [item(n, ann=sides[n % 2], bob=sides[n % 2], cyd=sides[n % 2], dan=sides[n % 3 % 2]) for n in range(60)]
    weights = labeler_weights(rows, "r.db")
    assert weights["dan"] < 0.6 * weights["ann"]
    assert weights["ann"] == pytest.approx(weights["bob"], rel=0.05)


def test_reliability_needs_pairs_that_several_judged():
    alone = [
        Comparison(PROMPT, "a", "b", (Vote("first", None, "ann"),)),
        Comparison(PROMPT, "a", "c", (Vote("tie"),) * 3),
    ]
    with pytest.raises(DataError, match=r"r\.db: reward\.use_reliability weights labelers.*judged by two"):
        labeler_weights(alone, "r.db")


def test_answers_to_questions_of_a_ratings_file_are_judgements_of_attributes(tmp_path):
    """Two labelers of a pair, on both scales, and the whole; a single answer has its score."""
    with RatingsStore(tmp_path / "r.db", create=True) as store:
        hashed = {name: store.people.labeler_hash(name) for name in ("ann", "bob")}
        pair = store.add_item([{"role": "user", "content": "q"}], [{"text": "x"}, {"text": "y"}], need=2)
        single = store.add_item([{"role": "user", "content": "p"}], [{"text": "z"}], kind="single")
        for name, helps, true in (("ann", -2, [5, 3]), ("bob", -1, [4, 4])):
            store.import_rating(pair, name, "second", answers={"attributes": {"helps": helps, "true": true}})
        store.import_rating(single, "ann", "scored", score=6, answers={"attributes": {"true": [2]}})

    def judged(*attributes):
        return read(DataConfig(train=str(tmp_path / "r.db"), eval_share=0.0), attributes=attributes)[0].items

    (helps,) = judged("helps")
    assert helps.votes == (Vote("second", 2, hashed["ann"]), Vote("second", 1, hashed["bob"]))
    rated = {(each.completion, each.labeler): each.rating for each in judged("true")}
    assert rated == {("x", hashed["ann"]): 5, ("y", hashed["ann"]): 3, ("x", hashed["bob"]): 4, ("y", hashed["bob"]): 4,
                     ("z", hashed["ann"]): 2}  # fmt: skip
    (implied,) = rated_pairs(judged("true"))
    assert (implied.attribute, implied.target) == ("true", 0.75)
    (whole,) = [each for each in judged("overall") if isinstance(each, Comparison)]
    assert (whole.attribute, whole.target) == ("overall", 0.0)
    assert [each.attribute for each in judged()] == ["", ""]


def test_a_referees_answer_stands_in_the_place_of_each_labelers():
    ann, bob, judge = (
        SimpleNamespace(labeler=name, answers={"attributes": {"helps": helps, "true": true}})
        for name, helps, true in (("ann", 2, [5, 3]), ("bob", 1, [4, 4]), ("eve", -3, [1, 7]))
    )
    *rated, helps = _of_attributes(PROMPT, ["x", "y"], [ann, bob], judge)
    assert [(vote.choice, vote.strength, vote.labeler) for vote in helps.votes] == [("second", 3, "eve")] * 2
    assert [vote.overrules for vote in helps.votes] == [Vote("first", 2, "ann"), Vote("first", 1, "bob")]
    assert [(each.completion, each.rating, each.labeler) for each in rated] == [("x", 1, "eve"), ("y", 7, "eve")] * 2
    assert [each.overrules.rating for each in rated] == [5, 3, 4, 4]
