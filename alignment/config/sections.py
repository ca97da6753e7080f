"""The sections of a config that all stages share: model, data, registry, tracking."""

from __future__ import annotations

import types
import typing
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    field_validator,
    model_validator,
)

from alignment.config.arguments import TrainerSection
from alignment.config.loading import MANY, ONE
from alignment.config.removed_keys import REMOVED_KEYS


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
    """Width of the residual stream."""
    intermediate_size: Count = 384
    """Width of the MLPs."""
    num_hidden_layers: Count = 4
    """Transformer layers."""
    num_attention_heads: Count = 4
    """Attention heads of each layer."""
    max_position_embeddings: Count = 1024
    """Longest sequence that the model takes, in tokens."""


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
    """The part that is trained: every weight, the output `head`, or an adapter on frozen weights
    (docs/guides/methods.md)."""
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
    "auto", "chat", "sharegpt", "alpaca", "self-instruct", "completion", "pair", "openai-preference", "pandalm",
    "arena", "vote", "strength", "webgpt", "safety", "reddit", "ranking", "calls", "scored", "qa-feedback", "unpaired",
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
    columns: dict[str, str | None] | None = None
    """As `data.columns`, which holds where this is None."""

    @model_validator(mode="before")
    @classmethod
    def _bare_path(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str) else value


class DataConfig(Section):
    """Where the rows come from and which are held out."""

    train: Annotated[
        Annotated[str, Tag(ONE)] | Annotated[tuple[DataPart, ...], Tag(MANY), Field(min_length=1)],
        Discriminator(lambda value: MANY if isinstance(value, list | tuple) else ONE),
    ]
    """A JSONL, JSON, CSV, TSV or Parquet file (`.gz` and `.zip` allowed), a folder of them, a Markdown, HTML or text
    file or a folder of those, support tickets, a Slack export, a saved `datasets` folder, a hub name
    (`owner/name[:config][@split]`), or a ratings database (SFT learns the preferred answers); or a list of such parts
    with `path`, `weight`, `cap`, `format` and `columns`."""
    eval: str | None = None
    """Held-out rows. None: `eval_share` of the prompt groups of `train` are held out."""
    eval_share: Share = 0.1
    """Share of the prompt groups held out when `eval` is not given. 0 holds out nothing."""
    split_seed: Seed = 0
    """Decides which prompt groups are held out. Let all stages have the same one: then what one stage was judged on,
    none has learned from."""
    format: Format = "auto"
    """The shape of the rows; `auto` tells it by their keys."""
    columns: dict[str, str | None] = Field(default_factory=dict)
    """Renames: `{our name: name in the file}`, for example `{prompt: question, completion: answer}`. `{rating: null}`
    reads the rows without their `rating`."""
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
    wandb_text: bool = False
    """Show prompts and responses in W&B too, which may send them to a server; without it their lengths alone."""


class RunConfig(Section):
    """What every stage's config has."""

    removed_keys: ClassVar[dict[str, str]] = REMOVED_KEYS
    """Keys of earlier versions, by their full path, each with what to do instead."""

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

    trainer: ClassVar[TrainerSection]

    model: ModelConfig
    training: dict[str, Any] = Field(default_factory=dict)
    """Arguments of TRL's config class, by its own names, over the stage's defaults."""

    @field_validator("training", mode="before")
    @classmethod
    def _no_none(cls, value: Any) -> Any:
        return {} if value is None else value
