"""The dashboards' contract: every metric and histogram that a panel shows is really journalled by its stage."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import tiny
from test_stages import ROOT, command, house, lines, recipe, sft, write_demonstrations  # noqa: F401 - fixtures

from alignment.ratings import RatingsStore
from alignment.registry import Registry
from alignment.reports import dashboards

FAMILY = re.compile(r"^((?:eval/)?reward/).*")
"""Metrics of which a panel shows all, whatever the reward's parts are called."""


def journalled(*runs: Path) -> set[tuple[str, str]]:
    """Names of what runs have written, each a `metric` or a `histogram`; all of a `reward/*` as the family."""
    found = set()
    for run in runs:
        for row in lines(run / "metrics.jsonl"):
            found |= {(FAMILY.sub(r"\1*", name), "metric") for name in row}
        events = lines(run / "events.jsonl")
        found |= {(event["name"], "histogram") for event in events if event["event"] == "histogram"}
    return found


def shown(stage: str) -> set[tuple[str, str]]:
    """What all dashboards show of a stage."""
    return {
        each
        for dashboard in map(dashboards.load, dashboards.names())
        for section in dashboard.sections
        if dashboard.stage_of(section) == stage
        for panel in section.panels
        for each in dashboards.shown(panel)
    }


@pytest.fixture(scope="module")
def evaluated(house, sft):  # noqa: F811
    """An SFT and a reward run on other data that evaluate in between."""
    often = {"eval_strategy": "steps", "eval_steps": 1}
    demonstrations = write_demonstrations(house.folder / "some.jsonl", 40)
    config = recipe(house, "more-sft", {"name": "toy-sft-model"}, demonstrations, **often)
    results = [command(house.folder, "sft", config)]
    pairs = house.folder / "some-pairs.jsonl"
    rows = [{"prompt": f"p{n}", "chosen": f"yes {n}", "rejected": f"no {n} no"} for n in range(30)]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = recipe(house, "more-reward", {"name": "toy-sft-model"}, pairs, **often)
    return [*results, command(house.folder, "reward", config)]


@pytest.fixture(scope="module")
def rated(house, sft):  # noqa: F811
    """A reward model of three labelers' ratings, who do not always agree; 20 prompts or more are held out."""
    path = house.folder / "three.db"
    with RatingsStore(path, create=True, seed=1) as store:
        for number in range(90):
            prompt = [{"role": "user", "content": f"Question {number}?"}]
            store.add_item(prompt, [{"text": f"Good {number}."}, {"text": f"Bad {number * 3} bad."}], need=3)
        for place, labeler in enumerate(("ann", "bob", "cyd")):
            while (claimed := store.claim(labeler)) is not None:
                store.submit(claimed, "left" if claimed.item % (place + 3) else "right", seconds=2.0 + place)
    return command(house.folder, "reward", recipe(house, "toy-reward", {"name": "toy-sft-model"}, path))


def test_each_panel_of_sft_has_its_metric(house, sft, evaluated):  # noqa: F811
    assert (sft.returncode, evaluated[0].returncode) == (0, 0), sft.stderr + evaluated[0].stderr
    assert shown("sft") - journalled(house.runs / "toy-sft", house.runs / "more-sft") == set()
    for name in ("toy-sft", "more-sft"):
        assert (house.runs / name / "report.html").read_text().count('class="card chart"') >= 5
    assert f"report: {house.runs / 'toy-sft' / 'report.html'} (" in sft.stdout


def test_each_panel_of_the_reward_model_and_its_labels_has_its_metric(house, rated, evaluated):  # noqa: F811
    assert (rated.returncode, evaluated[1].returncode) == (0, 0), rated.stderr + evaluated[1].stderr
    assert shown("reward") - journalled(house.runs / "toy-reward", house.runs / "more-reward") == set()
    page = (house.runs / "toy-reward" / "report.html").read_text()
    assert "How good are the labels?" in page and "Reliability" in page and "Where is it right?" in page
    assert (house.runs / "toy-reward" / "evaluation.html").exists()


def test_each_panel_of_ppo_has_its_metric(tmp_path, tokenizer):
    registry = Registry(tmp_path / "registry")
    policy = tiny.make_policy(tokenizer, seed=1)
    registry.publish("sft", tiny.write(tmp_path / "policy", policy, tokenizer), stage="sft", role="policy")
    for name, seed in (("reward", 2), ("judge", 3)):
        scalar = tiny.make_scalar(
            tmp_path / f"body-{name}", tiny.make_policy(tokenizer, seed=seed), tokenizer, seed=seed
        )
        folder = tiny.write(tmp_path / name, scalar.model, tokenizer)
        registry.publish(name, folder, stage="reward", role="reward")
    prompts = [{"prompt": f"What about floor {number}?" + " Please." * (number % 3)} for number in range(12)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts))
    write_demonstrations(tmp_path / "demonstrations.jsonl")
    config = {
        "name": "run",
        "model": {"policy": "sft", "reward": "reward", "held_out_reward": "judge"},
        "data": {"train": "prompts.jsonl", "eval_share": 0.3, "max_length": 128},
        "rollout": {"batch_size": 16, "max_new_tokens": 64},
        "ppo": {"num_minibatches": 2},
        "ptx": {"train": "demonstrations.jsonl", "coef": 0.1},
        "training": {"max_steps": 3, "learning_rate": 1e-3, "eval_steps": 1},
        "registry": {"name": "ppo", "path": "registry"},
        "tracking": {"wandb": "disabled"},
    }
    (tmp_path / "ppo.yaml").write_text(json.dumps(config))
    done = subprocess.run(
        [sys.executable, "-m", "ppo", "ppo.yaml"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    run = tmp_path / "runs" / "run"
    # Of these few answers none ends by itself; the gaps are vLLM's; nothing is bounded.
    gaps, bounds = ("rollout/sampler_gap_mean", "rollout/sampler_gap_max"), ("multiplier/*", "slack/*")
    absent = ("eval/finished_raw_score", *gaps, *bounds)
    assert shown("ppo") - journalled(run) <= {(name, "metric") for name in absent}
    page = (run / "report.html").read_text()
    assert "What about floor" in page and "ppo@v1" in page and 'class="lineage"' in page
    assert "report: runs/run/report.html (" in done.stdout
