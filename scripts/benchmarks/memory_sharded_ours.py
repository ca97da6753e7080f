"""One process of a PPO run whose memory is measured phase by phase: `sharded_worker.py CONFIG OUT`.

Each process writes OUT/memory-RANK.json: the peak of its anonymous memory (what it allocated itself, not files that
are mapped) while models are loaded, while a rollout is scored and while it is learned from, above what it held after
its imports; and the largest tensor that it made. Responses are given, since the transformers engine samples from a
whole policy.
"""

from __future__ import annotations

import json
import re
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from alignment.data.parsing import to_prompts
from alignment.data.reading import train_and_eval
from alignment.distributed import processes, zero3
from alignment.generation.sampling import Sampled, Sampling
from alignment.registry import Registry
from alignment.runs.journal import Journal
from alignment.training.stage import exit_process
from ppo import loop as ppo_loop
from ppo.config import PPOStageConfig
from ppo.loading import find_models, load_models, load_policy_tokenizer
from ppo.loop import Loop
from ppo.prompts import encode_prompts, prompt_limit

INTERVAL = 0.002


class GivenResponses:
    """Stands where the sampling engine is: responses of the longest length, made up from the seeds."""

    def generate(self, prompts: Sequence[list[int]], seeds: Sequence[int], sampling: Sampling) -> Sampled:
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

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
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
def peak_into(found: dict[str, int], name: str, base: int) -> Iterator[None]:
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


def main(file: Path, out: Path) -> None:
    config = PPOStageConfig.model_validate(json.loads(file.read_text()))
    processes.start_processes()
    accelerator = processes.make_accelerator(bf16=bool(config.training.bf16))
    import deepspeed.runtime.zero.parameter_offload  # noqa: F401 - what it takes is no part of a model
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, LlamaForCausalLM  # noqa: F401

    found: dict[str, int] = {}
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
