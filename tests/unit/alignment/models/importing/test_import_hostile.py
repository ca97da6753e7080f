"""Models made to hang or fill the memory are refused at import and at first use, and the part is named."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from helpers import tiny

from alignment.errors import ModelError
from alignment.models.importing import trial
from alignment.models.importing.foreign import panics
from alignment.models.importing.model import import_model
from alignment.models.importing.trial import check_sizes, check_stranger
from alignment.models.sources import find_model
from alignment.registry import Registry, provenance

LOOPS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
SLOW = "takes more than 1 seconds on a few short texts"
LARGE = "takes more than 2 GiB of memory or writes without end"


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(provenance, "code_state", lambda: None)
    monkeypatch.setattr(trial, "SECONDS", 1.0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = tiny.make_tokenizer()
    return tiny.write(tmp_path_factory.mktemp("saved") / "model", tiny.make_policy(tokenizer), tokenizer)


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return shutil.copytree(saved, tmp_path / "theirs")


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_bytes()) | values))


def in_file(template: str) -> Any:
    return lambda folder: (folder / "chat_template.jinja").write_text(template)


def in_config(template: str) -> Any:
    def put(folder: Path) -> None:
        (folder / "chat_template.jinja").unlink()
        change(folder / "tokenizer_config.json", chat_template=[{"name": "default", "template": template}])

    return put


def split(pattern: str) -> Any:
    rule = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return lambda folder: change(folder / "tokenizer.json", pre_tokenizer=rule)


TRIALS = {
    "loops": (in_file(LOOPS), f"chat_template.jinja {SLOW}"),
    "loops later": (in_file("{% if messages|length > 4 %}" + LOOPS + "{% endif %}"), f"chat_template.jinja {SLOW}"),
    "text": (in_file('{{ "a"*20000000000 }}'), f"chat_template.jinja {LARGE}"),
    "long": (in_file('{{ "a"*20000000 }}'), f"chat_template.jinja {LARGE}, on short texts (20,000,000 characters"),
    "range": (
        in_file("{% for i in range(10**9) %}{% endfor %}"),
        "chat_template.jinja fails on ordinary texts: Overflow",
    ),
    "in the config": (in_config('{{ "a"*20000000000 }}'), "chat_template default of tokenizer_config.json takes more"),
    "pattern": (split("(a+)+$"), "tokenizer.json fails on ordinary texts: PanicException (Onig: Regex search error"),
    "pattern of its own": (split("(q+q+)+w"), "tokenizer.json fails on ordinary texts: PanicException"),
}
SIZES = {
    "layers": (
        {"num_hidden_layers": 10**9},
        "config.json says num_hidden_layers 1,000,000,000, and the weights have 2",
    ),
    "one more": ({"num_hidden_layers": 3}, "config.json says num_hidden_layers 3, and the weights have 2"),
    "width": ({"hidden_size": 10**9}, "config.json says hidden_size 1,000,000,000, and the largest dimension of the"),
    "section": ({"text_config": {"vocab_size": 10**12}}, "says text_config.vocab_size 1,000,000,000,000, and"),
    "experts": ({"num_local_experts": 10**8}, "says num_local_experts 100,000,000, and"),
    "positions": ({"max_position_embeddings": 10**13}, "says max_position_embeddings 10,000,000,000,000, and at most"),
}


@pytest.mark.parametrize("name", TRIALS)
def test_what_hangs_or_fills_the_memory_is_refused_and_named(folder: Path, name: str) -> None:
    damage, expected = TRIALS[name]
    damage(folder)
    with pytest.raises(ModelError) as caught:
        check_stranger(folder, "theirs")
    assert str(caught.value).startswith(f"theirs: {expected}")
    assert str(caught.value).endswith("; it is not safe to use")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", SIZES)
def test_sizes_that_the_weights_do_not_have_are_refused_before_a_model_is_built(folder: Path, name: str) -> None:
    values, expected = SIZES[name]
    change(folder / "config.json", **values)
    with pytest.raises(ModelError, match=r"get the model's own config\.json") as caught:
        check_sizes(folder, "theirs")
    assert expected in str(caught.value)
    with pytest.raises(ModelError, match=r"get the model's own config\.json"):
        find_model(str(folder), Registry(folder.parent / "registry"), "policy")


def test_import_and_a_stage_refuse_them(folder: Path, tmp_path: Path) -> None:
    registry = Registry(tmp_path / "registry")
    in_file('{{ "a"*20000000000 }}')(folder)
    with pytest.raises(ModelError, match=r"chat_template\.jinja takes more"):
        import_model(str(folder), "m", registry)
    with pytest.raises(ModelError, match=r"chat_template\.jinja takes more"):
        find_model(str(folder), registry, "policy")
    assert registry.names() == []
    version, _ = import_model(str(folder), "m", registry, template="chatml")  # its own template is not used
    assert "im_start" in (version.path / "chat_template.jinja").read_text()


def test_what_passed_is_not_tried_again_until_it_changes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_stranger(folder, "theirs")
    monkeypatch.setattr(trial, "_try", lambda *_: pytest.fail("tried again"))
    check_stranger(folder, "theirs")
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}")
    with pytest.raises(pytest.fail.Exception, match="tried again"):
        check_stranger(folder, "theirs")


def test_the_library_panics_in_one_line(saved: Path) -> None:
    from tokenizers import Regex, Tokenizer, pre_tokenizers

    tokenizer = Tokenizer.from_file(str(saved / "tokenizer.json"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("(a+)+$"), "isolated")
    with (
        pytest.raises(ModelError, match=r"^theirs: the tokenizers library fails on its tokenizer\.json: Onig"),
        panics("theirs"),
    ):
        tokenizer.encode("a" * 40 + "!")
    with pytest.raises(KeyboardInterrupt), panics("theirs"):
        raise KeyboardInterrupt
