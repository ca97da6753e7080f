"""Policies: loading them, and building them from scratch.

Weights are safetensors only, and `trust_remote_code` is off unless the config sets it.
"""

from __future__ import annotations

from pathlib import Path

import torch
import transformers
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from alignment.config.sections import ModelConfig, ScratchConfig
from alignment.distributed import zero3
from alignment.errors import ModelError
from alignment.models import adapters
from alignment.models.sources import ModelSource, quiet_loading
from alignment.models.tokenizers import fit_embeddings, load_tokenizer
from alignment.models.weights import load_weights
from alignment.tensors import entropy_from_logits, logprobs_from_logits, position_ids


def build_scratch_model(kind: str, shape: ScratchConfig, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """A new causal language model with random weights (from torch's global seed).

    Args:
        kind: the name after `scratch:`; only `llama` exists.
    """
    if kind != "llama":
        raise ModelError(f"model.name: no scratch model '{kind}'; known: scratch:llama")
    if shape.hidden_size % (2 * shape.num_attention_heads):  # rotary positions rotate pairs, so a head's width is even
        raise ModelError(
            f"model.scratch: hidden_size {shape.hidden_size} is not divisible by "
            f"2 x num_attention_heads {shape.num_attention_heads}"
        )
    tokens = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    return transformers.LlamaForCausalLM(scratch_shape(shape, len(tokenizer), **tokens))


def scratch_shape(shape: ScratchConfig, vocab_size: int, **tokens: int) -> transformers.LlamaConfig:
    """The architecture of `scratch:llama`."""
    return transformers.LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_hidden_layers,
        num_attention_heads=shape.num_attention_heads,
        num_key_value_heads=shape.num_attention_heads,
        max_position_embeddings=shape.max_position_embeddings,
        tie_word_embeddings=True,
        **{"bos_token_id": None, **tokens},
    )


def load_policy(source: ModelSource | str, config: ModelConfig | None = None) -> PreTrainedModel:
    """A causal language model from a folder or hub name, in `model.dtype` (float32 by default); adapters are merged.

    The config may quantize the weights; only an adapter can be trained on those.

    Raises:
        ModelError: there is no model, some of its weights are missing, or it is a reward model.
        AdapterError: an adapter does not fit its base.
    """
    if isinstance(source, ModelSource) and source.base:
        policy = _merged(source, bool(config and config.trust_remote_code))
        if config and config.quantized:
            with adapters.as_folder(policy) as folder:
                policy = load_policy(folder, config)
                policy.name_or_path = ""  # PEFT would look for this temporary folder when it saves
                return policy
        return zero3.cast(policy, getattr(torch, config.dtype)) if config else policy
    policy = load_weights(AutoModelForCausalLM, source, config)[0]
    # With tied embeddings no weight is missing, and a reward model would load as a policy that writes nonsense.
    if any("ForSequenceClassification" in name for name in policy.config.architectures or ()):
        path = source if isinstance(source, str) else source.path
        raise ModelError(f"{path}: a reward model; name a policy, as python -m sft makes it")
    return policy


def load_base(source: ModelSource, config: ModelConfig | None = None) -> PreTrainedModel:
    """The base of a published adapter, with the vocabulary size that the adapter was trained with."""
    assert source.base
    base = load_policy(source.base, config)
    trusted = ModelConfig(name=source.label, trust_remote_code=bool(config and config.trust_remote_code))
    fit_embeddings(base, load_tokenizer(source, trusted))
    return base


def load_base_as_trained(source: ModelSource, trust_remote_code: bool = False) -> PreTrainedModel:
    """The base weights that a published adapter was trained on, in float32: rounded or quantized as in training."""
    assert source.base and source.trained
    base = load_base(source, source.trained.model_copy(update={"trust_remote_code": trust_remote_code}))
    if source.trained.quantized:
        return adapters.dequantize(base)
    # Shards are loaded in float32, and have to be rounded here as they were in training.
    return zero3.cast(zero3.cast(base, getattr(torch, source.trained.dtype)), torch.float32)


def _merged(source: ModelSource, trust_remote_code: bool) -> PreTrainedModel:
    """A published adapter merged onto its base, in float32.

    Merging onto weights that were quantized and dequantized reproduces the trained model. On the original weights the
    logits are off by 0.08, and in 4 bits by 0.11 (NF4, a small Llama).
    """
    assert source.base and source.trained
    with adapters.loading_to_merge(source.path), quiet_loading():
        if source.trained.merge == "original":
            base = load_base(source, ModelConfig(name=source.base.label, trust_remote_code=trust_remote_code))
        else:
            base = load_base_as_trained(source, trust_remote_code)
        return adapters.merge(base, source.path)


def response_logprobs(
    policy: nn.Module,
    input_ids: Tensor,
    attention_mask: Tensor,
    num_response: int,
    temperature: float,
    with_entropy: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Log-probabilities of the last `num_response` tokens, (B, T) float32, and the entropy at each if requested.

    The logits are computed for the response only (`logits_to_keep`). The entropy takes a second pass over the
    vocabulary and carries no gradient.

    Args:
        input_ids, attention_mask: (B, P+T)
        temperature: the sampling temperature of the response.
    """
    logits = policy(
        input_ids=input_ids,
        attention_mask=attention_mask,
        position_ids=position_ids(attention_mask),
        logits_to_keep=num_response + 1,
        use_cache=False,
    ).logits[:, :-1]
    logprobs = logprobs_from_logits(logits, input_ids[:, -num_response:], temperature)
    with torch.no_grad():
        entropy = entropy_from_logits(logits, temperature) if with_entropy else None
    return logprobs, entropy


# --- helpers -------------------------------------------------------------------------------------------------------


def check_finite(folder: Path) -> None:
    """Refuse weights with NaN or infinity: a diverged model gives no error when it is loaded.

    Raises:
        ModelError: the message names the first such tensor.
    """
    for file in sorted(folder.rglob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - not a dict
                if not torch.isfinite(tensors.get_tensor(name)).all():
                    raise ModelError(
                        f"training diverged: {name} is not finite any more, so nothing was published; "
                        "lower training.learning_rate"
                    )
