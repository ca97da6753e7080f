"""The `alignment` command: the stages, recipes, `plan`, `sample` and `rate`, and the groups of commands."""

import contextlib
import importlib
import json
import math
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import typer
from typer.core import TyperGroup

from alignment.cli import plan as plan_cli
from alignment.cli.chat import chats
from alignment.cli.later import later
from alignment.cli.stages import PASSED_ON, stages
from alignment.errors import UserError
from alignment.terminal import clean, one_line


def _home(match: re.Match[str]) -> str:
    return (match[1] or "") + str(Path.home())


class _Commands(TyperGroup):
    """Commands whose user mistakes end as one line on stderr and exit code 2."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """A shell expands `--db ~/x`, and leaves `--db=~/x` as it is."""
        return super().parse_args(ctx, [re.sub(r"^(--[\w-]+=)?~(?=/|$)", _home, each) for each in args])

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except UserError as error:
            typer.echo(f"error: {one_line(str(error))}", err=True)
            for line in error.details:
                typer.echo(clean(line), err=True)
            raise typer.Exit(2) from None


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="The three stages, answers for people to rate, models and where they come from, data, runs, and plans.",
)
app.add_typer(stages)
app.add_typer(later("recipes", "The shipped recipes and launch files."), name="recipes")
app.add_typer(later("models", "The model registry: what is in it and how it was made.", "registry"), name="models")
app.add_typer(later("data", "Data files: check, preview, split, convert, or make them."), name="data")
app.add_typer(chats)
app.add_typer(later("baseline", "Other ways to learn from the same ratings: DPO."), name="baseline")
app.add_typer(later("runs", "Training runs: what they do, what came of them, and a reviewer's word."), name="runs")


@app.callback()
def _alignment(context: typer.Context) -> None:
    """Supervised fine-tuning, reward models from human ratings, and PPO; the models meet in a registry."""
    from alignment.distributed.ticker import ticking
    from alignment.training.stage import quiet_libraries

    quiet_libraries()  # before a command imports them
    if context.invoked_subcommand in (
        "plan",
        "models",
        "data",
        "baseline",
    ):  # the stages tick by themselves, `runs` has a screen
        context.with_resource(ticking(f"alignment {context.invoked_subcommand}"))


@app.command("plan")
def plan(
    config: plan_cli.ConfigArgument,
    overrides: plan_cli.OverridesArgument = None,
    gpus: plan_cli.GpusOption = 8,
    memory: plan_cli.MemoryOption = "80GB",
    nodes: plan_cli.NodesOption = 1,
    host_memory: plan_cli.HostMemoryOption = None,
    model_config: plan_cli.ModelConfigOption = None,
    stage: plan_cli.StageOption = None,
    as_json: plan_cli.JsonOption = False,
) -> None:
    """Memory of each GPU, what fits, how to launch.  Example: alignment plan configs/ppo/8b.yaml --gpus 8"""
    with contextlib.redirect_stdout(sys.stderr):  # some libraries greet when they are imported
        host = math.inf if host_memory is None else plan_cli.parse_memory(host_memory, "--host-memory")
        cluster = plan_cli.Cluster(gpus, nodes, plan_cli.parse_memory(memory), host)
        found = _planned(config, overrides or [], cluster, model_config, stage)
    if as_json:
        typer.echo(json.dumps(plan_cli.as_json(found), indent=2))
    else:
        typer.echo(clean("\n".join(plan_cli.text_lines(found))))


@app.command("sample", context_settings=PASSED_ON, add_help_option=False)
def sample(context: typer.Context) -> None:
    """Models answer prompts, for people to rate.  Example: alignment sample MODEL --prompts FILE --db ratings.db"""
    _pass_on("sample", context.args)


@app.command("compare", context_settings=PASSED_ON, add_help_option=False)
def compare(context: typer.Context) -> None:
    """Who won: models on the same prompts, judged.  Example: alignment compare A B --prompts FILE --by reward=REF"""
    _pass_on("compare", context.args)


@app.command("rate", context_settings=PASSED_ON, add_help_option=False)
def rate(context: typer.Context) -> None:
    """Rate answers here or as a web page; reports, import, export.  Example: alignment rate --db F --labeler NAME"""
    _pass_on("rate", context.args)


@app.command("score", context_settings=PASSED_ON, add_help_option=False)
def score(context: typer.Context) -> None:
    """Scores or log-probabilities of a file's answers, or a reward service.  Example: alignment score MODEL FILE"""
    _pass_on("score", context.args)


@app.command("choose", context_settings=PASSED_ON, add_help_option=False)
def choose(context: typer.Context) -> None:
    """Which base model is nearest to your text.  Example: alignment choose MODEL MODEL --data mine.jsonl"""
    _pass_on("choose", context.args)


@app.command("serve", context_settings=PASSED_ON, add_help_option=False)
def serve(context: typer.Context) -> None:
    """A policy behind an OpenAI-compatible server: transformers' or vLLM's.  Example: alignment serve MODEL@prod"""
    _pass_on("serve", context.args)


@app.command("eval", context_settings=PASSED_ON, add_help_option=False)
def evaluate(context: typer.Context) -> None:
    """Public tasks (lm-eval), and what training forgot.  Example: alignment eval MODEL --tasks arc_easy"""
    _pass_on("eval", context.args)


def _pass_on(command: str, arguments: list[str]) -> None:
    """Run `alignment.cli.COMMAND`, which reads its arguments itself and is imported when it is used."""
    from alignment.training.stage import exit_process

    exit_process(importlib.import_module(f"alignment.cli.{command}").main(arguments))


def _planned(
    config: Path, changes: list[str], cluster: plan_cli.Cluster, model_config: str | None, stage: str | None
) -> plan_cli.PlanReport:
    from alignment.config.loading import load_config, read_values
    from alignment.memory.shapes import ShapeFinder
    from alignment.registry import Registry

    name = plan_cli.stage_of(config, read_values(config, changes), stage)
    stage_config, stage_plan = _stage(name)
    loaded = load_config(stage_config, config, changes)
    finder = ShapeFinder(Registry(loaded.registry.path), config.resolve().parent.parent, model_config)
    found = plan_cli.report(
        lambda count: stage_plan.workloads(loaded, finder, count, cluster.memory), cluster, name, config, changes
    )
    found.notes[:0] = finder.all_notes()
    return found


def _stage(name: str) -> tuple[type[Any], ModuleType]:
    """A stage's config class, and its `workload`."""
    if name == "sft":
        import sft.workload
        from sft.config import SFTStageConfig

        return SFTStageConfig, sft.workload
    if name == "reward":
        import reward.workload
        from reward.config import RewardStageConfig

        return RewardStageConfig, reward.workload
    import ppo.workload
    from ppo.config import PPOStageConfig

    return PPOStageConfig, ppo.workload


def main() -> None:
    """The console command `alignment`."""
    app(prog_name="alignment")


if __name__ == "__main__":
    main()
