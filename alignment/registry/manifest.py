"""manifest.json: a version's provenance. Its sha256 is the version's identity."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator
from pydantic.dataclasses import dataclass

from alignment.files import FileRecord
from alignment.registry.errors import RegistryError
from alignment.registry.files import check_path
from alignment.registry.references import MAX_NUMBER, NAME

SCHEMA = 1

Stage = Literal["base", "sft", "reward", "ppo", "dpo", "import"]
Role = Literal["policy", "reward", "value"]
Digest = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
_CONFIG = ConfigDict(frozen=True, extra="forbid")


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Parent:
    """A model that a version was made with, and its `role` in that (init, reference, reward, value, base, ...).

    `ref` is a registry reference or, for a model from elsewhere, its name; `digest` that version's digest.
    """

    role: str
    ref: str
    digest: Digest | None = None


class DataFingerprint(BaseModel):
    """Data that a version was made from. Counts are None where they do not apply; other keys may be added."""

    model_config = ConfigDict(frozen=True, extra="allow")

    name: str
    use: Literal["train", "eval"] = "train"
    """Trained on, or held out for evaluation."""
    rows: int | None = None
    sha256: str | None = None
    split: str | None = None
    ratings: int | None = None
    items: int | None = None
    labelers: int | None = None
    simulated: bool = False
    """The ratings were made by a program."""
    database: str | None = None
    rating_ids: str | None = None
    """Ids of the ratings in the database, such as "1-40,42"."""
    labeler_hashes: dict[str, int] = Field(default_factory=dict)
    """Number of ratings per labeler; labelers are hashed with the database's salt."""
    answered_by: dict[str, int] = Field(default_factory=dict)
    """Number of rated items with answers by each model."""


class Code(BaseModel):
    """The suite's checkout: git commit, and a sha256 over uncommitted changes (None: the tree was clean)."""

    model_config = _CONFIG

    commit: str
    dirty: str | None = None


class Origin(BaseModel):
    """Source of an imported model: a hub name or a folder, its commit, and the license that its card names."""

    model_config = _CONFIG

    source: str
    revision: str | None = None
    license: str | None = None
    converted: bool = False
    """Whether its weights were converted to safetensors from pickles or a GGUF file."""


class Manifest(BaseModel):
    """The contents of manifest.json."""

    model_config = _CONFIG

    schema_number: Literal[1] = Field(default=1, alias="schema")
    name: str = Field(pattern=f"^{NAME.pattern}$")
    version: int = Field(ge=1, le=MAX_NUMBER)
    stage: Stage
    role: Role
    parents: tuple[Parent, ...] = ()
    base: Parent | None = None
    """The base model of an adapter."""
    data: tuple[DataFingerprint, ...] = ()
    config: dict[str, JsonValue] | None = None
    code: Code | None = None
    packages: dict[str, str]
    seed: int | None = None
    world_size: int = Field(default=1, ge=1)
    metrics: dict[str, JsonValue] | None = None
    tokenizer_hash: str | None = None
    chat_template_hash: str | None = None
    run_id: str | None = None
    wandb_url: str | None = None
    origin: Origin | None = None
    remote_code: bool = False
    """Python files that came with the model are in it, and loading it with `model.trust_remote_code` runs them."""
    publish_id: str
    created_at: AwareDatetime
    files: dict[str, FileRecord]

    @model_validator(mode="after")
    def _paths_stay_inside(self) -> Self:
        for path in self.files:
            check_path(path, self.remote_code)
        return self

    def to_bytes(self) -> bytes:
        """The file's content: indented ASCII JSON."""
        return json.dumps(self.model_dump(mode="json", by_alias=True), indent=2, allow_nan=False).encode() + b"\n"


def draft_manifest(*, name: str, **fields: Any) -> Manifest:
    """A checked manifest that still lacks its number and files; `fields` are Manifest's.

    Raises:
        RegistryError: a field is missing, unknown or of the wrong kind.
    """
    for key in ("data", "config", "metrics"):
        fields[key] = jsonable(fields[key], key)
    try:
        return Manifest(name=name, version=1, created_at=datetime.now(UTC), files={}, **fields)
    except ValidationError as error:
        raise RegistryError(f"{name} cannot be published: {first_problem(error)}") from None


def parse_manifest(data: bytes, where: str) -> Manifest:
    """Read manifest.json; `where` names it in errors.

    Raises:
        RegistryError: it is not JSON, has another schema number, or a field is missing or wrong.
    """
    try:
        raw = json.loads(data)
        schema = raw.get("schema") if isinstance(raw, dict) else None
        if schema != SCHEMA:
            raise RegistryError(
                f"{where}: schema {schema!r}, but this version of the suite reads {SCHEMA}; "
                "if a newer one wrote it, upgrade"
            )
        return Manifest.model_validate(raw)
    except ValidationError as error:
        raise RegistryError(f"{where} is damaged: {first_problem(error)}") from None
    except (ValueError, RecursionError) as error:  # ValueError: bytes that are no text, or an endless number
        raise RegistryError(f"{where} is damaged: not JSON ({error})") from None


def first_problem(error: ValidationError) -> str:
    """A pydantic error as one phrase: the field's path, the problem, and the value."""
    problem = error.errors(include_url=False)[0]
    field = ".".join(str(part) for part in problem["loc"])
    return f"{field}: {problem['msg']}, found {problem['input']!r:.80}"


def jsonable(value: Any, where: str) -> JsonValue:
    """`value` as plain JSON; `where` is the dotted key named in errors.

    Paths become text and numpy or torch scalars numbers. JSON has no NaN or infinity: they become the texts "nan",
    "inf" and "-inf", since a finished run must not fail to publish because one of its metrics did. Lone surrogates
    become "?".

    Raises:
        RegistryError: a value that JSON cannot hold.
    """
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(float(value))
    if isinstance(value, str | os.PathLike):
        return os.fspath(value).encode("utf-8", "replace").decode()
    if isinstance(value, Mapping):
        return {str(jsonable(str(key), where)): jsonable(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        return [jsonable(item, f"{where}.{index}") for index, item in enumerate(value)]
    if callable(getattr(value, "item", None)) and getattr(value, "ndim", None) == 0:
        return jsonable(value.item(), where)
    raise RegistryError(
        f"{where} cannot be written as JSON: {type(value).__name__}; pass numbers, text, lists or dicts"
    )
