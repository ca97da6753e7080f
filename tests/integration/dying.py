"""Stages to which something happens before their n-th optimizer step, counted in their process; the 0th is when the
run's folder has been made.

With `preload` it reads what to run from stdin, a JSON object a line, forks a process for each rank, and answers with
their exit codes: importing the stages takes longer than what is tested. With `run STAGE ...` it is
that stage, and `$ACTIONS` has what happens to each rank.

Where `RECORDER` names a module, its `install()` is called first.

What happens: the name of a signal, to itself or, with ` parent`, to its launcher; `touch FILE`; `remove FILE`;
`copy FROM TO`; `sleep SECONDS`; `unsaved SECONDS`, which a signal waits from here on where there is nothing to save; or
`limit SECONDS`, which is ALIGNMENT_TIMEOUT from here on: what comes before may be slow. Several are separated by `; `.
`acted` tells when it was.

In place of a number, an action may have a place: `before MODULE:NAME` or `after MODULE:NAME`, where it happens at the
first call of that function, or at the n-th with `#n`; and `seconds`, whose value says when the process is killed.
"""

from __future__ import annotations

import atexit
import functools
import importlib
import json
import os
import shutil
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from torch.optim.optimizer import register_optimizer_step_pre_hook

from alignment.distributed import heartbeat
from alignment.runs import resume, watcher


def act(actions: str) -> None:
    for action in actions.split("; "):
        act_once(action)


def act_once(action: str) -> None:
    name, _, rest = action.partition(" ")
    if name not in ("limit", "unsaved"):
        Path("acted").touch()
    if name == "touch":
        Path(rest).touch()
    elif name == "remove":
        Path(rest).unlink()
    elif name == "copy":
        shutil.copyfile(*rest.split())
    elif name == "sleep":
        time.sleep(float(rest))
    elif name == "unsaved":
        watcher.UNSAVED_SECONDS = float(rest)
    elif name == "limit":
        assert heartbeat._heartbeat
        heartbeat._heartbeat.limit = float(rest)
    else:
        os.kill(os.getppid() if rest == "parent" else os.getpid(), getattr(signal, name))


def act_at(place: str, action: str) -> None:
    """Have an action happen before or after a call of a function."""
    when, _, name = place.partition(" ")
    name, _, number = name.partition("#")
    module, _, path = name.partition(":")
    owner = importlib.import_module(module)
    *parents, attribute = path.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    function, calls = getattr(owner, attribute), 0

    @functools.wraps(function)
    def wrapped(*given: Any, **more: Any) -> Any:
        nonlocal calls
        calls += 1
        is_due = calls == int(number or 1)
        if is_due and when == "before":
            act(action)
        result = function(*given, **more)
        if is_due and when == "after":
            act(action)
        return result

    setattr(owner, attribute, wrapped)


def run(actions: dict[str, str], stage: str, arguments: list[str]) -> int:
    """The stage's exit code, if it lives."""
    steps = 0

    def count(*_: object) -> None:
        nonlocal steps
        steps += 1
        if action := actions.get(str(steps)):
            act(action)

    register_optimizer_step_pre_hook(count)
    for place, action in actions.items():
        if ":" in place:
            act_at(place, action)
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


def end(child: int) -> int | None:
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
        killers = [
            threading.Timer(float(rank[1]["seconds"]), os.kill, (child, signal.SIGKILL))
            for child, rank in zip(children, request["ranks"], strict=True)
            if "seconds" in rank[1]
        ]
        for killer in killers:
            killer.start()
        codes = [end(child) for child in children]
        for killer in killers:
            killer.cancel()
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
