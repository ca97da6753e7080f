"""Long work that prints nothing is told of, with what it is at; work that prints is left alone."""

import time

import pytest

from alignment import terminal
from alignment.distributed import heartbeat, ticker
from alignment.distributed.ticker import ticking
from alignment.errors import UserError
from alignment.terminal import progress


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setenv(ticker.VARIABLE, "0.2")
    monkeypatch.setattr(heartbeat, "_place", heartbeat._STARTING)


def test_silence_is_broken_by_a_line_with_the_phase_and_how_far_it_is(capsys):
    with ticking("sft x"):
        time.sleep(0.5)
        heartbeat.enter("loading the model")
        time.sleep(0.5)
        heartbeat.enter("scoring, 3 of 9")
        time.sleep(0.5)
    lines = capsys.readouterr().err.splitlines()
    assert [line.rpartition(" ")[0].rpartition(" ")[0] for line in dict.fromkeys(lines)] == [
        "sft x:", "sft x: loading the model,", "sft x: scoring, 3 of 9,"
    ]  # fmt: skip
    assert all(line.endswith(" s") for line in lines)


def test_what_prints_is_left_alone(capsys):
    with ticking("sft x"):
        for _ in range(8):
            terminal.say("a line")
            time.sleep(0.06)
    assert set(capsys.readouterr().err.splitlines()) == {"a line"}


def test_a_progress_that_has_run_for_long_sets_the_pace(capsys, monkeypatch):
    with ticking("sft x"), progress("work", 100) as line:
        monkeypatch.setattr(line, "_start", time.monotonic() - 3600)  # an hour: a line in six minutes
        time.sleep(0.6)
    assert capsys.readouterr().err == ""


def test_nothing_where_it_is_not_wanted_and_nothing_afterwards(capsys):
    with ticking("sft x", enabled=False):
        time.sleep(0.4)
    with ticking("sft x"):
        pass
    time.sleep(0.4)
    assert capsys.readouterr().err == ""


def test_the_variable_switches_it_off_or_is_refused(capsys, monkeypatch):
    monkeypatch.setenv(ticker.VARIABLE, "0")
    with ticking("sft x"):
        time.sleep(0.4)
    assert capsys.readouterr().err == ""
    for text in ("often", "nan", "-1"):
        monkeypatch.setenv(ticker.VARIABLE, text)
        with pytest.raises(UserError, match=f"ALIGNMENT_TICK={text} is no number of seconds"), ticking("sft x"):
            pass
