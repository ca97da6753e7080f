"""What the commands that evaluate do at the end: the registry gets the result, and the report of the run is redone."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from alignment.errors import UserError
from alignment.terminal import one_line

if TYPE_CHECKING:
    from alignment.evaluation.recording import Records
    from alignment.registry import Registry


def keep(registry: Registry, records: Records) -> list[str]:
    """Record evaluations; returns the references of the versions that got a new one. The result stands all the same
    where the registry cannot be written."""
    from alignment.evaluation.recording import record
    from alignment.reports.report import redo_report_of  # Jinja is needed here alone

    try:
        versions = record(registry, records)
    except UserError as error:
        print(f"not in the registry: {one_line(str(error))}", file=sys.stderr)
        return []
    for version in versions:
        redo_report_of(registry, version)
    return [version.ref for version in versions]


def say_recorded(refs: list[str]) -> None:
    """Tell where the evaluations can be seen."""
    for ref in refs:
        print(one_line(f"an evaluation of {ref} is in the registry: alignment models show {ref}"), file=sys.stderr)
