"""The prompts of a comparison, each once, with their reference answers; and the comparison of their answers."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from alignment.config.sections import DataConfig, Format
from alignment.data.parsing import to_demonstrations, to_prompts
from alignment.data.reading import read_records
from alignment.data.records import Prompt
from alignment.data.row_files import BadRow
from alignment.errors import UserError
from alignment.evaluation.answers import AnswersContent, prompt_id
from alignment.evaluation.comparison import ANSWERS, RESULT, ComparisonSetup
from alignment.evaluation.judgments import AnsweredPrompts
from alignment.evaluation.score_judges import REFERENCE
from alignment.terminal import counted


@dataclass(frozen=True)
class PromptSet:
    """Prompts that differ, and the name of the file that they come from."""

    items: list[Prompt]
    name: str

    @property
    def sha256(self) -> str:
        """Of the prompts themselves, in any order."""
        return hashlib.sha256("".join(sorted(prompt_id(each.messages) for each in self.items)).encode()).hexdigest()


def read_prompts(
    path: str, limit: int | None, slices: Sequence[str], columns: Mapping[str, str | None] | None = None
) -> PromptSet:
    """The prompts of a data file; a repeated one is left out.

    Args:
        columns: keys that are renamed, as `--column` has it.

    Raises:
        UserError: there are none, more than 1% of the rows are bad, or a slice is no column of them.
    """
    config = DataConfig(train=path, columns=dict(columns or {}))
    records = read_records(path, _with_reference, config.model_copy(update={"max_bad_share": 1.0}))
    total = len(records.items) + len(records.bad)
    for place, reason in records.bad[:1]:
        if len(records.bad) > config.max_bad_share * total:
            bad = f"{len(records.bad)} of {total} rows are bad" if total > 1 else "the only row is bad"
            raise UserError(f"{place}: {reason} ({bad}); correct them or take them out")
        print(f"{place}: {reason} ({counted(len(records.bad), 'row')} left out)", file=sys.stderr)
    found: dict[str, Prompt] = {}
    for prompt in records.items[:limit]:
        found.setdefault(prompt_id(prompt.messages), prompt)
    if repeated := len(records.items[:limit]) - len(found):
        print(f"{path}: {counted(repeated, 'row')} with a prompt that came before left out", file=sys.stderr)
    prompts = PromptSet(list(found.values()), path)
    _check_slices(prompts, slices)
    return prompts


def _with_reference(row: Mapping[str, Any], format: Format) -> list[Prompt]:
    """A row's prompts; one whose row has an answer brings it as its reference."""
    prompts = to_prompts(row, format)
    if len(prompts) != 1 or REFERENCE in prompts[0].columns:
        return prompts
    try:
        (given,) = to_demonstrations(row, format)
    except (BadRow, ValueError):
        return prompts
    reference = given.messages[-1]["content"]
    return [replace(prompts[0], columns={**prompts[0].columns, REFERENCE: reference})]


def answered_prompts(
    content: AnswersContent, sides: Sequence[str], limit: int | None, slices: Sequence[str]
) -> PromptSet:
    """The prompts of an answers file that all of these sides have answered.

    Raises:
        UserError: an unknown side, fewer than two sides, no common prompt, or an unknown slice.
    """
    for side in sides:
        if side not in content.answers:
            raise UserError(f"{content.path} has no answers of {side}; it has those of {', '.join(content.answers)}")
    if len(set(sides)) < 2:
        raise UserError(f"{content.path}: one side alone ({sides[0]}); a comparison needs two")
    common = [key for key in content.prompts if all(key in content.answers[side] for side in sides)]
    if not common:
        raise UserError(f"{content.path}: no prompt has answers of all of {', '.join(sides)}; draw them again")
    if left_out := len(content.prompts) - len(common):
        print(f"{content.path}: {counted(left_out, 'prompt')} without an answer left out", file=sys.stderr)
    prompts = PromptSet([content.prompts[key] for key in common[:limit]], str(content.path))
    _check_slices(prompts, slices)
    return prompts


def _check_slices(prompts: PromptSet, slices: Sequence[str]) -> None:
    columns = list(dict.fromkeys(name for prompt in prompts.items for name in prompt.columns))
    for name in slices:
        if name not in columns:
            known = ", ".join(map(str, columns)) or "none"
            raise UserError(f"--slice {name}: no such column in {prompts.name}; its columns: {known}")


def check_folder(folder: Path, prompts: PromptSet) -> None:
    """Refuse a folder that has the result of other prompts, which would be replaced.

    Raises:
        UserError: the message names both files.
    """
    try:
        known = json.loads((folder / RESULT).read_text(encoding="utf-8"))["prompts"]
        name, sha256 = str(known["name"]), known["sha256"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return  # there is no result that could be lost
    same_file = Path(name).resolve() in (Path(prompts.name).resolve(), (folder / ANSWERS).resolve())
    if sha256 != prompts.sha256 and not same_file:
        raise UserError(
            f"--out {folder}: has a comparison on other prompts, those of {name}; yours are those of {prompts.name}: "
            "name another folder with --out"
        )


def comparison_of(
    content: AnswersContent, sides: Sequence[str], prompts: PromptSet, slices: Sequence[str], seed: int
) -> ComparisonSetup:
    """The comparison of these sides on these prompts."""
    asked = {prompt_id(prompt.messages): prompt for prompt in prompts.items}
    answers = {side: {key: content.answers[side][key] for key in asked} for side in sides}
    assert content.settings is not None
    return ComparisonSetup(
        AnsweredPrompts(asked, list(sides), answers),
        {side: content.sides[side] for side in sides},
        {"name": prompts.name, "sha256": prompts.sha256},
        asdict(content.settings),
        slices,
        seed,
    )
