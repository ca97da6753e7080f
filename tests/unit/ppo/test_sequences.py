"""Layouts: every index points at the token that it says, packed or padded."""

from __future__ import annotations

import pytest
import torch
from helpers.digits import llama
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaForCausalLM

from ppo.roles import Role, pack_if_possible
from ppo.rows import Row
from ppo.sequences import lay_out, split_by_tokens

CPU = torch.device("cpu")
TOKENS = st.lists(st.integers(2, 11), min_size=1, max_size=6)


@st.composite
def rows(draw):
    """Rows, some of which share a prompt, which then are neighbours; some with tokens that do not count."""
    found = []
    for prompt in draw(st.lists(TOKENS, min_size=1, max_size=4)):
        for response in draw(st.lists(TOKENS, min_size=1, max_size=3)):
            kept = draw(st.none() | st.lists(st.booleans(), min_size=len(response), max_size=len(response)))
            found.append(Row(prompt, response, kept if kept and any(kept) else None))
    return found


@given(rows(), st.booleans())
@settings(max_examples=100, deadline=None)
def test_indices_point_where_they_say(batch, packed):
    numbers = list(range(10, 10 + len(batch)))
    laid = lay_out(batch, numbers, packed, 0, CPU)
    ids = laid.inputs["input_ids"].flatten()
    place = 0
    for number, row in zip(numbers, batch, strict=True):
        whole = [*row.prompt, *row.response]
        for t, token in enumerate(row.response):
            if row.kept is not None and not row.kept[t]:
                continue
            assert (int(laid.row[place]), int(laid.column[place]), int(laid.targets[place])) == (number, t, token)
            assert int(ids[laid.before[place]]) == whole[len(row.prompt) + t - 1]
            place += 1
    assert place == len(laid.targets)
    assert ids[laid.last].tolist() == [row.response[-1] for row in batch]
    assert laid.rows.tolist() == numbers


@given(rows())
@settings(max_examples=30, deadline=None)
def test_both_layouts_give_the_log_probabilities_of_rows_alone(batch):
    """A packed prompt is computed once for all its responses, and none of them sees another."""
    role = Role(MODEL)
    for packed in (False, True):
        laid = lay_out(batch, range(len(batch)), packed, 0, CPU)
        found = role.logprobs(laid, 0.7).logprobs
        expected = []
        for row in batch:
            logits = MODEL(input_ids=torch.tensor([[*row.prompt, *row.response]])).logits[0, len(row.prompt) - 1 : -1]
            logprobs = (logits / 0.7).log_softmax(-1).gather(1, torch.tensor(row.response)[:, None]).squeeze(1)
            kept = row.kept or [True] * len(row.response)
            expected.append(logprobs[torch.tensor(kept)])
        torch.testing.assert_close(found, torch.cat(expected), rtol=0, atol=1e-5)


MODEL = llama(LlamaForCausalLM, 1).requires_grad_(False)
REASON = pack_if_possible([Role(MODEL)], 20)


def test_the_model_of_these_tests_can_be_packed():
    assert REASON is None


@given(rows(), st.integers(1, 40), st.booleans())
@settings(max_examples=100, deadline=None)
def test_parts_hold_each_row_once_and_no_more_tokens_than_allowed(batch, limit, packed):
    parts = split_by_tokens(batch, range(len(batch)), limit, packed)
    assert sorted(number for part in parts for number in part) == list(range(len(batch)))
    for part in parts:
        ids = lay_out([batch[number] for number in part], part, packed, 0, CPU).inputs["input_ids"]
        assert ids.numel() <= limit or len(part) == 1


def test_a_shared_prompt_is_laid_out_once_and_a_lone_row_is_one_document():
    prompt = [2, 3, 4]
    batch = [Row(prompt, [5, 6]), Row(prompt, [7]), Row([8], [9, 9])]
    laid = lay_out(batch, range(3), True, 0, CPU)
    assert laid.inputs["input_ids"].tolist() == [[2, 3, 4, 5, 6, 7, 8, 9, 9]]
    assert laid.inputs["packed_groups"] == [[3, 2, 1], [0, 3]]
    assert laid.inputs["position_ids"].tolist() == [[0, 1, 2, 3, 4, 3, 0, 1, 2]]


def test_responses_to_one_prompt_stay_together_where_they_fit():
    batch = [Row([2, 3], [4] * n) if n % 2 else Row([5, 6], [7] * n) for n in range(1, 9)]
    for part in split_by_tokens(batch, range(8), 24, True):
        prompts = [tuple(batch[number].prompt) for number in part]
        assert prompts == sorted(prompts, key=prompts.index)  # runs, not a mixture


@pytest.mark.parametrize("packed", [False, True])
def test_a_filler_counts_for_nothing(packed):
    laid = lay_out([Row([2], [3, 4])], [0], packed, 0, CPU)
    assert laid.mask.tolist() == [True, True]
    assert laid.as_filler().mask.tolist() == [False, False]
    grid = torch.tensor([[1.0, 2.0, 9.0]])
    assert laid.pick(grid).tolist() == [1.0, 2.0]
    laid.put(grid, torch.tensor([5.0, 6.0]))
    assert grid.tolist() == [[5.0, 6.0, 9.0]]
