"""A reward model that an adapter method trains: an adapter version, which everything that loads one gets whole."""

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from test_ensembles import batch
from test_reward_stage import _here, house, mean_score, run, settings, write  # noqa: F401 - fixtures among them
from transformers import AutoModelForSequenceClassification
from typer.testing import CliRunner

import reward.train
import sft.train
from alignment.cli.main import app
from alignment.config.loading import validate
from alignment.config.sections import ADAPTERS, ModelConfig
from alignment.errors import ConfigError, ModelError
from alignment.models.adapters import dequantize
from alignment.models.ensembles import load_member, load_reward_model
from alignment.models.export import export
from alignment.models.policies import load_policy
from alignment.models.reward_files import is_ensemble, num_members
from alignment.models.scalar import load_scalar_model
from alignment.models.shared_base import add_reward_adapter, using
from alignment.models.sources import find_model
from alignment.models.tokenizers import load_tokenizer
from alignment.registry import Registry
from reward.config import RewardStageConfig
from sft.config import SFTStageConfig

RATES = {"ia3": 3e-2, "lokr": 3e-2}


def trained(method):
    """The source of a reward model trained by a method, once per session."""
    name = f"adapter-{method}"
    if not Registry("registry").is_reference(name):
        if method == "qlora":
            pytest.importorskip("bitsandbytes")
        training = {"learning_rate": RATES.get(method, 1e-2)}
        adapter = {"tinit": 1, "tfinal": 1} if method == "adalora" else {}
        config = settings(name, model={"name": "sft", "method": method, "adapter": adapter}, training=training)
        with torch.enable_grad():  # its callers do without
            run(reward.train.train, RewardStageConfig, config)
    return find_model(name, Registry("registry"), role="reward")


def plain_scores(source, ids, mask):
    """By PEFT and transformers alone, unmerged, and the number in score.json."""
    base = AutoModelForSequenceClassification.from_pretrained(source.base.path, num_labels=1)
    if source.trained.quantized:
        base.model = dequantize(load_policy(source.base, ModelConfig(name="x", method="qlora"))).model
    model = PeftModel.from_pretrained(base, source.path).eval()
    shift = json.loads(Path(source.path, "score.json").read_text())["score_bias"]
    return model(input_ids=ids, attention_mask=mask).logits.squeeze(-1) - shift


@pytest.mark.parametrize("method", sorted(ADAPTERS))
@torch.no_grad()
def test_it_is_published_as_an_adapter_and_loaded_whole(house, method):  # noqa: F811
    source = trained(method)
    manifest = Registry("registry").resolve(source.ref).manifest
    sft_version = Registry("registry").resolve("sft")
    assert (manifest.base.ref, manifest.base.digest) == (sft_version.ref, sft_version.digest)
    assert [(parent.role, parent.ref) for parent in manifest.parents] == [("init", sft_version.ref)]
    files = set(manifest.files)
    assert {"adapter_config.json", "adapter_model.safetensors", "score.json", "tokenizer.json"} <= files
    assert not files & {"config.json", "model.safetensors", "ensemble.json", "training_args.bin"}
    record = json.loads(Path(source.path, "adapter_config.json").read_text())
    assert record["base_model_name_or_path"] == sft_version.ref  # no path of this machine
    weights = load_file(Path(source.path, "adapter_model.safetensors"))
    assert weights["base_model.model.score.weight"].dtype == torch.float32
    assert json.loads(Path(source.path, "score.json").read_text())["score_bias"] == manifest.metrics["score_bias"]

    ids, mask = batch(source)
    expected = plain_scores(source, ids, mask)
    for load in (load_reward_model, lambda s: load_scalar_model(s, trained=True), lambda s: load_member(s, 0)):
        scalar = load(source).eval()
        torch.testing.assert_close(scalar.score(ids, mask), expected, atol=2e-5, rtol=1e-5)
        assert scalar.model.config.score_bias == manifest.metrics["score_bias"]
        assert all(parameter.requires_grad for parameter in scalar.parameters())  # a critic that starts from it
        assert not any("lora" in name or "ia3" in name for name, _ in scalar.named_parameters())
    assert not is_ensemble(source) and num_members(source) == 1
    assert abs(mean_score(f"adapter-{method}")) < 1e-3
    assert expected.std() > 1e-3


@torch.no_grad()
def test_the_body_takes_on_the_type_that_is_asked_for_and_the_head_does_not(house):  # noqa: F811
    source = trained("lora")
    ids, mask = batch(source)
    whole = load_reward_model(source).eval().score(ids, mask)
    scalar = load_reward_model(source, ModelConfig(name="x", dtype="bfloat16")).eval()
    assert {parameter.dtype for parameter in scalar.model.base_model.parameters()} == {torch.bfloat16}
    assert scalar.model.score.weight.dtype == torch.float32
    torch.testing.assert_close(scalar.score(ids, mask), whole, atol=0.1, rtol=0.1)


@pytest.mark.parametrize("method", ["lora", "dora", "rslora", "qlora"])
@torch.no_grad()
def test_beside_the_policy_on_the_base_it_scores_as_it_does_alone(house, method):  # noqa: F811
    source = trained(method)
    ids, mask = batch(source)
    base = load_policy(source.base, ModelConfig(name="x", method="qlora") if method == "qlora" else None).eval()
    model, head = add_reward_adapter(base, "reward", source, trainable=False)
    with using(model, "reward"):
        hidden = model.get_base_model().model(input_ids=ids, attention_mask=mask).last_hidden_state
    last = mask.sum(1) - 1
    found = head(hidden)[torch.arange(len(ids)), last, 0]
    torch.testing.assert_close(found, load_reward_model(source).eval().score(ids, mask), atol=2e-5, rtol=1e-5)


@torch.no_grad()
def test_on_an_adapter_of_a_policy_it_follows_the_chain(house):  # noqa: F811
    config = {
        "name": "sft-lora",
        "model": {"name": "sft", "method": "lora"},
        "data": {"train": "sft.jsonl", "eval_share": 0, "max_length": 64},
        "training": {"max_steps": 2, "learning_rate": 1e-2},
        "registry": {"name": "sft-lora", "path": "registry"},
        "tracking": {"wandb": "disabled"},
    }
    with torch.enable_grad():
        run(sft.train.train, SFTStageConfig, config)
        run(reward.train.train, RewardStageConfig, settings("chained", model={"name": "sft-lora", "method": "lora"}))
    source = find_model("chained", Registry("registry"), role="reward")
    assert source.base.ref == "sft-lora@v1" and source.base.base.ref == "sft@v1"
    assert load_reward_model(source).eval().score(*batch(source)).isfinite().all()
    assert abs(mean_score("chained")) < 1e-3
    with pytest.raises(ModelError, match="PEFT cannot load it, since its base is an adapter too"):
        export("chained", Path("exported-chained"), Registry("registry"), adapter_only=True)


@pytest.mark.parametrize("method", ["lora", "ia3", "qlora"])
@torch.no_grad()
def test_it_is_exported_for_plain_transformers_and_for_plain_peft(house, tmp_path, method):  # noqa: F811
    source = trained(method)
    ids, mask = batch(source)
    expected = load_reward_model(source).eval().score(ids, mask)
    report = export(source.ref, tmp_path / "whole", Registry("registry"))
    assert report["logits_difference"] < 1e-5
    assert "merged onto the" in report["written"]
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "whole").eval()
    plain = theirs(input_ids=ids, attention_mask=mask).logits.squeeze(-1) - theirs.config.score_bias
    torch.testing.assert_close(plain, expected, atol=2e-5, rtol=1e-5)
    assert export(source.ref, tmp_path / "adapter", Registry("registry"), adapter_only=True)["logits_difference"] < 1e-5
    record = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    base = AutoModelForSequenceClassification.from_pretrained(record["base_model_name_or_path"], num_labels=1)
    if method != "qlora":  # PEFT puts it on weights that were not quantized
        plain = PeftModel.from_pretrained(base, str(tmp_path / "adapter")).eval()
        shift = json.loads((tmp_path / "adapter" / "score.json").read_text())["score_bias"]
        scores = plain(input_ids=ids, attention_mask=mask).logits.squeeze(-1) - shift
        torch.testing.assert_close(scores, expected, atol=2e-5, rtol=1e-5)


def test_a_version_from_before_that_was_merged_still_loads(house, tmp_path):  # noqa: F811
    """Whole files under a config that names an adapter method, without a base."""
    source = trained("lora")
    load_reward_model(source).model.save_pretrained(tmp_path)
    load_tokenizer(source).save_pretrained(tmp_path)
    registry = Registry("registry")
    config = registry.resolve(source.ref).manifest.config
    registry.publish("before", tmp_path, stage="reward", role="reward", config=config)
    ids, mask = batch(source)
    with torch.no_grad():
        found, expected = (
            load_reward_model(find_model(name, registry, role="reward")).eval().score(ids, mask)
            for name in ("before", source.ref)
        )
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)


def test_what_does_not_fit_is_one_line(house, monkeypatch):  # noqa: F811
    source = trained("lora")
    record = Path(source.path, "score.json")
    text = record.read_text()
    record.chmod(0o644)
    try:
        record.write_text("{}")
        with pytest.raises(
            ModelError, match=r"score\.json: not the score offset of a reward adapter .*; publish it again"
        ):
            load_reward_model(source)
    finally:
        record.write_text(text)
    with pytest.raises(ConfigError, match=r"model\.merge=original makes another model of an adapter"):
        model = {"name": "sft", "method": "qlora", "merge": "original"}
        reward.train.train(validate(RewardStageConfig, settings("x", model=model), "test"))


def test_the_command_line_shows_its_base(house, monkeypatch):  # noqa: F811
    source = trained("lora")
    monkeypatch.setenv("ALIGNMENT_REGISTRY", str(Path("registry").resolve()))
    for command in ("show", "graph"):
        result = CliRunner().invoke(app, ["models", command, source.ref])
        assert result.exit_code == 0, result.output
        assert "sft@v1" in result.output
