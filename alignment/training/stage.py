"""The command line of `python -m sft`, `-m reward` and `-m ppo`: options, exit codes, and the run folder.

Exit codes: 0 done; 2 a `UserError`, which has a one-line message (a wrong config or data, and also training that
diverged, a reward service that does not answer); 75 preempted (start it again); 1 anything else, also a full disk. The
main process also writes `RUN/exit.json`, because a launcher turns every code but 0 into 1.
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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from alignment.config.flags import overrides_of_flags
from alignment.config.loading import load_config
from alignment.config.reference import as_text, find_keys
from alignment.config.sections import RunConfig
from alignment.distributed import heartbeat
from alignment.distributed.build_locks import warn_about_stale_locks
from alignment.distributed.launch_files import check_launch, join_slurm_step, refuse_deepspeed_launcher
from alignment.distributed.positions import own_path
from alignment.distributed.ticker import ticking
from alignment.errors import Preempted, UserError
from alignment.files import disk_fault
from alignment.redaction import without_secrets
from alignment.runs import lease, resume, signals
from alignment.runs.checkpoint import FOLDER, committed
from alignment.runs.run import write_exit
from alignment.runs.starting import leave_with, release_signals
from alignment.runs.watcher import watching
from alignment.terminal import one_line, say

STAGES = ("sft", "reward", "ppo")
ConfigT = TypeVar("ConfigT", bound=RunConfig)


@dataclass
class _Attempt:
    """One call of a stage's command, with what it reports at the end."""

    stage: str
    args: argparse.Namespace
    is_main: bool = field(default_factory=lambda: os.environ.get("RANK", "0") == "0")
    started: float = field(default_factory=time.monotonic)
    run_dir: Path | None = None
    """The run folder, once this attempt has opened it."""
    result: dict[str, Any] = field(default_factory=dict)
    listener: signals.Listener | None = None
    code: int | None = None
    """The exit code, once it is settled."""
    held: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    """What is released at the very end, such as the run folder."""

    def write_exit(self, code: int, reason: str) -> None:
        """Settle how this attempt has ended, and write RUN/exit.json if the run folder is its own."""
        self.code = code
        if self.listener is not None:
            self.listener.ending = True
        if self.run_dir is not None and self.is_main:
            seconds = round(time.monotonic() - self.started, 1)
            write_exit(self.run_dir, code, without_secrets(reason), stage=self.stage, seconds=seconds, **self.result)

    def end_now(self, reason: str) -> int:
        """What the watcher calls before it ends the process; returns the exit code."""
        if (code := self.code) is None:
            code, reason = signals.PREEMPTED_CODE, f"preempted: {reason}"
            if self.is_main:
                say(f"{self.stage}: {one_line(reason)}; start it again with --resume auto")
            self.write_exit(code, reason)
        lease.release_held()
        return code


def run_stage(
    stage: str,
    config_class: type[ConfigT],
    train: Callable[[ConfigT], Mapping[str, Any]],
    plan: Callable[[ConfigT, int], Mapping[str, Any]],
    argv: Sequence[str] | None = None,
    *,
    options: Sequence[argparse.ArgumentParser] = (),
    study: Callable[[ConfigT, argparse.Namespace], Callable[[], str] | None] = lambda config, args: None,
    complete: Callable[[ConfigT], ConfigT] = lambda config: config,
) -> int:
    """The whole command: parse, check, train; returns the exit code.

    Args:
        train: runs the stage and returns what to report (the published model, final metrics).
        plan: the plan for `--dry-run`, given the world size: batch sizes, steps, estimated memory. It finds every
            mistake that can be found without loading weights, and writes nothing.
        options: more options of this stage (parsers with add_help=False).
        study: returns what those options request in place of training, which returns the line to print; None if
            they request nothing. It publishes nothing and leaves no run behind.
        complete: completes the config as it will be saved; called before anything else is done with it.
    """
    _warn_about_shadowing_files()
    parser = _parser(stage, config_class, options)
    try:
        arguments = overrides_of_flags(
            config_class, sys.argv[1:] if argv is None else argv, list(parser._option_string_actions)
        )
    except UserError as error:
        say(f"error: {one_line(str(error))}")
        return 2
    args = parser.parse_intermixed_args(arguments)
    quiet_libraries()
    join_slurm_step()
    attempt = _Attempt(stage, args)
    with attempt.held as stack:
        try:
            if args.local_rank is not None:
                refuse_deepspeed_launcher(shlex.join(["-m", stage, args.config, *args.overrides]))
            check_launch()
            warn_about_stale_locks()
            config = complete(load_config(config_class, args.config, args.overrides))
            heartbeat.enter("starting", patient=True)
            stack.enter_context(ticking(f"{stage} {config.name}", attempt.is_main))
            _execute(attempt, config, train, plan, study)
            code, reason = 0, "done"
        except BaseException as error:  # noqa: BLE001 - reported, also in exit.json
            code, reason = _report_error(attempt, error)
        _finish(attempt, code, reason)
    return code


def _execute(
    attempt: _Attempt,
    config: ConfigT,
    train: Callable[[ConfigT], Mapping[str, Any]],
    plan: Callable[[ConfigT, int], Mapping[str, Any]],
    study: Callable[[ConfigT, argparse.Namespace], Callable[[], str] | None],
) -> None:
    """Plan, study or train, as the command's options request."""
    stage, args, is_main = attempt.stage, attempt.args, attempt.is_main
    if args.resume not in ("no", "auto") and not Path(args.resume).is_dir():
        raise UserError(f"--resume {args.resume}: no such folder; name one in {config.run_dir / FOLDER}, or auto")
    if args.dry_run:
        release_signals()
        _show_plan(config, plan, is_main)
        return
    if (work := study(config, args)) is not None:
        release_signals()
        try:
            with lease.hold(config.run_dir) if is_main else contextlib.nullcontext():
                line = work()
        finally:
            if is_main:
                lease.drop_unused(config.run_dir)
        if is_main:
            print(line)
        return
    if args.resume != "no" and (outcome := resume.finished(config.run_dir)):
        if is_main:
            print(f"{stage}: {outcome.get('model', 'done')}: the run in {config.run_dir} is finished already")
        return
    attempt.listener = attempt.held.enter_context(signals.listen())
    attempt.held.enter_context(watching(attempt.listener, attempt.end_now, is_main))
    if is_main:
        attempt.held.enter_context(lease.hold(config.run_dir))
        if args.resume != "no" and resume.finished(config.run_dir):
            raise UserError(
                f"{config.run_dir}: another process has finished this run meanwhile; there is nothing to do"
            )
        resume.open_run_dir(config, args.overwrite, args.resume, args.allow_changes)
    attempt.run_dir = config.run_dir
    signals.exit_early(config.run_dir)
    from alignment.models.onednn import linear_layers  # imported late: a plan or a mistake needs no torch

    with linear_layers():
        attempt.result = dict(train(config))
    if is_main:
        signals.clear(config.run_dir)
        seconds = time.monotonic() - attempt.started
        print(f"{stage}: {attempt.result.get('model', 'done')} in {seconds:.0f} s; run folder {config.run_dir}")


def _report_error(attempt: _Attempt, error: BaseException) -> tuple[int, str]:
    """Print an error, and return the exit code and the reason for exit.json."""
    if isinstance(error, UserError):
        # All ranks find the same mistake and one line is enough; but a file may be missing on one node only.
        if attempt.is_main or os.environ.get("LOCAL_RANK") == "0":
            say(f"error: {without_secrets(one_line(str(error)))}")
        return error.exit_code, str(error)
    if isinstance(error, Preempted):
        reason = f"preempted: {error}"
        if attempt.is_main:
            print(f"{attempt.stage}: {reason}; start it again with --resume auto", file=sys.stderr)
        return signals.PREEMPTED_CODE, reason
    if isinstance(error, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
        return 1, "interrupted"
    if not isinstance(error, Exception):  # sys.exit, with code 0 too, or the panic of a library in Rust
        kind, text = type(error).__name__, without_secrets(str(error))
        reason = f"something in the run called sys.exit({error.code})" if isinstance(error, SystemExit) else text
        line = one_line(f"{kind}: {reason} ({_place_of(error)})")
        say(f"error: {line}")
        return 1, line
    if lost := heartbeat.explain(error):
        if (wanted := signals.pending()).preempts:  # the others got the signal too, and were faster
            return signals.PREEMPTED_CODE, f"preempted: {wanted.reason}"
        return 1, lost.removeprefix("error: ")  # no traceback, since the fault is in another process
    if fault := disk_fault(error):
        line = without_secrets(f"{fault[0]}; {_what_is_safe(attempt)}; start it again with --resume auto {fault[1]}")
        say(f"error: {one_line(line)}")
        return 1, line
    _print_traceback(error)
    return 1, without_secrets(f"{type(error).__name__}: {error}")


def _what_is_safe(attempt: _Attempt) -> str:
    """What a full or broken disk has left whole."""
    saved: list[Path] = []
    with contextlib.suppress(OSError):
        saved = committed(attempt.run_dir) if attempt.run_dir else []
    if saved:
        return f"{saved[0]} and the journal up to it are whole"
    return "this run has saved no checkpoint, and earlier ones are as they were"


def _place_of(error: BaseException) -> str:
    """Where an error was raised, and from where in this suite or in a user's file."""
    frames = traceback.extract_tb(error.__traceback__)
    places = [f"{frame.filename}:{frame.lineno}" for frame in frames if own_path(frame.filename)]
    raised = f"{frames[-1].filename}:{frames[-1].lineno}"
    return raised if raised in places or not places else f"{raised}, called from {places[-1]}"


def _print_traceback(error: BaseException) -> None:
    """To stderr, without secrets that the errors quote."""
    sys.stderr.write(without_secrets("".join(traceback.format_exception(error))))


def _finish(attempt: _Attempt, code: int, reason: str) -> None:
    """Write exit.json, end the heartbeat and the process group, and write the report."""
    run_dir = attempt.run_dir if attempt.is_main else None
    attempt.write_exit(code, reason)
    if code == signals.PREEMPTED_CODE and os.environ.get("WORLD_SIZE", "1") != "1":
        # Every rank waits here: the launcher kills the rest when one rank exits.
        from alignment.distributed import processes  # imported late, for `--help`

        with contextlib.suppress(RuntimeError):  # a rank may have been lost meanwhile
            processes.wait_for_everyone()
    heartbeat.stop(None if code == 0 else reason)
    _destroy_process_group()
    if run_dir is not None and _has_metrics(run_dir):
        from alignment.reports.report import write_final_report  # imported late: only the report needs Jinja

        write_final_report(run_dir)
    if run_dir is not None:
        try:
            resume.settle(run_dir, code)
        except OSError as error:
            say(one_line(f"warning: {error}; what was set aside in {run_dir} is still there"))


class _ShowKeys(argparse.Action):
    """`--keys [PREFIX]`: print the keys of the config class and exit, as `--help` does."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option: str | None = None) -> None:
        prefix = values if isinstance(values, str) else ""  # without a prefix argparse hands over `const`
        try:
            print(as_text(find_keys(self.const, prefix), self.const), flush=True)
        except BrokenPipeError:  # the reader, such as `head`, has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python fails again when it exits
        except UserError as error:
            parser.exit(2, f"error: {one_line(str(error))}\n")
        parser.exit(0)


def _parser(
    stage: str, config_class: type[RunConfig], options: Sequence[argparse.ArgumentParser]
) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"python -m {stage}",
        parents=options,
        description=f"Run the {stage} stage.",
        epilog=f"example: python -m {stage} configs/{stage}/demo.yaml training.learning_rate=2e-5",
    )
    parser.add_argument("config", help=f"YAML file, for example configs/{stage}/demo.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="dotted overrides of the file")
    parser.add_argument(
        "--keys",
        action=_ShowKeys,
        nargs="?",
        const=config_class,
        metavar="PREFIX",
        help="list the keys of the config with type, default and meaning, and exit; --keys ppo. lists one section",
    )
    parser.add_argument("--dry-run", action="store_true", help="print the resolved config and the plan, then exit")
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace an earlier run of this name, which is kept until this one has a checkpoint",
    )
    parser.add_argument(
        "--resume",
        default="no",
        metavar="auto|PATH|no",
        help="resume an earlier run of this name from its newest intact checkpoint, or from the one named",
    )
    parser.add_argument("--allow-changes", action="store_true", help="resume even if the config has changed")
    parser.add_argument("--local_rank", "--local-rank", help=argparse.SUPPRESS)
    return parser


def _warn_about_shadowing_files() -> None:
    """Warn of a user's `reward.py`: `python -m reward` would run it, train nothing and exit with code 0."""
    for name in STAGES:
        if os.environ.get("RANK", "0") == "0" and Path(f"{name}.py").is_file():
            say(
                f"note: in this folder `python -m {name}` runs your {name}.py; rename it, or start the stage with "
                f"`alignment {name} CONFIG`"
            )


def _has_metrics(run_dir: Path) -> bool:
    """Whether the run has written a line of metrics.jsonl; otherwise there is nothing to report."""
    path = run_dir / "metrics.jsonl"
    return path.exists() and path.stat().st_size > 0


def exit_process(code: int) -> NoReturn:
    """End this process with an exit code; the last call of `python -m STAGE`.

    With several processes the interpreter's own shutdown is skipped: gloo's threads outlive `destroy_process_group`,
    because C++ keeps references to DeepSpeed's groups, and shutdown occasionally hits one of them and ends in SIGABRT,
    so that a finished run would count as failed.
    """
    leave_with(code)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def quiet_libraries() -> None:
    """Silence the libraries' telemetry and progress bars; call it before they are imported.

    Otherwise every TRL trainer reports its start to a server, and each loaded model draws a progress bar per process.
    """
    for name, value in {
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }.items():
        os.environ.setdefault(name, value)
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")  # nothing changes it
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns of an optional package
    logging.getLogger("DeepSpeed").addFilter(lambda record: record.levelno >= logging.ERROR)


def _show_plan(config: ConfigT, plan: Callable[[ConfigT, int], Mapping[str, Any]], is_main: bool) -> None:
    """Plan on every rank, since planning joins the processes; print on the main one."""
    with contextlib.redirect_stdout(sys.stderr):  # some libraries print a banner on import
        plan_report = plan(config, int(os.environ.get("WORLD_SIZE", "1")))
    if is_main:
        report = {"config": config.model_dump(mode="json"), "plan": plan_report}
        print(json.dumps(report, indent=2, ensure_ascii=False))


def _destroy_process_group() -> None:
    if "torch" in sys.modules:
        import torch.distributed

        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def write_bad_rows(run_dir: Path, bad: Sequence[tuple[str, str]], notes: Sequence[str] = ()) -> None:
    """Write the rows that were set aside, with the reason, to `RUN/bad_rows.jsonl`, and print their number.

    Args:
        notes: other notes about rows, a line each.
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
