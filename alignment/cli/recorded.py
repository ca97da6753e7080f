"""What the commands that evaluate do at the end: the registry gets the result, and the report of the run is redone."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from alignment.errors import UserError
from alignment.terminal import one_line

if TYPE_CHECKING:
    from alignment.evaluation.recording import Records
    from alignment.registry import Registry

FEWEST = 30
"""Prompts, questions or answers; a result on fewer is a trial, and is recorded only with --record."""


def add_record_options(parser: argparse.ArgumentParser) -> None:
    """--record and --no-record; without them a result on enough prompts is recorded."""
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "--record", action="store_true", help=f"put a result on fewer than {FEWEST} into the registry too"
    )
    group.add_argument("--no-record", action="store_true", help="keep the result out of the registry")


def keep(registry: Registry, records: Records, small_too: bool = False) -> list[str]:
    """Record evaluations; returns the references of the versions that got a new one. The result stands all the same
    where the registry cannot be written.

    Args:
        small_too: also those on few prompts, as --record asks.
    """
    from alignment.evaluation.recording import record
    from alignment.reports.report import redo_report_of  # Jinja is needed here alone

    try:
        versions, too_small = record(registry, records, 1 if small_too else FEWEST)
    except UserError as error:
        print(f"not in the registry: {one_line(str(error))}", file=sys.stderr)
        return []
    if too_small:
        print(
            f"{too_small} result{'s' * (too_small != 1)} on fewer than {FEWEST} prompts, questions or answers: not in "
            "the registry; --record puts them there",
            file=sys.stderr,
        )
    for version in versions:
        redo_report_of(registry, version)
    return [version.ref for version in versions]


def say_recorded(refs: list[str]) -> None:
    """Tell where the evaluations can be seen."""
    for ref in refs:
        print(one_line(f"an evaluation of {ref} is in the registry: alignment models show {ref}"), file=sys.stderr)
