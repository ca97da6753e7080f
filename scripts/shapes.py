#!/usr/bin/env python3
"""Each causal model type of transformers, tiny and random, through SFT, reward, PPO and export, as a table.

    scripts/shapes.py --out docs/reference/models-tried.md      (all types; about half an hour on one core)
    scripts/shapes.py llama mixtral --json

Each runs the stages as a user's config would, in a process of its own with a limit of time and memory, and is compared
with plain transformers at each step: the loss, log-probabilities, sampled tokens, scores, and what is exported. `ok` is
right in all of them; `refused` was told so in one line; `wrong` and `traceback` are faults of the suite.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

SECONDS, GIGABYTES = 120, 8
NOT_BUILT = "not tried"


class Result(NamedTuple):
    kind: str
    outcome: str
    """ok, refused, wrong, traceback, or not tried: these sizes make no model of the kind, or it is no text model."""
    stage: str
    said: str
    seconds: float


def trial(kind: str) -> Result:
    """One type, in a process of its own."""
    read, write = os.pipe()
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        os.close(read)
        try:
            _in_child(kind, lambda *told: os.write(write, (json.dumps(told) + "\n").encode()))
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        answer = pipe.read()
    os.waitpid(child, 0)
    seconds = round(time.monotonic() - started, 1)
    *stages, last = [["build"], *map(json.loads, answer.splitlines())]
    if len(last) == 1:  # it was killed in a stage
        outcome = NOT_BUILT if last == ["build"] else "traceback"
        return Result(kind, outcome, last[0], f"no answer in {SECONDS} s or {GIGABYTES} GB", seconds)
    outcome, said = last
    return Result(kind, outcome, stages[-1][0], said, seconds)


def _in_child(kind: str, tell: Callable[..., object]) -> None:
    """Tells the stages that it comes to, and then the outcome and what was said."""
    from model_shapes.build import write_model
    from model_shapes.trial import Wrong, run

    from alignment.errors import UserError

    signal.alarm(SECONDS)
    resource.setrlimit(resource.RLIMIT_AS, (GIGABYTES << 30, GIGABYTES << 30))
    errors = io.StringIO()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(errors):
        os.chdir(folder)
        with contextlib.redirect_stdout(io.StringIO()):
            try:
                write_model(kind, Path("model"))
            except Exception as error:  # noqa: BLE001 - whatever the type says of these sizes
                tell(NOT_BUILT, _line(error))
                return
            try:
                run(Path("model"), tell)
                outcome, said = "ok", ""
            except UserError as error:
                outcome, said = "refused", _line(error)
            except Wrong as error:
                outcome, said = "wrong", _line(error)
            except Exception as error:  # noqa: BLE001 - what the table is to show
                where = traceback.extract_tb(error.__traceback__)[-1]
                outcome, said = "traceback", f"{type(error).__name__}: {_line(error)} ({Path(where.filename).name})"
        os.chdir("/")
    notes = [line for line in errors.getvalue().splitlines() if line.startswith(("sft: ", "ppo: ", "reward: "))]
    notes += [line for line in errors.getvalue().splitlines() if ": prompts are sampled from " in line]
    notes = [line for line in dict.fromkeys(notes) if "scores will average" not in line]
    tell(outcome, "; ".join(filter(None, [said, *notes])).replace(f"{folder}/", ""))


def _line(error: Exception) -> str:
    """The first line of what an error says; a UserError's is all that a user reads."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def table(results: Sequence[Result]) -> str:
    """A Markdown page."""
    import transformers

    count: dict[str, int] = {}
    for result in results:
        count[result.outcome] = count.get(result.outcome, 0) + 1
    outcomes = ("ok", "refused", "wrong", "traceback", NOT_BUILT)
    plain = [result.kind for result in results if result.outcome == "ok" and not _short(result.said)]
    lines = [
        "# Models that were tried",
        "",
        "```bash",
        "scripts/shapes.py --out docs/reference/models-tried.md      # writes this page; half an hour on one core",
        "```",
        "",
        f"Every causal model type of transformers {transformers.__version__}, tiny and random, through SFT, the reward "
        "model, PPO and export, compared with plain transformers at each step: loss, log-probabilities, sampled "
        "tokens, scores, exported files. "
        + ", ".join(f"{count[name]} {name}" for name in outcomes if name in count)
        + ".",
        "",
        f"Without a remark ({len(plain)}): " + ", ".join(plain) + ".",
        "",
        "The others. What is said of an `ok` model is what the suite does instead for it "
        "([models](../guides/models.md)): it is right, and slower. A refused model is refused before the first step of "
        "SFT, unless another stage is named.",
        "",
        "| model type | outcome | what is said |",
        "|---|---|---|",
    ]
    for result in results:
        if result.outcome != NOT_BUILT and result.kind not in plain:
            where = "" if result.outcome == "ok" else f" ({result.stage})"
            said = _short(result.said) if result.outcome == "ok" else result.said.split("; sft: ")[0]
            lines.append(f"| {result.kind} | {result.outcome}{where} | {said.replace('|', '/')} |")
    left = [f"{result.kind}" for result in results if result.outcome == NOT_BUILT]
    lines += ["", "Not tried, as no tiny model of text alone could be made of them: " + ", ".join(left) + ".", ""]
    return "\n".join(lines)


SHORT = {
    "computes the logits of all tokens": "whole logits",
    "sft: rows of": "padded rows in SFT",
    "reward: each prompt is computed once": "padded rows in the reward stage",
    "ppo: rows are padded": "padded rows in PPO",
    "without a cache": "sampled one length at a time, without a cache",
    "one length at a time": "sampled one length at a time",
    "without its router's": "no router loss, which the model fails to compute",
}


def _short(said: str) -> str:
    """What the suite does otherwise for a model, in a few words."""
    found = [words for phrase, words in SHORT.items() if phrase in said]
    if "sampled one length at a time, without a cache" in found:
        found.remove("sampled one length at a time")
    return "; ".join(found)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", help="model types; all of them where none is named")
    parser.add_argument("--out", type=Path, help="write the table as a Markdown page")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--part", default="1/1", help="this share of all types, for instance 2/4, added to --results")
    parser.add_argument(
        "--results", type=Path, help="a file of results (JSONL), which types that are in it are taken from"
    )
    options = parser.parse_args(arguments)
    os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", TRANSFORMERS_VERBOSITY="error")
    import torch
    from model_shapes.build import kinds

    torch.set_num_threads(1)
    _import_all()
    number, of = map(int, options.part.split("/"))
    wanted = options.kinds or [kind for place, kind in enumerate(kinds()) if place % of == number - 1]
    done = _read(options.results)
    for kind in wanted:
        if kind not in done:
            done[kind] = trial(kind)
            _note(done[kind], options.results)
    found = [done[kind] for kind in (options.kinds or kinds()) if kind in done]
    if options.out:
        options.out.write_text(table(found), encoding="utf-8")
    if options.json:
        print(json.dumps({"results": [result._asdict() for result in found]}))
    return int(any(result.outcome in ("wrong", "traceback") for result in found))


def _read(file: Path | None) -> dict[str, Result]:
    if file is None or not file.is_file():
        return {}
    return {line["kind"]: Result(**line) for line in map(json.loads, file.read_text().splitlines())}


def _note(result: Result, file: Path | None) -> None:
    print(f"{result.kind}: {result.outcome} ({result.stage}, {result.seconds} s) {result.said}", file=sys.stderr)
    if file is not None:
        with file.open("a") as lines:
            lines.write(json.dumps(result._asdict()) + "\n")


def _import_all() -> None:
    """Once, before the processes part: imports take longer than a trial."""
    import transformers.models.llama.modeling_llama

    import ppo.train
    import reward.train
    import sft.train

    modules: list[Any] = [transformers, ppo, reward, sft]
    assert modules


if __name__ == "__main__":
    from project_python import use_project_python

    use_project_python()
    sys.exit(main())
