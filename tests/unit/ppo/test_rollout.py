"""Episodes: what is sampled, what the models say of it, and that it depends on nothing else."""

from __future__ import annotations

import itertools

import pytest
import torch
from helpers import tiny
from helpers.digits import CONTENTS, build_models, prompts_of
from hypothesis import given, settings
from hypothesis import strategies as st

from alignment.data.records import Prompt
from alignment.errors import ConfigError
from alignment.generation.sampling import Sampled
from alignment.models import forward
from ppo import sampler_gap
from ppo.prompts import encode_prompts, make_tasks, prompt_batches
from ppo.reward_model import RewardModel

EOS = 1


@pytest.fixture
def collect(models, stage_config, make_loop):
    """Sample the eight prompts."""

    def run(seed=3, numbers=range(8), who=models, generations=1, engine=None, **sections):
        rollout = {"temperature": 0.7, **sections.pop("rollout", {})}
        loop = make_loop(who, stage_config(rollout=rollout, **sections))
        if engine is not None:
            loop.collector.sampler = engine
        return loop.collector.collect(make_tasks(loop.prompts, numbers, generations), seed, 0, with_entropy=True)

    return run


def plain_logprobs(model, row, temperature):
    """Log-probabilities of one unpadded response, in float64, from transformers' forward with nothing passed."""
    ids = torch.tensor([[*row.prompt, *row.response]])
    with torch.no_grad():
        logits = model.double()(input_ids=ids).logits[0] / temperature
    model.float()
    places = torch.arange(len(row.response)) + len(row.prompt) - 1
    return logits.log_softmax(-1)[places, torch.tensor(row.response)].float()


def test_responses_end_with_their_first_eos(collect, prompts):
    rollout = collect()
    for number, row in enumerate(rollout.rows):
        assert row.prompt == [2 + int(digit) for digit in prompts[number].messages[0]["content"]]
        assert EOS not in row.response[:-1]
        assert bool(rollout.ended[number]) == (row.response[-1] == EOS)
        assert rollout.ended[number] or len(row.response) == 9
        assert int(rollout.lengths[number]) == len(row.response)
    assert {True, False} == set(rollout.ended.tolist())  # otherwise the test shows nothing


def test_log_probabilities_are_the_plain_models_at_the_sampling_temperature(collect, models):
    rollout = collect()
    for number, row in enumerate(rollout.rows):
        for model, found in (
            (models.policy.model, rollout.old_logprobs),
            (models.reference.model, rollout.ref_logprobs),
        ):
            expected = plain_logprobs(model, row, 0.7)
            torch.testing.assert_close(found[number, : len(row.response)], expected, rtol=0, atol=2e-5)
    k1 = torch.where(rollout.response_mask, rollout.old_logprobs - rollout.ref_logprobs, 0.0)
    assert torch.equal(rollout.kl, k1)


def test_values_are_the_plain_critics_at_the_token_before(collect, models):
    rollout = collect()
    critic = models.critic
    for number, row in enumerate(rollout.rows):
        with torch.no_grad():
            ids = torch.tensor([[*row.prompt, *row.response]])
            hidden = critic.model.base_model(input_ids=ids).last_hidden_state[0]
        expected = (hidden @ critic.head.weight[0])[len(row.prompt) - 1 : -1]
        torch.testing.assert_close(rollout.old_values[number, : len(row.response)], expected, rtol=0, atol=1e-5)


def test_the_reward_model_reads_the_last_token_of_the_whole_row(collect, models):
    rollout = collect(rewards={"missing_eos_penalty": None})
    member = models.reward.members[0]
    for number, row in enumerate(rollout.rows):
        with torch.no_grad():
            hidden = member.model.base_model(input_ids=torch.tensor([[*row.prompt, *row.response]])).last_hidden_state
        expected = hidden[0, -1] @ member.head.weight[0]
        torch.testing.assert_close(rollout.scores[number], expected, rtol=0, atol=1e-5)
    assert torch.equal(rollout.scores, rollout.parts["model"])


def test_what_responses_without_an_end_cost_is_in_the_unit_of_the_scores(models, stage_config, make_loop):
    def final(**rewards):
        loop = make_loop(models, stage_config(rewards=rewards))
        rollout, _ = loop._collect(list(range(8)))
        return rollout, loop.target_builder.scores(rollout)

    rollout, plain = final(missing_eos_penalty=None)
    scores, ended = rollout.scores, rollout.ended
    std = scores.double().std(correction=0)
    assert torch.equal(plain, scores)
    assert 0 < ended.sum() < 8
    lowered = final(missing_eos_penalty=2.0)[1]
    torch.testing.assert_close(lowered, scores - 2.0 * std.float() * (~ended).float())
    raw = final(normalize=None, missing_eos_penalty=2.0)[1]
    torch.testing.assert_close(raw, scores - 2.0 * (~ended).float())


# --- what an episode depends on -------------------------------------------------------------------------------------


def test_an_episode_depends_on_its_task_and_seed_alone(collect):
    whole = collect()
    for changes in ({"rollout": {"generation_batch_size": 3}}, {"training": {"microbatch_tokens": 9}}):
        other = collect(**changes)
        assert other.rows == whole.rows
        for name in ("old_logprobs", "ref_logprobs", "entropy", "old_values", "scores"):
            torch.testing.assert_close(getattr(other, name), getattr(whole, name), rtol=0, atol=1e-5)
    some = collect(numbers=[5, 2])
    assert some.rows == [whole.rows[5], whole.rows[2]]
    assert collect(seed=4).rows != whole.rows


def test_only_the_rollouts_whose_entropy_is_logged_compute_it(make_loop, models, stage_config, prompts, monkeypatch):
    """It takes a second pass over the vocabulary."""
    loop = make_loop(models, stage_config(training={"eval_steps": 1}), held_out=prompts[:2])
    computed, compute = [], forward.entropy_from_logits
    monkeypatch.setattr(forward, "entropy_from_logits", lambda *args: computed.append(args) or compute(*args))
    assert loop.evaluation.answer(0).scores
    assert not computed
    assert loop._collect(list(range(8)))[0].entropy.abs().max() > 0
    assert computed


def test_responses_to_one_prompt_differ_and_stay_together(collect):
    rollout = collect(numbers=[3, 0], generations=4)
    assert [task.prompt_index for task in rollout.tasks] == [3] * 4 + [0] * 4
    assert [task.repeat for task in rollout.tasks] == [0, 1, 2, 3] * 2
    assert len({tuple(row.response) for row in rollout.rows[:4]}) > 1
    assert collect(numbers=[3]).rows[0] == rollout.rows[0]


def test_a_prompt_that_comes_twice_goes_on_counting():
    tasks = make_tasks([(prompt, [1]) for prompt in prompts_of("1", "2")], [0, 1, 0], 2)
    assert [(task.prompt_index, task.repeat) for task in tasks] == [(0, 0), (0, 1), (1, 0), (1, 1), (0, 2), (0, 3)]


def test_an_engine_that_says_what_it_sampled_from_is_corrected(collect, models, stage_config, make_loop, monkeypatch):
    """The loss of each token is weighed by min(policy / engine, cap)."""
    monkeypatch.setattr(sampler_gap, "check", lambda *_: None)  # which would not let an engine pass that is so far off

    class Engine:
        def generate(self, prompts, seeds, sampling):
            return Sampled([[4, 5, 1]] * len(prompts), [[-1.0, -2.0, -4.0]] * len(prompts))

    rollout = collect(engine=Engine())
    assert rollout.sampled_logprobs.tolist() == [[-1.0, -2.0, -4.0]] * 8
    loop = make_loop(models, stage_config(rollout={"temperature": 0.7}))
    targets = loop.target_builder.build(rollout, loop.target_builder.rewards(rollout))
    stats = loop.updater.update(0, rollout, targets)
    weights = (rollout.old_logprobs - rollout.sampled_logprobs).exp().clamp(max=2.0)
    expected = -(weights * targets.advantages).mean()
    assert stats["policy/loss"] == pytest.approx(float(expected), rel=1e-4)
    assert (weights == 2.0).any()
    assert (weights < 1.0).any()


# --- rewards --------------------------------------------------------------------------------------------------------


def test_functions_are_added_by_their_weights(collect):
    others = [{"function": "tests.unit.ppo.reward_functions:length", "weight": 0.5}]
    plain = collect(rewards={"missing_eos_penalty": None})
    both = collect(rewards={"missing_eos_penalty": None, "others": others})
    texts = torch.tensor([float(len(text)) for text in both.texts])
    torch.testing.assert_close(both.scores, plain.scores + 0.5 * texts)
    assert both.parts["length"].tolist() == texts.tolist()
    models = build_models(ref_seed=7)
    models.reward = None
    alone = collect(who=models, rewards={"missing_eos_penalty": None, "others": others})
    assert alone.scores.tolist() == (0.5 * texts).tolist()


def test_a_reward_model_with_other_tokens_reads_the_text(tmp_path, tokenizer):
    """Its scores are those of the conversation in its own template."""
    from alignment.templates.rendering import encode_conversation

    other = tiny.make_tokenizer("alpaca")
    scalar = tiny.make_scalar(tmp_path / "body", tiny.make_policy(other, seed=2), other, seed=2)
    model = RewardModel(text_model=scalar, tokenizer=other, max_tokens=60)
    turns = [{"role": "user", "content": "When?"}]
    conversations = [[*turns, {"role": "assistant", "content": text}] for text in ("At nine.", "I do not know at all.")]
    scores = model.member_scores([], conversations, torch.device("cpu"))
    for conversation, score in zip(conversations, scores[0], strict=True):
        ids = torch.tensor([encode_conversation(other, conversation).input_ids])
        expected = scalar.score(ids, torch.ones_like(ids, dtype=torch.bool))
        torch.testing.assert_close(score[None], expected, rtol=0, atol=1e-5)


# --- prompts --------------------------------------------------------------------------------------------------------


def test_long_prompts_are_cut_left_out_or_refused(models, capsys):
    prompts = prompts_of(*CONTENTS)
    long = prompts_of("12" * 30)
    ((_, cut),), count = encode_prompts(long, models.tokenizer, 40, "trim_prompt")
    assert (len(cut), count) == (40, 1)
    cut, count = encode_prompts(prompts, models.tokenizer, 3, "trim_prompt")
    assert (len(cut), count) == (6, 2)  # so short a prompt is not cut
    assert "ppo: 2 of 8 prompts cannot be trimmed to 3 tokens: left out" in capsys.readouterr().err
    kept, count = encode_prompts(prompts, models.tokenizer, 3, "drop")
    assert (len(kept), count) == (6, 2)
    with pytest.raises(ConfigError, match=r"4 tokens, and data.max_length less rollout.max_new_tokens leaves 3"):
        encode_prompts(prompts, models.tokenizer, 3, "raise")
    with pytest.raises(ConfigError, match="leaves no prompt: all 1 have more than 3 tokens"):
        encode_prompts(prompts_of("4567"), models.tokenizer, 3, "drop")
    with pytest.raises(ConfigError, match=r"x\.jsonl:3: is empty in this template"):
        encode_prompts([Prompt(({"role": "user", "content": ""},), place="x.jsonl:3")], models.tokenizer, 3, "drop")


@given(st.integers(1, 12), st.integers(1, 15), st.integers(0, 100), st.integers(0, 6))
@settings(max_examples=60, deadline=None)
def test_every_prompt_comes_once_per_pass_and_any_iteration_can_be_reached_directly(count, size, seed, start):
    batches = list(itertools.islice(prompt_batches(count, size, seed), start + 4))
    assert all(len(batch) == size for batch in batches)
    stream = list(itertools.chain(*batches))
    for begin in range(0, len(stream) - count + 1, count):
        assert sorted(stream[begin : begin + count]) == list(range(count))
    assert next(prompt_batches(count, size, seed, start)) == batches[start]


def test_another_seed_gives_another_order():
    assert next(prompt_batches(50, 50, 0)) != next(prompt_batches(50, 50, 1))
