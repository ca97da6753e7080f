"""Strict, frozen configs: one YAML file per run, then dotted `key=value` overrides.

An unknown key, a wrong type or a duplicate key is an error that names the full path, what was found and the nearest
right key. Nothing is inherited between files, and a config never changes after it was read.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    field_validator,
    model_validator,
)

from alignment.config import shipped
from alignment.errors import ConfigError
from alignment.redaction import find_secrets


class Section(BaseModel):
    """Base of every config section: unknown keys are refused and fields cannot be reassigned."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=(), allow_inf_nan=False
    )

    @model_validator(mode="before")
    @classmethod
    def _digits_are_text(cls, value: Any) -> Any:
        """`name=12345` means a name, though YAML reads a number."""
        if not isinstance(value, dict):
            return value
        text = {key for key, field in cls.model_fields.items() if _is_text(field.annotation)}
        return {k: str(each) if k in text and type(each) is int else each for k, each in value.items()}


def _is_text(annotation: Any) -> bool:
    """Whether a field is a string, or a string or None."""
    options = typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
    bare = [typing.get_args(each)[0] if typing.get_origin(each) is Annotated else each for each in options]
    return str in bare and set(bare) <= {str, type(None)}


Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
Share = Annotated[float, Field(ge=0.0, lt=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
NonNegative = Annotated[float, Field(ge=0.0)]
Count = Annotated[int, Field(ge=1)]
TooLong = Literal["trim_prompt", "drop", "raise"]
Seed = Annotated[int, Field(ge=0, lt=2**32)]  # numpy takes no others, and every process seeds numpy too


class ScratchConfig(Section):
    """Shape of a model that `model.name: scratch:llama` builds from nothing."""

    vocab_size: Annotated[int, Field(ge=270)] = 1024
    """Size of the byte-level BPE tokenizer trained on the run's own data: 256 bytes, special tokens and merges."""
    hidden_size: Count = 128
    intermediate_size: Count = 384
    num_hidden_layers: Count = 4
    num_attention_heads: Count = 4
    max_position_embeddings: Count = 1024


SCRATCH = "scratch:"
Method = Literal["full", "head", "lora", "dora", "rslora", "adalora", "qlora", "ia3", "loha", "lokr"]
ADAPTERS = frozenset(typing.get_args(Method)) - {"full", "head"}


class ModelConfig(Section):
    """Which model a stage starts from, and what of it is trained."""

    name: str
    """Registry reference (`help-desk-sft@v3`), local folder, hub name, or `scratch:llama` for a new model."""
    scratch: ScratchConfig | None = None
    """Only with `scratch:`: the size of the new model."""
    template: str | None = None
    """A chat template to set on the tokenizer: `chatml`, `alpaca`, `alpaca_stanford`, `plain`, or the path of a
    `.jinja` file; None keeps the model's own."""
    pad_token: str | None = None
    """Padding token for a tokenizer that has none of its own. Added to the vocabulary if it is not in it."""
    eos_token: str | None = None
    """End-of-sequence token for a tokenizer that names none. Must be in the vocabulary."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the trained weights. `bfloat16` only under DeepSpeed, which keeps float32 copies; mixed precision is
    `training.bf16`."""
    trust_remote_code: bool = False
    """Run Python code that comes with a hub model. Off: such a model is refused."""
    method: Method = "full"
    """What is trained: every weight, the output `head` alone, or an adapter on frozen weights (docs/methods.md)."""
    last_n_layers: Annotated[int, Field(ge=0)] = 0
    """With `method: head`: how many of the last transformer layers train beside the output head."""
    adapter: dict[str, Any] = Field(default_factory=dict)
    """Arguments of the method's PEFT config class, by its own names, over the suite's defaults: `{r: 32}`."""
    quantization: Literal["nf4"] | None = None
    """Hold the frozen weights under an adapter in 4 bits. `method: qlora` is `lora` with `nf4`."""
    merge: Literal["dequantized", "original"] = "dequantized"
    """What an adapter that was trained on quantized weights is merged onto: those weights in full precision, which is
    the very model that was trained, or the weights as they were before they were quantized, which is another one."""

    @property
    def quantized(self) -> bool:
        """Whether the frozen weights are held in 4 bits."""
        return self.method == "qlora" or self.quantization == "nf4"

    @model_validator(mode="after")
    def _scratch_only_from_scratch(self) -> Self:
        if self.scratch is not None and not self.name.startswith(SCRATCH):
            raise ValueError(f"scratch is only for name={SCRATCH}llama, found name={self.name}; add model.scratch=null")
        return self

    @model_validator(mode="after")
    def _keys_of_the_method(self) -> Self:
        """A key that the method would pass over in silence is a promise not kept."""
        if self.last_n_layers and self.method != "head":
            raise ValueError(f"last_n_layers is only for method=head, found method={self.method}")
        for key in ("adapter", "quantization"):
            if getattr(self, key) and self.method not in ADAPTERS:
                raise ValueError(f"{key} is only for an adapter, found method={self.method}; set model.method=lora")
        if self.merge == "original" and not self.quantized:
            raise ValueError("merge=original is only for quantized weights; set model.method=qlora or remove it")
        return self


Format = Literal[
    "auto", "chat", "sharegpt", "alpaca", "self-instruct", "completion", "pair", "pandalm", "ranking", "qa-feedback",
    "rating", "rag", "faq", "text", "prompt", "tree", "tickets", "slack",
]  # fmt: skip


class DataPart(Section):
    """One source of a mixture."""

    path: str
    """As `data.train`."""
    weight: Positive = 1.0
    """How often each row is used: 2 twice, 0.5 a half of the rows, 2.5 twice and a half of them once more. Which half
    is drawn from `data.split_seed` and the row's number, so it is the same in every run."""
    cap: Count | None = None
    """Read no more than this many usable rows, the first ones."""
    format: Format | None = None
    """As `data.format`, which holds where this is None."""
    columns: dict[str, str] | None = None
    """As `data.columns`, which holds where this is None."""

    @model_validator(mode="before")
    @classmethod
    def _bare_path(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str) else value


_ONE, _MANY = "(one)", "(many)"  # which kind of `data.train` an error is about; taken out of the key it names


class DataConfig(Section):
    """Where the rows come from and which are held out."""

    train: Annotated[
        Annotated[str, Tag(_ONE)] | Annotated[tuple[DataPart, ...], Tag(_MANY), Field(min_length=1)],
        Discriminator(lambda value: _MANY if isinstance(value, list | tuple) else _ONE),
    ]
    """A JSONL, JSON, CSV or Parquet file (`.gz` allowed), a folder of them, a Markdown or text file or a folder of
    those, a Slack export, a saved `datasets` folder, a hub name (`owner/name[:config][@split]`), or (reward) a ratings
    database; or a list of such parts with `path`, `weight`, `cap`, `format` and `columns`."""
    eval: str | None = None
    """Held-out rows. None: `eval_share` of the prompt groups of `train` are held out."""
    eval_share: Share = 0.1
    """Share of the prompt groups held out when `eval` is not given. 0 holds out nothing."""
    split_seed: Seed = 0
    """Decides which prompt groups are held out. Let all stages have the same one: then what one stage was judged on,
    none has learned from."""
    format: Format = "auto"
    """The shape of the rows; `auto` tells it by their keys."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Renames: `{our name: name in the file}`, for example `{prompt: question, completion: answer}`."""
    agents: tuple[str, ...] = ()
    """Whose messages in Slack exports and support tickets are the assistant's: names or ids."""
    max_bad_share: Share = 0.01
    """A larger share of unusable rows than this stops the run before training."""
    max_length: Count = 1024
    """Longest sequence in tokens; `too_long` says what becomes of longer rows. A longer `text` is cut into pieces."""
    too_long: TooLong = "trim_prompt"
    """`trim_prompt`: a longer row loses old turns or part of its prompt, never of the response, and stops the run where
    the response alone is too long in more than `max_bad_share` of the rows. `drop`: longer rows are left out, however
    many. `raise`: one is enough to stop the run."""

    @property
    def parts(self) -> tuple[DataPart, ...]:
        """The training sources, each with the format and columns that hold for it."""
        parts = (DataPart(path=self.train),) if isinstance(self.train, str) else self.train
        return tuple(self.part(part) for part in parts)

    @property
    def eval_part(self) -> DataPart | None:
        """The held-out source, if one is named."""
        return None if self.eval is None else self.part(DataPart(path=self.eval))

    def part(self, part: DataPart) -> DataPart:
        """A part with what it leaves to the section filled in."""
        columns = self.columns if part.columns is None else part.columns
        return part.model_copy(update={"format": part.format or self.format, "columns": columns})


class RegistryConfig(Section):
    """Where the trained model goes."""

    name: Name
    """The model is published as the next version of this name."""
    path: str | None = None
    """Registry folder. None: `ALIGNMENT_REGISTRY`, else `./registry`."""
    alias: Name | None = None
    """An alias (`prod`) that is moved to the new version."""
    allow_new_tokenizer: bool = False
    """Publish though the tokenizer or chat template is not that of the model it started from. In SFT, `model.template`
    and `model.eos_token` are a choice already and need no leave."""


class TrackingConfig(Section):
    """The run folder and Weights & Biases."""

    runs: str = "runs"
    """Folder that holds the run folders."""
    wandb: Literal["offline", "online", "disabled"] | None = None
    """None: `WANDB_MODE`, else `offline`. `WANDB_MODE=disabled` overrides this key."""
    project: str | None = None
    """W&B's project. None: `WANDB_PROJECT`, else `alignment`."""
    num_samples: Annotated[int, Field(ge=0)] = 16
    """Held-out prompts whose answers are written to `samples.jsonl` at each evaluation, always the same ones."""
    wandb_text: bool = False
    """Show prompts and responses in W&B too, which may send them to a server; without it their lengths alone."""


class RunConfig(Section):
    """What every stage's config has."""

    name: Name
    """Name of the run; its folder is `<tracking.runs>/<name>`."""
    data: DataConfig
    registry: RegistryConfig
    tracking: TrackingConfig = TrackingConfig()

    @property
    def run_dir(self) -> Path:
        return Path(self.tracking.runs) / self.name


class TrainerConfig(RunConfig):
    """A stage that trains with a TRL trainer: `training` takes any of its config's arguments by name."""

    model: ModelConfig
    training: dict[str, Any] = Field(default_factory=dict)
    """Arguments of TRL's config class, by its own names, over the stage's defaults."""

    @field_validator("training", mode="before")
    @classmethod
    def _no_none(cls, value: Any) -> Any:
        return {} if value is None else value


class _Loader(yaml.SafeLoader):
    """Safe YAML in which `1e-5` is a number and a key may stand only once."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            where = f"{key.start_mark.name}:{key.start_mark.line + 1}"
            if not isinstance(key, yaml.ScalarNode):
                raise ConfigError(f"{where}: a key must be a word, found a list or mapping; write `key: value`")
            if key.value in seen:
                raise ConfigError(f"{where}: key '{key.value}' stands twice; keep one of them")
            seen.add(key.value)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


# YAML 1.1 reads 1e-5 as a string because it has no dot; YAML 1.2 and everybody else reads a number.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*\.?\d*|\.\d+)([eE][-+]?\d+)?$"),
    list("-+0123456789."),
)

ConfigT = TypeVar("ConfigT", bound=BaseModel)


def _parse_yaml(text: str, where: str) -> Any:
    try:
        stream = _Loader(text)
        stream.name = where
        return stream.get_single_data()
    except ConfigError:
        raise
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that is none, say
        reason = " ".join(str(error).split())
        raise ConfigError(f"{where}: not valid YAML: {reason}") from None


def front_matter(text: str) -> dict[str, Any]:
    """The YAML between `---` lines at the head of a Markdown file; empty where there is none that can be read."""
    match = re.match(r"\ufeff?---[ \t]*\r?\n(.{0,20000}?)\r?\n---[ \t]*(\r?\n|$)", text, re.DOTALL)
    try:
        found = _parse_yaml(match[1], "front matter") if match else None
    except ConfigError:
        return {}
    return found if isinstance(found, dict) else {}


def load_config(cls: type[ConfigT], path: str | Path, overrides: Iterable[str] = ()) -> ConfigT:
    """Read a YAML file, apply dotted overrides such as `training.learning_rate=2e-5`, and validate.

    Values of overrides are YAML, so `data.columns={prompt: question}` and `data.eval=null` work.

    Raises:
        ConfigError: one line with the path of the key, what was found and what to write instead.
    """
    return validate(cls, read_values(path, overrides), str(path))


def read_values(path: str | Path, overrides: Iterable[str] = ()) -> dict[str, Any]:
    """What a config file and the overrides say, before anything is known of its keys.

    Raises:
        ConfigError: no file of `key: value` lines; an override that is none.
    """
    path = Path(path)
    if not path.is_file():
        near = difflib.get_close_matches(str(path), [str(p) for p in Path("configs").glob("*/*.yaml")], 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        if path.parts[:1] == ("configs",) and shipped.configs().joinpath(*path.parts[1:]).is_file():
            hint = "; the shipped one can be had with `alignment recipes --copy configs`"
        raise ConfigError(f"no config file at {path}{hint}")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as UTF-8 text ({error}); is it a config file?") from None
    values = _parse_yaml(text, str(path)) or {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected `key: value` lines, found a {type(values).__name__}")
    for override in overrides:
        _apply_override(values, override)
    values = {key: _expand(value) for key, value in values.items()}
    for key in find_secrets(values):
        hint = OWNED_ARGUMENTS.get(key.rpartition(".")[2], "take it out, and let what needs it read the environment")
        raise ConfigError(f"{path}: {key} holds a secret, and configs are kept in run folders and the registry; {hint}")
    return values


def _expand(value: Any) -> Any:
    """`~/` at the start of a text is the home folder, which no shell puts into a file or behind `key=`."""
    if isinstance(value, dict):
        return {key: _expand(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_expand(each) for each in value]
    return os.path.expanduser(value) if isinstance(value, str) and value.startswith("~/") else value


def _apply_override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key or key.startswith("-"):
        raise ConfigError(f"'{override}' is not an override; write key=value, for example training.max_steps=10")
    *parents, last = key.split(".")
    target = values
    for depth, parent in enumerate(parents):
        child = target.get(parent)
        if child is None:
            child = target[parent] = {}
        if not isinstance(child, dict):
            raise ConfigError(f"{key}: '{'.'.join(parents[: depth + 1])}' is a value, not a section")
        target = child
    target[last] = _parse_yaml(text, key)


def validate(cls: type[ConfigT], values: Mapping[str, Any], where: str) -> ConfigT:
    """Build `cls` from plain values; the first problem found becomes one ConfigError line."""
    try:
        return cls.model_validate(dict(values))
    except ValidationError as error:
        first, rest = error.errors(include_url=False)[0], error.error_count() - 1
    location = tuple(part for part in first["loc"] if part not in (_ONE, _MANY))
    key = ".".join(str(part) for part in location)
    if first["type"] == "extra_forbidden":
        message = f"unknown key '{key}'{_nearest(cls, location)}"
    elif first["type"] == "missing":
        message = f"key '{key}' is missing; add `{key}=...`"
    else:
        found = "" if first["type"] == "value_error" else f", found {first['input']!r}"
        message = f"{key + ': ' if key else ''}{first['msg'].removeprefix('Value error, ')}{found}"
    raise ConfigError(f"{where}: {message}" + (f" (and {rest} more)" if rest else ""))


def _nearest(cls: type[BaseModel], location: tuple[str | int, ...]) -> str:
    """The full path of the key nearest to an unknown one: in its section first, then anywhere in the config."""
    section = ".".join(part for part in location[:-1] if isinstance(part, str))  # the numbers are of parts of a list
    wrong = str(location[-1])
    keys = list(_keys(cls))
    here = [key for key in keys if key.rpartition(".")[0] == section]
    near = difflib.get_close_matches(wrong, [key.rpartition(".")[2] for key in here], 1, cutoff=0.6)
    if near:
        return f"; did you mean '{section + '.' if section else ''}{near[0]}'?"
    same = [key for key in keys if key.rpartition(".")[2] == wrong]
    return f"; did you mean '{same[0]}'?" if same else f"; keys here: {', '.join(k.rpartition('.')[2] for k in here)}"


def _keys(cls: type[BaseModel], prefix: str = "") -> Iterable[str]:
    for name, field in cls.model_fields.items():
        yield prefix + name
        for part in _types_in(field.annotation):
            if isinstance(part, type) and issubclass(part, BaseModel):
                yield from _keys(part, f"{prefix}{name}.")


def _types_in(annotation: Any) -> Iterable[Any]:
    yield annotation
    for part in typing.get_args(annotation):
        yield from _types_in(part)


OWNED_ARGUMENTS = {
    "output_dir": "the run folder is <tracking.runs>/<name>",
    "run_name": "use `name`",
    "report_to": "use `tracking.wandb`",
    "project": "use `tracking.project`",
    "push_to_hub": "models are published to the registry",
    "hub_model_id": "models are published to the registry",
    "hub_token": "set HF_TOKEN in the environment",
    "use_cpu": "the GPU is used where there is one; CUDA_VISIBLE_DEVICES= hides it",
    "disable_tqdm": "progress is the suite's own line",
    "deepspeed": "choose an accelerate config: accelerate launch --config_file configs/accelerate/zero2.yaml",
    "fsdp": "choose an accelerate config",
    "fsdp_config": "choose an accelerate config",
    "accelerator_config": "choose an accelerate config",
    "model_init_kwargs": "use the `model` section",
    "trust_remote_code": "use `model.trust_remote_code`",
    "chat_template_path": "use `model.template`",
    "eos_token": "use `model.eos_token`",
    "pad_token": "use `model.pad_token`",
    "max_length": "use `data.max_length`",
    "resume_from_checkpoint": "pass --resume auto on the command line",
    "save_strategy": "checkpoints are saved every training.save_steps steps",
    "save_only_model": "a checkpoint holds all that a run needs to go on",
    "remove_unused_columns": "the columns are the suite's own",
    "skip_memory_metrics": "not supported by the journal",
    "dataset_text_field": "use `data.columns`",
    "dataset_kwargs": "the rows reach the trainer as token ids",
    "truncation_mode": "use `data.max_length`; a long prompt is trimmed as a chat",
    "completion_only_loss": "the loss is on the assistant's tokens",
    "assistant_only_loss": "the loss is on the assistant's tokens",
    "padding_free": "use `packing`",
    "eval_packing": "held-out rows are packed where the others are",
    "packing_strategy": "rows are packed whole and never attend to each other, as they would under `wrapped`",
    "use_liger_kernel": "the loss is in blocks already, without a kernel of another package",
    "liger_kernel_config": "the loss is in blocks already, without a kernel of another package",
}


@dataclasses.dataclass(frozen=True)
class BestModelArguments:
    """What `training` takes of transformers beside the arguments of a config class."""

    load_best_model_at_end: bool | None = None
    """Publish the model of the best evaluation (`metric_for_best_model`, else the lowest loss) in place of the last
    one. None: where `early_stopping_patience` is set."""
    early_stopping_patience: int | None = None
    """Stop after so many evaluations in a row that are no better than the best one before."""
    early_stopping_threshold: float = 0.0
    """By how much an evaluation must beat the best one before it to count as better."""

    @classmethod
    def of(cls, training: Mapping[str, Any]) -> Self:
        """Those in a `training` section."""
        return cls(**{field.name: training[field.name] for field in dataclasses.fields(cls) if field.name in training})

    @property
    def wanted(self) -> bool:
        if self.load_best_model_at_end is None:
            return self.early_stopping_patience is not None
        return self.load_best_model_at_end


@dataclasses.dataclass(frozen=True)
class CheckpointArguments:
    """What `training` takes for checkpoints, by transformers' names; `alignment.runs.checkpoint` saves them."""

    save_steps: int = 500
    """Steps between two checkpoints; 0 saves none."""
    save_total_limit: int = 2
    """How many of the newest are kept, 2 or more: one may turn out to be damaged."""

    @classmethod
    def of(cls, training: Mapping[str, Any]) -> Self:
        """Those in a `training` section."""
        return cls(**{field.name: training[field.name] for field in dataclasses.fields(cls) if field.name in training})


# The least that makes sense, where the trainers would stop with a traceback, or train nothing and say nothing.
LEAST = {
    "seed": 0,
    "data_seed": 0,
    "per_device_train_batch_size": 1,
    "per_device_eval_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "learning_rate": 0,
    "early_stopping_patience": 1,
    "early_stopping_threshold": 0,
    "members": 1,
    "save_steps": 0,
    "save_total_limit": 2,
}


def trainer_arguments(
    cls: type,
    defaults: Mapping[str, Any],
    training: Mapping[str, Any],
    owned: Mapping[str, str] = OWNED_ARGUMENTS,
    section: str = "training",
    beside: Sequence[type] = (),
) -> dict[str, Any]:
    """Merge a config's `training` section over a stage's defaults, checked against the fields of a TRL config class;
    those of a trainer take `BestModelArguments` and `CheckpointArguments` too.

    Args:
        cls: the dataclass, for example `trl.SFTConfig`.
        defaults: the stage's own defaults; each must be a field of `cls`.
        training: the user's values.
        owned: arguments that the suite sets itself, with what to write instead.
        section: where the user wrote them, for errors.
        beside: dataclasses of a stage's own, whose fields are taken too.

    Raises:
        ConfigError: an unknown argument (with the nearest one), one that the suite owns, or a value of another type.
    """
    is_trainers = any(field.name == "load_best_model_at_end" for field in dataclasses.fields(cls))
    classes = (cls, BestModelArguments, CheckpointArguments, *beside) if is_trainers else (cls, *beside)
    fields = {field.name for each in classes for field in dataclasses.fields(each) if field.init}
    hints = {name: hint for each in classes for name, hint in typing.get_type_hints(each).items()}
    assert set(defaults) <= fields, sorted(set(defaults) - fields)
    for key, value in training.items():
        if key in owned:
            raise ConfigError(f"{section}.{key} is set by the suite: {owned[key]}")
        if key not in fields:
            near = difflib.get_close_matches(key, fields, 1)
            hint = f"; did you mean '{section}.{near[0]}'?" if near else ""
            raise ConfigError(f"unknown key '{section}.{key}': {cls.__name__} has no such argument{hint}")
        if not _fits(value, hints[key]):
            raise ConfigError(f"{section}.{key}: expected {_type_name(hints[key])}, found {value!r}")
        if key in LEAST and value is not None and not value >= LEAST[key]:  # so that NaN fails too
            raise ConfigError(f"{section}.{key}: expected {LEAST[key]} or more, found {value!r}")
        if key.endswith("seed") and value is not None and value >= 2**32:
            raise ConfigError(f"{section}.{key}: expected less than 2**32, found {value!r}")
        if (key == "num_train_epochs" and value <= 0) or (key == "max_steps" and value < 1 and value != -1):
            raise ConfigError(f"{section}.{key}: expected more than 0, found {value!r}: nothing would be trained")
    return {**defaults, **training}


def _fits(value: Any, hint: Any) -> bool:
    """Whether a YAML value can stand where a dataclass field has this type; unusual types are left to the class."""
    options = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    simple: dict[Any, Any] = {bool: bool, int: int, float: (int, float), str: str, type(None): type(None)}
    if not all(option in simple or option in (dict, list) for option in options):
        return True
    if isinstance(value, bool):
        return bool in options
    return any(isinstance(value, simple.get(option, option)) for option in options)


def _type_name(hint: Any) -> str:
    return getattr(hint, "__name__", str(hint)) if typing.get_origin(hint) is None else str(hint)


def registry_path(path: str | None) -> Path:
    """The registry folder: the config's, else `ALIGNMENT_REGISTRY`, else `./registry`."""
    return Path(path or os.environ.get("ALIGNMENT_REGISTRY") or "registry")
