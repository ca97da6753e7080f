"""Public tasks through lm-eval (the extra `eval`), and forgetting: tasks and a general text before and after training.

Differences are paired: both models answer the same questions and read the same documents, which are resampled whole.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from alignment.config.sections import ModelConfig
from alignment.errors import ModelError, UserError, require_extra
from alignment.evaluation.choosing import Columns, answer_columns, bits_per_byte, paired_difference
from alignment.evaluation.scored_rows import ScorableAnswers, open_rows, rows_to_score
from alignment.evaluation.scorers import PolicyScorer, load_scorer
from alignment.evaluation.scoring import ScoringJob, score_file
from alignment.intervals import Estimate, bootstrap_mean
from alignment.models.lengths import positions
from alignment.models.policies import load_policy
from alignment.models.sources import ModelSource, find_model
from alignment.models.tokenizers import load_tokenizer
from alignment.registry import Registry
from alignment.terminal import one_line

PASSAGE = 1000
"""Characters, at least, of the passages that a single text is cut into at empty lines."""


@dataclass(frozen=True)
class HarnessJob:
    """What is evaluated, and how.

    Args:
        tasks: names as lm-eval has them.
        task_folder: more tasks, as its YAML files.
        text: a file of general text, to tell forgetting by.
        limit: questions of each task.
        chat_template: render prompts by the model's own template.
    """

    tasks: tuple[str, ...] = ()
    task_folder: Path | None = None
    text: str | None = None
    limit: int | None = None
    num_fewshot: int | None = None
    batch_size: int = 8
    chat_template: bool = False
    dtype: str = "float32"
    trust_remote_code: bool = False


@dataclass(frozen=True)
class TaskScores:
    """One metric of one task: the mean as lm-eval tells it, and what each question gave, by its number.

    Args:
        questions: how many there were, None if lm-eval does not say.
        data_sha256: of the questions with their right answers.
    """

    value: float
    stderr: float | None
    by_question: dict[int, float]
    questions: int | None = None
    data_sha256: str | None = None


Measured = dict[tuple[str, str], TaskScores]


def evaluate(name: str, job: HarnessJob, registry: Registry, before: str | None = None) -> dict[str, Any]:
    """Evaluate a policy, and if `before` names another one, that too, with the paired differences.

    Raises:
        UserError: lm-eval is not installed, or does not have a task or its data; a model cannot be had.
    """
    if job.tasks:
        require_extra("eval", "lm_eval", purpose="alignment eval --tasks")
    names = [name] if before is None else [name, before]
    sources = [find_model(each, registry, role="policy") for each in names]
    found: dict[str, Any] = {"model": sources[0].label, "digest": sources[0].digest}
    if before is not None:
        found["before"] = {"model": sources[1].label, "digest": sources[1].digest}
    if job.tasks:
        manager = _task_manager(job)  # lists every task: once, and before a model is loaded
        found["tasks"] = task_report(*(run_tasks(source, job, manager) for source in sources))
        found["harness"] = _harness(job)
    if job.text is not None:
        found["text"] = text_report(job.text, *_read_text(names, job, registry))
        found["text"]["data_sha256"] = open_rows(job.text).fingerprint().get("sha256")
    return found


# --- tasks -----------------------------------------------------------------------------------------------------------


def run_tasks(source: ModelSource, job: HarnessJob, manager: Any) -> Measured:
    """The tasks' metrics under one model.

    Args:
        manager: lm-eval's TaskManager, which has the tasks.

    Raises:
        UserError: a task cannot be run, such as one whose data cannot be had.
    """
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    options = ModelConfig(name=source.label, dtype=job.dtype, trust_remote_code=job.trust_remote_code)  # type: ignore[arg-type]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = load_policy(source, options).to(device).eval()
    known = positions(source.config_path, job.trust_remote_code)
    tokenizer = load_tokenizer(source, options)
    harness = HFLM(
        pretrained=model, tokenizer=tokenizer, batch_size=job.batch_size, max_length=known[0] if known else None
    )
    try:
        found = simple_evaluate(
            model=harness,
            tasks=list(job.tasks),
            num_fewshot=job.num_fewshot,
            limit=job.limit,
            task_manager=manager,
            apply_chat_template=job.chat_template,
            log_samples=True,
            bootstrap_iters=0,
        )
    except (UserError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # a task is a program of somebody else's; any of its errors ends in one line
        raise UserError(
            f"--tasks {','.join(job.tasks)}: lm-eval ended with {type(error).__name__}: "
            f"{one_line(str(error))[:300]}; is its data set here, or the hub within reach?"
        ) from error
    assert found is not None
    return dict(_measured(found))


def _task_manager(job: HarnessJob) -> Any:
    """lm-eval's own tasks, and those of the folder; only these where they are enough, since its own take long to list.

    Raises:
        UserError: a task is unknown, or the folder is missing.
    """
    from lm_eval.tasks import TaskManager

    if job.task_folder is not None and not job.task_folder.is_dir():
        raise UserError(f"--task-folder {job.task_folder}: no such folder; name one with lm-eval's YAML files")
    folder = None if job.task_folder is None else str(job.task_folder)
    manager = TaskManager(include_path=folder, include_defaults=folder is None)
    if folder is not None and not set(job.tasks) <= set(manager.all_tasks):
        manager = TaskManager(include_path=folder)
    unknown = sorted(set(job.tasks) - set(manager.all_tasks))
    if unknown:
        import difflib

        near = difflib.get_close_matches(unknown[0], manager.all_tasks, 1)
        hint = f"; did you mean {near[0]}?" if near else "; lm-eval ls tasks lists them"
        raise UserError(f"--tasks {unknown[0]}: lm-eval has no task or group of that name{hint}")
    return manager


def _measured(found: Mapping[str, Any]) -> Iterator[tuple[tuple[str, str], TaskScores]]:
    for task, figures in found["results"].items():
        samples = found.get("samples", {}).get(task, [])
        count, digest = found.get("n-samples", {}).get(task, {}).get("effective"), _digest(samples)
        for key, value in figures.items():
            metric, comma, filtered = key.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            stderr = figures.get(f"{metric}_stderr,{filtered}")
            of_filter = [sample for sample in samples if sample.get("filter", "none") == filtered]
            by_question = {
                int(sample["doc_id"]): float(sample[metric])
                for sample in of_filter
                if isinstance(sample.get(metric), int | float | bool)
            }
            name = metric if filtered == "none" else f"{metric}, {filtered}"
            error = float(stderr) if isinstance(stderr, int | float) else None
            yield (task, name), TaskScores(float(value), error, by_question, count, digest)


def _digest(samples: Sequence[Mapping[str, Any]]) -> str | None:
    """A hash over the questions and their right answers, in order."""
    asked = sorted({(int(each["doc_id"]), each["doc_hash"], each["target_hash"]) for each in samples})
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest() if asked else None


def _harness(job: HarnessJob) -> str:
    """Who judges a task, and how it was asked."""
    examples = "the task's own examples" if job.num_fewshot is None else f"{job.num_fewshot} examples"
    return f"lm-eval {version('lm-eval')} with {examples}{' and the chat template' * job.chat_template}"


def task_report(now: Measured, before: Measured | None = None) -> list[dict[str, Any]]:
    """A row for each task and metric; with `before` also the difference with a 95% interval over questions.

    The difference is that of the questions' means, where a metric is one of questions; else there is no interval.
    """
    rows = []
    for (task, metric), found in now.items():
        row: dict[str, Any] = {
            "task": task,
            "metric": metric,
            "value": found.value,
            "stderr": found.stderr,
            "ci": _interval(found),
            "n": len(found.by_question) or found.questions,
            "data_sha256": found.data_sha256,
        }
        if before is not None and (earlier := before.get((task, metric))) is not None:
            row |= {"before": earlier.value, "difference": _paired(found, earlier)}
        rows.append(row)
    return rows


def _interval(found: TaskScores) -> tuple[float, float] | None:
    """The 95% interval over questions, where the metric is their mean."""
    values = list(found.by_question.values())
    if len(values) < 2 or not math.isclose(sum(values) / len(values), found.value, abs_tol=1e-9):
        return None
    return bootstrap_mean(values)["ci"]


def _paired(now: TaskScores, before: TaskScores) -> Mapping[str, Any]:
    questions = sorted(now.by_question.keys() & before.by_question.keys())
    if not questions:
        return {"value": now.value - before.value, "ci": None, "n": 0}
    changes = [now.by_question[number] - before.by_question[number] for number in questions]
    estimate: Estimate = bootstrap_mean(changes)
    return estimate


# --- a general text --------------------------------------------------------------------------------------------------


def _read_text(names: Sequence[str], job: HarnessJob, registry: Registry) -> list[Columns]:
    assert job.text is not None
    found = []
    with tempfile.TemporaryDirectory() as folder:
        data = _as_documents(job.text, Path(folder) / "passages.jsonl")
        for number, name in enumerate(names):
            options = ModelConfig(name=name, dtype=job.dtype, trust_remote_code=job.trust_remote_code)  # type: ignore[arg-type]
            scorer = load_scorer(name, registry, options)
            if not isinstance(scorer, PolicyScorer):
                raise ModelError(f"{name}: a reward model, which says nothing of texts; name a policy")
            out = Path(folder) / f"{number}.jsonl"
            score_file(scorer, ScoringJob(data), out)
            found.append(answer_columns(out))
    return found


def _as_documents(path: str, passages: Path) -> str:
    """The path itself; or of a single text a file of its passages, since one document has no interval."""
    found = [each for _, parts in rows_to_score(open_rows(path)) for each in parts]
    texts = [each.text for each in found if isinstance(each, ScorableAnswers)]
    if len(texts) != 1 or texts[0] is None:
        return path
    parts = [""]
    for paragraph in texts[0].split("\n\n"):
        if len(parts[-1]) >= PASSAGE:
            parts.append("")
        parts[-1] += f"\n\n{paragraph}" if parts[-1] else paragraph
    passages.write_text("".join(json.dumps({"text": part}) + "\n" for part in parts if part.strip()), encoding="utf-8")
    return str(passages)


def text_report(name: str, now: Columns, before: Columns | None = None) -> dict[str, Any]:
    """Bits per byte of a text, and with `before` how much they changed, with a 95% interval over documents.

    Raises:
        UserError: there is no document that both could read.
    """
    keys = sorted(now if before is None else now.keys() & before.keys())
    if not keys:
        raise UserError(f"--text {name}: no document of it could be scored")
    size = sum(now[key][1] for key in keys)
    row: dict[str, Any] = {
        "text": name,
        "documents": len({now[key][4] for key in keys}),
        "bytes": int(size),
        "bits_per_byte": sum(now[key][0] for key in keys) / size,
        "ci": bits_per_byte(now, keys)["ci"] if len({now[key][4] for key in keys}) > 1 else None,
    }
    if before is not None:
        row["before"] = sum(before[key][0] for key in keys) / size
        difference: Mapping[str, Any] = paired_difference(now, before, keys)
        row["difference"] = difference if row["documents"] > 1 else {**difference, "ci": None}
    return row
