"""Live terminal view of a run: `alignment runs watch`."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.text import Text

from alignment.errors import UserError
from alignment.reports import overview
from alignment.reports.judges import judge_of
from alignment.reports.verdicts import OUTCOMES, Verdict
from alignment.runs.journal import FILES
from alignment.runs.record import (
    RunRecord,
    Series,
    Times,
    add_metrics,
    known_events,
    parse_rows,
    read_config,
    read_exit,
    stage_of,
)
from alignment.runs.run import Run
from alignment.terminal import one_line

STATE_STYLES = {"running": "cyan", "done": "green", "failed": "red", "preempted": "yellow", "killed": "red"}
OUTCOME_STYLES = {"pass": "green", "warn": "yellow", "not measured": "cyan", "fail": "bold red"}
PIPE_WIDTH = 100
CHART_ROWS = 3
MIN_CHART = 36
"""Minimum width of a chart in columns."""
SHOWN_SAMPLES = 4
_OVERLAP = 1024


class Tail:
    """Reads the complete lines of a growing file, each once.

    A line is read when its end is written. If the file was truncated or replaced, as a resume does, it is read again
    from the beginning; this is detected by the last bytes read, which have changed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offset = 0
        self._last = b""
        """The bytes before the offset, at most _OVERLAP of them."""

    def read(self) -> tuple[bool, list[dict[str, Any]]]:
        """Return whether reading restarted at the first line, and the rows of the new complete lines."""
        try:
            with self.path.open("rb") as file:
                file.seek(self._offset - len(self._last))
                restarted = file.read(len(self._last)) != self._last
                if restarted:
                    self._offset, self._last = 0, b""
                    file.seek(0)
                data = file.read()
        except FileNotFoundError:
            restarted, data = self._offset > 0, b""
            self._offset, self._last = 0, b""
        complete = data[: data.rfind(b"\n") + 1]
        self._offset += len(complete)
        self._last = (self._last + complete)[-_OVERLAP:]
        return restarted, list(parse_rows(complete.split(b"\n")))


class Follower:
    """A run's record that grows with its journal; like `RunRecord.read` without an incomplete last line.

    Raises:
        UserError: the folder is not a run.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._tails = {name: Tail(path / f"{name}.jsonl") for name in FILES}
        self._metrics: dict[str, Series] = {}
        self._times = Times()
        self._lists: dict[str, list[dict[str, Any]]] = {"samples": [], "events": []}

    def poll(self) -> RunRecord:
        """Read new lines and return the updated record."""
        for name, tail in self._tails.items():
            restarted, rows = tail.read()
            if name == "metrics":
                if restarted:
                    self._metrics, self._times = {}, Times()
                for row in rows:
                    add_metrics(row, self._metrics, self._times)
            else:
                if restarted:
                    self._lists[name] = []
                self._lists[name] += known_events(rows) if name == "events" else rows
        config, run = read_config(self.path), Run.read(self.path) or Run()
        return RunRecord(
            self.path, stage_of(config), config, run, self._metrics, self._times, **self._lists,
            exit=read_exit(self.path),
        )  # fmt: skip


def watch(path: Path, console: Console, once: bool = False, interval: float = 1.0) -> RunRecord:
    """Show a run until it is done, has failed, or Ctrl-C is pressed; without a terminal, show it once.

    A preempted or killed run may be resumed, so it is still watched.
    """
    follower = Follower(path)
    record = follower.poll()
    live = console.is_terminal and not console.is_dumb_terminal and not once
    if live and _may_resume(record):
        screen = Live(View(record, full_screen=True), console=console, screen=True, auto_refresh=False)
        with suppress(KeyboardInterrupt):
            try:  # not `with`: Ctrl-C during entry would leave the terminal in the alternate screen
                screen.start(refresh=True)
                while _may_resume(record):
                    time.sleep(interval)
                    with suppress(UserError):  # a restarting run may be writing its config
                        record = follower.poll()
                    screen.update(View(record, full_screen=True), refresh=True)
            finally:
                screen.stop()
    console.print(View(record))
    return record


def _may_resume(record: RunRecord) -> bool:
    return overview.state_of(record) not in ("done", "failed")


class View:
    """A run as lines of text that fit the screen's width, and its height with `full_screen`."""

    def __init__(self, record: RunRecord, full_screen: bool = False, now: float | None = None) -> None:
        self.record, self.full_screen = record, full_screen
        self.now = time.time() if now is None else now

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = options.max_width
        for line in self.lines(width, options.size.height if self.full_screen else None, options.ascii_only):
            line.truncate(width, overflow="crop" if options.ascii_only else "ellipsis")
            if options.ascii_only:
                line.plain = line.plain.encode("ascii", "replace").decode()
            yield line

    def lines(self, width: int, height: int | None, ascii_only: bool) -> list[Text]:
        """The lines of the view: head, verdicts, charts, samples. With little height, passed verdicts and less
        important charts are left out."""
        limit = None if height is None else max(2, height // 6)
        head = [*self._head(width, ascii_only), *self._verdicts(limit), *self._single_values()]
        columns = max(1, min(3, width // MIN_CHART))
        charts = self._charts((width - 2 * (columns - 1)) // columns, ascii_only)
        samples = self._samples()
        if height is not None:
            left = height - len(head) - min(sum(map(len, samples)), max(3, height // 5))
            rows = max(0, left // (CHART_ROWS + 1))
            charts = charts[: rows * columns]
        body = head + _in_columns(charts, columns)
        for sample in samples:
            if height is None or len(body) + len(sample) <= height:  # a prompt needs its answer
                body += sample
        return body[:height]

    def _head(self, width: int, ascii_only: bool) -> list[Text]:
        record, state = self.record, overview.state_of(self.record, self.now)
        total, step = overview.total_steps(record), record.last_step
        title = Text.assemble(
            (one_line(record.name), "bold"), "  ", record.stage, "  ", (state, STATE_STYLES[state]), f"  step {step}"
        )
        if total:
            share = min(1.0, step / total)
            done = round(share * 16)
            full, empty = ("#", "-") if ascii_only else ("\u2588", "\u2591")
            title.append(f" of {total} {full * done}{empty * (16 - done)} {share:.0%}")
        left = overview.seconds_left(record)
        if state == "running" and left is not None:
            title.append(f"  {overview.clock(left)} left")
        if record.run.attempt > 1:
            title.append(f"  attempt {record.run.attempt}")
        details = [f"last line {overview.span(overview.age(record, self.now))} ago"]
        if seconds := overview.step_seconds(record):
            details.append(f"{seconds:.3g} s a step")
        phases = {name: series.last for name, series in record.metrics.items() if name.startswith("time/")}
        details += [f"{one_line(name[5:])} {value:.3g} s" for name, value in phases.items() if value is not None]
        return [title, Text("  ".join(details), style="dim")]

    def _verdicts(self, limit: int | None) -> list[Text]:
        """The counts of outcomes, and a line for each check that did not pass, the worst first."""
        run_verdicts = overview.verdicts_now(self.record, self.now)
        counts = {outcome: sum(verdict.outcome == outcome for verdict in run_verdicts) for outcome in OUTCOME_STYLES}
        strip = Text("verdict  ")
        for outcome in OUTCOMES:
            strip.append(f"{outcome} {counts[outcome]}  ", OUTCOME_STYLES[outcome] if counts[outcome] else "dim")
        if "eval/win_rate" in self.record.metrics and (judge := judge_of(self.record.config)):
            strip.append(f"win rate judged by {one_line(judge.short)}", "dim")
        not_passed = [verdict for verdict in run_verdicts if verdict.outcome != "pass"]
        shown = not_passed if limit is None or len(not_passed) <= limit else not_passed[: limit - 1]
        lines = [strip, *(_verdict_line(verdict) for verdict in shown)]
        if len(shown) < len(not_passed):
            lines.append(Text(f"  and {len(not_passed) - len(shown)} more: alignment runs show", style="dim"))
        return lines

    def _single_values(self) -> list[Text]:
        """Main metrics with only one value, which have no chart."""
        single = [name for name, series in overview.main_series(self.record) if len(series.steps) == 1]
        if not single:
            return []
        line = Text("metrics  ")
        for name in single:
            line.append(one_line(name), "bold")
            line.append(f" {self._last(name)}  ")
        return [line]

    def _last(self, name: str) -> str:
        """A metric's last value with its unit and interval."""
        value = overview.number(self.record.metrics[name].values[-1], overview.unit_of(self.record, name))
        ends = overview.interval(self.record, name)
        return f"{value} [{ends[0]:.3g}, {ends[1]:.3g}]" if ends else value

    def _charts(self, width: int, ascii_only: bool) -> list[list[Text]]:
        from alignment.reports.braille import chart  # imports numpy

        charts = []
        for name, series in overview.main_series(self.record):
            known = [value for value in series.values if value is not None]
            if len(series.steps) == 1:
                continue
            title = Text.assemble((one_line(name), "bold"), " ", self._last(name))
            scale = f"  {min(known):.3g} to {max(known):.3g}"
            if title.cell_len + len(scale) > width:
                title = Text.assemble((one_line(name), "bold"), f" {overview.number(series.values[-1])}")
            if title.cell_len + len(scale) <= width:
                title.append(scale, "dim")
            lines = [title, *(Text(row, "cyan") for row in chart(series, width, CHART_ROWS, ascii_only))]
            for line in lines:
                line.truncate(width, overflow="ellipsis", pad=True)
            charts.append(lines)
        return charts

    def _samples(self) -> list[list[Text]]:
        """The lines of each sample; the first one has the title."""
        rows = self.record.samples
        latest = [row for row in rows if row.get("step") == rows[-1].get("step")][:SHOWN_SAMPLES] if rows else []
        samples: list[list[Text]] = []
        for row in latest:
            title = Text(f"samples of step {one_line(str(row.get('step')))}", style="bold")
            lines = [*([] if samples else [title]), Text.assemble(("> ", "dim"), (asked(row), "dim"))]
            numbers = [f"{name} {row[name]:.3g}" for name in ("score", "kl") if isinstance(row.get(name), int | float)]
            for name in ("response", "first", "second", "reference"):
                if name in row:
                    text = one_line(_text(row[name]))
                    label = "" if name == "response" else f"{name}: "
                    lines.append(Text.assemble("  ", (label, "dim"), text, (f"  {'  '.join(numbers)}", "dim")))
                    numbers = []
            samples.append(lines)
        return samples


def asked(row: dict[str, Any]) -> str:
    """The last turn of a sample's prompt, on one line."""
    return one_line(_text(row.get("prompt")))


def _text(value: Any) -> str:
    """The text of a message, of the last of several messages, or of any other value."""
    if isinstance(value, list) and value:
        value = value[-1]
    if isinstance(value, dict):
        value = value.get("content", value)
    return value if isinstance(value, str) else json.dumps(value)


def _verdict_line(verdict: Verdict) -> Text:
    reason = one_line(verdict.reason)
    at = "" if verdict.step is None else f" (step {verdict.step})"
    return Text.assemble(
        (f"  {verdict.outcome} ", OUTCOME_STYLES[verdict.outcome]), (one_line(verdict.title), "bold"), f": {reason}{at}"
    )


def _in_columns(charts: list[list[Text]], columns: int) -> list[Text]:
    lines = []
    for start in range(0, len(charts), columns):
        side_by_side = zip(*charts[start : start + columns], strict=True)
        lines += [Text("  ").join(cells) for cells in side_by_side]
    return lines
