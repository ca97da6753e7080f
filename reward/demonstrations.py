"""What the published scores average 0 over: demonstrations of the SFT stage (InstructGPT, section 3.5)."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from transformers import PreTrainedTokenizerBase

from alignment.config.loading import validate
from alignment.config.sections import DataConfig
from alignment.data.encoding import fit_record
from alignment.data.parsing import to_demonstrations
from alignment.data.reading import read_records, train_and_eval
from alignment.data.records import Demonstration
from alignment.data.row_files import DataError
from alignment.errors import UserError
from alignment.models.sources import ModelSource
from alignment.registry import Manifest, Registry
from alignment.templates.rendering import encode_conversation
from reward.config import RewardStageConfig
from reward.questions import Question

T = TypeVar("T")

SAMPLE = 512


@dataclass(frozen=True)
class Zero:
    """Sequences whose mean score becomes 0."""

    over: str
    """`demonstrations` or `training completions`."""
    where: str
    """The demonstrations' file, or why there are none."""
    questions: list[Question]
    """One completion each, nothing judged."""

    def summary(self) -> dict[str, str | int]:
        return {"zero_over": self.over, "zero_from": self.where, "zero_sequences": len(self.questions)}


def find_zero(
    config: RewardStageConfig,
    registry: Registry,
    source: ModelSource,
    tokenizer: PreTrainedTokenizerBase,
    judged: Sequence[Question],
) -> Zero:
    """Up to 512 demonstrations: those that `reward.demonstrations` names, or that the starting model's SFT stage
    learned from, where its file is still as it was. Else the completions that were judged.

    Raises:
        DataError: the file that the config names cannot be read.
    """
    named = config.reward.demonstrations
    if named is not None:
        rows = read_records(named, to_demonstrations, DataConfig(train=named)).items
        encoded = _encoded(rows, tokenizer, config.data.max_length)
        if not encoded:
            raise DataError(
                f"reward.demonstrations={named}: none of its {len(rows)} demonstrations fits into data.max_length="
                f"{config.data.max_length}"
            )
        return Zero("demonstrations", named, encoded)
    try:
        where, rows = _of_the_sft_stage(registry, source)
        encoded = _encoded(rows, tokenizer, config.data.max_length)
        if encoded:
            return Zero("demonstrations", where, encoded)
        reason = f"no demonstration of {where} fits into data.max_length={config.data.max_length}"
    except UserError as error:
        reason = str(error)
    sequences = [ids for question in judged for ids in question.sequences]
    return Zero("training completions", reason, [_alone(ids) for ids in _sample(sequences)])


def _of_the_sft_stage(registry: Registry, source: ModelSource) -> tuple[str, list[Demonstration]]:
    """Where the demonstrations are that the nearest SFT stage before a model learned from, and they.

    Raises:
        UserError: why they cannot be had.
    """
    if source.ref is None:
        raise DataError(f"{source.label} is not in the registry, so its demonstrations are not known")
    manifest = _sft_ancestor(registry, source.ref)
    if manifest is None:
        raise DataError(f"no SFT stage is among the ancestors of {source.ref}")
    section = (manifest.config or {}).get("data")
    label = f"{manifest.name}@v{manifest.version}"
    data = validate(DataConfig, section if isinstance(section, dict) else {}, label)
    records = train_and_eval(data, to_demonstrations)[0]
    recorded = {(mark.name, mark.sha256) for mark in manifest.data if mark.use == "train"}
    found = {(mark["name"], mark.get("sha256")) for mark in records.fingerprints}
    if found != recorded:
        raise DataError(f"{data.parts[0].path}: not the file any more that {label} learned from")
    return data.parts[0].path, records.items


def _sft_ancestor(registry: Registry, ref: str) -> Manifest | None:
    """The manifest of stage `sft` nearest to a model, itself included, along the models that each was started from."""
    seen: set[str] = set()
    while ref not in seen and registry.is_reference(ref):
        seen.add(ref)
        manifest = registry.resolve(ref).manifest
        if manifest.stage == "sft":
            return manifest
        ref = next((parent.ref for parent in manifest.parents if parent.role == "init"), ref)
    return None


def _encoded(rows: Sequence[Demonstration], tokenizer: PreTrainedTokenizerBase, max_length: int) -> list[Question]:
    plain = [row for row in rows if not row.tools]  # no reward model has seen tools
    encoded = [(row, encode_conversation(tokenizer, row.messages)) for row in _sample(plain)]
    fitted = (fit_record(row, whole, tokenizer, max_length) for row, whole in encoded)
    return [_alone(row.input_ids) for row in fitted if row is not None]


def _sample(rows: Sequence[T]) -> list[T]:
    return list(rows) if len(rows) <= SAMPLE else random.Random(0).sample(list(rows), SAMPLE)


def _alone(ids: list[int]) -> Question:
    return Question([], [ids], ())
