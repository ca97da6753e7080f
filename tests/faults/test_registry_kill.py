"""Publishing jobs that are killed: what is visible afterwards is whole, gapless and complete."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import alignment
from alignment.registry import Registry
from alignment.registry.doctor import examine, fix_findings

MEMBERS = 4
ENOUGH = 25  # kills, and publishes acknowledged

PRELUDE = """
import json, os, random, signal, sys, time
from pathlib import Path
from alignment.registry import Registry, provenance
provenance.code_state = lambda: None
os.fsync = lambda descriptor: None  # a kill loses nothing that was written; only a power cut does
folder, source = Path(sys.argv[1]), Path(sys.argv[2])

def publish(publish_id=None):
    return Registry(folder).publish("m", source, stage="sft", role="policy", publish_id=publish_id)

def fork(work):
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(0)
    return child
"""

# Workers publish without end and write down what was acknowledged; each lives for a random moment, measured in
# publishes so that a slow machine gets as far. A job that is killed is requeued with the same publish_id until it is
# acknowledged.
HERD = (
    PRELUDE
    + """
members, enough = int(sys.argv[3]), int(sys.argv[4])
random.seed(0)
acknowledged = os.open(sys.argv[5], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
jobs = {}
begun = time.monotonic()
Registry(folder).publish("probe", source, stage="sft", role="policy")
moment = time.monotonic() - begun

def told():
    with open(sys.argv[5]) as file:
        return [tuple(map(int, line.split()[:2])) for line in file]

def work(member, job):
    while True:
        version = publish(f"{member}-{job}")
        os.write(acknowledged, f"{member} {job} {version.number} {version.digest}\\n".encode())
        job += 1

def start(member):
    next_job = sum(1 for teller, _ in told() if teller == member)
    child = fork(lambda: work(member, next_job))
    patience = members * moment * (1 + time.monotonic() - begun)
    jobs[child] = (member, time.monotonic() + random.uniform(0, patience))

for member in range(members):
    start(member)
kills = 0
while kills < enough or len(told()) < enough:
    for child, (member, until) in list(jobs.items()):
        if time.monotonic() > until:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            del jobs[child]
            kills += 1
            start(member)
    time.sleep(0.002)
for child in jobs:
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
print(json.dumps({"kills": kills + len(jobs)}))
"""
)

# One piece of work per system call that it makes, killed just before that call; a write is killed when half is written.
EVERY_CALL = (
    PRELUDE
    + """
import io
from alignment.registry import files, retention

CALLS = ["open", "fsync", "mkdir", "rename", "link", "unlink", "rmdir"]  # and write; the others change nothing

def child(fatal, work):
    count = 0
    def die_if_due(before=lambda: None):
        nonlocal count
        if count == fatal:
            before()
            os.kill(os.getpid(), signal.SIGKILL)
        count += 1
    def counted(call):
        def wrapper(*arguments, **keywords):
            die_if_due()
            return call(*arguments, **keywords)
        return wrapper
    class Raw(io.FileIO):
        def write(self, data):
            whole = memoryview(data).cast("B")
            die_if_due(lambda: super(Raw, self).write(whole[: len(whole) // 2]))
            return super().write(data)
    def opened(file, mode="r", *arguments, **keywords):
        return io.BufferedWriter(Raw(file, "wb")) if mode == "wb" else open(file, mode, *arguments, **keywords)
    for name in CALLS:
        setattr(os, name, counted(getattr(os, name)))
    files.open = opened
    work()

def killed(fatal, work):
    return os.waitstatus_to_exitcode(os.waitpid(fork(lambda: child(fatal, work)), 0)[1]) == -signal.SIGKILL
"""
)

PUBLISHING = (
    EVERY_CALL
    + """
results = []
for fatal in range(10_000):
    dead = killed(fatal, lambda: publish("the job"))
    registry = Registry(folder)
    for name in registry.names():
        for version in registry.versions(name):
            version.verify()
    results.append([dead, registry.numbers("m")])
    if not dead:
        break
    if fatal % 2:  # so that later kills meet a registry with versions in it as well as leftovers
        publish()
print(json.dumps(results))
"""
)

# The very first publish, which makes the registry itself.
FOUNDING = (
    EVERY_CALL
    + """
import shutil
results = []
for fatal in range(10_000):
    dead = killed(fatal, lambda: publish("the job"))
    numbers = Registry(folder).numbers("m")
    version = publish("the job")
    version.verify()
    results.append([dead, numbers, version.number, Registry(folder).numbers("m")])
    if not dead:
        break
    shutil.rmtree(folder)
print(json.dumps(results))
"""
)

# The alias moves, or a collection removes v1, v2 and the child of v2 and purges them; then the same without a kill.
MOVING = (
    EVERY_CALL
    + """
for _ in range(3):
    publish()
results = []
for fatal in range(10_000):
    before = len(Registry(folder).alias_history("m", "prod")) if results else 0
    dead = killed(fatal, lambda: Registry(folder).set_alias("m", "prod", 1 + fatal % 3))
    history = Registry(folder).alias_history("m", "prod") if "prod" in Registry(folder).aliases("m") else []
    assert len(history) - before in (0, 1)
    Registry(folder).set_alias("m", "prod", 3)
    assert Registry(folder).load("m@prod").number == 3
    results.append([dead, len(history) - before])
    if not dead:
        break
print(json.dumps(results))
"""
)

COLLECTING = (
    EVERY_CALL
    + """
import shutil
from alignment.registry import Parent, trash
registry = Registry(folder)
publish(), publish(), publish(), publish()
start = registry.resolve("m@v2")
registry.publish("child", source, stage="sft", role="policy", parents=[Parent("init", start.ref, start.digest)])
registry.publish("child", source, stage="sft", role="policy")
registry.set_alias("m", "prod", 3)
plain = folder.with_name("plain")
shutil.copytree(folder, plain)
results = []
for fatal in range(10_000):
    dead = killed(fatal, lambda: retention.collect(Registry(folder), grace=0, purge_after=0, delete=True))
    numbers = registry.numbers("m")
    for name in registry.names():
        for version in registry.versions(name):
            version.verify(cold=True)
            assert all(registry.resolve(parent.ref) for parent in version.manifest.parents)
    trash.TRANSIT_SECONDS = 0.0  # the killed collection was an hour ago
    again = retention.collect(registry, grace=0, purge_after=0, delete=True)
    trash.TRANSIT_SECONDS = 3600.0
    results.append([dead, numbers, registry.numbers("m"), publish().number])
    if not dead:
        break
    shutil.rmtree(folder)
    shutil.copytree(plain, folder)
print(json.dumps(results))
"""
)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}" + bytes(range(256)) * 256)
    return folder


def run(script: str, *arguments: object) -> str:
    root = Path(alignment.__file__).parents[1]
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=True, timeout=120).stdout


def test_jobs_killed_at_random_leave_gapless_whole_versions(tmp_path: Path, source: Path) -> None:
    acknowledged = tmp_path / "acknowledged"
    report = json.loads(run(HERD, tmp_path / "registry", source, MEMBERS, ENOUGH, acknowledged))
    registry = Registry(tmp_path / "registry")
    versions = registry.versions("m")
    told = [line.split() for line in acknowledged.read_text().splitlines()]
    assert report["kills"] >= ENOUGH
    assert len(told) >= ENOUGH

    assert [version.number for version in versions] == list(range(1, len(versions) + 1))
    for version in versions:
        version.verify()
    found = {version.manifest.publish_id: (str(version.number), version.digest) for version in versions}
    assert len(found) == len(versions), "a requeued job published twice"
    assert all(found[f"{member}-{job}"] == (number, digest) for member, job, number, digest in told)
    assert len(told) <= len(versions) <= len(told) + report["kills"]
    assert len(list((registry.path / ".staging").iterdir())) <= report["kills"]
    assert registry.publish("m", source, stage="sft", role="policy").number == len(versions) + 1


def test_a_kill_at_any_system_call_leaves_nothing_partial(tmp_path: Path, source: Path) -> None:
    results = json.loads(run(PUBLISHING, tmp_path / "registry", source))
    assert len(results) > 20
    assert [killed for killed, _ in results] == [True] * (len(results) - 1) + [False]
    for _, numbers in results:
        assert numbers == list(range(1, len(numbers) + 1))
    registry = Registry(tmp_path / "registry")
    jobs = [version.manifest.publish_id for version in registry.versions("m")]
    assert jobs.count("the job") == 1
    everything = list(examine(registry))
    assert {finding.kind for finding in everything} == {"leftover"}
    fix_findings(everything)
    assert list(examine(registry)) == []
    assert list((registry.path / ".staging").iterdir()) == []


def test_the_first_publish_killed_at_any_system_call_can_be_repeated(tmp_path: Path, source: Path) -> None:
    results = json.loads(run(FOUNDING, tmp_path / "registry", source))
    assert len(results) > 30
    assert [killed for killed, *_ in results] == [True] * (len(results) - 1) + [False]
    assert [found for _, found, *_ in results] == sorted(found for _, found, *_ in results)  # [], then [1]
    assert all(rest == [1, [1]] for _, _, *rest in results)


def test_an_alias_killed_at_any_system_call_has_moved_or_not(tmp_path: Path, source: Path) -> None:
    results = json.loads(run(MOVING, tmp_path / "registry", source))
    assert len(results) > 4
    assert [killed for killed, _ in results] == [True] * (len(results) - 1) + [False]
    moved = [count for _, count in results]
    assert moved == sorted(moved)  # before the link it has not moved, after it it has
    assert set(moved) == {0, 1}


def test_a_collection_killed_at_any_system_call_loses_nothing_in_use(tmp_path: Path, source: Path) -> None:
    results = json.loads(run(COLLECTING, tmp_path / "registry", source))
    assert len(results) > 30
    assert [killed for killed, *_ in results] == [True] * (len(results) - 1) + [False]
    assert all(set(found) >= {3, 4} for _, found, *_ in results)
    assert {len(found) for _, found, *_ in results} == {2, 3, 4}
    assert all(after == [3, 4] and number == 5 for *_, after, number in results)
