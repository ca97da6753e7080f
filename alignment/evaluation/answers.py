"""Answers of several sides to the same prompts: a JSON-lines file that is written as they are drawn, and read again.

The first line has the settings, a line for each side says who it is, and each further line is one answer to one prompt.
So a killed run loses its last batch at most, and the file alone is enough to judge again.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

from alignment.data.records import Prompt
from alignment.errors import UserError
from alignment.files import disk_errors
from alignment.terminal import one_line

FORMAT = 1
"""Number of the file's layout."""
LATER = ("latency", "peak_bytes")
"""Fields that answers drawn earlier lack."""
RowKind = Literal["settings", "side", "answer"]


def prompt_id(messages: Sequence[Mapping[str, Any]]) -> str:
    """16 hex digits that name a prompt: a hash of its messages alone, so that the order of a file does not matter."""
    content = json.dumps([dict(message) for message in messages], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class SideAnswer:
    """What one side answered to one prompt. What nobody measured is None.

    Args:
        ended: whether it ended by itself.
        seconds: its share of the time that drawing took; those of all answers add up to it.
        latency: seconds from its request to its end; of the whole batch, where a batch is drawn together.
        peak_bytes: the accelerator's memory at its highest while it was drawn.
    """

    text: str
    ended: bool = True
    tokens: int | None = None
    seconds: float | None = None
    latency: float | None = None
    peak_bytes: int | None = None

    @property
    def digest(self) -> str:
        """16 hex digits of what a judge sees."""
        return hashlib.sha256(json.dumps([self.text, self.ended]).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class AnswerSettings:
    """How answers are drawn; the same for all sides of a file."""

    seed: int
    temperature: float
    max_new_tokens: int


class AnswersFile(AbstractContextManager["AnswersFile"]):
    """An answers file that this process owns and adds to.

    Args:
        settings: those of the new answers; a file with others is refused.

    Raises:
        UserError: it cannot be written, belongs to another process, is no answers file, or has other settings.
    """

    def __init__(self, path: Path, settings: AnswerSettings) -> None:
        self.path = path
        self.content = AnswersContent(path)
        self._file = _owned(path)
        try:
            self._read(settings)
        except BaseException:
            self._file.close()
            raise

    def _read(self, settings: AnswerSettings) -> None:
        self._file.seek(0)
        whole = self.content.read(self._file)
        self._file.truncate(whole)  # a kill may have left half a line
        if self.content.settings is None:
            self._append([{"row": "settings", "format": FORMAT, **asdict(settings)}])
            self.content.settings = settings
        _refuse_changes(self.path, "", asdict(self.content.settings), asdict(settings))

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def add_side(self, name: str, identity: Mapping[str, Any]) -> None:
        """Say who a side is.

        Raises:
            UserError: the file has answers of another side by this name.
        """
        if name in self.content.sides:
            _refuse_changes(self.path, f"side {name}: ", self.content.sides[name], identity)
            return
        self._append([{"row": "side", "side": name, **identity}])
        self.content.sides[name] = dict(identity)

    def add(self, side: str, prompts: Sequence[Prompt], answers: Sequence[SideAnswer]) -> None:
        """Add answers to prompts; they are on disk when this returns. Those that are there already are left out."""
        known = self.content.answers.setdefault(side, {})
        identity = self.content.sides[side]
        rows = []
        for prompt, answer in zip(prompts, answers, strict=True):
            key = prompt_id(prompt.messages)
            if key not in known:
                known[key] = answer
                self.content.prompts.setdefault(key, prompt)
                rows.append(answer_row(key, side, identity.get("digest"), prompt, answer))
        self._append(rows)

    def _append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        with disk_errors(f"{self.path}: cannot be written", UserError, "; what was drawn before is kept"):
            self._file.write("".join(json.dumps(row, default=str) + "\n" for row in rows).encode())
            self._file.flush()
            os.fsync(self._file.fileno())


def answer_row(key: str, side: str, digest: str | None, prompt: Prompt, answer: SideAnswer) -> dict[str, Any]:
    """An answer's line: it stands by itself, so that other tools can read the file."""
    return {
        "row": "answer",
        "prompt": key,
        "side": side,
        "digest": digest,
        "messages": [dict(message) for message in prompt.messages],
        **asdict(answer),
        "columns": dict(prompt.columns),
    }


class AnswersContent:
    """What stands in an answers file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.settings: AnswerSettings | None = None
        self.sides: dict[str, dict[str, Any]] = {}
        """Who each side is: model, digest, and how it is prompted."""
        self.prompts: dict[str, Prompt] = {}
        self.answers: dict[str, dict[str, SideAnswer]] = {}
        """By side and prompt."""

    def read(self, file: Iterable[bytes]) -> int:
        """Read lines; returns the bytes of the whole ones, without a last line that a kill cut off.

        Raises:
            UserError: a line is not of an answers file.
        """
        whole = 0
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                break
            whole += len(line)
            try:
                row = json.loads(line)
                self._take(row.pop("row"), row)
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                raise UserError(
                    f"{self.path}:{number}: not a line of an answers file ({type(error).__name__}: "
                    f"{one_line(str(error))[:80]}); name the answers.jsonl that `alignment compare` wrote"
                ) from None
        return whole

    def _take(self, kind: RowKind, row: dict[str, Any]) -> None:
        if kind == "settings":
            if row.pop("format") != FORMAT:
                raise ValueError("another version of this suite wrote it")
            self.settings = AnswerSettings(**row)
        elif kind == "side":
            self.sides[row.pop("side")] = row
        elif kind == "answer":
            key, side = row["prompt"], row["side"]
            fields: dict[str, Any] = {name: row.get(name) for name in LATER}
            fields |= {name: row[name] for name in SideAnswer.__dataclass_fields__ if name not in LATER}
            if side not in self.sides:
                raise ValueError(f"no line says who {side!r} is")
            self.prompts.setdefault(key, Prompt(tuple(row["messages"]), row["columns"]))
            self.answers.setdefault(side, {}).setdefault(key, SideAnswer(**fields))
        else:
            raise ValueError(f"row={kind!r}")


def read_answers(path: Path) -> AnswersContent:
    """An answers file that nobody adds to now.

    Raises:
        UserError: there is none, or it has no answers.
    """
    content = AnswersContent(path)
    with disk_errors(f"{path}: cannot be read", UserError), path.open("rb") as file:
        content.read(file)
    if not content.answers or content.settings is None:
        raise UserError(f"{path}: an answers file without answers; draw some with alignment compare A B --prompts FILE")
    return content


def is_answers_file(path: Path) -> bool:
    """Whether a file's first line is that of an answers file."""
    try:
        with path.open("rb") as file:
            first = json.loads(file.readline(10_000))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(first, dict) and first.get("row") == "settings"


def _owned(path: Path) -> BinaryIO:
    """The file, made if it is missing, under a lock that ends with the process."""
    with disk_errors(f"{path}: cannot be written", UserError, "; name another --out"):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+b")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise UserError(f"{path}: another command is writing to it; wait for it, or name another --out") from None
    return file


def _refuse_changes(path: Path, what: str, known: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    for key in dict.fromkeys([*known, *asked]):
        if known.get(key) != asked.get(key):
            raise UserError(
                f"{path}: {what}its answers were drawn with {key}={_shown(known.get(key))}, now it is "
                f"{_shown(asked.get(key))}; name another --out for other answers"
            )


def _shown(value: Any) -> str:
    return one_line(str(value))[:80]
