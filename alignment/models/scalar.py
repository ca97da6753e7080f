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
from alignment.models.policies import load_policy, load_weights
from alignment.models.sources import ENSEMBLE, ModelSource
from alignment.models.tokenizers import fit_embeddings, load_tokenizer
from alignment.tensors import last_kept, position_ids, shifted_left

SCORE = "score.json"
"""Beside a reward model that is an adapter: `score_bias`."""
HEAD_WEIGHT = "base_model.model.score.weight"
"""The name of an adapter's score head in its file."""


class Float32Linear(nn.Linear):
    """A linear layer that is computed in float32, whatever the body runs in.

    bfloat16 has steps of 0.06 at a score of 9, which makes ties of answers that differ; so the product is never rounded
    to it, and the weight only by DeepSpeed's bf16 engine, whose optimizer keeps the float32 one.
    """

    def forward(self, hidden: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.float()
        with torch.autocast(hidden.device.type, enabled=False):
            return nn.functional.linear(hidden.float(), self.weight.float(), bias)


class ScoreHead(Float32Linear):
    """Linear map to one number in float32, minus a constant.

    The constant makes scores average 0 over demonstrations. It is `config.score_bias`, and no tensor of the state dict,
    because transformers' own class has no bias here and would complain of an unexpected weight.
    """

    def __init__(self, hidden_size: int, score_bias: float = 0.0) -> None:
        super().__init__(hidden_size, 1, bias=False)
        self.score_bias = score_bias

    def forward(self, hidden: Tensor) -> Tensor:
        return super().forward(hidden) - self.score_bias


class ScalarModel(nn.Module):
    """A transformer body with a score head: a reward model reads its last kept token, a value model every token.

    Wraps a Hugging Face `...ForSequenceClassification` with one label, and saves as one. An encoder (BERT and the like)
    reads a text as a whole through transformers' own head and has no score at each token.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        self.is_encoder = not isinstance(getattr(model, "score", None), ScoreHead)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Score at each token, given it and all before it: (B, L) -> (B, L) float32."""
        assert not self.is_encoder, type(self.model).__name__
        # Rows that begin with a token have the positions that the model counts itself (RoBERTa begins at 2).
        counted = bool(attention_mask[:, 0].all())
        hidden = self.model.base_model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            **({} if counted else {"position_ids": position_ids(attention_mask)}),
            use_cache=False,
        ).last_hidden_state
        return self.model.score(hidden).squeeze(-1)

    def score(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Score of each sequence, read at its last kept token, by an encoder where its head reads:
        (B, L) -> (B,) float32."""
        # Without gaps at the left: positions are counted from the first token, and a recurrent body reads padding.
        ids, mask = shifted_left(input_ids, attention_mask)
        if self.is_encoder:
            return self.model(input_ids=ids, attention_mask=mask).logits.squeeze(-1).float()
        return self(ids, mask).gather(-1, last_kept(mask).unsqueeze(-1)).squeeze(-1)


# What transformers draws anew on the body of a language model: a decoder's head, or an encoder's with its pooler.
_HEADS = r"score\.weight|((\w+\.)?pooler|pre_classifier|classifier|head)\..*"


def load_scalar_model(
    source: ModelSource | str, config: ModelConfig | None = None, seed: int = 0, *, trained: bool = False
) -> ScalarModel:
    """A reward model, or (unless it must be a `trained` one) a new one on the body of a language model.

    A decoder's new head is drawn from N(0, 1/(d+1)), the standard deviation 1/sqrt(d+1) of Stiennon et al. 2020,
    appendix B.1; an encoder's is transformers' own, drawn as it draws it. An adapter is merged, in float32, before
    the model takes on `config.dtype`.

    Raises:
        ModelError: an architecture without a sequence classifier, or with one of a kind not known here; a model without
            a head where a trained one is asked for, whose scores would be random.
        AdapterError: an adapter that does not fit its base.
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
    """The name of the linear layer that gives an encoder's logit; None where there is none with a bias."""
    body = {id(module) for module in model.base_model.modules()}
    found = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and id(module) not in body and module.out_features == 1
    ]
    return found[-1] if found and model.get_submodule(found[-1]).bias is not None else None


def _saved_tensor(path: str, name: str) -> Tensor | None:
    """A tensor of a model folder as it was saved; `from_pretrained` has rounded it when `model.dtype` is bfloat16."""
    for file in Path(path).glob("*.safetensors"):
        with safe_open(file, framework="pt") as tensors:
            if name in tensors.keys():  # noqa: SIM118 - not a dict
                return tensors.get_tensor(name)
    return None


def set_score_bias(model: PreTrainedModel, bias: float) -> None:
    """Move the constant that a scalar model subtracts, in the head and in the config that is saved."""
    assert isinstance(model.score, ScoreHead)
    model.score.score_bias = bias
    model.config.score_bias = bias


def shift_scores(scalar: ScalarModel, by: float) -> None:
    """Subtract a constant from every score: from a decoder's on top of its `config.score_bias`, from an encoder's in
    the bias that its head has."""
    if not scalar.is_encoder:
        set_score_bias(scalar.model, scalar.model.score.score_bias + by)
        return
    name = _last_layer(scalar.model)
    assert name is not None
    with torch.no_grad():
        scalar.model.get_submodule(name).bias -= by


# --- a reward model that is an adapter -----------------------------------------------------------------------------


def load_merged(source: ModelSource, folder: str, score_bias: float, config: ModelConfig | None) -> ScalarModel:
    """The adapter of a folder, with its head, on the base of `source`: one whole model.

    Raises:
        ModelError, AdapterError: the base is not to be loaded; the adapter does not fit it.
    """
    with zero3.unpartitioned_loading():
        merged = adapters.merge(load_body(source, config).model, folder)
    set_score_bias(merged, score_bias)
    return in_dtype(ScalarModel(merged), config)


def load_body(source: ModelSource, config: ModelConfig | None = None) -> ScalarModel:
    """What the adapter, or all members of an ensemble of adapters, were trained on, in float32: rounded, or quantized,
    as it was then. Its head is nobody's."""
    assert source.base and source.trained
    trained = source.trained.model_copy(update={"trust_remote_code": bool(config and config.trust_remote_code)})
    body = load_scalar_model(source.base, trained)
    trusted = ModelConfig(name=source.label, trust_remote_code=trained.trust_remote_code)
    fit_embeddings(body.model, load_tokenizer(source, trusted))
    return ScalarModel(adapters.dequantize(body.model) if trained.quantized else body.model.float())


def load_plain_classifier(source: ModelSource) -> PreTrainedModel:
    """What plain transformers makes of a policy as the base of a reward adapter, in float32; its head is random."""
    return load_weights(AnyClassifier, source, None, may_be_new=_HEADS, num_labels=1)[0]


def in_dtype(scalar: ScalarModel, config: ModelConfig | None) -> ScalarModel:
    """The body in `model.dtype`; heads stay in float32."""
    scalar.model.base_model.to(getattr(torch, config.dtype if config else "float32"))
    return scalar


def holds_head(folder: str) -> bool:
    """Whether an adapter's files have all that was drawn anew beside its base: a decoder's head. Of an encoder PEFT
    saves the classifier, and not the pooler before it."""
    return _saved_tensor(folder, HEAD_WEIGHT) is not None


def load_head(folder: str, score_bias: float) -> ScoreHead:
    """The head that is saved with a decoder's adapter, in float32.

    Raises:
        ModelError: there is none.
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
    """What the scores of an adapter were shifted by, which has no config of its own to keep it in.

    Raises:
        ModelError: it is missing or no number.
    """
    path = Path(folder) / SCORE
    try:
        bias = float(json.loads(path.read_text(encoding="utf-8"))["score_bias"])
        if not math.isfinite(bias):
            raise ValueError(f"score_bias is {bias}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path}: not the zero point of a reward adapter ({error}); publish it again") from error
    return bias


def write_score_bias(folder: Path, score_bias: float) -> None:
    """For `read_score_bias`."""
    (folder / SCORE).write_text(json.dumps({"score_bias": score_bias}, indent=2) + "\n", encoding="utf-8")
