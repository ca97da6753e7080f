"""From a trained model's folder to one that may be published: the gate, the zero point, and the held-out report."""

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
from alignment.models import adapters
from alignment.models.ensembles import RewardEnsemble, load_reward_model, member_name, write_ensemble
from alignment.models.scalar import ScalarModel, holds_head, load_scalar_model, shift_scores, write_score_bias
from alignment.models.sources import ModelSource
from reward.batches import score_questions
from reward.config import RewardStageConfig
from reward.demonstrations import Zero
from reward.prepare import PreparedReward, untrained
from reward.questions import Question
from reward.trainer import Probe

HELD_OUT = "scoring the held-out questions"
EXACT, ROUNDED = 1e-3, 0.2
"""By how much scores may differ, in units of the largest one where that is above 1: a lost or stale head is off by
about 1, float32 sums in another order by 1e-6, half precision by some hundredths (0.05 through 32 layers)."""


class GateError(UserError):
    """A model whose files do not score as it did in memory."""


def load(folder: Path) -> ScalarModel:
    """A saved model where it scores fastest."""
    return load_scalar_model(str(folder)).to("cuda" if torch.cuda.is_available() else "cpu")


def scores_of(scalar: ScalarModel, questions: Sequence[Question], pad_token_id: int, what: str) -> list[float]:
    """Score of each completion, question by question; `what` the questions are, for whoever waits."""
    rows = score_questions(scalar, questions, pad_token_id, doing=f"scoring {what}")
    return [score for row in rows for score in row]


def mean_over(scalar: ScalarModel, zero: Zero, pad_token_id: int) -> float:
    """What the scores average over the sequences that give the zero point. They are many, and scored once: that the
    published files are shifted by it, the probe shows."""
    return fmean(scores_of(scalar, zero.questions, pad_token_id, f"the {zero.over} whose scores are to average 0"))


def check_gate(expected: Sequence[float], found: Sequence[float], tolerance: float, what: str) -> None:
    """Refuse to publish where files do not give the scores that they should.

    Raises:
        GateError: they differ, or are no numbers.
    """
    if not all(map(math.isfinite, expected)):
        raise GateError(
            f"{what} was to score as the model in memory, whose scores are no numbers, so nothing was published: the "
            "training has gone astray; lower training.learning_rate, or set training.max_grad_norm"
        )
    scale = max(1.0, *map(abs, expected))
    differences = [abs(one - other) for one, other in zip(expected, found, strict=True)]
    if not all(difference <= tolerance * scale for difference in differences):  # max() passes over NaN
        apart = next((each for each in differences if not math.isfinite(each)), max(differences))
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
    found = scores_of(scalar, probe.questions, pad_token_id, "the probe")
    check_gate(probe.scores, found, ROUNDED if probe.rounded else EXACT, "what was saved")
    shift = mean_over(scalar, zero, pad_token_id)
    shift_scores(scalar, shift)
    scalar.model.save_pretrained(folder)
    del scalar  # a large model is not to be in memory twice
    again = load(folder)
    expected = [score - shift for score in found]
    check_gate(
        expected,
        scores_of(again, probe.questions, pad_token_id, "the probe"),
        EXACT,
        "what was saved with its zero point",
    )
    return again, shift


@dataclass(frozen=True)
class Trained:
    """One model as its training left it."""

    seed: int
    step: int
    """Optimizer step that it is of."""
    metrics: dict[str, Any]
    probe: Probe

    @property
    def steps(self) -> int:
        """Optimizer steps that were made."""
        return int(self.metrics["steps"])

    def write(self, path: Path) -> None:
        """Keep it for a run that is interrupted later on."""
        probe = {"scores": self.probe.scores, "rounded": self.probe.rounded}
        record = {"seed": self.seed, "step": self.step, "metrics": self.metrics, "probe": probe}
        path.write_text(json.dumps(record) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path, probed: Sequence[Question]) -> Trained:
        record = json.loads(path.read_text(encoding="utf-8"))
        return cls(record["seed"], record["step"], record["metrics"], Probe(list(probed), **record["probe"]))


def summed_up(trained: Sequence[Trained]) -> dict[str, Any]:
    """The metrics of one model; of several their means, and each one's under its name."""
    if len(trained) == 1:
        return trained[0].metrics
    means = {name: fmean(member.metrics[name] for member in trained) for name in ("train_loss", "steps")}
    return means | {member_name(number): member.metrics for number, member in enumerate(trained)}


@dataclass(frozen=True)
class Finished:
    """A model or ensemble as it will be published, loaded from its files."""

    folder: Path
    model: ScalarModel | RewardEnsemble
    shifts: list[float]
    """What each member's scores were shifted by."""
    seed: int
    adapted: bool
    """The members are adapters on the starting model."""
    pad_token_id: int

    @property
    def shift(self) -> float:
        return fmean(self.shifts)

    def member_scores(self, questions: Sequence[Question]) -> list[list[list[float]]]:
        """Scores of the completions of each question by each member; of a single model none."""
        if isinstance(self.model, ScalarModel):
            return []
        members = (self.model.member(number) for number in range(self.model.size))
        return [score_questions(member, questions, self.pad_token_id, doing=HELD_OUT) for member in members]

    def score(self, questions: Sequence[Question]) -> list[list[float]]:
        """Scores of the completions of each question; of an ensemble the mean."""
        if isinstance(self.model, ScalarModel):
            return score_questions(self.model, questions, self.pad_token_id, doing=HELD_OUT)
        return averaged(self.member_scores(questions))


def averaged(members: Sequence[Sequence[Sequence[float]]]) -> list[list[float]]:
    """The mean over the members of the score of each completion of each question."""
    return [[fmean(scores) for scores in zip(*row, strict=True)] for row in zip(*members, strict=True)]


def finish_all(
    staging: Path, config: RewardStageConfig, prepared: PreparedReward, trained: Sequence[Trained]
) -> Finished:
    """Make what was trained ready for the registry; one model in `staging/member-0`, or several in `staging`.

    Adapters stay adapters on the starting model; but one on an encoder is merged, see `holds_head`.

    Raises:
        GateError: see `finish`.
        AdapterError: an adapter that does not fit its base any more.
    """
    pad, size, seed = prepared.start.tokenizer.pad_token_id, len(trained), trained[0].seed
    folders = [staging / member_name(number) for number in range(size)]
    folder = staging if size > 1 else folders[0]
    if config.model.method in ADAPTERS:
        if holds_head(str(folders[0])):
            model, shifts = _finish_adapters(folder, folders, config, prepared, trained)
            return Finished(folder, model, shifts, seed, True, pad)
        assert size == 1  # refused before it was trained
        _merge_in_place(folder, untrained(config, prepared), config.model.quantized)
    finished = [finish(each, member.probe, prepared.zero, pad) for each, member in zip(folders, trained, strict=True)]
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
) -> tuple[ScalarModel | RewardEnsemble, list[float]]:
    """`finish` for one adapter, or several that share a base; the zero points are kept beside them."""
    pad, size = prepared.start.tokenizer.pad_token_id, len(trained)
    source = ModelSource(str(folder), base=prepared.start.source, trained=config.model)
    options = ModelConfig(name=config.model.name, trust_remote_code=config.model.trust_remote_code)
    _tidy(folder, folders)
    for each in folders:
        adapters.name_base(each, prepared.start.source.label)

    def load_with(biases: Sequence[float]) -> ScalarModel | RewardEnsemble:
        if size > 1:
            write_ensemble(folder, biases, size)
        else:
            write_score_bias(folder, biases[0])
        return load_reward_model(source, options).to("cuda" if torch.cuda.is_available() else "cpu")

    saved, found, shifts = load_with([0.0] * size), [], []
    for number, member in enumerate(trained):
        scalar, what = _member(saved, number)
        found.append(scores_of(scalar, member.probe.questions, pad, "the probe"))
        check_gate(member.probe.scores, found[-1], ROUNDED if member.probe.rounded else EXACT, what)
        shifts.append(mean_over(scalar, prepared.zero, pad))
    del saved, scalar  # a large model is not to be in memory twice
    again = load_with(shifts)
    for number, (member, scores, shift) in enumerate(zip(trained, found, shifts, strict=True)):
        scalar, what = _member(again, number)
        expected = [score - shift for score in scores]
        check_gate(
            expected, scores_of(scalar, member.probe.questions, pad, "the probe"), EXACT, f"{what} with its zero point"
        )
    return again, shifts


def _member(model: ScalarModel | RewardEnsemble, number: int) -> tuple[ScalarModel, str]:
    """One of the models that were loaded, and what to call its files."""
    if isinstance(model, ScalarModel):
        return model, "what was saved"
    return model.member(number), f"what was saved of member {number}"


def _tidy(top: Path, folders: Sequence[Path]) -> None:
    """Leave the members' folders with configs and weights alone; the tokenizer goes to the top, PEFT's card nowhere."""
    for folder in folders:
        for file in list(folder.iterdir()):
            own = file.name in ("config.json", adapters.CONFIG) or ".safetensors" in file.name
            if file.name in ("README.md", "training_args.bin"):
                file.unlink()
            elif not own:
                file.replace(top / file.name)


def _merge_in_place(folder: Path, base: PreTrainedModel, quantized: bool) -> None:
    """A saved adapter on an encoder and its trained head as a whole reward model."""
    merged = adapters.merge(adapters.dequantize(base) if quantized else base, str(folder))
    for name in (adapters.CONFIG, adapters.WEIGHTS, "README.md"):
        (folder / name).unlink(missing_ok=True)
    merged.save_pretrained(folder)


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
