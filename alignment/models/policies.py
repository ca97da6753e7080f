"""Policies: finding, loading and building them from scratch, and the rules for tokenizers.

Weights are safetensors only and `trust_remote_code` is off unless the config says otherwise.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from alignment.config.loading import ModelConfig, ScratchConfig, validate
from alignment.distributed import zero3
from alignment.errors import ModelError, UserError
from alignment.models import adapters
from alignment.models.importing import foreign
from alignment.registry import Manifest, Parent, Registry, RegistryError
from alignment.registry.manifest import Role
from alignment.templates.ends import end_token_ids, read_generation_config
from alignment.templates.rendering import set_template
from alignment.tensors import entropy_from_logits, logprobs_from_logits, position_ids

ENSEMBLE = "ensemble.json"
"""Describes the members of an ensemble (`alignment.models.ensembles`)."""
MAX_ADAPTERS = 16
"""How many adapters may be on each other: loading one merges them all."""
PAD, START, END = "<|pad|>", "<|im_start|>", "<|im_end|>"


# --- finding a model -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ModelSource:
    """Where a model's files are, and its pinned registry reference if it has one."""

    path: str
    ref: str | None = None
    digest: str | None = None
    base: ModelSource | None = None
    """What the adapter in `path` goes on; None: the files are a whole model's."""
    trained: ModelConfig | None = field(default=None, compare=False)  # a dict of it would make a source unhashable
    """With `base`: the `model` section that the adapter was trained by."""

    @property
    def label(self) -> str:
        return self.ref or self.path

    @property
    def config_path(self) -> str:
        """Where the architecture's `config.json` is: an adapter has none of its own, nor has an ensemble."""
        if self.base:
            return self.base.config_path
        return str(Path(self.path) / "member-0") if (Path(self.path) / ENSEMBLE).is_file() else self.path

    def parent(self, relation: str) -> Parent:
        """This model as an entry of another version's lineage."""
        return Parent(relation, self.label, self.digest)

    def as_base(self) -> Parent:
        """This model as the base of an adapter: a local folder by its full path and a digest of its weights."""
        if self.ref is None and Path(self.path).is_dir():
            return Parent("base", str(Path(self.path).resolve()), adapters.folder_digest(self.path))
        return self.parent("base")


def find_model(name: str, registry: Registry, role: Role | Sequence[Role], above: tuple[str, ...] = ()) -> ModelSource:
    """Resolve a registry reference (verified, role checked), a local folder, or a hub name, in that order.

    An adapter brings its base with it, found in the same way and compared with the one that it was trained on.

    Args:
        above: the adapters whose base this is, for bases that are adapters too.

    Raises:
        RegistryError: a reference that does not resolve, has another role, or whose files do not match.
        ModelError: a folder without a model; an adapter whose base has changed.
    """
    if registry.is_reference(name):
        version = registry.load(name, role=role)
        source = ModelSource(str(version.path), version.ref, version.digest)
        return _with_base(source, version.manifest, registry, above) if version.manifest.base else source
    path = os.path.expanduser(name)  # as a string: a Path would rename ./model
    local = Path(path)
    if local.is_dir():
        whole = any((local / file).is_file() for file in ("config.json", ENSEMBLE))
        if problem := foreign.quantization(local) if whole else foreign.about_folder(local):
            raise ModelError(f"{name}: {problem}")
        return ModelSource(path)
    if local.is_file():
        raise ModelError(f"{name}: {foreign.about_file(local)}")
    if foreign.is_path(name):
        raise ModelError(
            f"{name}: no such folder; give a registry reference, a folder with config.json and safetensors weights, or "
            "a hub name (owner/name)"
        )
    if "@" in name or "/" not in name:
        _resolve(name, registry)
    return ModelSource(name)


def _resolve(name: str, registry: Registry) -> None:
    """Raise with the nearest names; a hub name has a slash and no @."""
    try:
        registry.resolve(name)
    except RegistryError as error:
        if "@" in name:
            raise
        raise RegistryError(
            f"{error}; nor is it a folder here, and a hub name has an owner, as in openai-community/gpt2"
        ) from error


def _with_base(source: ModelSource, manifest: Manifest, registry: Registry, above: tuple[str, ...]) -> ModelSource:
    """A published adapter with the very base that its manifest names, and how it was trained."""
    recorded = manifest.base
    assert recorded is not None
    if source.label in above:  # a base without a digest, as a hub's, lets a forged manifest close a ring
        raise ModelError(
            f"{source.label} is an adapter on itself: one of the manifests of {', '.join(above)} is forged"
        )
    if len(above) >= MAX_ADAPTERS:
        raise ModelError(
            f"{above[0]}: more than {MAX_ADAPTERS} adapters on each other; export it merged and import that"
        )
    pinned = recorded.ref
    if registry.is_reference(pinned) and recorded.digest:
        pinned = f"{pinned.partition('@')[0]}@{recorded.digest}"
    try:
        base = find_model(pinned, registry, role="policy", above=(*above, source.label))
    except UserError as error:
        raise ModelError(f"{source.label} is an adapter on {recorded.ref}, which cannot be found: {error}") from error
    if base.as_base().digest != recorded.digest:
        raise ModelError(f"{source.label} is an adapter on {recorded.ref}, whose weights have changed since")
    model = (manifest.config or {}).get("model")
    known: dict[str, Any] = model if isinstance(model, dict) else {}
    keys = ("method", "adapter", "quantization", "merge", "dtype")
    trained = validate(ModelConfig, {"name": recorded.ref} | {k: known[k] for k in keys if k in known}, source.label)
    return replace(source, base=base, trained=trained)


# --- tokenizers ----------------------------------------------------------------------------------------------------


def load_tokenizer(source: ModelSource | str, config: ModelConfig | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer beside a model, as its maker published it, with the end tokens of its generation config
    (`alignment.templates.ends`) and a chat template.

    `model.pad_token`, `model.eos_token` and `model.template` say otherwise; a pad token is added to the vocabulary
    where it is not in it (`fit_embeddings` then grows the model). Without one, padding is EOS: masks come from lengths.

    Raises:
        ModelError: no EOS and nothing in its place; `model.eos_token` is no token.
        TemplateError: no chat template.
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
    """The folder or hub name whose files list the end tokens: an adapter's own where it has them, else its base's."""
    own = Path(source.path) / "generation_config.json"
    return source.path if source.base is None or own.is_file() else files_with_config(source.base)


def pad_apart_from_ends(tokenizer: PreTrainedTokenizerBase) -> None:
    """Give the tokenizer of a reward model a pad token that no answer ends with.

    Plain transformers reads a score at the last token that is not padding, which it knows by its id: with pad = EOS it
    would read the token before the end. A token of the vocabulary is taken, so that nothing grows: one that is special
    already and that the chat template does not write, else the byte 0xFF, which no UTF-8 text has.

    Raises:
        ModelError: there is none.
    """
    ends = end_token_ids(tokenizer)
    if tokenizer.pad_token_id not in ends:
        return
    template = str(tokenizer.chat_template or "")
    special = [
        (number, token.content)
        for number, token in sorted(tokenizer.added_tokens_decoder.items())
        if token.special and number not in ends and token.content not in template
        and token.content not in (tokenizer.bos_token, tokenizer.cls_token)
    ]  # fmt: skip
    likely = [text for _, text in special if "pad" in text.lower() or "reserved" in text.lower()]
    others = [text for _, text in special]
    vocabulary = tokenizer.get_vocab()
    bytes_ = [text for text in ("<0xFF>", "\u00ff") if text in vocabulary]  # SentencePiece's, and byte-level BPE's
    found = next(iter((*likely, *others, *bytes_)), None)
    if found is None:
        raise ModelError(
            f"the tokenizer pads with {tokenizer.pad_token!r}, which ends an answer, and has no other special token; "
            f"set model.pad_token, for example '{PAD}'"
        )
    tokenizer.add_special_tokens({"pad_token": found})


def fit_embeddings(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Grow the embeddings where the tokenizer has more tokens than the model, and write pad and ends on its configs.

    New rows are the mean of the old ones, without the noise that transformers adds: an adapter is put on a base that
    was grown again, and must find it as it was.
    """
    known = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > known:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        for layer in filter(None, (model.get_input_embeddings(), model.get_output_embeddings())):
            with zero3.gathered(layer.weight), torch.no_grad():
                layer.weight[known:] = layer.weight[:known].mean(dim=0)
    ends = end_token_ids(tokenizer)
    for config in filter(None, (model.config, getattr(model, "generation_config", None))):
        config.pad_token_id = tokenizer.pad_token_id
        config.eos_token_id = ends[0] if len(ends) == 1 else list(ends)


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
    tokens = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    return transformers.LlamaForCausalLM(scratch_shape(shape, len(tokenizer), **tokens))


def scratch_shape(shape: ScratchConfig, vocab_size: int, **tokens: int) -> transformers.LlamaConfig:
    """The architecture of `scratch:llama`."""
    return transformers.LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_hidden_layers,
        num_attention_heads=shape.num_attention_heads,
        num_key_value_heads=shape.num_attention_heads,
        max_position_embeddings=shape.max_position_embeddings,
        tie_word_embeddings=True,
        **{"bos_token_id": None, **tokens},
    )


def load_policy(source: ModelSource | str, config: ModelConfig | None = None) -> PreTrainedModel:
    """A causal language model from a folder or hub name, in `model.dtype`, float32 by default; an adapter merged.

    With a config that says so the weights are quantized, which only an adapter can be trained on.

    Raises:
        ModelError: no model there, one without all of its weights, or a reward model.
        AdapterError: an adapter that does not fit its base.
    """
    if isinstance(source, ModelSource) and source.base:
        policy = _merged(source, bool(config and config.trust_remote_code))
        if config and config.quantized:
            with adapters.as_folder(policy) as folder:
                policy = load_policy(folder, config)
                policy.name_or_path = ""  # gone in a moment; PEFT would look there when it saves
                return policy
        return policy.to(getattr(torch, config.dtype)) if config else policy
    policy = load_weights(AutoModelForCausalLM, source, config)[0]
    # With tied embeddings nothing is missing: a reward model would pass for a policy and talk nonsense.
    if any("ForSequenceClassification" in name for name in policy.config.architectures or ()):
        path = source if isinstance(source, str) else source.path
        raise ModelError(f"{path}: a reward model; name a policy, as python -m sft makes it")
    return policy


def load_base(source: ModelSource, config: ModelConfig | None = None) -> PreTrainedModel:
    """The model under a published adapter, with as many tokens as the adapter was trained with."""
    assert source.base
    base = load_policy(source.base, config)
    trusted = ModelConfig(name=source.label, trust_remote_code=bool(config and config.trust_remote_code))
    fit_embeddings(base, load_tokenizer(source, trusted))
    return base


def load_base_as_trained(source: ModelSource, trust_remote_code: bool = False) -> PreTrainedModel:
    """The weights that a published adapter was trained on, in float32: rounded, or quantized, as they were then."""
    assert source.base and source.trained
    base = load_base(source, source.trained.model_copy(update={"trust_remote_code": trust_remote_code}))
    return adapters.dequantize(base) if source.trained.quantized else base.float()


def _merged(source: ModelSource, trust_remote_code: bool) -> PreTrainedModel:
    """A published adapter on its base, as one whole model in float32.

    Merged onto weights that were quantized and brought back to float32, it is the very model that was trained; onto
    the original ones its logits are off by 0.08 and within 4 bits by 0.11 (NF4, a small Llama).
    """
    assert source.base and source.trained
    with zero3.whole_models(), _quiet():
        if source.trained.merge == "original":
            base = load_base(source, ModelConfig(name=source.base.label, trust_remote_code=trust_remote_code))
        else:
            base = load_base_as_trained(source, trust_remote_code)
        return adapters.merge(base, source.path)


def _quantization(config: ModelConfig | None) -> dict[str, Any]:
    """`from_pretrained` arguments that quantize with bitsandbytes, on the CPU too.

    Raises:
        ModelError: bitsandbytes is not installed.
    """
    if config is None or not config.quantized:
        return {}
    if find_spec("bitsandbytes") is None:
        raise ModelError(
            "quantized weights need bitsandbytes, which is not installed: "
            "pip install 'rlhf-alignment-suite[quantization]'"
        )
    return {
        "quantization_config": BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16 if torch.cuda.is_available() else torch.float32,
        )
    }


def load_weights(
    kind: type, source: ModelSource | str, config: ModelConfig | None, may_be_new: str = "", **options: Any
) -> tuple[PreTrainedModel, bool]:
    """`from_pretrained`, refusing what transformers lets pass: it draws weights that are missing or do not fit at
    random and goes on. Also returns whether one whose name `may_be_new` (a regular expression) was missing."""
    path = source if isinstance(source, str) else source.path
    with _loading(path), _quiet():
        model, info = kind.from_pretrained(  # type: ignore[attr-defined]
            path,
            dtype=getattr(torch, config.dtype if config else "float32"),
            use_safetensors=True,
            trust_remote_code=bool(config and config.trust_remote_code),
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **_quantization(config),
            **options,
        )
    if getattr(model, "is_quantized", False) and not (config and config.quantized):  # from the hub: see `find_model`
        raise ModelError(f"{path}: its weights are stored quantized, which cannot be trained; name the original")
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            # In eval mode bitsandbytes would rewrite the weights for such CPUs, rounding their scales to bfloat16: the
            # base would not be the one that is on record any more, nor what it is merged onto.
            module.support_avx512bf16_for_cpu = False
    new = {name for name in info["missing_keys"] if re.fullmatch(may_be_new, name)}
    wrong = sorted((set(info["missing_keys"]) - new) | {name for name, *_ in info["mismatched_keys"]})
    if wrong:
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise ModelError(
            f"{path}: not a whole {type(model).__name__}: {wrong[0]}{more} missing or of another shape than "
            "config.json says; name another model"
        )
    return model, bool(new)


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


# --- helpers -------------------------------------------------------------------------------------------------------


def num_parameters(path: str) -> int | None:
    """Parameters of a model folder, or of all members of an ensemble in it, read from the headers of its safetensors
    files; None for a hub name.

    Raises:
        ModelError: a damaged file.
    """
    total = 0
    for file in [*Path(path).glob("*.safetensors"), *Path(path).glob("member-*/*.safetensors")]:
        with _loading(path), safe_open(file, framework="pt") as tensors:
            total += sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118
    return total or None


def check_finite(folder: Path) -> None:
    """Refuse weights with a NaN or an infinity in them: a model that diverged says nothing, and looks like any other.

    Raises:
        ModelError: names the first such tensor.
    """
    for file in sorted(folder.rglob("*.safetensors")):
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
    except UserError:  # says it in one line already
        raise
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        if "trust_remote_code" in str(error):
            raise ModelError(
                f"{path}: brings Python code of its own; read it, and set model.trust_remote_code=true to run it"
            ) from error
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
