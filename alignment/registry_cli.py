"""The commands of `alignment models` that write something: into the registry, or a folder outside of it."""

from pathlib import Path
from typing import Annotated

import typer

from alignment.models_cli import JsonOption, RefArgument, RegistryOption, models, print_json
from alignment.registry import Registry
from alignment.terminal import clean


@models.command("export")
def export_model(
    ref: RefArgument,
    folder: Annotated[Path, typer.Argument(help="A new folder.")],
    adapter: Annotated[bool, typer.Option("--adapter/--merged", help="An adapter alone, or with its base.")] = False,
    registry: RegistryOption = None,
    as_json: JsonOption = False,
) -> None:
    """A version as a plain transformers (or PEFT) folder.  Example: alignment models export help-desk-sft exported"""
    from alignment.export import TOLERANCE, export

    report = export(ref, folder, Registry(registry), adapter_only=adapter)
    if as_json:
        print_json(report)
        return
    line = f"{report['model']} in {report['folder']}: {report['written']}"
    if "logits_difference" in report:
        line += f"; logits differ from the adapter's by {report['logits_difference']:.1e} (allowed: {TOLERANCE:.0e})"
    typer.echo(clean(line))
