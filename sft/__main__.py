"""Command line of the SFT stage: `python -m sft configs/sft/demo.yaml [key=value ...]`"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from alignment.runs.starting import hold_signals

if TYPE_CHECKING:
    from sft.config import SFTStageConfig


def main(argv: Sequence[str] | None = None) -> int:
    # Imported inside, so that signals are held back before, and --help and config errors do not load torch.
    from alignment.errors import require_extra
    from alignment.training.stage import run_stage
    from sft.config import SFTStageConfig

    def train(config: SFTStageConfig) -> dict[str, object]:
        from sft.train import train

        return train(config)

    def plan(config: SFTStageConfig, world_size: int) -> dict[str, object]:
        from sft.plan import plan

        return plan(config, world_size)

    def study(config: SFTStageConfig, args: argparse.Namespace) -> Callable[[], str] | None:
        if args.find_lr:
            require_extra("plots", "matplotlib", purpose="--find-lr")
            from sft.studies.lr_finder import find_lr

            return partial(find_lr, config)
        if args.learning_curve:
            require_extra("plots", "matplotlib", purpose="--learning-curve")
            from sft.studies.learning_curve import learning_curve

            return partial(learning_curve, config, args.learning_curve, args.seeds)
        return None

    return run_stage("sft", SFTStageConfig, train, plan, argv, options=[_options()], study=study)


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False)
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--find-lr", action="store_true", help="suggest a learning rate, with a plot; no run is kept")
    instead.add_argument(
        "--learning-curve",
        type=fractions,
        metavar="SHARES",
        help="train on these fractions of the data, for example 0.25,0.5,1, and say whether more data would help",
    )
    parser.add_argument(
        "--seeds", type=seeds, default=3, help="trainings of each fraction of --learning-curve (default 3)"
    )
    return parser


def fractions(text: str) -> list[float]:
    parts = [float(part) for part in text.split(",")]
    if len(parts) < 2 or sorted(set(parts)) != parts or not (parts[0] > 0 and parts[-1] <= 1):
        raise argparse.ArgumentTypeError(
            f"{text!r}: expected increasing fractions above 0, at most 1, as in 0.25,0.5,1"
        )
    return parts


def seeds(text: str) -> int:
    if not 1 <= int(text) <= 10:
        raise argparse.ArgumentTypeError(f"{text}: expected 1 to 10")
    return int(text)


if __name__ == "__main__":
    hold_signals()
    from alignment.training.stage import exit_process

    exit_process(main())
