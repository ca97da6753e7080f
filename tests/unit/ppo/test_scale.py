"""Defaults that do not depend on the scale of the scores, nor on their mean."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from helpers.digits import build_models, prompts_of

from alignment.generation.sampling import Sampled
from ppo import value_data
from ppo.config import PPOStageConfig
from ppo.value_pretraining import BestCritic

STUDY = Path(__file__).resolve().parents[3] / "scripts" / "studies" / "length_bias.py"


@pytest.fixture
def study(monkeypatch):
    spec = importlib.util.spec_from_file_location("length_bias", STUDY)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "length_bias", module)
    spec.loader.exec_module(module)
    return module


class Scaled:
    """A reward model whose scores are multiplied."""

    def __init__(self, model, factor):
        self.model, self.factor = model, factor
        self.members, self.heads = model.members, ()

    def member_scores(self, rows, conversations, device):
        return self.factor * self.model.member_scores(rows, conversations, device)

    def combined(self, scores):
        return self.model.combined(scores)

    def modules(self):
        return self.model.modules()


def losses(make_loop, stage_config, tmp_path, factor, critic, **sections):
    models = build_models(ref_seed=1, critic="separate" if critic == "reward model" else critic)
    if critic == "reward model":  # a critic that starts from it has its scale
        role = models.critic
        with torch.no_grad():
            role.head.weight.mul_(factor)
        role.head.score_bias = 0.5 * factor
        role.rescale_head()
    models.reward = Scaled(models.reward, factor)
    sections["ppo"] = {"kl_coef": 0.05 * factor, **sections.get("ppo", {})}
    config = stage_config(training={"max_steps": 5, "eval_steps": 5}, **sections)
    loop = make_loop(models, config, prompts_of("12", "3"))
    found, own = [], loop.iterate
    loop.iterate = lambda numbers: found.append(own(numbers)) or found[-1]
    loop.run()
    assert len(found) == 5
    return [[stats[name] for name in ("policy/loss", "policy/grad_norm", "rollout/kl")] for stats in found]


@pytest.mark.parametrize("factor", [0.1, 30.0])
@pytest.mark.parametrize(
    ("critic", "sections"),
    [
        ("separate", {}),
        ("reward model", {}),
        ("trunk", {}),
        ("separate", {"rewards": {"normalize": "running"}}),
        (None, {"ppo": {"advantage_estimator": "rloo"}, "rollout": {"num_generations": 4}}),
        (None, {"ppo": {"advantage_estimator": "dr_grpo"}, "rollout": {"num_generations": 4}}),
        (None, {"ppo": {"advantage_estimator": "dr_grpo", "kl_in": "loss"}, "rollout": {"num_generations": 4}}),
    ],
    ids=["separate", "reward model", "trunk", "running", "rloo", "dr_grpo", "dr_grpo, KL in the loss"],
)
def test_rewards_and_kl_coef_times_a_number_are_the_same_run(
    make_loop, stage_config, tmp_path, factor, critic, sections
):
    """The same problem in another unit."""
    plain = losses(make_loop, stage_config, tmp_path, 1.0, critic, **sections)
    scaled = losses(make_loop, stage_config, tmp_path, factor, critic, **sections)
    torch.testing.assert_close(torch.tensor(scaled), torch.tensor(plain), rtol=1e-4, atol=1e-4)


def test_without_a_unit_they_are_another_run(make_loop, stage_config, tmp_path):
    sections = {"rewards": {"normalize": None}}
    plain = losses(make_loop, stage_config, tmp_path, 1.0, "trunk", **sections)
    scaled = losses(make_loop, stage_config, tmp_path, 30.0, "trunk", **sections)
    assert (torch.tensor(scaled) - torch.tensor(plain)).abs().max() > 1e-3


@pytest.mark.parametrize("critic", ["separate", "trunk"])
def test_scores_that_do_not_depend_on_the_answer_leave_its_length_alone(study, critic):
    """Small; docs/development/studies/length-bias.md has the study. With earlier settings it would double or halve."""
    world = study.World(vocabulary=20, limit=128, episodes=32, learning_rate=5e-4)
    for mean in (3.0, -3.0):
        start, end = study.run(world, critic, mean, seed=0, iterations=10)
        assert abs(end / start - 1) < 0.1
    start, end = study.run(world, critic, 3.0, seed=0, iterations=10, **study.SETTINGS["before"])
    assert end / start < 0.8


def test_a_unit_that_is_found_late_makes_no_policy_better(make_loop, stage_config, tmp_path):
    """An unfinished answer costs 3 points until the scores differ, and then less: a policy that stays as it is must not
    become the best one by that."""
    models = build_models(ref_seed=1)
    models.reward = ByLength()
    config = stage_config(training={"max_steps": 4, "eval_steps": 1, "learning_rate": 1e-12})
    loop = make_loop(models, config, prompts_of("12", "3", "456", "7"))
    found = []
    evaluate = loop.evaluation.run
    loop.evaluation.run = lambda step: found.append(evaluate(step)) or found[-1]
    models.reward.member_scores = lambda rows, conversations, device: torch.zeros(1, len(rows))
    collect = loop._collect

    def later(numbers):
        if loop.step == 2:
            scores = [0.0, 1.0] * 4
            models.reward.member_scores = lambda rows, conversations, device: torch.tensor([scores[: len(rows)]])
            found_now = collect(numbers)
            models.reward.member_scores = lambda rows, conversations, device: torch.zeros(1, len(rows))
            return found_now
        return collect(numbers)

    loop._collect = later
    loop.run()
    assert found[0]["eval/ended"] < 1
    assert found[-1]["eval/score"] > found[0]["eval/score"] + 0.5  # the cost has changed
    assert loop.evaluation.best.step == 0
    assert loop.evaluation.start_metrics["score"] == pytest.approx(found[-1]["eval/score"])


# --- groups ---------------------------------------------------------------------------------------------------------


class Wanted:
    """In [-1, 1]: how many more of the tokens are wanted ones, 1 to 9 of 39, than not."""

    members, heads = (), ()

    def __init__(self):
        self.means, self.ended = [], []

    def member_scores(self, rows, conversations, device):
        scores = [sum(1 if 1 <= token <= 9 else -1 for token in row.response) / len(row.response) for row in rows]
        self.means.append(sum(scores) / len(scores))
        self.ended.append(sum(row.response[-1] == 0 for row in rows) / len(rows))
        return torch.tensor([scores])

    def combined(self, scores):
        return scores[0], None

    def modules(self):
        return []


def test_under_a_tight_limit_the_users_own_reward_rises(study):
    """Three answers in four are cut; what those say is still learned from, and ending too."""
    world, scorer = study.World(vocabulary=40, limit=12, episodes=64, learning_rate=3e-3), Wanted()
    study.run(world, "trunk", 0.0, 0, 15, scorer, measured=1, rewards={"missing_eos_penalty": 3.0})
    assert scorer.ended[0] < 0.4
    means, ended = (sum(column[-3:]) / 3 - column[0] for column in (scorer.means, scorer.ended))
    assert means > 0.3
    assert ended > 0.2


class ByLength:
    """Score 1 for an answer of more than three tokens, else 0: many groups have one score."""

    members, heads = (), ()

    def member_scores(self, rows, conversations, device):
        return torch.tensor([[float(len(row.response) > 3) for row in rows]])

    def combined(self, scores):
        return scores[0], None

    def modules(self):
        return []


def grouped_loop(make_loop, stage_config, rounds, tmp_path):
    models = build_models(critic=None)
    models.reward = ByLength()
    config = stage_config(
        rewards={"missing_eos_penalty": None},
        ppo={"advantage_estimator": "dr_grpo"},
        rollout={"num_generations": 2, "dynamic_sampling": rounds},
    )
    return make_loop(models, config)


def test_groups_without_spread_are_counted_and_replaced(make_loop, stage_config, tmp_path):
    plain = grouped_loop(make_loop, stage_config, 0, tmp_path)
    rollout, _ = plain._collect([0, 1, 2, 3])
    alike = [bool(rollout.scores[row] == rollout.scores[row + 1]) for row in range(0, 8, 2)]
    assert 0 < sum(alike) < 4
    assert plain._spread_metrics == {"rollout/without_spread": sum(alike) / 4}
    kept = [rollout.rows[row] for row in range(0, 8, 2) if rollout.scores[row] != rollout.scores[row + 1]]
    filtered = grouped_loop(make_loop, stage_config, 20, tmp_path)
    replaced, _ = filtered._collect([0, 1, 2, 3])
    assert len(replaced) == 8
    assert all(replaced.scores[row] != replaced.scores[row + 1] for row in range(0, 8, 2))
    assert all(replaced.tasks[row].prompt_index == replaced.tasks[row + 1].prompt_index for row in range(0, 8, 2))
    assert replaced.rows[0] == kept[0]  # what had a spread stays
    assert filtered._spread_metrics["rollout/without_spread"] > 0
    for number, row in enumerate(replaced.rows):  # joined as they were, with the padding of the widest
        assert replaced.response_mask[number].sum() == len(row.response)
    again = plain.collector.collect(
        replaced.tasks, 0, given=Sampled([row.response for row in replaced.rows], None), with_entropy=True
    )
    for name in ("old_logprobs", "ref_logprobs", "entropy", "scores"):
        torch.testing.assert_close(getattr(again, name), getattr(replaced, name), atol=1e-5, rtol=0)


def test_a_round_too_few_leaves_groups_as_they_are(make_loop, stage_config, tmp_path):
    loop = grouped_loop(make_loop, stage_config, 1, tmp_path)
    loop.models.reward.member_scores = lambda rows, conversations, device: torch.zeros(1, len(rows))
    rollout, _ = loop._collect([0, 1, 2, 3])
    assert len(rollout) == 8
    assert loop._spread_metrics == {"rollout/without_spread": 1.0}
    loop.iterate([0, 1, 2, 3])


def test_grpo_keeps_the_kl_out_of_the_scaled_advantages(stage_config):
    """Where all answers to a prompt score alike, a KL in the reward would train at full strength on noise."""
    config = stage_config(ppo={"advantage_estimator": "grpo"}, rollout={"num_generations": 4})
    assert config.ppo.kl_in == "loss"
    with pytest.raises(ValueError, match="use kl_in=loss"):
        stage_config(ppo={"advantage_estimator": "grpo", "kl_in": "reward"}, rollout={"num_generations": 4})
    assert isinstance(config, PPOStageConfig)


def test_grpo_learns_nothing_from_groups_that_all_score_alike(make_loop, stage_config, tmp_path):
    models = build_models(ref_seed=7, critic=None)
    models.reward = ByLength()
    models.reward.member_scores = lambda rows, conversations, device: torch.ones(1, len(rows))
    config = stage_config(
        rewards={"missing_eos_penalty": None}, ppo={"advantage_estimator": "grpo"}, rollout={"num_generations": 4}
    )
    loop = make_loop(models, config)
    rollout, _ = loop._collect([0, 1])
    assert rollout.kl.abs().max() > 0.1
    assert loop.target_builder.build(rollout, loop.target_builder.rewards(rollout)).advantages.abs().max() == 0


def test_the_critic_is_left_as_it_was_after_its_best_pass(make_loop, stage_config, monkeypatch):
    """At this rate later passes are worse; the last one's weights must not stay."""
    config = stage_config(
        rewards={"missing_eos_penalty": None},
        ppo={"value_pretrain": "rollouts"},
        training={"value_learning_rate": 3e-2},
    )
    monkeypatch.setattr(value_data, "MAX_ANSWERS", 64)
    models = build_models()
    loop, kept, said = make_loop(models, config), [], {}
    keep = BestCritic.keep

    def remembering(best):
        kept.append({name: p.detach().clone() for name, p in models.trained.named_parameters()})
        keep(best)

    monkeypatch.setattr(BestCritic, "keep", remembering)
    loop.journal.event = lambda kind, **fields: said.update({kind: fields})
    loop._pretrain_critic(loop._collect(list(range(8)))[0])
    explained = said["value_pretrained"]["explained_variance"]
    assert explained[-1] < max(explained)
    assert all(torch.equal(p, kept[-1][name]) for name, p in models.trained.named_parameters())
