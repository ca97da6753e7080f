"""The roles, loaded from folders: what each starts as, what is trained, and what does not fit together."""

from __future__ import annotations

import json

import pytest
import torch
import transformers
from helpers import tiny

from alignment.errors import ConfigError, ModelError
from alignment.models.lengths import LengthError
from alignment.models.scalar import load_scalar_model
from alignment.models.selfcheck import why_not_split
from alignment.registry import Registry
from ppo.config import PPOStageConfig
from ppo.loading import load_models
from ppo.roles import Role, pack_if_possible
from ppo.rows import Row
from ppo.sequences import lay_out
from ppo.sources import find_models

ROW = Row([5, 6, 7], [8, 9, 10, 11, 2])


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


def load(folder, ppo=(), training=(), **model):
    values = {
        "name": "tiny",
        "model": {"policy": str(folder / "policy"), "reward": str(folder / "reward"), **model},
        "data": {"train": "none", "max_length": 32},
        "ppo": dict(ppo),
        "training": dict(training),
        "registry": {"name": "tiny"},
    }
    config = PPOStageConfig.model_validate(values)
    return load_models(config, find_models(config, Registry(folder / "registry")))


def batch(models):
    return lay_out([ROW], [0], models.packed, 0, torch.device("cpu"))


def outputs(models):
    with torch.no_grad():
        return models.trained(batch(models), "both", 1.0, True)


def test_the_reference_starts_as_the_policy_and_the_critic_as_the_reward_model(folders):
    models = load(folders)
    found = outputs(models)
    with torch.no_grad():
        reference = models.reference.logprobs(batch(models), 1.0).logprobs
        scores = models.reward.member_scores([ROW], [], torch.device("cpu"))
        whole = load_scalar_model(str(folders / "reward"))
        ids = torch.tensor([[*ROW.prompt, *ROW.response]])
        plain = whole(ids, torch.ones_like(ids, dtype=torch.bool))[0]
    torch.testing.assert_close(reference, found.logprobs)
    critic = models.critic
    torch.testing.assert_close(critic.head_scale * found.values, plain[2:-1])
    assert float(critic.head.weight.norm()) == pytest.approx(1.0)  # whatever the scale of the scores
    torch.testing.assert_close(scores, plain[None, -1:])
    assert plain.abs().mean() > 0.5  # the bias of 1.5 is subtracted in both
    assert models.sources["value"] == models.sources["reward"]
    assert models.sources["reference"] == models.sources["init"]


def test_no_two_whole_models_share_a_tensor(folders):
    models = load(folders)
    roles = (*models.trained.roles, models.reference, *models.reward.members)
    places = [{parameter.data_ptr() for parameter in role.model.parameters()} for role in roles]
    assert len(set.union(*places)) == sum(map(len, places))


def test_dropout_is_off_in_every_role_and_only_policy_and_critic_learn(folders):
    models = load(folders)
    first, second = outputs(models), outputs(models)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    models.trained.train()
    assert torch.equal(outputs(models).logprobs, first.logprobs)  # nothing random is left in it
    models.trained.eval()
    assert all(parameter.requires_grad for parameter in models.trained.parameters())
    for module in models.frozen():
        assert not any(parameter.requires_grad for parameter in module.parameters())


def test_a_critic_and_a_reference_of_their_own(folders, tokenizer):
    tiny.write(folders / "other", tiny.make_policy(tokenizer, seed=5), tokenizer)
    critic = tiny.make_scalar(folders / "critic", tiny.make_policy(tokenizer, seed=6), tokenizer)
    tiny.write(folders / "critic", critic.model, tokenizer)
    models = load(folders, reference=str(folders / "other"), value_init=str(folders / "critic"))
    expected = load_scalar_model(str(folders / "critic"))
    for name, value in expected.model.state_dict().items():
        scale = models.critic.head_scale if name == "score.weight" else 1.0
        torch.testing.assert_close(value, scale * models.trained.value_model.state_dict()[name])
    assert not torch.equal(models.reference.base.lm_head.weight, models.policy.base.lm_head.weight)
    relations = {parent.role: parent.ref for parent in models.parents()}
    assert relations == {
        role: str(folders / name)
        for role, name in (("init", "policy"), ("reference", "other"), ("reward", "reward"), ("value", "critic"))
    }


@pytest.mark.parametrize("critic", ["trunk", "adapter"])
def test_a_new_critic_says_nothing_at_first(folders, critic):
    """Any other start would be noise in the first advantages; and the policy is what it was."""
    models, plain = load(folders, value=critic), load(folders)
    found = outputs(models)
    assert found.values.tolist() == [0.0] * 5
    torch.testing.assert_close(found.logprobs, outputs(plain).logprobs)
    torch.testing.assert_close(models.reference.logprobs(batch(models), 1.0).logprobs, found.logprobs)
    names = [name for name, _ in models.trained.trained_parameters("value")]
    assert (names == ["value_head.weight"]) == (critic == "trunk")
    assert not any(".value." in name for name, _ in models.trained.trained_parameters("policy"))
    assert models.trained.passes == (("both",) if critic == "trunk" else ("policy", "value"))


def test_without_a_critic_none_is_loaded(folders):
    models = load(folders, ppo={"advantage_estimator": "reinforce++"})
    assert models.trained.passes == ("policy",)
    assert "value" not in models.sources
    assert outputs(models).values is None


@pytest.mark.parametrize("method", ["lora", "dora", "rslora"])
def test_a_policy_that_is_an_adapter_has_its_base_as_reference(folders, method):
    models = load(folders, method=method, adapter={"r": 4})
    assert models.reference.model is models.policy.model
    torch.testing.assert_close(models.reference.logprobs(batch(models), 1.0).logprobs, outputs(models).logprobs)
    trained = [name for name, _ in models.trained.trained_parameters("policy")]
    assert trained
    assert all("lora_" in name for name in trained)
    assert models.base == models.sources["init"]
    with torch.no_grad():
        for _, parameter in models.trained.trained_parameters("policy"):
            parameter.add_(0.1)
    assert not torch.allclose(models.reference.logprobs(batch(models), 1.0).logprobs, outputs(models).logprobs)


@pytest.mark.parametrize("checkpointed", [False, True])
def test_an_adapter_in_the_output_head_is_the_policys_alone(folders, checkpointed):
    """The reference would read it too, and the KL be 0 whatever is learned."""
    models = load(
        folders,
        training={"gradient_checkpointing": checkpointed},
        ppo={"advantage_estimator": "reinforce++"},
        method="lora",
        adapter={"target_modules": ["q_proj", "lm_head"]},
    )
    before = outputs(models).logprobs
    torch.testing.assert_close(models.reference.logprobs(batch(models), 1.0).logprobs, before)
    trained = models.trained.trained_parameters("policy")
    assert any("lm_head" in name for name, _ in trained)
    torch.manual_seed(0)
    with torch.no_grad():
        for _, parameter in trained:  # at random: the same in every row would add one number to all logits
            parameter.add_(0.3 * torch.randn_like(parameter))
    after = models.trained(batch(models), "policy", 1.0, True).logprobs
    after.sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for _, parameter in trained)
    with models.policy.model.disable_adapter(), torch.no_grad():
        ids = torch.tensor([[*ROW.prompt, *ROW.response]])
        plain = models.policy.model(ids).logits.log_softmax(-1)[0, 2:-1].gather(1, ids[0, 3:, None])[:, 0]
    torch.testing.assert_close(models.reference.logprobs(batch(models), 1.0).logprobs.detach(), plain)
    assert not torch.allclose(after.detach(), plain, atol=1e-2)


def test_a_head_with_an_adapter_is_no_trunk(folders):
    with pytest.raises(ModelError, match="with an adapter in the head"):
        load(folders, method="lora", adapter={"target_modules": ["lm_head"]}, value="trunk")


@pytest.mark.parametrize("packed", [False, True])
def test_scaled_logits_are_the_models_own_at_response_tokens(packed):
    """And no others are asked for: with a large vocabulary those of the prompts would fill the memory."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.GraniteConfig(**sizes, num_key_value_heads=2, vocab_size=40, logits_scaling=0.1)
    role = Role(transformers.AutoModelForCausalLM.from_config(config).eval())
    assert "product" in why_not_split(role.base, [3, 4, 5])
    role.layers = None
    assert not packed or pack_if_possible([role], 32) is None
    rows = [ROW, Row([5, 6], [3]), Row([5, 6], [4, 7, 2])]
    expected = []
    for row in rows:
        logits = role.base(torch.tensor([[*row.prompt, *row.response]])).logits[0, len(row.prompt) - 1 : -1] / 0.7
        expected.append(logits.log_softmax(-1).gather(1, torch.tensor(row.response)[:, None])[:, 0])
    asked = []
    role.base.lm_head.register_forward_hook(lambda module, inputs, output: asked.append(output.shape))
    found = role.logprobs(lay_out(rows, [0, 1, 2], packed, 0, torch.device("cpu")), 0.7)
    torch.testing.assert_close(found.logprobs, torch.cat(expected), atol=1e-5, rtol=1e-5)
    assert asked[0][:2] == ((1, 8) if packed else (3, 6))  # of 14 tokens, or of three rows of 8


@pytest.mark.parametrize(("method", "offload"), [("full", True), ("full", False), ("lora", True)])
def test_frozen_models_wait_in_the_hosts_memory_and_the_policys_own_base_does_not(folders, method, offload):
    """The weights lent to the meta device could not be copied back: what is there afterwards never left."""
    models = load(folders, method=method, offload=offload)
    model = models.reference.model
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    before = {name: (tensor.data_ptr(), tensor.clone()) for name, tensor in tensors.items()}
    with models.resident([model], torch.device("meta")):
        inside = {tensor.device.type for tensor in (*model.parameters(), *model.buffers())}
    waits = offload and method == "full"
    assert inside == ({"meta"} if waits else {"cpu"})
    after = dict(model.named_parameters()) | dict(model.named_buffers())
    for name, tensor in tensors.items():
        assert after[name] is tensor
        assert tensor.data_ptr() == before[name][0]
        assert torch.equal(tensor, before[name][1])


@pytest.mark.parametrize(
    ("role", "folder", "reason"),
    [
        ("reward", "body", "body: a policy, which has no score head; name a reward model"),
        ("value_init", "body", "body: a policy, which has no score head; name a reward model"),
        ("held_out_reward", "body", "body: a policy, which has no score head; name a reward model"),
        ("policy", "reward", "reward: a reward model; name a policy"),
        ("reference", "reward", "reward: a reward model; name a policy"),
    ],
)
def test_a_folder_with_the_other_kind_of_model_is_refused(folders, role, folder, reason):
    # Outside the registry no manifest tells the kinds apart, and transformers would make up what is missing.
    with pytest.raises(ModelError, match=reason):
        load(folders, **{role: str(folders / folder)})


def test_a_bfloat16_body_still_scores_in_float32(folders):
    models = load(folders)
    for model in (models.policy.model, models.trained.value_model.base_model, models.reward.members[0].base.base_model):
        model.to(torch.bfloat16)
    found = outputs(models)
    assert models.policy.model.dtype == torch.bfloat16
    assert {x.dtype for x in found} == {torch.float32}
    assert models.reward.member_scores([ROW], [], torch.device("cpu")).dtype == torch.float32


def odd_tokens(folders, change, role):
    if change == "tokens":
        other = tiny.train_tokenizer(["quite other words, over and over, quite other words"], 300, None)
    else:
        other = tiny.make_tokenizer("alpaca" if change == "template" else None)
    policy = tiny.make_policy(other, seed=3)
    if role == "reference":
        tiny.write(folders / "odd", policy, other)
    else:
        scalar = tiny.make_scalar(folders / "odd-body", policy, other)
        tiny.write(folders / "odd", scalar.model, other)
    return str(folders / "odd")


@pytest.mark.parametrize("change", ["tokens", "template"])
@pytest.mark.parametrize(("key", "role"), [("reference", "reference"), ("value_init", "value")])
def test_a_role_that_reads_other_tokens_than_the_policy_is_refused(folders, key, role, change):
    with pytest.raises(ModelError, match=rf"model\.{role}: .*odd has another tokenizer"):
        load(folders, **{key: odd_tokens(folders, change, role)})


def test_a_reward_model_with_other_tokens_reads_text_and_is_no_critic(folders):
    odd = odd_tokens(folders, "tokens", "reward")
    with pytest.raises(ModelError, match=r"model\.value: .*odd has another tokenizer.*or set model.value=trunk"):
        load(folders, reward=odd)
    models = load(folders, reward=odd, value="trunk")
    assert models.reward.text_model is not None
    assert models.reward.members == []


def test_text_beyond_the_positions_of_a_reward_model_with_other_tokens_is_refused(folders):
    """`data.max_length` is in the policy's tokens; the same text can have more of the reward model's."""
    other = tiny.train_tokenizer(["quite other words, over and over, quite other words"], 300, None)
    scalar = tiny.make_scalar(folders / "odd-body", tiny.make_gpt2(other), other)
    tiny.write(folders / "odd", scalar.model, other)
    reward = load(folders, reward=str(folders / "odd"), value="trunk").reward

    def score(words):
        turns = [{"role": "user", "content": "zyx " * words}, {"role": "assistant", "content": "yes"}]
        return reward.member_scores([], [turns], torch.device("cpu"))

    assert torch.isfinite(score(10)).all()
    with pytest.raises(LengthError, match=r"has 256 positions; lower data\.max_length"):
        score(90)


def test_an_answer_that_the_reward_models_template_rewrites_is_scored_all_the_same(folders):
    """As templates that leave out what was thought do: one sampled answer must not end the run."""
    other = tiny.train_tokenizer(["quite other words, over and over, quite other words"], 300, None)
    other.chat_template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content.split('</think>')[-1] }}"
        "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    scalar = tiny.make_scalar(folders / "odd-body", tiny.make_policy(other, seed=3), other)
    tiny.write(folders / "odd", scalar.model, other)
    reward = load(folders, reward=str(folders / "odd"), value="trunk").reward

    def score(answer):
        turns = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": answer}]
        return reward.member_scores([], [turns], torch.device("cpu"))

    torch.testing.assert_close(score("let me see</think>Words over words"), score("Words over words"))
    assert not torch.allclose(score("Words over words"), score("other words"))


OWN_CODE = """
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel, LlamaPreTrainedModel


class Own(LlamaConfig):
    model_type = "NAME"


class OwnPolicy(LlamaForCausalLM):
    config_class = Own


class OwnReward(LlamaPreTrainedModel):
    config_class = Own

    def __init__(self, config):
        super().__init__(config)
        self.model = LlamaModel(config)
        self.score = nn.Linear(config.hidden_size, config.num_labels, bias=False)
        self.post_init()
"""


def bring_code(folder, auto_class, own_class):
    """Make the model's folder one that runs Python of its own."""
    (folder / "own.py").write_text(OWN_CODE.replace("NAME", folder.name))
    path = folder / "config.json"
    auto_map = {"AutoConfig": "own.Own", auto_class: f"own.{own_class}"}
    settings = {"model_type": folder.name, "architectures": [own_class], "auto_map": auto_map}
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def test_code_of_its_own_runs_in_every_role_where_it_is_trusted_and_in_none_else(folders, monkeypatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(folders / "modules"))
    monkeypatch.syspath_prepend(str(folders / "modules"))
    bring_code(folders / "policy", "AutoModelForCausalLM", "OwnPolicy")
    bring_code(folders / "reward", "AutoModelForSequenceClassification", "OwnReward")
    with pytest.raises(ModelError, match="trust_remote_code"):
        load(folders)
    models = load(folders, trust_remote_code=True, held_out_reward=str(folders / "reward"))
    policy, critic = models.trained.roles
    roles = [policy, critic, models.reference, *models.reward.members, *models.held_out_reward.members]
    names = [type(role.base).__name__ for role in roles]
    assert names == ["OwnPolicy", "OwnReward", "OwnPolicy", "OwnReward", "OwnReward"]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"reward_ensemble": "min"}, "reward is a single reward model"),
        ({"value": "trunk", "value_init": "x"}, "model.value_init is for a critic of its own"),
        ({"mode": "shared"}, "reward is a whole model; name one that is an adapter on the policy's base"),
    ],
)
def test_keys_that_do_not_go_together(folders, model, message):
    with pytest.raises((ModelError, ConfigError), match=message):
        load(folders, **model)


def test_a_critic_needs_something_to_start_from(folders):
    values = {
        "name": "tiny",
        "model": {"policy": str(folders / "policy")},
        "rewards": {"others": [{"function": "a:b"}]},
        "data": {"train": "none"},
        "registry": {"name": "tiny"},
    }
    config = PPOStageConfig.model_validate(values)
    with pytest.raises(ConfigError, match=r"there is none; set model.value_init, or model.value=trunk"):
        find_models(config, Registry(folders / "registry"))
