"""The number of tokens that a TRL trainer has trained on, in total and per second."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

from alignment.distributed.processes import all_reduce_sum


class TokenCount:
    """Counts tokens on each rank, and sums over ranks only when a line is logged, so no step waits for the device.

    Tokens from before a resume count in the total, not in the tokens per second.
    """

    def __init__(self) -> None:
        self.total = torch.zeros((), dtype=torch.float64)
        """This rank's tokens over the whole run."""
        self._since_line = torch.zeros((), dtype=torch.float64)
        self._clock: float | None = None

    def add(self, inputs: dict[str, Any]) -> None:
        """Count a training batch."""
        if self._clock is None:
            self._clock = time.monotonic()
        tokens = num_tokens(inputs)
        self.total, self._since_line = self.total + tokens, self._since_line + tokens

    def pause(self, seconds: float) -> None:
        """Exclude time that was spent on something else since the last line."""
        if self._clock is not None:
            self._clock += seconds

    def metrics(self, device: torch.device) -> dict[str, float]:
        """Metrics for a log line; empty if nothing was trained since the last one. Every rank must call this."""
        total, tokens = all_reduce_sum(torch.stack([self.total, self._since_line]).to(device)).tolist()
        if not tokens:
            return {}
        now = time.monotonic()
        seconds = max(now - (now if self._clock is None else self._clock), 1e-9)
        self._since_line, self._clock = torch.zeros_like(self._since_line), now
        return {"num_tokens": total, "tokens_per_second": tokens / seconds}


def num_tokens(inputs: dict[str, Any]) -> Tensor | int:
    """Tokens of a batch without padding; a packed row's mask does not mark padding, so all its tokens count."""
    return inputs["input_ids"].numel() if "position_ids" in inputs else inputs["attention_mask"].sum()
