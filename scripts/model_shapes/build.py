"""A tiny random model of any causal model type that transformers knows, with a tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from alignment.models.tokenizers import train_tokenizer

VOCABULARY = 300
LARGEST = 20_000_000
SIZES = {
    32: "hidden_size n_embd d_model dim embed_dim embedding_size decoder_hidden_size",
    64: (
        "intermediate_size ffn_dim n_inner d_ff d_inner decoder_ffn_dim encoder_ffn_dim ffn_hidden_size "
        "ffn_intermediate_size shared_expert_intermediate_size moe_intermediate_size "
        "moe_shared_expert_intermediate_size "
        "shared_intermediate_size mlp_hidden_size mlp_intermediate_size"
    ),
    2: (
        "num_hidden_layers n_layer n_layers num_layers decoder_layers encoder_layers num_decoder_layers "
        "num_key_value_heads num_kv_heads multi_query_group_num num_experts_per_tok num_experts_per_token moe_topk "
        "top_k_experts moe_k"
    ),
    4: (
        "num_attention_heads n_head n_heads num_heads decoder_attention_heads encoder_attention_heads num_experts "
        "num_local_experts n_routed_experts moe_num_experts"
    ),
    8: "head_dim rotary_dim kv_channels attention_head_dim v_head_dim qk_nope_head_dim qk_rope_head_dim",
    16: "q_lora_rank kv_lora_rank",
    1: "n_group topk_group num_expert_groups",
    256: (
        "max_position_embeddings n_positions n_ctx max_sequence_length seq_length max_seq_len max_seq_length "
        "context_length"
    ),
}
"""Names in configs, by the size that they get. Weights are spread widely, or a wrong path would hardly show."""
SMALL: dict[str, Any] = {name: size for size, names in SIZES.items() for name in names.split()}
SMALL |= {"initializer_range": 0.2, "init_std": 0.2, "attention_dropout": 0.1, "hidden_dropout_prob": 0.1}
_LATENT = {"qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8, "head_dim": 8, "num_key_value_heads": 4}
_MIXED = {"layer_types": ["linear_attention", "full_attention"]}
_MAMBA2 = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_chunk_size": 8}
OVERRIDES: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1]} | _MAMBA2,
    "deepseek_v2": _LATENT,
    "deepseek_v3": _LATENT,
    "diffllama": {"attention_dropout": 0.0},
    "falcon": {"head_dim": None, "multi_query": False, "num_kv_heads": 4},
    "glm4_moe_lite": _LATENT,
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "minicpm3": _LATENT,
    "youtu": _LATENT,
    "falcon_h1": {"mamba_d_ssm": 64} | _MAMBA2,
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 16},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"]} | _MAMBA2,
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "mamba_dt_rank": 4},
    "mamba2": {"num_heads": 8, "head_dim": 8, "expand": 2, "n_groups": 1, "chunk_size": 8, "state_size": 8},
    "nemotron_h": {
        "hybrid_override_pattern": "M*", "mamba_num_heads": 4, "mamba_head_dim": 16, "n_groups": 1,
        "ssm_state_size": 8, "chunk_size": 8, "mamba_n_groups": 1,
    },
    "qwen3_5_text": _MIXED,
    "qwen3_5_moe_text": _MIXED,
    "qwen3_next": _MIXED,
    "recurrent_gemma": {"block_types": ["recurrent", "attention"], "lru_width": 32, "attention_window_size": 64},
}  # fmt: skip
"""What a type needs beside sizes, or to show what it is known for."""
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert (no decoder)": ("bert", {"is_decoder": False}),
    "opt (projected, as OPT-350m)": ("opt", {"word_embed_proj_dim": 16}),
    "mistral (window of 8)": ("mistral", {"sliding_window": 8}),
    "falcon (ALiBi)": ("falcon", {"alibi": True}),
    "mixtral (router logits on)": ("mixtral", {"output_router_logits": True}),
    "llama (padded vocabulary)": ("llama", {"vocab_size": 384}),
    "xglm (an added token)": ("xglm", {"vocab_size": -1}),
    "doge (no router loss)": ("doge", {"router_aux_loss_coef": 0.0}),
}
"""Further models of a type."""
CORPUS = [f"{word} {other}." for word in ("cats", "rain", "bread") for other in ("sleep", "falls", "burns", "is old")]


def kinds() -> list[str]:
    """Every causal model type of transformers, and the variants."""
    return [*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *VARIANTS]


def make_config(kind: str, vocabulary: int = VOCABULARY) -> PreTrainedConfig:
    """The config of a tiny model."""
    kind, changes = VARIANTS.get(kind, (kind, {}))
    default = transformers.AutoConfig.for_model(kind)
    values = {name: size for name, size in SMALL.items() if isinstance(_get(default, name), int | float | None)}
    values |= {"vocab_size": vocabulary, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    if hasattr(default, "is_decoder"):
        values["is_decoder"] = True
    values |= OVERRIDES.get(kind, {}) | changes
    values["vocab_size"] += vocabulary if values["vocab_size"] < 0 else 0  # so many tokens fewer than the tokenizer
    return transformers.AutoConfig.for_model(kind, **{k: v for k, v in values.items() if v is not None})


def _get(config: PreTrainedConfig, name: str) -> Any:
    return getattr(config, name) if hasattr(config, name) else ...


def write_model(kind: str, folder: Path) -> PreTrainedModel:
    """A model with its tokenizer, as a maker publishes it.

    Raises:
        Exception: anything that transformers raises where these sizes do not make such a model.
    """
    tokenizer = train_tokenizer(CORPUS, VOCABULARY, None)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(make_config(kind, len(tokenizer))).eval()
    if model.num_parameters() > LARGEST:
        raise ValueError(f"these sizes give {model.num_parameters() / 1e6:.0f} million parameters")
    with torch.no_grad():
        for parameter in model.parameters():  # biases and gates that begin at 0 or 1 would hide what they do
            if bool((parameter == parameter.flatten()[0]).all()):
                parameter.add_(0.1 * torch.randn_like(parameter))
        logits = model(input_ids=torch.arange(3, 20)[None]).logits
    if not bool(logits.isfinite().all()):
        raise ValueError("these sizes give logits that are not finite")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model
