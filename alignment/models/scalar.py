"""Scalar models (reward, value): a transformer body with one number per token."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel

from alignment.config.sections import ModelConfig
from alignment.distributed import one_reader, zero3
from alignment.errors import ModelError
from alignment.models import adapters
from alignment.models.classifiers import AnyClassifier
from alignment.models.names import ENSEMBLE
from alignment.models.policies import load_policy
from alignment.models.reward_files import (
    Bias,
    biases,
    head_names,
    heads_in_folder,
    read_score_bias,
    saved_heads,
)
from alignment.models.sources import ModelSource
from alignment.models.tokenizers import fit_embeddings, load_tokenizer
from alignment.models.weights import load_weights
from alignment.tensors import last_kept, position_ids, shifted_left

HEAD_WEIGHT = "base_model.model.score.weight"
"""The name of an adapter's score head in its file."""


class Float32Linear(nn.Linear):
    """A linear layer that computes in float32, whatever the body's dtype.

    bfloat16 has steps of 0.06 at a score of 9, which would tie different answers. The product is never rounded to it,
    and the weight only by DeepSpeed's bf16 engine, whose optimizer keeps a float32 copy.
    """

    def forward(self, hidden: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.float()
        with torch.autocast(hidden.device.type, enabled=False):
            return nn.functional.linear(hidden.float(), self.weight.float(), bias)


class ScoreHead(Float32Linear):
    """Linear map to one number in float32, or to one for each attribute, minus a constant.

    The constant makes scores average 0 over demonstrations. It is kept in `config.score_bias`, not in the state dict,
    because transformers' class has no bias here and would warn of an unexpected weight.
    """

    def __init__(self, hidden_size: int, score_bias: Bias = 0.0, heads: int = 1) -> None:
        super().__init__(hidden_size, heads, bias=False)
        self.score_bias = score_bias

    def forward(self, hidden: Tensor) -> Tensor:
        scores = super().forward(hidden)
        return scores - (scores.new_tensor(self.score_bias) if isinstance(self.score_bias, list) else self.score_bias)

    def weighted(self, weights: Sequence[float]) -> ScoreHead:
        """One head whose score is the weighted sum of this one's."""
        head = ScoreHead(
            self.in_features, sum(w * bias for w, bias in zip(weights, biases(self.score_bias), strict=True))
        )
        head.weight.data.copy_(self.weight.new_tensor(weights) @ self.weight.detach())
        return head.requires_grad_(self.weight.requires_grad)


class ScalarModel(nn.Module):
    """A transformer body with a score head: a reward model reads its last kept token, a value model every token.

    Wraps a Hugging Face `...ForSequenceClassification` with one label, and saves as one; with several labels it has a
    score for each of its `heads`. An encoder such as BERT scores the whole text through transformers' own head and has
    no score at each token.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        self.is_encoder = not isinstance(getattr(model, "score", None), ScoreHead)

    @property
    def heads(self) -> tuple[str, ...]:
        """What each score is of; empty for a single score."""
        return head_names(self.model.config)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Score at each token, given it and all before it: (B, L) -> (B, L) float32; (B, L, H) of several heads."""
        assert not self.is_encoder, type(self.model).__name__
        # Without left padding the model counts positions itself (RoBERTa begins at 2).
        counted = bool(attention_mask[:, 0].all())
        hidden = self.model.base_model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            **({} if counted else {"position_ids": position_ids(attention_mask)}),
            use_cache=False,
        ).last_hidden_state
        return self.model.score(hidden).squeeze(-1)

    def score(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Score of each sequence at its last kept token, or where an encoder's head reads: (B, L) -> (B,) float32;
        (B, H) of several heads."""
        # Padding goes to the right: positions count from the first token, and a recurrent body reads left padding.
        ids, mask = shifted_left(input_ids, attention_mask)
        if self.is_encoder:
            return self.model(input_ids=ids, attention_mask=mask).logits.squeeze(-1).float()
        scores: Tensor = self(ids, mask)[torch.arange(len(ids), device=ids.device), last_kept(mask)]
        return scores


# Weights that transformers initialises on a language model's body: a decoder's head, or an encoder's with its pooler.
_HEADS = r"score\.weight|((\w+\.)?pooler|pre_classifier|classifier|head)\..*"


def _labels(heads: Sequence[str]) -> dict[str, Any]:
    """Options of `from_pretrained` for a model with these heads."""
    if not heads:
        return {"num_labels": 1}
    return {"id2label": dict(enumerate(heads)), "label2id": {name: index for index, name in enumerate(heads)}}


def load_scalar_model(
    source: ModelSource | str,
    config: ModelConfig | None = None,
    seed: int = 0,
    *,
    trained: bool = False,
    heads: Sequence[str] = (),
) -> ScalarModel:
    """A reward model, or (unless it must be `trained`) a new one on the body of a language model.

    Args:
        heads: the attributes of a new model with several scores; a trained model has its own.

    A decoder's new head is drawn from N(0, 1/(d+1)), the standard deviation 1/sqrt(d+1) of Stiennon et al. 2020,
    appendix B.1; transformers initialises an encoder's. An adapter is merged in float32 before the model is cast to
    `config.dtype`.

    Raises:
        ModelError: the architecture has no sequence classifier, or one of an unknown kind; or a trained model is
            required and this one has no head, so its scores would be random; or it has other heads.
        AdapterError: an adapter does not fit its base.
    """
    path = source if isinstance(source, str) else source.path
    if (Path(path) / ENSEMBLE).is_file():
        raise ModelError(f"{path}: several reward models in one, where a single model is needed; name another")
    if isinstance(source, ModelSource) and source.base and trained:
        return load_merged(source, source.path, read_score_bias(source.path), config)
    if isinstance(source, ModelSource) and source.base:
        with adapters.as_folder(load_policy(source)) as folder:
            scalar = load_scalar_model(folder, config, seed, heads=heads)
            scalar.model.name_or_path = ""
            return scalar
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model, is_new = load_weights(
            AnyClassifier, path, config, may_be_new=_HEADS, **_labels(heads_in_folder(path) or heads)
        )
    if is_new and trained:
        raise ModelError(
            f"{path}: a policy, which has no score head; name a reward model, as python -m reward makes it"
        )
    if not isinstance(getattr(model, "score", None), nn.Linear):
        return _encoder(model, path, heads)
    old = model.score
    if is_new and heads:
        model.config.score_bias = [0.0] * len(heads)
    bias = getattr(model.config, "score_bias", 0.0)
    model.score = ScoreHead(old.in_features, bias if isinstance(bias, list) else float(bias), old.out_features)
    if is_new:
        generator = torch.Generator().manual_seed(seed)
        std = 1 / math.sqrt(old.in_features + 1)
        nn.init.normal_(model.score.weight, std=std, generator=generator)
    else:
        saved = _saved_tensor(path, "score.weight")
        with zero3.gathered_parameters(old.weight, write_back=False):
            model.score.weight.data.copy_(old.weight.data if saved is None else saved)
    return ScalarModel(model)


def _encoder(model: PreTrainedModel, path: str, heads: Sequence[str]) -> ScalarModel:
    """An encoder with its own classification head, whose last layer is computed in float32."""
    if heads or head_names(model.config):
        raise ModelError(
            f"{path}: an encoder ({type(model).__name__}) has one score; use a decoder for reward.attributes"
        )
    name = _last_layer(model)
    if model.config.is_encoder_decoder or name is None:
        raise ModelError(
            f"{path}: {type(model).__name__} has neither a linear `score` head nor a linear layer to one number with a "
            "bias at its end; use a decoder model, or an encoder of BERT's kind"
        )
    old = model.get_submodule(name)
    new = Float32Linear(old.in_features, 1)
    for parameter in ("weight", "bias"):
        saved, loaded = _saved_tensor(path, f"{name}.{parameter}"), getattr(old, parameter)
        with zero3.gathered_parameters(loaded, write_back=False):
            getattr(new, parameter).data.copy_(loaded.data if saved is None else saved)
    model.set_submodule(name, new)
    return ScalarModel(model)


def _last_layer(model: PreTrainedModel) -> str | None:
    """The name of the linear layer that gives an encoder's logit; None if there is none with a bias."""
    body = {id(module) for module in model.base_model.modules()}
    layers = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and id(module) not in body and module.out_features == 1
    ]
    return layers[-1] if layers and model.get_submodule(layers[-1]).bias is not None else None


def _saved_tensor(path: str, name: str) -> Tensor | None:
    """A tensor of a model folder as it was saved; `from_pretrained` rounds it if `model.dtype` is bfloat16."""
    return one_reader.from_reader(lambda: _read_tensor(path, name))


def _read_tensor(path: str, name: str) -> Tensor | None:
    for file in Path(path).glob("*.safetensors"):
        with safe_open(file, framework="pt") as tensors:
            if name in tensors.keys():  # noqa: SIM118 - not a dict
                return tensors.get_tensor(name)
    return None


def set_score_bias(model: PreTrainedModel, bias: Bias) -> None:
    """Set the constant that a scalar model subtracts, in its head and in the saved config."""
    assert isinstance(model.score, ScoreHead)
    model.score.score_bias = bias
    model.config.score_bias = bias


def as_bias(numbers: Sequence[float]) -> Bias:
    """One number for each head, as it is kept."""
    return numbers[0] if len(numbers) == 1 else list(numbers)


def collapse(scalar: ScalarModel, weights: Sequence[float]) -> ScalarModel:
    """Make one score of several, their weighted sum, in the same model."""
    head = scalar.model.score.weighted(weights)
    scalar.model.score = head
    scalar.model.config.num_labels = 1
    set_score_bias(scalar.model, head.score_bias)
    return scalar


def shift_scores(scalar: ScalarModel, by: Bias) -> None:
    """Subtract a constant from every score, in a decoder's `config.score_bias` or the bias of an encoder's head."""
    if not scalar.is_encoder:
        old = biases(scalar.model.score.score_bias)
        set_score_bias(scalar.model, as_bias([one + more for one, more in zip(old, biases(by), strict=True)]))
        return
    name = _last_layer(scalar.model)
    assert name is not None
    with torch.no_grad():
        scalar.model.get_submodule(name).bias -= by


# --- a reward model that is an adapter -----------------------------------------------------------------------------


def load_merged(source: ModelSource, folder: str, score_bias: Bias, config: ModelConfig | None) -> ScalarModel:
    """The adapter of a folder, with its head, merged onto the base of `source`.

    Raises:
        ModelError, AdapterError: the base cannot be loaded, or the adapter does not fit it.
    """
    with adapters.loading_to_merge(folder):
        merged = adapters.merge(load_body(source, config).model, folder)
    set_score_bias(merged, score_bias)
    return in_dtype(ScalarModel(merged), config)


def load_body(source: ModelSource, config: ModelConfig | None = None) -> ScalarModel:
    """The base that a reward adapter, or an ensemble of them, was trained on, in float32 and with an unused head.

    Its weights are rounded or quantized as in training.
    """
    assert source.base and source.trained
    trained = source.trained.model_copy(update={"trust_remote_code": bool(config and config.trust_remote_code)})
    body = load_scalar_model(source.base, trained, heads=saved_heads(source))
    trusted = ModelConfig(name=source.label, trust_remote_code=trained.trust_remote_code)
    fit_embeddings(body.model, load_tokenizer(source, trusted))
    if trained.quantized:
        return ScalarModel(adapters.dequantize(body.model))
    # Shards are loaded in float32, and have to be rounded here as they were in training.
    return ScalarModel(zero3.cast(zero3.cast(body.model, getattr(torch, trained.dtype)), torch.float32))


def load_plain_classifier(source: ModelSource, heads: Sequence[str] = ()) -> PreTrainedModel:
    """A policy loaded by plain transformers as the base of a reward adapter, in float32; its head is random."""
    return load_weights(AnyClassifier, source, None, may_be_new=_HEADS, **_labels(heads))[0]


def in_dtype(scalar: ScalarModel, config: ModelConfig | None) -> ScalarModel:
    """Cast the body to `model.dtype`; heads stay in float32."""
    zero3.cast(scalar.model.base_model, getattr(torch, config.dtype if config else "float32"))
    return scalar


def holds_head(folder: str) -> bool:
    """Whether an adapter's files hold the complete head: a decoder's do; PEFT saves no pooler of an encoder."""
    return _saved_tensor(folder, HEAD_WEIGHT) is not None


def load_head(folder: str, score_bias: Bias) -> ScoreHead:
    """The head that is saved with a decoder's adapter, in float32.

    Raises:
        ModelError: the adapter has no head.
    """
    weight = _saved_tensor(folder, HEAD_WEIGHT)
    if weight is None:
        raise ModelError(
            f"{folder}: an adapter without a score head; name a reward model, as python -m reward makes it"
        )
    head = ScoreHead(weight.shape[1], score_bias, weight.shape[0])
    head.weight.data.copy_(weight)
    return head
