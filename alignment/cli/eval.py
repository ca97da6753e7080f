"""`alignment eval`: public tasks through lm-eval, and what training forgot."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from alignment.cli.recorded import keep, say_recorded
from alignment.cli.unread import refuse_unread
from alignment.distributed.ticker import ticking
from alignment.errors import UserError
from alignment.terminal import clean, one_line
from alignment.training.stage import quiet_libraries

ABOUT = """Evaluate a policy on lm-eval's tasks; with --before, what training changed, with paired intervals.

  {0} help-desk-ppo --tasks arc_easy,hellaswag --limit 500 --out eval.json
  {0} help-desk-ppo --before help-desk-sft --text general.txt --tasks arc_easy

--text tells forgetting by bits per byte on a general text (a file of texts, or one text, whose passages count).
--task-folder has tasks of your own, as lm-eval's YAML files. Needs the extra `eval` for --tasks. The result becomes
evaluations of the version.
"""


def main(argv: Sequence[str] | None = None, called: str = "alignment eval") -> int:
    """Parse the command line and do what it says. Exit code 2 for a mistake in it or in the data."""
    parser = _parser(called)
    args = parser.parse_args(argv)
    quiet_libraries()
    try:
        with ticking("eval"), contextlib.redirect_stdout(sys.stderr):  # lm-eval prints
            _check(args, parser)
            found = _evaluate(args)
            if args.out:
                _write(args.out, found)
    except UserError as error:
        print(f"error: {one_line(str(error))}", file=sys.stderr)
        return 2
    print(json.dumps(found, indent=2) if args.json else clean("\n".join(text_lines(found))))
    if not args.json:
        say_recorded(found["recorded"])
    return 0


def _parser(called: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=called,
        description=ABOUT.format(called),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"example: {called} help-desk-ppo --before help-desk-sft --text general.txt",
    )
    parser.add_argument("model", help="a registry reference, folder or hub name")
    parser.add_argument("--before", help="the model before training, for paired differences")
    parser.add_argument("--tasks", help="lm-eval's names, with commas between them")
    parser.add_argument("--task-folder", type=Path, help="a folder with task files of your own")
    parser.add_argument("--text", help="a general text: a file or folder of texts")
    parser.add_argument("--limit", type=int, help="questions of each task (default: all)")
    parser.add_argument("--num-fewshot", type=int, help="examples before each question (default: the task's own)")
    parser.add_argument("--chat-template", action="store_true", help="ask in the model's chat template")
    parser.add_argument("--batch-size", type=int, default=8, help="requests at a time (default 8)")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of the weights")
    parser.add_argument("--trust-remote-code", action="store_true", help="run code that comes with a hub model")
    parser.add_argument("--out", type=Path, help="write the results here too (.json)")
    parser.add_argument("--registry", help="registry folder (default: $ALIGNMENT_REGISTRY or ./registry)")
    parser.add_argument("--no-record", action="store_true", help="keep the result out of the registry")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    return parser


def _check(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    if not _tasks(args):
        if args.text is None:
            raise UserError("nothing to evaluate; name --tasks, or --text with a general text")
        names = ("task_folder", "limit", "num_fewshot", "chat_template")
        refuse_unread(args, parser, names, "read for --tasks alone; name some, or take it out")
    for name in ("limit", "batch_size"):
        if (value := getattr(args, name)) is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} {value}: expected 1 or more")


def _tasks(args: argparse.Namespace) -> tuple[str, ...]:
    return tuple(task.strip() for task in (args.tasks or "").split(",") if task.strip())


def _evaluate(args: argparse.Namespace) -> dict[str, Any]:
    from alignment.evaluation.harness import HarnessJob, evaluate
    from alignment.evaluation.recording import task_records
    from alignment.registry import Registry

    job = HarnessJob(
        tasks=_tasks(args),
        task_folder=args.task_folder,
        text=args.text,
        limit=args.limit,
        num_fewshot=args.num_fewshot,
        batch_size=args.batch_size,
        chat_template=args.chat_template,
        dtype=args.dtype,
        trust_remote_code=args.trust_remote_code,
    )
    registry = Registry(args.registry)
    found = evaluate(args.model, job, registry, args.before)
    return found | {"recorded": [] if args.no_record else keep(registry, task_records(registry, found))}


def _write(path: Path, found: Mapping[str, Any]) -> None:
    from alignment.files import disk_errors, new_file

    with disk_errors(f"--out {path}: cannot be written", UserError), new_file(path, replace=True) as part:
        part.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def text_lines(found: Mapping[str, Any]) -> list[str]:
    """The results in words."""
    before = f", before: {found['before']['model']}" if "before" in found else ""
    lines = [f"{found['model']}{before}"]
    for row in found.get("tasks", ()):
        error = f" (standard error {row['stderr']:.3g})" if row["stderr"] is not None else ""
        error = _interval(row) if row["ci"] else error
        lines.append(f"{row['task']}, {row['metric']}: {row['value']:.4g}{error}{_change(row)}")
    if text := found.get("text"):
        count = f"{text['documents']:,} documents, {text['bytes']:,} bytes"
        interval = _interval(text) if text["ci"] else ""
        lines.append(f"{text['text']}, bits per byte: {text['bits_per_byte']:.4g}{interval}{_change(text)} ({count})")
    return lines


def _interval(row: Mapping[str, Any]) -> str:
    return f" ({row['ci'][0]:.4g} to {row['ci'][1]:.4g})"


def _change(row: Mapping[str, Any]) -> str:
    if "difference" not in row:
        return ""
    change = row["difference"]
    interval = f" ({change['ci'][0]:+.4g} to {change['ci'][1]:+.4g})" if change["ci"] else " (no interval)"
    return f"; before {row['before']:.4g}, change {change['value']:+.4g}{interval}"
