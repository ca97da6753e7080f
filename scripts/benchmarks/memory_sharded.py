"""PPO under ZeRO-3 on several processes of this machine: measured peaks by phase beside the plan's.

The policy and the reward model are Llamas with random weights. ZeRO-3's buffers are to them what the defaults are to a
model of 8 billion parameters: with the defaults one buffer would hold such a model whole. Each process is
`memory_sharded_ours`.
"""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.memory import GIVES_BACK

OURS = "benchmarks.memory_sharded_ours"


class ShardedSize(NamedTuple):
    """A model, and ZeRO-3's buffers in elements."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    reduce: int
    live: int


SIZES = {
    "small": ShardedSize(8192, 512, 2048, 12, reduce=2_500_000, live=5_000_000),
    "large": ShardedSize(16384, 1024, 4096, 24, reduce=20_000_000, live=40_000_000),
}
"""54 and 419 million parameters."""


def prepare(folder: Path, size: ShardedSize) -> int:
    """Write models, prompts and FOLDER/case.json; returns the bytes of the policy in float32."""
    import torch
    import transformers

    from alignment.config.sections import ScratchConfig
    from alignment.models.policies import scratch_shape
    from alignment.models.tokenizers import train_tokenizer

    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghij", k=5)) for _ in range(500)]
    texts = [" ".join(draw.choices(words, k=200)) for _ in range(16)]
    tokenizer = train_tokenizer(texts, 2048, "chatml")
    wanted = ScratchConfig(
        vocab_size=size.vocab_size, hidden_size=size.hidden_size, intermediate_size=size.intermediate_size,
        num_hidden_layers=size.num_layers, num_attention_heads=8, max_position_embeddings=512,
    )  # fmt: skip
    shape = scratch_shape(
        wanted, size.vocab_size, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    torch.manual_seed(0)
    policy = transformers.LlamaForCausalLM(shape)
    policy.save_pretrained(folder / "policy", max_shard_size="500MB")
    whole = 4 * int(policy.num_parameters())
    del policy
    shape.num_labels = 1
    transformers.LlamaForSequenceClassification(shape).save_pretrained(folder / "reward", max_shard_size="500MB")
    for name in ("policy", "reward"):
        tokenizer.save_pretrained(folder / name)
    prompts = [json.dumps({"prompt": " ".join(text.split()[:12])}) for text in texts]
    (folder / "case.jsonl").write_text("\n".join(prompts) + "\n", encoding="utf-8")
    config = {
        "name": "case",
        "model": {"policy": str(folder / "policy"), "reward": str(folder / "reward"), "value": "trunk"},
        "data": {"train": str(folder / "case.jsonl"), "eval_share": 0.0, "max_length": 160},
        "rollout": {"batch_size": 8, "max_new_tokens": 32},
        "ppo": {"num_minibatches": 2, "num_epochs": 1},
        "training": {"max_steps": 2, "microbatch_tokens": 192, "save_steps": 0, "bf16": False, "learning_rate": 1e-5},
        "registry": {"name": "case", "path": str(folder / "registry")},
    }
    (folder / "case.json").write_text(json.dumps(config), encoding="utf-8")
    return whole


def measure(folder: Path, out: Path, size: ShardedSize, processes: int, timeout: float) -> list[dict[str, Any]]:
    """Run `memory_sharded_ours` on the files that `prepare` wrote; returns what each process found.

    Raises:
        RuntimeError: the run failed; the end of its output.
    """
    out.mkdir(parents=True, exist_ok=True)
    launch = _launch_file(out, size, processes)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(launch)]
    command += ["--main_process_port", str(port), "-m", OURS, str(folder / "case.json"), str(out)]
    done = subprocess.run(
        command, env=_environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=timeout,
        check=False,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{processes} processes ended with code {done.returncode}: {done.stdout[-4000:]}")
    return [json.loads((out / f"memory-{rank}.json").read_text()) for rank in range(processes)]


def _environment() -> Mapping[str, str]:
    scripts = Path(__file__).resolve().parents[1]
    paths = os.pathsep.join([str(scripts.parent), str(scripts)])
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths, **GIVES_BACK}


def _launch_file(folder: Path, size: ShardedSize, processes: int) -> Path:
    zero = {
        "stage": 3,
        "stage3_param_persistence_threshold": 10_000,
        "stage3_gather_16bit_weights_on_model_save": True,
        "reduce_bucket_size": size.reduce,
        "stage3_prefetch_bucket_size": size.live // 20,
        "stage3_max_live_parameters": size.live,
        "stage3_max_reuse_distance": size.live,
        "sub_group_size": size.reduce,
    }
    automatic = (
        "train_batch_size",
        "train_micro_batch_size_per_gpu",
        "gradient_accumulation_steps",
        "gradient_clipping",
    )
    # DeepSpeed's own Adam would have to be compiled first.
    given = {"zero_optimization": zero, "zero_force_ds_cpu_optimizer": False} | dict.fromkeys(automatic, "auto")
    (folder / "zero3.json").write_text(json.dumps(given), encoding="utf-8")
    file = folder / "zero3.yaml"
    file.write_text(
        "distributed_type: DEEPSPEED\ndeepspeed_config:\n  zero3_init_flag: true\n"
        f"  deepspeed_config_file: {folder / 'zero3.json'}\nnum_processes: {processes}\nuse_cpu: false\n",
        encoding="utf-8",
    )
    return file
