"""Flags in Hugging Face's manner are answered with the key; those of `wandb agent` are taken."""

from __future__ import annotations

import pytest

from alignment.config.flags import SAME, overrides_of_flags
from alignment.config.reference import keys
from alignment.errors import ConfigError
from alignment.training.stage import run_stage
from ppo.config import PPOStageConfig
from reward.config import RewardStageConfig
from sft.config import SFTStageConfig

STAGES = {"sft": SFTStageConfig, "reward": RewardStageConfig, "ppo": PPOStageConfig}
OPTIONS = ["--help", "--dry-run", "--overwrite"]


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(
    "words", [["--learning_rate", "1e-5"], ["--learning-rate=1e-5"], ["--training.learning_rate", "1e-5"]]
)
def test_a_flag_is_answered_with_its_key_and_value(stage, words):
    with pytest.raises(
        ConfigError, match=rf"^{words[0].partition('=')[0]} is not .*; write training\.learning_rate=1e-5$"
    ):
        overrides_of_flags(STAGES[stage], ["c.yaml", *words], OPTIONS)


@pytest.mark.parametrize(
    ("stage", "words", "said"),
    [
        ("sft", ["--per_device_train_batch_size=4"], "write training.per_device_train_batch_size=4"),
        ("reward", ["--per_device_train_batch_size", "4"], "write training.per_device_train_batch_size=4"),
        ("ppo", ["--per_device_train_batch_size=4"], "the key for it here is training.microbatch_tokens"),
        ("ppo", ["--kl_coef", "0.1"], "write ppo.kl_coef=0.1"),
        ("sft", ["--output_dir", "x"], "the run folder is <tracking.runs>/<name>"),
        ("ppo", ["--model_name_or_path", "gpt2"], "the key for it here is model.policy"),
        ("sft", ["--learning_rte", "--dry-run"], "did you mean training.learning_rate=VALUE?"),
        ("ppo", ["--gamma=1"], "key ppo.gamma was taken out: responses are not discounted"),
        ("ppo", ["--quack"], "keys of the config are written key=value"),
    ],
)
def test_the_answer_is_the_stages_own(stage, words, said):
    with pytest.raises(ConfigError) as error:
        overrides_of_flags(STAGES[stage], ["c.yaml", *words], OPTIONS)
    assert said in str(error.value)


def test_what_wandb_agent_writes_is_an_override_and_options_stay():
    words = ["c.yaml", "--training.seed=3", "--name=a", "--dry-run", "--over", "data.eval=null"]
    assert overrides_of_flags(SFTStageConfig, words, OPTIONS) == [
        "c.yaml", "training.seed=3", "name=a", "--dry-run", "--over", "data.eval=null",
    ]  # fmt: skip


@pytest.mark.parametrize("flag", SAME)
def test_a_name_of_other_scripts_stands_for_keys_that_exist(flag):
    known = {key.name for cls in STAGES.values() for key in keys(cls)}
    assert set(SAME[flag]) <= known


def test_the_command_exits_with_2_and_one_line(capsys):
    assert run_stage("ppo", PPOStageConfig, None, None, ["c.yaml", "--learning_rate", "1e-5"]) == 2
    assert capsys.readouterr().err == "error: --learning_rate is not an option; write training.learning_rate=1e-5\n"
