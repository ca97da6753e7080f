"""`python -m sft configs/sft/demo.yaml [key=value ...]`"""

import argparse

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

    def study(config: SFTStageConfig, args: argparse.Namespace) -> str | None:
        if args.find_lr:
            from sft.lr_finder import find_lr

            return find_lr(config)
        return None

    return run_stage("sft", SFTStageConfig, train, plan, options=[_options()], study=study)


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--find-lr", action="store_true", help="suggest a learning rate, with a plot; trains nothing")
    return parser


if __name__ == "__main__":
    leave(main())
