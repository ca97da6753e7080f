"""GGUF files: what comes out is what llama.cpp's converter put in, or the file is refused in one line."""

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from helpers import gguf_files, tiny
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from alignment.errors import UserError
from alignment.models.importing.model import import_model
from alignment.models.policies import load_policy
from alignment.models.sources import find_model
from alignment.registry import Registry, Version, provenance

pytest.importorskip("gguf")
IDS = torch.arange(40).view(2, 20)
CHAT = [{"role": "user", "content": "When does it open on 24 May?"}]


@pytest.fixture(autouse=True)
def _no_git(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "code_state", lambda: None)


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "registry")


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tiny.make_tokenizer()


def make(kind: str, vocab: int, **changes: Any) -> Any:
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(
        kind,
        **{
            "vocab_size": vocab,
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 512,
            "head_dim": 16,
            "rope_parameters": {"rope_type": "default", "rope_theta": 50000.0},
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": True,
            "bos_token_id": None,
            "pad_token_id": 0,
            **changes,
        },
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.mul_(10.0 if weight.dim() == 2 else 1.0)
            if name.endswith("bias"):
                weight.normal_()
    return model


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


def imported(registry: Registry, file: Path) -> tuple[Version, Any]:
    version, left_out = import_model(str(file), "theirs", registry)
    assert left_out == []
    return version, AutoModelForCausalLM.from_pretrained(version.path)


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-5 * float(expected.abs().max()), rtol=0)


SHORT_FACTORS, LONG_FACTORS = [1.0 + n / 8 for n in range(8)], [2.0 + n for n in range(8)]
LONG = {
    "rope_parameters": {
        "rope_type": "longrope",
        "rope_theta": 50000.0,
        "short_factor": SHORT_FACTORS,
        "long_factor": LONG_FACTORS,
        "original_max_position_embeddings": 16,
        "attention_factor": 1.5,
    }
}
LONG_KEYS = {
    "rope.scaling.original_context_length": 16,
    "rope.scaling.attn_factor": 1.5,
    "rope.dimension_count": 16,
    "tensors": {
        "rope_factors_short.weight": np.array(SHORT_FACTORS, np.float32),
        "rope_factors_long.weight": np.array(LONG_FACTORS, np.float32),
    },
}
GEMMA2 = {
    "sliding_window": 4,
    "head_dim": 32,
    "attn_logit_softcapping": 20.0,
    "final_logit_softcapping": 10.0,
    "query_pre_attn_scalar": 256,
}
GEMMA2_KEYS = {
    "attention.sliding_window": 4,
    "attention.key_length": 32,
    "attention.value_length": 32,
    "attn_logit_softcapping": 20.0,
    "final_logit_softcapping": 10.0,
}
GEMMA3 = {
    "sliding_window": 4,
    "head_dim": 32,
    "num_hidden_layers": 6,
    "rope_parameters": {
        "full_attention": {"rope_type": "linear", "rope_theta": 500000.0, "factor": 8.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
    },
}
GEMMA3_KEYS = {
    "attention.sliding_window": 4,
    "attention.key_length": 32,
    "attention.value_length": 32,
    "rope.scaling.type": "linear",
    "rope.scaling.factor": 8.0,
}


@pytest.mark.parametrize(
    ("kind", "changes", "keys"),
    [
        ("llama", {}, {}),
        ("llama", {"tie_word_embeddings": False, "head_dim": 32}, {}),
        ("qwen2", {}, {}),
        ("qwen3", {"head_dim": 32}, {"attention.key_length": 32}),  # which transformers does not read; it takes 128
        ("phi3", {"sliding_window": 4}, {"attention.sliding_window": 4, "rope.dimension_count": 16}),
        ("phi3", {"tie_word_embeddings": False}, {"attention.sliding_window": 0, "rope.dimension_count": 16}),
        ("phi3", LONG, LONG_KEYS),
        ("gemma2", GEMMA2, GEMMA2_KEYS),
        ("gemma3", GEMMA3, GEMMA3_KEYS),
    ],
)
def test_a_float_file_is_the_model_that_was_written(
    registry: Registry, tokenizer: Any, tmp_path: Path, kind: str, changes: dict[str, Any], keys: dict[str, Any]
) -> None:
    model = make("gemma3_text" if kind == "gemma3" else kind, len(tokenizer), **changes)
    tensors = keys.get("tensors")
    said = {f"{kind}.{key}": value for key, value in keys.items() if key != "tensors"}
    file = gguf_files.write(tmp_path / "m.gguf", model, tokenizer, architecture=kind, keys=said, tensors=tensors)
    version, found = imported(registry, file)
    close(logits(found), logits(model))
    config = json.loads((version.path / "config.json").read_bytes())
    assert config["rms_norm_eps"] == 1e-5 and config["dtype"] == "float32"
    assert config["rope_parameters"] == model.config.rope_parameters and "quantization_config" not in config
    origin = version.manifest.origin
    assert origin is not None and (origin.license, origin.converted) == ("mit", True)
    torch.testing.assert_close(logits(load_policy(find_model("theirs", registry, "policy"))), logits(found))


def test_blocks_are_dequantized_as_transformers_does_it(registry: Registry, tokenizer: Any, tmp_path: Path) -> None:
    file = gguf_files.write(tmp_path / "m.gguf", make("llama", len(tokenizer)), tokenizer, quantized=True)
    _, found = imported(registry, file)
    own = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="m.gguf", dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    )
    close(logits(found), logits(own))
    difference = float((logits(found) - logits(make("llama", len(tokenizer)))).abs().max())
    assert difference > 1e-4  # it was rounded indeed


def test_a_half_file_keeps_its_type(registry: Registry, tokenizer: Any, tmp_path: Path) -> None:
    model = make("llama", len(tokenizer))
    version, found = imported(registry, gguf_files.write(tmp_path / "m.gguf", model, tokenizer, half=True))
    assert json.loads((version.path / "config.json").read_bytes())["dtype"] == "float16"
    assert found.dtype == torch.float16
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(weight.half() if weight.dim() > 1 else weight)
    close(logits(found.float()), logits(model))


def test_tokenizer_template_and_every_end_are_kept(registry: Registry, tokenizer: Any, tmp_path: Path) -> None:
    start = tokenizer.convert_tokens_to_ids("<|im_start|>")
    keys = {"tokenizer.ggml.eot_token_id": start}
    file = gguf_files.write(tmp_path / "m.gguf", make("llama", len(tokenizer)), tokenizer, keys=keys)
    version, found = imported(registry, file)
    theirs = AutoTokenizer.from_pretrained(version.path)
    assert (theirs.pad_token, theirs.eos_token, len(theirs)) == ("<|pad|>", "<|im_end|>", len(tokenizer))
    assert theirs.chat_template == tokenizer.chat_template
    said = tokenizer.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True)
    assert theirs(said)["input_ids"] == tokenizer(said)["input_ids"]
    assert found.generation_config.eos_token_id == [tokenizer.eos_token_id, start]
    assert found.generation_config.pad_token_id == found.config.pad_token_id == tokenizer.pad_token_id


def test_digits_are_parted_where_the_file_says_so(registry: Registry, tokenizer: Any, tmp_path: Path) -> None:
    from tokenizers import pre_tokenizers

    file = gguf_files.write(tmp_path / "m.gguf", make("llama", len(tokenizer)), tokenizer, pre="smollm")
    version, _ = imported(registry, file)
    splitter = AutoTokenizer.from_pretrained(version.path).backend_tokenizer.pre_tokenizer
    expected = pre_tokenizers.Sequence(  # as SmolLM2's own tokenizer.json has it
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    assert splitter.pre_tokenize_str("In 2024: 3 4x") == expected.pre_tokenize_str("In 2024: 3 4x")


LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def llama3_factors(width: int) -> np.ndarray:
    """As llama.cpp's converter computes them: 1 for short waves, `factor` for long ones, smooth between."""
    factors = []
    for wave in 2 * np.pi * LLAMA3["rope_theta"] ** (np.arange(0, width, 2) / width):
        if wave < 8192 / 4:
            factors.append(1.0)
        elif wave > 8192:
            factors.append(8.0)
        else:
            smooth = (8192 / wave - 1) / (4 - 1)
            factors.append(1 / ((1 - smooth) / 8.0 + smooth))
    return np.array(factors, dtype=np.float32)


@pytest.mark.parametrize(
    ("rope", "keys", "tensors"),
    [
        (LLAMA3, {}, {"rope_freqs.weight": llama3_factors(16)}),
        (
            {"rope_type": "linear", "rope_theta": 50000.0, "factor": 4.0},
            {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0},
            {},
        ),
        (
            {
                "rope_type": "yarn",
                "rope_theta": 50000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 128,
            },
            {
                "llama.rope.scaling.type": "yarn",
                "llama.rope.scaling.factor": 4.0,
                "llama.rope.scaling.original_context_length": 128,
            },
            {},
        ),
    ],
)
def test_scaled_positions_are_read(
    registry: Registry, tokenizer: Any, tmp_path: Path, rope: Any, keys: Any, tensors: Any
) -> None:
    """transformers' reading passes over them in silence."""
    model = make("llama", len(tokenizer), rope_parameters=dict(rope))
    file = gguf_files.write(tmp_path / "m.gguf", model, tokenizer, keys=keys, tensors=tensors)
    _, found = imported(registry, file)
    plain = make("llama", len(tokenizer), rope_parameters={"rope_type": "default", "rope_theta": rope["rope_theta"]})
    close(logits(found), logits(model))
    assert float((logits(plain) - logits(model)).abs().max()) > 1e-3
    assert found.config.rope_parameters == rope


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keys": {"llama.logit_scale": 0.5}}, r"its key llama\.logit_scale \(0\.5\) is not understood"),
        ({"keys": {"llama.rope.scaling.type": "su"}}, "positions are scaled by 'su'"),
        ({"tensors": {"rope_freqs.weight": np.full(8, 3.0, np.float32)}}, "not Llama 3's"),
        ({"tensors": {"blk.0.attn_q.bias": np.ones(64, np.float32)}}, "some would be dropped"),
        ({"pre": "deepseek-coder"}, "split by the rule 'deepseek-coder'"),
        ({"keys": {"split.count": 3, "split.no": 1}}, r"part 2 of 3 of one model.*llama-gguf-split --merge"),
        ({"keys": {"general.type": "adapter"}}, "GGUF of type adapter"),
        ({"keys": {"llama.block_count": 3}}, "is missing or of another shape"),
        ({"architecture": "rwkv7"}, "architecture 'rwkv7', which transformers cannot read.*llama, qwen2"),
        ({"architecture": "t5"}, "t5 is an encoder and a decoder"),
    ],
)
def test_what_would_be_another_model_is_refused(
    registry: Registry, tokenizer: Any, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    file = gguf_files.write(tmp_path / "m.gguf", make("llama", len(tokenizer)), tokenizer, **options)
    with pytest.raises(UserError, match=message) as caught:
        import_model(str(file), "theirs", registry)
    assert "\n" not in str(caught.value) and str(file) in str(caught.value)
    assert registry.names() == []


def test_what_is_no_whole_gguf_file_is_refused(registry: Registry, tokenizer: Any, tmp_path: Path) -> None:
    file = gguf_files.write(tmp_path / "m.gguf", make("llama", len(tokenizer)), tokenizer)
    whole = file.read_bytes()
    for length in (40, 2000, len(whole) // 2, len(whole) - 4096):
        file.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"a damaged or cut-off GGUF file .*download it again") as caught:
            import_model(str(file), "theirs", registry)
        assert "\n" not in str(caught.value)
    for content in (b"", b"version https://git-lfs.github.com/spec/v1\n"):
        file.write_bytes(content)
        with pytest.raises(UserError, match="not a GGUF file"):
            import_model(str(file), "theirs", registry)


def test_without_the_extra_it_is_named(
    registry: Registry, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = gguf_files.write(tmp_path / "m.gguf", make("llama", len(tokenizer)), tokenizer)
    monkeypatch.setattr("alignment.models.importing.gguf.find_spec", lambda name: None)
    with pytest.raises(UserError, match=re.escape("pip install 'rlhf-alignment-suite[gguf]'")):
        import_model(str(file), "theirs", registry)


def test_a_model_larger_than_memory_is_refused_before_it_is_read(
    registry: Registry, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = gguf_files.write(tmp_path / "m.gguf", make("llama", len(tokenizer)), tokenizer)
    import psutil

    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 1000})())
    with pytest.raises(UserError, match="of memory are free"):
        import_model(str(file), "theirs", registry)


def test_a_gguf_file_where_a_model_is_named_says_import_it(registry: Registry, tokenizer: Any, tmp_path: Path) -> None:
    (tmp_path / "alone").mkdir()
    file = gguf_files.write(tmp_path / "alone" / "m.gguf", make("llama", len(tokenizer)), tokenizer)
    line = re.escape(f"import it first: alignment models import {file} NAME")
    for name in (str(file), str(file.parent)):
        with pytest.raises(UserError, match=line):
            find_model(name, registry, "policy")
    with pytest.raises(UserError, match=line):
        import_model(str(file.parent), "theirs", registry)


REAL = os.environ.get("ALIGNMENT_TEST_GGUF", "")


@pytest.mark.slow
@pytest.mark.skipif(not Path(REAL).is_file(), reason="ALIGNMENT_TEST_GGUF names no GGUF file of SmolLM2-135M-Instruct")
def test_a_real_file_answers(registry: Registry) -> None:
    file = Path(REAL)
    version, model = imported(registry, file)
    own = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    )
    close(logits(model), logits(own))
    tokenizer = AutoTokenizer.from_pretrained(version.path)
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    asked = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    for text, answer in {
        asked: "The capital of France is Paris.<|im_end|>",
        "The capital of France is": " Paris",
    }.items():
        prompt = tokenizer(text, add_special_tokens=False, return_tensors="pt")
        said = model.generate(**prompt, max_new_tokens=12, do_sample=False)[0]
        assert tokenizer.decode(said[prompt["input_ids"].shape[1] :]).startswith(answer)
