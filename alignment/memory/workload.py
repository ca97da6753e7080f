"""What a run holds in memory, as each stage describes its own from its config; `alignment.memory.plan` sums it up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True)
class Shape:
    """The dimensions of a dense transformer that its activations depend on."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    gated: bool = True
    """Whether the MLP has three matrices (SwiGLU) instead of two."""

    def cache_bytes(self, width: int) -> int:
        """Bytes of one token's keys and values in all layers."""
        return self.num_layers * 2 * self.num_kv_heads * self.head_dim * width

    def layer_bytes(self, width: int, norms: bool = True, joined: int = 0) -> int:
        """Bytes that one layer keeps of one token for its backward pass, in packed rows.

        Norms compute in float32 and keep their input, the scaled input if their weight is trained, and their output.
        Attention keeps queries, keys, values, its output, and the concatenated output. If branches share a prefix, it
        also keeps the joined keys and values, repeated for each head, and the mask. The MLP keeps the input of each of
        its functions.

        Args:
            norms: whether their weights are trained.
            joined: tokens of a branch with its prefix, if prefixes are shared.
        """
        queries, keys = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        norm = self.hidden_size * (4 + width * (1 + norms))
        attention = width * (3 * queries + 2 * keys + (2 * queries + joined if joined else 0))
        return 2 * norm + attention + width * self.intermediate_size * (4 if self.gated else 2)

    @property
    def layer_weights(self) -> int:
        """Weights of one layer's matrices."""
        queries, keys = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        return self.hidden_size * (2 * queries + 2 * keys + self.intermediate_size * (3 if self.gated else 2))

    def passing_bytes(self, width: int) -> int:
        """Bytes of one token inside an MLP, in a pass without gradients or in a layer's backward pass."""
        return width * (3 * self.intermediate_size + 2 * self.hidden_size)


@dataclass(frozen=True)
class Model:
    """A model that a run holds.

    Args:
        parameters: weights that this model adds; on a shared base only its adapter and head.
        trained: number of trained weights.
        frozen_bytes: bytes per frozen weight: 4; 2 in bfloat16; 0.5 in NF4.
        in_engine: whether it is part of the module that DeepSpeed runs, whose frozen weights are cast and sharded too.
        follows_engine: whether it is cast like the engine's module, though separate from it (PPO's reference).
        layers: number of layers, the last ones, that keep activations.
        norms: whether their norms are trained.
        gathered: weights of a full pass, including a shared base's.
    """

    shape: Shape
    parameters: int
    trained: int = 0
    frozen_bytes: float = 4.0
    in_engine: bool = True
    follows_engine: bool = False
    layers: int = 0
    norms: bool = True
    head_trained: bool = False
    gathered: int = 0

    @property
    def as_read(self) -> float:
        """Bytes as it is loaded: what is trained in float32."""
        return 4 * self.trained + (self.parameters - self.trained) * self.frozen_bytes


class Pass(NamedTuple):
    """Forward and backward passes of one kind in an optimizer step.

    Args:
        tokens: tokens of one pass, padding included.
        logits: tokens whose logits exist at a time; 0 for a model without logits.
        repeated: whether there are several such passes before the step, so that gradients exist when the last begins.
        joined: tokens of a prompt with an answer, if a prompt is computed once for several answers; else 0.
    """

    model: Model
    tokens: int
    logits: int
    repeated: bool
    joined: int = 0


class RolloutWorkload(NamedTuple):
    """Sampling and scoring on one process.

    Args:
        rows: responses sampled at a time.
        prompt, response: maximum tokens.
        scored: tokens of a pass without gradients.
        logits: tokens whose logits exist at a time while scoring.
    """

    rows: int
    prompt: int
    response: int
    scored: int
    logits: int


class ColocatedVLLM(NamedTuple):
    """vLLM beside the training on each GPU, which gives its memory back while the policy is trained.

    Args:
        share: bytes that it may take; 0 if the GPU's memory is not known.
        weights: bytes of its copy of the policy, or of this GPU's part of it.
        working: bytes of a pass.
        row: bytes of this GPU's keys and values of the longest row.
        rows: number of rows at a time that the config asks for.
    """

    share: float
    weights: float
    working: float
    row: float
    rows: int

    @property
    def rows_at_a_time(self) -> int:
        """Rows whose keys and values have room."""
        if not self.share:
            return self.rows
        return max(0, min(self.rows, int((self.share - self.weights - self.working) // self.row)))

    @property
    def fits(self) -> bool:
        """Whether there is room for its weights and one row."""
        return self.rows_at_a_time > 0

    @property
    def held(self) -> float:
        """Bytes while it samples: all of its share."""
        return self.share or self.weights + self.working + self.rows * self.row


@dataclass(frozen=True)
class Workload:
    """The models and passes of one process.

    Args:
        models: the first is the policy, or the only trained model.
        bf16: bfloat16 arithmetic.
        checkpointed: activation checkpointing.
        own_loop: PPO's loop, which uses no DDP wrapper and torch's AdamW; otherwise TRL's trainers.
        offload: whether unused frozen models outside of the engine are in host memory.
        averaged: weights with a moving average, in float32.
    """

    models: tuple[Model, ...]
    passes: tuple[Pass, ...]
    bf16: bool
    checkpointed: bool
    rollout: RolloutWorkload | None = None
    own_loop: bool = False
    offload: bool = False
    averaged: int = 0
    vllm: ColocatedVLLM | None = None

    @property
    def largest_tensor(self) -> float:
        """Bytes of the largest tensor of any model in float32."""
        return 4.0 * max(model.shape.vocab_size * model.shape.hidden_size for model in self.models)
