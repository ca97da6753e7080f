"""`alignment sample`, and scripts/sample.py, which is a door to it: models answer prompts, for people to rate."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from alignment.distributed.ticker import ticking
from alignment.errors import UserError
from alignment.terminal import one_line
from alignment.training.stage import quiet_libraries

MOST_RANKED = 9
ABOUT = """Draw completions for rating: prompts and a model in, pairs in a ratings database out.

  {0} help-desk-sft --prompts prompts.jsonl --db ratings.db --k 2
  {0} help-desk-sft@v1 help-desk-ppo@v1 --prompts prompts.jsonl --db ratings.db
  {0} help-desk-sft --prompts prompts.jsonl --db ratings.db --k 4 --kind rank

Each prompt gets K completions, drawn from the models in turn. Every two of them become one item, or all of them one to
rank, or each by itself one to rate from 1 to 7 (--kind). Which model made which is stored, and never shown to a
labeler. Each batch is saved as it is drawn: the same command again draws only what is missing.
"""


def main(argv: Sequence[str] | None = None, called: str = "alignment sample") -> int:
    """Parse the command line and do what it says. Exit code 2 for a mistake in it or in the data.

    Args:
        called: the command as a person types it, for help and messages.
    """
    args = _parse(argv, called)
    quiet_libraries()
    try:
        _check(args)
        with ticking("sample"):
            counts = _sample(args)
    except UserError as error:
        print(f"error: {one_line(str(error))}", file=sys.stderr)
        return 2
    if args.json:
        print(json.dumps(counts))
    else:
        print(
            f"{counts['items']} items in {counts['db']} from {', '.join(counts['models'])}"
            f" ({counts['same']} {'pairs' if args.kind == 'pair' else 'answers'} left out: the same as another)"
            f"\nrate them: {called.replace('sample', 'rate')} --db {counts['db']} --labeler NAME"
        )
    return 0


def _parse(argv: Sequence[str] | None, called: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=called.removeprefix("scripts/"),
        description=ABOUT.format(called),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"example: {called} help-desk-sft --prompts prompts.jsonl --db ratings.db --k 2",
    )
    parser.add_argument("models", nargs="+", help="registry references, folders or hub names")
    parser.add_argument("--prompts", required=True, help="a data file; the prompt of each row is used")
    parser.add_argument("--db", required=True, type=Path, help="ratings database, made if it is missing")
    parser.add_argument("--k", type=int, default=2, help="completions per prompt (default 2)")
    parser.add_argument(
        "--kind", choices=["pair", "rank", "single"], default="pair", help="every two, all to rank, or one by one"
    )
    parser.add_argument("--need", type=int, default=1, help="labelers per item (default 1)")
    parser.add_argument("--limit", type=int, help="use only the first N prompts")
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--template", help="a chat template for models that have none, as a config's model.template")
    parser.add_argument("--eos-token", help="the end token of models that name none, as a config's model.eos_token")
    parser.add_argument("--registry", help="registry folder (default: $ALIGNMENT_REGISTRY or ./registry)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    return parser.parse_args(argv)


def _check(args: argparse.Namespace) -> None:
    minimums = {
        "k": 1 if args.kind == "single" else 2,
        "need": 1,
        "limit": 1,
        "max_new_tokens": 1,
        "temperature": 0,
        "batch_size": 1,
        "seed": 0,
    }
    for name, bound in minimums.items():
        value = getattr(args, name)
        if value is not None and not bound <= value < 2**32:  # a NaN neither
            raise UserError(f"--{name.replace('_', '-')} {value}: expected {bound} or more, below 2**32")
    if args.kind == "rank" and args.k > MOST_RANKED:
        raise UserError(f"--k {args.k}: expected {MOST_RANKED} or fewer completions to rank")


def _sample(args: argparse.Namespace) -> dict[str, Any]:
    from alignment.config.sections import DataConfig
    from alignment.data.parsing import to_prompts
    from alignment.data.reading import read_records
    from alignment.labeling.sampling import sample_into

    return sample_into(
        args.db,
        args.models,
        read_records(args.prompts, to_prompts, DataConfig(train=args.prompts)).items[: args.limit],
        registry_path=args.registry,
        k=args.k,
        need=args.need,
        kind=args.kind,
        max_new_tokens=args.max_new_tokens,
        temperature=args.temperature,
        batch_size=args.batch_size,
        seed=args.seed,
        template=args.template,
        eos_token=args.eos_token,
    )
