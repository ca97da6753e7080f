"""Steps whose loss or gradient is not finite: skipped, and the end of a run that goes on with them."""

from __future__ import annotations

import json
import math

import pytest
import torch
from helpers.architectures import build
from transformers import TrainerCallback

from alignment.errors import CheckpointError, ModelError
from alignment.runs.journal import Journal
from alignment.training.finite_steps import BAD_BATCH, check_weights
from tests.unit.sft.test_trainer import ROWS, make, weights


class Weights(TrainerCallback):
    """The weights, the optimizer's counts and the learning rate before each step."""

    def __init__(self, trainer):
        self.trainer, self.before = trainer, []

    def on_step_begin(self, args, state, control, **kwargs):
        optimizer = self.trainer.optimizer
        counts = [int(each["step"]) for each in optimizer.state.values()]
        self.before.append((weights(self.trainer.model), counts, optimizer.param_groups[0]["lr"]))


def not_a_number(loss):
    return loss * math.nan


def infinite_with_a_finite_gradient(loss):
    return loss + math.inf


def infinite_gradient_of_a_finite_loss(loss):
    loss.register_hook(lambda gradient: gradient * math.inf)
    return loss


def guarded(tmp_path, tokenizer, spoiled, how=not_a_number, packed=True, **arguments):
    """A trainer of 8 steps on 2 rows each, in whose spoiled steps (from 1 on) something happens to the loss."""
    model = build("llama")
    defaults = {
        "per_device_train_batch_size": 2,
        "optim": "adamw_torch",
        "learning_rate": 1e-2,
        "lr_scheduler_type": "linear",
        "max_steps": 8,
    }
    trainer = make(
        tmp_path, tokenizer, model, packed=packed, logging_nan_inf_filter=False, **defaults | arguments
    )  # fmt: skip
    mean_loss = trainer._mean_loss

    def spoil(*given):
        loss = mean_loss(*given)
        return how(loss) if trainer.model.training and trainer.state.global_step + 1 in spoiled else loss

    trainer._mean_loss = spoil
    trainer.guarded = Journal(tmp_path)
    recorded = Weights(trainer)
    trainer.add_callback(recorded)
    return trainer, recorded


def events(tmp_path):
    return [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    "how",
    [not_a_number, infinite_with_a_finite_gradient, infinite_gradient_of_a_finite_loss],
    ids=lambda how: how.__name__,
)
def test_a_step_that_is_not_finite_is_skipped_whole(tmp_path, tokenizer, capsys, how):
    trainer, recorded = guarded(tmp_path, tokenizer, {3, 4}, how)
    trainer.train()
    trainer.check_end()
    steps = [*recorded.before, (weights(trainer.model), None, None)]
    for step in range(1, 9):
        (before, counts, rate), (after, counts_after, rate_after) = steps[step - 1], steps[step]
        same = all(torch.equal(before[name], after[name]) for name in before)
        assert same == (step in (3, 4)), step
        if step in (3, 4):
            assert (counts, rate) == (counts_after, rate_after)
    assert [(row["event"], row["step"], row["in_a_row"]) for row in events(tmp_path)] == [
        ("step_skipped", 3, 1),
        ("step_skipped", 4, 2),
    ]
    assert "warning: step 3: the loss or gradient is not finite; the step is skipped" in capsys.readouterr().err
    logged = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert len(logged) == 6  # those of the steps that were taken
    assert all(map(math.isfinite, logged))
    assert not (tmp_path / BAD_BATCH).exists()


def test_a_logged_mean_is_over_the_steps_that_were_taken(tmp_path, tokenizer):
    rows = {"max_steps": 4, "lr_scheduler_type": "constant", "learning_rate": 0.0, "per_device_train_batch_size": 8}
    whole, _ = guarded(tmp_path / "a", tokenizer, set(), **rows, logging_steps=4)
    skipped, _ = guarded(tmp_path / "b", tokenizer, {2, 3}, **rows, logging_steps=4)
    losses = []
    for trainer in (whole, skipped):
        trainer.train()
        losses += [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


@pytest.mark.parametrize("packed", [True, False])
def test_three_in_a_row_end_the_run_and_name_their_rows(tmp_path, tokenizer, packed):
    trainer, recorded = guarded(tmp_path, tokenizer, {2, 4, 5, 6}, packed=packed)
    with pytest.raises(
        ModelError, match=r"^training diverged: .* steps 4 to 6 .*; lower training\.learning_rate"
    ) as error:
        trainer.train()
    assert str(tmp_path / BAD_BATCH) in str(error.value)
    report = json.loads((tmp_path / BAD_BATCH).read_text())
    assert (report["step"], report["in_a_row"]) == (6, 3)
    (rank,) = report["processes"]
    assert rank["losses"] == ["nan"]
    batch = trainer._batches[0]["input_ids"].flatten().tolist()
    assert len(rank["rows"]) == 2
    for number in rank["rows"]:
        ids = ROWS[number]["input_ids"]
        assert any(batch[start : start + len(ids)] == ids for start in range(len(batch)))
    last = recorded.before[-1][0]
    assert all(torch.equal(last[name], weight) for name, weight in weights(trainer.model).items())


def test_a_run_whose_last_step_was_not_finite_is_not_published(tmp_path, tokenizer):
    trainer, _ = guarded(tmp_path, tokenizer, {8})
    trainer.train()
    with pytest.raises(ModelError, match="training diverged: the loss or gradient of step 8 was not finite"):
        trainer.check_end()


def test_a_checkpoint_is_refused_after_a_step_that_was_not_finite(tmp_path, tokenizer):
    trainer, _ = guarded(tmp_path, tokenizer, {8})
    trainer.check_savable()
    trainer.train()
    with pytest.raises(CheckpointError, match="no checkpoint of step 8"):
        trainer.check_savable()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_not_saved(tokenizer, value):
    model = build("llama")
    check_weights(model)
    with torch.no_grad():
        model.lm_head.weight[3, 2] = value
    with pytest.raises(CheckpointError, match=r"lm_head\.weight are not finite, so this checkpoint is not kept"):
        check_weights(model)
    model.lm_head.weight.requires_grad_(False)  # not trained, so not in a checkpoint
    check_weights(model)


def test_studies_without_a_journal_go_on(tmp_path, tokenizer):
    trainer, _ = guarded(tmp_path, tokenizer, {2, 3, 4})
    trainer.guarded = None
    trainer.train()
    assert trainer.state.global_step == 8
