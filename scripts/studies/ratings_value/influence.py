"""The influence of labelers: what exact retraining shows, and what the refitted last layer foretells."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from statistics import fmean
from typing import Any

import numpy as np
from help_desk.rating import item_gold

from alignment.intervals import spearman
from alignment.ratings import Item, RatingsStore

Row = dict[str, Any]
Scores = Mapping[str, float]
Votes = Mapping[str, list[tuple[str, float]]]
"""Labeler and target of each vote, by the key of its pair."""


def pair_key(question: str, first: str, second: str) -> str:
    """What stands for a pair in the rows."""
    return hashlib.sha256("\0".join((question, first, second)).encode()).hexdigest()[:16]


def votes_of(db: str) -> Votes:
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


def gold_of(db: str) -> dict[str, float]:
    """The first answer's gold score less the second's, by the key of the pair."""
    with RatingsStore(db) as store:
        items = store.items()
    gold = {key_of(item): item_gold(item) for item in items}
    return {key: first - second for key, (first, second) in gold.items()}


def key_of(item: Item) -> str:
    return pair_key(item.prompt[-1]["content"], item.completions[0].text, item.completions[1].text)


def figures(scores: Scores, votes: Votes, gold: Scores, left_out: str) -> dict[str, float]:
    """Figures on the held-out votes of everybody but one, of which less is better: `FIGURES`."""
    cast = [(scores[key], target) for key in scores for labeler, target in votes[key] if labeler != left_out]
    score, target = (np.array(column) for column in zip(*cast, strict=True))
    decided = target != 0.5
    scales = np.geomspace(0.01, 10, 200)[:, None]
    return {
        "log-loss": float(_losses(score, target).mean()),
        "log-loss at the best scale": float(_losses(score * scales, target).mean(1).min()),
        "error, percent": 100 * float(((score > 0) != (target == 1.0))[decided].mean()),
        "1 - correlation with the gold score": 1
        - float(np.corrcoef([scores[key] for key in scores], [gold[key] for key in scores])[0, 1]),
    }


FIGURES = ("log-loss at the best scale", "log-loss", "error, percent", "1 - correlation with the gold score")


def _losses(score: Any, target: Any) -> Any:
    return np.logaddexp(0, score) - target * score


def changes(after: Scores, before: Scores, votes: Votes, gold: Scores, left_out: str) -> dict[str, float]:
    """Each figure without a labeler less with them, on the pairs that somebody else voted on."""
    common = [key for key in after if key in before and any(name != left_out for name, _ in votes[key])]
    ours, theirs = (figures({key: each[key] for key in common}, votes, gold, left_out) for each in (after, before))
    return {name: ours[name] - theirs[name] for name in FIGURES}


def exact(rows: Sequence[Row], votes: Votes, gold: Scores) -> dict[str, dict[int, dict[str, float]]]:
    """Changes by labeler and seed: retrained without them, less trained on all. Only labelers with every seed."""
    full = {row["seed"]: row["scores"] for row in rows if row["step"].startswith("full-")}
    found: dict[str, dict[int, dict[str, float]]] = {}
    for row in rows:
        if row.get("left_out") and row["seed"] in full:
            change = changes(row["scores"], full[row["seed"]], votes, gold, row["left_out"])
            found.setdefault(row["left_out"], {})[row["seed"]] = change
    seeds = max((len(each) for each in found.values()), default=0)
    return {name: each for name, each in found.items() if len(each) == seeds}


def foretold(db: str, model: str, trained: bool, votes: Votes, gold: Scores) -> dict[str, dict[str, float]]:
    """The same changes by labeler, of the refitted last layer."""
    from alignment.labeling.refit.table import load_refit

    fitted = load_refit(db, model, trained=trained)
    table = fitted.table
    with RatingsStore(db) as store:
        keys = {item.id: key_of(item) for item in store.items()}
    held_out = {keys[int(table.items[place])]: place for place in np.flatnonzero(table.held_out).tolist()}

    def scores(head: Any) -> dict[str, float]:
        logits = table.x @ head
        return {key: float(logits[place]) for key, place in held_out.items()}

    return {
        name: changes(scores(fitted.without(table.labeler != index)), scores(fitted.head), votes, gold, name)
        for index, name in enumerate(table.labelers)
    }


def compare(db: str, rows: Sequence[Row]) -> Row:
    """Both, with rank correlations over labelers."""
    votes, gold = votes_of(db), gold_of(db)
    true = exact(rows, votes, gold)
    models = {row["seed"]: row["model"] for row in rows if row["step"].startswith("full-")}
    told = {"reward": [foretold(db, model, True, votes, gold) for model in models.values()]}
    told["start"] = [foretold(db, "help-desk-sft", False, votes, gold)]
    names = sorted(true, key=lambda name: -fmean(each[FIGURES[0]] for each in true[name].values()))
    counts = {name: sum(labeler == name for each in votes.values() for labeler, _ in each) for name in names}
    seeds = sorted(next(iter(true.values())))
    result: Row = {"seeds": len(seeds), "labelers": names, "ratings": counts, "figures": {}}
    for figure in FIGURES:
        by_seed = [[true[name][seed][figure] for name in names] for seed in seeds]
        mean = np.mean(by_seed, axis=0)
        ours = {
            kind: np.mean([[each[n][figure] for n in names] for each in found], axis=0) for kind, found in told.items()
        }
        pairs = combinations(map(np.array, by_seed), 2)
        between = fmean(spearman(first, second) for first, second in pairs) if len(seeds) > 1 else None
        result["figures"][figure] = {
            "by_seed": by_seed,
            "exact": mean.tolist(),
            **{kind: values.tolist() for kind, values in ours.items()},
            "correlation": {kind: spearman(values, mean) for kind, values in ours.items()}
            | {
                "by_seed": [spearman(ours["reward"], np.array(each)) for each in by_seed],
                "ci": interval(ours["reward"], mean),
                "seeds": between,
                "ceiling": ceiling(between, len(seeds)),
            },
        }
    return result


def ceiling(between: float | None, seeds: int) -> float | None:
    """What an estimate without any error would correlate by with the mean over seeds, where two seeds correlate by
    `between`: the root of the mean's reliability (Spearman 1910, Brown 1910). Of rank correlations it is an
    approximation. None where the seeds do not agree at all."""
    if between is None or between <= 0:
        return None
    return math.sqrt(seeds * between / (1 + (seeds - 1) * between))


def interval(estimate: Any, truth: Any, resamples: int = 4000) -> tuple[float, float]:
    """A 95% interval of the rank correlation, for other labelers of the same kind: a bootstrap over labelers."""
    rng = np.random.default_rng(0)
    draws = rng.integers(len(truth), size=(resamples, len(truth)))
    found = [spearman(estimate[draw], truth[draw]) for draw in draws if len(set(draw.tolist())) > 2]
    low, high = np.nanquantile(found, [0.025, 0.975])
    return float(low), float(high)


HEAD = """# Whose ratings made a model so: a refit against exact retraining

`scripts/study.py influence`. Every figure is computed from the rows that the study left.

`alignment rate influence` refits a model's last layer without each labeler; here the demo's reward model is retrained
without each, by `python -m reward` with the demo's recipe. Changes are without the labeler less with them, on the
held-out votes of the others: above 0 means that the model gets worse, so that the ratings help. *Exact* is the mean
over training seeds, with each seed behind it; *refit* is on the hidden states of the reward models that learned from
everybody, *refit, start* on those of the SFT model that they started from. *At the best scale* multiplies all scores by
the number that fits those votes best. All labelers are SIMULATED.

The plain log-loss was the figure at first. After seed 0, where it followed how sure the models are, `influence` was
changed to the best scale; seed 1 was trained after that. A labeler changes little among six or eight, and two trainings
of the same ratings differ by about as much. *Exact, another seed* is how well exact retraining ranks labelers like
itself, and *ceiling* what an estimate without any error would reach against this mean over seeds: the root of its
reliability, from the agreement of the seeds (Spearman-Brown). The interval is a bootstrap over labelers.
"""
COLUMNS = ("reward", "start", "seeds", "ceiling")
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
        lines += [
            f"## {CASTS[cast]}\n",
            f"{seeds} training seed{'s' * (seeds != 1)}. Rank correlation over the labelers:\n",
        ]
        lines.append("| change of | refit | 95% | with each seed | refit, start | exact, another seed | ceiling |")
        lines.append("|---|---|---|---|---|---|---|")
        for figure in FIGURES:
            found_here = result["figures"][figure]["correlation"]
            values = ["-" if found_here[kind] is None else f"{found_here[kind]:.2f}" for kind in COLUMNS]
            values[1:1] = [
                "{:.2f} to {:.2f}".format(*found_here["ci"]),
                ", ".join(f"{x:.2f}" for x in found_here["by_seed"]),
            ]
            lines.append(f"| {figure} | {' | '.join(values)} |")
        for figure in FIGURES:
            lines += ["", f"Change of {figure}:\n", "| labeler | ratings | exact | by seed | refit | refit, start |"]
            lines.append("|---|---|---|---|---|---|")
            part = result["figures"][figure]
            form = "+.1f" if "percent" in figure else "+.4f"
            for place, name in enumerate(result["labelers"]):
                seeds_of = ", ".join(f"{each[place]:{form}}" for each in part["by_seed"])
                cells = [f"{part[kind][place]:{form}}" for kind in ("exact", "reward", "start")]
                cells.insert(1, seeds_of)
                short = name.removeprefix("simulated-")
                lines.append(f"| {short} | {result['ratings'][name]} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)
