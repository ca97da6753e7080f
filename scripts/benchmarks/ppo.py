"""PPO on a small Llama: our stage's loop against TRL's last PPOTrainer (1.12).

All contestants start from the same policy, reward model and critic and respond to the same prompts, in float32, with
the same numbers of epochs, minibatches and new tokens, the same clip ranges, KL coefficient, penalty for a response
without EOS, and learning rate. One run is one iteration: a rollout and its optimization.

With `--model` the model is the user's own, and ours on one shared base (LoRA) is compared with TRL's with PEFT's LoRA.
Three measurements: speed; `--memory`, models of more than 100 million parameters; and `--learning`, the mean reward
that a small policy reaches (`ppo_learning`).
"""

from __future__ import annotations

import statistics
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.ppo_work import (
    LONG_PROMPT_TOKENS,
    MEMORY,
    MEMORY_ROWS,
    PROMPT_TOKENS,
    RESPONSE_TOKENS,
    SPEED,
    Work,
    parameters,
    response_stats,
    sample,
    save_policy,
    save_prompts,
    save_reward_adapter,
    short_prompts,
    write_transcripts,
)

REQUIREMENTS = ("trl==1.12.0", "peft==0.21.2")
OURS = "ppo_ours"
UNIT = "samples/s"
ROWS = 64
PEERS: dict[str, tuple[str, dict[str, Any]]] = {"trl": ("ppo_trl", {})}
MORE_PEERS: dict[str, dict[str, tuple[str, dict[str, Any]]]] = {
    "memory": {
        "trl-by-hand": ("ppo_trl", {"checkpointed_by_hand": True}),
        "trl-lora": ("ppo_trl", {"lora": True, "checkpointed_by_hand": True}),
    },
    "model": {"trl-lora": ("ppo_trl", {"lora": True})},
}
"""Ours has activation checkpointing in `memory`. It is TRL's default too, but users must enable it by a call."""
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "speed": {"trunk": {"value": "trunk"}},
    "model": {"trunk": {"value": "trunk"}, "shared": {"mode": "shared"}, "upper": {"mode": "shared", "upper": True}},
    "memory": {"shared": {"mode": "shared"}},
    "learning": {},
}
"""Variants of our stage beside `ours`, which has a separate critic like TRL."""


def prepare(folder: Path, options: Namespace) -> dict[str, Any]:
    """Write the prompts, the policy, and the reward model, which also initializes the critic."""
    if options.learning:
        from benchmarks import ppo_learning

        return ppo_learning.prepare(folder, options)
    from alignment.config.sections import DataConfig
    from alignment.data.parsing import to_demonstrations
    from alignment.data.reading import read_records
    from benchmarks.base import base_model

    file = options.data or write_transcripts(folder / "transcripts.jsonl", options.seed)
    records = read_records(file, to_demonstrations, DataConfig(train=str(file))).items
    texts = (message["content"] for record in records for message in record.messages)
    model, tokenizer = base_model(options, MEMORY if options.memory else SPEED, texts)
    # The large model of `--memory` is not trained, because its responses should have the maximum length.
    save_policy(folder, model, tokenizer, [] if options.memory or options.model else records)
    limit = LONG_PROMPT_TOKENS if options.model else PROMPT_TOKENS
    rows = min(options.rows, MEMORY_ROWS) if options.memory else options.rows
    prompts = short_prompts(records, tokenizer, rows, limit)
    save_prompts(folder, [messages for messages, _ in prompts])
    if options.memory or options.model:
        save_reward_adapter(folder)
    responses = sample(folder, [ids for _, ids in prompts])
    work = Work([ids for _, ids in prompts], responses, episodes=len(prompts), prompt_tokens=limit)
    if options.memory:  # the same number of tokens as TRL's padded microbatch
        tokens = work.microbatch_rows * (limit + RESPONSE_TOKENS)
        work.iterations, work.num_epochs, work.microbatch_tokens = 2, 1, tokens
        work.gradient_checkpointing = True
    work.write(folder)
    return {
        "data": str(options.data or "generated"),
        "rollouts": len(prompts),
        "epochs": work.num_epochs,
        "iterations": work.iterations,
        "parameters": parameters(folder),
        "mean_prompt_tokens": round(statistics.fmean(map(len, work.prompts)), 1),
        **response_stats(responses, tokenizer.eos_token_id),
    }


# --- summing up ------------------------------------------------------------------------------------------------------

PHASES = ("generate", "score", "train")
RATIOS = (
    ("trunk", "trl", "trunk", "seconds"),
    ("shared", "trl-lora", "shared", "seconds"),
    ("upper", "trl-lora", "upper", "seconds"),
    ("generation", "trl", "ours", "generate"),
    ("score", "trl", "ours", "score"),
    ("train", "trl", "ours", "train"),
)
"""A ratio's name, their contestant, ours, and the seconds that are compared."""


def more(mode: str, work: Mapping[str, Any], report: dict[str, Any]) -> dict[str, Any]:
    """The report with this benchmark's own metrics, and `notes` as text."""
    if mode == "memory":
        report["shared_ratio"] = round(report["mib"]["shared"] / report["mib"]["ours"], 3)
        return report | {"notes": [f"shared x{report['shared_ratio']} of ours"]}
    if mode == "learning":
        from benchmarks import ppo_learning

        return ppo_learning.more(work, report["runs"])
    metrics = phases(report["runs"])
    return report | metrics | {"notes": phase_notes(metrics)}


def ratio_of(runs: Mapping[str, Sequence[Mapping[str, Any]]], theirs: str, ours: str, of: str) -> dict[str, float]:
    """Seconds of one contestant over another's within a round."""
    from bench import spread

    return spread(their[of] / our[of] for their, our in zip(runs[theirs], runs[ours], strict=True))


def phases(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """Ratios of the trunk critic and of the phases within a round, the seconds of each phase, and training's fraction
    of the machine's matmul rate."""
    from bench import spread

    ratios = {
        f"ratio_{name}": ratio_of(runs, their, our, of)
        for name, their, our, of in RATIOS
        if their in runs and our in runs
    }
    return ratios | {
        "phases": {
            name: {phase: spread(run[phase] for run in done) for phase in PHASES} for name, done in runs.items()
        },
        "matmul_gflops": spread(run["matmul_rate"] / 1e9 for done in runs.values() for run in done),
        "matmul_share": {
            name: spread(run["useful_flops"] / run["train"] / run["matmul_rate"] for run in done)
            for name, done in runs.items()
        },
        "responses": {
            name: {key: round(statistics.fmean(run[key] for run in done), 3) for key in ("response_tokens", "ended")}
            for name, done in runs.items()
        },
    }


def phase_notes(metrics: Mapping[str, Any]) -> list[str]:
    """The metrics of phases as text."""
    lines = [
        f"{name}: x{ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})"
        for name, ratio in metrics.items()
        if name.startswith("ratio_")
    ]
    rate = metrics["matmul_gflops"]["median"]
    for name, seconds in metrics["phases"].items():
        parts = ", ".join(f"{phase} {seconds[phase]['median']:.3g} s" for phase in PHASES)
        share = metrics["matmul_share"][name]["median"]
        lines.append(f"{name:10} {parts}; training at {share:.0%} of {rate:.0f} GFLOP/s")
    return lines
