"""The last hidden state of each answer of a ratings file, kept beside the file so that it is computed once.

What is kept is a line of JSON and then one record for each answer: a digest of the prompt and the answer, and the
hidden state in float32. No text and no labeler is in it, and it may be deleted at any time.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from alignment.data.trimming import fit
from alignment.errors import UserError
from alignment.files import disk_errors
from alignment.models.lengths import positions
from alignment.models.saved_adapters import folder_digest
from alignment.models.scalar import Float32Linear, ScalarModel, load_scalar_model
from alignment.models.sources import ModelSource
from alignment.models.tokenizers import load_tokenizer
from alignment.ratings import Item
from alignment.templates.control_tokens import Unrenderable
from alignment.templates.rendering import Encoded, Message, encode_conversation
from alignment.tensors import last_kept, pad_rows, shifted_left
from alignment.terminal import progress

TOKENS_AT_ONCE = 8192
Turns = Sequence[Mapping[str, str]]
Answer = tuple[Turns, str]
"""The turns of a prompt, and an answer to it."""
Hidden = NDArray[np.float32]


def encode_answer(
    tokenizer: PreTrainedTokenizerBase, prompt: Turns, text: str, max_length: int | None
) -> list[int] | None:
    """Token ids of a prompt with an answer; None if the template has no place for its roles or the answer is too long.

    The oldest part of a prompt that is longer than `max_length` is cut, as in training.
    """
    messages = [Message(role=turn["role"], content=turn["content"]) for turn in prompt]
    messages.append(Message(role="assistant", content=text))
    try:
        encoded: Encoded | None = encode_conversation(tokenizer, messages)
        if encoded is not None and max_length:
            encoded = fit(tokenizer, messages, encoded, max_length)
    except Unrenderable:
        return None
    return None if encoded is None else encoded.input_ids


def pair_texts(items: Iterable[Item]) -> list[Answer]:
    """All answers of the items that have two or more."""
    return [(item.prompt, each.text) for item in items if len(item.completions) > 1 for each in item.completions]


def hidden_states(source: ModelSource, answers: Sequence[Answer], beside: str | Path, trained: bool = True) -> Hidden:
    """The hidden state that the score head reads of each answer, (answers, H); NaN where it cannot be encoded.

    The model is loaded only if an answer is not in the model's file beside `beside`, which is then extended.

    Args:
        beside: the ratings file.
        trained: whether the model must be a reward model; else a policy's hidden states are taken as well.

    Raises:
        ModelError: see `load_scalar_model`.
        UserError: the file beside it cannot be written.
    """
    digest = source.digest or (folder_digest(source.path) if Path(source.path).is_dir() else source.path)
    name = hashlib.sha256(f"{digest}\0{trained}".encode()).hexdigest()[:12]
    path = Path(beside).with_name(f"{Path(beside).name}.features-{name}")
    keys = [answer_key(answer) for answer in answers]
    with FeatureFile(path) as kept:
        missing = {key: answer for key, answer in zip(keys, answers, strict=True) if key not in kept.rows}
        if missing:
            scalar, tokenizer = load_scalar_model(source, trained=trained).eval(), load_tokenizer(source)
            scalar.to("cuda" if torch.cuda.is_available() else "cpu")
            limit = positions(source.config_path)
            for some, states in _computed(scalar, tokenizer, missing, limit[0] if limit else None):
                kept.append(some, states)
        return kept.read(keys)


def answer_key(answer: Answer) -> bytes:
    """16 bytes that stand for a prompt and an answer."""
    turns = [[turn["role"], turn["content"]] for turn in answer[0]]
    return hashlib.sha256(json.dumps([turns, answer[1]]).encode()).digest()[:16]


class FeatureFile:
    """Hidden states by the key of their answer. One process at a time has the file open; others wait."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.rows: dict[bytes, int] = {}
        self._file: BinaryIO
        self._width = self._start = 0

    def __enter__(self) -> FeatureFile:
        with self._errors():
            self._file = self._path.open("a+b")
        fcntl.flock(self._file, fcntl.LOCK_EX)
        self._file.seek(0)
        head = self._file.readline()
        if head.endswith(b"\n"):
            self._width, self._start = int(json.loads(head)["width"]), len(head)
            records = self._records()
            self.rows = {key.tobytes(): row for row, key in enumerate(records["key"])}
            # A kill may have left half a record, or half a first line.
            self._file.truncate(self._start + len(records) * self._type.itemsize)
        else:
            self._file.truncate(0)
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def _errors(self) -> AbstractContextManager[None]:
        return disk_errors(f"{self._path}: cannot be written, and it keeps the hidden states", UserError)

    @property
    def _type(self) -> np.dtype[np.void]:
        return np.dtype([("key", "V16"), ("hidden", "<f4", (self._width,))])

    def _records(self) -> NDArray[np.void]:
        size = self._path.stat().st_size - self._start
        count = size // self._type.itemsize
        if count == 0:
            return np.zeros(0, self._type)
        return np.memmap(self._path, self._type, "r", self._start, (count,))

    def append(self, keys: Sequence[bytes], hidden: Hidden) -> None:
        """Add states, (keys, H)."""
        head = b""
        if self._start == 0:
            head = json.dumps({"width": hidden.shape[1]}).encode() + b"\n"
            self._width, self._start = hidden.shape[1], len(head)
        records = np.zeros(len(keys), self._type)
        records["key"] = np.frombuffer(b"".join(keys), "V16")
        records["hidden"] = hidden
        with self._errors():
            self._file.write(head + records.tobytes())
            self._file.flush()
        self.rows |= {key: len(self.rows) + row for row, key in enumerate(keys)}

    def read(self, keys: Sequence[bytes]) -> Hidden:
        """The states of these answers, (keys, H)."""
        if not keys:
            return np.zeros((0, self._width), np.float32)
        return np.array(self._records()["hidden"][[self.rows[key] for key in keys]])


def _computed(
    scalar: ScalarModel,
    tokenizer: PreTrainedTokenizerBase,
    missing: Mapping[bytes, Answer],
    max_length: int | None,
) -> Iterator[tuple[list[bytes], Hidden]]:
    """Keys and states of the missing answers, by length, so that rows of a batch need little padding."""
    encoded = {key: encode_answer(tokenizer, *answer, max_length) for key, answer in missing.items()}
    by_length = sorted(((ids, key) for key, ids in encoded.items() if ids), key=lambda each: len(each[0]))
    width = 0
    with progress("hidden states", len(missing)) as line:
        while by_length:
            count = 1
            while count < len(by_length) and (count + 1) * len(by_length[count][0]) <= TOKENS_AT_ONCE:
                count += 1
            batch, by_length = by_length[:count], by_length[count:]
            ids, mask = pad_rows([ids for ids, _ in batch], int(tokenizer.pad_token_id), "right")
            states = last_states(scalar, ids, mask).numpy()
            width = states.shape[1]
            yield [key for _, key in batch], states
            line.advance(count)
    if width and (left_out := [key for key, ids in encoded.items() if not ids]):
        yield left_out, np.full((len(left_out), width), np.nan, np.float32)


@torch.no_grad()
def last_states(scalar: ScalarModel, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """What the score head reads of each sequence: (B, L) -> (B, H) float32 on the CPU."""
    device = next(scalar.parameters()).device
    head = [module for module in scalar.model.modules() if isinstance(module, Float32Linear)][-1]
    with _input_of(head) as seen:
        scalar.score(input_ids.to(device), attention_mask.to(device))
    hidden = seen[-1]
    if hidden.dim() == 3:  # a decoder's head reads every token
        _, mask = shifted_left(input_ids, attention_mask)
        hidden = hidden[torch.arange(len(hidden)), last_kept(mask).to(device)]
    return hidden.float().cpu()


@contextmanager
def _input_of(module: torch.nn.Module) -> Iterator[list[Tensor]]:
    """Collect what a module is given."""
    seen: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    try:
        yield seen
    finally:
        handle.remove()
