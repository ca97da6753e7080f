"""Encoders (BERT and the like) as reward models, from a masked language model to the registry and back."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from test_reward_stage import run
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerFast

import reward.train
from alignment.config.loading import validate
from alignment.config.sections import ModelConfig
from alignment.errors import ModelError
from alignment.models.scalar import load_scalar_model, shift_scores
from alignment.models.tokenizers import load_tokenizer
from alignment.registry import Registry
from alignment.templates.rendering import encode_conversation
from alignment.tensors import pad_rows
from ppo.config import PPOStageConfig
from ppo.loading import load_models
from ppo.sources import find_models
from reward.config import RewardStageConfig

SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
KINDS = {
    "bert": transformers.BertConfig(**SHAPE),
    "roberta": transformers.RobertaConfig(**SHAPE, type_vocab_size=1, max_position_embeddings=66),
    "distilbert": transformers.DistilBertConfig(dim=32, hidden_dim=64, n_layers=2, n_heads=4),
    "modernbert": transformers.ModernBertConfig(**SHAPE, global_attn_every_n_layers=1),
    "electra": transformers.ElectraConfig(**SHAPE, embedding_size=32),
}
WORDS = ("cats", "rain", "bread", "trains", "tea", "snow", "maps", "bells")
STYLES = ("old", "new", "odd", "big", "wet")
PAIRS = [
    {
        "prompt": f"say that {word} are {style}",
        "chosen": f"yes {word} are {style}",
        "rejected": f"no {word} never {style}",
    }
    for word in WORDS
    for style in STYLES
]


def bert_tokenizer():
    """As BERT's: CLS before a text, SEP after it, no EOS, no BOS and no chat template."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=200, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"], show_progress=False
    )
    tokenizer.train_from_iterator([text for row in PAIRS for text in row.values()], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    )
    tokens = {
        name: f"[{name.split('_')[0].upper()}]"
        for name in ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    }
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **tokens)


def masked_model(folder, kind, seed=0):
    """A pre-trained encoder as its makers publish it."""
    tokenizer = bert_tokenizer()
    config = KINDS[kind].__class__(**{**KINDS[kind].to_dict(), "vocab_size": len(tokenizer), "pad_token_id": 0})
    torch.manual_seed(seed)
    transformers.AutoModelForMaskedLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    folder = tmp_path_factory.mktemp("house")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PAIRS))
        rows = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in PAIRS]
        Path("sft.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        for kind in KINDS:
            masked_model(Path(kind), kind)
    return folder


@pytest.fixture(autouse=True)
def _here(house, monkeypatch):
    monkeypatch.chdir(house)


def settings(name, kind, method="full", **training):
    return {
        "name": name,
        "model": {"name": f"./{kind}", "eos_token": "[SEP]", "template": "plain", "method": method},
        "data": {"train": "pairs.jsonl", "eval_share": 0.2, "max_length": 40},
        "reward": {"demonstrations": "sft.jsonl"},
        "training": {"max_steps": 60, "per_device_train_batch_size": 8, "learning_rate": 3e-3, **training},
        "registry": {"name": name, "path": "registry"},
        "tracking": {"wandb": "disabled"},
    }


def encoded(tokenizer, row, side):
    turns = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row[side]}]
    return encode_conversation(tokenizer, turns).input_ids


@pytest.mark.parametrize(("kind", "method"), [("bert", "full"), ("bert", "lora"), ("modernbert", "full")])
def test_an_encoder_is_trained_published_and_loads_equal(house, kind, method):
    name = f"{kind}-{method}"
    run(
        reward.train.train,
        RewardStageConfig,
        settings(name, kind, method, learning_rate=3e-3 if method == "full" else 5e-3),
    )
    version = Registry("registry").resolve(name)
    (batches,) = [
        row
        for row in map(json.loads, Path("runs", name, "events.jsonl").read_text().splitlines())
        if row["event"] == "batches"
    ]
    assert batches["layout"] == "padded"
    assert batches["reason"]
    assert version.manifest.metrics["accuracy"]["value"] == 1.0  # they are easily told apart
    assert version.manifest.metrics["log_loss"]["value"] < 0.4  # by more than rounding: 0.693 is a model that died
    scalar = load_scalar_model(str(version.path), trained=True).eval()
    theirs, info = AutoModelForSequenceClassification.from_pretrained(version.path, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    tokenizer = load_tokenizer(str(version.path))
    rows = [encoded(tokenizer, row, side) for row in PAIRS for side in ("chosen", "rejected")]
    assert all(ids[0] == tokenizer.cls_token_id and ids[-1] == tokenizer.sep_token_id for ids in rows)
    ids, mask = pad_rows(rows, tokenizer.pad_token_id, "right")
    with torch.no_grad():
        scores = scalar.score(ids, mask)
        torch.testing.assert_close(theirs.eval()(input_ids=ids, attention_mask=mask).logits.squeeze(-1), scores)
        left = scalar.score(*pad_rows(rows[:5], tokenizer.pad_token_id, "left"))
        alone = torch.cat([scalar.score(*pad_rows([row], tokenizer.pad_token_id, "right")) for row in rows[:5]])
    torch.testing.assert_close(left, scores[:5], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(alone, scores[:5], atol=1e-5, rtol=1e-5)
    assert scores.dtype == torch.float32
    assert abs(scores[::2].mean()) < 1e-3  # the demonstrations are the chosen answers
    assert (scores[::2] > scores[1::2]).float().mean() > 0.95


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_keeps_transformers_head_and_a_shift_is_in_its_bias(house, tmp_path, kind):
    scalar = load_scalar_model(f"./{kind}", seed=3).eval()
    again = load_scalar_model(f"./{kind}", seed=3).eval()
    assert scalar.is_encoder
    assert all(
        torch.equal(a, b) for a, b in zip(scalar.state_dict().values(), again.state_dict().values(), strict=True)
    )
    other = load_scalar_model(f"./{kind}", seed=4).eval()
    differ = [name for name, value in scalar.state_dict().items() if not torch.equal(value, other.state_dict()[name])]
    assert differ
    assert not any("embeddings" in name or "layer." in name for name in differ)  # the head alone, and its pooler
    plain = AutoModelForSequenceClassification.from_pretrained(f"./{kind}", num_labels=1)
    assert scalar.model.state_dict().keys() == plain.state_dict().keys()
    ids, mask = pad_rows([[2, 9, 8, 7, 3], [2, 6, 3]], 0, "right")
    with torch.no_grad():
        before = scalar.score(ids, mask)
        shift_scores(scalar, 1.25)
        scalar.model.save_pretrained(tmp_path)
        after = load_scalar_model(str(tmp_path), trained=True).eval().score(ids, mask)
    torch.testing.assert_close(after, before - 1.25)
    half = load_scalar_model(str(tmp_path), ModelConfig(name="x", dtype="bfloat16")).eval()
    last = [module for module in half.model.modules() if isinstance(module, torch.nn.Linear)][-1]
    assert last.weight.dtype == torch.float32
    assert half.score(ids, mask).dtype == torch.float32


def test_a_masked_language_model_is_no_reward_model(house):
    with pytest.raises(ModelError, match="a policy, which has no score head"):
        load_scalar_model("./bert", trained=True)


def test_an_encoder_without_an_end_says_what_to_set(house):
    config = settings("no-end", "bert")
    del config["model"]["eos_token"]
    with pytest.raises(ModelError, match=r"no EOS token; set model\.eos_token"):
        reward.train.train(validate(RewardStageConfig, config, "test"))


def test_adapters_on_an_encoder_are_no_ensemble(house):
    with pytest.raises(
        Exception, match=r"training\.members: an encoder \(BertForSequenceClassification\).*model\.method=full"
    ):
        reward.train.train(validate(RewardStageConfig, settings("many", "bert", "lora", members=2), "test"))


def test_ppo_takes_no_value_model_from_an_encoder(house, tmp_path):
    tokenizer = load_tokenizer("./bert", ModelConfig(name="x", eos_token="[SEP]", template="plain"))
    load_scalar_model("./bert").model.save_pretrained(tmp_path / "reward")
    shape = transformers.LlamaConfig(vocab_size=len(tokenizer), pad_token_id=0, eos_token_id=3, **SHAPE)
    transformers.LlamaForCausalLM(shape).save_pretrained(tmp_path / "policy")
    for folder in ("reward", "policy"):
        tokenizer.save_pretrained(tmp_path / folder)
    values = {
        "name": "x",
        "model": {"policy": str(tmp_path / "policy"), "reward": str(tmp_path / "reward")},
        "data": {"train": "x"},
        "registry": {"name": "x"},
    }
    config = validate(PPOStageConfig, values, "test")
    with pytest.raises(ModelError, match=r"model\.value_init: .* is an encoder \(BertForSequenceClassification\)"):
        load_models(config, find_models(config, Registry(tmp_path / "registry")))
