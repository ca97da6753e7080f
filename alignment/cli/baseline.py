"""`alignment baseline`: what the same ratings give without PPO."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from alignment.cli.common import JsonOption, RefArgument, RegistryOption, print_json
from alignment.terminal import clean, one_line, say

baseline = typer.Typer(no_args_is_help=True)


@baseline.callback()
def _baseline() -> None:
    """Other ways to learn from the same ratings, for `alignment compare` to say whether PPO was worth it."""


@baseline.command("dpo")
def dpo(
    model: RefArgument,
    data: Annotated[str, typer.Argument(help="Judgements, as data.train of python -m reward: a ratings file, say.")],
    name: Annotated[str, typer.Option("--name", help="The policy is published as the next version of this name.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Such as model.method=lora training.learning_rate=1e-5."),
    ] = None,
    labelers: Annotated[
        list[str] | None, typer.Option("--labeler", help="Learn from this labeler alone, or from several.")
    ] = None,
    registry: RegistryOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train a policy on judgements by DPO.  Example: alignment baseline dpo my-sft ratings.db --name my-dpo

    Keys are those of python -m sft, with the arguments of trl.DPOConfig in `training`. It has no checkpoints.
    """
    from alignment.config.loading import validate, with_overrides
    from alignment.training.dpo import DPOBaselineConfig, train_dpo
    from reward.config import RewardSection
    from reward.data import comparisons, read_judgements

    values: dict[str, Any] = {
        "name": name,
        "model": {"name": model},
        "data": {"train": data},
        "registry": {"name": name, "path": str(registry) if registry else None},
    }
    where = "alignment baseline dpo"
    config = validate(DPOBaselineConfig, with_overrides(values, overrides or [], where), where)
    train, held_out = read_judgements(config.data, RewardSection(labelers=tuple(labelers or ())))
    for note in train.notes:
        say(one_line(note))
    fingerprints = [*train.fingerprints, *held_out.fingerprints]
    version = train_dpo(config, comparisons(train.items), comparisons(held_out.items), fingerprints)
    if as_json:
        print_json({"model": version.ref, "metrics": version.manifest.metrics})
    else:
        typer.echo(clean(f"published {version.ref}; compare it with: alignment compare {version.ref} OTHER"))
