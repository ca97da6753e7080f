"""Verdicts on a run: the outcome of each check (`checks.py`) with its reason.

A stage journals findings (`Journal.finding`) and checks that could not be made (`Journal.not_measured`); the journal's
metrics are the evidence that a check was made. A check without its input is `not measured`: neither passed nor failed.
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
"""Outcomes, the worst first."""
SIGNS: Mapping[str, str] = {"fail": "✕", "warn": "!", "not measured": "?", "pass": "✓"}
_LEVELS: dict[str, Outcome] = {"error": "fail", "warning": "warn", "note": "pass"}
ENDED = checks.END
"""The name of the verdict on a run's end."""
WON = "better than the start"
NO_FINDING = "no problem found"


@dataclass(frozen=True)
class Verdict:
    """The outcome of one check.

    Args:
        name: the check's name in the journal.
        step: step of the last finding.
        title: the check's name for people.
        about: the property that is checked, and why.
        important: a run without this measurement is not `pass`.
    """

    name: str
    outcome: Outcome
    reason: str
    step: int | None = None
    title: str = ""
    about: str = ""
    important: bool = False


def verdicts(record: RunRecord) -> list[Verdict]:
    """All verdicts, the worst first: the run's end, finite metrics, and the stage's checks."""
    unsorted = [_ended(record), _finite(record), *_watched(record)]
    return sorted(
        (_declared(record, verdict) for verdict in unsorted), key=lambda verdict: OUTCOMES.index(verdict.outcome)
    )


def worst(run_verdicts: Sequence[Verdict]) -> Outcome:
    """The outcome of the run. An unmeasured check is not a failure, but without an important check the run has not
    passed either."""
    for outcome in OUTCOMES:
        if any(
            verdict.outcome == outcome and (outcome != "not measured" or verdict.important) for verdict in run_verdicts
        ):
            return outcome
    return "pass"


def not_measured(run_verdicts: Sequence[Verdict]) -> list[Verdict]:
    return [verdict for verdict in run_verdicts if verdict.outcome == "not measured"]


def short_summary(run_verdicts: Sequence[Verdict]) -> str:
    """The run's outcome with the number of unmeasured checks: `pass, 2 not measured`."""
    outcome, count = worst(run_verdicts), len(not_measured(run_verdicts))
    if outcome == "not measured":
        return f"{count} not measured"
    return outcome + (f", {count} not measured" if count else "")


def headline(run_verdicts: Sequence[Verdict]) -> str:
    """All verdicts in one line."""
    count = {outcome: sum(verdict.outcome == outcome for verdict in run_verdicts) for outcome in OUTCOMES}
    parts = []
    if count["fail"]:
        parts.append(f"{count['fail']} of {len(run_verdicts)} checks failed")
        if count["warn"]:
            parts.append(f"{count['warn']} to look at")
    elif count["warn"]:
        parts.append(f"{count['warn']} of {len(run_verdicts)} checks to look at")
    elif count["not measured"]:
        parts.append(f"{count['pass']} of {len(run_verdicts)} checks passed")
    else:
        return f"All {len(run_verdicts)} checks passed"
    if count["not measured"]:
        parts.append(f"{count['not measured']} not measured")
    return ", ".join(parts)


def as_summary(run_verdicts: Sequence[Verdict]) -> dict[str, str]:
    """The fields for W&B's summary: the outcome, the headline, and each check's outcome."""
    outcomes = {f"check/{verdict.title}": verdict.outcome for verdict in run_verdicts}
    return {"verdict": worst(run_verdicts), "verdict_in_words": headline(run_verdicts), **outcomes}


def _declared(record: RunRecord, verdict: Verdict) -> Verdict:
    check = checks.find(record.stage, verdict.name)
    title, about, important = (check.name, check.about, check.important) if check else (verdict.name, "", False)
    return Verdict(verdict.name, verdict.outcome, verdict.reason, verdict.step, title, about, important)


def _ended(record: RunRecord) -> Verdict:
    if record.exit is None:
        return Verdict(ENDED, "warn", f"no exit.json after step {record.last_step}: it is running, or was killed")
    code, reason = record.exit.get("code"), record.exit.get("reason")
    if code == 0:
        done = "done" if (stopped := _stopped_at(record)) is None else f"done, stopped early at step {stopped}"
        return Verdict(ENDED, "pass", f"{done}; published {record.published}" if record.published else done)
    if code == 75:
        return Verdict(ENDED, "warn", f"preempted after a checkpoint ({record.exit.get('last_checkpoint')}); resume it")
    return Verdict(ENDED, "fail", f"exit code {code}: {reason}")


def _finite(record: RunRecord) -> Verdict:
    bad = {name: step for name, series in record.metrics.items() if (step := series.first_not_finite) is not None}
    if not bad:
        if not record.metrics:
            return Verdict(checks.FINITE, "not measured", "the run has written no metric")
        return Verdict(checks.FINITE, "pass", "every metric is a finite number")
    name, step = next(iter(bad.items()))
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
            verdict = Verdict(name, _LEVELS.get(event["level"], "fail"), event["text"], step)
            known = latest.get(name, verdict)  # a milder finding does not replace a worse one; only `cleared` does
            latest[name] = min(verdict, known, key=lambda verdict: OUTCOMES.index(verdict.outcome))
        elif name in latest and latest[name].outcome != "pass":
            latest[name] = Verdict(name, "warn", f"{latest[name].reason} (cleared at step {step})", latest[name].step)
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
    return Verdict(name, "pass", _win(record) if name == WON else NO_FINDING)


def _missing(record: RunRecord, check: Check) -> str | None:
    """The reason why a check without findings was not made; None if it was made."""
    for pattern in check.evidence:
        names = [name for name in record.metrics if name == pattern or _of_family(name, pattern)]
        counts = (record.metrics[name].num_finite for name in names)
        if (count := max(counts, default=0)) < check.values:
            values = f"{count} {'value' if count == 1 else 'values'}" if count else "no value"
            return f"it needs {check.needs}; the journal has {values} of {pattern}"
    if check.at_end and (early := _ended_early(record)):
        return f"{early}; until then: {_win(record)}" if check.key == WON else early
    return None


def _of_family(name: str, pattern: str) -> bool:
    """Whether a metric is one of `reward/*`, or a head's `eval/accuracy/helpful` of `eval/accuracy`."""
    return name.startswith(pattern[:-1] if pattern.endswith("/*") else f"{pattern}/")


def _ended_early(record: RunRecord) -> str | None:
    """A description of a run's early end; None if it is done."""
    steps = (record.config.get("training") or {}).get("max_steps")
    at = f"step {record.last_step}" + (f" of {steps}" if isinstance(steps, int) and steps > 0 else "")
    if record.exit is None:
        return f"the run is running or was killed at {at}"
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
    """The win rate with its interval and its judge."""
    figure: Any = record.figure("eval/win_rate")
    assert figure is not None  # the check requires this metric
    ends = [estimate[1] for name in ("eval/win_rate_low", "eval/win_rate_high") if (estimate := record.figure(name))]
    interval = f" (95%: {percents(ends)}%)" if len(ends) == 2 else ""
    judge = judge_of(record.config)
    return (
        f"it wins {percent(figure[1])}{interval} of the held-out prompts, judged by {judge.text if judge else UNKNOWN}"
    )


def summary_of(run_dir: Path, code: int | None = None) -> dict[str, str]:
    """The texts for W&B's summary of a run: the verdict, and the judge of the win rate.

    Args:
        code: the exit code before exit.json is written; None: read exit.json.
    """
    try:
        record = RunRecord.read(run_dir)
    except UserError:  # a journal without a run, for example in a benchmark
        return {}
    if code is not None:
        record = replace(record, exit={"code": code})
    judge = judge_of(record.config)
    return as_summary(verdicts(record)) | ({"win_rate_judged_by": judge.text} if judge else {})
