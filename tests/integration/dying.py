"""Stages to which something happens before their n-th optimizer step, counted in their process; the 0th is when the
run's folder has been made.

With `preload` it reads what to run from stdin, a JSON object a line, forks a process for each rank, and answers with
their exit codes: importing the stages takes longer than what is tested. With `run STAGE ...` it is
that stage, and `$ACTIONS` has what happens to each rank.

Where `RECORDER` names a module, its `install()` is called first.

What happens: the name of a signal, to itself or, with ` parent`, to its launcher; `touch FILE`; `remove FILE`;
`copy FROM TO`; `sleep SECONDS`; or `limit SECONDS`, which is ALIGNMENT_TIMEOUT from here on: what comes before may be
slow. `acted` tells when it was.
"""

from __future__ import annotations

import atexit
import importlib
import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

from torch.optim.optimizer import register_optimizer_step_pre_hook

from alignment.distributed import heartbeat
from alignment.runs import resume


def act(action: str) -> None:
    name, _, rest = action.partition(" ")
    if name != "limit":
        Path("acted").touch()
    if name == "touch":
        Path(rest).touch()
    elif name == "remove":
        Path(rest).unlink()
    elif name == "copy":
        shutil.copyfile(*rest.split())
    elif name == "sleep":
        time.sleep(float(rest))
    elif name == "limit":
        assert heartbeat._heartbeat
        heartbeat._heartbeat.limit = float(rest)
    else:
        os.kill(os.getppid() if rest == "parent" else os.getpid(), getattr(signal, name))


def run(actions: dict[str, str], stage: str, arguments: list[str]) -> int:
    """The stage's exit code, if it lives."""
    steps = 0

    def count(*_: object) -> None:
        nonlocal steps
        steps += 1
        if action := actions.get(str(steps)):
            act(action)

    register_optimizer_step_pre_hook(count)
    if action := actions.get("0"):
        opened = resume.open_run_dir

        def open_run_dir(*given: Any, **more: Any) -> None:
            opened(*given, **more)
            act(action)

        resume.open_run_dir = open_run_dir
    if recorder := os.environ.get("RECORDER"):
        importlib.import_module(recorder).install()
    sys.argv = [stage, *arguments]
    code: int = importlib.import_module(f"{stage}.__main__").main()
    return code


def fork(request: dict, variables: dict[str, str], actions: dict[str, str]) -> int:
    """A process of the stage; its id."""
    if child := os.fork():
        return child
    os.chdir(request["folder"])
    os.environ.update(variables)
    log = os.open("log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    code = run(actions, request["stage"], request["arguments"])
    atexit._run_exitfuncs()  # temporary folders go, as at the end of a process of its own
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def end(child: int) -> int:
    """The exit code of a process; None of one that is stopped."""
    _, status = os.waitpid(child, os.WUNTRACED)
    return None if os.WIFSTOPPED(status) else os.waitstatus_to_exitcode(status)


def serve() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # DeepSpeed greets on stdout
    for module in ("sft.train", "reward.train", "ppo.train", "trl", "deepspeed"):
        importlib.import_module(module)
    for line in sys.stdin:
        request = json.loads(line)
        children = [fork(request, *rank) for rank in request["ranks"]]
        codes = [end(child) for child in children]
        for child, code in zip(children, codes, strict=True):
            if code is None:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
        print(json.dumps(codes), file=answers, flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "run":
        from alignment.training.stage import exit_process

        actions = json.loads(os.environ.get("ACTIONS", "{}"))
        exit_process(run(actions.get(os.environ.get("RANK", "0"), {}), sys.argv[2], sys.argv[3:]))
    else:
        serve()
