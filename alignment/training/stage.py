"""What `python -m sft`, `-m reward` and `-m ppo` share: the command line, exit codes, and the run folder.

Exit codes: 0 done, 2 the user's config or data is wrong, 75 preempted (start it again), 1 anything else. The main
process also writes `RUN/exit.json`, because a launcher turns every code but 0 into 1.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import json
import logging
import os
import shlex
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from alignment.config.loading import load_config
from alignment.config.sections import RunConfig
from alignment.distributed import heartbeat
from alignment.distributed.launch_files import check_launch, refuse_deepspeed_launcher
from alignment.distributed.ticker import ticking
from alignment.errors import Preempted, UserError
from alignment.redaction import without_secrets
from alignment.runs import resume, signals
from alignment.runs.checkpoint import FOLDER
from alignment.runs.run import write_exit
from alignment.terminal import one_line, say

STAGES = ("sft", "reward", "ppo")
ConfigT = TypeVar("ConfigT", bound=RunConfig)


def run_stage(
    stage: str,
    config_class: type[ConfigT],
    train: Callable[[ConfigT], Mapping[str, Any]],
    plan: Callable[[ConfigT, int], Mapping[str, Any]],
    argv: Sequence[str] | None = None,
    *,
    options: Sequence[argparse.ArgumentParser] = (),
    study: Callable[[ConfigT, argparse.Namespace], str | None] = lambda config, args: None,
    settle: Callable[[ConfigT], ConfigT] = lambda config: config,
) -> int:
    """The whole command: parse, check, train; returns the exit code.

    Args:
        train: runs the stage and returns what to report (the published model, final metrics).
        plan: what would run, for `--dry-run`: batch sizes, steps, estimated memory; given the world size. It finds
            every mistake that can be found without loading weights, and writes nothing.
        options: more options of this stage (parsers with add_help=False).
        study: does what those options ask for in place of training and returns the line to print; None where they
            ask for nothing. It publishes nothing and leaves no run behind.
        settle: the config as it is to be written down, called before anything else is done with it.
    """
    _note_hidden_stages()
    parser = _parser(stage, options)
    args = parser.parse_intermixed_args(_from_sweeps(parser, sys.argv[1:] if argv is None else argv))
    quiet_libraries()
    is_main = os.environ.get("RANK", "0") == "0"
    started = time.monotonic()
    run_dir: Path | None = None
    result: dict[str, Any] = {}
    waiting = contextlib.ExitStack()
    try:
        if args.local_rank is not None:
            refuse_deepspeed_launcher(shlex.join(["-m", stage, args.config, *args.overrides]))
        check_launch()
        config = settle(load_config(config_class, args.config, args.overrides))
        heartbeat.enter("starting", patient=True)
        waiting.enter_context(ticking(f"{stage} {config.name}", is_main))
        if args.resume not in ("no", "auto") and not Path(args.resume).is_dir():
            raise UserError(f"--resume {args.resume}: no such folder; name one in {config.run_dir / FOLDER}, or auto")
        if args.dry_run:
            _show_plan(config, plan, is_main)
        elif (line := study(config, args)) is not None:
            if is_main:
                print(line)
        elif args.resume != "no" and (before := resume.finished(config.run_dir)):
            if is_main:
                print(f"{stage}: {before.get('model', 'done')}: the run in {config.run_dir} is finished already")
        else:
            from alignment.models.onednn import (
                linear_layers,  # torch: not where a plan or a mistake is all there is to say
            )

            with signals.listen(), linear_layers():
                if is_main:
                    resume.open_run_dir(config, args.overwrite, args.resume, args.allow_changes)
                run_dir = config.run_dir
                result = dict(train(config))
            if is_main:
                signals.clear(run_dir)
                seconds = time.monotonic() - started
                print(f"{stage}: {result.get('model', 'done')} in {seconds:.0f} s; run folder {run_dir}")
        code, reason = 0, "done"
    except UserError as error:
        code, reason = 2, str(error)
        # Every process finds the same mistake and one line is enough; but a file may be missing on one node alone.
        if is_main or os.environ.get("LOCAL_RANK") == "0":
            say(f"error: {one_line(str(error))}")
    except Preempted as cause:
        code, reason = signals.PREEMPTED_CODE, f"preempted: {cause}"
        if is_main:
            print(f"{stage}: {reason}; start it again with --resume auto", file=sys.stderr)
    except KeyboardInterrupt:
        code, reason = 1, "interrupted"
        print("interrupted", file=sys.stderr)
    except SystemExit as error:  # of a library: with its code the run would count as done
        code, reason = 1, f"something in the run called sys.exit({error.code})"
        traceback.print_exc()
    except Exception as error:  # noqa: BLE001 - reported in full, and in exit.json for the job script
        code, reason = 1, without_secrets(f"{type(error).__name__}: {error}")
        if line := heartbeat.explain(error):
            reason = line.removeprefix("error: ")  # not in full: the fault is another process's
        else:
            traceback.print_exc()
    if is_main and run_dir is not None:
        seconds = round(time.monotonic() - started, 1)
        write_exit(run_dir, code, without_secrets(reason), stage=stage, seconds=seconds, **result)
    if code == signals.PREEMPTED_CODE:  # which all come to: a launcher that sees one process end ends the others
        from alignment.distributed import processes  # not above: `--help` comes by here

        with contextlib.suppress(RuntimeError):  # one that was lost meanwhile
            processes.wait_for_everyone()
    heartbeat.stop(None if code == 0 else reason)
    _leave_processes()
    if is_main and run_dir is not None and _has_figures(run_dir):
        from alignment.reports.report import write_at_the_end  # Jinja is needed here alone

        write_at_the_end(run_dir)
    waiting.close()
    return code


def _parser(stage: str, options: Sequence[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"python -m {stage}",
        parents=options,
        description=f"Run the {stage} stage.",
        epilog=f"example: python -m {stage} configs/{stage}/demo.yaml training.learning_rate=2e-5",
    )
    parser.add_argument("config", help=f"YAML file, for example configs/{stage}/demo.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="dotted overrides of the file")
    parser.add_argument("--dry-run", action="store_true", help="print the resolved config and the plan, then exit")
    parser.add_argument("--overwrite", action="store_true", help="remove the folder of an earlier run of this name")
    parser.add_argument(
        "--resume",
        default="no",
        metavar="auto|PATH|no",
        help="go on with an earlier run of this name: from its newest whole checkpoint, or from the one named",
    )
    parser.add_argument("--allow-changes", action="store_true", help="resume although the config is another one now")
    parser.add_argument("--local_rank", "--local-rank", help=argparse.SUPPRESS)
    return parser


def _note_hidden_stages() -> None:
    """A user's own `reward.py` would be run by `python -m reward`, with nothing trained and exit code 0."""
    for name in STAGES:
        if os.environ.get("RANK", "0") == "0" and Path(f"{name}.py").is_file():
            say(
                f"note: in this folder `python -m {name}` runs your {name}.py; rename it, or start the stage with "
                f"`alignment {name} CONFIG`"
            )


def _from_sweeps(parser: argparse.ArgumentParser, argv: Sequence[str]) -> list[str]:
    """`--training.seed=3`, as `wandb agent` writes what it has drawn, as the override `training.seed=3`."""
    options = parser._option_string_actions
    return [
        each[2:] if each.startswith("--") and "=" in each and each.partition("=")[0] not in options else each
        for each in argv
    ]


def _has_figures(run_dir: Path) -> bool:
    """Whether the run came as far as a line of metrics.jsonl; there is nothing to see of one that did not."""
    path = run_dir / "metrics.jsonl"
    return path.exists() and path.stat().st_size > 0


def leave(code: int) -> NoReturn:
    """End this process with an exit code; the last call of `python -m STAGE`.

    One of several processes leaves without the interpreter's own shutdown: gloo's threads outlive
    `destroy_process_group`, because C++ keeps references to DeepSpeed's groups, and now and then the shutdown meets one
    of them and ends in SIGABRT, so that a finished run would count as failed.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def quiet_libraries() -> None:
    """Keep the libraries off the network and off the screen; call it before they are imported.

    Every TRL trainer reports its start to a server otherwise, and each loaded model draws a progress bar per process.
    """
    for name, value in {
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }.items():
        os.environ.setdefault(name, value)
    warnings.filterwarnings("ignore", category=FutureWarning)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # which warns, unasked, of an optional package
    logging.getLogger("DeepSpeed").addFilter(lambda record: record.levelno >= logging.ERROR)


def _show_plan(config: ConfigT, plan: Callable[[ConfigT, int], Mapping[str, Any]], is_main: bool) -> None:
    """Plan on every process of a launch, since planning joins them; print on the main one."""
    with contextlib.redirect_stdout(sys.stderr):  # some libraries greet when they are imported
        planned = plan(config, int(os.environ.get("WORLD_SIZE", "1")))
    if is_main:
        report = {"config": config.model_dump(mode="json"), "plan": planned}
        print(json.dumps(report, indent=2, ensure_ascii=False))


def _leave_processes() -> None:
    if "torch" in sys.modules:
        import torch.distributed

        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def write_bad_rows(run_dir: Path, bad: Sequence[tuple[str, str]], notes: Sequence[str] = ()) -> None:
    """Keep the rows that were set aside, with the reason, in `RUN/bad_rows.jsonl`, and say how many there are.

    Args:
        notes: what else happened to rows, a line each.
    """
    for note in notes:
        print(one_line(note), file=sys.stderr)
    if not bad:
        return
    path = run_dir / "bad_rows.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for where, reason in bad:
            file.write(json.dumps({"where": where, "reason": reason}, ensure_ascii=False) + "\n")
    print(f"{len(bad)} rows set aside, listed in {path}; the first: {one_line(': '.join(bad[0]))}", file=sys.stderr)
