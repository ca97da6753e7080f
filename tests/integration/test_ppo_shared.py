"""One frozen base, four roles: a reward model that is an adapter to a policy that is one; what does not fit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from helpers import tiny

from alignment.config.loading import validate
from alignment.models.ensembles import load_reward_model
from alignment.models.policies import load_policy
from alignment.models.sources import find_model
from alignment.registry import Registry
from alignment.training.stage import run_stage
from ppo.config import PPOStageConfig
from ppo.loading import load_models
from ppo.plan import plan
from ppo.prompts import encode_prompts, make_tasks
from ppo.rows import Row
from ppo.sequences import lay_out
from ppo.sources import find_models
from ppo.train import train

TURNS = [("cats", "They sleep."), ("books", "On floor two."), ("hours", "From nine."), ("maps", "On the wall.")]


def reward_stage(house, name, start, *overrides):
    import reward.plan
    import reward.train
    from reward.config import RewardStageConfig

    config = {
        "name": name,
        "model": {"name": start, "method": "lora", "adapter": {"r": 4}},
        "data": {"train": "pairs.jsonl", "eval_share": 0, "max_length": 64},
        "training": {"max_steps": 3, "per_device_train_batch_size": 4, "learning_rate": 1e-2},
        "registry": {"name": name, "path": "registry"},
        "tracking": {"wandb": "disabled"},
    }
    Path(f"{name}.yaml").write_text(json.dumps(config))
    arguments = [f"{name}.yaml", *overrides]
    assert run_stage("reward", RewardStageConfig, reward.train.train, reward.plan.plan, arguments) == 0


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    """An SFT model, an SFT adapter on a base, and adapters on them that score."""
    folder = tmp_path_factory.mktemp("shared")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        tokenizer = tiny.make_tokenizer()
        registry = Registry("registry")
        for name, seed in (("sft", 1), ("base", 2)):
            policy = tiny.make_policy(tokenizer, seed=seed)
            registry.publish(name, tiny.write(folder / name, policy, tokenizer), stage="sft", role="policy")
        pairs = [{"prompt": f"What of {a}?", "chosen": b, "rejected": "No."} for a, b in TURNS]
        Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
        Path("prompts.jsonl").write_text("".join(json.dumps({"prompt": row["prompt"]}) + "\n" for row in pairs))
        reward_stage(folder, "score", "sft")
        reward_stage(folder, "scores", "sft", "training.members=2")
        reward_stage(folder, "base-score", "base")
        _sft_adapter(folder)
        yield folder


def _sft_adapter(folder):
    import sft.plan
    import sft.train
    from sft.config import SFTStageConfig

    rows = [{"prompt": f"What of {a}?", "completion": b} for a, b in TURNS]
    Path("demonstrations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {
        "name": "talk",
        "model": {"name": "base", "method": "lora", "adapter": {"r": 4}},
        "data": {"train": "demonstrations.jsonl", "eval_share": 0, "max_length": 64},
        "training": {"max_steps": 2, "per_device_train_batch_size": 4, "learning_rate": 1e-2},
        "registry": {"name": "talk", "path": "registry"},
        "tracking": {"wandb": "disabled"},
    }
    Path("talk.yaml").write_text(json.dumps(config))
    assert run_stage("sft", SFTStageConfig, sft.train.train, sft.plan.plan, ["talk.yaml"]) == 0


def settings(**sections):
    values = {
        "name": "shared",
        "model": {"policy": "sft", "reward": "score", "mode": "shared"},
        "data": {"train": "prompts.jsonl", "eval_share": 0, "max_length": 64},
        "rollout": {"batch_size": 4, "max_new_tokens": 6},
        "training": {"max_steps": 2, "learning_rate": 1e-2},
        "registry": {"name": "shared", "path": "registry"},
        "tracking": {"wandb": "disabled"},
    }
    for name, changes in sections.items():
        values[name] = {**values.get(name, {}), **changes}
    return values


@pytest.fixture
def here(house, monkeypatch):
    monkeypatch.chdir(house)
    return Registry("registry")


def load(registry, **sections):
    config = validate(PPOStageConfig, settings(**sections), "here")
    return load_models(config, find_models(config, registry))


ROW = Row([5, 6, 7], [8, 9, 10, 11, 2])


def batch(models):
    return lay_out([ROW], [0], models.packed, 0, torch.device("cpu"))


@pytest.mark.parametrize(
    ("policy", "reward"),
    [("sft", "score"), ("sft", "scores"), ("talk", "base-score")],
    ids=["one", "ensemble", "sft-adapter"],
)
@torch.no_grad()
def test_each_role_is_what_it_would_be_as_a_model_of_its_own(here, policy, reward):
    models = load(
        here, model={"policy": policy, "reward": reward, "reward_ensemble": "min" if reward == "scores" else None}
    )
    whole = load_policy(find_model(policy, here, role="policy"))
    ids = torch.tensor([[*ROW.prompt, *ROW.response]])
    expected = whole(input_ids=ids).logits[0, 2:-1].log_softmax(-1).gather(1, ids[0, 3:, None]).squeeze(1)
    found = models.trained(batch(models), "both", 1.0)
    torch.testing.assert_close(found.logprobs, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(models.reference.logprobs(batch(models), 1.0).logprobs, expected, rtol=0, atol=1e-5)
    apart = load_reward_model(find_model(reward, here, role="reward"), combine="min" if reward == "scores" else "mean")
    scores, std = models.reward.combined(models.reward.member_scores([ROW], [], torch.device("cpu")))
    torch.testing.assert_close(scores, apart.score(ids, torch.ones_like(ids, dtype=torch.bool)), rtol=0, atol=1e-5)
    assert (std is None) == (reward != "scores")
    # The critic starts as the reward model: at the last token it says what that scores.
    one = models.reward.member_scores([Row(ROW.prompt, ROW.response[:-1])], [], torch.device("cpu"))[0]
    torch.testing.assert_close(models.critic.head_scale * found.values[-1:], one, rtol=0, atol=1e-5)


def test_four_roles_take_the_memory_of_one(here):
    models = load(here)
    modules = {id(m): m for m in (models.trained, models.reference.model, *(r.model for r in models.reward.members))}
    names = {p.data_ptr(): name for module in modules.values() for name, p in module.named_parameters()}
    sizes = {p.data_ptr(): p.numel() for module in modules.values() for p in module.parameters()}
    whole = sum(size for place, size in sizes.items() if "lora_" not in names[place] and "head" not in names[place])
    assert whole == sum(p.numel() for p in load_policy(find_model("sft", here, role="policy")).parameters())
    roles = {role.base for role in (*models.trained.roles, models.reference, *models.reward.members)}
    assert len(roles) == 1


@pytest.mark.parametrize("value", ["adapter", "trunk", "separate"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_every_trained_tensor_learns_and_nothing_else(here, tmp_path, value, checkpointing):
    from alignment.data.records import Prompt
    from alignment.distributed import processes
    from alignment.runs.journal import Journal
    from ppo.loop import Loop

    sections = {"model": {"value": value}, "training": {"gradient_checkpointing": checkpointing}}
    models = load(here, **sections)
    config = validate(PPOStageConfig, settings(**sections), "here")
    before = {name: p.detach().clone() for name, p in models.trained.named_parameters()}
    prompts = [Prompt(({"role": "user", "content": f"What of {a}?"},)) for a, _ in TURNS]
    accelerator = processes.make_accelerator()
    encoded, too_long = encode_prompts(prompts, models.tokenizer, 58, "raise")
    assert too_long == 0
    loop = Loop(config, models, accelerator, Journal(tmp_path, enabled=False), encoded)
    for _ in range(2):  # LoRA's B is 0 at first, and A then has no gradient
        loop.iterate([0, 1, 2, 3])
    moved = {name for name, p in models.trained.named_parameters() if not torch.equal(p, before[name])}
    trained = {name for of in ("policy", "value") for name, _ in models.trained.trained_parameters(of)}
    assert moved == trained
    assert make_tasks(loop.prompts, [0], 1)


def stage(*arguments, **sections):
    Path("shared.yaml").write_text(json.dumps(settings(**sections)))
    return run_stage("ppo", PPOStageConfig, train, plan, ["shared.yaml", "--overwrite", *arguments])


@pytest.mark.parametrize(("policy", "reward", "base"), [("sft", "score", "sft"), ("talk", "base-score", "base")])
def test_the_policy_is_published_as_an_adapter_on_the_base(here, policy, reward, base):
    name = f"ppo-{policy}"
    assert stage(model={"policy": policy, "reward": reward}, registry={"name": name, "path": "registry"}) == 0
    version = here.resolve(name)
    assert version.manifest.base.digest == here.resolve(base).digest
    assert {parent.role: parent.ref for parent in version.manifest.parents} == {
        "init": f"{policy}@v1", "reference": f"{policy}@v1", "reward": f"{reward}@v1", "value": f"{reward}@v1",
    }  # fmt: skip
    files = {path.name for path in Path(version.path).iterdir()}
    assert "adapter_model.safetensors" in files
    assert "model.safetensors" not in files
    before, after = (load_policy(find_model(who, here, role="policy")).state_dict() for who in (policy, name))
    assert any(not torch.equal(before[key], after[key]) for key in before)
    # What was published goes on as the next round's policy.
    assert stage("--dry-run", model={"policy": name, "reward": reward}) == 0


@pytest.mark.parametrize(("policy", "base"), [("sft", "sft"), ("talk", "base")])
def test_a_function_may_give_the_reward(here, monkeypatch, policy, base):
    monkeypatch.syspath_prepend(Path.cwd())
    Path("short.py").write_text("def score(prompts, responses, **more):\n    return [-len(x) / 9 for x in responses]\n")
    changes = {
        "model": {"policy": policy, "reward": None, "value": "trunk"},
        "rewards": {"others": [{"function": "short:score"}]},
        "registry": {"name": f"short-{policy}", "path": "registry"},
    }
    assert stage(**changes) == 0
    assert here.resolve(f"short-{policy}").manifest.base.digest == here.resolve(base).digest


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"reward": "base-score"}, "base-score@v1 is an adapter on base@v1, which is neither sft@v1"),
        ({"value_init": "base-score"}, "model.value_init: base-score@v1 is no adapter on sft@v1"),
        ({"reference": "base"}, "in shared mode the reference is the policy as it starts"),
        ({"method": "full"}, "model.method=full trains the base that all roles share"),
        ({"offload": True}, "model.offload"),
        ({"policy": "talk", "reward": "base-score", "method": "dora"}, "talk@v1 is an adapter, which is trained on"),
    ],
)
def test_what_does_not_fit_on_one_base_is_refused(here, capsys, model, message):
    assert stage(model=model) == 2
    assert message in capsys.readouterr().err
