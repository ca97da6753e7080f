"""What each method trains, what it refuses, and that an adapter merged says what the adapter said."""

import json
from types import SimpleNamespace

import peft
import pytest
import torch
import transformers
from helpers import tiny
from torch import nn

from alignment.config.loading import validate
from alignment.config.sections import ADAPTERS, ModelConfig
from alignment.errors import ConfigError, ModelError
from alignment.models import adapters, methods, saved_adapters, trainable
from alignment.models.export import export, logits_difference
from alignment.models.methods import METHODS, check
from alignment.models.policies import load_policy
from alignment.models.scalar import load_scalar_model
from alignment.models.sources import ModelSource, find_model
from alignment.models.tokenizers import fit_embeddings, load_tokenizer
from alignment.models.trainable import apply_method
from alignment.registry import Registry
from alignment.training import methods as training_methods

IDS = torch.tensor([[5, 9, 30, 7, 2], [40, 41, 3, 6, 8]])


def settings(method, **changes):
    return ModelConfig(**{"name": "unused", "method": method, **changes})


def small(kind, **fields):
    """A model of another architecture, with dimensions that differ from each other."""
    config = transformers.AutoConfig.for_model(kind, vocab_size=96, **fields)
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(config)


SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
ARCHITECTURES = {
    "llama": SIZES,
    "qwen2": {**SIZES, "num_key_value_heads": 2},
    "gpt_neox": SIZES,
    "phi": SIZES,
    "opt": {**SIZES, "ffn_dim": 48, "word_embed_proj_dim": 16},
    "falcon": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "new_decoder_architecture": True},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4},
}


# --- what is trained -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_an_adapter_is_on_every_linear_layer_of_the_blocks_and_on_nothing_else(kind):
    """Told apart by where they stand, which the code does not look at: everything in a list of layers."""
    model = small(kind, **ARCHITECTURES[kind])
    linear = (nn.Linear, transformers.pytorch_utils.Conv1D)
    expected = {
        name
        for name, module in model.named_modules()
        if isinstance(module, linear) and (".layers." in name or ".h." in name)
    }
    adapted = apply_method(model, settings("lora"))
    found = {
        name.removeprefix("base_model.model.")
        for name, module in adapted.named_modules()
        if isinstance(module, peft.tuners.lora.LoraLayer)
    }
    assert found == expected
    assert len(found) >= 8


def test_a_head_named_as_a_layer_of_the_blocks_is_left_alone():
    model = small("llama", **SIZES)
    model.lm_head = model.model.q_proj = nn.Linear(32, 96, bias=False)  # q_proj outside the layers
    adapted = apply_method(model, settings("lora"))
    assert not isinstance(adapted.base_model.model.model.q_proj, peft.tuners.lora.LoraLayer)
    assert isinstance(adapted.base_model.model.model.layers[0].self_attn.q_proj, peft.tuners.lora.LoraLayer)


@pytest.mark.parametrize("method", sorted(ADAPTERS - {"qlora"}))
def test_an_adapter_starts_as_its_base_and_trains_itself_alone(tokenizer, method):
    policy = tiny.make_policy(tokenizer)
    before = policy(IDS).logits.detach()
    adapted = apply_method(policy, settings(method)).eval()
    torch.testing.assert_close(adapted(IDS).logits.detach(), before, atol=1e-5, rtol=1e-5)
    trained = {name for name, weight in adapted.named_parameters() if weight.requires_grad}
    assert trained and not any(
        "base_layer.weight" in name or "embed" in name or "norm.weight" in name for name in trained
    )
    assert all(weight.dtype == torch.float32 for weight in adapted.parameters() if weight.requires_grad)


def test_parameters_are_counted_as_by_hand(tokenizer):
    """rank x (in + out) for each of the seven layers of a Llama block: hidden 16, inner 32, two blocks."""
    policy = tiny.make_policy(tokenizer)
    whole = sum(weight.numel() for weight in policy.parameters())
    found = trainable.describe(apply_method(policy, settings("lora", adapter={"r": 4})))
    assert found["trained_parameters"] == 2 * 4 * (4 * (16 + 16) + 3 * (16 + 32))
    assert found["parameters"] == whole + found["trained_parameters"]


def test_ia3_scales_what_its_paper_scales_and_all_outputs_where_the_names_are_new(tokenizer):
    known = apply_method(tiny.make_policy(tokenizer), settings("ia3")).peft_config["default"]
    assert known.target_modules == {"k_proj", "v_proj", "down_proj"}
    assert known.feedforward_modules == {"down_proj"}
    other = small("cohere", **SIZES, eos_token_id=1, bos_token_id=1, pad_token_id=0)
    found = apply_method(other, settings("ia3")).peft_config["default"]
    assert found.feedforward_modules == {"down_proj"}
    assert found.target_modules >= {"k_proj", "v_proj", "gate_proj", "down_proj"}


@pytest.mark.parametrize("make", [tiny.make_policy, tiny.make_gpt2])
def test_head_only_gives_a_tied_head_weights_of_its_own(tokenizer, tmp_path, make):
    policy = make(tokenizer)
    assert policy.lm_head.weight is policy.get_input_embeddings().weight
    before = policy(IDS).logits.detach()
    apply_method(policy, settings("head", last_n_layers=1))
    torch.testing.assert_close(policy(IDS).logits, before)
    trained = {name for name, weight in policy.named_parameters() if weight.requires_grad}
    assert trained == {"lm_head.weight", *(name for name in dict(policy.named_parameters()) if ".1." in name)}
    embeddings = policy.get_input_embeddings().weight.detach().clone()
    policy(IDS, labels=IDS).loss.backward()
    torch.optim.SGD([weight for weight in policy.parameters() if weight.requires_grad], lr=1.0).step()
    assert torch.equal(policy.get_input_embeddings().weight, embeddings)
    assert not torch.equal(policy.lm_head.weight, embeddings)
    policy.save_pretrained(tmp_path)
    assert not policy.config.tie_word_embeddings
    assert torch.equal(load_policy(str(tmp_path)).eval()(IDS).logits, policy(IDS).logits)


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "changes", "stage", "part"),
    [
        ("adalora", {}, 2, "adalora does not work with ZeRO-2: DeepSpeed steps inside .*; use model.method=lora"),
        ("adalora", {}, 1, "does not work with ZeRO-2"),
        ("adalora", {"quantization": "nf4"}, 3, "adalora does not work with ZeRO-3: .*; use model.method=lora"),
        ("loha", {"quantization": "nf4"}, 0, "loha does not work with nf4: PEFT cannot .*; use model.method=lora"),
        ("lora", {"adapter": {"lora_alpa": 3}}, 0, "unknown key 'model.adapter.lora_alpa': LoraConfig .*lora_alpha'"),
        ("loha", {"adapter": {"lora_alpha": 3}}, 0, "unknown key 'model.adapter.lora_alpha': LoHaConfig"),
        ("lora", {"adapter": {"r": "16"}}, 0, "model.adapter.r: expected int, found '16'"),
        ("lora", {"adapter": {"use_dora": True}}, 0, "set by the suite: set model.method=dora"),
        ("lora", {"adapter": {"modules_to_save": ["lm_head"]}}, 0, "set model.method=head"),
        ("adalora", {"adapter": {"total_step": 9}}, 0, "it is counted from the data"),
        ("lora", {"adapter": {"init_lora_weights": "pissa"}}, 0, "it rewrites the base's weights"),
    ],
)
def test_what_does_not_work_is_one_line_with_what_does(method, changes, stage, part):
    with pytest.raises(ConfigError, match=part):
        check(settings(method, **changes), stage)


def test_what_works_is_let_through():
    for method in METHODS:
        check(settings(method))
        if method != "adalora":
            check(settings(method), 3)
    check(settings("dora", quantization="nf4"), 2)


def test_an_adapter_under_zero_3_is_advised_against_in_one_line(capsys):
    for method, stage in (("lora", 2), ("full", 3)):
        check(settings(method), stage)
    assert capsys.readouterr().err == ""
    check(settings("lora"), 3)
    (line,) = capsys.readouterr().err.splitlines()
    assert "model.method=lora under ZeRO-3 sends the whole frozen base" in line
    assert "configs/accelerate/zero2.yaml" in line


@pytest.mark.parametrize(
    ("values", "part"),
    [
        ({"method": "lorra"}, "model|method"),
        ({"last_n_layers": 2}, "last_n_layers is only for method=head, found method=full"),
        ({"adapter": {"r": 3}}, "adapter is only for an adapter, found method=full; set model.method=lora"),
        ({"method": "head", "quantization": "nf4"}, "quantization is only for an adapter, found method=head"),
        ({"method": "lora", "merge": "original"}, "merge=original is only for quantized weights"),
        ({"method": "lora", "quantization": "int8"}, "nf4"),
    ],
)
def test_keys_that_the_method_would_pass_over_are_refused(values, part):
    with pytest.raises(ConfigError, match=part):
        validate(ModelConfig, {"name": "x", **values}, "file.yaml")


@pytest.mark.parametrize(
    ("method", "changes", "part"),
    [
        ("loha", {}, r"model\.adapter: .*not supported"),
        ("lora", {"adapter": {"target_modules": ["nope"]}}, "nope"),
        ("lora", {"adapter": {"r": 0}}, "`r` should be a positive integer"),
        ("head", {"last_n_layers": 3}, "this model has 2 layers"),
    ],
)
def test_what_does_not_fit_the_model_is_one_line_too(tokenizer, method, changes, part):
    with pytest.raises(ConfigError, match=part) as caught:
        apply_method(tiny.make_gpt2(tokenizer), settings(method, **changes))
    assert "\n" not in str(caught.value)


def test_a_learning_rate_of_its_own_lies_under_the_users_and_over_the_stages():
    stage = {"learning_rate": 2e-5, "max_steps": 3}
    assert methods.with_learning_rate(stage, settings("full")) == stage
    assert methods.with_learning_rate(stage, settings("lora")) == {"learning_rate": 2e-4, "max_steps": 3}
    assert methods.with_learning_rate(stage, settings("ia3"))["learning_rate"] > 1e-3


def test_quantized_weights_without_bitsandbytes_are_one_line(tokenizer, tmp_path, monkeypatch):
    tiny.write(tmp_path, tiny.make_policy(tokenizer), tokenizer)
    monkeypatch.setattr("alignment.models.weights.find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"bitsandbytes, .*pip install 'rlhf-alignment-suite\[quantization\]'"):
        load_policy(str(tmp_path), settings("qlora"))


# --- AdaLoRA ---------------------------------------------------------------------------------------------------------


def test_adaloras_penalty_is_what_peft_adds_to_a_loss_that_trl_does_not_use(tokenizer):
    adapted = apply_method(tiny.make_policy(tokenizer), settings("adalora"))
    config = adapted.peft_config["default"]
    with_penalty = adapted(IDS, labels=IDS).loss
    ours = training_methods.regularisation(adapted)
    config.orth_reg_weight = 0.0
    torch.testing.assert_close(ours, with_penalty - adapted(IDS, labels=IDS).loss)
    assert ours > 1
    assert training_methods.regularisation(tiny.make_policy(tokenizer)) == 0.0
    assert training_methods.regularisation(apply_method(tiny.make_policy(tokenizer), settings("lora"))) == 0.0


@pytest.mark.parametrize(("steps", "expected"), [(20, (2, 6)), (3, (0, 0)), (1, (0, 0))])
def test_adaloras_schedule_is_made_of_the_steps_that_the_trainer_counts(tokenizer, steps, expected):
    adapted = apply_method(tiny.make_policy(tokenizer), settings("adalora"))
    training_methods.AdaLoraCallback(adapted, {}).on_train_begin(None, SimpleNamespace(max_steps=steps), None)
    schedule = adapted.peft_config["default"]
    assert (schedule.total_step, schedule.tinit, schedule.tfinal) == (steps, *expected)


def test_an_adalora_schedule_without_a_step_to_cut_in_is_refused(tokenizer):
    adapted = apply_method(tiny.make_policy(tokenizer), settings("adalora"))
    with pytest.raises(ConfigError, match="tinit=5 and tfinal=5 leave none of the 10 steps"):
        training_methods.AdaLoraCallback(adapted, {"tinit": 5, "tfinal": 5}).on_train_begin(
            None, SimpleNamespace(max_steps=10), None
        )


# --- adapters in the registry ----------------------------------------------------------------------------------------


def trained_folder(folder, base, tokenizer, config, seed=1):
    """What a run leaves: the adapter of `config` on a base, with weights as after training."""
    adapted = apply_method(base, config)
    torch.manual_seed(seed)
    with torch.no_grad():
        for weight in adapted.parameters():
            if weight.requires_grad:
                weight.add_(0.05 * torch.randn_like(weight))
    adapted.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "README.md").unlink()
    saved_adapters.name_base(folder, "a name")
    return adapted.eval()


def publish(registry, name, folder, base, config):
    values = {"model": config.model_dump(mode="json")}
    return registry.publish(name, folder, stage="sft", role="policy", base=base.as_base(), config=values)


@pytest.fixture
def house(tokenizer, tmp_path):
    """A registry with a whole policy in it."""
    registry = Registry(tmp_path / "registry")
    folder = tiny.write(tmp_path / "base", tiny.make_policy(tokenizer), tokenizer)
    registry.publish("base", folder, stage="base", role="policy")
    return SimpleNamespace(registry=registry, base=find_model("base", registry, "policy"), tmp=tmp_path)


FOUR_BITS = [(method, "nf4") for method in ("dora", "adalora", "ia3")]


@pytest.mark.parametrize(("method", "quantization"), [*((method, None) for method in sorted(ADAPTERS)), *FOUR_BITS])
def test_a_published_adapter_loads_merged_and_says_what_it_said(house, tokenizer, method, quantization):
    config = settings(method, quantization=quantization)
    adapted = trained_folder(house.tmp / "run", load_policy(house.base, config), tokenizer, config)
    version = publish(house.registry, "tuned", house.tmp / "run", house.base, config)
    assert not [file for file in version.manifest.files if file == "model.safetensors"]
    source = find_model("tuned", house.registry, "policy")
    merged = load_policy(source)
    assert logits_difference(merged, adapted, 300) < 1e-5
    assert logits_difference(merged, load_policy(house.base), 300) > 1e-2  # else there was nothing to lose
    assert not any("lora" in name for name in merged.state_dict())
    scalar = load_scalar_model(source, seed=3).eval()
    body = scalar.model.base_model(IDS).last_hidden_state
    torch.testing.assert_close(body, merged.eval().base_model(IDS).last_hidden_state, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_an_adapter_that_was_trained_on_rounded_weights_is_merged_onto_those(house, tokenizer, method):
    config = settings(method, dtype="bfloat16")
    trained_folder(house.tmp / "run", load_policy(house.base, config), tokenizer, config)
    publish(house.registry, "tuned", house.tmp / "run", house.base, config)
    merged = load_policy(find_model("tuned", house.registry, "policy"))
    rounded = load_policy(house.base).bfloat16().float()
    embeddings = [model.get_input_embeddings().weight for model in (merged, rounded)]
    assert torch.equal(*embeddings)
    assert merged.dtype == torch.float32
    assert export("tuned", house.tmp / "out", house.registry)["logits_difference"] < 1e-5


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_an_adapter_on_an_adapter_is_followed_down_to_the_weights(house, tokenizer, method):
    config, source = settings(method), house.base
    for number in (1, 2):
        adapted = trained_folder(house.tmp / f"run{number}", load_policy(source, config), tokenizer, config, number)
        publish(house.registry, f"tuned{number}", house.tmp / f"run{number}", source, config)
        source = find_model(f"tuned{number}", house.registry, "policy")
    assert source.base.base.ref == "base@v1"
    assert logits_difference(load_policy(source), adapted, 300) < 1e-5
    with pytest.raises(ModelError, match="its base is an adapter too; leave --adapter out"):
        export("tuned2", house.tmp / "out", house.registry, adapter_only=True)
    assert not (house.tmp / "out").exists()
    assert export("tuned2", house.tmp / "out", house.registry)["logits_difference"] < 1e-5


def test_the_same_adapter_goes_on_only_with_the_same_settings(house, tokenizer):
    config = settings("lora", adapter={"r": 4})
    trained_folder(house.tmp / "run", load_policy(house.base), tokenizer, config)
    publish(house.registry, "tuned", house.tmp / "run", house.base, config)
    source = find_model("tuned", house.registry, "policy")
    again = trainable.load_trainable(source, tokenizer, config)
    assert trainable.base_of(source, config) == source.base == house.base
    assert logits_difference(again, load_policy(source), 300) < 1e-5
    assert any(weight.requires_grad for weight in again.parameters())
    same = {"adapter": {"r": 4}}
    for other in (settings("lora"), settings("rslora", **same), settings("lora", quantization="nf4", **same)):
        assert trainable.base_of(source, other) == source
    new = trainable.load_trainable(source, tokenizer, settings("lora"))
    assert logits_difference(new, load_policy(source), 300) < 1e-5  # merged, with a new adapter that does nothing yet
    assert trainable.base_of(source, settings("full")) is None
    assert trainable.base_of(house.base, config) == house.base
    assert not trainable.continues(ModelSource("x", base=house.base, trained=settings("adalora")), settings("adalora"))


def test_a_base_that_is_gone_or_changed_is_refused(house, tokenizer):
    folder = house.tmp / "local"
    local = ModelSource(str(tiny.write(folder, tiny.make_policy(tokenizer, seed=5), tokenizer)))
    trained_folder(house.tmp / "run", load_policy(local), tokenizer, settings("lora"))
    version = publish(house.registry, "tuned", house.tmp / "run", local, settings("lora"))
    assert (version.manifest.base.ref, version.manifest.base.digest) == (
        str(folder),
        saved_adapters.folder_digest(str(folder)),
    )
    find_model("tuned", house.registry, "policy")
    tiny.make_policy(tokenizer, seed=6).save_pretrained(folder)
    with pytest.raises(ModelError, match=r"tuned@v1 is an adapter on .*local, whose weights have changed since"):
        find_model("tuned", house.registry, "policy")
    (folder / "config.json").unlink()
    with pytest.raises(ModelError, match=r"tuned@v1 is an adapter on .*local, which cannot be found"):
        find_model("tuned", house.registry, "policy")
    with pytest.raises(
        ModelError, match=r"an adapter alone, without its base; import it first: alignment models import"
    ):
        find_model(str(house.tmp / "run"), house.registry, "policy")


def test_an_adapter_that_lacks_a_weight_or_is_of_another_model_is_refused(house, tokenizer):
    from safetensors.torch import load_file, save_file

    run = house.tmp / "run"
    trained_folder(run, load_policy(house.base), tokenizer, settings("lora"))
    weights = load_file(run / saved_adapters.WEIGHTS)
    lost = weights.pop(sorted(weights)[0])
    save_file(weights, run / saved_adapters.WEIGHTS)
    with pytest.raises(adapters.AdapterError, match=r"cannot be put on its base .*is not in both") as caught:
        adapters.put_on(load_policy(house.base), str(run))
    assert "\n" not in str(caught.value)
    assert lost.numel()
    with pytest.raises(adapters.AdapterError, match="cannot be put on its base"):
        adapters.put_on(tiny.make_gpt2(tokenizer), str(run))
    (run / saved_adapters.WEIGHTS).rename(run / "adapter_model.bin")
    with pytest.raises(adapters.AdapterError, match=r"no adapter_model\.safetensors"):
        adapters.put_on(load_policy(house.base), str(run))


def test_a_base_that_was_grown_for_the_adapter_is_grown_alike_when_it_is_loaded(house, tokenizer):
    bigger = tiny.make_tokenizer()
    bigger.add_special_tokens({"pad_token": "<new-pad>"})
    base = load_policy(house.base)
    fit_embeddings(base, bigger)
    rows = base.get_input_embeddings().weight
    torch.testing.assert_close(rows[-1], rows[:-1].mean(dim=0))
    adapted = trained_folder(house.tmp / "run", base, bigger, settings("lora"))
    from safetensors.torch import load_file

    stored = load_file(house.tmp / "run" / saved_adapters.WEIGHTS)
    assert not any("embed" in key or "lm_head" in key for key in stored)  # which nobody trained
    publish(house.registry, "tuned", house.tmp / "run", house.base, settings("lora"))
    merged = load_policy(find_model("tuned", house.registry, "policy"))
    assert logits_difference(merged, adapted, len(bigger)) < 1e-5
    assert merged.config.pad_token_id == bigger.pad_token_id
    with pytest.raises(ModelError, match="more tokens than its base; leave --adapter out"):
        export("tuned", house.tmp / "out", house.registry, adapter_only=True)


def test_looking_at_quantized_weights_does_not_change_them(house):
    """bitsandbytes repacks them in eval mode on some CPUs, with their scales rounded to bfloat16."""
    policy = load_policy(house.base, settings("qlora"))
    with torch.no_grad():
        first = policy.train()(IDS).logits
        second = policy.eval()(IDS).logits
        third = policy.train()(IDS).logits
    assert torch.equal(first, second) and torch.equal(first, third)
    plain = adapters.dequantize(load_policy(house.base, settings("qlora")))
    torch.testing.assert_close(plain(IDS).logits, first, atol=1e-5, rtol=1e-5)


# --- export ----------------------------------------------------------------------------------------------------------


def test_an_export_is_a_plain_folder_for_transformers_or_for_peft(house, tokenizer):
    config = settings("lora")
    adapted = trained_folder(house.tmp / "run", load_policy(house.base), tokenizer, config)
    publish(house.registry, "tuned", house.tmp / "run", house.base, config)
    expected = adapted(IDS).logits
    report = export("tuned", house.tmp / "merged", house.registry)
    assert report["logits_difference"] < 1e-5
    plain = transformers.AutoModelForCausalLM.from_pretrained(house.tmp / "merged").eval()
    torch.testing.assert_close(plain(IDS).logits, expected, atol=1e-5, rtol=1e-5)
    export("tuned", house.tmp / "adapter", house.registry, adapter_only=True)
    theirs = peft.AutoPeftModelForCausalLM.from_pretrained(house.tmp / "adapter", dtype=torch.float32).eval()
    torch.testing.assert_close(theirs(IDS).logits, expected, atol=1e-5, rtol=1e-5)
    for folder in ("merged", "adapter"):
        exported = transformers.AutoTokenizer.from_pretrained(house.tmp / folder)
        assert exported.chat_template == load_tokenizer(house.base).chat_template


def test_an_export_of_a_whole_model_is_its_files_and_never_overwrites(house):
    report = export("base", house.tmp / "out", house.registry)
    assert "logits_difference" not in report
    assert not (house.tmp / "out" / "manifest.json").exists()
    load_policy(str(house.tmp / "out"))
    with pytest.raises(ModelError, match="out exists already; name a new folder"):
        export("base", house.tmp / "out", house.registry)
    with pytest.raises(ModelError, match="a whole model, not an adapter; leave --adapter out"):
        export("base", house.tmp / "other", house.registry, adapter_only=True)
    assert sorted(path.name for path in house.tmp.iterdir()) == ["base", "out", "registry"]


def test_a_merge_that_says_something_else_is_not_exported_unless_it_was_asked_for(house, tokenizer, monkeypatch):
    for merge in ("dequantized", "original"):
        config = settings("qlora", merge=merge)
        trained_folder(house.tmp / merge, load_policy(house.base, config), tokenizer, config)
        publish(house.registry, merge, house.tmp / merge, house.base, config)
    report = export("original", house.tmp / "out", house.registry)
    assert report["written"] == "merged onto the original weights of base@v1"
    assert report["logits_difference"] > 1e-3
    monkeypatch.setattr("alignment.models.adapters.merge", lambda base, folder: base)
    with pytest.raises(ModelError, match=r"merged, its logits differ by .*nothing was exported"):
        export("dequantized", house.tmp / "wrong", house.registry)
    assert not (house.tmp / "wrong").exists()


def test_the_manifest_says_how_an_adapter_was_merged(house, tokenizer):
    config = settings("qlora", merge="original")
    trained_folder(house.tmp / "run", load_policy(house.base, config), tokenizer, config)
    version = publish(house.registry, "tuned", house.tmp / "run", house.base, config)
    assert json.loads((version.path / "manifest.json").read_text())["config"]["model"]["merge"] == "original"
    assert find_model("tuned", house.registry, "policy").trained.merge == "original"
