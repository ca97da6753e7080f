"""Runs whose memory does not suffice for a microbatch: it is halved, with the same gradient."""

from __future__ import annotations

import json

import pytest
import torch
from resuming import TRAINING, configure
from safetensors.torch import load_file

from alignment.registry import Registry

TITLE = "Out of memory"
SFT = {
    "model": {"name": "base"},
    "training": {**TRAINING, "num_train_epochs": 1, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2,
                 "logging_steps": 1, "save_steps": 1, "load_best_model_at_end": False},
}  # fmt: skip
PADDED = {**SFT, "training": {**SFT["training"], "packing": False}}
PPO = {
    "model": {"policy": "base", "reward": "judge"},
    "rollout": {"batch_size": 8, "max_new_tokens": 6},
    "ppo": {"num_epochs": 1, "num_minibatches": 2},
    "ptx": {"train": "sft.jsonl", "coef": 0.1},
    "training": {"max_steps": 3, "learning_rate": 1e-3, "save_steps": 1, "packing": False},
}
SECTIONS = {"sft": SFT, "sft-padded": PADDED, "reward": SFT, "ppo": PPO}
SLOW = pytest.mark.slow
QUICK = [("sft", "forward"), ("ppo", "backward")]
LIMIT = {"sft": 110, "sft-padded": 130, "reward": 160, "ppo": 130}
"""Tokens that fit: more than one row has, and fewer than a microbatch."""


def start(house, forks, name, kind, *arguments, **variables):
    stage = kind.partition("-")[0]
    log = house / "log.txt"
    before = log.stat().st_size
    code = forks(house, stage, [configure(house, name, stage, SECTIONS[kind]), *arguments], **variables)
    return code, log.read_bytes()[before:].decode()


def scarce(kind, where, first=0, tokens=None):
    return {"RECORDER": "scarce_memory", "MEMORY_TOKENS": str(tokens or LIMIT[kind]), "MEMORY_PASS": where,
            "MEMORY_FROM": str(first)}  # fmt: skip


def events(house, name, kind):
    rows = map(json.loads, (house / "runs" / name / "events.jsonl").read_text().splitlines())
    return [row for row in rows if row["event"] == kind]


def losses(house, name):
    rows = map(json.loads, (house / "runs" / name / "metrics.jsonl").read_text().splitlines())
    return [row["train/loss"] for row in rows if "train/loss" in row]


def check_alike(house, name, other):
    """Published weights differ by rounding."""
    registry = Registry(house / "registry")
    whole, halved = registry.resolve(name), registry.resolve(other)
    for path in whole.manifest.files:
        if path.endswith(".safetensors"):
            tensors, others = load_file(whole.path / path), load_file(halved.path / path)
            for key, tensor in tensors.items():
                torch.testing.assert_close(others[key], tensor, rtol=1e-5, atol=2e-5)


@pytest.fixture
def whole(house, forks):
    """The run to which nothing happens."""

    def run(kind):
        if not (house / "runs" / f"memory-{kind}").exists():
            code, text = start(house, forks, f"memory-{kind}", kind)
            assert code == 0, text
        return f"memory-{kind}"

    return run


@pytest.mark.parametrize(
    ("kind", "where"),
    [
        pytest.param(kind, where, marks=() if (kind, where) in QUICK else SLOW)
        for kind in SECTIONS
        for where in ("forward", "backward")
    ],
)
def test_a_microbatch_that_is_too_large_is_halved_with_the_same_gradient(house, forks, tried, whole, kind, where):
    tried(
        f"{kind}: out of memory in a {where} pass",
        "the step begins again in halves; weights as those of a run without it, to rounding",
    )
    expected, name = whole(kind), f"memory-{kind}-{where}"
    code, text = start(house, forks, name, kind, **scarce(kind, where, first=1))
    assert code == 0, text
    assert "out of memory" in text
    halved = events(house, name, "microbatch_halved")
    assert 1 <= len(halved) <= 3
    assert losses(house, name) == pytest.approx(losses(house, expected), abs=1e-5)
    check_alike(house, expected, name)


@pytest.mark.parametrize("kind", [pytest.param("sft", marks=SLOW), pytest.param("reward", marks=SLOW), "ppo"])
def test_where_nothing_fits_the_run_ends_in_a_line_that_names_the_setting(house, forks, tried, kind):
    tried(f"{kind}: not even a row fits", "one line with the setting")
    name = f"memory-{kind}-never"
    code, text = start(house, forks, name, kind, **scarce(kind, "forward", tokens=3))
    assert code == 2, text
    assert "Traceback" not in text
    errors = [line for line in text.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert ("microbatch_tokens" if kind == "ppo" else "per_device_train_batch_size") in errors[0]
    assert len(events(house, name, "microbatch_halved")) <= 3


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sft", "ppo"])
def test_a_resumed_run_keeps_the_halved_size(house, forks, tried, kind):
    tried(f"{kind}: killed after a halving", "resumed, bit for bit")
    name, expected = f"memory-{kind}-resumed", f"memory-{kind}-through"
    code, text = start(house, forks, expected, kind, **scarce(kind, "forward"))
    assert code == 0, text
    config, killed = configure(house, name, kind, SECTIONS[kind]), "2" if kind == "sft" else "5"
    code = forks(house, kind, [config], {killed: "SIGKILL"}, **scarce(kind, "forward"))
    assert code == -9
    code, text = start(house, forks, name, kind, "--resume", "auto", **scarce(kind, "forward"))
    assert code == 0, text
    assert "out of memory" not in text, "the size is that of the checkpoint"
    assert len(events(house, name, "microbatch_halved")) == len(events(house, expected, "microbatch_halved"))
    registry = Registry(house / "registry")
    one, other = registry.resolve(expected), registry.resolve(name)
    for path in one.manifest.files:
        if path.endswith(".safetensors"):
            assert all(torch.equal(tensor, load_file(other.path / path)[key])
                       for key, tensor in load_file(one.path / path).items())  # fmt: skip
