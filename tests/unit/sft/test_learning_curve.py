"""Shares of the training prompts, and the loss of each held-out row."""

import argparse
from contextlib import nullcontext
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from helpers import tiny

from alignment.config.loading import validate
from alignment.errors import ConfigError
from sft.__main__ import fractions, seeds
from sft.config import SFTStageConfig
from sft.data import IGNORED, row_groups
from sft.studies.learning_curve import _by_prompt, _without_pauses, row_losses, shuffled_groups


def rows_of(*rows):
    """From (prompt ids, answer ids) pairs, the answer trained on."""
    return datasets.Dataset.from_dict(
        {
            "input_ids": [[*prompt, *reply] for prompt, reply in rows],
            "labels": [[IGNORED] * len(prompt) + list(reply) for prompt, reply in rows],
        }
    )


ROWS = rows_of(
    ([5, 6], [7, 8, 2]), ([9], [7, 2]), ([5, 6], [10, 2]), ([5], [6, 7, 2]), ([], [11, 12]), ([], [11, 12, 13])
)


def test_answers_to_one_prompt_are_one_group_and_texts_each_their_own():
    assert row_groups(ROWS) == [0, 1, 0, 2, 3, 4]


def test_a_share_holds_every_smaller_one_and_another_seed_another_share():
    order = shuffled_groups(40, seed=1)
    assert sorted(order) == list(range(40))
    assert order == shuffled_groups(40, seed=1) != shuffled_groups(40, seed=2)


@pytest.mark.parametrize("size", [1, 2, 5, 8])
def test_the_loss_of_each_row_is_that_of_the_row_alone(tokenizer, size):
    """Against a forward of each row by itself, without padding, in whatever batches they went through."""
    policy = tiny.make_policy(tokenizer)
    accelerator = SimpleNamespace(
        process_index=0, num_processes=1, device=torch.device("cpu"), autocast=lambda: nullcontext()
    )
    trainer = SimpleNamespace(
        model_wrapped=policy, args=SimpleNamespace(per_device_eval_batch_size=size), accelerator=accelerator
    )
    found = row_losses(trainer, ROWS, tokenizer.pad_token_id)
    for row, loss in zip(ROWS, found, strict=True):
        with torch.no_grad():
            logits = policy(input_ids=torch.tensor([row["input_ids"]])).logits[0].double()
        shown, expected = row["labels"], 0.0
        for place in range(1, len(shown)):
            if shown[place] != IGNORED:
                expected -= float(logits[place - 1].log_softmax(-1)[shown[place]])
        assert loss == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_rows_of_one_prompt_are_added_up():
    """The first token of a row has none before it to be predicted from: the two texts have one and two trained."""
    held_out = _by_prompt(np.arange(1.0, 7.0)[None, None], ROWS)
    assert held_out.loss.tolist() == [[[1 + 3, 2, 4, 5, 6]]]
    assert held_out.tokens.tolist() == [3 + 2, 2, 3, 1, 2]


def config(**training):
    values = {
        "name": "toy",
        "model": {"name": "scratch:llama"},
        "data": {"train": "d.jsonl"},
        "registry": {"name": "toy"},
        "training": training,
    }
    return validate(SFTStageConfig, values, "test")


def test_shares_are_trained_for_epochs_and_without_evaluations_in_between():
    with pytest.raises(ConfigError, match=r"same number of epochs; set training.max_steps=-1"):
        _without_pauses(config(max_steps=10))
    training = {"max_steps": -1, "early_stopping_patience": 3, "eval_strategy": "steps", "learning_rate": 1e-3}
    assert _without_pauses(config(**training)).training == {
        "max_steps": -1,
        "eval_strategy": "no",
        "learning_rate": 1e-3,
    }


def test_shares_and_seeds_are_checked_on_the_command_line():
    assert fractions("0.25,0.5,1") == [0.25, 0.5, 1.0]
    assert seeds("3") == 3
    for text in ("0.5", "0.5,0.25", "0,1", "0.5,2", "0.5,0.5,1", "nan,1"):
        with pytest.raises(argparse.ArgumentTypeError):
            fractions(text)
    for text in ("0", "11"):
        with pytest.raises(argparse.ArgumentTypeError):
            seeds(text)
