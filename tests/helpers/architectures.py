"""Tiny random causal models of any architecture, without dropout, with weights large enough for a leak to show."""

from __future__ import annotations

import torch
import transformers
from transformers import PreTrainedModel

VOCABULARY = 50
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "head_dim": 4,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.5,
    "dropout": 0.0,
}
GPT2 = {
    "vocab_size": VOCABULARY,
    "n_positions": 128,
    "n_embd": 16,
    "n_layer": 2,
    "n_head": 2,
    "attn_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "resid_pdrop": 0.0,
    "initializer_range": 0.5,
}


def build(kind: str, **changes: object) -> PreTrainedModel:
    """A model of a `model_type` of transformers."""
    config = transformers.AutoConfig.for_model(kind, **(GPT2 if kind == "gpt2" else SHAPE) | changes)
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(config).train()


def row(ids: list[int], prompt: int = 0) -> dict[str, list[int]]:
    """A row as the trainer takes it; the first `prompt` tokens are not trained on."""
    return {"input_ids": ids, "labels": [-100] * prompt + ids[prompt:]}
