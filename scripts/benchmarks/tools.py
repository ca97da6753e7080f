"""Measure what starting costs: processor seconds of whole commands, as ratios to an empty Python in the same round.

Processor time, and not the clock, since other work on the machine stretches that. All commands take turns, so that
other work of the machine slows all of them. The rating script is measured to its first item, in a terminal.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import random
import select
import struct
import sys
import tempfile
import termios
import time
from argparse import Namespace
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.base import base_model
from benchmarks.ppo_work import SPEED, save_policy
from benchmarks.sft import made_up_words

ROOT = Path(__file__).resolve().parents[2]
EMPTY = "python -c pass"
GROUPS = ("plan", "models", "data", "runs", "recipes", "baseline", "chat")
DOORS = ("rate", "sample", "compare", "score", "choose", "serve", "eval", "sft", "reward", "ppo")
PROMPTS = 2000
ITEM = "Whatdoesitask"
"""What every item asks: one word, which a screen draws in one piece."""
PATIENCE = 120.0
"""Seconds after which a screen without its item is given up."""
Run = Callable[[], float]


def measure(folder: Path, options: Namespace) -> dict[str, Any]:
    """Processor seconds of each command and its ratio to an empty Python's: median, least and greatest."""
    from bench import spread

    from alignment.terminal import progress

    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")  # the user's own cache is left alone
    with contextlib.redirect_stdout(sys.stderr):  # libraries greet when they are imported
        world = _world(folder, options)
    commands = _commands(folder, world)
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    with progress("rounds", (options.rounds + 1) * len(commands)) as line:
        for number in range(options.rounds + 1):
            for name, run in commands.items():
                taken = run()
                if number:  # the first round reads files from the disk, and fills the cache of sizes
                    seconds[name].append(taken)
                line.advance(1)
    ratios = {name: [a / b for a, b in zip(taken, seconds[EMPTY], strict=True)] for name, taken in seconds.items()}
    return {
        "seconds": {name: spread(taken) for name, taken in seconds.items()},
        "ratios": {name: spread(each) for name, each in ratios.items()},
    }


def table(report: Mapping[str, Any]) -> list[str]:
    """The report as lines of Markdown."""
    lines = ["| command | CPU seconds | times an empty Python |", "|---|---|---|"]
    for name, taken in report["seconds"].items():
        ratio = report["ratios"][name]
        cells = [f"{each['median']:.3g} ({each['min']:.3g} to {each['max']:.3g})" for each in (taken, ratio)]
        lines.append(f"| `{name}` | {cells[0]} | {cells[1]} |")
    return lines


def _world(folder: Path, options: Namespace) -> dict[str, Path]:
    """A policy and a reward model of 4 million parameters, prompts, and a ratings file."""
    from alignment.ratings import RatingsStore

    draw = random.Random(options.seed)
    words, weights = made_up_words(draw)
    texts = [" ".join(draw.choices(words, weights, k=12)) for _ in range(PROMPTS)]
    model, tokenizer = base_model(options, SPEED, texts)
    save_policy(folder, model, tokenizer)
    prompts = folder / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts), encoding="utf-8")
    ratings = folder / "ratings.db"
    with RatingsStore(ratings, create=True) as store, store.transaction():
        for number in range(1000):
            prompt = [{"role": "user", "content": f"{ITEM} {number}"}]
            answers = [{"text": f"{side} {number}", "model": f"{side}@v1"} for side in ("a", "b")]
            store.add_item(prompt, answers)
    return {"policy": folder / "policy", "reward": folder / "reward", "prompts": prompts, "ratings": ratings}


def _commands(folder: Path, world: Mapping[str, Path]) -> dict[str, Run]:
    """The commands by the names that they are shown under."""
    alignment = ("-m", "alignment.cli.main")
    dry_run = [
        "-m", "ppo", str(ROOT / "configs/ppo/demo.yaml"), "--dry-run", f"model.policy={world['policy']}",
        f"model.reward={world['reward']}", "model.held_out_reward=null", f"data.train={world['prompts']}",
        "data.eval=null", f"tracking.runs={folder / 'runs'}",
    ]  # fmt: skip
    tokenizer = f"from transformers import AutoTokenizer as A; A.from_pretrained({str(world['policy'])!r})"
    rate = ["--db", str(world["ratings"]), "--labeler", "ada"]
    plain = {EMPTY: ["-c", "pass"], "alignment --help": [*alignment, "--help"]}
    plain |= {f"alignment {name} --help": [*alignment, name, "--help"] for name in (*GROUPS, *DOORS)}
    plain |= {f"python -m {stage} --help": ["-m", stage, "--help"] for stage in ("sft", "reward", "ppo")}
    plain |= {"scripts/rate.py --help": ["scripts/rate.py", "--help"]}
    plans = {
        f"alignment plan configs/{stage}/8b.yaml": f"configs/{stage}/8b.yaml" for stage in ("ppo", "sft", "reward")
    }
    plain |= {name: [*alignment, "plan", recipe] for name, recipe in plans.items()}
    plain |= {
        "python -m ppo configs/ppo/demo.yaml --dry-run": dry_run,
        "python -c 'import torch'": ["-c", "import torch"],
        "transformers loads a tokenizer": ["-c", tokenizer],
    }
    commands: dict[str, Run] = {name: lambda given=given: whole(given) for name, given in plain.items()}  # type: ignore[misc]
    for name, recipe in plans.items():
        commands[f"{name}, the first"] = lambda recipe=recipe: first([*alignment, "plan", recipe])  # type: ignore[misc]
    commands["scripts/rate.py, to the first item"] = lambda: to_text(["scripts/rate.py", *rate], ITEM)
    commands["alignment rate, to the first item"] = lambda: to_text([*alignment, "rate", *rate], ITEM)
    return commands


def first(arguments: list[str]) -> float:
    """As `whole`, with an empty cache."""
    with tempfile.TemporaryDirectory() as cache:
        return whole(arguments, XDG_CACHE_HOME=cache)


def whole(arguments: list[str], **variables: str) -> float:
    """Processor seconds of a Python with these arguments, from its start to its end.

    Raises:
        UserError: it failed; what it wrote last is in the message.
    """
    from alignment.errors import UserError

    reader, writer = os.pipe()
    nothing = os.open(os.devnull, os.O_RDWR)
    actions = [(os.POSIX_SPAWN_DUP2, nothing, 0), (os.POSIX_SPAWN_DUP2, nothing, 1), (os.POSIX_SPAWN_DUP2, writer, 2)]
    environment = _environment() | variables
    process = os.posix_spawn(sys.executable, [sys.executable, *arguments], environment, file_actions=actions)
    os.close(writer)
    os.close(nothing)
    with open(reader, encoding="utf-8", errors="replace") as stream:
        said = stream.read()
    _, status, used = os.wait4(process, 0)
    if status:
        raise UserError(f"{' '.join(arguments)}: {(said.strip().splitlines() or ['failed'])[-1]}")
    return used.ru_utime + used.ru_stime


def to_text(arguments: list[str], text: str) -> float:
    """Processor seconds until a Python in a terminal of its own has drawn a text; it is ended then.

    Raises:
        UserError: it did not draw it.
    """
    from alignment.errors import UserError

    process, terminal = pty.fork()
    if process == 0:
        os.execve(sys.executable, [sys.executable, *arguments], _environment() | {"TERM": "xterm-256color"})
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
    drawn, end, seconds = b"", time.monotonic() + PATIENCE, None
    while seconds is None and time.monotonic() < end:
        if select.select([terminal], [], [], 1.0)[0]:
            try:
                drawn += os.read(terminal, 1 << 16)
            except OSError:  # the process has ended
                break
        if text.encode() in drawn:
            seconds = _used(process)
    os.kill(process, 9)
    os.waitpid(process, 0)
    os.close(terminal)
    if seconds is None:
        raise UserError(f"{' '.join(arguments)}: never drew {text!r}")
    return seconds


def _used(process: int) -> float:
    """Processor seconds of all threads of a process that runs."""
    tasks = Path(f"/proc/{process}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def _environment() -> dict[str, str]:
    quiet = {"HF_HUB_OFFLINE": "1", "ALIGNMENT_TICK": "0", "ALIGNMENT_SCRIPT_STARTED": "1", "OMP_NUM_THREADS": "1"}
    return {**os.environ, **quiet, "PYTHONPATH": str(ROOT)}
