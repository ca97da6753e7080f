"""The rating script by lines: pipes, terminals that can do no more, mistakes, its other commands."""

import json
import multiprocessing
import os
import re
import subprocess
import sys
import time
from multiprocessing.synchronize import Barrier
from pathlib import Path

from helpers.rate_script import PATHS, SCRIPT, Screen, fill, finished, open_screen

from alignment.cli.rate import COMMANDS
from alignment.ratings import Gold, RatingsStore


def test_two_labelers_see_other_orders_and_each_their_own_again(db: str) -> None:
    orders = []
    for name in ("ada", "bob"):
        shown = piped("s\n" * 11, "--db", db, "--labeler", name).stdout
        orders.append(re.findall(r"question (\d+)\.", shown))
        again = piped("q\n", "--db", db, "--labeler", name).stdout
        assert again.partition("USER")[2].split("1 to 3")[0] == shown.rpartition("USER")[2].split("1 to 3")[0]
    assert orders[0] != orders[1]
    assert len(set(orders[0])) == len(set(orders[1])) == 12


def piped(text: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"ALIGNMENT_SCRIPT_STARTED": "1"}
    command = [sys.executable, str(SCRIPT), *arguments]
    return subprocess.run(command, input=text, capture_output=True, text=True, timeout=30, env=environment)


def test_pipe_takes_a_line_per_decision(db: str) -> None:
    done = piped("1\n7\n\nnonsense\ntie\nu\nskip\n?\nleft\n", "--db", db, "--labeler", "ada", "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout) == {"done": 4, "total": 12, "labeler": "ada", "db": db}
    assert "\x1b" not in done.stderr and "4 of 12 done (1 skipped)" in done.stderr
    assert [choice == "skip" for _, choice in finished(db)] == [False, False, True, False]
    assert done.stderr.count("Not understood. Expected: 1 to 3 LEFT") == 2  # the empty line and the nonsense
    assert "secret" not in done.stderr
    plain = piped("q\n", "--db", db, "--labeler", "ada")
    assert "5 of 12" in plain.stdout and plain.stderr == ""


def test_lines_begin_with_the_guideline_once(db: str) -> None:
    with RatingsStore(db) as store:
        store.settings.guideline = "Prefer the kind one."
    first = piped("4\nq\n", "--db", db, "--labeler", "ada").stdout
    assert first.count("What to prefer:\nPrefer the kind one.") == 1
    assert first.index("Prefer the kind one.") < first.index("1 of 12")
    assert "Prefer" not in piped("q\n", "--db", db, "--labeler", "ada").stdout


def test_each_line_is_stored_as_it_says(db: str) -> None:
    lines = ["1", "2", "3", "4", "5", "6", "7", "b", "LEFT", " r ", "t"]
    done = piped("\n".join(["f", "c Because: it is.", *lines]) + "\n", "--db", db, "--labeler", "ada")
    with RatingsStore(db) as store:
        ratings = store.ratings()
    shown = []
    for each in ratings:
        side = {"first": 0, "second": 1}.get(each.choice)
        shown.append("tie" if side is None else "left" if each.order_shown[0] == side else "right")
    assert shown == ["left"] * 3 + ["tie"] + ["right"] * 3 + ["tie", "left", "right", "tie"]
    assert [each.strength for each in ratings] == [3, 2, 1, None, 1, 2, 3, None, 2, 2, None]
    assert (ratings[0].flags, ratings[0].comment) == (("flagged",), "Because: it is.")
    assert ratings[7].flags == ("both_bad",) and ratings[1].comment == ""
    # What was on the left in the text is what is stored as such.
    first = done.stdout.split("RIGHT:")[0]
    assert ("alpha" in first) == (ratings[0].order_shown[0] == 0)


def test_lines_rank_score_and_give_feedback(tmp_path: Path) -> None:
    db = str(tmp_path / "kinds.db")
    question = [{"role": "user", "content": "q"}]
    with RatingsStore(db, create=True) as store:
        for i in range(2):
            store.add_item(
                [{"role": "user", "content": f"gold {i}"}], [{"text": "x"}], kind="single", gold=Gold(score=6)
            )
        store.settings.calibration = 2
        store.add_item(question, [{"text": text} for text in "abc"], kind="rank")
    lines = ["8", "6", "1", "2 1", "2 1=4", "2 2 3", "2>1=3", "u", "=1", "321", "u", "1 = 2 = 3"]
    done = piped("\n".join(lines) + "\n", "--db", db, "--labeler", "ada")
    for said in (
        "Not understood. Expected: 1 (worst) to 7 (best)",
        "Correct. You said: 6 of 7. Expected: 6 of 7.",
        "You said: 1 of 7. Expected: 6 of 7.",
        "3 has no place.",
        "The answers have the numbers 1 to 3.",
        "Answer 2 has its place already",
        "Saved: 2 > 1 = 3.",
        "Your answer was: 2 > 1 = 3.",
        "= goes between two answers",
        "Your answer was: 3 > 2 > 1.",
        "Saved: 1 = 2 = 3.",
    ):
        assert done.stdout.count(said) == 1, said
    with RatingsStore(db) as store:
        assert [(each.score, each.ranks) for each in store.ratings()] == [(6, None), (1, None), (None, (1, 1, 1))]


def test_no_line_of_an_answer_looks_like_a_head(tmp_path: Path) -> None:
    db = str(tmp_path / "forged.db")
    with RatingsStore(db, create=True) as store:
        forged = "fine.\n\nRIGHT:\nforged " + "x" * 70 + " RIGHT: " + "y" * 90
        store.add_item([{"role": "user", "content": "q\nLEFT:\nme"}], [{"text": forged}, {"text": forged + "!"}])
    shown = piped("", "--db", db, "--labeler", "ada").stdout
    assert [line for line in shown.splitlines() if line.startswith(("LEFT", "RIGHT"))] == ["LEFT:", "RIGHT:"]


def test_plain_on_a_terminal_and_where_the_terminal_can_do_no_more(screens: list[Screen], db: str) -> None:
    for arguments, term in ((["--plain"], "xterm"), ([], "dumb")):
        screen = open_screen(screens, "--db", db, "--labeler", term, *arguments, term=term)
        os.write(screen.master, b"1\n")  # typed before the item is shown: dropped
        screen.wait("q quit")
        assert "\x1b[?1049h" not in screen.output
        time.sleep(0.3)
        assert finished(db, term) == []
        screen.press("7\n", "Saved: RIGHT is much better.")
        screen.wait("q quit")
        screen.press("q\n", "Thank you")
        assert screen.left() == 0 and len(finished(db, term)) == 1


DEMO = """
import argparse, sys
import demo
demo.RATINGS = sys.argv[1]
demo.rate_by_hand(argparse.Namespace(rate=2, json=False))
"""


def test_the_demo_asks_for_so_many_ratings_in_a_pipe_and_on_a_terminal(screens: list[Screen], db: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", DEMO, db], input="1\ns\n7\n1\n1\n", capture_output=True, text=True, timeout=60,
        env=os.environ | {"PYTHONPATH": PATHS},
    )  # fmt: skip
    assert done.returncode == 0 and "now rate 2 pairs" in done.stdout and "That was the last one." in done.stdout
    assert [choice == "skip" for _, choice in finished(db, "you")] == [False, True, False]
    screen = open_screen(screens, db, script=("-c", DEMO))
    screen.ready("4 of 12")
    screen.rate("1", db, "you")
    screen.rate("7", db, "you")
    screen.wait("That was the last one.")
    os.write(screen.master, b"q")
    assert screen.left() == 0 and len(finished(db, "you")) == 5


def test_mistakes_are_one_line_and_exit_2(db: str, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("{}\n")
    (tmp_path / "q.yaml").write_text("tag: {w: wrong}\n")
    damaged = str(tmp_path / "damaged.db")
    whole = Path(db).read_bytes()
    Path(damaged).write_bytes(whole[:4096] + b"\xff" * (len(whole) - 4096))
    for arguments, expected in [
        (["--db", str(tmp_path / "none.db"), "--labeler", "ada"], "no such ratings file"),
        (["--db", str(tmp_path / "rows.jsonl"), "--labeler", "ada"], "not a ratings file"),
        (["--db", db, "--labeler", "a\x1b[2J"], "1 to 64 printable"),
        (["--db", db], "--labeler"),
        (["--db", db, "--labeler", "ada", "--seed", "x"], "--seed"),
        (["--db", db, "--labeler", "ada", "--port", "1"], "--web"),
        (["--db", db, "--labeler", "ada", "--web"], "--web serves all labelers"),
        (["invite", "--db", db], "NAME"),
        (["invite", "ada", "bob ", "--db", db], "1 to 64 printable"),
        (["invite", "ada", "--db", db, "--url", "ftp://x"], "http://"),
        (["invite", "ada", "--db", db, "--url", "https://x.org/rate"], "no path"),
        (["--db", db, "--labeler", "ada", "--order", "uncertain"], "rate.py order --db"),
        (["--db", db, "--web", "--order", "uncertain"], "no reward model has scored"),
        (["settings", "--db", db, "--gold-share", "2"], "gold_share"),
        (["settings", "--db", db, "--guideline", str(tmp_path)], "cannot be read"),
        (["settings", "--db", db, "--questions", str(tmp_path / "no.yaml")], "no.yaml: no such file; name a YAML"),
        (["settings", "--db", db, "--questions", str(tmp_path / "q.yaml")], "q.yaml: unknown key 'tag'; did you mean"),
        (["order", "--db", db, "--model", "nobody", "--registry", str(tmp_path)], "nobody"),
        (["inviet", "--db", db], "'inviet' is no command; the commands are items, show, progress, labelers, invite"),
        (["report", "--db", damaged], "cannot open the ratings file (database disk image is malformed)"),
        (["--db", damaged, "--labeler", "ada"], "malformed"),
        (["invite", "ada", "--db", damaged], "malformed"),
        (["import", "--db", db, "--format", "hh", str(tmp_path / "no.jsonl")], "no.jsonl: no such file; name a data"),
    ]:
        done = piped("", *arguments)
        assert (done.returncode, done.stdout) == (2, ""), arguments
        assert expected in done.stderr and done.stderr.count("\n") == 1 and "\x1b" not in done.stderr, done.stderr
    for command in ([], *([name] for name in COMMANDS)):
        assert "Example:" in piped("", *command, "--help").stdout


def test_without_standard_input_it_says_so(db: str) -> None:
    command = f"exec {sys.executable} {SCRIPT} --db {db} --labeler ada <&-"
    done = subprocess.run(["/bin/sh", "-c", command], capture_output=True, text=True, timeout=30)
    assert done.returncode == 2 and done.stderr == "rate.py: standard input is closed, and answers are read from it\n"


def test_a_terminal_without_utf_8_shows_what_it_can(tmp_path: Path) -> None:
    db = tmp_path / "accents.db"
    with RatingsStore(db, create=True) as store:
        store.add_item([{"role": "user", "content": "d\u00e9j\u00e0 vu"}], [{"text": "\u732b"}, {"text": "b"}])
    command = [sys.executable, SCRIPT, "--db", db, "--labeler", "ada", "--plain"]
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, input="1\n", capture_output=True, text=True, env=environment, timeout=30)
    assert done.returncode == 0 and "d?j? vu" in done.stdout, done.stderr


def test_help_answers_at_once() -> None:
    heavy = ("torch", "textual", "starlette")
    code = f"import alignment.cli.rate, sys; sys.exit(sum(name in sys.modules for name in {heavy}))"
    environment = os.environ | {"PYTHONPATH": PATHS}
    assert subprocess.run([sys.executable, "-c", code], env=environment, timeout=30).returncode == 0


def test_invitations_are_links_that_the_store_knows(db: str) -> None:
    done = piped("", "invite", "ada", "bob", "ada", "--db", db, "--url", "https://rate.example.org/")
    links = dict(line.split("  ") for line in done.stdout.splitlines())
    assert len(done.stdout.splitlines()) == 2  # a name that is given twice has one link
    assert all(link.startswith("https://rate.example.org/l/") for link in links.values())
    tokens = {name: link.rpartition("/")[2] for name, link in links.items()}
    with RatingsStore(db) as store:
        assert {name: store.people.labeler_of(token) for name, token in tokens.items()} == {"ada": "ada", "bob": "bob"}
    again = json.loads(piped("", "invite", "ada", "--db", db, "--json").stdout)["invitations"]
    assert again[0]["link"].startswith("http://127.0.0.1:8765/l/")
    with RatingsStore(db) as store:
        assert store.people.labeler_of(tokens["ada"]) is None and store.people.labeler_of(tokens["bob"]) == "bob"


def test_settings_are_kept_and_shown(db: str, tmp_path: Path) -> None:
    (tmp_path / "questions.yaml").write_text("tags: {w: wrong facts}\nrewrite: true\n")
    (tmp_path / "guide.txt").write_text("Prefer the kind one.\n")
    given = ["--calibration", "3", "--repeat-share", "0.1", "--guideline", str(tmp_path / "guide.txt")]
    given += ["--questions", str(tmp_path / "questions.yaml")]
    assert piped("", "settings", "--db", db, *given).returncode == 0
    wanted = {"calibration": 3, "gold_share": 0.05, "repeat_share": 0.1, "guideline": "Prefer the kind one.\n"}
    wanted |= {"questions": {"tags": {"w": "wrong facts"}, "rewrite": True}}
    wanted |= {"versions": {"guideline": 1, "questions": 1}}
    wanted |= {"gold_items": 0}  # so that somebody sees that a calibration round has nothing to give yet
    found = json.loads(piped("", "settings", "--db", db, "--json").stdout)
    assert found.pop("warnings")[0].startswith("the calibration round wants 3 gold items and there are none")
    assert found.items() >= wanted.items()
    failed = piped("", "settings", "--db", db, "--calibration", "9", "--gold-share", "-1")
    assert failed.returncode == 2
    assert json.loads(piped("", "settings", "--db", db, "--json").stdout).items() >= wanted.items()
    shown = piped("", "settings", "--db", db).stdout
    assert "calibration: 3" in shown and "guideline: Prefer the kind one." in shown


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
