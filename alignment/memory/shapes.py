"""Model sizes for `alignment.memory.plan`, from a model's `config.json`; no weights are read.

A size is measured once for each config and method, on a model without weights, and kept (`alignment.memory.kept`).
Only measuring imports torch and transformers, which takes ten times as long as the rest of a plan.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignment.config.loading import read_values, validate
from alignment.config.sections import ADAPTERS, SCRATCH, ModelConfig, ScratchConfig
from alignment.errors import ConfigError, UserError
from alignment.memory import kept
from alignment.memory.workload import Model, Shape
from alignment.models.importing import foreign
from alignment.models.names import ENSEMBLE
from alignment.registry import Registry

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedConfig

FIELDS = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "tie_word_embeddings",
)  # fmt: skip
KNOWN: dict[str, tuple[str, tuple[int, ...]]] = {
    "Qwen/Qwen2.5-0.5B": ("qwen2", (151936, 896, 4864, 24, 14, 2, True)),
    "Qwen/Qwen3-8B-Base": ("qwen3", (151936, 4096, 12288, 36, 32, 8, False)),
    "meta-llama/Llama-3.1-8B": ("llama", (128256, 4096, 14336, 32, 32, 8, False)),
    "meta-llama/Llama-3.1-70B": ("llama", (128256, 8192, 28672, 80, 64, 8, False)),
    "meta-llama/Llama-3.1-405B": ("llama", (128256, 16384, 53248, 126, 128, 8, False)),
}
"""Shapes (FIELDS) from the `config.json` of published models, for machines that cannot reach the hub."""
MAX_RECIPES = 8
"""Longest chain of recipes that start from each other's models."""


class UnknownShape(UserError):
    """A model whose `config.json` cannot be read, or that is not a dense transformer."""


@dataclass(frozen=True)
class FoundConfig:
    """A model's config as it was found, which transformers reads when the model is measured.

    Args:
        text: the config, as far as it settles a model's size.
        read: gives transformers' config; it may raise UnknownShape.
    """

    text: str
    read: Callable[[], PreTrainedConfig]

    @property
    def brings_code(self) -> bool:
        """Whether the size may depend on Python code of the model's own."""
        return '"auto_map"' in self.text


class ShapeFinder:
    """Finds the shapes of models by the names that configs give them.

    Args:
        recipes: a folder of `STAGE/*.yaml`: an untrained model has the shape of its recipe's initial model.
        fallback: a `config.json`, a folder with one, or one of `KNOWN`, for models that cannot be read.
    """

    def __init__(self, registry: Registry, recipes: Path | None = None, fallback: str | None = None) -> None:
        self.registry, self.recipes, self.fallback = registry, recipes, fallback
        self.notes: list[str] = []
        """Notes on shapes that were not read from the model itself."""
        self._fallback_read = False

    def find(self, key: str, name: str, scratch: ScratchConfig | None = None, *, trust: bool = False) -> FoundConfig:
        """The config of the model that a config's `key` names.

        Raises:
            UnknownShape: there is none; the message says what to pass.
        """
        if name.startswith(SCRATCH):
            return scratch_config(scratch or ScratchConfig())
        config = self._read(name, trust, 0)
        if config is None and self.fallback is not None:
            config = self._given(trust)
            self._note(f"{key}={name}: cannot be read here; its shape is that of {self.fallback}")
        if config is None:
            raise UnknownShape(
                f"{key}={name}: its config.json cannot be read: it is in no registry and no folder, and the hub does "
                "not answer; pass --model-config FILE with the model's config.json, or a name known here: "
                f"{', '.join(KNOWN)}"
            )
        return config

    def _read(self, name: str, trust: bool, depth: int) -> FoundConfig | None:
        if self.registry.is_reference(name):
            version = self.registry.resolve(name)
            if version.manifest.base is not None:
                return self._read(version.manifest.base.ref, trust, depth)
            member = version.path / "member-0"
            return config_in(member if (version.path / ENSEMBLE).is_file() else version.path, trust)
        if (config := self._named(name, trust)) is not None:
            return config
        return self._from_recipe(name, trust, depth) or _from_hub(name, trust)

    def _named(self, name: str, trust: bool) -> FoundConfig | None:
        path = Path(name).expanduser()
        if foreign.is_gguf(path):
            raise UnknownShape(f"{name}: {foreign.about_file(path)}")
        if path.is_dir() and not any((path / file).is_file() for file in ("config.json", ENSEMBLE)):
            raise UnknownShape(f"{name}: {foreign.about_folder(path)}")
        if path.exists():
            return config_in(path, trust)
        if name in KNOWN:
            kind, values = KNOWN[name]
            return _config_of(kind, dict(zip(FIELDS, values, strict=True)))
        return None

    @cached_property
    def _recipe_values(self) -> list[tuple[Path, dict[str, Any]]]:
        """All recipes, read once: a plan looks for several models."""
        found = []
        for file in sorted(self.recipes.glob("*/*.yaml")) if self.recipes else ():
            with suppress(ConfigError):  # the file is not one of the suite's recipes
                found.append((file, read_values(file)))
        return found

    def _from_recipe(self, name: str, trust: bool, depth: int) -> FoundConfig | None:
        """The shape of the initial model of the recipe that publishes this name."""
        bare = name.partition("@")[0]
        for file, values in self._recipe_values if depth < MAX_RECIPES else ():
            model, registry = values.get("model"), values.get("registry")
            if not (isinstance(model, dict) and isinstance(registry, dict)) or registry.get("name") != bare:
                continue
            start = str(model.get("name") or model.get("policy") or "")
            if start.startswith(SCRATCH):
                shape = validate(ScratchConfig, model.get("scratch") or {}, str(file))
                config: FoundConfig | None = scratch_config(shape)
            else:
                config = self._read(start, trust, depth + 1)
            if config is not None:
                self._note(f"{name} is in no registry yet; its shape is that of {start} ({file})")
            return config
        return None

    def _given(self, trust: bool = False) -> FoundConfig:
        assert self.fallback is not None
        self._fallback_read = True
        config = self._named(self.fallback, trust)
        if config is None:
            raise UnknownShape(f"--model-config {self.fallback}: no config.json there; known: {', '.join(KNOWN)}")
        return config

    def all_notes(self) -> list[str]:
        """Notes on the shapes that were found.

        Raises:
            UnknownShape: the fallback was not needed and cannot be read.
        """
        if self.fallback is not None and not self._fallback_read:
            self._given().read()
            self._note(f"--model-config {self.fallback}: not needed, every model's own config.json was read")
        return self.notes

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)


def config_in(path: Path, trust: bool) -> FoundConfig | None:
    """The `config.json` of a model's folder, or the file itself."""
    file = path / "config.json" if path.is_dir() else path
    if not file.is_file():
        return None

    def read() -> PreTrainedConfig:
        from transformers import AutoConfig

        with _unreadable(file):
            config: PreTrainedConfig = AutoConfig.from_pretrained(file, trust_remote_code=trust)
        return config

    with _unreadable(file):
        return FoundConfig(file.read_text(encoding="utf-8"), read)


def config_of_source(path: str, trust: bool) -> FoundConfig:
    """The config at the `config_path` of a model's source, a folder or a hub name.

    Raises:
        UnknownShape: there is none.
    """
    folder = Path(path)
    if (found := config_in(folder, trust) if folder.is_dir() else _from_hub(path, trust)) is None:
        raise UnknownShape(f"{path}: its config.json cannot be read")
    return found


@contextmanager
def _unreadable(file: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError) as error:
        raise UnknownShape(f"{file}: no config.json of a model ({str(error).splitlines()[0]})") from error


def scratch_config(shape: ScratchConfig, vocab_size: int | None = None) -> FoundConfig:
    """The config of `scratch:llama`, whose vocabulary may have become smaller than was asked for."""
    size = vocab_size or shape.vocab_size

    def read() -> PreTrainedConfig:
        from alignment.models.policies import scratch_shape

        return scratch_shape(shape, size)

    return FoundConfig(f"{SCRATCH} {size} {shape.model_dump_json()}", read)


def _config_of(kind: str, values: dict[str, Any]) -> FoundConfig:
    def read() -> PreTrainedConfig:
        from transformers import AutoConfig

        return AutoConfig.for_model(kind, **values)

    return FoundConfig(json.dumps({"model_type": kind, **values}), read)


def _from_hub(name: str, trust: bool) -> FoundConfig | None:
    if name.count("/") != 1:
        return None
    from transformers import AutoConfig

    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(name, trust_remote_code=trust)
    except (OSError, ValueError, KeyError):
        return None
    return _found(config)


def _found(config: FoundConfig | PreTrainedConfig) -> FoundConfig:
    return config if isinstance(config, FoundConfig) else FoundConfig(config.to_json_string(), lambda: config)


def sized(config: FoundConfig | PreTrainedConfig, options: ModelConfig, *, scalar: bool = False) -> Model:
    """A model as a stage trains it.

    Args:
        scalar: whether it gives one number per token (a classifier), and no logits.

    Raises:
        ConfigError: the method does not fit this model.
        UnknownShape: the config cannot be read, or the architecture's activations are not known here.
    """
    found = _found(config)
    key = (found.text, options.model_dump_json(exclude={"name"}), str(scalar))
    if key not in _sizes:  # a plan asks for the same model many times
        model = None if found.brings_code else kept.find(key)
        if model is None:
            model = _measured(found.read(), options, scalar)
            if not found.brings_code:
                kept.keep(key, model)
        _sizes[key] = model
    return _sizes[key]


_sizes: dict[tuple[str, str, str], Model] = {}


def _measured(shape: PreTrainedConfig, options: ModelConfig, scalar: bool) -> Model:
    """See `sized`."""
    from alignment.models import trainable

    skeleton = trainable.skeleton(shape, options, scalar=scalar)
    counts = trainable.describe(skeleton)
    dimensions, total, trained = read_shape(shape, skeleton), counts["parameters"], counts["trained_parameters"]
    adapter = options.method in ADAPTERS
    return Model(
        shape=dimensions,
        parameters=total,
        trained=trained,
        frozen_bytes=_frozen_bytes(shape, options, total - trained, policy=not scalar),
        layers=options.last_n_layers if options.method == "head" else dimensions.num_layers,
        norms=not adapter,
        head_trained=not scalar and not adapter,
        gathered=total,
    )


def frozen(model: Model, **changes: Any) -> Model:
    """The same model frozen, and outside of the module that DeepSpeed runs."""
    return replace(model, **{"trained": 0, "layers": 0, "head_trained": False, "in_engine": False, **changes})


def _frozen_bytes(shape: PreTrainedConfig, options: ModelConfig, count: int, policy: bool) -> float:
    """Bytes per frozen weight.

    NF4 covers only the linear layers inside the transformer: half a byte per weight, and one byte of scale per 64.
    """
    if not options.quantized:
        return 2.0 if options.dtype == "bfloat16" else 4.0
    text = shape.get_text_config()
    tables = text.vocab_size * text.hidden_size * (1 if text.tie_word_embeddings or not policy else 2)
    return (4 * tables + (0.5 + 1 / 64) * (count - tables)) / count


def read_shape(config: PreTrainedConfig, skeleton: nn.Module) -> Shape:
    """The dimensions that a model's activations depend on.

    Raises:
        UnknownShape: the model is a mixture of experts, or has no attention heads under the usual name.
    """
    text = config.get_text_config()
    names = {name.rpartition(".")[2] for name, _ in skeleton.named_modules()}
    if "experts" in names or not getattr(text, "num_attention_heads", None):
        raise UnknownShape(
            f"the activations of a {config.model_type} are not known here: memory is planned for dense transformers"
        )
    heads, hidden = int(text.num_attention_heads), int(text.hidden_size)
    inner = [getattr(text, name, None) for name in ("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size")]
    return Shape(
        vocab_size=int(text.vocab_size),
        hidden_size=hidden,
        intermediate_size=int(next((size for size in inner if size), 4 * hidden)),
        num_layers=int(text.num_hidden_layers),
        num_heads=heads,
        num_kv_heads=int(getattr(text, "num_key_value_heads", None) or heads),
        head_dim=int(getattr(text, "head_dim", None) or hidden // heads),
        gated=bool(names & {"gate_proj", "gate_up_proj"}),
    )
