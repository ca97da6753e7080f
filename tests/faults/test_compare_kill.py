"""`alignment compare` killed with SIGKILL while it draws: the same command ends as one that was not killed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.two_policies import publish_two_policies

from alignment.cli.compare import main
from alignment.evaluation import drawing

ROOT = Path(__file__).resolve().parents[2]
PROMPTS = 24
TOTAL = 2 * PROMPTS


@pytest.fixture
def house(tmp_path, tokenizer, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ALIGNMENT_REGISTRY", raising=False)
    publish_two_policies(tmp_path, tokenizer)
    rows = [{"prompt": f"Question {number}?{' word' * (number % 7)}"} for number in range(PROMPTS)]
    Path("prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("judges.py").write_text("def longer(prompts, responses):\n    return [float(len(r)) for r in responses]\n")
    return tmp_path


def command(out: str) -> list[str]:
    return [
        "one", "two", "--prompts", "prompts.jsonl", "--by", "python=judges.py:longer", "--out", out,
        "--max-new-tokens", "16", "--batch-size", "2", "--json",
    ]  # fmt: skip


def answers(out: str) -> dict[tuple[str, str], str]:
    path = Path(out, "answers.jsonl")
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    rows = [json.loads(line) for line in lines if line.endswith(b"\n")]
    return {(row["side"], row["prompt"]): row["text"] for row in rows if row["row"] == "answer"}


def test_a_killed_comparison_given_again_ends_as_one_that_was_not_killed(house, monkeypatch, capsys):
    assert main(command("whole")) == 0
    whole = json.loads(capsys.readouterr().out)
    process = subprocess.Popen(
        [sys.executable, "-m", "alignment.cli.main", "compare", *command("killed")],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    end = time.monotonic() + 120
    while len(answers("killed")) < 10 and process.poll() is None:
        assert time.monotonic() < end
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = answers("killed")
    assert 10 <= len(kept) < TOTAL, "killed too late"

    asked = []

    def complete(policy, tokenizer, prompts, **options):
        asked.extend(prompts)
        return original(policy, tokenizer, prompts, **options)

    original = drawing.complete
    monkeypatch.setattr(drawing, "complete", complete)
    assert main(command("killed")) == 0
    resumed = json.loads(capsys.readouterr().out)
    assert len(asked) <= TOTAL - len(kept) + 1  # a batch that was half written is drawn whole
    assert kept.items() <= answers("killed").items() and answers("killed") == answers("whole")
    assert resumed["pairs"] == whole["pairs"]
