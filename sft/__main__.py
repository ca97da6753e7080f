"""`python -m sft configs/sft/demo.yaml [key=value ...]`"""

from alignment.stage import leave, run_stage
from sft.config import SFTStageConfig


def main() -> int:
    # Imported inside, so that --help and a config error answer without loading torch.
    def train(config: SFTStageConfig) -> dict[str, object]:
        from sft.train import train

        return train(config)

    def plan(config: SFTStageConfig, world_size: int) -> dict[str, object]:
        from sft.train import plan

        return plan(config, world_size)

    return run_stage("sft", SFTStageConfig, train, plan)


if __name__ == "__main__":
    leave(main())
