"""Random bytes, and random changes of good ones, in random files of a registry, and random YAML: right, or one line."""

import os
import random
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from helpers.models_command import run
from helpers.registry_faults import make_source, publish

from alignment.config.yaml_text import parse_yaml
from alignment.errors import ConfigError
from alignment.registry import Parent, Registry, RegistryError

SECONDS = float(os.environ.get("ALIGNMENT_FUZZ_SECONDS", "20"))
PIECES = [
    *(b'{"', b"}", b"[", b"null", b"1e999", b"9" * 5000, b"\\ud800", b"\xff", b"\0", b'"version": -1', b"NaN", b'""'),
    *(b"../", b"\x1b[2J", b'"parents": [', b"sha256:" + b"0" * 64),
]
YAML = [
    *("a: ", "- ", "[", "]", "{", "}", "&x ", "*x", "<<: ", "? ", "|\n", ">\n", "\n", "  ", "'", '"', "#", "\t", "\\"),
    *("1e-5", "0x", "2024-13-45", "1:2:3", "~", "---\n", "...\n", "%YAML 9.9\n", "\ufeff", "\x00", "\u00e9"),
    *("!!int ", "!!float ", "!!bool ", "!!timestamp ", "!!binary ", "!!set ", "!!omap ", "!!python/name:os.system "),
]
COMMANDS = (
    *(("list", "--json"), ("show", "m@prod"), ("aliases", "m", "prod"), ("graph", "n"), ("doctor", "--json"), ("gc",)),
    *(("verify", "--all", "--mode", "cached"), ("promote", "m@v1", "prod")),
)


def changed(draw: random.Random, data: bytes) -> bytes:
    """Some bytes, made from good ones or from nothing."""
    content = bytearray(data if draw.random() < 0.8 else b"")
    for _ in range(draw.randint(1, 6)):
        at = draw.randint(0, len(content))
        match draw.randrange(4):
            case 0:
                content[at:at] = draw.choice(PIECES)
            case 1:
                del content[at : at + draw.randint(1, 40)]
            case 2:
                content[at : at + 1] = bytes([draw.randrange(256)])
            case _:
                content[at : at + draw.randint(0, 20)] = draw.choice(PIECES)
    return bytes(content)


def turns(limit: float, most: int) -> Iterator[random.Random]:
    end = time.monotonic() + limit
    for number in range(most):
        if time.monotonic() > end:
            return
        yield random.Random(number)


def check_registry(sound: Path, tmp_path: Path, limit: float, most: int) -> int:
    done = 0
    for draw in turns(limit, most):
        root = shutil.copytree(sound, tmp_path / str(done))
        files = sorted(path for path in root.rglob("*") if path.is_file())
        for path in draw.sample(files, draw.randint(1, 2)):
            data = path.read_bytes()
            path.unlink()
            path.write_bytes(changed(draw, data))
        for command in COMMANDS:
            result = run(*command, "--registry", str(root))
            assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
            assert result.exit_code in (0, 1, 2)
            assert result.exit_code != 2 or result.stderr.count("\n") == 1
            assert "\x1b" not in result.output
        shutil.rmtree(root)
        done += 1
    return done


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    source = make_source(tmp_path / "source")
    registry = Registry(tmp_path / "sound")
    for _ in range(2):
        publish(registry, source)
    publish(registry, source, "n", parents=[Parent("init", "m@v1")])
    registry.set_alias("m", "prod", 1)
    registry.set_alias("m", "prod", 2)
    return registry.path


def test_random_damage_of_a_registry_is_one_line(sound: Path, tmp_path: Path) -> None:
    assert check_registry(sound, tmp_path, 60, 10) > 0


@pytest.mark.slow
def test_random_damage_of_a_registry_is_one_line_for_long(sound: Path, tmp_path: Path) -> None:
    assert check_registry(sound, tmp_path, SECONDS, 10**9) > 0


def check_yaml(limit: float, most: int) -> int:
    done = 0
    for draw in turns(limit, most):
        text = "".join(draw.choice(YAML) for _ in range(draw.randint(1, 60)))
        with suppress(ConfigError):
            parse_yaml(text, "c.yaml")
        done += 1
    return done


def test_random_yaml_is_read_or_refused_in_one_line() -> None:
    assert check_yaml(30, 1500) > 0


@pytest.mark.slow
def test_random_yaml_is_read_or_refused_in_one_line_for_long() -> None:
    assert check_yaml(SECONDS, 10**9) > 0


def test_a_registry_that_is_a_link_or_a_fifo_is_one_line(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(RegistryError, match="is not a folder"):
        Registry(tmp_path / "fifo")
