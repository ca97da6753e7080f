"""`alignment score`: two processes or a kill change no byte, and the numbers are the reward stage's own."""

import json
import subprocess
import sys
import time
from pathlib import Path

import launching
import pytest
from helpers import tiny

from alignment.cli.score import main
from alignment.registry import Registry
from alignment.training.stage import run_stage
from reward.config import RewardStageConfig
from reward.plan import plan
from reward.train import train


@pytest.fixture
def house(tmp_path, monkeypatch):
    """A policy in a registry, and pairs of which some prompts are long."""
    monkeypatch.chdir(tmp_path)
    registry, tokenizer = Registry("registry"), tiny.make_tokenizer()
    policy = tiny.make_policy(tokenizer, seed=1)
    registry.publish("sft", tiny.write(tmp_path / "policy", policy, tokenizer), stage="sft", role="policy")
    rows = [
        {
            "prompt": "Please. " * (30 * (number % 4 == 0)) + f"What about floor {number}?",
            "chosen": f"Floor {number} opens at nine." + " Yes." * (number % 3),
            "rejected": "No." + " Never." * (number % 2),
        }
        for number in range(40)
    ]
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return registry


def test_the_numbers_are_those_of_the_reward_stage(house, capsys):
    config = {
        "name": "judge",
        "model": {"name": "sft"},
        "data": {"train": "pairs.jsonl", "eval": "pairs.jsonl", "max_length": 72},
        "training": {"max_steps": 2, "learning_rate": 1e-3},
        "registry": {"name": "reward", "path": "registry"},
        "tracking": {"wandb": "disabled"},
    }
    rows = Path("pairs.jsonl").read_text().splitlines(keepends=True)
    Path("held_out.jsonl").write_text("".join(rows[20:]))
    Path("pairs.jsonl").write_text("".join(rows[:20]))
    config["data"]["eval"] = "held_out.jsonl"
    Path("reward.yaml").write_text(json.dumps(config))  # JSON is YAML
    assert run_stage("reward", RewardStageConfig, train, plan, ["reward.yaml"]) == 0
    capsys.readouterr()
    assert main(["reward", "held_out.jsonl", "--out", "scores.jsonl", "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    theirs = [json.loads(line) for line in Path("runs/judge/eval_pairs.jsonl").read_text().splitlines()]
    ours = [json.loads(line) for line in Path("scores.jsonl").read_text().splitlines()]
    expected = sorted((row["first_score"], row["second_score"]) for row in theirs)
    found = sorted(tuple(row["scores"]) for row in ours)
    assert len(found) == len(expected) == 20
    for mine, other in zip(found, expected, strict=True):
        assert mine == pytest.approx(other, abs=1e-5)
    assert max(max(row["tokens"]) for row in ours) <= 72  # long prompts are trimmed as in training
    metrics = [json.loads(line) for line in Path("runs/judge/metrics.jsonl").read_text().splitlines()]
    judged = [row["eval/accuracy"] for row in metrics if "eval/accuracy" in row]
    accuracy = judged[-1]["value"] if isinstance(judged[-1], dict) else judged[-1]
    assert summary["accuracy"]["value"] == pytest.approx(accuracy)


def test_two_processes_give_the_same_bytes(house, capsys):
    command = ["score", "sft", "pairs.jsonl", "--batch-size", "4", "--json"]
    assert main([*command[1:], "--out", "one.jsonl"]) == 0
    capsys.readouterr()
    whole = Path("one.jsonl").read_bytes()
    Path("ddp.yaml").write_text(launching.DDP)
    target = ["-m", "alignment.cli.main", *command, "--out", "two.jsonl"]
    done = launching.launch(Path("ddp.yaml"), target, Path.cwd())
    assert done.code == 0, done.output
    assert Path("two.jsonl").read_bytes() == whole
    assert done.output.count('"accuracy"') == 1  # one summary, of the main process


def test_a_killed_run_goes_on_where_it_was(house, capsys):
    Path("many.jsonl").write_text(Path("pairs.jsonl").read_text() * 12)
    command = ["score", "sft", "many.jsonl", "--batch-size", "4", "--json", "--no-record", "--out"]
    process = subprocess.Popen(
        [sys.executable, "-m", "alignment.cli.main", *command, "killed.jsonl"],
        env=launching.environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    out = Path("killed.jsonl")
    try:
        while process.poll() is None and not (out.exists() and out.stat().st_size):
            time.sleep(0.01)
    finally:
        process.kill()
        process.wait()
    left = out.read_bytes()
    assert main([*command[1:], "whole.jsonl"]) == 0
    whole = Path("whole.jsonl").read_bytes()
    assert 0 < len(left) < len(whole)
    rows = left.count(b"\n") // 4 * 4  # whole batches are kept
    assert whole.splitlines(keepends=True)[:rows] == left.splitlines(keepends=True)[:rows]
    summary = json.loads(capsys.readouterr().out)
    assert main([*command[1:], "killed.jsonl"]) == 0
    assert json.loads(capsys.readouterr().out) == summary
    assert out.read_bytes() == whole
