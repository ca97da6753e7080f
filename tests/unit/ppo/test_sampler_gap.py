"""Engines that sample by other weights than the policy's stop a run; those that round do not."""

from __future__ import annotations

import copy

import pytest
import torch
from helpers.digits import build_models

import ppo.loop
from alignment.generation.engine import TransformersEngine
from alignment.generation.sampling import GenerationError, Sampled
from ppo import sampler_gap
from ppo.alarms import Alarms
from ppo.prompts import make_tasks
from ppo.sampler_gap import LACKING, LIMITS, SURE, Gap, Limits, lack, measure


class Copy:
    """Samples by a copy of the policy that is brought up to date at each call, but for the parameters in `stale`; its
    log-probabilities are a plain forward pass's, off by noise."""

    def __init__(self, policy, stale=(), noise=0.0):
        self.policy, self.model = policy, copy.deepcopy(policy)
        self.stale, self.noise, self.draws = stale, noise, torch.Generator().manual_seed(0)

    @torch.no_grad()
    def generate(self, prompts, seeds, sampling):
        theirs = dict(self.policy.named_parameters())
        for name, parameter in self.model.named_parameters():
            if not any(part in name for part in self.stale):
                parameter.copy_(theirs[name])
        responses = TransformersEngine(self.model, None).generate(prompts, seeds, sampling).responses
        return Sampled(responses, [self.said(list(p), r, sampling) for p, r in zip(prompts, responses, strict=True)])

    def said(self, prompt, response, sampling):
        logits = self.model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1] / sampling.temperature
        logits = logits + self.noise * torch.randn(logits.shape, generator=self.draws)
        return logits.log_softmax(-1).gather(1, torch.tensor(response)[:, None]).squeeze(1).tolist()


@pytest.fixture
def models():
    """The reference is the policy as it starts."""
    return build_models(ref_seed=1)


@pytest.fixture
def loop_with(models, make_loop, stage_config, monkeypatch):
    def build(sections, **engine):
        monkeypatch.setattr(ppo.loop, "make_sampler", lambda *_: Copy(models.policy.model, **engine))
        return make_loop(models, stage_config(**{"training": {"learning_rate": 5e-3}, **sections}))

    return build


@pytest.mark.parametrize(
    ("dtype", "stale"), [("float32", ("",)), ("float32", ("lm_head",)), ("bfloat16", ("",))], ids=str
)
def test_weights_that_were_not_brought_up_to_date_stop_the_run(loop_with, dtype, stale):
    many = {"batch_size": 64, "num_generations": 8}
    loop = loop_with({"rollout": {"vllm": {"dtype": dtype}, **many}}, stale=stale)
    first = loop.iterate(range(8))
    assert first["rollout/sampler_gap_mean"] < 1e-5  # nothing was trained yet
    before = {name: p.clone() for name, p in loop.models.policy.model.named_parameters()}
    with pytest.raises(GenerationError, match=r"samples by (other|stale) weights") as caught:
        for _ in range(8):
            loop.iterate(range(8))
            before = {name: p.clone() for name, p in loop.models.policy.model.named_parameters()}
    assert "\n" not in str(caught.value)
    after = dict(loop.models.policy.model.named_parameters())
    assert all(torch.equal(value, after[name]) for name, value in before.items())  # nothing was learned from it


@pytest.mark.parametrize(("dtype", "noise"), [("float32", 0.0), ("float16", 8e-4), ("bfloat16", 6e-3)])
def test_rounding_neither_stops_a_run_nor_alarms(loop_with, dtype, noise):
    loop = loop_with({"rollout": {"vllm": {"dtype": dtype}}}, noise=noise)
    for step in range(1, 5):
        stats = loop.iterate(range(8))
        assert stats["rollout/sampler_gap_mean"] <= stats["rollout/sampler_gap_max"] < 10 * LIMITS[dtype].alarm
        assert "sampler gap" not in [alarm.name for alarm in loop.alarms.check(step, stats)]
    assert stats["rollout/importance_capped"] == 0


def test_between_rounding_and_stale_weights_there_is_an_alarm(loop_with, stage_config):
    loop = loop_with({"rollout": {"vllm": {}}}, noise=1e-3)
    said = [alarm.text for alarm in loop.alarms.check(1, loop.iterate(range(8))) if alarm.name == "sampler gap"]
    assert len(said) == 1 and "alarm at 0.0001" in said[0]
    in_half = Alarms(stage_config(rollout={"vllm": {}}, training={"bf16": True}))
    assert "sampler gap" not in [alarm.name for alarm in in_half.check(1, loop.iterate(range(8)))]


def test_a_model_that_rounds_far_is_not_taken_for_one_with_other_weights(loop_with, models, monkeypatch):
    """Of a model with sharp distributions bfloat16's rounding alone may be more than the limit."""
    monkeypatch.setitem(LIMITS, "bfloat16", Limits(1e-3, 5e-3))
    with torch.no_grad():
        for parameter in models.policy.model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(2.5)
    policy = models.policy.model
    loop = loop_with({"rollout": {"vllm": {"dtype": "bfloat16"}}, "training": {"learning_rate": 1e-6}})
    engine = loop.collector.sampler
    in_float32 = engine.said

    def said(*given):
        engine.model = copy.deepcopy(policy).bfloat16()
        return in_float32(*given)

    engine.said = said
    assert loop.iterate(range(8))["rollout/sampler_gap_mean"] > LIMITS["bfloat16"].stop
    engine.noise = 3.0
    with pytest.raises(GenerationError, match=r"bfloat16's rounding gives less than 0\.\d+: it samples by other"):
        loop.iterate(range(8))


def test_an_engine_that_is_the_policy_has_no_gap(models, make_loop, stage_config):
    stats = make_loop(models, stage_config()).iterate(range(8))
    assert not [name for name in stats if "gap" in name or "capped" in name]


def test_the_gap_is_over_the_kept_tokens_of_all_processes(monkeypatch):
    policy = torch.tensor([[-1.0, -2.0, -9.0], [-3.0, -0.5, -0.1]])
    sampled = torch.tensor([[-1.5, -1.9, 0.0], [-3.0, -2.5, -0.1]])
    mask = torch.tensor([[True, True, False], [True, True, True]])
    gap = measure(policy, sampled, mask)
    assert gap == pytest.approx(Gap((0.5 + 0.1 + 0 + 2 + 0) / 5, 2.0, 1 / 5))  # e^0.5 is 1.65, e^2 is 7.4
    monkeypatch.setattr(sampler_gap, "all_reduce_sum", lambda own: own + torch.tensor([1.0, 3.0, 15.0]))
    monkeypatch.setattr(sampler_gap, "gather_lists", lambda own: [own, [3.5]])
    assert measure(policy, sampled, mask) == pytest.approx(Gap(3.6 / 20, 3.5, 4 / 20))


def test_evaluations_are_held_to_it_too(loop_with):
    loop = loop_with({"rollout": {"vllm": {}}}, noise=0.1)
    with pytest.raises(GenerationError, match=r"differ from the policy's by 0\.0\d+ nats a token"):
        loop.collector.collect(make_tasks(loop.prompts, range(8), 1), 0, 0)


@pytest.mark.parametrize(
    ("moved", "stale", "policy_noise", "engine_noise", "found"),
    [
        (0.3, 1.0, 0.0, 0.03, True),  # all weights are those of the reference
        (0.05, 0.6, 0.0, 0.03, True),  # one layer is: no further off than bfloat16's rounding
        (0.1, 0.6, 0.03, 0.03, True),
        (1e-3, 1.0, 0.0, 1e-6, True),  # in float32 after one small step
        (0.3, 0.0, 0.0, 0.03, False),
        (0.3, 0.0, 0.03, 0.03, False),
        (0.0, 0.0, 0.03, 0.03, False),  # nothing but rounding, which the policy has in both differences
        (1e-3, 0.0, 0.03, 0.03, False),
        (1e-3, 0.0, 0.03, 0.0, False),
        (0.0, 0.0, 0.0, 0.03, False),
    ],
)
def test_what_the_policy_learned_and_the_engine_lacks_is_told_from_rounding(
    moved, stale, policy_noise, engine_noise, found
):
    draws = torch.Generator().manual_seed(1)

    def normal():
        heavy = torch.randn(64, 32, generator=draws)
        return heavy * heavy.abs()  # few tokens move and round far, most hardly

    reference, way = normal() - 3, moved * normal()
    policy = reference + way + policy_noise * normal()
    sampled = reference + (1 - stale) * way + engine_noise * normal()
    said = lack(
        policy, sampled, reference + policy_noise * normal(), torch.ones(64, 32).bool(), rounded=policy_noise > 0
    )
    assert (said.share >= LACKING and said.errors >= SURE) == found, said
