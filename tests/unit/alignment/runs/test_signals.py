"""What a run is told from outside: signals, files, and a launcher that ends; on one process, without training."""

import json
import os
import signal
import subprocess
import sys

import pytest

from alignment.errors import Preempted
from alignment.runs import signals
from alignment.runs.journal import Journal
from alignment.runs.signals import Control, Wanted


def touch(folder, *names):
    for name in names:
        (folder / name).touch()


def events(folder):
    return [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]


def test_nothing_is_wanted_unless_somebody_says_so(tmp_path):
    with signals.listen():
        assert signals.poll(tmp_path) is Wanted.NOTHING
        signals.exit_if_preempted(tmp_path)


def test_what_makes_room_goes_before_what_ends_and_that_before_a_checkpoint(tmp_path):
    touch(tmp_path, "CHECKPOINT")
    assert signals.poll(tmp_path) is Wanted.CHECKPOINT
    touch(tmp_path, "STOP")
    assert signals.poll(tmp_path) is Wanted.STOP
    touch(tmp_path, "PREEMPT")
    assert signals.poll(tmp_path) is Wanted.PREEMPT
    with pytest.raises(Preempted, match="RUN/PREEMPT"):
        signals.exit_if_preempted(tmp_path)
    signals.clear(tmp_path, Wanted.PREEMPT)
    assert signals.poll(tmp_path) is Wanted.STOP
    signals.clear(tmp_path)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_is_kept_for_the_next_boundary_and_its_handler_put_back(tmp_path, number):
    before = signal.getsignal(number)
    with signals.listen():
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)  # a launcher and a scheduler may both send it
        assert signals.poll(tmp_path).name == number.name
    assert signal.getsignal(number) is before
    assert signals.poll(tmp_path) is Wanted.NOTHING


def test_a_child_of_the_run_dies_of_the_signal(tmp_path):
    """As the workers of a pool, which is closed by it."""
    with signals.listen():
        read, write = os.pipe()
        if not (child := os.fork()):
            os.write(write, b"ready")
            signal.pause()
            os._exit(0)
        os.read(read, 5)
        os.kill(child, signal.SIGTERM)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM


ORPHAN = """
import os, sys, time
from pathlib import Path
from alignment.runs import signals
with signals.listen():
    print("up", flush=True)
    while os.getppid() == int(sys.argv[2]):
        time.sleep(0.01)
    Path(sys.argv[1], "part").write_text(signals._listener.pending().name)
    Path(sys.argv[1], "part").rename(Path(sys.argv[1], "heard"))
"""
LAUNCHER = """
import os, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", sys.argv[1], sys.argv[2], str(os.getpid())], stdout=subprocess.PIPE)
child.stdout.readline()
"""


@pytest.mark.parametrize(("launched", "heard"), [(True, "LAUNCHER_GONE"), (False, "NOTHING")])
def test_the_end_of_the_launcher_is_heard_but_not_that_of_a_shell(tmp_path, launched, heard):
    """`nohup python -m sft ... &` goes on when the shell has ended."""
    variables = {name: value for name, value in os.environ.items() if name not in signals.LAUNCHER_VARIABLES}
    variables |= {"ACCELERATE_MIXED_PRECISION": "no"} if launched else {}
    subprocess.run([sys.executable, "-c", LAUNCHER, ORPHAN, str(tmp_path)], env=variables, check=True, timeout=60)
    for _ in range(6000):
        if (tmp_path / "heard").exists():
            break
        signal.sigtimedwait([], 0.01)
    assert (tmp_path / "heard").read_text() == heard


def test_a_checkpoint_that_is_asked_for_is_saved_once_and_the_file_goes(tmp_path):
    touch(tmp_path, "CHECKPOINT")
    saved = []
    with Journal(tmp_path) as journal:
        asks = Control(tmp_path, journal)
        wanted = asks.poll(3)
        asks.save(wanted, 3, lambda: saved.append(3))
        assert asks.poll(4) is Wanted.NOTHING
    assert saved == [3]
    assert [(event["event"], event["step"]) for event in events(tmp_path)] == [("checkpoint", 3)]


def test_a_preemption_is_written_down_before_it_is_saved(tmp_path):
    """The journal is cut off at the checkpoint when the run goes on."""
    touch(tmp_path, "PREEMPT", "CHECKPOINT")
    seen = []
    with Journal(tmp_path) as journal:
        asks = Control(tmp_path, journal)
        with pytest.raises(Preempted):
            asks.save(asks.poll(5), 5, lambda: seen.extend(events(tmp_path)))
    assert [(event["event"], event["step"], event["reason"]) for event in seen] == [("preempted", 5, "RUN/PREEMPT")]
    assert not (tmp_path / "PREEMPT").exists()  # it has been answered


def test_a_preempted_run_has_not_failed_for_the_mirror(tmp_path):
    ended = []

    class Sink:
        def finish(self, failed):
            ended.append(failed)

        def summary(self, fields):
            pass

    for error in (Preempted("x"), ValueError("x")):
        with pytest.raises(type(error)), Journal(tmp_path, Sink()):
            raise error
    assert ended == [False, True]


@pytest.mark.parametrize(
    ("seconds", "variables", "warns"),
    [
        (20.0, {"TORCHELASTIC_RUN_ID": "x"}, True),
        (2.0, {"TORCHELASTIC_RUN_ID": "x"}, False),
        (20.0, {"TORCHELASTIC_RUN_ID": "x", "PET_SHUTDOWN_TIMEOUT": "300"}, False),
        (20.0, {}, False),  # no launcher that would be in a hurry
    ],
)
def test_a_checkpoint_that_takes_too_long_for_the_launcher_is_warned_of_once(
    tmp_path, monkeypatch, capsys, seconds, variables, warns
):
    for name in ("TORCHELASTIC_RUN_ID", "PET_SHUTDOWN_TIMEOUT", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    now = iter(range(0, 1000, int(seconds)))
    monkeypatch.setattr(signals.time, "monotonic", lambda: float(next(now)))
    with Journal(tmp_path, enabled=False) as journal:
        asks = Control(tmp_path, journal)
        for _ in range(2):
            asks.save(Wanted.NOTHING, 1, lambda: None)
    assert capsys.readouterr().err.count("PET_SHUTDOWN_TIMEOUT=") == (1 if warns else 0)


def test_a_preemption_that_was_answered_is_not_told_to_the_next_attempt(tmp_path):
    touch(tmp_path, "PREEMPT")
    with pytest.raises(Preempted, match="RUN/PREEMPT"):
        signals.exit_if_preempted(tmp_path)
    assert not any(tmp_path.iterdir())


def test_a_preemption_from_before_this_process_is_forgotten_and_one_that_came_since_is_not(tmp_path, monkeypatch):
    monkeypatch.setattr(signals, "LAUNCHER_VARIABLES", ())
    signals.clear_stale_preempt(tmp_path)
    touch(tmp_path, "PREEMPT")
    signals.clear_stale_preempt(tmp_path)
    assert signals.poll(tmp_path) is Wanted.PREEMPT
    os.utime(tmp_path / "PREEMPT", (1e9, 1e9))
    signals.clear_stale_preempt(tmp_path)
    assert signals.poll(tmp_path) is Wanted.NOTHING
