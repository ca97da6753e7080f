"""SFT or reward whose loss is no number in some optimizer steps, on one rank or all of them.

`SPOIL` is `RANK:STEP,STEP,...`; `all` may stand for the rank. `shards-RANK.json` in `$ROWS` gets a hash of this rank's
weights before each step. `install()` is called by dying.py.
"""

import hashlib
import json
import os
from pathlib import Path

from alignment.distributed.zero3 import local_shard
from alignment.training.finite_steps import FiniteSteps

hashes: list[str] = []


def install() -> None:
    begin, rank = FiniteSteps.get_batch_samples, os.environ.get("RANK", "0")
    chosen, _, numbers = os.environ["SPOIL"].partition(":")
    steps = {int(number) for number in numbers.split(",") if number} if chosen in ("all", rank) else set()

    def get_batch_samples(self, *args, **options):
        digest = hashlib.sha256()
        self.model.state_dict()  # under FSDP2 it frees weights that an evaluation has left gathered
        for parameter in self.model.parameters():
            digest.update(local_shard(parameter).detach().float().cpu().numpy().tobytes())
        hashes.append(digest.hexdigest())
        Path(os.environ["ROWS"], f"shards-{rank}.json").write_text(json.dumps(hashes))
        return begin(self, *args, **options)

    FiniteSteps.get_batch_samples = get_batch_samples
    for stage in ("sft", "reward"):
        module = __import__(f"{stage}.trainer", fromlist=["trainer"])
        module.with_nan_gradient = spoiled(module, steps)


def spoiled(module, steps):
    original, count = module.with_nan_gradient, 0

    def with_nan_gradient(loss):
        nonlocal count
        count += 1
        return original(loss * float("nan") if count in steps else loss)

    return with_nan_gradient
