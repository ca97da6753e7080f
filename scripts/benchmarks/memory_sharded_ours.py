"""One process of a PPO run whose memory is measured phase by phase: `memory_sharded_ours.py CONFIG OUT`.

Each process writes OUT/memory-RANK.json: by phase the peak of its anonymous memory (what it allocated itself, not files
that are mapped) above what it held after its imports, what `alignment.memory.plan` has for that phase, and the largest
tensor that it made. Responses are given, since the transformers engine samples from a whole policy.
"""

from __future__ import annotations

import importlib
import json
import re
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from alignment.data.parsing import to_prompts
from alignment.data.reading import train_and_eval
from alignment.distributed import processes, zero3
from alignment.generation.sampling import Sampled, Sampling
from alignment.memory.plan import Buckets, Strategy, estimate
from alignment.memory.shapes import ShapeFinder
from alignment.registry import Registry
from alignment.runs.journal import Journal
from alignment.training.stage import exit_process
from ppo import loop as ppo_loop
from ppo.config import PPOStageConfig
from ppo.loading import load_models
from ppo.loop import Loop
from ppo.prompts import encode_prompts, prompt_limit
from ppo.sources import find_models, load_policy_tokenizer
from ppo.workload import find_shapes, workload

INTERVAL = 0.002


class GivenResponses:
    """Stands where the sampling engine is: responses of the longest length, made up from the seeds."""

    def generate(self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], sampling: Sampling) -> Sampled:
        def response(seed: int) -> list[int]:
            generator = torch.Generator().manual_seed(seed)
            words = torch.randint(10, 1000, (sampling.max_new_tokens,), generator=generator)
            return words.tolist()

        return Sampled([response(seed) for seed in seeds], None)


class LargestTensor(TorchDispatchMode):
    """Bytes of the largest tensor that any operation inside has allocated."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor) and leaf.device.type != "meta":
                self.bytes = max(self.bytes, leaf.untyped_storage().nbytes())
        return out


def anonymous() -> int:
    """Bytes that this process has allocated."""
    text = Path("/proc/self/status").read_text()
    return int(re.search(r"RssAnon:\s+(\d+)", text)[1]) * 1024  # type: ignore[index]


@contextmanager
def peak_into(found: dict[str, Any], name: str, base: int) -> Iterator[None]:
    """Write the peak inside, above `base`, to `found[name]`."""
    done, highest = threading.Event(), [anonymous()]

    def watch() -> None:
        while not done.is_set():
            highest[0] = max(highest[0], anonymous())
            time.sleep(INTERVAL)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        found[name] = highest[0] - base


def planned(values: dict[str, Any]) -> dict[str, float]:
    """Bytes that the plan has for each phase of this launch."""
    # The responses are given, as from a vLLM elsewhere: nothing is gathered to sample.
    given = {"vllm": {"server_base_url": "http://sampler:8000"}}
    config = PPOStageConfig.model_validate(values | {"rollout": values["rollout"] | given})
    count = processes.world_size()
    work = workload(config, find_shapes(config, ShapeFinder(Registry(config.registry.path))), count)
    strategy = Strategy("zero3", processes.launched_zero_stage(), buckets=Buckets(**processes.launched_buckets(None)))
    totals = {
        name: sum(parts.values()) for name, parts in estimate(work, strategy, count, on_gpu=False).moments.items()
    }
    shards = sum(4 * model.parameters for model in work.models) / count
    return {
        "loading": shards + work.largest_tensor,
        "scoring": totals["scoring"],
        "updating": max(size for name, size in totals.items() if name.startswith(("update", "optimizer"))),
    }


def main(file: Path, out: Path) -> None:
    values = json.loads(file.read_text())
    config = PPOStageConfig.model_validate(values)
    processes.start_processes()
    expected = planned(values)  # before there is an engine, under which transformers would shard what it builds
    accelerator = processes.make_accelerator(bf16=bool(config.training.bf16))
    importlib.import_module("deepspeed.runtime.zero.parameter_offload")  # what it takes is no part of a model
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, LlamaForCausalLM  # noqa: F401

    found: dict[str, Any] = {"planned": expected}
    base = anonymous()
    train_set, _ = train_and_eval(config.data, to_prompts)
    largest = LargestTensor()
    with peak_into(found, "loading", base), zero3.loading_in_shards(), largest:
        sources = find_models(config, Registry(config.registry.path))
        models = load_models(config, sources, load_policy_tokenizer(config, sources))
    found["loaded"] = anonymous() - base
    ppo_loop.make_sampler = lambda *_: GivenResponses()
    prompts, _ = encode_prompts(train_set.items, models.tokenizer, prompt_limit(config), config.data.too_long)
    with peak_into(found, "preparing", base), largest:
        loop = Loop(config, models, accelerator, Journal(out, enabled=False), prompts)
    indices = list(range(config.rollout.batch_size))
    for _ in range(2):
        with peak_into(found, "scoring", base), largest:
            loop._initial_rollout = loop._collect(indices)
        with peak_into(found, "updating", base), largest:
            loop.iterate(indices)
    found["largest_tensor"] = largest.bytes
    found["parameters"] = sum(getattr(p, "ds_numel", p.numel()) for p in models.policy.model.parameters())
    (out / f"memory-{accelerator.process_index}.json").write_text(json.dumps(found))
    processes.wait_for_everyone()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
    exit_process(0)
