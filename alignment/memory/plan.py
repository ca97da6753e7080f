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

from alignment.memory.workload import Model, Pass, RolloutWorkload, Workload

PARTS = ("weights", "gradients", "optimizer", "activations", "cache", "logits", "buffers")
HOST_BYTES = 18
"""Host memory per trained weight under offload: 2 for the weight, 4 for its gradient, 12 for the optimizer, as in
DeepSpeed's own estimate (`estimate_zero3_model_states_mem_needs`)."""
LOSS_BYTES = 12
"""Extra bytes per logit for a loss: three float32 tensors (log-probabilities, their gradient, the logits' gradient)."""
SCORING_BYTES = 20
"""Bytes per logit while scoring with entropies and without gradients: five float32 tensors."""
SAMPLING_BYTES = 16
"""Extra bytes per logit while sampling: the float32 logits, their softmax, and its sum in float64."""


class Buckets(NamedTuple):
    """Sizes of ZeRO's buffers, in elements; the defaults are DeepSpeed's.

    Args:
        reduce: gradients that are reduced at a time (`reduce_bucket_size`).
        live: weights that ZeRO-3 keeps gathered (`stage3_max_live_parameters`).
        prefetch: weights that ZeRO-3 gathers ahead (`stage3_prefetch_bucket_size`).
        group: weights that ZeRO-3's optimizer steps at a time (`sub_group_size`).
    """

    reduce: int = 500_000_000
    live: int = 1_000_000_000
    prefetch: int = 50_000_000
    group: int = 1_000_000_000


class Strategy(NamedTuple):
    """How a launch distributes a run; `name` is that of its file in configs/accelerate/."""

    name: str
    stage: int
    offload: bool = False
    buckets: Buckets = Buckets()

    @property
    def deepspeed(self) -> bool:
        return self.stage > 0 and self != FSDP2

    @property
    def sharded(self) -> bool:
        """Whether weights, gradients and optimizer are all sharded over the ranks."""
        return self.stage == 3

    def runs(self, work: Workload) -> bool:
        """Whether a run may be launched so: PPO refuses `model.offload` under FSDP2."""
        return not (self == FSDP2 and work.offload)


SINGLE = Strategy("single", 0)
DDP = Strategy("ddp", 0)
FSDP2 = Strategy("fsdp2", 3)
STRATEGIES = (
    DDP, Strategy("zero1", 1), Strategy("zero2", 2), Strategy("zero3", 3), FSDP2, Strategy("zero3-offload", 3, True)
)  # fmt: skip


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
        on_gpu: False for a process on the CPU, whose peak counts only pages that were written to: what the model
            fills of DeepSpeed's buffers; torch's AdamW steps one tensor after the other there.
    """
    return _Ledger(work, strategy, processes, on_gpu).estimate()


class _Ledger:
    """The sums behind `estimate`; all in bytes."""

    def __init__(self, work: Workload, strategy: Strategy, processes: int, on_gpu: bool) -> None:
        self.work, self.strategy, self.processes, self.on_gpu = work, strategy, processes, on_gpu
        self.width = 2 if work.bf16 else 4
        self.rounded = strategy.deepspeed and work.bf16
        self.weight = 2 if self.rounded else 4
        self.shards = processes if strategy.sharded else 1
        self.engine = [model for model in work.models if model.in_engine]
        self.others = [model for model in work.models if not model.in_engine]
        self.trained = sum(model.trained for model in self.engine)

    def estimate(self) -> MemoryEstimate:
        moments: dict[str, dict[str, float]] = {}
        if self.work.rollout is not None:
            moments |= self._rollout(self.work.rollout)
        if self.processes > 1 and self.strategy.stage < 3 and self.on_gpu:
            moments["loading"] = dict.fromkeys(PARTS, 0.0) | {"weights": self._loading()}
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
        if self.work.bf16 and not self.strategy.stage:
            size += 2 * self.trained  # autocast caches bfloat16 copies
        return size

    def _loading(self) -> float:
        """Bytes on the GPU while the models are read there, each as it is in its file or in float32, and cast then; but
        those with adapters by the engine, once all are there."""
        there = more = 0.0
        for model in self.work.models:
            waits = self.work.offload and not model.in_engine
            has_adapter = model.in_engine and model.trained < model.parameters
            kept = 0.0 if waits else model.as_read if has_adapter else self._model_bytes(model)
            there, more = there + kept, max(more, model.as_read - kept)
        return there + more

    def _optimizer(self, stepping: bool) -> float:
        if self.strategy.offload:
            return 0.0
        if self.strategy.deepspeed:
            return 12 * self.trained / self.processes
        all_at_once = stepping and self.work.own_loop and self.on_gpu  # torch's foreach AdamW holds all denominators
        return (12 if all_at_once else 8) * self.trained / self.shards

    def _gradients(self, trained: int, stepping: bool = False) -> float:
        """Bytes of the gradients of `trained` weights."""
        size = float(trained * self.weight)
        if self.strategy.offload:
            return 0.0
        if self.strategy.sharded and self.strategy.deepspeed:
            size = self.trained * self.weight / self.processes  # one buffer is allocated at the start
        elif self.strategy == FSDP2 or self.strategy.stage == 2:
            size /= self.processes
        elif self.strategy == DDP and self.processes > 1 and not self.work.own_loop:
            size += self.trained * self.weight  # DDP's buckets
        if stepping and self.strategy.deepspeed:
            shard = self.trained / self.processes
            group = min(shard, self.strategy.buckets.group) if self.strategy.sharded else shard
            # A float32 gradient; torch's AdamW, which steps on the CPU, has two more tensors of its size.
            size += 4 * group * (1 if self.on_gpu else 3)
        return size

    def _buffers(self) -> float:
        if self.strategy == FSDP2:
            return max(map(self._gathered_units, self.work.models))
        if not self.strategy.deepspeed:
            return 0.0
        buckets, gathered = self.strategy.buckets, max(model.gathered for model in self.work.models)
        size = buckets.reduce if self.on_gpu else min(buckets.reduce, self.trained)
        if self.strategy.sharded:
            size += min(gathered, buckets.live) + (buckets.prefetch if self.on_gpu else min(gathered, buckets.prefetch))
        return float(size * self.weight)

    def _gathered_units(self, model: Model) -> float:
        """What FSDP2 gathers of a model in a pass: two layers (one is gathered ahead), and what is in no layer, such as
        embeddings, which stays gathered; and a layer's gradient, which is reduced in float32."""
        layer = min(model.shape.layer_weights, model.gathered)
        rest = max(0, model.gathered - model.shape.num_layers * model.shape.layer_weights)
        gradient = max(layer, rest) * (self.width + 4) if model.trained == model.parameters else 0
        return float((2 * layer + rest) * self.width + gradient)

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
        logits = step.logits * shape.vocab_size * ((width if width == 2 else 0) + LOSS_BYTES)
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
        if self.strategy.sharded and rollout.rows:  # the transformers engine samples from a gathered policy
            whole = self._model_bytes(policy) + (policy.gathered - policy.parameters) * self.weight
        scored_whole = whole  # the policy is scored before it is released; ZeRO-3 fetches others layer by layer
        if self.strategy == FSDP2:  # it gathers each whole, in the type of the arithmetic
            whole = float(policy.gathered * self.width) if rollout.rows else 0.0
            scored_whole = float(max(model.gathered for model in self.work.models) * self.width)
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
            weights=scored_whole,
            activations=rollout.scored * shape.passing_bytes(width),
            logits=rollout.logits * shape.vocab_size * SCORING_BYTES,
        )
        return {"sampling": sampling, "scoring": scoring}
