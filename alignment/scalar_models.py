"""Scalar models (reward, value): a transformer body with one number per token."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from alignment import adapters
from alignment.config import ModelConfig
from alignment.models import ModelError, ModelSource, load_policy, load_weights
from alignment.tensors import last_kept, position_ids


class ScoreHead(nn.Linear):
    """Linear map to one number in float32, whatever the body runs in, minus a constant.

    bfloat16 has steps of 0.06 at a score of 9, which makes ties of answers that differ; so the product is never rounded
    to it, and the weight only by DeepSpeed's bf16 engine, whose optimizer keeps the float32 one. The constant
    (`config.score_bias`) makes scores average 0 over the comparisons that the model learned from; it stays outside the
    state dict because plain transformers has no bias here.
    """

    def __init__(self, hidden_size: int, score_bias: float = 0.0) -> None:
        super().__init__(hidden_size, 1, bias=False)
        self.score_bias = score_bias

    def forward(self, hidden: Tensor) -> Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            return nn.functional.linear(hidden.float(), self.weight.float()) - self.score_bias


class ScalarModel(nn.Module):
    """A transformer body with a score head: a reward model reads its last kept token, a value model every token.

    Wraps a Hugging Face `...ForSequenceClassification` with one label, and saves as one.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Score at each token, given it and all before it: (B, L) -> (B, L) float32."""
        hidden = self.model.base_model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids(attention_mask),
            use_cache=False,
        ).last_hidden_state
        return self.model.score(hidden).squeeze(-1)

    def score(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Score of each sequence, read at its last kept token: (B, L) -> (B,) float32."""
        values = self(input_ids, attention_mask)
        return values.gather(-1, last_kept(attention_mask).unsqueeze(-1)).squeeze(-1)


def load_scalar_model(
    source: ModelSource | str, config: ModelConfig | None = None, seed: int = 0, *, trained: bool = False
) -> ScalarModel:
    """A reward model, or (unless it must be a `trained` one) a new one on the body of a language model.

    A new head is drawn from N(0, 1/(d+1)), the standard deviation 1/sqrt(d+1) of Stiennon et al. 2020, appendix B.1.

    Raises:
        ModelError: an architecture without a sequence classifier, or one whose head has another name; a model without
            a head where a trained one is asked for, whose scores would be random.
    """
    path = source if isinstance(source, str) else source.path
    if isinstance(source, ModelSource) and source.base and not trained:
        with adapters.as_folder(load_policy(source)) as folder:
            scalar = load_scalar_model(folder, config, seed)
            scalar.model.name_or_path = ""
            return scalar
    model, is_new = load_weights(
        AutoModelForSequenceClassification, path, config, may_be_new="score.weight", num_labels=1
    )
    if is_new and trained:
        raise ModelError(
            f"{path}: a policy, which has no score head; name a reward model, as python -m reward makes it"
        )
    if not isinstance(getattr(model, "score", None), nn.Linear):
        raise ModelError(f"{path}: {type(model).__name__} has no linear `score` head; use a decoder model")
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
