"""Reviews of a run and of the model that it published.

A review is stored in two places. `RUN/reviews.jsonl` gets a line in one write; the run itself never opens this file,
because `events.jsonl` is truncated to the checkpoint at a resume, which would lose a review. The registry stores the
review of a published version, so that `models promote` needs no run folder and cannot be misled by a copy of one.
"""

from __future__ import annotations

import getpass
import os
from datetime import UTC, datetime
from errno import ENOSPC
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from alignment.errors import UserError
from alignment.registry import Registry, RegistryError, Version
from alignment.registry.evaluations import Evaluation, newest_evaluations
from alignment.registry.reviews import Review, add_review, pointing_to, reviews_of
from alignment.registry.trash import user_at_host
from alignment.reports.judges import judge_of
from alignment.reports.overview import verdicts_now
from alignment.reports.verdicts import not_measured, worst
from alignment.runs.record import RunRecord, read_rows
from alignment.terminal import clean, one_line

FILE = "reviews.jsonl"
Decision = Literal["approve", "reject"]


def review(
    record: RunRecord, decision: Decision, note: str, reviewer: str | None = None, registry: Path | None = None
) -> Review:
    """Store a review of a run.

    Args:
        reviewer: the default is the user's login.
        registry: the registry of the run's model; the default is the one in its config.

    Raises:
        UserError: the note is empty, the run's model is not in the registry, or a file cannot be written.
    """
    if not clean(note).strip():
        raise UserError("--note is empty; describe what you saw, for the next reader")
    version = _published(record, registry)
    outcomes = verdicts_now(record)
    entry = Review(
        at=datetime.now(UTC).replace(microsecond=0),
        decision=decision,
        reviewer=one_line(reviewer or "") or _login(),
        note=clean(note).strip(),
        by=user_at_host(),
        run=record.name,
        run_id=record.run.id,
        step=record.last_step,
        verdict=worst(outcomes),
        not_measured=[verdict.title for verdict in not_measured(outcomes)],
        judged_by=judge.text if (judge := judge_of(record.config)) else None,
        model=version[1].ref if version else None,
        digest=version[1].digest if version else None,
    )
    if version:
        add_review(*version, entry)
    _append(record.path / FILE, entry)
    return entry


def read_reviews(run_dir: Path) -> list[Review]:
    """The reviews of a run, the oldest first."""
    reviews = []
    for row in read_rows(run_dir / FILE):
        try:
            reviews.append(Review.model_validate(row))
        except ValidationError:
            continue  # the line is not a review
    return reviews


def still_pointed_to(record: RunRecord, registry: Path | None = None) -> list[str]:
    """The aliases, such as `help-desk@prod`, that point to the run's model although its last review rejected it."""
    try:
        published = _published(record, registry)
        if published and (reviews := reviews_of(*published)) and reviews[-1].decision == "reject":
            return pointing_to(*published)
    except UserError:
        pass  # the report of a run can be read without its registry
    return []


def evaluations_of_run(record: RunRecord, registry: Path | None = None) -> list[Evaluation]:
    """The newest evaluations of the run's model; none where its registry is not at hand."""
    try:
        found = _published(record, registry)
        return newest_evaluations(*found) if found else []
    except UserError:
        return []


def _published(record: RunRecord, folder: Path | None) -> tuple[Registry, Version] | None:
    """The version that this run published; None if there is none yet."""
    ref = record.published
    if ref is None:
        return None
    settings = record.config.get("registry") or {}
    registry = Registry(folder or settings.get("path"))
    name = ref.partition("@")[0]
    try:
        version = registry.resolve(ref)
    except RegistryError as error:
        raise UserError(
            f"{record.name} published {one_line(ref)}, but it is not in {registry.path} ({error}); name the "
            "registry that has it: --registry"
        ) from None
    if record.run.attempts and version.manifest.publish_id != record.run.publish_id(name):
        raise UserError(
            f"{version.ref} in {registry.path} was published by another run than {record.path}; name the registry "
            "of this one: --registry"
        )
    return registry, version


def _login() -> str:
    try:
        return one_line(getpass.getuser())
    except (KeyError, OSError):  # a container's user may have no name
        return str(os.getuid())


def _append(path: Path, entry: Review) -> None:
    """Append a line in one write, so that concurrent reviews do not mix and a truncated line does not damage others."""
    line = entry.model_dump_json().encode() + b"\n"
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            size = os.fstat(descriptor).st_size
            if size and os.pread(descriptor, 1, size - 1) != b"\n":
                line = b"\n" + line
            if os.write(descriptor, line) < len(line):
                raise OSError(ENOSPC, os.strerror(ENOSPC))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}); fix that and run the command again") from None
