"""Results as evaluations of the versions that they are of: a comparison, tasks and texts, the scores of a file."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from alignment.evaluation.figures import Figures
from alignment.evaluation.independence import version_of
from alignment.registry import Registry, Version
from alignment.registry.evaluations import Evaluation, FigureRecord, WinRecord, add_evaluation
from alignment.registry.trash import user_at_host

PROMPTING = ("system", "examples", "context", "template", "eos_token", "best_of")
ITSELF = {"judge": "itself", "judged_by": "its own probabilities"}
Records = Iterator[tuple[Version, Evaluation]]


def record(registry: Registry, records: Records, fewest: int = 1) -> tuple[list[Version], int]:
    """Add evaluations, but for those that are no finite number, or on fewer than `fewest` prompts.

    Returns:
        The versions that got a new one, and how many were left out for having too few prompts.

    Raises:
        RegistryError: one cannot be written, or an earlier one is damaged.
    """
    found = [(version, evaluation) for version, evaluation in records if math.isfinite(evaluation.value)]
    enough = [(version, evaluation) for version, evaluation in found if evaluation.n >= fewest]
    told = [version for version, evaluation in enough if add_evaluation(registry, version, evaluation)]
    return list({version.ref: version for version in told}.values()), len(found) - len(enough)


def comparison_records(registry: Registry, result: Figures) -> Records:
    """The win rates of each side that is a published version, and what the judges gave it by itself.

    A side that was given a system prompt, examples or context, or that takes the best of several answers, is more than
    its version, and gets none.
    """
    plain = {side: identity for side, identity in result["sides"].items() if not _is_prompted(identity)}
    versions = {side: version_of(registry, identity) for side, identity in plain.items()}
    for pair in result["pairs"]:
        for ours, theirs in ((pair["a"], pair["b"]), (pair["b"], pair["a"])):
            version = versions.get(ours)
            for row in pair["judges"]:
                if version is not None and "win_rate" in row:
                    yield version, _win(result, row, version, ours, theirs, mirrored=ours == pair["b"])
    for side, version in versions.items():
        if version is not None:
            yield from ((version, figure) for figure in _side_figures(result, version, side))


def _win(result: Figures, row: Figures, version: Version, ours: str, theirs: str, *, mirrored: bool) -> WinRecord:
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
        **_of(version),
        against=str(opponent["model"]) if plain else theirs,
        against_digest=opponent.get("digest") if plain else None,
        **_stands_for(opponent),
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


def _stands_for(opponent: Mapping[str, Any]) -> dict[str, Any]:
    """What an opponent's label means, in words and as a hash, where the label is not a model with a digest itself.

    Texts are named by a hash: a registry and the card of an export go to others than the comparison does.
    """
    added = [name for name in ("system", "examples", "context", "template", "eos_token") if opponent.get(name)]
    if not added and not opponent.get("best_of") and (opponent.get("digest") or not opponent.get("sha256")):
        return {}
    names = ("model", "digest", "sha256", "chosen_by", "chosen_by_digest", *PROMPTING)
    parts = {name: opponent.get(name) for name in names}
    identity = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    words = [f"{name} {_short(str(opponent[name]))}" for name in added]
    if best_of := opponent.get("best_of"):
        words.append(f"the best of {best_of} by {opponent.get('chosen_by')}")
    if not opponent.get("digest") and opponent.get("sha256"):
        words.append(f"a file, {_short(str(opponent['sha256']))}")
    return {"against_is": f"{opponent['model']}, {', '.join(words)}", "against_identity": f"sha256:{identity}"}


def _short(text: str) -> str:
    """A hash that is written down already, or that of a text, cut to eight digits."""
    known = text.rpartition("sha256:")[2] if "sha256:" in text else text
    is_hash = len(known) in (16, 64) and set(known) <= set("0123456789abcdef")
    return (known if is_hash else hashlib.sha256(text.encode()).hexdigest())[:8]


def _is_prompted(identity: Mapping[str, Any]) -> bool:
    return any(identity.get(key) for key in PROMPTING)


def _side_figures(result: Figures, version: Version, side: str) -> Iterator[FigureRecord]:
    """Each judge's means of one side."""
    trained = {row["judge"] for pair in result["pairs"] for row in pair["judges"] if side in row["trained_on"]}
    for judge in result["judges"]:
        for measure in result["scores"].get(judge["name"], ()):
            if (mean := measure["sides"][side]) is None:
                continue
            yield FigureRecord(
                **_of(version),
                **_number(mean),
                command="compare",
                figure=measure["measure"],
                is_share=measure["is_share"],
                judge=judge["name"],
                judged_by=judge["judged_by"],
                judge_digest=judge["digest"],
                trained_on=judge["name"] in trained,
                unit=f"{judge['unit']}s",
                data=Path(result["prompts"]["name"]).name,
                data_sha256=result["prompts"]["sha256"],
            )


def task_records(registry: Registry, found: Mapping[str, Any]) -> Records:
    """What `alignment eval` found of a published version: each figure, and its change from the model before."""
    version = version_of(registry, found)
    if version is None:
        return
    before = found.get("before", {})
    rows = [
        {**row, "figure": row["metric"], "data": row["task"], "unit": "questions"}
        | {"judge": "lm-eval", "judged_by": found["harness"]}
        for row in found.get("tasks", ())
    ]
    if text := found.get("text"):
        named = {"figure": "bits per byte", "data": Path(text["text"]).name, "unit": "documents"} | ITSELF
        rows.append({**text, **named, "value": text["bits_per_byte"], "n": text["documents"]})
    for row in rows:
        shared = {name: row[name] for name in ("figure", "data", "data_sha256", "unit", "judge", "judged_by")}
        shared |= {**_of(version), "command": "eval"}
        if row["n"]:  # of a group of tasks nobody counts the questions
            yield version, FigureRecord(**shared, **_number(row))
        if (change := row.get("difference")) and change["n"]:
            of_before = {"against": before["model"], "against_digest": before["digest"]}
            yield version, FigureRecord(**shared, **_number(change), **of_before)


def score_records(registry: Registry, found: Mapping[str, Any]) -> Records:
    """What the summary of `alignment score` says of a published version."""
    version = version_of(registry, found)
    if version is None:
        return
    votes = {"judge": "votes", "judged_by": "the votes in the file", "is_share": True, "unit": "votes"}
    ratings = {"judge": "ratings", "judged_by": "the ratings in the file", "unit": "answers"}
    own = {"unit": "answers", **ITSELF}
    mean = f"mean score of {found['head']}" if "head" in found else "mean score"
    known: dict[str, dict[str, Any]] = {
        "mean": {"figure": mean, **own, "judged_by": "itself"},
        "bits_per_byte": {"figure": "bits per byte", **own},
        "logprob_per_token": {"figure": "log-probability per token", **own},
        "accuracy": {"figure": "accuracy", **votes},
        "rating_correlation": {"figure": "Spearman correlation", **ratings},
    }
    data = {"data": found["data"].get("name", "the data"), "data_sha256": found["data"].get("sha256")}
    for name, fields in known.items():
        if name in found:
            number = _number(_estimate_in(found, name))
            yield version, FigureRecord(**_of(version), **number, **fields, **data, command="score")


def _estimate_in(found: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A figure of a summary with its interval and count."""
    if name == "mean":
        return {"value": found["mean"], "ci": found["mean_ci"], "n": found["completions"]}
    if name == "rating_correlation":
        return {"value": found[name]["spearman"], "n": found[name]["n"]}
    estimate: Mapping[str, Any] = found[name]
    return estimate if name == "accuracy" else {**estimate, "n": found["completions"]}


def _of(version: Version) -> dict[str, Any]:
    return {"at": datetime.now(UTC), "by": user_at_host(), "digest": version.digest}


def _number(estimate: Mapping[str, Any]) -> dict[str, Any]:
    """Value, interval and count of an estimate."""
    low, high = (end if math.isfinite(end) else None for end in estimate.get("ci") or (math.nan, math.nan))
    return {"value": estimate["value"], "low": low, "high": high, "n": estimate["n"]}
