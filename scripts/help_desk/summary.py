"""The demo's final output: a table of results, answers before and after PPO, and the policy's lineage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from alignment import terminal
from help_desk.reports import explain


def show(screen: Console, summary: dict[str, Any], answers: list[tuple[str, str, str]], ppo: str, home: Path) -> None:
    """Print the summary.

    Args:
        answers: questions with the answers before and after PPO.
        ppo: the policy's reference.
        home: the demo's folder.
    """
    from alignment.registry import Registry, render_lineage

    by = summary["ratings_by"] + (", shuffled" if summary["shuffled"] else "")
    table = Table(title=f"\nHeld-out prompts, 95% intervals (ratings by {by})", title_justify="left")
    table.add_column("")
    for name in ("SFT", "PPO"):
        table.add_column(name, justify="right")
    gold, win = summary["gold"], summary["win_rate"]
    table.add_row("gold score, -4 to 3", *(interval(gold[m]["mean"], gold[m]["ci"]) for m in ("sft", "ppo")))
    table.add_row("win rate by gold score", "", interval(win["value"], win["ci"]))
    table.add_row("reward model's score", *(f"{summary['score'][m]:.2f}" for m in ("sft", "ppo")))
    if judge := summary["held_out_reward"]:
        table.add_row("held-out reward model's score", *(f"{judge['score'][m]:.2f}" for m in ("sft", "ppo")))
        table.add_row("win rate by that", "", interval(judge["win_rate"]["value"], judge["win_rate"]["ci"]))
    table.add_row("KL from SFT, nats a response", "0", f"{summary['kl']:.2f}")
    table.add_row("length, tokens", *(f"{summary['length'][m]:.1f}" for m in ("sft", "ppo")))
    table.add_row("answers that end", *(f"{summary['ended'][m]:.0%}" for m in ("sft", "ppo")))
    screen.print(table)
    screen.print(agreement("Reward model", summary["reward_accuracy"]))
    if judge:
        screen.print(agreement("Held-out reward model", judge["accuracy"]))
    screen.print(over_optimisation(judge))
    if comparison := summary.get("comparison"):
        screen.print(_alternatives(comparison))
        screen.print(f"each pair of answers, who won and by whom: {home / 'compare' / 'compare.html'}", soft_wrap=True)
    for question, before, after in answers:
        screen.print(Text(f"\n{terminal.clean(question)}", style="bold"))
        screen.print(Text(f"  before  {terminal.clean(before)}"))
        screen.print(Text(f"  after   {terminal.clean(after)}"))
    screen.print(Text("\nLineage of the policy", style="bold"))
    screen.print(render_lineage(Registry().lineage(ppo)))
    recipe = summary["recipe"]
    runs = [f"runs/{recipe}-{name}" for name in ("sft", "reward", *(["judge"] if judge else []), "ppo")]
    seconds = summary["seconds"]
    parts = ", ".join(f"{name} {value:.0f}" for name, value in seconds.items() if name != "total")
    screen.print(f"\n{seconds['total']:.0f} s ({parts})")
    screen.print(f"runs: {' '.join(runs)}   summary: {home / 'summary.json'}   ratings: {home / 'ratings.db'}")
    screen.print(Text("\nVerdicts of the reports, and the expected ones in this small world", style="bold"))
    for line in explain([Path(run) for run in runs], summary["shuffled"], summary["ratings_by"] == "a person"):
        screen.print(Text(terminal.clean(line)))
    screen.print("reports, to open in a browser: " + " ".join(f"{run}/report.html" for run in runs), soft_wrap=True)
    screen.print(f"next: scripts/demo --rate 60    alignment models list    configs/ppo/{recipe}.yaml", soft_wrap=True)


def _alternatives(comparison: Mapping[str, Any]) -> Table:
    """PPO against what it has to beat, by each judge."""
    sides = [side for side in comparison["gold"] if side != "ppo"]
    table = Table(title="\nHow often PPO's answer wins, against", title_justify="left")
    table.add_column("judge")
    for side in sides:
        table.add_column(side, justify="right")
    for judge, wins in comparison["ppo_wins"].items():
        cells = [wins.get(side) for side in sides]
        table.add_row(
            Text(judge.removeprefix("python=help_desk.judges:")),
            *(
                "" if each is None else f"{each['value']:.2f} ({each['ci'][0]:.2f}-{each['ci'][1]:.2f})"
                for each in cells
            ),
        )
    gold = comparison["gold"]
    table.add_section()
    table.add_row(
        f"mean gold score; PPO's {gold['ppo']['value']:.2f}", *(f"{gold[side]['value']:.2f}" for side in sides)
    )
    return table


def agreement(whose: str, accuracy: Mapping[str, Any]) -> str:
    return (
        f"{whose}: agrees with {interval(accuracy['value'], accuracy['ci'])} of {accuracy['n']} held-out ratings;"
        f" the order of the gold score agrees with {accuracy['ceiling']:.2f} of them."
    )


def over_optimisation(judge: Mapping[str, Any] | None) -> str:
    """An interpretation of the held-out reward model's scores before and after PPO."""
    if judge is None:
        return "Over-optimisation: not measured, since there is no held-out reward model (model.held_out_reward)."
    low, high = judge["gain"]["ci"]
    meaning = (
        "rose too: the gain is more than errors of PPO's reward model"
        if low > 0
        else "fell: PPO over-optimised its reward model"
        if high < 0
        else "did not change significantly: a rise of the reward model's score alone would be over-optimisation"
    )
    return (
        "Over-optimisation: training never saw the held-out reward model, which has other labelers. Its score "
        f"{meaning} (change {interval(judge['gain']['value'], judge['gain']['ci'])})."
    )


def interval(value: float, ci: Sequence[float]) -> str:
    return f"{value:.2f} ({ci[0]:.2f} to {ci[1]:.2f})"
