"""Anything in the place of any part of a registry: each command ends quickly, and `doctor` names the place."""

import os
import shutil
import signal
import socket
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from helpers.figures import Trials
from helpers.models_command import run
from helpers.registry_faults import make_source, publish
from typer.testing import Result

from alignment.registry import Parent, Registry, RegistryError
from alignment.registry.reviews import Review, add_review

TITLE = "Anything in the place of a registry's file or folder"
PLACES = (
    "REGISTRY.json",
    "models",
    "models/m",
    "models/m/v000001",
    "models/m/v000001/manifest.json",
    "models/m/v000001/config.json",
    "models/m/v000001/model.safetensors",
    "models/m/v000003",
    "models/m/v000003/manifest.json",
    "models/m/aliases",
    "models/m/aliases/prod",
    "models/m/aliases/prod/00000002.json",
    "models/m/aliases/prod/00000099.json",
    "models/m/aliases/other",
    "models/m/reviews",
    "models/m/reviews/v000001",
    "models/m/reviews/v000001/00000001.json",
    "models/m/protected",
    "models/m/protected/v000001.json",
    "models/m/removed",
    "models/m/removed/v000007.json",
    "models/n/v000001/manifest.json",
    "models/zzz",
    ".staging",
    ".trash",
)
ALIAS = '{"version": 1, "digest": "sha256:' + "0" * 64 + '", "at": "2026-01-01T00:00:00Z"'


def fifo(path: Path) -> None:
    os.mkfifo(path)


def device(path: Path) -> None:
    try:
        os.mknod(path, 0o020666, os.makedev(1, 5))
    except PermissionError:
        path.symlink_to("/dev/zero")


def link_to_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def link_out(path: Path) -> None:
    (path.parent / ".." / "outside.txt").resolve().write_text("{}") if path.parent.is_dir() else None
    path.symlink_to("/etc/passwd")


def link_to_itself(path: Path) -> None:
    path.symlink_to(path)


def unix_socket(path: Path) -> None:
    with tempfile.TemporaryDirectory() as short, socket.socket(socket.AF_UNIX) as bound:
        bound.bind(f"{short}/s")
        os.rename(f"{short}/s", path)


def folder(path: Path) -> None:
    (path / "inner").mkdir(parents=True)


def huge(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)


def nested(path: Path) -> None:
    path.write_text("[" * 200_000)


def endless_number(path: Path) -> None:
    path.write_text(ALIAS.replace("1,", "1" * 100_000 + ",", 1) + "}")


def empty(path: Path) -> None:
    path.write_bytes(b"")


KINDS: dict[str, Callable[[Path], None]] = {
    kind.__name__: kind
    for kind in (
        fifo, device, link_to_device, link_out, link_to_itself, unix_socket, folder, huge, nested, endless_number,
        empty,
    )
}  # fmt: skip
COMMANDS = (
    ("list",),
    ("list", "--json"),
    ("show", "m"),
    ("show", "m@prod"),
    ("aliases", "m"),
    ("aliases", "m", "prod"),
    ("graph", "n@v1"),
    ("verify", "--all"),
    ("gc",),
    ("doctor", "--json"),
    ("rollback", "m", "prod"),
    ("promote", "m@v1", "prod"),
    ("protect", "m@v1"),
    ("unprotect", "m@v1"),
    ("delete", "m@v1"),
    ("restore", "m@v1"),
    ("gc", "--delete", "--grace", "0"),
)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry with something of everything, and a source beside it."""
    root = tmp_path_factory.mktemp("sound")
    source = make_source(root / "source")
    registry = Registry(root / "registry")
    for _ in range(3):
        version = publish(registry, source)
    publish(registry, source, "n", parents=[Parent("init", "m@v1")])
    for number in (1, 2):
        registry.set_alias("m", "prod", number)
    registry.set_alias("m", "other", 3)
    version = registry.resolve("m@v1")
    fields: dict[str, Any] = {"at": "2026-01-01T00:00:00Z", "run": "r", "run_id": "r", "step": 1, "verdict": "pass"}
    said = Review(decision="approve", reviewer="Ada", note="", by="x", digest=version.digest, **fields)
    add_review(registry, version, said)
    assert run("protect", "m@v1", "--registry", str(registry.path)).exit_code == 0
    return root


@contextmanager
def limited(seconds: int, what: str) -> Iterator[None]:
    def late(*_: object) -> None:
        raise TimeoutError(f"{what}: no answer in {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def damaged(sound: Path, tmp_path: Path, place: str, kind: str) -> Path:
    root = tmp_path / kind
    shutil.copytree(sound, root)
    path = root / "registry" / place
    if path.is_dir():
        shutil.rmtree(path)
    elif path.exists():
        path.unlink()
    path.parent.mkdir(exist_ok=True)
    KINDS[kind](path)
    return root


def in_words(result: Result) -> str:
    assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
    assert result.exit_code in (0, 1, 2)
    assert "Traceback" not in result.output
    if result.exit_code == 2:
        assert result.stderr.count("\n") == 1
    return result.output


def expected_by(place: str, kind: str) -> bool:
    """Whether what stands there is what a registry has in that place."""
    a_folder = "." not in place.rpartition("/")[2].lstrip(".")
    notes = ("protected/v000001.json", "removed/v000007.json")  # only their names are read
    plain = kind in ("huge", "nested", "endless_number", "empty")
    return (a_folder and kind == "folder" and "v00" not in place) or (place.endswith(notes) and plain)


@pytest.mark.parametrize("place", PLACES)
def test_damaged_places_are_named_at_once(sound: Path, tmp_path: Path, place: str, tried: Trials) -> None:
    kinds = ["fifo", "link_to_device", "nested"]
    count = len(kinds) * len(COMMANDS[1:10:2])
    tried(f"FIFO, device or nested JSON as {place}", "each command ends, and the place is named", count)
    check(sound, tmp_path, place, kinds, COMMANDS[1:10:2])


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES)
def test_every_command_over_every_damaged_place(sound: Path, tmp_path: Path, place: str, tried: Trials) -> None:
    count = len(KINDS) * len(COMMANDS)
    tried(f"{len(KINDS)} kinds of things as {place}", "each command ends, and the place is named", count)
    check(sound, tmp_path, place, list(KINDS), COMMANDS)


def check(sound: Path, tmp_path: Path, place: str, kinds: list[str], commands: Sequence[tuple[str, ...]]) -> None:
    for kind in kinds:
        if place.endswith(".safetensors") and kind in ("huge", "nested", "endless_number", "empty"):
            continue  # ordinary damage, which other tests have
        root = damaged(sound, tmp_path, place, kind)
        registry = str(root / "registry")
        named = ""
        for command in commands:
            with limited(60, f"{command} with {kind} at {place}"):
                text = in_words(run(*command, "--registry", registry))
            named += text if command[0] in ("doctor", "list") else ""
        with limited(60, f"publish with {kind} at {place}"), suppress(RegistryError):
            publish(Registry(registry), root / "source")
        if not expected_by(place, kind):
            last = place.rpartition("/")[2]
            told = {last, place, f"m@v{int(last[1:])}" if last.startswith("v0") and last[1:].isdigit() else last}
            assert any(each in named for each in told), f"{kind} at {place} is not named:\n{named}"
        shutil.rmtree(root)
