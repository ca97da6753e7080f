"""What the rating screen shows, as texts with styles; no widget in here."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping

from textual.content import Content

from alignment.labeling.answers import Ranking, keys_of
from alignment.labeling.asking import Draft
from alignment.labeling.session import LAST, WaitsFor, position
from alignment.ratings import Progress
from alignment.ratings.questionnaire import Questionnaire
from alignment.terminal import clean

NARROWEST = 36  # columns that an answer needs to be read with ease
WIDE = 100  # columns from which the keys have room around them
NARROW = 80  # columns below which the keys of a pair do not fit in a line
BAR = 20
LEFT, RIGHT, EVEN = "#6cc5f0", "#e39ad9", "$text"  # the first two as in tui.tcss
DONE = "$text-success"
WORDS = {3: "much", 2: "clearly", 1: "slightly"}
Choices = tuple[Content, Content, Content]
NOTHING = Content("")


def columns(answers: int, width: int) -> int:
    """How many answers stand next to each other: as many as can be read, in rows of about the same length."""
    most = max(1, min(answers, width // NARROWEST))
    return math.ceil(answers / math.ceil(answers / most))


def body(text: str) -> Content:
    """Untrusted text as it is, without empty lines around it."""
    shown = clean(text).strip("\n")
    return Content(shown) if shown.strip() else Content.styled("(empty)", "dim italic")


def conversation(messages: Iterable[dict[str, str]]) -> Content:
    """The prompt's messages, each under its role."""
    parts = [
        Content.assemble((clean(message["role"]).upper(), "bold $text-success"), "  ", body(message["content"]))
        for message in messages
    ]
    return Content("\n\n").join(parts)


def bar(progress: Progress) -> Content:
    """How much is done, as a line."""
    done = BAR * progress.done // max(1, progress.total)
    return Content.assemble(("━" * done, "$success"), ("━" * (BAR - done), "dim"))


def position_line(progress: Progress, width: int) -> Content:
    """Where the labeler is, in figures, and where there is room as a line."""
    line = Content(position(progress))
    return Content.assemble(bar(progress), "  ", line) if width >= 72 else line


def end(progress: Progress, nothing: str) -> Content:
    """What is shown when there is no item."""
    if not progress.done:
        return Content.assemble((nothing, "bold"), "\n\nq leaves.")
    return Content.assemble(
        (LAST, "bold"),
        f" {progress.done} answers, all saved. Thank you!\n\nu takes your last answer back, q leaves.",
    )


def keys(pairs: Iterable[tuple[str, str]], style: str, width: int) -> Content:
    """Keys and what they say, in a line."""
    room = " " if width >= WIDE else ""
    parts = [Content.assemble((f"{room}{key}{room}", f"bold reverse {style}"), f" {word}") for key, word in pairs]
    return Content("  ").join(parts)


WRITING = {
    "rewrites": " Rewrite an answer as it should have been ",
    "comments": " Comment on single answers ",
}


def marks(draft: Draft) -> str:
    """What the item has beside answers to questions."""
    said = {
        "[flagged]": draft.flagged,
        "[comment]": draft.comment,
        "[rewritten]": draft.texts["rewrites"],
        "[answers commented]": draft.texts["comments"],
        "[marked]": any(draft.marks.values()),
    }
    return "  ".join(mark for mark, given in said.items() if given)


def reasons_line(tags: Mapping[str, str], chosen: Collection[str]) -> Content:
    """The reasons with their keys; those that are set are filled."""
    parts = [
        Content.assemble((key, "bold"), (f" {words} ", f"reverse {DONE}" if words in chosen else ""))
        for key, words in tags.items()
    ]
    return Content.assemble(("why: ", "bold"), Content("  ").join(parts))


def pair_choices(width: int, both_bad: bool = True) -> Choices:
    """The seven keys of a pair: each group under the answer that it prefers, or line by line where that is too wide."""
    words = list(WORDS.values())
    groups = [
        (Content.styled("LEFT is better", f"bold {LEFT}"), keys(zip("123", words, strict=True), LEFT, width)),
        (Content.styled("the same", "bold"), keys([("4", "tie"), ("b", "both bad")][: 1 + both_bad], EVEN, width)),
        (Content.styled("RIGHT is better", f"bold {RIGHT}"), keys(zip("567", words[::-1], strict=True), RIGHT, width)),
    ]
    if width < NARROW:
        lines = [Content.assemble(head.pad_right(17 - len(head)), line) for head, line in groups]
        return Content("\n").join(lines), NOTHING, NOTHING
    left, middle, right = (Content("\n").join(group) for group in groups)
    return left, middle, right


def rank_choices(ranking: Ranking, width: int) -> Choices:
    """The order as far as it is typed, and what to type next."""
    parts: list[Content | tuple[str, str]] = [("best first: ", "bold"), (str(ranking) or "…", f"bold {LEFT}")]
    if ranking.left:
        parts.append(("    then " if ranking.placed else "    the best of ", "dim"))
        parts.append((" ".join(map(str, ranking.left)), "bold"))
    others = [keys([("=", "the next is as good"), ("Backspace", "takes one back")], EVEN, width)]
    others.append(keys([("Enter", "saves this order")], DONE if ranking.answer else "dim", width))
    return Content("\n").join([Content.assemble(*parts), Content("  ").join(others)]), NOTHING, NOTHING


def single_choices(width: int, question: str = "How good is the answer?") -> Choices:
    """The seven scores; the question is left out where it stands above already."""
    words = ["worst", "", "", "middling", "", "", "best"]
    room = "   " if width >= WIDE else "  "
    scale = Content(room).join(
        [
            Content.assemble((f" {score} ", f"bold reverse {EVEN}"), f" {word}" if word else "")
            for score, word in enumerate(words, 1)
        ]
    )
    lines = [Content.styled(question, "bold")] * bool(question) + [scale]
    return Content("\n").join(lines), NOTHING, NOTHING


WAITING = {
    "right": ("AS EXPECTED", "$text-success"),
    "wrong": ("NOT AS EXPECTED", "$text-warning"),
    "votes": ("WHAT THE LABELERS SAID", "$text-primary"),
    "store": ("SOMETHING IS WRONG", "$text-warning"),
}


def wait_choices(said: str, waits_for: WaitsFor) -> Choices:
    """What became of the answer to a calibration item, the votes behind a verdict, or why there is no next one."""
    words, style = WAITING[waits_for]
    head = Content.styled(f" {words} ", f"bold reverse {style}")
    told = Content.assemble((said, f"bold {style}"), "   any key goes on")
    return Content("\n").join([head, told]), NOTHING, NOTHING


def rank_title(number: int, ranking: Ranking) -> str:
    """The head of an answer's box."""
    rank = ranking.ranks.get(number)
    if rank is None:
        return f" {number} "
    tied = list(ranking.ranks.values()).count(rank) > 1
    return f" {number}   {'tied ' if tied else ''}{ordinal(rank)} "


def ordinal(rank: int) -> str:
    """1st, 2nd, ... of the at most nine ranks."""
    return "best" if rank == 1 else {2: "2nd", 3: "3rd"}.get(rank, f"{rank}th")


ALL_KEYS = [
    ("j k ↓ ↑", "scroll the answers, all together; space and page keys by a page"),
    ("J K", "scroll the prompt"),
    ("r", "text as it was written, or Markdown, tables and code as readers see them"),
    ("s", "skip: you cannot judge it; others will"),
    ("f", "flag: somebody should look at this item"),
    ("c", "comment"),
    ("u", "take your last answer back, any number of times"),
    ("q", "quit; the same command goes on where you were"),
]


def key_table(kind: str, asked: Questionnaire) -> Content:
    """All keys on an item of this kind of which this is asked."""
    marking = "mark what is wrong in the answers: Shift and arrows, or the mouse, then a number"
    asks: list[tuple[str, str]] = [(key, f"a reason, set and cleared: {words}") for key, words in asked.tags.items()]
    asks += [("e", "rewrite an answer as it should have been")] * asked.rewrite
    asks += [("m", "comment on single answers")] * asked.comments
    asks += [("x", marking)] * bool(asked.spans)
    rows = [*keys_of(kind), *asks, *ALL_KEYS]
    return Content("\n").join([Content.assemble((f"{key:<11}", "bold"), words) for key, words in rows])
