"""Converting a GGUF file (llama.cpp) to a Hugging Face folder: weights as floats, tokenizer, template, configs.

transformers reads the weights. The properties that it ignores (scaled positions, head widths, end-of-turn tokens, split
digits) are read here, or the file is refused. Needs the extra `gguf`.
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
# Pre-tokenizers by `tokenizer.ggml.pre`: those like GPT-2's (transformers' default), and those that split digits first,
# which transformers ignores. transformers itself lists the others that it knows.
_AS_GPT2 = {"gpt-2", "phi-2", "jina-es", "jina-de", "jais", "mpt", "olmo", "trillion"}
_DIGITS_APART = {"smollm", "starcoder", "refact", "command-r", "codeshell", "minerva-7b", "exaone"}


def unpack(file: Path, folder: Path) -> str | None:
    """Write the model of a GGUF file to a folder that plain transformers loads.

    Quantized weights are written in float32, others in their own dtype.

    Returns:
        The license that the file names.

    Raises:
        ModelError: the file is no GGUF file, damaged, or one part of several; or its model is not understood.
    """
    say(one_line(f"{file.name}: reading its keys"))
    metadata, tensors = _read(file)
    architecture = _check_kind(file, metadata)
    floats = {tensor.tensor_type.name for tensor in tensors}
    dtype = torch.float32
    if floats <= FLOATS.keys():  # half-precision files keep norms in float32
        dtype = next(FLOATS[name] for name in ("BF16", "F16", "F32") if name in floats)
    _check_memory(file, tensors, dtype)
    say(one_line(f"{file.name}: {architecture}, {len(tensors)} tensors; reading its tokenizer"))
    where: dict[str, Any] = {"pretrained_model_name_or_path": str(file.parent.resolve()), "gguf_file": file.name}
    try:
        config = AutoConfig.from_pretrained(**where)
        rope = {tensor.name: np.asarray(tensor.data) for tensor in tensors if tensor.name in ROPE_TENSORS}
        complete(config, metadata, rope)
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
    """The file's keys and its tensors, whose data is memory-mapped."""
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
    """The architecture, which must be a complete language model that transformers can read from a GGUF file."""
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
    """Check the free memory first, rather than be killed half-way: reading holds all weights and some buffers."""
    needed = 1.2 * sum(int(tensor.n_elements) for tensor in tensors) * dtype.itemsize
    free = psutil.virtual_memory().available
    if needed > free:
        raise ModelError(
            f"{file}: its weights take {needed / 1e9:.0f} GB as {str(dtype).partition('.')[2]} and {free / 1e9:.0f} GB "
            f"of memory are free; use a larger machine, or {ELSEWHERE}"
        )


def _rows(tensors: list[Any], config: PreTrainedConfig) -> int:
    """Rows of the embeddings, of which there may be more than tokens."""
    rows = [int(tensor.shape[-1]) for tensor in tensors if tensor.name == "token_embd.weight"]
    return rows[0] if rows else config.get_text_config().vocab_size


def _model(where: dict[str, Any], config: PreTrainedConfig, dtype: torch.dtype, tensors: list[Any]) -> PreTrainedModel:
    """Load the model and check that every weight of the file is in it.

    transformers initialises missing weights randomly, and drops weights without a place, such as attention biases.
    Either would give another model.
    """
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
    loaded = sum({weight.data_ptr(): weight.numel() for weight in model.state_dict().values()}.values())
    unused = {*ROPE_TENSORS, *(["output.weight"] if text.tie_word_embeddings else [])}
    used = [
        tensor for tensor in tensors
        if tensor.name not in unused and not _is_extra_layer(tensor.name, text.num_hidden_layers)
    ]  # fmt: skip
    if (stored := sum(int(tensor.n_elements) for tensor in used)) != loaded:
        raise ModelError(
            f"it holds {stored:,} weights and {type(model).__name__} takes {loaded:,}, so some would be "
            f"dropped; {ELSEWHERE}"
        )
    for part in (model.config, text):
        if hasattr(part, "quantization_config"):
            del part.quantization_config
    vars(model.config).pop("_model_name_or_path", None)  # the file's title
    return model


def _is_extra_layer(name: str, layers: int) -> bool:
    """Whether a tensor belongs to a layer after the last one, which predicts further tokens and is not used here."""
    number = name.removeprefix("blk.").partition(".")[0]
    return name.startswith("blk.") and number.isdigit() and int(number) >= layers


# --- tokenizer -------------------------------------------------------------------------------------------------------


def _write_tokenizer(where: dict[str, Any], metadata: dict[str, Any], config: PreTrainedConfig, folder: Path) -> None:
    """Write the tokenizer that transformers reads, repair its file, and check the result as it will be loaded."""
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
        token, loaded = metadata.get(f"tokenizer.ggml.{key}_token_id"), getattr(tokenizer, name)
        if loaded != token:
            raise ModelError(f"its {name} is {token}, read as {loaded}; {ELSEWHERE}")
        setattr(text, name, token)


def _check_splits(metadata: dict[str, Any]) -> None:
    """Refuse a tokenizer that would split text differently from the one that the model was trained with."""
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
    """Set all tokens that end an answer: EOS, the end of a turn, and of a message to a tool."""
    ids = [metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")]
    ends = [int(token) for token in dict.fromkeys(ids) if token is not None]
    generation = model.generation_config
    if generation is not None and ends:
        generation.eos_token_id = ends if len(ends) > 1 else ends[0]
        generation.bos_token_id, generation.pad_token_id = (
            metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "padding")
        )
