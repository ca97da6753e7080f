"""Resuming at another world size: each step trains on the same rows, none lost or doubled.

An optimizer step trains on one slice of the epoch's order, however the ranks share it, so the global batch must stay
the same. Plain checkpoints hold the full optimizer; ZeRO's shards are merged and split again
(`alignment.distributed.zero_checkpoint`).
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from alignment.errors import CheckpointError
from alignment.seeds import seeded_state

PER_DEVICE = "per_device_train_batch_size"
ACCUMULATED = "gradient_accumulation_steps"
BATCH_KEYS = (f"training.{PER_DEVICE}", f"training.{ACCUMULATED}")
DEFAULTS = {PER_DEVICE: 8, ACCUMULATED: 1}
"""The defaults of transformers."""
SUMMED = ("sums", "tokens_seen")
"""Running statistics that the ranks sum for a line of the log."""
AVERAGED = ("loss",)
"""Running statistics that the ranks average for a line of the log."""


def same_batches(before: Mapping[str, Any], now: Mapping[str, Any], saved: int, processes: int) -> bool:
    """Whether two configs of a TRL stage have the same global batch size, each at its world size.

    (PPO's config gives global batch sizes.)

    Args:
        saved: world size of the run that saved the checkpoint.
        processes: world size of this launch.

    Raises:
        CheckpointError: both the world size and the global batch size differ.
    """
    old, new = (
        {key: config["training"].get(key, value) for key, value in DEFAULTS.items()} for config in (before, now)
    )
    batch = old[PER_DEVICE] * old[ACCUMULATED] * saved
    if new[PER_DEVICE] * new[ACCUMULATED] * processes == batch:
        return True
    if saved == processes:
        return False
    raise CheckpointError(
        f"saved by {saved} processes with {batch} rows to an optimizer step ({_product(old, saved)}), and this launch "
        f"makes it {new[PER_DEVICE] * new[ACCUMULATED] * processes} ({_product(new, processes)}); "
        f"{_advice(batch, new, processes)}"
    )


def _product(values: Mapping[str, int], processes: int) -> str:
    return f"{values[PER_DEVICE]} per device x {values[ACCUMULATED]} accumulated x {processes} processes"


def _advice(batch: int, new: Mapping[str, int], processes: int) -> str:
    if batch % processes:
        return f"launch a number of processes that divides {batch}"
    per_process = batch // processes
    if per_process % new[PER_DEVICE] == 0:
        return f"set {BATCH_KEYS[1]}={per_process // new[PER_DEVICE]}"
    return f"set {BATCH_KEYS[0]}={per_process} {BATCH_KEYS[1]}=1"


def redistributed(states: Sequence[Mapping[str, Any]], index: int, seed: int) -> dict[str, Any]:
    """The state of rank `index` from the states that another number of ranks saved.

    Rank 0 takes all sums, every rank takes the means, and a rank that did not exist gets a random stream of its own.
    """
    state = dict(states[index] if index < len(states) else states[0])
    if index >= len(states):
        state["random"] = seeded_state(seed)
    import torch

    saved = [rank_state["running"] for rank_state in states]
    running = dict(saved[0])
    for name in SUMMED:
        if name in running:
            total = _sum([statistics[name] for statistics in saved])
            running[name] = total if index == 0 else _sum([total], 0)
    for name in AVERAGED:
        running[name] = torch.stack([statistics[name] for statistics in saved]).mean(0)
    return state | {"running": running, "epoch_random": states[0]["epoch_random"]}


def _sum(values: Sequence[Any], scale: int = 1) -> Any:
    """The scaled sum of tensors, or of lists of tensors element by element."""
    import torch

    if isinstance(values[0], list):
        return [_sum(column, scale) for column in zip(*values, strict=True)]
    return torch.stack(list(values)).sum(0) * scale


def log_world_size_change(saved: int, now: int) -> None:
    """Print the effects of resuming at another world size."""
    print(
        f"resume: saved by {saved} processes, and there are {now}: each step trains on the same rows, and losses are "
        "the same up to rounding; dropout, if the model has it, draws other masks",
        file=sys.stderr,
    )
