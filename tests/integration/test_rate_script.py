"""The rating script as a labeler meets it: a real pseudo-terminal, a real pipe, real kills, several processes."""

import fcntl
import json
import multiprocessing
import os
import pty
import re
import select
import signal
import sqlite3
import struct
import subprocess
import sys
import termios
import time
from collections import Counter
from collections.abc import Iterator
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest

from alignment.ratings import RatingsStore

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "rate.py"
STYLE = re.compile(r"\x1b\[[0-9;]*m")
HOSTILE = (
    "\x1b]52;c;ZXZpbA==\x07 \x1b[2J\x1b[31m \x9b31m \x1b]0;title\x07 \x9d52;c;x\x9c \u202egnp.exe\u2066 "
    "[bold]b[/nope] [link=http://e.example]l[/link] :smile: \ud800 \x00\x08\r\x7f\u200b \U000e0041"
)


class Screen:
    """A labeler's terminal with the script in it."""

    def __init__(self, *arguments: str, columns: int = 80) -> None:
        environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES", "NO_COLOR")}
        self.output, self.seen = "", 0
        master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
        self.before = termios.tcgetattr(slave)
        self.master, self.slave = master, slave
        self.process = subprocess.Popen(
            [sys.executable, str(SCRIPT), *arguments],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # a controlling terminal: Ctrl-C is a real one
            env=environment | {"TERM": "xterm-256color", "ALIGNMENT_SCRIPT_STARTED": "1"},
        )

    def wait(self, text: str, seconds: float = 20.0) -> str:
        """What was printed from the last wait up to and with `text`."""
        end = time.monotonic() + seconds
        while text not in self.plain()[self.seen :]:
            assert time.monotonic() < end, f"no {text!r} in {self.plain()[self.seen :]!r}"
            if select.select([self.master], [], [], 0.1)[0]:
                self.output += os.read(self.master, 65536).decode()
        start = self.seen
        self.seen = self.plain().index(text, start) + len(text)
        return self.plain()[start : self.seen]

    def plain(self) -> str:
        return STYLE.sub("", self.output)

    def press(self, key: str, then: str = "q quit") -> str:
        os.write(self.master, key.encode())
        return self.wait(then)

    def left(self) -> int:
        """The exit status, once the script ended; its terminal must be as it was before."""
        status = self.process.wait(20)
        while select.select([self.master], [], [], 0.1)[0]:
            self.output += os.read(self.master, 65536).decode()
        if status >= 0:
            assert termios.tcgetattr(self.slave) == self.before
        return status

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.master)
        os.close(self.slave)


@pytest.fixture
def screens() -> Iterator[list[Screen]]:
    opened: list[Screen] = []
    yield opened
    for screen in opened:
        screen.close()


@pytest.fixture
def db(tmp_path: Path) -> str:
    with RatingsStore(tmp_path / "ratings.db", create=True) as store:
        fill(store, 12, need=2)
    return str(tmp_path / "ratings.db")


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


def open_screen(screens: list[Screen], *arguments: str, columns: int = 80) -> Screen:
    screens.append(Screen(*arguments, columns=columns))
    return screens[-1]


def test_every_key_does_what_it_says(screens: list[Screen], db: str) -> None:
    screen = open_screen(screens, "--db", db, "--labeler", "ada")
    wanted: list[tuple[int, str]] = []
    shown = screen.wait("q quit")
    assert "1 of 12" in shown and "~" not in shown.splitlines()[0]
    for key, side in [
        ("1", 0),
        ("l", 0),
        ("\x1b[D", 0),
        ("2", 1),
        ("R", 1),
        ("\x1bOC", 1),
        ("t", 2),
        ("0", 2),
        ("s", 3),
    ]:
        item = int(re.search(r"question (\d+)\.", shown)[1]) + 1  # type: ignore[index]
        left_is_first = shown.index("alpha") < shown.index("beta")
        choices = (*(("first", "second") if left_is_first else ("second", "first")), "tie", "skip")
        wanted.append((item, choices[side]))
        shown = screen.press(key)
        assert finished(db)[-1] == wanted[-1]  # on disk before the next pair is on the screen
    assert "10 of 12 | ~1 s each | under a minute left" in shown
    assert finished(db) == wanted
    assert "taken back" in screen.press("u").lower()
    assert finished(db) == wanted[:-1]
    screen.press("s")
    assert "any number of times" in screen.press("?")
    assert "does nothing" in screen.press("x")
    assert "does nothing" in screen.press("\x1b[A")  # another arrow is not taken for ESC and letters
    assert finished(db) == wanted
    screen.press("q", then="data.train=")
    assert screen.left() == 0
    assert "9 of 12 done (1 skipped). Everything is saved. Thank you, ada." in screen.plain()
    assert "secret" not in screen.output


def test_last_answer_can_be_taken_back_at_the_end(screens: list[Screen], db: str) -> None:
    screen = open_screen(screens, "--db", db, "--labeler", "ada", "--json")
    screen.wait("q quit")
    for _ in range(11):
        screen.press("1")
    screen.press("1", then="any other key ends.")
    screen.press("u")
    assert len(finished(db)) == 11
    screen.press("t", then="any other key ends.")
    screen.press("\n", then="}")
    assert json.loads(screen.plain().splitlines()[-1]) == {"done": 12, "total": 12, "labeler": "ada", "db": db}
    assert screen.left() == 0 and finished(db)[-1][1] == "tie"


def test_kill_in_the_middle_loses_and_doubles_nothing(screens: list[Screen], db: str) -> None:
    acknowledged: list[tuple[int, str]] = []
    for session in range(4):
        screen = open_screen(screens, "--db", db, "--labeler", "ada")
        shown = screen.wait("q quit")
        assert f"{3 * session + 1} of 12" in shown
        for i in range(3):
            screen.press("12t"[i], then="Saved")
            acknowledged.append(finished(db)[-1])
        screen.process.send_signal(signal.SIGKILL)
        assert screen.left() == -signal.SIGKILL
    assert finished(db) == acknowledged
    assert sorted(item for item, _ in acknowledged) == list(range(1, 13))


@pytest.mark.parametrize(("stop", "status"), [("\x03", 0), ("\x04", 0), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_leaving_in_any_way_restores_the_terminal(
    screens: list[Screen], db: str, stop: str | signal.Signals, status: int
) -> None:
    screen = open_screen(screens, "--db", db, "--labeler", "ada")
    screen.wait("q quit")
    screen.press("1")
    assert termios.tcgetattr(screen.slave) != screen.before
    if isinstance(stop, signal.Signals):
        screen.process.send_signal(stop)
    else:
        os.write(screen.master, stop.encode())
    assert screen.left() == status
    assert "Traceback" not in screen.output and len(finished(db)) == 1


def test_keys_typed_ahead_rate_nothing_unseen(screens: list[Screen], db: str) -> None:
    screen = open_screen(screens, "--db", db, "--labeler", "ada")
    screen.wait("q quit")
    with sqlite3.connect(db, isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")  # holds the first save back, so that the other keys surely come before it ends
        os.write(screen.master, b"1111")
        time.sleep(0.5)
        other.execute("ROLLBACK")
    screen.wait("q quit")
    time.sleep(0.5)
    assert len(finished(db)) == 1


@pytest.mark.parametrize("columns", [80, 140])
def test_hostile_text_is_shown_not_obeyed(screens: list[Screen], tmp_path: Path, columns: int) -> None:
    with RatingsStore(tmp_path / "h.db", create=True) as store:
        store.guideline = HOSTILE
        store.add_item([{"role": HOSTILE[:9], "content": HOSTILE}], [{"text": HOSTILE}, {"text": ""}])
    screen = open_screen(screens, "--db", str(tmp_path / "h.db"), "--labeler", "a[red]", columns=columns)
    screen.wait("q quit")
    screen.press("?")
    screen.press("q", then="Thank you")
    assert screen.left() == 0
    controls = set(re.findall(r"\x1b(?:\[[0-9;]*[A-Za-z])?", screen.output))
    assert all(re.fullmatch(r"\x1b\[([0-9;]*m|2J|H)", control) for control in controls), controls
    assert screen.output.count("\x1b[2J") == 1  # our own
    assert not set(screen.output) & set("\x00\x07\x08\x7f\x9b\x9c\x9d\u202e\u2066\u200b\U000e0041")
    for text in ("␛]52;c;ZXZpbA==␇", "�gnp.exe�", "[bold]b[/nope]", "[link=http://e.example]", ":smile:", "(empty)"):
        assert text in screen.plain()


def test_two_labelers_see_other_orders_and_each_their_own_again(screens: list[Screen], db: str) -> None:
    orders = []
    for name in ("ada", "bob"):
        screen = open_screen(screens, "--db", db, "--labeler", name)
        shown = [screen.wait("q quit")]
        for _ in range(10):
            shown.append(screen.press("s"))
        screen.press("q", then="Thank you")
        orders.append([re.search(r"question (\d+)\.", each)[1] for each in shown])  # type: ignore[index]
        again = open_screen(screens, "--db", db, "--labeler", name)
        assert again.wait("q quit").partition("USER")[2] == shown[-1].partition("USER")[2]
    assert orders[0] != orders[1]
    assert len(set(orders[0])) == len(set(orders[1])) == 11


def piped(text: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"ALIGNMENT_SCRIPT_STARTED": "1"}
    command = [sys.executable, str(SCRIPT), *arguments]
    return subprocess.run(command, input=text, capture_output=True, text=True, timeout=30, env=environment)


def test_pipe_takes_a_line_per_decision(db: str) -> None:
    done = piped("1\n2\n\nnonsense\ntie\nu\nskip\n?\nleft\n", "--db", db, "--labeler", "ada", "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout) == {"done": 4, "total": 12, "labeler": "ada", "db": db}
    assert "\x1b" not in done.stderr and "4 of 12 done (1 skipped)" in done.stderr
    assert [choice == "skip" for _, choice in finished(db)] == [False, False, True, False]
    assert "secret" not in done.stderr
    plain = piped("q\n", "--db", db, "--labeler", "ada")
    assert "5 of 12" in plain.stdout and plain.stderr == ""


def test_mistakes_are_one_line_and_exit_2(db: str, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("{}\n")
    for arguments, expected in [
        (["--db", str(tmp_path / "none.db"), "--labeler", "ada"], "no such ratings file"),
        (["--db", str(tmp_path / "rows.jsonl"), "--labeler", "ada"], "not a ratings file"),
        (["--db", db, "--labeler", "a\x1b[2J"], "1 to 64 printable"),
        (["--db", db], "--labeler"),
        (["--db", db, "--labeler", "ada", "--seed", "x"], "--seed"),
    ]:
        done = piped("", *arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert expected in done.stderr and done.stderr.count("\n") == 1 and "\x1b" not in done.stderr
    assert "Example:" in piped("", "--help").stdout


def test_one_command_finds_the_projects_python(tmp_path: Path, db: str) -> None:
    """A copy of the project whose `.venv` has a python that only says how it was called."""
    script = tmp_path / "scripts" / "rate.py"
    script.parent.mkdir()
    for source in (SCRIPT, SCRIPT.with_name("project_python.py")):
        (script.parent / source.name).write_bytes(source.read_bytes())
    script.chmod(0o755)
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\necho "venv: $@"\n')
    python.chmod(0o755)
    environment = {k: v for k, v in os.environ.items() if k != "ALIGNMENT_SCRIPT_STARTED"}
    done = subprocess.run([script, "--db", "x y.db"], capture_output=True, text=True, env=environment, timeout=30)
    assert done.stdout == f"venv: {script} --db x y.db\n"
    assert os.access(SCRIPT, os.X_OK) and SCRIPT.read_text().startswith("#!/usr/bin/env python3\n")


def rate_all(path: str, labeler: str, slip: int, start: Barrier) -> None:
    with RatingsStore(path) as store:
        start.wait(30)
        count = 0
        while assignment := store.claim(labeler):
            count += 1
            if count % slip == 0:
                store.claim(labeler)  # a crash and a restart: the same item comes back
            store.submit(assignment, "left", 1.0)


def test_four_processes_reach_need_exactly(tmp_path: Path) -> None:
    path = str(tmp_path / "many.db")
    with RatingsStore(path, create=True) as store:
        fill(store, 200, need=3)
    context = multiprocessing.get_context("spawn")
    start = context.Barrier(4)
    workers = [context.Process(target=rate_all, args=(path, f"labeler {i}", 7 + i, start)) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0] * 4
    with RatingsStore(path) as store:
        ratings = store.ratings(for_training=True)
        assert Counter(Counter(each.item for each in ratings).values()) == {3: 200}
        assert len({(each.item, each.labeler) for each in ratings}) == len(ratings) == 600
        assert len({each.labeler for each in ratings}) == 4


def make(path: str, start: Barrier) -> None:
    start.wait(30)
    with RatingsStore(path, create=True) as store:
        fill(store, 20, need=1)


def test_processes_that_make_the_same_file_at_once_agree(tmp_path: Path) -> None:
    path = str(tmp_path / "new.db")
    context = multiprocessing.get_context("spawn")
    start = context.Barrier(4)
    workers = [context.Process(target=make, args=(path, start)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0] * 4
    with RatingsStore(path) as store:
        assert len(store.items()) == 20
