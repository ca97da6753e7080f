"""Runs of each stage with everything that a stage journals, made up in a moment and written by the real journal."""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Sequence
from pathlib import Path

from helpers.journals import CONFIGS

from alignment.runs.journal import Journal
from alignment.runs.metrics import HISTOGRAMS, STAGES
from alignment.runs.run import Run

HOSTILE = (
    "</script><script>document.title='run'</script>",
    "<img src=x onerror=\"document.title='run'\">",
    '"><svg onload="document.title=\'run\'">',
    "<!--<script>",
    "' onmouseover=document.title='run' x='",
    "javascript:document.title='run'",
    "{{ 7 * 7 }}{% raw %}",
    "</style><style>body{display:none}",
    "<iframe src=//evil.example></iframe><link rel=stylesheet href=//evil.example><base href=//evil.example>",
    "\x1b[31mred\u202egnp.exe\u2028\u0000]]>",
    "w" * 300,
)
"""Texts that mean harm to a page."""


def value_of(name: str, step: int, steps: int) -> float:
    """A smooth course with some noise, other for each metric; a share stays one."""
    rng = random.Random(f"{name} {step}")
    return min(1.0, max(0.0, 0.2 + 0.6 * step / max(1, steps) + 0.05 * rng.random()))


def full_run(
    path: Path, stage: str, steps: int = 20, texts: Sequence[str] = ("An answer.", "Another one."), **config: object
) -> Path:
    """A finished run in which nothing was found.

    Args:
        texts: what people, models and files are called and say; used wherever a run has a text of others.
    """
    path.mkdir(parents=True)
    known = {
        "name": path.name,
        "registry": {"name": "m", "path": str(path.parent / "none")},
        **CONFIGS[stage],
        **config,
    }
    (path / "config.json").write_text(json.dumps(known))
    Run().started(None).write(path)
    text = itertools.cycle(texts)
    with Journal(path, stage=stage) as journal:
        journal.watching(["a thing", "another"])
        marks = [{"name": next(text), "rows": 7, "split": next(text)}]
        journal.event("data", train=marks, notes=[next(text)])
        for step in range(1, steps + 1):
            names = [metric.name.replace("/*", f"/{next(text)}") for metric in STAGES[stage]]
            journal.log(step, {name: value_of(name, step, steps) for name in names})
        for step in sorted({0, steps // 2, steps}):
            for metric in HISTOGRAMS[stage]:
                journal.histogram(step, metric.name, [math.sin(n) + step for n in range(100)])
            journal.samples(step, [sample(stage, number, step, next(text), next(text)) for number in range(3)])
        if stage == "reward":
            labelers = {next(text): {"rated": 9, "skips": 1, "seconds": 2.0, "position": {"value": 0.5}, "weight": 1.0}}
            estimate = {"value": 0.4, "ci": [0.3, 0.5], "n": 99}
            journal.event("labels", source=next(text), alpha=estimate, three_way=estimate, labelers=labelers)
        journal.event("published", model=f"m@v1 {next(text)}")
    bad = [{"where": next(text), "reason": next(text)}]
    (path / "bad_rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in bad))
    (path / "exit.json").write_text(json.dumps({"code": 0, "reason": "done"}))
    return path


def sample(stage: str, number: int, step: int, prompt: str, answer: str) -> dict[str, object]:
    """A row of samples.jsonl, as each stage has them."""
    row: dict[str, object] = {"id": number, "prompt": [{"role": "user", "content": f"{number}: {prompt}"}]}
    if stage == "reward":
        return row | {"first": answer, "second": f"{answer} {step}", "first_score": 0.5, "second_score": step / 9}
    row |= {"response": f"{answer} said at {step}, {'as before' if number else 'more'}"}
    if stage == "sft":
        return row | {"reference": "What people wrote."}
    return row | {"score": number - step / 7, "kl": 0.1 * step, "length": 9, "ended": number != 1}
