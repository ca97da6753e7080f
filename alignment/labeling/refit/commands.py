"""`alignment rate influence`, the forecast of `alignment rate report --model`, and what forgetting would change."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from alignment.config.sections import DataConfig
from alignment.data.parsing import to_demonstrations
from alignment.data.reading import read_records
from alignment.errors import UserError
from alignment.intervals import bootstrap_mean
from alignment.labeling.refit.growth import LEAST_PROMPTS, curves, forecast
from alignment.labeling.refit.head import losses
from alignment.labeling.refit.influence import agreement, item_influences, labeler_influence, labeler_influences
from alignment.labeling.refit.table import Refit, load_refit

MOST_ITEMS = 10
"""Items that are shown at each end."""
MORE = 200
"""Further ratings that are foretold where nothing else is asked."""


def influence(db: str, model: str, registry_path: str | None = None, answers: str | None = None) -> dict[str, Any]:
    """What the refitted last layer would be without each labeler and each item.

    Args:
        answers: a file of prompts with answers, such as a policy's, whose ranking is compared; None: the held-out
            answers of the ratings file.

    Raises:
        UserError: see `load_refit`; the file of answers has none.
    """
    fitted = load_refit(db, model, registry_path)
    ranked = None if answers is None else fitted.features_of(_answers(answers))
    if ranked is not None and not len(ranked):
        raise UserError(f"--answers {answers}: each answer is too long, or has roles that the model's template lacks")
    items = item_influences(fitted)
    return described(fitted) | {
        "ranked": {
            "source": answers or "held-out answers",
            "answers": len(fitted.answers if ranked is None else ranked),
        },
        "labelers": [asdict(each) for each in labeler_influences(fitted, ranked)],
        "harmful_items": [asdict(each) for each in items[:MOST_ITEMS] if each.log_loss < 0],
        "helpful_items": [asdict(each) for each in items[::-1][:MOST_ITEMS] if each.log_loss > 0],
    }


def forgetting(db: str, labeler: str, model: str, registry_path: str | None = None) -> dict[str, Any]:
    """What forgetting a labeler would change in the last layer of a model; `change` is None without ratings of theirs.

    Raises:
        UserError: see `load_refit`.
    """
    fitted = load_refit(db, model, registry_path)
    found = labeler_influence(fitted, labeler)
    return described(fitted) | {"labeler": labeler, "change": asdict(found) if found else None}


def growth(
    db: str, model: str, registry_path: str | None = None, more: int = MORE, slice_by: str | None = None
) -> dict[str, Any]:
    """What `more` ratings would do to the held-out log-loss, for all prompts and for each slice of them.

    Raises:
        UserError: see `load_refit`.
    """
    fitted = load_refit(db, model, registry_path, slice_by)
    result = described(fitted) | {"more": more, "forecast": None, "slices": []}
    if fitted.num_prompts < LEAST_PROMPTS:
        return result
    whole, *parts = [forecast(curve, more) for curve in curves(fitted)]
    return result | {
        "forecast": asdict(whole) | {"sentence": whole.sentence},
        "slices": [asdict(part) | {"sentence": part.sentence} for part in parts],
    }


def described(fitted: Refit) -> dict[str, Any]:
    """What was fitted, and how good it is on the held-out votes."""
    table = fitted.table
    logits = table.x @ fitted.head
    held_out = table.held_out[table.pair]
    decided = held_out & (table.target != 0.5)
    groups = table.groups[table.pair]

    def mean(values: Any, where: Any) -> dict[str, Any] | None:
        if not where.any():
            return None
        return dict(bootstrap_mean(values[where], groups[where].tolist(), table.weight[where]))

    return {
        "model": fitted.model,
        "ratings": fitted.num_ratings,
        "items": fitted.num_items,
        "l2": fitted.l2,
        "held_out": {
            "prompts": len(set(groups[held_out].tolist())),
            "votes": int(held_out.sum()),
            "log_loss": mean(losses(logits[table.pair], table.target), held_out),
            "accuracy": mean(agreement(logits[table.pair], table.target), decided),
        },
        "left_out": {reason: count for reason, count in fitted.left_out.items() if count},
    }


def _answers(path: str) -> list[Any]:
    found = read_records(path, to_demonstrations, DataConfig(train=path)).items
    return [(each.messages[:-1], each.messages[-1]["content"]) for each in found]
