"""A prompt with a response, as token ids."""

from __future__ import annotations

from typing import NamedTuple


class Row(NamedTuple):
    """A prompt and a response to it, both not empty. `kept` says which response tokens count; None: all of them."""

    prompt: list[int]
    response: list[int]
    kept: list[bool] | None = None

    @property
    def num_tokens(self) -> int:
        return len(self.prompt) + len(self.response)
