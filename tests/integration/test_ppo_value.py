"""A critic before and after a run: fitted before the policy moves, published, and taken up by a later run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from helpers import tiny

from alignment.models.ensembles import load_reward_model
from alignment.models.sources import find_model
from alignment.models.tokenizers import load_tokenizer
from alignment.ratings import Completion, RatingsStore
from alignment.registry import Registry
from alignment.training.stage import run_stage
from ppo import value_data
from ppo.config import PPOStageConfig
from ppo.plan import plan
from ppo.train import train

CONFIG = {
    "name": "first",
    "model": {"policy": "sft", "reward": "reward"},
    "data": {"train": "prompts.jsonl", "eval_share": 0.3, "max_length": 64},
    "rewards": {"missing_eos_penalty": None},  # few of these answers end, and all would score the same
    "rollout": {"batch_size": 8, "max_new_tokens": 6},
    "training": {"max_steps": 2, "learning_rate": 1e-3},
    "registry": {"name": "ppo", "path": "registry", "alias": "newest"},
    "tracking": {"wandb": "disabled"},
}


@pytest.fixture
def house(tmp_path, tokenizer, monkeypatch):
    """A registry with an SFT model and a reward model, whose scores average 7 and spread by a few, and 24 prompts."""
    monkeypatch.chdir(tmp_path)
    registry = Registry("registry")
    policy = tiny.make_policy(tokenizer, seed=1)
    registry.publish("sft", tiny.write(tmp_path / "policy", policy, tokenizer), stage="sft", role="policy")
    scalar = tiny.make_scalar(tmp_path / "body", tiny.make_policy(tokenizer, seed=2), tokenizer, seed=2)
    scalar.model.config.score_bias = -7.0
    registry.publish("reward", tiny.write(tmp_path / "reward", scalar.model, tokenizer), stage="reward", role="reward")
    rows = [{"prompt": f"What about floor {number}?" + " Please." * (number % 3)} for number in range(24)]
    Path("prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("ppo.yaml").write_text(json.dumps(CONFIG))
    return registry


def stage(*arguments):
    return run_stage("ppo", PPOStageConfig, train, plan, ["ppo.yaml", *arguments])


def events(kind, run="first"):
    lines = Path("runs", run, "events.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["event"] == kind]


def values_of(registry, name):
    """What a published critic says at each token of a conversation."""
    source = find_model(name, registry, role="value")
    tokenizer = load_tokenizer(source)
    ids = torch.tensor([tokenizer("What about floor 3? The library opens.")["input_ids"]])
    with torch.no_grad():
        return load_reward_model(source).eval()(ids, torch.ones_like(ids, dtype=torch.bool))[0]


KINDS = {
    "separate": [],
    "adapter": ["model.value=adapter"],
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_critic_is_published_in_the_unit_of_scores_and_taken_up(house, kind):
    assert stage(*KINDS[kind], "training.value_learning_rate=3e-2", "training.max_steps=6") == 0
    manifest = house.resolve("ppo-value@v1").manifest
    assert (manifest.stage, manifest.role, manifest.run_id) == ("ppo", "value", "first")
    assert {parent.role: parent.ref for parent in manifest.parents}["init"] == "sft@v1"
    assert (manifest.base and manifest.base.ref) == (None if kind == "separate" else "sft@v1")
    assert manifest.metrics["explained_variance"] <= 1
    assert house.aliases("ppo-value") == {}  # which would lead to a critic before its policy is there
    assert house.resolve("ppo@newest").number == 1
    assert values_of(house, "ppo-value").mean() == pytest.approx(7.0, abs=5.0)  # a normalised value would be about 0
    assert stage("name=again", "model.value_init=ppo-value", *KINDS[kind]) == 0
    parents = {parent.role: parent.ref for parent in house.resolve("ppo@v2").manifest.parents}
    assert parents["value"] == "ppo-value@v1"
    rows = [json.loads(line) for line in Path("runs/again/metrics.jsonl").read_text().splitlines()]
    first = next(row for row in rows if "value/loss" in row)
    assert first["value/loss"] < 5  # a half of a squared error in standard deviations: it is in the right unit


def test_a_critic_on_one_base_with_all_roles(house, tokenizer):
    reward = ["model.name=sft", "model.method=lora", "training.max_steps=1", "registry.name=lora-reward"]
    from reward.config import RewardStageConfig
    from reward.train import train as train_reward

    rows = [{"prompt": f"Floor {n}?", "chosen": f"Yes, {n}.", "rejected": "No."} for n in range(8)]
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {"name": "r", "model": {"name": "sft"}, "data": {"train": "pairs.jsonl", "eval_share": 0}}
    config |= {"registry": {"name": "lora-reward", "path": "registry"}, "tracking": {"wandb": "disabled"}}
    Path("reward.yaml").write_text(json.dumps(config))
    assert run_stage("reward", RewardStageConfig, train_reward, lambda *_: {}, ["reward.yaml", *reward]) == 0
    shared = ["model.reward=lora-reward", "model.mode=shared"]
    assert stage(*shared) == 0
    assert house.resolve("ppo-value@v1").manifest.base.ref == "sft@v1"
    assert torch.isfinite(values_of(house, "ppo-value")).all()
    assert stage("name=again", "model.value_init=ppo-value", *shared) == 0
    assert {parent.role: parent.ref for parent in house.resolve("ppo@v2").manifest.parents}["value"] == "ppo-value@v1"


def test_a_head_on_the_trunk_is_not_published(house):
    assert stage("model.value=trunk") == 0
    assert house.names() == ["ppo", "reward", "sft"]


def test_a_policy_is_no_start_of_a_critic(house, capsys):
    assert stage("model.value_init=sft") == 2
    assert "sft@v1 is a policy; a critic or a reward model was asked for" in capsys.readouterr().err


def test_a_critic_that_is_no_adapter_on_the_base_is_refused(house, capsys):
    assert stage("model.value=adapter", "model.value_init=reward") == 2
    assert "reward@v1 is no adapter on sft@v1" in capsys.readouterr().err


# --- fitting it before the policy moves ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["separate", "adapter", "trunk"])
def test_fitting_on_rollouts_moves_the_critic_alone_and_explains_more(house, kind, monkeypatch):
    monkeypatch.setattr(value_data, "MAX_ANSWERS", 64)
    fit = ["ppo.value_pretrain=rollouts", "training.value_learning_rate=1e-2"]
    assert stage(f"model.value={kind}", *fit, "training.learning_rate=1e-12") == 0
    (found,) = events("value_pretrained")
    explained = found["explained_variance"]
    assert found["answers"] == 64
    assert len(explained) > 2
    rows = [json.loads(line) for line in Path("runs/first/metrics.jsonl").read_text().splitlines()]
    assert not Path("runs/first/critic").exists()
    if kind == "separate":  # a new head on a few random features explains little
        assert max(explained) > explained[0] + 0.05
    rows = [json.loads(line) for line in Path("runs/first/metrics.jsonl").read_text().splitlines()]
    first = next(row for row in rows if "value/explained_variance" in row)
    plain_run = ["name=plain", f"model.value={kind}", "training.learning_rate=1e-12"]
    assert stage(*plain_run) == 0
    plain = [json.loads(line) for line in Path("runs/plain/metrics.jsonl").read_text().splitlines()]
    unfitted = next(row for row in plain if "value/explained_variance" in row)
    assert first["rollout/score"] == pytest.approx(unfitted["rollout/score"])  # the policy has not moved
    assert first["value/explained_variance"] != pytest.approx(unfitted["value/explained_variance"], abs=1e-4)


def write_ratings(path):
    with RatingsStore(path, create=True) as store:
        for number in range(12):
            prompt = [{"role": "user", "content": f"What about floor {number}?"}]
            store.add_item(prompt, [Completion("The library opens at nine."), Completion(f"No, {number}.")])


def test_answers_that_are_there_are_scored_and_fitted_on(house):
    rows = [{"prompt": f"Floor {n}?", "chosen": f"Yes, {n}.", "rejected": "No."} for n in range(10)]
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_ratings("ratings.db")
    for number, (path, count) in enumerate([("pairs.jsonl", 20), ("ratings.db", 24)]):
        assert stage(f"name=fit-{number}", f"ppo.value_pretrain={path}", "training.max_steps=1") == 0
        (found,) = events("value_pretrained", f"fit-{number}")
        assert found["answers"] == count
        assert [mark["name"] for mark in house.resolve("ppo").manifest.model_dump()["data"]][-1] == path


def test_answers_that_cannot_be_used_are_counted_and_written_down(house, capsys):
    rows = [{"prompt": f"Floor {n}?", "completion": f"Yes, {n}."} for n in range(8)]
    rows += [{"prompt": f"Floor {n}?" * 40, "completion": "No."} for n in range(3)]
    Path("answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert stage("--dry-run", "ppo.value_pretrain=answers.jsonl") == 0
    found = json.loads(capsys.readouterr().out)["plan"]
    assert (found["value_pretrain_answers"], found["bad_rows"]) == (8, 3)
    assert stage("ppo.value_pretrain=answers.jsonl", "training.max_steps=1") == 0
    assert "answers.jsonl:9" in next(Path("runs/first").glob("*bad*")).read_text()


def test_a_reward_that_needs_a_column_is_refused_before_the_run(house, capsys, monkeypatch):
    monkeypatch.syspath_prepend(str(Path.cwd()))
    Path("own_rewards.py").write_text("def matches(prompts, responses, answer):\n    return [1.0] * len(prompts)\n")
    rows = [{"prompt": f"Floor {n}?", "answer": "yes", "completion": f"Yes, {n}."} for n in range(24)]
    for name in ("prompts.jsonl", "answers.jsonl"):
        Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    others = 'rewards.others=[{function: "own_rewards:matches"}]'
    assert stage("--dry-run", "ppo.value_pretrain=answers.jsonl", others, "data.format=completion") == 2
    assert "takes a column 'answer', which no prompt of ppo.value_pretrain has" in capsys.readouterr().err


def test_a_plan_counts_the_answers_and_refuses_a_file_without_any(house, capsys):
    rows = [{"prompt": "Floor?" * 40, "completion": "No."} for n in range(3)]
    Path("long.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert stage("--dry-run", "ppo.value_pretrain=long.jsonl") == 2
    assert "ppo.value_pretrain=long.jsonl: none of its 3 answers fits" in capsys.readouterr().err
