"""Memory of PPO under ZeRO-3 on two and four processes: loading, scoring and learning divide by the processes."""

import json
import os
import sys

import launching
import pytest
from benchmarks import memory_sharded

from alignment.memory.plan import STRATEGIES, estimate
from alignment.memory.shapes import ShapeFinder
from alignment.registry import Registry
from ppo.config import PPOStageConfig
from ppo.workload import find_shapes, workload

SIZE = memory_sharded.SIZES["small"]
BUCKETS = 2 * 4 * SIZE.reduce
TENSOR = 4 * SIZE.vocab_size * SIZE.hidden_size
"""Bytes of the largest tensor, which is held as it is read and as it is gathered."""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A policy and a reward model of 54 million parameters, and a run that trains the first; (folder, bytes of one)."""
    folder = tmp_path_factory.mktemp("world")
    return folder, memory_sharded.prepare(folder, SIZE)


def divided(folder, whole, processes):
    """Bytes of each phase: what is divided by the processes, and what is not (activations and logits as planned)."""
    values = json.loads((folder / "case.json").read_text())
    # The responses are given, as from a vLLM elsewhere: nothing is gathered to sample.
    values["rollout"] |= {"vllm": {"server_base_url": "http://sampler:8000"}}
    config = PPOStageConfig.model_validate(values)
    work = workload(config, find_shapes(config, ShapeFinder(Registry(folder / "registry"))), processes)
    zero3 = next(each for each in STRATEGIES if each.name == "zero3")
    moments = estimate(work, zero3, processes, on_gpu=False).moments
    other = {name: parts["activations"] + parts["logits"] + BUCKETS for name, parts in moments.items()}
    # Policy, reference and reward model; then gradient, float32 copy and two moments of the policy.
    return {
        "loading": 3 * whole / processes + 2 * TENSOR,
        "scoring": 7 * whole / processes + other["scoring"],
        "updating": 7 * whole / processes + other["update: loss"],
    }


@pytest.fixture(scope="module")
def pairs(world):
    """A config that trains a reward model on the policy for one step, in WORLD/reward.yaml."""
    folder, _ = world
    rows = [{"prompt": f"acab {n}", "chosen": "bdfe " * (n + 2), "rejected": "gcab"} for n in range(8)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {
        "name": "judge",
        "model": {"name": str(folder / "policy")},
        "data": {"train": "pairs.jsonl", "eval_share": 0.25, "max_length": 96},
        "training": {"max_steps": 1, "per_device_train_batch_size": 1, "bf16": False},
        "registry": {"name": "judge", "path": "registry"},
        "tracking": {"wandb": "disabled"},
    }
    (folder / "reward.yaml").write_text(json.dumps(config))
    return folder


@pytest.mark.slow
def test_no_process_holds_a_reward_model_whose_files_are_checked(world, pairs, tmp_path):
    """Before it is published the saved model is loaded again, and scores the probe and the held-out answers."""
    _, whole = world
    file = memory_sharded._launch_file(tmp_path, SIZE, 2)
    worker = launching.ROOT / "tests" / "integration" / "dying.py"
    target = [str(worker), "run", "reward", "reward.yaml"]
    paths = os.pathsep.join(str(launching.ROOT / each) for each in (".", "tests", "scripts"))
    done = launching.launch(file, target, pairs, RECORDER="watch_check", WATCHED=str(tmp_path), PYTHONPATH=paths)
    assert done.code == 0, done.output[-4000:]
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    print(found, file=sys.stderr)
    assert found[0]["_load"] == found[1]["_load"] == 2  # as it was saved, and with the offset of its scores
    assert found[0]["_scores"] == found[1]["_scores"] > 3
    for each in found:
        assert TENSOR <= each["largest"] < whole / 2


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_no_process_holds_a_model_and_peaks_divide_by_the_processes(world, tmp_path, processes):
    folder, whole = world
    for rank, found in enumerate(memory_sharded.measure(folder, tmp_path, SIZE, processes, timeout=900)):
        print(f"{processes} processes, rank {rank}: {found}", file=sys.stderr)
        assert found["largest_tensor"] < whole
        for phase, size in divided(folder, whole, processes).items():
            assert found[phase] <= 1.25 * size, phase
        assert 0.85 < found["planned"]["updating"] / found["updating"] < 1.15
