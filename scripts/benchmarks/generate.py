"""Sampling: the engine of our PPO stage against transformers' `generate`, on one model and the same prompts.

All sample as many tokens of each response at temperature 1, without an end token, in one batch. Beside the ratio stands
the share of time that the model's plain matrix products alone would take on as many rows: whichever binds there,
arithmetic or the bandwidth that the weights are read with, no engine can do better without other numbers.
"""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.base import base_model
from benchmarks.ppo_work import LONG_PROMPT_TOKENS, SPEED, short_prompts, write_transcripts

REQUIREMENTS: tuple[str, ...] = ()
OURS = "generate_ours"
UNIT = "tokens/s"
ROWS = 16
NEW_TOKENS = 64
PEERS: dict[str, tuple[str, dict[str, Any]]] = {
    "generate": ("generate_transformers", {}),
    "continuous": ("generate_transformers", {"continuous": True}),
}


def prepare(folder: Path, options: Namespace) -> dict[str, Any]:
    """Write the model and the prompts' token ids."""
    from alignment.config.sections import DataConfig
    from alignment.data.parsing import to_demonstrations
    from alignment.data.reading import read_records

    file = options.data or write_transcripts(folder / "transcripts.jsonl", options.seed)
    records = read_records(file, to_demonstrations, DataConfig(train=str(file))).items
    texts = (message["content"] for record in records for message in record.messages)
    model, tokenizer = base_model(options, SPEED, texts)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    prompts = [ids for _, ids in short_prompts(records, tokenizer, options.rows, LONG_PROMPT_TOKENS)]
    (folder / "prompts.json").write_text(json.dumps(prompts), encoding="utf-8")
    return {
        "data": str(options.data or "generated"),
        "responses": len(prompts),
        "new_tokens": NEW_TOKENS,
        "parameters": model.num_parameters(),
        "mean_prompt_tokens": round(sum(map(len, prompts)) / len(prompts), 1),
    }


def more(mode: str, work: Mapping[str, Any], report: dict[str, Any]) -> dict[str, Any]:
    """The report with the share of the time of plain matrix products."""
    from bench import spread

    shares = {
        name: spread(run["product_seconds"] / run["seconds"] for run in done) for name, done in report["runs"].items()
    }
    notes = [f"{name}: matrix products alone take {share['median']:.0%} of its time" for name, share in shares.items()]
    return report | {"product_shares": shares, "notes": notes}
