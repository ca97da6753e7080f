"""Over-optimisation: gold against proxy reward as PPO moves away from SFT (Gao et al. 2022; Coste et al. 2023).

    scripts/study.py overoptimisation                 the full study, about an hour on one core
    scripts/study.py overoptimisation --quick         one cell, as a test
    scripts/study.py overoptimisation --page          only the page, from existing rows

In the demo's world, ensembles of three reward models are trained on 100, 300, 1000 and 3000 simulated ratings. PPO
maximises one member, the mean, the minimum, or the mean minus a standard deviation, at several KL coefficients. During
each run the policy answers held-out prompts, which the reward model (the proxy) and the rules (gold) score. Rows are
appended to HOME/rows.jsonl; existing runs are not repeated.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "development" / "studies" / "overoptimisation.md"
PICTURE = PAGE.with_name("overoptimisation.png")
SIZES = (100, 300, 1000, 3000)
MEMBERS = 3
COMBINATIONS = ("one", "mean", "min", "mean_minus_std")
STEPS, EVERY = 40, 5
HELD_OUT = 96


@dataclass(frozen=True)
class Cell:
    """One PPO run."""

    ratings: int
    combine: str
    kl_coef: float
    seed: int


def cells(seeds: Iterable[int]) -> list[Cell]:
    """All combinations without a KL penalty, where over-optimisation shows, and one member at every coefficient."""
    cell_list = []
    for seed in seeds:  # the most informative cells come first, so that an interrupted study is useful
        cell_list += [Cell(size, combine, 0.0, seed) for combine in ("one", "min") for size in SIZES]
        cell_list += [Cell(size, "one", kl_coef, seed) for kl_coef in (0.05, 0.2) for size in SIZES]
        cell_list += [Cell(size, combine, 0.0, seed) for combine in ("mean", "mean_minus_std") for size in SIZES]
        cell_list += [Cell(100, "min", kl_coef, seed) for kl_coef in (0.05, 0.2)]
    return cell_list


# --- the world -----------------------------------------------------------------------------------------------------


def stage(name: str, config: str, *overrides: str) -> None:
    """Run a stage as a user does."""
    from alignment.errors import UserError

    command = [sys.executable, "-m", name, str(ROOT / "configs" / name / config), *overrides, "--overwrite"]
    done = subprocess.run(command, stdout=sys.stderr, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False)
    if done.returncode:
        raise UserError(f"the {name} stage failed with exit code {done.returncode}; its message is above")


def prepare(seed: int, *overrides: str) -> None:
    """Write the demo's data, SFT model and pairs of answers, with simulated ratings, one per pair.

    Args:
        overrides: of the SFT recipe.
    """
    import demo
    from help_desk import world
    from help_desk.labelers import LABELERS, choose
    from help_desk.rating import item_gold

    from alignment.ratings import RatingsStore

    if Path("ratings.jsonl").exists():
        return
    world.write_data(demo.DATA, seed)
    stage("sft", "demo.yaml", f"training.seed={seed}", *overrides)
    demo.sample("help-desk-sft", seed)
    rng, rows = random.Random(seed), []
    with RatingsStore(demo.RATINGS) as store:
        items = list(store.items())
    for item in items:
        first, second = item_gold(item)
        for labeler in rng.sample(LABELERS, 2):
            choice = choose(labeler, first, second, rng)
            if choice != "tie":
                texts = [completion.text for completion in item.completions]
                chosen, rejected = texts if choice == "left" else reversed(texts)
                rows.append({"prompt": item.prompt[-1]["content"], "chosen": chosen, "rejected": rejected})
    rng.shuffle(rows)
    Path("ratings.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def train_reward_models(seed: int) -> None:
    """Train an ensemble on the first N ratings for each size, with more epochs for small ones."""
    from alignment.registry import Registry

    lines = Path("ratings.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    for size in SIZES:
        name = f"reward-{size}"
        if name in Registry().names():
            continue
        Path(f"{name}.jsonl").write_text("".join(lines[:size]), encoding="utf-8")
        epochs = 4 if size < 1000 else 2
        stage(
            "reward", "demo.yaml", f"name={name}", f"registry.name={name}", f"data.train={name}.jsonl",
            "data.eval_share=0", f"training.members={MEMBERS}", f"training.num_train_epochs={epochs}",
            f"training.seed={seed}",
        )  # fmt: skip


# --- one run -------------------------------------------------------------------------------------------------------


def ppo_config(cell: Cell) -> Any:
    from alignment.config.loading import load_config
    from ppo.config import PPOStageConfig

    ensemble = {"one": "null", "mean_minus_std": "1.0"}.get(cell.combine, cell.combine)
    return load_config(
        PPOStageConfig,
        ROOT / "configs" / "ppo" / "demo.yaml",
        [
            f"model.reward=reward-{cell.ratings}", "model.held_out_reward=null",
            f"model.reward_ensemble={ensemble}", f"ppo.kl_coef={cell.kl_coef}",
            f"training.max_steps={STEPS}", f"training.seed={cell.seed}", "training.lr_scheduler_type=constant",
            "training.load_best_model_at_end=false", "tracking.wandb=disabled",
        ],
    )  # fmt: skip


def make_loop(config: Any, held_out_prompts: int, change: Callable[[Any], None] = lambda models: None) -> Any:
    """The loop of a PPO run that writes no journal.

    Args:
        change: changes the loaded models in place.
    """
    import torch

    from alignment.data.parsing import to_prompts
    from alignment.data.reading import train_and_eval
    from alignment.distributed import processes
    from alignment.registry import Registry
    from alignment.runs.journal import Journal
    from ppo.loading import load_models
    from ppo.loop import Loop
    from ppo.prompts import encode_prompts, prompt_limit
    from ppo.sources import find_models

    prompts, held_out = train_and_eval(config.data, to_prompts)
    torch.manual_seed(config.training.seed)
    models = load_models(config, find_models(config, Registry()))
    change(models)
    encoded, encoded_held_out = (
        encode_prompts(each, models.tokenizer, prompt_limit(config), config.data.too_long)[0]
        for each in (prompts.items, held_out.items[:held_out_prompts])
    )
    journal = Journal(Path("unused"), enabled=False)
    return Loop(config, models, processes.make_accelerator(), journal, encoded, encoded_held_out)


def run(cell: Cell) -> Iterator[dict[str, Any]]:
    """Yield a row for each evaluation during one PPO run."""
    from help_desk.gold import gold_score

    from ppo.prompts import prompt_batches
    from ppo.reward_model import RewardModel

    def one_member(models: Any) -> None:
        if cell.combine == "one":
            models.reward = RewardModel(models.reward.members[:1], packed=models.reward.packed)

    config = ppo_config(cell)
    loop = make_loop(config, HELD_OUT, one_member)
    batches = prompt_batches(len(loop.prompts), config.rollout.batch_size, cell.seed)
    for step in range(STEPS + 1):
        if step % EVERY == 0:
            judged = loop.evaluation.answer(step)
            gold = [
                gold_score(prompt.columns["fact"], text.strip(), ended).total
                for (prompt, _), text, ended in zip(loop.evaluation.prompts, judged.texts, judged.ended, strict=True)
            ]
            yield {
                **asdict(cell), "step": step,
                "kl": statistics.fmean(judged.kl), "proxy": statistics.fmean(judged.scores),
                "gold": statistics.fmean(gold), "gold_se": statistics.stdev(gold) / len(gold) ** 0.5,
                "length": statistics.fmean(judged.lengths),
            }  # fmt: skip
        if step < STEPS:
            loop.iterate(next(batches))


# --- the page ------------------------------------------------------------------------------------------------------


def curves(rows: Sequence[dict[str, Any]]) -> dict[Cell, list[dict[str, Any]]]:
    """Group rows by run, in the order of their steps."""
    runs: dict[Cell, list[dict[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: row["step"]):
        key = Cell(row["ratings"], row["combine"], row["kl_coef"], row["seed"])
        runs.setdefault(key, []).append(row)
    return runs


def table(runs: dict[Cell, list[dict[str, Any]]]) -> str:
    """A Markdown table with the means over seeds for each setting."""
    lines = [
        "| ratings | reward | KL coef | seeds | gold, start | gold, best | at KL | gold, last | at KL | proxy, last |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    settings = dict.fromkeys((cell.ratings, cell.combine, cell.kl_coef) for cell in runs)
    for setting in sorted(settings, key=lambda s: (s[2], s[0], COMBINATIONS.index(s[1]))):
        same = [course for cell, course in runs.items() if (cell.ratings, cell.combine, cell.kl_coef) == setting]
        best = [max(course, key=lambda row: row["gold"]) for course in same]
        columns = [
            statistics.fmean(course[0]["gold"] for course in same), statistics.fmean(row["gold"] for row in best),
            statistics.fmean(row["kl"] for row in best), statistics.fmean(course[-1]["gold"] for course in same),
            statistics.fmean(course[-1]["kl"] for course in same), statistics.fmean(c[-1]["proxy"] for c in same),
        ]  # fmt: skip
        head = f"| {setting[0]} | {setting[1].replace('_', ' ')} | {setting[2]} | {len(same)} |"
        lines.append(head + "".join(f" {value:.2f} |" for value in columns))
    return "\n".join(lines)


def draw(runs: dict[Cell, list[dict[str, Any]]]) -> None:
    """Plot gold and proxy against sqrt(KL) without a KL penalty, with a panel for each number of ratings."""
    from matplotlib.figure import Figure  # slow to import

    figure = Figure(figsize=(14, 3.8), layout="constrained")
    panels = figure.subplots(1, len(SIZES), sharey=True)
    colours = dict(zip(COMBINATIONS, ("#1b6ca8", "#7a7a7a", "#b3541e", "#3f7d3f"), strict=True))
    for panel, size in zip(panels, SIZES, strict=True):
        panel.set_title(f"{size} ratings")
        panel.set_xlabel("sqrt(KL from SFT), nats")
        for cell, course in runs.items():
            if (cell.ratings, cell.kl_coef) != (size, 0.0):
                continue
            x = [max(row["kl"], 0.0) ** 0.5 for row in course]
            colour = colours[cell.combine]
            label = cell.combine.replace("_", " ") if cell.seed == min(c.seed for c in runs) else None
            panel.plot(x, [row["gold"] for row in course], color=colour, label=label)
            panel.plot(x, [row["proxy"] for row in course], color=colour, linestyle=":", alpha=0.7)
    panels[0].set_ylabel("score")
    panels[0].legend(title="gold solid, proxy dotted", fontsize=8, title_fontsize=8)
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(PICTURE, dpi=110)


def write_page(rows: Sequence[dict[str, Any]]) -> None:
    """Write the picture and the table between the page's markers; the rest of the page is kept."""
    runs = curves(rows)
    draw(runs)
    write_table(PAGE, "Over-optimisation", table(runs))


def write_table(page: Path, title: str, lines: str) -> None:
    """Write a table between the markers of a page; the rest of the page is kept."""
    start, end = "<!-- table -->", "<!-- end -->"
    text = page.read_text(encoding="utf-8") if page.exists() else f"# {title}\n\n{start}\n{end}\n"
    before, _, rest = text.partition(start)
    page.write_text(f"{before}{start}\n{lines}\n{end}{rest.partition(end)[2]}", encoding="utf-8")


def append_runs(path: Path, wanted: Sequence[T], run: Callable[[T], Iterable[dict[str, Any]]], *shown: str) -> None:
    """Append the rows of each run, when it is complete.

    Args:
        shown: figures of a run's last row for the progress line.
    """
    from alignment.terminal import progress

    with progress("runs", len(wanted)) as line:
        for cell in wanted:
            rows = list(run(cell))
            with path.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(row) + "\n" for row in rows)
            line.advance(1, **{name: rows[-1][name] for name in shown})


def read_rows(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Gold against proxy reward over the KL, for reward models of different quality.",
        epilog="example: scripts/study.py overoptimisation --seeds 0 1 2",
    )
    parser.add_argument("--home", type=Path, default=Path("runs/overoptimisation"), help="working folder")
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[0], help="seeds of PPO; data and models use the first one"
    )
    parser.add_argument("--quick", action="store_true", help="one run only")
    parser.add_argument("--page", action="store_true", help="only write the page from existing rows")
    parser.add_argument("--json", action="store_true", help="all rows as one JSON object on stdout")
    options = parser.parse_args(argv)
    from alignment.errors import UserError
    from alignment.training.stage import quiet_libraries

    quiet_libraries()
    options.home.mkdir(parents=True, exist_ok=True)
    os.chdir(options.home)
    path = Path("rows.jsonl")
    try:
        if not options.page:
            prepare(options.seeds[0])
            train_reward_models(options.seeds[0])
            done = {cell for cell, course in curves(read_rows(path)).items() if course[-1]["step"] == STEPS}
            wanted = [cell for cell in cells(options.seeds) if cell not in done][: 1 if options.quick else None]
            append_runs(path, wanted, run, "gold", "proxy")
        rows = read_rows(path)
        if not options.quick:
            write_page(rows)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.json:
        print(json.dumps({"rows": rows}))
    return 0
