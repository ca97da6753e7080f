"""A pseudo-terminal with the rating script in it, and what the script stored."""

import codecs
import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from alignment.ratings import RatingsStore

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "rate.py"


PATHS = os.pathsep.join([str(SCRIPT.parent), str(SCRIPT.parents[1])])


CONTROL = re.compile(r"\x1b(?:\[[0-9;?<>=$]*[@-~]|[^\[])")


class Screen:
    """A labeler's terminal with the script in it."""

    def __init__(
        self, *arguments: str, columns: int = 80, term: str = "xterm-256color", script: Sequence[str] = (str(SCRIPT),)
    ) -> None:
        environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES", "NO_COLOR")}
        self.output, self.seen = "", 0
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
        self.before = termios.tcgetattr(slave)
        self.master, self.slave = master, slave
        self.process = subprocess.Popen(
            [sys.executable, *script, *arguments],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # a controlling terminal: Ctrl-C is a real one
            env=environment | {"TERM": term, "ALIGNMENT_SCRIPT_STARTED": "1", "PYTHONPATH": PATHS},
        )

    def wait(self, text: str, seconds: float = 60.0) -> str:
        """What was printed from the last wait up to and with `text`."""
        end = time.monotonic() + seconds
        while text not in self.plain()[self.seen :]:
            assert time.monotonic() < end, f"no {text!r} in {self.plain()[self.seen :]!r}"
            self.read()
        start = self.seen
        self.seen = self.plain().index(text, start) + len(text)
        return self.plain()[start : self.seen]

    def read(self) -> None:
        """Take what the script has written by now."""
        while select.select([self.master], [], [], 0.1)[0]:
            self.output += self._decoder.decode(os.read(self.master, 65536))

    def plain(self) -> str:
        return CONTROL.sub("", self.output)

    def ready(self, position: str) -> str:
        """Wait for an item to be on the screen, and for the screen to listen to keys."""
        shown = self.wait(position)
        self.settle()
        return shown

    def settle(self) -> None:
        """Wait until nothing more is drawn, and then for the screen to listen."""
        self.read()
        time.sleep(0.5)

    def press(self, key: str, then: str) -> str:
        os.write(self.master, key.encode())
        return self.wait(then)

    def rate(self, key: str, db: str, labeler: str = "ada") -> tuple[int, str]:
        """Press a key that rates, and return what is on disk when the confirmation is on the screen."""
        before = finished(db, labeler)
        self.read()
        self.seen = start = len(self.plain())
        for _ in range(3):  # on a machine under load even half a second may be too soon for the screen to listen
            os.write(self.master, key.encode())
            end = time.monotonic() + 5
            while time.monotonic() < end:
                after = finished(db, labeler)
                if len(after) > len(before):
                    self.wait("Saved: ")
                    time.sleep(0.5)
                    self.seen = start  # the next item came to the screen before the confirmation
                    return after[-1]
                time.sleep(0.05)
        raise AssertionError(f"{key!r} rated nothing: {self.plain()[self.seen :]!r}")

    def left(self) -> int:
        """The exit status, once the script ended; its terminal must be as it was before."""
        status = self.process.wait(20)
        self.read()
        if status >= 0:
            assert termios.tcgetattr(self.slave) == self.before
        return status

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.master)
        os.close(self.slave)


def fill(store: RatingsStore, count: int, need: int) -> None:
    with store.transaction():
        for i in range(count):
            store.add_item(
                [{"role": "user", "content": f"question {i}."}],
                [{"text": f"alpha {i}", "model": "sft-secret@v1"}, {"text": f"beta {i}", "model": "ppo-secret@v1"}],
                need=need,
            )


def finished(db: str, labeler: str = "ada") -> list[tuple[int, str]]:
    with RatingsStore(db) as store:
        return [(each.item, each.choice) for each in store.ratings(skips=True) if each.labeler == labeler]


def open_screen(screens: list[Screen], *arguments: str, **options: Any) -> Screen:
    screens.append(Screen(*arguments, **options))
    return screens[-1]
