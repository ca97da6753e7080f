"""From a trained model's folder to one that may be published: the gate, the zero point, and the held-out report."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import torch

from alignment.data import CHOICES
from alignment.errors import UserError
from alignment.scalar_models import ScalarModel, load_scalar_model, shift_scores
from reward.batches import score_questions
from reward.demonstrations import Zero
from reward.questions import Question
from reward.trainer import Probe

EXACT, ROUNDED = 1e-3, 0.1
"""By how much scores may differ, in units of the largest one where that is above 1: a lost or stale head is off by
about 1, float32 sums in another order by 1e-6, half precision by some hundredths."""
ZERO_WITHIN = 1e-3


class GateError(UserError):
    """A model whose files do not score as it did in memory."""


def load(folder: Path) -> ScalarModel:
    """A saved model where it scores fastest."""
    return load_scalar_model(str(folder)).to("cuda" if torch.cuda.is_available() else "cpu")


def scores_of(scalar: ScalarModel, questions: Sequence[Question], pad_token_id: int) -> list[float]:
    """Score of each completion, question by question."""
    return [score for row in score_questions(scalar, questions, pad_token_id) for score in row]


def check_gate(expected: Sequence[float], found: Sequence[float], tolerance: float, what: str) -> None:
    """Refuse to publish where files do not give the scores that they should.

    Raises:
        GateError: they differ.
    """
    scale = max(1.0, *map(abs, expected))
    apart = max(abs(one - other) for one, other in zip(expected, found, strict=True))
    if not apart <= tolerance * scale:  # so that NaN is refused too
        raise GateError(
            f"{what} scores a probe of {len(expected)} answers otherwise than the model in memory did (up to "
            f"{apart:.2g} apart, scores up to {scale:.2g}), so nothing was published: the saved files are not the "
            "model that was trained; is the disk full, or was the folder written to?"
        )


def finish(folder: Path, probe: Probe, zero: Zero, pad_token_id: int) -> tuple[ScalarModel, float]:
    """Compare what was saved with the model that was trained, shift its scores to average 0 over `zero`, and save it.

    Returns:
        The model, loaded again from its final files, and what its scores were shifted by.

    Raises:
        GateError: what was saved is not the model that was trained; or it does not load as it was saved.
    """
    (folder / "training_args.bin").unlink(missing_ok=True)
    scalar = load(folder)
    found = scores_of(scalar, probe.questions, pad_token_id)
    check_gate(probe.scores, found, ROUNDED if probe.rounded else EXACT, "what was saved")
    shift = fmean(scores_of(scalar, zero.questions, pad_token_id))
    shift_scores(scalar, shift)
    scalar.model.save_pretrained(folder)
    again = load(folder)
    expected = [score - shift for score in found]
    check_gate(expected, scores_of(again, probe.questions, pad_token_id), EXACT, "what was saved with its zero point")
    mean = fmean(scores_of(again, zero.questions, pad_token_id))
    if not abs(mean) < ZERO_WITHIN * max(1.0, abs(shift)):
        raise GateError(
            f"the scores of the saved model average {mean:.2g} over {zero.where}, not 0; nothing was published"
        )
    return again, shift


def write_eval_pairs(run_dir: Path, questions: Sequence[Question], scores: Sequence[Sequence[float]]) -> None:
    """`RUN/eval_pairs.jsonl`: each held-out comparison with its votes and scores, for whoever wants to look."""
    with (run_dir / "eval_pairs.jsonl").open("w", encoding="utf-8") as file:
        for question, row in zip(questions, scores, strict=True):
            for pair in question.pairs:
                comparison = pair.comparison
                record = {
                    "prompt": list(comparison.prompt),
                    "first": comparison.first,
                    "second": comparison.second,
                    "votes": {choice: comparison.count(choice) for choice in CHOICES},
                    "first_score": row[pair.first],
                    "second_score": row[pair.second],
                }
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
