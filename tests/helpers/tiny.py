"""Tiny tokenizers and models, made in memory in well under a second and never downloaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from alignment.config.sections import ScratchConfig
from alignment.data.records import CHOICES, Vote
from alignment.models.policies import build_scratch_model
from alignment.models.scalar import ScalarModel, load_scalar_model
from alignment.models.tokenizers import END, PAD, START, train_tokenizer
from alignment.templates.rendering import set_template

SHAPE = ScratchConfig(
    vocab_size=320,
    hidden_size=16,
    intermediate_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    max_position_embeddings=256,
)
CORPUS = (
    "When does the library open? The library opens at nine on weekdays.",
    "How long can I keep a book? You can keep a book for three weeks.",
    "user assistant system\n\nA line.\n\nAnother line, with spaces   and a \t tab.",
)


def make_tokenizer(template: str | None = None) -> PreTrainedTokenizerBase:
    """Byte-level BPE over `CORPUS` with pad, EOS and a chat template."""
    return train_tokenizer(CORPUS, SHAPE.vocab_size, template)


def make_wordy_tokenizer(kind: str, template: str | None = None) -> PreTrainedTokenizerBase:
    """The other kinds that models have: `unigram` with SentencePiece's space before a text, `wordlevel`, whose
    unknown words and white space are lost. The control tokens stand in the model's own vocabulary too."""
    special = [PAD, START, END, "<unk>"]
    if kind == "unigram":
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
        trainer: Any = trainers.UnigramTrainer(
            vocab_size=200,
            special_tokens=special,
            unk_token="<unk>",
            show_progress=False,
            initial_alphabet=[*"abcé猫\n"],
        )
    else:
        tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        trainer = trainers.WordLevelTrainer(special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator([*CORPUS, *"abcé猫"], trainer)
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        unk_token="<unk>",
        additional_special_tokens=[START],
        clean_up_tokenization_spaces=False,
        padding_side="left",
    )
    set_template(made, template or "chatml")
    return made


def make_policy(tokenizer: PreTrainedTokenizerBase, seed: int = 0, shape: ScratchConfig = SHAPE) -> PreTrainedModel:
    """A tiny Llama in eval mode. Its matrices are stretched, as small random ones only say the last token again."""
    torch.manual_seed(seed)
    policy = build_scratch_model("llama", shape, tokenizer)
    with torch.no_grad():
        for name, weight in policy.named_parameters():
            if weight.dim() == 2:
                weight.mul_(30.0 if "embed" in name else 25.0)
    return policy.eval()


def make_gpt2(tokenizer: PreTrainedTokenizerBase, seed: int = 0) -> PreTrainedModel:
    """A tiny GPT-2: learned absolute positions, so wrong position ids show, and dropout."""
    torch.manual_seed(seed)
    config = transformers.GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=256,
        n_embd=16,
        n_layer=2,
        n_head=2,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return transformers.GPT2LMHeadModel(config).eval()


def write(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Path:
    """Save both into a folder, as a user's local model."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_scalar(
    folder: Path, policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, seed: int = 0
) -> ScalarModel:
    """A scalar model on a policy's body, in eval mode; the policy is written to `folder` on the way."""
    return load_scalar_model(str(write(folder, policy, tokenizer)), seed=seed).eval()


def votes(first: int = 1, second: int = 0, tie: int = 0) -> tuple[Vote, ...]:
    """So many votes of each kind."""
    return tuple(
        Vote(choice) for choice, count in zip(CHOICES, (first, second, tie), strict=True) for _ in range(count)
    )
