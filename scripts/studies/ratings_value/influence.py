"""The influence of labelers: what exact retraining shows, and what the refitted last layer foretells."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import fmean
from typing import Any

import numpy as np

from alignment.intervals import spearman
from alignment.ratings import RatingsStore

Row = dict[str, Any]
Scores = Mapping[str, float]
FEATURES = {"reward": "the reward model that learned from everybody", "start": "the SFT model that it started from"}


def pair_key(question: str, first: str, second: str) -> str:
    """What stands for a pair in the rows."""
    return hashlib.sha256("\0".join((question, first, second)).encode()).hexdigest()[:16]


def votes_of(db: str) -> dict[str, list[tuple[str, float]]]:
    """Labeler and target of each vote, by the key of its pair."""
    with RatingsStore(db) as store:
        items = {item.id: item for item in store.items()}
        ratings = store.ratings(for_training=True)
    found: dict[str, list[tuple[str, float]]] = {}
    for each in ratings:
        item = items[each.item]
        key = pair_key(item.prompt[-1]["content"], item.completions[0].text, item.completions[1].text)
        target = {"first": 1.0, "second": 0.0}.get(str(each.choice), 0.5)
        found.setdefault(key, []).append((each.labeler, target))
    return found


def held_out_figures(
    scores: Scores, votes: Mapping[str, list[tuple[str, float]]], left_out: str
) -> tuple[float, float]:
    """Log-loss and accuracy (of decided votes) on the held-out votes of everybody but one."""
    losses, right = [], []
    for key, score in scores.items():
        for labeler, target in votes[key]:
            if labeler != left_out:
                losses.append(float(np.logaddexp(0, score) - target * score))
                if target != 0.5:
                    right.append(float((score > 0) == (target == 1.0)))
    return fmean(losses), fmean(right)


def exact(
    rows: Sequence[Row], votes: Mapping[str, list[tuple[str, float]]]
) -> dict[str, dict[int, tuple[float, float]]]:
    """Change of log-loss and accuracy by labeler and seed: retrained without them, less trained on all."""
    full = {row["seed"]: row["scores"] for row in rows if row["step"].startswith("full-")}
    found: dict[str, dict[int, tuple[float, float]]] = {}
    for row in rows:
        if row.get("left_out") and row["seed"] in full:
            name, seed = row["left_out"], row["seed"]
            common = row["scores"].keys() & full[seed].keys()
            after = held_out_figures({key: row["scores"][key] for key in common}, votes, name)
            before = held_out_figures({key: full[seed][key] for key in common}, votes, name)
            found.setdefault(name, {})[seed] = (after[0] - before[0], after[1] - before[1])
    seeds = max((len(each) for each in found.values()), default=0)
    return {name: each for name, each in found.items() if len(each) == seeds}


def foretold(db: str, rows: Sequence[Row]) -> dict[str, dict[str, list[tuple[float, float, float]]]]:
    """By features and labeler, for each seed's model: change of log-loss, of accuracy, and share of turned pairs."""
    from alignment.labeling.refit.influence import labeler_influences
    from alignment.labeling.refit.table import load_refit

    found: dict[str, dict[str, list[tuple[float, float, float]]]] = {}
    for kind in FEATURES:
        models = [row["model"] for row in rows if row["step"].startswith("full-")] if kind == "reward" else []
        for model in models or ["help-desk-sft"]:
            for each in labeler_influences(load_refit(db, model, trained=kind == "reward")):
                assert each.log_loss and each.accuracy
                change = (each.log_loss["value"], each.accuracy["value"], each.turned)
                found.setdefault(kind, {}).setdefault(each.labeler, []).append(change)
    return found


def compare(db: str, rows: Sequence[Row]) -> Row:
    """Both, with rank correlations over labelers."""
    votes = votes_of(db)
    true, told = exact(rows, votes), foretold(db, rows)
    names = sorted(true, key=lambda name: -fmean(change[0] for change in true[name].values()))
    counts = {name: sum(labeler == name for each in votes.values() for labeler, _ in each) for name in names}
    table = []
    for name in names:
        row: Row = {"labeler": name, "ratings": counts[name], "exact": [list(each) for each in true[name].values()]}
        for kind in FEATURES:
            row[kind] = [fmean(each[place] for each in told[kind][name]) for place in range(3)]
        table.append(row)
    result: Row = {"labelers": table, "seeds": len(next(iter(true.values()))), "correlations": {}}
    for place, figure in enumerate(("log_loss", "accuracy")):
        mean = np.array([fmean(each[place] for each in row["exact"]) for row in table])
        for kind in FEATURES:
            ours = np.array([row[kind][place] for row in table])
            result["correlations"][f"{kind} {figure}"] = spearman(ours, mean)
        by_seed = [np.array([row["exact"][seed][place] for row in table]) for seed in range(result["seeds"])]
        between = [spearman(first, second) for first, second in pairwise(by_seed)]
        result["correlations"][f"seeds {figure}"] = fmean(between) if between else None
    return result


HEAD = """# Whose ratings made a model so: a refit against exact retraining

`scripts/study.py influence`. Every figure is computed from the rows that the study left.

`alignment rate influence` refits a model's last layer without each labeler; here the demo's reward model is retrained
without each, by `python -m reward` with the demo's recipe. Changes are without the labeler less with them, on the
held-out votes of the others: above 0 means that the log-loss gets worse, so that the ratings help. *Exact* is the mean
over training seeds, with each seed behind it; *refit* is on the hidden states of the reward model that learned from
everybody, *refit, start* on those of the SFT model that it started from. All labelers are SIMULATED.
"""
CASTS = {
    "demo": "The demo's six labelers, one who picks at random and one who prefers the worse answer; three votes a pair",
    "graded": "Six labelers from careful (0) to contrary (5), who see the gold score with slopes 2.5, 1.2, 0.5, 0, "
    "-0.8 and -2; one vote a pair",
}


def page(found: Mapping[str, Row]) -> str:
    """The study's page."""
    lines = [HEAD]
    for cast, result in found.items():
        seeds = result["seeds"]
        lines.append(f"## {CASTS[cast]}\n")
        lines.append(f"{seeds} training seed{'s' * (seeds != 1)}.\n")
        for place, title in enumerate(("log-loss", "accuracy, points")):
            lines += _table(result["labelers"], place, title)
        lines += [
            "Rank correlation over the labelers:\n",
            "| of exact retraining with | log-loss | accuracy |",
            "|---|---|---|",
        ]
        for kind, said in (("reward", "refit"), ("start", "refit, start"), ("seeds", "another seed of itself")):
            values = [result["correlations"][f"{kind} {figure}"] for figure in ("log_loss", "accuracy")]
            lines.append(f"| {said} | {' | '.join('-' if value is None else f'{value:.2f}' for value in values)} |")
        lines.append("")
    return "\n".join(lines)


def _table(labelers: Sequence[Row], place: int, title: str) -> list[str]:
    scale, form = (1, "+.4f") if place == 0 else (100, "+.1f")
    lines = [f"Change of held-out {title}:\n", "| labeler | ratings | exact | by seed | refit | refit, start |"]
    lines.append("|---|---|---|---|---|---|")
    for row in labelers:
        seeds = [each[place] * scale for each in row["exact"]]
        cells = [f"{fmean(seeds):{form}}", ", ".join(f"{value:{form}}" for value in seeds)]
        cells += [f"{row[kind][place] * scale:{form}}" for kind in FEATURES]
        lines.append(f"| {row['labeler'].removeprefix('simulated-')} | {row['ratings']} | {' | '.join(cells)} |")
    return [*lines, ""]
