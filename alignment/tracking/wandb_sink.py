"""A guarded interface to Weights & Biases: its failures never stop or change a training run.

A separate thread makes all calls, so that a call that hangs blocks only this thread. The run waits for some results
(`finish`, `url`, a requested artifact) with a timeout.
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
"""Timeout for reaching the server and for the start of W&B's process."""
FINISH_SECONDS = 60.0
MAX_WAITING = 10_000
"""Maximum number of queued calls; enough for the start of W&B even with steps of a millisecond."""
TEXTS = ("prompt", "response", "reference", "first", "second")
"""Fields of a row of samples that hold text."""
STEP = "step"
"""The x axis of all charts. W&B's own step must increase with every call, so it would delay the last row and reject a
later evaluation at the same step."""


class WandbSink:
    """One W&B run, for the main process only. After three failures in a row it is given up with one warning.

    Args:
        run_dir: run folder; W&B's own files go to `run_dir/wandb`.
        mode: `offline` needs no account or network; `wandb sync RUN/wandb/offline-run-*` uploads later.
        config: the resolved config; redacted before it is stored.
        group: W&B's group of runs; None: the name.
        run_id: W&B id of the first attempt; None: a new id.
        attempt: counts from 1; each attempt of a resumed run has its own W&B run in the same group.
        text: whether tables of samples hold prompts and responses, or only their lengths.
        patient: for commands that only write to W&B: wait without a timeout, and do not fall back to an offline run.
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
            # Always set, because W&B would otherwise continue the run of the environment's WANDB_RUN_ID.
            "id": f"{run_id}{later}" if run_id else uuid.uuid4().hex[:12],
        }
        self._run: Any = None
        self._is_online = False
        self._cancel: CancelTag | None = None
        self._failures, self._last, self._given_up, self._ended = 0, "", False, False
        self.lost = 0
        """Number of failed calls."""
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
        """The error of the last failed call."""
        return self._last

    @property
    def url(self) -> str | None:
        """The run's URL; None offline."""
        if self._mode != "online":
            return None
        # W&B prints a warning if an offline run has no URL
        url = self._ask(lambda: str(self._run.url) if self._is_online else None, START_SECONDS)
        return None if url is None else str(url)

    def mirror(self, model: MirroredModel, wait_seconds: float | None = None) -> bool:
        """Log a published model as an artifact that refers to its folder; no weights are copied or read.

        Args:
            wait_seconds: timeout for the server's confirmation; None does not wait.

        Returns:
            Whether it was logged, and confirmed if `wait_seconds` is set.
        """

        def log() -> bool:
            import wandb

            artifact = wandb.Artifact(model.name, type="model", metadata=redact(dict(model.metadata)))
            # checksum=False avoids reading all weights; the metadata has the manifest's digest
            artifact.add_reference(model.folder.as_uri(), checksum=False)
            logged = self._run.log_artifact(artifact, aliases=list(model.aliases))
            if wait_seconds is not None:
                logged.wait(timeout=wait_seconds)
            return True

        return bool(self._ask(log, START_SECONDS + (wait_seconds or 0.0)))

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Mirror one step's metrics."""
        row = {**metrics, STEP: step}
        self._submit(lambda: self._run.log(row))

    def samples(self, step: int, rows: Sequence[Mapping[str, Any]], name: str = "samples") -> None:
        """Mirror an evaluation's answers as a new table; a growing table would be rewritten each time."""

        def log() -> None:
            import wandb

            columns, table = as_table(rows, self._text)
            self._run.log({name: wandb.Table(columns=columns, data=table), STEP: step})

        if rows:
            self._submit(log)

    def histogram(self, step: int, name: str, counts: Any, edges: Any) -> None:
        """Mirror a histogram, with a prefix because a metric often has the same name."""

        def log() -> None:
            import wandb

            self._run.log({f"histograms/{name}": wandb.Histogram(np_histogram=(counts, edges)), STEP: step})

        self._submit(log)

    def page(self, text: str, name: str) -> None:
        """Mirror a self-contained page if texts are wanted in W&B, since it shows them."""

        def log() -> None:
            import wandb

            self._run.log({name: wandb.Html(text, inject=False)})

        if self._text:
            self._submit(log)

    def summary(self, fields: Callable[[], Mapping[str, str | float]]) -> None:
        """Add values to the run's summary, which W&B's table of runs shows; `fields` is guarded too."""
        self._submit(lambda: self._run.summary.update(dict(fields())))

    def finish(self, failed: bool = False) -> None:
        """End the run; W&B's process is killed if it does not end in time."""

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
        except Exception as error:  # noqa: BLE001 - a server failure, a wrong key or a proxy must not stop the run
            print(
                f"warning: W&B is offline for this run ({_in_a_line(error)}); upload it later with `wandb sync "
                f"{self._run_dir}/wandb/offline-run-*`",
                file=sys.stderr,
            )
            # A new id, because W&B's process rejects data for the failed one.
            self._options["id"] = f"{self._options['id']}-offline"
            self._run = self._begin("offline")

    def _begin(self, mode: str) -> Any:
        # Without a key, W&B would prompt on the terminal; its process would report errors to a server.
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
            x_transaction_log_flush_interval=2.0,  # the default of 15 s would be lost at a kill
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
        """The result of a call, or None if it fails or times out."""
        results: list[Any] = []
        done = threading.Event()

        def answer() -> None:
            try:
                results.append(call())
            finally:
                done.set()

        self._submit(answer)
        deadline = math.inf if self._patient else seconds
        while not self._given_up and not done.wait(min(0.1, deadline)) and deadline > 0:
            deadline -= 0.1
        return results[0] if results else None

    def _guarded(self, call: Callable[[], Any]) -> None:
        try:
            call()
            self._failures = 0
        except BaseException as error:  # noqa: BLE001 - no error of the mirror, sys.exit included, may end this thread
            self._failures += 1
            self.lost += 1
            self._last = _in_a_line(error)
            if self._failures >= MAX_FAILURES:
                self._give_up()

    def _give_up(self) -> None:
        if not self._given_up:
            self._given_up = True
            print(
                f"warning: W&B is off for the rest of this run ({self._last}); the journal continues", file=sys.stderr
            )


def as_table(rows: Sequence[Mapping[str, Any]], text: bool) -> tuple[list[str], list[list[Any]]]:
    """Columns and rows of a table of samples: numbers, and texts or their lengths."""
    flat = []
    for row in rows:
        columns_of_row: dict[str, Any] = {}
        for name, value in row.items():
            if name in TEXTS:
                content = (
                    value if isinstance(value, str) else "\n\n".join(f"{t['role']}: {t['content']}" for t in value)
                )
                columns_of_row |= {name: content} if text else {f"{name} characters": len(content)}
            elif isinstance(value, Mapping):
                columns_of_row |= {f"{name} {key}": item for key, item in value.items()}
            else:
                columns_of_row[name] = None if isinstance(value, float) and not math.isfinite(value) else value
        flat.append(columns_of_row)
    columns = list(dict.fromkeys(name for row in flat for name in row))
    return columns, [[row.get(name) for name in columns] for row in flat]


def _in_a_line(error: BaseException) -> str:
    return without_secrets(f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")


def _end_process() -> None:
    """Kill W&B's process if it may hang, because the interpreter would wait for it at exit."""
    with contextlib.suppress(Exception):  # there is no process, or W&B's internals differ from 0.31
        connection = sys.modules["wandb"].sdk.wandb_setup.singleton()._connection
        connection._cleanup()
        connection._proc._process.kill()
