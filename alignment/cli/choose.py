"""`alignment choose`: which base model is nearest to a text."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from alignment.cli.early import check_data, columns_of
from alignment.distributed.ticker import ticking
from alignment.errors import UserError
from alignment.models.names import check_name
from alignment.registry import Registry
from alignment.terminal import clean, one_line, screen
from alignment.training.stage import quiet_libraries

ABOUT = """Which base model is nearest to your text: bits per byte under each, comparable across tokenizers.

  {0} qwen llama-1b ./my-base --data mine.jsonl

Texts count whole; of chats and other rows with answers the answers count, in each model's own chat template (`plain`
where it has none). Beside the bits: tokens per word, size, context, license, and the memory to fine-tune it. The scores
are kept in --out: after a kill the same command goes on.
"""


def main(argv: Sequence[str] | None = None, called: str = "alignment choose") -> int:
    """Parse the command line and do what it says. Exit code 2 for a mistake in it or in the data."""
    args = _parse(argv, called)
    quiet_libraries()
    try:
        _check(args)
        with ticking("choose"):
            found = _choose(args)
    except UserError as error:
        print(f"error: {one_line(str(error))}", file=sys.stderr)
        return 2
    for name, reason in found["failed"].items():
        print(f"left out: {one_line(f'{name}: {reason}')}", file=sys.stderr)
    if args.json:
        print(json.dumps(found, indent=2))
    else:
        _show(found)
    return 0


def _parse(argv: Sequence[str] | None, called: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=called,
        description=ABOUT.format(called),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"example: {called} qwen llama-1b --data mine.jsonl",
    )
    parser.add_argument("models", nargs="+", help="registry references, folders or hub names")
    parser.add_argument("--data", required=True, help="a file or folder of texts, chats or other rows with answers")
    parser.add_argument("--out", type=Path, help="folder for the scores (default: choose/DATA)")
    parser.add_argument("--format", default="auto", help="the shape of the rows, if their keys do not tell")
    parser.add_argument("--column", action="append", metavar="OURS=THEIRS", help="rename a column")
    parser.add_argument("--batch-size", type=int, default=64, help="rows that are saved at a time (default 64)")
    parser.add_argument("--template", help="one chat template for all, as a config's model.template")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of the weights")
    parser.add_argument("--trust-remote-code", action="store_true", help="run code that comes with a hub model")
    parser.add_argument("--registry", help="registry folder (default: $ALIGNMENT_REGISTRY or ./registry)")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    return parser.parse_args(argv)


def _check(args: argparse.Namespace) -> None:
    """Find mistakes before torch is imported. One unknown model of several is told with the result."""
    if args.batch_size < 1:
        raise UserError(f"--batch-size {args.batch_size}: expected 1 or more")
    check_data(args.data, "--data")
    registry, unknown = Registry(args.registry), []
    for name in args.models:
        try:
            check_name(name, registry, ("policy", "reward", "value"))
        except UserError as error:
            unknown.append(error)
    if len(unknown) == len(args.models):
        raise unknown[0]


def _choose(args: argparse.Namespace) -> dict[str, Any]:
    from alignment.config.loading import validate
    from alignment.config.sections import DataConfig
    from alignment.evaluation.choosing import ChoosingJob, choose
    from alignment.evaluation.scoring import ScoringJob

    columns = columns_of(args.column)
    validate(DataConfig, {"train": args.data, "format": args.format, "columns": columns}, "choose")
    scoring = ScoringJob(args.data, args.format, columns, args.batch_size)
    job = ChoosingJob(scoring, args.dtype, args.template, args.trust_remote_code)
    out = args.out or Path("choose") / (Path(args.data).resolve().stem or "data")
    return choose(args.models, job, Registry(args.registry), out)


def _show(found: Mapping[str, Any]) -> None:
    from rich.text import Text

    from alignment.cli.common import plain_table
    from alignment.evaluation.choosing import undecided

    table = plain_table(
        "model", "bits per byte", "more than the best", "tokens per word", "parameters", "context", "GB full / LoRA",
        "license",
    )  # fmt: skip
    for row in found["models"]:
        memory = row["train_memory_gb"]
        cells = (
            row["model"],
            _interval(row["bits_per_byte"]),
            _interval(row["behind_the_best"]) if row["behind_the_best"] else "",
            f"{row['tokens_per_word']:.2f}",
            f"{row['parameters']:,}",
            f"{row['context']:,}" if row["context"] else "?",
            f"{memory['full']:.3g} / {memory['lora']:.3g}" if memory else "?",
            row["license"] or "not named",
        )
        table.add_row(*(Text(one_line(cell)) for cell in cells))
    screen().print(table)
    close = list(undecided(found))
    said = f"On {found['answers']:,} texts, {found['bytes']:,} bytes. 95% intervals over texts."
    if close:
        said += f" Not told apart from the best: {', '.join(close)}."
    print(clean(said))


def _interval(estimate: Mapping[str, Any]) -> str:
    low, high = estimate["ci"]
    return f"{estimate['value']:.3f} ({low:.3f} to {high:.3f})"
