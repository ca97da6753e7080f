"""What the demo's reports warn of, and which of it is meant: a small world has faults that real data should not."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from alignment.reports.overview import verdicts_now
from alignment.reports.verdicts import headline
from alignment.runs.record import RunRecord

_FRAMES = "all questions are facts in a few sentence frames, so that held-out ones resemble those of training"
_FEW = "the recipe evaluates once, at the end, to save time"
_SEVEN = "the model begins with random weights, and takes seven passes over a small data set to learn the facts"
MEANT = {
    ("sft", "data check"): _FRAMES,
    ("sft", "overfitting"): _SEVEN,
    ("reward", "data check"): _FRAMES,
    ("reward", "overfitting"): _FEW,
    ("reward", "ties"): "few pairs are called a tie by most labelers",
    ("reward", "near duplicates"): "few pairs of answers share most of their words",
}
"""Why a check is no pass here, by stage and check."""
SIMULATED = {("reward", "labels"): "the labelers are programs, not people; some lean to one side on purpose"}
BY_HAND = {
    ("reward", check): "you rated a few pairs, and nobody else did"
    for check in ("labels", "few prompts", "no overlap", "above reachable", "chance", "length rule", "calibration",
                  "log loss", "length correlation")
} | {
    ("ppo", "over-optimisation"): "nobody but you rated, so there is no second reward model to judge by"
}  # fmt: skip
_RANDOM = "the ratings were dealt out at random (--shuffle): there is nothing to learn from them"
SHUFFLED = {
    ("reward", check): _RANDOM
    for check in ("labels", "chance", "worse than chance", "length rule", "length correlation", "calibration",
                  "log loss", "eos unread", "eos rise")
} | {
    ("ppo", check): _RANDOM
    for check in ("better than the start", "over-optimisation", "exploding KL", "entropy collapse", "length drift",
                  "length sought", "truncation")
}  # fmt: skip


def explained(runs: Sequence[Path], shuffled: bool = False, by_hand: bool = False) -> Iterator[str]:
    """Lines on what the runs' reports show red, orange or grey: why it is meant in this world, or that it is not.

    Args:
        shuffled, by_hand: how the ratings came about.
    """
    meant: Mapping[tuple[str, str], str] = MEANT | (BY_HAND if by_hand else SIMULATED) | (SHUFFLED if shuffled else {})
    for path in runs:
        record = RunRecord.read(path)
        found = verdicts_now(record)
        yield f"{record.name}: {headline(found)}"
        for verdict in found:
            if verdict.outcome != "pass":
                why = meant.get((record.stage, verdict.name))
                said = f"meant here: {why}" if why else f"not meant here, look at it: {verdict.reason}"
                yield f"  {verdict.outcome}: {verdict.title}; {said}"
