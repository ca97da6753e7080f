"""The model that a benchmark starts from: a small Llama with random weights, or the user's own (`--model`)."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterable, Mapping
from typing import Any

LARGE_VOCABULARY = 32768
"""Vocabulary of `--memory`: large enough that a full matrix of logits dominates the memory."""


def base_model(options: Namespace, sizes: Mapping[str, int], texts: Iterable[str]) -> tuple[Any, Any]:
    """A float32 model and its tokenizer.

    Of a model whose pad token is its EOS, another special token becomes the pad token: TRL takes masks from ids.

    Args:
        sizes: of the small model, in a vocabulary of 4,096 that is trained on `texts`.

    Raises:
        UserError: `--model` cannot be read, or has no token to pad with.
    """
    import torch

    from alignment.config.sections import ScratchConfig
    from alignment.models.policies import build_scratch_model, load_policy
    from alignment.models.tokenizers import load_tokenizer, train_tokenizer

    if options.model:
        tokenizer = load_tokenizer(str(options.model))
        if tokenizer.pad_token_id in (None, tokenizer.eos_token_id):
            tokenizer.pad_token = _other_special_token(tokenizer)
        return load_policy(str(options.model)).float(), tokenizer
    shape = ScratchConfig(vocab_size=4096, max_position_embeddings=1024, **sizes)
    tokenizer = train_tokenizer(texts, shape.vocab_size, "chatml")
    torch.manual_seed(options.seed)
    model = build_scratch_model("llama", shape, tokenizer)
    if options.memory:
        model.resize_token_embeddings(LARGE_VOCABULARY, mean_resizing=False)
    return model, tokenizer


def _other_special_token(tokenizer: Any) -> str:
    from alignment.errors import UserError

    for token in tokenizer.all_special_tokens:
        if token not in (tokenizer.eos_token, tokenizer.bos_token):
            return str(token)
    raise UserError("--model: its tokenizer has no pad token, and no special token besides BOS and EOS to pad with")
