"""The folder that a registry is: its mark, and the folders in it."""

from __future__ import annotations

import json
from pathlib import Path

from alignment.files import sync_folder
from alignment.registry.aliases import link_new
from alignment.registry.errors import RegistryError
from alignment.registry.files import entries, make_folder, passing_file

LAYOUT = 1
STAGING = ".staging"
_MARK = "REGISTRY.json"


def check_layout(path: Path) -> None:
    """Raises RegistryError unless `path` is a registry that this suite reads, or nothing at all."""
    marker = path / _MARK
    try:
        found = json.loads(marker.read_bytes())
    except FileNotFoundError:
        return
    except NotADirectoryError:
        raise RegistryError(f"{path} is not a folder; name the registry's folder or a new one") from None
    except PermissionError:
        raise RegistryError(f"{marker} cannot be read: Permission denied; ask its owner for access") from None
    except (OSError, ValueError) as error:
        raise RegistryError(f"{marker} cannot be read: {error}; is {path} a registry?") from None
    if not isinstance(found, dict) or found.get("layout") != LAYOUT:
        raise RegistryError(f"{marker}: layout {found!r:.80}, but this version of the suite knows {LAYOUT}; upgrade it")


def create_layout(path: Path) -> None:
    """Make the folder a registry if it is none yet. A folder with other things in it is left alone."""
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
