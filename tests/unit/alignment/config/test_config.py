"""Configs: what a user types wrong is answered by one line that holds the right thing to type."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from alignment.config.arguments import trainer_arguments
from alignment.config.loading import load_config, validate
from alignment.config.sections import ModelConfig, Positive, Section, TrainerConfig
from alignment.errors import ConfigError

MINIMAL = {
    "name": "a",
    "model": {"name": "m"},
    "data": {"train": "d.jsonl"},
    "registry": {"name": "a"},
}
TEXT = """
name: a
model: {name: m}
data:
  train: d.jsonl
registry: {name: a}
training:
  learning_rate: 1e-5
"""


class Inner(Section):
    rate: Positive = 1.0
    count: int = 1


class Outer(Section):
    name: str = "x"
    inner: Inner = Inner()
    names: dict[str, str] = Field(default_factory=dict)


def load(tmp_path, text, *overrides, cls=TrainerConfig):
    path = tmp_path / "c.yaml"
    path.write_text(text, encoding="utf-8")
    return load_config(cls, path, overrides)


def message(tmp_path, text, *overrides, cls=TrainerConfig):
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text, *overrides, cls=cls)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "number"),
    [("1e-5", 1e-5), ("1E+3", 1000.0), ("2.5e4", 2.5e4), (".5", 0.5), ("-3e2", -300.0), ("1_000", 1000), ("7", 7)],
)
def test_a_number_is_a_number(tmp_path, text, number):
    value = load(tmp_path, TEXT, f"training.learning_rate={text}").training["learning_rate"]
    assert value == number
    assert type(value) is type(number)


@pytest.mark.parametrize("text", ["v1e5x", "1.2.3", "e5", "sft-v3", "'1e-5'", "."])
def test_a_word_stays_a_word(tmp_path, text):
    assert load(tmp_path, TEXT, f"data.train={text}").data.train == text.strip("'")


def test_digits_are_a_name_where_a_name_is_wanted(tmp_path):
    config = load(tmp_path, TEXT, "name=12345", "model.name=2024", "data.eval=7", "data.max_length=9")
    assert (config.name, config.model.name, config.data.eval, config.data.max_length) == ("12345", "2024", "7", 9)


def test_home_is_found_in_the_file_and_in_overrides(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/ada")
    text = TEXT.replace("registry: {name: a}", "registry: {name: a, path: ~/registry}")
    config = load(tmp_path, text, "data.train=[{path: ~/a.jsonl, weight: 2}]", "model.name=~/m", "data.eval=~x")
    assert config.data.parts[0].path == "/home/ada/a.jsonl"
    assert (config.registry.path, config.model.name) == ("/home/ada/registry", "/home/ada/m")
    assert config.data.eval == "~x"  # no path


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_any_float_comes_back_as_python_prints_it(number):
    from alignment.config.yaml_text import parse_yaml

    assert parse_yaml(repr(number), "x") == number


def test_overrides_reach_into_sections_that_the_file_does_not_have(tmp_path):
    config = load(
        tmp_path,
        TEXT,
        "data.columns={prompt: question}",
        "data.eval=null",
        "tracking.wandb=disabled",
        "model.name=scratch:llama",
        "model.scratch.hidden_size=32",
        "training.max_steps=3",
    )
    assert config.data.columns == {"prompt": "question"}
    assert config.data.eval is None
    assert config.tracking.wandb == "disabled"
    assert config.model.scratch.hidden_size == 32
    assert config.training == {"learning_rate": 1e-5, "max_steps": 3}


def test_an_empty_training_section_is_no_arguments(tmp_path):
    assert load(tmp_path, TEXT.replace("  learning_rate: 1e-5", "")).training == {}


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["data.max_lenght=5"], ["unknown key 'data.max_lenght'", "did you mean 'data.max_length'"]),
        (["max_length=5"], ["unknown key 'max_length'", "did you mean 'data.max_length'"]),
        (["zzz=5"], ["unknown key 'zzz'", "name, data, registry"]),
        (["data.max_length=five"], ["data.max_length", "integer", "'five'"]),
        (["data.max_length=0"], ["data.max_length", "1", "found 0"]),
        (["data.eval_share=1"], ["data.eval_share", "less than 1"]),
        (["data.max_bad_share=.nan"], ["data.max_bad_share", "finite"]),
        (["name=Has Space"], ["name", "'Has Space'"]),
        (["data=x"], ["data", "'x'"]),
        (["training=5"], ["training", "found 5"]),
        (["name.first=5"], ["'name' is a value, not a section"]),
        (["nonsense"], ["'nonsense' is not an override", "key=value"]),
        (["data.zz=1", "data.yy=2"], ["(and 1 more)"]),
        (["model={}"], ["'model.name' is missing"]),
    ],
)
def test_mistakes_name_the_path_what_was_found_and_the_fix(tmp_path, overrides, parts):
    found = message(tmp_path, TEXT, *overrides)
    assert found.startswith(str(tmp_path)) or "overr" in found or "not a section" in found
    for part in parts:
        assert part in found


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ('name: a\ndata: "\\ud800"\n', "c.yaml:2: half a character in '\\ud800'; take it out"),
        ("name: a\nname: b\n", "c.yaml:2: key 'name' stands twice"),
        ("data:\n  train: x\n  eval: y\n  train: z\n", "c.yaml:4: key 'train' stands twice"),
        ("name: {{ run }}\n", "c.yaml:1: a key must be a word"),
        ("name: [\n", "not valid YAML"),
        ("name: 2024-13-45\n", "not valid YAML: month must be in 1..12"),
        ("name: \x00\n", "not valid YAML"),
        ("name: !!python/object/apply:os.system [id]\n", "not valid YAML"),
        ("- a\n- b\n", "found a list"),
        ("", "'name' is missing"),
    ],
)
def test_bad_files_are_one_line_too(tmp_path, text, part):
    assert part in message(tmp_path, text)


def test_a_file_that_is_no_text_or_not_there(tmp_path):
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00n")
    with pytest.raises(ConfigError, match=r"b\.yaml: cannot be read as UTF-8"):
        load_config(Outer, tmp_path / "b.yaml")
    with pytest.raises(ConfigError, match=r"no config file at .*missing\.yaml"):
        load_config(Outer, tmp_path / "missing.yaml")


def test_a_config_cannot_be_changed():
    config = validate(TrainerConfig, MINIMAL, "x")
    with pytest.raises(ValueError, match="frozen"):
        config.name = "b"
    with pytest.raises(ValueError, match="frozen"):
        config.data.train = "b"


@dataclasses.dataclass
class Arguments:
    learning_rate: float = 1.0
    max_steps: int = -1
    num_train_epochs: float = 3.0
    seed: int = 42
    per_device_train_batch_size: int = 8
    packing_strategy: str = "bfd"
    bf16: bool | None = None
    schedule: str = "linear"
    kwargs: dict | str | None = None
    output_dir: str | None = None
    derived: int = dataclasses.field(init=False, default=0)


def test_a_scratch_size_for_a_model_that_exists_is_refused_when_the_config_is_read():
    with pytest.raises(
        ConfigError, match=r"scratch is only for name=scratch:llama, found name=help-desk-sft; add model\.scratch=null"
    ):
        validate(ModelConfig, {"name": "help-desk-sft", "scratch": {}}, "file.yaml")
    assert validate(ModelConfig, {"name": "scratch:llama", "scratch": {}}, "file.yaml").scratch is not None


def test_trainer_arguments_lie_over_the_defaults():
    merged = trainer_arguments(Arguments, {"learning_rate": 0.5, "max_steps": 7}, {"max_steps": 9, "bf16": None})
    assert trainer_arguments(Arguments, {}, {"max_steps": -1}) == {"max_steps": -1}
    assert merged == {"learning_rate": 0.5, "max_steps": 9, "bf16": None}
    assert trainer_arguments(Arguments, {}, {"learning_rate": 1, "kwargs": {"a": 1}}) == {
        "learning_rate": 1,
        "kwargs": {"a": 1},
    }


@pytest.mark.parametrize(
    ("training", "part"),
    [
        ({"learning_rat": 1.0}, "did you mean 'training.learning_rate'"),
        ({"derived": 1}, "unknown key 'training.derived'"),
        ({"output_dir": "x"}, "training.output_dir is set by the suite: the run folder"),
        ({"learning_rate": "1e-5"}, "training.learning_rate: expected float, found '1e-5'"),
        ({"max_steps": True}, "expected int, found True"),
        ({"max_steps": 1.5}, "expected int, found 1.5"),
        ({"max_steps": None}, "expected int, found None"),
        ({"bf16": 1}, "found 1"),
        ({"max_steps": 0}, "training.max_steps: expected more than 0, found 0"),
        ({"num_train_epochs": 0}, "training.num_train_epochs: expected more than 0, found 0"),
        ({"seed": -1}, "training.seed: expected 0 or more, found -1"),
        ({"seed": 2**32}, "training.seed: expected less than 2**32, found"),
        ({"per_device_train_batch_size": 0}, "training.per_device_train_batch_size: expected 1 or more"),
        ({"learning_rate": float("nan")}, "training.learning_rate: expected 0 or more"),
        ({"packing_strategy": "wrapped"}, "training.packing_strategy is set by the suite: rows are packed whole"),
        ({"schedule": 3}, "expected str, found 3"),
    ],
)
def test_trainer_arguments_are_checked_against_the_class(training, part):
    with pytest.raises(ConfigError) as caught:
        trainer_arguments(Arguments, {}, training)
    assert part in str(caught.value)


def test_what_the_suite_owns_are_real_arguments_of_trl():
    """A name that TRL drops must leave the list, and one that make_arguments sets must be in it."""
    import trl

    from alignment.config.arguments import OWNED_ARGUMENTS

    names = {field.name for cls in (trl.SFTConfig, trl.RewardConfig) for field in dataclasses.fields(cls)}
    assert set(OWNED_ARGUMENTS) <= names
    assert {"output_dir", "report_to", "save_strategy", "disable_tqdm", "use_cpu", "hub_token"} <= set(OWNED_ARGUMENTS)
