#!/usr/bin/env python3
"""Write docs/guides/methods.md: train the demo's model by every method, and say what works with what.

    scripts/methods_table.py              some minutes on a CPU
    scripts/methods_table.py --matrix     only the matrix, from the table in alignment/models/methods.py

The demo's policy learns to answer politely by each method in turn, from the same weights, on the same rows.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "guides" / "methods.md"
RECIPE = ROOT / "configs" / "sft" / "demo.yaml"
MATRIX, TABLE, END = "<!-- matrix -->", "<!-- table -->", "<!-- end -->"
ROWS, HELD_OUT, STEPS = 640, 80, 120
FASTER = 20  # a model of a million parameters takes larger steps than those that the default rates are for


def matrix() -> str:
    """Markdown: one row a method, one column a setting; what does not work has a number, and the reason below."""
    from alignment.models.methods import METHODS, SETTINGS

    reasons: list[str] = []
    lines = [f"| method | {' | '.join(SETTINGS)} |", f"|---|{'---|' * len(SETTINGS)}"]
    for name, method in METHODS.items():
        cells = []
        for setting in SETTINGS:
            reason = method.fails.get(setting)
            if reason and reason not in reasons:
                reasons.append(reason)
            cells.append(f"no ({reasons.index(reason) + 1})" if reason else "yes")
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    lines += ["", *(f"- {name}: {meaning}." for name, meaning in SETTINGS.items()), ""]
    return "\n".join(lines + [f"{number}. {reason}." for number, reason in enumerate(reasons, 1)])


def defaults() -> str:
    """Markdown: what each method is, its learning rate and its arguments."""
    from alignment.models.methods import METHODS

    lines = ["| method | trains | learning rate | PEFT config | arguments |", "|---|---|---|---|---|"]
    for name, method in METHODS.items():
        rate = f"{method.learning_rate:g}" if method.learning_rate else "the stage's"
        arguments = ", ".join(f"{key}={value}" for key, value in method.defaults.items())
        lines.append(f"| `{name}` | {method.summary} | {rate} | {method.peft_config or ''} | {arguments} |")
    return "\n".join(lines)


def replaced(page: str, mark: str, text: str) -> str:
    """The page with what stands between a mark and the next `end` mark replaced."""
    before, _, rest = page.partition(mark)
    return f"{before}{mark}\n\n{text}\n\n{END}{rest.partition(END)[2]}"


# --- training ------------------------------------------------------------------------------------------------------


def write_polite_rows(path: Path) -> None:
    """Questions of the demo, each with a polite and right answer."""
    from help_desk.handbook import load_handbook
    from help_desk.world import answer, training_prompts

    rng, handbook = random.Random(0), load_handbook()
    rows = [
        {"prompt": row["prompt"], "completion": answer(handbook.fact(row["fact"]), "good", rng)}
        for row in training_prompts(0)[: ROWS + HELD_OUT]
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def config_of(name: str, *overrides: str) -> Any:
    from alignment.config.loading import load_config
    from sft.config import SFTStageConfig

    common = (f"name={name}", f"registry.name={name}", "tracking.wandb=disabled")
    config = load_config(SFTStageConfig, RECIPE, [*common, *overrides])
    config.run_dir.mkdir(parents=True)
    return config


def train_by(method: str) -> dict[str, Any]:
    """Train, publish and export one method; what the table says of it."""
    from transformers import PrinterCallback

    from alignment.models import methods, trainable
    from alignment.models.export import export
    from alignment.registry import Registry
    from alignment.runs.journal import Journal
    from alignment.runs.run import Run
    from alignment.training.best_model import finished_model
    from sft.building import build_trainer
    from sft.prepare import prepare
    from sft.train import publish

    rate = FASTER * (methods.METHODS[method].learning_rate or 2e-5)
    config = config_of(
        method,
        *("model.name=start", "model.scratch=null", f"model.method={method}"),
        *("data.train=polite.jsonl", f"data.eval_share={HELD_OUT / (ROWS + HELD_OUT)}"),
        *(f"training.max_steps={STEPS}", f"training.learning_rate={rate}", "training.eval_strategy='no'"),
    )
    prepared = prepare(config)
    trainer = build_trainer(config, prepared)
    trainer.remove_callback(PrinterCallback)
    before, start = trainer.evaluate()["eval_loss"], trainable.describe(trainer.model)
    started = time.monotonic()
    trainer.train()
    seconds = time.monotonic() - started
    found = {
        **trainable.describe(trainer.model),
        "ranks_before": start.get("ranks"),
        "rate": rate,
        "mib": memory(trainer),
        "before": before,
        "after": trainer.evaluate()["eval_loss"],
        "seconds": seconds,
    }
    with finished_model(trainer, None, config.run_dir) as folder:
        ref = publish(config, prepared, folder, {}, Run(), Journal(config.run_dir, enabled=False))
    return found | export(ref, Path("exported") / method, Registry())


def memory(trainer: Any) -> float:
    """MiB of weights, gradients and optimizer state, as they lie in memory at the end of training."""
    weights = sum(weight.nbytes for weight in trainer.model.parameters())
    gradients = sum(weight.nbytes for weight in trainer.model.parameters() if weight.requires_grad)
    state = trainer.optimizer.state_dict()["state"].values()
    moments = sum(value.nbytes for values in state for value in values.values() if hasattr(value, "nbytes"))
    return float(weights + gradients + moments) / 2**20


def table(found: dict[str, dict[str, Any]]) -> str:
    lines = [
        "| method | learning rate | trained | share | memory, MiB | loss before | after | seconds | merge error |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in found.items():
        merged = f"{row['logits_difference']:.1e}" if "logits_difference" in row else ""
        lines.append(
            f"| `{name}` | {row['rate']:g} | {row['trained_parameters']:,} "
            f"| {row['trained_parameters'] / row['parameters']:.1%} | {row['mib']:.1f} "
            f"| {row['before']:.3f} | {row['after']:.3f} | {row['seconds']:.0f} | {merged} |"
        )
    ada = found["adalora"]
    lines += ["", f"AdaLoRA's ranks, summed over its layers: {ada['ranks_before']} before, {ada['ranks']} after."]
    return "\n".join(lines)


def measure() -> str:
    """Train every method in a folder of its own, which is removed again."""
    import sft.train
    from alignment.models.methods import METHODS

    home = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            from help_desk import world

            world.write_data(Path("runs/demo/data"), 0)
            write_polite_rows(Path("polite.jsonl"))
            sft.train.train(config_of("start"))
            return table({method: train_by(method) for method in METHODS})
        finally:
            os.chdir(home)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Write docs/guides/methods.md.", epilog="example: scripts/methods_table.py --matrix"
    )
    parser.add_argument("--matrix", action="store_true", help="only what follows from the code; train nothing")
    args = parser.parse_args(argv)

    from alignment.training.stage import quiet_libraries

    quiet_libraries()
    page = replaced(PAGE.read_text(encoding="utf-8"), MATRIX, f"{defaults()}\n\n{matrix()}")
    if not args.matrix:
        page = replaced(page, TABLE, measure())
    PAGE.write_text(page, encoding="utf-8")
    print(PAGE)
    return 0


if __name__ == "__main__":
    from project_python import use_project_python

    use_project_python()
    sys.exit(main())
