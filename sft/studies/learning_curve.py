"""Learning curve: `python -m sft CONFIG --learning-curve 0.25,0.5,1` estimates whether more data would help.

The config is trained on nested fractions of its training prompts, each from the same initial model and for the same
number of epochs (a smaller fraction takes fewer steps), and evaluated on the same held-out rows. Nothing is published,
and no run is kept except `RUN/learning_curve.json` and `RUN/learning_curve.png`. `sft.studies.more_data` has the rule.
"""

from __future__ import annotations

import copy
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from trl import SFTTrainer

from alignment.config.arguments import BestModelArguments
from alignment.distributed import processes
from alignment.errors import ConfigError
from alignment.evaluation.judge import Estimate, bootstrap_mean
from alignment.runs.journal import Journal
from alignment.tensors import logprobs_from_logits, pad_rows
from alignment.training import callbacks, start_model
from sft.building import build_trainer
from sft.config import SFTStageConfig
from sft.data import IGNORED, row_groups
from sft.prepare import PreparedSFT, prepare
from sft.studies.more_data import RULE, DoublingEstimate, HeldOut, answer

SAME_EPOCHS = "each fraction is trained for the same number of epochs, so a smaller one takes fewer steps"


@dataclass(frozen=True)
class Point:
    """One fraction: its size, the held-out loss per token of each seed, and the mean with an interval over prompts."""

    share: float
    prompts: int
    losses: list[float]
    loss: Estimate


def learning_curve(config: SFTStageConfig, shares: Sequence[float], num_seeds: int) -> str:
    """Train on every fraction with every seed and write the two files; returns the lines to print.

    Raises:
        ConfigError: nothing is held out, or training is not limited by epochs.
    """
    prepared = prepare(_without_pauses(config))
    if not len(prepared.data.eval):
        raise ConfigError("--learning-curve needs held-out rows; set data.eval or data.eval_share")
    group_of_row = row_groups(prepared.data.train)
    sizes = [math.ceil(share * (max(group_of_row) + 1)) for share in shares]
    runs = len(shares) * num_seeds
    if processes.is_main_process():
        cost = sum(shares) * num_seeds
        print(f"{runs} trainings, together about {cost:.3g} times as long as one run", file=sys.stderr)
    losses = np.zeros((num_seeds, len(shares), len(prepared.data.eval)))
    for seed_index in range(num_seeds):
        seeded = _with_seed(prepared, prepared.seed + seed_index)
        order = shuffled_groups(max(group_of_row) + 1, seeded.seed)
        with start_model.unpublished_base(config, prepared.start, seeded.seed) as start:
            for index, size in enumerate(sizes):
                chosen = set(order[:size])
                rows = prepared.data.train.select([row for row, group in enumerate(group_of_row) if group in chosen])
                label = f"share {shares[index]:g}, seed {seeded.seed}"
                losses[seed_index, index] = _train(
                    config, replace(seeded, start=start, data=replace(seeded.data, train=rows)), label
                )
    held_out = _by_prompt(losses, prepared.data.eval)
    points = [
        _point(held_out, index, share, size) for index, (share, size) in enumerate(zip(shares, sizes, strict=True))
    ]
    verdict = answer(held_out, sizes)
    processes.on_main_process(lambda: _write(points, verdict, config.run_dir))
    where = config.run_dir / "learning_curve.png"
    return "\n".join([*map(_line, points), f"({SAME_EPOCHS})", f"{verdict.sentence} ({where})"])


def _without_pauses(config: SFTStageConfig) -> SFTStageConfig:
    """The same config without evaluations, since choosing the best model would favour large fractions."""
    if config.training.get("max_steps", -1) > 0:
        raise ConfigError(
            "--learning-curve trains each fraction for the same number of epochs; set training.max_steps=-1 and "
            "training.num_train_epochs"
        )
    dropped = {field.name for field in fields(BestModelArguments)} | {"eval_on_start"}
    training = {name: value for name, value in config.training.items() if name not in dropped}
    return config.model_copy(update={"training": training | {"eval_strategy": "no"}})


def _with_seed(prepared: PreparedSFT, seed: int) -> PreparedSFT:
    """Another seed for the initial model, the fractions and the order of rows; the held-out split stays."""
    arguments = copy.copy(prepared.arguments)
    arguments.seed = seed
    return replace(prepared, seed=seed, arguments=arguments)


def shuffled_groups(num_groups: int, seed: int) -> list[int]:
    """The random order in which fractions take the groups; each fraction contains every smaller one."""
    return np.random.default_rng(seed).permutation(num_groups).tolist()


def _train(config: SFTStageConfig, prepared: PreparedSFT, label: str) -> np.ndarray:
    """Train on the rows and return the loss of each held-out row."""
    processes.reset_accelerator()
    trainer = build_trainer(config, prepared)
    callbacks.attach(trainer, Journal(config.run_dir, enabled=False), label)
    trainer.train()
    return row_losses(trainer, prepared.data.eval, prepared.start.tokenizer.pad_token_id)


@torch.no_grad()
def row_losses(trainer: SFTTrainer, rows: datasets.Dataset, pad_token_id: int) -> np.ndarray:
    """Summed loss over the trained tokens of each row, in nats: (rows,), the same on every process."""
    model, size = trainer.model_wrapped, trainer.args.per_device_eval_batch_size
    model.eval()  # DeepSpeed's engine returns nothing
    rank, world_size = trainer.accelerator.process_index, trainer.accelerator.num_processes
    losses = torch.zeros(len(rows), dtype=torch.float64, device=trainer.accelerator.device)
    by_length = sorted(range(len(rows)), key=[len(ids) for ids in rows["input_ids"]].__getitem__)
    # Each rank runs the same number of forwards; otherwise others would hang in a collective.
    for start in range(0, len(rows), size * world_size):
        batch = by_length[start : start + size * world_size][rank::world_size]
        shown = rows.select(batch or by_length[:1])
        ids, mask = pad_rows(shown["input_ids"], pad_token_id, "right")
        labels, _ = pad_rows(shown["labels"], IGNORED, "right")
        ids, mask, labels = (tensor.to(losses.device) for tensor in (ids, mask, labels))
        with trainer.accelerator.autocast():
            logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1]
        targets = labels[:, 1:]
        logprobs = logprobs_from_logits(logits, targets.clamp(min=0))
        summed = -torch.where(targets != IGNORED, logprobs, 0.0).double().sum(1)
        losses[batch] = summed[: len(batch)]
    return np.asarray(processes.all_reduce_sum(losses).cpu())


def _by_prompt(losses: np.ndarray, rows: datasets.Dataset) -> HeldOut:
    """Sum the rows of each prompt, since they are not independent: (..., rows) -> (..., prompts)."""
    groups = np.asarray(row_groups(rows))
    tokens = np.asarray([sum(label != IGNORED for label in labels[1:]) for labels in rows["labels"]], dtype=np.float64)
    membership = np.eye(groups.max() + 1)[groups]
    return HeldOut(losses @ membership, tokens @ membership)


def _point(held_out: HeldOut, index: int, share: float, size: int) -> Point:
    losses = held_out.loss[:, index]
    estimate = bootstrap_mean(losses.mean(0) / held_out.tokens, weights=held_out.tokens.tolist())
    return Point(share, size, held_out.per_token()[:, index].tolist(), estimate)


def _line(point: Point) -> str:
    low, high = point.loss["ci"]
    return f"{point.prompts:>8} prompts: held-out loss {point.loss['value']:.4f} per token ({low:.4f} to {high:.4f})"


def _write(points: Sequence[Point], verdict: DoublingEstimate, run_dir: Path) -> None:
    from matplotlib.figure import Figure  # slow to import

    run_dir.mkdir(parents=True, exist_ok=True)
    record: dict[str, Any] = {
        **asdict(verdict),
        "points": [asdict(point) for point in points],
        "interval": "95% over held-out prompts; the answer's also over seeds",
        "training": SAME_EPOCHS,
        "rule": RULE,
    }
    (run_dir / "learning_curve.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    sizes = [point.prompts for point in points]
    values = [point.loss["value"] for point in points]
    bars = [[abs(point.loss["ci"][side] - point.loss["value"]) for point in points] for side in (0, 1)]
    axes.errorbar(sizes, values, yerr=bars, marker="o", capsize=4, label="95% over held-out prompts")
    for point in points:
        axes.plot([point.prompts] * len(point.losses), point.losses, ".", color="gray")
    if verdict.saving is not None and verdict.ci is not None:
        bar = [[verdict.ci[1] - verdict.saving], [verdict.saving - verdict.ci[0]]]
        axes.errorbar(
            [2 * sizes[-1]], [values[-1] - verdict.saving], yerr=bar, marker="s", capsize=4, label="extrapolated"
        )
    axes.set(xscale="log", xlabel="training prompts", ylabel="held-out loss per token", title=verdict.verdict)
    axes.legend()
    figure.savefig(run_dir / "learning_curve.png", dpi=150)
