"""Prepare a trained model for publishing: verify its files and shift its scores to average 0."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from transformers import PreTrainedModel

from alignment.config.sections import ADAPTERS, ModelConfig
from alignment.data.records import CHOICES
from alignment.errors import UserError
from alignment.models import adapters, saved_adapters
from alignment.models.ensembles import load_reward_model, write_ensemble
from alignment.models.reward_files import Bias, biases, member_name, write_score_bias
from alignment.models.scalar import ScalarModel, as_bias, holds_head, load_scalar_model, shift_scores
from alignment.models.sources import ModelSource
from reward.config import RewardStageConfig
from reward.demonstrations import NormalizationSet
from reward.prepare import PreparedReward, initial_model
from reward.questions import Question
from reward.saved_model import SavedModel, write_score_offset
from reward.trainer import Probe

HELD_OUT = "scoring the held-out questions"
EXACT, ROUNDED = 1e-3, 0.2
"""Tolerances of scores, relative to the largest one if that is above 1. A lost or stale head differs by 1, another
order of float32 sums by 1e-6, half precision by a few hundredths (0.05 through 32 layers)."""


class GateError(UserError):
    """A saved model whose scores differ from those of the model in memory."""


def scores_of(saved: SavedModel, questions: Sequence[Question], pad_token_id: int, member: int = 0) -> list[float]:
    """The scores of all completions of the probe, head by head and question by question."""
    heads = saved.scores(questions, pad_token_id, "scoring the probe", member)
    return [score for rows in heads for row in rows for score in row]


def mean_over(saved: SavedModel, normalization: NormalizationSet, pad_token_id: int, member: int = 0) -> Bias:
    """The mean score of each head over the normalization set, which is scored once."""
    what = f"scoring the {normalization.over} whose scores are to average 0"
    heads = saved.scores(normalization.questions, pad_token_id, what, member)
    return as_bias([fmean(score for row in rows for score in row) for rows in heads])


def less(scores: Sequence[float], shift: Bias) -> list[float]:
    """Scores, one head's after the other's, less each head's shift."""
    shifts = biases(shift)
    size = len(scores) // len(shifts)
    return [score - shifts[index // size] for index, score in enumerate(scores)]


def check_gate(expected: Sequence[float], actual: Sequence[float], tolerance: float, what: str) -> None:
    """Refuse to publish if a model's files do not give the expected scores.

    Raises:
        GateError: the scores differ, or are not finite.
    """
    if not all(map(math.isfinite, expected)):
        raise GateError(
            f"{what} cannot be compared with the model in memory, whose scores are not finite; nothing was published: "
            "training diverged; lower training.learning_rate, or set training.max_grad_norm"
        )
    scale = max(1.0, *map(abs, expected))
    differences = [abs(one - other) for one, other in zip(expected, actual, strict=True)]
    if not all(difference <= tolerance * scale for difference in differences):  # max() may miss a NaN
        largest = next((value for value in differences if not math.isfinite(value)), max(differences))
        raise GateError(
            f"{what} scores a probe of {len(expected)} answers differently from the model in memory (by up to "
            f"{largest:.2g}; scores are up to {scale:.2g}), so nothing was published: the saved files are not the "
            "model that was trained; is the disk full, or was the folder written to?"
        )


def finish(saved: SavedModel, folder: Path, probe: Probe, normalization: NormalizationSet, pad_token_id: int) -> Bias:
    """Compare the saved model with the trained one, shift its scores to average 0 over `normalization`, and save it.

    Args:
        saved: loads and scores; its model is the folder's afterwards.

    Returns:
        The shift of its scores.

    Raises:
        GateError: the saved model is not the trained one, or it does not load as it was saved.
    """
    (folder / "training_args.bin").unlink(missing_ok=True)
    scalar = saved.load(folder, partial(load_scalar_model, str(folder)))
    assert isinstance(scalar, ScalarModel)
    scores = scores_of(saved, probe.questions, pad_token_id)
    check_gate(probe.scores, scores, ROUNDED if probe.rounded else EXACT, "what was saved")
    shift = mean_over(saved, normalization, pad_token_id)
    shift_scores(scalar, shift)
    if saved.sharded:  # no process has the weights, which are saved already
        write_score_offset(folder, scalar)
    else:
        scalar.model.save_pretrained(folder)
    del scalar  # a large model must not be in memory twice
    saved.load(folder, partial(load_scalar_model, str(folder)))
    check_gate(
        less(scores, shift),
        scores_of(saved, probe.questions, pad_token_id),
        EXACT,
        "what was saved with its score offset",
    )
    return shift


@dataclass(frozen=True)
class Trained:
    """The outcome of one model's training."""

    seed: int
    step: int
    """Optimizer step of the chosen model."""
    metrics: dict[str, Any]
    probe: Probe

    @property
    def steps(self) -> int:
        """Number of optimizer steps of the training."""
        return int(self.metrics["steps"])

    def write(self, path: Path) -> None:
        """Write the record, which a resumed run reads."""
        probe = {"scores": self.probe.scores, "rounded": self.probe.rounded}
        record = {"seed": self.seed, "step": self.step, "metrics": self.metrics, "probe": probe}
        path.write_text(json.dumps(record) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path, probed: Sequence[Question]) -> Trained:
        record = json.loads(path.read_text(encoding="utf-8"))
        return cls(record["seed"], record["step"], record["metrics"], Probe(list(probed), **record["probe"]))


def mean_metrics(trained: Sequence[Trained]) -> dict[str, Any]:
    """The metrics of one model, or the means over several models with each one's metrics under its name."""
    if len(trained) == 1:
        return trained[0].metrics
    means = {name: fmean(member.metrics[name] for member in trained) for name in ("train_loss", "steps")}
    return means | {member_name(index): member.metrics for index, member in enumerate(trained)}


@dataclass(frozen=True)
class Finished:
    """A model or ensemble ready for publishing, loaded from its files."""

    folder: Path
    saved: SavedModel
    shifts: Sequence[Bias]
    """The shift of each member's scores."""
    seed: int
    adapted: bool
    """Whether the members are adapters on the initial model."""
    pad_token_id: int

    @property
    def shift(self) -> float:
        """The shift of the scores; of several heads its mean."""
        return fmean(each for shift in self.shifts for each in biases(shift))

    def member_scores(self, questions: Sequence[Question]) -> list[list[list[float]]]:
        """Each member's scores of the completions of each question; empty for a single model."""
        if isinstance(self.saved.model, ScalarModel):
            return []
        scored = [self.saved.scores(questions, self.pad_token_id, HELD_OUT, n) for n in range(len(self.shifts))]
        return [heads[0] if heads else [] for heads in scored]

    def score(self, questions: Sequence[Question]) -> list[list[list[float]]]:
        """Each head's scores of the completions of each question; an ensemble gives the mean."""
        if isinstance(self.saved.model, ScalarModel):
            return self.saved.scores(questions, self.pad_token_id, HELD_OUT)
        return [averaged(self.member_scores(questions))]


def averaged(members: Sequence[Sequence[Sequence[float]]]) -> list[list[float]]:
    """The mean over members of the scores of each question's completions."""
    return [[fmean(scores) for scores in zip(*row, strict=True)] for row in zip(*members, strict=True)]


def finish_all(
    saved: SavedModel, staging: Path, config: RewardStageConfig, prepared: PreparedReward, trained: Sequence[Trained]
) -> Finished:
    """Prepare trained models for the registry: one model in `staging/member-0`, or several in `staging`.

    Adapters stay adapters on the initial model, except that one on an encoder is merged; see `holds_head`.

    Raises:
        GateError: see `finish`.
        AdapterError: an adapter no longer fits its base.
    """
    pad, size, seed = prepared.start.tokenizer.pad_token_id, len(trained), trained[0].seed
    folders = [staging / member_name(index) for index in range(size)]
    folder = staging if size > 1 else folders[0]
    if config.model.method in ADAPTERS:
        if holds_head(str(folders[0])):
            shifts = _finish_adapters(saved, folder, folders, config, prepared, trained)
            return Finished(folder, saved, shifts, seed, True, pad)
        assert size == 1  # checked before training
        _merge_in_place(folder, initial_model(config, prepared), config.model.quantized)
    shifts = [
        finish(saved, member_folder, member.probe, prepared.normalization, pad)
        for member_folder, member in zip(folders, trained, strict=True)
    ]
    if size > 1:
        _tidy(folder, folders)
        write_ensemble(folder, None, size)
        saved.load(folder, partial(load_reward_model, ModelSource(str(folder))))
    return Finished(folder, saved, shifts, seed, False, pad)


def _finish_adapters(
    saved: SavedModel,
    folder: Path,
    folders: Sequence[Path],
    config: RewardStageConfig,
    prepared: PreparedReward,
    trained: Sequence[Trained],
) -> list[Bias]:
    """Apply `finish` to one or several adapters on one base; the score offsets are saved beside them."""
    pad, size = prepared.start.tokenizer.pad_token_id, len(trained)
    source = ModelSource(str(folder), base=prepared.start.source, trained=config.model)
    options = ModelConfig(name=config.model.name, trust_remote_code=config.model.trust_remote_code)
    _tidy(folder, folders)
    for member_folder in folders:
        saved_adapters.name_base(member_folder, prepared.start.source.label)

    heads = config.reward.score_names

    def load_with(offsets: Sequence[Bias]) -> None:
        if size > 1:
            write_ensemble(folder, [float(offset) for offset in offsets if not isinstance(offset, list)], size)
        else:
            write_score_bias(folder, offsets[0], heads)
        saved.load(folder, partial(load_reward_model, source, options, several_heads=True))

    shifts: list[Bias] = []
    load_with([[0.0] * len(heads) if heads else 0.0] * size)
    scores_by_member = []
    whats = [f"what was saved of member {index}" for index in range(size)] if size > 1 else ["what was saved"]
    for index, (member, what) in enumerate(zip(trained, whats, strict=True)):
        scores_by_member.append(scores_of(saved, member.probe.questions, pad, index))
        check_gate(member.probe.scores, scores_by_member[-1], ROUNDED if member.probe.rounded else EXACT, what)
        shifts.append(mean_over(saved, prepared.normalization, pad, index))
    load_with(shifts)
    for index, (member, scores, shift) in enumerate(zip(trained, scores_by_member, shifts, strict=True)):
        check_gate(
            less(scores, shift),
            scores_of(saved, member.probe.questions, pad, index),
            EXACT,
            f"{whats[index]} with its score offset",
        )
    return shifts


def _tidy(top: Path, folders: Sequence[Path]) -> None:
    """Keep only configs and weights in the members' folders; move the tokenizer to the top and delete PEFT's card."""
    for folder in folders:
        for file in list(folder.iterdir()):
            is_kept = file.name in ("config.json", saved_adapters.CONFIG) or ".safetensors" in file.name
            if file.name in ("README.md", "training_args.bin"):
                file.unlink()
            elif not is_kept:
                file.replace(top / file.name)


def _merge_in_place(folder: Path, base: PreTrainedModel, quantized: bool) -> None:
    """Merge a saved adapter on an encoder and its trained head into a full reward model."""
    merged = adapters.merge(adapters.dequantize(base) if quantized else base, str(folder))
    for name in (saved_adapters.CONFIG, saved_adapters.WEIGHTS, "README.md"):
        (folder / name).unlink(missing_ok=True)
    merged.save_pretrained(folder)


def write_eval_pairs(run_dir: Path, questions: Sequence[Question], heads: Sequence[Sequence[Sequence[float]]]) -> None:
    """Write `RUN/eval_pairs.jsonl`: each held-out comparison with its votes and scores."""
    with (run_dir / "eval_pairs.jsonl").open("w", encoding="utf-8") as file:
        for place, question in enumerate(questions):
            for pair in question.pairs:
                comparison, row = pair.comparison, heads[pair.head][place]
                record = {
                    "prompt": list(comparison.prompt),
                    "first": comparison.first,
                    "second": comparison.second,
                    "votes": {choice: comparison.count(choice) for choice in CHOICES},
                    "first_score": row[pair.first],
                    "second_score": row[pair.second],
                } | ({"attribute": comparison.attribute} if comparison.attribute else {})
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
