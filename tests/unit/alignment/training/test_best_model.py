"""Which evaluation is the best one, when to stop, and what is refused, with a trainer that only remembers its saves."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from peft import LoraConfig
from transformers import TrainerControl, TrainerState
from trl import SFTConfig

from alignment.config.arguments import BestModelArguments, trainer_arguments
from alignment.errors import ConfigError
from alignment.runs.journal import Journal
from alignment.training.arguments import check_best_model_arguments
from alignment.training.best_model import BestModel, published_step

NAN = float("nan")


def evaluate(tmp_path, values, metric=None, greater_is_better=None, name="eval_loss", report=None, **arguments):
    """Feed one evaluation a step until told to stop; (the callback, steps at which the model was saved, last step)."""
    state, control, saved = TrainerState(), TrainerControl(), []

    def save_model(folder):
        Path(folder).mkdir()
        saved.append(state.global_step)

    trainer = SimpleNamespace(
        args=SimpleNamespace(metric_for_best_model=metric, greater_is_better=greater_is_better),
        state=state,
        save_model=save_model,
    )
    best = BestModel(
        trainer, BestModelArguments(**arguments), tmp_path / "best", Journal(tmp_path, enabled=False), report
    )
    for value in values:
        state.global_step += 1
        state.log_history.append({"step": state.global_step, name: value})
        best.on_evaluate(trainer.args, state, control)
        if control.should_training_stop:
            break
    return best, saved, state.global_step


def test_the_model_is_saved_at_each_new_lowest_loss(tmp_path):
    best, saved, _ = evaluate(tmp_path, [3.0, 2.0, 2.0, 2.5, 1.0, 1.5])
    assert (saved, best.step) == ([1, 2, 5], 5)


@pytest.mark.parametrize(
    ("metric", "greater", "expected"),
    [("accuracy", None, 3), ("eval_accuracy", None, 3), ("accuracy", True, 3), ("accuracy", False, 1)],
)
def test_another_figure_is_better_when_greater_unless_said_otherwise(tmp_path, metric, greater, expected):
    best, *_ = evaluate(tmp_path, [0.2, 0.3, 0.9, 0.4], metric, greater, name="eval_accuracy")
    assert best.step == expected


def test_a_figure_that_is_no_number_is_never_the_best(tmp_path):
    best, saved, _ = evaluate(tmp_path, [NAN, 2.0, NAN, 3.0])
    assert (saved, best.step) == ([2], 2)
    best, saved, last = evaluate(tmp_path, [NAN, NAN, NAN], early_stopping_patience=2)
    assert (saved, best.step, last) == ([], None, 2)


def test_the_rows_that_choose_nothing_report_each_new_best_model(tmp_path):
    """While it is in memory; it has to outlive a resume, too."""
    reports = iter([0.3, 0.2, 0.1])
    best, saved, _ = evaluate(tmp_path, [3.0, 2.0, 2.5, 1.0, 1.5], report=lambda: next(reports))
    assert (saved, best.reported, best.evaluations, best.is_chosen) == ([1, 2, 4], 0.1, 5, True)
    again, *_ = evaluate(tmp_path, [])
    again.load_state_dict(best.state_dict())
    assert (again.reported, again.evaluations, again.step) == (0.1, 5, 4)


@pytest.mark.parametrize(("losses", "chosen"), [([1.0], False), ([NAN, 1.0], True), ([NAN, NAN], False)])
def test_one_evaluation_is_no_choice(tmp_path, losses, chosen):
    assert evaluate(tmp_path, losses)[0].is_chosen is chosen


@pytest.mark.parametrize(
    ("losses", "patience", "threshold", "last"),
    [
        ([3, 2, 2.1, 1.9, 1.95, 1.96, 0], 2, 0.0, 6),
        ([3, 2, 2.1, 0], 1, 0.0, 3),
        ([3, 2.95, 2.9, 2.85, 0], 2, 0.1, 3),  # better each time, but by too little
        ([3, 2.8, 2.6, 2.4], 2, 0.1, 4),
    ],
)
def test_training_stops_after_so_many_evaluations_without_a_better_one(tmp_path, losses, patience, threshold, last):
    arguments = {"early_stopping_patience": patience, "early_stopping_threshold": threshold}
    best, _, stopped = evaluate(tmp_path, losses, **arguments)
    assert stopped == last
    assert losses[best.step - 1] == min(losses[:last])


def test_transformers_stops_at_the_same_evaluation(tmp_path):
    """Its own callback, fed as its Trainer feeds it: the best figure moves after the callback has looked."""
    import numpy as np
    from transformers import EarlyStoppingCallback

    rng = np.random.default_rng(0)
    for _ in range(200):
        losses = rng.normal(size=12).round(1).tolist()
        patience, threshold = int(rng.integers(1, 4)), float(rng.choice([0.0, 0.3]))
        theirs = EarlyStoppingCallback(patience, threshold)
        state, control, last = TrainerState(), TrainerControl(), len(losses)
        args = SimpleNamespace(metric_for_best_model="loss", greater_is_better=False)
        for number, loss in enumerate(losses, 1):
            theirs.on_evaluate(args, state, control, {"eval_loss": loss})
            if state.best_metric is None or loss < state.best_metric:
                state.best_metric = loss
            if control.should_training_stop:
                last = number
                break
        arguments = {"early_stopping_patience": patience, "early_stopping_threshold": threshold}
        assert evaluate(tmp_path, losses, **arguments)[2] == last


def test_an_unknown_figure_names_those_there_are(tmp_path):
    with pytest.raises(ConfigError, match=r"metric_for_best_model=bleu: .*; there are loss"):
        evaluate(tmp_path, [1.0], metric="bleu")


def test_the_last_model_is_evaluated_where_it_was_not():
    asked = []
    history = [{"step": 4, "eval_loss": 1.0}, {"step": 6, "loss": 1.0}]
    trainer = SimpleNamespace(
        state=SimpleNamespace(global_step=6, log_history=history), evaluate=lambda: asked.append(6)
    )
    assert published_step(trainer, None) == 6
    assert published_step(trainer, SimpleNamespace(step=4)) == 4
    assert asked == [6]
    history.append({"step": 6, "eval_loss": 2.0})
    assert published_step(trainer, SimpleNamespace(step=None)) == 6
    assert asked == [6]


@pytest.mark.parametrize(
    ("training", "no_eval", "message"),
    [
        ({"load_best_model_at_end": True}, True, "load_best_model_at_end needs held-out rows; set data.eval"),
        ({"early_stopping_patience": 2}, True, "early_stopping_patience needs held-out rows"),
        ({"early_stopping_patience": 2, "eval_strategy": "no"}, False, "set training.eval_strategy=epoch"),
        ({"early_stopping_threshold": 0.1}, False, "is only for training.early_stopping_patience"),
        (
            {"early_stopping_patience": 2, "load_best_model_at_end": False},
            False,
            "take training.load_best_model_at_end=false out",
        ),
    ],
)
def test_what_cannot_work_is_refused(training, no_eval, message):
    merged = trainer_arguments(SFTConfig, {"eval_strategy": "epoch"}, training)
    with pytest.raises(ConfigError, match=message):
        check_best_model_arguments(merged, no_eval)


@pytest.mark.parametrize(
    ("training", "message"),
    [
        ({"early_stopping_patience": 0}, "expected 1 or more"),
        ({"early_stopping_patience": 1.5}, "expected int | None"),
        ({"early_stopping_threshold": -1}, "expected 0 or more"),
        ({"early_stoping_patience": 1}, "did you mean 'training.early_stopping_patience'"),
    ],
)
def test_values_are_checked_like_every_other_argument(training, message):
    with pytest.raises(ConfigError) as caught:
        trainer_arguments(SFTConfig, {}, training)
    assert message in str(caught.value)


def test_a_config_class_without_a_trainer_knows_nothing_of_them():
    with pytest.raises(ConfigError, match=r"'model.adapter.early_stopping_patience': LoraConfig has no such argument"):
        trainer_arguments(LoraConfig, {}, {"early_stopping_patience": 1}, {}, "model.adapter")
