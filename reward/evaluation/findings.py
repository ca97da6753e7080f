"""Turn the metrics of a reward model into findings with advice."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from alignment.data.check import Finding
from alignment.data.check.report import LEVELS, Level
from alignment.reports.bars import SUSPICIOUS
from reward.evaluation.calibration import LN2

_FEW_PROMPTS = 100
_SMALL_ECE = 0.02
"""Expected calibration error that is negligible: two percentage points."""
_SWAPPED_LABELS = 0.45
"""Accuracy below which labels must be swapped somewhere, if the whole interval is below it."""
_LOG_LOSS_MARGIN = 0.01
"""Nats by which the log loss must be worse than guessing."""
_MIN_PAIRS = 20
"""Minimum number of pairs of a kind for their median."""
WATCHED = (
    "nothing_held_out", "all_ties", "few_prompts", "no_overlap", "worse_than_chance", "chance", "suspicious",
    "above_reachable", "length_rule", "length_correlation", "ties", "near_duplicates", "calibration", "log_loss",
    "eos_unread", "eos_rise",
)  # fmt: skip
"""Kinds of `findings` that every run is checked for."""


def findings(report: Mapping[str, Any]) -> list[Finding]:
    """The findings about these metrics, the worst first."""
    results = [*_data_findings(report)]
    if report["accuracy"] is not None:
        results += [*_accuracy_findings(report), *_shortcut_findings(report)]
    if report["pairs"]:
        results += _eos_findings(report["without_eos"])
        if not report["ratings"]:  # a regression model gives no probabilities
            results += _probability_findings(report)
    return sorted(results, key=lambda finding: LEVELS.index(finding.level))


def _finding(level: Level, kind: str, text: str, advice: str = "", count: int = 1) -> Finding:
    return Finding(level, kind, count, text, advice, [])


def _data_findings(report: Mapping[str, Any]) -> Iterator[Finding]:
    prompts, accuracy = report["prompts"], report["accuracy"]
    if not report["questions"]:
        yield _finding(
            "error",
            "nothing_held_out",
            "nothing was held out, so the model was not evaluated",
            "set data.eval_share, or name a file in data.eval",
        )
    elif report["pairs"] and accuracy is None:
        yield _finding(
            "error", "all_ties", f"each held-out vote is a tie ({report['votes']['tie']})", "rate more pairs"
        )
    elif accuracy is not None and prompts < _FEW_PROMPTS:
        half = (accuracy["ci"][1] - accuracy["ci"][0]) / 2
        yield _finding(
            "warning",
            "few_prompts",
            f"only {prompts} prompts are held out: the accuracy is known to {100 * half:.0f} points either way",
            "rate more prompts, or raise data.eval_share; four times as many halve the interval",
            prompts,
        )
    if report["pairs"] and report["shared"] is None:
        yield _finding(
            "note",
            "no_overlap",
            "no held-out pair was decided by two people, so neither human agreement nor the best reachable "
            "accuracy is known",
            "have some items rated by three people (need=3)",
        )


def _accuracy_findings(report: Mapping[str, Any]) -> Iterator[Finding]:
    accuracy, shared = report["accuracy"], report["shared"]
    low, high = accuracy["ci"]
    if high < _SWAPPED_LABELS:
        yield _finding(
            "error",
            "worse_than_chance",
            f"the accuracy of {accuracy['value']:.1%} ({low:.1%} to {high:.1%}) is below guessing",
            "check whether the labels of the held-out or the training data are swapped",
        )
    elif low <= 0.5:
        yield _finding(
            "warning",
            "chance",
            f"the accuracy of {accuracy['value']:.1%} ({low:.1%} to {high:.1%}) is not significantly above guessing",
            "train on more ratings or from a better policy; python -m reward CONFIG --overfit 32 tells a bug from too "
            "little data",
        )
    best = shared and shared["best"]
    if best is None and accuracy["value"] > SUSPICIOUS:
        yield _finding(
            "warning",
            "suspicious",
            f"an accuracy above {SUSPICIOUS:.0%} is suspicious: people agree with each other on 63 to 77% of pairs",
            "look for leakage (prompts or answers of the held-out side in training) or a shortcut; ratings made by a "
            "program may allow it. With several votes per pair, the report gives the best reachable accuracy",
        )
    if best is not None and shared["model"]["value"] > best["ci"][1]:
        yield _finding(
            "warning",
            "above_reachable",
            f"the model agrees with {shared['model']['value']:.1%} of the votes on pairs that several people decided, "
            f"but a model that knew each pair's true probability would agree with at most {best['ci'][1]:.1%}",
            "look for leakage: the held-out votes, or copies of them, in training",
        )


def _shortcut_findings(report: Mapping[str, Any]) -> Iterator[Finding]:
    length = report["length"]
    if length["ahead"]["ci"][0] <= 0:
        baseline = length["baseline"]["value"]
        value = baseline if length["rule"] == "longer" else 1 - baseline
        worse = "worse than" if length["ahead"]["ci"][1] < 0 else "not significantly better than"
        yield _finding(
            "warning",
            "length_rule",
            f"{worse} always preferring the {length['rule']} answer, which agrees with {value:.1%} of the votes "
            f"(difference {_points(length['ahead'])})",
            "the model may have learned only length",
        )
    correlation = length["correlation"]
    if correlation is not None and abs(correlation["value"]) > 0.5:
        longer = "longer" if correlation["value"] > 0 else "shorter"
        yield _finding(
            "warning",
            "length_correlation",
            f"score differences correlate with length differences (Spearman {correlation['value']:.2f}): PPO would "
            f"learn {longer} answers",
            "compare the accuracy on votes for the longer and for the shorter answer",
        )
    ties, near = report["ties"], report["near_duplicates"]
    if (
        ties["n"] >= _MIN_PAIRS
        and ties["others"]["n"]
        and ties["median_difference"] >= ties["others"]["median_difference"]
    ):
        yield _finding(
            "note",
            "ties",
            f"the model is as sure of pairs that people call a tie (median difference {ties['median_difference']:.2g}) "
            f"as of the others ({ties['others']['median_difference']:.2g})",
            "",
            ties["n"],
        )
    if (
        near["n"] >= _MIN_PAIRS
        and near["others"]["n"]
        and near["median_difference"] >= near["others"]["median_difference"]
    ):
        yield _finding(
            "note",
            "near_duplicates",
            f"answers that share most of their words differ in score as much (median {near['median_difference']:.2g}) "
            f"as others do ({near['others']['median_difference']:.2g})",
            "",
            near["n"],
        )


def _probability_findings(report: Mapping[str, Any]) -> Iterator[Finding]:
    ece, ceiling = report["ece"]["value"], report["ece_if_calibrated"]["ci"][1]
    if ece > max(ceiling, _SMALL_ECE):
        mean_confidence, mean_agreement = report["confidence"]["value"], report["agreement"]["value"]
        confidence = "overconfident" if mean_confidence > mean_agreement else "underconfident"
        yield _finding(
            "warning",
            "calibration",
            f"the model is {confidence}: confidence is {mean_confidence:.0%}, {mean_agreement:.0%} of the votes agree "
            f"(ECE {ece:.3f}; chance alone gives at most {ceiling:.3f})",
            "fewer epochs or a lower learning rate; label smoothing" if mean_confidence > mean_agreement else "",
        )
    low, high = report["log_loss"]["ci"]
    if low > LN2 + _LOG_LOSS_MARGIN:
        yield _finding(
            "warning",
            "log_loss",
            f"the log-loss of {report['log_loss']['value']:.3f} ({low:.3f} to {high:.3f}) is worse than "
            f"predicting 50% for every pair ({LN2:.3f})",
            "the score differences are too large for this accuracy: the model is overfitting",
        )


def _eos_findings(eos: Mapping[str, Any]) -> Iterator[Finding]:
    if not eos["questions"]:
        return
    moved, spread = eos["moved"], eos["spread"]
    if not eos["largest"]:
        yield _finding(
            "error",
            "eos_unread",
            "no score changes when the end of the answer (EOS) is cut off: the score does not depend on the last token",
            "make sure that pad and EOS are different tokens",
        )
    elif moved["ci"][0] > 0.5 * spread:
        yield _finding(
            "warning",
            "eos_rise",
            f"answers score higher without EOS: by {moved['value']:.2g}; all scores have a spread of {spread:.2g}",
            "PPO could gain by never ending: set a sufficient rewards.missing_eos_penalty",
        )


def unmeasured(report: Mapping[str, Any]) -> dict[str, str]:
    """Kinds of `findings` that these metrics cannot show, each with the reason."""
    missing: dict[str, str] = {}
    accuracy_kinds = ("few_prompts", "worse_than_chance", "chance", "suspicious", "above_reachable", "length_rule",
                   "length_correlation", "ties", "near_duplicates")  # fmt: skip
    if not report["pairs"]:
        why = "no held-out pair" if report["questions"] else "nothing was held out"
        return dict.fromkeys((kind for kind in WATCHED if kind != "nothing_held_out"), why)
    if report["ratings"]:
        why = "a regression model gives no probabilities"
        missing |= {"calibration": why, "log_loss": why}
    shared = report["shared"]
    if shared is None:
        missing["no_overlap"] = "no held-out pair has votes of two people"
    if shared is None or shared["best"] is None:
        missing["above_reachable"] = "too few held-out pairs were decided by two people to say how far votes agree"
    if not report["without_eos"]["questions"]:
        missing |= dict.fromkeys(("eos_unread", "eos_rise"), "no held-out answer has more than one token")
    if report["accuracy"] is None:
        return missing | dict.fromkeys(accuracy_kinds, "no held-out vote prefers one of two answers")
    if report["length"]["correlation"] is None:
        missing["length_correlation"] = "the scores or the lengths of the two answers never differ"
    kinds = {"ties": "pairs that most people call a tie", "near_duplicates": "pairs of nearly equal answers"}
    for kind, description in kinds.items():
        counts = report[kind]["n"], report[kind]["others"]["n"]
        if counts[0] < _MIN_PAIRS or not counts[1]:
            missing[kind] = (
                f"it needs {_MIN_PAIRS} held-out {description}, and others; there are {counts[0]} and {counts[1]}"
            )
    return missing


def _points(estimate: Mapping[str, Any]) -> str:
    low, high = estimate["ci"]
    return f"{100 * estimate['value']:+.1f} points, {100 * low:+.1f} to {100 * high:+.1f}"


def verdict(report: Mapping[str, Any]) -> str:
    """The report in one line."""
    accuracy = report["accuracy"]
    if accuracy is None:
        return "Nothing was held out" if not report["questions"] else "No held-out vote is decided"
    return f"Agrees with {accuracy['value']:.1%} of {accuracy['n']:,} held-out votes"


def chosen_on(report: Mapping[str, Any]) -> str:
    """A note on the held-out prompts that chose the model among several evaluations; empty if none was chosen."""
    chosen = report.get("chosen")
    if not chosen:
        return ""
    best = f"the best of {chosen['evaluations']} evaluations"
    if not chosen["prompts"]:
        return f"{best}, chosen on these same prompts, because there is only one: the metrics are too good"
    return f"{best}, chosen on {chosen['prompts']:,} other held-out prompts"
