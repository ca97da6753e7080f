"""What `--by` can name: checked without torch, so that a mistyped judge is told at once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from alignment.errors import UserError
from alignment.models.names import check_name, split_head
from alignment.registry import Registry

Metric = Literal["exact", "f1", "chrf"]
METRICS: tuple[Metric, ...] = ("exact", "f1", "chrf")
READ_BY_MODEL = ("refusals", "support")
"""Checks that a judge model reads better."""
CHECKS = "json[=SCHEMA.json], refusals[=COLUMN], consistency=COLUMN, support=COLUMN"
KINDS = f"people, reward=REF, python=FILE.py:FUNCTION, model=http://HOST/v1#NAME, references, {CHECKS}"
_NEEDS_MORE = ("reward", "python", "model", "consistency", "support")
_STANDS_ALONE = ("references", "json", "refusals")


def check_judges(by: Sequence[str], registry: Registry, db: Path | None, judge_model: str | None) -> None:
    """Refuse a judge that cannot be meant, and options that no judge reads.

    Args:
        by: as the command line gives them.
        db: the ratings file of `people`.
        judge_model: the model that reads refusals and support.

    Raises:
        UserError: an unknown judge, or one without what it needs; RegistryError, ModelError: no such model.
    """
    if db is not None and "people" not in by:
        raise UserError(f"--db {db}: read by --by people alone; add --by people")
    if judge_model is not None and not any(text.partition("=")[0] in READ_BY_MODEL for text in by):
        raise UserError(
            f"--judge-model {judge_model}: read by --by {' and --by '.join(READ_BY_MODEL)} alone; add one of them"
        )
    for text in by:
        kind, _, what = text.partition("=")
        _check_kind(text, kind, what)
        if kind == "people" and db is None:
            raise UserError("--by people: name the ratings file, as in --by people --db ratings.db")
        if kind == "reward":
            check_name(split_head(what)[0], registry, "reward")
        elif kind == "model" and not what.startswith(("http://", "https://")):
            check_name(what, registry, "policy")
    if judge_model is not None and not judge_model.startswith(("http://", "https://")):
        check_name(judge_model, registry, "policy")


def _check_kind(text: str, kind: str, what: str) -> None:
    """Whether `KIND` or `KIND=WHAT` has the form of a judge, and the files that it names are there."""
    if kind == "references" and what and what not in METRICS:
        raise UserError(f"--by {text}: expected references, or references= one of {', '.join(METRICS)}")
    known = kind in _STANDS_ALONE or text == "people" or (kind in _NEEDS_MORE and bool(what))
    if not known or (kind == "python" and ":" not in what):
        raise UserError(f"--by {text}: expected one of {KINDS}")
    file = {"json": what, "python": what.rpartition(":")[0]}.get(kind, "")
    if file.endswith((".py", ".json")) and not Path(file).expanduser().is_file():
        problem = "cannot be imported" if kind == "python" else "cannot be read"
        raise UserError(f"--by {text}: {file} {problem}: no such file")
