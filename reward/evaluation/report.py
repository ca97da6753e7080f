"""The held-out report: metrics for the manifest, a summary for the terminal, and the files of a run."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from alignment.reports.verdicts import Verdict
from alignment.runs.journal import finite
from alignment.terminal import one_line
from reward.evaluation.calibration import LN2
from reward.evaluation.findings import chosen_on, findings, verdict
from reward.evaluation.heads import Reports


def compact(report: Mapping[str, Any]) -> dict[str, Any]:
    """The metrics for a model's manifest and card."""
    figures = {"held_out_prompts": report["prompts"], "held_out_pairs": report["pairs"]}
    if not report["pairs"]:
        return figures
    shared = report["shared"] or dict.fromkeys(("model", "one_human", "best"))
    kept = {
        "accuracy": report["accuracy"],
        "length_baseline": report["length"]["baseline"],
        # These three use the same votes: those on pairs that two or more people decided.
        "shared_accuracy": shared["model"],
        "one_human": shared["one_human"],
        "best_reachable": shared["best"],
        "log_loss": report["log_loss"],
        "ece": report["ece"],
    }
    return {key: value for key, value in kept.items() if value is not None} | figures


def summary(report: Mapping[str, Any]) -> Iterator[str]:
    """Yield the report as a few lines for a terminal."""
    ties = report["votes"]["tie"]
    tied = f", and {ties:,} ties" if ties else ""
    yield f"{verdict(report)} on {report['pairs']:,} pairs of {report['prompts']:,} prompts{tied}"
    if chosen := chosen_on(report):
        yield f"  {'the model':<17} {chosen}"
    if report["pairs"]:
        eos = report["without_eos"]
        rows = [
            ("accuracy", _share(report["accuracy"]), "chance: 50%"),
            ("longer is better", _share(report["length"]["baseline"]), "accuracy of that rule"),
            *_shared_rows(report["shared"]),
            ("log-loss", _number(report["log_loss"]), f"chance: {LN2:.3f}"),
            ("ECE", f"{report['ece']['value']:.3f}", f"{_range(report['ece_if_calibrated'])} if calibrated"),
        ]
        if eos["questions"]:
            rows.append(("without EOS", _number(eos["moved"]), f"moves a score; spread {eos['spread']:.3f}"))
        if report["ensemble"]:
            split = _share(report["ensemble"]["split"])
            rows.append(("members differ", split, f"of the pairs; {report['ensemble']['members']} members"))
        yield from (f"  {name:<17} {value:<26} {about}".rstrip() for name, value, about in rows)
    if report["ratings"]:
        ratings = report["ratings"]
        against = f"predicting the mean: {ratings['squared_error_of_the_mean']:.3f}"
        yield f"  {'squared error':<17} {_number(ratings['squared_error']):<26} {against}"
        yield f"  {'correlation':<17} {_number(ratings['correlation'])}"
    for finding in findings(report):
        yield f"  {finding.level}: {finding.text}"


def _shared_rows(shared: Mapping[str, Any] | None) -> Iterator[tuple[str, str, str]]:
    if shared is None:
        yield "best reachable", "not measured", "no pair was decided by two people"
        return
    yield "on shared pairs", _share(shared["model"]), "pairs that several people decided"
    yield "one human", _share(shared["one_human"]), "one person, on the same votes"
    best = shared["best"]
    if best is None:
        yield "best reachable", "not measured", "too few prompts"
    else:
        yield "best reachable", f"{_range(best, 100)}%", "any model, on the same votes"


def _share(estimate: Mapping[str, Any] | None) -> str:
    return "-" if estimate is None else f"{estimate['value']:.1%} ({_range(estimate, 100)})"


def _number(estimate: Mapping[str, Any] | None) -> str:
    return "-" if estimate is None else f"{estimate['value']:.3f} ({_range(estimate)})"


def _range(estimate: Mapping[str, Any], scale: float = 1) -> str:
    low, high = (scale * bound for bound in estimate["ci"])
    return f"{low:.1f} to {high:.1f}" if scale == 100 else f"{low:.3f} to {high:.3f}"


def save_report(run_dir: Path, name: str, reports: Reports, checks: Sequence[Verdict] | None = None) -> None:
    """Write `RUN/evaluation.json` and `RUN/evaluation.html`, and print the summary; main process only.

    Args:
        reports: of each head.
        checks: the verdicts of the run, which `report.html` shows too; None if there is no run.
    """
    from reward.evaluation.page import heads_page, html_page  # imports Jinja

    by_head = {
        head: {"verdict": verdict(report), "findings": [asdict(each) for each in findings(report)], **report}
        for head, report in reports.items()
    }
    alone = reports.get("")
    whole: dict[str, Any] = by_head[""] if alone is not None else {"heads": by_head}
    if checks is not None:
        whole["checks"] = [asdict(each) for each in checks]
    text = json.dumps(finite(whole), indent=2, ensure_ascii=False, allow_nan=False)
    (run_dir / "evaluation.json").write_text(text + "\n", encoding="utf-8", errors="replace")
    page = html_page(name, alone, checks) if alone is not None else heads_page(name, reports, checks)
    (run_dir / "evaluation.html").write_text(page, encoding="utf-8")
    for head, report in reports.items():
        for line in summary(report):
            print(f"{head}: {line}" if head and not line.startswith(" ") else line)  # it holds no untrusted text
    print(one_line(f"  see {run_dir / 'evaluation.html'}"))
