"""Wrong names of files and models, told before torch is imported, which takes a minute on a busy machine."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path

from alignment.errors import UserError
from alignment.models.names import check_name
from alignment.registry import Registry
from alignment.registry.manifest import Role


def check_data(given: str, option: str) -> None:
    """Refuse a data file that is not there.

    Args:
        option: the argument's name, for the message.

    Raises:
        UserError: it is missing; the message has the nearest file beside it.
    """
    path = Path(given)
    if path.exists():
        return
    from alignment.data.sources import is_hub_name  # imported late: --help does without

    if is_hub_name(given):
        return
    beside = [each.name for each in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, beside, 1)
    hint = f"did you mean {path.with_name(near[0])}?" if near else "name a data file or folder"
    raise UserError(f"{option} {given}: no such file; {hint}")


def check_model_and_file(command: str, model: str, file: str, registry: Registry, role: Role | Sequence[Role]) -> None:
    """Refuse a model or a data file that is not there, and the two in the wrong order.

    Raises:
        UserError: the message names the command with the two in their order, where they are swapped.
    """
    swapped = Path(model).is_file() and (registry.is_reference(file) or (Path(file) / "config.json").is_file())
    if swapped:
        raise UserError(f"{model} is a file and {file} a model: the model stands first: {command} {file} {model}")
    check_name(model, registry, role)
    check_data(file, "FILE")


def columns_of(given: Sequence[str] | None) -> dict[str, str | None]:
    """`--column OURS=THEIRS` as `data.columns` has it; nothing after the sign leaves a column out."""
    columns: dict[str, str | None] = {}
    for each in given or ():
        ours, sign, theirs = each.partition("=")
        if not (ours and sign):
            raise UserError(f"--column {each}: expected OURS=THEIRS, as --column prompt=question")
        columns[ours] = theirs or None
    return columns
