"""Learning-rate range test: `python -m sft CONFIG --find-lr`.

The config is trained with a learning rate that grows by a constant factor at each optimizer step, until the loss
diverges (Smith 2017, "Cyclical Learning Rates for Training Neural Networks", section 3.3, there with a linear ramp).
Nothing is published, and no run is kept except `RUN/find_lr.json` and `RUN/find_lr.png`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers.training_args import TrainingArguments

from alignment.config.arguments import BestModelArguments
from alignment.distributed import processes
from alignment.runs.journal import Journal, finite
from alignment.training import callbacks, start_model
from sft.building import build_trainer
from sft.config import SFTStageConfig
from sft.prepare import prepare

LOWEST, HIGHEST, STEPS = 1e-7, 1.0, 100
DECADE = round((STEPS - 1) / math.log10(HIGHEST / LOWEST))
"""Number of steps in which the learning rate grows tenfold."""
SMOOTHING = 0.8
DIVERGED = 1.5
RULE = (
    "The middle of the decade of rates in which a line fitted to the losses falls fastest; at most a tenth of "
    "the rate with the lowest smoothed loss. None if the loss falls by less than 1.5 standard deviations of one "
    "step's loss."
)


@dataclass(frozen=True)
class RangeTest:
    """The result of a range test: one learning rate and loss per step, and the suggestion, None if there is none."""

    suggestion: float | None
    lowest: float
    """Learning rate with the lowest smoothed loss."""
    diverged: bool
    rates: list[float]
    losses: list[float]
    smoothed: list[float]
    rule: str = RULE


def find_lr(config: SFTStageConfig) -> str:
    """Run the test and write its two files; returns the line to print."""
    config = _ramped(config)
    prepared = prepare(config)
    ramp = _Ramp(np.geomspace(LOWEST, HIGHEST, STEPS).tolist())
    with start_model.unpublished_base(config, prepared.start, prepared.seed) as start:
        trainer = build_trainer(config, replace(prepared, start=start))
        callbacks.attach(trainer, Journal(config.run_dir, enabled=False), f"find-lr {config.name}")
        trainer.add_callback(ramp)
        trainer.train()
    result = read_range(ramp.rates[: len(ramp.losses)], ramp.losses)
    processes.on_main_process(lambda: _write(result, config.run_dir))
    plot = f"{config.run_dir / 'find_lr.png'} shows why"
    if result.suggestion is None:
        return f"no learning rate suggested: the loss did not clearly fall; {plot}; a larger batch has less noise"
    return f"suggested training.learning_rate={result.suggestion:.2g} ({plot})"


def _ramped(config: SFTStageConfig) -> SFTStageConfig:
    """The same config with the ramp as its schedule, a log at every step, and no evaluations."""
    dropped = {field.name for field in fields(BestModelArguments)} | {"lr_scheduler_kwargs", "eval_on_start"}
    training = {name: value for name, value in config.training.items() if name not in dropped} | {
        "max_steps": STEPS,
        "learning_rate": HIGHEST,
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "eval_strategy": "no",
        "logging_strategy": "steps",
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
    }
    return config.model_copy(update={"training": training})


class _Ramp(TrainerCallback):
    """Sets each step's learning rate and records its loss. The loss is the mean over all ranks, so they stop together.

    Parameter groups keep the ratio of their learning rates.
    """

    def __init__(self, rates: list[float]) -> None:
        self.rates = rates
        self.losses: list[float] = []

    def on_step_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: Any = None,
        **kwargs: Any,
    ) -> None:
        for group in optimizer.param_groups:
            group["lr"] = self.rates[state.global_step] * group["initial_lr"] / args.learning_rate

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if logs and "loss" in logs:
            self.losses.append(float(logs["loss"]))
            control.should_training_stop |= has_diverged(self.losses)


def smooth(losses: Sequence[float]) -> list[float]:
    """Exponential moving average with Adam's bias correction."""
    smoothed, average = [], 0.0
    for step, loss in enumerate(losses, 1):
        average = SMOOTHING * average + (1 - SMOOTHING) * loss
        smoothed.append(average / (1 - SMOOTHING**step))
    return smoothed


def has_diverged(losses: Sequence[float]) -> bool:
    """Return whether the last loss is not finite, or the smoothed loss exceeds 1.5 times its minimum."""
    smoothed = smooth(losses)
    return not math.isfinite(losses[-1]) or smoothed[-1] > DIVERGED * min(smoothed)


def read_range(rates: Sequence[float], losses: Sequence[float]) -> RangeTest:
    """Apply `RULE` to the losses of a ramp, which may have ended early.

    Args:
        rates: one learning rate per step, growing by a constant factor.
        losses: one per step, of the batch that is trained on with this learning rate.
    """
    smoothed = smooth(losses)
    usable = [value if math.isfinite(value) else math.inf for value in smoothed]
    end = int(np.argmin(usable)) + 1
    suggestion = None
    if end >= DECADE:
        falling = np.asarray(losses[:end])
        noise = float(np.diff(falling).std()) / math.sqrt(2)
        if falling[:DECADE].mean() - smoothed[end - 1] > 1.5 * noise:
            slopes = [np.polyfit(range(DECADE), falling[i : i + DECADE], 1)[0] for i in range(end - DECADE + 1)]
            middle = rates[int(np.argmin(slopes)) + DECADE // 2]
            suggestion = min(middle, rates[end - 1] / 10)
    return RangeTest(
        suggestion, rates[end - 1], has_diverged(losses), list(rates), [float(x) for x in losses], smoothed
    )


def _write(result: RangeTest, run_dir: Path) -> None:
    from matplotlib.figure import Figure  # slow to import

    run_dir.mkdir(parents=True, exist_ok=True)
    text = json.dumps(finite(asdict(result)), indent=2)
    (run_dir / "find_lr.json").write_text(text + "\n", encoding="utf-8")
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(result.rates, result.losses, ".", color="lightgray", label="each step")
    axes.plot(result.rates, result.smoothed, label="smoothed")
    if result.suggestion is not None:
        axes.axvline(result.suggestion, color="black", linestyle="--", label=f"suggested {result.suggestion:.2g}")
    axes.set(xscale="log", xlabel="training.learning_rate", ylabel="training loss", title="Learning-rate range test")
    axes.legend()
    figure.savefig(run_dir / "find_lr.png", dpi=150)
