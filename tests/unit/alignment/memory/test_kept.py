"""Sizes that were measured before: what they are kept under, and that a cache that cannot be used costs time alone."""

from dataclasses import replace

import pytest
import transformers
import trl

from alignment.config.arguments import ArgumentTypes, trainer_arguments
from alignment.config.sections import ModelConfig
from alignment.errors import ConfigError
from alignment.memory import kept, shapes
from alignment.memory.shapes import FoundConfig, sized
from alignment.memory.workload import Model, Shape

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 64}
MODEL = Model(Shape(64, 32, 48, 2, 4, 4, 8), parameters=1000, trained=10, frozen_bytes=0.515625, layers=2)
OPTIONS = ModelConfig(name="x")


@pytest.fixture
def measured(monkeypatch):
    """How often a model is measured, in a process that has measured none."""
    found, measure = [], shapes._measured
    monkeypatch.setattr(shapes, "_sizes", {})
    monkeypatch.setattr(shapes, "_measured", lambda *given: found.append(given) or measure(*given))
    return found


def config(**changes):
    return transformers.AutoConfig.for_model("llama", **SIZES | changes)


def again(monkeypatch):
    """As a later process, which has only the files."""
    monkeypatch.setattr(shapes, "_sizes", {})


def test_a_later_process_reads_the_same_size_and_measures_nothing(measured, monkeypatch):
    options = [OPTIONS, ModelConfig(name="x", method="lora"), ModelConfig(name="x", method="head", last_n_layers=1)]
    first = [sized(config(), each) for each in options] + [sized(config(), OPTIONS, scalar=True)]
    again(monkeypatch)
    assert [sized(config(), each) for each in options] + [sized(config(), OPTIONS, scalar=True)] == first
    assert len(measured) == len(set(first)) == 4


def test_another_config_method_or_kind_is_measured(measured, monkeypatch):
    first = sized(config(), OPTIONS)
    again(monkeypatch)
    assert sized(config(vocab_size=65), OPTIONS).parameters == first.parameters + 2 * 32
    assert sized(config(), OPTIONS, scalar=True).parameters == first.parameters - 64 * 32 + 32
    assert sized(config(), ModelConfig(name="x", method="lora", adapter={"r": 2})).trained < first.trained
    assert len(measured) == 4


def test_another_library_or_other_code_is_another_key(tmp_path, monkeypatch):
    kept.keep(["key"], MODEL)
    assert kept.find(["key"]) == MODEL and kept.find(["other"]) is None
    kept._made_by.cache_clear()
    monkeypatch.setattr(kept, "version", lambda name: "0")
    assert kept.find(["key"]) is None
    monkeypatch.undo()
    kept._made_by.cache_clear()
    code = tmp_path / "alignment" / "memory" / "kept.py"
    code.parent.mkdir(parents=True)
    code.touch()
    own = kept._made_by()
    kept._made_by.cache_clear()
    monkeypatch.setattr(kept, "__file__", str(code))
    assert kept._made_by() != own
    kept._made_by.cache_clear()


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"shape": {}}', '{"shape": {"x": 1}, "parameters": 2}'])
def test_a_damaged_file_is_measured_again(text, tmp_path):
    kept.keep(["key"], MODEL)
    (file,) = (tmp_path / "cache").rglob("*.json")
    file.write_text(text)
    assert kept.find(["key"]) is None
    kept.keep(["key"], replace(MODEL, parameters=5))
    assert kept.find(["key"]).parameters == 5


def test_types_of_trls_arguments_are_read_again_without_the_class_and_refuse_the_same(tmp_path, monkeypatch):
    given = {
        "learning_rate": "high", "learning_rat": 1.0, "max_steps": 0, "bf16": 1, "optim": 5, "warmup_steps": 0.1,
        "lr_scheduler_kwargs": {"a": 1}, "per_device_train_batch_size": 0, "output_dir": "x", "logging_steps": [1],
        "seed": True,
    }  # fmt: skip

    def answers(types):
        return [answer(types, {key: value}) for key, value in given.items()]

    def answer(types, training):
        try:
            return trainer_arguments(types, {}, training)
        except ConfigError as error:
            return str(error)

    first = kept.trl_arguments("SFTConfig")
    assert first == ArgumentTypes.of(trl.SFTConfig)
    monkeypatch.setattr(trl, "SFTConfig", None)
    again = kept.trl_arguments("SFTConfig")
    assert again == first and answers(again) == answers(first)
    assert sum(isinstance(each, str) for each in answers(again)) == 8
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for file in (tmp_path / "cache").rglob("*.json"):
        file.write_text("[1]")
    assert kept.trl_arguments("SFTConfig") == first


def test_without_a_cache_folder_models_are_measured(measured, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null/nowhere")
    first = sized(config(), OPTIONS)
    again(monkeypatch)
    assert sized(config(), OPTIONS) == first and len(measured) == 2
    monkeypatch.setattr(kept, "cache_folder", lambda: None)
    again(monkeypatch)
    assert sized(config(), OPTIONS) == first and len(measured) == 3


def test_the_size_of_a_model_with_code_of_its_own_is_not_kept(measured, monkeypatch):
    given = FoundConfig('{"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config"}}', config)
    first = sized(given, OPTIONS)
    again(monkeypatch)
    assert sized(given, OPTIONS) == first and len(measured) == 2
