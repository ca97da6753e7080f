"""`python -m STAGE ...` as it is, with every row that this process trains on written to `$ROWS/RANK.jsonl`.

accelerate launch ... record_rows.py STAGE CONFIG [key=value ...]

`LOGITS_AT_ONCE`, if it is set, makes the blocks of logits that small.
"""

import functools
import json
import os
import runpy
import sys
from pathlib import Path

import torch
import transformers

import alignment.models.forward
import ppo.update
import sft.loss


def write(rows, **fields):
    path = Path(os.environ["ROWS"]) / f"{os.environ['RANK']}.jsonl"
    with path.open("a", encoding="utf-8") as file:
        for ids, kept in rows:
            file.write(json.dumps({**fields, "ids": ids[kept].tolist()}) + "\n")


def rows_of(inputs):
    """(ids, which of them are real) of each sequence of a batch, packed behind the prefix that it shares, or padded."""
    if "packed_groups" in inputs:
        pieces = iter(inputs["input_ids"][0].split([length for group in inputs["packed_groups"] for length in group]))
        found = []
        for group in inputs["packed_groups"]:
            prefix = next(pieces)
            found += [(torch.cat([prefix, next(pieces)]), slice(None)) for _ in group[1:]]
        return found
    return zip(inputs["input_ids"], inputs["attention_mask"].bool(), strict=True)


def recorded_step(original):
    @functools.wraps(original)
    def step(self, model, inputs, *args, **kwargs):
        write(rows_of(inputs), step=self.state.global_step)
        return original(self, model, inputs, *args, **kwargs)

    return step


def recorded_update(original):
    @functools.wraps(original)
    def update(self, step, rollout, *args):
        everything = slice(None)
        write(((torch.tensor(row.prompt), everything) for row in rollout.rows), step=step)
        return original(self, step, rollout, *args)

    return update


def install():
    sft.loss.LOGITS_AT_ONCE = int(os.environ.get("LOGITS_AT_ONCE", sft.loss.LOGITS_AT_ONCE))
    alignment.models.forward.LOGITS_AT_ONCE = int(
        os.environ.get("LOGITS_AT_ONCE", alignment.models.forward.LOGITS_AT_ONCE)
    )
    transformers.Trainer.training_step = recorded_step(transformers.Trainer.training_step)
    ppo.update.Updater.update = recorded_update(ppo.update.Updater.update)


if __name__ == "__main__":
    install()
    sys.argv.pop(0)
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
