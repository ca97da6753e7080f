"""Hostile names, paths, links, devices and headers do not leave the registry."""

import hashlib
import json
import os
import socket
import tempfile
from pathlib import Path
from typing import Any

import pytest
from helpers.registry_faults import everything, publish

from alignment.registry import Registry, RegistryError, Version

PARTS = [
    "..",
    ".",
    "/",
    "//",
    "~",
    "~root",
    "\\",
    "..\\",
    "C:\\x",
    "%2e%2e%2f",
    "..%2f",
    "..;",
    "a/../..",
    "./a",
    "a//b",
]


TARGETS = ["", "etc/passwd", "x", "models/m", ".staging", ".trash/x", "REGISTRY.json", "v000001", "manifest.json"]


ODD = [
    *(
        "",
        " ",
        "a b",
        "a\n",
        "\na",
        "a\x00b",
        "a\x1b[31m",
        "\u202egnp.json",
        "a\u0000",
        "\ud800",
        "\uff0e\uff0e/x",
        "\u2024\u2024",
    ),
    *(
        "CON",
        "NUL.json",
        "-rf",
        "--help",
        "$(id)",
        "`id`",
        "a;b",
        "a|b",
        "*",
        "?",
        "a" * 65,
        "a" * 5000,
        "A",
        "\u00e9",
        "\u0430",
    ),
    *(
        ".hidden",
        "..hidden",
        "@",
        "a@b",
        "a@v1",
        "@v1",
        "a@sha256:x",
        "a:b",
        "a'b",
        'a"b',
        "<a>",
        "{a}",
        "[a]",
        "a&b",
        "#a",
        "\t",
    ),
]


HOSTILE = [
    *dict.fromkeys([f"{part}{joint}{target}" for part in PARTS for joint in ("/", "") for target in TARGETS] + ODD)
]


def outside(tmp_path: Path) -> dict[str, tuple[int, bytes]]:
    return {
        path: facts for path, facts in everything(tmp_path).items() if "/registry" not in path and "cache" not in path
    }


def test_200_hostile_names_and_paths_do_not_escape(tmp_path: Path, source: Path) -> None:
    assert len(HOSTILE) >= 200
    registry = Registry(tmp_path / "deep" / "registry")
    version = publish(registry, source)
    outer, inner = outside(tmp_path), everything(registry.path)
    manifest = json.loads((version.path / "manifest.json").read_bytes())
    lines = []
    for text in HOSTILE:
        harmless = text in ("x", "a", "etc/passwd")
        assert not harmless
        for attack in (
            lambda text=text: publish(registry, source, name=text),
            lambda text=text: registry.set_alias("m", text, 1),
            lambda text=text: registry.set_alias(text, "prod", 1),
            lambda text=text: registry.load(text),
            lambda text=text: registry.load(f"m@{text}") if text else registry.load(""),
        ):
            with pytest.raises(RegistryError) as caught:
                attack()
            lines.append(str(caught.value))
        with pytest.raises(RegistryError):  # a forged manifest, as a zip's directory could be
            parse(manifest | {"files": {f"{text}.bin": {"sha256": "0" * 64, "size": 1}}})
        with pytest.raises(RegistryError):
            parse(manifest | {"files": {f"../{text}": {"sha256": "0" * 64, "size": 1}}})
        with pytest.raises(RegistryError):
            parse(manifest | {"name": text})
    assert all(line.isprintable() for line in lines)
    assert outside(tmp_path) == outer
    assert everything(registry.path) == inner


def parse(manifest: dict[str, Any]) -> Any:
    from alignment.registry.manifest import parse_manifest

    return parse_manifest(json.dumps(manifest).encode(), "manifest.json")


def put_socket(path: Path) -> None:
    """Bound in a short folder and renamed: an address of more than 107 bytes is refused."""
    with tempfile.TemporaryDirectory() as short, socket.socket(socket.AF_UNIX) as bound:
        bound.bind(f"{short}/s")
        os.rename(f"{short}/s", path)


def test_links_devices_and_sockets_are_not_stored(tmp_path: Path, source: Path) -> None:
    registry = Registry(tmp_path / "registry")
    secret = tmp_path / "secret.json"
    secret.write_text("secret")
    kinds: list[Any] = [
        lambda path: path.symlink_to(secret),
        lambda path: path.symlink_to("/proc/self/environ"),
        lambda path: path.symlink_to(path),
        lambda path: path.symlink_to(tmp_path),
        lambda path: path.symlink_to(source),
        os.mkfifo,
        put_socket,
    ]
    if os.getuid() == 0:
        kinds.append(lambda path: os.mknod(path, 0o020666, os.makedev(1, 5)))  # /dev/zero, which has no end
    (source / "sub").mkdir()
    for kind in kinds:
        for place in (source / "notes.json", source / "sub" / "weights.safetensors"):
            kind(place)
            with pytest.raises(RegistryError, match=place.name):
                publish(registry, source)
            place.unlink()
    assert registry.names() == []
    os.link(secret, source / "notes.json")  # a file like any other: its bytes are copied
    version = publish(registry, source)
    secret.write_text("changed")
    assert (version.path / "notes.json").read_text() == "secret"
    assert version.shared_files() == []


HEADERS = [
    *(b"", b"\x02", (2).to_bytes(8, "little"), (2).to_bytes(8, "little") + b"[]", (0).to_bytes(8, "little") + b"{}"),
    *(length.to_bytes(8, "little") + b"{}" for length in (3, 10, 2**20, 2**31, 2**32, 100_000_001, 2**63, 2**64 - 1)),
    b"PK\x03\x04" + b"\0" * 60,
    b"\x80\x02csubprocess\ncall\n",
    b"<html></html>",
]


@pytest.mark.parametrize("content", HEADERS, ids=range(len(HEADERS)))
def test_a_forged_header_is_refused_at_publish_and_at_load(tmp_path: Path, source: Path, content: bytes) -> None:
    registry = Registry(tmp_path / "registry")
    version = publish(registry, source)
    (source / "model.safetensors").write_bytes(content)
    with pytest.raises(RegistryError, match=r"^file 'model\.safetensors' cannot be stored: .* is no safetensors file"):
        publish(registry, source)
    assert registry.numbers("m") == [1]
    forge(version, content)
    for mode in ("fast", "cached", "full"):
        with pytest.raises(RegistryError, match=r"model\.safetensors is no safetensors file: .*; publish it again$"):
            registry.load("m", verify=mode)


def test_a_header_that_is_too_long_is_refused_though_the_file_is_longer(tmp_path: Path, source: Path) -> None:
    with open(source / "model.safetensors", "wb") as file:
        file.write((100_000_001).to_bytes(8, "little") + b"{")
        file.truncate(100_000_200)  # sparse
    with pytest.raises(RegistryError, match="its header says 100000001 bytes"):
        publish(Registry(tmp_path / "registry"), source)


def forge(version: Version, content: bytes) -> None:
    """As somebody could who may write to the registry: file and manifest agree."""
    for name in ("model.safetensors", "manifest.json"):
        (version.path / name).chmod(0o644)
    (version.path / "model.safetensors").write_bytes(content)
    manifest = json.loads((version.path / "manifest.json").read_bytes())
    digest = hashlib.sha256(content).hexdigest()
    manifest["files"]["model.safetensors"] = {"sha256": digest, "size": len(content)}
    (version.path / "manifest.json").write_text(json.dumps(manifest))
