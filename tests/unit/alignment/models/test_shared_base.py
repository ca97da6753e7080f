"""Several adapters on one frozen base: which is active, which are trained, and what reaches each in backward."""

import itertools
import json
import warnings
from functools import partial

import peft
import pytest
import torch
import transformers
from helpers import tiny
from hypothesis import given, settings, strategies

from alignment.config.sections import ADAPTERS, ModelConfig
from alignment.errors import ConfigError, ModelError
from alignment.models import adapters, trainable
from alignment.models.adapters import AdapterError
from alignment.models.methods import METHODS
from alignment.models.policies import load_policy
from alignment.models.scalar import load_scalar_model
from alignment.models.shared_base import (
    adapter_parameters,
    add_adapter,
    add_reward_adapter,
    checkpoint_kwargs,
    checkpointing,
    save_adapter,
    using,
)
from alignment.models.sources import ModelSource

IDS = torch.tensor([[5, 9, 30, 7, 2], [40, 41, 3, 6, 8]])
LORA_KINDS = ("lora", "dora", "rslora")
ROLES = ("policy", "value", "reward")


def new(model, method="lora", **arguments):
    return trainable.adapter_config(
        adapters.without_adapter(model), ModelConfig(name="x", method=method, adapter=arguments)
    )


def stir(model, seed=0):
    """Make every adapter say something of its own: they start as the base."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_magnitude" in name:
                weight.mul_(1 + 0.1 * torch.randn(weight.shape, generator=generator))
            elif "lora_" in name:
                weight.copy_(0.1 * torch.randn(weight.shape, generator=generator))
    return model


def shared(base, kinds=("lora", "lora", "lora"), roles=ROLES, **arguments):
    """A base with an adapter for each role; the reward's is frozen."""
    model = base
    for role, kind in zip(roles, kinds, strict=True):
        model = add_adapter(model, role, new(model, kind, r=4, **arguments), trainable=role != "reward")
    return stir(model)


def trained(model):
    return {name for name, weight in model.named_parameters() if weight.requires_grad}


def hidden(model):
    return adapters.without_adapter(model).model(input_ids=IDS, use_cache=False).last_hidden_state


def logits(model):
    return model(IDS, use_cache=False).logits


# --- putting adapters on ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", list(itertools.product([True, False], repeat=3)))
def test_each_adapter_is_trained_or_frozen_as_it_was_added(tokenizer, flags):
    """PEFT trains or freezes the active adapter by what is asked of the new one."""
    model = tiny.make_policy(tokenizer)
    for role, flag in zip(ROLES, flags, strict=True):
        model = add_adapter(model, role, new(model), trainable=flag)
    expected = {role for role, flag in zip(ROLES, flags, strict=True) if flag}
    assert {name.split(".")[-2] for name in trained(model)} == expected
    assert len(trained(model)) == 28 * len(expected)  # A and B of seven layers in each of two blocks
    assert model.active_adapters == ["policy"]
    assert not model.training


def test_a_new_adapter_goes_on_the_layers_of_the_base_and_not_on_those_of_another(tokenizer):
    bare = new(tiny.make_policy(tokenizer))
    model = shared(tiny.make_policy(tokenizer))
    again = new(model)
    assert again.target_modules == bare.target_modules
    assert again.task_type == bare.task_type == "CAUSAL_LM"
    assert {name for name in again.target_modules if "lora" in name or "base" in name} == set()


def test_the_parameters_of_an_adapter_are_those_with_its_name(tokenizer):
    model = shared(tiny.make_policy(tokenizer), ("dora", "lora", "dora"))
    for role in ROLES:
        named = {name: weight for name, weight in model.named_parameters() if f".{role}." in name}
        found = adapter_parameters(model, role)
        assert {id(weight) for weight in found} == {id(weight) for weight in named.values()}
        assert len(found) == len(named) == (28 if role == "value" else 42)


@pytest.mark.parametrize("method", LORA_KINDS)
def test_a_saved_adapter_is_the_one_that_it_was(tokenizer, tmp_path, method):
    """Loaded by the plain library, by the suite beside another, and merged."""
    base = tiny.make_policy(tokenizer)
    model = shared(tiny.make_policy(tokenizer), ("lora", method), ("reward", "policy"))
    with using(model, "policy"):
        expected = logits(model).detach()
    save_adapter(model, "policy", tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    plain = peft.PeftModel.from_pretrained(tiny.make_policy(tokenizer), str(tmp_path)).eval()
    torch.testing.assert_close(plain(IDS).logits, expected, atol=0, rtol=0)
    beside = add_adapter(shared(base, ["lora"], ["value"]), "policy", str(tmp_path), trainable=True)
    with using(beside, "policy"):
        torch.testing.assert_close(logits(beside).detach(), expected, atol=0, rtol=0)
    assert {name.split(".")[-2] for name in trained(beside)} == {"value", "policy"}
    merged = adapters.merge(tiny.make_policy(tokenizer), str(tmp_path)).eval()
    torch.testing.assert_close(merged(IDS).logits.detach(), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("method", sorted(ADAPTERS - {"qlora"}))
def test_what_the_table_calls_beside_is_what_works(tokenizer, method):
    """A LoRA of the value beside a policy's adapter of each kind; a policy's whole weights are nobody's base."""
    config = new(tiny.make_policy(tokenizer), method)
    if METHODS[method].fails.get("LoRA beside") is None:
        model = add_adapter(tiny.make_policy(tokenizer), "policy", config, trainable=True)
        model = stir(add_adapter(model, "value", new(model), trainable=True))
        policy = logits(model)
        with using(model, "value"):
            value = hidden(model)
        (policy.square().mean() + value.square().mean()).backward()
        assert all(weight.grad is not None for weight in model.parameters() if weight.requires_grad)
        return
    with pytest.raises(AdapterError, match=r"model\.adapter: an adapter of the kind \w+ shares its base with no other"):
        add_adapter(tiny.make_policy(tokenizer), "policy", config, trainable=True)
    adapted = peft.get_peft_model(tiny.make_policy(tokenizer), config, adapter_name="policy")
    with pytest.raises(Exception, match=r"Cannot combine|different|only 1|mixed|at most|supports"):
        adapted.add_adapter("value", new(tiny.make_policy(tokenizer)))


def test_methods_without_an_adapter_have_none_beside():
    assert {name for name, method in METHODS.items() if method.peft_config is None} == {"full", "head"}
    assert all(METHODS[name].fails["LoRA beside"] == "there is no adapter" for name in ("full", "head"))
    assert {name for name, method in METHODS.items() if "LoRA beside" not in method.fails} == {*LORA_KINDS, "qlora"}


def test_an_adapter_that_trains_what_others_share_is_refused(tokenizer):
    model = shared(tiny.make_policy(tokenizer))
    for bias in ("all", "lora_only"):
        with pytest.raises(AdapterError, match=rf"model\.adapter: bias={bias} trains the base's own biases"):
            add_adapter(model, "other", new(model, bias=bias), trainable=True)
    with pytest.raises(ConfigError, match=r"model\.adapter: .*nowhere"):
        add_adapter(tiny.make_policy(tokenizer), "p", new(model, target_modules=["nowhere"]), trainable=True)


def test_a_folder_of_another_kind_or_another_base_is_refused(tokenizer, tmp_path):
    ia3 = trainable.apply_method(tiny.make_policy(tokenizer), ModelConfig(name="x", method="ia3"))
    ia3.save_pretrained(tmp_path / "ia3")
    model = shared(tiny.make_policy(tokenizer))
    with pytest.raises(AdapterError, match="ia3: an adapter of the kind IA3 shares its base with no other one; use"):
        add_adapter(model, "other", str(tmp_path / "ia3"), trainable=False)
    wide = tiny.make_policy(tokenizer, shape=tiny.SHAPE.model_copy(update={"hidden_size": 32}))
    save_adapter(shared(wide, ["lora"], ["policy"]), "policy", tmp_path / "wide")
    with pytest.raises(AdapterError, match="this adapter cannot be put on its base"):
        add_adapter(tiny.make_policy(tokenizer), "other", str(tmp_path / "wide"), trainable=False)
    with pytest.raises(AdapterError, match="cannot be put on its base"):
        add_adapter(model, "gone", str(tmp_path / "nothing"), trainable=False)


# --- a reward model's adapter ----------------------------------------------------------------------------------------


def reward_version(folder, tokenizer, method="lora", bias=1.5, seed=0):
    """A reward adapter as it is published, its base, and the scores that it gives as PEFT alone would run it."""
    base = tiny.write(folder / "base", tiny.make_policy(tokenizer), tokenizer)
    scalar = load_scalar_model(str(base))
    adapted = trainable.apply_method(scalar.model, ModelConfig(name="x", method=method, adapter={"r": 4})).eval()
    stir(adapted, seed)
    with torch.no_grad():
        adapted.base_model.model.score.weight.normal_(generator=torch.Generator().manual_seed(seed))
        scores = scalar(IDS, torch.ones_like(IDS, dtype=torch.bool)) - bias
    adapted.save_pretrained(folder / "reward")
    tokenizer.save_pretrained(folder / "reward")
    (folder / "reward" / "score.json").write_text(json.dumps({"score_bias": bias}))
    trained_by = ModelConfig(name=str(base), method=method, adapter={"r": 4})
    return ModelSource(str(folder / "reward"), base=ModelSource(str(base)), trained=trained_by), scores


@pytest.mark.parametrize("method", LORA_KINDS)
@torch.no_grad()
def test_a_reward_adapter_beside_a_policy_gives_its_own_scores(tokenizer, tmp_path, method):
    source, scores = reward_version(tmp_path, tokenizer, method)
    model = shared(load_policy(source.base).eval(), ["lora"], ["policy"])
    expected = logits(model)
    model, head = add_reward_adapter(model, "reward", source, trainable=False)
    assert head.weight.dtype == torch.float32 and not head.weight.requires_grad
    with using(model, "reward"):
        found = head(hidden(model)).squeeze(-1)
    torch.testing.assert_close(found, scores, atol=1e-5, rtol=1e-5)
    assert torch.equal(logits(model), expected)
    assert {name.split(".")[-2] for name in trained(model)} == {"policy"}


@torch.no_grad()
def test_a_member_of_an_ensemble_comes_with_its_own_zero_point(tokenizer, tmp_path):
    (tmp_path / "ensemble").mkdir()
    expected = []
    for number, bias in enumerate((2.0, 5.0)):
        source, scores = reward_version(tmp_path, tokenizer, bias=bias, seed=number)
        (tmp_path / "reward").rename(tmp_path / "ensemble" / f"member-{number}")
        expected.append(scores)
    (tmp_path / "ensemble" / "ensemble.json").write_text(json.dumps({"members": 2, "score_bias": [2.0, 5.0]}))
    ensemble = ModelSource(str(tmp_path / "ensemble"), base=source.base, trained=source.trained)
    model, heads = load_policy(source.base).eval(), []
    for number in range(2):
        model, head = add_reward_adapter(model, f"reward{number}", ensemble, trainable=False, member=number)
        heads.append(head)
    for number in (1, 0):
        with using(model, f"reward{number}"):
            found = heads[number](hidden(model)).squeeze(-1)
        torch.testing.assert_close(found, expected[number], atol=1e-5, rtol=1e-5)
    assert (expected[0] - expected[1]).abs().max() > 1e-2


def test_a_reward_adapter_that_is_none_is_one_line(tokenizer, tmp_path):
    source, _ = reward_version(tmp_path, tokenizer)
    record = tmp_path / "reward" / "score.json"
    for text in ("", "{}", '{"score_bias": "high"}', '{"score_bias": NaN}', "[]"):
        record.write_text(text)
        with pytest.raises(ModelError, match=r"score\.json: not the zero point of a reward adapter"):
            add_reward_adapter(load_policy(source.base), "reward", source, trainable=False)
    record.write_text('{"score_bias": 0.0}')
    save_adapter(shared(load_policy(source.base), ["lora"], ["policy"]), "policy", tmp_path / "reward")
    with pytest.raises(ModelError, match="an adapter without a score head; name a reward model"):
        add_reward_adapter(load_policy(source.base), "reward", source, trainable=False)


# --- which one is active ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kinds", [("lora", "lora", "lora"), ("dora", "lora", "rslora"), ("lora", "dora", "dora")])
@torch.no_grad()
def test_what_is_used_is_what_runs_as_if_it_were_alone(tokenizer, kinds):
    """The oracle: each adapter by itself on a base of its own, and the base before anything was put on it."""
    model = shared(tiny.make_policy(tokenizer), kinds)
    bare = logits(tiny.make_policy(tokenizer))
    for role, kind in zip(ROLES, kinds, strict=True):
        alone = shared(tiny.make_policy(tokenizer), [kind], [role])
        mine = {name: weight for name, weight in model.named_parameters() if f".{role}." in name}
        alone.load_state_dict(mine, strict=False)
        with using(model, role):
            assert torch.equal(logits(model), logits(alone))
    with using(model, None):
        assert torch.equal(logits(model), bare)


@torch.no_grad()
def test_an_adapter_on_other_layers_than_another_leaves_them_alone(tokenizer):
    model = tiny.make_policy(tokenizer)
    model = add_adapter(model, "policy", new(model, target_modules=["q_proj"]), trainable=True)
    model = add_adapter(model, "value", new(model, target_modules=["q_proj"]), trainable=True)
    with using(model, "value"):
        pass
    model.delete_adapter("value")
    model = stir(add_adapter(model, "value", new(model, target_modules=["up_proj"]), trainable=True))
    found = []
    for role, layer in (("policy", "q_proj"), ("value", "up_proj")):
        alone = add_adapter(tiny.make_policy(tokenizer), role, new(model, target_modules=[layer]), trainable=True)
        alone.load_state_dict(
            {name: weight for name, weight in model.named_parameters() if f".{role}." in name}, strict=False
        )
        with using(model, role):
            found.append(logits(model))
        assert torch.equal(found[-1], logits(alone))
    assert not torch.equal(*found)


@settings(max_examples=15, deadline=None)
@given(strategies.recursive(strategies.sampled_from([*ROLES, None]), lambda inner: strategies.lists(inner, max_size=4)))
def test_however_it_is_nested_what_was_active_is_active_again(tree):
    model = NESTED.setdefault("model", shared(tiny.make_policy(tiny.make_tokenizer())))
    layers = [module for module in model.modules() if isinstance(module, peft.tuners.lora.LoraLayer)]

    def state():
        return [(list(layer.active_adapters), layer.disable_adapters) for layer in layers]

    def walk(node, active):
        assert state() == [([active] if active else state()[0][0], active is None)] * len(layers)
        if not isinstance(node, list):
            with using(model, node):
                walk([], node)
            assert state()[0][1] == (active is None)
            return
        for each in node:
            before = state()
            walk(each, active)
            assert state() == before

    before, flags = state(), trained(model)
    walk(tree, "policy")
    assert state() == before
    assert trained(model) == flags


NESTED = {}


def test_an_error_inside_leaves_nothing_behind(tokenizer):
    model = shared(tiny.make_policy(tokenizer))
    before = logits(model)
    with pytest.raises(KeyError), using(model, "value"), using(model, None):
        raise KeyError
    assert torch.equal(logits(model), before)
    with pytest.raises(AssertionError, match="'valu' is none of"), using(model, "valu"):
        pass


def test_what_is_trained_is_left_alone_where_pefts_own_switches_change_it(tokenizer):
    model = shared(tiny.make_policy(tokenizer))
    before = trained(model)
    for name in (*ROLES, None):
        with using(model, name):
            assert trained(model) == before
        assert trained(model) == before
    model.set_adapter("value")
    assert trained(model) != before  # what `using` is there for: should PEFT mend it, this is the place to know
    with model.disable_adapter():
        assert not trained(model)


# --- gradients -------------------------------------------------------------------------------------------------------


def loss_of(model, role, number):
    """Each role's own loss, and another one for each of its passes."""
    if role == "policy":
        return logits(model).log_softmax(-1)[..., 7 + number].mean()
    with using(model, role):
        return hidden(model).square().mul(1 + number).mean()


def gradients(model, order, around=None):
    """Of one backward pass of the sum of all losses, for each tensor that is trained."""
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
    """The trap: should this test fail, torch or transformers may have mended it."""
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


# --- 4 bits ----------------------------------------------------------------------------------------------------------


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
