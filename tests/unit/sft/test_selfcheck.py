"""What SFT tries before its first step; every case here trained on another loss in silence, or ended in a traceback."""

from __future__ import annotations

import json

import pytest
import torch
from helpers import tiny
from helpers.architectures import build
from torch.nn.functional import cross_entropy

from alignment.config.loading import validate
from alignment.errors import ConfigError, UserError
from sft.building import build_trainer, packs_rows
from sft.config import SFTStageConfig
from sft.prepare import prepare
from sft.trainer import SFTTrainer

MIXTRAL = {"num_local_experts": 4, "num_experts_per_tok": 2}


@pytest.fixture
def make(tmp_path, monkeypatch, tokenizer):
    """A trainer over a local model of a kind."""
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": f"When is number {n}?", "completion": "It opens at nine." * (n % 3 + 1)} for n in range(6)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def trainer(kind, changes=None, **training) -> SFTTrainer:
        model = build(kind, vocab_size=len(tokenizer), **(changes or {}))
        with torch.no_grad():
            for parameter in model.parameters():
                if bool((parameter == parameter.flatten()[0]).all()):  # Doge's gates, which say nothing at 0
                    parameter.add_(torch.randn_like(parameter))
        tiny.write(tmp_path / "model", model, tokenizer)
        values = {
            "name": "run",
            "model": {"name": "./model"},
            "data": {"train": "rows.jsonl", "eval_share": 0, "max_length": 96},
            "training": {"per_device_train_batch_size": 6, "max_steps": 1, "logging_steps": 1} | training,
            "registry": {"name": "run"},
            "tracking": {"wandb": "disabled"},
        }
        config = validate(SFTStageConfig, values, "test")
        built = build_trainer(config, prepare(config))
        built.args.save_strategy = "no"
        return built

    return trainer


def plain_loss(trainer):
    """Mean over the trained tokens, each row alone through plain transformers."""
    losses = []
    for row in trainer.train_dataset:
        with torch.no_grad():
            logits = trainer.model.eval()(input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1]
        labels = torch.tensor(row["labels"][1:])
        losses.append(cross_entropy(logits, labels, reduction="none")[labels != -100])
    return float(torch.cat(losses).mean())


def first_loss(trainer):
    trainer.train()
    return next(entry["loss"] for entry in trainer.state.log_history if "loss" in entry)


@pytest.mark.parametrize("kind", ["bert", "modernbert-decoder", "electra"])
def test_the_loss_of_a_head_of_several_layers_is_transformers_own(make, kind, capsys):
    """A ModernBERT decoder's was 10.67 against 10.63."""
    trainer = make(kind, {} if kind == "modernbert-decoder" else {"is_decoder": True, "hidden_dropout_prob": 0.0,
                                                                  "attention_probs_dropout_prob": 0.0})  # fmt: skip
    assert trainer.layers is None
    assert "computes the logits of all tokens" in capsys.readouterr().err
    expected = plain_loss(trainer)
    assert first_loss(trainer) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [("stablelm", {}), ("doge", {}), ("lfm2", {"layer_types": ["conv", "full_attention"]})],
)
def test_rows_are_padded_where_packing_changes_the_loss(make, kind, changes, capsys):
    trainer = make(kind, changes, **({"router_aux_loss_coef": 0.0} if kind == "doge" else {}))
    assert not packs_rows(trainer)
    assert trainer.args.train_sampling_strategy == "group_by_length"
    assert "are padded, not packed" in capsys.readouterr().err
    expected = plain_loss(trainer)
    assert first_loss(trainer) == pytest.approx(expected, rel=1e-4)


def test_packing_that_is_asked_for_and_wrong_is_refused(make):
    with pytest.raises(
        ConfigError, match=r"training\.packing: rows of StableLmForCausalLM cannot be packed: .*remove the key"
    ):
        make("stablelm", packing=True)


def test_an_encoder_is_not_trained_as_a_policy(make):
    with pytest.raises(UserError, match="BertLMHeadModel is no causal model"):
        make("bert", {"is_decoder": False})


@pytest.mark.parametrize("published", [True, False])
def test_a_routers_loss_counts_on_padded_rows_and_the_config_stays_its_makers(make, published):
    """Packed, transformers fails to compute it; and TRL wrote `output_router_logits: true` into what was published."""
    trainer = make("mixtral", MIXTRAL | {"output_router_logits": published, "router_aux_loss_coef": 0.5})
    assert not packs_rows(trainer)
    batch = trainer.data_collator([trainer.train_dataset[n] for n in range(6)])
    with torch.no_grad():
        router = float(trainer.model.eval()(**batch, output_router_logits=True).aux_loss)
    expected = plain_loss(trainer) + 0.5 * router
    assert first_loss(trainer) == pytest.approx(expected, rel=1e-4)
    assert trainer.model.config.output_router_logits is published
    assert trainer.model.config.router_aux_loss_coef == 0.5


def test_without_a_routers_loss_rows_are_packed(make):
    """0 was a traceback: the model's config takes no whole number."""
    trainer = make("mixtral", MIXTRAL, router_aux_loss_coef=0)
    assert packs_rows(trainer)
    expected = plain_loss(trainer)
    assert first_loss(trainer) == pytest.approx(expected, rel=1e-4)
    with pytest.raises(ConfigError, match=r"training\.router_aux_loss_coef=0 trains without it"):
        make("mixtral", MIXTRAL, packing=True)
