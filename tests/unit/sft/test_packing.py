"""Packed rows against the same rows one by one: nothing passes between documents, and nothing else changes."""

from __future__ import annotations

import pytest
import torch
from helpers.architectures import VOCABULARY, build, row
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from alignment.errors import ConfigError
from alignment.models.packing import why_not_packed
from sft.packing import PackingCollator, pack_attention

ARCHITECTURES = ("llama", "gpt2", "qwen2", "qwen3", "mistral", "gemma3_text", "phi3", "gpt_neox", "opt")
documents = st.lists(st.lists(st.integers(3, VOCABULARY - 1), min_size=1, max_size=9), min_size=1, max_size=5)


def one_by_one(model, rows):
    """Sum of the loss of each row alone, by the model's own attention and a whole matrix of logits."""
    total = torch.zeros(())
    for r in rows:
        logits = model(input_ids=torch.tensor([r["input_ids"]])).logits[0]
        labels = torch.tensor(r["labels"][1:], dtype=torch.long)
        total = total + cross_entropy(logits[:-1], labels, reduction="sum", ignore_index=-100)
    return total


def packed(model, collator, rows):
    batch = collator(rows)
    labels = batch.pop("labels")[0]
    logits = model(**batch, use_cache=False).logits[0]
    return cross_entropy(logits[:-1], labels[1:], reduction="sum", ignore_index=-100)


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_loss_and_gradients_are_those_of_the_rows_alone(kind):
    model = build(kind)
    rows = [row([5, 6, 7, 8, 9, 10], prompt=2), row([11, 12]), row([20, 21, 22, 23], prompt=3)]
    expected = one_by_one(model, rows)
    expected_gradients = gradients(model, expected)
    assert why_not_packed(model, 20) is None
    found = packed(model, pack_attention(model), rows)
    found_gradients = gradients(model, found)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    assert (found_gradients - expected_gradients).norm() < 1e-5 * expected_gradients.norm()


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_the_first_document_cannot_reach_the_second(kind):
    model = build(kind).eval()
    collator = pack_attention(model)

    def logits(first):
        batch = collator([row(first), row([30, 31, 32, 33])])
        del batch["labels"]
        return model(**batch, use_cache=False).logits[0, 5:]

    with torch.no_grad():
        assert torch.equal(logits([5, 6, 7, 8, 9]), logits([40, 41, 42, 43, 44]))


@settings(max_examples=25, deadline=None)
@given(documents)
def test_any_documents_pack(texts):
    model = build("llama").eval()
    expected = one_by_one(model, [row(ids) for ids in texts]).item()
    with torch.no_grad():
        assert packed(model, pack_attention(model), [row(ids) for ids in texts]).item() == pytest.approx(
            expected, rel=1e-5, abs=1e-5
        )


def test_a_packed_model_still_takes_padded_batches():
    model = build("llama").eval()
    ids, mask = torch.tensor([[0, 0, 5, 6, 7], [8, 9, 10, 11, 12]]), torch.tensor([[0, 0, 1, 1, 1], [1] * 5])
    with torch.no_grad():
        expected = model(input_ids=ids, attention_mask=mask).logits
        pack_attention(model)
        found = model(input_ids=ids, attention_mask=mask).logits
    torch.testing.assert_close(found[mask.bool()], expected[mask.bool()])


def test_no_token_is_taught_to_start_the_next_document():
    batch = PackingCollator()([row([5, 6]), row([7, 8, 9], prompt=2)])
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 9]]
    assert batch["labels"].tolist() == [[-100, 6, -100, -100, 9]]
    assert batch["position_ids"].tolist() == [[0, 1, 0, 1, 2]]


def test_flash_attention_gets_the_borders():
    batch = PackingCollator(flash=True)([row([5, 6]), row([7, 8, 9])])
    assert batch["cu_seq_lens_q"].tolist() == [0, 2, 5]
    assert batch["cu_seq_lens_q"].dtype == torch.int32
    assert batch["max_length_q"] == 3
    assert "attention_mask" not in batch  # all ones, it would make transformers forget the borders


@pytest.mark.parametrize(
    ("kind", "changes", "part"),
    [
        ("bloom", {}, "positions"),
        ("gptj", {}, "attention cannot be replaced"),
        ("jamba", {}, "carry a state"),
        ("mistral", {"sliding_window": 8}, "window of 8 tokens is shorter than rows of 20 (data.max_length)"),
    ],
)
def test_what_cannot_be_packed_says_why(kind, changes, part):
    assert part in why_not_packed(build(kind, **changes), 20)


def test_a_long_enough_window_is_no_hindrance():
    assert why_not_packed(build("mistral", sliding_window=20), 20) is None


def test_a_model_that_loses_the_borders_is_refused_not_trained():
    model = build("stablelm")
    batch = pack_attention(model)([row([5, 6]), row([7, 8, 9])])
    with pytest.raises(ConfigError, match=r"training\.packing=false"):
        model(**batch, use_cache=False)
