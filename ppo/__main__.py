"""`python -m ppo configs/ppo/demo.yaml [key=value ...]`"""

from collections.abc import Sequence

from alignment.training.stage import exit_process, run_stage
from ppo.config import PPOStageConfig


def main(argv: Sequence[str] | None = None) -> int:
    # Imported inside, so that --help and a config error answer without loading torch.
    def train(config: PPOStageConfig) -> dict[str, object]:
        from ppo.train import train

        return train(config)

    def plan(config: PPOStageConfig, world_size: int) -> dict[str, object]:
        from ppo.plan import plan

        return plan(config, world_size)

    return run_stage("ppo", PPOStageConfig, train, plan, argv)


if __name__ == "__main__":
    exit_process(main())
