"""Forecasts of the held-out log-loss against what was seen, over random splits of a set of ratings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignment.labeling.refit.growth import LEAST_PROMPTS, curves, forecast
from alignment.labeling.refit.head import fit_head
from alignment.labeling.refit.table import Refit, VoteTable, log_loss, refit
from alignment.ratings import RatingsStore
from alignment.ratings.agreement import wilson

Row = dict[str, Any]
HELD_OUT = 0.25
"""Share of the prompts that each split holds out, at random."""


@dataclass(frozen=True)
class SeenSplit:
    """One split: ratings known and to come, the losses, and the interval."""

    ratings: int
    more: int
    now: float
    then: float
    low: float
    high: float
    seen: float


def shortened(source: Path, target: Path, tokenizer: Any, max_tokens: int, most: int, above: int = 0) -> int:
    """Copy the shortest rated pairs, at most so many, of which an answer has more than `above` and none more than
    `max_tokens` with the prompt; returns their number."""
    from alignment.labeling.refit.features import encode_answer

    with RatingsStore(source) as store:
        items, ratings = store.items(), store.ratings()
    by_item: dict[int, list[Any]] = {}
    for rating in ratings:
        by_item.setdefault(rating.item, []).append(rating)
    lengths = {}
    for item in items:
        ids = [encode_answer(tokenizer, item.prompt, each.text, None) for each in item.completions]
        if all(each is not None and len(each) <= max_tokens for each in ids):
            longest = max(len(each or ()) for each in ids)
            if longest > above:
                lengths[item.id] = longest
    kept = set(sorted(lengths, key=lengths.__getitem__)[:most])
    with RatingsStore(target, create=True) as store, store.transaction():
        for item in items:
            if item.id in kept:
                made = store.add_item(item.prompt, item.completions, item.need, item.metadata)
                for rating in by_item.get(item.id, []):
                    store.import_rating(made, labeler=rating.labeler, choice=rating.choice)
    return len(kept)


def subset(table: VoteTable, keep: NDArray[np.bool_], held_out: NDArray[np.bool_]) -> VoteTable:
    """The kept pairs (P,), with other pairs held out (P,)."""
    places, votes = np.cumsum(keep) - 1, keep[table.pair]
    return replace(
        table,
        x=table.x[keep], items=table.items[keep], groups=table.groups[keep], held_out=held_out[keep],
        slices=tuple(np.array(table.slices)[keep].tolist()), pair=places[table.pair[votes]],
        labeler=table.labeler[votes], target=table.target[votes], weight=table.weight[votes],
    )  # fmt: skip


def split(table: VoteTable, seed: int, known: float) -> SeenSplit | None:
    """Hold out a quarter of the prompts; foretell from a share of the others what all of them bring. None: too few."""
    rng = np.random.default_rng(seed)
    groups = np.unique(table.groups)
    rng.shuffle(groups)
    rest = groups[round(HELD_OUT * len(groups)) :]
    held_out = ~np.isin(table.groups, rest)
    early = np.isin(table.groups, rest[: round(known * len(rest))])
    fitted = refit(subset(table, held_out | early, held_out), "", table.x[:0], {})
    if fitted.num_prompts < LEAST_PROMPTS:
        return None
    whole = Refit(subset(table, np.ones(len(held_out), bool), held_out), fitted.l2, fitted.head, "", table.x[:0], {})
    more = whole.num_ratings - fitted.num_ratings
    found = forecast(curves(fitted, seed)[0], more, seed)
    own, (target, weight) = whole.table.trained, whole.table.pooled()
    head = fit_head(whole.table.x[own], target[own], weight[own], fitted.l2)
    seen = log_loss(whole.table, head, target, weight, held_out)
    return SeenSplit(fitted.num_ratings, more, found.now, found.then, *found.ci, seen)


def summary(splits: Sequence[SeenSplit]) -> Row:
    """Figures of many splits."""
    if not splits:
        return {"splits": 0}
    held = sum(each.low <= each.seen <= each.high for each in splits)
    errors = np.array([each.seen - each.then for each in splits])
    return {
        "splits": len(splits),
        "ratings": round(fmean(each.ratings for each in splits)),
        "more": round(fmean(each.more for each in splits)),
        "now": fmean(each.now for each in splits),
        "then": fmean(each.then for each in splits),
        "seen": fmean(each.seen for each in splits),
        "held": {**wilson(held, len(splits))},
        "width": fmean(each.high - each.low for each in splits),
        "error": float(np.sqrt(np.mean(errors**2))),
        "error_of_no_change": float(np.sqrt(np.mean([(each.seen - each.now) ** 2 for each in splits]))),
    }


UNSEEN = ("demo, another seed", "HH, longer pairs")
"""The sets that nothing was tuned on."""
HEAD = """# When to stop: forecasts of the held-out log-loss against what was seen

`scripts/study.py stopping`. Every figure is computed from the rows that the study left.

Of each set of ratings a quarter of the prompts is held out at random. From a share of the other prompts' ratings
`alignment.labeling.refit.growth` foretells the log-loss of the refitted last layer after all of them; then it is
refitted on all of them. The held-out votes are the same before and after. *Held*: how often the 95% interval held what
was seen; its own interval takes the splits as independent, which they are not quite: they share a set of ratings.
*Error* is the root mean square of seen less foretold, beside that of saying that nothing will change.

The hidden states are those of models that have not learned from these ratings: SmolLM2-135M-Instruct for HH and PandaLM
(human votes, the shortest pairs), the demo's SFT model for the demo (SIMULATED labelers).

The interval was widened after first runs on these sets, so that the table is no test on unseen data: with items drawn
instead of whole prompts and penalties down to 0.03 it held 81% and 86% on HH, 60% and 71% on PandaLM (at 50% and 75%
known), 93% and 96% on the demo; with prompts and penalties from 1 on, 86% and 88% on HH, 88% on PandaLM. Then the
variance beyond the largest share was bounded from below by that at the largest share. On HH and PandaLM the forecast is
no better than "nothing will change": from so few ratings on such hidden states little is learned, and the interval says
so by its width.
"""


def page(rows: Sequence[Row]) -> str:
    """The study's page."""
    lines = [HEAD, *_table([row for row in rows if row["set"] not in UNSEEN])]
    if held := [row for row in rows if row["set"] in UNSEEN]:
        lines += [AFTERWARDS, *_table(held)]
    return "\n".join(lines) + "\n"


AFTERWARDS = """
## Sets that nothing was tuned on

Afterwards, with everything as above. The demo's world with another seed: other questions, answered by the same SFT
model, and votes of the same eight SIMULATED labelers drawn anew. And the pairs of HH that were too long for the table
above: those in which an answer has 97 to 128 tokens with its prompt, the shortest first.
"""


def _table(rows: Sequence[Row]) -> list[str]:
    lines = ["| set | pairs | ratings | more | now | foretold | seen | held | width | error | no change |"]
    lines.append("|---|---|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        name = f"{row['set']}, {row['known']:.0%} known"
        if not row["splits"]:
            lines.append(f"| {name} | {row['pairs']} | too few prompts for a forecast |")
            continue
        held = "{:.0%} ({:.0%} to {:.0%})".format(row["held"]["value"], *row["held"]["ci"])
        lines.append(
            f"| {name} | {row['pairs']} | {row['ratings']} | +{row['more']} | {row['now']:.3f} | "
            f"{row['then']:.3f} | {row['seen']:.3f} | {held} of {row['splits']} | "
            f"{row['width']:.3f} | {row['error']:.4f} | {row['error_of_no_change']:.4f} |"
        )
    return lines
