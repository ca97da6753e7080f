"""RUN/run.json: which run a folder holds, how often it was started, and the models that it pinned.

A job that is killed and started again is one run: it goes on from a checkpoint, with the same models, and publishes
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
from alignment.files import host_name
from alignment.runs.checkpoint import committed
from alignment.runs.journal import finite

FILE = "run.json"


def write_exit(run_dir: Path, code: int, reason: str, **more: Any) -> None:
    """RUN/exit.json: how this attempt ended, for whoever starts the next."""
    saved = committed(run_dir)
    record = {"code": code, "reason": reason, **more, "last_checkpoint": saved[0].name if saved else None}
    (run_dir / "exit.json").write_text(json.dumps(finite(record), indent=2) + "\n", encoding="utf-8")


class Attempt(BaseModel):
    """One start of the run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    started_at: AwareDatetime
    resumed_from: str | None = None
    """The checkpoint's folder name, such as step-000040; None where it began at the beginning."""
    host: str | None = None
    pid: int | None = None
    """The main process: by it a run that was killed is told from one that goes on."""


class Run(BaseModel):
    """What is written to run.json."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(default_factory=lambda: uuid.uuid4().hex)
    attempts: tuple[Attempt, ...] = ()
    models: dict[str, str] = {}
    """What each reference of the config meant when the run began: `sft@prod` -> `sft@sha256:...`."""

    @classmethod
    def read(cls, run_dir: Path) -> Run | None:
        """None where there is none, as in a folder that no command line opened.

        Raises:
            UserError: the file is damaged.
        """
        path = run_dir / FILE
        try:
            return cls.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValidationError) as error:
            raise UserError(
                f"{path} cannot be read ({str(error).splitlines()[0]}), and says which run this is; start again with "
                "--overwrite or under another name"
            ) from None

    def write(self, run_dir: Path) -> Run:
        """Put the file in place, whole."""
        part = run_dir / f".{FILE}.part"
        part.write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")
        part.replace(run_dir / FILE)
        return self

    def started(self, resumed_from: str | None) -> Run:
        """The same run with one more attempt."""
        attempt = Attempt(started_at=datetime.now(UTC), resumed_from=resumed_from, host=host_name(), pid=os.getpid())
        return self.model_copy(update={"attempts": (*self.attempts, attempt)})

    @property
    def attempt(self) -> int:
        """From 1."""
        return max(1, len(self.attempts))

    @property
    def resumed_from(self) -> str | None:
        """The checkpoint that this attempt goes on from."""
        return self.attempts[-1].resumed_from if self.attempts else None

    def publish_id(self, name: str) -> str:
        """By which a publish of this run is known when it is tried again."""
        return f"{self.id}-{name}"
