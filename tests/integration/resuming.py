"""Small runs of the three stages, started and ended on purpose many times over, and what is compared afterwards."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import launching
import torch
from safetensors.torch import load_file
from test_two_processes import SCRATCH, TOPICS, turn

from alignment.registry import Registry

HEADS = ("on_floor", "brief")
HERE = Path(__file__).resolve().parent
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
    "reward-heads": {
        "model": {"name": "base"},
        "data": {"train": "heads.jsonl", "eval_share": 0.25, "max_length": 96},
        "reward": {"attributes": HEADS, "demonstrations": "sft.jsonl"},
        "training": TRAINING,
    },
    "ppo": {
        "model": {"policy": "base", "reward": "judge"},
        "rollout": {"batch_size": 8, "max_new_tokens": 6, "num_generations": 2},
        "rewards": {"normalize": "running"},
        "ppo": {"num_epochs": 2, "num_minibatches": 2, "kl_target": 3.0},
        "ptx": {"train": "sft.jsonl", "coef": 0.1},
        "training": {"max_steps": 12, "learning_rate": 1e-3, "save_steps": 2, "eval_steps": 1, "ema_decay": 0.8},
    },
    "ppo-lora": {
        "model": {"policy": "base", "reward": "judge", "method": "lora", "value": "trunk"},
        "rollout": {"batch_size": 8, "max_new_tokens": 6},
        "ppo": {"num_epochs": 2, "num_minibatches": 2},
        "training": {"max_steps": 12, "learning_rate": 1e-3, "save_steps": 2, "eval_steps": 2},
    },
    "ppo-lag": {
        "model": {"policy": "base", "reward": "judge"},
        "rollout": {"batch_size": 8, "max_new_tokens": 6, "lag": 1},
        "ppo": {"num_epochs": 2, "num_minibatches": 2},
        "training": {"max_steps": 12, "learning_rate": 1e-3, "save_steps": 2, "eval_steps": 2},
    },
    "ppo-bound": {
        "model": {
            "policy": "base", "reward": "judge-heads", "reward_weights": {"on_floor": 1.0, "brief": 0.0},
        },
        "rollout": {"batch_size": 8, "max_new_tokens": 6},
        "rewards": {"constraints": {"brief": ">= 0.1"}},
        "ppo": {"num_epochs": 2, "num_minibatches": 2},
        "training": {"max_steps": 12, "learning_rate": 1e-3, "save_steps": 2, "eval_steps": 2},
    },
}  # fmt: skip


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


class Server:
    """A process that has everything imported, and forks one for each process of the stage that it is to run."""

    def __init__(self, **variables: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "dying.py"), "preload"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True, cwd=HERE, env=launching.environment() | variables, preexec_fn=launching.heed_signals,
        )  # fmt: skip

    def run(self, folder: Path, stage: str, arguments: list[str], ranks: list[tuple[dict, dict]]) -> list[int | None]:
        """Exit codes of processes with these variables and actions (see dying.py); None of one that was stopped."""
        request = {"folder": str(folder), "stage": stage, "arguments": arguments, "ranks": ranks}
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


def plain_ranks(count: int) -> list[dict[str, str]]:
    """The environment of each of so many processes without DeepSpeed, as a launcher would make it."""
    both = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(launching.free_port())}
    return [{**both, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]


def launched_ranks(launch_file: Path, count: int = 2) -> list[dict[str, str]]:
    """The environment that `accelerate launch` with a file makes for each of so many processes, without the launch."""
    from accelerate.commands import launch
    from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

    with (
        mock.patch.object(launch, "deepspeed_launcher") as launcher,
        mock.patch.object(launch, "multi_gpu_launcher") as plain,
    ):
        launch.launch_command(launch.launch_command_parser().parse_args(["--config_file", str(launch_file), "x"]))
    if plain.called:
        variables = prepare_multi_gpu_env(*plain.call_args.args)
    else:
        _, variables = prepare_deepspeed_cmd_env(*launcher.call_args.args)
    own = {name: value for name, value in variables.items() if name.startswith(("ACCELERATE_", "FSDP_"))}
    return [{**own, **rank} for rank in plain_ranks(count)]


def one_code(codes: list[int | None]) -> int | None:
    assert len(set(codes)) == 1, codes
    return codes[0]


def build_house(folder: Path, run: Any) -> None:
    """Data, a base model and a reward model; run(folder, stage, arguments) gives the exit code."""
    questions = [f"What about {TOPICS[n % 8]}, number {n}{' please' * (n % 5)}?" for n in range(16)]
    answers = [f"The {TOPICS[n % 8]} are on floor {n}{' or so' * (n % 4)}." for n in range(16)]
    asked = list(zip(questions, answers, strict=True))
    write(folder / "sft.jsonl", [{"messages": [turn("user", q), turn("assistant", a)]} for q, a in asked])
    write(folder / "reward.jsonl", [{"prompt": q, "chosen": a, "rejected": "No."} for q, a in asked])
    write(folder / "ppo.jsonl", [{"prompt": q} for q in questions])
    judged = [{"on_floor": 2, "brief": -(n % 3)} for n in range(16)]
    pairs = zip(questions, answers, judged, strict=True)
    write(folder / "heads.jsonl", [{"prompt": q, "chosen": a, "rejected": "No.", "attributes": j} for q, a, j in pairs])
    training = {"max_steps": 3, "learning_rate": 1e-2}
    sections = {"model": {"name": "scratch:llama", "scratch": SCRATCH}, "training": training}
    assert run(folder, "sft", [configure(folder, "base", "sft", sections)]) == 0, (folder / "log.txt").read_text()
    sections = {"model": {"name": "base"}, "training": training}
    assert run(folder, "reward", [configure(folder, "judge", "reward", sections)]) == 0
    sections = {**SECTIONS["reward-heads"], "training": training}
    assert run(folder, "reward", [configure(folder, "judge-heads", "reward", sections)]) == 0


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


def run_whole(house: Path, name: str, sections: dict[str, Any], start: Any) -> None:
    """A run that nothing happens to, of which there is one in a session; start(stage, arguments) gives the code."""
    stage = name.partition("-")[0]
    if not (house / "runs" / name / "exit.json").exists():
        assert start(stage, [configure(house, name, stage, sections)]) == 0, (house / "log.txt").read_text()[-4000:]


def timeless(path: Path) -> list[dict[str, Any]]:
    """The rows of a journal's file without times, and without what tells of the interruption itself."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    timed = ("time", "runtime", "per_second")
    kept = [{key: value for key, value in row.items() if not any(word in key for word in timed)} for row in rows]
    for row in kept:
        if row.get("event") == "published":  # names, and the digest of a manifest with the time of day in it
            row.pop("model", None)
            row.pop("digest", None)
    return [row for row in kept if row.get("event") not in ("resumed", "preempted", "checkpoint_failed")]


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
    kinds = ("engine.pt", "optimizer.pt", "shards-*.pt", "**/*optim_states.pt")
    optimizers = [path for kind in kinds for path in last.glob(kind)]
    assert optimizers
    for path in optimizers:
        assert same(read(path), read(again / path.relative_to(last))), path


def read(path: Path) -> Any:
    return torch.load(path, weights_only="optim_states" not in path.name)  # DeepSpeed's are pickles, made here
