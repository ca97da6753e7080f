"""Explain the warnings of the demo's reports: which of them are expected in its small world."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from alignment.reports.overview import verdicts_now
from alignment.reports.verdicts import headline
from alignment.runs.record import RunRecord

_FRAMES = "all questions are facts in a few sentence frames, so that held-out ones resemble those of training"
_FEW = "the recipe evaluates once, at the end, to save time"
_SEVEN = "the model starts from random weights and needs seven epochs on a small data set to learn the facts"
MEANT = {
    ("sft", "data check"): _FRAMES,
    ("sft", "overfitting"): _SEVEN,
    ("reward", "data check"): _FRAMES,
    ("reward", "overfitting"): _FEW,
    ("reward", "ties"): "few pairs are called a tie by most labelers",
    ("reward", "near duplicates"): "few pairs of answers share most of their words",
    ("ppo", "data check"): _FRAMES,
}
"""Reasons why a check does not pass in the demo, by stage and check."""
SIMULATED = {("reward", "labels"): "the labelers are programs, not people; some lean to one side on purpose"}
BY_HAND = {
    ("reward", check): "only you rated, and only a few pairs"
    for check in ("labels", "few prompts", "no overlap", "above reachable", "chance", "length rule", "calibration",
                  "log loss", "length correlation")
} | {
    ("ppo", "over-optimisation"): "only you rated, so there is no held-out reward model"
}  # fmt: skip
_RANDOM = "the ratings were shuffled (--shuffle), so there is nothing to learn from them"
SHUFFLED = {
    ("reward", check): _RANDOM
    for check in ("labels", "chance", "worse than chance", "length rule", "length correlation", "calibration",
                  "log loss", "eos unread", "eos rise")
} | {
    ("ppo", check): _RANDOM
    for check in ("better than the start", "over-optimisation", "exploding KL", "entropy collapse", "length drift",
                  "length sought", "truncation")
}  # fmt: skip


def explain(runs: Sequence[Path], shuffled: bool = False, by_hand: bool = False) -> Iterator[str]:
    """Yield a line for each check that did not pass, with the reason if it is expected in the demo.

    Args:
        shuffled, by_hand: the origin of the ratings.
    """
    reasons: Mapping[tuple[str, str], str] = (
        MEANT | (BY_HAND if by_hand else SIMULATED) | (SHUFFLED if shuffled else {})
    )
    for path in runs:
        record = RunRecord.read(path)
        run_verdicts = verdicts_now(record)
        yield f"{record.name}: {headline(run_verdicts)}"
        for verdict in run_verdicts:
            if verdict.outcome != "pass":
                reason = reasons.get((record.stage, verdict.name))
                explanation = f"meant here: {reason}" if reason else f"not meant here, look at it: {verdict.reason}"
                yield f"  {verdict.outcome}: {verdict.title}; {explanation}"
