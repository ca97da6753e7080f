"""What a run takes of a GPU's memory, by arithmetic: weights, gradients, optimizer, activations, cache, logits.

A `Workload` says what a run holds and does; each stage makes its own from its config. `estimate` walks through the
moments at which memory can be fullest and adds up what stands at each, so the parts of one moment sum to its total.

Bytes of a trained weight (Rajbhandari et al. 2020, "ZeRO", section 3.1): with bfloat16 under DeepSpeed 2 for itself, 2
for its gradient, 12 for the optimizer (a float32 copy and Adam's two moments). ZeRO-1 divides the last of these by the
processes, ZeRO-2 the gradients too, ZeRO-3 all. Without DeepSpeed a weight is float32, without a copy: 4 + 4 + 8.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

PARTS = ("weights", "gradients", "optimizer", "activations", "cache", "logits", "buffers")
REDUCE_BUCKET = 500_000_000
"""Numbers in the buffer in which DeepSpeed collects gradients before it sends them (`reduce_bucket_size`)."""
LIVE_PARAMETERS = 1_000_000_000
"""Weights that ZeRO-3 leaves gathered at a time (`stage3_max_live_parameters`)."""
PREFETCHED = 50_000_000
"""Weights that ZeRO-3 gathers ahead (`stage3_prefetch_bucket_size`)."""
HOST_BYTES = 18
"""Of a trained weight in the host's memory under offload: 2 for itself, 4 for its gradient, 12 for the optimizer, as
DeepSpeed's own estimate has it (`estimate_zero3_model_states_mem_needs`)."""
LOSS_BYTES, SCORING_BYTES, SAMPLING_BYTES = 12, 20, 16
"""Of each logit beside its own two or four where a loss is taken: three float32 tensors (exponentials or
log-probabilities, their gradient, the logits' gradient); where entropies are taken too, without a gradient: five; where
a token is drawn: the float32 logits, their softmax, and its sum in float64."""


@dataclass(frozen=True)
class Shape:
    """What of a dense transformer its activations depend on."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    gated: bool = True
    """An MLP of three matrices (SwiGLU), not of two."""

    def cache_bytes(self, width: int) -> int:
        """Keys and values of one token in all layers."""
        return self.num_layers * 2 * self.num_kv_heads * self.head_dim * width

    def layer_bytes(self, width: int, norms: bool = True, joined: int = 0) -> int:
        """What one layer keeps of one token for its backward pass, in packed rows.

        Norms compute in float32 and keep their input, the scaled input if their weight learns, and their output.
        Attention keeps queries, keys, values, its output, and that once more where pieces are put together; where
        branches share a prefix, also the keys and values of both, joined and repeated for each head, and the mask. The
        MLP keeps the input of each of its functions.

        Args:
            norms: their weights are trained.
            joined: tokens of a branch with its prefix, where these are shared.
        """
        queries, keys = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        norm = self.hidden_size * (4 + width * (1 + norms))
        attention = width * (3 * queries + 2 * keys + (2 * queries + joined if joined else 0))
        return 2 * norm + attention + width * self.intermediate_size * (4 if self.gated else 2)

    def passing_bytes(self, width: int) -> int:
        """What stands of one token while a pass without gradients, or a layer's backward pass, is in an MLP."""
        return width * (3 * self.intermediate_size + 2 * self.hidden_size)


@dataclass(frozen=True)
class Model:
    """Weights that a run holds, and what a pass through them keeps.

    Args:
        parameters: what this model adds; of one on another's weights its adapter and head alone.
        trained: how many of them are trained.
        frozen_bytes: of a weight that is not trained: 4; 2 in bfloat16; 0.5 in NF4.
        in_engine: part of the module that DeepSpeed runs, whose frozen weights are rounded and parted too.
        follows_engine: rounded as that one, though apart from it (PPO's reference).
        layers: how many layers, the last ones, keep activations.
        norms: whether their norms are trained.
        gathered: weights that a pass goes through, with those of the base that are another model's.
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
        tokens: of one pass, padding included.
        logits: tokens whose logits stand at a time; 0 for a model without them.
        repeated: there is more than one pass of the kind before the step, so gradients stand when the last begins.
        joined: tokens of a prompt with an answer, where a prompt is computed once for several; else 0.
        entropy: of the logits' distribution is part of the loss.
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
        prompt, response: tokens at most.
        scored: tokens of a pass without gradients.
        logits: tokens whose logits stand at a time while scoring.
    """

    rows: int
    prompt: int
    response: int
    scored: int
    logits: int


@dataclass(frozen=True)
class Workload:
    """What one process holds and does.

    Args:
        models: the first is the policy (or the one model that is trained).
        bf16: bfloat16 arithmetic.
        checkpointed: activation checkpointing.
        own_loop: PPO's, which wraps nothing in DDP and has torch's own AdamW; else TRL's trainers.
        offload: frozen models outside of the engine wait in the host's memory while they are not used.
        averaged: weights of which a moving average is kept, in float32.
        vllm: what a colocated vLLM takes of each GPU, weights and cache; it sleeps while the policy is trained, or not.
    """

    models: tuple[Model, ...]
    passes: tuple[Pass, ...]
    bf16: bool
    checkpointed: bool
    rollout: RolloutWorkload | None = None
    own_loop: bool = False
    offload: bool = False
    averaged: int = 0
    vllm: float = 0.0
    vllm_sleeps: bool = False

    @property
    def loading(self) -> float:
        """Of the host's memory, for each process, while its models are read: trained ones in float32, each whole."""
        return sum(4 * model.trained + (model.parameters - model.trained) * model.frozen_bytes for model in self.models)


class Strategy(NamedTuple):
    """How a launch spreads a run over processes; `name` is that of its file in configs/accelerate/."""

    name: str
    stage: int
    offload: bool = False

    @property
    def deepspeed(self) -> bool:
        return self.stage > 0


SINGLE, DDP = Strategy("single", 0), Strategy("ddp", 0)
STRATEGIES = (DDP, Strategy("zero1", 1), Strategy("zero2", 2), Strategy("zero3", 3), Strategy("zero3-offload", 3, True))


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on one GPU at each moment, by part; and in the host's memory for each GPU."""

    moments: Mapping[str, Mapping[str, float]]
    host: float

    @property
    def fullest(self) -> str:
        """The moment at which memory is fullest."""
        return max(self.moments, key=lambda moment: sum(self.moments[moment].values()))

    @property
    def parts(self) -> Mapping[str, float]:
        return self.moments[self.fullest]

    @property
    def peak(self) -> float:
        return sum(self.parts.values())


def in_gb(found: MemoryEstimate) -> dict[str, Any]:
    """An estimate in GB (10^9 bytes), for people and JSON."""
    sizes = {**found.parts, "peak": found.peak, "host": found.host}
    return {"moment": found.fullest, **{name: round(size / 1e9, 5) for name, size in sizes.items()}}


def estimate(work: Workload, strategy: Strategy, processes: int, on_gpu: bool = True) -> MemoryEstimate:
    """Memory of one process.

    Args:
        processes: of the whole launch, over which ZeRO divides.
        on_gpu: False for a process on the CPU, whose peak counts pages that were written to: DeepSpeed's buffers are
            reserved and hardly used, and torch's AdamW there makes no tensors as large as all weights.
    """
    return _Ledger(work, strategy, processes, on_gpu).estimate()


class _Ledger:
    """The sums behind `estimate`; all in bytes."""

    def __init__(self, work: Workload, strategy: Strategy, processes: int, on_gpu: bool) -> None:
        self.work, self.strategy, self.processes, self.on_gpu = work, strategy, processes, on_gpu
        self.width = 2 if work.bf16 else 4
        self.rounded = strategy.deepspeed and work.bf16
        self.weight = 2 if self.rounded else 4
        self.parted = processes if strategy.stage == 3 else 1
        self.engine = [model for model in work.models if model.in_engine]
        self.others = [model for model in work.models if not model.in_engine]
        self.trained = sum(model.trained for model in self.engine)

    def estimate(self) -> MemoryEstimate:
        moments: dict[str, dict[str, float]] = {}
        if self.work.rollout is not None:
            moments |= self._rollout(self.work.rollout)
        done = 0  # trained weights whose gradient is there
        for number, each in enumerate(self.work.passes):
            name = "update" if len(self.work.passes) == 1 else ("policy update", "value update")[number]
            moments |= self._backward(name, each, done)
            done += each.model.trained
        moments["optimizer step"] = self._at(gradients=self._gradients(self.trained, stepping=True), stepping=True)
        return MemoryEstimate(moments, self._host())

    # --- what stands all the time ------------------------------------------------------------------------------------

    def _at(
        self, *, gradients: float, stepping: bool = False, scoring: bool = False, **parts: float
    ) -> dict[str, float]:
        """All parts at one moment."""
        found = dict.fromkeys(PARTS, 0.0)
        found |= {"weights": self._weights(scoring), "gradients": gradients}
        found |= {"optimizer": self._optimizer(stepping), "buffers": self._buffers()}
        found["cache"] += 0.0 if self.work.vllm_sleeps else self.work.vllm
        for part, size in parts.items():
            found[part] += size
        return found

    def _model_bytes(self, model: Model) -> float:
        frozen = model.parameters - model.trained
        rounded = self.rounded and (model.in_engine or model.follows_engine)
        return model.trained * self.weight + frozen * (min(model.frozen_bytes, 2.0) if rounded else model.frozen_bytes)

    def _weights(self, scoring: bool) -> float:
        """Of frozen models that can wait in the host's memory one is there while it scores."""
        held = 0.0 if self.strategy.offload else sum(map(self._model_bytes, self.engine)) / self.parted
        others = [self._model_bytes(model) / self.parted for model in self.others]
        if self.work.offload:
            others = [max(others, default=0.0)] if scoring else []
        held += sum(others) + 4 * self.work.averaged / self.parted
        if self.work.bf16 and not self.strategy.deepspeed:
            held += 2 * self.trained  # autocast keeps a rounded copy of what it has used
        return held

    def _optimizer(self, stepping: bool) -> float:
        if self.strategy.offload:
            return 0.0
        if self.strategy.deepspeed:
            return 12 * self.trained / self.processes
        all_at_once = stepping and self.work.own_loop and self.on_gpu  # torch's foreach: a denominator for every weight
        return (12 if all_at_once else 8) * self.trained

    def _gradients(self, trained: int, stepping: bool = False) -> float:
        """Of so many trained weights whose gradient is there."""
        size = float(trained * self.weight)
        if self.strategy.offload:
            return 0.0
        if self.strategy.stage == 3:
            size = self.trained * self.weight / self.processes  # one buffer, made at the start
        elif self.strategy.stage == 2:
            size /= self.processes
        elif self.strategy == DDP and self.processes > 1 and not self.work.own_loop:
            size += self.trained * self.weight  # the buckets that DDP adds up in
        if stepping and self.strategy.deepspeed:
            parted = self.trained / self.processes  # in float32, for the optimizer
            size += 4 * (min(parted, LIVE_PARAMETERS) if self.strategy.stage == 3 else parted)
        return size

    def _buffers(self) -> float:
        if not (self.strategy.deepspeed and self.on_gpu):
            return 0.0
        size = REDUCE_BUCKET * self.weight
        if self.strategy.stage == 3:
            through = max(model.gathered for model in self.work.models)
            size += (min(through, LIVE_PARAMETERS) + PREFETCHED) * self.weight
        return float(size)

    def _host(self) -> float:
        """Under offload; and frozen models that wait there."""
        size = 0.0
        if self.strategy.offload:
            frozen = sum(self._model_bytes(m) - m.trained * self.weight for m in self.engine)
            size += (HOST_BYTES * self.trained + frozen) / self.processes
        if self.work.offload:
            size += sum(map(self._model_bytes, self.others)) / self.parted
        return size

    # --- passes ------------------------------------------------------------------------------------------------------

    def _backward(self, name: str, each: Pass, done: int) -> dict[str, dict[str, float]]:
        """The moments of one forward and backward pass: at the loss, in the last layer, in the first."""
        model, shape, width = each.model, each.model.shape, self.width
        layer = each.tokens * shape.layer_bytes(width, model.norms, each.joined)
        passing = each.tokens * shape.passing_bytes(width)
        states = each.tokens * shape.hidden_size * width
        kept = states + model.layers * (states if self.work.checkpointed else layer)
        logits = each.logits * shape.vocab_size * ((width if width == 2 else 0) + LOSS_BYTES * (1 + each.entropy))
        head = shape.vocab_size * shape.hidden_size if model.head_trained else 0
        before = done + (model.trained if each.repeated else head)
        recomputed = layer if self.work.checkpointed else 0
        moments = {f"{name}: loss": self._at(gradients=self._gradients(before), activations=kept, logits=logits)}
        if model.layers:
            last = kept + recomputed + passing
            moments[f"{name}: last layer"] = self._at(gradients=self._gradients(before), activations=last)
            after = self._gradients(done + model.trained)
            moments[f"{name}: first layer"] = self._at(gradients=after, activations=layer + passing)
        return moments

    def _rollout(self, rollout: RolloutWorkload) -> dict[str, dict[str, float]]:
        """Sampling by the policy, then scoring by one model after the other."""
        policy, width = self.work.models[0], self.width
        shape, length = policy.shape, rollout.prompt + rollout.response
        whole = [0.0] * len(self.work.models)
        if self.strategy.stage == 3:  # each is put together while it is used, one at a time
            whole = [self._model_bytes(m) + (m.gathered - m.parameters) * self.weight for m in self.work.models]
        repeated = 0 if shape.num_heads == shape.num_kv_heads else 2 * shape.num_heads * shape.head_dim * width
        sampling = self._at(
            gradients=self._gradients(0),
            weights=whole[0],
            activations=rollout.rows * max(rollout.prompt * shape.passing_bytes(width), length * repeated),
            cache=rollout.rows * length * shape.cache_bytes(width) + (self.work.vllm if self.work.vllm_sleeps else 0.0),
            logits=rollout.rows * shape.vocab_size * (SAMPLING_BYTES + width),
        )
        scoring = self._at(
            gradients=self._gradients(0),
            scoring=True,
            weights=max(whole),
            activations=rollout.scored * shape.passing_bytes(width),
            logits=rollout.logits * shape.vocab_size * SCORING_BYTES,
        )
        return {"sampling": sampling, "scoring": scoring}
