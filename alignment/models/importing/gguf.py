"""A GGUF file, llama.cpp's format, as a plain Hugging Face folder: weights as floats, tokenizer, template, configs.

transformers reads the weights. What its reading passes over is taken from the file here, or the file is refused:
positions that are scaled, widths of heads, tokens that end a turn, digits that are split. Needs the extra `gguf`.
"""

from __future__ import annotations

import json
import struct
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from tokenizers import pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

from alignment.errors import ModelError
from alignment.models.importing.gguf_config import complete
from alignment.terminal import one_line, say

ELSEWHERE = "get the model as a Hugging Face folder (config.json and safetensors)"
FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
ROPE_TENSORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
_NO_POLICIES = {
    "t5": "an encoder and a decoder",
    "t5encoder": "an encoder",
    "umt5": "an encoder and a decoder",
    "clip": "a vision part",
}
# How text is cut into words before merges, by `tokenizer.ggml.pre`. Those as GPT-2 (transformers' default), and those
# that part digits first (which transformers forgets); others that it knows are asked of itself.
_AS_GPT2 = {"gpt-2", "phi-2", "jina-es", "jina-de", "jais", "mpt", "olmo", "trillion"}
_DIGITS_APART = {"smollm", "starcoder", "refact", "command-r", "codeshell", "minerva-7b", "exaone"}


def unpack(file: Path, folder: Path) -> str | None:
    """Write the model of a GGUF file to a folder that plain transformers loads: in float32 where weights are quantized,
    else in their own type.

    Returns:
        The license that the file names.

    Raises:
        ModelError: no GGUF file, a damaged one, a part of one; or a model that is not understood.
    """
    say(one_line(f"{file.name}: reading its keys"))
    metadata, tensors = _read(file)
    architecture = _check_kind(file, metadata)
    floats = {each.tensor_type.name for each in tensors}
    dtype = torch.float32
    if floats <= FLOATS.keys():  # norms are in float32 beside halves
        dtype = next(FLOATS[name] for name in ("BF16", "F16", "F32") if name in floats)
    _check_memory(file, tensors, dtype)
    say(one_line(f"{file.name}: {architecture}, {len(tensors)} tensors; reading its tokenizer"))
    where: dict[str, Any] = {"pretrained_model_name_or_path": str(file.parent.resolve()), "gguf_file": file.name}
    try:
        config = AutoConfig.from_pretrained(**where)
        complete(config, metadata, {each.name: np.asarray(each.data) for each in tensors if each.name in ROPE_TENSORS})
        config.get_text_config().vocab_size = _rows(tensors, config)
        _write_tokenizer(where, metadata, config, folder)
        say(one_line(f"{file.name}: reading its weights"))
        model = _model(where, config, dtype, tensors)
    except ModelError as error:
        raise ModelError(f"{file}: {error}") from None
    except (
        OSError,
        ValueError,
        KeyError,
        IndexError,
        AttributeError,
        TypeError,
        RuntimeError,
        NotImplementedError,
    ) as e:
        reason = (str(e).strip().splitlines() or [type(e).__name__])[0]
        raise ModelError(f"{file}: transformers cannot read this {architecture} ({reason}); {ELSEWHERE}") from e
    _set_ends(model, metadata)
    say(one_line(f"{file.name}: writing its weights as {str(dtype).partition('.')[2]}"))
    model.save_pretrained(folder)
    return metadata.get("general.license")


def _read(file: Path) -> tuple[dict[str, Any], list[Any]]:
    """The file's keys and its tensors, whose data is mapped and not read."""
    with file.open("rb") as stream:
        head = stream.read(4)
    if head != b"GGUF":
        raise ModelError(f"{file}: not a GGUF file (it begins with {head!r}); download it again")
    if find_spec("gguf") is None:
        raise ModelError(f"{file}: reading GGUF needs the extra gguf: pip install 'rlhf-alignment-suite[gguf]'")
    from gguf import GGUFReader

    try:
        reader = GGUFReader(file)
        return {key: field.contents() for key, field in reader.fields.items()}, list(reader.tensors)
    except (ValueError, IndexError, KeyError, OSError, OverflowError, MemoryError, struct.error) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(f"{file}: a damaged or cut-off GGUF file ({reason}); download it again") from None


def _check_kind(file: Path, metadata: dict[str, Any]) -> str:
    """The architecture, of a whole language model that transformers can read from a GGUF file."""
    from transformers.integrations.gguf import GGUF_CONFIG_ARCHS
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

    architecture = str(metadata.get("general.architecture", "none"))
    if metadata.get("split.count", 1) > 1:
        raise ModelError(
            f"{file}: part {metadata.get('split.no', 0) + 1} of {metadata['split.count']} of one model; join them with "
            "llama.cpp's `llama-gguf-split --merge FIRST-PART WHOLE.gguf` and import that"
        )
    if (kind := metadata.get("general.type", "model")) != "model":
        raise ModelError(f"{file}: GGUF of type {kind}, not a whole model; {ELSEWHERE}")
    if architecture in _NO_POLICIES:
        raise ModelError(f"{file}: {architecture} is {_NO_POLICIES[architecture]}; bring a causal language model")
    known = {each.replace("_", "") for each in (*GGUF_SUPPORTED_ARCHITECTURES, *GGUF_CONFIG_ARCHS)}
    known -= {"general", "tokenizer", *_NO_POLICIES}
    if architecture.replace("-", "").replace("_", "") not in known:
        raise ModelError(
            f"{file}: architecture {architecture!r}, which transformers cannot read from a GGUF file (it reads "
            f"llama, qwen2, qwen3, gemma2, gemma3, phi3 and {len(known) - 6} more); {ELSEWHERE}"
        )
    return architecture


def _check_memory(file: Path, tensors: list[Any], dtype: torch.dtype) -> None:
    """Say it now rather than be killed in the middle: the weights are held once in full, and some more while read."""
    needed = 1.2 * sum(int(each.n_elements) for each in tensors) * dtype.itemsize
    free = psutil.virtual_memory().available
    if needed > free:
        raise ModelError(
            f"{file}: its weights take {needed / 1e9:.0f} GB as {str(dtype).partition('.')[2]} and {free / 1e9:.0f} GB "
            f"of memory are free; use a larger machine, or {ELSEWHERE}"
        )


def _rows(tensors: list[Any], config: PreTrainedConfig) -> int:
    """Rows of the embeddings, which may be more than there are tokens."""
    found = [int(each.shape[-1]) for each in tensors if each.name == "token_embd.weight"]
    return found[0] if found else config.get_text_config().vocab_size


def _model(where: dict[str, Any], config: PreTrainedConfig, dtype: torch.dtype, tensors: list[Any]) -> PreTrainedModel:
    """The weights, every one of them. transformers draws what is missing at random, and drops what it has no place
    for (biases of attention, say): either would be another model."""
    model, info = AutoModelForCausalLM.from_pretrained(
        **where,
        config=config,
        dtype=dtype,
        quantization_config=GgufConfig(dequantize=True),
        output_loading_info=True,
        ignore_mismatched_sizes=True,
    )
    wrong = sorted({*info["missing_keys"], *(name for name, *_ in info["mismatched_keys"])})
    if wrong:
        raise ModelError(f"not a whole {type(model).__name__}: {wrong[0]} is missing or of another shape; {ELSEWHERE}")
    text = config.get_text_config()
    held = {weight.data_ptr(): weight.numel() for weight in model.state_dict().values()}
    left = {*ROPE_TENSORS, *(["output.weight"] if text.tie_word_embeddings else [])}
    given = [
        each for each in tensors if each.name not in left and not _is_beyond(each.name, text.num_hidden_layers)
    ]  # fmt: skip
    if (of_file := sum(int(each.n_elements) for each in given)) != sum(held.values()):
        raise ModelError(
            f"it holds {of_file:,} weights and {type(model).__name__} takes {sum(held.values()):,}, so some would be "
            f"dropped; {ELSEWHERE}"
        )
    for each in (model.config, text):
        if hasattr(each, "quantization_config"):
            del each.quantization_config
    vars(model.config).pop("_model_name_or_path", None)  # the title that the file has
    return model


def _is_beyond(name: str, layers: int) -> bool:
    """Whether a tensor is of a layer after the last one, which predicts further tokens and has no place here."""
    number = name.removeprefix("blk.").partition(".")[0]
    return name.startswith("blk.") and number.isdigit() and int(number) >= layers


# --- tokenizer -------------------------------------------------------------------------------------------------------


def _write_tokenizer(where: dict[str, Any], metadata: dict[str, Any], config: PreTrainedConfig, folder: Path) -> None:
    """The tokenizer, as transformers reads it, with its file mended, and checked as whoever loads it has it."""
    _check_splits(metadata)
    AutoTokenizer.from_pretrained(**where).save_pretrained(folder)
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    # transformers adds its classes' defaults (<|endoftext|>, <mask>) to every vocabulary, which would grow the model
    count = len(metadata["tokenizer.ggml.tokens"])
    extra = {token["content"] for token in content["added_tokens"] if token["id"] >= count}
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] not in extra]
    if metadata.get("tokenizer.ggml.pre") in _DIGITS_APART:
        split = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
        content["pre_tokenizer"] = json.loads(split.__getstate__())
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    beside = folder / "tokenizer_config.json"
    named = json.loads(beside.read_text(encoding="utf-8"))
    named = {key: None if isinstance(value, str) and value in extra else value for key, value in named.items()}
    beside.write_text(json.dumps(named, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = config.get_text_config()
    if len(tokenizer) > text.vocab_size:
        raise ModelError(f"read as {len(tokenizer)} tokens for {text.vocab_size} rows of embeddings; {ELSEWHERE}")
    for name, key in {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"}.items():
        number, found = metadata.get(f"tokenizer.ggml.{key}_token_id"), getattr(tokenizer, name)
        if found != number:
            raise ModelError(f"its {name} is {number}, read as {found}; {ELSEWHERE}")
        setattr(text, name, number)


def _check_splits(metadata: dict[str, Any]) -> None:
    """Refuse a tokenizer that would cut text in other places than the one that the model was trained with."""
    from transformers.integrations.gguf import gguf_tokenizer_mapping

    kind, split = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre")
    if kind == "gpt2":
        known = {*_AS_GPT2, *_DIGITS_APART, *getattr(gguf_tokenizer_mapping, "GGUF_PRE_TOKENIZER_SPLITS", ())}
        if split not in known and metadata["general.architecture"] != "gpt2":
            raise ModelError(f"its text is split by the rule {split!r}, which is not known here; {ELSEWHERE}")
    prefix = metadata.get("tokenizer.ggml.add_space_prefix", True) or metadata["general.architecture"].startswith(
        "gemma"
    )
    if kind == "llama" and not prefix:
        raise ModelError(f"its tokenizer puts no space before a text, which transformers would; {ELSEWHERE}")


def _set_ends(model: PreTrainedModel, metadata: dict[str, Any]) -> None:
    """All tokens that end an answer: EOS, the end of a turn, and of a message to a tool."""
    ends = [metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")]
    found = [int(each) for each in dict.fromkeys(ends) if each is not None]
    generation = model.generation_config
    if generation is not None and found:
        generation.eos_token_id = found if len(found) > 1 else found[0]
        generation.bos_token_id, generation.pad_token_id = (
            metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "padding")
        )
