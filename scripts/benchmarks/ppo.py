"""PPO on a small Llama: our stage's loop against TRL's last PPOTrainer (1.12).

All contestants start from the same policy, reward model and critic and respond to the same prompts, in float32, with
the same numbers of epochs, minibatches and new tokens, the same clip ranges, KL coefficient, penalty for a response
without EOS, and learning rate. One run is one iteration: a rollout and its optimization.

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
    MEMORY_ROWS,
    PROMPT_TOKENS,
    RESPONSE_TOKENS,
    Work,
    make_policy,
    parameters,
    response_stats,
    sample,
    save_prompts,
    save_reward_adapter,
    short_prompts,
    write_transcripts,
)
from benchmarks.sft import shape_of

REQUIREMENTS = ("trl==1.12.0",)
OURS = "ppo_ours"
UNIT = "samples/s"
ROWS = 64
PEERS: dict[str, tuple[str, dict[str, Any]]] = {"trl": ("ppo_trl", {})}
MORE_PEERS: dict[str, dict[str, tuple[str, dict[str, Any]]]] = {
    "memory": {"trl-by-hand": ("ppo_trl", {"checkpointed_by_hand": True})}
}
"""Ours has activation checkpointing in `memory`. It is TRL's default too, but users must enable it by a call."""
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "speed": {"trunk": {"value": "trunk"}},
    "memory": {"shared": {"mode": "shared"}},
    "learning": {},
}
"""Variants of our stage beside `ours`, which has a separate critic like TRL."""


def prepare(folder: Path, options: Namespace) -> dict[str, Any]:
    """Write the prompts, the policy, and the reward model, which also initializes the critic."""
    if options.learning:
        from benchmarks import ppo_learning

        return ppo_learning.prepare(folder, options)
    from alignment.config.sections import DataConfig, ScratchConfig
    from alignment.data.parsing import to_demonstrations
    from alignment.data.reading import read_records
    from alignment.models.tokenizers import train_tokenizer

    file = options.data or write_transcripts(folder / "transcripts.jsonl", options.seed)
    records = read_records(file, to_demonstrations, DataConfig(train=str(file))).items
    texts = (message["content"] for record in records for message in record.messages)
    shape = ScratchConfig(vocab_size=4096, max_position_embeddings=1024, **shape_of(options))
    tokenizer = train_tokenizer(texts, shape.vocab_size, "chatml")
    make_policy(folder, records, tokenizer, shape, options)
    prompts = short_prompts(records, tokenizer, min(options.rows, MEMORY_ROWS) if options.memory else options.rows)
    save_prompts(folder, [messages for messages, _ in prompts])
    if options.memory:
        save_reward_adapter(folder)
    responses = sample(folder, [ids for _, ids in prompts])
    work = Work([ids for _, ids in prompts], responses, episodes=len(prompts))
    if options.memory:  # the same number of tokens as TRL's padded microbatch
        tokens = work.microbatch_rows * (PROMPT_TOKENS + RESPONSE_TOKENS)
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


def phases(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """Ratios of the trunk critic and of the phases within a round, the seconds of each phase, and training's fraction
    of the machine's matmul rate."""
    from bench import spread

    def ratio(of: str, name: str) -> dict[str, float]:
        return spread(theirs[of] / ours[of] for theirs, ours in zip(runs["trl"], runs[name], strict=True))

    return {
        "ratio_trunk": ratio("seconds", "trunk"),
        "ratio_generation": ratio("generate", "ours"),
        "ratio_score": ratio("score", "ours"),
        "ratio_train": ratio("train", "ours"),
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
