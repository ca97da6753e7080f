"""What `alignment.labeling.refit.commands` finds, on the screen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from alignment.terminal import one_line

NAME_WIDTH = 16
Found = Mapping[str, Any]


def show_influence(found: Found, console: Console, called: str = "alignment rate") -> None:
    """Print the influence of labelers and items, readable at 80 columns."""
    _show_fit(found, console)
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column(Text("without", style="bold"), width=NAME_WIDTH, no_wrap=True, overflow="ellipsis")
    for name in ("ratings", "log-loss", "95%", "points", "turned", "top"):
        table.add_column(Text(name, style="bold"), justify="right", no_wrap=True)
    for each in found["labelers"]:
        loss, accuracy = each["log_loss"], each["accuracy"]
        table.add_row(
            Text(one_line(each["labeler"])),
            str(each["ratings"]),
            f"{loss['value']:+.4f}" if loss else "-",
            "[{:+.4f}, {:+.4f}]".format(*loss["ci"]) if loss else "-",
            f"{100 * accuracy['value']:+.1f}" if accuracy else "-",
            f"{each['turned']:.1%}",
            f"{each['top_kept']:.0%}",
        )
    console.print()
    console.print(table)
    ranked = found["ranked"]
    console.print(
        Text(
            "The last layer refitted without each labeler. log-loss: change on the held-out votes of the others, with "
            "scores at their best scale; above 0 they help. points: change of accuracy. turned: held-out pairs "
            f"whose order turns. top: how many of the top tenth of {ranked['answers']} answers "
            f"({one_line(ranked['source'])}) stay there.",
            style="dim",
        )
    )
    for name, said in (
        ("harmful_items", "Look again at these items, without which held-out votes are foretold better"),
        ("helpful_items", "These items help most"),
    ):
        if found[name]:
            shown = ", ".join(f"{each['item']} ({each['log_loss']:+.4f})" for each in found[name])
            console.print(f"{said}: {shown}")


def show_growth(found: Found, console: Console) -> None:
    """Print what more ratings would do."""
    console.print(Text("\nIf you go on", style="bold underline"))
    _show_fit(found, console)
    whole = found["forecast"]
    if whole is None:
        console.print("There are too few rated prompts to say what more would do.")
        return
    console.print(f"Held-out log-loss, {whole['sentence']}")
    for part in found["slices"]:
        console.print(f"  {one_line(part['name'])}: {part['sentence']}; {part['held_out']} votes")


def forgetting_sentence(found: Found) -> str:
    """What forgetting a labeler would change, in one line."""
    change, name, model = found["change"], one_line(found["labeler"]), one_line(found["model"])
    if change is None:
        return f"{name} has no ratings that {model} is refitted on, so its last layer would stay as it is."
    said = f"Without the ratings of {name} ({change['ratings']} items) a refit of the last layer of {model} has"
    if change["log_loss"]:
        low, high = change["log_loss"]["ci"]
        said += f" a held-out log-loss of {change['log_loss']['value']:+.4f} ({low:+.4f} to {high:+.4f}) more,"
    if change["accuracy"]:
        said += f" {100 * change['accuracy']['value']:+.1f} points of accuracy,"
    return f"{said} and orders {change['turned']:.1%} of the held-out pairs otherwise."


def _show_fit(found: Found, console: Console) -> None:
    held_out = found["held_out"]
    loss, accuracy = held_out["log_loss"], held_out["accuracy"]
    console.print(
        f"The last layer of {one_line(found['model'])} refitted on {found['ratings']} ratings of {found['items']} "
        f"items; held out: {held_out['votes']} votes on {held_out['prompts']} prompts, log-loss {loss['value']:.3f}"
        + (f", accuracy {accuracy['value']:.1%}" if accuracy else "")
    )
    for reason, count in found["left_out"].items():
        console.print(f"  left out: {count} rating{'s' * (count != 1)} of {reason}", style="dim")
