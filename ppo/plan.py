"""What a run will take, for `--dry-run`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from alignment import methods
from alignment.ensembles import num_members
from alignment.models import ModelSource, num_parameters
from ppo.config import PPOStageConfig
from ppo.loading import critic_kind, policy_options


def memory_plan(config: PPOStageConfig, sources: Mapping[str, ModelSource]) -> dict[str, Any]:
    """Parameters of each role and the memory of weights, gradients and Adam's moments; activations come on top.

    Nothing where a size is not known before loading (a hub name).
    """
    counts = {role: num_parameters(source.config_path) for role, source in sources.items()}
    if not all(counts.values()):
        return {"parameters": counts}
    for role in ("reward", "held_out_reward"):  # the members of an ensemble; adapters share their base
        if role in counts and sources[role].base is None:
            counts[role] = (counts[role] or 0) * num_members(sources[role])
    policy = methods.sizes(sources["init"], policy_options(config.model))
    trained, frozen = policy["trained_parameters"], policy["parameters"] - policy["trained_parameters"]
    adapted = trained < policy["parameters"]
    kind = critic_kind(config.model) if config.ppo.has_critic else None
    if kind == "separate":
        trained += num_parameters(sources["value"].config_path) or 0
    elif kind == "adapter":
        trained += policy["trained_parameters"] if adapted else 0
    if config.model.mode == "separate":
        frozen += (counts.get("reward") or 0) + (counts.get("held_out_reward") or 0)
        if not adapted or config.model.reference is not None:
            frozen += counts["reference"] or 0
    gib = (trained * 16 + frozen * 4) / 2**30
    return {
        "parameters": counts,
        "trained_parameters": trained,
        "memory_gib_per_process_without_zero": round(gib, 3),
    }
