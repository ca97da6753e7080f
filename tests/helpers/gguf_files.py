"""Tiny GGUF files, written with the `gguf` package as llama.cpp's converter lays them out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

NORMAL, CONTROL = 1, 3


def write(
    path: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    architecture: str = "llama",
    quantized: bool = False,
    half: bool = False,
    pre: str = "gpt-2",
    keys: dict[str, Any] | None = None,
    tensors: dict[str, np.ndarray] | None = None,
) -> Path:
    """A model and its byte-level tokenizer as one file.

    Args:
        quantized: matrices in Q8_0 (blocks of 32), the rest in float32.
        keys: further keys and values; None leaves one out that is written otherwise.
        tensors: further tensors.
    """
    import gguf

    config = model.config
    said: dict[str, Any] = {
        f"{architecture}.context_length": config.max_position_embeddings,
        f"{architecture}.embedding_length": config.hidden_size,
        f"{architecture}.block_count": config.num_hidden_layers,
        f"{architecture}.feed_forward_length": config.intermediate_size,
        f"{architecture}.attention.head_count": config.num_attention_heads,
        f"{architecture}.attention.head_count_kv": config.num_key_value_heads,
        f"{architecture}.attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        f"{architecture}.rope.freq_base": config.rope_parameters.get("full_attention", config.rope_parameters)[
            "rope_theta"
        ],
        f"{architecture}.rope.dimension_count": config.head_dim if architecture == "llama" else None,
        "general.name": "tiny",
        "general.license": "mit",
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.eos_token_id": tokenizer.eos_token_id,
        "tokenizer.ggml.padding_token_id": tokenizer.pad_token_id,
        "tokenizer.chat_template": tokenizer.chat_template,
        **(keys or {}),
    }
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in said.items():
        _add(writer, key, value)
    tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    special = set(tokenizer.all_special_tokens) | {"<|im_start|>"}
    writer.add_token_list(tokens)
    writer.add_token_types([CONTROL if token in special else NORMAL for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in _merges(tokenizer)])
    for name, weight in _weights(model, architecture).items():
        array = weight.numpy().astype(np.float16 if half and weight.dim() > 1 else np.float32)
        if quantized and weight.dim() > 1:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quants.quantize(array, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, array)
    for name, array in (tensors or {}).items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add(writer: Any, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)


def _merges(tokenizer: PreTrainedTokenizerBase) -> list[list[str]]:
    import json

    return json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]


def _weights(model: PreTrainedModel, architecture: str) -> dict[str, torch.Tensor]:
    """The weights by llama.cpp's own table of names, with what its converter does to them."""
    import gguf

    layout = architecture if architecture in ("qwen2", "qwen3", "phi3", "gemma2", "gemma3") else "llama"
    kind = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == layout)
    names = gguf.get_tensor_name_map(kind, model.config.num_hidden_layers)
    found = {}
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        new = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert new, name
        if architecture == "llama" and ("attn_q." in new or "attn_k." in new):
            heads = model.config.num_attention_heads if "attn_q." in new else model.config.num_key_value_heads
            # llama.cpp turns neighbouring pairs, transformers the two halves of a head
            weight = weight.view(heads, 2, -1, *weight.shape[1:]).transpose(1, 2).reshape(weight.shape)
        if architecture.startswith("gemma") and name.endswith("norm.weight"):
            weight = weight + 1
        found[new] = weight.detach().float().contiguous()
    return found
