"""alignment/models/forward.py against a pass in one piece: double precision, all logits, torch.distributions."""

from __future__ import annotations

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch import nn

from alignment.models import forward
from alignment.models.forward import body_and_head, switch_off_dropout, token_logprobs
from alignment.models.selfcheck import why_not_split

VOCABULARY, HIDDEN = 23, 8


def expected(head, hidden, targets, temperature):
    """Log-probabilities and entropies in double precision."""
    logits = hidden.double() @ head.weight.double().T / temperature
    drawn = torch.distributions.Categorical(logits=logits)
    return drawn.log_prob(targets), drawn.entropy()


def leaf(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).requires_grad_()


@given(
    tokens=st.integers(1, 12),
    at_once=st.integers(1, 15),
    temperature=st.floats(0.2, 3.0),
    with_entropy=st.booleans(),
    seed=st.integers(0, 100),
)
def test_values_and_gradients_do_not_depend_on_the_blocks(tokens, at_once, temperature, with_entropy, seed):
    head = nn.Linear(HIDDEN, VOCABULARY, bias=False)
    head.weight.data = leaf(VOCABULARY, HIDDEN, seed=seed).data
    targets = torch.randint(VOCABULARY, (tokens,), generator=torch.Generator().manual_seed(seed))
    ours, theirs = leaf(tokens, HIDDEN, seed=seed + 1), leaf(tokens, HIDDEN, seed=seed + 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forward, "LOGITS_AT_ONCE", at_once * VOCABULARY)
        found = token_logprobs(head, ours, targets, temperature, with_entropy)
        (found.logprobs.sum() + (found.entropy.square().sum() if with_entropy else 0)).backward()
    gradient, head.weight.grad = head.weight.grad, None
    logprobs, entropy = expected(head, theirs, targets, temperature)
    (logprobs.sum() + (entropy.square().sum() if with_entropy else 0)).backward()
    close = {"atol": 1e-5, "rtol": 1e-5}
    torch.testing.assert_close(found.logprobs.double(), logprobs, **close)
    torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(gradient, head.weight.grad, atol=1e-4, rtol=1e-4)
    if with_entropy:
        torch.testing.assert_close(found.entropy.double(), entropy, **close)
    else:
        assert found.entropy is None


def test_no_more_logits_are_made_than_fit_a_block(monkeypatch):
    """Also in the backward pass, which makes them again."""
    monkeypatch.setattr(forward, "LOGITS_AT_ONCE", 3 * VOCABULARY)
    made = []

    class Head(nn.Linear):
        def forward(self, hidden):
            made.append(len(hidden))
            return super().forward(hidden)

    head = Head(HIDDEN, VOCABULARY, bias=False)
    token_logprobs(head, leaf(10, HIDDEN, seed=0), torch.zeros(10, dtype=torch.long), 1.0).logprobs.sum().backward()
    assert made == [3, 3, 3, 1, 1, 3, 3, 3]


SIZES = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "vocab_size": 40,
}  # fmt: skip


@pytest.mark.parametrize("adapted", [None, "q_proj", "lm_head"])
@pytest.mark.parametrize("kind", [transformers.LlamaConfig, transformers.Qwen2Config])
def test_body_and_head_are_the_model(kind, adapted):
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(kind(**SIZES))
    if adapted:
        model = get_peft_model(model, LoraConfig(r=2, target_modules=[adapted], init_lora_weights=False))
    model.eval()
    body, head = body_and_head(model)
    ids = torch.arange(12).view(2, 6)
    with torch.no_grad():
        states = body(input_ids=ids).last_hidden_state
        torch.testing.assert_close(head(states), model(input_ids=ids).logits, atol=1e-6, rtol=1e-6)
        assert why_not_split(model, ids[0].tolist()) is None


@pytest.mark.parametrize(
    "config",
    [
        transformers.Gemma2Config(**SIZES, head_dim=8, final_logit_softcapping=30.0),
        transformers.CohereConfig(**SIZES, logit_scale=0.25),
        transformers.GraniteConfig(**SIZES, logits_scaling=8.0),
        transformers.RecurrentGemmaConfig(**SIZES, head_dim=8, logits_soft_cap=3.0),
        transformers.BertConfig(**SIZES, is_decoder=True),
        transformers.ModernBertDecoderConfig(**SIZES, pad_token_id=0),
    ],
    ids=["softcapping", "scaled", "scaling", "soft cap", "a layer before the head", "a norm before the head"],
)
def test_logits_that_are_not_the_heads_output_alone_are_not_taken_apart(config):
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        assert "product" in why_not_split(model, [3, 4, 5, 6])


@pytest.mark.parametrize(
    "config",
    [
        transformers.OPTConfig(
            hidden_size=16, ffn_dim=32, num_hidden_layers=2, num_attention_heads=2, vocab_size=40,
            word_embed_proj_dim=16, dropout=0.5, attention_dropout=0.5,
        ),
        transformers.LlamaConfig(**SIZES, attention_dropout=0.5),
        transformers.GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=40, resid_pdrop=0.5, attn_pdrop=0.5),
    ],
    ids=["opt", "llama", "gpt2"],
)  # fmt: skip
def test_without_dropout_a_training_pass_is_the_one_of_evaluation(config):
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    ids = torch.arange(12).view(2, 6)
    with torch.no_grad():
        wanted = model.eval()(input_ids=ids).logits
        assert not torch.equal(model.train()(input_ids=ids).logits, wanted)
        switch_off_dropout(model)
        torch.testing.assert_close(model.train()(input_ids=ids).logits, wanted, atol=0, rtol=0)
