"""Prepare a trained model for publishing: verify its files and shift its scores to average 0."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from transformers import PreTrainedModel

from alignment.config.sections import ADAPTERS, ModelConfig
from alignment.data.records import CHOICES
from alignment.errors import UserError
from alignment.models import adapters, saved_adapters
from alignment.models.ensembles import RewardEnsemble, load_reward_model, write_ensemble
from alignment.models.reward_files import Bias, biases, member_name, write_score_bias
from alignment.models.scalar import ScalarModel, as_bias, holds_head, load_scalar_model, shift_scores
from alignment.models.sources import ModelSource
from reward.batches import score_heads, score_questions
from reward.config import RewardStageConfig
from reward.demonstrations import NormalizationSet
from reward.prepare import PreparedReward, initial_model
from reward.questions import Question
from reward.trainer import Probe

HELD_OUT = "scoring the held-out questions"
EXACT, ROUNDED = 1e-3, 0.2
"""Tolerances of scores, relative to the largest one if that is above 1. A lost or stale head differs by 1, another
order of float32 sums by 1e-6, half precision by a few hundredths (0.05 through 32 layers)."""


class GateError(UserError):
    """A saved model whose scores differ from those of the model in memory."""


def load(folder: Path) -> ScalarModel:
    """Load a saved model onto the GPU if there is one."""
    return load_scalar_model(str(folder)).to("cuda" if torch.cuda.is_available() else "cpu")


def scores_of(scalar: ScalarModel, questions: Sequence[Question], pad_token_id: int, what: str) -> list[float]:
    """The scores of all completions, head by head and question by question; `what` names the questions for the
    heartbeat."""
    heads = score_heads(scalar, questions, pad_token_id, doing=f"scoring {what}")
    return [score for rows in heads for row in rows for score in row]


def mean_over(scalar: ScalarModel, normalization: NormalizationSet, pad_token_id: int) -> Bias:
    """The mean score of each head over the normalization set, which is scored once."""
    what = f"scoring the {normalization.over} whose scores are to average 0"
    heads = score_heads(scalar, normalization.questions, pad_token_id, doing=what)
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


def finish(folder: Path, probe: Probe, normalization: NormalizationSet, pad_token_id: int) -> tuple[ScalarModel, Bias]:
    """Compare the saved model with the trained one, shift its scores to average 0 over `normalization`, and save it.

    Returns:
        The model, loaded again from its final files, and the shift of its scores.

    Raises:
        GateError: the saved model is not the trained one, or it does not load as it was saved.
    """
    (folder / "training_args.bin").unlink(missing_ok=True)
    scalar = load(folder)
    scores = scores_of(scalar, probe.questions, pad_token_id, "the probe")
    check_gate(probe.scores, scores, ROUNDED if probe.rounded else EXACT, "what was saved")
    shift = mean_over(scalar, normalization, pad_token_id)
    shift_scores(scalar, shift)
    scalar.model.save_pretrained(folder)
    del scalar  # a large model must not be in memory twice
    shifted = load(folder)
    check_gate(
        less(scores, shift),
        scores_of(shifted, probe.questions, pad_token_id, "the probe"),
        EXACT,
        "what was saved with its score offset",
    )
    return shifted, shift


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
    model: ScalarModel | RewardEnsemble
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
        if isinstance(self.model, ScalarModel):
            return []
        members = (self.model.member(index) for index in range(self.model.size))
        return [score_questions(member, questions, self.pad_token_id, doing=HELD_OUT) for member in members]

    def score(self, questions: Sequence[Question]) -> list[list[list[float]]]:
        """Each head's scores of the completions of each question; an ensemble gives the mean."""
        if isinstance(self.model, ScalarModel):
            return score_heads(self.model, questions, self.pad_token_id, doing=HELD_OUT)
        return [averaged(self.member_scores(questions))]


def averaged(members: Sequence[Sequence[Sequence[float]]]) -> list[list[float]]:
    """The mean over members of the scores of each question's completions."""
    return [[fmean(scores) for scores in zip(*row, strict=True)] for row in zip(*members, strict=True)]


def finish_all(
    staging: Path, config: RewardStageConfig, prepared: PreparedReward, trained: Sequence[Trained]
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
            model, shifts = _finish_adapters(folder, folders, config, prepared, trained)
            return Finished(folder, model, shifts, seed, True, pad)
        assert size == 1  # checked before training
        _merge_in_place(folder, initial_model(config, prepared), config.model.quantized)
    finished = [
        finish(member_folder, member.probe, prepared.normalization, pad)
        for member_folder, member in zip(folders, trained, strict=True)
    ]
    models, shifts = [model for model, _ in finished], [shift for _, shift in finished]
    if size == 1:
        return Finished(folder, models[0], shifts, seed, False, pad)
    _tidy(folder, folders)
    write_ensemble(folder, None, size)
    return Finished(folder, RewardEnsemble(models, size), shifts, seed, False, pad)


def _finish_adapters(
    folder: Path,
    folders: Sequence[Path],
    config: RewardStageConfig,
    prepared: PreparedReward,
    trained: Sequence[Trained],
) -> tuple[ScalarModel | RewardEnsemble, list[Bias]]:
    """Apply `finish` to one or several adapters on one base; the score offsets are saved beside them."""
    pad, size = prepared.start.tokenizer.pad_token_id, len(trained)
    source = ModelSource(str(folder), base=prepared.start.source, trained=config.model)
    options = ModelConfig(name=config.model.name, trust_remote_code=config.model.trust_remote_code)
    _tidy(folder, folders)
    for member_folder in folders:
        saved_adapters.name_base(member_folder, prepared.start.source.label)

    heads = config.reward.score_names

    def load_with(offsets: Sequence[Bias]) -> ScalarModel | RewardEnsemble:
        if size > 1:
            write_ensemble(folder, [float(offset) for offset in offsets if not isinstance(offset, list)], size)
        else:
            write_score_bias(folder, offsets[0], heads)
        return load_reward_model(source, options, several_heads=True).to("cuda" if torch.cuda.is_available() else "cpu")

    shifts: list[Bias] = []
    saved, scores_by_member = load_with([[0.0] * len(heads) if heads else 0.0] * size), []
    for index, member in enumerate(trained):
        scalar, what = _member(saved, index)
        scores_by_member.append(scores_of(scalar, member.probe.questions, pad, "the probe"))
        check_gate(member.probe.scores, scores_by_member[-1], ROUNDED if member.probe.rounded else EXACT, what)
        shifts.append(mean_over(scalar, prepared.normalization, pad))
    del saved, scalar  # a large model must not be in memory twice
    shifted = load_with(shifts)
    for index, (member, scores, shift) in enumerate(zip(trained, scores_by_member, shifts, strict=True)):
        scalar, what = _member(shifted, index)
        check_gate(
            less(scores, shift),
            scores_of(scalar, member.probe.questions, pad, "the probe"),
            EXACT,
            f"{what} with its score offset",
        )
    return shifted, shifts


def _member(model: ScalarModel | RewardEnsemble, index: int) -> tuple[ScalarModel, str]:
    """One of the loaded models, and a description of its files."""
    if isinstance(model, ScalarModel):
        return model, "what was saved"
    return model.member(index), f"what was saved of member {index}"


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
