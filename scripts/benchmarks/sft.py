"""SFT of one epoch with a small Llama, or `--model`: our stage's trainer against TRL's SFTTrainer.

All contestants start from the same weights and train on the same token ids and labels, in float32, with the same
learning rate and the same rows per optimizer step (packed rows have a varying number of transcripts).
"""

from __future__ import annotations

import json
import random
from argparse import Namespace
from pathlib import Path
from typing import Any

REQUIREMENTS = ("trl==1.16.0",)
OURS = "sft_ours"
UNIT = "tokens/s"
MAX_LENGTH = 512
ROWS = 96
DATA: dict[str, Any] = {"eval_share": 0.0, "max_length": MAX_LENGTH}
# TRL's settings without attention across documents. bfd packs rows of 512 tokens, three of which hold about eight
# transcripts. TRL refuses padding-free batches without packing if `max_length` is set.
PEERS: dict[str, tuple[str, dict[str, Any]]] = {
    "defaults": ("sft_trl", {}),
    "grouped": ("sft_trl", {"gradient_checkpointing": False, "train_sampling_strategy": "group_by_length"}),
    "packed": (
        "sft_trl",
        {
            "gradient_checkpointing": False,
            "packing": True,
            "packing_strategy": "bfd",
            "max_length": MAX_LENGTH,
            "per_device_train_batch_size": 3,
        },
    ),
}
SPEED = {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 4, "num_attention_heads": 4}
MEMORY = {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 12}
MEMORY_ROWS = 16  # two steps, so that Adam's moments exist in the second


def prepare(folder: Path, options: Namespace) -> dict[str, Any]:
    """Write the rows and the untrained model; returns their description."""
    from alignment.config.sections import DataConfig
    from alignment.data.parsing import to_demonstrations
    from alignment.data.reading import Reading
    from benchmarks.base import base_model
    from sft.data import encode_data

    file = options.data or write_transcripts(folder / "transcripts.jsonl", options.seed)
    records = [record for _, record in Reading(DataConfig(train=str(file), eval_share=0.0), to_demonstrations)]
    texts = (message["content"] for record in records for message in record.messages)
    model, tokenizer = base_model(options, MEMORY if options.memory else SPEED, texts)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    rows = min(options.rows, MEMORY_ROWS) if options.memory else options.rows
    lines = [json.dumps({"messages": record.messages}) + "\n" for record in records[:rows]]
    (folder / "train.jsonl").write_text("".join(lines), encoding="utf-8")
    data = encode_data(DataConfig(train=str(folder / "train.jsonl"), **DATA), tokenizer)
    (folder / "rows.json").write_text(json.dumps(data.train.to_dict()), encoding="utf-8")
    return {
        "data": str(options.data or "generated"),
        "rows": len(data.train),
        "parameters": model.num_parameters(),
        "mean_tokens": round(sum(map(len, data.train["input_ids"])) / len(data.train), 1),
    }


def made_up_words(draw: random.Random) -> tuple[list[str], list[float]]:
    """Random words and their frequencies."""
    letters = "aeiou", "bcdfghlmnprstvw"
    words = ["".join(draw.choice(letters[n % 2]) for n in range(draw.randint(2, 8))) for _ in range(3000)]
    return words, [1 / (rank + 3) for rank in range(len(words))]


def write_transcripts(path: Path, seed: int) -> Path:
    """Write conversations of random words with HH's distribution of lengths: about 190 tokens, few beyond 512."""
    draw = random.Random(seed)
    words, weights = made_up_words(draw)
    lines = []
    for _ in range(400):
        length = max(12, int(draw.lognormvariate(4.68, 0.85)))
        turns = 2 * draw.randint(1, 3)
        shares = [draw.uniform(0.3, 1.7) for _ in range(turns)]
        messages = [
            {
                "role": ("user", "assistant")[turn % 2],
                "content": " ".join(draw.choices(words, weights, k=1 + int(length * share / sum(shares)))),
            }
            for turn, share in enumerate(shares)
        ]
        lines.append(json.dumps({"messages": messages}))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
