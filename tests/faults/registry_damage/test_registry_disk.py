"""A registry that is damaged, read-only, full, on another clock, shared, or behind a link: right, or one line."""

import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from helpers.registry_faults import everything, make_source, publish

import alignment
from alignment.registry import Registry, RegistryError
from alignment.registry.doctor import examine

ROOT = Path(alignment.__file__).parents[1]


needs_root = pytest.mark.skipif(os.getuid() != 0, reason="needs root, to become another user or to mount")


CHILD = """
import json, os, resource, sys, time
from pathlib import Path
from alignment.registry import Parent, Registry, RegistryError, doctor, files, manifest, provenance, store, trash
from alignment.registry.retention import collect, protect, remove
provenance.code_state = lambda: None
provenance.package_versions()
folder, source = Path(sys.argv[1]), Path(sys.argv[2])

def become(user, group, mask):
    os.setgroups([]); os.setgid(group); os.setuid(user); os.umask(mask)

def publish(**fields):
    return Registry(folder).publish("m", source, stage="sft", role="policy", **fields).ref

said = []
def attempt(work):
    try:
        said.append([True, str(work())])
    except RegistryError as error:
        said.append([False, str(error)])
    assert "\\n" not in said[-1][1]
"""


def run(script: str, *arguments: object) -> list[tuple[bool, str]]:
    """What each attempt of a child said, and whether it went through. The child has no home: no cache."""
    command = [sys.executable, "-c", f"{CHILD}\n{script}\nprint(json.dumps(said))", *map(str, arguments)]
    environment = {**os.environ, "XDG_CACHE_HOME": "/nowhere"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    return [tuple(item) for item in json.loads(done.stdout)]


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder whose parents are open to everybody, as those of tmp_path are not."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o777)
        make_source(Path(folder, "source"))
        yield Path(folder)


@pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"])
def test_100_flips_and_truncations_are_100_found(tmp_path: Path, source: Path, warm: bool) -> None:
    registry = Registry(tmp_path / "registry")
    for _ in range(4):
        publish(registry, source)
    draw, found = random.Random(0), 0
    for turn in range(100):
        version = registry.resolve(f"m@v{draw.randint(1, 4)}")
        path = draw.choice(sorted(version.path.iterdir()))
        good = path.read_bytes()
        times = (path.stat().st_atime_ns, path.stat().st_mtime_ns)
        if warm:
            registry.load(version.ref)
        bad = bytearray(good)
        if turn % 3:
            bad[draw.randrange(len(bad))] ^= 1 << draw.randrange(8)
        else:
            del bad[draw.randrange(len(bad)) :]
        path.chmod(0o644)
        path.write_bytes(bad)
        os.utime(path, ns=times)
        with pytest.raises(RegistryError) as caught:
            version.verify(cold=not warm)
        found += path.name in str(caught.value)
        path.write_bytes(good)
        version.verify()
    assert found == 100


EVERY_WRITE = """
if os.getuid() == 0 and len(sys.argv) > 3:
    become(65534, 65534, 0o022)
registry = Registry(folder)
attempt(lambda: registry.load("m@prod", verify="full").ref)
attempt(lambda: [finding.kind for finding in doctor.examine(registry)])
attempt(lambda: publish())
attempt(lambda: registry.set_alias("m", "prod", 2))
attempt(lambda: collect(registry, grace=0, delete=True))
attempt(lambda: remove(registry, "m@v2"))
attempt(lambda: protect(registry, "m@v2"))
"""


def check_nothing_was_written(said: list[tuple[bool, str]], reason: str) -> None:
    assert said[:2] == [(True, "m@v1"), (True, "[]")]
    assert len(said) == 7
    assert not any(through for through, _ in said[2:])
    for (_, line), start in zip(
        said[2:],
        [
            "m cannot be published to",
            "alias m@prod cannot be set in",
            "",
            "m@v2 cannot be removed",
            "m@v2 cannot be prot",
        ],
        strict=True,
    ):
        assert line.startswith(start)
        assert reason in line
        assert line.endswith("fix that and try again")


@needs_root
def test_a_read_only_registry_can_be_read_by_an_ordinary_user(public: Path) -> None:
    registry = Registry(public / "registry")
    for _ in range(3):
        publish(registry, public / "source")
    registry.set_alias("m", "prod", 1)
    for place in [registry.path, *registry.path.rglob("*")]:
        os.chown(place, 65534, 65534)  # it is theirs, and still may not be written
        place.chmod(0o555 if place.is_dir() else 0o444)
    before = everything(registry.path)
    check_nothing_was_written(run(EVERY_WRITE, registry.path, public / "source", "nobody"), "Permission denied")
    assert everything(registry.path) == before


@contextmanager
def mounted(folder: Path, size: str) -> Iterator[Path]:
    """A small filesystem of our own."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@needs_root
def test_a_read_only_filesystem_can_be_read(tmp_path: Path, source: Path) -> None:
    with mounted(tmp_path / "disk", "4m") as disk:
        registry = Registry(disk / "registry")
        for _ in range(3):
            publish(registry, source)
        registry.set_alias("m", "prod", 1)
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        check_nothing_was_written(run(EVERY_WRITE, registry.path, source), "Read-only file system")


@needs_root
def test_a_full_disk_leaves_nothing_and_can_be_emptied(tmp_path: Path, source: Path) -> None:
    with mounted(tmp_path / "disk", "96k") as disk:
        registry = Registry(disk / "registry")
        with pytest.raises(RegistryError, match=r"^m cannot be published to .*: No space left on device") as caught:
            for _ in range(100):
                publish(registry, source)
        assert "\n" not in str(caught.value)
        count = len(registry.numbers("m"))
        assert count >= 2
        for version in registry.versions("m"):
            version.verify(cold=True)
        assert list(examine(registry)) == []
        assert list((registry.path / ".staging").iterdir()) == []
        for number in range(1, count):  # by hand: even a note needs space
            subprocess.run(["rm", "-r", str(registry.path / f"models/m/v{number:06d}")], check=True)
        assert publish(registry, source).number == count + 1


@pytest.mark.parametrize("limit", [0, 1, 100, 500, 2000, 4000, 4105])
def test_a_write_cut_short_at_any_size_leaves_nothing(tmp_path: Path, source: Path, limit: int) -> None:
    registry = Registry(tmp_path / "registry")
    publish(registry, source)
    script = """
hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), hard[1]))
attempt(publish)
if int(sys.argv[3]) < 100:
    attempt(lambda: Registry(folder).set_alias("m", "prod", 1))
resource.setrlimit(resource.RLIMIT_FSIZE, hard)
attempt(publish)
"""
    said = run(script, registry.path, source, limit)
    assert said[0][1].startswith("m cannot be published to")
    assert "File too large" in said[0][1]
    assert all(not through and "File too large" in line for through, line in said[:-1])
    assert said[-1] == (True, "m@v2")
    assert registry.aliases("m") == {}
    assert list(examine(registry, cold=True)) == []
    assert list((registry.path / ".staging").iterdir()) == []


CLOCK = """
from datetime import datetime
wrong = float(sys.argv[3])
real = time.time
time.time = lambda: real() + wrong
class Clock(datetime):
    @classmethod
    def now(cls, zone=None):
        return datetime.fromtimestamp(time.time(), zone)
for module in (manifest, store, trash):
    module.datetime = Clock
"""


@pytest.mark.parametrize(("publishing", "collecting"), [(-3600, 0), (-3600, 3600), (0, 3600), (3600, -3600)])
def test_a_clock_that_is_an_hour_off_removes_nothing_young(
    tmp_path: Path, source: Path, publishing: int, collecting: int
) -> None:
    path = tmp_path / "registry"
    script = CLOCK + 'attempt(publish); attempt(publish); attempt(lambda: Registry(folder).set_alias("m", "prod", 2))'
    assert all(through for through, _ in run(script, path, source, publishing))
    registry = Registry(path)
    made, now = registry.resolve("m").manifest.created_at.timestamp(), path.stat().st_mtime
    assert abs(made - now - publishing) < 60
    script = (
        CLOCK
        + """
attempt(lambda: collect(Registry(folder), keep=0, grace=1800, purge_after=1800, delete=True).removed)
attempt(lambda: [finding.kind for finding in doctor.examine(Registry(folder))])
attempt(publish)
attempt(lambda: Registry(folder).set_alias("m", "prod", 3, expect=2))
"""
    )
    assert run(script, path, source, collecting) == [(True, "[]"), (True, "[]"), (True, "m@v3"), (True, "None")]
    assert registry.load("m@prod").number == 3


SHARED = """
become(int(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5], 8))
attempt(publish)
attempt(lambda: Registry(folder).load("m@v1").ref)
attempt(lambda: Registry(folder).set_alias("m", "prod", max(Registry(folder).numbers("m"))))
attempt(lambda: collect(Registry(folder), keep=0, grace=0, delete=True).removed)
"""


@needs_root
def test_a_group_shares_a_registry_and_nobody_else_does(public: Path) -> None:
    path = public / "registry"
    path.mkdir()
    os.chown(path, 10001, 10000)
    path.chmod(0o2770)
    first = run(SHARED, path, public / "source", 10001, 10000, "002")
    second = run(SHARED, path, public / "source", 10002, 10000, "002")
    stranger = run(SHARED, path, public / "source", 10003, 10003, "002")
    assert first == [(True, "m@v1"), (True, "m@v1"), (True, "None"), (True, "[]")]
    assert second == [(True, "m@v2"), (True, "m@v1"), (True, "None"), (True, "[('m', 1)]")]
    assert len(stranger) == 4
    assert all(not through and "Permission denied" in line for through, line in stranger)
    for place in path.rglob("*"):
        assert place.stat().st_gid == 10000
        assert place.stat().st_mode & 0o777 == (0o775 if place.is_dir() else 0o444)


@needs_root
def test_a_private_umask_is_one_line_for_the_rest_of_the_group(public: Path) -> None:
    path = public / "registry"
    path.mkdir()
    path.chmod(0o777)
    mine = run(SHARED, path, public / "source", 10001, 10000, "077")
    assert all(through for through, _ in mine)
    others = run(SHARED, path, public / "source", 10002, 10000, "077")
    assert len(others) == 4
    assert all(not through and "Permission denied" in line for through, line in others)
    assert Registry(path).load("m").number == 1


def test_a_registry_behind_a_link_works_and_a_link_to_nowhere_is_one_line(tmp_path: Path, source: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "up").symlink_to(tmp_path)
    registry = Registry(tmp_path / "link")
    publish(registry, source)
    registry.set_alias("m", "prod", 1)
    through = Registry(tmp_path / "up" / "real")
    assert publish(through, source).number == 2
    assert through.load("m@prod").digest == registry.load("m@v1").digest
    assert list(examine(through)) == []
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    with pytest.raises(RegistryError, match=r"^m cannot be published to .*dangling") as caught:
        publish(Registry(tmp_path / "dangling"), source)
    assert "\n" not in str(caught.value)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(RegistryError) as caught:
        publish(Registry(tmp_path / "loop"), source)
    assert "\n" not in str(caught.value)


def test_a_registry_that_is_a_fifo_is_one_line(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(RegistryError, match="is not a folder"):
        Registry(tmp_path / "fifo")
