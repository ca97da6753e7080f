"""The registry's folder: where it is, the file that marks it, and the folders in it."""

from __future__ import annotations

import json
import os
from pathlib import Path

from alignment.files import sync_folder
from alignment.registry.aliases import link_new
from alignment.registry.errors import RegistryError
from alignment.registry.files import entries, make_folder, passing_file, read_entry

LAYOUT = 1
STAGING = ".staging"
_MARK = "REGISTRY.json"


def registry_folder(path: str | os.PathLike[str] | None = None) -> Path:
    """The registry's folder: the given one, else ALIGNMENT_REGISTRY, else ./registry."""
    return Path(path or os.environ.get("ALIGNMENT_REGISTRY") or "registry").expanduser().absolute()


def check_layout(path: Path) -> None:
    """Check that `path` is a registry that this suite reads, or does not exist.

    Raises:
        RegistryError: it is something else.
    """
    marker = path / _MARK
    try:
        layout = json.loads(read_entry(marker))
    except FileNotFoundError:
        return
    except NotADirectoryError:
        raise RegistryError(f"{path} is not a folder; name the registry's folder or a new one") from None
    except (ValueError, RecursionError) as error:
        raise RegistryError(f"{marker} cannot be read: {error}; is {path} a registry?") from None
    if not isinstance(layout, dict) or layout.get("layout") != LAYOUT:
        raise RegistryError(
            f"{marker}: layout {layout!r:.80}, but this version of the suite knows {LAYOUT}; upgrade it"
        )
    for folder in (path / "models", path / STAGING, path / ".trash"):
        if os.path.lexists(folder) and not folder.is_dir():
            raise RegistryError(f"{folder} is not a folder, as a registry has it; move it elsewhere")


def create_layout(path: Path) -> None:
    """Make the folder a registry if it is not one yet.

    Raises:
        RegistryError: there are other things in it.
    """
    check_layout(path)
    make_folder(path)
    marker = path / _MARK
    if not marker.exists():
        foreign = [entry for entry in entries(path) if not entry.startswith(".") and entry != "lost+found"]
        if foreign and not marker.exists():
            raise RegistryError(
                f"{path} holds {foreign[0]!r} and no {_MARK}, so it is not a registry; name a new or empty folder"
            )
        make_folder(path / STAGING)
        with passing_file(path / STAGING, json.dumps({"layout": LAYOUT}).encode() + b"\n") as temporary:
            link_new(temporary, marker)
        sync_folder(path)
    make_folder(path / STAGING)
    make_folder(path / "models")
