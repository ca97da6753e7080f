"""Demonstrations or texts that are mixed into the updates (PPO-ptx; Ouyang et al. 2022, section 3.5)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedTokenizerBase

from alignment.config.sections import DataConfig
from alignment.data.encoding import encode_parts, fit_record
from alignment.data.parsing import to_examples
from alignment.data.reading import check_bad, read_records
from alignment.data.records import Demonstration, Document
from alignment.errors import ConfigError
from alignment.templates.rendering import Encoded, Unrenderable
from ppo.config import PPOStageConfig
from ppo.rows import Row


@dataclass(frozen=True)
class PTXData:
    """Rows in the policy's tokens, and where they came from."""

    rows: list[Row] = field(default_factory=list)
    fingerprints: list[Mapping[str, Any]] = field(default_factory=list)
    bad: list[tuple[str, str]] = field(default_factory=list)
    """Rows that were set aside: where they stand, and why."""


def read_ptx(config: PPOStageConfig, tokenizer: PreTrainedTokenizerBase) -> PTXData:
    """The rows of `ptx.train`, read as `python -m sft` reads them; none where it is not set.

    Raises:
        DataError, ConfigError: too many rows that cannot be used, or none that fits `data.max_length`.
    """
    path = config.ptx.train
    if path is None:
        return PTXData()
    section = DataConfig(
        train=path, eval_share=0.0, max_length=config.data.max_length, max_bad_share=config.data.max_bad_share
    )
    records = read_records(path, to_examples, section)
    rows: list[Row] = []
    unrenderable: list[tuple[str, str]] = []
    for record in records.items:
        try:
            for part, encoded in encode_parts(record, tokenizer):
                rows += _rows(part, encoded, tokenizer, config.data.max_length)  # type: ignore[arg-type]
        except Unrenderable as reason:
            unrenderable.append((record.place, str(reason)))
    check_bad(path, len(records.items) - len(unrenderable), unrenderable, section.max_bad_share)
    if not rows:
        raise ConfigError(f"ptx.train={path}: no row fits data.max_length={config.data.max_length}")
    return PTXData(rows, list(records.fingerprints), [*records.bad, *unrenderable])


def _rows(
    record: Demonstration | Document, encoded: Encoded, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> list[Row]:
    """A demonstration as SFT cuts it, or none; a text in pieces, of which the first token has none to be read from."""
    if isinstance(record, Document):
        ids = encoded.input_ids
        pieces = [ids[start : start + max_length] for start in range(0, len(ids), max_length)]
        return [Row(piece[:1], piece[1:]) for piece in pieces if len(piece) > 1]
    fitted = fit_record(record, encoded, tokenizer, max_length)
    if fitted is None:
        return []
    start = max(1, fitted.loss_mask.index(True))
    return [Row(fitted.input_ids[:start], fitted.input_ids[start:], fitted.loss_mask[start:])]
