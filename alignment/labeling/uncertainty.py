"""How sure a reward model is of each item, so that labelers can be given those that it is least sure of."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from alignment.labeling.refit.features import encode_answer
from alignment.models.ensembles import RewardEnsemble, load_reward_model
from alignment.models.lengths import positions
from alignment.models.scalar import ScalarModel
from alignment.models.sources import find_model
from alignment.models.tokenizers import load_tokenizer
from alignment.ratings import Item, RatingsStore
from alignment.registry import Registry
from alignment.tensors import pad_rows
from alignment.terminal import progress

BATCH = 64
Row = tuple[int, list[int]]  # item, token ids of one of its completions


def order_items(db: str | Path, model: str, registry_path: str | None = None) -> dict[str, Any]:
    """Score the pairs and rankings of a ratings file and store how near to 1/2 the model's probability is.

    A ranking is as uncertain as its nearest two completions. The oldest part of a prompt that is longer than the model
    has positions is cut, as in training.

    Returns:
        The model's pinned reference, how many `items` were scored, how many were `left_out` because they have nothing
        to compare, an answer is too long or the model's template has no place for their roles, and the share `near` 1/2
        (probability between 0.4 and 0.6).
    """
    with RatingsStore(db) as store:
        items = store.items()
    source = find_model(model, Registry(registry_path), role="reward")
    scalar, tokenizer = load_reward_model(source).eval(), load_tokenizer(source)
    scalar.to("cuda" if torch.cuda.is_available() else "cpu")
    limit = positions(source.config_path)
    rows = [row for item in items for row in _encode(item, tokenizer, limit[0] if limit else None)]
    scores: dict[int, list[float]] = {}
    for item_id, score in _score(scalar, rows, int(tokenizer.pad_token_id)):
        scores.setdefault(item_id, []).append(score)
    uncertainty = {item_id: distance(values) for item_id, values in scores.items()}
    with RatingsStore(db) as store:
        store.set_uncertainty(uncertainty, source.label)
    return {
        "db": str(db),
        "model": source.label,
        "items": len(uncertainty),
        "left_out": len(items) - len(uncertainty),
        "near": sum(value < 0.1 for value in uncertainty.values()) / max(1, len(uncertainty)),
    }


def distance(scores: list[float]) -> float:
    """|p - 1/2| of the two scores nearest to each other, p being the sigmoid of their difference; in [0, 1/2]."""
    gap = min(abs(a - b) for a, b in itertools.combinations(scores, 2))
    return 0.5 * math.tanh(gap / 2)  # sigmoid(x) - 1/2, without overflow


def _encode(item: Item, tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> list[Row]:
    """Token ids of each completion after the prompt; none where there is nothing to compare or one does not fit."""
    if len(item.completions) < 2:
        return []
    rows: list[Row] = []
    for completion in item.completions:
        ids = encode_answer(tokenizer, item.prompt, completion.text, max_length)
        if ids is None:
            return []
        rows.append((item.id, ids))
    return rows


@torch.no_grad()
def _score(model: ScalarModel | RewardEnsemble, rows: list[Row], pad_token_id: int) -> list[tuple[int, float]]:
    """Item and score of each row; rows of similar length share a batch."""
    device = next(model.parameters()).device
    by_length = sorted(rows, key=lambda row: len(row[1]))
    scored: list[tuple[int, float]] = []
    with progress("scoring", len(rows)) as line:
        for start in range(0, len(rows), BATCH):
            batch = by_length[start : start + BATCH]
            ids, mask = pad_rows([row[1] for row in batch], pad_token_id, "right")
            scores = model.score(ids.to(device), mask.to(device)).tolist()
            scored += [(row[0], score) for row, score in zip(batch, scores, strict=True)]
            line.advance(len(batch))
    return scored
