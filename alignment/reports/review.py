"""A reviewer's word on a run, and on the model that it published.

It goes to two places. `RUN/reviews.jsonl` is a file of the journal, whole lines appended in one write each, which the
run itself never opens: `events.jsonl` is cut back to the checkpoint when a run goes on, and a review written meanwhile
would be lost. The registry keeps the word on a published version beside it, so that `models promote` needs no run
folder, and nobody's copy of one can speak for the model.
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
from alignment.registry.reviews import Review, add_review
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
    """Write down what a reviewer says of a run.

    Args:
        reviewer: the user's login by default.
        registry: where the run's model is; the one of its config by default.

    Raises:
        UserError: the note is empty, the run's model is not in the registry, or nothing can be written.
    """
    if not clean(note).strip():
        raise UserError("--note is empty; say in words what you saw, for whoever reads it next")
    version = _published(record, registry)
    found = verdicts_now(record)
    said = Review(
        at=datetime.now(UTC).replace(microsecond=0),
        decision=decision,
        reviewer=one_line(reviewer or "") or _login(),
        note=clean(note).strip(),
        by=user_at_host(),
        run=record.name,
        run_id=record.run.id,
        step=record.last_step,
        verdict=worst(found),
        not_measured=[verdict.title for verdict in not_measured(found)],
        judged_by=judge.text if (judge := judge_of(record.config)) else None,
        model=version[1].ref if version else None,
        digest=version[1].digest if version else None,
    )
    if version:
        add_review(*version, said)
    _append(record.path / FILE, said)
    return said


def read_reviews(run_dir: Path) -> list[Review]:
    """What was said of a run, the oldest first."""
    found = []
    for row in read_rows(run_dir / FILE):
        try:
            found.append(Review.model_validate(row))
        except ValidationError:
            continue  # a line that no review of ours is
    return found


def _published(record: RunRecord, folder: Path | None) -> tuple[Registry, Version] | None:
    """The version that this run published; None where it has published none yet."""
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
            f"{record.name} published {one_line(ref)}, and {registry.path} does not know it ({error}); name the "
            "registry that does: --registry"
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


def _append(path: Path, said: Review) -> None:
    """One write: two reviewers at once leave two lines, and a line that a full disk cut off spoils no other."""
    line = said.model_dump_json().encode() + b"\n"
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
        raise UserError(f"{path} cannot be written ({error.strerror}); mend that and say it again") from None
