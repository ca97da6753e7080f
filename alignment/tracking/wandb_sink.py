"""Weights & Biases behind one small, guarded door: nothing that happens there may stop or change a training run."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from alignment.tracking.cancel import CancelTag, tags_of

MAX_FAILURES = 3
SECRET = re.compile(r"(api[_-]?key|secret|password|passwd|hub_token|access_token|credential)", re.IGNORECASE)


def redact(value: Any, key: str = "") -> Any:
    """A config as it may leave the machine: values whose key names a secret are replaced."""
    if SECRET.search(key) and value is not None:
        return "(redacted)"
    if isinstance(value, Mapping):
        return {name: redact(item, str(name)) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [redact(item) for item in value]
    return value


@dataclass(frozen=True)
class MirroredModel:
    """What W&B is told of a published version."""

    name: str
    folder: Path
    aliases: tuple[str, ...]
    metadata: Mapping[str, Any]
    """Reference, digest, stage, role, lineage and metrics."""


class WandbSink:
    """One W&B run. Main process only. After three failures in a row it is given up with one warning.

    Args:
        run_dir: run folder; W&B's own files go to `run_dir/wandb`.
        mode: `offline` needs no account or network; `wandb sync RUN/wandb/offline-run-*` uploads later.
        config: the resolved config; redacted before it is stored.
        attempt: from 1; a run that was resumed has a W&B run of each attempt, all in one group.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        mode: Literal["offline", "online"],
        project: str,
        name: str,
        stage: str,
        config: Mapping[str, Any],
        attempt: int = 1,
    ) -> None:
        self._mode = mode
        self._run: Any = None
        self._failures = 0
        self._cancel: CancelTag | None = None

        def start() -> None:
            import wandb

            run_dir.mkdir(parents=True, exist_ok=True)
            settings = wandb.Settings(
                silent=True,
                console="off",
                disable_git=True,
                disable_code=True,
                x_disable_meta=True,  # argv and paths would otherwise be recorded
                x_disable_machine_info=True,
                x_save_requirements=False,
                x_transaction_log_flush_interval=2.0,  # 15 s by default, all of it lost at a kill
            )
            self._run = wandb.init(
                project=project,
                name=name if attempt == 1 else f"{name}-a{attempt}",
                group=name,
                job_type=stage,
                dir=str(run_dir),
                mode=mode,
                config=redact(config),
                settings=settings,
            )

        self._guarded(start)
        if self._run is None:
            self._give_up()
        elif mode == "online":
            self._guarded(lambda: setattr(self, "_cancel", CancelTag(run_dir, tags_of(self._run.path))))

    @property
    def is_open(self) -> bool:
        """Whether the run was started and has not been given up."""
        return self._run is not None

    @property
    def url(self) -> str | None:
        """Where the run can be seen; None offline."""
        found: list[str] = []
        if self._run is not None and self._mode == "online":  # W&B warns on the screen where there is none
            self._guarded(lambda: found.append(str(self._run.url)))
        return found[0] if found else None

    def mirror(self, model: MirroredModel, wait_seconds: float | None = None) -> bool:
        """Log a published model as an artifact that refers to its folder; no weights are copied or read.

        Args:
            wait_seconds: how long to wait until the server has it; None does not wait.

        Returns:
            Whether it was logged, and has arrived if that was waited for.
        """
        done = []

        def log() -> None:
            import wandb

            artifact = wandb.Artifact(model.name, type="model", metadata=dict(model.metadata))
            # checksum=False: W&B would read all the weights; the manifest's digest in the metadata says more
            artifact.add_reference(model.folder.as_uri(), checksum=False)
            logged = self._run.log_artifact(artifact, aliases=list(model.aliases))
            if wait_seconds is not None:
                logged.wait(timeout=wait_seconds)
            done.append(True)

        if self._run is not None:
            self._guarded(log)
        return bool(done)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Mirror one step's numbers."""
        if self._run is not None:
            self._guarded(lambda: self._run.log(dict(metrics), step=step))

    def samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """A fresh table of this evaluation's answers: one that grows would be written anew, whole, each time."""

    def histogram(self, step: int, name: str, counts: Any, edges: Any) -> None:
        """Mirror a histogram."""

    def finish(self, failed: bool = False) -> None:
        """End the run."""
        if self._cancel is not None:
            self._cancel.end()
        if self._run is not None:
            self._guarded(lambda: self._run.finish(exit_code=1 if failed else 0))
            self._run = None

    def _guarded(self, call: Callable[[], Any]) -> None:
        try:
            call()
            self._failures = 0
        except Exception as error:  # noqa: BLE001 - the whole point: no error of the mirror reaches the run
            self._failures += 1
            self._last = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            if self._failures >= MAX_FAILURES:
                self._give_up()

    def _give_up(self) -> None:
        self._run = None
        print(f"warning: W&B is off for the rest of this run ({self._last}); the journal goes on", file=sys.stderr)
