"""The four roles, loaded from folders."""

from __future__ import annotations

import json

import pytest
import tiny
import torch

from alignment.config import ModelConfig
from alignment.models import ModelError
from alignment.registry import Registry
from alignment.scalar_models import load_scalar_model
from ppo.config import ModelsConfig
from ppo.models import find_models, load_models


@pytest.fixture
def folders(tmp_path, tokenizer):
    """A policy whose config asks for dropout, and a reward model with a bias, both as local folders."""
    policy = tiny.make_policy(tokenizer, seed=1)
    policy.config.attention_dropout = 0.5
    tiny.write(tmp_path / "policy", policy, tokenizer)
    reward = tiny.make_scalar(tmp_path / "body", tiny.make_policy(tokenizer, seed=2), tokenizer, seed=2)
    reward.model.config.score_bias = 1.5
    tiny.write(tmp_path / "reward", reward.model, tokenizer)
    return tmp_path


def load(folder, **changes):
    config = ModelsConfig(**{"policy": str(folder / "policy"), "reward": str(folder / "reward"), **changes})
    return load_models(config, find_models(config, Registry(folder / "registry")))


@pytest.fixture
def batch(tokenizer):
    ids = torch.randint(3, len(tokenizer), (2, 12), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[0, :3] = False
    return ids, mask


def test_reference_starts_as_the_policy_and_the_value_model_as_the_reward_model(folders, batch):
    models = load(folders)
    ids, mask = batch
    with torch.no_grad():
        logprobs, _, values = models.trained(ids, mask, 5, 1.0)
        logits = models.ref_policy(input_ids=ids[1:]).logits[0, -6:-1].log_softmax(-1)
        torch.testing.assert_close(logprobs[1], logits.gather(1, ids[1, -5:, None]).squeeze(1))
        scores = models.reward_model(ids, mask)
    torch.testing.assert_close(values, scores[:, -6:-1])
    assert scores.abs().mean() > 0.5  # the bias of 1.5 is subtracted in both
    assert models.sources["value"] == models.sources["reward"]
    assert models.sources["reference"] == models.sources["init"]


def test_no_two_roles_share_a_tensor(folders):
    models = load(folders)
    roles = (models.policy, models.trained.value_model, models.ref_policy, models.reward_model)
    places = [{parameter.data_ptr() for parameter in role.parameters()} for role in roles]
    assert len(set.union(*places)) == sum(map(len, places))


def test_dropout_is_off_in_every_role_and_only_policy_and_value_learn(folders, batch):
    models = load(folders)
    ids, mask = batch
    assert models.policy.config.attention_dropout == 0.5
    first, second = (models.trained(ids, mask, 5, 1.0, with_entropy=True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    models.trained.policy.train()
    assert not torch.equal(models.trained(ids, mask, 5, 1.0)[0], first[0])  # it would show
    models.trained.policy.eval()
    for model, learns in ((models.trained, True), (models.ref_policy, False), (models.reward_model, False)):
        assert not any(module.training for module in model.modules())
        assert all(parameter.requires_grad is learns for parameter in model.parameters())


def test_a_value_model_of_its_own_and_a_reference_of_its_own(folders, tokenizer):
    tiny.write(folders / "other", tiny.make_policy(tokenizer, seed=5), tokenizer)
    critic = tiny.make_scalar(folders / "critic", tiny.make_policy(tokenizer, seed=6), tokenizer)
    tiny.write(folders / "critic", critic.model, tokenizer)
    models = load(folders, reference=str(folders / "other"), value=str(folders / "critic"))
    expected = load_scalar_model(str(folders / "critic"), ModelConfig(name="critic"))
    for name, value in expected.state_dict().items():
        assert torch.equal(value, models.trained.value_model.state_dict()[name])
    assert not torch.equal(models.ref_policy.lm_head.weight, models.policy.lm_head.weight)
    relations = {parent.role: parent.ref for parent in models.parents()}
    assert relations == {
        role: str(folders / name)
        for role, name in (("init", "policy"), ("reference", "other"), ("reward", "reward"), ("value", "critic"))
    }


@pytest.mark.parametrize(
    ("role", "folder", "reason"),
    [
        ("reward", "body", "body: a policy, which has no score head; name a reward model"),
        ("value", "body", "body: a policy, which has no score head; name a reward model"),
        ("policy", "reward", "reward: a reward model; name a policy"),
        ("reference", "reward", "reward: a reward model; name a policy"),
    ],
)
def test_a_folder_with_the_other_kind_of_model_is_refused(folders, role, folder, reason):
    # Outside the registry no manifest tells the kinds apart, and transformers would make up what is missing.
    with pytest.raises(ModelError, match=reason):
        load(folders, **{role: str(folders / folder)})


def test_a_bfloat16_body_still_scores_in_float32(folders, batch):
    models = load(folders)
    ids, mask = batch
    for model in (models.policy, models.trained.value_model.model.base_model, models.reward_model.model.base_model):
        model.to(torch.bfloat16)
    logprobs, entropy, values = models.trained(ids, mask, 5, 1.0, with_entropy=True)
    assert models.policy.dtype == torch.bfloat16
    assert (
        logprobs.dtype == entropy.dtype == values.dtype == models.reward_model.score(ids, mask).dtype == torch.float32
    )


@pytest.mark.parametrize("change", ["tokens", "template", "pad"])
@pytest.mark.parametrize("role", ["reward", "reference", "value"])
def test_a_role_that_reads_other_tokens_than_the_policy_is_refused(folders, role, change):
    if change == "tokens":
        other = tiny.train_tokenizer(["quite other words, over and over, quite other words"], 300, None)
    else:
        other = tiny.make_tokenizer("alpaca" if change == "template" else None)
    policy = tiny.make_policy(other, seed=3)
    if role == "reference":
        tiny.write(folders / "odd", policy, other)
    else:
        tiny.make_scalar(folders / "odd", policy, other)
    if change == "pad":
        path = folders / "odd" / "tokenizer_config.json"
        settings = json.loads(path.read_text())
        path.write_text(json.dumps(settings | {"pad_token": "!"}))
    with pytest.raises(ModelError, match=rf"model\.{role}: .*odd has another tokenizer"):
        load(folders, **{role: str(folders / "odd")})
