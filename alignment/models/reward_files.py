"""What a reward model's files say: its heads and their offsets, or its members, before any weight is loaded."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from alignment.errors import ModelError
from alignment.models.names import ENSEMBLE
from alignment.models.sources import ModelSource

SCORE = "score.json"
"""Beside a reward model that is an adapter: `score_bias`, and the names of several heads."""
Bias = float | list[float]
"""A constant that is taken off the scores; one for each head where there are several."""


def head_names(config: PreTrainedConfig) -> tuple[str, ...]:
    """The heads of a reward model of several attributes, by its config; empty for any other model.

    A list of offsets marks them: the labels of a classifier of other makers (spam or not) are no scores of answers.
    """
    if not isinstance(getattr(config, "score_bias", None), list):
        return ()
    return tuple(config.id2label[index] for index in range(len(config.score_bias)))


def saved_heads(source: ModelSource) -> tuple[str, ...]:
    """The heads of a reward model by its files, as `ScalarModel.heads`."""
    is_adapter = source.base is not None and (Path(source.path) / SCORE).is_file()
    return adapter_heads(source.path) if is_adapter else heads_in_folder(source.path)


def heads_in_folder(path: str) -> tuple[str, ...]:
    """The heads of the reward model of a folder; empty for any other model."""
    file = Path(path) / "config.json"
    try:
        return head_names(PreTrainedConfig(**json.loads(file.read_text(encoding="utf-8"))))
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return ()  # loading says what is wrong, and a hub name has no folder


def read_score_bias(folder: str) -> Bias:
    """The score bias of an adapter, which has no config of its own for it.

    Raises:
        ModelError: it is missing or not a finite number.
    """
    return _read_score(folder)[0]


def adapter_heads(folder: str) -> tuple[str, ...]:
    """The heads of an adapter, as `ScalarModel.heads`.

    Raises:
        ModelError: as `read_score_bias`.
    """
    return _read_score(folder)[1]


def _read_score(folder: str) -> tuple[Bias, tuple[str, ...]]:
    path = Path(folder) / SCORE
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        given, heads = record["score_bias"], tuple(map(str, record.get("attributes", ())))
        bias: Bias = [float(number) for number in given] if isinstance(given, list) else float(given)
        if not all(map(math.isfinite, biases(bias))):
            raise ValueError(f"score_bias is {bias}")
        if len(heads) != (len(bias) if isinstance(bias, list) else 0):
            raise ValueError(f"score_bias is {bias}, and attributes are {', '.join(heads) or 'none'}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path}: not the score offset of a reward adapter ({error}); publish it again") from error
    return bias, heads


def write_score_bias(folder: Path, score_bias: Bias, heads: Sequence[str] = ()) -> None:
    """Write the file of `read_score_bias` and `adapter_heads`."""
    record = {"score_bias": score_bias} | ({"attributes": list(heads)} if heads else {})
    (folder / SCORE).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def biases(bias: Bias) -> list[float]:
    """One number for each head."""
    return bias if isinstance(bias, list) else [bias]


def is_ensemble(source: ModelSource | str) -> bool:
    """Whether a model's files are those of an ensemble."""
    return (Path(source if isinstance(source, str) else source.path) / ENSEMBLE).is_file()


def num_members(source: ModelSource) -> int:
    """The number of reward models in an ensemble; 1 for any other model."""
    return int(read_ensemble(source)["members"]) if is_ensemble(source) else 1


def member_name(number: int) -> str:
    return f"member-{number}"


def read_ensemble(source: ModelSource) -> dict[str, Any]:
    path = Path(source.path) / ENSEMBLE
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if int(record["members"]) < 1 or (source.base and len(record["score_bias"]) != record["members"]):
            raise ValueError("members and score_bias do not fit each other")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path}: not the description of an ensemble ({error}); publish it again") from error
    return record
