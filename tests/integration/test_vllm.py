"""PPO with vLLM itself, on a CPU: what it samples by is the policy that is trained.

Runs in an environment of its own, which `scripts/vllm-venv` makes; ALIGNMENT_VLLM_PYTHON names its interpreter.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import launching
import pytest
from helpers import tiny

from alignment.registry import Registry

pytestmark = pytest.mark.slow

WORKER = str(Path(__file__).with_name("vllm_on_cpu.py"))
SHAPE = tiny.SHAPE.model_copy(
    update={"hidden_size": 64, "intermediate_size": 128}
)  # vLLM's heads have 32 numbers or more
CALM = 0.2
"""What the tiny policy's matrices are multiplied by: its distributions are then about as sharp as a real model's."""


@pytest.fixture(scope="module")
def python():
    """The interpreter of an environment with vLLM."""
    found = os.environ.get("ALIGNMENT_VLLM_PYTHON")
    if not found:
        pytest.skip("needs vLLM: scripts/vllm-venv FOLDER makes an environment, ALIGNMENT_VLLM_PYTHON names its python")
    said = subprocess.run([found, "-c", "import vllm, trl"], capture_output=True, text=True)
    assert said.returncode == 0, f"ALIGNMENT_VLLM_PYTHON={found}: {said.stderr[-500:]}"
    return found


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    """A policy, a function that gives the reward, and prompts."""
    folder = tmp_path_factory.mktemp("vllm")
    tokenizer = tiny.make_tokenizer()
    policy = tiny.make_policy(tokenizer, seed=1, shape=SHAPE)
    for parameter in policy.parameters():
        if parameter.dim() == 2:
            parameter.data.mul_(CALM)
    made = tiny.write(folder / "policy", policy, tokenizer)
    Registry(folder / "registry").publish("sft", made, stage="sft", role="policy")
    (folder / "kinds.py").write_text(
        "def kinds(prompts, responses, **_):\n    return [float(len(set(r))) for r in responses]\n"
    )
    rows = [{"prompt": f"What about floor {number}?" + " Please." * (number % 3)} for number in range(12)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {
        "name": "run",
        "model": {"policy": "sft", "value": "trunk"},
        "data": {"train": "prompts.jsonl", "eval_share": 0.3, "max_length": 64},
        "rewards": {"others": [{"function": "kinds:kinds"}]},
        "rollout": {"batch_size": 8, "max_new_tokens": 16, "engine": "vllm", "vllm": {"gpu_memory_utilization": 0.05}},
        "training": {"max_steps": 3, "learning_rate": 1e-2, "eval_steps": 0, "load_best_model_at_end": False},
        "registry": {"name": "ppo", "path": "registry"},
        "tracking": {"wandb": "disabled"},
    }
    (folder / "ppo.yaml").write_text(json.dumps(config))
    return folder


def run(house, python, name, *overrides, worker=WORKER, processes=1):
    """Exit code and output of a run, and its iterations' figures."""
    command = [python]
    if processes > 1:
        (house / "launch.yaml").write_text(launching.DDP)
        command += ["-m", "accelerate.commands.launch", "--config_file", "launch.yaml"]
        command += ["--main_process_port", str(launching.free_port())]
    command += [worker, "ppo.yaml", f"name={name}", f"registry.name={name}", *overrides]
    paths = os.pathsep.join([str(launching.ROOT), str(launching.ROOT / "tests"), str(house)])
    found = launching.run(command, house, 600, PYTHONPATH=paths, VLLM_CPU_KVCACHE_SPACE="1", HF_HUB_OFFLINE="1")
    metrics = house / "runs" / name / "metrics.jsonl"
    rows = [json.loads(line) for line in metrics.read_text().splitlines()] if metrics.exists() else []
    return found, [row for row in rows if "policy/loss" in row]


def check(found, steps, limit):
    assert found.code == 0, found.output[-4000:]
    assert [row["step"] for row in steps] == [1, 2, 3]
    for row in steps:
        assert row["rollout/sampler_gap_mean"] <= row["rollout/sampler_gap_max"] < limit
        assert row["rollout/importance_capped"] == 0
    assert steps[-1]["rollout/kl"] > 0.1  # it has learned: weights as they were would show
    print([(row["rollout/sampler_gap_mean"], row["rollout/sampler_gap_max"], row["rollout/kl"]) for row in steps])


LORA = ("model.method=lora", "model.adapter.r=4", "training.learning_rate=3e-2")


@pytest.mark.parametrize("overrides", [(), LORA], ids=["full", "lora"])
def test_in_float32_it_samples_by_the_policy(house, python, overrides):
    found, steps = run(house, python, f"one-{len(overrides)}", *overrides)
    check(found, steps, 1e-4)


def test_in_two_processes_too(house, python):
    found, steps = run(house, python, "two", processes=2)
    check(found, steps, 1e-4)
    backend = next(row for row in events(house, "two") if row["event"] == "backend")
    assert backend["world_size"] == 2


def events(house, name):
    return [json.loads(line) for line in (house / "runs" / name / "events.jsonl").read_text().splitlines()]


def test_in_bfloat16_it_differs_by_rounding(house, python):
    found, steps = run(house, python, "half", "rollout.vllm.dtype=bfloat16")
    check(found, steps, 0.05)
    assert max(row["rollout/sampler_gap_mean"] for row in steps) > 1e-5  # it was in bfloat16


def test_a_stop_text_ends_a_response(house, python):
    """Without it nearly all responses of this policy run into the limit of 16 tokens."""
    found, steps = run(house, python, "stops", "rollout.stop=[' ']", "training.max_steps=1")
    assert found.code == 0, found.output[-4000:]
    assert steps[0]["rollout/sampler_gap_max"] < 1e-4
    assert steps[0]["rollout/ended"] > 0.5
    assert steps[0]["rollout/length"] < 12
    found, steps = run(house, python, "runs-on", "training.max_steps=1")
    assert steps[0]["rollout/ended"] < 0.5
    assert steps[0]["rollout/length"] > 12


def test_a_tied_head_that_is_not_brought_up_to_date_stops_the_run(house, python):
    """As after vLLM's own reload from disk: it goes on with the head that it had."""
    found, steps = run(house, python, "stale", worker=str(Path(WORKER).with_name("vllm_stale_head.py")))
    said = [line for line in found.output.splitlines() if line.startswith("error: ")]
    assert found.code == 2 and len(said) == 1, found.output[-4000:]
    assert "it samples by other weights" in said[0] and "Traceback" not in found.output
    assert len(steps) < 3
