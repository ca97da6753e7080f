#!/usr/bin/env python3
"""Rate pairs of answers, one key per decision. Every answer is saved before the next pair is shown.

Example:  scripts/rate.py --db runs/ratings.db --labeler ada
"""

import argparse
import json
import os
import select
import shlex
import signal
import sys
import termios
import time
import tty
from collections.abc import Callable
from types import TracebackType

if __name__ == "__main__":
    from project_python import use_project_python

    use_project_python()

from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from alignment import terminal
from alignment.errors import UserError
from alignment.ratings import Assignment, ChoiceShown, Progress, RatingsStore

SIDE_BY_SIDE = 100  # columns of a terminal from which two answers fit next to each other
CHOICES: dict[str, ChoiceShown] = {
    "1": "left",
    "l": "left",
    "left": "left",
    "2": "right",
    "r": "right",
    "right": "right",
    "t": "tie",
    "0": "tie",
    "s": "skip",
}
SAID = {
    "left": "LEFT is better",
    "right": "RIGHT is better",
    "tie": "a tie",
    "skip": "skipped",
}
KEYS = "1 left better   2 right better   t tie   s skip   u undo   ? help   q quit"
HELP = """\
1  l  left arrow     LEFT is better
2  r  right arrow    RIGHT is better
t  0                 a tie: as good, or as bad, as each other
s                    skip: you cannot judge it; others will
u                    take your last answer back, any number of times
q                    quit; the same command goes on where you were"""


def rate(
    store: RatingsStore,
    labeler: str,
    read_key: Callable[[], str],
    console: Console,
    limit: int | None = None,
    forget_typed: Callable[[], None] = lambda: None,
) -> int:
    """Let one labeler rate until nothing is left, they quit, or `limit` ratings were given; return how many.

    `read_key` waits for a decision and returns a character, "left" or "right" for the arrow keys; "q" at the end of
    input. `forget_typed` drops keys typed before a pair is on the screen, lest they rate it unseen. Skips are not
    counted. Ctrl-C quits.
    """
    start = _rated(store.progress(labeler))
    said = ""
    try:
        while True:
            progress = store.progress(labeler)
            if limit is not None and _rated(progress) - start >= limit:
                break
            assignment = store.claim(labeler)
            if assignment is None and progress.done == 0:
                console.print("There is nothing to rate here for you yet.")
                break
            forget_typed()
            if assignment is None:
                key = _ask_at_end(console, read_key, said)
            else:
                _show(console, assignment, progress, said)
                began = time.monotonic()
                key = _ask(console, read_key, store.guideline)
            if key == "q":
                break
            if key == "u":
                undone = store.undo(labeler)
                said = "Taken back; please answer again." if undone else "There is nothing to undo."
            elif assignment is not None:
                said = _save(store, assignment, CHOICES[key], time.monotonic() - began)
    except KeyboardInterrupt:
        pass
    console.print()
    return _rated(store.progress(labeler)) - start


def _rated(progress: Progress) -> int:
    return progress.done - progress.skipped


def _save(store: RatingsStore, assignment: Assignment, choice: ChoiceShown, seconds: float) -> str:
    try:
        store.submit(assignment, choice, seconds)
    except UserError as error:  # answered in another window meanwhile: the labeler goes on with the next one
        return f"Not saved: {terminal.clean(str(error))}"
    return f"Saved: {SAID[choice]} (u takes it back)."


def _ask(console: Console, read_key: Callable[[], str], guideline: str) -> str:
    """The key of a decision; help and unknown keys are dealt with here."""
    while True:
        console.print(Text(KEYS, style="dim"))
        key = read_key().lower()
        if key in CHOICES or key in ("u", "q"):
            return key
        if key == "?":
            console.print(
                Panel(Text(terminal.clean(guideline) or HELP), title="What to prefer" if guideline else "Keys")
            )
            if guideline:
                console.print(Text(HELP))
        else:
            console.print("That key does nothing here.")


def _ask_at_end(console: Console, read_key: Callable[[], str], said: str) -> str:
    console.print(f"{said}\nThat was the last one. u takes your last answer back, any other key ends.")
    return "u" if read_key().lower() == "u" else "q"


def _show(console: Console, assignment: Assignment, progress: Progress, said: str) -> None:
    if console.is_terminal:
        console.clear()
    console.print(Rule(_position(progress), align="left", style="dim"))
    console.print(f"{said}\n", style="green")
    for message in assignment.prompt:
        console.print(
            Text.assemble((f"{terminal.clean(message['role']).upper()}  ", "bold"), _body(message["content"]))
        )
        console.print()
    left, right = assignment.completions
    boxes = [_box("1 LEFT", left, "cyan"), _box("2 RIGHT", right, "magenta")]
    if console.is_terminal and console.width >= SIDE_BY_SIDE:
        table = Table.grid(expand=True, padding=(0, 1, 0, 0))
        table.add_column(ratio=1)
        table.add_column(ratio=1)
        table.add_row(*boxes)
        console.print(table)
    else:
        console.print(Group(*boxes))


def _box(title: str, text: str, style: str) -> RenderableType:
    return Panel(_body(text), title=Text(title, style=f"bold {style}"), title_align="left", border_style=style)


def _body(text: str) -> Text:
    text = terminal.clean(text).strip("\n")
    return Text(text) if text.strip() else Text("(empty)", style="dim italic")


def _position(progress: Progress) -> Text:
    parts = [f"{progress.done + 1} of {progress.total}"]
    if progress.seconds is not None:
        left = (progress.total - progress.done) * progress.seconds
        parts.append(f"~{max(1, progress.seconds):.0f} s each")
        parts.append(f"{left / 60:.0f} min left" if left >= 60 else "under a minute left")
    return Text(" | ".join(parts), style="bold")


class TerminalKeys:
    """Single keys from a terminal, no Enter needed. Leaving the `with` gives the terminal back as it was."""

    def __init__(self, descriptor: int) -> None:
        self._in = descriptor

    def __enter__(self) -> "TerminalKeys":
        self._before = termios.tcgetattr(self._in)
        tty.setcbreak(self._in)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        termios.tcsetattr(self._in, termios.TCSADRAIN, self._before)

    def read(self) -> str:
        """Wait for a key: a character, "left", "right", or "" for what is no key of ours; "q" when the line is cut."""
        first = self._byte()
        if first in (b"", b"\x04"):  # hang-up, or Ctrl-D, which cbreak mode leaves to us
            return "q"
        if first != b"\x1b":
            return first.decode("ascii", "replace")
        sequence = b""
        while select.select([self._in], [], [], 0.05)[0]:
            sequence += self._byte()
            if len(sequence) > 1 and 0x40 <= sequence[-1] <= 0x7E:
                break
        return {b"[D": "left", b"OD": "left", b"[C": "right", b"OC": "right"}.get(sequence, "")

    def forget_typed(self) -> None:
        """Drop what was typed ahead."""
        termios.tcflush(self._in, termios.TCIFLUSH)

    def _byte(self) -> bytes:
        try:
            return os.read(self._in, 1)
        except OSError:  # EIO: the terminal is gone
            return b""


def read_line() -> str:
    """A decision from a pipe: the first character of the next line, "q" at the end of the input."""
    line = sys.stdin.buffer.readline()
    return line.decode("utf-8", "replace").strip()[:1] if line else "q"


def run(args: argparse.Namespace) -> Progress:
    """Rate with the keyboard or a pipe, whichever standard input is."""
    console = terminal.console(stderr=args.json)
    with RatingsStore(args.db, seed=args.seed) as store:
        store.progress(args.labeler)  # a bad name fails before the terminal is touched
        if sys.stdin.isatty():
            # Without this a `kill` would leave the labeler's shell without echo.
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
            signal.signal(signal.SIGHUP, lambda *_: sys.exit(129))
            with TerminalKeys(sys.stdin.fileno()) as keys:
                rate(store, args.labeler, keys.read, console, forget_typed=keys.forget_typed)
        else:
            rate(store, args.labeler, read_line, console)
        progress = store.progress(args.labeler)
    skipped = f" ({progress.skipped} skipped)" if progress.skipped else ""
    console.print(f"{progress.done} of {progress.total} done{skipped}. Everything is saved. Thank you, {args.labeler}.")
    if progress.done < progress.total:
        console.print("Run the same command to go on.")
    if _rated(progress):
        console.print("To train a reward model on these ratings:", style="dim")
        console.print(
            f"  python -m reward configs/reward/demo.yaml data.train={shlex.quote(terminal.clean(args.db))}",
            style="dim",
            soft_wrap=True,
        )
    return progress


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # type: ignore[override]
        self.exit(2, f"rate.py: {message}; see rate.py --help\n")


def main() -> int:
    """Parse the command line, rate, and say how far the labeler is. Exit code 2 for a mistake in the command."""
    parser = _Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--db", required=True, metavar="F", help="ratings file, as scripts/sample.py makes it")
    parser.add_argument("--labeler", required=True, metavar="NAME", help="who rates: the same name resumes")
    parser.add_argument("--seed", type=int, metavar="N", help="order of pairs and sides (default: the file's own)")
    parser.add_argument("--json", action="store_true", help="at the end one JSON object on stdout, the rest on stderr")
    args = parser.parse_args()
    try:
        progress = run(args)
    except UserError as error:
        print(f"rate.py: {terminal.clean(str(error))}", file=sys.stderr)
        return 2
    if args.json:
        print(json.dumps({"done": progress.done, "total": progress.total, "labeler": args.labeler, "db": args.db}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
