"""Adapters on adapters: rings and endless chains are refused; and how far an adapter is from other models."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file
from unit.alignment.models.test_methods import house, publish, settings, trained_folder  # noqa: F401 - house is a fixture

from alignment.errors import ModelError
from alignment.models import sources
from alignment.models.diff import compare_weights
from alignment.models.export import export
from alignment.models.policies import load_policy
from alignment.models.sources import find_model
from alignment.registry import Parent


def adapter(house, tokenizer, name, seed=1):  # noqa: F811
    folder = house.tmp / f"run-{name}"
    trained_folder(folder, load_policy(house.base), tokenizer, settings("lora"), seed)
    return publish(house.registry, name, folder, house.base, settings("lora"))


def test_a_ring_of_adapters_is_one_line(house, tokenizer):  # noqa: F811
    first = adapter(house, tokenizer, "a")
    ring = {"stage": "sft", "role": "policy", "config": first.manifest.config}
    house.registry.publish("b", house.tmp / "run-a", base=Parent("base", "a@v2"), **ring)  # a@v2 is still to come
    house.registry.publish("a", house.tmp / "run-a", base=Parent("base", "b@v1"), **ring)
    with pytest.raises(ModelError, match="is an adapter on itself") as caught:
        find_model("a@v2", house.registry, "policy")
    assert "\n" not in str(caught.value)


def test_a_chain_ends_somewhere(house, tokenizer, monkeypatch):  # noqa: F811
    adapter(house, tokenizer, "a1")
    for number in (2, 3):
        source = find_model(f"a{number - 1}", house.registry, "policy")
        publish(house.registry, f"a{number}", house.tmp / "run-a1", source, settings("lora"))
    assert find_model("a3", house.registry, "policy").base.base.base.ref == "base@v1"
    monkeypatch.setattr(sources, "MAX_ADAPTERS", 2)
    with pytest.raises(ModelError, match="more than 2 adapters on each other"):
        find_model("a3", house.registry, "policy")


def test_adapters_on_one_base_are_compared_as_files_and_against_a_whole_model_merged(house, tokenizer):  # noqa: F811
    one, two = adapter(house, tokenizer, "one"), adapter(house, tokenizer, "two", seed=2)
    files = [load_file(version.path / "adapter_model.safetensors") for version in (one, two)]
    found = compare_weights(one, two, house.registry)
    assert (found["compared"], found["merged"]) == ("adapters", [])
    apart = math.sqrt(sum(float((files[1][name] - files[0][name]).norm()) ** 2 for name in files[0]))
    size = math.sqrt(sum(float(value.norm()) ** 2 for value in files[0].values()))
    assert found["relative"] == pytest.approx(apart / size, rel=1e-6)

    export("one", house.tmp / "merged", house.registry)
    base = house.registry.resolve("base")
    whole = compare_weights(base, one, house.registry)
    assert (whole["compared"], whole["merged"]) == ("weights", ["one@v1"])
    before, after = load_file(base.path / "model.safetensors"), load_file(house.tmp / "merged" / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    assert not torch.equal(before[name], after[name])
    own = [key for key in before if key.startswith("model.layers.0.")]
    apart = math.sqrt(sum(float((after[key] - before[key]).norm()) ** 2 for key in own))
    size = math.sqrt(sum(float(before[key].norm()) ** 2 for key in own))
    assert whole["layers"]["model.layers.0"]["relative"] == pytest.approx(apart / size, rel=1e-5)
    assert whole["layers"]["model.embed_tokens"]["relative"] == 0.0


def test_the_readme_of_an_export_says_what_it_is_of(house, tokenizer):  # noqa: F811
    version = adapter(house, tokenizer, "tuned")
    export("tuned", house.tmp / "out", house.registry)
    readme = (house.tmp / "out" / "README.md").read_text()
    assert readme.startswith("# tuned@v1") and f"Exported from tuned@v1 (`{version.digest}`)" in readme
    assert "higher by" not in readme  # that is for reward models
    config = json.loads((house.tmp / "out" / "config.json").read_bytes())
    assert config["architectures"] == ["LlamaForCausalLM"]
