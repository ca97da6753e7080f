"""A folder with an adapter alone: published beside its base, it is the model that PEFT makes of the two."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import peft
import pytest
import torch
from helpers import tiny
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

import alignment.cli.main
from alignment.config.sections import ModelConfig
from alignment.errors import UserError
from alignment.models.export import export
from alignment.models.importing.model import import_model
from alignment.models.policies import load_policy
from alignment.models.sources import find_model
from alignment.models.tokenizers import load_tokenizer
from alignment.models.trainable import continues, load_trainable
from alignment.registry import Registry, provenance

IDS = torch.arange(40).view(2, 20)
KINDS = {
    "lora": lambda **more: peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], **more),
    "rslora": lambda **more: peft.LoraConfig(r=4, use_rslora=True, target_modules=["q_proj"], **more),
    "dora": lambda **more: peft.LoraConfig(r=4, use_dora=True, target_modules=["q_proj"], **more),
    "ia3": lambda **more: peft.IA3Config(target_modules=["k_proj"], feedforward_modules=[], **more),
}


@pytest.fixture(autouse=True)
def _no_git(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "code_state", lambda: None)


@pytest.fixture
def house(tmp_path: Path) -> SimpleNamespace:
    tokenizer = tiny.make_tokenizer()
    base = tiny.write(tmp_path / "base", tiny.make_policy(tokenizer), tokenizer)
    return SimpleNamespace(registry=Registry(tmp_path / "registry"), base=base, tmp=tmp_path, tokenizer=tokenizer)


def train(house: SimpleNamespace, config: peft.PeftConfig, named: str = "") -> Path:
    """What PEFT's save_pretrained leaves: no tokenizer, the base by the name that it was loaded by."""
    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(house.base), config)
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.add_(0.05 * torch.randn_like(weight))
    model.save_pretrained(house.tmp / "adapter")
    (house.tmp / "adapter" / "README.md").unlink()
    if named:
        rename(house, base_model_name_or_path=named)
    return house.tmp / "adapter"


def rename(house: SimpleNamespace, **keys: Any) -> None:
    file = house.tmp / "adapter" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_bytes()) | keys))


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-5 * float(expected.abs().max()), rtol=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("task", ["CAUSAL_LM", None])
def test_it_is_what_peft_makes_of_it(house: SimpleNamespace, kind: str, task: Any) -> None:
    folder = train(house, KINDS[kind](task_type=task))
    expected = logits(peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(house.base), folder))
    version, left_out = import_model(str(folder), "theirs", house.registry)
    assert left_out == [] and "model.safetensors" not in version.manifest.files
    assert version.manifest.base is not None and version.manifest.base.ref == str(house.base)
    source = find_model("theirs", house.registry, "policy")
    close(logits(load_policy(source)), expected)
    assert source.trained is not None and source.trained.method == kind
    assert load_tokenizer(source).get_vocab() == house.tokenizer.get_vocab()
    export("theirs", house.tmp / "out", house.registry)
    close(logits(AutoModelForCausalLM.from_pretrained(house.tmp / "out")), expected)


def test_a_gguf_file_is_not_written_and_the_way_is_named(house: SimpleNamespace) -> None:
    import_model(str(house.base), "theirs", house.registry)
    with pytest.raises(UserError, match=r"name a folder, and run llama\.cpp's convert_hf_to_gguf\.py on it"):
        export("theirs", house.tmp / "out.gguf", house.registry)


def test_its_base_is_pinned_and_found_in_the_registry_by_the_hub_name_that_was_imported(
    house: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **options: str(house.base))
    base, _ = import_model("some/model", "base", house.registry)
    import_model(str(train(house, KINDS["lora"](), "some/model")), "theirs", house.registry)
    recorded = house.registry.resolve("theirs").manifest.base
    assert recorded is not None and (recorded.ref, recorded.digest) == (base.ref, base.digest)


def test_training_goes_on_with_it_only_where_its_settings_are_the_same(house: SimpleNamespace) -> None:
    folder = train(house, KINDS["lora"]())
    expected = logits(peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(house.base), folder))
    import_model(str(folder), "theirs", house.registry)
    source = find_model("theirs", house.registry, "policy")
    same = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}
    assert continues(source, ModelConfig(name="theirs", method="lora", adapter=same))
    assert not continues(source, ModelConfig(name="theirs", method="lora"))
    for settings in ({"adapter": same}, {}):  # as SFT and PPO take it up: itself, or merged under a new one
        config = ModelConfig(name="theirs", method="lora", **settings)
        close(logits(load_trainable(source, load_tokenizer(source), config)), expected)


def test_pickled_adapter_weights_are_written_anew(house: SimpleNamespace) -> None:
    folder = train(house, KINDS["lora"]())
    expected = logits(peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(house.base), folder))
    torch.save(load_file(folder / "adapter_model.safetensors"), folder / "adapter_model.bin")
    (folder / "adapter_model.safetensors").unlink()
    version, left_out = import_model(str(folder), "theirs", house.registry)
    assert left_out == [] and version.manifest.origin is not None and version.manifest.origin.converted
    close(logits(load_policy(find_model("theirs", house.registry, "policy"))), expected)


def test_what_cannot_be_put_on_a_base_is_one_line(house: SimpleNamespace) -> None:
    folder = train(house, KINDS["lora"](), "someone/gone")

    def refused(message: str, **options: Any) -> None:
        with pytest.raises(UserError, match=message) as caught:
            import_model(str(folder), "theirs", house.registry, **options)
        assert "\n" not in str(caught.value)
        assert house.registry.names() == []

    refused(r"its base someone/gone cannot be used .*name it with --base REF")
    refused(r"its base nothing cannot be used .*no model 'nothing'", base="nothing")
    refused(r"adapter: does not fit its base .*other \(.*with --base REF", base=str(other_model(house)))
    rename(house, base_model_name_or_path=None)
    refused("names no base; add --base REF")
    rename(house, peft_type="PREFIX_TUNING")
    refused("an adapter of type PREFIX_TUNING; expected LORA")
    rename(house, peft_type="LORA", task_type="SEQ_CLS")
    refused("an adapter for SEQ_CLS; merge it")
    (folder / "adapter_model.safetensors").unlink()
    rename(house, task_type="CAUSAL_LM")
    refused(r"no adapter_model\.safetensors", base=str(house.base))
    with pytest.raises(UserError, match="a whole model, not an adapter; leave --base out"):
        import_model(str(house.base), "theirs", house.registry, base="x")


def other_model(house: SimpleNamespace) -> Path:
    shape = tiny.SHAPE.model_copy(update={"hidden_size": 32})
    return tiny.write(house.tmp / "other", tiny.make_policy(house.tokenizer, shape=shape), house.tokenizer)


def test_the_command_takes_the_base(house: SimpleNamespace) -> None:
    folder = train(house, KINDS["lora"](), "someone/gone")
    arguments = ["models", "import", str(folder), "theirs", "--registry", str(house.registry.path)]
    done = CliRunner().invoke(alignment.cli.main.app, [*arguments, "--base", str(house.base)])
    assert done.exit_code == 0, done.output
    shown = CliRunner().invoke(
        alignment.cli.main.app, ["models", "show", "theirs", "--registry", str(house.registry.path)]
    )
    assert str(house.base) in shown.stdout
