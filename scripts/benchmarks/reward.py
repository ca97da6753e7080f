"""Reward modelling of one epoch with a small Llama, or `--model`: our stage's trainer against TRL's RewardTrainer.

All contestants start from the same weights and train on the same token ids, in float32, with the same learning rate and
eight pairs per optimizer step. Pairs with an answer beyond the limit are removed beforehand.
"""

from __future__ import annotations

import json
import math
import random
from argparse import Namespace
from collections.abc import Iterable
from itertools import zip_longest
from pathlib import Path
from typing import Any

from benchmarks.sft import made_up_words

REQUIREMENTS = ("trl==1.16.0",)
OURS = "reward_ours"
UNIT = "pairs/s"
MAX_LENGTH = 512
ROWS = 96
DATA = {"eval_share": 0.0, "max_length": MAX_LENGTH}
# `grouped` is TRL's best configuration: it fails unless the rows have a column with their lengths and
# unused columns are kept. An epoch of 96 pairs is one pool of the sampler, so the sorting is optimal.
PEERS: dict[str, tuple[str, dict[str, Any]]] = {
    "defaults": ("reward_trl", {}),
    "stored": ("reward_trl", {"gradient_checkpointing": False}),
    "grouped": (
        "reward_trl",
        {
            "gradient_checkpointing": False,
            "train_sampling_strategy": "group_by_length",
            "remove_unused_columns": False,
        },
    ),
}
SPEED = {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 4, "num_attention_heads": 4}
MEMORY = {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 12}
MEMORY_ROWS = 16  # two steps, so that Adam's moments exist in the second
SEED = 0


def prepare(folder: Path, options: Namespace) -> dict[str, Any]:
    """Write the pairs, as text and as token ids, and the untrained model without and with its head."""
    from alignment.config.sections import DataConfig
    from alignment.data.parsing import to_comparisons
    from alignment.data.reading import Reading
    from alignment.models.scalar import load_scalar_model
    from benchmarks.base import base_model

    file = options.data or write_pairs(folder / "pairs.jsonl", options.seed)
    records = [record for _, record in Reading(DataConfig(train=str(file), eval_share=0.0), to_comparisons)]
    texts = (text for record in records for text in (record.prompt[-1]["content"], record.first, record.second))
    model, tokenizer = base_model(options, MEMORY if options.memory else SPEED, texts)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    # Built by our stage; TRL gets the same head, which it would otherwise initialize differently.
    load_scalar_model(str(folder / "model"), seed=SEED).model.save_pretrained(folder / "scalar")
    tokenizer.save_pretrained(folder / "scalar")
    pairs = usable_pairs(records, tokenizer)
    pairs = pairs[: min(options.rows, MEMORY_ROWS) if options.memory else options.rows]
    (folder / "train.jsonl").write_text("".join(json.dumps(texts) + "\n" for texts, _, _ in pairs), encoding="utf-8")
    rows = [{"chosen_ids": a, "rejected_ids": b, "length": max(len(a), len(b))} for _, a, b in pairs]
    (folder / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    tokens = sum(len(a) + len(b) for _, a, b in pairs)
    return {
        "data": str(options.data or "generated"),
        "pairs": len(pairs),
        "parameters": model.num_parameters(),
        "mean_tokens": round(tokens / len(pairs) / 2, 1),
        "shared": round(sum(shared(a, b) for _, a, b in pairs) / tokens, 3),
    }


def usable_pairs(records: Iterable[Any], tokenizer: Any) -> list[tuple[dict[str, Any], list[int], list[int]]]:
    """Each decided pair that fits, one per prompt: its texts, and the token ids of its chosen and rejected side."""
    from alignment.templates.rendering import Message, encode_conversation

    pairs, prompts = [], set()
    for record in records:
        prompt = json.dumps(record.prompt)
        chosen, rejected = (record.first, record.second) if record.target == 1 else (record.second, record.first)
        answers: list[Message] = [{"role": "assistant", "content": text} for text in (chosen, rejected)]
        first, second = (encode_conversation(tokenizer, [*record.prompt, answer]).input_ids for answer in answers)
        fits = max(len(first), len(second)) <= MAX_LENGTH
        if fits and record.target in (0, 1) and first != second and prompt not in prompts:
            prompts.add(prompt)
            pairs.append(({"prompt": record.prompt, "chosen": chosen, "rejected": rejected}, first, second))
    return pairs


def shared(first: list[int], second: list[int]) -> int:
    """Length of the common prefix."""
    return next(n for n, (a, b) in enumerate(zip_longest(first, second)) if a != b)


def write_pairs(path: Path, seed: int) -> Path:
    """Write pairs of random words with HH's lengths: about 175 tokens a side, few beyond 512, three eighths shared."""
    draw = random.Random(seed)
    words, weights = made_up_words(draw)

    def text(mean: float, spread: float) -> str:
        return " ".join(draw.choices(words, weights, k=max(2, int(draw.lognormvariate(math.log(mean), spread)))))

    lines = []
    for _ in range(400):
        turns = [text(22, 0.8) for _ in range(draw.choice((1, 1, 1, 3, 3, 3, 5, 5, 7)))]
        roles = ("user", "assistant")
        prompt = [{"role": roles[index % 2], "content": turn} for index, turn in enumerate(turns)]
        lines.append(json.dumps({"prompt": prompt, "chosen": text(33, 0.8), "rejected": text(33, 0.8)}))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
