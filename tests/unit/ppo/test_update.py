"""One optimizer step against a gradient written out row by row, and everything that may stand in its loss."""

from __future__ import annotations

import copy
import math

import peft
import pytest
import torch
import transformers
from helpers.digits import build_models, llama, role_of, scalar
from hypothesis import given, settings
from hypothesis import strategies as st

from alignment.errors import ModelError
from alignment.models.shared_base import add_adapter
from ppo import update
from ppo.episodes import Episodes
from ppo.roles import PolicyAndValue, Role
from ppo.rows import Row
from ppo.update import minibatches

SGD = {"max_grad_norm": 1e9}


def weights(models):
    return {name: p.detach().clone() for name, p in models.trained.named_parameters() if p.requires_grad}


def use_sgd(loop):
    """Plain SGD with rate 1: a step moves the weights by the gradient."""
    loop.engine.optimizer = torch.optim.SGD(loop.engine.parameters, lr=1.0)
    return loop


def gradient(loop, rollout, targets):
    """What one optimizer step on all rows moves the weights by."""
    before = weights(loop.models)
    loop.updater._optimizer_step(0, Episodes.of(rollout, targets), list(range(len(rollout))), is_first=False)
    return {name: before[name] - value for name, value in weights(loop.models).items()}


def assert_same_gradient(found, expected, tolerance=1e-5):
    """The difference of the whole gradients, relative to the length."""
    assert found.keys() == expected.keys()
    difference = sum(((found[name] - expected[name]).double() ** 2).sum() for name in found) ** 0.5
    length = sum((value.double() ** 2).sum() for value in expected.values()) ** 0.5
    assert length > 1e-3
    assert difference / length < tolerance


def plain(models, row, temperature):
    """log-probabilities and values of one row alone, in float64, from transformers' forward."""
    policy, critic = models.trained.roles
    ids, start = torch.tensor([[*row.prompt, *row.response]]), len(row.prompt) - 1
    logits = policy.model(input_ids=ids).logits[0, start:-1] / temperature
    logp = logits.log_softmax(-1)
    body = policy.model if models.trained.on_trunk else critic.model
    hidden = body.base_model(input_ids=ids).last_hidden_state[0, start:-1]
    return logp.gather(1, torch.tensor(row.response)[:, None]).squeeze(1), hidden @ critic.head.weight[0]


def written_out(models, rollout, targets, config):
    """The gradient of the loss by its formula, row by row, in float64."""
    own = copy.deepcopy(models)
    own.trained.double()
    ppo, total = config.ppo, sum(len(row.response) for row in rollout.rows)
    loss = torch.zeros((), dtype=torch.float64)
    for number, row in enumerate(rollout.rows):
        count = len(row.response)
        logprobs, values = plain(own, row, config.rollout.temperature)
        old, advantage = rollout.old_logprobs[number, :count], targets.advantages[number, :count]
        ratio = (logprobs - old).exp()
        surrogate = torch.minimum(ratio * advantage, ratio.clamp(1 - ppo.clip_range, 1 + ppo.clip_range) * advantage)
        before, target = targets.critic.old_values[number, :count], targets.critic.returns[number, :count]
        near = torch.minimum(torch.maximum(values, before - ppo.value_clip_range), before + ppo.value_clip_range)
        value = 0.5 * torch.maximum((values - target) ** 2, (near - target) ** 2)
        loss = loss + (-surrogate.sum() + ppo.vf_coef * value.sum()) / total
        if ppo.kl_in == "loss":
            apart = logprobs - rollout.ref_logprobs[number, :count]
            loss = loss + targets.kl_coef * (ratio.detach() * 0.5 * apart**2).sum() / total
    names = [(name, p) for name, p in own.trained.named_parameters() if p.requires_grad]
    grads = torch.autograd.grad(loss, [p for _, p in names])
    return {name: grad.float() for (name, _), grad in zip(names, grads, strict=True)}


@pytest.fixture
def stir():
    """Move the models a little, so that ratios differ from 1 and some are clipped."""

    def move(models):
        torch.manual_seed(0)
        with torch.no_grad():
            for parameter in models.trained.parameters():
                parameter.add_(0.02 * torch.randn_like(parameter))

    return move


def prepared(make_loop, models, config, stir):
    """A loop, a rollout that was made before the models moved, and its targets."""
    loop = use_sgd(make_loop(models, config))
    count = config.rollout.batch_size // config.rollout.num_generations
    from ppo.prompts import make_tasks

    rollout = loop.collector.collect(make_tasks(loop.prompts, range(count), config.rollout.num_generations), 3, 1)
    targets = loop.target_builder.build(rollout, loop.target_builder.rewards(rollout))
    stir(models)
    return loop, rollout, targets


# --- the gradient does not depend on how it is computed -------------------------------------------------------------


@pytest.mark.parametrize("critic", ["separate", "trunk"])
@pytest.mark.parametrize("generations", [1, 4])
@pytest.mark.parametrize(
    "training",
    [{}, {"packing": False}, {"microbatch_tokens": 25}, {"gradient_checkpointing": True}],
    ids=["packed", "padded", "microbatches", "checkpointing"],
)
def test_the_gradient_is_the_written_out_one(make_loop, stage_config, stir, critic, generations, training):
    config = stage_config(training={**SGD, **training}, rollout={"temperature": 0.7, "num_generations": generations})
    models = build_models(ref_seed=7, critic=critic)
    loop, rollout, targets = prepared(make_loop, models, config, stir)
    assert models.packed == (training.get("packing") is not False)
    assert len({len(row.response) for row in rollout.rows}) > 2  # unequal, or means of means would pass
    parts = loop.updater._microbatches(rollout.rows, range(8))
    assert (len(parts) > 3) == ("microbatch_tokens" in training)
    expected = written_out(models, rollout, targets, config)
    assert_same_gradient(gradient(loop, rollout, targets), expected)


def test_a_kl_in_the_loss_has_its_gradient(make_loop, stage_config, stir):
    config = stage_config(training=SGD, ppo={"kl_in": "loss", "kl_coef": 0.4})
    models = build_models(ref_seed=7)
    loop, rollout, targets = prepared(make_loop, models, config, stir)
    expected = written_out(models, rollout, targets, config)
    assert_same_gradient(gradient(loop, rollout, targets), expected)


def test_demonstrations_add_their_mean_loss_per_token(make_loop, stage_config, stir, monkeypatch):
    """PPO-ptx: the gradient is PPO's and coef times that of the language model's loss at temperature 1."""
    rows = [Row([2, 3], [4, 5, 1]), Row([6], [7, 8, 9, 1], [False, True, True, True])]
    values = {"training": SGD, "rollout": {"temperature": 0.7}}
    with_ptx = stage_config(**values, ptx={"train": "x", "coef": 0.5})
    models = build_models(ref_seed=7)
    monkeypatch.setattr(update, "PTX_ROWS", 2)
    loop, rollout, targets = prepared(make_loop, models, with_ptx, stir)
    loop.updater.ptx_rows = rows
    expected = written_out(models, rollout, targets, with_ptx)
    policy = copy.deepcopy(models.policy.model).double()
    total = torch.zeros((), dtype=torch.float64)
    for row in rows:
        labels = torch.tensor([[-100] * len(row.prompt) + [
            token if kept else -100 for token, kept in zip(row.response, row.kept or [True] * 9, strict=False)
        ]])  # fmt: skip
        count = int((labels != -100).sum())
        ids = torch.tensor([[*row.prompt, *row.response]])
        total = total + policy(input_ids=ids, labels=labels).loss * count / 6
    for name, grad in zip(
        dict(policy.named_parameters()), torch.autograd.grad(total, policy.parameters()), strict=True
    ):
        expected[f"policy.{name}"] = expected[f"policy.{name}"] + 0.5 * grad.float()
    assert_same_gradient(gradient(loop, rollout, targets), expected)


# --- every trained tensor learns ------------------------------------------------------------------------------------


def adapted(critic):
    """A LoRA policy; its critic a model of its own, or a second adapter on the same base."""
    models = build_models(ref_seed=1)
    base = llama(transformers.LlamaForCausalLM, 1)
    config = peft.LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    model = add_adapter(base, "default", config, trainable=True)
    value = role_of(scalar(2))
    if critic == "adapter":
        add_adapter(model, "value", copy.deepcopy(config), trainable=True)
        value = Role(model, "value", scalar(2).model.score)
    models.trained, models.reference = PolicyAndValue(Role(model, "default"), value).eval(), Role(model, None)
    return models


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("critic", ["separate", "adapter"])
def test_every_trained_tensor_of_adapters_gets_its_gradient(make_loop, stage_config, stir, critic, checkpointing):
    """PEFT's own switching gives none under checkpointing, and says nothing."""
    found = []
    for flag in (False, checkpointing):
        models = adapted(critic)
        config = stage_config(training={**SGD, "gradient_checkpointing": flag})
        loop, rollout, targets = prepared(make_loop, models, config, stir)
        found.append(gradient(loop, rollout, targets))
        assert {name.split(".")[0] for name in found[-1]} == {"policy", *(
            {"value_model"} if critic == "separate" else {"value_head"})}  # fmt: skip
    assert all(value.abs().max() > 0 for value in found[1].values())
    assert_same_gradient(found[1], found[0])
    names = {of: [name for name, _ in models.trained.trained_parameters(of)] for of in ("policy", "value")}
    assert not set(names["policy"]) & set(names["value"])
    assert {*names["policy"], *names["value"]} == set(found[1])
    assert all(".value." in name or name.startswith("value_") for name in names["value"])


def test_an_adapters_name_that_a_layer_has_too_confuses_nothing():
    """A decoder may have layers named `value`; here the adapter is named as a layer is."""
    models = adapted("adapter")
    model = models.policy.model
    add_adapter(model, "self_attn", peft.LoraConfig(r=2, target_modules="all-linear"), trainable=True)
    critic = Role(model, "self_attn", scalar(2).model.score)
    trained = PolicyAndValue(models.policy, critic)
    names = {of: {name for name, _ in trained.trained_parameters(of)} for of in ("policy", "value")}
    assert all(
        ".lora_A.self_attn." in name or ".lora_B.self_attn." in name for name in names["value"] - {"value_head.weight"}
    )
    assert {name for name in names["policy"] if ".default." in name} == {
        name for name, _ in trained.named_parameters() if ".default." in name
    }


# --- minibatches ----------------------------------------------------------------------------------------------------


@given(st.integers(1, 6), st.integers(1, 5), st.integers(0, 2**31))
@settings(max_examples=50, deadline=None)
def test_minibatches_have_each_episode_once_and_one_of_each_block(blocks, count, seed):
    parts = list(minibatches(blocks * count, count, torch.Generator().manual_seed(seed)))
    assert sorted(row for part in parts for row in part) == list(range(blocks * count))
    assert all([row // count for row in part] == list(range(blocks)) for part in parts)


def test_passes_shuffle_anew():
    generator = torch.Generator().manual_seed(0)
    assert list(minibatches(32, 4, generator)) != list(minibatches(32, 4, generator))


# --- what stops, and what stays -------------------------------------------------------------------------------------


def test_first_ratios_are_one_and_later_passes_move(make_loop, stage_config, models):
    config = stage_config(ppo={"num_epochs": 3}, training={"microbatch_tokens": 30}, rollout={"temperature": 0.7})
    loop, rollout, targets = prepared(make_loop, models, config, lambda _: None)
    loop.engine.optimizer = torch.optim.AdamW(loop.engine.parameters, lr=1e-3)
    stats = loop.updater.update(0, rollout, targets)
    assert stats["policy/first_ratio"] == pytest.approx(1.0, abs=1e-6)
    assert stats["policy/approx_kl"] > 1e-6
    assert stats["train/epochs"] == 3


def test_a_rollout_of_another_model_is_refused_before_any_step(make_loop, stage_config, models, stir):
    loop, rollout, targets = prepared(make_loop, models, stage_config(), stir)
    before = weights(models)
    with pytest.raises(ModelError, match=r"iteration 5: before any update log-probabilities differ"):
        loop.updater.update(4, rollout, targets)
    assert all(torch.equal(value, before[name]) for name, value in weights(models).items())


@pytest.mark.parametrize("where", ["advantages", "returns", "gradient"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_reaches_no_weight(make_loop, stage_config, models, where, bad):
    loop, rollout, targets = prepared(make_loop, models, stage_config(), lambda _: None)
    before = weights(models)
    if where == "gradient":
        parameter = loop.engine.parameters[3]
        parameter.register_hook(lambda grad: torch.full_like(grad, bad))
    else:
        grid = targets.advantages if where == "advantages" else targets.critic.returns
        grid[2, 0] = bad
    with pytest.raises(ModelError, match=r"training diverged at iteration 3: .*; lower training\.learning_rate"):
        loop.updater.update(2, rollout, targets)
    assert all(torch.equal(value, before[name]) for name, value in weights(models).items())


def test_clipping_is_by_role_and_the_norms_are_those_before_it(make_loop, stage_config, stir):
    """A critic that errs by thousands must not shrink the policy's step."""
    models = build_models(ref_seed=7)
    loop, rollout, targets = prepared(make_loop, models, stage_config(training=SGD), stir)
    targets.critic.returns.mul_(1000)
    own = copy.deepcopy(models)
    whole = gradient(loop, rollout, targets)
    names = {of: [name for name, _ in models.trained.trained_parameters(of)] for of in ("policy", "value")}

    def length(moved, of):
        return float(sum((moved[name].double() ** 2).sum() for name in names[of]) ** 0.5)

    norms = {of: length(whole, of) for of in names}
    assert norms["value"] > 100 * norms["policy"]
    limit = norms["policy"] / 10
    clipped = use_sgd(make_loop(own, stage_config(training={"max_grad_norm": limit})))
    before = weights(own)
    _, reported = clipped.updater._optimizer_step(0, Episodes.of(rollout, targets), list(range(8)), is_first=False)
    moved = {name: before[name] - value for name, value in weights(own).items()}
    assert reported == pytest.approx({role: norms[role] for role in ("policy", "value")}, rel=1e-4)
    assert {of: length(moved, of) for of in names} == pytest.approx(dict.fromkeys(names, limit), rel=1e-3)


@pytest.mark.parametrize("critic", ["separate", "trunk"])
def test_while_the_critic_is_fitted_the_policy_stays_bit_for_bit(make_loop, stage_config, critic):
    models = build_models(ref_seed=1, critic=critic)
    loop, rollout, targets = prepared(make_loop, models, stage_config(), lambda _: None)
    loop.engine.optimizer = torch.optim.AdamW(groups_of(models), lr=1e-3)
    loop.engine.optimizer.param_groups[0]["lr"] = 0.0
    before = weights(models)
    policy = {name for name, _ in models.trained.trained_parameters("policy")}
    loop.updater.fit_critic(rollout, targets.critic, list(range(8)))
    moved = {name for name, value in weights(models).items() if not torch.equal(value, before[name])}
    assert moved and not moved & policy


def groups_of(models):
    """The optimizer's groups of policy and critic."""
    return [{"params": [p for _, p in models.trained.trained_parameters(role)]} for role in ("policy", "value")]


def test_after_the_critic_is_fitted_the_policy_is_stepped_as_from_the_start(make_loop, stage_config):
    """Whether Adam was stepped with gradients of 0 until then, as it is under DeepSpeed and with several processes, or
    not at all."""
    found = []
    for zeros in (False, True):
        models = build_models(ref_seed=1)
        loop, rollout, targets = prepared(make_loop, models, stage_config(), lambda _: None)
        loop.engine.optimizer = torch.optim.AdamW(groups_of(models), lr=1e-3)
        policy, critic = loop.engine.optimizer.param_groups
        for group, learning_rate in ((policy, 0.0), (critic, 1e-3)):
            group["lr"] = learning_rate
        for _ in range(2):
            for parameter in loop.engine.parameters if zeros else ():
                parameter.grad = torch.zeros_like(parameter)
            loop.updater.fit_critic(rollout, targets.critic, list(range(8)))
        policy["lr"] = 1e-3
        loop.updater.update(0, rollout, targets)
        found.append(weights(models))
    assert all(torch.allclose(found[1][name], value, rtol=0, atol=1e-7) for name, value in found[0].items())


def test_without_a_critic_there_is_none(make_loop, stage_config):
    models = build_models(critic=None)
    config = stage_config(ppo={"advantage_estimator": "rloo"}, rollout={"num_generations": 4})
    stats = make_loop(models, config).iterate([0, 1])
    assert models.trained.passes == ("policy",)
    assert not any(name.startswith("value/") for name in stats)
