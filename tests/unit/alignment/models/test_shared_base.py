"""Several adapters on one base: which is trained, which is active, and what a saved one gives."""

import itertools
import json

import peft
import pytest
import torch
from helpers import tiny
from helpers.shared_base import IDS, ROLES, hidden, logits, new, shared, stir
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
    save_adapter,
    using,
)
from alignment.models.sources import ModelSource

LORA_KINDS = ("lora", "dora", "rslora")


def trained(model):
    return {name for name, weight in model.named_parameters() if weight.requires_grad}


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
def test_a_member_of_an_ensemble_comes_with_its_own_score_offset(tokenizer, tmp_path):
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
        with pytest.raises(ModelError, match=r"score\.json: not the score offset of a reward adapter"):
            add_reward_adapter(load_policy(source.base), "reward", source, trainable=False)
    record.write_text('{"score_bias": 0.0}')
    save_adapter(shared(load_policy(source.base), ["lora"], ["policy"]), "policy", tmp_path / "reward")
    with pytest.raises(ModelError, match="an adapter without a score head; name a reward model"):
        add_reward_adapter(load_policy(source.base), "reward", source, trainable=False)


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
