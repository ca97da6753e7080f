"""PPO on a reward model of several attributes: weights, bounds, and what the critic starts from."""

import json
from pathlib import Path

import pytest
import torch
from test_reward_heads import HEADS, batch, judged, texts, trained  # noqa: F401 - a fixture among them
from test_reward_stage import _here, house, run  # noqa: F401 - fixtures among them

import ppo.train
from alignment.config.loading import validate
from alignment.errors import ModelError
from alignment.models.ensembles import load_reward_model
from alignment.models.sources import find_model
from alignment.registry import Registry
from ppo.config import ModelsConfig, PPOStageConfig
from ppo.critic import load_separate_critic, reward_adapter_critic
from ppo.options import how_to_load
from ppo.plan import plan
from ppo.scoring_service import ScoringService, parse

WEIGHTS = {"agreeing": 1.0, "polite": 0.5}


def settings(name, weights=None, model=None, **sections):
    config = {
        "name": name,
        "model": {"policy": "sft", "reward": "heads-full", "reward_weights": weights or {}, **(model or {})},
        "data": {"train": "sft.jsonl", "eval_share": 0.2, "max_length": 64},
        "rollout": {"batch_size": 8, "max_new_tokens": 12},
        "training": {"max_steps": 2, "learning_rate": 1e-4, "save_steps": 0},
        "registry": {"name": name, "path": "registry"},
        "tracking": {"wandb": "disabled"},
    }
    return config | sections


@torch.no_grad()
def test_a_run_on_heads_logs_each_and_keeps_to_their_weights_and_bounds(judged):  # noqa: F811
    with torch.enable_grad():
        trained("heads-full")
        rewards = {"constraints": {"polite": ">= 100"}, "missing_eos_penalty": None}
        values = settings("ppo-heads", {"agreeing": 1.0, "polite": 0.0}, rewards=rewards)
        planned = plan(validate(PPOStageConfig, values, "test"), 1)
        run(ppo.train.train, PPOStageConfig, values)
    assert planned["score"] == {"agreeing": 1.0, "polite": 0.0} and planned["constraints"] == {"polite": ">= 100"}
    rows = [json.loads(line) for line in Path("runs/ppo-heads/metrics.jsonl").read_text().splitlines()]
    iterations = [row for row in rows if "rollout/score" in row]
    for row in iterations:
        assert row["rollout/score"] == pytest.approx(row["reward/agreeing"], abs=1e-5)
        assert row["slack/polite"] == pytest.approx(row["reward/polite"] - 100, abs=1e-4)
    assert iterations[1]["multiplier/polite"] > iterations[0]["multiplier/polite"]
    said = [json.loads(line) for line in Path("runs/ppo-heads/events.jsonl").read_text().splitlines()]
    (found,) = [row for row in said if row["event"] == "finding" and row["name"] == "constraint"]
    assert found["level"] == "error" and "polite is" in found["text"] and "the bound is >= 100" in found["text"]
    assert "no evaluation was within rewards.constraints" in Path("runs/ppo-heads/events.jsonl").read_text()
    # The heads' scores of held-out answers are those of the model by itself.
    samples = [json.loads(line) for line in Path("runs/ppo-heads/samples.jsonl").read_text().splitlines()]
    shown = [row for row in samples if row["step"] == 0 and row["ended"]]
    if shown:
        source = find_model("heads-full", Registry("registry"), role="reward")
        answers = [
            {"prompt": row["prompt"][-1]["content"], "chosen": row["response"], "rejected": "x"} for row in shown
        ]
        scores = load_reward_model(source, several_heads=True).eval().score(*batch(source, answers))[::2, 0]
        torch.testing.assert_close(scores, torch.tensor([row["score"] for row in shown]), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_the_critic_starts_from_the_weighted_sum_of_the_heads(judged):  # noqa: F811
    with torch.enable_grad():
        full = trained("heads-full")
        lora = trained("heads-lora", model={"name": "sft", "method": "lora"}, training={"learning_rate": 1e-2})
    config = ModelsConfig(policy="sft", reward="heads-full", reward_weights=WEIGHTS)
    for source in (full, lora):
        ids, mask = batch(source, judged[:3])
        ours = load_reward_model(source, several_heads=True).eval()
        expected = ours(ids, mask) @ torch.tensor(list(WEIGHTS.values()))
        critics = [load_separate_critic(source, config)]
        if source.base is not None:
            from alignment.models.policies import load_policy

            critics.append(reward_adapter_critic(load_policy(source.base, how_to_load(config)), source, config))
        for critic in critics:
            assert critic.head.weight.shape[0] == 1
            with critic.active():
                hidden = critic.base.base_model(input_ids=ids, attention_mask=mask).last_hidden_state
            values = critic.read(hidden) * critic.head_scale
            torch.testing.assert_close(values[mask.bool()], expected[mask.bool()], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("weights", "said"), [
    ({}, r"heads-full@v1 has a score for each of agreeing, polite; say how they make one, as "
         r"model.reward_weights='\{agreeing: 1.0, polite: 1.0\}'"),
    ({"agreeing": 1.0, "polit": 1.0}, r"has no head 'polit'; it has agreeing, polite; did you mean 'polite'\?"),
    ({"agreeing": 1.0}, r"has the head 'polite' too; give it a weight"),
])  # fmt: skip
def test_weights_are_of_the_heads_that_there_are(judged, weights, said):  # noqa: F811
    trained("heads-full")
    with pytest.raises(ModelError, match=said):
        plan(validate(PPOStageConfig, settings("refused", weights), "test"), 1)


def test_a_model_with_one_score_takes_no_weights(judged):  # noqa: F811
    trained("one-head", reward={"attributes": [HEADS[0]]})
    with pytest.raises(ModelError, match="one-head@v1 has one score; take it out"):
        plan(validate(PPOStageConfig, settings("single", WEIGHTS, {"reward": "one-head"}), "test"), 1)


@torch.no_grad()
@pytest.mark.parametrize("packing", [True, False])
def test_the_scoring_service_takes_a_head_or_a_sum(judged, packing):  # noqa: F811
    with torch.enable_grad():
        source = trained("heads-full")
    with pytest.raises(ModelError, match="where one score is needed"):
        ScoringService("heads-full", Registry("registry"))
    rows = judged[:4]
    answers = [text for row in rows for text in texts(row)]
    asked = {"prompts": [row["prompt"] for row in rows for _ in range(2)], "responses": answers}
    expected = load_reward_model(source, several_heads=True).eval().score(*batch(source, rows))
    for name, weights in (("polite", [0.0, 1.0]), ("agreeing=1,polite=0.5", [1.0, 0.5])):
        service = ScoringService(f"heads-full#{name}", Registry("registry"), packing=packing)
        scores = service.score(parse(json.dumps(asked).encode()))
        torch.testing.assert_close(torch.tensor(scores), expected @ torch.tensor(weights), atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_heads_on_a_shared_base_and_a_held_out_model_of_heads(judged):  # noqa: F811
    trained("heads-lora", model={"name": "sft", "method": "lora"}, training={"learning_rate": 1e-2})
    model = {"reward": "heads-lora", "mode": "shared", "held_out_reward": "heads-lora"}
    rewards = {"normalize": "each", "missing_eos_penalty": None}
    run(ppo.train.train, PPOStageConfig, settings("ppo-shared-heads", WEIGHTS, model, rewards=rewards))
    rows = [json.loads(line) for line in Path("runs/ppo-shared-heads/metrics.jsonl").read_text().splitlines()]
    held_out = [row for row in rows if "eval/held_out_score" in row]
    for row in held_out:  # in the heads' own points, where the score is of normalised ones
        by_hand = sum(weight * row[f"eval/reward/{name}"] for name, weight in WEIGHTS.items())
        assert row["eval/held_out_score"] == pytest.approx(by_hand, abs=1e-3)
        assert row["eval/raw_score"] != pytest.approx(by_hand, abs=1e-3)
