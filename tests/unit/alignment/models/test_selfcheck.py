"""The checks of short cuts, on models that they are right and wrong for; each wrong one passed in silence before."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from helpers.architectures import VOCABULARY, build

from alignment.generation import engine
from alignment.generation.engine import TransformersEngine
from alignment.generation.sampler_check import find_way
from alignment.generation.sampling import Sampling, way_of
from alignment.models.packing import attend_by_group
from alignment.models.selfcheck import (
    EXACT,
    CheckError,
    cut_rows,
    next_logprobs,
    plain_logits,
    plain_logprobs,
    undisturbed,
    why_not_split,
    why_wrong,
)

DRAW = random.Random(0)
ROWS = [[DRAW.randrange(3, VOCABULARY) for _ in range(length)] for length in (30, 9, 14)]
BART = {
    "d_model": 16, "decoder_layers": 2, "encoder_layers": 1, "decoder_ffn_dim": 32, "encoder_ffn_dim": 32,
    "decoder_attention_heads": 2, "encoder_attention_heads": 2, "init_std": 0.5, "dropout": 0.0,
}  # fmt: skip


def sampling(**changes):
    return Sampling(
        **{"max_new_tokens": 8, "temperature": 1.0, "end_token_ids": (2,), "pad_token_id": 0, "batch_size": 8} | changes
    )


def test_a_plain_model_passes_with_its_split_and_its_sampler():
    model = build("llama")
    with undisturbed(model):
        expected = plain_logprobs(model, ROWS)
        assert why_not_split(model, ROWS[0]) is None
    assert [len(each) for each in expected] == [29, 8, 13]
    assert find_way(model, ROWS, sampling(), TransformersEngine(model).sample) == "padded"


def test_nothing_of_a_run_is_disturbed():
    """Modes of each module, and the three random states."""
    model = build("llama", attention_dropout=0.5)
    model.model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    expected = random.random(), np.random.rand(), torch.rand(1)
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    with undisturbed(model):
        random.random(), np.random.rand(), torch.rand(1)
        plain_logprobs(model, ROWS)
    find_way(model, ROWS, sampling(), TransformersEngine(model).sample)
    assert (random.random(), np.random.rand(), torch.rand(1)) == expected
    assert [module.training for module in model.modules()] == modes
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_a_model_that_sees_what_it_predicts_is_refused(kind):
    model = build(kind, is_decoder=False)
    with pytest.raises(CheckError, match=r"no causal model: .*is_decoder=true"), undisturbed(model):
        plain_logprobs(model, ROWS)
    model = build(kind, is_decoder=True)
    with undisturbed(model):
        plain_logprobs(model, ROWS)


def test_a_model_that_cannot_be_run_is_refused_in_one_line():
    model = build("llama")
    with pytest.raises(CheckError, match=r"LlamaForCausalLM cannot be run .*IndexError"), undisturbed(model):
        plain_logprobs(model, [[3, 4, VOCABULARY]])
    with torch.no_grad():
        model.lm_head.weight[7] = float("nan")
    with pytest.raises(CheckError, match="not finite"), undisturbed(model):
        plain_logprobs(model, ROWS)


def test_memory_that_does_not_suffice_is_no_fault_of_a_short_cut():
    def burst():
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        why_wrong(build("llama"), burst, [])


@pytest.mark.parametrize("off", [2 * EXACT, float("nan")])
def test_other_numbers_and_missing_ones_are_wrong(off):
    model = build("llama")
    expected = [torch.zeros(5), torch.zeros(3)]
    assert why_wrong(model, lambda: [x + EXACT / 2 for x in expected], expected) is None
    assert "other numbers" in why_wrong(model, lambda: [expected[0], expected[1] + off], expected)
    assert "off by inf" in why_wrong(model, lambda: [expected[0], expected[1][:2]], expected)


def test_half_precision_is_allowed_its_rounding():
    model = build("llama")
    expected = [next_logprobs(plain_logits(model, row), row) for row in ROWS]
    with undisturbed(model), torch.autocast("cpu", torch.bfloat16):
        assert (
            why_wrong(model, lambda: [next_logprobs(plain_logits(model, row), row) for row in ROWS], expected) is None
        )


def test_rows_are_cut_to_unlike_lengths():
    assert [len(row) for row in cut_rows([[5] * 60] * 5)] == [32, 13, 21]
    assert cut_rows([[5], [5]]) == []


@pytest.mark.parametrize(
    ("kind", "changes", "way"),
    [("bart", BART, "by_length"), ("rwkv", {}, "uncached"), ("llama", {}, "padded")],
)
def test_prompts_of_unlike_length_are_sampled_as_each_alone(kind, changes, way, capsys):
    """Left padding shifts the positions of a BART decoder, and RWKV reads it as text."""
    model = build(kind, **changes).eval()
    seeds = range(len(ROWS))
    alone = [
        TransformersEngine(model).sample([row], [seed], sampling(), "uncached")[0]
        for row, seed in zip(ROWS, seeds, strict=True)
    ]
    assert (TransformersEngine(model).sample(ROWS, seeds, sampling(), "padded") == alone) == (way == "padded")
    assert TransformersEngine(model).generate(ROWS, seeds, sampling()).responses == alone
    assert way_of(model) == way
    assert ("sampled from one length at a time" in capsys.readouterr().err) == (way != "padded")


def test_a_model_that_reads_packed_prompts_as_one_text_reads_them_padded(monkeypatch, capsys):
    """As one does that keeps the groups from its attention."""
    model = build("llama").eval()
    attend_by_group(model)
    assert find_way(model, ROWS, sampling(), TransformersEngine(model).sample) == "packed"
    monkeypatch.setattr(engine, "row_arguments", lambda groups: {"attention_mask": None})
    assert find_way(model, ROWS, sampling(), TransformersEngine(model).sample) == "padded"
    assert capsys.readouterr().err == ""


def test_tokens_beyond_the_tokenizers_are_never_sampled():
    """Half of this model's rows are padding to a round number."""
    model = build("llama").eval()
    half = VOCABULARY // 2
    free = TransformersEngine(model).generate(ROWS, range(3), sampling(max_new_tokens=40)).responses
    kept = TransformersEngine(model).generate(ROWS, range(3), sampling(max_new_tokens=40, vocabulary=half)).responses
    assert max(map(max, free)) >= half
    assert max(map(max, kept)) < half


def test_a_router_that_is_to_give_its_loss_is_no_hindrance_to_sampling():
    """Mixtral's own config may ask for it; with a cache, transformers fails to compute it."""
    changes = {"num_local_experts": 4, "num_experts_per_tok": 2}
    expected = TransformersEngine(build("mixtral", **changes)).generate(ROWS, range(3), sampling())
    asked = build("mixtral", output_router_logits=True, **changes)
    assert TransformersEngine(asked).generate(ROWS, range(3), sampling()) == expected
    assert asked.config.output_router_logits
