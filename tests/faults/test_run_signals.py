"""SIGTERM, SIGINT and SIGHUP at every phase of the stages, and where the main thread hangs."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import launching
import pytest
from helpers.figures import Trials
from resuming import SECTIONS, TRAINING, check_same, configure, run_whole

TITLE = "Signals"
PREEMPTED = 75
SIGNALS = ("SIGTERM", "SIGINT", "SIGHUP")
PATIENT = "unsaved 60; "  # a slow machine must not end a run that would have saved
PHASES = {
    "sft": {
        "reading the data": "before sft.train:prepare",
        "loading the model": "before sft.train:build_trainer",
        "self-check": "before sft.building:SelfCheck",
        "start of training": "before sft.train:MeasureStart.on_train_begin",
        "first step": "1",
        "checkpoint": "before alignment.runs.checkpoint:Checkpoints._commit",
        "evaluation": "before sft.trainer:SFTTrainer.evaluate#1",
    },
    "reward": {
        "reading the data": "before reward.train:prepare",
        "loading the model": "before reward.members:build_trainer",
        "first step": "1",
        "checkpoint": "before alignment.runs.checkpoint:Checkpoints._commit",
        "evaluation": "before reward.trainer:RewardTrainer.evaluate#1",
    },
    "ppo": {
        "reading the data": "before ppo.train:prepare",
        "loading the model": "before ppo.train:load_models",
        "self-check": "before ppo.loop:check_models",
        "first evaluation": "before ppo.loop:Evaluation.run",
        "first step": "1",
        "checkpoint": "before alignment.runs.checkpoint:Checkpoints._commit",
        "rollout": "before ppo.rollout:Collector.collect#2",
    },
}
"""Where a signal ends the attempt with 75."""
DONE = {
    "publishing": "before alignment.registry.publishing:_claim_number",
    "the end of W&B": "before alignment.runs.journal:Journal.close",
    "the report": "before alignment.reports.report:write_final_report",
}
"""Where the run is as good as done."""
DONE_ANSWER = "exit code 0; the run is done"


@pytest.fixture(scope="module")
def house(resumed_house):
    return resumed_house


def exit_record(house: Path, name: str) -> dict[str, Any]:
    return json.loads((house / "runs" / name / "exit.json").read_text())


def log(house: Path) -> str:
    return (house / "log.txt").read_text()[-4000:]


def signalled_at_every_phase(house: Path, stage: str, forks: Any, first: int, tried: Trials) -> None:
    """One run gets a signal in each phase, attempt after attempt; it ends as one that was left alone."""
    run_whole(house, stage, SECTIONS[stage], lambda *given: forks(house, *given))
    name = f"{stage}-signalled-{first}"
    config = configure(house, name, stage, SECTIONS[stage])
    for number, (phase, place) in enumerate(PHASES[stage].items()):
        sent = SIGNALS[(first + number) % 3]
        tried(f"{stage}: {sent} at {phase}", "exit code 75; the run goes on to its end, bit for bit")
        code = forks(house, stage, [config, "--resume", "auto"], {place: PATIENT + sent})
        found = exit_record(house, name)
        assert code == found["code"] == PREEMPTED, (phase, sent, code, found, log(house))
        assert found["reason"] == f"preempted: {sent}", phase
    phase, place = list(DONE.items())[first % 3]
    tried(f"{stage}: {SIGNALS[first]} at {phase}", DONE_ANSWER)
    assert forks(house, stage, [config, "--resume", "auto"], {place: PATIENT + SIGNALS[first]}) == 0, log(house)
    assert exit_record(house, name)["code"] == 0
    check_same(house, stage, name)
    assert (house / "runs" / name / "report.html").exists()


@pytest.mark.parametrize(
    "stage", [pytest.param(stage, marks=() if stage == "reward" else pytest.mark.slow) for stage in PHASES]
)
def test_a_signal_at_every_phase_leaves_a_run_that_goes_on_to_the_same_end(house, forks, stage, tried):
    signalled_at_every_phase(house, stage, forks, list(PHASES).index(stage), tried)


@pytest.mark.slow
@pytest.mark.parametrize("first", [1, 2])
@pytest.mark.parametrize("stage", list(PHASES))
def test_every_signal_at_every_phase(house, forks, stage, first, tried):
    signalled_at_every_phase(house, stage, forks, (list(PHASES).index(stage) + first) % 3, tried)


@pytest.mark.slow
@pytest.mark.parametrize("sent", SIGNALS)
@pytest.mark.parametrize("phase", list(DONE))
@pytest.mark.parametrize("stage", list(PHASES))
def test_a_run_that_is_as_good_as_done_ends_with_0(house, forks, stage, phase, sent, tried):
    tried(f"{stage}: {sent} at {phase}", DONE_ANSWER)
    name = f"{stage}-late-{list(DONE).index(phase)}-{sent.lower()}"
    training = SECTIONS[stage]["training"] | {"max_steps": 1}
    config = configure(house, name, stage, {**SECTIONS[stage], "training": training})
    assert forks(house, stage, [config], {DONE[phase]: PATIENT + sent}) == 0, log(house)
    assert exit_record(house, name)["code"] == 0


# --- a main thread that comes to no boundary -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("place", "code"),
    [("before sft.train:build_trainer", PREEMPTED), ("before alignment.reports.report:write_final_report", 0)],
    ids=["loading", "the report"],
)
def test_where_there_is_nothing_to_save_a_signal_does_not_wait_for_long(house, forks, place, code, tried):
    tried(f"sft: SIGTERM with nothing to save, exit code {code}", "within the seconds it may wait; resumed to its end")
    name = f"sft-slow-{code}"
    training = {**TRAINING, "max_steps": 1, "save_steps": 0}
    config = configure(house, name, "sft", {"model": {"name": "base"}, "training": training})
    assert forks(house, "sft", [config], {place: "unsaved 0.2; SIGTERM; sleep 100"}) == code, log(house)
    found = exit_record(house, name)
    assert found["code"] == code
    if code:
        assert found["reason"] == "preempted: SIGTERM in reading the data, with nothing new to save"
    assert forks(house, "sft", [config, "--resume", "auto"]) == 0, log(house)


def test_a_second_signal_ends_a_run_at_once(house, forks, tried):
    tried("sft: a second SIGINT", "exit code 75 at once, with the last checkpoint")
    name = "sft-twice"
    config = configure(house, name, "sft", {"model": {"name": "base"}, "training": {**TRAINING, "save_steps": 1}})
    twice = "SIGINT; SIGINT; sleep 1.2; SIGINT; sleep 100"  # the first two are one request
    assert forks(house, "sft", [config], {"3": twice}) == PREEMPTED, log(house)
    found = exit_record(house, name)
    assert (found["code"], found["last_checkpoint"]) == (PREEMPTED, "step-000002")
    assert found["reason"] == "preempted: SIGINT for the second time"
    assert "SIGINT in step 3: the run ends at its next checkpoint" in log(house)


HANGING = """
import ctypes, os, signal, socket, threading, time

def hang(kind):
    if kind == "sleep":
        time.sleep(1000)
    if kind == "socket":
        socket.socketpair()[0].recv(1)
    if kind == "lock":
        lock = threading.Lock()
        lock.acquire()
        lock.acquire()
    mutex = ctypes.create_string_buffer(64)  # in C, without the GIL: no Python handler can run
    for _ in range(2):
        ctypes.CDLL(None).pthread_mutex_lock(mutex)

calls = []

def reward(prompts, responses):
    calls.append(1)
    if len(calls) == 4 and (kind := os.environ.get("HANGS")):
        threading.Timer(float(os.environ["AFTER"]), os.kill, [os.getpid(), signal.SIGTERM]).start()
        hang(kind)
    return [float(len(response)) for response in responses]
"""


def hanging(house: Path, name: str) -> str:
    (house / "hangs.py").write_text(HANGING)
    sections = dict(SECTIONS["ppo"]) | {"rewards": {"others": [{"function": "hangs:reward"}]}}
    sections["model"] = {"policy": "base", "method": "lora", "value": "trunk"}
    sections["ppo"] = {"num_epochs": 1, "num_minibatches": 1}
    sections["training"] = {"max_steps": 6, "learning_rate": 1e-3, "save_steps": 1, "eval_steps": 0}
    return configure(house, name, "ppo", sections)


@pytest.mark.parametrize(
    "kind", ["mutex", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("sleep", "socket", "lock"))]
)
def test_a_reward_function_that_hangs_is_named_and_ends_at_a_signal(house, forks, kind, tried):
    tried(f"ppo: a reward function that hangs ({kind}), and SIGTERM", "it is named; exit code 75; resumed to its end")
    name = f"ppo-hangs-{kind}"
    config = hanging(house, name)
    (house / "log.txt").write_text("")
    code = forks(house, "ppo", [config], HANGS=kind, AFTER="3", ALIGNMENT_TIMEOUT="2")
    assert code == PREEMPTED, log(house)
    function = "the reward function hangs:reward, in the rollout of iteration "
    said = [line for line in log(house).splitlines() if line.startswith(f"warning: {function}")]
    assert len(said) == 1, log(house)
    assert "hangs.py:" in said[0] and "ALIGNMENT_TIMEOUT is 2" in said[0]
    found = exit_record(house, name)
    assert found["code"] == PREEMPTED and found["last_checkpoint"]
    assert found["reason"].startswith(f"preempted: SIGTERM while {function}")
    assert forks(house, "ppo", [config, "--resume", "auto"]) == 0, log(house)


# --- processes of their own ------------------------------------------------------------------------------------------


def wait_until(is_so: Any, process: subprocess.Popen) -> None:
    end = time.monotonic() + 120
    while not is_so():
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.002)


def holds_signals(pid: int) -> bool:
    blocked = Path(f"/proc/{pid}/status").read_text().partition("SigBlk:")[2].split()[0]
    return bool(int(blocked, 16) & 1 << signal.SIGTERM - 1)


@pytest.mark.parametrize(("stage", "sent"), zip(PHASES, SIGNALS, strict=True), ids=list(PHASES))
def test_a_signal_during_the_first_imports(house, stage, sent, tried):
    """Before, the process died of it without a word."""
    tried(f"{stage}: {sent} at the first imports", "exit code 75 in one line")
    name = f"{stage}-{sent.lower()}-imports"
    config = configure(house, name, stage, SECTIONS[stage])
    process = subprocess.Popen(
        [sys.executable, "-m", stage, config], cwd=house, env=launching.environment(), stderr=subprocess.PIPE,
        text=True, preexec_fn=launching.heed_signals,
    )  # fmt: skip
    wait_until(lambda: holds_signals(process.pid), process)
    process.send_signal(getattr(signal, sent))
    error = process.communicate(timeout=120)[1]
    assert process.returncode == PREEMPTED, error
    assert exit_record(house, name)["code"] == PREEMPTED
    assert f"{stage}: preempted: {sent}; start it again with --resume auto" in error


@pytest.mark.slow
@pytest.mark.parametrize("sent", ["SIGHUP", "SIGINT"])
def test_a_launcher_of_two_hands_the_signal_on(house, sent, tried):
    tried(f"sft on two processes: {sent} to their launcher", "exit.json has 75")
    name = f"sft-launched-{sent.lower()}"
    config = configure(house, name, "sft", SECTIONS["sft"])
    target = [str(launching.ROOT / "tests" / "integration" / "dying.py"), "run", "sft", config]
    done = launching.launch(launching.ZERO2, target, house, ACTIONS=json.dumps({"1": {"3": f"{sent} parent"}}))
    assert done.code != 0
    found = exit_record(house, name)
    assert (found["code"], found["reason"]) == (PREEMPTED, f"preempted: {sent}"), done.output[-4000:]


def test_nohup_is_respected(tmp_path):
    """A signal that is ignored when the run starts does not end it."""
    program = (
        "import os, signal; from pathlib import Path; from alignment.runs import signals\n"
        "with signals.listen(): os.kill(os.getpid(), signal.SIGHUP); print(signals.poll(Path('.')).name)"
    )
    command = ["nohup", sys.executable, "-c", program]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, env=launching.environment(), check=True
    )
    assert done.stdout.split() == ["NOTHING"]
