"""Rating by lines: for pipes, for screen readers, and for terminals that can do no more. The rules are the screen's."""

from __future__ import annotations

import sys
import termios
from collections.abc import Callable

from rich.console import Console
from rich.text import Text

from alignment.labeling.answers import LabelerAnswer, Ranking, keys_of
from alignment.labeling.asking import TextKind
from alignment.labeling.marking import in_lines, marks_in
from alignment.labeling.session import LAST, NO_KEY, Sitting, position
from alignment.ratings import Assignment, Order, RatingsStore
from alignment.terminal import clean, one_line

ALSO = {"l": "left", "r": "right", "t": "4", "tie": "4"}
WORDS = {"s": "skip", "u": "undo", "f": "flag", "q": "quit", "h": "help", "?": "help"}
SIDES = "1 to 3 LEFT is much, clearly, slightly better; 4 tie; 5 to 7 RIGHT is slightly, clearly, much better"
ASKED = {
    "pair": f"{SIDES}; b both bad",
    "rank": "all numbers from best to worst, = between equal ones, like 2 1=3",
    "single": "1 (worst) to 7 (best)",
}
OTHERS = "s skip, u undo, f flag, c TEXT comment, ? help, q quit"
WRITES: dict[TextKind, str] = {"rewrites": "rewrite answer", "comments": "comment on answer"}
ReadLine = Callable[[], str | None]
HELP = [
    ("s", "skip: you cannot judge it; others will"),
    ("u", "take your last answer back, any number of times"),
    ("f", "flag: somebody should look at this item"),
    ("c TEXT", "a comment, saved with your answer"),
    ("q", "quit; the same command goes on where you were"),
]


def run(
    store: RatingsStore,
    labeler: str,
    order: Order,
    read_line: ReadLine,
    console: Console,
    limit: int | None = None,
    forget_typed: Callable[[], None] = lambda: None,
) -> int:
    """Let one labeler rate until nothing is left, they quit, or `limit` answers were given; return how many were.

    `read_line` waits for a line and returns it, None at the end of the input. `forget_typed` drops what was typed
    before an item is shown, lest it rate the item unseen. Skips are not counted. Ctrl-C quits.
    """
    sitting = Sitting(store, labeler, order, limit)
    shown: Assignment | None = None
    asked: str | None = None
    if sitting.progress.done == 0 and sitting.assignment is not None:
        _guideline(console, sitting)
    try:
        while True:
            if sitting.said:
                console.print(f"{sitting.said}\n", style="red" if sitting.failed else "green")
            if sitting.state == "wait":
                if sitting.waits_for == "store" and read_line() is None:
                    break
                sitting.go_on()
                continue
            if shown != sitting.assignment or shown is None:
                shown = sitting.assignment
                forget_typed()
                if not _show(console, sitting):
                    break
                sitting.seen()
                asked = None
            if sitting.assignment and asked != (asked := sitting.question):
                _ask(console, sitting)
            line = read_line()
            if line is None or not _obey(console, sitting, line.strip(), read_line):
                break
    except KeyboardInterrupt:
        pass
    console.print()
    return sitting.given_now


def _obey(console: Console, sitting: Sitting, line: str, read_line: ReadLine) -> bool:
    """Do what a line says; False to leave."""
    word = line.lower()
    command, _, rest = line.partition(" ")
    word = WORDS.get(word, word)
    sitting.say("")
    if word == "quit" or (sitting.assignment is None and word != "undo"):
        return False
    if word == "undo":
        sitting.undo()
    elif word == "help":
        _help(console, sitting)
    elif word == "skip":
        sitting.skip()
    elif word == "flag":
        sitting.flag()
    elif command.lower() in ("c", "comment"):
        sitting.comment(rest)
    elif word.startswith("+"):
        _tag(sitting, word)
    elif command.lower() == "x" and sitting.questionnaire.spans:
        _mark(sitting, rest)
    elif command.lower() in _texts(sitting):
        _write(console, sitting, _texts(sitting)[command.lower()], rest.strip(), read_line)
    else:
        assert sitting.assignment is not None
        _answer(sitting, sitting.assignment, word)
    return True


def _answer(sitting: Sitting, assignment: Assignment, word: str) -> None:
    if assignment.kind != "rank" or sitting.draft.step:
        sitting.press(ALSO.get(word, word))
        if sitting.said == NO_KEY:
            sitting.say(f"Not understood. Expected: {_expected(sitting)}; {_others(sitting)}.", failed=True)
        return
    answer = order_of(word, len(assignment.completions))
    if isinstance(answer, LabelerAnswer):
        sitting.save(answer)
    else:
        sitting.say(f"Not understood: {answer} Expected: {ASKED['rank']}; {_others(sitting)}.", failed=True)


def _tag(sitting: Sitting, word: str) -> None:
    """Set or clear the reasons of a line like `+wl`."""
    for key in word:
        if key not in "+ " and not sitting.tag(key):
            keys = " ".join(f"+{each}" for each in sitting.questionnaire.tags) or "none here"
            sitting.say(f"There is no reason +{key}. The reasons are {keys}.", failed=True)
            return


def _texts(sitting: Sitting) -> dict[str, TextKind]:
    """The commands that write about single answers, where the organiser asks for it."""
    asked = sitting.questionnaire
    commands: dict[str, TextKind] = {}
    if asked.rewrite:
        commands["e"] = "rewrites"
    if asked.comments:
        commands["m"] = "comments"
    return commands


def _write(console: Console, sitting: Sitting, kind: TextKind, which: str, read_line: ReadLine) -> None:
    """Read the lines of a rewritten answer or of a comment up to one with a dot alone."""
    assert sitting.assignment is not None
    count = len(sitting.assignment.completions)
    number = which or ("1" if count == 1 else "")
    if not number.isdecimal() or not 1 <= int(number) <= count:
        sitting.say(f"Which answer? {'e' if kind == 'rewrites' else 'm'} and a number from 1 to {count}.", failed=True)
        return
    console.print(
        "End with a line that is a dot alone; the dot and nothing before it takes the text away.", style="dim"
    )
    lines: list[str] = []
    while (line := read_line()) is not None and line.rstrip("\r\n") != ".":
        lines.append(clean(line).rstrip("\n"))
    sitting.write(kind, int(number) - 1, "\n".join(lines))


def _mark(sitting: Sitting, rest: str) -> None:
    """Mark the passage of a line like `2 1 the wrong words`; `2` alone clears the marks of that answer."""
    assert sitting.assignment is not None
    answers, kinds = sitting.assignment.completions, sitting.questionnaire.spans
    number, _, line = rest.strip().partition(" ")
    if not number.isdecimal() or not 1 <= int(number) <= len(answers):
        sitting.say(
            f"Which answer? x, a number from 1 to {len(answers)}, {_kinds(sitting)}, and the words.", failed=True
        )
        return
    place, text = int(number) - 1, answers[int(number) - 1]
    before = in_lines(text, sitting.draft.marks.get(place, []), kinds)
    marks, wrong = marks_in(text, [*before, line] if line.strip() else [], kinds)
    if wrong:
        sitting.say(
            f"Answer {number} has no such words left, or there is no such kind: {_kinds(sitting)}.", failed=True
        )
    else:
        sitting.mark(place, marks)


def _kinds(sitting: Sitting) -> str:
    return ", ".join(f"{number} {kind}" for number, kind in enumerate(sitting.questionnaire.spans, 1))


def _expected(sitting: Sitting) -> str:
    """What a line may say to the question that is asked now."""
    assert sitting.assignment is not None
    step = sitting.draft.step
    if step is None:
        return ASKED[sitting.assignment.kind]
    return SIDES if step.place is None else ASKED["single"]


def _others(sitting: Sitting) -> str:
    tags = "".join(f"+{key} {words}, " for key, words in sitting.questionnaire.tags.items())
    texts = "".join(f"{key} N {WRITES[kind]}, " for key, kind in _texts(sitting).items())
    spans = f"x N K WORDS mark what is wrong in answer N ({_kinds(sitting)}), " if sitting.questionnaire.spans else ""
    return tags + texts + spans + OTHERS


def _ask(console: Console, sitting: Sitting) -> None:
    """Print what is asked now and what may be answered."""
    if sitting.question:
        console.print(f"\n{sitting.question}", style="bold", end="")
    console.print(f"\n{_expected(sitting)}; {_others(sitting)}", style="dim")


def order_of(line: str, size: int) -> LabelerAnswer | str:
    """The order that a line like `2 1=3` gives to so many answers, or what is wrong with it."""
    ranking = Ranking(size)
    for key in line:
        wrong = "" if key in " >,\t" else ranking.press(key)
        if wrong:
            return wrong
    missing = ", ".join(map(str, ranking.left))
    return ranking.answer or f"{missing} {'has' if len(ranking.left) == 1 else 'have'} no place."


def _show(console: Console, sitting: Sitting) -> bool:
    """Print the item; False when there is none and nothing to take back."""
    assignment, progress = sitting.assignment, sitting.progress
    if assignment is None:
        console.print(
            f"{LAST} u takes your last answer back, any other line ends." if progress.done else sitting.nothing
        )
        return progress.done > 0
    console.print(position(progress), style="bold")
    for message in assignment.prompt:
        _print_text(console, one_line(message["role"]).upper(), message["content"])
    for number, text in enumerate(assignment.completions, 1):
        if assignment.kind == "pair":
            head = ("LEFT", "RIGHT")[number - 1]
        else:
            head = "ANSWER" if assignment.kind == "single" else f"ANSWER {number}"
        _print_text(console, head, text)
    return True


def _print_text(console: Console, head: str, text: str) -> None:
    """A text of the data under its head, set in, so that no line of it can be taken for a head."""
    shown = clean(text).strip("\n")
    console.print(f"\n{head}:", style="bold")
    for line in Text(shown if shown.strip() else "(empty)").wrap(console, console.width - 2):
        console.print(Text("  ") + line)


def _guideline(console: Console, sitting: Sitting) -> None:
    guideline = clean(sitting.store.settings.guideline).strip("\n")
    if guideline.strip():
        console.print("What to prefer:", style="bold")
        console.print(Text(f"{guideline}\n"))


def _help(console: Console, sitting: Sitting) -> None:
    _guideline(console, sitting)
    kind = sitting.assignment.kind if sitting.assignment else "pair"
    rows = [("2 1=3", "2 is best, 1 and 3 are equally good")] if kind == "rank" else list(keys_of(kind))
    reasons = [(f"+{key}", f"a reason, set and cleared: {words}") for key, words in sitting.questionnaire.tags.items()]
    writes = [(f"{key} N", f"{WRITES[kind]} N, in the lines that follow") for key, kind in _texts(sitting).items()]
    if sitting.questionnaire.spans:
        writes.append(("x N K WORDS", f"mark WORDS of answer N as wrong; K is {_kinds(sitting)}; x N clears them"))
    for key, words in [*rows, *reasons, *writes, *HELP]:
        console.print(f"{key:<10} {words}")


def read_line() -> str | None:
    """A line from standard input, None at its end."""
    line = sys.stdin.buffer.readline()
    return line.decode("utf-8", "replace") if line else None


def forget_typed() -> None:
    """Drop what was typed ahead at a terminal; a pipe has all its lines from the start."""
    if sys.stdin.isatty():
        termios.tcflush(sys.stdin.fileno(), termios.TCIFLUSH)
