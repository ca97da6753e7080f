"""Gradients of several adapters on one base, through activation checkpointing and on 4-bit weights."""

import warnings
from functools import partial

import pytest
import torch
import transformers
from helpers import tiny
from helpers.shared_base import IDS, hidden, logits, shared

from alignment.config.sections import ModelConfig
from alignment.models import adapters, trainable
from alignment.models.policies import load_policy
from alignment.models.shared_base import (
    checkpoint_kwargs,
    checkpointing,
    using,
)


def loss_of(model, role, number):
    """Each role's own loss, and another one for each of its passes."""
    if role == "policy":
        return logits(model).log_softmax(-1)[..., 7 + number].mean()
    with using(model, role):
        return hidden(model).square().mul(1 + number).mean()


def gradients(model, order, around=None):
    """Gradients of one backward pass of the sum of all losses, by trained tensor."""
    model.zero_grad()
    if around:
        with around(model):
            total = sum(loss_of(model, role, number) for number, role in enumerate(order))
    else:
        total = sum(loss_of(model, role, number) for number, role in enumerate(order))
    total.backward()
    return {name: None if w.grad is None else w.grad.clone() for name, w in model.named_parameters() if w.requires_grad}


ORDERS = [
    ("policy", "value"),
    ("value", "policy"),
    ("policy", "value", "policy", "value"),
    ("value", "value", "policy"),
]


@pytest.mark.parametrize("kinds", [("lora", "lora"), ("dora", "lora"), ("rslora", "dora")])
@pytest.mark.parametrize("order", ORDERS)
def test_checkpointing_gives_every_trained_tensor_its_own_gradient(tokenizer, kinds, order):
    model = shared(tiny.make_policy(tokenizer), kinds, ("policy", "value"))
    plain = gradients(model, order)
    found = gradients(model, order, checkpointing)
    assert plain.keys() == found.keys()
    assert {name.split(".")[-2] for name in found} == {"policy", "value"}
    for name, expected in plain.items():
        assert found[name] is not None and found[name].abs().max() > 0, name
        torch.testing.assert_close(found[name], expected, atol=1e-6, rtol=1e-6)


def test_so_it_does_through_the_models_own_checkpointing_in_training_mode(tokenizer):
    model = shared(tiny.make_policy(tokenizer), ("lora", "lora"), ("policy", "value"))
    plain = gradients(model, ORDERS[2])
    adapters.without_adapter(model).activation_checkpointing_enable(
        activation_checkpointing_kwargs=checkpoint_kwargs(model)
    )
    model.train()  # it is off in eval mode
    found = gradients(model, ORDERS[2])
    for name, expected in plain.items():
        torch.testing.assert_close(found[name], expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("reentrant", [True, False])
def test_without_it_the_second_adapters_gradients_are_missing_or_wrong_and_nothing_says_so(tokenizer, reentrant):
    """Documents a trap of torch; if this test fails, torch or transformers may have fixed it."""
    model = shared(tiny.make_policy(tokenizer), ("lora", "lora"), ("policy", "value"))
    plain = gradients(model, ORDERS[0])
    base = adapters.without_adapter(model)
    base.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": reentrant})
    if reentrant:
        base.enable_input_require_grads()
    model.train()
    with warnings.catch_warnings(action="error"):
        found = gradients(model, ORDERS[0])
    values = [name for name in plain if ".value." in name]
    assert len(values) == 28
    if reentrant:
        assert all(found[name] is None for name in values)
    else:
        assert not any(torch.allclose(found[name], plain[name], rtol=1e-2) for name in values)


def test_checkpointing_keeps_less_and_runs_each_layer_again(tokenizer):
    """In eval mode too, where transformers' own does nothing."""
    model = shared(tiny.make_policy(tokenizer), ("lora", "lora"), ("policy", "value"))
    runs = []
    for layer in trainable.blocks(adapters.without_adapter(model)):
        layer.mlp.register_forward_pre_hook(lambda *_: runs.append(1))

    def kept(around):
        sizes = []
        pack = torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t)
        runs.clear()
        with pack:
            gradients(model, ORDERS[0], around)
        return sum(sizes), len(runs)

    (plain, once), (less, twice) = kept(None), kept(checkpointing)
    assert (once, twice) == (4, 8)  # two blocks, two passes
    assert less < plain / 2
    assert kept(None) == (plain, once)  # and is off again afterwards
    base = adapters.without_adapter(model)
    base.activation_checkpointing_enable(activation_checkpointing_kwargs=checkpoint_kwargs(model))
    assert kept(None)[1] == once


def test_checkpointing_without_any_adapter_and_with_a_forward_that_was_put_on_the_layer(tokenizer):
    policy = tiny.make_policy(tokenizer)
    policy(IDS).logits.square().mean().backward()
    plain = {name: weight.grad.clone() for name, weight in policy.named_parameters()}
    policy.zero_grad()
    layer, calls = trainable.blocks(policy)[0], []
    put_on = partial(lambda forward, *args, **kwargs: calls.append(1) or forward(*args, **kwargs), layer.forward)
    layer.forward = put_on
    with checkpointing(policy):
        policy(IDS, use_cache=False).logits.square().mean().backward()
    assert len(calls) == 2
    assert layer.forward is put_on
    assert "forward" not in trainable.blocks(policy)[1].__dict__
    for name, weight in policy.named_parameters():
        torch.testing.assert_close(weight.grad, plain[name], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["gpt2", "opt", "gpt_neox"])
def test_checkpointing_of_other_architectures_in_eval_mode(kind):
    """Those with dropout of their own, which eval mode keeps off in the second run too."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    more = {"opt": {"ffn_dim": 48, "word_embed_proj_dim": 32, "dropout": 0.5}, "gpt2": {"resid_pdrop": 0.5}}
    config = transformers.AutoConfig.for_model(kind, vocab_size=96, **sizes, **more.get(kind, {}))
    torch.manual_seed(0)
    base = transformers.AutoModelForCausalLM.from_config(config).eval()
    model = shared(base, ("lora", "lora"), ("policy", "value"))

    def run(around):
        model.zero_grad()
        with around:
            total = logits(model).square().mean()
            with using(model, "value"):
                total = total + logits(model)[..., 3].mean()
        total.backward()
        return [weight.grad.clone() for weight in model.parameters() if weight.requires_grad]

    for plain, found in zip(run(using(model, "policy")), run(checkpointing(model)), strict=True):
        assert plain.abs().max() > 0
        torch.testing.assert_close(found, plain, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kinds", [("qlora", "qlora"), ("dora", "lora")])
def test_on_a_base_in_4_bits(tokenizer, tmp_path, kinds):
    pytest.importorskip("bitsandbytes")
    folder = tiny.write(tmp_path, tiny.make_policy(tokenizer), tokenizer)
    config = ModelConfig(name="x", method="lora", quantization="nf4")
    bare = load_policy(str(folder), config).eval()
    before = logits(bare).detach()
    model = shared(bare, kinds, ("policy", "value"))
    with using(model, None):
        assert torch.equal(logits(model), before)
    policy = logits(model).detach()
    with using(model, "value"):
        assert (logits(model) - policy).abs().max() > 1e-2
    assert (policy - before).abs().max() > 1e-2
    for order in ORDERS:
        plain, found = gradients(model, order), gradients(model, order, checkpointing)
        for name, expected in plain.items():
            assert found[name].abs().max() > 0, name
            torch.testing.assert_close(found[name], expected, atol=1e-6, rtol=1e-5)
