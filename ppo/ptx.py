"""Demonstrations that are mixed into the updates (PPO-ptx; Ouyang et al. 2022, section 3.5)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedTokenizerBase

from alignment.config import ConfigError, DataConfig
from alignment.data import check_bad, read_records, to_demonstrations
from alignment.templates import Unrenderable, encode_conversation
from ppo.config import PPOStageConfig
from ppo.sequences import Row


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
    found = read_records(path, to_demonstrations, section)
    rows, unrenderable = [], []
    for record in found.items:
        try:
            encoded = encode_conversation(tokenizer, list(record.messages), config.data.max_length, record.tools)
        except Unrenderable as reason:
            unrenderable.append((record.place, str(reason)))
            continue
        if encoded is None:
            continue
        ids, kept = encoded.input_ids, encoded.loss_mask
        start = max(1, kept.index(True))
        rows.append(Row(ids[:start], ids[start:], kept[start:]))
    check_bad(path, len(found.items) - len(unrenderable), unrenderable, section.max_bad_share)
    if not rows:
        raise ConfigError(f"ptx.train={path}: no row fits data.max_length={config.data.max_length}")
    return PTXData(rows, list(found.fingerprints), [*found.bad, *unrenderable])
