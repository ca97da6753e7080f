"""What PPO tries before its first rollout; every case here went through in silence, or ended in a traceback."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
import transformers
from helpers import tiny
from helpers.architectures import build

from alignment.distributed.processes import make_accelerator
from alignment.errors import ConfigError, ModelError, UserError
from alignment.generation.engine import TransformersEngine
from alignment.registry import Registry
from alignment.tensors import logprobs_from_logits
from ppo.config import PPOStageConfig
from ppo.loading import load_models
from ppo.lower_layers import LowerLayers
from ppo.rows import Row
from ppo.sampler import how_to_sample
from ppo.selfcheck import check_models
from ppo.sequences import lay_out
from ppo.sources import find_models

PROMPTS = [list(range(5, 5 + length)) for length in (25, 11, 16)]
ROWS = [Row(PROMPTS[1], [8, 9, 10]), Row(PROMPTS[1], [30, 12, 2]), Row(PROMPTS[2], [7, 33])]
DOGE = {"router_aux_loss_coef": 0.0}
LFM2 = {"layer_types": ["conv", "full_attention"]}


@pytest.fixture
def ready(tmp_path, tokenizer):
    """PPO's models of a kind, checked."""

    def make(kind, changes=None, training=(), reward=False, rows=None, **model):
        policy = build(kind, vocab_size=rows or len(tokenizer), **(changes or {}))
        with torch.no_grad():
            for parameter in policy.parameters():
                if bool((parameter == parameter.flatten()[0]).all()):  # Doge's gates, which say nothing at 0
                    parameter.add_(torch.randn_like(parameter))
        tiny.write(tmp_path / "policy", policy, tokenizer)
        if reward:
            scalar = tiny.make_scalar(tmp_path / "body", tiny.make_policy(tokenizer, seed=2), tokenizer)
            tiny.write(tmp_path / "reward", scalar.model, tokenizer)
            model["reward"] = str(tmp_path / "reward")
        values = {
            "name": "tiny",
            "model": {"policy": str(tmp_path / "policy"), **model},
            "data": {"train": "none", "max_length": 64},
            "ppo": {} if "value" in model else {"advantage_estimator": "rloo"},
            "rollout": {"max_new_tokens": 8, "num_generations": 2, "temperature": 0.7},
            "training": dict(training),
            "registry": {"name": "tiny"},
        }
        if not reward:
            values["rewards"] = {"others": [{"function": "reward_functions:length"}]}
        config = PPOStageConfig.model_validate(values)
        models = load_models(config, find_models(config, Registry(tmp_path / "registry")))
        engine = TransformersEngine(models.policy.model)
        check_models(config, models, make_accelerator(), engine, how_to_sample(config, tokenizer), PROMPTS)
        return models

    return make


def plain(models, rows, vocabulary=None):
    """Log-probabilities at the temperature, each row alone."""
    found = []
    for row in rows:
        logits = models.policy.base(input_ids=torch.tensor([row.prompt + row.response])).logits[0]
        logits = logits[len(row.prompt) - 1 : -1, :vocabulary]
        found.append(logprobs_from_logits(logits, torch.tensor(row.response), 0.7))
    return torch.cat(found)


def assert_as_plain(models, vocabulary=None):
    with torch.no_grad():
        batch = lay_out(ROWS, range(len(ROWS)), models.packed, 0, torch.device("cpu"))
        found = models.policy.logprobs(batch, 0.7).logprobs
        torch.testing.assert_close(found, plain(models, ROWS, vocabulary), atol=1e-4, rtol=1e-4)


def test_nothing_changes_where_all_is_right(ready, capsys):
    models = ready("llama", value="trunk")
    assert models.packed
    assert models.policy.layers is not None
    assert_as_plain(models)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("kind", ["bert", "granite", "modernbert-decoder"])
def test_logits_that_are_more_than_the_heads_product_are_the_models_own(ready, kind, capsys):
    """A causal BERT's were off by up to 18 nats, and the first ratio was 1: the wrong path agrees with itself."""
    models = ready(kind, {"bert": {"is_decoder": True}, "granite": {"logits_scaling": 8.0}}.get(kind))
    assert models.policy.layers is None
    assert "computes whole logits" in capsys.readouterr().err
    assert_as_plain(models)


@pytest.mark.parametrize(("kind", "changes"), [("stablelm", {}), ("doge", DOGE), ("lfm2", LFM2)])
def test_rows_are_padded_where_packing_says_something_else(ready, kind, changes, capsys):
    models = ready(kind, changes)
    assert not models.packed
    assert "rows are padded, not packed" in capsys.readouterr().err
    assert_as_plain(models)


def test_packing_that_is_asked_for_and_wrong_is_refused(ready):
    with pytest.raises(ConfigError, match=r"training\.packing: DogeForCausalLM: .*other numbers.*leave it out"):
        ready("doge", DOGE, {"packing": True})


def test_a_trunk_that_is_not_a_body_and_a_head_is_refused(ready):
    with pytest.raises(ModelError, match=r"model\.value=trunk: .*Granite.*use model\.value=separate"):
        ready("granite", {"logits_scaling": 8.0}, value="trunk")


def test_an_encoder_is_no_policy(ready):
    with pytest.raises(UserError, match="BertLMHeadModel is no causal model"):
        ready("bert", {"is_decoder": False})


def test_a_projected_body_has_a_critic_on_its_trunk(ready):
    models = ready("opt", {"word_embed_proj_dim": 8, "ffn_dim": 32}, value="trunk")
    critic = models.critic
    assert critic.head.in_features == 8
    assert_as_plain(models)


def test_rows_beyond_the_tokenizers_have_no_probability_in_any_role(ready, tokenizer):
    """The reward model, which has no such rows, ended in an IndexError once one was sampled."""
    models = ready("llama", rows=len(tokenizer) + 64, reward=True, value="trunk")
    assert_as_plain(models, len(tokenizer))
    batch = lay_out(ROWS, range(len(ROWS)), models.packed, 0, torch.device("cpu"))
    with torch.no_grad():
        found = models.policy.logprobs(batch, 0.7, with_entropy=True)
        models.policy.layers, split = None, found
        whole = models.policy.logprobs(batch, 0.7, with_entropy=True)
        scores = models.reward.member_scores(ROWS, [], torch.device("cpu"))
    torch.testing.assert_close(split.logprobs, whole.logprobs)
    torch.testing.assert_close(split.entropy, whole.entropy)
    assert scores.isfinite().all()
    assert models.policy.vocabulary == models.reference.vocabulary == len(tokenizer)


def test_a_router_loss_that_is_asked_for_does_not_stop_a_rollout(ready):
    models = ready("mixtral", {"output_router_logits": True, "num_local_experts": 4, "num_experts_per_tok": 2})
    assert_as_plain(models)
    assert models.policy.base.config.output_router_logits  # as its maker had it


def test_the_head_of_a_value_model_knows_all_tokens(ready, tmp_path, tokenizer):
    small = transformers.LlamaForSequenceClassification(
        transformers.LlamaConfig(
            vocab_size=len(tokenizer) - 8, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
            num_attention_heads=2, num_labels=1, pad_token_id=0,
        )
    )  # fmt: skip
    tiny.write(tmp_path / "critic", small, tokenizer)
    with pytest.raises(ModelError, match=r"model\.value: .* fewer than the policy's tokenizer has"):
        ready("llama", value="separate", value_init=str(tmp_path / "critic"), reward=True)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_frozen_lower_layers_are_kept_where_their_states_are_right(ready, kind, capsys, monkeypatch):
    real = LowerLayers._skipped
    upper = {"method": "lora", "adapter": {"layers_to_transform": [1]}, "value": "adapter"}
    models = ready(kind, reward=True, **upper)
    assert [layers.depth for layers in models.lower] == [1]
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(LowerLayers, "_skipped", lambda self, states: nullcontext())  # no fault that numbers show
    assert ready(kind, reward=True, **upper).lower
    monkeypatch.setattr(LowerLayers, "_skipped", lambda self, states: real(self, 2 * states))
    assert not ready(kind, reward=True, **upper).lower
    assert "frozen lower layers are computed in each pass" in capsys.readouterr().err
