"""Find the sequences over which the published scores average 0: SFT demonstrations (InstructGPT, section 3.5)."""

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
class NormalizationSet:
    """Sequences whose mean score becomes 0."""

    over: str
    """`demonstrations` or `training completions`."""
    where: str
    """The file of the demonstrations, or the reason why there are none."""
    questions: list[Question]
    """One completion each, without pairs."""

    def summary(self) -> dict[str, str | int]:
        return {"zero_over": self.over, "zero_from": self.where, "zero_sequences": len(self.questions)}


def find_normalization_set(
    config: RewardStageConfig,
    registry: Registry,
    source: ModelSource,
    tokenizer: PreTrainedTokenizerBase,
    judged: Sequence[Question],
) -> NormalizationSet:
    """Up to 512 demonstrations: from `reward.demonstrations`, or the training data of the initial model's SFT stage if
    its file is unchanged. Otherwise the completions of the training data.

    Raises:
        DataError: the file named in the config cannot be read.
    """
    path = config.reward.demonstrations
    if path is not None:
        rows = read_records(path, to_demonstrations, DataConfig(train=path)).items
        encoded = _encoded(rows, tokenizer, config.data.max_length)
        if not encoded:
            raise DataError(
                f"reward.demonstrations={path}: none of its {len(rows)} demonstrations fits into data.max_length="
                f"{config.data.max_length}"
            )
        return NormalizationSet("demonstrations", path, encoded)
    try:
        where, rows = _sft_demonstrations(registry, source)
        encoded = _encoded(rows, tokenizer, config.data.max_length)
        if encoded:
            return NormalizationSet("demonstrations", where, encoded)
        reason = f"no demonstration of {where} fits into data.max_length={config.data.max_length}"
    except UserError as error:
        reason = str(error)
    sequences = [ids for question in judged for ids in question.sequences]
    return NormalizationSet("training completions", reason, [_alone(ids) for ids in _sample(sequences)])


def _sft_demonstrations(registry: Registry, source: ModelSource) -> tuple[str, list[Demonstration]]:
    """The path and the demonstrations of the nearest SFT stage among a model's ancestors.

    Raises:
        UserError: they are not available.
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
    recorded = {(entry.name, entry.sha256) for entry in manifest.data if entry.use == "train"}
    current = {(entry["name"], entry.get("sha256")) for entry in records.fingerprints}
    if current != recorded:
        raise DataError(f"{data.parts[0].path}: the file has changed since {label} was trained on it")
    return data.parts[0].path, records.items


def _sft_ancestor(registry: Registry, ref: str) -> Manifest | None:
    """The nearest manifest of stage `sft` among a model and its chain of initial models."""
    seen: set[str] = set()
    while ref not in seen and registry.is_reference(ref):
        seen.add(ref)
        manifest = registry.resolve(ref).manifest
        if manifest.stage == "sft":
            return manifest
        ref = next((parent.ref for parent in manifest.parents if parent.role == "init"), ref)
    return None


def _encoded(rows: Sequence[Demonstration], tokenizer: PreTrainedTokenizerBase, max_length: int) -> list[Question]:
    plain = [row for row in rows if not row.tools]  # reward models are not trained on tools
    encoded = [(row, encode_conversation(tokenizer, row.messages)) for row in _sample(plain)]
    fitted = (fit_record(row, encoding, tokenizer, max_length) for row, encoding in encoded)
    return [_alone(row.input_ids) for row in fitted if row is not None]


def _sample(rows: Sequence[T]) -> list[T]:
    return list(rows) if len(rows) <= SAMPLE else random.Random(0).sample(list(rows), SAMPLE)


def _alone(ids: list[int]) -> Question:
    return Question([], [ids], ())
