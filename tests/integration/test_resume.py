"""A run that is killed with SIGKILL and resumed ends as if nothing had happened: weights, optimizer, journal."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import launching
import pytest
import torch
from safetensors.torch import load_file
from test_two_processes import SCRATCH, TOPICS, turn

from alignment.methods import METHODS
from alignment.registry import Registry

TRAINING = {
    "num_train_epochs": 2, "per_device_train_batch_size": 2, "learning_rate": 1e-2, "logging_steps": 3, "save_steps": 2,
    "eval_strategy": "epoch", "load_best_model_at_end": True, "data_seed": 5,
}  # fmt: skip
LORA = {"method": "lora", "adapter": {"lora_dropout": 0.2, "r": 4}}
SECTIONS: dict[str, dict[str, Any]] = {
    "sft": {"model": {"name": "base", **LORA}, "training": TRAINING},
    "sft-padded": {
        "model": {"name": "base"},
        "training": {**TRAINING, "packing": False, "eval_strategy": "steps", "eval_steps": 3},
    },
    "sft-adalora": {"model": {"name": "base", "method": "adalora"}, "training": TRAINING},
    "reward": {"model": {"name": "base"}, "training": TRAINING},
    "reward-members": {"model": {"name": "base", **LORA}, "training": {**TRAINING, "members": 2, "max_steps": 7}},
    "ppo": {
        "model": {"policy": "base", "reward": "judge"},
        "rollout": {"batch_size": 8, "max_new_tokens": 6, "num_generations": 2},
        "rewards": {"scaling": "running"},
        "ppo": {"num_epochs": 2, "num_minibatches": 2, "kl_target": 3.0, "value_warmup_steps": 1},
        "ptx": {"train": "sft.jsonl", "coef": 0.1, "batch_size": 4},
        "training": {"max_steps": 12, "learning_rate": 1e-3, "save_steps": 2, "eval_steps": 1, "ema_decay": 0.8},
    },
    "ppo-lora": {
        "model": {"policy": "base", "reward": "judge", "method": "lora", "value": "trunk"},
        "rollout": {"batch_size": 8, "max_new_tokens": 6},
        "ppo": {"num_epochs": 2, "num_minibatches": 2},
        "training": {"max_steps": 12, "learning_rate": 1e-3, "save_steps": 2, "eval_steps": 2},
    },
}  # fmt: skip
UNTIL_SAVED = {"ppo": 8, "ppo-lora": 8}
"""Optimizer steps between two checkpoints on one process; of the others 2."""


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture(scope="module")
def house(tmp_path_factory, forks):
    """Data, a base model and a reward model."""
    folder = tmp_path_factory.mktemp("house")
    questions = [f"What about {TOPICS[n % 8]}, number {n}{' please' * (n % 5)}?" for n in range(16)]
    answers = [f"The {TOPICS[n % 8]} are on floor {n}{' or so' * (n % 4)}." for n in range(16)]
    asked = list(zip(questions, answers, strict=True))
    write(folder / "sft.jsonl", [{"messages": [turn("user", q), turn("assistant", a)]} for q, a in asked])
    write(folder / "reward.jsonl", [{"prompt": q, "chosen": a, "rejected": "No."} for q, a in asked])
    write(folder / "ppo.jsonl", [{"prompt": q} for q in questions])
    training = {"max_steps": 3, "learning_rate": 1e-2}
    sections = {"model": {"name": "scratch:llama", "scratch": SCRATCH}, "training": training}
    assert forks(folder, "sft", [configure(folder, "base", "sft", sections)]) == 0, (folder / "log.txt").read_text()
    sections = {"model": {"name": "base"}, "training": training}
    assert forks(folder, "reward", [configure(folder, "judge", "reward", sections)]) == 0
    return folder


def configure(folder: Path, name: str, stage: str, sections: dict[str, Any]) -> str:
    config = {
        "name": name,
        "data": {"train": f"{stage}.jsonl", "eval_share": 0.25, "max_length": 96},
        "registry": {"name": name, "path": "registry"},
        "tracking": {"wandb": "disabled"},
        **sections,
    }
    path = folder / f"{name}.yaml"
    path.write_text(json.dumps(config))  # JSON is YAML
    return path.name


def timeless(path: Path) -> list[dict[str, Any]]:
    """The rows of a journal's file without times, and without what tells of the interruption itself."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    timed = ("time", "runtime", "per_second")
    kept = [{key: value for key, value in row.items() if not any(word in key for word in timed)} for row in rows]
    for row in kept:
        row.pop("model", None)  # of `published`: its name
    return [row for row in kept if row.get("event") != "resumed"]


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if hasattr(one, "__dict__"):  # DeepSpeed's loss scaler
        return type(one) is type(other) and same(vars(one), vars(other))
    return bool(one == other)


def check_same(house: Path, name: str, other: str) -> None:
    """Published weights, the last checkpoint's optimizer and the journal are equal, and nothing was published twice."""
    runs, registry = house / "runs", Registry(house / "registry")
    for file in ("metrics.jsonl", "samples.jsonl", "events.jsonl"):
        assert timeless(runs / other / file) == timeless(runs / name / file), file
    whole, resumed = registry.resolve(name), registry.resolve(other)
    assert resumed.number == 1
    weights = [path for path in whole.manifest.files if path.endswith(".safetensors")]
    assert weights
    for path in weights:
        assert same(load_file(whole.path / path), load_file(resumed.path / path)), path
    last, again = (sorted((runs / run / "checkpoints").glob("step-*"))[-1] for run in (name, other))
    assert last.name == again.name
    optimizers = [*last.glob("engine.pt"), *last.glob("optimizer.pt"), *last.rglob("*optim_states.pt")]
    assert optimizers
    for path in optimizers:
        assert same(read(path), read(again / path.relative_to(last))), path


def read(path: Path) -> Any:
    return torch.load(path, weights_only="optim_states" not in path.name)  # DeepSpeed's are pickles, made here


def killed_and_resumed(
    house: Path, name: str, kills: list[int], start: Any, sections: dict[str, Any] | None = None
) -> None:
    """Run `name` whole, and again under another name with kills; every attempt but the last one dies."""
    stage, sections = name.partition("-")[0], sections or SECTIONS[name]
    assert start(stage, [configure(house, name, stage, sections)], 0) == 0, (house / "log.txt").read_text()[-4000:]
    other = f"{name}-killed"
    config = configure(house, other, stage, sections)
    for number, kill_at in enumerate(kills):
        assert start(stage, [config, *(["--resume", "auto"] if number else [])], kill_at) != 0
    assert start(stage, [config, "--resume", "auto"], 0) == 0
    attempts = json.loads((house / "runs" / other / "run.json").read_text())["attempts"]
    assert any(attempt["resumed_from"] for attempt in attempts)
    check_same(house, name, other)
    assert start(stage, [config, "--resume", "auto"], 0) == 0  # is finished, and says so
    assert Registry(house / "registry").numbers(other) == [1]


def kills_of(name: str, count: int) -> list[int]:
    """Before which of its own optimizer steps each attempt dies: the first has saved something by then, and the others
    may come to save once more."""
    draw, saved = random.Random(name), UNTIL_SAVED.get(name, 2)
    return [draw.randint(saved + 1, 2 * saved), *(draw.randint(1, saved + 2) for _ in range(count - 1))]


def run_both(house: Path, name: str, call: Any, calls_per_step: int = 1) -> None:
    def start(stage: str, arguments: list[str], kill_at: int) -> int:
        code = call(house, stage, arguments, kill_at)
        assert code in (0, -9), (house / "log.txt").read_text()[-4000:]
        return code

    killed_and_resumed(house, name, [kill_at * calls_per_step for kill_at in kills_of(name, 5)], start)


def test_an_epoch_that_is_not_the_first_goes_on_in_its_order(house, forks):
    """Order by length is drawn from the global generator: that of the first epoch comes back with the seed alone, that
    of the second, in which this run dies, does not."""

    def start(stage: str, arguments: list[str], kill_at: int) -> int:
        return forks(house, stage, arguments, kill_at)

    killed_and_resumed(house, "sft-second-epoch", [10, 2], start, SECTIONS["sft-padded"])


@pytest.mark.parametrize("name", list(SECTIONS))
def test_killed_and_resumed_on_one_process_ends_as_if_nothing_had_happened(house, forks, name):
    run_both(house, name, forks)


@pytest.mark.slow
@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if "resume" not in method.fails])
def test_every_method_resumes(house, forks, method):
    def start(stage: str, arguments: list[str], kill_at: int) -> int:
        return forks(house, stage, arguments, kill_at)

    model = {"name": "base", "method": method}
    killed_and_resumed(house, f"sft-{method}-once", [4, 3], start, {"model": model, "training": TRAINING})


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sft", "sft-padded", "reward", "ppo"])
def test_killed_and_resumed_under_zero_2_on_two_processes(house, two_forks, name):
    run_both(house, name, two_forks, calls_per_step=1 if name == "sft" else 2)  # ZeRO steps each group by itself
    check_backend(house, name, zero_stage=2)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sft-padded", "reward", "ppo", "ppo-lora"])
def test_killed_and_resumed_under_zero_3_on_two_processes(house, forks_of, name):
    run_both(house, name, forks_of(launching.ROOT / "configs" / "accelerate" / "zero3.yaml"), calls_per_step=2)
    check_backend(house, name, zero_stage=3)


def check_backend(house: Path, name: str, zero_stage: int) -> None:
    events = [json.loads(line) for line in (house / "runs" / name / "events.jsonl").read_text().splitlines()]
    (backend,) = [event for event in events if event["event"] == "backend"]
    assert {key: backend[key] for key in ("engine", "world_size", "zero_stage")} == {
        "engine": "DeepSpeedEngine", "world_size": 2, "zero_stage": zero_stage,
    }  # fmt: skip
