"""A comparison's result in the registry: an evaluation of each side that is a published version."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from alignment.evaluation.figures import Figures
from alignment.evaluation.independence import version_of
from alignment.registry import Registry
from alignment.registry.evaluations import WinRecord, add_evaluation
from alignment.registry.trash import user_at_host

PROMPTING = ("system", "examples", "context", "template", "eos_token")


def record(registry: Registry, result: Figures) -> list[str]:
    """Add the evaluations; returns the references of the versions that got a new one.

    A side that was given a system prompt, examples or context is more than its version, and gets none.
    """
    told: dict[str, None] = {}
    for pair in result["pairs"]:
        for ours, theirs in ((pair["a"], pair["b"]), (pair["b"], pair["a"])):
            identity = result["sides"][ours]
            version = None if _is_prompted(identity) else version_of(registry, identity)
            for row in pair["judges"]:
                if version is not None and "win_rate" in row:
                    evaluation = _evaluation(result, row, version.digest, ours, theirs, mirrored=ours == pair["b"])
                    if add_evaluation(registry, version, evaluation):
                        told[version.ref] = None
    return list(told)


def _evaluation(result: Figures, row: Figures, digest: str, ours: str, theirs: str, *, mirrored: bool) -> WinRecord:
    rate, controlled = row["win_rate"], row["length_controlled"]
    ends, wins = rate["ci"], (row["wins"], row["losses"])
    opponent = result["sides"][theirs]
    plain = not _is_prompted(opponent)
    at_same_length = None if controlled is None else controlled["value"]
    if mirrored:
        rate = {"value": 1 - rate["value"]}
        ends, wins = (1 - ends[1], 1 - ends[0]), (wins[1], wins[0])
        at_same_length = None if at_same_length is None else 1 - at_same_length
    return WinRecord(
        at=datetime.now(UTC),
        by=user_at_host(),
        digest=digest,
        against=str(opponent["model"]) if plain else theirs,
        against_digest=opponent.get("digest") if plain else None,
        judge=row["judge"],
        judged_by=row["judged_by"],
        judge_digest=row["digest"],
        trained_on=ours in row["trained_on"],
        prompts=result["prompts"]["name"],
        prompts_sha256=result["prompts"]["sha256"],
        n=row["prompts"],
        win_rate=rate["value"],
        low=ends[0],
        high=ends[1],
        wins=wins[0],
        ties=row["ties"],
        losses=wins[1],
        length_controlled=at_same_length,
    )


def _is_prompted(identity: Mapping[str, Any]) -> bool:
    return any(identity.get(key) for key in PROMPTING)
