"""Random damage to data files, configs, registries and requests to the rating page, and what may come of it.

    PYTHONPATH=.:tests python tests/faults/fuzzing.py SECONDS [TARGET ...] [--seed N]

Runs each target for so many seconds and prints a JSON object of its cases. What is refused has to be refused in one of
our own errors, within `CPU_SECONDS` and `MOST_BYTES`; the first case that is not stops it, with its seed and its input.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CPU_SECONDS, WALL_SECONDS = 10.0, 120.0
"""A case that works for longer hangs; one that waits is given more, as the machine may be busy."""
MOST_BYTES = 1 << 30
PIECES = [
    *(b'{"', b"}", b"[", b"null", b"1e999", b"9" * 5000, b"\\ud800", b"\xff", b"\0", b"-1", b"NaN", b'""', b"true"),
    *(b"../", b"\x1b[2J", b"[" * 5000, b'{"a":' * 5000, b"\r", b"\n", b"\t", b",", b";", b'"', b"'", b"<a>", b"<!--"),
    *(b"\xff\xfe", b"\x1f\x8b", b"PK\x03\x04", b"PAR1", b"\xe2\x80\xa8", b"\xf0\x9f\x98\x80", b"0", b"\\", b": "),
    *(b"```", b"# ", b"\xef\xbb\xbf"),
]
ODD: list[Any] = [
    *(None, True, False, 0, -1, 1, 2**63, 10**400, 1e308, float("inf"), float("nan"), 0.5, "", " ", "\0", "\ud800"),
    *("0", "1", "-1", "nan", "1e999", "[]", "{}", "null", '[{"role": "user"}]', "\x1b[2J", "\u202e", "x" * 5000),
    *([], {}, [[]], [None], [{}], [1, "a"], {"a": None}, {"role": "user"}, {"role": None, "content": None}, [["a"]]),
    *({"role": "assistant", "content": "Hi"}, {"role": "system", "content": []}, {"from": "gpt", "value": 3}),
    *({"content": [{"type": "image_url"}]}, {"tool_calls": [{"function": None}]}, "user", "assistant", "2024-02-30"),
]  # fmt: skip


def changed(draw: random.Random, data: bytes, pieces: list[bytes] = PIECES) -> bytes:
    """Some bytes, made from good ones or from nothing."""
    content = bytearray(data if draw.random() < 0.9 else b"")
    for _ in range(draw.randint(1, 6)):
        at = draw.randint(0, len(content))
        match draw.randrange(7):
            case 0:
                content[at:at] = draw.choice(pieces)
            case 1:
                del content[at : at + draw.randint(1, 40)]
            case 2:
                content[at : at + 1] = bytes([draw.randrange(256)])
            case 3:
                content[at : at + draw.randint(0, 20)] = draw.choice(pieces)
            case 4:
                del content[at:]
            case 5:
                start = draw.randint(0, len(content))
                content[at:at] = content[start : start + draw.randint(1, 200)]
            case _:
                if at < len(content):
                    content[at] ^= 1 << draw.randrange(8)
    return bytes(content)


def nested(draw: random.Random) -> Any:
    value: Any = draw.choice(ODD)
    for _ in range(draw.choice([1, 3, 60, 300])):
        value = [value] if draw.random() < 0.5 else {draw.choice(["content", "messages", "a"]): value}
    return value


def changed_value(draw: random.Random, value: Any, names: list[str]) -> Any:
    """A value of JSON with one place in it changed: another value, a key gone, renamed or more."""
    if isinstance(value, dict) and value and draw.random() < 0.9:
        value, key = dict(value), draw.choice(list(value))
        match draw.randrange(6):
            case 0:
                del value[key]
            case 1:
                value[draw.choice(names)] = value.pop(key)
            case 2:
                value[draw.choice(names)] = draw.choice(ODD)
            case _:
                value[key] = changed_value(draw, value[key], names)
        return value
    if isinstance(value, list) and value and draw.random() < 0.9:
        value, at = list(value), draw.randrange(len(value))
        match draw.randrange(4):
            case 0:
                del value[at]
            case 1:
                value.insert(at, draw.choice([value[at], *ODD]))
            case _:
                value[at] = changed_value(draw, value[at], names)
        return value
    if isinstance(value, str) and draw.random() < 0.4:
        return changed(draw, value.encode("utf-8", "surrogatepass")).decode("utf-8", "replace")
    return nested(draw) if draw.random() < 0.05 else draw.choice(ODD)


# --- the limits of a case --------------------------------------------------------------------------------------------


class Hang(BaseException):
    """A case that has worked or waited for too long."""


class Finding(Exception):
    """A case that does not end as it should."""


@contextmanager
def limits() -> Iterator[None]:
    """Stop what hangs, wherever it is."""

    def late(number: int, frame: Any) -> None:
        raise Hang(f"{'CPU' if number == signal.SIGPROF else 'waiting'} for too long")

    before = signal.signal(signal.SIGPROF, late), signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
    signal.setitimer(signal.ITIMER_REAL, WALL_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGPROF, before[0])
        signal.signal(signal.SIGALRM, before[1])
    if (peak := resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024) > MOST_BYTES:
        raise Finding(f"{peak / 2**20:.0f} MiB of memory")


Case = Callable[[random.Random, Path], Any]
"""One case, in an empty folder; what it returns describes the input."""


def run(case: Case, folder: Path, seconds: float, first: int) -> dict[str, Any]:
    """Cases for so many seconds; the seeds count from `first`. A finding is in what comes back, with its traceback."""
    started, worked, number = time.monotonic(), time.process_time(), first
    while time.monotonic() - started < seconds:
        place = folder / str(number)
        place.mkdir()
        try:
            with limits():
                case(random.Random(number), place)
        except (Exception, Hang):  # noqa: BLE001 - whatever it is, it is what we look for
            said = traceback.format_exc()[-6000:]
            return {"cases": number - first + 1, "seed": number, "folder": str(place), "finding": said}
        shutil.rmtree(place)
        number += 1
    seconds, worked = time.monotonic() - started, time.process_time() - worked
    return {"cases": number - first, "seconds": round(seconds, 1), "cpu_seconds": round(worked, 1)}


def main() -> int:
    from fuzz_targets import TARGETS

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("seconds", type=float, help="for each target")
    parser.add_argument("targets", nargs="*", choices=[*TARGETS, []], help="all if none is named")
    parser.add_argument("--seed", type=int, default=0, help="of the first case")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    found = {}
    for name in arguments.targets or TARGETS:
        (place := folder / name).mkdir()
        with TARGETS[name](place) as case:
            (cases := place / "cases").mkdir()
            found[name] = run(case, cases, arguments.seconds, arguments.seed)
    print(json.dumps(found))
    if any("finding" in outcome for outcome in found.values()):
        return 1
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
