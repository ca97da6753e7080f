"""The verdict on a run: each thing that it was watched for, whether it passed, and why, in words.

No threshold is here: a stage says what it found when it found it (`Journal.finding`), and this reads that back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from alignment.tracking.record import RunRecord

Outcome = Literal["fail", "warn", "pass"]
_OUTCOMES: dict[str, Outcome] = {"error": "fail", "warning": "warn", "note": "pass"}
ENDED = "end"
"""The verdict on how a run ended."""
_ORDER: tuple[Outcome, ...] = ("fail", "warn", "pass")


@dataclass(frozen=True)
class Verdict:
    """One thing that was watched."""

    name: str
    outcome: Outcome
    reason: str
    step: int | None = None
    """Where it was found last."""


def verdicts(record: RunRecord) -> list[Verdict]:
    """All of them, the worst first: how the run ended, figures that are not finite, and what the stage watched."""
    found = [_ended(record), _finite(record), *_watched(record)]
    return sorted(found, key=lambda verdict: _ORDER.index(verdict.outcome))


def worst(found: list[Verdict]) -> Outcome:
    """The outcome of the run."""
    return next((outcome for outcome in _ORDER if any(verdict.outcome == outcome for verdict in found)), "pass")


def _ended(record: RunRecord) -> Verdict:
    if record.exit is None:
        return Verdict(
            ENDED, "warn", f"no end is on record after step {record.last_step}: it is running, or was killed"
        )
    code, reason = record.exit.get("code"), record.exit.get("reason")
    if code == 0:
        return Verdict(ENDED, "pass", f"done; published {record.published}" if record.published else "done")
    if code == 75:
        return Verdict(ENDED, "warn", f"preempted after a checkpoint ({record.exit.get('last_checkpoint')}); resume it")
    return Verdict(ENDED, "fail", f"exit code {code}: {reason}")


def _finite(record: RunRecord) -> Verdict:
    bad = {name: series for name, series in record.metrics.items() if None in series.values}
    if not bad:
        return Verdict("finite", "pass", "every figure is a finite number")
    name, series = next(iter(bad.items()))
    step = series.steps[series.values.index(None)]
    more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
    return Verdict("finite", "fail", f"{name}{more} was not finite, first at step {step}", step)


def _watched(record: RunRecord) -> list[Verdict]:
    names = dict.fromkeys(name for event in record.of_kind("watching") for name in event["names"])
    latest: dict[str, Verdict] = {}
    for event in record.of_kind("finding", "cleared"):
        name, step = event["name"], event["step"]
        if event["event"] == "finding":
            found = Verdict(name, _OUTCOMES.get(event["level"], "fail"), event["text"], step)
            known = latest.get(name, found)  # a lesser one does not undo a worse one: that takes `cleared`
            latest[name] = min(found, known, key=lambda verdict: _ORDER.index(verdict.outcome))
        elif name in latest and latest[name].outcome != "pass":
            latest[name] = Verdict(name, "warn", f"{latest[name].reason} (over since step {step})", latest[name].step)
    return [latest.get(name, Verdict(name, "pass", "nothing found")) for name in dict.fromkeys([*names, *latest])]
