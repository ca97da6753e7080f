"""Tokens that a TRL trainer has trained on, and how many a second."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

from alignment.distributed.processes import all_reduce_sum


class TokenCount:
    """Counts on each process and adds up over all of them where a line is logged: nothing waits for the device before.

    What came before a run was resumed counts in the total, not in the rate.
    """

    def __init__(self) -> None:
        self.total = torch.zeros((), dtype=torch.float64)
        """Of this process, over the whole run."""
        self._since_line = torch.zeros((), dtype=torch.float64)
        self._clock: float | None = None

    def add(self, inputs: dict[str, Any]) -> None:
        """A batch that is trained on."""
        if self._clock is None:
            self._clock = time.monotonic()
        tokens = num_tokens(inputs)
        self.total, self._since_line = self.total + tokens, self._since_line + tokens

    def pause(self, seconds: float) -> None:
        """So much of the time since the last line went into something else."""
        if self._clock is not None:
            self._clock += seconds

    def figures(self, device: torch.device) -> dict[str, float]:
        """For a line that every process logs; empty where nothing was trained on since the last one."""
        total, tokens = all_reduce_sum(torch.stack([self.total, self._since_line]).to(device)).tolist()
        if not tokens:
            return {}
        now = time.monotonic()
        seconds = max(now - (now if self._clock is None else self._clock), 1e-9)
        self._since_line, self._clock = torch.zeros_like(self._since_line), now
        return {"num_tokens": total, "tokens_per_second": tokens / seconds}


def num_tokens(inputs: dict[str, Any]) -> Tensor | int:
    """Tokens of a batch, without padding; the mask of a packed row does not tell tokens from padding."""
    return inputs["input_ids"].numel() if "position_ids" in inputs else inputs["attention_mask"].sum()
