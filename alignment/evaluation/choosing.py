"""Which base model is nearest to a user's text: bits per byte, which can be compared across tokenizers, and the rest
that decides (size, context, license, memory to train).
"""

from __future__ import annotations

import gc
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoConfig

from alignment.config.sections import ModelConfig
from alignment.errors import UserError
from alignment.evaluation.scorers import PolicyScorer, load_scorer
from alignment.evaluation.scoring import ScoringJob, score_file
from alignment.files import replace_text
from alignment.intervals import Estimate, bootstrap_sums
from alignment.memory.plan import SINGLE, estimate
from alignment.memory.shapes import sized
from alignment.memory.workload import Pass, Workload
from alignment.models.blocks import LOGITS_AT_ONCE
from alignment.models.importing.model import license_in
from alignment.models.lengths import positions
from alignment.models.sources import ModelSource
from alignment.registry import Registry
from alignment.templates.rendering import TemplateError

SEQUENCES, LENGTH = 8, 1024
"""Of the optimizer step whose memory is told: the defaults of `python -m sft`."""
SUMMARY = "choose.json"
Columns = dict[tuple[int, int, int], tuple[float, float, float, float, str]]
"""Of each answer, by row, part and place: bits, bytes, tokens, words, and the hash of its prompt."""


@dataclass(frozen=True)
class ChoosingJob:
    """What the candidates are compared on, and how they are loaded."""

    scoring: ScoringJob
    dtype: str = "float32"
    template: str | None = None
    trust_remote_code: bool = False


def choose(names: Sequence[str], job: ChoosingJob, registry: Registry, out: Path) -> dict[str, Any]:
    """Score the text under each base, one after the other, and compare them on the rows that all of them can read.

    Args:
        out: a folder that keeps each base's scores, so that a run that was killed goes on where it was.

    Raises:
        UserError: none of the models can be had, or the data cannot be read.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out}: no folder can be made there: {error.strerror}") from None
    found: dict[str, dict[str, Any]] = {}
    columns: dict[str, Columns] = {}
    failed: dict[str, str] = {}
    for name in dict.fromkeys(names):
        file = out / f"{re.sub(r'[^A-Za-z0-9_.-]+', '-', name).strip('-.')}.jsonl"
        try:
            found[name] = _facts(name, job, registry, file)
        except UserError as error:
            failed[name] = str(error)
            continue
        columns[name] = answer_columns(file)
    if not found:
        raise UserError(next(iter(failed.values())))
    result = compare(found, columns) | {"data": job.scoring.data, "failed": failed}
    replace_text(out / SUMMARY, json.dumps(result, indent=2) + "\n")
    return result


def _facts(name: str, job: ChoosingJob, registry: Registry, file: Path) -> dict[str, Any]:
    """Score the text, and say what else is known of a base."""
    scorer, template = _load(name, job, registry)
    source = scorer.source
    score_file(scorer, job.scoring, file)
    known = positions(source.config_path, job.trust_remote_code)
    facts = {
        "model": source.label,
        "digest": source.digest,
        "template": template,
        "parameters": sum(parameter.numel() for parameter in scorer.model.parameters()),
        "vocabulary": len(scorer.tokenizer),
        "context": known[0] if known else None,
        "license": _license(source, registry),
        "train_memory_gb": memory_to_train(source, job.trust_remote_code),
    }
    del scorer
    gc.collect()  # two candidates need not fit into memory together
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return facts


def _load(name: str, job: ChoosingJob, registry: Registry) -> tuple[PolicyScorer, str]:
    """A base with its own template, else the one asked for, else `plain`."""
    options = ModelConfig(name=name, dtype=job.dtype, trust_remote_code=job.trust_remote_code, template=job.template)  # type: ignore[arg-type]
    template = job.template or "its own"
    try:
        scorer = load_scorer(name, registry, options)
    except TemplateError:
        template = "plain"
        scorer = load_scorer(name, registry, options.model_copy(update={"template": template}))
    if not isinstance(scorer, PolicyScorer):
        raise UserError(f"{name}: a reward model, which says nothing of texts; name a language model")
    return scorer, template


def _license(source: ModelSource, registry: Registry) -> str | None:
    if source.ref is not None and (origin := registry.resolve(source.ref).manifest.origin) and origin.license:
        return origin.license
    if source.base is not None:
        return _license(source.base, registry)
    return license_in(Path(source.path)) if Path(source.path).is_dir() else None


def memory_to_train(source: ModelSource, trust_remote_code: bool = False) -> dict[str, float] | None:
    """GB on one GPU to fine-tune every weight, and an adapter, in bfloat16 arithmetic with checkpointed activations:
    8 rows of 1,024 tokens at a time. None for an architecture that memory is not planned for."""
    sizes: dict[str, float] = {}
    try:
        shape = AutoConfig.from_pretrained(source.config_path, trust_remote_code=trust_remote_code)
        for method in ("full", "lora"):
            model = sized(shape, ModelConfig(name=source.label, method=method, trust_remote_code=trust_remote_code))
            logits = max(1, LOGITS_AT_ONCE // model.shape.vocab_size)
            step = Pass(model, SEQUENCES * LENGTH, min(logits, SEQUENCES * LENGTH), repeated=False)
            work = Workload((model,), (step,), bf16=True, checkpointed=True)
            sizes[method] = round(estimate(work, SINGLE, 1).peak / 1e9, 6)
    except (UserError, OSError, ValueError):
        return None
    return sizes


def answer_columns(file: Path) -> Columns:
    """What a file of a policy's scores says of each answer."""
    found: Columns = {}
    with file.open(encoding="utf-8") as lines:
        for line in map(json.loads, lines):
            for place, bits in enumerate(line.get("bits_per_byte", ())):
                size = line["bytes"][place]
                value = (bits * size, size, line["text_tokens"][place], line["words"][place], line["prompt_id"])
                found[line["row"], line.get("part", 1), place] = value
    return found


def compare(facts: Mapping[str, Mapping[str, Any]], columns: Mapping[str, Columns]) -> dict[str, Any]:
    """The candidates, the nearest first, on the answers that all of them have: bits per byte with an interval over
    prompts, and how much more than the best one each needs, paired.

    Raises:
        UserError: there is no answer that all of them could score.
    """
    common = sorted(set.intersection(*(set(column) for column in columns.values())))
    if not common:
        raise UserError("no row could be scored by all of the models; see --out for what each said")
    first = next(iter(columns.values()))
    size = _array(first, common, 1)
    order = sorted(columns, key=lambda name: float(_array(columns[name], common, 0).sum()))
    best = order[0]
    rows = []
    for name in order:
        tokens, words = (float(_array(columns[name], common, index).sum()) for index in (2, 3))
        row: dict[str, Any] = {
            **facts[name],
            "bits_per_byte": bits_per_byte(columns[name], common),
            "tokens_per_word": tokens / max(words, 1.0),
            "behind_the_best": None,
        }
        if name != best:
            row["behind_the_best"] = paired_difference(columns[name], columns[best], common)
        rows.append(row)
    return {"answers": len(common), "bytes": int(size.sum()), "models": rows}


def _array(column: Columns, keys: Sequence[tuple[int, int, int]], index: int) -> NDArray[np.float64]:
    return np.array([column[key][index] for key in keys], dtype=np.float64)


def _ratio(total: NDArray[np.float64], size: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(total / np.maximum(size, 1e-12))


def bits_per_byte(column: Columns, keys: Sequence[tuple[int, int, int]]) -> Estimate:
    """The mean over these answers, with a 95% interval over prompts."""
    bits, size = (_array(column, keys, index) for index in (0, 1))
    return bootstrap_sums((bits, size), _ratio, [column[key][4] for key in keys])


def paired_difference(ours: Columns, theirs: Columns, keys: Sequence[tuple[int, int, int]]) -> Estimate:
    """Bits per byte of one less those of another on the same answers, with a 95% interval over prompts."""
    change = _array(ours, keys, 0) - _array(theirs, keys, 0)
    return bootstrap_sums((change, _array(ours, keys, 1)), _ratio, [ours[key][4] for key in keys])


def undecided(result: Mapping[str, Any]) -> Iterator[str]:
    """The models that are not significantly worse than the best."""
    for row in result["models"]:
        behind = row["behind_the_best"]
        if behind is not None and behind["ci"][0] <= 0:
            yield row["model"]
