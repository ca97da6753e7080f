"""`python -m reward configs/reward/demo.yaml [key=value ...]`"""

from alignment.stage import leave, run_stage
from reward.config import RewardStageConfig


def main() -> int:
    # Imported inside, so that --help and a config error answer without loading torch.
    def train(config: RewardStageConfig) -> dict[str, object]:
        from reward.train import train

        return train(config)

    def plan(config: RewardStageConfig, world_size: int) -> dict[str, object]:
        from reward.train import plan

        return plan(config, world_size)

    return run_stage("reward", RewardStageConfig, train, plan)


if __name__ == "__main__":
    leave(main())
