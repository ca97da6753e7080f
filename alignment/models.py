"""Policies and scalar models (reward, value): loading, building from scratch, and the rules for tokenizers.

Weights are safetensors only and `trust_remote_code` is off unless the config says otherwise.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from alignment.config import ModelConfig, ScratchConfig
from alignment.errors import UserError
from alignment.registry import Parent, Registry
from alignment.templates import set_template
from alignment.tensors import entropy_from_logits, last_kept, logprobs_from_logits, position_ids

PAD, START, END = "<|pad|>", "<|im_start|>", "<|im_end|>"


class ModelError(UserError):
    """A model or tokenizer that cannot be used as asked."""


# --- finding a model -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ModelSource:
    """Where a model's files are, and its pinned registry reference if it has one."""

    path: str
    ref: str | None = None
    digest: str | None = None

    @property
    def label(self) -> str:
        return self.ref or self.path

    def parent(self, relation: str) -> Parent:
        """This model as an entry of another version's lineage."""
        return Parent(relation, self.label, self.digest)


def find_model(name: str, registry: Registry, role: Literal["policy", "reward"]) -> ModelSource:
    """Resolve a registry reference (verified, role checked), a local folder, or a hub name, in that order.

    Raises:
        RegistryError: a reference that does not resolve, has another role, or whose files do not match.
        ModelError: a folder without a model.
    """
    if registry.is_reference(name):
        version = registry.load(name, role=role)
        return ModelSource(str(version.path), version.ref, version.digest)
    if Path(name).is_dir():
        if not (Path(name) / "config.json").is_file():
            raise ModelError(f"{name}: this folder holds no model (no config.json)")
        return ModelSource(name)
    if "@" in name or "/" not in name:
        registry.resolve(name)  # raises with the nearest names; a hub name has a slash and no @
    return ModelSource(name)


# --- tokenizers ----------------------------------------------------------------------------------------------------


def load_tokenizer(source: ModelSource | str, config: ModelConfig | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer beside a model, checked: it has EOS, a pad token that is not EOS, and a chat template.

    `model.pad_token`, `model.eos_token` and `model.template` mend what is missing; the pad token is added to the
    vocabulary where it is not in it (`fit_embeddings` then grows the model).

    Raises:
        ModelError: what is missing, with the key that mends it.
    """
    path = source if isinstance(source, str) else source.path
    with _loading(path):
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=bool(config and config.trust_remote_code))
    if config and config.eos_token:
        if config.eos_token not in tokenizer.get_vocab():
            raise ModelError(f"model.eos_token: {config.eos_token!r} is not in the vocabulary of {path}")
        tokenizer.add_special_tokens({"eos_token": config.eos_token})  # a plain token would show in decoded answers
    if config and config.pad_token:
        tokenizer.add_special_tokens({"pad_token": config.pad_token})
    check_tokenizer(tokenizer, path)
    set_template(tokenizer, config.template if config else None)
    return tokenizer


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, where: str) -> None:
    """Refuse a tokenizer without EOS, without pad, or whose pad is its EOS.

    With pad = EOS the loss, the reward model's read-out and the response mask cannot tell the end of an answer from
    padding: the model never learns to stop and the reward model never reads EOS.
    """
    if tokenizer.eos_token_id is None:
        raise ModelError(
            f"{where}: the tokenizer has no EOS token; set model.eos_token to the token that ends an answer"
        )
    if tokenizer.pad_token_id is None:
        raise ModelError(f"{where}: the tokenizer has no pad token; set model.pad_token, for example '{PAD}'")
    if tokenizer.pad_token_id == tokenizer.eos_token_id:
        raise ModelError(
            f"{where}: the tokenizer pads with its EOS {tokenizer.eos_token!r}, so an end cannot be told from padding; "
            f"set model.pad_token to another token, for example '{PAD}'"
        )


def fit_embeddings(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Grow the embeddings where the tokenizer has more tokens than the model, and write pad and EOS on its configs."""
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(len(tokenizer))
    model.config.pad_token_id = tokenizer.pad_token_id
    model.config.eos_token_id = tokenizer.eos_token_id
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.pad_token_id = tokenizer.pad_token_id
        model.generation_config.eos_token_id = tokenizer.eos_token_id


def train_tokenizer(texts: Iterable[str], vocab_size: int, template: str | None) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer trained on texts: any text can be encoded, and pad and EOS are tokens of their own."""
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


# --- policies ------------------------------------------------------------------------------------------------------


def build_scratch_model(kind: str, shape: ScratchConfig, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """A new causal language model with random weights (from torch's global seed).

    Args:
        kind: what stands after `scratch:`; `llama` is the one kind there is.
    """
    if kind != "llama":
        raise ModelError(f"model.name: no scratch model '{kind}'; known: scratch:llama")
    if shape.hidden_size % (2 * shape.num_attention_heads):  # a head's width is even: rotary positions turn pairs
        raise ModelError(
            f"model.scratch: hidden_size {shape.hidden_size} is not divisible by "
            f"2 x num_attention_heads {shape.num_attention_heads}"
        )
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_hidden_layers,
        num_attention_heads=shape.num_attention_heads,
        num_key_value_heads=shape.num_attention_heads,
        max_position_embeddings=shape.max_position_embeddings,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return transformers.LlamaForCausalLM(config)


def load_policy(source: ModelSource | str, config: ModelConfig | None = None) -> PreTrainedModel:
    """A causal language model from a folder or hub name, in `model.dtype`, float32 by default.

    Raises:
        ModelError: no model there, one without all of its weights, or a reward model.
    """
    policy = _load(AutoModelForCausalLM, source, config)[0]
    # With tied embeddings nothing is missing: a reward model would pass for a policy and talk nonsense.
    if any("ForSequenceClassification" in name for name in policy.config.architectures or ()):
        path = source if isinstance(source, str) else source.path
        raise ModelError(f"{path}: a reward model; name a policy, as python -m sft makes it")
    return policy


def _load(
    kind: type, source: ModelSource | str, config: ModelConfig | None, may_be_new: str = "", **options: Any
) -> tuple[PreTrainedModel, bool]:
    """`from_pretrained`, refusing what transformers lets pass: it draws weights that are missing or do not fit at
    random and goes on. Also returns whether the one that `may_be_new` was missing."""
    path = source if isinstance(source, str) else source.path
    with _loading(path), _quiet():
        model, info = kind.from_pretrained(  # type: ignore[attr-defined]
            path,
            dtype=getattr(torch, config.dtype if config else "float32"),
            use_safetensors=True,
            trust_remote_code=bool(config and config.trust_remote_code),
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **options,
        )
    wrong = sorted((set(info["missing_keys"]) - {may_be_new}) | {name for name, *_ in info["mismatched_keys"]})
    if wrong:
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise ModelError(
            f"{path}: not a whole {type(model).__name__}: {wrong[0]}{more} missing or of another shape than "
            "config.json says; name another model"
        )
    return model, may_be_new in info["missing_keys"]


def response_logprobs(
    policy: nn.Module,
    input_ids: Tensor,
    attention_mask: Tensor,
    num_response: int,
    temperature: float,
    with_entropy: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Log-probabilities of the last `num_response` tokens, (B, T) float32, and the entropy at each if it is asked for.

    The logits are computed for the response alone: `logits_to_keep` leaves the prompt out of the output layer. The
    entropy takes a second pass over the vocabulary and carries no gradient.

    Args:
        input_ids, attention_mask: (B, P+T)
        temperature: the one that the response was sampled at.
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


# --- scalar models: one number per token ---------------------------------------------------------------------------


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
    model, is_new = _load(AutoModelForSequenceClassification, path, config, may_be_new="score.weight", num_labels=1)
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


# --- helpers -------------------------------------------------------------------------------------------------------


def num_parameters(path: str) -> int | None:
    """Parameters of a model folder, read from the headers of its safetensors files; None for a hub name.

    Raises:
        ModelError: a damaged file.
    """
    total = 0
    for file in Path(path).glob("*.safetensors"):
        with _loading(path), safe_open(file, framework="pt") as tensors:
            total += sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118
    return total or None


def check_finite(folder: Path) -> None:
    """Refuse weights with a NaN or an infinity in them: a model that diverged says nothing, and looks like any other.

    Raises:
        ModelError: names the first such tensor.
    """
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - not a dict
                if not torch.isfinite(tensors.get_tensor(name)).all():
                    raise ModelError(
                        f"training diverged: {name} is not finite any more, so nothing was published; "
                        "lower training.learning_rate"
                    )


@contextlib.contextmanager
def _loading(path: str) -> Iterator[None]:
    """Turn transformers' long errors about a missing or foreign model into one line."""
    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ModelError(
            f"{path}: cannot be loaded as a model ({reason}); give a registry reference, a folder with config.json and "
            "safetensors weights, or a hub name that this machine can reach"
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide transformers' table of missing and unexpected keys: a policy has no score head, and a classifier no output
    layer, by design."""
    logger: Any = transformers.utils.logging
    level = logger.get_verbosity()
    logger.set_verbosity_error()
    try:
        yield
    finally:
        logger.set_verbosity(level)
