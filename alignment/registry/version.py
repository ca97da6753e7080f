"""One published version: its folder, its manifest, and the check that both are what was published."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from alignment.files import file_problem, list_files
from alignment.registry.errors import RegistryError
from alignment.registry.files import MANIFEST, MAX_MANIFEST, one_line_errors, read_entry
from alignment.registry.hashes import sha256_of
from alignment.registry.manifest import Manifest, Parent, parse_manifest
from alignment.registry.references import Reference, enumerated


@dataclass(frozen=True)
class Version:
    """An immutable model: `path` is a Hugging Face folder, `digest` ("sha256:" + 64 hex digits) its identity."""

    path: Path
    digest: str
    manifest: Manifest

    @property
    def name(self) -> str:
        """The model's name."""
        return self.manifest.name

    @property
    def number(self) -> int:
        """The version's number, from 1."""
        return self.manifest.version

    @property
    def ref(self) -> str:
        """The pinned reference, such as `help-desk-sft@v3`."""
        return f"{self.name}@v{self.number}"

    def parent(self, role: str) -> Parent | None:
        """The first parent that served as `role` ("init", "reference", ...), None without one."""
        return next((parent for parent in self.manifest.parents if parent.role == role), None)

    def verify(self, hash_files: bool = True, cold: bool = False) -> None:
        """Check that the folder holds the published files and no other: by size, and by sha256 if `hash_files`.

        A file is hashed once per node while its inode, size and times are unchanged; `cold` reads every file again.

        Raises:
            RegistryError: files are missing, extra or different; each is named with what was expected and found.
        """
        if problems := self.problems(hash_files, cold):
            more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
            raise RegistryError(
                f"{self.ref} in {self.path} is damaged: {'; '.join(problems[:3])}{more}; publish it again"
            )

    def problems(self, hash_files: bool = True, cold: bool = False) -> list[str]:
        """The problems that `verify` would raise."""
        problems = []
        if self.path.is_symlink():
            problems.append("its folder is a symbolic link")
        digest = read_manifest(self.path)[1]
        if digest != self.digest:
            problems.append(f"{MANIFEST} has {digest}, expected {self.digest}")
        for path, record in self.manifest.files.items():
            sha256 = partial(sha256_of, expected=record.sha256, cold=cold) if hash_files else None
            if problem := file_problem(self.path, path, record, sha256):
                problems.append(problem)
        with one_line_errors(f"{self.ref} cannot be verified"):
            extra = set(list_files(self.path)).difference(self.manifest.files, [MANIFEST])
        return problems + [f"{path!r} was not published with it" for path in sorted(extra)]

    def shared_files(self) -> list[str]:
        """Files with another hard link, through which they can be changed from outside the registry."""
        with one_line_errors(f"{self.ref} cannot be looked at"):
            return [path for path in list_files(self.path) if os.lstat(self.path / path).st_nlink > 1]


def read_manifest(folder: Path) -> tuple[bytes, str]:
    """The manifest's bytes and the version digest that they make.

    Raises:
        RegistryError: the manifest is missing or cannot be read.
    """
    try:
        data = read_entry(folder / MANIFEST, MAX_MANIFEST)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise RegistryError(f"{folder / MANIFEST} cannot be read: {error.strerror}") from None
    return data, f"sha256:{hashlib.sha256(data).hexdigest()}"


def open_version(folder: Path, name: str, number: int) -> Version:
    """Read a version's folder.

    Raises:
        RegistryError: the manifest is missing, damaged, or another version's.
    """
    data, digest = read_manifest(folder)
    manifest = parse_manifest(data, str(folder / MANIFEST))
    if (manifest.name, manifest.version) != (name, number):
        raise RegistryError(
            f"{folder / MANIFEST} is damaged: it is of {manifest.name}@v{manifest.version}, expected {name}@v{number}"
        )
    return Version(folder, digest, manifest)


def find_digest(wanted: Reference, folder: Callable[[int], Path], numbers: Sequence[int]) -> int:
    """The number of the version whose digest begins as `wanted` says; `folder` is where a number's version is.

    Raises:
        RegistryError: no version has it, or several.
    """
    assert wanted.digest
    digests = {}
    for number in numbers:
        try:
            digests[number] = read_manifest(folder(number))[1]
        except RegistryError:
            continue  # a damaged version must not hide the others
    matches = [number for number, digest in digests.items() if digest.startswith(wanted.digest)]
    if len(matches) == 1:
        return matches[0]
    problem = f"matches {enumerated([f'v{number}' for number in matches])}" if matches else "matches no version"
    existing = enumerated([f"v{number} {digest[:15]}" for number, digest in digests.items()])
    raise RegistryError(f"{wanted.name}@{wanted.digest} {problem}; it has {existing}")
