"""`--keys`: every key of a config with its type, default, range and meaning."""

from __future__ import annotations

import subprocess
import sys
from typing import Annotated, Literal

import pytest
from pydantic import Field

from alignment.config.reference import as_text, find_keys, keys
from alignment.config.sections import Section
from alignment.errors import ConfigError
from ppo.config import PPOStageConfig
from reward.config import RewardStageConfig
from sft.config import SFTStageConfig

STAGES = {"sft": SFTStageConfig, "reward": RewardStageConfig, "ppo": PPOStageConfig}


class Part(Section):
    path: str
    """Where it is."""


class Inner(Section):
    size: Annotated[int, Field(ge=1)] | None = None
    """How
    large."""
    rate: Annotated[float, Field(gt=0.0, lt=1.0)] = 1e-6
    kind: Literal["a", "b"] = "a"
    names: tuple[str, ...] = ()
    parts: tuple[Part, ...] = ()


class Outer(Section):
    name: str
    inner: Inner = Inner()


def shown(cls: type[Section] = Outer) -> dict[str, tuple[str, str, str]]:
    return {key.name: (key.kind, key.default, key.about) for key in keys(cls)}


def test_each_key_has_its_path_type_default_and_docstring():
    assert shown() == {
        "name": ("str", "required", ""),
        "inner.size": ("int >= 1", "null", "How large."),
        "inner.rate": ("float > 0, < 1", "1e-6", ""),
        "inner.kind": ("one of a, b", "a", ""),
        "inner.names": ("list of str", "[]", ""),
        "inner.parts": ("list of mapping", "[]", ""),
        "inner.parts[].path": ("str", "required", "Where it is."),
    }


@pytest.mark.parametrize("stage", STAGES)
def test_no_key_of_a_stage_is_without_a_meaning(stage):
    assert [key.name for key in keys(STAGES[stage]) if not key.about] == []


def test_the_stages_defaults_over_those_of_trl_are_keys_too():
    sft, reward = shown(SFTStageConfig), shown(RewardStageConfig)
    assert sft["training.num_train_epochs"][:2] == ("int", "2")
    assert reward["training.num_train_epochs"][:2] == ("int", "1") and "training.members" in reward
    assert "training.members" not in sft


def test_a_prefix_chooses_and_a_wrong_one_names_the_nearest_key():
    assert {key.name for key in find_keys(PPOStageConfig, "ppo.")} == {
        key.name for key in keys(PPOStageConfig) if key.name.startswith("ppo.")
    }
    with pytest.raises(ConfigError, match=r"no key begins with 'kl_coeff'; did you mean 'ppo\.kl_coef'\?"):
        find_keys(PPOStageConfig, "kl_coeff")


def test_an_argument_that_only_trl_has_can_be_asked_for():
    (key,) = find_keys(SFTStageConfig, "training.per_device_train_batch_size")
    assert (key.kind, key.default) == ("int", "8")
    with pytest.raises(ConfigError, match=r"did you mean 'training\.learning_rate'"):
        find_keys(SFTStageConfig, "training.learning_rte")


def test_the_text_fits_a_terminal_of_a_hundred_columns(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    lines = as_text(list(keys(PPOStageConfig)), PPOStageConfig).splitlines()
    assert max(map(len, lines)) <= 100
    assert "ppo.kl_coef  (float >= 0; default 0.05)" in lines


def test_the_command_prints_them_without_torch():
    code = "import sys, ppo.__main__ as p\ntry: p.main(['--keys', 'ppo.'])\nfinally: assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("ppo.advantage_estimator  (one of gae, ")
    assert "training." not in {line.partition(" ")[0] for line in done.stdout.splitlines()}


def test_without_a_prefix_all_keys_are_listed(capsys):
    from sft.__main__ import main

    with pytest.raises(SystemExit) as left:
        main(["--keys"])
    assert left.value.code == 0
    listed = {line.partition(" ")[0] for line in capsys.readouterr().out.splitlines()}
    assert {"name", "model.name", "training.learning_rate", "registry.name"} <= listed


def test_a_prefix_that_matches_nothing_exits_with_2(capsys):
    from ppo.__main__ import main

    with pytest.raises(SystemExit) as left:
        main(["--keys", "pppo."])
    assert left.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
