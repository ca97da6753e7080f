"""Opening a run's folder: a new run in a new folder, or an earlier run resumed from a checkpoint."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignment.config.sections import RunConfig, TrainerConfig
from alignment.errors import CheckpointError, UserError
from alignment.files import read_file, replace_text
from alignment.runs import aside, lease, reserve, signals, world_size
from alignment.runs.checkpoint import FOLDER, Checkpoint, committed, newest, open_checkpoint, set_aside
from alignment.runs.journal import FILES
from alignment.runs.lease import folder_errors
from alignment.runs.run import EXIT_FILE, Run, read_exit, write_exit
from alignment.runs.run import FILE as RUN_FILE
from alignment.terminal import one_line, say

FREE_KEYS = ("tracking", "registry.alias", "training.save_steps", "training.save_total_limit")
"""Keys that may change on resume: they do not affect the computation."""


@dataclass(frozen=True)
class Start:
    """The start of an attempt: its run, and the checkpoint that it resumes from, if any."""

    run: Run
    checkpoint: Checkpoint | None = None

    @property
    def journal(self) -> dict[str, int] | None:
        """Sizes in bytes of the journal's files at the checkpoint."""
        return self.checkpoint.manifest.journal if self.checkpoint else None

    def check(self, data: str, backend: str) -> None:
        """Compare the data and the backend with the checkpoint's.

        Raises:
            CheckpointError: one of them has changed.
        """
        if self.checkpoint is None:
            return
        path, manifest = self.checkpoint.path, self.checkpoint.manifest
        if manifest.backend != backend:
            raise CheckpointError(f"{path}: saved under {manifest.backend}, and this is {backend}; launch it as before")
        if manifest.data != data:
            raise CheckpointError(
                f"{path}: the data has changed since the run began (other fingerprints in RUN/events.jsonl); put it "
                "back, or start again with --overwrite"
            )


def begin(run_dir: Path) -> Start:
    """The start that `open_run_dir` prepared for this attempt; every rank must call this and gets the same."""
    from alignment.distributed import processes as distributed

    def read() -> Start:
        run = Run.read(run_dir)
        if run is None:  # without the command line there is no run to resume, now or later
            return Start(Run())
        name = run.resumed_from
        return Start(run, open_checkpoint(run_dir / FOLDER / name, run.id, full=False) if name else None)

    start = distributed.on_main_process(read)
    if start.run.attempts:
        distributed.start_heartbeat(lambda reason: write_exit(run_dir, 1, reason), lease.release_held)
    signals.exit_if_preempted(run_dir)
    return start


def finished(run_dir: Path) -> dict[str, Any] | None:
    """The exit record of a run that is done; None if it is not."""
    record = read_exit(run_dir)
    return record if record is not None and record.get("code") == 0 else None


def open_run_dir(config: RunConfig, overwrite: bool, resume: str = "no", allow_changes: bool = False) -> None:
    """Make the run folder, with the resolved config and run.json; only the main process calls this, with its lease.

    Args:
        overwrite: replace an earlier run of this name. An earlier run that is neither resumed nor overwritten is an
            error: two runs are never mixed.
        resume: `no`, `auto` for the newest intact checkpoint, or a checkpoint's folder.
        allow_changes: resume even if the config differs in more than FREE_KEYS.

    Raises:
        UserError: there is an earlier run, or it cannot be resumed.
    """
    run_dir, run, start = config.run_dir, Run(), None
    with folder_errors(run_dir):
        run_dir.mkdir(parents=True, exist_ok=True)
        aside.recover(run_dir)
        if not _holds_run(run_dir):
            aside.restore(run_dir)  # killed before the new run had begun
        if _holds_run(run_dir):
            refused = _never_trained(run_dir)
            if resume != "no" and not overwrite:
                run, start = _resumed(config, resume, allow_changes)
            elif not overwrite and not refused:
                raise UserError(
                    f"{run_dir} holds an earlier run; resume it (--resume auto), choose another name "
                    f"(name={config.name}-2), or pass --overwrite"
                )
            if start is None and refused:
                aside.clear(run_dir)
            elif start is None:
                where = aside.push(run_dir)
                print(
                    f"the earlier run is kept in {where} until this one has a checkpoint or has ended", file=sys.stderr
                )
            signals.clear_stale_preempt(run_dir)
        elif resume not in ("no", "auto"):
            raise UserError(f"--resume {resume}: there is no run in {run_dir}; leave --resume out for a new one")
        text = json.dumps(config.model_dump(mode="json"), indent=2, ensure_ascii=False)
        try:
            reserve.keep(run_dir)
            if start is not None and allow_changes:
                aside.keep_config(run_dir)
            replace_text(run_dir / "config.json", text + "\n")
            run.started(start.path.name if start else None).write(run_dir)
        except OSError:
            reserve.drop(run_dir)
            if start is None:
                aside.restore(run_dir)
            raise
        (run_dir / EXIT_FILE).unlink(missing_ok=True)  # this attempt may be killed before it writes its own


def settle(run_dir: Path, code: int) -> None:
    """Remove the run that was set aside for this one, or put it back where this one has failed before it stood.

    A run that was preempted, or killed, goes on: what was set aside for it stays.
    """
    reserve.drop(run_dir)
    if code == 0:
        aside.collect(run_dir)
        return
    if code != signals.PREEMPTED_CODE:
        aside.restore_config(run_dir)
    if code != signals.PREEMPTED_CODE and not committed(run_dir) and aside.restore(run_dir):
        if finished(run_dir) is None:  # a job script reads how this attempt ended
            replace_text(run_dir / EXIT_FILE, (run_dir / aside.FAILED / EXIT_FILE).read_text(encoding="utf-8"))
        say(f"the earlier run is back in {run_dir}; what this attempt wrote is in {run_dir / aside.FAILED}")


def _holds_run(run_dir: Path) -> bool:
    """Whether the folder has a part of a run: a file of it may be lost."""
    journals = [run_dir / f"{name}.jsonl" for name in FILES]
    return (
        any((run_dir / name).exists() for name in ("config.json", RUN_FILE))
        or any(path.exists() and path.stat().st_size for path in journals)
        or bool(committed(run_dir))
    )


def _resumed(config: RunConfig, resume: str, allow_changes: bool) -> tuple[Run, Checkpoint | None]:
    """The run to resume and its checkpoint; a new run and None if the earlier one has saved no checkpoint."""
    run_dir = config.run_dir
    run = Run.read(run_dir)
    if run is None and (resume != "auto" or committed(run_dir)):
        raise UserError(
            f"{run_dir / RUN_FILE}, which identifies the run of the checkpoints, is missing; put it back, start again "
            f"with --overwrite, or choose another name (name={config.name}-2)"
        )
    checkpoint = _find_checkpoint(run_dir, run, resume) if run else None
    if run is None or checkpoint is None:
        print(f"resume: {run_dir} has no checkpoint; the run starts from the beginning", file=sys.stderr)
        return Run(), None
    _check_same(config, checkpoint, allow_changes)
    later = set_aside(run_dir, after=checkpoint)
    more = f"; later ones are set aside as {', '.join(later)}" if later else ""
    verified = f"{checkpoint.path.name}, verified"
    print(f"resume: {run_dir} resumes from step {checkpoint.step} ({verified}){more}", file=sys.stderr)
    return run, checkpoint


def _find_checkpoint(run_dir: Path, run: Run, resume: str) -> Checkpoint | None:
    """The checkpoint to resume from; None if the run has saved none."""
    if resume == "auto":
        return newest(run_dir, run.id, lambda text: print(f"warning: {one_line(text)}", file=sys.stderr))
    path = Path(resume)
    if path.parent.resolve() != (run_dir / FOLDER).resolve():
        raise UserError(
            f"--resume {resume}: not one of this run's checkpoints; name a folder in {run_dir / FOLDER}, or auto"
        )
    return open_checkpoint(run_dir / FOLDER / path.name, run.id)


def _launched_world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))  # the processes have not joined yet


def _check_same(config: RunConfig, start: Checkpoint, allow_changes: bool) -> None:
    if (before := _saved_config(config.run_dir, allow_changes)) is None:
        return
    now = config.model_dump(mode="json")
    saved, processes = start.manifest.world_size, _launched_world_size()
    free: tuple[str, ...] = FREE_KEYS
    if isinstance(config, TrainerConfig) and world_size.same_batches(before, now, saved, processes):
        free = (*FREE_KEYS, *world_size.BATCH_KEYS)
    if saved != processes:
        world_size.log_world_size_change(saved, processes)
    changed = changed_keys(before, now, free)
    if not changed:
        return
    changes = "; ".join(f"{key}: {value_at(before, key)!r}, now {value_at(now, key)!r}" for key in changed)
    if not allow_changes:
        raise UserError(
            f"{config.run_dir} was begun with another config ({changes}), so {start.path.name} is of another run than "
            "this one; change it back, choose another name, or pass --allow-changes"
        )
    print(f"resume: with a changed config ({changes}); the result matches neither config", file=sys.stderr)


def _saved_config(run_dir: Path, allow_changes: bool) -> dict[str, Any] | None:
    """The config that the run began with; None if it is lost and may have changed."""
    path, problem = run_dir / "config.json", "it holds no config"
    try:
        if isinstance(before := json.loads(read_file(path)), dict):
            return before
    except (OSError, ValueError, RecursionError) as error:
        problem = error.strerror or str(error) if isinstance(error, OSError) else f"damaged: {error}"
    problem = f"{path} cannot be read ({problem}), so this config cannot be compared with the one the run began with"
    if not allow_changes:
        raise UserError(f"{problem}; if it is the same pass --allow-changes, or start again with --overwrite")
    print(f"resume: {one_line(problem)}", file=sys.stderr)
    return None


def changed_keys(before: Mapping[str, Any], now: Mapping[str, Any], free: Sequence[str] = ()) -> list[str]:
    """Dotted keys whose values differ between two configs, except the keys and sections in `free`."""
    changed = []

    def walk(a: Any, b: Any, key: str) -> None:
        if any(key == name or key.startswith(name + ".") for name in free):
            return
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            for name in dict.fromkeys([*a, *b]):
                walk(a.get(name), b.get(name), f"{key}.{name}" if key else name)
        elif a != b:
            changed.append(key)

    walk(before, now, "")
    return changed


def value_at(values: Any, key: str) -> Any:
    """A config's value at a dotted key; None if it has no such key."""
    for part in key.split("."):
        values = values.get(part) if isinstance(values, dict) else None
    return values


def _never_trained(run_dir: Path) -> bool:
    """Whether the earlier run was refused before its first step, so that there is nothing to keep."""
    if aside.stack(run_dir) or committed(run_dir):  # a run that it was to replace, or that logs no step
        return False
    refused = (read_exit(run_dir) or {}).get("code") == 2
    metrics = run_dir / "metrics.jsonl"
    return refused and not (metrics.exists() and metrics.stat().st_size)
