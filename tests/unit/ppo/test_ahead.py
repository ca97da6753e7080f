"""Rollouts that are sampled one update ahead (`rollout.lag=1`)."""

from __future__ import annotations

import copy
import threading

import pytest
import torch
from helpers import vllm_standin
from helpers.digits import build_models

from alignment.generation import vllm as vllm_engine
from alignment.generation.engine import TransformersEngine
from alignment.generation.vllm_server import Server
from alignment.runs.checkpoint import load_state, save_state
from alignment.seeds import stream_seed
from ppo import sampler_gap, update
from ppo.ahead import Ahead
from ppo.algorithm import IMPORTANCE_CAP, ScoreStats
from ppo.episodes import Episodes
from ppo.prompts import make_tasks, prompt_batches
from ppo.rows import Row

SECONDS = 60
"""How long a thread waits for another before a test fails."""


@pytest.fixture
def lagged(make_loop, stage_config, monkeypatch):
    """A loop, and lists that fill as it runs: each iteration's rollout, and the policy's weights before its update."""

    def build(lag=1, models=None, **sections):
        sections["rollout"] = {"batch_size": 4, "lag": lag, **sections.get("rollout", {})}
        loop = make_loop(models or build_models(ref_seed=7), stage_config(**sections))
        rollouts, weights, take_steps = [], [], loop.updater.update

        def watched(step, rollout, targets):
            rollouts.append(rollout)
            weights.append(copy.deepcopy(loop.models.policy.model.state_dict()))
            return take_steps(step, rollout, targets)

        monkeypatch.setattr(loop.updater, "update", watched)
        return loop, rollouts, weights

    return build


def responses(rollout):
    return [row.response for row in rollout.rows]


def test_where_nothing_is_learned_a_lag_changes_nothing(lagged):
    """The weights stay, so that responses, importance weights and losses are those of a run without."""
    runs = []
    for lag in (0, 1):
        loop, rollouts, _ = lagged(lag)
        for group in loop.engine.optimizer.param_groups:
            group["lr"] = 0.0
        loop.schedule.step = lambda: None
        loop.run()
        runs.append(rollouts)
    assert len(runs[0]) == len(runs[1]) == 4
    for plain, other in zip(*runs, strict=True):
        assert plain.rows == other.rows
        assert torch.equal(plain.old_logprobs, other.old_logprobs) and torch.equal(plain.scores, other.scores)
    assert [rollout.lagged for rollout in runs[1]] == [False, True, True, True]
    for rollout in runs[1][1:]:
        assert torch.equal(rollout.sampled_logprobs, rollout.old_logprobs)  # weights of 1 to the last bit


def test_each_rollout_is_from_the_weights_before_the_update_before(lagged):
    """Against an engine and forward passes of this test's own."""
    loop, rollouts, weights = lagged(training={"learning_rate": 3e-2})
    loop.run()
    assert any(not torch.equal(one, other) for one, other in zip(weights[1].values(), weights[2].values(), strict=True))
    batches = prompt_batches(len(loop.prompts), 4, loop.config.training.seed)
    policy, changed = copy.deepcopy(loop.models.policy.model), 0
    for step, (rollout, indices) in enumerate(zip(rollouts, batches, strict=False)):
        tasks = make_tasks(loop.prompts, indices, 1)
        seeds = [stream_seed("sample", loop.config.training.seed, step, task.prompt_index, 0) for task in tasks]

        def drawn(of, tasks=tasks, seeds=seeds):
            policy.load_state_dict(weights[of])
            return TransformersEngine(policy).generate([t.ids for t in tasks], seeds, loop.collector.sampling).responses

        assert drawn(max(0, step - 1)) == responses(rollout)
        changed += step > 0 and drawn(step) != responses(rollout)
        old, sampled = (logprobs_of(policy, weights[of], rollout) for of in (step, max(0, step - 1)))
        kept = rollout.response_mask
        torch.testing.assert_close(rollout.old_logprobs[kept], old, atol=1e-4, rtol=0)
        if step:
            torch.testing.assert_close(rollout.sampled_logprobs[kept], sampled, atol=1e-4, rtol=0)
            assert step == 1 or (old - sampled).abs().max() > 1e-2
    assert changed >= 2


def logprobs_of(policy, weights, rollout):
    """Log-probabilities of the response tokens, one plain forward pass a row."""
    policy.load_state_dict(weights)
    found = []
    for row in rollout.rows:
        logits = policy(input_ids=torch.tensor([[*row.prompt, *row.response]])).logits[0, len(row.prompt) - 1 : -1]
        found.append(logits.log_softmax(-1).gather(1, torch.tensor(row.response)[:, None]).squeeze(1))
    return torch.cat(found).detach()


def test_the_loss_of_each_token_is_weighted_and_the_kl_is_of_what_it_says(lagged, monkeypatch):
    """The weight is min(proximal / sampler, 2); the reward has the proximal policy's KL, the journal the sampler's."""
    loop, rollouts, _ = lagged(training={"learning_rate": 3e-2}, ppo={"kl_in": "loss"})
    seen, real = [], update.policy_loss

    def watched(logprobs, old, advantages, mask, clip, count, *, weights):
        seen.append(weights)
        return real(logprobs, old, advantages, mask, clip, count, weights=weights)

    monkeypatch.setattr(update, "policy_loss", watched)
    logged = []
    monkeypatch.setattr(loop.journal, "log", lambda step, stats: logged.append(dict(stats)))
    loop.run()
    rows = [row for row in logged if "policy/loss" in row]
    assert [row["rollout/lag"] for row in rows] == [0.0, 1.0, 1.0, 1.0]
    assert seen[0] is None
    for rollout, row, weights in zip(rollouts[1:], rows[1:], seen[1:], strict=True):
        kept = rollout.response_mask
        expected = (rollout.old_logprobs - rollout.sampled_logprobs)[kept].exp().clamp(max=2.0)
        torch.testing.assert_close(weights.sort().values, expected.sort().values)
        assert row["policy/first_ratio"] == pytest.approx(1.0, abs=1e-4)
        kl = (rollout.sampled_logprobs - rollout.ref_logprobs)[kept].sum() / len(rollout)
        assert row["rollout/kl"] == pytest.approx(float(kl), rel=1e-4)
        torch.testing.assert_close(rollout.kl[kept], (rollout.old_logprobs - rollout.ref_logprobs)[kept])
        assert row["rollout/sampler_gap_max"] > 0 and "rollout/importance_capped" in row
    assert abs(float(expected.max()) - 1) > 1e-2  # the last one's weights matter


def test_in_expectation_the_gradient_is_that_of_the_policy_now(make_loop, stage_config):
    """All answers of one token, each as often as an older policy says it: the sum of the update's gradients is the
    gradient of the mean advantage under the policy of now, which needs no sampling. Without the weights, or with their
    inverse, it is another one."""
    models = build_models(ref_seed=7)
    loop = make_loop(models, stage_config(training={"max_grad_norm": 1e9}))
    prompt, tokens = [2, 3], range(12)
    policy = models.policy.model
    now = policy(input_ids=torch.tensor([prompt])).logits[0, -1].log_softmax(-1)
    stream = torch.Generator().manual_seed(0)
    older = now.detach().exp() * torch.empty(12).uniform_(0.6, 1.4, generator=stream)
    counts = (400 * older / older.sum()).round().clamp(min=1).long()
    sampled = (counts / counts.sum()).log()
    assert (now - sampled).exp().max() < IMPORTANCE_CAP and (now - sampled).abs().max() > 0.3
    advantage = torch.randn(12, generator=stream)
    exact = torch.autograd.grad(-(now.exp() * advantage).sum(), list(policy.parameters()), allow_unused=True)

    answers = [token for token in tokens for _ in range(counts[token])]
    rows = [Row(prompt, [token]) for token in answers]
    column = torch.tensor(answers)
    mask, zeros = torch.ones(len(rows), 1, dtype=torch.bool), torch.zeros(len(rows), 1)
    episodes = Episodes(
        rows, mask, now.detach()[column][:, None], zeros, advantage[column][:, None], sampled[column][:, None],
        zeros, zeros, ScoreStats(), 0.0,
    )  # fmt: skip

    def apart():
        loop.engine.optimizer.zero_grad()
        loop.updater._gradients(episodes, list(range(len(rows))), [], is_first=False, only_critic=False)
        given = [parameter.grad for parameter in policy.parameters()]
        pairs = [(one, other) for one, other in zip(given, exact, strict=True) if other is not None]
        return float(
            sum((one - other).square().sum() for one, other in pairs) / sum(x.square().sum() for _, x in pairs)
        )

    assert apart() < 1e-8
    for wrong in (torch.ones_like, torch.reciprocal):
        with pytest.MonkeyPatch.context() as patch:
            right = update.truncated_importance_weights
            patch.setattr(update, "truncated_importance_weights", lambda *given: wrong(right(*given)))  # noqa: B023
            assert apart() > 1e-3


def test_what_is_sampled_ahead_is_kept_and_dropped_where_it_does_not_fit(lagged, tmp_path, capsys):
    loop, *_ = lagged()
    loop.ahead.begin(0)
    loop.ahead.finish()
    save_state(tmp_path / "ahead.pt", {"ahead": loop.ahead.state_dict()})
    kept = load_state(tmp_path / "ahead.pt")["ahead"]
    indices = next(prompt_batches(len(loop.prompts), 4, loop.config.training.seed))
    ready = loop.ahead.take(indices, 0)
    assert loop.ahead.take(indices, 0) is None  # it is taken once

    def taken(config=loop.config, prompts=loop.prompts, step=0):
        other = Ahead(config, loop.collector, prompts)
        other.load_state_dict(kept)
        return other.take(indices, step)

    assert taken() == ready
    assert capsys.readouterr().err == ""
    assert taken(prompts=loop.prompts[::-1]) is None and "prompts or settings" in capsys.readouterr().err
    assert taken(step=1) is None
    without = loop.config.rollout.model_copy(update={"lag": 0})
    assert taken(config=loop.config.model_copy(update={"rollout": without})) is None


def test_further_rounds_of_sampling_are_refused(stage_config):
    rollout = {"lag": 1, "dynamic_sampling": 2, "num_generations": 4}
    with pytest.raises(ValueError, match=r"rollout.dynamic_sampling .* rollout.lag=1 .* take one of them out"):
        stage_config(rollout=rollout, ppo={"advantage_estimator": "rloo"})
    with pytest.raises(ValueError, match="lag"):
        stage_config(rollout={"lag": 2})
    assert stage_config().rollout.lag == 0


# --- a server ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def server(monkeypatch, make_loop, stage_config, tmp_path):
    """A loop whose responses come from the stand-in of a server, and the stand-in's client."""
    vllm_standin.install(monkeypatch)
    by_nccl = Server("http://node7:8000", by_nccl=True, on_cpu=False, dtype=torch.bfloat16)
    monkeypatch.setattr(vllm_engine, "find_server", lambda url: by_nccl)

    def build(lag, **sections):
        models = build_models(ref_seed=7)
        models.policy.model.save_pretrained(tmp_path / "policy")
        models.policy.model.name_or_path = str(tmp_path / "policy")
        rollout = {"vllm": {"server_base_url": by_nccl.url}, "batch_size": 4, "lag": lag}
        loop = make_loop(models, stage_config(rollout=rollout, **sections))
        (client,) = vllm_standin.VLLMClient.made
        client.llm = vllm_standin.LLM(str(tmp_path / "policy"), max_model_len=20)
        return loop, client

    return build


def test_a_server_samples_while_the_update_runs(server, monkeypatch):
    """Each request waits for the update that it runs beside, and the update for the request: one after the other, in
    either order, would wait for ever. The client asserts that no weights come while it samples."""
    loop, client = server(1)
    updating, sampling, begun = threading.Event(), threading.Event(), threading.Event()
    take_steps, generate, begin, together = loop.updater.update, client.generate, loop.ahead.begin, []

    def watched_update(step, rollout, targets):
        if step + 1 < loop.config.training.max_steps:
            updating.set()
            assert sampling.wait(SECONDS)
            together.append(step)
        return take_steps(step, rollout, targets)

    def watched_generate(prompts, **how):
        if begun.is_set():
            begun.clear()
            sampling.set()
            assert updating.wait(SECONDS)
        return generate(prompts, **how)

    def watched_begin(step):
        updating.clear()
        sampling.clear()
        begun.set()
        return begin(step)

    monkeypatch.setattr(loop.updater, "update", watched_update)
    monkeypatch.setattr(client, "generate", watched_generate)
    monkeypatch.setattr(loop.ahead, "begin", watched_begin)
    loop.run()
    assert together == [0, 1, 2]
    assert client.llm.syncs == 4  # before the first rollout, and before each that was sampled ahead


def test_weights_never_go_to_a_server_that_samples(server):
    """What the loop asks one after the other: the engine refuses it in another order."""
    loop, _ = server(1)
    loop._begin(list(range(4)))
    loop.ahead.begin(1)
    with pytest.raises(AssertionError):
        loop.collector.collect(make_tasks(loop.prompts, range(4), 1), 0, 0)
    loop.ahead.finish()
    loop.collector.collect(make_tasks(loop.prompts, range(4), 1), 0, 0)


def test_a_request_that_fails_beside_an_update_is_one_line(server, monkeypatch):
    loop, client = server(1)
    loop._begin(list(range(4)))

    def broken(prompts, **how):
        raise ConnectionError("gone\nTraceback")

    monkeypatch.setattr(client, "generate", broken)
    with pytest.raises(vllm_engine.GenerationError, match=r"failed while it sampled: ConnectionError: gone$"):
        loop.iterate(list(range(4)))


def test_the_step_of_an_update_is_no_gap_of_the_sampler(server, monkeypatch):
    """The checks for stale weights and their alarm are of responses from the weights of now."""
    checked = []
    monkeypatch.setattr(sampler_gap, "check", lambda *_: checked.append(1))
    loop, _ = server(1, training={"learning_rate": 3e-2})
    raised = []
    monkeypatch.setattr(loop, "report", lambda name, level, text: raised.append(name))
    missing = []
    monkeypatch.setattr(loop.journal, "not_measured", lambda step, name, text: missing.append(name))
    loop.run()
    assert len(checked) == 1
    assert "sampler gap" not in raised and missing == ["sampler gap"]
