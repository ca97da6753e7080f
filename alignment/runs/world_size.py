"""Going on with another number of processes: the same rows in each step, none lost or doubled.

What an optimizer step trains on is one stretch of the epoch's order, whoever works on which part of it, so the batch of
all processes together has to stay as it was. Plain checkpoints hold the whole optimizer; what DeepSpeed's ZeRO has
parted is put together and parted anew (`universal.py`).
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from alignment.errors import CheckpointError
from alignment.seeds import seeded_state

PER_DEVICE, ACCUMULATED = "per_device_train_batch_size", "gradient_accumulation_steps"
BATCH_KEYS = (f"training.{PER_DEVICE}", f"training.{ACCUMULATED}")
DEFAULTS = {PER_DEVICE: 8, ACCUMULATED: 1}
"""transformers'."""
SUMMED, AVERAGED = ("sums", "tokens_seen"), ("loss",)
"""What processes add up, and what they take the mean of, when they write a line to the log."""


def same_batches(before: Mapping[str, Any], now: Mapping[str, Any], saved: int, processes: int) -> bool:
    """Whether two configs of a TRL stage make optimizer batches of the same size on so many processes. (PPO's are of
    all processes as they stand in the config.)

    Raises:
        CheckpointError: the number of processes is another, and the batches are too.
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
    own = batch // processes
    if own % new[PER_DEVICE] == 0:
        return f"set {BATCH_KEYS[1]}={own // new[PER_DEVICE]}"
    return f"set {BATCH_KEYS[0]}={own} {BATCH_KEYS[1]}=1"


def redistributed(states: Sequence[Mapping[str, Any]], index: int, seed: int) -> dict[str, Any]:
    """What a process goes on with where another number of them have saved theirs: sums stand with the first alone,
    means with each, and a process that there was not draws from a stream of its own."""
    own = dict(states[index] if index < len(states) else states[0])
    if index >= len(states):
        own["random"] = seeded_state(seed)
    import torch

    parts = [state["running"] for state in states]
    running = dict(parts[0])
    for name in SUMMED:
        if name in running:
            total = _sum([part[name] for part in parts])
            running[name] = total if index == 0 else _sum([total], 0)
    for name in AVERAGED:
        running[name] = torch.stack([part[name] for part in parts]).mean(0)
    return own | {"running": running, "epoch_random": states[0]["epoch_random"]}


def _sum(values: Sequence[Any], scale: int = 1) -> Any:
    """Of tensors, or of lists of them place by place."""
    import torch

    if isinstance(values[0], list):
        return [_sum(column, scale) for column in zip(*values, strict=True)]
    return torch.stack(list(values)).sum(0) * scale


def say(saved: int, now: int) -> None:
    """That the run goes on with another number of processes, and what of that shows in the result."""
    print(
        f"resume: saved by {saved} processes, and there are {now}: the same rows in each step, and losses that are the "
        "same but for rounding; where the model has dropout, it drops others",
        file=sys.stderr,
    )
