"""A classifier for any causal language model: transformers' own if it reads the last token, else one built here.

A third of transformers' causal models (Cohere, Granite, Mamba) have no classifier, and others' do not read the last
token: a causal BERT's reads the first, which has seen nothing. For these a linear layer `score` is put on the body of
the causal model, and saved with it under the causal model's names.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
)

from alignment.distributed import zero3
from alignment.errors import UserError

FAILURES = (RuntimeError, ValueError, TypeError, AttributeError, KeyError, NotImplementedError, ImportError)
MARK = "last_token_score"
"""Config key of a model of this suite's class, whose files are not those of a transformers classifier."""
LOADING = """transformers has no classifier of this kind that reads the last token, so
`AutoModelForSequenceClassification` does not load this model. Its body is loaded as the causal model's, and its head
from the file:

```python
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("FOLDER")
body = AutoModelForCausalLM.from_pretrained("FOLDER", dtype=torch.float32).eval().base_model
with safe_open("FOLDER/model.safetensors", "pt") as file:
    head = file.get_tensor("score.weight").float()
messages = [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]
text = tokenizer.apply_chat_template(messages, tokenize=False).rstrip("\\n")  # it ends with the EOS
ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
with torch.no_grad():
    print(body(input_ids=ids).last_hidden_state[0, -1] @ head[0])
```

transformers warns that the output layer is new and that `score.weight` is not used; neither matters here.
"""
"""README text on loading a reward model of this suite's class in plain transformers."""


class ClassifierError(UserError):
    """A model that cannot get a score head."""


class AnyClassifier:
    """A drop-in for `AutoModelForSequenceClassification` that supports more models."""

    @staticmethod
    def from_pretrained(path: str | Path, **options: Any) -> Any:
        """As `AutoModelForSequenceClassification.from_pretrained`."""
        config = AutoConfig.from_pretrained(path, trust_remote_code=bool(options.get("trust_remote_code")))
        if not needs_own(config):
            return AutoModelForSequenceClassification.from_pretrained(path, **options)
        if reason := why_no_scores(config):
            raise ClassifierError(
                f"{path}: no reward model or critic can be made of this model: {reason}; name another"
            )
        options.pop("trust_remote_code", None)
        return own_class(type(config)).from_pretrained(path, **options)  # type: ignore[arg-type]

    @staticmethod
    def from_config(config: PreTrainedConfig, **options: Any) -> Any:
        """As `AutoModelForSequenceClassification.from_config`."""
        if needs_own(config):
            return own_class(type(config))(config)  # type: ignore[arg-type]
        return AutoModelForSequenceClassification.from_config(config, **options)


def needs_own(config: PreTrainedConfig) -> bool:
    """Whether transformers has no classifier for this causal model that reads the last token of a text."""
    if getattr(config, MARK, False):
        return True
    if getattr(config, "auto_map", None) or getattr(config, "is_encoder_decoder", False):
        return False
    causal = _class_of(MODEL_FOR_CAUSAL_LM_MAPPING, type(config))
    if causal is None:
        return False
    theirs = _class_of(MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING, type(config))
    if theirs is None or getattr(theirs, "config_class", None) not in (None, type(config)):
        return True  # a class for another config would be built with that config's default sizes
    if not (getattr(config, "is_decoder", False) or causal.__name__ in (config.architectures or ())):
        return False
    with zero3.on_meta_device():
        try:
            return not isinstance(getattr(theirs(config), "score", None), nn.Linear)
        except FAILURES:
            return True


def why_no_scores(config: PreTrainedConfig, trust_remote_code: bool = False) -> str | None:
    """The reason why this config cannot make a reward model; None if it can."""
    with zero3.on_meta_device():
        try:
            AnyClassifier.from_config(config, trust_remote_code=trust_remote_code)
        except FAILURES as error:
            return (str(error).strip().splitlines() or [type(error).__name__])[0]
    return None


def body_width(config: PreTrainedConfig) -> int:
    """Width of the last hidden states: not the hidden size if the body ends in a projection (OPT-350m)."""
    with zero3.on_meta_device():
        try:
            score = getattr(AnyClassifier.from_config(config), "score", None)
        except FAILURES:
            score = None
    return int(score.in_features if isinstance(score, nn.Linear) else config.get_text_config().hidden_size)


def _class_of(mapping: Any, config_class: Any) -> Any:
    classes = mapping.get(config_class, None)
    return classes[0] if isinstance(classes, tuple) else classes


class LastTokenScore:
    """Mixin before a model's `PreTrainedModel` class: its causal body, and a linear layer on the last hidden state."""

    causal: Callable[[PreTrainedConfig], PreTrainedModel]
    base_model_prefix: str

    def __init__(self: Any, config: PreTrainedConfig) -> None:
        super().__init__(config)  # type: ignore[call-arg]
        self.num_labels = config.num_labels
        setattr(config, MARK, True)
        causal = type(self).causal(config)
        body = causal.base_model
        if body is causal:
            raise ValueError(f"the body of a {type(causal).__name__} is no model of its own")
        setattr(self, self.base_model_prefix, body)
        self.score = nn.Linear(config.get_text_config().hidden_size, config.num_labels, bias=False)
        self.post_init()

    def forward(
        self: Any,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutput:
        """Logits (B, labels) at each row's last token that is not padding."""
        body = self.base_model
        given = {"attention_mask": attention_mask, "position_ids": position_ids, "use_cache": use_cache}
        accepted = inspect.signature(body.forward).parameters
        takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in accepted.values())
        options = {
            name: value for name, value in given.items() if value is not None and (takes_any or name in accepted)
        }
        logits = self.score(body(input_ids=input_ids, **options).last_hidden_state)
        kept = torch.ones_like(input_ids) if attention_mask is None else attention_mask.to(torch.long)
        columns = torch.arange(input_ids.shape[-1], device=input_ids.device)
        last = (columns * kept).argmax(-1)
        return SequenceClassifierOutput(logits=logits[torch.arange(len(input_ids), device=input_ids.device), last])


@functools.cache
def own_class(config_class: Hashable) -> type[PreTrainedModel]:
    """The class of a causal model's body with a `score` head, by the name that transformers would give it."""
    causal = _class_of(MODEL_FOR_CAUSAL_LM_MAPPING, config_class)
    assert causal is not None
    parent: Any = next(base for base in causal.__mro__ if PreTrainedModel in base.__bases__)
    name = causal.__name__.removesuffix("ForCausalLM").removesuffix("LMHeadModel") + "ForSequenceClassification"
    members = {
        "causal": causal,
        "config_class": config_class,
        "base_model_prefix": parent.base_model_prefix,
        "get_input_embeddings": causal.get_input_embeddings,
        "set_input_embeddings": causal.set_input_embeddings,
        "__module__": causal.__module__,  # transformers checks here whether attention and experts can be replaced
    }
    return type(name, (LastTokenScore, parent), members)
