"""`python -m ppo configs/ppo/demo.yaml [key=value ...]`"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from alignment.runs.starting import hold_signals

if TYPE_CHECKING:
    from ppo.config import PPOStageConfig


def main(argv: Sequence[str] | None = None) -> int:
    # Imported inside, so that signals are held back before, and --help and config errors do not load torch.
    from alignment.training.stage import run_stage
    from ppo.config import PPOStageConfig

    def train(config: PPOStageConfig) -> dict[str, object]:
        from ppo.train import train

        return train(config)

    def plan(config: PPOStageConfig, world_size: int) -> dict[str, object]:
        from ppo.plan import plan

        return plan(config, world_size)

    return run_stage("ppo", PPOStageConfig, train, plan, argv)


if __name__ == "__main__":
    hold_signals()
    from alignment.training.stage import exit_process

    exit_process(main())
