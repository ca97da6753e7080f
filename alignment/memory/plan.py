"""Estimating a run's GPU memory: weights, gradients, optimizer, activations, cache, logits.

A `Workload` describes a run; each stage makes its own from its config. `estimate` goes through the moments at which
memory may peak and sums the parts at each of them.

Bytes per trained weight (Rajbhandari et al. 2020, "ZeRO", section 3.1): with bfloat16 under DeepSpeed 2 for the weight,
2 for its gradient, 12 for the optimizer (a float32 copy and Adam's two moments). ZeRO-1 shards the optimizer over the
ranks, ZeRO-2 the gradients too, ZeRO-3 all. Without DeepSpeed a weight is float32, without a copy: 4 + 4 + 8.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

PARTS = ("weights", "gradients", "optimizer", "activations", "cache", "logits", "buffers")
REDUCE_BUCKET = 500_000_000
"""Elements of DeepSpeed's gradient bucket (`reduce_bucket_size`)."""
LIVE_PARAMETERS = 1_000_000_000
"""Weights that ZeRO-3 keeps gathered at a time (`stage3_max_live_parameters`)."""
PREFETCHED = 50_000_000
"""Weights that ZeRO-3 gathers ahead (`stage3_prefetch_bucket_size`)."""
HOST_BYTES = 18
"""Host memory per trained weight under offload: 2 for the weight, 4 for its gradient, 12 for the optimizer, as in
DeepSpeed's own estimate (`estimate_zero3_model_states_mem_needs`)."""
LOSS_BYTES = 12
"""Extra bytes per logit for a loss: three float32 tensors (log-probabilities, their gradient, the logits' gradient)."""
SCORING_BYTES = 20
"""Bytes per logit while scoring with entropies and without gradients: five float32 tensors."""
SAMPLING_BYTES = 16
"""Extra bytes per logit while sampling: the float32 logits, their softmax, and its sum in float64."""


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


class Pass(NamedTuple):
    """Forward and backward passes of one kind in an optimizer step.

    Args:
        tokens: tokens of one pass, padding included.
        logits: tokens whose logits exist at a time; 0 for a model without logits.
        repeated: whether there are several such passes before the step, so that gradients exist when the last begins.
        joined: tokens of a prompt with an answer, if a prompt is computed once for several answers; else 0.
        entropy: whether the entropy is part of the loss.
    """

    model: Model
    tokens: int
    logits: int
    repeated: bool
    joined: int = 0
    entropy: bool = False


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

    def loading(self, stage: int) -> float:
        """Host memory of each process while its models are loaded, the trained ones in float32: whole, or under ZeRO-3
        their largest tensor, which goes straight into shards."""
        if stage == 3:
            return 4.0 * max(model.shape.vocab_size * model.shape.hidden_size for model in self.models)
        return sum(4 * model.trained + (model.parameters - model.trained) * model.frozen_bytes for model in self.models)


class Strategy(NamedTuple):
    """How a launch distributes a run; `name` is that of its file in configs/accelerate/."""

    name: str
    stage: int
    offload: bool = False

    @property
    def deepspeed(self) -> bool:
        return self.stage > 0


SINGLE = Strategy("single", 0)
DDP = Strategy("ddp", 0)
STRATEGIES = (DDP, Strategy("zero1", 1), Strategy("zero2", 2), Strategy("zero3", 3), Strategy("zero3-offload", 3, True))


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on one GPU at each moment, by part, and in host memory per GPU."""

    moments: Mapping[str, Mapping[str, float]]
    host: float

    @property
    def fullest(self) -> str:
        """The moment of peak memory."""
        return max(self.moments, key=lambda moment: sum(self.moments[moment].values()))

    @property
    def parts(self) -> Mapping[str, float]:
        return self.moments[self.fullest]

    @property
    def peak(self) -> float:
        return sum(self.parts.values())


def in_gb(memory: MemoryEstimate) -> dict[str, Any]:
    """An estimate in GB (10^9 bytes), for people and JSON."""
    sizes = {**memory.parts, "peak": memory.peak, "host": memory.host}
    return {"moment": memory.fullest, **{name: round(size / 1e9, 5) for name, size in sizes.items()}}


def estimate(work: Workload, strategy: Strategy, processes: int, on_gpu: bool = True) -> MemoryEstimate:
    """Memory of one process.

    Args:
        processes: world size, over which ZeRO shards.
        on_gpu: False for a process on the CPU, whose peak counts only pages that were written to: DeepSpeed's buffers
            are reserved but hardly used, and torch's AdamW makes no tensors as large as all weights there.
    """
    return _Ledger(work, strategy, processes, on_gpu).estimate()


class _Ledger:
    """The sums behind `estimate`; all in bytes."""

    def __init__(self, work: Workload, strategy: Strategy, processes: int, on_gpu: bool) -> None:
        self.work, self.strategy, self.processes, self.on_gpu = work, strategy, processes, on_gpu
        self.width = 2 if work.bf16 else 4
        self.rounded = strategy.deepspeed and work.bf16
        self.weight = 2 if self.rounded else 4
        self.shards = processes if strategy.stage == 3 else 1
        self.engine = [model for model in work.models if model.in_engine]
        self.others = [model for model in work.models if not model.in_engine]
        self.trained = sum(model.trained for model in self.engine)

    def estimate(self) -> MemoryEstimate:
        moments: dict[str, dict[str, float]] = {}
        if self.work.rollout is not None:
            moments |= self._rollout(self.work.rollout)
        done = 0  # trained weights whose gradient exists already
        for index, step in enumerate(self.work.passes):
            name = "update" if len(self.work.passes) == 1 else ("policy update", "value update")[index]
            moments |= self._backward(name, step, done)
            done += step.model.trained
        moments["optimizer step"] = self._at(gradients=self._gradients(self.trained, stepping=True), stepping=True)
        return MemoryEstimate(moments, self._host())

    # --- parts of every moment ---------------------------------------------------------------------------------------

    def _at(
        self, *, gradients: float, stepping: bool = False, scoring: bool = False, **parts: float
    ) -> dict[str, float]:
        """All parts at one moment."""
        sizes = dict.fromkeys(PARTS, 0.0)
        sizes |= {"weights": self._weights(scoring), "gradients": gradients}
        sizes |= {"optimizer": self._optimizer(stepping), "buffers": self._buffers()}
        for part, size in parts.items():
            sizes[part] += size
        return sizes

    def _model_bytes(self, model: Model) -> float:
        frozen = model.parameters - model.trained
        rounded = self.rounded and (model.in_engine or model.follows_engine)
        return model.trained * self.weight + frozen * (min(model.frozen_bytes, 2.0) if rounded else model.frozen_bytes)

    def _weights(self, scoring: bool) -> float:
        """Bytes of all weights on the GPU; of offloaded frozen models only one at a time, while it scores."""
        size = 0.0 if self.strategy.offload else sum(map(self._model_bytes, self.engine)) / self.shards
        others = [self._model_bytes(model) / self.shards for model in self.others]
        if self.work.offload:
            others = [max(others, default=0.0)] if scoring else []
        size += sum(others) + 4 * self.work.averaged / self.shards
        if self.work.bf16 and not self.strategy.deepspeed:
            size += 2 * self.trained  # autocast caches bfloat16 copies
        return size

    def _optimizer(self, stepping: bool) -> float:
        if self.strategy.offload:
            return 0.0
        if self.strategy.deepspeed:
            return 12 * self.trained / self.processes
        all_at_once = stepping and self.work.own_loop and self.on_gpu  # torch's foreach AdamW holds all denominators
        return (12 if all_at_once else 8) * self.trained

    def _gradients(self, trained: int, stepping: bool = False) -> float:
        """Bytes of the gradients of `trained` weights."""
        size = float(trained * self.weight)
        if self.strategy.offload:
            return 0.0
        if self.strategy.stage == 3:
            size = self.trained * self.weight / self.processes  # one buffer is allocated at the start
        elif self.strategy.stage == 2:
            size /= self.processes
        elif self.strategy == DDP and self.processes > 1 and not self.work.own_loop:
            size += self.trained * self.weight  # DDP's buckets
        if stepping and self.strategy.deepspeed:
            shard = self.trained / self.processes  # the optimizer needs a float32 gradient
            size += 4 * (min(shard, LIVE_PARAMETERS) if self.strategy.stage == 3 else shard)
        return size

    def _buffers(self) -> float:
        if not (self.strategy.deepspeed and self.on_gpu):
            return 0.0
        size = REDUCE_BUCKET * self.weight
        if self.strategy.stage == 3:
            gathered = max(model.gathered for model in self.work.models)
            size += (min(gathered, LIVE_PARAMETERS) + PREFETCHED) * self.weight
        return float(size)

    def _host(self) -> float:
        """Bytes in host memory: the engine's under offload, and offloaded frozen models."""
        size = 0.0
        if self.strategy.offload:
            frozen = sum(self._model_bytes(m) - m.trained * self.weight for m in self.engine)
            size += (HOST_BYTES * self.trained + frozen) / self.processes
        if self.work.offload:
            size += sum(map(self._model_bytes, self.others)) / self.shards
        return size

    # --- passes ------------------------------------------------------------------------------------------------------

    def _backward(self, name: str, step: Pass, done: int) -> dict[str, dict[str, float]]:
        """The moments of one forward and backward pass: at the loss, in the last layer, in the first."""
        model, shape, width = step.model, step.model.shape, self.width
        layer = step.tokens * shape.layer_bytes(width, model.norms, step.joined)
        passing = step.tokens * shape.passing_bytes(width)
        states = step.tokens * shape.hidden_size * width
        kept = states + model.layers * (states if self.work.checkpointed else layer)
        logits = step.logits * shape.vocab_size * ((width if width == 2 else 0) + LOSS_BYTES * (1 + step.entropy))
        head = shape.vocab_size * shape.hidden_size if model.head_trained else 0
        before = done + (model.trained if step.repeated else head)
        recomputed = layer if self.work.checkpointed else 0
        moments = {f"{name}: loss": self._at(gradients=self._gradients(before), activations=kept, logits=logits)}
        if model.layers:
            last = kept + recomputed + passing
            moments[f"{name}: last layer"] = self._at(gradients=self._gradients(before), activations=last)
            after = self._gradients(done + model.trained)
            moments[f"{name}: first layer"] = self._at(gradients=after, activations=layer + passing)
        return moments

    def _rollout(self, rollout: RolloutWorkload) -> dict[str, dict[str, float]]:
        """The moments of a rollout: sampling by the policy, then scoring by one model after the other."""
        policy, width = self.work.models[0], self.width
        shape, length = policy.shape, rollout.prompt + rollout.response
        whole = 0.0
        if self.strategy.stage == 3 and rollout.rows:  # the transformers engine samples from a gathered policy
            whole = self._model_bytes(policy) + (policy.gathered - policy.parameters) * self.weight
        repeated = 0 if shape.num_heads == shape.num_kv_heads else 2 * shape.num_heads * shape.head_dim * width
        sampling = self._at(
            gradients=self._gradients(0),
            weights=whole,
            activations=rollout.rows * max(rollout.prompt * shape.passing_bytes(width), length * repeated),
            cache=rollout.rows * length * shape.cache_bytes(width) + (self.work.vllm.held if self.work.vllm else 0.0),
            logits=rollout.rows * shape.vocab_size * (SAMPLING_BYTES + width),
        )
        scoring = self._at(
            gradients=self._gradients(0),
            scoring=True,
            weights=whole,  # the policy is scored before it is released; other models are fetched layer by layer
            activations=rollout.scored * shape.passing_bytes(width),
            logits=rollout.logits * shape.vocab_size * SCORING_BYTES,
        )
        return {"sampling": sampling, "scoring": scoring}
