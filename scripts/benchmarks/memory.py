"""Compare the estimates of `alignment.memory.plan` with measured peaks: cases, and data of maximum length.

Every row, pair, prompt and response is as long as the config allows, as the plan assumes. Each case is a complete run
of its stage in a separate process (`memory_ours`), from reading data to publishing, with two steps or iterations.
"""

from __future__ import annotations

import json
import random
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.ppo_work import MEMORY, save_policy, save_reward_adapter
from benchmarks.sft import made_up_words

OURS = "memory_ours"
GIVES_BACK = {"MALLOC_MMAP_THRESHOLD_": "262144", "MALLOC_TRIM_THRESHOLD_": "262144"}
"""Makes glibc return each freed block of 256 KiB or more to the system. By default it keeps fragments that the next
step cannot reuse: about 500 MB at 110M parameters, which would count in the peak."""
LENGTH, RESPONSE = 256, 48
SHORTER = 24
"""Margin of a row's length in tokens, because a text may become longer when it is decoded and encoded again."""
TRAINER = {"per_device_train_batch_size": 4, "max_steps": 2, "bf16": False, "save_steps": 0}
ITERATIONS = {"max_steps": 2, "microbatch_tokens": 768, "save_steps": 0}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "sft full": ("sft", {"training": TRAINER}),
    "sft full, accumulated": (
        "sft",
        {"training": {**TRAINER, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}},
    ),
    "sft full, checkpointed": ("sft", {"training": {**TRAINER, "gradient_checkpointing": True}}),
    "sft lora": ("sft", {"training": TRAINER, "model": {"method": "lora"}}),
    "reward": ("reward", {"training": {**TRAINER, "per_device_train_batch_size": 2}}),
    "ppo separate": ("ppo", {"training": ITERATIONS}),
    "ppo separate, checkpointed": ("ppo", {"training": {**ITERATIONS, "gradient_checkpointing": True}}),
    "ppo separate, trunk": ("ppo", {"training": ITERATIONS, "model": {"value": "trunk"}}),
    "ppo shared": ("ppo", {"training": ITERATIONS, "model": {"mode": "shared"}}),
}


def prepare(folder: Path, seed: int = 0) -> int:
    """Write the data and the models; returns the number of parameters of one model."""
    from alignment.models.policies import load_policy
    from benchmarks.base import base_model

    draw = random.Random(seed)
    words, weights = made_up_words(draw)
    texts = [" ".join(draw.choices(words, weights, k=400)) for _ in range(16)]
    model, tokenizer = base_model(Namespace(model=None, memory=True, seed=seed), MEMORY, texts)
    save_policy(folder, model, tokenizer)
    save_reward_adapter(folder)

    def text(index: int, tokens: int) -> str:
        return str(tokenizer.decode(tokenizer(texts[index])["input_ids"][:tokens]))

    indices, long = range(8), LENGTH - SHORTER
    pairs = [{"prompt": f"Say {n}.", "chosen": text(n, long), "rejected": text(n + 8, long)} for n in indices]
    _write(folder / "reward.jsonl", pairs)
    _write(folder / "sft.jsonl", [{"prompt": pair["prompt"], "completion": pair["chosen"]} for pair in pairs])
    _write(folder / "ppo.jsonl", [{"prompt": text(n, 2 * RESPONSE)} for n in range(16)])
    return int(load_policy(str(folder / "policy")).num_parameters())


def _write(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def values(case: str, folder: Path, runs: str) -> tuple[str, dict[str, Any]]:
    """The stage of a case, and its config."""
    stage, sections = CASES[case]
    shared = sections.get("model", {}).get("mode") == "shared"
    model: Mapping[str, Any] = {"name": str(folder / "policy")}
    if stage == "ppo":
        names = ("policy", "reward")
        model = {name: name if shared else str(folder / name) for name in names}
    length = 2 * RESPONSE if stage == "ppo" else LENGTH
    config: dict[str, Any] = {
        "name": "case",
        "data": {"train": str(folder / f"{stage}.jsonl"), "eval_share": 0.0, "max_length": length},
        "registry": {"name": "case", "path": str(folder / "registry"), "allow_new_tokenizer": True},
        "tracking": {"runs": runs, "wandb": "disabled"},
        **sections,
        "model": {**model, **sections.get("model", {})},
    }
    if stage == "ppo":
        config["rollout"] = {"batch_size": 16, "generation_batch_size": 16, "max_new_tokens": RESPONSE}
    return stage, config
