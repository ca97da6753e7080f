"""A model's tokenizer and template against those of its parent: what counts as another, when it is said, and leave."""

from pathlib import Path
from typing import Any

import pytest
from helpers import tiny
from transformers import AutoTokenizer

from alignment.config.loading import validate
from alignment.config.sections import TrainerConfig
from alignment.errors import UserError
from alignment.models.same_tokenizer import difference
from alignment.models.tokenizers import train_tokenizer
from alignment.registry import Parent, Registry, provenance
from alignment.runs.run import Run
from alignment.training import publishing, start_model


@pytest.fixture(autouse=True)
def _no_git(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "code_state", lambda: None)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = tiny.make_tokenizer()
    return tiny.write(tmp_path_factory.mktemp("saved") / "model", tiny.make_policy(tokenizer), tokenizer)


@pytest.fixture
def house(saved: Path, tmp_path: Path) -> Any:
    registry = Registry(tmp_path / "registry")
    registry.publish("sft", saved, stage="sft", role="policy")
    return registry


def config(registry: Registry, model: dict[str, Any] | None = None, **section: Any) -> TrainerConfig:
    values = {
        "name": "run",
        "model": {"name": "sft", **(model or {})},
        "data": {"train": "rows.jsonl"},
        "registry": {"name": "next", "path": str(registry.path), **section},
        "tracking": {"wandb": "disabled"},
    }
    return validate(TrainerConfig, values, "test")


def again() -> Any:
    return tiny.make_tokenizer()


def test_the_same_tokenizer_differs_in_nothing_whatever_its_pad() -> None:
    ours = again()
    ours.pad_token = "e"
    assert difference(ours, again()) is None


def test_each_kind_of_difference_is_named() -> None:
    other_merges = train_tokenizer(["Which of these do you read? " * 3, "All of them, spaces"] * 9, 320, None)
    assert "tokens" in str(difference(other_merges, again()))
    eos = again()
    eos.eos_token = "!"
    assert "its EOS is '!'" in str(difference(eos, again()))
    assert difference(eos, again(), eos=False, template=False) is None
    without = again()
    without.eos_token = None
    assert difference(again(), without) is None  # an encoder's first EOS
    assert "its EOS" in str(difference(without, again()))
    other = again()
    other.chat_template = "another"
    assert "chat template" in str(difference(other, without))
    template = again()
    template.chat_template += "!"
    assert "chat template" in str(difference(template, again()))
    assert difference(template, again(), template=False) is None
    plain = again()
    plain.chat_template = None
    assert difference(again(), plain) is None  # SFT gives a base model its first one
    assert "chat template" in str(difference(plain, again()))


def test_an_added_token_of_the_probe_is_found() -> None:
    ours = again()
    ours.add_tokens(["4567"])
    assert difference(ours, again()) is not None


def test_a_template_that_refuses_is_compared_by_its_text() -> None:
    ours, theirs = again(), again()
    ours.chat_template = theirs.chat_template = "{{ raise_exception('no') }}"
    assert difference(ours, theirs) is None
    ours.chat_template += " "
    assert difference(ours, theirs) is not None


def test_a_reward_model_that_would_read_another_template_is_refused_before_it_is_trained(house: Registry) -> None:
    changed = {"template": "plain"}
    with pytest.raises(UserError, match=r"not that of sft@v1: its chat template.*allow_new_tokenizer=true"):
        start_model.start_model(config(house, changed), house, (), "reward")
    allowed = config(house, changed, allow_new_tokenizer=True)
    assert start_model.start_model(allowed, house, (), "reward").tokenizer.chat_template
    assert start_model.start_model(config(house, changed), house, (), "sft").tokenizer.chat_template  # SFT settles it


@pytest.mark.parametrize("change", ["template", "eos", "nothing"])
def test_a_folder_with_another_tokenizer_is_not_published(
    house: Registry, saved: Path, tmp_path: Path, change: str
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(saved)
    if change == "template":
        tokenizer.chat_template = "{% for m in messages %}{{ m.content }};{% endfor %}"
    if change == "eos":
        tokenizer.eos_token = "!"
    folder = tiny.write(tmp_path / "trained", tiny.make_policy(again()), tokenizer)
    arguments = {"parents": [Parent("init", "sft@v1")], "data": [], "metrics": {}, "seed": 0, "run": Run()}

    def publish(**section: Any) -> str:
        found = config(house, **section)
        return publishing.publish(found, house, folder, stage="sft", role="policy", **arguments).ref

    if change == "nothing":
        assert publish() == "next@v1"
        return
    with pytest.raises(UserError, match=r"not that of sft@v1"):
        publish()
    assert house.names() == ["sft"]
    assert publish(allow_new_tokenizer=True) == "next@v1"
