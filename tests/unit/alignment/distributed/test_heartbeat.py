"""Processes that watch each other, without processes: threads' worth of beats in a store in memory."""

import json
import os
import subprocess
import sys
import threading
from datetime import timedelta

import pytest
import torch.distributed

from alignment.distributed import heartbeat
from alignment.distributed.heartbeat import Heartbeat
from alignment.errors import UserError
from alignment.runs.run import write_exit


class Store:
    """torch's own store in memory, with the calls of the one between processes."""

    def __init__(self):
        self._real = torch.distributed.HashStore()
        self.is_gone = False

    def set_timeout(self, timeout: timedelta):
        self._real.set_timeout(timeout)

    def __getattr__(self, name):
        if self.is_gone:
            raise RuntimeError("Broken pipe")
        return getattr(self._real, name)


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 1000.0

        def monotonic(self):
            return self.now

        def sleep(self, seconds):
            self.now += seconds

    made = Clock()
    monkeypatch.setattr(heartbeat, "time", made)
    monkeypatch.setattr(heartbeat, "_place", heartbeat._place)
    return made


@pytest.fixture
def pair(tmp_path, clock, monkeypatch):
    """Two watches of a launch, whose processes are in a step."""
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    store = Store()
    watches = [Heartbeat(store, rank, 2, 60.0, lambda reason: write_exit(tmp_path, 1, reason)) for rank in range(2)]
    heartbeat.enter("step 3")
    for each in watches * 2:
        assert each._check() is None
    return watches, store


def other_beat(store, **changes):
    beat = json.loads(store.get("heartbeat/1")) | changes
    store.set("heartbeat/1", json.dumps(beat))


def exit_reason(folder):
    return json.loads((folder / "exit.json").read_text())["reason"]


def test_while_all_have_beats_and_come_further_nobody_leaves(pair, clock):
    for step in range(20):
        clock.now += 50
        heartbeat.enter(f"step {step}")
        for each in pair[0]:
            assert each._check() is None


def test_no_beat_for_the_timeout_is_a_missing_process_also_in_a_patient_phase(pair, clock, tmp_path, capsys):
    (first, _), store = pair
    other_beat(store, host="elsewhere", pid=77, number=50)
    heartbeat.enter("the end of training", patient=True)
    assert first._check() is None
    clock.now += 61
    line = first._check()
    assert "rank 1 of 2 (process 77 on elsewhere) does not answer in the end of training, for 60 s" in line
    assert capsys.readouterr().err == line + "\n"
    assert exit_reason(tmp_path) == line.removeprefix("error: ")
    assert pair[0][1]._check() == line  # who is still there leaves too, and does not say it again
    assert capsys.readouterr().err == ""


def test_of_two_processes_that_find_the_same_at_once_one_says_it(pair, capsys):
    first, second = pair[0]
    lines = {each._announce("no process makes progress in step 3") for each in (first, second)}
    assert capsys.readouterr().err == "".join(f"{line}\n" for line in lines) and len(lines) == 1


def test_a_process_whose_calls_to_the_store_do_not_return_leaves(pair, clock, monkeypatch, capsys):
    """As over a cut cable, on the side where the store is not."""
    second = pair[0][1]
    left = []
    monkeypatch.setattr(heartbeat.os, "_exit", lambda code: (left.append(code), second._done.set()))
    second.interval = 0.01
    clock.now += 61
    second._guard()
    assert left == [1]
    assert "the launcher, in whose store the processes meet, does not answer rank 1 of 2 in step 3" in (
        capsys.readouterr().err
    )


def test_a_process_that_never_came_is_missed(tmp_path, clock):
    alone = Heartbeat(Store(), 0, 2, 60.0, lambda reason: None)
    heartbeat.enter("loading", patient=True)
    assert alone._check() is None
    clock.now += 61
    assert "rank 1 of 2" in alone._check()


def test_a_patient_phase_may_take_any_time_and_a_step_may_not(pair, clock):
    first, second = pair[0]
    heartbeat.enter("loading", patient=True)
    for _ in range(100):
        clock.now += 50
        assert first._check() is None and second._check() is None
    heartbeat.enter("step 1")
    clock.now += 59
    assert first._check() is None and second._check() is None
    clock.now += 2
    assert "in step 1, for 60 s" in first._check()


def test_who_is_not_in_a_collective_is_who_the_others_wait_for(pair, clock, monkeypatch):
    (first, _), store = pair
    clock.now += 61
    other_beat(store, waits=False, where="reward/data.py:5", number=50)
    monkeypatch.setattr(heartbeat, "current_position", lambda thread: (True, "alignment/distributed/processes.py:9"))
    assert "the others wait for rank 1 of 2 (at reward/data.py:5) in step 3" in first._check()


def test_a_process_of_this_host_that_ended_is_named_at_once_after_an_error_and_its_reason_said(pair, clock):
    (first, _), store = pair
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    other_beat(store, pid=ended.pid, number=50)
    assert f"rank 1 of 2 (process {ended.pid} on " in (line := first.explain())
    assert "is gone in step 3" in line


def test_a_process_that_left_with_an_error_says_which(pair):
    (first, second), _ = pair
    second.leave("OutOfMemoryError: no room")
    assert "has left: OutOfMemoryError: no room in step 3" in first.explain()


def test_who_left_with_an_error_is_not_waited_for_as_long_as_the_silent(pair, clock):
    (first, second), _ = pair
    first.limit = 1800.0
    assert first._check() is None
    second.leave("OutOfMemoryError: no room")
    assert first._check() is None
    clock.now += 89
    heartbeat.enter("step 3")
    assert first._check() is None
    clock.now += 2
    assert "has left: OutOfMemoryError: no room in step 3" in first._check()


def test_an_error_for_which_nobody_is_to_blame_is_not_explained(pair, monkeypatch):
    first = pair[0][0]
    pulse = pair[0][1].beat
    monkeypatch.setattr(first, "_read_beats", lambda listen=first._read_beats: (pulse(), listen()))
    assert first.explain() is None
    monkeypatch.setattr(heartbeat, "_heartbeat", first)
    monkeypatch.setattr(first, "explain", lambda: "line")
    assert heartbeat.explain(RuntimeError("CUDA out of memory")) is None
    assert heartbeat.explain(RuntimeError("[gloo/transport/tcp/pair.cc] Connection closed by peer")) == "line"


def test_without_the_store_a_process_leaves_after_the_timeout_unless_its_own_launcher_has_ended(
    pair, clock, monkeypatch
):
    (first, second), store = pair
    store.is_gone = True
    heartbeat.enter("the end of training", patient=True)
    clock.now += 61
    assert "the launcher, in whose store the processes meet, does not answer" in first._check()
    monkeypatch.setattr(os, "getppid", lambda: 1)  # the run is preempted then, and may finish what it is at
    assert second._check() is None


def test_only_a_stopped_process_of_this_launch_is_ended(pair, clock):
    (first, _), store = pair
    child = subprocess.Popen([sys.executable, "-c", "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)"])
    os.waitpid(child.pid, os.WUNTRACED)
    try:
        assert heartbeat.process_state(child.pid) == ("T", os.getpid())
        other_beat(store, pid=child.pid, number=50)
        first._read_beats()
        first._kill(first._beats[1][0])  # its parent is this process, not this process's parent
        assert heartbeat.process_state(child.pid)[0] == "T"
    finally:
        child.kill()
        child.wait()
    assert heartbeat.process_state(child.pid) == ("X", 0)


def test_phases_within_each_other(clock):
    heartbeat.enter("step 4")
    with heartbeat.within():
        assert heartbeat._place.phase == "step 4, the main process alone" and heartbeat._place.patient
    assert heartbeat._place == heartbeat.Place("step 4", False, clock.now)


def test_where_a_thread_stands():
    waits, where = heartbeat.current_position(threading.get_ident())
    assert not waits
    assert where.startswith(
        "alignment/distributed/positions.py:"
    )  # the innermost place of ours, here the question itself
    assert heartbeat.current_position(0) == (False, "not in this suite")


@pytest.mark.parametrize("text", ["soon", "0", "-1", "nan"])
def test_a_timeout_that_is_no_number_of_seconds_is_a_mistake(monkeypatch, text):
    monkeypatch.setenv("ALIGNMENT_TIMEOUT", text)
    with pytest.raises(UserError, match="ALIGNMENT_TIMEOUT"):
        heartbeat.timeout()
