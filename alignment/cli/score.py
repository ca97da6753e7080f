"""`alignment score`: what a reward model or a policy says of answers, from a file or as PPO's reward service."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from alignment.cli.early import check_model_and_file, columns_of
from alignment.cli.recorded import add_record_options, keep, say_recorded
from alignment.cli.unread import refuse_unread
from alignment.distributed.ticker import ticking
from alignment.errors import UserError
from alignment.models.names import split_head
from alignment.registry import Registry
from alignment.registry.manifest import Role
from alignment.terminal import clean, one_line
from alignment.training.stage import quiet_libraries

TOKEN_VARIABLE = "ALIGNMENT_SCORE_TOKEN"  # noqa: S105 - a name
ROLES: tuple[Role, ...] = ("reward", "policy", "value")
OF_SERVICE = ("host", "port", "microbatch_tokens", "combine", "no_packing", "bf16")
ABOUT = """Score every row of a file, in order: by a reward model, or (a policy) by the log-probability of each answer.

  {0} help-desk-reward pairs.jsonl --out scores.jsonl
  accelerate launch -m alignment.cli.main score help-desk-reward pairs.jsonl --out scores.jsonl
  {0} help-desk-reward --serve --port 8100

Pairs, rankings, ratings, completions, chats and (a policy) texts are read. A line for each row is written as soon as
its batch is done: after a kill the same command goes on, with any number of processes, and the file is the same to the
byte. --serve answers PPO's rewards.others[].url instead, so that a large reward model can run elsewhere.
"""


def main(argv: Sequence[str] | None = None, called: str = "alignment score") -> int:
    """Parse the command line and do what it says. Exit code 2 for a mistake in it or in the data."""
    parser = _parser(called)
    args = parser.parse_args(argv)
    quiet_libraries()
    try:
        _check(args, parser)
        with ticking("score", os.environ.get("RANK", "0") == "0"):
            if args.serve:
                return _serve(args)
            found = _score(args)
    except UserError as error:
        print(f"error: {one_line(str(error))}", file=sys.stderr)
        return 2
    if found:  # the main process
        print(json.dumps(found, indent=2) if args.json else clean("\n".join(text_lines(found))))
        if not args.json:
            say_recorded(found["recorded"])
    return 0


def _parser(called: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=called,
        description=ABOUT.format(called),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"example: {called} help-desk-reward pairs.jsonl --out scores.jsonl",
    )
    parser.add_argument("model", help="a registry reference, folder or hub name; REF#HEAD: one head of a reward model")
    parser.add_argument("file", nargs="?", help="a data file or folder of any shape with answers")
    parser.add_argument("--out", type=Path, help="a JSON line for each row goes here (.jsonl)")
    parser.add_argument("--format", default="auto", help="the shape of the rows, if their keys do not tell")
    parser.add_argument("--column", action="append", metavar="OURS=THEIRS", help="rename a column")
    parser.add_argument("--batch-size", type=int, default=64, help="rows that are written at a time (default 64)")
    parser.add_argument(
        "--max-length", type=int, help="tokens of a row; longer prompts are trimmed (default: as trained)"
    )
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of the weights")
    parser.add_argument("--template", help="a chat template for a policy that has none, as a config's model.template")
    parser.add_argument("--eos-token", help="the end token of a policy that names none, as a config's model.eos_token")
    parser.add_argument("--trust-remote-code", action="store_true", help="run code that comes with a hub model")
    parser.add_argument("--registry", help="registry folder (default: $ALIGNMENT_REGISTRY or ./registry)")
    add_record_options(parser)
    parser.add_argument("--json", action="store_true", help="the summary as one JSON object on stdout")
    service = parser.add_argument_group("the service")
    service.add_argument("--serve", action="store_true", help="answer PPO's rewards.others[].url over HTTP")
    service.add_argument("--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1)")
    service.add_argument("--port", type=int, default=8100, help="0: a free one (default 8100)")
    service.add_argument(
        "--microbatch-tokens", type=int, default=2048, help="training.microbatch_tokens of the run (default 2048)"
    )
    service.add_argument("--combine", help="of an ensemble: mean, min, or a number, as model.reward_ensemble")
    service.add_argument("--no-packing", action="store_true", help="rows with padding, as training.packing=false")
    service.add_argument(
        "--bf16", action=argparse.BooleanOptionalAction, help="as training.bf16 (default: where the GPU has it)"
    )
    return parser


def _check(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    if args.serve and (args.file or args.out):
        raise UserError("--serve scores what it is asked over HTTP; leave FILE and --out out")
    if not args.serve and not args.file:
        raise UserError("which file? alignment score MODEL FILE; or --serve to answer over HTTP")
    if args.serve:
        of_files = ("format", "column", "batch_size", "dtype", "template", "eos_token", "record", "no_record", "json")
        refuse_unread(args, parser, of_files, "read for a file alone; --serve takes what PPO's process does")
    else:
        refuse_unread(args, parser, OF_SERVICE, "read with --serve alone; take it out")
    for name in ("batch_size", "microbatch_tokens", "max_length"):
        if (value := getattr(args, name)) is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} {value}: expected 1 or more")
    if not 0 <= args.port < 2**16:
        raise UserError(f"--port {args.port}: expected 0 to 65535")
    if not args.serve:
        check_model_and_file("alignment score", split_head(args.model)[0], args.file, Registry(args.registry), ROLES)


def _options(args: argparse.Namespace) -> Any:
    from alignment.config.loading import validate
    from alignment.config.sections import ModelConfig

    names = ("template", "eos_token", "dtype", "trust_remote_code")
    given = {name: getattr(args, name) for name in names if getattr(args, name)}
    return validate(ModelConfig, {"name": args.model, **given}, "score")


def _score(args: argparse.Namespace) -> dict[str, Any]:
    from alignment.config.loading import validate
    from alignment.config.sections import DataConfig
    from alignment.distributed import processes
    from alignment.evaluation.recording import score_records
    from alignment.evaluation.scorers import load_scorer
    from alignment.evaluation.scoring import ScoringJob, score_file

    columns = columns_of(args.column)
    validate(DataConfig, {"train": args.file, "format": args.format, "columns": columns}, "score")
    processes.start_processes()
    registry = Registry(args.registry)
    scorer = load_scorer(args.model, registry, _options(args), args.max_length, several_heads=True)
    job = ScoringJob(args.file, args.format, columns, args.batch_size)
    found = score_file(scorer, job, args.out)
    if not processes.is_main_process():
        return {}
    return found | {"recorded": [] if args.no_record else keep(registry, score_records(registry, found), args.record)}


def _serve(args: argparse.Namespace) -> int:
    from alignment.cli.stages import own_module

    own_module("ppo", "scoring_service").serve(
        args.model,
        registry=args.registry,
        host=args.host,
        port=args.port,
        token=os.environ.get(TOKEN_VARIABLE) or None,
        microbatch_tokens=args.microbatch_tokens,
        max_length=args.max_length or 1024,
        packing=not args.no_packing,
        bf16=args.bf16,
        combine=args.combine,
        trust_remote_code=args.trust_remote_code,
    )
    return 0


def text_lines(found: Mapping[str, Any]) -> list[str]:
    """The summary in words."""
    kind = "scores by" if found["role"] == "reward" else "log-probabilities under"
    model = found["model"] + (f"#{found['head']}" if "head" in found else "")
    lines = [f"{found['completions']:,} answers in {found['rows']:,} rows, {kind} {model}"]
    lines += [
        f"{name}: mean {each['mean']:.4g} ({each['mean_ci'][0]:.4g} to {each['mean_ci'][1]:.4g}), standard deviation "
        f"{each['std']:.4g}"
        for name, each in ({"score": found} if "mean" in found else found.get("heads", {})).items()
    ]
    for name, words, unit in (
        ("bits_per_byte", "bits per byte", ""),
        ("logprob_per_token", "log-probability per token", " nats"),
        ("accuracy", "agrees with the votes", ""),
    ):
        if name in found:
            lines.append(f"{words}: {_estimate(found[name])}{unit}")
    if "rating_correlation" in found:
        lines.append(f"Spearman's correlation with the ratings: {found['rating_correlation']['spearman']:.3f}")
    if found["not_scored"]:
        lines.append(f"not scored: {found['not_scored']} rows, the first: {one_line(found['first_problem'])}")
    if found["skipped"]:
        lines.append(f"skipped: {found['skipped']} rows that hold nothing to score")
    return lines


def _estimate(estimate: Mapping[str, Any]) -> str:
    low, high = estimate["ci"]
    return f"{estimate['value']:.4g} ({low:.4g} to {high:.4g}, n={estimate['n']:,})"
