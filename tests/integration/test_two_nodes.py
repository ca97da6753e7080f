"""Two nodes with a network of their own between them, ZeRO-2 by the shipped multinode.yaml: all stages, and a cut."""

from __future__ import annotations

import json
import re
import subprocess
import time
from pathlib import Path
from typing import Any

import launching
import pytest
from helpers.two_nodes import WHY_NOT, TwoNodes, last_words
from test_two_processes import SCRATCH, TOPICS, turn

from alignment.registry import Registry

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(WHY_NOT), reason=f"no network namespaces: {WHY_NOT}")]
MULTINODE = launching.ROOT / "configs" / "accelerate" / "multinode.yaml"
TIMEOUT = 20
"""Seconds of silence, ALIGNMENT_TIMEOUT, after which a process leaves."""
TRAINING = {"per_device_train_batch_size": 2, "learning_rate": 1e-2, "logging_steps": 2, "num_train_epochs": 500}
SECTIONS: dict[str, dict[str, Any]] = {
    "sft": {"model": {"name": "scratch:llama", "scratch": SCRATCH}, "training": {**TRAINING, "max_steps": 20}},
    "reward": {"model": {"name": "sft"}, "training": {**TRAINING, "max_steps": 20}},
    "ppo": {
        "model": {"policy": "sft", "reward": "reward"},
        "rollout": {"batch_size": 16, "max_new_tokens": 8},
        "ppo": {"num_epochs": 2, "num_minibatches": 2},
        "training": {"max_steps": 4, "learning_rate": 1e-3},
    },
}


@pytest.fixture
def nodes():
    with TwoNodes() as made:
        yield made


@pytest.fixture
def house(tmp_path):
    asked = [(f"What about {TOPICS[n % 8]}, number {n}?", f"They are on floor {n}.") for n in range(24)]
    rows = {
        "sft": [{"messages": [turn("user", q), turn("assistant", a)]} for q, a in asked],
        "reward": [{"prompt": q, "chosen": a, "rejected": "No."} for q, a in asked],
        "ppo": [{"prompt": q} for q, _ in asked],
    }
    for stage, part in rows.items():
        text = "".join(json.dumps(row) + "\n" for row in part)
        (tmp_path / f"{stage}.jsonl").write_text(text, encoding="utf-8")
    return tmp_path


def target(house: Path, stage: str, *arguments: str, **training: Any) -> list[str]:
    """`-m STAGE CONFIG ARGUMENTS` for a launch in the house."""
    sections = SECTIONS[stage]
    config = {
        "name": stage,
        "data": {"train": f"{stage}.jsonl", "eval_share": 0.25, "max_length": 96},
        "registry": {"name": stage, "path": "registry"},
        "tracking": {"wandb": "disabled"},
        **sections,
        "training": {**sections["training"], **training},
    }
    (house / f"{stage}.yaml").write_text(json.dumps(config), encoding="utf-8")  # JSON is YAML
    return ["-m", stage, f"{stage}.yaml", *arguments]


def wait(processes: list[subprocess.Popen[str]], house: Path, seconds: float) -> list[int]:
    """Exit codes; nobody waits any longer than that."""
    end = time.monotonic() + seconds
    for process in processes:
        try:
            process.wait(max(0.0, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still there after {seconds:.0f} s: {last_words(house)}") from None
    return [process.returncode for process in processes]


def test_all_three_stages_on_two_nodes(nodes, house):
    for stage in SECTIONS:
        codes = wait(nodes.launch(MULTINODE, target(house, stage), house), house, 400)
        assert codes == [0, 0], (stage, last_words(house))
        events = [json.loads(line) for line in (house / "runs" / stage / "events.jsonl").read_text().splitlines()]
        (backend,) = [event for event in events if event["event"] == "backend"]
        assert (backend["engine"], backend["world_size"], backend["zero_stage"]) == ("DeepSpeedEngine", 2, 2)
        assert Registry(house / "registry").numbers(stage) == [1]
    assert not nodes.pids()


def test_a_cut_cable_ends_both_sides_and_the_run_goes_on_when_it_is_mended(nodes, house):
    arguments = target(house, "sft", "--resume", "auto", max_steps=4000, save_steps=10, logging_steps=5)
    launched = nodes.launch(MULTINODE, arguments, house, ALIGNMENT_TIMEOUT=str(TIMEOUT))
    journal, end = house / "runs" / "sft" / "metrics.jsonl", time.monotonic() + 300
    while not (journal.exists() and journal.read_text().count("\n") > 6):
        assert time.monotonic() < end, last_words(house)
        assert [process.poll() for process in launched] == [None, None], last_words(house)
        time.sleep(0.2)
    nodes.cut()
    codes = wait(launched, house, TIMEOUT + 30)
    assert all(codes), codes
    assert not nodes.pids()  # no orphans
    for said in last_words(house, 100_000):
        assert re.search(r"^error: .*rank \d of 2.* in .+ALIGNMENT_TIMEOUT", said, re.MULTILINE), said[-3000:]
    nodes.mend()
    step = len(journal.read_text().splitlines()) * 5
    arguments = target(house, "sft", "--resume", "auto", "--allow-changes", max_steps=step + 40, save_steps=10)
    assert wait(nodes.launch(MULTINODE, arguments, house), house, 400) == [0, 0], last_words(house)
    run = json.loads((house / "runs" / "sft" / "run.json").read_text())
    assert run["attempts"][-1]["resumed_from"]
    assert Registry(house / "registry").numbers("sft") == [1]
