"""A world of twelve tokens for PPO: EOS is likely enough that random policies end some answers and not others."""

from __future__ import annotations

import torch
import transformers

from alignment.data.records import Prompt
from alignment.models.scalar import ScalarModel, ScoreHead
from ppo.models import Models
from ppo.reward_model import RewardModel
from ppo.roles import PolicyAndValue, Role

CONTENTS = ("1", "23", "4567", "89", "012345", "6", "789", "01")
"""Prompts of one to six tokens."""


class DigitTokenizer:
    """Pad 0, EOS 1; a message's digits d are the tokens 2 + d."""

    pad_token_id, eos_token_id, bos_token_id, cls_token_id = 0, 1, None, None
    chat_template, unk_token, added_tokens_decoder = "", None, {}

    def __len__(self):
        return 12

    def get_vocab(self):
        return {str(token): token for token in range(12)}

    def __call__(self, texts, **_):
        return {"input_ids": [[2 + int(digit) for digit in text] for text in texts]}

    def apply_chat_template(self, messages, **_):
        return "".join(message["content"] for message in messages)

    def decode(self, ids, **_):
        return "".join(str(int(token) - 2) for token in ids if token > 1)


def llama(kind, seed, **changes):
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=12,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=64,
        initializer_range=0.3,
        num_labels=1,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
        **changes,
    )
    return kind(config).eval()


def scalar(seed):
    model = llama(transformers.LlamaForSequenceClassification, seed)
    model.score = ScoreHead(32)
    torch.nn.init.normal_(model.score.weight, std=0.2)
    return ScalarModel(model)


def role_of(model):
    """A whole model as a role; a ScalarModel with its head."""
    return Role(model.model, head=model.model.score) if isinstance(model, ScalarModel) else Role(model)


def build_models(*, ref_seed=1, critic="separate"):
    """Four tiny models. With `ref_seed=1` the reference is the policy.

    Args:
        critic: `separate`, `trunk`, or None.
    """
    policy = role_of(llama(transformers.LlamaForCausalLM, 1))
    value = {"separate": role_of(scalar(2)), "trunk": Role(policy.model, head=scalar(2).model.score), None: None}[
        critic
    ]
    return Models(
        trained=PolicyAndValue(policy, value).eval(),
        reference=role_of(llama(transformers.LlamaForCausalLM, ref_seed).requires_grad_(False)),
        reward=RewardModel([role_of(scalar(3).requires_grad_(False))]),
        held_out_reward=None,
        tokenizer=DigitTokenizer(),
        sources={},
    )


def prompts_of(*contents):
    return [Prompt(messages=({"role": "user", "content": content},)) for content in contents]
