"""`alignment runs watch` in a real terminal: it follows a run, and leaves the screen as it found it."""

import contextlib
import fcntl
import json
import os
import pty
import re
import select
import struct
import sys
import termios
import time
from pathlib import Path

import pytest
from helpers.journals import make_run

from alignment.runs.journal import Journal

ROOT = Path(__file__).resolve().parents[2]
ENTERED, LEFT, HIDDEN, VISIBLE = b"\x1b[?1049h", b"\x1b[?1049l", b"\x1b[?25l", b"\x1b[?25h"


class Terminal:
    """A command in a terminal of 80 by 24; `seen` is all that it wrote."""

    def __init__(self, *arguments: str, **environment: str) -> None:
        self.seen, self.code = b"", None
        self._pid, self._fd = pty.fork()
        if self._pid == 0:
            os.environ.update({"TERM": "xterm-256color", "PYTHONPATH": str(ROOT), **environment})
            os.execv(sys.executable, [sys.executable, "-m", "alignment.cli.main", *arguments])
        fcntl.ioctl(self._fd, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))

    def wait_for(self, wanted: bytes, seconds: float = 60) -> None:
        end = time.monotonic() + seconds
        while wanted not in self.seen and self._read(end - time.monotonic()):
            pass
        assert wanted in self.seen, self.seen[-3000:].decode(errors="replace")

    def press(self, keys: bytes) -> None:
        os.write(self._fd, keys)

    def wait(self, seconds: float = 60) -> int:
        end = time.monotonic() + seconds
        while self._read(end - time.monotonic()):
            pass
        self.code = os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])
        return self.code

    def close(self) -> None:
        if self.code is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, 9)
            os.waitpid(self._pid, 0)
        os.close(self._fd)

    def _read(self, seconds: float) -> bool:
        if not select.select([self._fd], [], [], max(0.0, seconds))[0]:
            return False
        try:
            data = os.read(self._fd, 1 << 16)
        except OSError:  # Linux's way of saying that the other side is closed
            return False
        self.seen += data
        return bool(data)


@pytest.fixture
def open_terminal():
    opened = []

    def start(*arguments, **environment):
        opened.append(Terminal(*arguments, **environment))
        return opened[-1]

    yield start
    for terminal in opened:
        terminal.close()


def test_a_run_is_followed_through_a_resume_to_its_end(tmp_path, open_terminal):
    run = tmp_path / "run"
    make_run(run, rows={1: {"rollout/score": 1.5}}, exit_code=None)
    terminal = open_terminal("runs", "watch", str(run), "--interval", "0.1")
    terminal.wait_for(b"step 1 of 10")
    assert ENTERED in terminal.seen and HIDDEN in terminal.seen
    journal = Journal(run)
    offsets = journal.offsets()
    journal.log(7, {"rollout/score": 2.5})
    journal.samples(7, [{"id": 0, "prompt": "Q\x1b]0;owned\x07", "response": "\x1b[999;1Hdown\u202e"}])
    terminal.wait_for(b"step 7 of 10")
    terminal.wait_for("\u241b[999;1Hdown\ufffd".encode())
    journal.close()
    config = (run / "config.json").read_text()
    (run / "config.json").write_text("")  # as a resume does for a moment
    seen = len(terminal.seen)
    while len(terminal.seen) < seen + 5000:
        terminal.wait_for(b"step 7 of 10")
        assert terminal._read(60)
    (run / "config.json").write_text(config)
    with Journal(run, resume=offsets) as journal:
        journal.mark_resumed(step=1)
        journal.log(2, {"rollout/score": 3.5})
        terminal.wait_for(b"step 2 of 10")
    (run / "exit.json").write_text(json.dumps({"code": 0, "reason": "done"}))
    assert terminal.wait() == 0
    assert terminal.seen.count(ENTERED) == terminal.seen.count(LEFT) == 1
    after = terminal.seen.split(LEFT)[1]
    assert b"step 2 of 10" in after and b"done" in after  # what stays on the screen
    assert VISIBLE in terminal.seen.split(HIDDEN)[-1]
    sequences = set(re.findall(rb"\x1b(?:\[\??[0-9;]*[A-Za-z]|.)", terminal.seen))
    assert all(
        re.fullmatch(rb"\x1b\[[0-9;]*m", each) for each in sequences - {ENTERED, LEFT, HIDDEN, VISIBLE, b"\x1b[H"}
    )


def test_ctrl_c_leaves_the_screen_as_it_was(tmp_path, open_terminal):
    make_run(tmp_path / "run", rows={1: {"rollout/score": 1.5}}, exit_code=None)
    terminal = open_terminal("runs", "watch", str(tmp_path / "run"), "--interval", "60")
    terminal.wait_for(b"step 1 of 10")
    terminal.press(b"\x03")
    assert terminal.wait() == 0
    assert LEFT in terminal.seen and VISIBLE in terminal.seen.split(HIDDEN)[-1]
    assert b"Traceback" not in terminal.seen and b"Aborted" not in terminal.seen


@pytest.mark.parametrize(("more", "environment"), [((), {}), (("--once",), {}), ((), {"TERM": "dumb"})])
def test_where_nothing_can_change_it_is_printed_once(tmp_path, open_terminal, more, environment):
    done = not more and not environment
    make_run(tmp_path / "run", rows={1: {"rollout/score": 1.5}}, exit_code=0 if done else None)
    terminal = open_terminal("runs", "watch", str(tmp_path / "run"), *more, **{"TERM": "xterm", **environment})
    assert terminal.wait() == 0
    assert terminal.seen.count(b"step 1 of 10") == 1 and ENTERED not in terminal.seen
