"""Everything at once: jobs that publish, move aliases, read and collect garbage, and are killed at random."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import alignment
from alignment.registry import Registry
from alignment.registry.trash import parents_of, trash_items
from alignment.registry.version import open_version

# Each process does its share, writes down what was acknowledged, and is started again when it was killed, with what
# was not acknowledged. Collections have no grace period: whatever nothing needs at this moment goes.
HERD = """
import json, os, random, signal, sys, time, traceback
from pathlib import Path
from alignment.registry import Parent, Registry, RegistryError, provenance
from alignment.registry.retention import collect
from alignment.registry.trash import REMOVED, noted
provenance.code_state = lambda: None
provenance.package_versions()
os.fsync = lambda descriptor: None  # a kill loses nothing that was written; only a power cut does
folder, source, log = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
shares = json.loads(sys.argv[4])
log.mkdir()
registry = Registry(folder)
registry.publish("m", source, stage="sft", role="policy")

def tell(who, line):
    descriptor = os.open(log / who, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, (line + "\\n").encode())
    os.close(descriptor)

def told(who):
    try:
        return len((log / who).read_text().splitlines())
    except FileNotFoundError:
        return 0

def alive(draw):
    while True:  # until one is found that was not removed since it was listed
        try:
            return registry.resolve(f"m@v{draw.choice(registry.numbers('m'))}")
        except RegistryError:
            continue

def publisher(who, job, draw):
    start = alive(draw)
    parents = [Parent("init", start.ref, start.digest)] if draw.random() < 0.3 else []
    version = registry.publish("m", source, stage="sft", role="policy", parents=parents, publish_id=f"{who}-{job}")
    tell(who, f"{version.number} {version.digest}")

def mover(who, job, draw):
    while True:
        try:
            number = alive(draw).number
            registry.set_alias("m", draw.choice(["prod", "best"]), number, reviewed_by=f"{who}-{job}")
            break
        except RegistryError:
            if number not in noted(folder, "m", REMOVED):
                raise
    tell(who, str(number))

def reader(who, job, draw):
    ref = draw.choice(["m", "m@prod", f"m@v{draw.choice(registry.numbers('m'))}"])
    for attempt in range(100):
        try:
            registry.load(ref, verify="full")
            break
        except RegistryError as error:
            number = int(ref[3:]) if ref.startswith("m@v") else None
            if number in noted(folder, "m", REMOVED) or "no alias" in str(error):
                break
            if number is None and attempt < 99:
                continue  # what the alias meant was removed after it had moved on
            if attempt > 1:  # it may have been put back between the two looks
                raise
    tell(who, "read")

def collector(who, job, draw):
    plan = collect(registry, keep=1, grace=0, delete=True)
    tell(who, str(len(plan.removed)))

def live(who, work, share):
    random.seed()
    try:
        for job in range(told(who), share):
            work(who, job, random)
    except BaseException:
        tell("errors", traceback.format_exc())
        os._exit(1)
    os._exit(0)

kinds = {"publisher": publisher, "mover": mover, "reader": reader, "collector": collector}
jobs = {}

def start(who):
    kind = who.split("-")[0]
    child = os.fork()
    if child == 0:
        live(who, kinds[kind], shares[kind][1])
    jobs[child] = who

for kind, (count, _) in shares.items():
    for number in range(count):
        start(f"{kind}-{number}")
random.seed(0)
kills, next_kill = dict.fromkeys(kinds, 0), time.monotonic()
while any(not who.startswith("collector") for who in jobs.values()):
    while (ended := os.waitpid(-1, os.WNOHANG))[0]:
        who = jobs.pop(ended[0])
        if os.waitstatus_to_exitcode(ended[1]) == -signal.SIGKILL:
            start(who)
        elif ended[1]:
            sys.exit((log / "errors").read_text())
        if not jobs:
            break
    publishing = [child for child, who in jobs.items() if who.startswith("publisher")]
    if publishing and time.monotonic() > next_kill:
        child = random.choice(random.choice([publishing, list(jobs)]))
        os.kill(child, signal.SIGKILL)
        kills[jobs[child].split("-")[0]] += 1
        next_kill = time.monotonic() + random.uniform(0.03, 0.12)
    time.sleep(0.005)
for child in jobs:
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
print(json.dumps({"kills": kills}))
"""


@pytest.mark.parametrize(
    "shares",
    [
        pytest.param({"publisher": [4, 6], "mover": [2, 30], "reader": [2, 250], "collector": [1, 10**6]}, id="small"),
        pytest.param(
            {"publisher": [16, 20], "mover": [4, 100], "reader": [4, 2500], "collector": [1, 10**6]},
            id="full",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_nothing_is_lost_or_torn_whoever_is_killed(
    tmp_path: Path, shares: dict[str, list[int]], record_property
) -> None:
    source, log = tmp_path / "source", tmp_path / "log"
    source.mkdir()
    (source / "config.json").write_text("{}")
    (source / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}" + bytes(range(256)) * 64)
    command = [sys.executable, "-c", HERD, *map(str, (tmp_path / "registry", source, log)), json.dumps(shares)]
    root = Path(alignment.__file__).parents[1]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr[-4000:]
    killed = json.loads(done.stdout)["kills"]
    kills = sum(killed.values())

    registry = Registry(tmp_path / "registry")
    trash = {item.number: item.path for item in trash_items(registry.path)}
    versions = {number: registry.resolve(f"m@v{number}") for number in registry.numbers("m")}
    for version in versions.values():
        version.verify(cold=True)
    versions |= {number: open_version(path, "m", number) for number, path in trash.items()}
    assert len(versions) == len(registry.numbers("m")) + len(trash), "a number was used twice"
    assert sorted(versions) == list(range(1, len(versions) + 1))

    publishers = [path.read_text().split("\n")[:-1] for path in log.glob("publisher-*")]
    told = [tuple(line.split()) for lines in publishers for line in lines]
    assert len(told) == len(set(told)) == shares["publisher"][0] * shares["publisher"][1]
    assert all(versions[int(number)].digest == digest for number, digest in told)
    assert len(told) < len(versions) <= len(told) + kills + 1

    collector = sum(int(line) for line in (log / "collector-0").read_text().split())
    assert collector > 0
    live = set(registry.numbers("m"))
    lost = {parent for number in live for parent in parents_of(versions[number].manifest)} - {("m", n) for n in live}
    if lost:  # whoever was to take it back was killed: the next collection does
        assert subprocess.run(
            [sys.executable, "-m", "alignment.cli.main", "models", "gc", "--delete", "--registry", str(registry.path)],
            cwd=root,
            stdout=subprocess.DEVNULL,
            timeout=120,
        ).returncode == 0  # fmt: skip
    live = {("m", number) for number in registry.numbers("m")}
    assert all(parent in live for _, number in live for parent in parents_of(versions[number].manifest))

    moves = [move for alias in ("prod", "best") for move in registry.alias_history("m", alias)]
    wanted = {f"mover-{who}-{job}" for who in range(shares["mover"][0]) for job in range(shares["mover"][1])}
    assert {move.reviewed_by for move in moves} == wanted
    assert len(wanted) <= len(moves) <= len(wanted) + kills
    for alias in ("prod", "best"):
        history = sorted(path.name for path in (registry.path / "models/m/aliases" / alias).iterdir())
        assert history == [f"{number:08d}.json" for number in range(1, len(history) + 1)]
        registry.load(f"m@{alias}")
    reads = sum(path.read_text().count("read") for path in log.glob("reader-*"))
    assert reads == shares["reader"][0] * shares["reader"][1]
    figures = {"kills": killed, "versions": len(versions), "removed": len(trash), "moves": len(moves), "reads": reads}
    record_property("figures", figures)
    print(figures)
