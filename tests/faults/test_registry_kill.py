"""Publishing jobs that are killed: what is visible afterwards is whole, gapless and complete."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import alignment
from alignment.registry import Registry

MEMBERS = 4
ENOUGH = 25  # kills, and publishes acknowledged

PRELUDE = """
import json, os, random, signal, sys, time
from pathlib import Path
from alignment.registry import Registry, provenance
provenance.code_state = lambda: None
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

# One publish per system call that it makes, killed just before that call.
EVERY_CALL = (
    PRELUDE
    + """
calls = ["open", "fsync", "mkdir", "rename", "link", "unlink"]
results = []
for fatal in range(10_000):
    def work():
        count = 0
        def counted(call):
            def wrapper(*arguments, **keywords):
                nonlocal count
                if count == fatal:
                    os.kill(os.getpid(), signal.SIGKILL)
                count += 1
                return call(*arguments, **keywords)
            return wrapper
        for name in calls:
            setattr(os, name, counted(getattr(os, name)))
        publish("the job")
    killed = os.waitstatus_to_exitcode(os.waitpid(fork(work), 0)[1]) == -signal.SIGKILL
    registry = Registry(folder)
    for name in registry.names():
        for version in registry.versions(name):
            version.verify()
    results.append([killed, registry.numbers("m")])
    if not killed:
        break
    if fatal % 2:  # so that later kills meet a registry with versions in it as well as leftovers
        publish()
print(json.dumps(results))
"""
)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}" + bytes(range(256)) * 4096)
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


def test_a_kill_before_any_system_call_leaves_nothing_partial(tmp_path: Path, source: Path) -> None:
    results = json.loads(run(EVERY_CALL, tmp_path / "registry", source))
    assert len(results) > 15
    assert [killed for killed, _ in results] == [True] * (len(results) - 1) + [False]
    for _, numbers in results:
        assert numbers == list(range(1, len(numbers) + 1))
    registry = Registry(tmp_path / "registry")
    jobs = [version.manifest.publish_id for version in registry.versions("m")]
    assert jobs.count("the job") == 1
