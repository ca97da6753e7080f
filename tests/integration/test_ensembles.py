"""Ensembles of reward models: trained, published, loaded onto one body, shown, exported, and used by PPO."""

import json
from pathlib import Path

import pytest
import torch
from test_reward_stage import _here, events, house, run, settings, write  # noqa: F401 - fixtures among them
from transformers import AutoModelForSequenceClassification
from typer.testing import CliRunner

import ppo.plan
import ppo.train
import reward.train
from alignment.cli.main import app
from alignment.config.loading import validate
from alignment.errors import ModelError
from alignment.models.ensembles import RewardEnsemble, disagreement, load_member, load_reward_model
from alignment.models.export import export
from alignment.models.reward_files import is_ensemble
from alignment.models.scalar import ScalarModel, load_scalar_model
from alignment.models.sources import find_model
from alignment.models.tokenizers import load_tokenizer
from alignment.registry import Registry
from alignment.templates.rendering import encode_conversation
from alignment.tensors import pad_rows
from ppo.config import PPOStageConfig
from ppo.loading import load_models
from ppo.rows import Row
from ppo.sequences import lay_out
from ppo.sources import find_models
from reward.config import RewardStageConfig

SIZE = 3
METHODS = {"full": "full", "lora": "lora", "ia3": "ia3"}


def trained(method):
    """The source of an ensemble trained by a method, once per session."""
    name = f"members-{method}"
    if not Registry("registry").is_reference(name):
        training = {"members": SIZE, "learning_rate": 1e-2, "eval_strategy": "steps", "eval_steps": 4}
        config = settings(name, model={"name": "sft", "method": method}, training=training)
        with torch.enable_grad():  # its callers do without
            run(reward.train.train, RewardStageConfig, config)
    return find_model(name, Registry("registry"), role="reward")


def batch(source):
    tokenizer = load_tokenizer(source)
    rows = []
    for word in ("tea", "snow", "maps", "bells", "rain"):
        for answer in (f"Yes, {word} are old.", f"No, {word}? Never old.", "Perhaps."):
            turns = [{"role": "user", "content": f"Say that {word} are old."}, {"role": "assistant", "content": answer}]
            rows.append(encode_conversation(tokenizer, turns).input_ids)
    return pad_rows(rows, tokenizer.pad_token_id, "right")


@pytest.mark.parametrize("method", METHODS)
@torch.no_grad()
def test_the_members_are_published_as_one_version_and_scored_together(house, method):  # noqa: F811
    source = trained(method)
    version = Registry("registry").resolve(source.ref)
    files = set(version.manifest.files)
    assert "ensemble.json" in files
    assert "tokenizer.json" in files
    assert {name.split("/")[0] for name in files if "/" in name} == {f"member-{n}" for n in range(SIZE)}
    weights = "model.safetensors" if method == "full" else "adapter_model.safetensors"
    assert {f"member-{n}/{weights}" for n in range(SIZE)} <= files
    assert len([name for name in files if name.endswith(".safetensors")]) == SIZE
    sft = Registry("registry").resolve("sft")
    assert (version.manifest.base.digest if version.manifest.base else None) == (
        None if method == "full" else sft.digest
    )
    ensemble = load_reward_model(source).eval()
    ids, mask = batch(source)
    scores = ensemble.member_scores(ids, mask)
    assert scores.shape == (SIZE, len(ids))
    for number in range(SIZE):
        alone = load_member(source, number).eval()
        assert isinstance(alone, ScalarModel)
        torch.testing.assert_close(alone.score(ids, mask), scores[number], atol=1e-5, rtol=1e-5)
        assert (scores[number] - scores[number - 1]).abs().max() > 1e-3  # seeds of their own
    torch.testing.assert_close(ensemble.score(ids, mask), scores.mean(0))
    torch.testing.assert_close(ensemble.member_scores(ids, mask), scores, atol=0, rtol=0)  # switching leaves no trace
    assert not any(parameter.requires_grad for parameter in ensemble.parameters()) or method == "full"
    bodies = {id(ensemble.member(number).model) for number in range(SIZE)}
    assert len(bodies) == (SIZE if method == "full" else 1)
    metrics = version.manifest.metrics
    assert set(metrics) >= {"score_bias", "train_loss", "steps", "member-0", "member-2", "accuracy"}


@torch.no_grad()
def test_each_members_scores_average_zero_over_the_demonstrations(house):  # noqa: F811
    for method in ("full", "lora"):
        source = trained(method)
        tokenizer = load_tokenizer(source)
        rows = []
        for row in map(json.loads, Path("sft.jsonl").read_text().splitlines()):
            turns = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["completion"]}]
            rows.append(encode_conversation(tokenizer, turns).input_ids)
        means = load_reward_model(source).eval().member_scores(*pad_rows(rows, tokenizer.pad_token_id, "right")).mean(1)
        assert means.abs().max() < 1e-3


@pytest.mark.parametrize("method", ["full", "lora"])
def test_each_member_is_the_model_that_a_run_with_its_seed_makes(house, method):  # noqa: F811
    source = trained(method)
    ids, mask = batch(source)
    for number in (0, 2):
        name = f"single-{method}-{number}"
        training = {"learning_rate": 1e-2, "seed": 42 + number}
        run(
            reward.train.train,
            RewardStageConfig,
            settings(name, model={"name": "sft", "method": method}, training=training),
        )
        alone = load_reward_model(find_model(name, Registry("registry"), role="reward")).eval()
        with torch.no_grad():
            ours = load_member(source, number).eval().score(ids, mask)
            torch.testing.assert_close(ours, alone.score(ids, mask), atol=1e-4, rtol=1e-4)


def test_the_run_tells_the_members_apart(house):  # noqa: F811
    trained("lora")
    rows = [json.loads(line) for line in Path("runs/members-lora/metrics.jsonl").read_text().splitlines()]
    steps = [row["step"] for row in rows]
    assert steps == sorted(steps)
    assert {"train/loss", "member-1/train/loss", "member-2/train/loss"} <= {name for row in rows for name in row}
    assert [row["step"] for row in rows if "member-2/train/loss" in row] == [9, 10, 11, 12]
    assert len(list(Path("runs/members-lora").glob("tmp*"))) == 0


def test_members_are_a_number_from_one_on(house):  # noqa: F811
    for value, says in ((0, "expected 1 or more, found 0"), ("two", "expected int, found 'two'")):
        config = settings("wrong", training={"members": value})
        with pytest.raises(Exception, match=rf"training\.members: {says}"):
            reward.train.train(validate(RewardStageConfig, config, "test"))
    with pytest.raises(Exception, match=r"unknown key 'training\.member'.*did you mean 'training\.members'"):
        reward.train.train(validate(RewardStageConfig, settings("wrong", training={"member": 2}), "test"))


# --- combining -------------------------------------------------------------------------------------------------------


def test_scores_are_combined_as_it_says():
    scores = torch.tensor([[1.0, 4.0], [2.0, 4.0], [6.0, 4.0]])
    std = (((1 - 3) ** 2 + (2 - 3) ** 2 + (6 - 3) ** 2) / 3) ** 0.5
    expected = {"mean": [3.0, 4.0], "min": [1.0, 4.0], "mean_minus_std": [3 - 0.5 * std, 4.0]}
    for combine, values in expected.items():
        found = RewardEnsemble([], 3, None, combine, 0.5).combined(scores)
        torch.testing.assert_close(found, torch.tensor(values))
    torch.testing.assert_close(disagreement(scores), torch.tensor([std, 0.0]))
    assert torch.equal(disagreement(scores[:1]), torch.zeros(2))


# --- the command line ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["full", "lora"])
def test_show_and_graph_read_an_ensemble(house, method, monkeypatch):  # noqa: F811
    source = trained(method)
    monkeypatch.setenv("ALIGNMENT_REGISTRY", str(Path("registry").resolve()))
    for command in ("show", "graph"):
        result = CliRunner().invoke(app, ["models", command, source.ref])
        assert result.exit_code == 0, result.output
        assert source.ref in result.output
    assert "sft@v1" in result.output


@pytest.mark.parametrize("method", ["full", "lora"])
@torch.no_grad()
def test_each_member_is_exported_as_a_model_of_plain_transformers(house, tmp_path, method):  # noqa: F811
    source = trained(method)
    report = export(source.ref, tmp_path / "out", Registry("registry"))
    assert "its 3 members" in report["written"]
    ids, mask = batch(source)
    scores = load_reward_model(source).eval().member_scores(ids, mask)
    for number in range(SIZE):
        theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out" / f"member-{number}").eval()
        plain = theirs(input_ids=ids, attention_mask=mask).logits.squeeze(-1) - theirs.config.score_bias
        torch.testing.assert_close(plain, scores[number], atol=1e-4, rtol=1e-4)
    with pytest.raises(ModelError, match="an ensemble, whose members are exported merged; leave --adapter out"):
        export(source.ref, tmp_path / "adapter", Registry("registry"), adapter_only=True)


def test_an_ensemble_is_not_taken_for_a_single_model(house):  # noqa: F811
    source = trained("full")
    assert is_ensemble(source)
    with pytest.raises(ModelError, match="several reward models in one, where a single model is needed"):
        load_scalar_model(source)


def test_a_damaged_description_is_one_line(house, tmp_path):  # noqa: F811
    (tmp_path / "ensemble.json").write_text('{"members": 0}')
    from alignment.models.sources import ModelSource

    with pytest.raises(ModelError, match=r"ensemble\.json: not the description of an ensemble"):
        load_reward_model(ModelSource(str(tmp_path)))


# --- PPO -------------------------------------------------------------------------------------------------------------


def ppo_config(name, reward_model, **model):
    return {
        "name": name,
        "model": {"policy": "sft", "reward": reward_model, **model},
        "data": {"train": "sft.jsonl", "eval_share": 0, "max_length": 64},
        "rewards": {"missing_eos_penalty": None},
        "rollout": {"batch_size": 8, "max_new_tokens": 8},
        "training": {"max_steps": 2, "learning_rate": 1e-3},
        "registry": {"name": name, "path": "registry"},
        "tracking": {"wandb": "disabled"},
    }


@pytest.mark.parametrize("method", ["full", "lora"])
def test_ppo_runs_against_an_ensemble_and_logs_how_far_it_disagrees(house, method):  # noqa: F811
    source = trained(method)
    name = f"ppo-{method}"
    config = ppo_config(name, source.ref, reward_ensemble=2)
    run(ppo.train.train, PPOStageConfig, config)
    rows = [json.loads(line) for line in Path("runs", name, "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row.get("reward/score_std", 0) > 1e-3] == [1, 2]
    parents = {parent.role: parent.ref for parent in Registry("registry").resolve(name).manifest.parents}
    assert parents == {"init": "sft@v1", "reference": "sft@v1", "reward": source.ref, "value": source.ref}
    config = ppo_config(f"{name}-mean", source.ref)
    run(ppo.train.train, PPOStageConfig, config)
    mean = [json.loads(line) for line in Path("runs", f"{name}-mean", "metrics.jsonl").read_text().splitlines()]
    first, first_mean = (next(row for row in each if "rollout/score" in row) for each in (rows, mean))
    # The first rollouts are the same, and only their scores are not.
    assert first["reward/score_std"] == pytest.approx(first_mean["reward/score_std"], rel=1e-4)
    expected = first_mean["rollout/score"] - 2 * first_mean["reward/score_std"]
    assert first["rollout/score"] == pytest.approx(expected, rel=1e-4)


def load(config):
    validated = PPOStageConfig.model_validate(config)
    return load_models(validated, find_models(validated, Registry("registry")))


@torch.no_grad()
def test_the_value_model_starts_from_the_first_member(house):  # noqa: F811
    for method in ("full", "lora"):
        source = trained(method)
        models = load(ppo_config("value", source.ref, reward_ensemble="min"))
        ids, mask = batch(source)
        rows = [Row(row[kept][:1].tolist(), row[kept][1:].tolist()) for row, kept in zip(ids, mask, strict=True)]
        each = models.reward.member_scores(rows, [], torch.device("cpu"))
        apart = load_reward_model(source, combine="min")
        torch.testing.assert_close(each, apart.member_scores(ids, mask), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(models.reward.combined(each)[0], each.amin(0), atol=0, rtol=0)
        critic = models.critic
        laid = lay_out(rows, range(len(rows)), models.packed, 0, torch.device("cpu"))
        values = critic.head_scale * critic.read(critic.states(laid, laid.last))
        torch.testing.assert_close(values, each[0], atol=1e-5, rtol=1e-5)
        reward = [p.data_ptr() for module in models.reward.modules() for p in module.parameters()]
        assert not {p.data_ptr() for p in models.trained.parameters()} & set(reward)
        assert all(parameter.requires_grad for parameter in critic.model.parameters())


def test_members_of_a_single_model_are_not_combined(house):  # noqa: F811
    if not Registry("registry").is_reference("zero"):
        run(reward.train.train, RewardStageConfig, settings("zero"))
    with pytest.raises(
        ModelError, match=r"model\.reward_ensemble=min: zero@v\d+ is a single reward model; take the key"
    ):
        load(ppo_config("x", "zero", reward_ensemble="min"))
    with pytest.raises(ModelError, match=r"model\.reward_ensemble=0\.0: zero@v\d+ is a single reward model"):
        load(ppo_config("x", "zero", reward_ensemble=0))
    for value in ("max", -1):
        with pytest.raises(Exception, match=r"model\.reward_ensemble"):
            validate(PPOStageConfig, ppo_config("x", "zero", reward_ensemble=value), "test")
    plan = ppo.plan.plan(PPOStageConfig.model_validate(ppo_config("x", trained("full").ref)), 1)
    one = ppo.plan.plan(PPOStageConfig.model_validate(ppo_config("x", "zero")), 1)
    assert plan["parameters"]["reward"] == SIZE * one["parameters"]["reward"]


def test_a_members_files_that_are_not_it_are_not_published(house, monkeypatch):  # noqa: F811
    from test_reward_stage import damage, double_head

    from reward.trainer import QuestionTrainer

    monkeypatch.setattr(QuestionTrainer, "save_model", damage(double_head))
    training = {"members": 2, "learning_rate": 1e-2}
    config = settings("broken", model={"name": "sft", "method": "lora"}, training=training)
    with pytest.raises(
        Exception, match=r"what was saved of member 0 scores a probe of .* differently from the model in memory"
    ):
        run(reward.train.train, RewardStageConfig, config)
    assert not Registry("registry").is_reference("broken")
