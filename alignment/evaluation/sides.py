"""The sides of a comparison: who answers, and how it is prompted.

A side is a model (a registry reference, a folder, a hub name), an endpoint (`http://host/v1#model`) or a file with
answers. A model may get a system prompt, worked examples and retrieved context, so that prompting can be compared with
fine-tuning:

    alignment compare help-desk-sft 'prompted=help-desk-base?system=prompt.txt&examples=few.jsonl' --prompts F
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self
from urllib.parse import unquote

from pydantic import model_validator

from alignment.config.loading import read_values, validate
from alignment.config.sections import Count, DataConfig, Section
from alignment.data.parsing import to_demonstrations
from alignment.data.reading import read_records
from alignment.data.records import Prompt
from alignment.errors import UserError
from alignment.templates.rendering import Message

_NAMED = re.compile(r"([A-Za-z0-9][\w.@+-]*)=(.+)", re.DOTALL)
CONTEXT = "Use this context to answer.\n\n{context}\n\nQuestion: {question}"
"""How retrieved context stands before a question."""


class SideConfig(Section):
    """One side, as a `--sides` file or the text behind `?` of a side has it."""

    model: str
    """A registry reference, a folder, a hub name, `http://host/v1#model`, or a file with answers."""
    system: str | None = None
    """A system prompt: a file, or the text itself."""
    examples: str | None = None
    """A file of demonstrations, which stand before the question as earlier turns."""
    shots: Count | None = None
    """Number of examples that are used; all by default."""
    context: str | None = None
    """A column of the prompts file with retrieved context: a text, or a list of texts."""
    best_of: Count | None = None
    """Draw so many answers and keep the one that `chosen_by` scores highest."""
    chosen_by: str | None = None
    """With `best_of`: the reward model that chooses."""
    template: str | None = None
    """A chat template for a model that has none."""
    eos_token: str | None = None
    """The end token of a model that names none."""

    @model_validator(mode="after")
    def _best_of_is_chosen(self) -> Self:
        if (self.best_of is None) != (self.chosen_by is None):
            raise ValueError("best_of=N and chosen_by=REWARD_MODEL stand together: one of them is missing")
        return self


@dataclass(frozen=True)
class SideSpec:
    """A side as the user asked for it, with its files read."""

    name: str | None
    """None: it is called after its model."""
    model: str
    system: str | None = None
    examples: tuple[tuple[Message, ...], ...] = ()
    context: str | None = None
    template: str | None = field(default=None)
    eos_token: str | None = None
    best_of: int = 1
    chosen_by: str | None = None

    @property
    def is_prompted(self) -> bool:
        """Whether the side gets more than the question."""
        return bool(self.system or self.examples or self.context)

    @property
    def is_endpoint(self) -> bool:
        """Whether the model is behind an address."""
        return self.model.startswith(("http://", "https://"))

    @property
    def answers_file(self) -> Path | None:
        """The file with its answers, for a side that is one."""
        path = Path(self.model.partition("#")[0]).expanduser()
        return path if path.is_file() and not self.model.endswith((".gguf", ".safetensors")) else None

    @property
    def is_elsewhere(self) -> bool:
        """Whether no model is loaded for it."""
        return self.is_endpoint or self.answers_file is not None

    @property
    def prompting(self) -> dict[str, Any]:
        """What is put before the question, for the record: short, and different where the answers may be."""
        parts: dict[str, Any] = {"best_of": self.best_of} if self.best_of > 1 else {}
        if self.system:
            parts["system"] = self.system if len(self.system) <= 200 else _hash(self.system)
        if self.examples:
            parts["examples"] = f"{len(self.examples)}, {_hash(json.dumps(self.examples))}"
        names = ("context", "template", "eos_token", "chosen_by")
        return parts | {name: value for name in names if (value := getattr(self, name)) is not None}

    def messages(self, prompt: Prompt) -> list[Message]:
        """What the model is asked: system prompt, examples, then the prompt's turns with the context in the last one.

        An example that asks the same question is left out, since it would give the answer away.

        Raises:
            UserError: the prompt's row has no such column.
        """
        turns = list(prompt.messages)
        system = [turns.pop(0)["content"]] if turns and turns[0]["role"] == "system" else []
        if self.system:
            system.insert(0, self.system)
        shots = [turn for example in self.examples if list(example[:-1]) != turns for turn in example]
        if self.context is not None:
            text = CONTEXT.format(context=context_text(prompt, self.context), question=turns[-1]["content"])
            turns[-1] = Message(role="user", content=text)
        head = [Message(role="system", content="\n\n".join(system))] if system else []
        return [*head, *shots, *turns]


def parse_side(text: str) -> SideSpec:
    """Read `[NAME=]MODEL[?key=value&key=value]`.

    Raises:
        UserError: an unknown key, or a file that cannot be read.
    """
    name, model = None, text
    if not os.path.exists(os.path.expanduser(text.partition("?")[0])) and (match := _NAMED.fullmatch(text)):
        name, model = match[1], match[2]
    model, asked, query = model.partition("?")
    query, hash_, fragment = query.partition("#")  # a URL's own order is ?query#fragment
    values: dict[str, Any] = {}
    for part in query.split("&") if asked else ():
        key, equals, value = part.partition("=")
        if not equals or not value:
            raise UserError(
                f"side {text!r}: found {part!r} behind the `?`; write key=value, as in "
                "prompted=help-desk-base?system=prompt.txt&shots=4"
            )
        values[key] = unquote(value)
    if "model" in values:
        raise UserError(f"side {text!r}: the model stands before the `?`; take model= out")
    for number in ("shots", "best_of"):
        if values.get(number, "").isdigit():
            values[number] = int(values[number])
    return _spec(name, validate(SideConfig, {"model": model + hash_ + fragment, **values}, f"side {text!r}"), Path())


def read_sides(path: Path) -> list[SideSpec]:
    """Read a YAML file of sides: `NAME: MODEL`, or `NAME: {model, system, examples, shots, context}`.

    Raises:
        UserError: no such file, or a wrong key in it; the message names it.
    """
    sides = []
    for name, value in read_values(path).items():
        values = {"model": value} if isinstance(value, str) else value
        if not isinstance(values, dict) or not re.fullmatch(r"[A-Za-z0-9][\w.@+-]*", str(name)):
            raise UserError(f"{path}: {name}: expected `NAME: MODEL` or `NAME: {{model: MODEL, system: FILE}}`")
        sides.append(_spec(str(name), validate(SideConfig, values, f"{path}: {name}"), path.parent))
    return sides


def _spec(name: str | None, config: SideConfig, folder: Path) -> SideSpec:
    """`folder`: where the files of a YAML file are looked for first."""
    return SideSpec(
        name,
        config.model,
        None if config.system is None else _system(config.system, folder),
        () if config.examples is None else _examples(_found(config.examples, folder), config.shots),
        config.context,
        config.template,
        config.eos_token,
        config.best_of or 1,
        config.chosen_by,
    )


def _found(name: str, folder: Path) -> Path:
    path = Path(name).expanduser()
    return folder / path if (folder / path).exists() else path


def _system(given: str, folder: Path) -> str:
    """A system prompt's text. One word that is no file is a mistyped name rather than a prompt."""
    path = _found(given, folder) if "\n" not in given and len(given) < 1000 else None
    if path is not None and path.is_file():
        try:
            text = path.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"system={given}: cannot be read as UTF-8 text ({error})") from None
        if not text:
            raise UserError(f"system={given}: the file is empty; write the system prompt into it")
        return text
    if " " not in given.strip():
        raise UserError(f"system={given}: no such file; give a file with the system prompt, or a text of several words")
    return given


def _examples(path: Path, shots: int | None) -> tuple[tuple[Message, ...], ...]:
    found = read_records(path, to_demonstrations, DataConfig(train=str(path))).items
    for each in found:
        if each.messages[0]["role"] == "system":
            raise UserError(f"examples={path}: {each.place} has a system turn; give one prompt with system= instead")
    if shots is not None and shots > len(found):
        raise UserError(f"shots={shots}: {path} has {len(found)} examples; ask for {len(found)} or fewer")
    kept = [each.messages for each in found[:shots]]
    return tuple(tuple(Message(role=m["role"], content=m["content"]) for m in each) for each in kept)


def context_text(prompt: Prompt, column: str, option: str = "context") -> str:
    """The retrieved text in a prompt's column: a text, or a list of texts or of `{text: ...}`.

    Args:
        option: what named the column, for the error.

    Raises:
        UserError: there is no text.
    """
    value = prompt.columns.get(column)
    texts = [value] if isinstance(value, str) else list(value) if isinstance(value, Sequence) else []
    parts = [each.get("text") if isinstance(each, Mapping) else each for each in texts]
    if not parts or not all(isinstance(part, str) for part in parts):
        known = ", ".join(map(str, prompt.columns)) or "none"
        where = prompt.place or "a row"
        raise UserError(f"{option}={column}: {where} has no text there; its columns: {known}")
    return "\n\n".join(str(part) for part in parts)


def _hash(text: str) -> str:
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()[:16]}"
