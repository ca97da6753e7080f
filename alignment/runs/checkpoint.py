"""Checkpoints of a run: written whole or not at all, and checked before anything of them is used.

    RUN/checkpoints/step-000120/{manifest.json, ...}    committed; the manifest has the size and sha256 of each file
    RUN/checkpoints/.staging-...                        what was being written when a job was killed

All processes write into one staging folder and hash what is there; the main one writes the manifest and renames the
folder, which is the commit. What may be resumed is found by its manifest and nothing else: transformers'
`get_last_checkpoint` takes the highest number, finished or not, and DeepSpeed's `latest` is written in place. DeepSpeed
reads pickles, so its files are read only behind a manifest of this very run, in a folder of the user's own.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import sys
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError

from alignment.errors import CheckpointError
from alignment.files import FileRecord, list_files, sync_folder, sync_tree, write_file
from alignment.registry.files import check_file
from alignment.terminal import one_line

MANIFEST = "manifest.json"
FOLDER = "checkpoints"
SPARE = 1.2
"""Free space that is asked for, as a multiple of the last checkpoint's size."""
MAX_FAILURES = 3
TORCH_WRITING = ("PytorchStreamWriter", "inline_container")
"""What a RuntimeError of torch says that comes from a file that it could not write."""
_STEP = re.compile(r"step-([0-9]{6,})")
_CHUNK = 4 << 20


class CheckpointManifest(BaseModel):
    """What is written to a checkpoint's manifest.json."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run_id: str
    step: int = Field(ge=0)
    part: str | None = None
    """Which of several trainings of the run it is of, such as a member of an ensemble."""
    world_size: int = Field(ge=1)
    backend: str
    """What ran: plain, or DeepSpeed's ZeRO stage; the files are of that kind."""
    data: str
    """Hash of the fingerprints of the data."""
    journal: dict[str, int]
    """Bytes of each of the journal's files; what comes after them is of steps that are done again."""
    created_at: AwareDatetime
    files: dict[str, FileRecord]
    digest: str = ""
    """sha256 over the rest: a manifest can be damaged too, and still be one."""

    def sealed(self) -> CheckpointManifest:
        return self.model_copy(update={"digest": self._digest()})

    def is_whole(self) -> bool:
        return self.digest == self._digest()

    def _digest(self) -> str:
        return hashlib.sha256(self.model_copy(update={"digest": ""}).model_dump_json().encode()).hexdigest()


@dataclass(frozen=True)
class Checkpoint:
    """A committed checkpoint whose files were found to be whole."""

    path: Path
    manifest: CheckpointManifest

    @property
    def step(self) -> int:
        return self.manifest.step


def step_name(step: int) -> str:
    return f"step-{step:06d}"


def committed(run_dir: Path) -> list[Path]:
    """Folders of checkpoints, the newest first. A folder without a manifest is none: it was never committed."""
    folder = run_dir / FOLDER
    found = [path for path in (folder.iterdir() if folder.is_dir() else ()) if _STEP.fullmatch(path.name)]
    return sorted((path for path in found if (path / MANIFEST).exists()), key=lambda path: path.name, reverse=True)


def open_checkpoint(path: Path, run_id: str, full: bool = True) -> Checkpoint:
    """Read a checkpoint's manifest and check every file against it, by size, and by sha256 when `full`.

    Raises:
        CheckpointError: it is damaged, of another run, or somebody else's; says which file, found and expected.
    """
    try:
        manifest = CheckpointManifest.model_validate_json((path / MANIFEST).read_bytes())
        owner = os.lstat(path).st_uid
        present = set(list_files(path))
    except OSError as error:
        raise CheckpointError(f"{path}: {error.filename or path} cannot be read: {error.strerror}") from None
    except ValidationError as error:
        raise CheckpointError(f"{path}: its manifest is damaged ({str(error).splitlines()[0]})") from None
    if not manifest.is_whole():
        raise CheckpointError(f"{path}: its manifest is damaged (its sha256 is not the one that it ends with)")
    if manifest.run_id != run_id or step_name(manifest.step) != path.name:
        raise CheckpointError(
            f"{path}: its manifest is of {step_name(manifest.step)} of run {manifest.run_id:.12}, not of {path.name} "
            f"of run {run_id:.12}"
        )
    if owner != os.geteuid():
        raise CheckpointError(f"{path}: belongs to user {owner}, not to you; it may hold code, and is not read")
    problems = [_difference(path, name, record, full) for name, record in manifest.files.items()]
    problems += [f"{name} was not saved with it" for name in sorted(present - set(manifest.files) - {MANIFEST})]
    found = [problem for problem in problems if problem]
    if found:
        more = f"; and {len(found) - 2} more" if len(found) > 2 else ""
        raise CheckpointError(f"{path}: {'; '.join(found[:2])}{more}")
    return Checkpoint(path, manifest)


def _difference(folder: Path, name: str, record: FileRecord, full: bool) -> str | None:
    """What is wrong with a file, None if nothing. Read anew each time: what a disk lost by itself shows in no time or
    size, and the registry's cache of hashes would grow by every file of every checkpoint."""
    problem = check_file(folder, name, record, full=False)
    if problem or not full:
        return problem
    try:
        digest = _hashed(folder / name).sha256
    except OSError as error:
        return f"{name} cannot be read ({error.strerror})"
    return None if digest == record.sha256 else f"{name} has sha256 {digest}, expected {record.sha256}"


def newest(run_dir: Path, run_id: str, warn: Callable[[str], None]) -> Checkpoint | None:
    """The newest checkpoint that is whole; each that is not is passed over with a warning that names it. None where
    nothing was ever committed.

    Raises:
        CheckpointError: there are checkpoints and not one of them is whole.
    """
    folders = committed(run_dir)
    for path in folders:
        try:
            return open_checkpoint(path, run_id)
        except CheckpointError as error:
            warn(f"{error}: this checkpoint is passed over")
    if folders:
        raise CheckpointError(
            f"{run_dir / FOLDER}: none of its {len(folders)} checkpoints is whole (see above); start again with "
            "--overwrite, or under another name"
        )
    return None


def set_aside(run_dir: Path, after: Checkpoint) -> list[str]:
    """Take later checkpoints out of the way of a run that goes on from an older one; returns where they are now."""
    moved = []
    for path in committed(run_dir):
        if path.name > after.path.name:
            target = path.with_name(f"{path.name}.aside-{uuid.uuid4().hex[:6]}")
            path.rename(target)
            moved.append(target.name)
    return moved


class Checkpoints:
    """Saves a run's checkpoints; every process makes one and calls `save` together.

    Args:
        run_id: of `alignment.runs.run.Run`.
        keep: how many of the newest stay; older ones go when these were found to be whole.
        data: hash of the fingerprints of the data.
        journal_offsets: brings the journal to disk and gives the bytes of its files; called on the main process.
        note: is told of what was saved and what failed.
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
        """Commit a checkpoint of a step. Where it cannot be written, training goes on and the last one stands; the
        third failure in a row ends the run.

        Args:
            write: puts this process's files into the folder it is given; called on every process.
            size: bytes to expect where there is no checkpoint yet.

        Returns:
            Its folder; None where it could not be written.

        Raises:
            CheckpointError: for the third time in a row.
        """
        from alignment.distributed import processes

        try:
            staging = Path(processes.on_main_process(lambda: str(self._stage(step, size))))
            processes.on_every_process(lambda: _one_line(f"{staging} cannot be written", lambda: write(staging)))
            # On a network disk a process may not see at once what another has written, and would leave it out.
            seen = processes.gather_lists(list(list_files(staging)))
            names = sorted({name for share in seen for name in share})
            records = processes.on_every_process(
                lambda: _one_line(f"{staging} cannot be read back", lambda: self._hash_own(staging, names))
            )
            files = {name: record for share in processes.gather_lists(records) for name, record in share}
            path = Path(processes.on_main_process(lambda: str(self._commit(staging, step, files))))
        except CheckpointError as error:
            self._failures += 1
            if self._failures >= MAX_FAILURES:
                raise
            if processes.is_main_process():
                print(f"warning: {one_line(str(error))}; training goes on without it", file=sys.stderr)
            self._note("checkpoint_failed", step=step, reason=str(error))
            return None
        self._failures = 0
        processes.on_main_process(lambda: self._prune(path))
        return path

    def _stage(self, step: int, size: int) -> Path:
        folder = self.run_dir / FOLDER
        last = []
        for path in committed(self.run_dir)[:1]:
            with suppress(OSError, ValidationError):  # a damaged one is passed over here as elsewhere
                last.append(sum(f.size for f in _read(path).files.values()))

        def stage() -> Path:
            folder.mkdir(parents=True, exist_ok=True)
            for leftover in folder.glob(".[st]*"):  # of jobs that were killed
                shutil.rmtree(leftover, ignore_errors=True)
            wanted, free = int(SPARE * max([size, *last])), shutil.disk_usage(folder).free
            if free < wanted:
                raise CheckpointError(
                    f"{folder}: no room for a checkpoint of step {step}: {free / 2**20:.0f} MiB are free and "
                    f"{wanted / 2**20:.0f} are wanted; make room or set tracking.runs to a larger disk"
                )
            staging = folder / f".staging-{step_name(step)}-{uuid.uuid4().hex}"
            staging.mkdir()
            return staging

        return _one_line(f"{folder} cannot be written", stage)

    def _hash_own(self, staging: Path, names: Sequence[str]) -> list[tuple[str, FileRecord]]:
        """This process's share of the files, read back: on a network disk that shows that they got there."""
        from alignment.distributed import processes

        own = names[processes.process_index() :: processes.world_size()]
        return [(name, _hashed(staging / name)) for name in own]

    def _commit(self, staging: Path, step: int, files: dict[str, FileRecord]) -> Path:
        from alignment.distributed import processes

        def commit() -> Path:
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
            if path.exists():  # uncommitted or damaged, and passed over when this run was resumed
                _discard(path)
            staging.rename(path)
            sync_folder(path.parent)
            return path

        return _one_line(f"{staging} cannot be committed", commit)

    def _prune(self, saved: Path) -> None:
        """Remove the oldest, once as many newer ones as are kept were found to be whole; what was just `saved` was read
        back before it was committed."""
        whole, there = 0, committed(self.run_dir)
        for path in there if len(there) > self.keep else ():  # reading back takes its time
            if whole >= self.keep:
                _discard(path)
                continue
            try:
                open_checkpoint(path, self.run_id, full=path != saved)
                whole += 1
            except CheckpointError as error:
                print(f"warning: {one_line(str(error))}; an older checkpoint is kept in its place", file=sys.stderr)


def _read(path: Path) -> CheckpointManifest:
    return CheckpointManifest.model_validate_json((path / MANIFEST).read_bytes())


def _discard(path: Path) -> None:
    """Renamed first, so that a folder half removed is not taken for a checkpoint."""
    trash = path.with_name(f".trash-{path.name}-{uuid.uuid4().hex}")
    path.rename(trash)
    shutil.rmtree(trash, ignore_errors=True)


def _hashed(path: Path) -> FileRecord:
    """A file's hash and size, once it is on disk."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return FileRecord(sha256=digest, size=file.tell())


def _one_line(what: str, call: Callable[[], Any]) -> Any:
    """A full disk or a missing permission as a CheckpointError; torch and safetensors have own errors for them."""
    try:
        return call()
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(f"{what}: {error.strerror or error}") from error
    except (RuntimeError, SafetensorError) as error:
        if isinstance(error, RuntimeError) and not any(word in str(error) for word in TORCH_WRITING):
            raise
        raise CheckpointError(f"{what}: {one_line(str(error).splitlines()[0])}") from error


# --- what is in them -------------------------------------------------------------------------------------------------


def save_state(path: Path, state: Any) -> None:
    """Tensors, numbers, texts, lists and dicts to a file that `load_state` reads without unpickling code."""
    import torch

    with open(path, "wb") as file:
        torch.save(state, file)


def load_state(path: Path) -> Any:
    import torch

    return torch.load(path, map_location="cpu", weights_only=True)
