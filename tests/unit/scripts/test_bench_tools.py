"""What `scripts/bench.py tools` measures of a command, and that it refuses one that fails."""

import bench
import pytest
from benchmarks import tools

from alignment.errors import UserError

BUSY = "import time\nend = time.process_time() + {}\nwhile time.process_time() < end: pass\n"


def test_processor_time_is_that_of_the_whole_command_and_of_no_other():
    busy, waiting = tools.whole(["-c", BUSY.format(2.0)]), tools.whole(["-c", "import time; time.sleep(2)"])
    assert 0 < waiting < 2.0 <= busy


def test_a_command_that_fails_is_told_by_its_last_line():
    with pytest.raises(UserError, match="error: not so"):
        tools.whole(["-c", "import sys; sys.exit('one\\nerror: not so')"])


def test_a_screen_is_measured_until_it_shows_the_text_and_ended_then():
    program = BUSY.format(0.3) + "print('the', 'item', flush=True)\ntime.sleep(600)"
    assert tools.to_text(["-c", program], "the item") >= 0.3
    with pytest.raises(UserError, match="never drew 'the item'"):
        tools.to_text(["-c", "print('another')"], "the item")


def test_a_first_run_has_a_cache_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    program = "import os, pathlib; (pathlib.Path(os.environ['XDG_CACHE_HOME']) / 'x').touch(exist_ok=False)"
    tools.first(["-c", program])
    tools.first(["-c", program])
    assert not list(tmp_path.iterdir())


def test_ratios_are_taken_within_a_round(tmp_path, monkeypatch):
    times = {tools.EMPTY: [9.0, 1.0, 2.0, 4.0], "slow": [9.0, 10.0, 10.0, 10.0]}
    monkeypatch.setattr(tools, "_world", lambda folder, options: {})
    runs = {name: iter(each).__next__ for name, each in times.items()}
    monkeypatch.setattr(tools, "_commands", lambda folder, world: runs)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    report = tools.measure(tmp_path, bench.argparse.Namespace(rounds=3))
    assert report["ratios"]["slow"] == {"median": 5.0, "min": 2.5, "max": 10.0}
    assert "| `slow` | 10 (10 to 10) | 5 (2.5 to 10) |" in tools.table(report)
