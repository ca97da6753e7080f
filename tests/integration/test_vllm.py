"""PPO with vLLM itself, on a CPU: what it samples by is the policy that is trained.

Runs in an environment of its own, which `scripts/vllm-venv` makes; ALIGNMENT_VLLM_PYTHON names its interpreter.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from pathlib import Path

import launching
import pytest
from helpers import tiny

from alignment.registry import Registry

pytestmark = pytest.mark.slow

PPO = ("-m", "ppo")
STALE_HEAD = (str(Path(__file__).with_name("vllm_stale_head.py")),)
SHAPE = tiny.SHAPE.model_copy(
    update={"hidden_size": 64, "intermediate_size": 128}
)  # vLLM's heads have 32 numbers or more
LORA = ("model.method=lora", "model.adapter.r=4", "training.learning_rate=3e-2")
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
        "rollout": {"batch_size": 8, "max_new_tokens": 16, "vllm": {"gpu_memory_utilization": 0.05}},
        "training": {"max_steps": 3, "learning_rate": 1e-2, "eval_steps": 0, "load_best_model_at_end": False},
        "registry": {"name": "ppo", "path": "registry"},
        "tracking": {"wandb": "disabled"},
    }
    (folder / "ppo.yaml").write_text(json.dumps(config))
    return folder


def run(house, python, name, *overrides, program=PPO, launch_file=None):
    """Exit code and output of a run, and its iterations' figures."""
    command = [python]
    if launch_file is not None:
        command += ["-m", "accelerate.commands.launch", "--config_file", str(launch_file)]
        command += ["--main_process_port", str(launching.free_port())]
    command += [*program, "ppo.yaml", f"name={name}", f"registry.name={name}", *overrides]
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


@pytest.mark.parametrize("overrides", [(), LORA], ids=["full", "lora"])
def test_in_float32_it_samples_by_the_policy(house, python, overrides):
    found, steps = run(house, python, f"one-{len(overrides)}", *overrides)
    check(found, steps, 1e-4)


def test_in_two_processes_too(house, python):
    (house / "ddp.yaml").write_text(launching.DDP)
    found, steps = run(house, python, "two", launch_file=house / "ddp.yaml")
    check(found, steps, 1e-4)
    assert backend(house, "two")["world_size"] == 2


FSDP2 = launching.ROOT / "configs" / "accelerate" / "fsdp2.yaml"
TOGETHER = ("rollout.vllm.tensor_parallel_size=2",)


@pytest.mark.parametrize(
    ("name", "overrides"),
    [("zero3", ()), ("zero3-lora", LORA), ("zero3-together", TOGETHER), ("fsdp2", ()), ("fsdp2-lora", LORA)],
)
def test_a_sharded_policy_is_sampled_and_never_gathered_whole(house, python, name, overrides):
    launch_file = launching.deepspeed_file(house, "zero3", **launching.PARTED) if "zero3" in name else FSDP2
    program = (str(Path(__file__).with_name("vllm_watched.py")),)
    found, steps = run(house, python, name, *overrides, program=program, launch_file=launch_file)
    check(found, steps, 1e-4)
    engine, stage = ("DeepSpeedEngine", 3) if "zero3" in name else ("FSDP2", 0)
    assert backend(house, name) | {"engine": engine, "zero_stage": stage, "world_size": 2} == backend(house, name)
    for rank in range(2):
        seen = json.loads((house / f"watched-{rank}.json").read_text())
        print(name, rank, seen)
        largest = max(SHAPE.vocab_size, 2 * SHAPE.intermediate_size) * SHAPE.hidden_size
        assert 0 < seen["kept"] <= 2 * largest < seen["whole"] / 2  # what vLLM puts in place together, and what follows
        assert seen["gathered"] <= 1.5 * largest
        assert seen["heads"] == SHAPE.num_attention_heads // (2 if overrides == TOGETHER else 1)


def backend(house, name):
    return next(row for row in events(house, name) if row["event"] == "backend")


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
    """It is packed, and packed anew only where it is among the weights by its own name."""
    is_stale(*run(house, python, "stale", program=STALE_HEAD))


def is_stale(found, steps):
    said = [line for line in found.output.splitlines() if line.startswith("error: ")]
    assert found.code == 2 and len(said) == 1, found.output[-4000:]
    assert "it samples by other weights" in said[0] and "Traceback" not in found.output
    assert len(steps) < 3


@pytest.fixture(scope="module")
def server(house, python):
    """`vllm serve` of the policy, as docs/cluster/vllm.md starts it; the override that uses it."""
    port = launching.free_port()
    command = [Path(python).with_name("vllm"), "serve", house / "policy", "--port", str(port), "--dtype", "float32"]
    command += ["--max-model-len", "64", "--logprobs-mode", "processed_logprobs"]
    variables = {"VLLM_SERVER_DEV_MODE": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "PYTHONPATH": ""}
    with (house / "server.log").open("w") as log:
        process = subprocess.Popen(
            list(map(str, command)), cwd=house, env=launching.environment(**variables), stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip
        yield f"rollout.vllm={{server_base_url: 'http://localhost:{port}', dtype: float32}}"
        os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(30)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.parametrize("overrides", [(), LORA], ids=["full", "lora"])
def test_a_server_without_nccl_samples_by_the_policy(house, python, server, overrides):
    """It packs its weights, and the head is tied: the embeddings alone would leave the head as it was."""
    name = f"served-{len(overrides)}"
    found, steps = run(house, python, name, server, *overrides)
    check(found, steps, 1e-4)
    assert not (house / "runs" / name / "vllm-weights").exists()


@pytest.mark.parametrize("launch_file", [None, launching.DDP], ids=["one", "two"])
def test_a_server_samples_one_update_ahead(house, python, server, launch_file):
    """The gap is then the step of an update; there is none in the first rollout."""
    if launch_file is not None:
        (house / "ddp.yaml").write_text(launch_file)
        launch_file = house / "ddp.yaml"
    name = "ahead-one" if launch_file is None else "ahead-two"
    found, steps = run(house, python, name, server, "rollout.lag=1", launch_file=launch_file)
    assert found.code == 0, found.output[-4000:]
    assert [row["rollout/lag"] for row in steps] == [0, 1, 1]
    gaps = [row["rollout/sampler_gap_max"] for row in steps]
    print(gaps, [row["time/generate"] for row in steps])
    assert gaps[0] < 1e-4 < 1e-2 < min(gaps[1:])


def test_a_server_gets_the_weights_of_a_policy_in_shards(house, python, server):
    launch_file = launching.deepspeed_file(house, "zero3", **launching.PARTED)
    found, steps = run(house, python, "served-zero3", server, launch_file=launch_file)
    check(found, steps, 1e-4)


def test_a_stale_head_of_a_server_stops_the_run(house, python, server):
    is_stale(*run(house, python, "served-stale", server, program=STALE_HEAD))
