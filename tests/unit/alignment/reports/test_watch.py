"""`runs watch`: reading a journal that grows, charts, and a screen that no text in a run can take over."""

import io
import json
import re
import tempfile
from pathlib import Path

import numpy as np
import pytest
from helpers.journals import make_run
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from alignment.reports.braille import chart
from alignment.reports.watch import Follower, Tail, View, watch
from alignment.runs.record import RunRecord, Series

HOSTILE = "\x1b[2J\x1b]0;owned\x07\u202eevil\u2066\x9b31m\r\nend"
NAMES = ("train/loss", "a\u2028b", "é", "[bold]x")


def row(number, name, value):
    """Each is another one, as the clock makes those of a run; the number stands last."""
    return json.dumps({"step": number, "event": name, name: value, "n": number}, ensure_ascii=False).encode() + b"\n"


VALUES = st.one_of(st.none(), st.floats(allow_nan=False), st.text(max_size=5), st.integers(-9, 9))
LINES = st.one_of(
    st.builds(row, st.integers(0, 10**6), st.sampled_from(NAMES), VALUES),
    st.sampled_from([b"\n", b"not json\n", b"[1]\n", b'{"step": null}\n', b"\xff\xfe\n", b'{"torn": \n', b"7\n"]),
)
TORN = st.sampled_from([b"", b'{"step": 3, "train/lo', '{"é'.encode()[:-1], b"{"])


def same(followed, read):
    assert followed.metrics == read.metrics
    assert (followed.times, followed.samples, followed.events) == (read.times, read.samples, read.events)


@settings(deadline=None, max_examples=80)
@given(lines=st.lists(LINES, max_size=12), torn=TORN, cuts=st.lists(st.integers(0, 600), max_size=8))
def test_however_a_journal_comes_in_it_is_the_record_that_is_read_at_once(lines, torn, cuts):
    data = b"".join(lines) + torn
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "run")
        make_run(path)
        files = [path / f"{name}.jsonl" for name in ("metrics", "samples", "events")]
        for file in files:
            file.unlink()
        follower = Follower(path)
        for end in [*sorted(cut for cut in cuts if cut < len(data)), len(data)]:
            for file in files:
                with file.open("ab") as open_file:
                    open_file.write(data[file.stat().st_size : end])
            followed = follower.poll()
        same(followed, RunRecord.read(path))


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_a_file_that_a_resume_cut_back_is_followed_from_its_beginning(data):
    """Also where it has grown past its old length before the next look."""
    numbers = iter(range(10**6))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "run")
        make_run(path)
        file = path / "metrics.jsonl"
        follower, whole = Follower(path), [file.read_bytes()]
        for _ in range(data.draw(st.integers(1, 6))):
            whole = whole[: data.draw(st.integers(0, len(whole)), "lines kept")]
            grown = data.draw(st.integers(0, 4), "lines written")
            whole += [row(next(numbers), "train/loss", 1.0) for _ in range(grown)]
            file.write_bytes(b"".join(whole))
            if data.draw(st.booleans(), "looked at"):
                same(follower.poll(), RunRecord.read(path))
        same(follower.poll(), RunRecord.read(path))


def test_what_was_read_is_not_read_again(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(b"".join(row(number, "x", 1) for number in range(200)))
    tail = Tail(file)
    assert len(tail.read()[1]) == 200
    with file.open("r+b") as open_file:
        open_file.write(b'{"step": 777')  # were the file read again, this would be seen
        open_file.seek(0, 2)
        open_file.write(row(200, "x", 2))
    again, rows = tail.read()
    assert (again, [each["step"] for each in rows]) == (False, [200])


def test_a_file_that_is_gone_for_a_while_and_comes_back(tmp_path):
    tail = Tail(tmp_path / "x.jsonl")
    assert tail.read() == (False, [])
    (tmp_path / "x.jsonl").write_bytes(row(1, "x", 1))
    assert [each["step"] for each in tail.read()[1]] == [1]
    (tmp_path / "x.jsonl").unlink()
    assert tail.read() == (True, [])
    (tmp_path / "x.jsonl").write_bytes(row(2, "x", 1))
    assert [each["step"] for each in tail.read()[1]] == [2]


# Charts


def dots(lines):
    """The dots of a braille chart, (rows, columns), by Unicode's numbering: 1 2 3 down, 4 5 6 down, then 7 and 8."""
    order = {0: (0, 0), 1: (1, 0), 2: (2, 0), 3: (0, 1), 4: (1, 1), 5: (2, 1), 6: (3, 0), 7: (3, 1)}
    found = np.zeros((4 * len(lines), 2 * len(lines[0])), dtype=bool)
    for y, line in enumerate(lines):
        for x, cell in enumerate(line):
            code = 0 if cell == " " else ord(cell) - 0x2800
            for bit, (down, across) in order.items():
                found[4 * y + down, 2 * x + across] = bool(code >> bit & 1)
    return found


def test_a_line_goes_from_its_lowest_value_to_its_highest():
    drawn = dots(chart(Series([0, 10], [1.0, 3.0]), 4, 2))
    assert [int(column.argmax()) for column in drawn.T] == [7, 6, 5, 4, 3, 2, 1, 0]
    assert drawn.sum() == 8


@pytest.mark.parametrize(("spike", "there", "elsewhere"), [(1.0, 0, -1), (-1.0, -1, 0)])
def test_a_spike_of_one_step_among_many_is_drawn(spike, there, elsewhere):
    values = [0.0] * 10_000
    values[5_100] = spike
    drawn = dots(chart(Series(list(range(10_000)), list(values)), 20, 3))
    assert drawn[there].sum() == 1
    assert drawn[elsewhere].all()


def test_a_value_that_was_not_finite_leaves_a_gap_and_a_flat_line_lies_in_the_middle():
    drawn = dots(chart(Series([0, 1, 2, 3, 4, 5, 6, 7], [1.0, 1.0, 1.0, None, None, 1.0, 1.0, 1.0]), 4, 3))
    assert drawn.any(0).tolist() == [True, True, True, False, False, True, True, True]
    assert set(np.flatnonzero(drawn.any(1))) <= {5, 6}
    assert not dots(chart(Series([1, 2], [None, None]), 4, 3)).any()
    assert len(chart(Series([1, 2], [-1.7e308, 1.7e308]), 4, 3)) == 3  # their difference is not finite


def test_without_unicode_a_chart_is_ascii():
    assert chart(Series([0, 1, 2, 3], [0.0, 1.0, 2.0, 3.0]), 4, 2, ascii_only=True) == ["  .'", ".'  "]


# The screen


def shown(record, width=80, height=24, full_screen=True, encoding="utf-8"):
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    console = Console(file=file, width=width, height=height, force_terminal=True, color_system="truecolor")
    console.print(View(record, full_screen), end="")
    file.flush()
    return file.buffer.getvalue().decode(encoding)


def plain(text):
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


ROWS = {
    step: {"rollout/score": step / 3, "rollout/kl": step**2 / 7, "time/optimize": 1.5}
    | dict.fromkeys(["policy/entropy", "rollout/length", "rollout/ended", "policy/clip_fraction"], 1 / step)
    | dict.fromkeys(["eval/score", "eval/win_rate", "eval/held_out_score"], step / 9)
    for step in range(1, 7)
}
SAMPLE = {"id": 0, "prompt": [{"role": "user", "content": "When?"}], "response": "At nine.", "score": 1.25}
FINDING = ("finding", {"step": 4, "name": "exploding KL", "level": "error", "text": "63 nats; raise ppo.kl_coef"})


@pytest.mark.parametrize(("width", "height"), [(80, 24), (120, 50), (40, 12), (20, 6), (200, 60)])
def test_a_screen_of_any_size_is_filled_and_never_left(tmp_path, width, height):
    make_run(tmp_path / "run", rows=ROWS, samples=[SAMPLE] * 20, events=[FINDING], exit_code=None)
    lines = plain(shown(RunRecord.read(tmp_path / "run"), width, height)).rstrip("\n").split("\n")
    assert len(lines) <= height
    assert max(map(len, lines)) <= width
    assert lines[0].startswith("run  ppo  running")


def test_what_a_reviewer_wants_to_see_is_on_a_small_screen(tmp_path):
    make_run(tmp_path / "run", rows=ROWS, samples=[SAMPLE], events=[FINDING], exit_code=None)
    text = plain(shown(RunRecord.read(tmp_path / "run")))
    assert "step 6 of 10" in text and "60%" in text and "left" in text
    assert "fail 1  warn 0" in text  # that it has not ended yet is no warning
    assert "fail KL in bounds: 63 nats; raise ppo.kl_coef (step 4)" in text
    assert "rollout/score 2" in text and "rollout/kl 5.143" in text and "optimize 1.5 s" in text
    assert "> When?" in text and "At nine.  score 1.25" in text


def test_text_of_a_run_is_inert_wherever_it_is_shown(tmp_path):
    sample = {"id": 0, "prompt": HOSTILE, "response": HOSTILE, "first": [HOSTILE], "second": {"content": HOSTILE}}
    finding = ("finding", {"step": 4, "name": HOSTILE, "level": "error", "text": HOSTILE})
    rows = {step: {"rollout/score": step, f"time/{HOSTILE}": 1.0} for step in (1, 2)}
    make_run(tmp_path / "run", rows=rows, samples=[sample], events=[finding], name=HOSTILE, exit_code=1)
    for full_screen in (True, False):
        text = shown(RunRecord.read(tmp_path / "run"), 200, 60, full_screen)
        assert text.count("evil") >= 6
        assert not re.search(r"[\x00-\x08\x0b-\x1a\x1c-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", text)
        assert set(re.findall(r"\x1b(?!\[[0-9;]*m).", text)) == set()  # colours are the only sequences


def test_a_screen_without_unicode_gets_none(tmp_path):
    make_run(tmp_path / "run", rows=ROWS, samples=[{**SAMPLE, "response": "Été " * 40}])
    text = plain(shown(RunRecord.read(tmp_path / "run"), encoding="ascii"))
    assert "?t? ?t?" in text and "####" in text


def test_strange_rows_are_no_reason_to_fail(tmp_path):
    make_run(tmp_path / "run", samples=[{"prompt": None, "response": 7}, {"score": "high"}], exit_code=None)
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 1, "rollout/score": null}\n{"rollout/score": 1}\n{"step": 2, "rollout/score": 1e999}\n')
        file.write('{"step": 3, "rollout/score": "x", "time": "y"}\n')
    assert "run  ppo" in plain(shown(RunRecord.read(tmp_path / "run")))


def test_an_ensembles_newest_member_is_shown(tmp_path):
    rows = {step: {f"member-{step // 4 + 1}/train/loss": 9.0 - step} for step in range(8)}
    make_run(tmp_path / "run", "reward", rows)
    assert "member-2/train/loss 2" in plain(shown(RunRecord.read(tmp_path / "run")))


@pytest.mark.parametrize("exit_code", [0, None])
def test_in_a_pipe_it_is_printed_once_and_plain(tmp_path, exit_code):
    make_run(tmp_path / "run", rows=ROWS, samples=[SAMPLE], exit_code=exit_code)
    file = io.StringIO()
    watch(tmp_path / "run", Console(file=file, width=100))
    assert file.getvalue().count("step 6 of 10") == 1 and "\x1b" not in file.getvalue()
