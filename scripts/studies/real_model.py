"""A real model and human votes: SmolLM2-135M-Instruct, PPO and best-of-n, judged by the other half of the voters.

    scripts/study.py real_model --votes harmless-base/test.jsonl.gz --several pandalm.json --size small
    scripts/study.py real_model --size small                     resumes with the missing steps
    scripts/study.py real_model --votes FILE --quick             one tiny run of every step, minutes
    scripts/study.py real_model --size small --page              only the page, from existing rows

The votes are pairs with one vote each, as in Anthropic's HH. A fifth of the prompts is held out; the rest is split into
halves A and B by prompt. SmolLM2 is fine-tuned on the chosen answers of A (SFT). Reward models are trained on the votes
of A or of B, with several seeds. PPO and best-of-n maximise a reward model of A; those of B evaluate them. `--several`
names pairs with several votes, which measure human agreement.

Each step writes a row to HOME/rows.jsonl and is not repeated. Rows hold no text of the data; answers are in
HOME/answers-SEED.jsonl. HOME is runs/real-model/SIZE.

Cost on two free cores, at 200 tokens per second of training, 600 of scoring and 100 of sampling:

            small                                        night
    SFT     240 rows x 104 tokens, 1 pass: 4 min         516 x 143, 2 passes: 15 min, with its evaluations
    reward  6 models, 240 pairs x 135, 1 pass: 5 min     6, 516 x 183, 2 passes: 21 min; a third of it scoring
    PPO     3 x 12 iterations of 16 answers of 95        3 x 32 iterations of 32 of 120: 72 s each, 38 min a seed, of
            tokens with the prompt: 30 s, 6 min a seed   which 14 s sample, 39 s train (2 passes) and 19 s score
    answers 76 prompts x (1 + 8 + 1) x 40: 5 min a seed  140 x (1 + 16 + 1) x 45: 19 min a seed
    scores  76 x 10 x 95: 2 min, and 1 by each other     140 x 18 x 120: 9 min, and 3 by each of 5 other judges
    in all  about 1.5 hours                              about 7 hours

Measured with 0.3 to 0.45 of one core, beside other jobs: the first seed of small, with data and SFT, 49
minutes. At its rates (70 to 120 tokens a second of training, 230 to 270 of scoring, 56 of sampling) night
takes 12 hours.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "development" / "studies" / "real-model.md"
ROWS = Path("rows.jsonl")


def names(seeds: int) -> list[str]:
    """The steps in order; one seed is completed before the next, so that an interrupted study is useful."""
    steps = ["data", "sft"]
    for seed in range(seeds):
        steps += [f"reward-a-{seed}", f"reward-b-{seed}", f"ppo-{seed}", f"answers-{seed}"]
        steps += [f"score-{seed}-by-a-{seed}", f"score-{seed}-by-b-{seed}"]
    crossed = [f"score-{s}-by-{half}-{k}" for s in range(seeds) for half in "ba" for k in range(seeds) if k != s]
    return [*steps, *crossed, "several"]


def step(name: str, size: Any, rows: dict[str, dict[str, Any]], votes: Path | None, several: Path | None) -> Any:
    """A function without arguments that runs a step.

    Raises:
        UserError: the step needs a file that is not given.
    """
    from alignment.errors import UserError
    from studies.human_votes import runs

    kind, *rest = name.split("-")
    if kind == "data":
        if votes is None:
            raise UserError("the votes are missing; give them with --votes FILE")
        return partial(runs.prepare, size, votes)
    if kind == "several":
        assert several is not None
        return partial(runs.several_votes, size, several)
    if kind == "sft":
        return partial(runs.sft, size)
    if kind == "reward":
        return partial(runs.reward, size, rest[0], int(rest[1]))
    if kind == "score":
        seed, judge = int(rest[0]), f"reward-{rest[2]}-{rest[3]}"
        chooser = f"score-{seed}-by-a-{seed}"
        return partial(runs.scored, size, seed, judge, None if name == chooser else rows[chooser])
    return partial({"ppo": runs.ppo, "answers": runs.answers}[kind], size, int(rest[0]))


def read_rows(path: Path) -> dict[str, dict[str, Any]]:
    """Rows by step."""
    if not path.exists():
        return {}
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {row["step"]: row for row in rows}


def run(size: Any, votes: Path | None, several: Path | None, steps: Sequence[str]) -> None:
    """Run the steps without a row."""
    from alignment.distributed.ticker import ticking

    for name in steps:
        rows = read_rows(ROWS)
        if name in rows or (name == "several" and several is None):
            continue
        work: Callable[[], dict[str, Any]] = step(name, size, rows, votes, several)
        print(f"{time.strftime('%H:%M:%S')} {name}", file=sys.stderr, flush=True)
        started = time.monotonic()
        with ticking(name, name.startswith(("answers", "score"))):  # the stages show their own progress
            row = work()
        row = {"step": name, "seconds": round(time.monotonic() - started, 1), **row}
        with ROWS.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="SmolLM2-135M-Instruct, human votes, PPO and best-of-n, judged by the other half of the voters.",
        epilog="example: scripts/study.py real_model --votes harmless-base/test.jsonl.gz --size small",
    )
    parser.add_argument("--votes", type=Path, help="pairs with one vote each; needed once")
    parser.add_argument("--several", type=Path, help="pairs with several votes each, for the best reachable accuracy")
    parser.add_argument("--size", choices=("small", "night"), default="small", help="default small")
    parser.add_argument("--home", type=Path, help="working folder; default runs/real-model/SIZE")
    parser.add_argument("--quick", action="store_true", help="one tiny run of every step; the page goes to HOME")
    parser.add_argument("--page", action="store_true", help="only write the page from existing rows")
    parser.add_argument("--json", action="store_true", help="all rows as one JSON object on stdout")
    options = parser.parse_args(argv)
    from alignment.errors import UserError
    from alignment.training.stage import quiet_libraries
    from studies.human_votes.page import page
    from studies.human_votes.sizes import SIZES

    quiet_libraries()
    name = "quick" if options.quick else options.size
    size = SIZES[name]
    files = [None if path is None else path.resolve() for path in (options.votes, options.several)]
    home = options.home or Path("runs/real-model") / name
    home.mkdir(parents=True, exist_ok=True)
    os.chdir(home)
    steps = names(size.seeds)
    try:
        if not options.page:
            run(size, files[0], files[1], steps)
        rows = read_rows(ROWS)
        target = Path("page.md") if options.quick else PAGE
        target.write_text(page(rows, steps, name, size), encoding="utf-8")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.json:
        print(json.dumps({"rows": list(rows.values())}))
    return 0
