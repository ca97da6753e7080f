"""Policies and scalar models: padding, batch and precision must not change what a model says."""

import json
import math
import shutil

import pytest
import safetensors.torch
import torch
import transformers
from helpers import tiny
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from alignment.config.sections import ModelConfig, ScratchConfig
from alignment.errors import ModelError, UserError
from alignment.models.policies import build_scratch_model, load_policy, response_logprobs
from alignment.models.scalar import ScoreHead, load_scalar_model, set_score_bias
from alignment.models.sources import find_model, num_parameters
from alignment.models.tokenizers import END, PAD, START, fit_embeddings, load_tokenizer, train_tokenizer
from alignment.registry import Registry
from alignment.tensors import pad_rows

ROWS = [[5, 9, 30, 7, 2], [40, 41, 2], [3, 60, 61, 62, 63, 64, 65, 2]]


def settings(**changes):
    return ModelConfig(**{"name": "unused", **changes})


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def saved_policy(request, tokenizer, tmp_path_factory):
    """RoPE, and learned positions with dropout."""
    make = {"llama": tiny.make_policy, "gpt2": tiny.make_gpt2}[request.param]
    policy = make(tokenizer)
    return policy, tiny.write(tmp_path_factory.mktemp(request.param), policy, tokenizer)


@pytest.fixture(scope="module")
def llama_folder(tokenizer, tmp_path_factory):
    return tiny.write(tmp_path_factory.mktemp("llama"), tiny.make_policy(tokenizer), tokenizer)


# --- scalar models ---------------------------------------------------------------------------------------------------


def test_a_score_is_the_same_alone_padded_left_padded_right_and_in_a_batch(saved_policy):
    scalar = load_scalar_model(str(saved_policy[1])).eval()
    alone = torch.cat([scalar.score(*pad_rows([row], 0, "right")) for row in ROWS])
    for side in ("left", "right"):
        for order in ([0, 1, 2], [2, 0, 1], [1, 2]):
            together = scalar.score(*pad_rows([ROWS[index] for index in order], 0, side))
            torch.testing.assert_close(together, alone[order], atol=1e-5, rtol=1e-5)
    assert alone.std() > 1e-3  # else there was nothing to tell apart


def test_the_score_is_read_at_the_last_kept_token(saved_policy):
    scalar = load_scalar_model(str(saved_policy[1])).eval()
    ids, mask = pad_rows(ROWS, 0, "right")
    values = scalar(ids, mask)
    assert values.shape == ids.shape
    for row, length in enumerate(map(len, ROWS)):
        assert scalar.score(ids, mask)[row] == values[row, length - 1]
        prefix = scalar.score(*pad_rows([ROWS[row][: length - 1]], 0, "right"))[0]
        torch.testing.assert_close(prefix, values[row, length - 2], atol=1e-5, rtol=1e-5)
        assert abs(prefix - values[row, length - 1]) > 1e-4  # EOS is read, and matters


def test_plain_transformers_gives_the_same_scores_up_to_the_bias(saved_policy, tokenizer, tmp_path):
    scalar = load_scalar_model(str(saved_policy[1])).eval()
    set_score_bias(scalar.model, 0.75)
    tiny.write(tmp_path, scalar.model, tokenizer)
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    ours = load_scalar_model(str(tmp_path)).eval()
    ids, mask = pad_rows(ROWS, tokenizer.pad_token_id, "right")
    with torch.no_grad():
        pooled = theirs(input_ids=ids, attention_mask=mask).logits.squeeze(-1)
        torch.testing.assert_close(ours.score(ids, mask), pooled - 0.75, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(ours.score(ids, mask), scalar.score(ids, mask), atol=0, rtol=0)


def test_a_new_head_has_the_books_spread_and_follows_its_seed_alone(tokenizer, tmp_path):
    shape = ScratchConfig(
        vocab_size=300, hidden_size=512, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2
    )
    tiny.write(tmp_path, tiny.make_policy(tokenizer, shape=shape), tokenizer)
    heads = []
    for seed in (0, 0, 1, 2, 3):
        torch.manual_seed(len(heads))  # the global generator must not matter
        heads.append(load_scalar_model(str(tmp_path), seed=seed).model.score.weight.detach())
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])
    drawn = torch.cat(heads[1:]).flatten()
    assert drawn.std().item() == pytest.approx(1 / math.sqrt(513), rel=0.05)
    assert abs(drawn.mean().item()) < 3 * drawn.std().item() / math.sqrt(drawn.numel())


def test_the_head_stays_in_float32_under_autocast_and_beside_a_bfloat16_body(llama_folder, tokenizer, tmp_path):
    head = ScoreHead(64)
    hidden = torch.randn(3, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = head(hidden)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, head(hidden))
    scalar = load_scalar_model(str(llama_folder))
    with torch.no_grad():
        scalar.model.score.weight.fill_(1 + 2**-20)  # bfloat16 cannot hold it
    tiny.write(tmp_path, scalar.model, tokenizer)
    half = load_scalar_model(str(tmp_path), settings(dtype="bfloat16"))
    assert half.model.base_model.layers[0].mlp.up_proj.weight.dtype == torch.bfloat16
    assert half.model.score.weight.dtype == torch.float32
    assert torch.equal(half.model.score.weight, scalar.model.score.weight)
    assert half.score(*pad_rows(ROWS, 0, "right")).dtype == torch.float32


def test_an_encoder_decoder_is_refused(tmp_path):
    config = transformers.BartConfig(
        vocab_size=300, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, num_labels=1,
        decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, max_position_embeddings=64,
    )  # fmt: skip
    transformers.BartForSequenceClassification(config).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="BartForSequenceClassification has neither a linear `score` head nor"):
        load_scalar_model(str(tmp_path))


# --- policies --------------------------------------------------------------------------------------------------------


def test_response_logprobs_equal_the_whole_forward_row_by_row(saved_policy):
    policy = saved_policy[0]
    prompts, responses = [[5, 6, 7, 8], [9], [10, 11]], [[20, 21, 2], [22, 23, 24], [25, 26, 27]]
    prompt_ids, prompt_mask = pad_rows(prompts, 0, "left")
    input_ids = torch.cat([prompt_ids, torch.tensor(responses)], dim=1)
    mask = torch.cat([prompt_mask, torch.ones(3, 3, dtype=torch.bool)], dim=1)
    with torch.no_grad():
        logprobs, entropy = response_logprobs(policy, input_ids, mask, 3, 0.7, with_entropy=True)
    for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        with torch.no_grad():
            logits = policy(input_ids=torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1].double()
        oracle = torch.distributions.Categorical(logits=logits / 0.7)
        torch.testing.assert_close(
            logprobs[row].double(), oracle.log_prob(torch.tensor(response)), atol=1e-4, rtol=1e-4
        )
        torch.testing.assert_close(entropy[row].double(), oracle.entropy(), atol=1e-4, rtol=1e-4)


def test_a_saved_policy_loads_equal_and_in_the_dtype_asked_for(saved_policy):
    policy, folder = saved_policy
    loaded = load_policy(str(folder)).eval()
    ids = torch.tensor([ROWS[2]])
    with torch.no_grad():
        assert torch.equal(loaded(input_ids=ids).logits, policy(input_ids=ids).logits)
    assert loaded.dtype == torch.float32
    assert load_policy(str(folder), settings(dtype="bfloat16")).dtype == torch.bfloat16
    assert num_parameters(str(folder)) == sum(tensor.numel() for tensor in policy.parameters())
    assert num_parameters("some/hub-name") is None


def test_scratch_models_follow_the_seed_and_refuse_impossible_shapes(tokenizer):
    same = [tiny.make_policy(tokenizer, seed).get_input_embeddings().weight for seed in (3, 3, 4)]
    assert torch.equal(same[0], same[1])
    assert not torch.equal(same[0], same[2])
    with pytest.raises(ModelError, match="no scratch model 'gpt'; known: scratch:llama"):
        build_scratch_model("gpt", tiny.SHAPE, tokenizer)
    for heads in (3, 16):  # 16 heads of width 1: rotary positions need pairs
        with pytest.raises(ModelError, match=f"hidden_size 16 is not divisible by 2 x num_attention_heads {heads}"):
            build_scratch_model("llama", tiny.SHAPE.model_copy(update={"num_attention_heads": heads}), tokenizer)


def test_fit_embeddings_grows_the_model_and_tells_it_pad_and_eos(tokenizer):
    policy = tiny.make_policy(tokenizer)
    before = policy.get_input_embeddings().weight.detach().clone()
    bigger = tiny.make_tokenizer()
    bigger.add_special_tokens({"pad_token": "<new-pad>"})
    fit_embeddings(policy, bigger)
    assert policy.get_input_embeddings().num_embeddings == len(bigger) == len(before) + 1
    assert torch.equal(policy.get_input_embeddings().weight[:-1], before)
    for config in (policy.config, policy.generation_config):
        assert (config.pad_token_id, config.eos_token_id) == (bigger.pad_token_id, bigger.eos_token_id)
    fit_embeddings(policy, tokenizer)  # never shrinks
    assert policy.get_input_embeddings().num_embeddings == len(bigger)


def test_a_model_without_all_of_its_weights_is_refused_not_completed_at_random(tokenizer, tmp_path):
    """transformers would warn, draw an output layer at random, and go on."""
    config = tiny.make_policy(tokenizer).config
    config.tie_word_embeddings = False
    transformers.LlamaForSequenceClassification(config).save_pretrained(tmp_path / "reward")
    with pytest.raises(ModelError, match=r"not a whole LlamaForCausalLM: lm_head\.weight missing"):
        load_policy(str(tmp_path / "reward"))
    with pytest.raises(ModelError, match=r"score\.weight missing or of another shape"):
        load_scalar_model(str(tmp_path / "reward"))  # two labels


# --- tokenizers ------------------------------------------------------------------------------------------------------


def test_a_trained_tokenizer_encodes_any_text_and_has_its_special_tokens_apart():
    tokenizer = train_tokenizer(["hello hello"], 300, "alpaca")
    for text in ("hello", "猫 \x00 \u2028 🦆", " two  spaces \n"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert (tokenizer.pad_token, tokenizer.eos_token, tokenizer.bos_token) == (PAD, END, None)
    assert tokenizer(START + "a" + END)["input_ids"][0::2] == tokenizer.convert_tokens_to_ids([START, END])
    assert "### Response" in tokenizer.chat_template
    with pytest.raises(UserError, match="no template 'nope'; known: chatml, alpaca"):
        train_tokenizer(["x"], 300, "nope")


def test_a_trained_tokenizer_survives_saving(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    messages = [{"role": "user", "content": "A  b\n\nc 猫"}, {"role": "assistant", "content": "d"}]
    assert loaded.apply_chat_template(messages) == tokenizer.apply_chat_template(messages)
    assert loaded.get_vocab() == tokenizer.get_vocab()


def test_a_tokenizer_without_any_end_is_refused_with_the_key_that_mends_it(tmp_path):
    tokenizer = tiny.make_tokenizer("plain")
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"has no EOS token; set model\.eos_token"):
        load_tokenizer(str(tmp_path))
    assert load_tokenizer(str(tmp_path), settings(eos_token=END)).eos_token == END


@pytest.mark.parametrize("pad", [None, END])
def test_a_pad_token_is_no_business_of_a_policys(tmp_path, pad):
    tokenizer = tiny.make_tokenizer()
    tokenizer.pad_token = pad
    tokenizer.save_pretrained(tmp_path)
    loaded = load_tokenizer(str(tmp_path))
    assert (loaded.pad_token, loaded.eos_token) == (END, END)
    assert len(loaded) == len(tokenizer)


def test_a_pad_token_may_be_new_and_an_eos_token_may_not(tmp_path):
    tokenizer = tiny.make_tokenizer()
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    mended = load_tokenizer(str(tmp_path), settings(pad_token="<new>"))
    assert mended.pad_token_id == len(tokenizer)
    with pytest.raises(ModelError, match=r"model\.eos_token: '</s>' is not in the vocabulary"):
        load_tokenizer(str(tmp_path), settings(eos_token="</s>"))


# --- finding and loading ---------------------------------------------------------------------------------------------


def test_names_are_references_then_folders_then_hub_names(llama_folder, tmp_path):
    registry = Registry(tmp_path / "registry")
    version = registry.publish("toy", llama_folder, stage="sft", role="policy")
    found = find_model("toy@v1", registry, "policy")
    assert (found.path, found.ref, found.digest) == (str(version.path), "toy@v1", version.digest)
    assert found.parent("init").digest == version.digest
    assert find_model(str(llama_folder), registry, "policy").label == str(llama_folder)
    assert find_model("someone/hub-name", registry, "policy").path == "someone/hub-name"
    with pytest.raises(UserError, match=r"a policy.*reward model was asked for|reward"):
        find_model("toy", registry, "reward")
    for wrong in ("toi", "toy@v2", "toy@prod"):
        with pytest.raises(UserError):
            find_model(wrong, registry, "policy")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"holds no model \(no config\.json\)"):
        find_model(str(tmp_path / "empty"), registry, "policy")


def damage_truncated(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def damage_garbage(folder):
    (folder / "model.safetensors").write_bytes(b"this is no safetensors file")


def damage_pickle(folder):
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")


def damage_config(folder):
    (folder / "config.json").write_text("{")


def damage_shape(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 48}))


def damage_type(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "nope"}))


def damage_tokenizer(folder):
    for file in folder.glob("*token*"):
        file.unlink()


@pytest.mark.parametrize(
    "damage", [damage_truncated, damage_pickle, damage_config, damage_shape, damage_type, damage_tokenizer]
)
def test_a_damaged_or_pickled_model_is_one_line_that_names_the_folder(llama_folder, tmp_path, damage):
    folder = shutil.copytree(llama_folder, tmp_path / "m")
    damage(folder)
    with pytest.raises(ModelError) as caught:
        load_tokenizer(str(folder))
        load_policy(str(folder))
    assert str(caught.value).startswith(str(folder))
    assert "\n" not in str(caught.value)
    if damage is not damage_tokenizer:
        with pytest.raises(ModelError):
            load_scalar_model(str(folder))


@pytest.mark.parametrize("damage", [damage_truncated, damage_garbage])
def test_parameters_of_a_damaged_file_cannot_be_counted(llama_folder, tmp_path, damage):
    """Its first eight bytes are the length of the header: read as such, garbage asks for more memory than there is."""
    folder = shutil.copytree(llama_folder, tmp_path / "m")
    damage(folder)
    with pytest.raises(ModelError, match="cannot be loaded as a model"):
        num_parameters(str(folder))
