#!/usr/bin/env python3
"""Write the tables of docs/cluster/memory.md: policies of 8B, 70B and 405B, by the planner and by arithmetic.

    scripts/scale_table.py

Nothing is measured here. Memory is `alignment.memory.plan`'s; times follow from the rates below, which the page names
with their sources.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "cluster" / "memory.md"
MEMORY, TIME, END = "<!-- memory -->", "<!-- time -->", "<!-- end -->"
PEAK_FLOPS = 989e12
BANDWIDTH = {"H100": 3.35e12, "H200": 4.8e12}
MFU, BANDWIDTH_SHARE = 0.35, 0.6
"""Assumed: of the peak rate in training and in passes without gradients; of the bandwidth while sampling."""
EPISODES, PROMPT, RESPONSE = 512, 1024, 1024


@dataclass(frozen=True)
class PolicySize:
    """A policy and where it is trained.

    Args:
        gpus: processes that train.
        together: GPUs that hold one copy for sampling (tensor parallel).
        share: vLLM's share of each GPU; 0 where it samples on GPUs of its own.
        microbatch: tokens of a backward pass.
    """

    name: str
    gpu: str
    memory: float
    gpus: int
    together: int
    share: float
    microbatch: int


SIZES = (
    PolicySize("meta-llama/Llama-3.1-8B", "H100", 80e9, 8, 1, 0.5, 8192),
    PolicySize("meta-llama/Llama-3.1-8B", "H200", 141e9, 8, 1, 0.5, 8192),
    PolicySize("meta-llama/Llama-3.1-70B", "H100", 80e9, 32, 8, 0.4, 4096),
    PolicySize("meta-llama/Llama-3.1-70B", "H200", 141e9, 32, 4, 0.5, 4096),
    PolicySize("meta-llama/Llama-3.1-405B", "H100", 80e9, 512, 16, 0.0, 2048),
    PolicySize("meta-llama/Llama-3.1-405B", "H200", 141e9, 256, 8, 0.0, 2048),
)


def decode_seconds(weights: float, cache: float, rows: int, tokens: int, bandwidth: float) -> float:
    """Sampling bound by reading memory: each step reads all weights once and the keys and values of each row so far.

    Args:
        weights: bytes.
        cache: bytes of one token of one row.
        rows: sampled at a time, by the GPUs that hold one copy.
        tokens: of each response; a row is as long as a prompt and half a response on average.
        bandwidth: bytes per second, of those GPUs together.
    """
    return tokens * (weights + rows * (PROMPT + tokens / 2) * cache) / bandwidth


def pass_seconds(parameters: float, tokens: float, operations: int, gpus: int) -> float:
    """Passes over tokens: 2 operations a parameter forward, 6 with the backward pass."""
    return operations * parameters * tokens / (gpus * PEAK_FLOPS * MFU)


def config_of(size: PolicySize, critic: str, mode: str) -> Any:
    """The PPO run of a size: the 8B recipe with other models; from 70B on they wait in the host's memory."""
    from alignment.config.loading import load_config
    from ppo.config import PPOStageConfig

    changes = [f"model.policy={size.name}", f"model.reward={size.name}", f"model.mode={mode}", f"model.value={critic}"]
    changes += [f"model.offload={str(size.together > 1 and mode == 'separate').lower()}"]
    if size.share:
        changes += [f"rollout.vllm={{tensor_parallel_size: {size.together}, gpu_memory_utilization: {size.share}}}"]
    else:
        changes += ["rollout.vllm={server_base_url: 'http://sampler:8000'}"]
    changes += [f"training.microbatch_tokens={size.microbatch}", f"rollout.batch_size={max(EPISODES, 4 * size.gpus)}"]
    return load_config(PPOStageConfig, ROOT / "configs" / "ppo" / "8b.yaml", changes)


def memory_rows() -> list[str]:
    """Markdown: memory of one GPU under ZeRO-3 while it trains, and what sampling and scoring add."""
    from alignment.cli.plan import RESERVED, Cluster
    from alignment.memory.plan import STRATEGIES, estimate
    from alignment.memory.shapes import ShapeFinder
    from alignment.registry import Registry
    from ppo.workload import find_shapes, workload

    parts = ("weights", "gradients", "optimizer", "activations", "logits", "buffers")
    head = ["policy", "GPUs", "held", *parts, "update", "sampling", "scoring", "a node"]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    finder = ShapeFinder(Registry(ROOT / "registry"))
    for size in SIZES:
        for mode, critic in (("separate", "trunk"), ("shared", "adapter")):
            config = config_of(size, critic, mode)
            work = workload(config, find_shapes(config, finder), size.gpus, gpu_memory=size.memory)
            assert work.vllm is None or work.vllm.fits
            zero3 = next(each for each in STRATEGIES if each.name == "zero3")
            found, cluster = estimate(work, zero3, size.gpus), Cluster(8, size.gpus // 8, size.memory)
            moments = found.moments
            totals = {moment: sum(found.values()) / 1e9 for moment, found in moments.items()}
            update = max((moment for moment in moments if "ing" not in moment), key=lambda moment: totals[moment])
            cells = [size.name.rpartition("-")[2], f"{size.gpus} {size.gpu}", f"{mode}, critic {critic}"]
            cells += [f"{moments[update][part] / 1e9:.1f}" for part in parts]
            usable = (1 - RESERVED) * size.memory / 1e9
            cells += [f"{gb:.0f}{'' if gb <= usable else ' (too much)'}"
                      for gb in (totals[update], totals["sampling"], totals["scoring"])]  # fmt: skip
            cells.append(f"{cluster.node_memory(work, zero3, found) / 1e9:.0f}")
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def time_rows() -> list[str]:
    """Markdown: seconds of the phases of one iteration."""
    from alignment.config.sections import ModelConfig
    from alignment.memory.shapes import ShapeFinder, sized
    from alignment.registry import Registry

    head = [
        "policy",
        "GPUs",
        "one copy on",
        "training tokens/s, each GPU",
        "sample",
        "score",
        "update",
        "sampled tokens/s",
    ]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    finder = ShapeFinder(Registry(ROOT / "registry"))
    for size in SIZES:
        model = sized(finder.find("policy", size.name), ModelConfig(name=size.name))
        copies = size.gpus // size.together
        rows, tokens = max(1, EPISODES // copies), EPISODES * (PROMPT + RESPONSE)
        bandwidth = size.together * BANDWIDTH[size.gpu] * BANDWIDTH_SHARE
        decode = decode_seconds(2 * model.parameters, model.shape.cache_bytes(2), rows, RESPONSE, bandwidth)
        prefill = pass_seconds(model.parameters, EPISODES * PROMPT, 2, size.gpus)
        score = 3 * pass_seconds(model.parameters, tokens, 2, size.gpus)  # policy with its critic, reference, reward
        update = pass_seconds(model.parameters, tokens, 6, size.gpus)
        rate = PEAK_FLOPS * MFU / (6 * model.parameters)
        cells = [size.name.rpartition("-")[2], f"{size.gpus} {size.gpu}", f"{size.together}", f"{rate:,.0f}"]
        cells += [f"{prefill + decode:.0f} s", f"{score:.1f} s", f"{update:.1f} s"]
        cells.append(f"{EPISODES * RESPONSE / (prefill + decode):,.0f}")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def written(page: str) -> str:
    """The page with its tables as the code has them now."""
    from methods_table import replaced

    page = replaced(page, MEMORY, "\n".join(memory_rows()))
    return replaced(page, TIME, "\n".join(time_rows()))


def main(argv: Sequence[str] | None = None) -> int:
    argparse.ArgumentParser(
        description="Write the tables of docs/cluster/memory.md.", epilog="example: scripts/scale_table.py"
    ).parse_args(argv)
    from alignment.training.stage import quiet_libraries

    quiet_libraries()
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    print(PAGE)
    return 0


if __name__ == "__main__":
    from project_python import use_project_python

    use_project_python()
    sys.exit(main())
