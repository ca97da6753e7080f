"""Seeds and random states: one stream for each purpose, saved and restored."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping
from typing import Any


def random_state() -> dict[str, Any]:
    """The states of this process's random generators; on a GPU of the one that it computes on."""
    import numpy
    import torch  # imported late, since `python -m STAGE --help` imports this module

    kind, keys, *rest = numpy.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": [kind, [int(key) for key in keys], *rest],
        "torch": torch.get_rng_state(),
        "cuda": [torch.cuda.get_rng_state()] if torch.cuda.is_available() else [],
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    import numpy
    import torch

    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    kind, keys, *rest = state["numpy"]
    numpy.random.set_state((kind, numpy.array(keys, dtype=numpy.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        # Older checkpoints hold a state of every GPU that there was, which may be more than there are now.
        torch.cuda.set_rng_state(state["cuda"][min(torch.cuda.current_device(), len(state["cuda"]) - 1)])


def seeded_state(seed: int) -> dict[str, Any]:
    """Random states derived from a seed."""
    from transformers import set_seed

    before = random_state()
    set_seed(seed % 2**32)
    state = random_state()
    set_random_state(before)
    return state


def stream_seed(purpose: str, *key: int) -> int:
    """Seed of one random stream: `stream_seed("sampling", seed, step, rank)`.

    With added seeds (`seed + step`), run 1 would repeat the streams of run 0 one step later, and the variance over
    seeds would be underestimated.
    """
    return int.from_bytes(hashlib.sha256(repr((purpose, *key)).encode()).digest()[:8], "big")
