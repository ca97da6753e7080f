"""Reward models on bodies that transformers has no classifier for, and how they are loaded without the suite."""

from __future__ import annotations

import re

import pytest
import torch
import transformers
from helpers import tiny
from transformers import AutoModelForSequenceClassification

from alignment.models.classifiers import LOADING, MARK, body_width, needs_own, why_no_scores
from alignment.models.scalar import load_scalar_model, set_score_bias

SHAPE = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
KINDS = {
    "cohere": SHAPE | {"num_key_value_heads": 2},
    "granite": SHAPE | {"num_key_value_heads": 2},
    "mamba": {"hidden_size": 16, "num_hidden_layers": 2, "state_size": 4},
    "granitemoe": SHAPE | {"num_key_value_heads": 2, "num_local_experts": 4},
    "bert": SHAPE | {"is_decoder": True},
    "bart": {
        "d_model": 16,
        "decoder_layers": 2,
        "decoder_ffn_dim": 32,
        "decoder_attention_heads": 2,
        "is_decoder": True,
    },
}


def make(kind, tokenizer, **changes):
    torch.manual_seed(0)
    values = KINDS[kind] | {
        "vocab_size": len(tokenizer),
        "pad_token_id": 0,
        "eos_token_id": 2,
        "initializer_range": 0.2,
    }
    return transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(kind, **(values | changes)))


@pytest.mark.parametrize("kind", KINDS)
def test_a_reward_model_reads_the_last_token_and_survives_its_files(kind, tmp_path, tokenizer):
    """All of these were refused after SFT, or, a causal BERT, read the first token, which has seen nothing."""
    scalar = load_scalar_model(str(tiny.write(tmp_path / "policy", make(kind, tokenizer), tokenizer))).eval()
    set_score_bias(scalar.model, 0.25)
    tiny.write(tmp_path / "reward", scalar.model, tokenizer)
    again = load_scalar_model(str(tmp_path / "reward"), trained=True).eval()
    rows = torch.randint(3, 200, (3, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(rows, dtype=torch.bool)
    with torch.no_grad():
        scores = scalar.score(rows, mask)
        torch.testing.assert_close(again.score(rows, mask), scores)
        body = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "policy").base_model.eval()
        states = body(input_ids=rows).last_hidden_state[:, -1]
        torch.testing.assert_close(scores, states @ scalar.model.score.weight[0] - 0.25)
        changed = rows.clone()
        changed[:, -1] += 1
        assert not torch.allclose(scalar.score(changed, mask), scores)
    assert again.model.config.architectures[0].endswith("ForSequenceClassification")


@pytest.mark.parametrize("kind", ["cohere", "bart"])
def test_the_lines_of_the_readme_load_it_in_plain_transformers(kind, tmp_path, tokenizer, capsys):
    scalar = load_scalar_model(str(tiny.write(tmp_path / "policy", make(kind, tokenizer), tokenizer))).eval()
    tiny.write(tmp_path / "reward", scalar.model, tokenizer)
    (lines,) = re.findall(r"```python\n(.*?)```", LOADING, re.DOTALL)
    exec(lines.replace("FOLDER", str(tmp_path / "reward")), {})
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}], tokenize=False
    )
    row = tokenizer(text.rstrip("\n"), add_special_tokens=False, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        expected = float(scalar.score(row, torch.ones_like(row, dtype=torch.bool)))
    found = float(re.search(r"tensor\((.*)\)", capsys.readouterr().out)[1])
    assert found == pytest.approx(expected, abs=1e-3)


def test_a_model_with_a_classifier_keeps_transformers_own(tmp_path, tokenizer):
    for config in (transformers.LlamaConfig(), transformers.BertConfig(), transformers.T5Config()):
        assert not needs_own(config)
        assert not hasattr(config, MARK)
    scalar = tiny.make_scalar(tmp_path, tiny.make_policy(tokenizer), tokenizer)
    assert type(scalar.model) is transformers.LlamaForSequenceClassification
    assert isinstance(scalar.model, AutoModelForSequenceClassification._model_mapping[transformers.LlamaConfig])


def test_a_body_that_ends_in_a_projection_is_as_wide_as_that():
    """A critic on the trunk of an OPT-350m was a traceback."""
    config = transformers.OPTConfig(hidden_size=32, word_embed_proj_dim=16, ffn_dim=32, num_attention_heads=2)
    assert body_width(config) == 16
    assert body_width(transformers.CohereConfig(**SHAPE)) == 16


def test_what_no_reward_model_can_be_made_of_is_known_beforehand():
    assert why_no_scores(transformers.CohereConfig(**SHAPE)) is None
    assert "MusicgenDecoderConfig" in why_no_scores(transformers.MusicgenDecoderConfig())
