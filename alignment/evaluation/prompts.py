"""The prompts of a comparison, each once, with their reference answers; and the comparison of their answers."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from alignment.config.sections import DataConfig, Format
from alignment.data.parsing import to_demonstrations, to_prompts
from alignment.data.reading import read_records
from alignment.data.records import Prompt
from alignment.data.row_files import BadRow
from alignment.errors import UserError
from alignment.evaluation.answers import AnswersContent, prompt_id
from alignment.evaluation.comparison import ComparisonSetup
from alignment.evaluation.judgments import AnsweredPrompts
from alignment.evaluation.score_judges import REFERENCE


@dataclass(frozen=True)
class PromptSet:
    """Prompts that differ, and the name of the file that they come from."""

    items: list[Prompt]
    name: str

    @property
    def sha256(self) -> str:
        """Of the prompts themselves, in any order."""
        return hashlib.sha256("".join(sorted(prompt_id(each.messages) for each in self.items)).encode()).hexdigest()


def read_prompts(path: str, limit: int | None, slices: Sequence[str]) -> PromptSet:
    """The prompts of a data file; a repeated one is left out.

    Raises:
        UserError: there are none, or a slice is no column of them.
    """
    records = read_records(path, _with_reference, DataConfig(train=path))
    for place, reason in records.bad[:1]:
        print(f"{place}: {reason} ({len(records.bad)} rows are left out)", file=sys.stderr)
    found: dict[str, Prompt] = {}
    for prompt in records.items[:limit]:
        found.setdefault(prompt_id(prompt.messages), prompt)
    if repeated := len(records.items[:limit]) - len(found):
        print(f"{path}: {repeated} rows repeat a prompt and are left out", file=sys.stderr)
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
        print(f"{content.path}: {left_out} prompts lack an answer and are left out", file=sys.stderr)
    prompts = PromptSet([content.prompts[key] for key in common[:limit]], str(content.path))
    _check_slices(prompts, slices)
    return prompts


def _check_slices(prompts: PromptSet, slices: Sequence[str]) -> None:
    columns = list(dict.fromkeys(name for prompt in prompts.items for name in prompt.columns))
    for name in slices:
        if name not in columns:
            known = ", ".join(map(str, columns)) or "none"
            raise UserError(f"--slice {name}: no such column in {prompts.name}; its columns: {known}")


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
