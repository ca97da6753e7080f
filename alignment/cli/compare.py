"""`alignment compare`: two or more models answer the same prompts, and judges say whose answers are better."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignment.cli.early import check_data, columns_of
from alignment.cli.recorded import add_record_options, keep, say_recorded
from alignment.cli.unread import refuse_unread
from alignment.distributed.ticker import ticking
from alignment.errors import UserError
from alignment.evaluation.judge_names import check_judges
from alignment.models.names import check_name, split_head
from alignment.registry import Registry
from alignment.terminal import clean, one_line, screen
from alignment.training.stage import quiet_libraries

if TYPE_CHECKING:
    from alignment.evaluation.comparison import ComparisonSetup
    from alignment.evaluation.drawing import DrawOptions
    from alignment.evaluation.judgments import BoutJudge
    from alignment.evaluation.prompts import PromptSet
    from alignment.evaluation.sides import SideSpec

ABOUT = """Compare models on the same prompts: who wins, by whom judged, and how sure.

  {0} help-desk-sft help-desk-ppo --prompts held_out.jsonl --by reward=help-desk-reward
  {0} help-desk-sft help-desk-ppo --prompts held_out.jsonl --by people --db votes.db
  {0} help-desk-sft 'prompted=help-desk-base?system=prompt.txt&examples=few.jsonl' --prompts held_out.jsonl \\
      --by references --by 'model=http://127.0.0.1:8000/v1#judge'
  {0} help-desk-sft help-desk-ppo --prompts guardrails.jsonl --by refusals --by json=answer.schema.json
  {0} --answers compares/help-desk-sft-v1-against-help-desk-ppo-v1/answers.jsonl --by python=judges.py:short

A side is [NAME=]MODEL[?key=value&...]: a registry reference, a folder, a hub name, http://HOST/v1#MODEL, or a file with
answers; the keys are system, examples, shots, context, template and eos_token. Answers are kept as they are drawn: the
same command again draws and judges only what is missing. The result becomes an evaluation of each version.
"""


def main(argv: Sequence[str] | None = None, called: str = "alignment compare") -> int:
    """Parse the command line and do what it says. Exit code 2 for a mistake in it or in the data."""
    parser = _parser(called)
    args = parser.parse_args(argv)
    args.command = f"alignment compare {shlex.join(sys.argv[1:] if argv is None else argv)}"
    quiet_libraries()
    try:
        _check(args, parser)
        _check_names(args)
        with ticking("compare"), contextlib.redirect_stdout(sys.stderr):  # some libraries greet when they are imported
            shown = _compare(args)
    except UserError as error:
        print(f"error: {one_line(str(error))}", file=sys.stderr)
        return 2
    if shown is not None:
        _show(args, *shown)
    return 0


def _parser(called: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=called, description=ABOUT.format(called), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sides", nargs="*", metavar="SIDE", help="[NAME=]MODEL[?key=value&...], two or more")
    parser.add_argument("--sides", dest="sides_file", type=Path, help="a YAML file of sides, `NAME: {model: ...}`")
    parser.add_argument("--prompts", help="a data file; the prompt of each row is used")
    parser.add_argument("--answers", type=Path, help="judge the answers of this file again; nothing is drawn")
    parser.add_argument(
        "--by", action="append", default=[], metavar="JUDGE",
        help="people, reward=REF, python=FILE.py:FUNCTION, model=http://HOST/v1#NAME, references[=exact|f1|chrf], "
        "json[=SCHEMA.json], refusals[=COLUMN], consistency=COLUMN, support=COLUMN; several times for several judges",
    )  # fmt: skip
    parser.add_argument("--judge-model", metavar="MODEL", help="reads refusals and support (default: phrases, words)")
    parser.add_argument("--db", type=Path, help="the ratings file of --by people, made if it is missing")
    parser.add_argument("--need", type=int, default=1, help="labelers per pair (default 1)")
    parser.add_argument(
        "--slice", action="append", default=[], metavar="COLUMN", help="figures by this column, gaps too"
    )
    parser.add_argument(
        "--price-per-hour", action="append", default=[], metavar="[SIDE=]PRICE",
        help="of the machine that answers, for the price of 1,000 answers",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, help="folder of the comparison (default: compares/A-against-B)")
    parser.add_argument("--column", action="append", metavar="OURS=THEIRS", help="rename a column of the prompts")
    parser.add_argument("--limit", type=int, help="use only the first N prompts")
    parser.add_argument("--max-new-tokens", type=int, default=256)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--concurrency", type=int, default=8, help="requests to an endpoint at a time (default 8)")
    parser.add_argument("--key-env", help="environment variable with the endpoints' key (default OPENAI_API_KEY)")
    parser.add_argument("--registry", help="registry folder (default: $ALIGNMENT_REGISTRY or ./registry)")
    add_record_options(parser)
    parser.add_argument("--wandb", action="store_true", help="tell W&B the result too; WANDB_MODE says where")
    parser.add_argument("--wandb-text", action="store_true", help="with --wandb: the answers and the page too")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    return parser


def _check(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    minimums = {
        "need": 1, "limit": 1, "max_new_tokens": 1, "temperature": 0, "batch_size": 1, "concurrency": 1, "seed": 0
    }  # fmt: skip
    for name, bound in minimums.items():
        value = getattr(args, name)
        if value is not None and not bound <= value < 2**32:  # a NaN neither
            raise UserError(f"--{name.replace('_', '-')} {value}: expected {bound} or more, below 2**32")
    if (args.answers is None) == (args.prompts is None):
        raise UserError("give either --prompts FILE, to draw answers, or --answers FILE, to judge those of a file")
    if args.answers is not None and args.sides_file is not None:
        raise UserError("--sides: the sides are in --answers already; take it out")
    if args.answers is not None:
        drawn = ("temperature", "max_new_tokens", "column")
        refuse_unread(args, parser, drawn, "the answers of --answers are drawn already; take it out")
    if "people" not in args.by:
        refuse_unread(args, parser, ("need",), "read by --by people alone; add --by people --db FILE")
    if args.wandb_text and not args.wandb:
        raise UserError("--wandb-text: nothing is told to W&B; add --wandb")
    if args.key_env and not os.environ.get(args.key_env, "").strip():
        raise UserError(f"--key-env {args.key_env}: this environment variable is not set; put the key into it")


def _check_names(args: argparse.Namespace) -> None:
    """Find files, models and judges that are not there, before torch is imported."""
    registry = Registry(args.registry)
    check_judges(args.by, registry, args.db, args.judge_model)
    if args.answers is not None:
        if not args.answers.is_file():
            raise UserError(f"--answers {args.answers}: no such file; name the answers.jsonl of a comparison")
        return
    check_data(args.prompts, "--prompts")
    specs = _specs(args)
    if len(specs) < 2:
        raise UserError(
            f"{len(specs)} side{'s' * (len(specs) != 1)} to compare; name two or more: "
            "alignment compare A B --prompts FILE"
        )
    for spec in specs:
        if not spec.is_elsewhere:
            check_name(spec.model, registry, "policy")
        if spec.chosen_by is not None:
            check_name(split_head(spec.chosen_by)[0], registry, "reward")


def _specs(args: argparse.Namespace) -> list[SideSpec]:
    """The sides as they are asked for, with their files read."""
    from alignment.evaluation.sides import parse_side, read_sides  # imported late: --help does without

    return [parse_side(text) for text in args.sides] + (read_sides(args.sides_file) if args.sides_file else [])


def _compare(args: argparse.Namespace) -> tuple[dict[str, Any], list[BoutJudge]] | None:
    """The result with the judges that made it; None where nobody judges."""
    from alignment.evaluation.comparison import judge_all, write_result
    from alignment.evaluation.mirroring import mirror_result
    from alignment.evaluation.page import write_page
    from alignment.evaluation.recording import comparison_records

    registry = Registry(args.registry)
    comparison, judges, folder = (_read if args.answers else _drawn)(args, registry)
    if not judges:
        print(f"answers are in {clean(str(folder))}; say who judges with --by, in the same command", file=sys.stderr)
        return None
    result = judge_all(comparison, judges, registry, folder)
    write_result(folder, result)
    recorded = [] if args.no_record else keep(registry, comparison_records(registry, result), args.record)
    page = write_page(folder, result, comparison.contest)
    if args.wandb:
        mirror_result(folder, result, comparison.contest, page, text=args.wandb_text)
    shown = {"folder": str(folder), "page": None if page is None else str(page), "recorded": recorded}
    return {**result, **shown}, judges


def _drawn(args: argparse.Namespace, registry: Registry) -> tuple[ComparisonSetup, list[BoutJudge], Path]:
    """The comparison whose answers this command draws, as far as they are missing."""
    from alignment.evaluation.answers import AnswerSettings, AnswersFile
    from alignment.evaluation.comparison import ANSWERS
    from alignment.evaluation.costs import parse_prices
    from alignment.evaluation.drawing import DrawOptions, draw, named, open_side
    from alignment.evaluation.prompts import check_folder, comparison_of, read_prompts

    settings = AnswerSettings(args.seed, args.temperature, args.max_new_tokens)
    key = os.environ[args.key_env].strip() if args.key_env else None
    options = DrawOptions(args.batch_size, args.concurrency, key)
    prompts = read_prompts(args.prompts, args.limit, args.slice, columns_of(args.column))
    sides = named([open_side(spec, registry, settings, options) for spec in _specs(args)])
    folder = args.out or Path("compares") / "-against-".join(_as_folder(side.name) for side in sides)
    check_folder(folder, prompts)
    labels = {side.name: str(side.identity["model"]) for side in sides}
    judges = _judges(args, prompts, labels, registry, options)
    prices = parse_prices(args.price_per_hour, list(labels))
    with AnswersFile(folder / ANSWERS, settings) as file:
        draw(file, sides, prompts.items)
        comparison = comparison_of(file.content, list(labels), prompts, args.slice, args.seed)
    return replace(comparison, prices=prices), judges, folder


def _read(args: argparse.Namespace, registry: Registry) -> tuple[ComparisonSetup, list[BoutJudge], Path]:
    """The comparison whose answers are in a file."""
    from alignment.evaluation.answers import read_answers
    from alignment.evaluation.costs import parse_prices
    from alignment.evaluation.drawing import DrawOptions
    from alignment.evaluation.prompts import answered_prompts, check_folder, comparison_of

    content = read_answers(args.answers)
    names = args.sides or list(content.answers)
    prompts = answered_prompts(content, names, args.limit, args.slice)
    labels = {name: str(content.sides[name]["model"]) for name in names}
    key = os.environ[args.key_env].strip() if args.key_env else None
    options = DrawOptions(args.batch_size, args.concurrency, key)
    judges = _judges(args, prompts, labels, registry, options)
    if not judges:
        raise UserError("--answers: say who judges with --by, as in --by people --db ratings.db")
    comparison = comparison_of(content, names, prompts, args.slice, args.seed)
    prices = parse_prices(args.price_per_hour, names)
    folder = args.out or args.answers.parent
    if folder.resolve() != args.answers.parent.resolve():
        check_folder(folder, prompts)
    return replace(comparison, prices=prices), judges, folder


def _judges(
    args: argparse.Namespace, prompts: PromptSet, labels: dict[str, str], registry: Registry, options: DrawOptions
) -> list[BoutJudge]:
    from alignment.evaluation.judging import open_judges

    return open_judges(
        args.by, prompts.items, labels, registry, options, args.db, args.need, args.judge_model, args.command
    )


def _as_folder(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", name).strip("-.")[-60:] or "side"


def _show(args: argparse.Namespace, result: dict[str, Any], judges: Sequence[BoutJudge]) -> None:
    from alignment.evaluation.people import PeopleJudge, rating_command
    from alignment.evaluation.result_text import sentences, tables

    if args.json:
        print(json.dumps(result))
        return
    output = screen()
    for line in sentences(result):
        output.print(one_line(line))
    output.print()
    people = next((judge for judge in judges if isinstance(judge, PeopleJudge)), None)
    for table in tables(result, people.labelers if people else None, boxed=output.is_terminal):
        output.print(table)
        output.print()
    for judge in judges:
        for note in judge.notes:
            print(one_line(f"{judge.identity.name}: {note}"), file=sys.stderr)
    if people is not None:
        counts = people.counts
        print(f"{counts.rated} of {counts.items} pairs are rated ({counts.votes} votes)", file=sys.stderr)
        if counts.rated < counts.items:
            print(clean(f"rate: {rating_command(args.db)}; then give this command again"), file=sys.stderr)
    say_recorded(result["recorded"])
    print(clean(f"answers, judgments and result are in {result['folder']}"), file=sys.stderr)
    if result["page"] is not None:
        print(clean(f"page: {result['page']}"), file=sys.stderr)
