"""Checkpoints of a run: committed atomically, and verified before use.

    RUN/checkpoints/step-000120/{manifest.json, ...}    committed; the manifest has the size and sha256 of each file
    RUN/checkpoints/.staging-...                        unfinished, left by a killed job

All ranks write into one staging folder and hash its files. The main process writes the manifest and renames the folder,
which is the commit. Only a manifest makes a checkpoint resumable: transformers' `get_last_checkpoint` takes the highest
number, finished or not, and DeepSpeed's `latest` is written in place. DeepSpeed reads pickles, so its files are read
only if this run's manifest lists them and the folder belongs to the user.

The contents are written by `ppo/state.py`, by `alignment/training/resumable.py` (SFT and reward), and by
`TrainingEngine.save`.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Any

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError

from alignment.errors import CheckpointError, DiskError
from alignment.files import (
    FileRecord,
    disk_errors,
    file_problem,
    list_files,
    read_file,
    sync_folder,
    sync_tree,
    write_file,
)
from alignment.runs import aside
from alignment.terminal import one_line

MANIFEST = "manifest.json"
FOLDER = "checkpoints"
FREE_SPACE_FACTOR = 1.2
"""Free space required before a save, as a multiple of the last checkpoint's size."""
MAX_FAILURES = 3
TORCH_WRITE_ERRORS = ("PytorchStreamWriter", "inline_container")
"""Texts that mark a RuntimeError of torch as a failed write."""
_STEP = re.compile(r"step-([0-9]{6,})")


class UnwrittenError(CheckpointError, DiskError):
    """A checkpoint that the disk did not take."""


class CheckpointManifest(BaseModel):
    """The contents of a checkpoint's manifest.json."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run_id: str
    step: int = Field(ge=0)
    part: str | None = None
    """The part of the run it belongs to, such as a member of an ensemble, if the run trains several models."""
    world_size: int = Field(ge=1)
    backend: str
    """Plain, or DeepSpeed's ZeRO stage; it determines the kind of files."""
    data: str
    """Hash of the fingerprints of the data."""
    journal: dict[str, int]
    """Size in bytes of each of the journal's files; later lines belong to steps that a resumed run repeats."""
    created_at: AwareDatetime
    files: dict[str, FileRecord]
    digest: str = ""
    """sha256 of the other fields, since a damaged manifest may still parse."""

    def sealed(self) -> CheckpointManifest:
        return self.model_copy(update={"digest": self._digest()})

    def is_intact(self) -> bool:
        return self.digest == self._digest()

    def _digest(self) -> str:
        return hashlib.sha256(self.model_copy(update={"digest": ""}).model_dump_json().encode()).hexdigest()


@dataclass(frozen=True)
class Checkpoint:
    """A committed checkpoint whose files have been verified."""

    path: Path
    manifest: CheckpointManifest

    @property
    def step(self) -> int:
        return self.manifest.step


def step_name(step: int) -> str:
    return f"step-{step:06d}"


def committed(run_dir: Path) -> list[Path]:
    """Folders of committed checkpoints, the newest first; a folder without a manifest was never committed."""
    folder = run_dir / FOLDER
    paths = [path for path in (folder.iterdir() if folder.is_dir() else ()) if _STEP.fullmatch(path.name)]
    return sorted((path for path in paths if (path / MANIFEST).exists()), key=_step_of, reverse=True)


def _step_of(folder: Path) -> int:
    """As a number: the name of step 1,000,000 sorts below that of step 999,999."""
    return int(folder.name.removeprefix("step-"))


def open_checkpoint(path: Path, run_id: str, full: bool = True) -> Checkpoint:
    """Read a checkpoint's manifest and verify every file against it, by size, and by sha256 when `full`.

    Raises:
        CheckpointError: it is damaged, another run's, or another user's; the message names the file and both values.
    """
    try:
        manifest = CheckpointManifest.model_validate_json(read_file(path / MANIFEST))
        owner = os.lstat(path).st_uid
        present = set(list_files(path))
    except OSError as error:
        raise CheckpointError(f"{path}: {error.filename or path} cannot be read: {error.strerror}") from None
    except ValidationError as error:
        raise CheckpointError(f"{path}: its manifest is damaged ({str(error).splitlines()[0]})") from None
    if not manifest.is_intact():
        raise CheckpointError(f"{path}: its manifest is damaged (its sha256 is not the one that it ends with)")
    if manifest.run_id != run_id or step_name(manifest.step) != path.name:
        raise CheckpointError(
            f"{path}: its manifest is of {step_name(manifest.step)} of run {manifest.run_id:.12}, not of {path.name} "
            f"of run {run_id:.12}"
        )
    if owner != os.geteuid():
        raise CheckpointError(f"{path}: belongs to user {owner}, not to you; it may hold code, and is not read")
    # Hashes are not cached: bit rot changes no time or size, and the cache would grow with every checkpoint.
    sha256 = _sha256 if full else None
    checked = [file_problem(path, name, record, sha256) for name, record in manifest.files.items()]
    problems = [problem for problem in checked if problem]
    problems += [f"{name} was not saved with it" for name in sorted(present - set(manifest.files) - {MANIFEST})]
    if problems:
        more = f"; and {len(problems) - 2} more" if len(problems) > 2 else ""
        raise CheckpointError(f"{path}: {'; '.join(problems[:2])}{more}")
    return Checkpoint(path, manifest)


def newest(run_dir: Path, run_id: str, warn: Callable[[str], None]) -> Checkpoint | None:
    """The newest intact checkpoint, None if none was ever committed; damaged ones are skipped with a warning.

    Raises:
        CheckpointError: there are checkpoints, but none is intact.
    """
    folders = committed(run_dir)
    for path in folders:
        try:
            return open_checkpoint(path, run_id)
        except CheckpointError as error:
            warn(f"{error}: this checkpoint is skipped")
    if folders:
        raise CheckpointError(
            f"{run_dir / FOLDER}: none of its {len(folders)} checkpoints is intact (see above); start again with "
            "--overwrite, or under another name"
        )
    return None


def set_aside(run_dir: Path, after: Checkpoint) -> list[str]:
    """Rename checkpoints later than the one a run resumes from; returns their new names."""
    moved = []
    for path in committed(run_dir):
        if _step_of(path) > after.manifest.step:
            target = path.with_name(f"{path.name}.aside-{uuid.uuid4().hex[:6]}")
            path.rename(target)
            moved.append(target.name)
    return moved


class Checkpoints:
    """Saves a run's checkpoints; every rank makes one, and all call `save` together.

    Args:
        run_id: id of the `alignment.runs.run.Run`.
        keep: number of newest checkpoints to keep; older ones are removed once these are verified.
        data: hash of the fingerprints of the data.
        journal_offsets: flushes the journal and returns the sizes of its files; called on the main process.
        note: journals a failed save.
        part: see CheckpointManifest.
    """

    def __init__(
        self,
        run_dir: Path,
        run_id: str,
        *,
        keep: int,
        data: str,
        backend: str,
        journal_offsets: Callable[[], dict[str, int]],
        note: Callable[..., None] = lambda kind, **fields: None,
        part: str | None = None,
    ) -> None:
        assert keep >= 2, keep
        self.run_dir, self.run_id, self.keep = run_dir, run_id, keep
        self._data, self._backend, self._journal_offsets, self._note = data, backend, journal_offsets, note
        self._part = part
        self._failures = 0

    def save(self, step: int, write: Callable[[Path], None], size: int = 0) -> Path | None:
        """Commit a checkpoint of a step.

        If it cannot be written, training continues and the last checkpoint is kept; the third failure in a row ends
        the run.

        Args:
            write: writes this rank's files into the given folder; called on every rank.
            size: expected size in bytes if there is no checkpoint yet.

        Returns:
            The checkpoint's folder; None if it could not be written.

        Raises:
            CheckpointError: the third failure in a row; an UnwrittenError if the disk is the reason.
        """
        from alignment.distributed import processes

        def write_files() -> None:
            with _disk_errors(f"{staging} cannot be written"):
                write(staging)

        try:
            staging = Path(processes.on_main_process(lambda: str(self._stage(step, size))))
            processes.on_every_process(write_files)
            # On a network disk a rank may not see at once what another has written, so the lists are merged.
            names = sorted(set(chain.from_iterable(processes.gather_lists(list(list_files(staging))))))
            records = processes.on_every_process(lambda: self._hash_share(staging, names))
            files = dict(chain.from_iterable(processes.gather_lists(records)))
            path = Path(processes.on_main_process(lambda: str(self._commit(staging, step, files))))
        except CheckpointError as error:
            self._failures += 1
            if self._failures >= MAX_FAILURES:
                if isinstance(error, DiskError):
                    raise UnwrittenError(
                        f"{error}; {MAX_FAILURES} checkpoints in a row could not be written; the last one that was "
                        "written, and the journal up to it, are whole; make room and start it again with --resume auto"
                    ) from error
                raise
            if processes.is_main_process():
                print(f"warning: {one_line(str(error))}; training continues without it", file=sys.stderr)
            self._note("checkpoint_failed", step=step, reason=str(error))
            return None
        self._failures = 0
        processes.on_main_process(lambda: self._prune_or_warn(path))
        return path

    def _stage(self, step: int, size: int) -> Path:
        folder = self.run_dir / FOLDER
        with _disk_errors(f"{folder} cannot be written"):
            folder.mkdir(parents=True, exist_ok=True)
            for leftover in folder.glob(".[st]*"):  # killed jobs leave staging and trash folders
                shutil.rmtree(leftover, ignore_errors=True)
            required, free = int(FREE_SPACE_FACTOR * max(size, self._last_size())), shutil.disk_usage(folder).free
            if free < required:
                raise UnwrittenError(
                    f"{folder}: no room for a checkpoint of step {step}: {free / 2**20:.0f} MiB are free and "
                    f"{required / 2**20:.0f} are required; make room or set tracking.runs to a larger disk"
                )
            staging = folder / f".staging-{step_name(step)}-{uuid.uuid4().hex}"
            staging.mkdir()
        return staging

    def _last_size(self) -> int:
        """Size in bytes of the newest checkpoint; 0 if there is none, or it is damaged."""
        for path in committed(self.run_dir)[:1]:
            with suppress(OSError, ValidationError):
                manifest = CheckpointManifest.model_validate_json(read_file(path / MANIFEST))
                return sum(record.size for record in manifest.files.values())
        return 0

    def _hash_share(self, staging: Path, names: Sequence[str]) -> list[tuple[str, FileRecord]]:
        """Records of this rank's share of the files, read back from disk to verify the write."""
        from alignment.distributed import processes

        with _disk_errors(f"{staging} cannot be read back"):
            share = names[processes.process_index() :: processes.world_size()]
            return [(name, _record_of(staging / name)) for name in share]

    def _commit(self, staging: Path, step: int, files: dict[str, FileRecord]) -> Path:
        from alignment.distributed import processes

        with _disk_errors(f"{staging} cannot be committed"):
            manifest = CheckpointManifest(
                run_id=self.run_id,
                step=step,
                part=self._part,
                world_size=processes.world_size(),
                backend=self._backend,
                data=self._data,
                journal=self._journal_offsets(),
                created_at=datetime.now(UTC),
                files=dict(sorted(files.items())),
            ).sealed()
            write_file(staging / MANIFEST, manifest.model_dump_json(indent=2).encode() + b"\n")
            sync_tree(staging)
            path = staging.parent / step_name(step)
            if path.exists():  # an uncommitted or damaged folder that was skipped on resume
                _discard(path)
            staging.rename(path)
            sync_folder(path.parent)
        return path

    def _prune_or_warn(self, saved: Path) -> None:
        try:
            self._prune(saved)
        except OSError as error:  # a read-only disk; what is there is whole
            print(f"warning: {one_line(str(error))}; older checkpoints are kept", file=sys.stderr)

    def _prune(self, saved: Path) -> None:
        """Remove an earlier run, and old checkpoints once `keep` newer ones are verified.

        `saved` was read back when it was written.
        """
        aside.collect(self.run_dir)
        num_intact, paths = 0, committed(self.run_dir)
        for path in paths if len(paths) > self.keep else ():  # verifying is slow, so only if something can go
            if num_intact >= self.keep:
                _discard(path)
                continue
            try:
                open_checkpoint(path, self.run_id, full=path != saved)
                num_intact += 1
            except CheckpointError as error:
                print(f"warning: {one_line(str(error))}; an older checkpoint is kept in its place", file=sys.stderr)


def _discard(path: Path) -> None:
    """Remove a checkpoint; it is renamed first, so that a half-removed folder does not look like one."""
    trash = path.with_name(f".trash-{path.name}-{uuid.uuid4().hex}")
    path.rename(trash)
    shutil.rmtree(trash, ignore_errors=True)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _record_of(path: Path) -> FileRecord:
    """A file's hash and size, after it is flushed to disk."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return FileRecord(sha256=digest, size=file.tell())


@contextmanager
def _disk_errors(what: str) -> Iterator[None]:
    """A `disk_errors` that also covers the write errors of torch and safetensors, which are no OSErrors."""
    with disk_errors(what, UnwrittenError):
        try:
            yield
        except (RuntimeError, SafetensorError) as error:
            if isinstance(error, RuntimeError) and not any(text in str(error) for text in TORCH_WRITE_ERRORS):
                raise
            raise UnwrittenError(f"{what}: {one_line(str(error).splitlines()[0])}") from error


# --- their contents --------------------------------------------------------------------------------------------------


def save_state(path: Path, state: Any) -> None:
    """Write tensors, numbers, texts, lists and dicts to a file that `load_state` reads without unpickling code."""
    import torch

    with open(path, "wb") as file:
        torch.save(state, file)


def load_state(path: Path) -> Any:
    import torch

    return torch.load(path, map_location="cpu", weights_only=True)
