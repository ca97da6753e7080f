"""Weights & Biases behind one small, guarded door: nothing that happens there may stop or change a training run.

A thread of its own makes every call, so that one that hangs holds up the thread alone; what the run waits for
(`finish`, `url`, an artifact that is asked for) it waits for at most so many seconds.
"""

from __future__ import annotations

import contextlib
import math
import os
import queue
import sys
import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from alignment.redaction import redact, without_secrets
from alignment.runs.journal import MirroredModel
from alignment.tracking.cancel_tag import CancelTag, tags_of

MAX_FAILURES = 3
START_SECONDS = 30.0
"""To reach a server, and for W&B's own process to come up."""
FINISH_SECONDS = 60.0
MAX_WAITING = 10_000
"""Calls: more than W&B leaves undone for as long as it takes to start, even where a step takes a millisecond."""
TEXTS = ("prompt", "response", "reference", "first", "second")
"""What people and models wrote, of a row of samples."""
STEP = "step"
"""The axis of all charts. W&B's own step counts calls: it would hold back the latest until the next one begins, and
refuse those of an evaluation that comes later at the same one."""


class WandbSink:
    """One W&B run. Main process only. After three failures in a row it is given up with one warning.

    Args:
        run_dir: run folder; W&B's own files go to `run_dir/wandb`.
        mode: `offline` needs no account or network; `wandb sync RUN/wandb/offline-run-*` uploads later.
        config: the resolved config; redacted before it is stored.
        group: W&B shows its runs together; None: those of this name.
        run_id: W&B's, of the first attempt; None: a new one.
        attempt: from 1; a run that was resumed has a W&B run of each attempt, all in one group.
        text: whether tables of samples hold prompts and responses, or their lengths alone.
        patient: for a command that does nothing else: it waits for W&B, as long as that takes, and an online run that
            cannot be started is not made an offline one.
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
        group: str | None = None,
        run_id: str | None = None,
        attempt: int = 1,
        text: bool = False,
        patient: bool = False,
    ) -> None:
        self._run_dir, self._mode, self._text, self._patient = run_dir, mode, text, patient
        later = "" if attempt == 1 else f"-a{attempt}"
        self._options = {
            "project": project,
            "name": f"{name}{later}",
            "group": group or name,
            "job_type": stage,
            "dir": str(run_dir),
            "config": redact(config),
            # Never left to W&B, which would go on with another run under the WANDB_RUN_ID of the environment.
            "id": f"{run_id}{later}" if run_id else uuid.uuid4().hex[:12],
        }
        self._run: Any = None
        self._is_online = False
        self._cancel: CancelTag | None = None
        self._failures, self._last, self._given_up, self._ended = 0, "", False, False
        self.lost = 0
        """Calls that failed."""
        self._end: Callable[[], Any] | None = None
        """The last call."""
        self._calls: queue.Queue[Callable[[], Any]] = queue.Queue(MAX_WAITING)
        self._thread = threading.Thread(target=self._work, name="wandb", daemon=True)
        self._thread.start()

    @property
    def is_open(self) -> bool:
        """Whether the run was started and has not been given up."""
        return bool(self._ask(lambda: self._run is not None, 2 * START_SECONDS))

    @property
    def last_error(self) -> str:
        """Of the last call that failed."""
        return self._last

    @property
    def url(self) -> str | None:
        """Where the run can be seen; None offline."""
        if self._mode != "online":
            return None
        # W&B warns on the screen where there is none
        found = self._ask(lambda: str(self._run.url) if self._is_online else None, START_SECONDS)
        return None if found is None else str(found)

    def mirror(self, model: MirroredModel, wait_seconds: float | None = None) -> bool:
        """Log a published model as an artifact that refers to its folder; no weights are copied or read.

        Args:
            wait_seconds: how long to wait until the server has it; None does not wait.

        Returns:
            Whether it was logged, and has arrived if that was waited for.
        """

        def log() -> bool:
            import wandb

            artifact = wandb.Artifact(model.name, type="model", metadata=redact(dict(model.metadata)))
            # checksum=False: W&B would read all the weights; the manifest's digest in the metadata says more
            artifact.add_reference(model.folder.as_uri(), checksum=False)
            logged = self._run.log_artifact(artifact, aliases=list(model.aliases))
            if wait_seconds is not None:
                logged.wait(timeout=wait_seconds)
            return True

        return bool(self._ask(log, START_SECONDS + (wait_seconds or 0.0)))

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Mirror one step's numbers."""
        row = {**metrics, STEP: step}
        self._submit(lambda: self._run.log(row))

    def samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """A fresh table of this evaluation's answers: one that grows would be written anew, whole, each time."""

        def log() -> None:
            import wandb

            columns, table = as_table(rows, self._text)
            self._run.log({"samples": wandb.Table(columns=columns, data=table), STEP: step})

        if rows:
            self._submit(log)

    def histogram(self, step: int, name: str, counts: Any, edges: Any) -> None:
        """Mirror a histogram; its name is often that of a metric too."""

        def log() -> None:
            import wandb

            self._run.log({f"histograms/{name}": wandb.Histogram(np_histogram=(counts, edges)), STEP: step})

        self._submit(log)

    def summary(self, fields: Callable[[], Mapping[str, str]]) -> None:
        """Put texts into the run's summary, where a table of runs shows them; making them is guarded too."""
        self._submit(lambda: self._run.summary.update(dict(fields())))

    def finish(self, failed: bool = False) -> None:
        """End the run; the process that W&B began ends in time, or is ended."""

        def end() -> None:
            self._run.finish(exit_code=1 if failed else 0)
            self._ended = True

        if self._cancel is not None:
            self._cancel.end()
        self._end = end
        self._submit(end)
        if not self._given_up:
            self._thread.join(None if self._patient else FINISH_SECONDS)
            if self._thread.is_alive():
                self._last = f"it did not finish within {FINISH_SECONDS:.0f} s"
                self._give_up()
        if not self._ended:
            _end_process()
        self._given_up = True  # no more calls

    # --- the thread ---------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        self._guarded(self._start)
        if self._run is None:
            self._give_up()
        call = None
        while call is None or call is not self._end:
            call = self._calls.get()
            if not self._given_up:
                self._guarded(call)

    def _start(self) -> None:
        if self._mode == "offline" or self._patient:
            self._run = self._begin(self._mode)
            return
        try:
            self._run = self._begin("online")
        except Exception as error:  # noqa: BLE001 - a dead server, a bad key, a proxy: the run can do without
            print(
                f"warning: W&B is offline for this run ({_in_a_line(error)}); upload it later with `wandb sync "
                f"{self._run_dir}/wandb/offline-run-*`",
                file=sys.stderr,
            )
            # Under another id: W&B's process keeps the one that failed, and would take nothing in under it.
            self._options["id"] = f"{self._options['id']}-offline"
            self._run = self._begin("offline")

    def _begin(self, mode: str) -> Any:
        # Without a key W&B would ask for one on the terminal, and wait; its process would report errors to a server.
        for name, value in (("WANDB_SILENT", "true"), ("WANDB_ERROR_REPORTING", "false")):
            os.environ.setdefault(name, value)
        import wandb

        self._run_dir.mkdir(parents=True, exist_ok=True)
        settings = wandb.Settings(
            silent=True,
            console="off",
            disable_git=True,
            disable_code=True,
            init_timeout=START_SECONDS,
            x_service_wait=START_SECONDS,
            x_disable_meta=True,  # argv and paths would otherwise be recorded
            x_disable_machine_info=True,
            host="not recorded",
            x_save_requirements=False,
            x_transaction_log_flush_interval=2.0,  # 15 s by default, all of it lost at a kill
        )
        run = wandb.init(mode=mode, settings=settings, **self._options)
        run.define_metric(STEP, hidden=True)
        run.define_metric("*", step_metric=STEP)
        self._is_online = mode == "online"
        if self._is_online and not self._patient:
            self._cancel = CancelTag(self._run_dir, tags_of(run.path))
        return run

    def _submit(self, call: Callable[[], Any]) -> None:
        if self._given_up:
            return
        try:
            self._calls.put(call, self._patient)
        except queue.Full:
            self._last = f"{MAX_WAITING} calls are waiting for it"
            self._give_up()

    def _ask(self, call: Callable[[], Any], seconds: float) -> Any:
        """What a call gives, None where it fails or is not done in time."""
        found: list[Any] = []
        done = threading.Event()

        def answer() -> None:
            try:
                found.append(call())
            finally:
                done.set()

        self._submit(answer)
        deadline = math.inf if self._patient else seconds
        while not self._given_up and not done.wait(min(0.1, deadline)) and deadline > 0:
            deadline -= 0.1
        return found[0] if found else None

    def _guarded(self, call: Callable[[], Any]) -> None:
        try:
            call()
            self._failures = 0
        except Exception as error:  # noqa: BLE001 - the whole point: no error of the mirror reaches the run
            self._failures += 1
            self.lost += 1
            self._last = _in_a_line(error)
            if self._failures >= MAX_FAILURES:
                self._give_up()

    def _give_up(self) -> None:
        if not self._given_up:
            self._given_up = True
            print(f"warning: W&B is off for the rest of this run ({self._last}); the journal goes on", file=sys.stderr)


def as_table(rows: Sequence[Mapping[str, Any]], text: bool) -> tuple[list[str], list[list[Any]]]:
    """Columns and rows of a table of samples: numbers, and texts or how many characters they have."""
    flat = []
    for row in rows:
        found: dict[str, Any] = {}
        for name, value in row.items():
            if name in TEXTS:
                said = value if isinstance(value, str) else "\n\n".join(f"{t['role']}: {t['content']}" for t in value)
                found |= {name: said} if text else {f"{name} characters": len(said)}
            elif isinstance(value, Mapping):
                found |= {f"{name} {key}": item for key, item in value.items()}
            else:
                found[name] = None if isinstance(value, float) and not math.isfinite(value) else value
        flat.append(found)
    columns = list(dict.fromkeys(name for row in flat for name in row))
    return columns, [[row.get(name) for name in columns] for row in flat]


def _in_a_line(error: Exception) -> str:
    return without_secrets(f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")


def _end_process() -> None:
    """End W&B's own process where it may hang or is gone: the interpreter would wait for it at exit."""
    with contextlib.suppress(Exception):  # none was started; or W&B holds it otherwise than in 0.31
        connection = sys.modules["wandb"].sdk.wandb_setup.singleton()._connection
        connection._cleanup()
        connection._proc._process.kill()
