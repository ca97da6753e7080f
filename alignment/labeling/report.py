"""How good the ratings are, on the screen of `alignment rate report` (`alignment.ratings.quality` computes it)."""

from __future__ import annotations

import statistics

from rich.console import Console
from rich.table import Table
from rich.text import Text

from alignment.ratings.grading import CHOICE
from alignment.ratings.quality import Figures
from alignment.terminal import counted, one_line

NAME_WIDTH = 16
MAX_KAPPAS = 6
NONE = "-   nothing to compute it from"


def show(found: Figures, console: Console) -> None:
    """Print a report, readable at 80 columns."""
    items, ratings = found["items"], found["ratings"]
    kinds = ", ".join(f"{count} {kind}" for kind, count in items["kinds"].items()) or "none"
    named_line(console, "Items", f"{kinds}; {items['gold']} gold")
    named_line(
        console,
        "Answers",
        f"{ratings['counting']} that count, {ratings['controls']} controls, {ratings['skips']} skips"
        + f", {ratings['verdicts']} verdicts of referees" * (ratings["verdicts"] > 0),
    )
    depth = ", ".join(f"{count} with {number}" for number, count in items["answers"].items())
    named_line(console, "Overlap", f"{depth}; {items['complete']} complete, {items['wanted']} answers still wanted")
    if ratings["simulated"]:
        named_line(console, "Programs", f"{', '.join(map(one_line, ratings['simulated']))}: simulated, not people")
    _show_agreement(found, console)
    _show_questions(found["questions"], console)
    if set(found["gold"]) - {CHOICE}:
        console.print(Text("\nRight on gold items", style="bold underline"))
        for name, figures in found["gold"].items():
            named_line(console, name, _percent(figures, "answer"))
    _show_habits(found, console)
    if found["labelers"]:
        _show_labelers(found["labelers"], console)
    console.print()
    if not found["warnings"]:
        console.print("Nothing to worry about was found.")
    for warning in found["warnings"]:
        console.print(Text.assemble(("! ", "bold red"), warning))


def named_line(console: Console, name: str, said: str) -> None:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(width=22, no_wrap=True)
    table.add_column()
    table.add_row(Text(name, style="bold"), Text(said))
    console.print(table)


def _show_agreement(found: Figures, console: Console) -> None:
    agreement, ordered = found["agreement"], found["ordered"]
    console.print(Text("\nAgreement on which of two answers is better", style="bold underline"))
    named_line(console, "Krippendorff's alpha", _estimate(agreement["alpha_nominal"], "with 2 votes or more"))
    fleiss = agreement["fleiss_kappa"]
    named_line(console, "Fleiss' kappa", f"{fleiss['value']:.4f}   {fleiss['n']} items" if fleiss else NONE)
    kappas = sorted(agreement["cohen_kappa"], key=lambda kappa: kappa["value"])
    if len(kappas) > MAX_KAPPAS:
        middle = statistics.median(kappa["value"] for kappa in kappas)
        named_line(
            console, "Cohen's kappa", f"{middle:.4f} in the middle of {len(kappas)} pairs of labelers; the lowest:"
        )
        kappas = kappas[: MAX_KAPPAS // 2]
    for kappa in kappas:
        names = ", ".join(map(one_line, kappa["labelers"]))
        named_line(console, "Cohen's kappa", f"{kappa['value']:.4f}   {kappa['n']} items: {names}")
    named_line(console, "All three agree", _estimate(agreement["three_way"], "with 3 votes or more"))
    named_line(console, "One human", _estimate(agreement["one_human"], "votes: one person against each other"))
    named_line(console, "Best reachable", _best(agreement["best_reachable"]))
    scales = {"strength": "pairs, by strength", "ranks": "ranked answers", "scores": "scored answers"}
    for name, words in scales.items():
        for level, value in ordered[name].items():
            if value is not None:
                kind = level.removeprefix("alpha_")
                named_line(console, f"alpha, {kind}", _estimate(value, words))


def _best(found: Figures | None) -> str:
    """An interval alone: where in it the share is, the votes do not tell."""
    if found is None:
        return NONE
    low, high = found["ci"]
    return f"{low:.3f} to {high:.3f}   {found['n']} votes: a model that knows each pair's probability"


def _show_questions(found: Figures, console: Console) -> None:
    """The answers to the questions beside the choice, where there are any."""
    if not any(found.values()):
        return
    console.print(Text("\nQuestions beside the choice", style="bold underline"))
    for name, figures in found["attributes"].items():
        named_line(console, name, f"{figures['answers']} answers, mean {figures['mean']:.2f}")
        if figures["alpha_ordinal"]:
            named_line(console, "  alpha, ordinal", _estimate(figures["alpha_ordinal"], "with 2 votes or more"))
        if figures["choice"]:
            named_line(console, "  also chosen", _percent(figures["choice"], "decided pairs"))
    for key, title in (("tags", "Reasons"), ("spans", "Passages marked")):
        if found[key]:
            by_count = sorted(found[key].items(), key=lambda each: -each[1])
            named_line(console, title, ", ".join(f"{count} {one_line(words)}" for words, count in by_count))
    if found["rewrites"] or found["comments"]:
        said = f"{found['rewrites']} with a rewritten one, {found['comments']} with a comment on one"
        named_line(console, "Single answers", said)


def _show_habits(found: Figures, console: Console) -> None:
    console.print(Text("\nHabits", style="bold underline"))
    position = found["position"]
    named_line(console, "Chose what came first", _percent(position, "decided pair", "; 50% without a bias"))
    named_line(console, "Chose the longer one", _percent(found["length"], "decision"))
    seconds = found["seconds"]
    if seconds:
        low, high = seconds["quartiles"]
        said = f"{seconds['median']:.0f}, half of them {low:.0f} to {high:.0f}   {seconds['n']} answers"
        named_line(console, "Seconds an answer", said)
    flags = found["flags"]
    if flags["counts"] or flags["comments"]:
        counts = ", ".join(f"{count} {one_line(flag)}" for flag, count in flags["counts"].items())
        named_line(console, "Flags", f"{counts or 'none'}; {flags['comments']} comments")
    if flags["look_at"]:
        shown = ", ".join(map(str, flags["look_at"][:10])) + (", ..." if len(flags["look_at"]) > 10 else "")
        named_line(console, "Items to look at", shown)


def _estimate(found: Figures | None, unit: str) -> str:
    if found is None:
        return NONE
    low, high = found["ci"]
    return f"{found['value']:.4f} [{low:.3f}, {high:.3f}]   {found['n']} {unit}"


def _percent(found: Figures | None, unit: str, rest: str = "") -> str:
    if found is None:
        return NONE
    low, high = found["ci"]
    return f"{found['value']:.1%} [{low:.1%}, {high:.1%}]   {counted(found['n'], unit)}{rest}"


def _show_labelers(labelers: dict[str, Figures], console: Console) -> None:
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column(Text("labeler", style="bold"), width=NAME_WIDTH, no_wrap=True, overflow="ellipsis")
    for name in ("rated", "skip", "sec", "first", "longer", "gold", "self", "right", "weight"):
        table.add_column(Text(name, style="bold"), justify="right", no_wrap=True)
    for name, mine in labelers.items():
        trusted = mine["reliability"]
        table.add_row(
            Text(one_line(name)),
            str(mine["rated"]),
            str(mine["skips"]),
            f"{mine['seconds']['median']:.0f}" if mine["seconds"] else "-",
            *(f"{mine[key]['value']:.0%}" if mine[key] else "-" for key in ("position", "length")),
            *(_of(mine[key]) for key in ("gold", "self_agreement")),
            f"{trusted['accuracy']:.3f}" if trusted and trusted["accuracy"] is not None else "-",
            f"{trusted['weight']:.2f}" if trusted else "-",
        )
    console.print()
    console.print(table)
    console.print(
        Text(
            "first, longer: share of decisions for the answer shown first, for the longer one. gold, self: right on "
            "control items, the same on flipped repeats. right: probability that their choice is the true one, from "
            "the overlap (Dawid-Skene). weight: of their votes in training.",
            style="dim",
        )
    )


def _of(found: Figures | None) -> str:
    return f"{round(found['value'] * found['n'])}/{found['n']}" if found else "-"
