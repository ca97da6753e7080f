import io
import sys
import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rich.console import Console
from rich.table import Table
from rich.text import Text

from alignment.terminal import LogLines, clean, progress, screen

any_text = st.text(st.characters(exclude_categories=())) | st.text(
    st.sampled_from("\x00\x07\x1b\x7f\x80\x9b\x9d\r\n\t\u202e\u2066\u200b\u2028\ufeff\ud800ab[]")
)
BIDI = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


@given(any_text)
@example("\r\r\n")
def test_clean_leaves_nothing_that_a_terminal_acts_on(text: str) -> None:
    safe = clean(text)
    assert clean(safe) == safe
    assert not [c for c in safe if (ord(c) < 0x20 and c not in "\t\n") or 0x7F <= ord(c) <= 0x9F or c in BIDI]
    assert not [c for c in safe if unicodedata.category(c) in ("Cs", "Zl", "Zp")]
    safe.encode("utf-8")  # no lone surrogate: printing cannot fail
    assert len(safe) == len(text.replace("\r\n", "\n"))  # shown, not swallowed


@given(st.text(st.characters(exclude_categories=["C", "Zl", "Zp"], include_characters="\t\n")))
@example("می‌خواهم 👩‍👩‍👧 हिन्दी Zürich 漢字 [bold]no[/nope] \\")
def test_clean_leaves_plain_text_alone(text: str) -> None:
    assert clean(text) == text


def test_clean_shows_what_it_stopped() -> None:
    assert clean("a\x1b]52;c;eA==\x07b\x7fc\x9bd\u202ee\ud800f\U000e0041g\r\nh\x00") == "a␛]52;c;eA==␇b␡c�d�e�f�g\nh␀"


def test_rich_alone_would_let_escape_through() -> None:
    out = io.StringIO()
    Console(file=out, markup=False).print(Text("\x1b[2J\x9b2J"))
    assert "\x1b" in out.getvalue()  # the reason why clean exists; if rich mends this, clean may become smaller


def test_log_has_a_line_per_tenth_and_a_last_one() -> None:
    now, out = [0.0], io.StringIO()
    lines = LogLines("work", 100, clock=lambda: now[0], file=out)
    for _ in range(95):
        now[0] += 0.5
        lines.advance(loss=0.25)
    lines.close()
    lines.close()
    shown = out.getvalue().splitlines()
    assert len(shown) == 10
    assert shown[0] == "work: 10/100 (10%) 5 s loss=0.25"
    assert shown[-1] == "work: 95/100 (95%) 48 s loss=0.25"


def test_log_of_slow_work_speaks_every_ten_seconds_and_then_less_often() -> None:
    now, out = [0.0], io.StringIO()
    lines = LogLines("work", 1_000_000, clock=lambda: now[0], file=out)
    for _ in range(36_000):  # ten hours
        now[0] += 1.0
        lines.advance()
    shown = out.getvalue().splitlines()
    assert [line.split()[3] for line in shown[:3]] == ["10", "20", "30"]
    assert 50 < len(shown) < 100


def test_log_of_quick_work_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("quick\x1b[2J", 1000) as line:
        for _ in range(1000):
            line.advance()
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "quick␛[2J: 1000/1000 (100%) 0 s\n"


def test_log_after_an_error_says_how_far_it_came(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ZeroDivisionError), progress("work", 10) as line:
        line.advance(3)
        raise ZeroDivisionError
    assert capsys.readouterr().err.startswith("work: 3/10 (30%)")


def test_progress_disabled_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("work", 2, enabled=False) as line:
        line.advance(2, loss=1.0)
    assert capsys.readouterr() == ("", "")


def test_progress_bar_goes_to_a_terminal_s_stderr_and_leaves_a_piped_stdout_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Screen(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen, pipe = Screen(), io.StringIO()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr(sys, "stdout", pipe)
    with progress("work [bold]", 2) as line:
        line.advance(1, loss=0.5)
        print("for the pipe")
        line.advance(1, loss=0.25)
    assert pipe.getvalue() == "for the pipe\n"
    assert "work [bold]" in screen.getvalue() and "2/2" in screen.getvalue() and "loss=0.25" in screen.getvalue()


def test_a_table_in_a_pipe_has_no_blanks_at_the_ends_of_lines(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table("key", "value", box=None, pad_edge=False)
    table.add_row("a", "x" * 300)
    table.add_row("b", "short")
    screen().print(table)
    lines = capsys.readouterr().out.splitlines()
    assert [len(line) for line in lines] == [len("key  value"), 5 + 300, 5 + 5]


def test_a_log_of_unknown_length_says_what_its_number_is() -> None:
    file = io.StringIO()
    lines = LogLines("score pairs.jsonl", 0, lambda: 0.0, file)
    lines.advance(2)
    lines.close()
    assert file.getvalue() == "score pairs.jsonl: 2 done 0 s\n"
