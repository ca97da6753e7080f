"""Folders as people have them: each works, or is refused with one line that says what to do."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from helpers import tiny
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

import alignment.cli.main
from alignment.errors import UserError
from alignment.memory.shapes import ShapeFinder
from alignment.models.importing.model import import_model
from alignment.models.policies import load_policy
from alignment.models.sources import find_model
from alignment.registry import Registry, provenance


@pytest.fixture(autouse=True)
def _no_git(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "code_state", lambda: None)


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "registry")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = tiny.make_tokenizer()
    return tiny.write(tmp_path_factory.mktemp("saved") / "model", tiny.make_policy(tokenizer), tokenizer)


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return shutil.copytree(saved, tmp_path / "theirs")


def change(folder: Path, **keys: Any) -> None:
    config = json.loads((folder / "config.json").read_bytes())
    (folder / "config.json").write_text(json.dumps(config | keys))


def refused(folder: Path, registry: Registry, message: str, *, here: bool = True) -> None:
    """By the import, and where a stage would load the folder itself."""
    asked = [lambda: import_model(str(folder), "theirs", registry)]
    if here:
        asked.append(lambda: find_model(str(folder), registry, "policy"))
    for ask in asked:
        with pytest.raises(UserError, match=message) as caught:
            ask()
        assert "\n" not in str(caught.value) and str(folder) in str(caught.value)
    assert registry.names() == []


def test_sharded_safetensors_come_in(registry: Registry, folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="8KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    import_model(str(folder), "theirs", registry)
    found = load_policy(find_model("theirs", registry, "policy"))
    assert all(torch.equal(a, b) for a, b in zip(found.parameters(), model.parameters(), strict=True))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (("params.json", "consolidated.safetensors", "tekken.json"), r"Mistral's own format .*; get the model in Hugg"),
        (("params.json", "consolidated.00.pth", "tokenizer.model"), r"Meta's own format .*; get the model in Hugging"),
        (("a-Q4.gguf", "a-Q8.gguf"), r"holds 2 GGUF files; choose one and import it first: .*a-Q4\.gguf NAME"),
        (("notes.txt",), r"holds no model \(no config\.json\)"),
    ],
)
def test_what_is_of_another_format_is_named(
    registry: Registry, tmp_path: Path, files: tuple[str, ...], message: str
) -> None:
    (tmp_path / "theirs").mkdir()
    for file in files:
        (tmp_path / "theirs" / file).write_bytes(b"{}")
    refused(tmp_path / "theirs", registry, message)


def test_a_folder_around_the_models_is_told_so(registry: Registry, folder: Path) -> None:
    around = folder.parent / "around"
    around.mkdir()
    folder.rename(around / "inner")
    refused(around, registry, re.escape(f"name the folder in it that does: {around / 'inner'}"))


@pytest.mark.parametrize(
    ("quantization", "message"),
    [
        (
            {"quant_method": "gptq", "bits": 4},
            r"stored quantized \(gptq\).*before it was quantized; model\.method=qlora",
        ),
        ({"quant_method": "awq", "bits": 4}, r"stored quantized \(awq\)"),
        ({"load_in_4bit": True, "quant_method": "bitsandbytes"}, r"stored quantized \(bitsandbytes\)"),
        ({"quant_method": "fp8"}, r"FineGrainedFP8Config\(dequantize=True\)"),
        ({"quant_method": "mxfp4"}, r"Mxfp4Config\(dequantize=True\)"),
    ],
)
def test_weights_that_are_stored_quantized_are_refused(
    registry: Registry, folder: Path, quantization: dict[str, Any], message: str
) -> None:
    change(folder, quantization_config=quantization)
    refused(folder, registry, message)


def test_weights_in_fp8_are_refused(registry: Registry, folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    name = "model.layers.0.self_attn.q_proj.weight"
    save_file(weights | {name: weights[name].to(torch.float8_e4m3fn)}, folder / "model.safetensors", {"format": "pt"})
    refused(folder, registry, f"{name} is in F8_E4M3, which cannot be trained", here=False)


BERT = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 320}


@pytest.mark.parametrize(
    ("config", "name", "message"),
    [
        (transformers.BertConfig(**BERT), "BertForMaskedLM", r"an encoder \(BertForMaskedLM\)"),
        (transformers.BertConfig(**BERT), "BertModel", r"a body without an output layer \(BertModel\)"),
        (
            transformers.T5Config(vocab_size=320, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2),
            "T5ForConditionalGeneration",
            r"an encoder and a decoder \(T5ForConditionalGeneration\)",
        ),
    ],
)
def test_what_writes_no_text_is_refused(
    registry: Registry, tmp_path: Path, config: Any, name: str, message: str
) -> None:
    model = getattr(transformers, name)(config)
    folder = tiny.write(tmp_path / "theirs", model, tiny.make_tokenizer())
    refused(folder, registry, message, here=False)


def test_a_sentence_transformers_folder_is_refused(registry: Registry, folder: Path) -> None:
    (folder / "modules.json").write_text("[]")
    refused(folder, registry, "a sentence-transformers model", here=False)


def test_a_folder_without_a_tokenizer_is_refused(registry: Registry, folder: Path) -> None:
    for file in folder.glob("token*"):
        file.unlink()
    refused(folder, registry, r"holds no tokenizer \(tokenizer\.json, .*copy its files from the original", here=False)


def test_a_file_is_not_taken_for_a_hub_name(registry: Registry, folder: Path, tmp_path: Path) -> None:
    refused(folder / "model.safetensors", registry, re.escape(f"one file of a model; name its folder, {folder}"))
    alone = tmp_path / "alone.safetensors"
    shutil.copyfile(folder / "model.safetensors", alone)
    refused(alone, registry, "weights alone, without config.json")
    (tmp_path / "theirs.tar.gz").write_bytes(b"x")
    refused(tmp_path / "theirs.tar.gz", registry, "an archive; unpack it")
    with pytest.raises(UserError, match=r"nowhere/model: no such folder; give a registry reference"):
        find_model(str(tmp_path / "nowhere" / "model"), registry, "policy")


def test_the_plan_says_the_same(registry: Registry, folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "model.safetensors").rename(folder / "m.gguf")
    for name in (str(folder), str(folder / "m.gguf")):
        with pytest.raises(UserError, match=re.escape(f"alignment models import {folder / 'm.gguf'} NAME")):
            ShapeFinder(registry).find("model.name", name)


def test_home_is_found_wherever_a_model_is_named(
    registry: Registry, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_model("~/theirs", registry, "policy").path == str(folder)
    assert ShapeFinder(registry).find("model.name", "~/theirs").read().model_type == "llama"
    assert import_model("~/theirs", "theirs", registry)[0].number == 1
    done = CliRunner().invoke(alignment.cli.main.app, ["models", "list", "--json", "--registry=~/registry"])
    assert json.loads(done.stdout)["registry"] == str(tmp_path / "registry")
    done = CliRunner().invoke(
        alignment.cli.main.app, ["models", "import", "~/theirs", "theirs", "--registry=~/registry"]
    )
    assert done.exit_code == 0 and done.stdout.startswith("theirs@v2 from")


def test_a_hub_name_without_its_owner_is_explained(registry: Registry) -> None:
    with pytest.raises(UserError, match=r"no model 'gpt2' in the registry .*a hub name has an owner, as in openai-c"):
        find_model("gpt2", registry, "policy")


def test_a_model_without_a_template_is_imported_with_one(tmp_path):
    from helpers import tiny

    from alignment.models.importing.model import import_model
    from alignment.models.tokenizers import load_tokenizer
    from alignment.registry import Registry

    tokenizer = tiny.make_tokenizer()
    tokenizer.chat_template = tokenizer.eos_token = None
    folder = tiny.write(tmp_path / "bare", tiny.make_policy(tiny.make_tokenizer()), tokenizer)
    version, _ = import_model(
        str(folder), "bare", Registry(tmp_path / "registry"), template="plain", eos_token="<|im_end|>"
    )
    loaded = load_tokenizer(str(version.path))
    assert "generation" in loaded.chat_template
    assert loaded.eos_token == "<|im_end|>"
