"""Command line of the reward stage: `python -m reward configs/reward/demo.yaml [key=value ...]`"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from alignment.runs.starting import hold_signals

if TYPE_CHECKING:
    from reward.config import RewardStageConfig


def main(argv: Sequence[str] | None = None) -> int:
    # Imported inside, so that signals are held back before, and --help and config errors do not load torch.
    from alignment.training.stage import run_stage
    from reward.config import RewardStageConfig

    def train(config: RewardStageConfig) -> dict[str, object]:
        from reward.train import train

        return train(config)

    def plan(config: RewardStageConfig, world_size: int) -> dict[str, object]:
        from reward.plan import plan

        return plan(config, world_size)

    def complete(config: RewardStageConfig) -> RewardStageConfig:
        # Labelers' names stay in the ratings file, where `alignment rate forget` removes them.
        from reward.labelers import reader_of, resolved

        labelers = resolved(config.reward.labelers, config.data, reader_of(config.reward))
        return config.model_copy(update={"reward": config.reward.model_copy(update={"labelers": labelers})})

    def study(config: RewardStageConfig, args: argparse.Namespace) -> Callable[[], str] | None:
        if args.overfit is None:
            return None
        from reward.studies.overfit import overfit

        return partial(overfit, config, args.overfit)

    return run_stage(
        "reward", RewardStageConfig, train, plan, argv, options=[_options()], study=study, complete=complete
    )


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument(
        "--overfit",
        type=pairs,
        metavar="N",
        help="preflight: overfit N pairs (32, say), or say why that fails; no run is kept",
    )
    return parser


def pairs(text: str) -> int:
    if not 2 <= int(text) <= 1000:
        raise argparse.ArgumentTypeError(f"{text}: expected 2 to 1000 pairs")
    return int(text)


if __name__ == "__main__":
    hold_signals()
    from alignment.training.stage import exit_process

    exit_process(main())
