"""The trainer against TRL's, and against a gradient of the whole batch worked out pair by pair."""

import math

import pytest
import torch
from datasets import Dataset
from helpers import tiny
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForSequenceClassification, set_seed
from trl import RewardConfig, RewardTrainer

from alignment.data.records import Comparison
from alignment.models.scalar import load_scalar_model
from reward.batches import QuestionCollator, choose_batch_layout, score_questions
from reward.config import RewardSection
from reward.questions import JudgedPair, Question, combine_votes
from reward.trainer import QuestionTrainer

FIRST = [[5, 9, 30, 2], [6, 7, 2], [60, 61, 62, 63, 2], [9, 2], [8, 8, 8, 2], [41, 2], [12, 13, 14, 2], [70, 71, 2]]
SECOND = [[5, 9, 31, 32, 2], [6, 2], [60, 61, 2], [9, 10, 2], [8, 2], [40, 2], [12, 2], [70, 72, 73, 2]]
VOTES = [(1, 0, 0), (5, 1, 0), (0, 3, 0), (0, 0, 2), (1, 0, 0), (2, 1, 4), (0, 1, 0), (7, 0, 0)]
PROMPT = ({"role": "user", "content": "q"},)


def pairs(votes=VOTES):
    """Questions of two completions, each one pair."""
    found = []
    for count, first, second in zip(votes, FIRST, SECOND, strict=True):
        comparison = Comparison(PROMPT, "a", "b", tiny.votes(*count))
        pair = JudgedPair(0, 1, *combine_votes(comparison, 0.0, None), comparison)
        found.append(Question([], [first, second], (pair,)))
    return found


def several():
    """Questions of two to four completions behind a prompt, with margins and weights, and one of a tie alone."""
    comparison = Comparison(PROMPT, "a", "b")
    judged = [
        [(0, 1, 1.0, 1 / 3, 0.5), (2, 1, 0.25, 1 / 3, -0.2), (0, 2, 0.5, 1 / 3, 0.0)],
        [(1, 0, 1.0, 2.0, 0.0)],
        [(0, 1, 0.5, 1.0, 0.0)],
        [(0, 3, 0.0, 0.5, -1.0), (3, 1, 0.75, 0.5, 0.3), (2, 0, 1.0, 0.25, 0.0)],
    ]
    answers = [[[5, 2], [6, 7, 2], [8, 2]], FIRST[:2], SECOND[:2], FIRST[4:]]
    return [
        Question([11, 12, 13 + number], ids, tuple(JudgedPair(*pair, comparison) for pair in row))
        for number, (ids, row) in enumerate(zip(answers, judged, strict=True))
    ]


def arguments(out, per_device, accumulated, **changes):
    return RewardConfig(
        str(out),
        per_device_train_batch_size=per_device,
        gradient_accumulation_steps=accumulated,
        max_steps=1,
        learning_rate=1.0,
        lr_scheduler_type="constant",
        optim="sgd",
        max_grad_norm=0.0,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        max_length=None,
        remove_unused_columns=False,
        **changes,
    )


def one_step(folder, out, tokenizer, questions, per_device=8, accumulated=1, shared=True, settings=None, **changes):
    """Weights after one step of plain gradient descent with learning rate 1, and the trainer."""
    model = load_scalar_model(str(folder)).model
    layout = choose_batch_layout(model, 64)[0] if shared else "padded"
    assert layout == ("packed" if shared else "padded")
    set_seed(0)
    trainer = QuestionTrainer(
        model=model,
        args=arguments(out, per_device, accumulated, **changes),
        settings=RewardSection(**(settings or {})),
        collate=QuestionCollator(layout, tokenizer.pad_token_id),
        train=questions,
        held_out=questions,
        processing_class=tokenizer,
    )
    trainer.train()
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}, trainer


def their_step(folder, out, tokenizer, questions, margins, **changes):
    """The same step by TRL's trainer, which knows pairs of a chosen and a rejected completion."""
    model = load_scalar_model(str(folder)).model
    sides = [[question.prompt_ids + ids for ids in question.completion_ids] for question in questions]
    columns = {"chosen_ids": [row[0] for row in sides], "rejected_ids": [row[1] for row in sides], "margin": margins}
    set_seed(0)
    trainer = RewardTrainer(
        model=model,
        args=arguments(out, 8, 1, **changes),
        train_dataset=Dataset.from_dict(columns),
        processing_class=tokenizer,
    )
    trainer.train()
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


@pytest.mark.parametrize("kind", ["opt", "llama", "gpt2"])
def test_no_kind_of_model_keeps_its_dropout(tmp_path, tokenizer, kind):
    """Layers hold the rate as a module or as a number, which OPT's files have at 0.1."""
    shape = {"opt": {"ffn_dim": 64, "word_embed_proj_dim": 32, "dropout": 0.5}, "llama": {"attention_dropout": 0.5}}
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": len(tokenizer)}
    tokens = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    config = AutoConfig.for_model(kind, num_labels=1, **sizes, **tokens, **shape.get(kind, {}))
    model = AutoModelForSequenceClassification.from_config(config).train()
    ids = torch.arange(3, 23)[None]
    assert not torch.equal(model(input_ids=ids).logits, model(input_ids=ids).logits)
    trainer = QuestionTrainer(
        model=model,
        args=arguments(tmp_path, 8, 1),
        settings=RewardSection(),
        collate=QuestionCollator("padded", tokenizer.pad_token_id),
        train=pairs(),
        processing_class=tokenizer,
    )
    assert torch.equal(trainer.model(input_ids=ids).logits, trainer.model(input_ids=ids).logits)


@pytest.fixture(scope="module")
def folder(tokenizer, tmp_path_factory):
    return tiny.write(tmp_path_factory.mktemp("policy"), tiny.make_policy(tokenizer), tokenizer)


def scores_alone(folder, questions):
    """The model, and the score of each completion: alone, unpadded."""
    scalar = load_scalar_model(str(folder))
    scores = [
        torch.cat([scalar.score(torch.tensor([ids]), torch.ones(1, len(ids)).bool()) for ids in question.sequences])
        for question in questions
    ]
    return scalar, scores


def check_step(after, scalar, loss):
    """One step of gradient descent on `loss`."""
    loss.backward()
    moved = 0.0
    for name, weight in scalar.model.named_parameters():
        torch.testing.assert_close(after[name], weight.detach() - weight.grad, atol=2e-5, rtol=1e-4)
        moved = max(moved, weight.grad.abs().max().item())
    assert moved > 1e-2


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize(("per_device", "accumulated"), [(4, 1), (1, 4), (3, 2)])
def test_the_step_is_the_gradient_of_the_whole_batch_however_it_is_cut(
    folder, tmp_path, tokenizer, per_device, accumulated, shared
):
    questions = several()
    settings = {"label_smoothing": 0.1}
    after, trainer = one_step(
        folder,
        tmp_path,
        tokenizer,
        questions,
        per_device,
        accumulated,
        shared,
        settings,
        center_rewards_coefficient=0.2,
    )
    scalar, scores = scores_alone(folder, questions)
    total, weight = torch.zeros(()), 0.0
    for question, row in zip(questions, scores, strict=True):
        for pair in question.pairs:
            ahead = row[pair.first] - row[pair.second] - pair.margin
            p = 0.1 + 0.8 * pair.target
            loss = -p * F.logsigmoid(ahead) - (1 - p) * F.logsigmoid(-ahead)
            total = total + pair.weight * (loss + 0.2 * (row[pair.first] + row[pair.second]) ** 2)
            weight += pair.weight
    check_step(after, scalar, total / weight)
    assert trainer.state.log_history[0]["loss"] == pytest.approx((total / weight).item(), abs=2e-4)


def test_plain_pairs_train_as_trl_does_margin_and_centering_included(folder, tmp_path, tokenizer):
    questions = pairs([(1, 0, 0)] * 8)
    margins = [0.1 * number for number in range(8)]
    ours_with = [
        Question(q.prompt_ids, q.completion_ids, (JudgedPair(0, 1, 1.0, 1.0, margin, q.pairs[0].comparison),))
        for q, margin in zip(questions, margins, strict=True)
    ]
    ours, _ = one_step(folder, tmp_path, tokenizer, ours_with, center_rewards_coefficient=0.3)
    theirs = their_step(folder, tmp_path, tokenizer, questions, margins, center_rewards_coefficient=0.3)
    without, _ = one_step(folder, tmp_path, tokenizer, questions, center_rewards_coefficient=0.3)
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], atol=1e-5, rtol=1e-4)
    assert max(float((ours[name] - without[name]).abs().max()) for name in ours) > 1e-3


@pytest.mark.parametrize(("per_device", "accumulated"), [(3, 1), (1, 3)])
def test_regression_is_the_squared_error_over_all_ratings(folder, tmp_path, tokenizer, per_device, accumulated):
    given = [((0.5, None, -1.0), (2.0, 0.0, 1.0)), ((1.5, 1.0), (1.0, 1.0)), ((None, -2.0), (0.0, 3.0))]
    answers = [[[5, 2], [6, 7, 2], [8, 2]], FIRST[:2], SECOND[:2]]
    questions = [Question([11], ids, (), *row) for ids, row in zip(answers, given, strict=True)]
    after, trainer = one_step(
        folder, tmp_path, tokenizer, questions, per_device, accumulated, settings={"objective": "regression"},
        eval_strategy="steps", eval_steps=1,
    )  # fmt: skip
    scalar, scores = scores_alone(folder, questions)
    errors = [
        weight * (score - rating) ** 2
        for row, (ratings, weights) in zip(scores, given, strict=True)
        for score, rating, weight in zip(row, ratings, weights, strict=True)
        if rating is not None
    ]
    loss = torch.stack(errors).sum() / 8
    check_step(after, scalar, loss)
    assert trainer.state.log_history[0]["loss"] == pytest.approx(loss.item(), abs=2e-4)
    (row,) = [row for row in trainer.state.log_history if "eval_loss" in row]
    with torch.no_grad():
        now = score_questions(trainer.model, questions, tokenizer.pad_token_id)
    flat = [
        (score - rating, weight)
        for found, (ratings, weights) in zip(now, given, strict=True)
        for score, rating, weight in zip(found, ratings, weights, strict=True)
        if rating is not None
    ]
    assert row["eval_loss"] == pytest.approx(sum(weight * error**2 for error, weight in flat) / 8, rel=1e-3)


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_evaluation_gives_the_weighted_loss_of_the_votes_whatever_the_batches(folder, tmp_path, tokenizer, batch):
    """Without margins, smoothing and centering, and without the rows that fill the last batch."""
    changes = {"eval_strategy": "steps", "eval_steps": 1, "per_device_eval_batch_size": batch}
    _, trainer = one_step(
        folder,
        tmp_path,
        tokenizer,
        pairs(),
        settings={"label_smoothing": 0.2},
        center_rewards_coefficient=0.1,
        **changes,
    )
    (row,) = [row for row in trainer.state.log_history if "eval_loss" in row]
    expected, right, decided, total = 0.0, 0, 0, 0.0
    model = trainer.model.eval()
    for question in pairs():
        (pair,) = question.pairs
        with torch.no_grad():
            first, second = (model(input_ids=torch.tensor([ids])).logits.item() for ids in question.sequences)
        p = pair.target
        expected += pair.weight * (
            p * math.log1p(math.exp(second - first)) + (1 - p) * math.log1p(math.exp(first - second))
        )
        decided += p != 0.5
        right += (first - second) * (p - 0.5) > 0
        total += first + second
    assert row["eval_loss"] == pytest.approx(expected / sum(map(sum, VOTES)), rel=1e-3)
    assert row["eval_accuracy"] == pytest.approx(right / decided)
    assert row["eval_mean_reward"] == pytest.approx(total / 16, abs=1e-3)


def test_the_logged_accuracy_leaves_out_ties_and_batches_of_nothing_else(folder, tmp_path, tokenizer):
    """Rows are shuffled, so what is logged is held against the scores of the same model."""
    votes = [(0, 0, 1)] * 5 + [(1, 0, 0), (0, 1, 0), (0, 2, 0)]
    _, trainer = one_step(folder, tmp_path, tokenizer, pairs(votes), 1, 8)
    with torch.no_grad():
        scores = score_questions(load_scalar_model(str(folder)), pairs(votes), tokenizer.pad_token_id)
    right = [(first > second) == bool(vote[0]) for (first, second), vote in zip(scores[5:], votes[5:], strict=True)]
    logged = [row["accuracy"] for row in trainer.state.log_history if "accuracy" in row]
    assert logged == [pytest.approx(sum(right) / 3)]
    assert trainer.state.log_history[0]["mean_reward"] == pytest.approx(sum(map(sum, scores)) / 16, abs=1e-4)
