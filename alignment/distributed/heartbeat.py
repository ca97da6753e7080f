"""Processes of a launch watch each other: where one dies, stops or hangs, all of them leave, and one line says which.

torch's timeouts are of single collectives: they name neither a rank nor what it was doing, DeepSpeed's groups have
their own, and one long enough for the main process to judge and publish alone is too long for all else. So each process
has a thread that puts a beat into the launch's store (where it is, and since when) and reads the others'. It leaves
where another has had no beat for `ALIGNMENT_TIMEOUT` seconds, or where this process has been in one phase for as long.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

from alignment.errors import UserError
from alignment.terminal import one_line, say

VARIABLE, DEFAULT = "ALIGNMENT_TIMEOUT", 1800.0
"""Seconds, longer than the longest step, rollout or batch of an evaluation."""
LEFT_SECONDS = 90.0
"""After which others follow a process that left with an error: its own end may take W&B a minute."""
DONE = "done"
SIGNS = ("gloo", "NCCL", "Connection reset", "Connection closed", "Broken pipe")
"""What errors of the communication say."""
OWN = ("alignment", "sft", "reward", "ppo")


class Place(NamedTuple):
    """What this process is at."""

    phase: str
    patient: bool
    """It may take any time: loading, and what the main process does alone."""
    since: float


_BEGINNING = Place("starting", True, 0.0)
_place = _BEGINNING
_heartbeat: Heartbeat | None = None


def enter(phase: str, patient: bool = False) -> None:
    """The process has come to another phase, or further in the same one."""
    global _place
    _place = Place(phase, patient, time.monotonic())


def phase() -> str:
    """What the process is at, in words; empty before it has said so."""
    return "" if _place is _BEGINNING else _place.phase


@contextmanager
def within(phase: str | None = None, patient: bool = False) -> Iterator[None]:
    """A phase inside the one that there is, which goes on afterwards; by default one of its own that takes any time."""
    before = _place
    enter(phase or f"{before.phase}, the main process alone", patient or phase is None)
    try:
        yield
    finally:
        enter(before.phase, before.patient)


def timeout() -> float:
    """
    Raises:
        UserError: the variable is not a number of seconds.
    """
    text = os.environ.get(VARIABLE, str(DEFAULT))
    try:
        if float(text) > 0:
            return float(text)
    except ValueError:
        pass
    raise UserError(f"{VARIABLE}={text}: expected seconds, more than 0, as in {VARIABLE}=1800")


@contextmanager
def joining() -> Iterator[None]:
    """Inside, this process waits for the others to come, and leaves where one of them does not."""
    rank, size = os.environ.get("RANK"), os.environ.get("WORLD_SIZE", "1")
    if size == "1":
        yield
        return

    def leave(seconds: float) -> None:
        say(
            f"error: rank {rank} of {size} has waited {seconds:.0f} s for the others to join; the ones that do not say "
            f"so are missing. Where they only take longer, set {VARIABLE} to more seconds"
        )
        os._exit(1)

    seconds = timeout()
    timer = threading.Timer(seconds, leave, [seconds])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def start(store: Any, rank: int, size: int, on_lost: Callable[[str], None]) -> None:
    """Begin to watch; to be called by every process, once it has joined the others.

    Args:
        on_lost: called once in the launch, with the reason, by the process that finds another one missing.
    """
    global _heartbeat
    if _heartbeat is None:
        enter("loading", patient=True)
        _heartbeat = Heartbeat(store.clone(), rank, size, timeout(), on_lost)
        _heartbeat.beat()
        _heartbeat.start()


def stop(reason: str | None = None) -> None:
    """This process leaves; a `reason` is said to the others, which may be waiting for it."""
    global _heartbeat
    if _heartbeat is not None:
        _heartbeat.leave(reason)
        _heartbeat = None


def explain(error: Exception) -> str | None:
    """Of an error of the communication the one line about who is missing, None where nobody is. It is printed by the
    first process to find out."""
    of_others = isinstance(error, RuntimeError) and any(sign in str(error) for sign in SIGNS)
    return _heartbeat.explain() if _heartbeat is not None and of_others else None


class Heartbeat(threading.Thread):
    """
    Args:
        store: of torch.distributed, for this thread alone: another one's call may hold its connection.
        limit: seconds.
    """

    def __init__(self, store: Any, rank: int, size: int, limit: float, on_lost: Callable[[str], None]) -> None:
        super().__init__(name="heartbeat", daemon=True)
        self.rank, self.size, self.limit, self._on_lost = rank, size, limit, on_lost
        self.interval = min(limit / 20, max(1.0, size / 50))  # in each one, all read what all have written
        self._store, self._host, self._number = store, socket.gethostname(), 0
        self._store.set_timeout(timedelta(seconds=max(1.0, min(30.0, limit))))
        self._parent = os.getppid()
        self._agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        holder = "the launcher" if self._agent else f"rank 0 of {size}"
        self._keeper, self._answered = f"{holder}, in whose store the processes meet, does not answer", time.monotonic()
        unheard = {"number": 0, "host": "?", "pid": "?", "waits": False, "where": "?", "left": None}
        others = [other for other in range(size) if other != rank]
        self._heard: dict[int, tuple[dict[str, Any], float]] = dict.fromkeys(others, (unheard, time.monotonic()))
        """Of each other process its last beat, and when a new one came."""
        self._done = threading.Event()
        self._lock = threading.Lock()

    def run(self) -> None:
        threading.Thread(target=self._guard, name="heartbeat-guard", daemon=True).start()
        while not self._done.wait(self.interval):
            with self._lock:
                line = self._look()
            if line is not None and not self._done.is_set():
                os._exit(1)

    def _guard(self) -> None:
        """Leave where a round does not end: a call to the store over a cut cable waits as long as TCP does."""
        while not self._done.wait(self.interval):
            if time.monotonic() - self._answered > self.limit + 5 * self.interval and not self._orphaned():
                say(one_line(self._ending(f"{self._keeper} rank {self.rank} of {self.size} in {_place.phase}")))
                os._exit(1)

    def _orphaned(self) -> bool:
        """The launcher has died, which `alignment.runs.signals` sees to."""
        return self._agent and os.getppid() != self._parent

    def _look(self) -> str | None:
        """One round; the line with which to leave, when it has been printed."""
        try:
            self.beat()
            if line := self._claimed():
                return line
            self._listen()
            self._answered = time.monotonic()
        except RuntimeError:  # its process is gone or stopped: rank 0, or a launcher
            mute = not self._orphaned() and time.monotonic() - self._answered > self.limit
            return self._claim(f"{self._keeper} in {_place.phase}") if mute or self._is_stuck() else None
        late, gone = time.monotonic() - self.limit, time.monotonic() - min(self.limit, LEFT_SECONDS)
        silent = [rank for rank, (beat, since) in self._heard.items() if since < late and beat["left"] != DONE]
        ended = [rank for rank, (_, since) in self._heard.items() if since < gone]
        left = [rank for rank in ended if self._heard[rank][0]["left"] not in (None, DONE)]
        if left:  # on GPUs nothing tells those in a collective
            return self._claim(f"{self._names(left)} in {_place.phase}")
        if silent:
            return self._claim(f"{self._names(silent)} in {_place.phase}, for {self.limit:.0f} s")
        return self._claim(self._stuck()) if self._is_stuck() else None

    def beat(self, left: str | None = None) -> None:
        self._number += 1
        waits, where = standing(threading.main_thread().ident)
        beat = {"number": self._number, "host": self._host, "pid": os.getpid(), "phase": _place.phase}
        self._store.set(f"heartbeat/{self.rank}", json.dumps(beat | {"waits": waits, "where": where, "left": left}))

    def _listen(self) -> None:
        heard = self._heard.items()
        there = [rank for rank, (beat, _) in heard if beat["number"] or self._store.check([f"heartbeat/{rank}"])]
        for rank, text in zip(there, self._store.multi_get([f"heartbeat/{rank}" for rank in there]), strict=True):
            beat = json.loads(text)
            if self._heard[rank][0]["number"] != beat["number"]:
                self._heard[rank] = (beat, time.monotonic())

    def _is_stuck(self) -> bool:
        return not _place.patient and time.monotonic() - _place.since > self.limit

    def _stuck(self) -> str:
        """What to say where this process has come no further."""
        if absent := self._absent():
            return f"{self._names(absent)} in {_place.phase}, for {self.limit:.0f} s"
        standing_at = {rank: (beat["waits"], beat["where"]) for rank, (beat, _) in self._heard.items()}
        standing_at[self.rank] = standing(threading.main_thread().ident)
        found = sorted((rank, at) for rank, (waits, at) in standing_at.items() if not waits)
        busy = [f"rank {rank} of {self.size} (at {at})" for rank, at in found]
        if 0 < len(busy) < self.size:
            who = f"the others wait for {', '.join(busy)}"
        else:
            who = f"no process comes further ({', '.join(busy) or 'each waits for the others'})"
        return f"{who} in {_place.phase}, for {self.limit:.0f} s"

    def _absent(self) -> list[int]:
        """Who is known to be gone or stopped, or has missed three beats."""
        late = time.monotonic() - 3 * self.interval
        return [rank for rank, (beat, since) in sorted(self._heard.items()) if since < late or self._state(beat)]

    def _names(self, ranks: list[int]) -> str:
        named = []
        for rank in ranks:
            beat = self._heard[rank][0]
            state = self._state(beat) or "does not answer"
            named.append(f"rank {rank} of {self.size} (process {beat['pid']} on {beat['host']}) {state}")
        return ", ".join(named)

    def _state(self, beat: dict[str, Any]) -> str | None:
        """What is wrong with another process, as far as it can be known from here."""
        if beat["left"] is not None:
            return f"has left: {beat['left']}"
        if beat["host"] != self._host or not Path("/proc/self/stat").exists():
            return None
        state, _ = of_process(beat["pid"])
        return {"T": "is stopped", "t": "is stopped", "Z": "is gone", "X": "is gone"}.get(state)

    def _end(self, beat: dict[str, Any]) -> None:
        """End a process that can no longer do so itself, if it is of this launch and host: a launcher waits 30 s."""
        of_launch = beat["host"] == self._host and of_process(beat["pid"])[1] == os.getppid()
        if of_launch and beat["pid"] != os.getpid():
            with suppress(OSError):
                os.kill(beat["pid"], signal.SIGKILL)

    def _claimed(self) -> str | None:
        """What another process has said to all, said here too where this is the first process of another host."""
        if not self._store.check(["heartbeat/end"]):
            return None
        host, _, line = self._store.get("heartbeat/end").decode().split("\n")
        if host != self._host and os.environ.get("LOCAL_RANK") == "0":
            say(line)
        return str(line)

    def _ending(self, what: str) -> str:
        return (
            f"error: {what}; all processes leave. --resume auto goes on from the last checkpoint; where it only takes "
            f"longer, set {VARIABLE} to more seconds"
        )

    def _claim(self, what: str) -> str:
        """Print the line and keep it in exit.json, unless another process was first."""
        line = one_line(self._ending(what))
        try:
            mine = f"{self._host}\n{self.rank}\n{line}"  # two that find the same at once are told apart
            if self._store.compare_set("heartbeat/end", "", mine).decode() != mine:
                return self._claimed() or line
        except RuntimeError:
            pass  # better said twice than never
        say(line)
        self._on_lost(line.removeprefix("error: "))
        for rank in self._absent():
            self._end(self._heard[rank][0])
        if self.rank == 0 and not self._agent:  # the store goes with this process, and the others are to read it there
            time.sleep(2 * self.interval)
        return line

    def explain(self) -> str | None:
        end = time.monotonic() + max(3.0, 4 * self.interval)
        while time.monotonic() < end:
            with self._lock:
                try:
                    self.beat()
                    if line := self._claimed():
                        return line
                    self._listen()
                except RuntimeError:
                    return self._claim(f"{self._keeper} in {_place.phase}")
                if absent := self._absent():
                    return self._claim(f"{self._names(absent)} in {_place.phase}")
            time.sleep(min(0.5, self.interval))
        return None

    def leave(self, reason: str | None) -> None:
        self._done.set()
        with self._lock, suppress(RuntimeError):
            self.beat(left=reason or DONE)


def of_process(pid: int) -> tuple[str, int]:
    """A process's state, by its letter in /proc (X: there is none), and its parent."""
    try:
        state, parent, *_ = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return "X", 0
    return state, int(parent)


def standing(thread: int | None) -> tuple[bool, str]:
    """Whether a thread waits for other processes, and the innermost place of ours that it is at. The autograd engine
    counts as waiting: DDP's collectives are made in it, and leave no frame."""
    frame: FrameType | None = sys._current_frames().get(thread or 0)
    waits = frame is not None and frame.f_code.co_filename.endswith("torch/autograd/graph.py")
    root = Path(__file__).resolve().parents[2]
    where = None
    while frame is not None:
        path = frame.f_code.co_filename
        waits = waits or "/torch/distributed/" in path
        if where is None and any(path.startswith(f"{root}/{name}/") for name in OWN):
            where = f"{Path(path).relative_to(root)}:{frame.f_lineno}"
        frame = frame.f_back
    return waits, where or "not in this suite"
