"""Importing an adapter saved by PEFT, whose base the manifest records."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import peft
from transformers import AutoConfig, AutoTokenizer

from alignment.errors import ModelError, UserError
from alignment.models import adapters, saved_adapters
from alignment.models.importing import foreign
from alignment.models.importing.foreign import import_errors, run_convert
from alignment.models.methods import METHODS, OWNED
from alignment.models.policies import load_policy
from alignment.models.sources import ModelSource, find_model
from alignment.models.tokenizers import fit_embeddings
from alignment.registry import Parent, Registry

_PICKLED = "adapter_model.bin"
_NOT_ARGUMENTS = {"use_dora", "use_rslora", "total_step"}


def take_adapter(
    folder: Path, kept: list[str], base: str | None, registry: Registry, staging: Path, source: str
) -> tuple[Parent, dict[str, Any]]:
    """Write the adapter to `staging` as a stage publishes one, with its base's tokenizer if it has none.

    Args:
        kept: the folder's files that may be stored, without weights.
        base: the base model; None: the one that adapter_config.json names.

    Returns:
        Its base, and the config of the version to publish.

    Raises:
        ModelError: no stage makes this kind of adapter, or its base is missing or does not fit.
    """
    config = foreign.read_json(folder / saved_adapters.CONFIG)
    if not isinstance(config, dict):
        raise ModelError(f"{source}: {saved_adapters.CONFIG} is not JSON; download it again")
    method = _method(config, source)
    base_source = _find_base(base, config.get("base_model_name_or_path"), registry, source)
    for file in kept:
        shutil.copyfile(folder / file, staging / file)
    _write_weights(folder, staging, source)
    saved_adapters.name_base(staging, base_source.label)
    has_tokenizer = foreign.has_tokenizer(set(kept))
    owner = source if has_tokenizer else base_source.label
    with import_errors(f"{source}: the tokenizer of {owner} cannot be loaded"):
        tokenizer = AutoTokenizer.from_pretrained(staging if has_tokenizer else base_source.path)
    if not has_tokenizer:
        tokenizer.save_pretrained(staging)
    model = load_policy(base_source)
    fit_embeddings(model, tokenizer)
    try:
        adapters.put_on(model, str(staging))
    except adapters.AdapterError as error:
        reason = (str(error.__cause__).strip().splitlines() or ["weights of other shapes"])[0]
        raise ModelError(
            f"{source}: does not fit its base {base_source.label} ({reason}); name the one that it was trained on with "
            "--base REF"
        ) from error
    model_section = {"name": base_source.label, "method": method, "adapter": _arguments(config, method)}
    return base_source.as_base(), {"model": model_section}


def _method(config: dict[str, Any], source: str) -> str:
    kind = str(config.get("peft_type"))
    if config.get("task_type") not in (None, "CAUSAL_LM"):
        raise ModelError(
            f"{source}: an adapter for {config['task_type']}; merge it onto its base (PEFT's merge_and_unload) and "
            "import the result"
        )
    if kind == "LORA":
        return "dora" if config.get("use_dora") else "rslora" if config.get("use_rslora") else "lora"
    if kind in ("ADALORA", "IA3", "LOHA", "LOKR"):
        return kind.lower()
    raise ModelError(
        f"{source}: an adapter of type {kind}; expected LORA, ADALORA, IA3, LOHA or LOKR. Merge it onto its base and "
        "import the result, where PEFT can"
    )


def _find_base(given: str | None, named: Any, registry: Registry, source: str) -> ModelSource:
    name = given or named
    if not isinstance(name, str) or not name:
        raise ModelError(f"{source}: {saved_adapters.CONFIG} names no base; add --base REF")
    if given is None and not registry.is_reference(name) and not Path(name).is_dir():
        name = _imported(name, registry) or name
    try:
        base = find_model(name, registry, role="policy")
        if base.ref is None and not Path(base.path).is_dir():
            AutoConfig.from_pretrained(base.path)
    except (UserError, OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(f"{source}: its base {name} cannot be used ({reason}); name it with --base REF") from error
    return base


def _imported(hub_name: str, registry: Registry) -> str | None:
    """The newest version that was imported from a hub name."""
    for name in registry.names():
        for number in sorted(registry.numbers(name), reverse=True):
            origin = registry.resolve(f"{name}@v{number}").manifest.origin
            if origin is not None and origin.source == hub_name:
                return f"{name}@v{number}"
    return None


def _write_weights(folder: Path, staging: Path, source: str) -> None:
    if (folder / saved_adapters.WEIGHTS).is_file():
        shutil.copyfile(folder / saved_adapters.WEIGHTS, staging / saved_adapters.WEIGHTS)
    elif (folder / _PICKLED).is_file():
        with import_errors(f"{source}: {_PICKLED} cannot be converted"):
            run_convert(folder / _PICKLED, staging / saved_adapters.WEIGHTS)
    else:
        raise ModelError(f"{source}: no {saved_adapters.WEIGHTS}; copy it into the folder")


def _arguments(config: dict[str, Any], method: str) -> dict[str, Any]:
    """The non-default arguments of adapter_config.json, so that training continues it only with the same ones."""
    cls = getattr(peft, METHODS[method].peft_config or "")
    default = {field.name: field.default for field in dataclasses.fields(cls)} | dict(METHODS[method].defaults)
    left_out = {*OWNED, *_NOT_ARGUMENTS, "peft_type", "inference_mode"}
    return {
        key: sorted(value) if isinstance(value, list) and all(isinstance(item, str) for item in value) else value
        for key, value in config.items()
        if key in default and key not in left_out and value != default[key] and value not in (None, {}, [])
    }
