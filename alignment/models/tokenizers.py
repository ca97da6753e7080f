"""Tokenizers: loading, padding, and training."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoTokenizer,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from alignment.config.sections import ModelConfig
from alignment.errors import ModelError
from alignment.models.sources import ModelSource, load_errors
from alignment.templates.ends import end_token_ids, read_generation_config
from alignment.templates.rendering import set_template

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PAD = "<|pad|>"
START = "<|im_start|>"
END = "<|im_end|>"


def load_tokenizer(source: ModelSource | str, config: ModelConfig | None = None) -> PreTrainedTokenizerBase:
    """A model's tokenizer, with the end tokens of its generation config (`alignment.templates.ends`) and a template.

    `model.pad_token`, `model.eos_token` and `model.template` override it. A new pad token is added to the vocabulary,
    and `fit_embeddings` then grows the model. Without a pad token, padding is EOS, since masks come from lengths.

    Raises:
        ModelError: there is no EOS or other end token, or `model.eos_token` is not in the vocabulary.
        TemplateError: there is no chat template.
    """
    path = source if isinstance(source, str) else source.path
    with load_errors(path):
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=bool(config and config.trust_remote_code))
    if config and config.eos_token:
        if config.eos_token not in tokenizer.get_vocab():
            raise ModelError(f"model.eos_token: {config.eos_token!r} is not in the vocabulary of {path}")
        tokenizer.add_special_tokens({"eos_token": config.eos_token})  # a plain token would show in decoded answers
    if config and config.pad_token:
        tokenizer.add_special_tokens({"pad_token": config.pad_token})
    read_generation_config(tokenizer, source if isinstance(source, str) else files_with_config(source))
    if tokenizer.eos_token_id is None:
        ends = end_token_ids(tokenizer)
        if not ends:
            raise ModelError(
                f"{path}: the tokenizer has no EOS token; set model.eos_token to the token that ends an answer"
            )
        tokenizer.add_special_tokens({"eos_token": str(tokenizer.convert_ids_to_tokens(ends[0]))})
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    set_template(tokenizer, config.template if config else None)
    return tokenizer


def files_with_config(source: ModelSource) -> str:
    """The folder or hub name whose files list the end tokens: the adapter's if it has them, else its base's."""
    has_config = (Path(source.path) / "generation_config.json").is_file()
    return source.path if source.base is None or has_config else files_with_config(source.base)


def pad_apart_from_ends(tokenizer: PreTrainedTokenizerBase) -> None:
    """Give the tokenizer of a reward model a pad token that no answer ends with.

    Plain transformers reads a score at the last token whose id is not padding; with pad = EOS that is the token before
    the end. An existing token is used, so that the vocabulary does not grow: a special one that the chat template does
    not write, else the byte 0xFF, which no UTF-8 text has.

    Raises:
        ModelError: the vocabulary has no such token.
    """
    ends = end_token_ids(tokenizer)
    if tokenizer.pad_token_id not in ends:
        return
    template = str(tokenizer.chat_template or "")
    special = [
        (index, token.content)
        for index, token in sorted(tokenizer.added_tokens_decoder.items())
        if token.special and index not in ends and token.content not in template
        and token.content not in (tokenizer.bos_token, tokenizer.cls_token)
    ]  # fmt: skip
    likely = [text for _, text in special if "pad" in text.lower() or "reserved" in text.lower()]
    others = [text for _, text in special]
    vocabulary = tokenizer.get_vocab()
    bytes_ = [text for text in ("<0xFF>", "\u00ff") if text in vocabulary]  # spelling of SentencePiece, byte-level BPE
    pad_token = next(iter((*likely, *others, *bytes_)), None)
    if pad_token is None:
        raise ModelError(
            f"the tokenizer pads with {tokenizer.pad_token!r}, which ends an answer, and has no other special token; "
            f"set model.pad_token, for example '{PAD}'"
        )
    tokenizer.add_special_tokens({"pad_token": pad_token})


def fit_embeddings(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Grow the embeddings to the tokenizer's vocabulary, and set pad and end tokens on the model's configs.

    New rows are the mean of the old ones, without the noise that transformers adds, so that an adapter's base is
    grown identically each time it is loaded.
    """
    from alignment.distributed import zero3  # takes half a second, and only a model needs it

    known = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > known:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        for layer in filter(None, (model.get_input_embeddings(), model.get_output_embeddings())):
            with zero3.gathered_parameters(layer.weight), torch.no_grad():
                layer.weight[known:] = layer.weight[:known].mean(dim=0)
    ends = end_token_ids(tokenizer)
    for config in filter(None, (model.config, getattr(model, "generation_config", None))):
        config.pad_token_id = tokenizer.pad_token_id
        config.eos_token_id = ends[0] if len(ends) == 1 else list(ends)


def train_tokenizer(texts: Iterable[str], vocab_size: int, template: str | None) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer trained on texts: it encodes any text, and pad and EOS are separate tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    trained = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=[START],
        clean_up_tokenization_spaces=False,
        padding_side="left",
    )
    set_template(trained, template or "chatml")
    return trained


def vocabulary_of(tokenizer: PreTrainedTokenizerBase) -> int:
    """The number of token ids in use; a model may have more rows than that, for speed."""
    return int(max(tokenizer.get_vocab().values())) + 1
