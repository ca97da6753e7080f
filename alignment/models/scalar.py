"""Scalar models (reward, value): a transformer body with one number per token."""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel

from alignment.config.sections import ModelConfig
from alignment.distributed import zero3
from alignment.errors import ModelError
from alignment.models import adapters
from alignment.models.classifiers import AnyClassifier
from alignment.models.names import ENSEMBLE
from alignment.models.policies import load_policy, load_weights
from alignment.models.sources import ModelSource
from alignment.models.tokenizers import fit_embeddings, load_tokenizer
from alignment.tensors import last_kept, position_ids, shifted_left

SCORE = "score.json"
"""Beside a reward model that is an adapter: `score_bias`."""
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
    """Linear map to one number in float32, minus a constant.

    The constant makes scores average 0 over demonstrations. It is kept in `config.score_bias`, not in the state dict,
    because transformers' class has no bias here and would warn of an unexpected weight.
    """

    def __init__(self, hidden_size: int, score_bias: float = 0.0) -> None:
        super().__init__(hidden_size, 1, bias=False)
        self.score_bias = score_bias

    def forward(self, hidden: Tensor) -> Tensor:
        return super().forward(hidden) - self.score_bias


class ScalarModel(nn.Module):
    """A transformer body with a score head: a reward model reads its last kept token, a value model every token.

    Wraps a Hugging Face `...ForSequenceClassification` with one label, and saves as one. An encoder such as BERT scores
    the whole text through transformers' own head and has no score at each token.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        self.is_encoder = not isinstance(getattr(model, "score", None), ScoreHead)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Score at each token, given it and all before it: (B, L) -> (B, L) float32."""
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
        """Score of each sequence at its last kept token, or where an encoder's head reads: (B, L) -> (B,) float32."""
        # Padding goes to the right: positions count from the first token, and a recurrent body reads left padding.
        ids, mask = shifted_left(input_ids, attention_mask)
        if self.is_encoder:
            return self.model(input_ids=ids, attention_mask=mask).logits.squeeze(-1).float()
        return self(ids, mask).gather(-1, last_kept(mask).unsqueeze(-1)).squeeze(-1)


# Weights that transformers initialises on a language model's body: a decoder's head, or an encoder's with its pooler.
_HEADS = r"score\.weight|((\w+\.)?pooler|pre_classifier|classifier|head)\..*"


def load_scalar_model(
    source: ModelSource | str, config: ModelConfig | None = None, seed: int = 0, *, trained: bool = False
) -> ScalarModel:
    """A reward model, or (unless it must be `trained`) a new one on the body of a language model.

    A decoder's new head is drawn from N(0, 1/(d+1)), the standard deviation 1/sqrt(d+1) of Stiennon et al. 2020,
    appendix B.1; transformers initialises an encoder's. An adapter is merged in float32 before the model is cast to
    `config.dtype`.

    Raises:
        ModelError: the architecture has no sequence classifier, or one of an unknown kind; or a trained model is
            required and this one has no head, so its scores would be random.
        AdapterError: an adapter does not fit its base.
    """
    path = source if isinstance(source, str) else source.path
    if (Path(path) / ENSEMBLE).is_file():
        raise ModelError(f"{path}: several reward models in one, where a single model is needed; name another")
    if isinstance(source, ModelSource) and source.base and trained:
        return load_merged(source, source.path, read_score_bias(source.path), config)
    if isinstance(source, ModelSource) and source.base:
        with adapters.as_folder(load_policy(source)) as folder:
            scalar = load_scalar_model(folder, config, seed)
            scalar.model.name_or_path = ""
            return scalar
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model, is_new = load_weights(AnyClassifier, path, config, may_be_new=_HEADS, num_labels=1)
    if is_new and trained:
        raise ModelError(
            f"{path}: a policy, which has no score head; name a reward model, as python -m reward makes it"
        )
    if not isinstance(getattr(model, "score", None), nn.Linear):
        return _encoder(model, path)
    old = model.score
    model.score = ScoreHead(old.in_features, float(getattr(model.config, "score_bias", 0.0)))
    if is_new:
        generator = torch.Generator().manual_seed(seed)
        std = 1 / math.sqrt(old.in_features + 1)
        nn.init.normal_(model.score.weight, std=std, generator=generator)
    else:
        saved = _saved_tensor(path, "score.weight")
        model.score.weight.data.copy_(old.weight.data if saved is None else saved)
    return ScalarModel(model)


def _encoder(model: PreTrainedModel, path: str) -> ScalarModel:
    """An encoder with its own classification head, whose last layer is computed in float32."""
    name = _last_layer(model)
    if model.config.is_encoder_decoder or name is None:
        raise ModelError(
            f"{path}: {type(model).__name__} has neither a linear `score` head nor a linear layer to one number with a "
            "bias at its end; use a decoder model, or an encoder of BERT's kind"
        )
    old = model.get_submodule(name)
    new = Float32Linear(old.in_features, 1)
    for parameter in ("weight", "bias"):
        saved = _saved_tensor(path, f"{name}.{parameter}")
        getattr(new, parameter).data.copy_(getattr(old, parameter).data if saved is None else saved)
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
    for file in Path(path).glob("*.safetensors"):
        with safe_open(file, framework="pt") as tensors:
            if name in tensors.keys():  # noqa: SIM118 - not a dict
                return tensors.get_tensor(name)
    return None


def set_score_bias(model: PreTrainedModel, bias: float) -> None:
    """Set the constant that a scalar model subtracts, in its head and in the saved config."""
    assert isinstance(model.score, ScoreHead)
    model.score.score_bias = bias
    model.config.score_bias = bias


def shift_scores(scalar: ScalarModel, by: float) -> None:
    """Subtract a constant from every score, in a decoder's `config.score_bias` or the bias of an encoder's head."""
    if not scalar.is_encoder:
        set_score_bias(scalar.model, scalar.model.score.score_bias + by)
        return
    name = _last_layer(scalar.model)
    assert name is not None
    with torch.no_grad():
        scalar.model.get_submodule(name).bias -= by


# --- a reward model that is an adapter -----------------------------------------------------------------------------


def load_merged(source: ModelSource, folder: str, score_bias: float, config: ModelConfig | None) -> ScalarModel:
    """The adapter of a folder, with its head, merged onto the base of `source`.

    Raises:
        ModelError, AdapterError: the base cannot be loaded, or the adapter does not fit it.
    """
    with zero3.unpartitioned_loading():
        merged = adapters.merge(load_body(source, config).model, folder)
    set_score_bias(merged, score_bias)
    return in_dtype(ScalarModel(merged), config)


def load_body(source: ModelSource, config: ModelConfig | None = None) -> ScalarModel:
    """The base that a reward adapter, or an ensemble of them, was trained on, in float32 and with an unused head.

    Its weights are rounded or quantized as in training.
    """
    assert source.base and source.trained
    trained = source.trained.model_copy(update={"trust_remote_code": bool(config and config.trust_remote_code)})
    body = load_scalar_model(source.base, trained)
    trusted = ModelConfig(name=source.label, trust_remote_code=trained.trust_remote_code)
    fit_embeddings(body.model, load_tokenizer(source, trusted))
    return ScalarModel(adapters.dequantize(body.model) if trained.quantized else body.model.float())


def load_plain_classifier(source: ModelSource) -> PreTrainedModel:
    """A policy loaded by plain transformers as the base of a reward adapter, in float32; its head is random."""
    return load_weights(AnyClassifier, source, None, may_be_new=_HEADS, num_labels=1)[0]


def in_dtype(scalar: ScalarModel, config: ModelConfig | None) -> ScalarModel:
    """Cast the body to `model.dtype`; heads stay in float32."""
    scalar.model.base_model.to(getattr(torch, config.dtype if config else "float32"))
    return scalar


def holds_head(folder: str) -> bool:
    """Whether an adapter's files hold the complete head: a decoder's do; PEFT saves no pooler of an encoder."""
    return _saved_tensor(folder, HEAD_WEIGHT) is not None


def load_head(folder: str, score_bias: float) -> ScoreHead:
    """The head that is saved with a decoder's adapter, in float32.

    Raises:
        ModelError: the adapter has no head.
    """
    weight = _saved_tensor(folder, HEAD_WEIGHT)
    if weight is None:
        raise ModelError(
            f"{folder}: an adapter without a score head; name a reward model, as python -m reward makes it"
        )
    head = ScoreHead(weight.shape[1], score_bias)
    head.weight.data.copy_(weight)
    return head


def read_score_bias(folder: str) -> float:
    """The score bias of an adapter, which has no config of its own for it.

    Raises:
        ModelError: it is missing or not a finite number.
    """
    path = Path(folder) / SCORE
    try:
        bias = float(json.loads(path.read_text(encoding="utf-8"))["score_bias"])
        if not math.isfinite(bias):
            raise ValueError(f"score_bias is {bias}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path}: not the score offset of a reward adapter ({error}); publish it again") from error
    return bias


def write_score_bias(folder: Path, score_bias: float) -> None:
    """Write the file of `read_score_bias`."""
    (folder / SCORE).write_text(json.dumps({"score_bias": score_bias}, indent=2) + "\n", encoding="utf-8")
