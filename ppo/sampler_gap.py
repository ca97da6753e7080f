"""How far the log-probabilities that an engine sampled by are from those of the policy that is trained.

Rounding puts them apart by a little, other weights (a copy that was not brought up to date, or not whole) by more. The
loss is corrected for both (`ppo.algorithm.truncated_importance_weights`), but what answers then show is another policy.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from alignment.distributed.processes import all_reduce_sum, gather_lists
from alignment.generation.sampling import GenerationError
from ppo.algorithm import IMPORTANCE_CAP
from ppo.config import PPOStageConfig, Precision


class Limits(NamedTuple):
    """Nats a token, on average: what deserves a look, and what no rounding gives."""

    alarm: float
    stop: float


LIMITS: dict[Precision, Limits] = {
    "float32": Limits(1e-4, 2e-3),
    "float16": Limits(7e-3, 2e-2),
    "bfloat16": Limits(5e-2, 0.1),
}
"""Measured on a CPU with SmolLM2-135M: 7e-6 in float32, 2.7e-2 to 4.2e-2 in bfloat16. float16 rounds an
eighth as far as bfloat16. float32 leaves room for GPUs whose matmuls round to TF32, which is as fine as float16."""

ROUNDINGS = 3.0
"""Times the policy's own rounding, which is of matmuls alone: vLLM rounds what is between them too."""
LACKING = 0.3
"""Share of the policy's way from the reference that an engine with stale weights lacks at least."""
FAR = 1.0
"""Nats beyond which a difference counts no more: one token at 10 nats would outweigh a hundred, and nothing be sure."""
SURE = 5.0
"""Standard errors of that share beyond which it is no accident."""


class Gap(NamedTuple):
    """Over all processes' response tokens: |log-probability of the engine - of the policy| in nats, and the share of
    tokens whose importance weight is capped."""

    mean: float
    max: float
    capped: float


def measure(policy: Tensor, sampled: Tensor, mask: Tensor) -> Gap:
    """Measure the gap of log-probabilities (B, T), where the mask keeps them."""
    difference = torch.where(mask, policy - sampled, 0.0).double()
    capped = (difference.exp() > IMPORTANCE_CAP).sum().double()
    counts = torch.stack([difference.abs().sum(), capped, mask.sum().double()])
    total, above, tokens = all_reduce_sum(counts).tolist()
    largest = max(each for share in gather_lists([float(difference.abs().max())]) for each in share)
    return Gap(total / tokens, largest, above / tokens)


class Lack(NamedTuple):
    """The fraction of the policy's change from the reference that the engine lacks, and its standard errors: 0 and
    few where it only rounds, however coarsely; 1 where it still samples by the reference."""

    share: float
    errors: float


def lack(policy: Tensor, sampled: Tensor, reference: Tensor, mask: Tensor, *, rounded: bool) -> Lack:
    """The slope of (policy - sampled) on (policy - reference), log-probabilities (B, T), over all processes' kept
    tokens. Its error is White's: where a token's probability has moved far, it also rounds further.

    Args:
        rounded: the policy's own are rounded too, which puts both differences off alike and looks like a lack: half of
            the first one's square is that where both round alike, and is taken off.
    """
    gap = torch.where(mask, policy - sampled, 0.0).double().clamp(-FAR, FAR)
    way = torch.where(mask, policy - reference, 0.0).double().clamp(-FAR, FAR)
    along = gap * way - (gap.square() / 2 if rounded else 0.0)
    sums = torch.stack([each.sum() for each in (along, way.square(), along.square())])
    both, moved, spread = all_reduce_sum(sums).tolist()
    return Lack(both / moved, both / math.sqrt(spread)) if moved > 0 and spread > 0 else Lack(0.0, 0.0)


def check_lack(lag: Lack, gap: Gap, config: PPOStageConfig) -> None:
    """As `check`, and far sharper where the policy has moved.

    Raises:
        GenerationError: on every process alike.
    """
    if lag.share < LACKING or lag.errors < SURE:
        return
    raise GenerationError(
        f"vLLM samples by stale weights: it was given the policy's, and its log-probabilities lack "
        f"{lag.share:.0%} of what sets the policy off from its reference ({gap.mean:.2g} nats a token); "
        f"{way_out(config)}"
    )


def metrics(gap: Gap) -> dict[str, float]:
    """The gap by its names in the journal."""
    return {
        "rollout/importance_capped": gap.capped,
        "rollout/sampler_gap_mean": gap.mean,
        "rollout/sampler_gap_max": gap.max,
    }


def check(gap: Gap, config: PPOStageConfig, rounding: Callable[[], float]) -> None:
    """To be called where the engine has just been given the policy's weights.

    Args:
        rounding: how far the policy's own log-probabilities of the same tokens move between the two types, on average.
            Called where the gap is large and a type is coarse: a model with sharp distributions rounds further than
            others.

    Raises:
        GenerationError: it did not sample by them; on every process alike.
    """
    limit = LIMITS[config.rounded_to].stop
    if gap.mean <= limit:
        return
    if config.rounded_to != "float32":
        limit = max(limit, ROUNDINGS * rounding())
        if gap.mean <= limit:
            return
    raise GenerationError(
        f"vLLM was given the policy's weights, and its log-probabilities still differ from the policy's by "
        f"{gap.mean:.2g} nats a token ({gap.max:.2g} at the worst one), where {config.rounded_to}'s rounding gives "
        f"less than {limit:.2g}: it samples by other weights, old ones or not all of them; {way_out(config)}"
    )


def way_out(config: PPOStageConfig) -> str:
    """Advice in keys that this config takes."""
    if config.rollout.by_server:
        return "start the server anew (docs/cluster/vllm.md), and let rollout.vllm.dtype say what it computes in"
    first = (
        "see docs/cluster/vllm.md"
        if config.sampled_in == "float32"
        else "see whether rollout.vllm.dtype=float32 ends it"
    )
    return f"{first}, or sample without vLLM (rollout.vllm=null)"
