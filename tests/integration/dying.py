"""Stages that are killed before their n-th optimizer step, counted in their process.

Where `RECORDER` names a module, its `install()` is called first.

With `preload` it reads what to run from stdin, a JSON object a line, forks a process for each, and answers with the
exit code: importing the stages takes longer than what is tested. With `environment` it leaves the environment that a
launcher gave it in `environment-RANK.json`, for processes that are forked instead of launched.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
from pathlib import Path

from torch.optim.optimizer import register_optimizer_step_pre_hook


def run(kill_at: int, stage: str, arguments: list[str]) -> int:
    """The stage's exit code, if it lives."""
    steps = 0

    def count(*_: object) -> None:
        nonlocal steps
        steps += 1
        if steps == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    register_optimizer_step_pre_hook(count)
    if recorder := os.environ.get("RECORDER"):
        importlib.import_module(recorder).install()
    sys.argv = [stage, *arguments]
    code: int = importlib.import_module(f"{stage}.__main__").main()
    return code


def serve() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # DeepSpeed greets on stdout
    for module in ("sft.train", "reward.train", "ppo.train", "trl", "deepspeed"):
        importlib.import_module(module)
    for line in sys.stdin:
        request = json.loads(line)
        if not (child := os.fork()):
            os.chdir(request["folder"])
            os.environ.update(request["variables"])
            log = os.open("log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(log, 1)
            os.dup2(log, 2)
            code = run(request["kill_at"], request["stage"], request["arguments"])
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), file=answers, flush=True)


if __name__ == "__main__":
    if sys.argv[1:] == ["environment"]:
        Path(f"environment-{os.environ['RANK']}.json").write_text(json.dumps(dict(os.environ)))
    else:
        serve()
