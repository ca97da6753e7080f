"""Completing the config that transformers makes of a GGUF file with the file's other keys.

transformers reads about ten keys of each architecture and takes the rest from its defaults, which are one checkpoint's:
a model with scaled positions or other head widths would load and compute something else. So each key is compared, set
if it differs, and refused if its meaning is unknown.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from alignment.errors import ModelError

PLAIN: dict[str, tuple[str, ...]] = {
    "context_length": ("max_position_embeddings",),
    "embedding_length": ("hidden_size",),
    "block_count": ("num_hidden_layers",),
    "feed_forward_length": ("intermediate_size", "n_inner", "ffn_hidden_size"),
    "attention.head_count": ("num_attention_heads",),
    "attention.head_count_kv": ("num_key_value_heads", "num_kv_heads"),
    "attention.key_length": ("head_dim",),
    "attention.value_length": ("head_dim",),
    "attention.layer_norm_rms_epsilon": ("rms_norm_eps", "norm_eps", "layer_norm_epsilon"),
    "attention.layer_norm_epsilon": ("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps"),
    "attention.sliding_window": ("sliding_window",),
    "attn_logit_softcapping": ("attn_logit_softcapping",),
    "final_logit_softcapping": ("final_logit_softcapping",),
    "expert_count": ("num_experts", "num_local_experts"),
    "expert_used_count": ("num_experts_per_tok",),
    "expert_feed_forward_length": ("moe_intermediate_size",),
    "expert_shared_feed_forward_length": ("shared_expert_intermediate_size",),
    "use_parallel_residual": ("use_parallel_residual",),
    "ssm.conv_kernel": ("conv_kernel",),
    "ssm.state_size": ("state_size",),
    "ssm.time_step_rank": ("time_step_rank",),
    "ssm.inner_size": ("intermediate_size",),
}
"""Keys, without the architecture's prefix, and the names that configs use for them."""
ELSEWHERE_HANDLED = {"vocab_size", "tensor_data_layout"}
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def complete(config: PreTrainedConfig, metadata: Mapping[str, Any], rope: Mapping[str, np.ndarray]) -> None:
    """Set the file's properties that the config lacks.

    Args:
        metadata: the file's keys.
        rope: the tensors of positions, by name.

    Raises:
        ModelError: a key is not understood, or this architecture has no place for it.
    """
    from transformers.integrations.gguf import GGUF_CONFIG_ARCHS

    architecture = metadata["general.architecture"]
    text = config.get_text_config()
    if architecture in GGUF_CONFIG_ARCHS:  # transformers reads every key of these
        return
    keys = {k.partition(".")[2]: _short(v) for k, v in metadata.items() if k.startswith(f"{architecture}.")}
    for key, value in keys.items():
        if key in PLAIN:
            _set_plain(text, f"{architecture}.{key}", value, PLAIN[key])
        elif not key.startswith("rope.") and key not in ELSEWHERE_HANDLED:
            raise ModelError(f"its key {architecture}.{key} ({value!r:.40}) is not understood here")
    _set_positions(text, keys, architecture)
    _set_factors(text, keys, rope)


def _short(value: Any) -> Any:
    """A float32 of the file as the shortest equal number: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(value))) if isinstance(value, float) else value


def _set_plain(text: PreTrainedConfig, key: str, value: Any, names: tuple[str, ...]) -> None:
    name = next((item for item in names if hasattr(text, item)), None)
    if key.endswith(".sliding_window") and value == 0:
        value = None  # 0 means no window
    if isinstance(value, list) and len(set(value)) == 1:
        value = value[0]  # the list has one number per layer
    if isinstance(value, list):
        raise ModelError(f"its key {key} differs from layer to layer, which is not understood here")
    if name is None:
        heads = text.num_attention_heads
        usual = {"feed_forward_length": 4 * text.hidden_size, "attention.head_count_kv": heads, "expert_count": 0}
        usual |= dict.fromkeys(("attention.key_length", "attention.value_length"), text.hidden_size // heads)
        if value != usual.get(key.partition(".")[2]):
            raise ModelError(f"its key {key} is {value!r}, for which transformers' {text.model_type} has no place")
    elif getattr(text, name) != value:
        setattr(text, name, value)


def _set_positions(text: PreTrainedConfig, keys: Mapping[str, Any], architecture: str) -> None:
    """Base, width and scaling of rotary positions."""
    rope = getattr(text, "rope_parameters", None)
    scaling = {key.removeprefix("rope."): value for key, value in keys.items() if key.startswith("rope.")}
    if not isinstance(rope, dict):
        if scaling:
            raise ModelError(f"its keys {architecture}.rope.* have no place in transformers' {text.model_type}")
        return
    rope = dict(rope)
    by_layer = "full_attention" in rope
    full = dict(rope["full_attention"]) if by_layer else rope
    if "freq_base" in scaling:
        full["rope_theta"] = scaling.pop("freq_base")
    if by_layer and "freq_base_swa" in scaling:
        rope["sliding_attention"] = {**rope["sliding_attention"], "rope_theta": scaling.pop("freq_base_swa")}
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    if (turned := scaling.pop("dimension_count", width)) != width:
        full["partial_rotary_factor"] = turned / width
    elif full.get("partial_rotary_factor", 1.0) != 1.0:
        full["partial_rotary_factor"] = 1.0
    kind = scaling.pop("scaling.type", "linear" if "scale_linear" in scaling else "none")
    factor = scaling.pop("scaling.factor", scaling.pop("scale_linear", 1.0))
    if kind == "linear" and factor != 1.0:
        full |= {"rope_type": "linear", "factor": factor}
    elif kind == "yarn":
        full |= {"rope_type": "yarn", "factor": factor}
        _move(scaling, "scaling.original_context_length", full, "original_max_position_embeddings")
        _move(scaling, "scaling.attn_factor", full, "attention_factor")
        _move(scaling, "scaling.yarn_beta_fast", full, "beta_fast")
        _move(scaling, "scaling.yarn_beta_slow", full, "beta_slow")
    elif kind not in ("none", "linear", "longrope"):
        raise ModelError(f"its positions are scaled by {kind!r}, which is not understood here")
    scaling.pop("scaling.finetuned", None)  # it describes the training, not the model
    scaling = {key: value for key, value in scaling.items() if key not in _LONG_KEYS}
    if scaling:
        key, value = next(iter(scaling.items()))
        raise ModelError(f"its key {architecture}.rope.{key} ({value!r:.40}) is not understood here")
    if by_layer:
        rope["full_attention"] = full
    text.rope_parameters = rope if by_layer else full


_LONG_KEYS = {"scaling.original_context_length", "scaling.attn_factor"}


def _move(source: dict[str, Any], key: str, target: dict[str, Any], name: str) -> None:
    if key in source:
        target[name] = source.pop(key)


def _set_factors(text: PreTrainedConfig, keys: Mapping[str, Any], rope: Mapping[str, np.ndarray]) -> None:
    """Set position scaling that the file stores as factors per frequency: Llama 3.1's, and Phi-3's two."""
    if "rope_factors_long.weight" in rope:
        long, short = (rope[f"rope_factors_{which}.weight"].astype(float).tolist() for which in ("long", "short"))
        text.rope_parameters = {
            **text.rope_parameters,
            "rope_type": "longrope",
            "long_factor": [_short(item) for item in long],
            "short_factor": [_short(item) for item in short],
            "original_max_position_embeddings": keys["rope.scaling.original_context_length"],
        }
        if "rope.scaling.attn_factor" in keys:
            text.rope_parameters["attention_factor"] = keys["rope.scaling.attn_factor"]
    elif "rope_freqs.weight" in rope:
        factors = torch.from_numpy(rope["rope_freqs.weight"].astype(np.float32)).flatten()
        if torch.all(factors == 1.0):
            return
        text.rope_parameters = {
            **text.rope_parameters, "rope_type": "llama3", "factor": float(factors.max()), **_LLAMA3
        }  # fmt: skip
        scaled = ROPE_INIT_FUNCTIONS["llama3"](text, torch.device("cpu"))[0]
        theta, count = text.rope_parameters["rope_theta"], len(factors)
        plain = theta ** -(torch.arange(count, dtype=torch.float32) / count)
        if len(scaled) != count or not torch.allclose(plain / scaled, factors, rtol=1e-3):
            raise ModelError("its positions are scaled by factors (rope_freqs) that are not Llama 3's")
