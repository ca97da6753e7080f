"""The loop: one optimizer step against a gradient written out row by row, and what it reports."""

from __future__ import annotations

import copy

import pytest
import torch
from digits import build_models, prompts_of

import ppo.train
from alignment.models import ModelError
from alignment.tensors import whiten
from ppo.algorithm import estimate_advantages, shape_rewards
from ppo.rollout import Rollout
from ppo.train import _Loop, make_optimizer, rollout_stats

SEED = 3


def no_clipping(**training):
    return {"max_grad_norm": 1e9, **training}


def targets(rollout, config):
    rewards = shape_rewards(rollout.scores, rollout.kl, rollout.response_mask, config.ppo.kl_coef)
    advantages, returns = estimate_advantages(
        rewards, rollout.old_values, rollout.response_mask, config.ppo.gamma, config.ppo.gae_lambda
    )
    return whiten(advantages, rollout.response_mask), returns


def weights(models):
    return {name: value.detach().clone() for name, value in models.trained.named_parameters()}


def gradient(loop, models, rollout, config):
    """What one optimizer step moves the weights by under plain SGD with rate 1."""
    before = weights(models)
    loop._optimizer_step(rollout, *targets(rollout, config), torch.arange(len(rollout)))
    return {name: before[name] - value for name, value in weights(models).items()}


def unit_sgd(parameters):
    return torch.optim.SGD(parameters, lr=1.0)


def assert_same_gradient(found, expected, tolerance=2e-5):
    """The difference of the whole gradients, relative to its length."""
    assert found.keys() == expected.keys()
    difference = sum(((found[name] - expected[name]).double() ** 2).sum() for name in found) ** 0.5
    length = sum((value.double() ** 2).sum() for value in expected.values()) ** 0.5
    assert length > 1e-3
    assert difference / length < tolerance


def written_out_gradient(models, rollout, config):
    """Every row alone, without padding, in float64, from the models' plain forward; the loss by its formula."""
    trained = models.trained.double()
    advantages, returns = targets(rollout, config)
    num_tokens = int(rollout.response_mask.sum())
    width = rollout.input_ids.shape[1] - rollout.num_response
    loss = torch.zeros((), dtype=torch.float64)
    for row in range(len(rollout)):
        prompt = rollout.input_ids[row, :width][rollout.attention_mask[row, :width]]
        response = rollout.response_ids[row][rollout.response_mask[row]]
        ids, count = torch.cat([prompt, response])[None], len(response)
        logits = trained.policy(input_ids=ids).logits[0, len(prompt) - 1 : -1] / config.rollout.temperature
        logprobs = logits.log_softmax(-1).gather(1, response[:, None]).squeeze(1)
        body = trained.value_model.model
        hidden = body.base_model(input_ids=ids).last_hidden_state[0, len(prompt) - 1 : -1]
        values = hidden @ body.score.weight[0]
        ratio = (logprobs - rollout.old_logprobs[row, :count]).exp()
        advantage = advantages[row, :count]
        clip = config.ppo.clip_range
        surrogate = torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)
        old = rollout.old_values[row, :count]
        near = torch.minimum(
            torch.maximum(values, old - config.ppo.value_clip_range), old + config.ppo.value_clip_range
        )
        target = returns[row, :count]
        value = 0.5 * torch.maximum((values - target) ** 2, (near - target) ** 2)
        loss = loss + (-surrogate.sum() + config.ppo.vf_coef * value.sum()) / num_tokens
    named = dict(trained.named_parameters())
    grads = torch.autograd.grad(loss, list(named.values()))
    trained.float()
    return dict(zip(named, (grad.float() for grad in grads), strict=True))


@pytest.fixture
def moved(models, prompts, stage_config, make_loop):
    """A rollout, and models that have moved since, so that ratios differ from 1 and some of them are clipped."""
    config = stage_config(training=no_clipping(), rollout={"temperature": 0.7})
    loop = make_loop(models, config)
    rollout = loop.collect(prompts, SEED, 1)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in models.trained.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return rollout


def test_the_gradient_is_the_written_out_one_whatever_the_microbatches(models, moved, stage_config, make_loop):
    """1x8, 8x1 and 4x2 give one gradient, and it is that of unpadded rows and one sum over all tokens."""
    assert len(set(moved.lengths.tolist())) > 2  # unequal lengths, or means of means would pass
    config = stage_config(training=no_clipping(), rollout={"temperature": 0.7})
    expected = written_out_gradient(copy.deepcopy(models), moved, config)
    for size in (8, 1, 2):
        config = stage_config(training=no_clipping(per_device_train_batch_size=size), rollout={"temperature": 0.7})
        own = copy.deepcopy(models)
        loop = make_loop(own, config, unit_sgd)
        assert loop.sizes.accumulation == 8 // size
        assert_same_gradient(gradient(loop, own, moved, config), expected)


def test_more_padding_changes_no_gradient(models, moved, stage_config, make_loop):
    """Columns of padding on both sides, full of other token ids and of numbers that mean nothing."""
    config = stage_config(training=no_clipping(), rollout={"temperature": 0.7})

    def widen(x, left, right, filler):
        return torch.nn.functional.pad(x, (left, right), value=filler)

    wide = Rollout(
        input_ids=widen(moved.input_ids, 3, 2, 5),
        attention_mask=widen(moved.attention_mask, 3, 2, False),
        response_mask=widen(moved.response_mask, 0, 2, False),
        old_logprobs=widen(moved.old_logprobs, 0, 2, 9.0),
        ref_logprobs=widen(moved.ref_logprobs, 0, 2, -9.0),
        entropy=widen(moved.entropy, 0, 2, 9.0),
        old_values=widen(moved.old_values, 0, 2, 9.0),
        scores=moved.scores,
        ended=moved.ended,
    )
    gradients = []
    for rollout in (moved, wide):
        own = copy.deepcopy(models)
        gradients.append(gradient(make_loop(own, config, unit_sgd), own, rollout, config))
    assert_same_gradient(gradients[1], gradients[0])
    stats = [rollout_stats(rollout, rollout.kl, rollout.kl) for rollout in (moved, wide)]
    assert stats[0] == pytest.approx(stats[1])


@pytest.mark.parametrize("microbatch", [1, 2, 8])
def test_the_first_minibatch_has_ratio_one(models, prompts, stage_config, make_loop, microbatch):
    config = stage_config(
        training={"per_device_train_batch_size": microbatch},
        rollout={"generation_batch_size": 3, "temperature": 0.7},
        ppo={"num_epochs": 3, "num_minibatches": 1},
    )
    loop = make_loop(models, config)
    rollout = loop.collect(prompts, SEED, 0)
    assert (~rollout.attention_mask).any()  # padding on both sides
    stats = loop.optimize(0, rollout, *targets(rollout, config))
    assert stats["policy/first_ratio"] == pytest.approx(1.0, abs=1e-6)
    assert stats["policy/first_approx_kl"] == pytest.approx(0.0, abs=1e-6)
    assert stats["policy/approx_kl"] > 1e-6  # the later passes have moved


def test_with_the_policy_as_reference_rewards_sum_to_the_score(prompts, stage_config, make_loop):
    rollout = make_loop(build_models(ref_seed=1), stage_config()).collect(prompts, SEED, 0)
    rewards = shape_rewards(rollout.scores, rollout.kl, rollout.response_mask, 5.0)
    torch.testing.assert_close(rewards.sum(1), rollout.scores, rtol=0, atol=1e-4)
    assert rollout.kl.abs().max() < 1e-5


def test_the_learning_rates_fall_on_the_optimizer_that_steps(models, prompts, stage_config, make_loop):
    config = stage_config(training={"max_steps": 4, "learning_rate": 1e-3, "value_learning_rate": 4e-3})
    loop = make_loop(models, config)
    rates = []
    real = loop.journal.log
    loop.journal.log = lambda step, stats: (
        rates.append((stats["train/learning_rate"], *(group["lr"] for group in loop.optimizer.param_groups)))
        or real(step, stats)
    )
    loop.run(prompts, [])
    # Logged is the rate that the step was made with; the schedule has moved on by then.
    assert rates == [pytest.approx((r, r - 2.5e-4, 4 * (r - 2.5e-4))) for r in (1e-3, 7.5e-4, 5e-4, 2.5e-4)]


def test_the_value_model_learns_five_times_as_fast_by_default(models, stage_config):
    groups = make_optimizer(models.trained, stage_config().training).param_groups
    assert [group["lr"] for group in groups] == pytest.approx([1e-3, 5e-3])
    count = [sum(p.numel() for p in group["params"]) for group in groups]
    parts = (models.trained.policy, models.trained.value_model)
    assert count == [sum(p.numel() for p in part.parameters()) for part in parts]


def test_nothing_but_policy_and_value_model_moves(models, prompts, stage_config, make_loop):
    frozen = {
        f"{role}.{name}": value.clone()
        for role, model in (("ref", models.ref_policy), ("reward", models.reward_model))
        for name, value in model.state_dict().items()
    }
    before = weights(models)
    make_loop(models, stage_config(training={"max_steps": 1})).run(prompts, [])
    after = weights(models)
    assert all(not torch.equal(before[name], after[name]) for name in before)
    for role, model in (("ref", models.ref_policy), ("reward", models.reward_model)):
        assert all(torch.equal(frozen[f"{role}.{name}"], value) for name, value in model.state_dict().items())


def test_each_row_is_trained_on_once_per_pass(models, prompts, stage_config, make_loop, monkeypatch):
    config = stage_config(ppo={"num_epochs": 3, "num_minibatches": 4}, training={"per_device_train_batch_size": 2})
    loop = make_loop(models, config)
    seen = []
    monkeypatch.setattr(
        _Loop,
        "_optimizer_step",
        lambda self, rollout, advantages, returns, rows: seen.append(rows.tolist()) or (torch.ones(7).double(), 0.5),
    )
    rollout = loop.collect(prompts, SEED, 0)
    stats = loop.optimize(0, rollout, rollout.old_values, rollout.old_values)
    assert [len(rows) for rows in seen] == [2] * 12
    for epoch in range(3):
        rows = sum(seen[4 * epoch : 4 * epoch + 4], [])
        assert sorted(rows) == list(range(8))
    assert seen[:4] != seen[4:8]
    assert stats["train/grad_norm"] == 0.5


def test_a_loss_that_is_not_finite_stops_the_run_in_one_line(models, prompts, stage_config, make_loop):
    config = stage_config()
    loop = make_loop(models, config)
    rollout = loop.collect(prompts, SEED, 0)
    advantages, returns = targets(rollout, config)
    advantages[0, 0] = float("nan")
    with pytest.raises(ModelError, match=r"training diverged at iteration 3: .*; lower training\.learning_rate"):
        loop.optimize(2, rollout, advantages, returns)


def test_clipping_bounds_the_step_and_the_norm_is_the_one_before_it(models, moved, stage_config, make_loop):
    config = stage_config(training=no_clipping())
    own = copy.deepcopy(models)
    whole = gradient(make_loop(own, config, unit_sgd), own, moved, config)
    norm = float(sum((value.double() ** 2).sum() for value in whole.values()) ** 0.5)
    config = stage_config(training={"max_grad_norm": norm / 10})
    own = copy.deepcopy(models)
    loop = make_loop(own, config, unit_sgd)
    before = weights(own)
    _, reported = loop._optimizer_step(moved, *targets(moved, config), torch.arange(8))
    step = float(sum(((before[name] - value).double() ** 2).sum() for name, value in weights(own).items()) ** 0.5)
    assert reported == pytest.approx(norm, rel=1e-4)
    assert step == pytest.approx(norm / 10, rel=1e-3)


def test_figures_are_means_over_episodes_and_kept_tokens(models, prompts, stage_config, make_loop):
    rollout = make_loop(models, stage_config(rollout={"missing_eos_score": None})).collect(prompts, SEED, 0)
    rewards = shape_rewards(rollout.scores, rollout.kl, rollout.response_mask, 0.1)
    _, returns = estimate_advantages(rewards, rollout.old_values, rollout.response_mask, 1.0, 0.95)
    stats = rollout_stats(rollout, rewards, returns)
    lengths = rollout.lengths.tolist()
    kl = [sum(rollout.kl[row, :length].tolist()) for row, length in enumerate(lengths)]
    kept = [(row, t) for row, length in enumerate(lengths) for t in range(length)]
    scores = rollout.scores.tolist()
    assert stats["rollout/score"] == pytest.approx(sum(scores) / 8)
    assert stats["rollout/kl"] == pytest.approx(sum(kl) / 8, rel=1e-5)
    assert stats["rollout/reward"] == pytest.approx(sum(scores) / 8 - 0.1 * sum(kl) / 8, rel=1e-4)
    assert stats["rollout/length"] == pytest.approx(sum(lengths) / 8)
    assert stats["rollout/ended"] == pytest.approx(rollout.ended.float().mean().item())
    assert stats["policy/entropy"] == pytest.approx(
        sum(float(rollout.entropy[at]) for at in kept) / len(kept), rel=1e-5
    )
    targets_kept = torch.tensor([float(returns[at]) for at in kept], dtype=torch.float64)
    errors = targets_kept - torch.tensor([float(rollout.old_values[at]) for at in kept], dtype=torch.float64)
    explained = 1 - errors.var(correction=0) / targets_kept.var(correction=0)
    assert stats["value/explained_variance"] == pytest.approx(float(explained), rel=1e-4, abs=1e-4)


# --- evaluation over processes --------------------------------------------------------------------------------------


class FakeRanks:
    """An accelerator that plays one process after the other; what each would send is summed by the test."""

    def __init__(self, world_size):
        self.num_processes, self.process_index, self.device = world_size, 0, torch.device("cpu")
        self.is_main_process = False


@pytest.mark.parametrize(("count", "world_size", "size"), [(1, 4, 8), (5, 4, 1), (5, 2, 2), (8, 4, 2), (3, 1, 2)])
def test_evaluation_counts_each_held_out_prompt_once_on_any_number_of_processes(
    count, world_size, size, models, stage_config, make_loop, monkeypatch
):
    config = stage_config(rollout={"generation_batch_size": size, "batch_size": 8})
    loop = make_loop(models, config)
    loop.accelerator = FakeRanks(world_size)
    prompts = prompts_of(*map(str, range(count)))
    seen, sent = [], []

    def collect(models, engine, accelerator, share, *_):
        numbers = [float(prompt.messages[0]["content"]) for prompt in share]
        seen.append((loop.accelerator.process_index, numbers))
        ones = torch.ones(len(share), 1)
        kept = ones.bool()
        return Rollout(ones.long(), kept, kept, ones, ones, ones, ones, torch.tensor(numbers), kept[:, 0])

    monkeypatch.setattr(ppo.train, "collect_rollout", collect)
    monkeypatch.setattr(ppo.train, "all_reduce_sum", lambda x: sent.append(x) or torch.ones_like(x))
    for rank in range(world_size):
        loop.accelerator.process_index = rank
        loop.evaluate(0, prompts)
    calls = [[len(numbers) for who, numbers in seen if who == rank] for rank in range(world_size)]
    assert all(each == calls[0] for each in calls)  # or a collective inside would wait for ever
    assert set(sum((numbers for _, numbers in seen), [])) == set(map(float, range(count)))
    totals = sum(sent)
    assert float(totals[-1]) == count
    assert float(totals[0]) == sum(range(count))


def test_evaluation_without_held_out_prompts_is_nothing(models, stage_config, make_loop):
    assert make_loop(models, stage_config()).evaluate(0, []) == {}
