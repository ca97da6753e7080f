"""Reading a model's weights: by each process, or by the main process for all."""

from __future__ import annotations

import re
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, BitsAndBytesConfig, PreTrainedModel

from alignment.config.sections import ModelConfig
from alignment.distributed import one_reader, processes, zero3
from alignment.errors import ModelError
from alignment.models.classifiers import FAILURES
from alignment.models.sources import ModelSource, load_errors, quiet_loading


def load_weights(
    kind: type, source: ModelSource | str, config: ModelConfig | None, may_be_new: str = "", **options: Any
) -> tuple[PreTrainedModel, bool]:
    """`from_pretrained`, but missing or mismatched weights are an error; transformers would initialise them randomly.

    Inside `one_reader.reading_once` the main process reads, and the others get the tensors from it. Quantized weights
    are read by each process: bitsandbytes packs them while it reads, and keeps what it packed by beside them.

    Returns:
        The model, and whether a weight was missing whose name matches `may_be_new` (a regular expression).
    """
    path = source if isinstance(source, str) else source.path
    read = partial(_read, kind, path, config, may_be_new, options)
    if not one_reader.is_active() or (config is not None and config.quantized):
        return read()
    model: PreTrainedModel | None = None

    def read_and_describe() -> tuple[bool, list[one_reader.TensorEntry], Any, Tensor]:
        nonlocal model
        model, is_new = read()
        return is_new, one_reader.entries_of(model), getattr(model, "generation_config", None), torch.get_rng_state()

    is_new, entries, generation_config, random_state = one_reader.from_reader(read_and_describe)
    whole = model
    model = whole if whole is not None else _empty(kind, path, config, options)
    fits = model is not None and one_reader.fits(model, entries)
    if not all(flag for [flag] in processes.gather_lists([fits])):  # a class that its config alone does not make
        return processes.on_every_process(lambda: read() if whole is None else (whole, is_new))
    assert model is not None
    if whole is not None:
        one_reader.send(whole)
        return whole, is_new
    one_reader.receive(model, entries)
    if generation_config is not None:
        model.generation_config = generation_config
    torch.set_rng_state(random_state)  # new weights that are drawn next are the same on all ranks
    return model, is_new


def _empty(kind: type, path: str, config: ModelConfig | None, options: dict[str, Any]) -> PreTrainedModel | None:
    """The model that `_read` gives, on the meta device; None if it cannot be made so."""
    trusted = bool(config and config.trust_remote_code)
    dtype = getattr(torch, config.dtype if config else "float32")
    try:
        shape = AutoConfig.from_pretrained(path, trust_remote_code=trusted, **options)
        shape.dtype = dtype
        with zero3.on_meta_device():
            model: PreTrainedModel = kind.from_config(  # type: ignore[attr-defined]
                shape, dtype=dtype, trust_remote_code=trusted
            )
    except (*FAILURES, OSError):
        return None
    return model.eval()


def _read(
    kind: type, path: str, config: ModelConfig | None, may_be_new: str, options: dict[str, Any]
) -> tuple[PreTrainedModel, bool]:
    with load_errors(path), quiet_loading():
        model, info = kind.from_pretrained(  # type: ignore[attr-defined]
            path,
            dtype=getattr(torch, config.dtype if config else "float32"),
            use_safetensors=True,
            trust_remote_code=bool(config and config.trust_remote_code),
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **_quantization(config),
            **options,
        )
    if getattr(model, "is_quantized", False) and not (config and config.quantized):  # `find_model` checks folders only
        raise ModelError(f"{path}: its weights are stored quantized, which cannot be trained; name the original")
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            # In eval mode bitsandbytes would rewrite the weights for such CPUs and round their scales to bfloat16, so
            # the base would differ from the recorded one.
            module.support_avx512bf16_for_cpu = False
    new = {name for name in info["missing_keys"] if re.fullmatch(may_be_new, name)}
    wrong = sorted((set(info["missing_keys"]) - new) | {name for name, *_ in info["mismatched_keys"]})
    if wrong:
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise ModelError(
            f"{path}: not a whole {type(model).__name__}: {wrong[0]}{more} missing or of another shape than "
            "config.json says; name another model"
        )
    return model, bool(new)


def _quantization(config: ModelConfig | None) -> dict[str, Any]:
    """`from_pretrained` arguments that quantize with bitsandbytes, on the CPU too.

    Raises:
        ModelError: bitsandbytes is not installed.
    """
    if config is None or not config.quantized:
        return {}
    if find_spec("bitsandbytes") is None:
        raise ModelError(
            "quantized weights need bitsandbytes, which is not installed: "
            "pip install 'rlhf-alignment-suite[quantization]'"
        )
    return {
        "quantization_config": BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16 if torch.cuda.is_available() else torch.float32,
        )
    }
