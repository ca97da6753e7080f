"""Measurements common to the contestants of `ppo`; it needs only torch, so the peer's Python can run it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

REPEATS = 3


def matmul_rate(config: Any, tokens: int = 1024, responses: int = 512) -> float:
    """The current FLOP/s of plain matrix products, forward and backward, with the shapes of a model.

    It is the best of a few repeats of all linear layers and the output head.

    Args:
        config: a Llama's config.
        tokens, responses: number of rows through the layers, and through the head.
    """
    layers = [(tokens, *shape) for shape in layer_shapes(config)] * config.num_hidden_layers
    layers.append((responses, config.hidden_size, config.vocab_size))
    operands = {shape: (torch.randn(shape[0], shape[1]), torch.randn(shape[2], shape[1])) for shape in set(layers)}
    gradients = {shape: torch.randn(shape[0], shape[2]) for shape in operands}
    flops = sum(6 * rows * width * out for rows, width, out in layers)
    linear, best = torch.nn.functional.linear, float("inf")
    for _ in range(REPEATS):
        started = time.perf_counter()
        for shape in layers:
            (x, weight), gradient = operands[shape], gradients[shape]
            # Through `linear`, which a stage sends to oneDNN where MKL is slow.
            linear(x, weight), linear(gradient, weight.T), linear(gradient.T, x.T)
        best = min(best, time.perf_counter() - started)
    return flops / best


def product_seconds(config: Any, prompts: Sequence[Sequence[int]], new_tokens: int) -> float:
    """Seconds that the plain matrix products of sampling take: all prompts at once, then a row for each and token."""

    def once(rows: int) -> float:
        shapes = layer_shapes(config)
        x = {width: torch.randn(rows, width) for width, _ in shapes}
        # Weights of their own for each layer: one that is used again would still be in the cache.
        layers = [[torch.randn(out, width) for width, out in shapes] for _ in range(config.num_hidden_layers)]
        head, last = torch.randn(config.vocab_size, config.hidden_size), torch.randn(len(prompts), config.hidden_size)
        best = float("inf")
        for _ in range(REPEATS):
            started = time.perf_counter()
            for weight in (weight for layer in layers for weight in layer):
                torch.nn.functional.linear(x[weight.shape[1]], weight)
            torch.nn.functional.linear(last, head)
            best = min(best, time.perf_counter() - started)
        return best

    return once(sum(map(len, prompts))) + (new_tokens - 1) * once(len(prompts))


def layer_shapes(config: Any) -> list[tuple[int, int]]:
    """Inputs and outputs of a layer's matrices: queries, keys, values, output, and a gated MLP."""
    hidden, inner, heads = config.hidden_size, config.intermediate_size, config.num_attention_heads
    width = getattr(config, "head_dim", None) or hidden // heads
    keys = width * (getattr(config, "num_key_value_heads", None) or heads)
    attention = [(hidden, heads * width), (hidden, keys), (hidden, keys), (heads * width, hidden)]
    return [*attention, (hidden, inner), (hidden, inner), (inner, hidden)]


def useful_flops(config: Any, tokens: int, responses: int, epochs: int, trunks: int) -> float:
    """The useful FLOPs of training on a rollout: 6 per weight of a linear layer and token, without attention.

    The layers of policy and critic process every real token, the head only response tokens. Padding, prompts through
    the head, and recomputation are not useful.

    Args:
        tokens, responses: token counts of all episodes; `tokens` counts prompts and responses.
        trunks: 2 with a separate critic, 1 with a head on the policy's states.
    """
    trunk = config.num_hidden_layers * sum(width * out for width, out in layer_shapes(config))
    return 6.0 * epochs * (trunks * trunk * tokens + config.hidden_size * config.vocab_size * responses)


class Stopwatch:
    """Accumulates the time spent in a wrapped function, and keeps a part of its results.

    Args:
        part: extracts the part of a result to keep, since a full result may be as large as a model.
    """

    def __init__(self, part: Callable[[Any], Any]) -> None:
        self.seconds = 0.0
        self.kept: list[Any] = []
        self._part = part

    def around(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap a function."""

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


def rollout_stats(
    config: Any,
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    eos: int,
    epochs: int,
    trunks: int,
) -> dict[str, float]:
    """Mean length and fraction of ended responses, and the useful FLOPs of training on them."""
    response_tokens = sum(map(len, responses))
    tokens = sum(map(len, prompts)) + response_tokens
    return {
        "response_tokens": response_tokens / len(responses),
        "ended": sum(response[-1] == eos for response in responses) / len(responses),
        "useful_flops": useful_flops(config, tokens, response_tokens, epochs, trunks),
    }
