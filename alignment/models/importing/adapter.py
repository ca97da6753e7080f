"""A folder with an adapter alone, as PEFT saves it, into the registry: beside its base, which the manifest names."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import peft
from transformers import AutoConfig, AutoTokenizer

from alignment.errors import ModelError, UserError
from alignment.models import adapters
from alignment.models.importing import foreign
from alignment.models.importing.foreign import one_line_errors, run_convert
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
    """Write the adapter to `staging` as a stage publishes one, with its base's tokenizer where it has none.

    Args:
        kept: the folder's files that may be stored, without weights.
        base: what it goes on; None: the model that adapter_config.json names.

    Returns:
        Its base, and the config of the version that is to be published.

    Raises:
        ModelError: a kind of adapter that no stage makes, a base that is not there or that it does not fit.
    """
    config = foreign.read_json(folder / adapters.CONFIG)
    if not isinstance(config, dict):
        raise ModelError(f"{source}: {adapters.CONFIG} is not JSON; download it again")
    method = _method(config, source)
    found = _find_base(base, config.get("base_model_name_or_path"), registry, source)
    for file in kept:
        shutil.copyfile(folder / file, staging / file)
    _write_weights(folder, staging, source)
    adapters.name_base(staging, found.label)
    has_tokenizer = foreign.has_tokenizer(set(kept))
    with one_line_errors(f"{source}: the tokenizer of {source if has_tokenizer else found.label} cannot be loaded"):
        tokenizer = AutoTokenizer.from_pretrained(staging if has_tokenizer else found.path)
    if not has_tokenizer:
        tokenizer.save_pretrained(staging)
    model = load_policy(found)
    fit_embeddings(model, tokenizer)
    try:
        adapters.put_on(model, str(staging))
    except adapters.AdapterError as error:
        reason = (str(error.__cause__).strip().splitlines() or ["weights of other shapes"])[0]
        raise ModelError(
            f"{source}: does not fit its base {found.label} ({reason}); name the one that it was trained on with "
            "--base REF"
        ) from error
    own = {"name": found.label, "method": method, "adapter": _arguments(config, method)}
    return found.as_base(), {"model": own}


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
        raise ModelError(f"{source}: {adapters.CONFIG} names no base; add --base REF")
    if given is None and not registry.is_reference(name) and not Path(name).is_dir():
        name = _imported(name, registry) or name
    try:
        found = find_model(name, registry, role="policy")
        if found.ref is None and not Path(found.path).is_dir():
            AutoConfig.from_pretrained(found.path)
    except (UserError, OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(f"{source}: its base {name} cannot be used ({reason}); name it with --base REF") from error
    return found


def _imported(name: str, registry: Registry) -> str | None:
    """The newest version that was imported from a hub name."""
    for each in registry.names():
        for number in sorted(registry.numbers(each), reverse=True):
            origin = registry.resolve(f"{each}@v{number}").manifest.origin
            if origin is not None and origin.source == name:
                return f"{each}@v{number}"
    return None


def _write_weights(folder: Path, staging: Path, source: str) -> None:
    if (folder / adapters.WEIGHTS).is_file():
        shutil.copyfile(folder / adapters.WEIGHTS, staging / adapters.WEIGHTS)
    elif (folder / _PICKLED).is_file():
        with one_line_errors(f"{source}: {_PICKLED} cannot be converted"):
            run_convert(folder / _PICKLED, staging / adapters.WEIGHTS)
    else:
        raise ModelError(f"{source}: no {adapters.WEIGHTS}; copy it into the folder")


def _arguments(config: dict[str, Any], method: str) -> dict[str, Any]:
    """What of adapter_config.json is not a default here, so that training goes on with it only where it is the same."""
    cls = getattr(peft, METHODS[method].peft_config or "")
    default = {field.name: field.default for field in dataclasses.fields(cls)} | dict(METHODS[method].defaults)
    left_out = {*OWNED, *_NOT_ARGUMENTS, "peft_type", "inference_mode"}
    return {
        key: sorted(value) if isinstance(value, list) and all(isinstance(each, str) for each in value) else value
        for key, value in config.items()
        if key in default and key not in left_out and value != default[key] and value not in (None, {}, [])
    }
