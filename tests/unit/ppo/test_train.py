"""The loop: what it reports, what it evaluates, and what it publishes of it."""

from __future__ import annotations

import json
import math
import statistics

import pytest
import torch
from helpers.digits import build_models, prompts_of, role_of, scalar

from alignment.errors import CheckpointError, ModelError
from alignment.runs.journal import Journal
from ppo import stats as ppo_stats
from ppo.evaluation import Evaluation
from ppo.optimizer import make_optimizer
from ppo.prompts import make_tasks
from ppo.publish import published_policy
from ppo.reward_model import RewardModel
from ppo.stats import rollout_stats


def weights(models):
    return {name: value.detach().clone() for name, value in models.trained.named_parameters()}


def collect(loop, seed=3):
    return loop.collector.collect(make_tasks(loop.prompts, range(8), 1), seed, 0, with_entropy=True)


def test_with_the_policy_as_reference_rewards_sum_to_the_score(stage_config, make_loop):
    loop = make_loop(build_models(ref_seed=1), stage_config(ppo={"kl_coef": 5.0}))
    rollout = collect(loop)
    rewards = loop.target_builder.rewards(rollout)
    torch.testing.assert_close(
        rewards.sum(1), loop.reward_scaler(loop.target_builder.scores(rollout)), rtol=0, atol=1e-4
    )
    assert rollout.kl.abs().max() < 1e-5


def test_the_rates_fall_and_the_one_that_is_logged_is_the_one_that_was_used(models, stage_config, make_loop):
    loop = make_loop(models, stage_config(training={"learning_rate": 1e-3, "value_learning_rate": 4e-3}))
    rates = []
    for _ in range(4):
        stats = loop.iterate(list(range(8)))
        rates.append((stats["train/learning_rate"], *(group["lr"] for group in loop.engine.optimizer.param_groups)))
    assert rates == [pytest.approx((r, r - 2.5e-4, 4 * (r - 2.5e-4))) for r in (1e-3, 7.5e-4, 5e-4, 2.5e-4)]


def test_the_critic_learns_five_times_as_fast_by_default(models, stage_config):
    groups = make_optimizer(models, stage_config()).param_groups
    assert [group["lr"] for group in groups] == pytest.approx([1e-3, 5e-3])
    count = [sum(p.numel() for p in group["params"]) for group in groups]
    assert count == [sum(p.numel() for p in role.model.parameters()) for role in models.trained.roles]
    default = make_optimizer(models, stage_config(training={"learning_rate": None})).param_groups
    assert [group["lr"] for group in default] == pytest.approx([1e-6, 5e-6])


def test_nothing_but_policy_and_critic_moves(models, stage_config, make_loop):
    modules = {"reference": models.reference.model, "reward": models.reward.members[0].model}
    frozen = {role: {n: v.clone() for n, v in module.state_dict().items()} for role, module in modules.items()}
    before = weights(models)
    make_loop(models, stage_config()).iterate(list(range(8)))
    assert all(not torch.equal(before[name], value) for name, value in weights(models).items())
    for role, module in modules.items():
        assert all(torch.equal(frozen[role][name], value) for name, value in module.state_dict().items())
        assert not any(p.requires_grad for p in module.parameters())


def test_figures_are_means_over_episodes_and_kept_tokens(models, stage_config, make_loop):
    loop = make_loop(models, stage_config(rewards={"missing_eos_penalty": None}, ppo={"kl_coef": 0.1}))
    rollout = collect(loop)
    targets = loop.target_builder.build(rollout, loop.target_builder.rewards(rollout))
    stats = rollout_stats(rollout, loop.target_builder.scores(rollout), targets, kl_in_reward=True)
    lengths = rollout.lengths.tolist()
    kl = [sum(rollout.kl[row, :length].tolist()) for row, length in enumerate(lengths)]
    kept = [(row, t) for row, length in enumerate(lengths) for t in range(length)]
    scores = rollout.scores.tolist()
    assert stats["rollout/score"] == stats["reward/model"] == pytest.approx(sum(scores) / 8)
    assert stats["rollout/kl"] == pytest.approx(sum(kl) / 8, rel=1e-5)
    assert stats["rollout/reward"] == pytest.approx(sum(scores) / 8 - 0.1 * sum(kl) / 8, rel=1e-4)
    assert stats["rollout/length"] == pytest.approx(sum(lengths) / 8)
    assert stats["rollout/ended"] == pytest.approx(rollout.ended.float().mean().item())
    assert stats["rollout/score_std"] == pytest.approx(statistics.pstdev(scores), rel=1e-5)
    assert stats["rollout/length_correlation"] == pytest.approx(statistics.correlation(scores, lengths), rel=1e-4)
    entropy = sum(float(rollout.entropy[at]) for at in kept) / len(kept)
    assert stats["policy/entropy"] == pytest.approx(entropy, rel=1e-5)
    end = [
        float(scores[row]) - 0.1 * sum(rollout.kl[row, t:length].tolist())
        for row, t in kept
        for length in (lengths[row],)
    ]
    returns = torch.tensor(end, dtype=torch.float64)  # what came from each token on
    errors = returns - torch.tensor([float(rollout.old_values[at]) for at in kept], dtype=torch.float64)
    explained = 1 - errors.square().mean() / returns.var(correction=0)
    assert stats["value/explained_variance"] == pytest.approx(float(explained), rel=1e-4, abs=1e-4)


def test_spread_and_correlation_are_those_of_all_processes(monkeypatch):
    scores = torch.tensor([3.0, 1.0, -2.0, 5.0, 0.5, 0.0], dtype=torch.float64)
    lengths = torch.tensor([4.0, 9.0, 1.0, 7.0, 7.0, 2.0], dtype=torch.float64)
    halves = (slice(0, 2), slice(2, 6))
    sent = []
    monkeypatch.setattr(ppo_stats, "all_reduce_sum", lambda own: sent.append(own) or own)
    for half in halves:
        ppo_stats._scatter(scores[half], lengths[half], float(scores.mean()), float(lengths.mean()))
    monkeypatch.setattr(ppo_stats, "all_reduce_sum", lambda own: sent[0] + sent[1])
    found = ppo_stats._scatter(scores[halves[0]], lengths[halves[0]], float(scores.mean()), float(lengths.mean()))
    assert found["rollout/score_std"] == pytest.approx(statistics.pstdev(scores.tolist()))
    expected = statistics.correlation(scores.tolist(), lengths.tolist())
    assert found["rollout/length_correlation"] == pytest.approx(expected)


def test_responses_of_one_length_have_no_correlation_with_it():
    found = ppo_stats._scatter(torch.tensor([1.0, 2.0]).double(), torch.full((2,), 3.0).double(), 1.5, 3.0)
    assert found == {"rollout/score_std": pytest.approx(0.5)}


@pytest.mark.parametrize("estimator", ["rloo", "grpo", "dr_grpo", "reinforce++", "reinforce++-baseline"])
def test_whitening_is_over_all_tokens_and_not_for_grpo(stage_config, make_loop, estimator):
    models = build_models(critic=None)
    config = stage_config(ppo={"advantage_estimator": estimator}, rollout={"num_generations": 4})
    loop = make_loop(models, config)
    rollout = loop.collector.collect(make_tasks(loop.prompts, [0, 1], 4), 3, 0)
    targets = loop.target_builder.build(rollout, loop.target_builder.rewards(rollout))
    kept = targets.advantages[rollout.response_mask]
    assert targets.critic is None
    whitened = abs(float(kept.std(correction=0)) - 1) < 1e-3 and abs(float(kept.mean())) < 1e-5
    assert whitened == (estimator not in ("grpo", "dr_grpo"))


def test_the_kl_coefficient_follows_its_target(models, stage_config, make_loop):
    loop = make_loop(models, stage_config(ppo={"kl_coef": 0.1, "kl_target": 1e-3}))
    used = [loop.iterate(list(range(8)))["rollout/kl_coef"] for _ in range(3)]
    assert used == pytest.approx([0.1, 0.12, 0.144])  # far above the target in a short run: 20% each time


def test_a_changed_config_is_what_a_resumed_run_goes_by(stage_config, make_loop, tmp_path):
    """With `--allow-changes`: torch puts the rates of the checkpoint in the place of the config's."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    first = make_loop(build_models(ref_seed=1), stage_config(ppo={"kl_coef": 0.1}))
    first.iterate(list(range(8)))
    first.state.save(folder)
    changed = {"learning_rate": 1e-5, "value_learning_rate": 2e-5, "adam_epsilon": 1e-6, "ema_decay": 0.9}
    again = make_loop(build_models(ref_seed=3), stage_config(ppo={"kl_coef": 0.7}, training=changed))
    again.state.load(folder, 1)
    groups = again.engine.optimizer.param_groups
    assert [group["lr"] for group in groups] == pytest.approx([0.75e-5, 1.5e-5])
    assert {group["eps"] for group in groups} == {1e-6}
    assert again.kl_controller.value == 0.7
    loaded = weights(first.models)
    assert all(torch.equal(loaded[name], value) for name, value in weights(again.models).items())
    with again.ema.applied():  # an average that was not asked for begins where the weights are
        assert all(torch.equal(loaded[name], value) for name, value in weights(again.models).items())
    same = make_loop(build_models(ref_seed=3), stage_config(ppo={"kl_coef": 0.1}))
    same.state.load(folder, 1)
    assert [g["lr"] for g in same.engine.optimizer.param_groups] == [
        g["lr"] for g in first.engine.optimizer.param_groups
    ]


# --- evaluation -----------------------------------------------------------------------------------------------------


def run(make_loop, models, config, tmp_path, held_out=("12", "3")):
    loop = make_loop(models, config, prompts_of(*held_out))
    said = []
    loop.journal.log = lambda step, metrics: said.append((step, dict(metrics)))
    loop.run()
    return loop, [(step, row) for step, row in said if "eval/score" in row]


def test_weights_that_are_not_finite_are_in_no_checkpoint(stage_config, make_loop, tmp_path):
    loop = make_loop(build_models(ref_seed=1), stage_config())
    _, parameter = loop.models.trained.trained_parameters("policy")[0]
    with torch.no_grad():
        parameter.view(-1)[0] = math.inf
    with pytest.raises(CheckpointError, match=r"the weights of .* are not finite, so this checkpoint is not kept"):
        loop.state.save(tmp_path)
    assert not list(tmp_path.iterdir())


def test_held_out_prompts_are_answered_before_between_and_after(make_loop, stage_config, tmp_path):
    config = stage_config(training={"eval_steps": 3, "max_steps": 4})
    _, evaluations = run(make_loop, build_models(ref_seed=1), config, tmp_path)
    assert [step for step, _ in evaluations] == [0, 3, 4]
    assert evaluations[0][1]["eval/kl"] == pytest.approx(0.0, abs=1e-5)
    assert "eval/win_rate" not in evaluations[0][1]
    assert 0 <= evaluations[1][1]["eval/win_rate_low"] <= evaluations[1][1]["eval/win_rate"] <= 1


def test_an_evaluation_leaves_histograms_and_the_same_prompts_answers(make_loop, stage_config, tmp_path):
    config = stage_config(training={"eval_steps": 3, "max_steps": 4})
    with Journal(tmp_path / "run", stage="ppo") as journal:
        make_loop(build_models(ref_seed=1), config, prompts_of("12", "3", "456"), journal=journal).run()
    rows = {
        name: [json.loads(line) for line in (tmp_path / "run" / f"{name}.jsonl").read_text().splitlines()]
        for name in ("metrics", "samples", "events")
    }
    found = [row for row in rows["events"] if row["event"] == "histogram"]
    steps = {name: [row["step"] for row in found if row["name"] == name] for name in {row["name"] for row in found}}
    evaluated = {f"eval/{name}": [0, 3, 4] for name in ("score", "kl", "length")}
    assert steps == evaluated | {"rollout/advantage": [3, 4]}
    assert all(sum(row["counts"]) == 3 for row in found if row["name"].startswith("eval/"))
    assert [(row["step"], row["id"]) for row in rows["samples"]] == [(s, i) for s in (0, 3, 4) for i in (0, 1, 2)]
    prompts = {row["id"]: row["prompt"] for row in rows["samples"]}
    assert all(row["prompt"] == prompts[row["id"]] for row in rows["samples"])
    last = next(row for row in rows["metrics"] if row["step"] == 4)
    assert last["time/rollout"] == pytest.approx(last["time/generate"] + last["time/score"])
    tokens = 8 * last["rollout/length"]
    assert last["rollout/tokens_per_second"] == pytest.approx(tokens / last["time/generate"])


def test_what_stops_a_run_is_a_finding(make_loop, stage_config, tmp_path, monkeypatch):
    """As where `train` runs the loop."""
    models = build_models(ref_seed=1)
    with Journal(tmp_path / "run", stage="ppo") as journal:
        loop = make_loop(models, stage_config(), journal=journal)
        with torch.no_grad():
            next(models.reward.members[0].model.parameters()).fill_(float("nan"))
        with pytest.raises(ModelError), loop.reporting_errors():
            loop.run()
    (found,) = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    assert (found["event"], found["name"], found["level"], found["step"]) == ("finding", "stopped", "error", 1)
    assert "not finite" in found["text"]


def remembering(answer, scores):
    """`Evaluation.answer` that leaves the held-out scores of each evaluation in a dict by step."""

    def answered(evaluation, step):
        answers = answer(evaluation, step)
        scores[step] = answers.held_out_scores
        return answers

    return answered


@pytest.mark.parametrize("ema", [None, 0.9])
def test_the_best_policy_is_the_one_that_is_published(make_loop, stage_config, tmp_path, monkeypatch, ema):
    """By the held-out reward model, which training never saw; of an average the average."""
    models = build_models(ref_seed=1)
    models.held_out_reward = RewardModel([role_of(scalar(9).requires_grad_(False))])
    config = stage_config(training={"eval_steps": 1, "learning_rate": 3e-3, "max_steps": 4, "ema_decay": ema})
    judged_by_step = {}
    monkeypatch.setattr(Evaluation, "answer", remembering(Evaluation.answer, judged_by_step))
    loop, evaluations = run(make_loop, models, config, tmp_path, ("12", "3", "456", "7"))
    monkeypatch.undo()
    held = {step: row["eval/held_out_score"] for step, row in evaluations}
    chooses, reports = loop.evaluation.choosing, loop.evaluation.reporting
    assert sorted([*chooses, *reports]) == [0, 1, 2, 3]
    last, best = weights(models), loop.evaluation.best.step
    with published_policy(loop) as metrics:
        assert metrics["best_step"] == best
        again = loop.evaluation.answer(loop.step)
    scores = again.held_out_scores
    assert sum(scores) / 4 == pytest.approx(held[best], abs=1e-5)  # the kept policy is that evaluation's
    assert metrics["eval_held_out_score"] == pytest.approx(sum(scores[row] for row in reports) / 2, abs=1e-5)
    by_choosers = {step: sum(scores[row] for row in chooses) / 2 for step, scores in judged_by_step.items()}
    assert best == max(by_choosers, key=lambda step: (by_choosers[step], -step))
    start = judged_by_step[0]
    assert metrics["start_eval_held_out_score"] == pytest.approx(sum(start[row] for row in reports) / 2)
    if best == 4 and ema is None:
        assert all(torch.equal(last[name], value) for name, value in weights(models).items())


def test_an_unfinished_answer_costs_by_the_held_out_model_too(make_loop, stage_config, tmp_path):
    models = build_models(ref_seed=1)
    models.held_out_reward = RewardModel([role_of(scalar(9).requires_grad_(False))])
    config = stage_config(rollout={"max_new_tokens": 3}, rewards={"missing_eos_penalty": 100.0})
    loop = make_loop(models, config, prompts_of("12", "3", "456", "7"))
    loop._collect(list(range(8)))
    judged = loop.evaluation.answer(loop.step)
    assert not all(judged.ended)
    held_out_stats = loop.evaluation.held_out_scaler.stats  # of its own scores, whose spread is another one
    assert held_out_stats.std != pytest.approx(loop.reward_scaler.stats.std, rel=0.01)
    for scores, own in ((judged.held_out_scores, held_out_stats), (judged.scores, loop.reward_scaler.stats)):
        far_below = [score < own.mean - 50 * own.std for score in scores]
        assert far_below == [not ended for ended in judged.ended]


def test_where_no_evaluation_is_below_the_ceiling_it_is_said(make_loop, stage_config, tmp_path):
    config = stage_config(training={"max_kl": 1e-9})
    with Journal(tmp_path / "run", stage="ppo") as journal:
        loop = make_loop(build_models(ref_seed=7), config, prompts_of("12", "3"), journal=journal)
        loop.evaluation.run(loop.step)
        with published_policy(loop) as metrics:
            assert "best_step" not in metrics
    events = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    (found,) = [event for event in events if event["event"] == "finding"]
    assert found["level"] == "error" and "training.max_kl" in found["text"]


def test_patience_ends_a_run(make_loop, stage_config, tmp_path):
    config = stage_config(
        training={"eval_steps": 1, "max_steps": 9, "learning_rate": 1e-9, "early_stopping_patience": 2}
    )
    loop, evaluations = run(make_loop, build_models(ref_seed=1), config, tmp_path)
    assert [step for step, _ in evaluations] == [0, 1, 2]  # a rate of nothing: no answer changes
    assert loop.step == 2


@pytest.mark.parametrize(("count", "world_size"), [(1, 4), (5, 4), (5, 2), (8, 4), (3, 1)])
def test_each_held_out_prompt_counts_once_on_any_number_of_processes(
    count, world_size, models, stage_config, make_loop, monkeypatch
):
    """Each process answers as many, or a collective inside would wait for ever."""
    loop = make_loop(models, stage_config(), prompts_of(*map(str, range(count))))
    alone = loop.evaluation.answer(loop.step)

    class Rank:
        num_processes, device, is_main_process, process_index = world_size, torch.device("cpu"), False, 0

    lists = []

    class SentError(Exception):
        """A process has sent its share."""

    def send(values):
        if values == [None]:  # that nothing went wrong here
            return [values]
        lists.append(values)
        raise SentError

    loop.evaluation.accelerator = Rank
    monkeypatch.setattr("alignment.distributed.processes.gather_lists", send)
    for rank in range(world_size):
        Rank.process_index = rank
        with pytest.raises(SentError):
            loop.evaluation.answer(loop.step)
    assert len({len(share) for share in lists}) == 1
    together = [row for share in lists for row in share][:count]
    assert [row["score"] for row in together] == pytest.approx(alone.scores, abs=1e-5)


def test_without_held_out_prompts_there_is_nothing_to_judge(models, stage_config, make_loop):
    loop = make_loop(models, stage_config())
    assert loop.evaluation.run(loop.step) is None
    with published_policy(loop) as metrics:
        assert metrics == {}


def test_alarms_reach_the_journal_and_the_screen(models, stage_config, make_loop, tmp_path, capsys):
    with Journal(tmp_path / "run") as journal:
        make_loop(models, stage_config(rollout={"max_new_tokens": 2}), journal=journal).run()
    events = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    (found,) = [event for event in events if event["event"] == "finding" and event["name"] == "truncation"]
    assert (found["step"], found["level"]) == (1, "warning")
    assert "rollout.max_new_tokens" in found["text"]
    assert f"ppo: iteration 1: truncation: {found['text']}\n" in capsys.readouterr().out
