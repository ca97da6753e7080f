"""The pair loss and the trainer around it, against torch's own losses, TRL's, and a gradient of the whole batch."""

import math

import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F
from transformers import set_seed
from trl import RewardConfig, RewardTrainer

from alignment.data import Comparison
from alignment.scalar_models import load_scalar_model, set_score_bias
from reward.data import EncodedComparison, PairCollator, as_dataset
from reward.evaluate import score_pairs
from reward.loss import pair_loss
from reward.train import PairTrainer, _finish

scores = st.lists(st.floats(-30, 30, width=32), min_size=3, max_size=3).map(torch.tensor)


def ones(value=1.0):
    return torch.full((3,), value)


@given(scores, scores)
def test_one_vote_each_is_bradley_terry(first, second):
    loss = pair_loss(first, second, ones(), ones(), 3.0)
    torch.testing.assert_close(loss, -F.logsigmoid(first - second).mean())
    reversed_votes = pair_loss(second, first, ones(0.0), ones(), 3.0)
    torch.testing.assert_close(reversed_votes, loss)


@given(scores.map(lambda x: x / 3), scores.map(lambda x: x / 3), st.floats(0, 1))
def test_a_share_of_votes_is_torchs_binary_cross_entropy(first, second, share):
    p = torch.sigmoid((first - second).double())
    expected = F.binary_cross_entropy(p, ones(share).double())
    torch.testing.assert_close(
        pair_loss(first, second, ones(share), ones(), 3.0).double(), expected, atol=1e-4, rtol=1e-3
    )


def test_a_tie_pulls_two_scores_together():
    first = torch.tensor([2.0], requires_grad=True)
    second = torch.tensor([-1.0])
    pair_loss(first, second, torch.tensor([0.5]), torch.tensor([1.0]), 1.0).backward()
    assert first.grad.item() == pytest.approx(1 / (1 + math.exp(-3)) - 0.5)
    assert pair_loss(second, second, torch.tensor([0.5]), torch.tensor([1.0]), 1.0).item() == pytest.approx(math.log(2))


def test_weights_count_pairs_more_than_once():
    first, second = torch.tensor([1.0, -2.0]), torch.tensor([0.5, 1.0])
    weighted = pair_loss(first, second, torch.tensor([1.0, 0.0]), torch.tensor([3.0, 1.0]), 4.0)
    repeated = pair_loss(
        torch.tensor([1.0, 1.0, 1.0, -2.0]),
        torch.tensor([0.5, 0.5, 0.5, 1.0]),
        torch.tensor([1.0, 1, 1, 0]),
        torch.ones(4),
        4.0,
    )
    torch.testing.assert_close(weighted, repeated)


def test_differences_are_taken_in_float32():
    first, second = torch.tensor([9.0, 9.0]).bfloat16(), torch.tensor([8.0, 9.0]).bfloat16()
    loss = pair_loss(first, second, torch.ones(2).bfloat16(), torch.ones(2).bfloat16(), 2.0)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx((math.log1p(math.exp(-1)) + math.log(2)) / 2, rel=1e-6)


# --- in the trainer --------------------------------------------------------------------------------------------------

FIRST = [[5, 9, 30, 2], [6, 7, 2], [60, 61, 62, 63, 2], [9, 2], [8, 8, 8, 2], [41, 2], [12, 13, 14, 2], [70, 71, 2]]
SECOND = [[5, 9, 31, 32, 2], [6, 2], [60, 61, 2], [9, 10, 2], [8, 2], [40, 2], [12, 2], [70, 72, 73, 2]]
VOTES = [(1, 0, 0), (5, 1, 0), (0, 3, 0), (0, 0, 2), (1, 0, 0), (2, 1, 4), (0, 1, 0), (7, 0, 0)]


def pairs(votes=VOTES):
    prompt = ({"role": "user", "content": "q"},)
    return [
        EncodedComparison(Comparison(prompt, "a", "b", tiny.votes(*count)), first, second)
        for count, first, second in zip(votes, FIRST, SECOND, strict=True)
    ]


def one_step(folder, out, tokenizer, per_device, accumulated, cls=PairTrainer, votes=VOTES, **changes):
    """Weights after one step of plain gradient descent with learning rate 1, and the logged loss."""
    model = load_scalar_model(str(folder)).model
    arguments = RewardConfig(
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
    dataset = as_dataset(pairs(votes))
    collator = {"data_collator": PairCollator(tokenizer.pad_token_id)}
    if cls is RewardTrainer:
        dataset, collator = dataset.remove_columns(["target", "weight"]), {}
    set_seed(0)
    trainer = cls(
        model=model,
        args=arguments,
        train_dataset=dataset,
        eval_dataset=dataset,
        processing_class=tokenizer,
        **collator,
    )
    trainer.train()
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}, trainer


@pytest.fixture(scope="module")
def folder(tokenizer, tmp_path_factory):
    return tiny.write(tmp_path_factory.mktemp("policy"), tiny.make_policy(tokenizer), tokenizer)


@pytest.mark.parametrize(("per_device", "accumulated"), [(8, 1), (1, 8), (2, 4), (3, 3)])
def test_the_step_is_the_gradient_of_the_whole_batch_however_it_is_cut(
    folder, tmp_path, tokenizer, per_device, accumulated
):
    after, trainer = one_step(folder, tmp_path, tokenizer, per_device, accumulated)
    scalar = load_scalar_model(str(folder))
    losses = []
    for row in pairs():  # alone, unpadded, each weighted by its votes
        first, second = (
            scalar.score(torch.tensor([ids]), torch.ones(1, len(ids), dtype=torch.bool))
            for ids in (row.first_ids, row.second_ids)
        )
        p = torch.tensor([row.comparison.target])
        loss = -p * F.logsigmoid(first - second) - (1 - p) * F.logsigmoid(second - first)
        losses.append(row.comparison.weight * loss)
    total = torch.cat(losses).sum() / sum(map(sum, VOTES))
    total.backward()
    moved = 0.0
    for name, weight in scalar.model.named_parameters():
        torch.testing.assert_close(after[name], weight.detach() - weight.grad, atol=2e-5, rtol=1e-4)
        moved = max(moved, weight.grad.abs().max().item())
    assert moved > 1e-2
    assert trainer.state.log_history[0]["loss"] == pytest.approx(total.item(), abs=2e-4)


def test_plain_pairs_train_as_trl_does_centering_included(folder, tmp_path, tokenizer):
    votes = [(1, 0, 0)] * 8
    ours, _ = one_step(folder, tmp_path, tokenizer, 8, 1, votes=votes, center_rewards_coefficient=0.3)
    theirs, _ = one_step(folder, tmp_path, tokenizer, 8, 1, RewardTrainer, votes=votes, center_rewards_coefficient=0.3)
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], atol=1e-5, rtol=1e-4)


def test_evaluation_in_between_gives_the_weighted_loss(folder, tmp_path, tokenizer):
    """`training.eval_strategy` may be set; one batch holds all pairs, so the mean over batches is the whole."""
    _, trainer = one_step(folder, tmp_path, tokenizer, 8, 1, eval_strategy="steps", eval_steps=1)
    (row,) = [row for row in trainer.state.log_history if "eval_loss" in row]
    scalar_loss = 0.0
    model = trainer.model.eval()
    for pair in pairs():
        with torch.no_grad():
            first, second = (
                model(input_ids=torch.tensor([ids])).logits.item() for ids in (pair.first_ids, pair.second_ids)
            )
        p = pair.comparison.target
        scalar_loss += pair.comparison.weight * (
            p * math.log1p(math.exp(second - first)) + (1 - p) * math.log1p(math.exp(first - second))
        )
    assert row["eval_loss"] == pytest.approx(scalar_loss / sum(map(sum, VOTES)), rel=1e-3)
    assert 0 <= row["eval_accuracy"] <= 1


def test_the_logged_accuracy_leaves_out_ties_and_batches_of_nothing_else(folder, tmp_path, tokenizer):
    """Rows are shuffled, so what is logged is held against the scores of the same model."""
    votes = [(0, 0, 1)] * 5 + [(1, 0, 0), (0, 1, 0), (0, 2, 0)]
    _, trainer = one_step(folder, tmp_path, tokenizer, 1, 8, votes=votes)
    with torch.no_grad():
        scores = score_pairs(load_scalar_model(str(folder)), pairs(votes), tokenizer.pad_token_id)
    right = [(first > second) == bool(vote[0]) for (first, second), vote in zip(scores[5:], votes[5:], strict=True)]
    logged = [row["accuracy"] for row in trainer.state.log_history if "accuracy" in row]
    assert logged == [pytest.approx(sum(right) / 3)]


def test_published_scores_average_zero_wherever_the_run_started(folder, tmp_path, tokenizer):
    """A reward model of earlier may be gone on with: its scores are shifted already."""
    scalar = load_scalar_model(str(folder))
    set_score_bias(scalar.model, 1.5)
    out = tiny.write(tmp_path / "trained", scalar.model, tokenizer)
    biases = [_finish(out, None, None, pairs(), [], tokenizer.pad_token_id, 1)["score_bias"] for _ in range(2)]
    scores = score_pairs(load_scalar_model(str(out)), pairs(), tokenizer.pad_token_id)
    assert sum(score for pair in scores for score in pair) == pytest.approx(0.0, abs=1e-4)
    assert biases[0] == pytest.approx(biases[1], abs=1e-5)
