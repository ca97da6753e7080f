"""The verdict on a run: each check (`checks.py`), its outcome, and why, in words.

A stage says what it found (`Journal.finding`) and what it could not look at (`Journal.not_measured`); the metrics in
the journal show what was looked at. A check whose input is missing is `not measured`: it has neither passed nor failed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from alignment.errors import UserError
from alignment.reports import checks
from alignment.reports.bars import percent, percents
from alignment.reports.checks import Check
from alignment.reports.judges import UNKNOWN, judge_of
from alignment.runs.record import RunRecord

Outcome = Literal["fail", "warn", "not measured", "pass"]
OUTCOMES: tuple[Outcome, ...] = ("fail", "warn", "not measured", "pass")
"""The worst first."""
SIGNS: Mapping[str, str] = {"fail": "✕", "warn": "!", "not measured": "?", "pass": "✓"}
_LEVELS: dict[str, Outcome] = {"error": "fail", "warning": "warn", "note": "pass"}
ENDED = checks.END
"""The verdict on how a run ended."""
WON = "better than the start"
NOTHING_SEEN = "nothing found against it"


@dataclass(frozen=True)
class Verdict:
    """The outcome of one check.

    Args:
        name: the check's, as the journal has it.
        step: where it was found last.
        title: the check's name for people.
        about: what it looks at, and why.
        important: without it a run does not read `pass`.
    """

    name: str
    outcome: Outcome
    reason: str
    step: int | None = None
    title: str = ""
    about: str = ""
    important: bool = False


def verdicts(record: RunRecord) -> list[Verdict]:
    """All of them, the worst first: how the run ended, metrics that are not finite, and what the stage watched."""
    found = [_ended(record), _finite(record), *_watched(record)]
    return sorted((_declared(record, verdict) for verdict in found), key=lambda each: OUTCOMES.index(each.outcome))


def worst(found: Sequence[Verdict]) -> Outcome:
    """The outcome of the run. What was not measured is no failure; where that is an important check, the run has not
    passed either."""
    for outcome in OUTCOMES:
        if any(each.outcome == outcome and (outcome != "not measured" or each.important) for each in found):
            return outcome
    return "pass"


def not_measured(found: Sequence[Verdict]) -> list[Verdict]:
    return [verdict for verdict in found if verdict.outcome == "not measured"]


def in_short(found: Sequence[Verdict]) -> str:
    """The run's outcome, and how many checks were not measured: `pass, 2 not measured`."""
    outcome, count = worst(found), len(not_measured(found))
    if outcome == "not measured":
        return f"{count} not measured"
    return outcome + (f", {count} not measured" if count else "")


def headline(found: Sequence[Verdict]) -> str:
    """All verdicts in one line."""
    count = {outcome: sum(verdict.outcome == outcome for verdict in found) for outcome in OUTCOMES}
    parts = []
    if count["fail"]:
        parts.append(f"{count['fail']} of {len(found)} checks failed")
        if count["warn"]:
            parts.append(f"{count['warn']} to look at")
    elif count["warn"]:
        parts.append(f"{count['warn']} of {len(found)} checks to look at")
    elif count["not measured"]:
        parts.append(f"{count['pass']} of {len(found)} checks passed")
    else:
        return f"All {len(found)} checks passed"
    if count["not measured"]:
        parts.append(f"{count['not measured']} not measured")
    return ", ".join(parts)


def as_summary(found: Sequence[Verdict]) -> dict[str, str]:
    """For W&B's summary: the outcome, the line, and each check's outcome."""
    each = {f"check/{verdict.title}": verdict.outcome for verdict in found}
    return {"verdict": worst(found), "verdict_in_words": headline(found), **each}


def _declared(record: RunRecord, verdict: Verdict) -> Verdict:
    check = checks.find(record.stage, verdict.name)
    title, about, important = (check.name, check.about, check.important) if check else (verdict.name, "", False)
    return Verdict(verdict.name, verdict.outcome, verdict.reason, verdict.step, title, about, important)


def _ended(record: RunRecord) -> Verdict:
    if record.exit is None:
        return Verdict(
            ENDED, "warn", f"no end is on record after step {record.last_step}: it is running, or was killed"
        )
    code, reason = record.exit.get("code"), record.exit.get("reason")
    if code == 0:
        done = "done" if (stopped := _stopped_at(record)) is None else f"done, stopped early at step {stopped}"
        return Verdict(ENDED, "pass", f"{done}; published {record.published}" if record.published else done)
    if code == 75:
        return Verdict(ENDED, "warn", f"preempted after a checkpoint ({record.exit.get('last_checkpoint')}); resume it")
    return Verdict(ENDED, "fail", f"exit code {code}: {reason}")


def _finite(record: RunRecord) -> Verdict:
    bad = {name: series for name, series in record.metrics.items() if None in series.values}
    if not bad:
        if not record.metrics:
            return Verdict(checks.FINITE, "not measured", "the run has written no metric")
        return Verdict(checks.FINITE, "pass", "every metric is a finite number")
    name, series = next(iter(bad.items()))
    step = series.steps[series.values.index(None)]
    more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
    return Verdict(checks.FINITE, "fail", f"{name}{more} was not finite, first at step {step}", step)


def _watched(record: RunRecord) -> list[Verdict]:
    names = dict.fromkeys(name for event in record.of_kind("watching") for name in event["names"])
    latest: dict[str, Verdict] = {}
    missing: dict[str, str] = {}
    for event in record.of_kind("finding", "cleared", "not_measured"):
        name, step = event["name"], event["step"]
        if event["event"] == "not_measured":
            missing[name] = event["text"]
        elif event["event"] == "finding":
            found = Verdict(name, _LEVELS.get(event["level"], "fail"), event["text"], step)
            known = latest.get(name, found)  # a lesser one does not undo a worse one: that takes `cleared`
            latest[name] = min(found, known, key=lambda verdict: OUTCOMES.index(verdict.outcome))
        elif name in latest and latest[name].outcome != "pass":
            latest[name] = Verdict(name, "warn", f"{latest[name].reason} (over since step {step})", latest[name].step)
    return [
        latest[name]
        if name in latest and (latest[name].outcome != "pass" or name not in missing)
        else _without_finding(record, name, missing.get(name))
        for name in dict.fromkeys([*names, *latest, *missing])
    ]


def _without_finding(record: RunRecord, name: str, missing: str | None) -> Verdict:
    check = checks.find(record.stage, name)
    if missing is None and check is not None:
        missing = _missing(record, check)
    if missing is not None:
        return Verdict(name, "not measured", missing)
    return Verdict(name, "pass", _win(record) if name == WON else NOTHING_SEEN)


def _missing(record: RunRecord, check: Check) -> str | None:
    """Why a check of which nothing was found has not been made; None where it has been."""
    for pattern in check.evidence:
        names = [name for name in record.metrics if name == pattern or _of_family(name, pattern)]
        counts = (sum(value is not None for value in record.metrics[name].values) for name in names)
        if (count := max(counts, default=0)) < check.values:
            values = f"{count} {'value' if count == 1 else 'values'}" if count else "no value"
            return f"it needs {check.needs}; the journal has {values} of {pattern}"
    if check.at_end and (early := _ended_early(record)):
        return f"{early}; until then: {_win(record)}" if check.key == WON else early
    return None


def _of_family(name: str, pattern: str) -> bool:
    return pattern.endswith("/*") and name.startswith(pattern[:-1])


def _ended_early(record: RunRecord) -> str | None:
    """How a run left off before it was done; None for one that is done."""
    steps = (record.config.get("training") or {}).get("max_steps")
    at = f"step {record.last_step}" + (f" of {steps}" if isinstance(steps, int) and steps > 0 else "")
    if record.exit is None:
        return f"the run has no end yet, or was killed, at {at}"
    if record.exit.get("code") == 75:
        return f"the run was preempted at {at}"
    if record.exit.get("code") != 0:
        return f"the run failed at {at}"
    return f"the run was stopped early, at {at}" if _stopped_at(record) is not None else None


def _stopped_at(record: RunRecord) -> int | None:
    """The step at which RUN/STOP ended the run (see alignment/runs/signals.py)."""
    stopped = record.of_kind("stopped")
    return stopped[-1].get("step", record.last_step) if stopped else None


def _win(record: RunRecord) -> str:
    """The win rate with its interval, and who judged."""
    figure: Any = record.figure("eval/win_rate")
    assert figure is not None  # the check's evidence
    ends = [found[1] for name in ("eval/win_rate_low", "eval/win_rate_high") if (found := record.figure(name))]
    said = f" (95%: {percents(ends)}%)" if len(ends) == 2 else ""
    judge = judge_of(record.config)
    return f"it wins {percent(figure[1])}{said} of the held-out prompts, judged by {judge.text if judge else UNKNOWN}"


def summary_of(run_dir: Path, code: int | None = None) -> dict[str, str]:
    """What W&B's summary says of a run beside its metrics: the verdict, and who judged the win rate.

    Args:
        code: how the run ends, which exit.json will say later; None: what it says now.
    """
    try:
        record = RunRecord.read(run_dir)
    except UserError:  # a journal without a run, as in a benchmark
        return {}
    if code is not None:
        record = replace(record, exit={"code": code})
    judge = judge_of(record.config)
    return as_summary(verdicts(record)) | ({"win_rate_judged_by": judge.text} if judge else {})
