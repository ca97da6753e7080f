"""Rollouts: what is sampled, and that every number in them is the plain model's on the unpadded row."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import ppo.rollout
from alignment import distributed
from ppo.config import RolloutConfig
from ppo.rollout import Rollout, collect_rollout, prompt_batches, select, trim

CONFIG = RolloutConfig(max_new_tokens=9, temperature=0.7, missing_eos_score=-5.0)
PAD, EOS = 0, 1


@pytest.fixture
def collect(models, prompts):
    """Sample the eight prompts; models are evaluated directly, as a single process does it."""
    accelerator = distributed.make_accelerator(accumulation=1, microbatch=8, max_grad_norm=1.0)

    def run(config=CONFIG, seed=3, who=models, what=prompts, max_length=20):
        return collect_rollout(who, who.trained, accelerator, what, config, max_length, seed)

    return run


def plain_rows(rollout):
    """(row, prompt ids, response ids) without any padding, by the documented layout alone."""
    for row in range(len(rollout)):
        length = rollout.input_ids.shape[1] - rollout.num_response
        prompt = rollout.input_ids[row, :length][rollout.attention_mask[row, :length]]
        yield row, prompt, rollout.response_ids[row][rollout.response_mask[row]]


def plain_logprobs(model, prompt, response, temperature):
    """Log-probabilities of one unpadded response, in float64, from transformers' forward with nothing passed."""
    with torch.no_grad():
        logits = model.double()(input_ids=torch.cat([prompt, response])[None]).logits[0] / temperature
    model.float()
    return logits.log_softmax(-1)[torch.arange(len(response)) + len(prompt) - 1, response]


def test_prompts_stand_on_the_left_and_responses_end_with_their_first_eos(collect, models, prompts):
    rollout = collect()
    width = rollout.input_ids.shape[1] - rollout.num_response
    assert rollout.attention_mask[:, width - 1].all()  # left padding: the last prompt column is real in every row
    assert torch.equal(rollout.attention_mask[:, width:], rollout.response_mask)
    for row, prompt, response in plain_rows(rollout):
        assert prompt.tolist() == [2 + int(digit) for digit in prompts[row].messages[0]["content"]]
        assert not rollout.attention_mask[row, : width - len(prompt)].any()
        assert (response[:-1] != EOS).all()
        assert bool(rollout.ended[row]) == (response[-1] == EOS)
        assert rollout.ended[row] or len(response) == CONFIG.max_new_tokens
        assert (rollout.response_ids[row, len(response) :] == PAD).all()
        assert int(rollout.lengths[row]) == len(response)
    ended = rollout.ended.tolist()
    assert True in ended
    assert False in ended  # otherwise the test shows nothing


def test_log_probabilities_are_the_plain_models_at_the_sampling_temperature(collect, models):
    rollout = collect()
    for row, prompt, response in plain_rows(rollout):
        for model, found in ((models.policy, rollout.old_logprobs), (models.ref_policy, rollout.ref_logprobs)):
            expected = plain_logprobs(model, prompt, response, 0.7).float()
            torch.testing.assert_close(found[row, : len(response)], expected, rtol=0, atol=2e-5)


def test_k1_has_the_sign_of_policy_over_reference(models):
    shape = (1, 2)
    ones = torch.ones(shape, dtype=torch.bool)
    rollout = Rollout(
        input_ids=torch.zeros((1, 3), dtype=torch.long),
        attention_mask=torch.ones((1, 3), dtype=torch.bool),
        response_mask=torch.tensor([[True, False]]),
        old_logprobs=torch.tensor([[-1.0, -3.0]]),
        ref_logprobs=torch.tensor([[-1.2, -9.0]]),
        entropy=torch.zeros(shape),
        old_values=torch.zeros(shape),
        scores=torch.zeros(1),
        ended=ones[:, 0],
    )
    torch.testing.assert_close(rollout.kl, torch.tensor([[0.2, 0.0]]))


def test_a_value_is_read_before_its_token(collect, models):
    """Changing token t leaves values up to and including t as they are, and changes the next one."""
    rollout = collect()
    row = int(rollout.lengths.argmax())
    part = select(rollout, torch.tensor([row]))
    with torch.no_grad():
        before = models.trained(part.input_ids, part.attention_mask, part.num_response, 1.0)[2]
    assert torch.allclose(before, part.old_values, atol=1e-6)
    first = part.input_ids.shape[1] - part.num_response
    for t in range(part.num_response - 1):
        changed = part.input_ids.clone()
        changed[0, first + t] = 2 + (changed[0, first + t] - 1) % 10
        assert changed[0, first + t] != part.input_ids[0, first + t]
        with torch.no_grad():
            after = models.trained(changed, part.attention_mask, part.num_response, 1.0)[2]
        assert torch.equal(after[:, : t + 1], before[:, : t + 1])
        assert not torch.allclose(after[:, t + 1], before[:, t + 1], atol=1e-6)


def test_values_are_the_plain_value_models_at_the_token_before(collect, models):
    rollout = collect()
    for row, prompt, response in plain_rows(rollout):
        with torch.no_grad():
            ids = torch.cat([prompt, response])[None]
            hidden = models.trained.value_model.model.base_model(input_ids=ids).last_hidden_state[0]
            per_token = hidden @ models.trained.value_model.model.score.weight[0]
        found = rollout.old_values[row, : len(response)]
        torch.testing.assert_close(found, per_token[len(prompt) - 1 : -1], rtol=0, atol=1e-5)


def test_the_reward_model_reads_the_last_kept_token_of_the_whole_row(collect, models):
    rollout = collect(CONFIG.model_copy(update={"missing_eos_score": None}))
    for row, prompt, response in plain_rows(rollout):
        ids = torch.cat([prompt, response])[None]
        with torch.no_grad():
            hidden = models.reward_model.model.base_model(input_ids=ids).last_hidden_state[0, -1]
        expected = hidden @ models.reward_model.model.score.weight[0]
        torch.testing.assert_close(rollout.scores[row], expected, rtol=0, atol=1e-5)


def test_a_response_without_an_end_gets_the_missing_eos_score(collect):
    kept, replaced = collect(CONFIG.model_copy(update={"missing_eos_score": None})), collect()
    assert torch.equal(kept.response_ids, replaced.response_ids)
    assert (replaced.scores[~replaced.ended] == -5.0).all()
    assert torch.equal(replaced.scores[replaced.ended], kept.scores[kept.ended])


def test_a_seed_gives_the_same_responses_again_and_another_seed_others(collect):
    first, again, other = collect(seed=5), collect(seed=5), collect(seed=6)
    assert torch.equal(first.input_ids, again.input_ids)
    assert torch.equal(first.old_logprobs, again.old_logprobs)
    assert first.input_ids.shape != other.input_ids.shape or not torch.equal(first.input_ids, other.input_ids)


def test_scoring_few_rows_at_a_time_changes_no_figure(collect, monkeypatch):
    whole = collect()
    # The same responses: sampling draws other numbers when it works in other batches.
    monkeypatch.setattr(
        ppo.rollout,
        "generate",
        lambda policy, ids, *_, **__: whole.response_ids[torch.stack([row_of(whole, row) for row in ids])],
    )
    parts = collect(CONFIG.model_copy(update={"generation_batch_size": 3}))
    assert torch.equal(parts.input_ids, whole.input_ids)
    mask = whole.response_mask
    for name in ("old_logprobs", "ref_logprobs", "entropy", "old_values"):
        a, b = getattr(parts, name)[mask], getattr(whole, name)[mask]
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
    torch.testing.assert_close(parts.scores, whole.scores, rtol=0, atol=1e-5)


def row_of(rollout, prompt_ids):
    """The row whose prompt this is, with whatever padding."""
    width = rollout.input_ids.shape[1] - rollout.num_response
    return (rollout.input_ids[:, width - len(prompt_ids) : width] == prompt_ids).all(1).nonzero()[0, 0]


def test_a_long_prompt_loses_its_oldest_tokens(collect):
    rollout = collect(max_length=12)
    prompts = {row: prompt.tolist() for row, prompt, _ in plain_rows(rollout)}
    assert prompts[4] == [2 + 3, 2 + 4, 2 + 5]
    assert rollout.attention_mask.sum(1).max() <= 12


# --- cutting -------------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 6)), min_size=1, max_size=5), st.data())
@settings(max_examples=60, deadline=None)
def test_selected_episodes_keep_every_token_and_lose_only_padding(sizes, data):
    prompt_width, response_width = max(p for p, _ in sizes), max(r for _, r in sizes)
    count = len(sizes)
    attention = torch.zeros(count, prompt_width + response_width, dtype=torch.bool)
    for row, (p, r) in enumerate(sizes):
        attention[row, prompt_width - p : prompt_width + r] = True
    ids = torch.arange(attention.numel()).reshape(attention.shape)
    response = attention[:, prompt_width:]
    figure = torch.arange(response.numel()).float().reshape(response.shape)
    whole = Rollout(ids, attention, response, figure, figure, figure, figure, torch.arange(count), response[:, 0])
    rows = torch.tensor(data.draw(st.lists(st.integers(0, count - 1), min_size=1, max_size=5)))
    part = select(whole, rows)
    for index, row in enumerate(rows.tolist()):
        assert part.input_ids[index][part.attention_mask[index]].tolist() == ids[row][attention[row]].tolist()
        assert part.old_values[index][part.response_mask[index]].tolist() == figure[row][response[row]].tolist()
        assert part.response_ids[index][part.response_mask[index]].tolist() == (
            ids[row, prompt_width:][response[row]].tolist()
        )
    assert part.attention_mask.any(0).all()
    assert part.response_mask.any(0).all()
    assert part.old_values.shape == part.response_mask.shape == (len(rows), part.num_response)


def test_trim_of_a_batch_without_padding_keeps_all():
    mask = torch.ones(2, 7, dtype=torch.bool)
    assert trim(mask.long(), mask, 3) == (slice(0, 7), 3)


# --- prompts -------------------------------------------------------------------------------------------------------


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
