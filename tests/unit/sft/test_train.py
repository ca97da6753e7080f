"""What `build_trainer` decides: rows packed or grouped by length, and arguments refused in one line."""

from __future__ import annotations

import json

import pytest
from helpers import tiny
from helpers.architectures import build

from alignment.config.loading import validate
from alignment.errors import ConfigError
from sft.building import build_trainer
from sft.config import SFTStageConfig
from sft.packing import PackingCollator
from sft.plan import plan
from sft.prepare import prepare


@pytest.fixture
def make(tmp_path, monkeypatch, tokenizer):
    """A config over a local model, whose class may be chosen."""
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": f"When is number {n}?", "completion": "It opens at nine."} for n in range(6)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def config(kind="llama", max_length=64, changes=None, **training):
        model = build(kind, vocab_size=len(tokenizer), **(changes or {}))
        tiny.write(tmp_path / "model", model, tokenizer)
        values = {
            "name": "run",
            "model": {"name": "./model"},
            "data": {"train": "rows.jsonl", "eval_share": 0, "max_length": max_length},
            "training": training,
            "registry": {"name": "run"},
            "tracking": {"wandb": "disabled"},
        }
        return validate(SFTStageConfig, values, "test")

    return config


def trainer(config):
    return build_trainer(config, prepare(config))


def test_rows_are_packed_and_drawn_at_random(make):
    built = trainer(make())
    assert isinstance(built.data_collator, PackingCollator)
    assert built.args.train_sampling_strategy == "random"
    assert not built.args.packing  # TRL's own, which would count packed rows and not ours


@pytest.mark.parametrize(
    ("changes", "training"),
    [({}, {"packing": False}), ({}, {"neftune_noise_alpha": 5.0}), ({"sliding_window": 8}, {})],
)
def test_rows_that_are_not_packed_are_grouped_by_length(make, changes, training):
    built = trainer(make("mistral", changes=changes, **training))
    assert not isinstance(built.data_collator, PackingCollator)
    assert built.args.train_sampling_strategy == "group_by_length"


def test_a_sampling_strategy_that_is_asked_for_stays(make):
    built = trainer(make(packing=False, train_sampling_strategy="sequential"))
    assert built.args.train_sampling_strategy == "sequential"


@pytest.mark.parametrize(
    ("changes", "training", "part"),
    [
        ({"sliding_window": 8}, {"packing": True}, "window of 8 tokens is shorter than rows of 64 (data.max_length)"),
        ({}, {"packing": True, "neftune_noise_alpha": 5.0}, "training.neftune_noise_alpha needs padded rows"),
        ({}, {"packing": "yes"}, "training.packing: expected bool | None, found 'yes'"),
        ({}, {"packing_strategy": "wrapped"}, "never attend to each other, as they would under `wrapped`"),
        ({}, {"padding_free": True}, "use `training.packing`"),
        ({}, {"use_liger_kernel": True}, "the loss is in blocks already"),
        ({}, {"activation_offloading": True}, "training.activation_offloading moves activations off the GPU"),
    ],
)
def test_what_does_not_work_is_refused_in_one_line(make, monkeypatch, changes, training, part):
    monkeypatch.setattr("alignment.distributed.processes.on_cpu", lambda: True)
    with pytest.raises(ConfigError) as refusal:
        trainer(make("mistral", changes=changes, **training))
    assert part in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("training", "world_size", "steps"),
    [
        ({"num_train_epochs": 2, "per_device_train_batch_size": 4}, 1, 4),  # 6 rows: two batches an epoch
        ({"num_train_epochs": 3, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}, 1, 6),
        ({"num_train_epochs": 1, "per_device_train_batch_size": 2}, 2, 2),
        ({"num_train_epochs": 0.5, "per_device_train_batch_size": 1}, 1, 3),
        ({"max_steps": 7}, 1, 7),
    ],
)
def test_the_plan_tells_the_optimizer_steps(make, training, world_size, steps):
    assert plan(make(**training), world_size)["optimizer_steps"] == steps


def test_the_plan_agrees_with_the_trainer(make):
    config = make(num_train_epochs=3, per_device_train_batch_size=2, gradient_accumulation_steps=2, logging_steps=1)
    built = trainer(config)
    built.train()
    assert built.state.max_steps == plan(config, 1)["optimizer_steps"]
