"""What the contestants of `ppo` measure alike; needs torch alone, so the peer's Python runs it too."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

REPEATS = 3


def matmul_rate(config: Any, tokens: int = 1024, responses: int = 512) -> float:
    """FLOP/s that this process reaches now in bare matrix products, forward and backward, at the shapes of a model.

    The best of a few repeats of all linear layers of one transformer layer and the output head.

    Args:
        config: of a Llama.
        tokens, responses: rows that go through the layers, and through the head.
    """
    hidden, inner = config.hidden_size, config.intermediate_size
    layers = [(tokens, hidden, hidden)] * 4 + [(tokens, hidden, inner)] * 2 + [(tokens, inner, hidden)]
    layers *= config.num_hidden_layers
    layers.append((responses, hidden, config.vocab_size))
    operands = {shape: (torch.randn(shape[0], shape[1]), torch.randn(shape[2], shape[1])) for shape in set(layers)}
    gradients = {shape: torch.randn(shape[0], shape[2]) for shape in operands}
    flops = sum(6 * rows * width * out for rows, width, out in layers)
    best = float("inf")
    for _ in range(REPEATS):
        started = time.perf_counter()
        for shape in layers:
            (x, weight), gradient = operands[shape], gradients[shape]
            x @ weight.T, gradient @ weight, gradient.T @ x
        best = min(best, time.perf_counter() - started)
    return flops / best


def useful_flops(config: Any, tokens: int, responses: int, epochs: int, trunks: int) -> float:
    """Of training on a rollout: 6 for each weight of a linear layer and token, attention left out.

    The layers of policy and critic see every real token, the head the response tokens alone. Padding, prompts through
    the head, and anything computed twice are not useful.

    Args:
        tokens, responses: of all episodes; the first are prompts and responses.
        trunks: 2 with a critic of its own, 1 with a head on the policy's states.
    """
    hidden, inner = config.hidden_size, config.intermediate_size
    trunk = config.num_hidden_layers * (4 * hidden * hidden + 3 * hidden * inner)
    return 6.0 * epochs * (trunks * trunk * tokens + hidden * config.vocab_size * responses)


class Stopwatch:
    """Adds up the time spent in what it is put around, and keeps a part of what that returned.

    Args:
        part: of a result; the whole of one can be as large as a model.
    """

    def __init__(self, part: Callable[[Any], Any]) -> None:
        self.seconds = 0.0
        self.kept: list[Any] = []
        self._part = part

    def around(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, timed."""

        def timed(*arguments: Any, **keywords: Any) -> Any:
            started = time.perf_counter()
            result = call(*arguments, **keywords)
            self.seconds += time.perf_counter() - started
            self.kept.append(self._part(result))
            return result

        return timed


def through_end(response: Sequence[int], eos_token_id: int) -> list[int]:
    """A response through its first EOS, or all of it."""
    response = list(response)
    return response[: response.index(eos_token_id) + 1] if eos_token_id in response else response


def rollout_figures(
    config: Any,
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    eos: int,
    epochs: int,
    trunks: int,
) -> dict[str, float]:
    """Length and share of the responses that ended, and the useful work of training on them."""
    response_tokens = sum(map(len, responses))
    tokens = sum(map(len, prompts)) + response_tokens
    return {
        "response_tokens": response_tokens / len(responses),
        "ended": sum(response[-1] == eos for response in responses) / len(responses),
        "useful_flops": useful_flops(config, tokens, response_tokens, epochs, trunks),
    }
