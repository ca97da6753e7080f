"""Memory of PPO under ZeRO-3 on two and four processes: loading, scoring and learning divide by the processes."""

import json
import random
import sys
from pathlib import Path

import launching
import pytest
import torch
import transformers

from alignment.config.sections import ScratchConfig
from alignment.memory.plan import STRATEGIES, estimate
from alignment.memory.shapes import ShapeFinder
from alignment.models.policies import scratch_shape
from alignment.models.tokenizers import train_tokenizer
from alignment.registry import Registry
from ppo.config import PPOStageConfig
from ppo.plan import find_shapes, workload

WORKER = Path(__file__).with_name("sharded_worker.py")
SHAPE = ScratchConfig(
    vocab_size=8192, hidden_size=512, intermediate_size=2048, num_hidden_layers=12, num_attention_heads=8,
    max_position_embeddings=512,
)  # fmt: skip
SMALL = {
    "stage": 3, "stage3_param_persistence_threshold": 10_000, "stage3_gather_16bit_weights_on_model_save": True,
    "reduce_bucket_size": 2_500_000, "stage3_prefetch_bucket_size": 250_000, "stage3_max_live_parameters": 5_000_000,
    "stage3_max_reuse_distance": 5_000_000, "sub_group_size": 2_000_000,
}  # fmt: skip
"""ZeRO-3 with buffers that are to this model as the defaults are to one of 8 billion parameters."""
GIVES_BACK = {"MALLOC_MMAP_THRESHOLD_": "262144", "MALLOC_TRIM_THRESHOLD_": "262144"}
"""glibc would keep freed blocks, which count in the peak."""
BUCKETS = 2 * 4 * SMALL["reduce_bucket_size"]
TENSOR = 4 * SHAPE.vocab_size * SHAPE.hidden_size
"""Bytes of the largest tensor, which is held as it is read and as it is gathered."""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A policy and a reward model of 54 million parameters, and a run that trains the first; (config, bytes of one)."""
    folder = tmp_path_factory.mktemp("world")
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghij", k=5)) for _ in range(500)]
    texts = [" ".join(draw.choices(words, k=200)) for _ in range(16)]
    tokenizer = train_tokenizer(texts, 2048, "chatml")
    shape = scratch_shape(
        SHAPE, SHAPE.vocab_size, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    torch.manual_seed(0)
    policy = transformers.LlamaForCausalLM(shape)
    policy.save_pretrained(folder / "policy")
    shape.num_labels = 1
    reward = transformers.LlamaForSequenceClassification(shape)
    reward.save_pretrained(folder / "reward")
    for name in ("policy", "reward"):
        tokenizer.save_pretrained(folder / name)
    prompts = [json.dumps({"prompt": " ".join(text.split()[:12])}) for text in texts]
    (folder / "ppo.jsonl").write_text("\n".join(prompts) + "\n")
    config = {
        "name": "case",
        "model": {"policy": str(folder / "policy"), "reward": str(folder / "reward"), "value": "trunk"},
        "data": {"train": str(folder / "ppo.jsonl"), "eval_share": 0.0, "max_length": 160},
        "rollout": {"batch_size": 8, "max_new_tokens": 32},
        "ppo": {"num_minibatches": 2, "num_epochs": 1},
        "training": {"max_steps": 2, "microbatch_tokens": 192, "save_steps": 0, "bf16": False, "learning_rate": 1e-5},
        "registry": {"name": "case", "path": str(folder / "registry")},
    }
    (folder / "ppo.json").write_text(json.dumps(config))
    return folder / "ppo.json", 4 * policy.num_parameters()


def expected(file, whole, processes):
    """Bytes of each phase: what is divided by the processes, and what is not (activations and logits as planned)."""
    values = json.loads(file.read_text())
    # The responses are given, as from a vLLM elsewhere: nothing is gathered to sample.
    values["rollout"] |= {"engine": "vllm", "vllm": {"server_base_url": "http://sampler:8000"}}
    config = PPOStageConfig.model_validate(values)
    work = workload(config, find_shapes(config, ShapeFinder(Registry(file.parent / "registry"))), processes)
    zero3 = next(each for each in STRATEGIES if each.name == "zero3")
    moments = estimate(work, zero3, processes, on_gpu=False).moments
    other = {name: parts["activations"] + parts["logits"] + BUCKETS for name, parts in moments.items()}
    # Policy, reference and reward model; then gradient, float32 copy and two moments of the policy.
    return {
        "loading": 3 * whole / processes + 2 * TENSOR,
        "scoring": 7 * whole / processes + other["scoring"],
        "updating": 7 * whole / processes + other["update: loss"],
    }


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_no_process_holds_a_model_and_peaks_divide_by_the_processes(world, tmp_path, processes):
    config, whole = world
    bounds = {name: 1.25 * size for name, size in expected(config, whole, processes).items()}
    file = launching.deepspeed_file(tmp_path, "zero3", **SMALL)
    file.write_text(file.read_text().replace("num_processes: 2", f"num_processes: {processes}"))
    done = launching.launch(file, [str(WORKER), str(config), str(tmp_path)], tmp_path, timeout=900, **GIVES_BACK)
    assert done.code == 0, done.output[-4000:]
    for rank in range(processes):
        found = json.loads((tmp_path / f"memory-{rank}.json").read_text())
        print(f"{processes} processes, rank {rank}: {found}", file=sys.stderr)
        assert found["largest_tensor"] < whole
        for phase, bound in bounds.items():
            assert found[phase] <= bound, phase
