"""Failure detection: if one rank dies, stops or hangs, all ranks exit, and one line names it.

torch's timeouts are per collective: they name neither a rank nor its phase, DeepSpeed's groups have their own, and a
timeout that lets the main process judge and publish alone is too long for everything else. So each process has a
thread that writes a beat (its phase and position) to the launch's store and reads the others'. It exits if another
rank has had no new beat for `ALIGNMENT_TIMEOUT` seconds, or if its own process has been in one phase for as long.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

from alignment.distributed.positions import current_position, process_state
from alignment.errors import UserError
from alignment.terminal import one_line, say

VARIABLE = "ALIGNMENT_TIMEOUT"
"""Seconds, longer than the longest step, rollout or batch of an evaluation."""
DEFAULT_SECONDS = 1800.0
ERROR_GRACE_SECONDS = 90.0
"""How long the other ranks wait after one left with an error: its own exit may take W&B a minute."""
EXIT_SECONDS = 5.0
"""How long a process that the heartbeat ends may still write."""
DONE = "done"
COMMUNICATION_ERRORS = ("gloo", "NCCL", "Connection reset", "Connection closed", "Broken pipe")
"""Texts that mark an error as one of the communication."""


class Place(NamedTuple):
    """The phase that this process is in."""

    phase: str
    patient: bool
    """Whether the phase may take any time, as loading and work of the main process alone may."""
    since: float


class Stuck(NamedTuple):
    """A phase that takes longer than the timeout."""

    place: Place
    seconds: float
    where: str

    def __str__(self) -> str:
        limit = f"{VARIABLE} is {timeout():g}"
        return f"{self.place.phase} has taken {self.seconds:.0f} s (at {self.where}; {limit})"


_STARTING = Place("starting", True, 0.0)
_place = _STARTING
_heartbeat: Heartbeat | None = None


def enter(phase: str, patient: bool = False) -> None:
    """Record that the process has entered another phase, or made progress in the same one."""
    global _place
    _place = Place(phase, patient, time.monotonic())


def phase() -> str:
    """The current phase in words; empty before the first `enter`."""
    return "" if _place is _STARTING else _place.phase


@contextmanager
def within(phase: str | None = None, patient: bool = False) -> Iterator[None]:
    """A phase nested in the current one; by default work of the main process alone, which may take any time."""
    before = _place
    enter(f"{phase}, in {before.phase}" if phase else f"{before.phase}, the main process alone", patient or not phase)
    try:
        yield
    finally:
        enter(before.phase, before.patient)


def stuck(limit: float) -> Stuck | None:
    """The current phase, if it may not take any time and has taken longer than `limit` seconds."""
    place, now = _place, time.monotonic()
    if place.patient or now - place.since <= limit:
        return None
    return Stuck(place, now - place.since, current_position(threading.main_thread().ident)[1])


def timeout() -> float:
    """The timeout in seconds.

    Raises:
        UserError: the variable is not a number of seconds.
    """
    text = os.environ.get(VARIABLE, str(DEFAULT_SECONDS))
    try:
        if float(text) > 0:
            return float(text)
    except ValueError:
        pass
    raise UserError(f"{VARIABLE}={text}: expected seconds, more than 0, as in {VARIABLE}=1800")


@contextmanager
def joining() -> Iterator[None]:
    """Limit the wait for the other processes to join; on timeout this process exits."""
    rank, size = os.environ.get("RANK"), os.environ.get("WORLD_SIZE", "1")
    if size == "1":
        yield
        return

    def give_up(seconds: float) -> None:
        say(
            f"error: rank {rank} of {size} has waited {seconds:.0f} s for the others to join; the ones that do not say "
            f"so are missing. If they only take longer, set {VARIABLE} to more seconds"
        )
        os._exit(1)

    seconds = timeout()
    timer = threading.Timer(seconds, give_up, [seconds])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def start(
    store: Any, rank: int, size: int, on_lost: Callable[[str], None], on_exit: Callable[[], None] = lambda: None
) -> None:
    """Start the heartbeat; every process must call this once it has joined the others.

    Args:
        on_lost: called once per launch, with the reason, by the process that detects the failure.
        on_exit: called by each process that the heartbeat ends, just before.
    """
    global _heartbeat
    if _heartbeat is None:
        enter("loading", patient=True)
        _heartbeat = Heartbeat(store.clone(), rank, size, timeout(), on_lost, on_exit)
        _heartbeat.beat()
        _heartbeat.start()


def stop(reason: str | None = None) -> None:
    """Stop before this process exits; an error's `reason` is passed to the others, which may be waiting for it."""
    global _heartbeat
    if _heartbeat is not None:
        _heartbeat.leave(reason)
        _heartbeat = None


def explain(error: Exception) -> str | None:
    """The line that names the lost rank behind a communication error, or None if no rank is lost.

    The first process to detect the failure prints the line.
    """
    is_communication = isinstance(error, RuntimeError) and any(text in str(error) for text in COMMUNICATION_ERRORS)
    return _heartbeat.explain() if _heartbeat is not None and is_communication else None


class Heartbeat(threading.Thread):
    """The thread that writes this process's beat and checks those of the others.

    Args:
        store: a torch.distributed store for this thread alone: a call by another thread would hold its connection.
        limit: timeout in seconds.
    """

    def __init__(
        self,
        store: Any,
        rank: int,
        size: int,
        limit: float,
        on_lost: Callable[[str], None],
        on_exit: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(name="heartbeat", daemon=True)
        self.rank, self.size, self.limit, self._on_lost, self._on_exit = rank, size, limit, on_lost, on_exit
        self.interval = min(limit / 20, max(1.0, size / 50))  # every rank reads every beat, once per interval
        self._store, self._host, self._number = store, socket.gethostname(), 0
        self._store.set_timeout(timedelta(seconds=max(1.0, min(30.0, limit))))
        self._parent = os.getppid()
        self._agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        holder = "the launcher" if self._agent else f"rank 0 of {size}"
        self._store_silent = f"{holder}, in whose store the processes meet, does not answer"
        self._store_answered = time.monotonic()
        no_beat = {"number": 0, "host": "?", "pid": "?", "waits": False, "where": "?", "left": None}
        others = [other for other in range(size) if other != rank]
        self._beats: dict[int, tuple[dict[str, Any], float]] = dict.fromkeys(others, (no_beat, time.monotonic()))
        """The last beat of each other rank, and the time it arrived."""
        self._done = threading.Event()
        self._lock = threading.Lock()

    def run(self) -> None:
        threading.Thread(target=self._guard, name="heartbeat-guard", daemon=True).start()
        while not self._done.wait(self.interval):
            with self._lock:
                line = self._check()
            if line is not None and not self._done.is_set():
                self._exit()

    def _guard(self) -> None:
        """Exit if a round does not end: a call to the store over a cut cable waits as long as TCP does."""
        while not self._done.wait(self.interval):
            if time.monotonic() - self._store_answered > self.limit + 5 * self.interval and not self._is_orphaned():
                where = f"rank {self.rank} of {self.size} in {_place.phase}"
                say(one_line(self._failure_line(f"{self._store_silent} {where}")))
                self._exit()

    def _exit(self) -> None:
        """End the process, also if the disk on which `on_exit` writes does not answer."""
        timer = threading.Timer(EXIT_SECONDS, os._exit, [1])
        timer.daemon = True
        timer.start()
        try:
            self._on_exit()
        finally:
            os._exit(1)

    def _is_orphaned(self) -> bool:
        """Whether the launcher has died; `alignment.runs.signals` handles that."""
        return self._agent and os.getppid() != self._parent

    def _check(self) -> str | None:
        """Run one round; returns the failure line once it has been printed."""
        try:
            self.beat()
            if line := self._announced():
                return line
            self._read_beats()
            self._store_answered = time.monotonic()
        except RuntimeError:  # the store's process, rank 0 or a launcher, is gone or stopped
            is_silent = not self._is_orphaned() and time.monotonic() - self._store_answered > self.limit
            is_lost = is_silent or self._is_stuck()
            return self._announce(f"{self._store_silent} in {_place.phase}") if is_lost else None
        late, gone = time.monotonic() - self.limit, time.monotonic() - min(self.limit, ERROR_GRACE_SECONDS)
        silent = [rank for rank, (beat, since) in self._beats.items() if since < late and beat["left"] != DONE]
        ended = [rank for rank, (_, since) in self._beats.items() if since < gone]
        left = [rank for rank in ended if self._beats[rank][0]["left"] not in (None, DONE)]
        if left:  # on GPUs, ranks inside a collective get no error of their own
            return self._announce(f"{self._describe(left)} in {_place.phase}")
        if silent:
            return self._announce(f"{self._describe(silent)} in {_place.phase}, for {self.limit:.0f} s")
        return self._announce(self._describe_hang()) if self._is_stuck() else None

    def beat(self, left: str | None = None) -> None:
        self._number += 1
        waits, where = current_position(threading.main_thread().ident)
        beat = {"number": self._number, "host": self._host, "pid": os.getpid(), "phase": _place.phase}
        self._store.set(f"heartbeat/{self.rank}", json.dumps(beat | {"waits": waits, "where": where, "left": left}))

    def _read_beats(self) -> None:
        beats = self._beats.items()
        ranks = [rank for rank, (beat, _) in beats if beat["number"] or self._store.check([f"heartbeat/{rank}"])]
        for rank, text in zip(ranks, self._store.multi_get([f"heartbeat/{rank}" for rank in ranks]), strict=True):
            beat = json.loads(text)
            if self._beats[rank][0]["number"] != beat["number"]:
                self._beats[rank] = (beat, time.monotonic())

    def _is_stuck(self) -> bool:
        return stuck(self.limit) is not None

    def _describe_hang(self) -> str:
        """The ranks that are lost, or else those that the others wait for."""
        if lost := self._lost():
            return f"{self._describe(lost)} in {_place.phase}, for {self.limit:.0f} s"
        positions = {rank: (beat["waits"], beat["where"]) for rank, (beat, _) in self._beats.items()}
        positions[self.rank] = current_position(threading.main_thread().ident)
        working = sorted((rank, where) for rank, (waits, where) in positions.items() if not waits)
        busy = [f"rank {rank} of {self.size} (at {where})" for rank, where in working]
        if 0 < len(busy) < self.size:
            who = f"the others wait for {', '.join(busy)}"
        else:
            who = f"no process makes progress ({', '.join(busy) or 'each waits for the others'})"
        return f"{who} in {_place.phase}, for {self.limit:.0f} s"

    def _lost(self) -> list[int]:
        """Ranks that are known to be gone or stopped, or have missed three beats."""
        late = time.monotonic() - 3 * self.interval
        return [rank for rank, (beat, since) in sorted(self._beats.items()) if since < late or self._problem(beat)]

    def _describe(self, ranks: list[int]) -> str:
        descriptions = []
        for rank in ranks:
            beat = self._beats[rank][0]
            problem = self._problem(beat) or "does not answer"
            descriptions.append(f"rank {rank} of {self.size} (process {beat['pid']} on {beat['host']}) {problem}")
        return ", ".join(descriptions)

    def _problem(self, beat: dict[str, Any]) -> str | None:
        """The failure of another process, as far as this process can see it."""
        if beat["left"] is not None:
            return f"has left: {beat['left']}"
        if beat["host"] != self._host or not Path("/proc/self/stat").exists():
            return None
        state, _ = process_state(beat["pid"])
        return {"T": "is stopped", "t": "is stopped", "Z": "is gone", "X": "is gone"}.get(state)

    def _kill(self, beat: dict[str, Any]) -> None:
        """Kill a stopped process of this launch on this host; otherwise the launcher would wait 30 s for it."""
        is_sibling = beat["host"] == self._host and process_state(beat["pid"])[1] == os.getppid()
        if is_sibling and beat["pid"] != os.getpid():
            with suppress(OSError):
                os.kill(beat["pid"], signal.SIGKILL)

    def _announced(self) -> str | None:
        """The failure line that another process has announced; the first process of each other host prints it too."""
        if not self._store.check(["heartbeat/end"]):
            return None
        host, _, line = self._store.get("heartbeat/end").decode().split("\n")
        if host != self._host and os.environ.get("LOCAL_RANK") == "0":
            say(line)
        return str(line)

    def _failure_line(self, reason: str) -> str:
        return (
            f"error: {reason}; all processes leave. --resume auto resumes from the last checkpoint; if it only takes "
            f"longer, set {VARIABLE} to more seconds"
        )

    def _announce(self, reason: str) -> str:
        """Print the failure line and report it to `on_lost`, unless another process was first."""
        line = one_line(self._failure_line(reason))
        try:
            entry = f"{self._host}\n{self.rank}\n{line}"  # the rank makes simultaneous entries unequal
            if self._store.compare_set("heartbeat/end", "", entry).decode() != entry:
                return self._announced() or line
        except RuntimeError:
            pass  # a line printed twice is better than none
        say(line)
        self._on_lost(line.removeprefix("error: "))
        for rank in self._lost():
            self._kill(self._beats[rank][0])
        if self.rank == 0 and not self._agent:  # the store ends with this process, and the others must read it first
            time.sleep(2 * self.interval)
        return line

    def explain(self) -> str | None:
        end = time.monotonic() + max(3.0, 4 * self.interval)
        while time.monotonic() < end:
            with self._lock:
                try:
                    self.beat()
                    if line := self._announced():
                        return line
                    self._read_beats()
                except RuntimeError:
                    return self._announce(f"{self._store_silent} in {_place.phase}")
                if lost := self._lost():
                    return self._announce(f"{self._describe(lost)} in {_place.phase}")
            time.sleep(min(0.5, self.interval))
        return None

    def leave(self, reason: str | None) -> None:
        self._done.set()
        with self._lock, suppress(RuntimeError):
            self.beat(left=reason or DONE)
