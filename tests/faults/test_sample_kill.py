"""`alignment sample` killed with SIGKILL: what was drawn is kept, and the same command draws the rest."""

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import tiny
from helpers.two_policies import publish_two_policies

from alignment.cli.sample import main
from alignment.generation import engine

ROOT = Path(__file__).resolve().parents[2]
PROMPTS, PER_PROMPT = 24, 2
TOTAL = PROMPTS * PER_PROMPT


@pytest.fixture
def house(tmp_path, tokenizer, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ALIGNMENT_REGISTRY", raising=False)
    publish_two_policies(tmp_path, tokenizer)
    rows = [{"prompt": f"Question {number}?{' word' * (number % 7)}"} for number in range(PROMPTS)]
    Path("prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def command(db: str, *models: str) -> list[str]:
    return [*models, "--prompts", "prompts.jsonl", "--db", db, "--max-new-tokens", "16", "--batch-size", "2", "--json"]


def rows(db: str, query: str) -> list[tuple]:
    with contextlib.closing(sqlite3.connect(db)) as file:
        return file.execute(query).fetchall()


def drawn(db: str) -> int:
    """Completions in the file; 0 while there is none."""
    try:
        return rows(f"file:{db}", "SELECT count(*) FROM draw")[0][0] if Path(db).exists() else 0
    except sqlite3.OperationalError:
        return 0


@pytest.mark.parametrize("models", [["one"], ["one", "two"]], ids=["one model", "two models"])
def test_a_killed_command_given_again_ends_as_one_that_was_not_killed(house, monkeypatch, capsys, models):
    assert main(command("whole.db", *models)) == 0
    whole = json.loads(capsys.readouterr().out)
    process = subprocess.Popen(
        [sys.executable, "-m", "alignment.cli.main", "sample", *command("killed.db", *models)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    end = time.monotonic() + 120
    while drawn("killed.db") < 10 and process.poll() is None:
        assert time.monotonic() < end
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = drawn("killed.db")
    assert 10 <= kept < TOTAL, "killed too late"

    asked = []

    def complete(policy, tokenizer, prompts, **options):
        asked.extend(prompts)
        return original(policy, tokenizer, prompts, **options)

    original = engine.complete
    monkeypatch.setattr(engine, "complete", complete)
    assert main(command("killed.db", *models)) == 0
    said = capsys.readouterr()
    assert json.loads(said.out) == whole | {"db": "killed.db"}
    assert f"{kept} of {TOTAL} completions are in killed.db already" in said.err
    assert len(asked) == TOTAL - kept
    query = "SELECT id, key, kind, need, prompt, completions, metadata FROM item ORDER BY id"
    assert rows("killed.db", query) == rows("whole.db", query)

    assert main(command("killed.db", *models)) == 0  # and a third time, when all is there
    assert len(asked) == TOTAL - kept
    assert "another --seed draws others" in capsys.readouterr().err
    assert rows("killed.db", query) == rows("whole.db", query)


def test_other_settings_or_another_model_draw_anew(house, tokenizer, capsys):
    def draw(model: str = "one", *more: str) -> int:
        """How many completions this adds, of two for each of four prompts."""
        before = drawn("r.db")
        assert main([*command("r.db", model), "--limit", "4", *more]) == 0
        return drawn("r.db") - before

    assert draw() == 8 and draw() == 0
    for more in (["--seed", "1"], ["--temperature", "0.5"], ["--max-new-tokens", "15"], ["--template", "plain"]):
        assert draw("one", *more) == 8, more
    assert draw("one", "--k", "3") == 4  # two of the three are there
    for seed in (1, 2):  # the same folder with other weights
        tiny.write(house / "folder", tiny.make_policy(tokenizer, seed=seed), tokenizer)
        assert draw("./folder") == 8
