"""Terminal output: untrusted text made safe to print, and progress for a screen or a log."""

from __future__ import annotations

import io
import math
import os
import re
import sys
import time
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Protocol, TextIO, TypeVar, cast

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

ShownT = TypeVar("ShownT", "LogLines", "_Bar")
REPLACEMENT = 0xFFFD
_PIPE_WIDTH = 100_000  # columns
# Category Cf, yet not a hidden control: joiners that Persian, Indic scripts and emoji are spelled with, and the
# visible number signs of Arabic, Syriac and Kaithi (Unicode's Prepended_Concatenation_Mark).
_KEPT_FORMAT = frozenset([0x200C, 0x200D, *range(0x600, 0x606), 0x6DD, 0x70F, 0x890, 0x891, 0x8E2, 0x110BD, 0x110CD])


class _SafeTable(dict[int, int]):
    """A `str.translate` table that fills itself, so that importing does not walk all of Unicode."""

    def __missing__(self, code: int) -> int:
        category = unicodedata.category(chr(code))
        if code in (0x09, 0x0A):
            safe = code
        elif code < 0x20:
            safe = 0x2400 + code  # the "control pictures" block: ESC is shown as one glyph
        elif code == 0x7F:
            safe = 0x2421
        elif category in ("Cc", "Cs", "Zl", "Zp") or (category == "Cf" and code not in _KEPT_FORMAT):
            safe = REPLACEMENT
        else:
            safe = code
        self[code] = safe
        return safe


_SAFE = _SafeTable()


def clean(text: str) -> str:
    """Untrusted text made safe to print: nothing in it can move the cursor, recolour, reorder or hide text.

    Tab and newline stay and CR LF becomes a newline. Other C0 controls and DEL become their control pictures; C1
    and bidi controls, lone surrogates, line separators and invisible format characters become U+FFFD. Idempotent.
    Rich needs this: it drops five C0 controls and lets ESC and C1 through. Print with markup off as well.
    """
    return text.replace("\r\n", "\n").translate(_SAFE)


def one_line(text: str) -> str:
    """Untrusted text, cleaned, without line breaks and tabs."""
    return " ".join(clean(text).split())


def counted(n: int, word: str) -> str:
    """`1 row`, `2 rows`, `1,200 rows`."""
    return f"{n:,} {word}{'s' * (n != 1)}"


_printed_at = time.monotonic()
_open: list[LogLines | _Bar] = []


def say(line: str) -> None:
    """Print a line to stderr in one write; `print` makes two, and another process's line may come between them."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()
    printed()


def printed() -> None:
    """Record that something was printed now."""
    global _printed_at
    _printed_at = time.monotonic()


def last_printed() -> float:
    """The time of the last output, by `time.monotonic`."""
    return _printed_at


def pause_of_lines(now: float) -> float:
    """Seconds between two lines of the active progress, which other lines must keep too; infinite for a bar."""
    return max((shown.pause(now) for shown in _open), default=0.0)


def console(stderr: bool = False) -> Console:
    """A rich console that takes no markup, emoji codes or highlighting from the text it prints."""
    return Console(stderr=stderr, markup=False, highlight=False, emoji=False)


class _Unpadded(io.TextIOBase):
    """A pipe without the blanks at the ends of lines, with which rich fills a table's last column."""

    def __init__(self, file: IO[str]) -> None:
        self._pipe = file

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return getattr(self._pipe, "encoding", None) or "utf-8"  # a StringIO has none

    def write(self, text: str) -> int:
        self._pipe.write(re.sub(r"[ \t]+(?=\n)", "", text))
        return len(text)

    def flush(self) -> None:
        self._pipe.flush()


def screen(stderr: bool = False) -> Console:
    """The console for a command's output; in a pipe nothing is wrapped or truncated."""
    output = console(stderr)
    if not output.is_terminal:
        output.width = _PIPE_WIDTH
        output.file = cast(TextIO, _Unpadded(output.file))
    return output


class ProgressLine(Protocol):
    """The progress line that `progress` yields."""

    def advance(self, n: int = 1, **fields: float) -> None:
        """Count n more steps done and show `name=value` fields behind the bar."""


@contextmanager
def progress(description: str, total: int, enabled: bool = True) -> Iterator[ProgressLine]:
    """Progress of long work on stderr: a bar on a terminal, a few plain lines in a log, nothing when not enabled.

    A total of 0 means unknown.
    """
    if not enabled:
        yield _Silent()
    elif sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("<"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[shown]}", markup=False),
        )
        redirect = sys.stdout.isatty()  # otherwise output for a pipe (--json) would go to stderr
        with (
            Progress(*columns, console=console(stderr=True), redirect_stdout=redirect) as bar,
            _opened(_Bar(bar, clean(description), total)) as shown,
        ):
            yield shown
    else:
        with _opened(LogLines(clean(description), total)) as lines:
            try:
                yield lines
            finally:
                lines.close()


@contextmanager
def _opened(shown: ShownT) -> Iterator[ShownT]:
    _open.append(shown)
    try:
        yield shown
    finally:
        _open.remove(shown)


class _Silent:
    def advance(self, n: int = 1, **fields: float) -> None:
        pass


class _Bar:
    def __init__(self, bar: Progress, description: str, total: int) -> None:
        self._bar = bar
        self._task = bar.add_task(description, total=total or None, shown="")

    def advance(self, n: int = 1, **fields: float) -> None:
        self._bar.update(self._task, advance=n, shown=_shown(fields))

    def pause(self, now: float) -> float:
        return math.inf


class LogLines:
    """Progress as plain lines: one per tenth of the work, at least a second apart, and one after a long silence.

    A long silence is 10 s at first, then a tenth of the elapsed time, so an hour's work prints about fifty lines.
    """

    def __init__(
        self, description: str, total: int, clock: Callable[[], float] = time.monotonic, file: TextIO | None = None
    ) -> None:
        self._description, self._total, self._clock, self._file = description, total, clock, file
        self._done = self._printed = 0
        self._start = self._printed_at = clock()
        self._fields: dict[str, float] = {}

    def advance(self, n: int = 1, **fields: float) -> None:
        self._done += n
        self._fields = fields
        now = self._clock()
        since = now - self._printed_at
        tenth = self._total and 10 * (self._done - self._printed) >= self._total and since >= 1.0
        if tenth or since >= max(10.0, self.pause(now)):
            self._print(now)

    def pause(self, now: float) -> float:
        """The current number of seconds between two lines."""
        return (now - self._start) / 10

    def close(self) -> None:
        """Print the final state, unless the last line did."""
        if self._done != self._printed:
            self._print(self._clock())

    def _print(self, now: float) -> None:
        of, share = (f"/{self._total}", f" ({100 * self._done // self._total}%)") if self._total else (" done", "")
        line = f"{self._description}: {self._done}{of}{share} {now - self._start:.0f} s {_shown(self._fields)}"
        print(line.rstrip(), file=self._file or sys.stderr, flush=True)
        printed()
        self._printed, self._printed_at = self._done, now


def _shown(fields: dict[str, float]) -> str:
    return " ".join(f"{name}={value:.4g}" for name, value in fields.items())
