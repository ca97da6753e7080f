"""Frozen lower layers are computed once for each row, and no number changes by it."""

from __future__ import annotations

import pytest
import torch
from helpers.architectures import build
from helpers.shared_base import new, shared, stir

from alignment.models.packing import attend_by_group
from alignment.models.scalar import ScoreHead
from alignment.models.shared_base import add_adapter
from alignment.models.trainable import blocks
from ppo.lower_layers import first_changed, frozen_depth
from ppo.roles import Role, share_lower_layers
from ppo.rows import Row
from ppo.sequences import lay_out

ROWS = [
    Row([5, 6, 7], [8, 9, 10, 2]),
    Row([5, 6, 7], [11, 12]),
    Row([20, 21], [22, 23, 24]),
    Row([30, 31, 32, 33], [34]),
]
UPPER = {"layers_to_transform": [2, 3]}


def pass_of(role, rows):
    return role.states(lay_out([ROWS[n] for n in rows], rows, True, 0, torch.device("cpu")), torch.arange(5))


@pytest.fixture(params=["llama", "gpt2", "gemma3_text", "gpt_neox"])
def roles(request):
    """Policy and critic with adapters on the upper two of four layers, a reward model on all, and the bare base."""
    sizes = {"n_layer": 4} if request.param == "gpt2" else {"num_hidden_layers": 4}
    base = build(request.param, **sizes).eval()
    attend_by_group(base)
    model = shared(base, kinds=("lora", "lora"), roles=("policy", "value"), **UPPER)
    model = stir(add_adapter(model, "reward", new(model), trainable=False))
    return [Role(model, adapter, ScoreHead(16, 1)) for adapter in ("policy", "value", "reward", None)]


def count_calls(roles):
    calls = [0] * 4
    for index, layer in enumerate(blocks(roles[0].base)):
        layer.register_forward_hook(lambda *_, index=index: calls.__setitem__(index, calls[index] + 1))
    return calls


def test_all_roles_above_the_lower_layers_share_their_states(roles):
    *_, reward, bare = roles
    plain = [pass_of(role, [0, 1, 2]) for role in roles]
    lower, calls = share_lower_layers(roles), count_calls(roles)
    assert [layers.depth for layers in lower] == [2]
    assert reward.lower is None and bare.lower is lower[0]
    assert all(torch.equal(pass_of(role, [0, 1, 2]), was) for role, was in zip(roles, plain, strict=True))
    assert calls == [4, 4, 4, 4]  # nobody has asked to keep states
    with lower[0].keeping():
        for role, was in zip(roles, plain, strict=True):
            torch.testing.assert_close(pass_of(role, [0, 1, 2]), was)
    forwards = [layer.__dict__.get("forward") for layer in blocks(bare.base)]
    assert forwards == [None] * 4
    with lower[0].keeping():
        assert torch.equal(pass_of(bare, [0, 1, 2]), plain[-1])


def test_rows_in_other_batches_are_found_and_unknown_ones_computed(roles):
    policy, plain = roles[0], [pass_of(roles[0], rows) for rows in ([2, 0, 1], [0, 2], [3, 2], [2])]
    lower = share_lower_layers(roles)[0]
    below, part = [], next(m for m in blocks(policy.base)[0].modules() if not list(m.children()))
    part.register_forward_hook(lambda *_: below.append(1))
    with lower.keeping():
        for rows, was in zip(([2, 0, 1], [0, 2], [3, 2], [2]), plain, strict=True):
            torch.testing.assert_close(pass_of(policy, rows), was)
    # Row 0 alone is a document of its own, which the batch with its neighbour did not have; row 3 is new.
    assert len(below) == 3


@pytest.mark.parametrize("checkpointed", [False, True])
def test_gradients_are_those_of_whole_passes(roles, checkpointed):
    policy = roles[0]
    policy.checkpointed = checkpointed

    def gradients():
        policy.model.zero_grad()
        pass_of(policy, [0, 1, 2]).square().sum().backward()
        return {n: p.grad.clone() for n, p in policy.model.named_parameters() if p.grad is not None}

    expected = gradients()
    assert expected and all(".2." in name or ".3." in name for name in expected)
    lower = share_lower_layers(roles)[0]
    with lower.keeping():
        for _ in range(2):
            torch.testing.assert_close(gradients(), expected)


def test_another_precision_has_states_of_its_own(roles):
    policy, lower = roles[0], share_lower_layers(roles)[0]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        rounded = pass_of(policy, [0, 1])
    with torch.no_grad(), lower.keeping():
        exact = pass_of(policy, [0, 1])
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(pass_of(policy, [0, 1]), rounded)
        assert torch.equal(pass_of(policy, [0, 1]), exact)
    assert not torch.equal(exact.float(), rounded.float())


def test_padded_rows_are_computed_whole(roles):
    policy, lower = roles[0], share_lower_layers(roles)[0]
    batch = lay_out(ROWS, range(4), False, 0, torch.device("cpu"))
    calls = count_calls(roles)
    with lower.keeping():
        for _ in range(2):
            policy.states(batch, batch.last)
    assert calls == [2] * 4


def test_what_changes_a_layer():
    base = build("llama", num_hidden_layers=4)
    assert first_changed(base, None) == 0  # every weight is trained
    base.requires_grad_(False)
    assert first_changed(base, None) == 4
    base.lm_head.requires_grad_(True)
    assert first_changed(base, None) == 4
    model = shared(base, kinds=("lora",), roles=("policy",), **UPPER)
    assert first_changed(base, "policy") == 2
    assert first_changed(base, None) == 4  # the reference is the bare base, though the adapter is trained
    base.model.layers[1].mlp.requires_grad_(True)
    assert first_changed(base, None) == 1
    base.model.embed_tokens.requires_grad_(True)
    assert first_changed(base, None) == 0
    assert model.peft_config.keys() == {"policy"}


def test_an_adapter_of_the_embeddings_changes_all_layers():
    model = shared(
        build("llama", num_hidden_layers=4), kinds=("lora",), roles=("policy",), target_modules=["embed_tokens"]
    )
    assert first_changed(model.get_base_model(), "policy") == 0


def test_the_depth_is_what_all_roles_but_those_from_the_first_layer_have_in_common():
    assert frozen_depth([2, 3, 0, 4], 4) == 2
    assert frozen_depth([4, 4], 4) is None  # nothing is changed at all
    assert frozen_depth([0, 0], 4) is None
    assert frozen_depth([0, 4], 4) is None
