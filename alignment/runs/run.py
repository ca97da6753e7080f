"""RUN/run.json: which run a folder holds, how often it was started, and the models that it pinned.

A job that is killed and started again is one run: it resumes from a checkpoint, with the same models, and publishes
once.
"""

from __future__ import annotations

import json
import os
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from alignment.errors import UserError
from alignment.files import host_name, read_file, replace_text
from alignment.runs import reserve
from alignment.runs.checkpoint import committed
from alignment.runs.journal import finite
from alignment.terminal import one_line, say

FILE = "run.json"
EXIT_FILE = "exit.json"


def write_exit(run_dir: Path, code: int, reason: str, **more: Any) -> None:
    """Write RUN/exit.json: how this attempt ended, for a job script. On a full disk it takes the room kept back for it,
    and where even that fails a line says so."""
    path = run_dir / EXIT_FILE
    try:
        saved = committed(run_dir)
        record = {"code": code, "reason": reason, **more, "last_checkpoint": saved[0].name if saved else None}
        text = json.dumps(finite(record), indent=2) + "\n"
        try:
            replace_text(path, text)
        except OSError:
            reserve.become(path, text)
    except OSError as error:
        say(one_line(f"warning: {path} cannot be written ({error.strerror or error}); the exit code is {code}"))
    else:
        reserve.drop(run_dir)


def read_exit(run_dir: Path) -> dict[str, Any] | None:
    """RUN/exit.json; None while the run is in progress, or if it was killed."""
    try:
        record = json.loads(read_file(run_dir / EXIT_FILE))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) else None


class Attempt(BaseModel):
    """One start of the run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    started_at: AwareDatetime
    resumed_from: str | None = None
    """The checkpoint's folder name, such as step-000040; None for a start from scratch."""
    host: str | None = None
    pid: int | None = None
    """The main process, which tells a killed run from one in progress."""


class Run(BaseModel):
    """The contents of run.json."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(default_factory=lambda: uuid.uuid4().hex)
    attempts: tuple[Attempt, ...] = ()
    models: dict[str, str] = {}
    """Each reference of the config, resolved when the run began: `sft@prod` -> `sft@sha256:...`."""

    @classmethod
    def read(cls, run_dir: Path) -> Run | None:
        """Read run.json; None if there is none, as in a folder that no command line opened.

        Raises:
            UserError: the file is damaged.
        """
        path = run_dir / FILE
        try:
            return cls.model_validate_json(read_file(path))
        except FileNotFoundError:
            return None
        except (OSError, ValidationError) as error:
            raise UserError(
                f"{path}, which identifies the run, cannot be read ({str(error).splitlines()[0]}); start again with "
                "--overwrite or under another name"
            ) from None

    def write(self, run_dir: Path) -> Run:
        """Write the file atomically."""
        replace_text(run_dir / FILE, self.model_dump_json(indent=2) + "\n")
        return self

    def started(self, resumed_from: str | None) -> Run:
        """The same run with one more attempt."""
        attempt = Attempt(started_at=datetime.now(UTC), resumed_from=resumed_from, host=host_name(), pid=os.getpid())
        return self.model_copy(update={"attempts": (*self.attempts, attempt)})

    @property
    def attempt(self) -> int:
        """The number of this attempt, from 1."""
        return max(1, len(self.attempts))

    @property
    def resumed_from(self) -> str | None:
        """The checkpoint that this attempt resumes from."""
        return self.attempts[-1].resumed_from if self.attempts else None

    def publish_id(self, name: str) -> str:
        """The id by which a repeated publish of this run is recognised."""
        return f"{self.id}-{name}"
