"""PPO with adapters on the upper half of the layers against adapters on all: what is learned, and the time it takes.

    scripts/study.py upper_layers                 the full study, about 20 minutes on one core
    scripts/study.py upper_layers --quick         the first run of each setting, as a test
    scripts/study.py upper_layers --page          only the page, from existing rows

The demo's world with SIMULATED labelers; `model.mode: shared`, so that four roles are adapters on the SFT model. The
layers below the first adapter are computed once for each row (`ppo/lower_layers.py`). Both settings start from the same
SFT model and ratings, and each has a reward model with adapters on the same layers, from which its critic starts. Rows
are appended to HOME/rows.jsonl; existing runs are not repeated.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.ppo_learning import interval

from studies.overoptimisation import append_runs, make_loop, prepare, read_rows, stage, write_table

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "development" / "studies" / "upper-layers.md"
STEPS, HELD_OUT = 25, 120
LAYERS = 4
"""Layers of the SFT model; the demo's own has two."""
SETTINGS: dict[str, list[int]] = {"all": list(range(LAYERS)), "upper": list(range(LAYERS // 2, LAYERS))}
"""The layers with adapters."""


def train_reward_models(seed: int) -> None:
    """A reward model with adapters on the layers of each setting, on the same ratings."""
    from alignment.registry import Registry

    for name, layers in SETTINGS.items():
        if f"reward-{name}" not in Registry().names():
            stage(
                "reward", "demo.yaml", f"name=reward-{name}", f"registry.name=reward-{name}", "model.method=lora",
                f"model.adapter={{layers_to_transform: {layers}}}", "data.train=ratings.jsonl", "data.eval_share=0.1",
                "training.learning_rate=2e-3", f"training.seed={seed}",
            )  # fmt: skip


def ppo_config(setting: str, seed: int) -> Any:
    from alignment.config.loading import load_config
    from ppo.config import PPOStageConfig

    return load_config(
        PPOStageConfig,
        ROOT / "configs" / "ppo" / "demo.yaml",
        [
            f"model.reward=reward-{setting}", "model.held_out_reward=null", "model.mode=shared",
            f"model.adapter={{layers_to_transform: {SETTINGS[setting]}}}", "training.learning_rate=2e-3",
            "training.value_learning_rate=5e-3", f"training.max_steps={STEPS}", f"training.seed={seed}",
            "training.lr_scheduler_type=constant", "training.load_best_model_at_end=false", "tracking.wandb=disabled",
        ],
    )  # fmt: skip


def run(setting: str, seed: int) -> dict[str, Any]:
    """The policy after a PPO run: means over held-out answers, by the reward model and by gold; and the CPU seconds of
    the iterations."""
    from help_desk.gold import gold_score

    from ppo.prompts import prompt_batches

    loop = make_loop(ppo_config(setting, seed), HELD_OUT)
    batches = prompt_batches(len(loop.prompts), loop.config.rollout.batch_size, seed)
    assert [layers.depth for layers in loop.models.lower] == ([] if setting == "all" else [LAYERS // 2])
    started = time.process_time()
    for _ in range(STEPS):
        loop.iterate(next(batches))
    seconds = time.process_time() - started
    judged = loop.evaluation.answer(STEPS)
    gold = [
        gold_score(prompt.columns["fact"], text.strip(), ended).total
        for (prompt, _), text, ended in zip(loop.evaluation.prompts, judged.texts, judged.ended, strict=True)
    ]
    return {
        "setting": setting, "seed": seed, "gold": statistics.fmean(gold), "kl": statistics.fmean(judged.kl),
        "score": statistics.fmean(judged.raw_scores), "cpu_seconds": seconds,
    }  # fmt: skip


# --- the page ------------------------------------------------------------------------------------------------------


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A line for each setting, and the difference by seed with its interval."""
    found = {name: {row["seed"]: row for row in rows if row["setting"] == name} for name in SETTINGS}
    seeds = sorted(set.intersection(*(set(runs) for runs in found.values())))
    lines = ["| adapters on | gold score | KL | CPU seconds of an iteration |", "|---|---|---|---|"]
    for name, runs in found.items():
        means = [statistics.fmean(runs[seed][figure] for seed in seeds) for figure in ("gold", "kl", "cpu_seconds")]
        label = "all layers" if name == "all" else "the upper half"
        lines.append(f"| {label} | {means[0]:.3f} | {means[1]:.2f} | {means[2] / STEPS:.2f} |")
    if len(seeds) > 1:
        gold, (low, high) = interval([found["upper"][seed]["gold"] - found["all"][seed]["gold"] for seed in seeds])
        ratios = [found["upper"][seed]["cpu_seconds"] / found["all"][seed]["cpu_seconds"] for seed in seeds]
        lines += [
            "",
            f"Upper half less all, by seed: gold {gold:+.3f} (Student's 95% interval {low:+.3f} to "
            f"{high:+.3f}, {len(seeds)} seeds). CPU time, upper half over all: {statistics.median(ratios):.2f} "
            f"({min(ratios):.2f} to {max(ratios):.2f}).",
        ]
    return "\n".join(lines)


def write_page(rows: Sequence[Mapping[str, Any]]) -> None:
    """Write the table between the page's markers; the rest of the page is kept."""
    write_table(PAGE, "Adapters on the upper layers", table(rows))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n")[0], epilog="example: scripts/study.py upper_layers --seeds 0 1 2"
    )
    parser.add_argument("--home", type=Path, default=Path("runs/upper-layers"), help="working folder")
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=list(range(10)), help="seeds of PPO; data and models use the first one"
    )
    parser.add_argument("--quick", action="store_true", help="the first seed only, and no page")
    parser.add_argument("--page", action="store_true", help="only write the page from existing rows")
    options = parser.parse_args(argv)
    from alignment.errors import UserError
    from alignment.training.stage import quiet_libraries

    quiet_libraries()
    options.home.mkdir(parents=True, exist_ok=True)
    os.chdir(options.home)
    path = Path("rows.jsonl")
    try:
        if not options.page:
            prepare(options.seeds[0], f"model.scratch.num_hidden_layers={LAYERS}")
            train_reward_models(options.seeds[0])
            done = {(row["setting"], row["seed"]) for row in read_rows(path)}
            seeds = options.seeds[:1] if options.quick else options.seeds
            wanted = [(name, seed) for seed in seeds for name in SETTINGS if (name, seed) not in done]
            append_runs(path, wanted, lambda cell: [run(*cell)], "gold", "kl")
        if not options.quick:
            write_page(read_rows(path))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
