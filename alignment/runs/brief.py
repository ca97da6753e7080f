"""A run in brief, for a list of many: the beginning and the end of its journal, however long that is.

What lies between is looked at for two things only. The newest evaluations are searched for from the end, since they may
be rare. And `events.jsonl` is read whole but for its histograms, since a finding may be anywhere; the journal writes an
event for each value that is not finite. (Journals of earlier versions did not, and their lines are looked through.)
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from alignment.runs.record import (
    RunRecord,
    known_events,
    open_rows,
    parse_rows,
    read_config,
    stage_of,
)
from alignment.runs.run import Run, read_exit
from alignment.runs.series import Series, SeriesTable

HEAD_BYTES, TAIL_BYTES = 256 << 10, 1 << 20
CHUNK_BYTES = 1 << 20
EVALUATION = b'"eval/'
NOT_FINITE = b": null"
NUM_EVALUATIONS = 3
_HISTOGRAM = b'"event": "histogram"'


def read_brief(path: Path) -> RunRecord:
    """A record of the first and the last steps, the newest evaluations, and the events without histograms or samples.

    Raises:
        UserError: as `RunRecord.read`.
    """
    config = read_config(path)
    events = list(known_events(_events(path / "events.jsonl")))
    noted = any(event.get("not_finite_events") for event in events)
    table = SeriesTable(_metric_rows(path / "metrics.jsonl", NOT_FINITE if not noted else None))
    metrics, times = table.series(), table.times()
    for event in events:
        if event.get("event") == "not_finite":
            for name in event["names"]:
                metrics.setdefault(str(name), Series()).insert(event["step"], None)
    return RunRecord(
        path, stage_of(config), config, Run.read(path) or Run(), metrics, times, [], events, read_exit(path)
    )


def _events(path: Path) -> Iterator[dict[str, Any]]:
    with open_rows(path) as file:
        yield from parse_rows(line for line in file if _HISTOGRAM not in line[:80])


def _metric_rows(path: Path, wanted: bytes | None) -> Iterator[dict[str, Any]]:
    """Rows of metrics.jsonl; `wanted` is a text that also chooses lines between the beginning and the end."""
    with open_rows(path) as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        if size <= HEAD_BYTES + TAIL_BYTES:
            yield from parse_rows(file)
            return
        head = file.read(HEAD_BYTES)
        start = head.rfind(b"\n") + 1
        yield from parse_rows(head[:start].splitlines())
        file.seek(size - TAIL_BYTES)
        file.readline()
        end = file.tell()
        yield from parse_rows(reversed(_evaluations(file, start, end)))
        if wanted is not None:
            file.seek(start)
            yield from parse_rows(line for line in _lines_until(file, end) if wanted in line)
        file.seek(end)
        yield from parse_rows(file)


def _lines_until(file: BinaryIO, end: int) -> Iterator[bytes]:
    position = file.tell()
    while position < end and (line := file.readline()):
        position += len(line)
        yield line


def _evaluations(file: BinaryIO, start: int, end: int) -> list[bytes]:
    """The last lines with evaluations between two beginnings of lines, the newest first."""
    found: list[bytes] = []
    rest = b""
    while end > start and len(found) < NUM_EVALUATIONS:
        begin = max(start, end - CHUNK_BYTES)
        file.seek(begin)
        data = file.read(end - begin) + rest
        cut = 0 if begin == start else data.find(b"\n") + 1  # the first line may have begun before
        rest, end = data[:cut], begin
        where = data.rfind(EVALUATION, cut)
        while where >= 0 and len(found) < NUM_EVALUATIONS:
            first, last = data.rfind(b"\n", 0, where) + 1, data.find(b"\n", where)
            found.append(data[first : last if last >= 0 else len(data)])
            where = data.rfind(EVALUATION, cut, first)
    return found
