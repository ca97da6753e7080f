#!/usr/bin/env python3
"""Measure our trainers against a peer's, on this machine.

    scripts/bench.py sft --peer trl
    scripts/bench.py sft --peer trl --data pairs.jsonl.gz --rounds 7 --json
    scripts/bench.py sft --peer trl --memory
    scripts/bench.py reward --peer trl --threads 1
    scripts/bench.py ppo --model PATH/TO/MODEL --rows 8 --rounds 3
    scripts/bench.py generate --model PATH/TO/MODEL --rows 64
    scripts/bench.py ppo --peer trl --learning
    scripts/bench.py load --model PATH/TO/MODEL
    scripts/bench.py scaling
    scripts/bench.py tracking
    scripts/bench.py tools --rounds 5

Each contestant is a process of its own, the peer's in a virtual environment of its own (`.bench/`, made on first use).
They stay alive and take turns, A B C A B C, so that whatever else the machine does falls on all; a ratio is taken
within a round, and the median over the rounds is reported with the least and the greatest. `cpu_ratios` are those of
the processor's time: on a machine that others use, take them with `--threads 1`, where waiting costs none of it.

Before the first round each says how many tokens (and pairs) it trains on and their mean loss under the untrained
weights; if they differ, nothing is measured. `--memory` measures each alone, on a model of more than 100 million
parameters: the peak of the process less what it held after its imports. `--learning` (PPO) compares what is learned:
the mean reward over the last fifth of the iterations, from several seeds. `tracking` compares our SFT trainer with
an offline W&B run and without one, `generate` our sampling with transformers' `generate`; `load` and
`publish` time a model's way from and to the registry; `scaling` measures by which power our time grows with the size of
the work. `--model` takes a model of
yours in place of a small Llama with random weights. `tools` measures what commands cost until they answer.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any, Self

SCRIPTS = Path(__file__).resolve().parent
BENCHMARKS = ("sft", "reward", "ppo", "generate", "load", "publish", "scaling", "tools", "tracking")
LIBRARIES = ("torch", "transformers", "trl", "accelerate")


class Process:
    """A contestant at work (`benchmarks/worker.py`)."""

    def __init__(
        self, python: str, module: str, folder: Path, settings: Mapping[str, Any], threads: int, **variables: str
    ) -> None:
        self.name = module
        command = [python, "-m", "benchmarks.worker", module, str(folder), json.dumps(settings)]
        quiet = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TRANSFORMERS_VERBOSITY": "error"}
        paths = os.pathsep.join([str(SCRIPTS), str(SCRIPTS.parent)])
        environment = {**os.environ, **quiet, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": paths, **variables}
        self._log = tempfile.TemporaryFile(mode="w+", encoding="utf-8", errors="replace")  # noqa: SIM115 - closed on exit
        self._process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended before it read what it was asked
            self._process.stdin.close()
        if error is not None:
            self._process.kill()
        self._process.wait()
        self._log.close()

    def ask(self, what: str, timeout: float | None = None) -> dict[str, Any]:
        """The answer to `check`, `run` or `learn SEED`.

        Args:
            timeout: seconds after which the process is ended.

        Raises:
            UserError: the process has ended; the last line that it wrote says why.
        """
        from alignment.errors import UserError

        assert self._process.stdin is not None and self._process.stdout is not None
        timer = threading.Timer(timeout or 0.0, self._process.kill)
        if timeout is not None:
            timer.start()
        try:
            self._process.stdin.write(what + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass
        line = self._process.stdout.readline()
        timer.cancel()
        if not line:
            self._log.seek(0)
            lines = self._log.read().strip().splitlines()
            raise UserError(f"{self.name}: ended before it answered ({lines[-1] if lines else 'no output'})")
        answer: dict[str, Any] = json.loads(line)
        return answer


def spread(values: Iterable[float]) -> dict[str, float]:
    """Median, least and greatest, to four digits."""
    values = list(values)
    figures = {"median": statistics.median(values), "min": min(values), "max": max(values)}
    return {name: float(f"{value:.4g}") for name, value in figures.items()}


def counted(check: Mapping[str, Any]) -> list[str]:
    """What a contestant counts of its work; the first is what rates are of."""
    return [what for what, found in check.items() if isinstance(found, int) and what != "bytes"]


TOLERANCE, TOLERANCE_BF16 = 1e-4, 0.02


def same_work(checks: Mapping[str, Mapping[str, Any]], tolerance: float = TOLERANCE) -> None:
    """Refuse to compare contestants that do not train on as much to the same loss."""
    from alignment.errors import UserError

    ours = checks["ours"]
    for name, found in checks.items():
        counts = [(what, found[what], ours[what]) for what in counted(ours)]
        wrong = [f"{what} {theirs}, ours {own}" for what, theirs, own in counts if theirs != own]
        for what in found:  # a contestant of ours may have a critic that starts otherwise, and does not say its value
            if isinstance(found[what], float) and abs(found[what] - ours[what]) > tolerance * max(1.0, abs(ours[what])):
                wrong.append(f"{what} {found[what]:.6f}, ours {ours[what]:.6f}")
        if wrong:
            raise UserError(f"{name} does not do the same work: {'; '.join(wrong)}")


Runs = dict[str, list[dict[str, Any]]]


def take_turns(
    start: Any, names: Sequence[str], rounds: int, tolerance: float = TOLERANCE
) -> tuple[dict[str, dict[str, Any]], Runs]:
    """What each contestant says of its work, and its runs."""
    from alignment.terminal import progress

    with ExitStack() as stack:
        processes = {name: stack.enter_context(start(name)) for name in names}
        checks = {name: process.ask("check") for name, process in processes.items()}
        same_work(checks, tolerance)
        runs: Runs = {name: [] for name in names}
        with progress("rounds", rounds * len(names)) as line:
            for _ in range(rounds):
                for name, process in processes.items():
                    runs[name].append(process.ask("run"))
                    line.advance(1)
    return checks, runs


def sum_up(checks: Mapping[str, Mapping[str, Any]], runs: Runs, peers: Sequence[str]) -> dict[str, Any]:
    """Rates of each contestant, and ours over each peer's within a round."""
    work = checks["ours"][counted(checks["ours"])[0]]
    rates = {name: [work / run["seconds"] for run in done] for name, done in runs.items()}

    def ratios_of(clock: str) -> dict[str, dict[str, float]]:
        pairs = {name: zip(runs[name], runs["ours"], strict=True) for name in peers}
        return {name: spread(theirs[clock] / ours[clock] for theirs, ours in pair) for name, pair in pairs.items()}

    ratios = ratios_of("seconds")
    best = min(peers, key=lambda name: ratios[name]["median"])
    return {
        "rates": {name: spread(rate) for name, rate in rates.items()},
        "ratio": ratios[peers[0]],
        "ratio_best": {"setting": best, **ratios[best]},
        "ratios": ratios,
        "cpu_ratios": ratios_of("cpu_seconds"),
        "same_work": {name: {key: check[key] for key in check if key != "bytes"} for name, check in checks.items()},
        "train_loss": {name: done[0]["train_loss"] for name, done in runs.items()},
    }


def measure_memory(start: Any, names: Sequence[str], peers: Sequence[str]) -> dict[str, Any]:
    """Peak less imports of each contestant, one after the other, each in a fresh process."""
    peak = {}
    for name in names:
        with start(name) as process:
            peak[name] = process.ask("run")["bytes"]
        print(f"{name}: {peak[name] / 2**20:.0f} MiB", file=sys.stderr)
    ratios = {name: round(peak["ours"] / peak[name], 3) for name in peers}
    mib = {name: round(size / 2**20) for name, size in peak.items()}
    return {"mib": mib, "memory_ratio": ratios[peers[0]], "memory_ratios": ratios}


def measure_learning(start: Any, names: Sequence[str], seeds: int) -> Runs:
    """What each contestant learns from each seed, seed by seed."""
    from alignment.terminal import progress

    runs: Runs = {name: [] for name in names}
    with ExitStack() as stack, progress("seeds", seeds * len(names)) as line:
        processes = {name: stack.enter_context(start(name)) for name in names}
        same_work({name: process.ask("check") for name, process in processes.items()})
        for seed in range(seeds):
            for name, process in processes.items():
                runs[name].append(process.ask(f"learn {seed}"))
                line.advance(1)
    return runs


def machine(threads: int) -> dict[str, Any]:
    """What the figures hold for."""
    model = platform.processor() or platform.machine()
    cpu = Path("/proc/cpuinfo")
    if cpu.exists():
        lines = cpu.read_text(encoding="utf-8").splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model)
    versions = {name: version(name) for name in LIBRARIES}
    return {"cpu": model, "cores": os.cpu_count(), "threads": threads, "python": platform.python_version(), **versions}


def bench(options: argparse.Namespace) -> dict[str, Any]:
    """Prepare the work, run every contestant on it, and sum up."""
    from benchmarks.venv import peer_python

    name = options.benchmark
    if name == "scaling":
        from benchmarks import scaling

        found = scaling.measure(options)
        return {"benchmark": name, **found, "notes": list(scaling.lines(found)), "machine": machine(options.threads)}
    if name == "tools":
        from benchmarks import tools

        with tempfile.TemporaryDirectory() as folder:
            return {"benchmark": name, **tools.measure(Path(folder), options), "machine": machine(1)}
    mode = "memory" if options.memory else "learning" if options.learning else "model" if options.model else "speed"
    benchmark = importlib.import_module(f"benchmarks.{name}")
    options.rows = options.rows or benchmark.ROWS
    python = str(peer_python(benchmark.REQUIREMENTS)) if benchmark.REQUIREMENTS else sys.executable
    own = {"ours": {}} | getattr(benchmark, "VARIANTS", {}).get(mode, {})
    contestants = {ours: (sys.executable, benchmark.OURS, settings) for ours, settings in own.items()}
    theirs = benchmark.PEERS | getattr(benchmark, "MORE_PEERS", {}).get(mode, {})
    contestants |= {peer: (python, module, settings) for peer, (module, settings) in theirs.items()}
    if unknown := [each for each in options.only or () if each not in contestants]:
        from alignment.errors import UserError

        raise UserError(f"--only {' '.join(unknown)}: expected some of {', '.join(contestants)}")
    names = [each for each in contestants if options.only is None or each in ("ours", *options.only)]
    peers = [each for each in names if each in theirs]
    if not peers:
        from alignment.errors import UserError

        raise UserError(f"--only {' '.join(options.only)}: expected one of {', '.join(theirs)} too, to compare with")
    with tempfile.TemporaryDirectory() as folder:
        with contextlib.redirect_stdout(sys.stderr):  # trainers print; --json is alone on stdout
            work = benchmark.prepare(Path(folder), options)

        def start(contestant: str) -> Process:
            executable, module, settings = contestants[contestant]
            variables = {"BENCH_BF16": "1"} if options.bf16 else {}
            return Process(executable, module, Path(folder), settings, options.threads, **variables)

        if mode == "memory":
            found = measure_memory(start, names, peers)
        elif mode == "learning":
            found = {"runs": measure_learning(start, names, options.rounds)}
        else:
            tolerance = TOLERANCE_BF16 if options.bf16 else TOLERANCE
            checks, runs = take_turns(start, names, options.rounds, tolerance)
            found = sum_up(checks, runs, peers) | {"runs": runs}
    found = benchmark.more(mode, work, found) if hasattr(benchmark, "more") else found
    found.pop("runs", None)
    peer = " ".join(benchmark.REQUIREMENTS) or "itself"
    unit = {"memory": "MiB", "learning": "standard deviations of the reward"}.get(mode, benchmark.UNIT)
    return {"benchmark": name, "peer": peer, "unit": unit, "work": work, **found, "machine": machine(options.threads)}


def show(report: Mapping[str, Any]) -> None:
    """The report as text."""
    if report["benchmark"] == "tools":
        from benchmarks.tools import table

        print("\n".join(table(report)))
        return
    if "peer" in report:
        print(f"{report['benchmark']} against {report['peer']}: {report['work']}")
    for name, mib in report.get("mib", {}).items():
        ratio = report["memory_ratios"].get(name)
        print(f"  {name:10} {mib:7d} MiB" + (f"   ours x{ratio}" if ratio else ""))
    for name, rate in report.get("rates", {}).items():
        line = f"  {name:10} {rate['median']:8.4g} {report['unit']}  ({rate['min']:.4g} to {rate['max']:.4g})"
        if name in report["ratios"]:
            ratio = report["ratios"][name]
            line += f"   ours x{ratio['median']:.2f}  ({ratio['min']:.2f} to {ratio['max']:.2f})"
            line += f", by CPU time x{report['cpu_ratios'][name]['median']:.2f}"
        print(line)
    for line in report.get("notes", ()):
        print(f"  {line}")


def why_not(options: argparse.Namespace) -> str | None:
    """What is wrong with the options, if anything is."""
    if options.learning and options.benchmark != "ppo":
        return "--learning is of ppo alone"
    for name in ("rows", "rounds", "threads"):
        if (given := getattr(options, name)) is not None and given < 1:
            return f"--{name} {given}: expected 1 or more"
    if options.model is not None and not (options.model / "config.json").is_file():
        return f"--model {options.model}: no folder with a config.json; export one with `alignment models export`"
    if options.model and (options.learning or options.benchmark in ("scaling", "tools", "tracking")):
        return "--model: not with --learning, scaling, tools or tracking, which have models of their own"
    if options.memory and options.benchmark not in ("sft", "reward", "ppo"):
        return f"--memory: not with {options.benchmark}"
    for name in ("data", "rows", "only", "bf16"):
        if options.benchmark == "scaling" and getattr(options, name):
            return f"--{name}: not with scaling"
    if options.benchmark == "tools" and (options.model or options.data or options.only):
        return "tools: takes --rounds, --seed and --json alone"
    if options.data is not None and not options.data.is_file():
        return f"--data {options.data}: no such file"
    return None


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Measure our trainers against a peer's, on this machine.",
        epilog="example: scripts/bench.py sft --peer trl --rounds 5 --json",
    )
    parser.add_argument("benchmark", choices=BENCHMARKS)
    parser.add_argument("--peer", choices=["trl"], default="trl")
    parser.add_argument(
        "--data", type=Path, help="transcripts, pairs or prompts to train on; without, some are generated"
    )
    parser.add_argument("--model", type=Path, help="a model's folder (default: a small Llama with random weights)")
    parser.add_argument(
        "--rows",
        type=int,
        help="transcripts or pairs of one epoch (default 96), rollouts of one iteration (default 64), "
        "responses that are sampled at a time (default 16)",
    )
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each contestant, or seeds (default 5)")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--memory", action="store_true", help="peak memory on a larger model instead of speed")
    what.add_argument("--learning", action="store_true", help="what is learned instead of speed (ppo)")
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", help="contestants beside ours, where memory is short (default: all)"
    )
    parser.add_argument("--bf16", action="store_true", help="all contestants in bfloat16, for a GPU that has it")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU threads of each (default: all)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    options = parser.parse_args(argv)
    if wrong := why_not(options):
        parser.error(wrong)
    from alignment.errors import UserError
    from alignment.training.stage import quiet_libraries

    quiet_libraries()
    try:
        report = bench(options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.json:
        print(json.dumps(report, indent=2))
    else:
        show(report)
    return 0


if __name__ == "__main__":
    from project_python import use_project_python

    use_project_python()
    sys.exit(main())
