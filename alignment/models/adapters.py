"""An adapter's files: putting them on the model that they adapt, and merging the two into one whole model.

An adapter is nothing without its base: its manifest names that in a form that can be checked, and loading compares
(`alignment.models.policies`). Adapters meet the next stage merged: AdaLoRA, IA3, LoHa and LoKr carry no second adapter.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

from peft import (
    PeftConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    load_peft_weights,
    set_peft_model_state_dict,
)
from torch import Tensor, nn
from transformers import PreTrainedModel

from alignment.errors import UserError

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


class AdapterError(UserError):
    """An adapter that cannot be put on its base."""


def without_adapter(model: nn.Module) -> PreTrainedModel:
    """The transformers model, whose layers may have adapters in them."""
    base: PreTrainedModel = model.get_base_model() if isinstance(model, PeftModel) else model
    return base


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter and no whole model."""
    return (folder / CONFIG).is_file() and not (folder / "config.json").is_file()


def read_config(folder: str) -> PeftConfig:
    """The config of an adapter's folder.

    Raises:
        AdapterError: there is none that PEFT knows.
    """
    with _loading(folder):
        return PeftConfig.from_pretrained(folder)


def put_on(
    base: PreTrainedModel | PeftModel,
    folder: str,
    *,
    trainable: bool = False,
    name: str = "default",
    with_head: bool = True,
) -> PeftModel:
    """The adapter of a folder on its base, whose modules are replaced in place.

    Args:
        base: a model, or one that has adapters of other names already.
        with_head: with the whole modules that are saved beside it, a reward model's head; without them its body's
            adapter goes on a policy.

    Raises:
        AdapterError: the weights and the base do not fit each other; PEFT would leave the rest at its start and warn.
    """
    with _loading(folder):
        config = PeftConfig.from_pretrained(folder)
        config.inference_mode = not trainable
        config.base_model_name_or_path = None  # a reference, where PEFT compares paths and warns
        if not (Path(folder) / WEIGHTS).is_file():
            raise OSError(f"no {WEIGHTS}")
        weights = load_peft_weights(folder, device="cpu")
        if not with_head:
            weights = _without_head(config, weights)
        with warnings.catch_warnings():
            # PEFT takes AdaLoRA's ranks for LoRA's `rank_pattern`, finds no such layers, and warns of each.
            warnings.filterwarnings("ignore", message="The following rank_pattern keys did not match")
            # Nor is a layer that keeps no rank a part that ZeRO-3 left behind.
            warnings.filterwarnings("ignore", message="Adapter '.*': .* invalid shape")
            if isinstance(base, PeftModel):
                model = base
                model.add_adapter(name, config)
            else:
                model = get_peft_model(base, config, adapter_name=name)
            expected = set(get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False))
        result = set_peft_model_state_dict(model, weights, adapter_name=name)
        wrong = sorted(expected - set(weights)) + result.unexpected_keys
        if wrong:
            raise ValueError(f"{wrong[0]} is not in both the adapter and its base")
    return model


def saved_alone(model: PeftModel) -> PeftModel:
    """Let an adapter be saved without embeddings that nobody trained: PEFT adds them where the vocabulary has grown,
    and the base is grown again when the adapter is loaded."""
    model.save_pretrained = functools.partial(model.save_pretrained, save_embedding_layers=False)
    return model


def _without_head(config: PeftConfig, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Just the adapter's weights; its config is changed to be one of a policy's."""
    whole = getattr(config, "modules_to_save", None) or ()
    config.task_type = "CAUSAL_LM"
    if whole:
        config.modules_to_save = None
    return {key: weight for key, weight in weights.items() if not any(f".{name}." in key for name in whole)}


def merge(base: PreTrainedModel, folder: str) -> PreTrainedModel:
    """The adapter's weights added to those of its base: a whole model that says the same, and needs PEFT no more.

    Raises:
        AdapterError: they do not fit each other, or the sum is not finite.
    """
    model = put_on(base, folder)
    with _loading(folder):
        merged: PreTrainedModel = model.merge_and_unload(safe_merge=True)
    return merged.requires_grad_(True)  # PEFT has frozen the base; PPO trains what was merged


def dequantize(model: PreTrainedModel) -> PreTrainedModel:
    """The weights that a quantized model computes with, in float32."""
    model = model.dequantize().float()
    # PEFT refuses to merge IA3 for this mark alone, which dequantizing leaves behind.
    model.is_loaded_in_4bit = False
    return model


@contextlib.contextmanager
def as_folder(model: PreTrainedModel) -> Iterator[str]:
    """A whole model as a folder for the time being, on each process: weights are quantized as they are read from files.

    transformers saves on the first process alone, whose folder another node does not see.
    """
    model.should_save_on_this_rank = lambda is_main_process: True
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        yield folder


def folder_digest(folder: str) -> str:
    """`sha256:...` over the names and contents of a local model's config and weights."""
    digest = hashlib.sha256()
    for file in sorted([Path(folder) / "config.json", *Path(folder).glob("*.safetensors")]):
        with file.open("rb") as stream:
            digest.update(f"{file.name} {hashlib.file_digest(stream, 'sha256').hexdigest()}\n".encode())
    return f"sha256:{digest.hexdigest()}"


def name_base(folder: Path, label: str) -> None:
    """Name the base by `label` in a saved adapter; PEFT writes where its files happened to lie on this machine."""
    path = folder / CONFIG
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(config | {"base_model_name_or_path": label}, indent=2) + "\n", encoding="utf-8")


@contextlib.contextmanager
def _loading(folder: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError, TypeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise AdapterError(
            f"{folder}: this adapter cannot be put on its base ({reason}); was the base changed since?"
        ) from error
