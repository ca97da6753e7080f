"""What the organiser's commands print on 80 columns, and in a pipe."""

import io
import time
from pathlib import Path

import pytest
from rich.console import Console

from alignment.labeling import desk
from alignment.ratings import Gold, RatingsStore
from alignment.ratings.items import items_with, one_item
from alignment.ratings.progress import labelers_of, progress_of


@pytest.fixture
def store(tmp_path: Path) -> RatingsStore:
    store = RatingsStore(tmp_path / "ratings.db", create=True)
    now = time.time()
    for number in range(12):
        words = "a very long question about things in general " * 3
        prompt = [{"role": "user", "content": f"q{number} {words}\nsecond line"}]
        item = store.add_item(prompt, [{"text": f"\x1b[2Jgood {number}"}, {"text": f"bad {number}"}], need=3)
        for name, choice in {"ada": "first", "bob": "second" if number % 2 else "first"}.items():
            store.import_rating(
                item, name, choice, why="random", order_shown=[1, 0], seconds=20.0, claimed_at=now - 7200,
                done_at=now - 7100 + number, flags=["flagged"] * (number == 3), comment="odd" * (number == 3),
            )  # fmt: skip
    store.add_item([{"role": "user", "content": "gold"}], [{"text": "a"}, {"text": "b"}], gold=Gold("second"))
    store.import_rating(4, "rita", "tie", why="verdict", order_shown=[0, 1], flags=["both_bad"], seconds=5.0)
    store.people.invite("a labeler with an extraordinarily long name of many words")
    return store


def printed(show: object, found: object, width: int = 80) -> list[str]:
    stream = io.StringIO()
    show(found, Console(file=stream, width=width, markup=False, highlight=False, emoji=False))  # type: ignore[operator]
    lines = [line.rstrip() for line in stream.getvalue().splitlines()]
    assert "\x1b" not in stream.getvalue()
    assert max(map(len, lines)) <= width
    return lines


def test_items_are_a_line_each(store: RatingsStore) -> None:
    lines = printed(desk.show_items, items_with(store, flagged=True))
    assert lines[0].split() == ["item", "kind", "votes", "what", "is", "special", "prompt"]
    said = " ".join(line[19:48].strip() for line in lines[1:-1])
    assert said == "disputed: 1 first, 1 second; verdict: tie; 2 flagged; 1 both bad; 2 comments"
    assert lines[1].startswith("4     pair  2/3    disputed") and "q3 a very long" in lines[1]
    assert printed(desk.show_items, []) == ["No item is like that."]
    assert len(printed(desk.show_items, items_with(store))) == 2 + 13 + 2


def test_an_item_shows_every_answer(store: RatingsStore) -> None:
    lines = printed(desk.show_item, one_item(store, 4))
    assert lines[0].startswith("Item 4 (pair), 2 of 3 votes; disputed: 1 first, 1 second; verdict: tie")
    assert lines[lines.index("FIRST:") + 1] == "  ␛[2Jgood 3"
    (ada,) = [line for line in lines if line.startswith("ada: ")]
    assert ada.startswith("ada: FIRST is better   2") and ada.endswith(", 20 s, no guideline")
    assert lines[lines.index(ada) + 1 : lines.index(ada) + 3] == ["  shown in the order 2 1; flagged", '  "odd"']
    (rita,) = [line for line in lines if line.startswith("rita: ")]
    assert "rita: both bad" in rita and lines[lines.index(rita) + 1] == "  VERDICT"
    gold = printed(desk.show_item, one_item(store, 13))
    assert (
        gold[0] == "Item 13 (pair), a gold item; expected: SECOND is better" and gold[-1] == "Nobody has answered it."
    )


def test_progress_says_who_is_where(store: RatingsStore) -> None:
    lines = printed(desk.show_progress, progress_of(store))
    told = {line[:22].strip(): line[24:] for line in lines[: lines.index("")]}
    assert told["Items"] == "12; 0 have all their votes"
    assert told["Left"] == "12 votes, 4 min of work at 20 s a vote"
    assert told["Disputed items"] == "6; 5 wait for a referee (--adjudicate)"
    assert told["Pace"].startswith("24 votes since 20") and told["Pace"].endswith(": 24 a day")
    rows = {line.split("  ")[0].strip(): line for line in lines[lines.index("") :]}
    assert rows["ada"].endswith("118 min ago")
    whole = " ".join(line.split("  ")[-1].strip() for line in lines)  # the last column goes on below itself
    assert "referee: 1 verdict" in whole and "never; invited just now" in whole
    assert any(line.startswith("a label") and "…" in line for line in lines)
    assert any(line.startswith("! no guideline says what to prefer; set one: alignment rate") for line in lines)


def test_labelers_stand_beside_their_hashes(store: RatingsStore) -> None:
    lines = printed(desk.show_labelers, labelers_of(store))
    (ada,) = [line for line in lines if line.startswith("ada ")]
    assert store.people.labeler_hash("ada") in ada and "50% of 12" in ada
    wide = printed(desk.show_labelers, labelers_of(store), 100_000)
    assert any(line.startswith("a labeler with") for line in wide)


def test_answers_to_questions_stand_below_the_choice(store: RatingsStore) -> None:
    answers = {
        "attributes": {"helpful": -2, "correct": [3, 7]},
        "tags": ["too long"],
        "spans": [[], [[0, 3, "wrong"]]],
        "rewrites": ["better\ntext", None],
        "comments": [None, "odd"],
    }
    store.import_rating(6, "cy", "first", answers=answers)
    lines = printed(desk.show_item, one_item(store, 6))
    place = lines.index("  imported")
    assert lines[place + 1 : place + 6] == [
        "  correct 3 7; helpful -2", "  reasons: too long", "  in 2: wrong at 0 to 3", '  rewritten 1: "better text"',
        '  comment 2: "odd"',
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "just now"), (119, "2 min ago"), (7140, "119 min ago"), (7200, "2 h ago"), (47.6 * 3600, "47 h ago"),
     (3 * 86400, "3 days ago")],
)  # fmt: skip
def test_how_long_ago(seconds: float, words: str) -> None:
    assert desk.ago(seconds) == words
