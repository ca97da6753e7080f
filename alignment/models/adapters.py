"""An adapter's files: loading them onto the base model, and merging the two.

An adapter needs its exact base: the manifest records its digest, and loading compares it (`alignment.models.sources`).
The next stage gets adapters merged, since AdaLoRA, IA3, LoHa and LoKr support no second adapter.
"""

from __future__ import annotations

import contextlib
import functools
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from alignment.distributed import zero3
from alignment.errors import UserError
from alignment.models.saved_adapters import WEIGHTS

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel
    from transformers import PreTrainedModel


class AdapterError(UserError):
    """An adapter that cannot be loaded onto its base."""


def without_adapter(model: nn.Module) -> PreTrainedModel:
    """The transformers model inside a PeftModel; its layers may still have adapters in them."""
    from peft import PeftModel  # takes seconds, and a plan does without

    base: PreTrainedModel = model.get_base_model() if isinstance(model, PeftModel) else model
    return base


def read_config(folder: str) -> PeftConfig:
    """The config of an adapter's folder.

    Raises:
        AdapterError: the config is missing, or PEFT does not know it.
    """
    from peft import PeftConfig  # as above

    with _adapter_errors(folder):
        return PeftConfig.from_pretrained(folder)


def put_on(
    base: PreTrainedModel | PeftModel,
    folder: str,
    *,
    trainable: bool = False,
    name: str = "default",
    with_head: bool = True,
) -> PeftModel:
    """Load the adapter of a folder onto its base, whose modules are replaced in place.

    Args:
        base: a model, which may have adapters of other names already.
        with_head: also load the modules saved in full beside the adapter, such as a reward model's head; without them
            the adapter of its body can be put on a policy.

    Raises:
        AdapterError: the weights do not fit the base; PEFT would only warn and leave the rest at initialisation.
    """
    from peft import (  # as above
        PeftConfig,
        PeftModel,
        get_peft_model,
        get_peft_model_state_dict,
        load_peft_weights,
        set_peft_model_state_dict,
    )

    with _adapter_errors(folder):
        config = PeftConfig.from_pretrained(folder)
        config.inference_mode = not trainable
        config.base_model_name_or_path = None  # a reference, which PEFT would compare with a path
        if not (Path(folder) / WEIGHTS).is_file():
            raise OSError(f"no {WEIGHTS}")
        weights = load_peft_weights(folder, device="cpu")
        if not with_head:
            weights = _without_head(config, weights)
        with warnings.catch_warnings():
            # PEFT reads AdaLoRA's ranks as LoRA's `rank_pattern`, finds no such layers, and warns of each.
            warnings.filterwarnings("ignore", message="The following rank_pattern keys did not match")
            # PEFT takes a layer that keeps no rank for a ZeRO-3 shard.
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
    """Save only the adapter: PEFT would add the untrained embeddings of a grown vocabulary.

    The base is grown again when the adapter is loaded.
    """
    model.save_pretrained = functools.partial(model.save_pretrained, save_embedding_layers=False)
    return model


def _without_head(config: PeftConfig, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The adapter's own weights; the config is changed to a policy's."""
    full_modules = getattr(config, "modules_to_save", None) or ()
    config.task_type = "CAUSAL_LM"
    if full_modules:
        config.modules_to_save = None
    return {key: weight for key, weight in weights.items() if not any(f".{name}." in key for name in full_modules)}


def merge(base: PreTrainedModel, folder: str) -> PreTrainedModel:
    """Merge an adapter into its base: an equivalent model that no longer needs PEFT.

    A base in ZeRO-3's shards stays in shards: one layer at a time is gathered.

    Raises:
        AdapterError: they do not fit each other, or the sum is not finite.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer  # as above

    model = put_on(base, folder)
    for layer in model.modules() if zero3.is_partitioned(model) else ():
        if isinstance(layer, BaseTunerLayer):
            layer.merge = functools.partial(_merge_gathered, layer, layer.merge)
    with _adapter_errors(folder):
        merged: PreTrainedModel = model.merge_and_unload(safe_merge=True)
    return merged.requires_grad_(True)  # PEFT has frozen the base, but PPO trains the merged weights


def _merge_gathered(layer: nn.Module, merge: Callable[..., None], *args: Any, **options: Any) -> None:
    with zero3.gathered_parameters(*layer.parameters()):
        merge(*args, **options)


def loading_to_merge(folder: str) -> contextlib.AbstractContextManager[None]:
    """Load the base of the adapter of a folder inside: in shards only where the adapter can be merged into those.

    LoRA and its kinds read the shape of a layer; others read that of its weight, which is empty in shards.
    """
    from peft import PeftType  # as above

    in_shards = zero3.loads_in_shards() and read_config(folder).peft_type is PeftType.LORA
    return contextlib.nullcontext() if in_shards else zero3.unpartitioned_loading()


def dequantize(model: PreTrainedModel) -> PreTrainedModel:
    """The weights that a quantized model computes with, in float32."""
    model = model.dequantize().float()
    # Dequantizing leaves this mark behind, for which PEFT refuses to merge IA3.
    model.is_loaded_in_4bit = False
    return model


@contextlib.contextmanager
def as_folder(model: PreTrainedModel) -> Iterator[str]:
    """A model in a temporary folder on each rank, since weights are quantized only when they are read from files.

    transformers would save on the first rank only, whose folder other nodes cannot see.
    """
    model.should_save_on_this_rank = lambda is_main_process: True
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        yield folder


@contextlib.contextmanager
def _adapter_errors(folder: str) -> Iterator[None]:
    """Turn PEFT's errors into one line about the adapter."""
    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError, TypeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise AdapterError(
            f"{folder}: this adapter cannot be put on its base ({reason}); was the base changed since?"
        ) from error
