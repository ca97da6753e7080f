"""docs/guides/ppo.md: the four commands of a second round on tiny models, and the lineage that they leave."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import tiny

from alignment.ratings import RatingsStore
from alignment.registry import Registry, render_lineage

ROOT = Path(__file__).resolve().parents[2]
COMMON = {"registry.path=registry", "tracking.wandb=disabled"}


@pytest.fixture
def house(tmp_path, tokenizer, monkeypatch):
    """An SFT model and prompts."""
    monkeypatch.chdir(tmp_path)
    registry = Registry("registry")
    policy = tiny.make_policy(tokenizer, seed=1)
    registry.publish("sft", tiny.write(tmp_path / "policy", policy, tokenizer), stage="sft", role="policy")
    rows = [{"prompt": f"What about floor {number}?"} for number in range(12)]
    Path("prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return registry


def command(*arguments):
    paths = {**os.environ, "PYTHONPATH": str(ROOT), "ALIGNMENT_REGISTRY": "registry", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *map(str, arguments)], capture_output=True, text=True, env=paths, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


def sample(policy):
    script = ROOT / "scripts" / "sample.py"
    command(script, policy, "--prompts", "prompts.jsonl", "--db", "ratings.db", "--k", 2, "--need", 1,
            "--max-new-tokens", 8)  # fmt: skip


def rate():
    """A labeler who likes the longer answer; what stands open is what the last policy said."""
    count = 0
    with RatingsStore("ratings.db") as store:
        store.settings.repeat_share = 0.0
        while (assignment := store.claim("ada")) is not None:
            item = next(item for item in store.items() if item.id == assignment.item)
            lengths = [len(item.completions[index].text) for index in assignment.order_shown]
            store.submit(assignment, "left" if lengths[0] >= lengths[1] else "right", seconds=1.0)
            count += 1
    return count


def stage(name, run, **sections):
    config = {
        "name": run,
        "registry": {"name": name, "path": "registry"},
        "tracking": {"wandb": "disabled"},
        **sections,
    }
    Path(f"{run}.yaml").write_text(json.dumps(config))
    command("-m", name, f"{run}.yaml")


def one_round(number, policy, **more):
    sample(policy)
    rated = rate()
    training = {"max_steps": 2, "per_device_train_batch_size": 4, "learning_rate": 1e-2}
    data = {"train": "ratings.db", "eval_share": 0, "max_length": 64}
    stage("reward", f"reward-{number}", model={"name": "sft"}, data=data, training=training)
    stage(
        "ppo", f"ppo-{number}", model={"policy": policy, "reward": "reward", **more},
        data={"train": "prompts.jsonl", "eval_share": 0, "max_length": 64},
        rollout={"batch_size": 4, "max_new_tokens": 8}, training={"max_steps": 1, "learning_rate": 1e-3},
    )  # fmt: skip
    return rated


@pytest.mark.slow
def test_a_second_round_leads_back_to_the_ratings_of_both(house):
    first = one_round(1, "sft")
    second = one_round(2, "ppo", reference="sft", value_init="ppo-value")
    assert first > 6  # pairs of equal answers are not asked about
    assert second > 6
    parents = {parent.role: parent.ref for parent in house.resolve("ppo@v2").manifest.parents}
    assert parents == {"init": "ppo@v1", "reference": "sft@v1", "reward": "reward@v2", "value": "ppo-value@v1"}
    critic = house.resolve("ppo-value@v1").manifest
    assert {parent.role: parent.ref for parent in critic.parents}["reward"] == "reward@v1"
    with RatingsStore("ratings.db") as store:
        makers = {completion.model for item in store.items() for completion in item.completions}
    assert makers == {"sft@v1", "ppo@v1"}
    ratings = {
        version: sum(entry.ratings or 0 for entry in house.resolve(version).manifest.data)
        for version in ("reward@v1", "reward@v2")
    }
    assert ratings == {"reward@v1": first, "reward@v2": first + second}
    from rich.console import Console

    console = Console(width=200, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(render_lineage(house.lineage("ppo@v2")))
    text = console.export_text()
    for name in ("ppo@v2", "ppo@v1", "reward@v2", "reward@v1", "ppo-value@v1", "sft@v1", "ratings.db"):
        assert name in text
