"""People's votes on a comparison, in a real ratings file."""

from pathlib import Path

import pytest
from helpers.comparing import contest, question

from alignment.evaluation.judgments import KnownJudgments
from alignment.evaluation.people import PeopleJudge
from alignment.ratings import Completion, Gold, RatingsStore

PROMPTS = [question(f"Q{number}", topic="odd" if number % 2 else "even") for number in range(4)]
LABELS = {"a": "sft@v1", "b": "ppo@v1"}


@pytest.fixture
def db(tmp_path):
    return tmp_path / "votes.db"


def judge(db, found=None, need=1):
    people = PeopleJudge(db, LABELS, need)
    shown = found or contest(PROMPTS, a=["a0", "a1", "a2", "same"], b=["b0", "b1", "b2", "same"])
    return people, people.judge(shown, KnownJudgments(db.with_name("judgments.jsonl")))


def vote(db: Path, item: int, who: str, choice: str, **more: object) -> None:
    with RatingsStore(db) as store:
        store.import_rating(item, who, choice, **more)


def test_pairs_that_differ_become_blind_items_once(db):
    people, found = judge(db, need=2)
    judge(db)
    with RatingsStore(db) as store:
        items = store.items()
        shown = store.claim("ann")
    assert found == [] and people.counts.items == 3
    assert [[answer.text for answer in item.completions] for item in items] == [
        ["a0", "b0"],
        ["a1", "b1"],
        ["a2", "b2"],
    ]
    assert {tuple(answer.model for answer in item.completions) for item in items} == {("sft@v1", "ppo@v1")}
    assert [item.metadata["topic"] for item in items] == ["even", "odd", "even"] and {item.need for item in items} == {
        2
    }
    assert "sft" not in repr(shown) and "ppo" not in repr(shown)
    assert people.notes == ["1 pairs with the same answer on both sides are not asked"]


def test_votes_are_read_by_labeler_with_ties_and_in_their_order(db):
    judge(db)
    vote(db, 2, "bob", "tie", done_at=3.0)
    vote(db, 1, "ann", "first", done_at=2.0)
    vote(db, 3, "ann", "second", done_at=1.0)
    vote(db, 3, "bob", "skip", done_at=4.0)
    people, found = judge(db)
    assert [judgment.outcome for judgment in found] == [0.0, 1.0, 0.5]
    assert [people.labelers[judgment.labeler] for judgment in found] == ["ann", "ann", "bob"]
    assert (people.counts.rated, people.counts.votes) == (3, 3)
    assert "intervals are over prompts: they speak of the 2 labelers who voted, not of others" in people.notes


def test_gold_calibration_and_repeats_do_not_count(db):
    judge(db)
    with RatingsStore(db) as store:
        gold = store.add_item(
            [{"role": "user", "content": "Q9"}], [Completion("x"), Completion("y")], gold=Gold("first")
        )
    vote(db, gold, "ann", "first", why="gold", order_shown=[0, 1])
    vote(db, 1, "ann", "first")
    vote(db, 1, "ann", "second", why="repeat", order_shown=[1, 0])
    assert [judgment.outcome for judgment in judge(db)[1]] == [1.0]


def test_a_vote_on_the_same_texts_in_the_other_order_counts_for_the_right_side(db):
    """As of a file that was made with the models the other way round, or of a ranking."""
    with RatingsStore(db, create=True) as store:
        swapped = store.add_item([{"role": "user", "content": "Q0"}], [Completion("b0"), Completion("a0")])
        ranked = store.add_item(
            [{"role": "user", "content": "Q1"}], [Completion("z"), Completion("b1"), Completion("a1")], kind="rank"
        )
    vote(db, swapped, "ann", "first")
    vote(db, ranked, "ann", "ranked", ranks=[1, 3, 2])
    assert [judgment.outcome for judgment in judge(db)[1]] == [0.0, 1.0]


def test_votes_on_items_chosen_for_a_models_doubt_are_left_out(db):
    judge(db)
    vote(db, 1, "ann", "first", why="uncertain", order_shown=[0, 1])
    vote(db, 2, "ann", "first")
    people, found = judge(db)
    assert len(found) == 1 and any(note.startswith("1 votes are left out") for note in people.notes)


def test_answers_to_a_system_prompt_are_matched_too(db):
    from alignment.data.records import Prompt

    prompt = Prompt(({"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi", "weight": 1}))
    shown = contest([prompt], a=["x"], b=["y"])
    judge(db, shown)
    vote(db, 1, "ann", "second")
    assert [judgment.outcome for judgment in judge(db, shown)[1]] == [0.0]


def test_simulated_votes_are_called_so_and_give_way_to_peoples(db):
    judge(db)
    with RatingsStore(db) as store:
        store.people.mark_simulated("robot")
    for item, choice in ((1, "first"), (2, "first")):
        vote(db, item, "robot", choice)
    people, found = judge(db)
    assert {judgment.judge for judgment in found} == {"simulated-people"} == {people.identity.name}
    assert people.identity.text == "simulated people, which are a program"
    vote(db, 1, "ann", "second")
    people, found = judge(db)
    assert [(judgment.judge, judgment.outcome) for judgment in found] == [("people", 0.0)]
    assert "2 votes of simulated labelers are left out" in people.notes


def test_a_vote_that_was_forgotten_leaves_the_judgments_too(db):
    from alignment.evaluation.judgments import JudgeIdentity

    known = KnownJudgments(db.with_name("judgments.jsonl"))
    judge(db)
    vote(db, 1, "ann", "first")
    rule = JudgeIdentity("python=rule", "function")
    found = judge(db)[1]
    bout = next(contest(PROMPTS, a=["a0", "a1", "a2", "same"], b=["b0", "b1", "b2", "same"]).bouts())
    known.write([*found, bout.judged(rule, 1.0)], votes=True)
    with RatingsStore(db) as store:
        store.people.forget("ann")
    known.write(judge(db)[1], votes=True)
    lines = known.path.read_text().splitlines()
    assert len(lines) == 1 and "python=rule" in lines[0]
