"""Whether a judge is part of what a side was trained on: such a judge says that training worked, not that it helped."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from alignment.evaluation.judgments import JudgeIdentity
from alignment.registry import Registry, RegistryError, Version
from alignment.registry.lineage import walk


def version_of(registry: Registry, identity: Mapping[str, Any]) -> Version | None:
    """The registry's version that a side is, if it is one and is still there."""
    ref, digest = identity.get("model"), identity.get("digest")
    if not isinstance(ref, str) or not digest or not registry.is_reference(ref):
        return None
    try:
        version = registry.resolve(f"{ref.partition('@')[0]}@{digest}")
    except RegistryError:
        return None
    return version if version.digest == digest else None


def trained_on(registry: Registry, identity: Mapping[str, Any], judge: JudgeIdentity) -> bool:
    """Whether a side, or a version that it was trained from, was rewarded by this judge in PPO."""
    version = version_of(registry, identity)
    if version is None or judge.kind not in ("reward model", "function"):
        return False
    return any(
        _rewarded_by(node.version, judge) for node in walk(iter([registry.lineage(version.ref)])) if node.version
    )


def _rewarded_by(version: Version, judge: JudgeIdentity) -> bool:
    manifest = version.manifest
    if manifest.stage != "ppo":
        return False
    if judge.kind == "reward model":
        return any(parent.role == "reward" and parent.digest == judge.digest for parent in manifest.parents)
    rewards = (manifest.config or {}).get("rewards")
    others = rewards.get("others") if isinstance(rewards, dict) else None
    name = judge.name.partition("=")[2]
    found = others if isinstance(others, list) else []
    return any(isinstance(each, dict) and each.get("function") == name for each in found)
