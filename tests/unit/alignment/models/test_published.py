"""Models as their makers publish them: ends, masks, trimming and padding, with no key set."""

import json

import pytest
from helpers import makers, tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from alignment.data.trimming import LEAST, fit, trim_prompt
from alignment.generation.engine import complete
from alignment.models.policies import load_policy
from alignment.models.tokenizers import fit_embeddings, load_tokenizer, pad_apart_from_ends
from alignment.templates.ends import end_token_ids, through_end
from alignment.templates.rendering import encode_conversation, encode_prompt

TALK = [
    {"role": "user", "content": "When does the library open?"},
    {"role": "assistant", "content": "At nine."},
    {"role": "user", "content": "And on a Sunday?"},
    {"role": "assistant", "content": "It is closed."},
]
SYSTEM = {"role": "system", "content": "Be kind."}


@pytest.fixture(scope="module", params=sorted(makers.MAKERS))
def name(request):
    return request.param


@pytest.fixture(scope="module")
def folder(name, tmp_path_factory):
    return makers.publish(name, tmp_path_factory.mktemp(name))


@pytest.fixture(scope="module")
def tokenizer(folder):
    return load_tokenizer(str(folder))


def texts(tokenizer, ids):
    return [str(tokenizer.convert_ids_to_tokens(token)) for token in ids]


def trained(tokenizer, encoded):
    runs, last = [], False
    for token, kept in zip(encoded.input_ids, encoded.loss_mask, strict=True):
        if kept:
            runs = runs if last else [*runs, []]
            runs[-1].append(token)
        last = kept
    return [tokenizer.decode(run).strip() for run in runs]


def test_the_ends_are_those_of_eos_generation_config_and_template(name, tokenizer):
    assert set(texts(tokenizer, end_token_ids(tokenizer))) == set(makers.MAKERS[name].ends)
    assert tokenizer.eos_token == makers.MAKERS[name].eos


def test_an_answer_is_trained_on_from_its_first_word_through_its_end(name, tokenizer):
    maker = makers.MAKERS[name]
    last = trained(tokenizer, encode_conversation(tokenizer, TALK[:2]))
    assert [run.replace(" ", "") for run in last] == [f"Atnine.{maker.end or maker.eos}"]
    encoded = encode_conversation(tokenizer, TALK)
    first, second = (run.replace(" ", "") for run in trained(tokenizer, encoded))
    # GPT-OSS ends old answers with a token that is no end of an answer, Falcon and GPT-2 with none.
    assert first == "Atnine." + (maker.end if name != "gpt-oss" else "")
    assert second == f"Itisclosed.{maker.end or maker.eos}"
    assert encoded.input_ids[-1] in end_token_ids(tokenizer)
    prompt = encode_prompt(tokenizer, TALK[:-1])
    assert encoded.input_ids[: len(prompt)] == prompt


def test_the_ids_are_transformers_own(name, tokenizer):
    whole = tokenizer.apply_chat_template(TALK)["input_ids"]
    ours = encode_conversation(tokenizer, TALK).input_ids
    ended = ours if makers.MAKERS[name].end else ours[:-1]
    assert tokenizer.decode(ended).replace(" ", "") == tokenizer.decode(whole[: len(ended)]).replace(" ", "")
    prompt = tokenizer.apply_chat_template(TALK[:-1], add_generation_prompt=True)["input_ids"]
    assert encode_prompt(tokenizer, TALK[:-1]) == prompt


def test_sampling_stops_at_any_end_and_each_counts(name, tokenizer, folder):
    policy = load_policy(str(folder))
    for end in end_token_ids(tokenizer):
        with_bias(policy, end)
        (answer,) = complete(policy, tokenizer, [TALK[:1]], max_new_tokens=3, temperature=0.0)
        assert (answer.ids, answer.ended, answer.text) == ([end], True, "")


def with_bias(policy, token):
    """Let the model say one token and no other."""
    import torch

    head = torch.nn.Linear(policy.lm_head.in_features, policy.lm_head.out_features)
    with torch.no_grad():
        head.weight.zero_()
        head.bias.zero_()
        head.bias[token] = 10.0
    policy.lm_head = head


def test_what_is_published_again_has_the_makers_ends_and_vocabulary(name, tokenizer, folder, tmp_path):
    policy = load_policy(str(folder))
    size = policy.get_input_embeddings().num_embeddings
    fit_embeddings(policy, tokenizer)
    policy.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert load_policy(str(tmp_path)).get_input_embeddings().num_embeddings == size
    listed = json.loads((tmp_path / "generation_config.json").read_text())["eos_token_id"]
    assert set(listed if isinstance(listed, list) else [listed]) == set(end_token_ids(tokenizer))
    assert end_token_ids(load_tokenizer(str(tmp_path))) == end_token_ids(tokenizer)


def test_a_reward_models_padding_is_no_end_and_nothing_grows(name, folder):
    tokenizer = load_tokenizer(str(folder))
    before, size = encode_conversation(tokenizer, TALK), len(tokenizer)
    pad_apart_from_ends(tokenizer)
    assert tokenizer.pad_token_id is not None
    assert tokenizer.pad_token_id not in end_token_ids(tokenizer)
    assert tokenizer.pad_token_id not in before.input_ids
    assert len(tokenizer) == size
    assert encode_conversation(tokenizer, TALK) == before
    maker = makers.MAKERS[name]
    if maker.pad not in (None, *maker.ends):
        assert tokenizer.pad_token == maker.pad  # the maker's own, where it is apart


# --- trimming ------------------------------------------------------------------------------------------------------

words = st.text("abc é", min_size=1, max_size=90).map(str.strip).filter(bool)


@settings(max_examples=60, deadline=None)
@given(contents=st.lists(words, min_size=3, max_size=7), with_system=st.booleans(), data=st.data())
def test_what_is_trimmed_is_still_a_chat(name, tokenizer, contents, with_system, data):
    """Whole oldest exchanges go first; the frame, the system turn and the answer stay."""
    contents = contents if len(contents) % 2 else contents[1:]
    roles = ["user", "assistant"] * len(contents)
    messages = [{"role": role, "content": text} for role, text in zip(roles, contents, strict=False)]
    head = [SYSTEM] if with_system and makers.MAKERS[name].takes_system else []
    prompt = head + messages
    size = len(encode_prompt(tokenizer, prompt))
    limit = data.draw(st.integers(1, size))
    found = trim_prompt(tokenizer, prompt, limit)
    if found is None:
        shortest = [*head, {"role": "user", "content": messages[-1]["content"][:LEAST]}]
        assert limit < size
        assert len(encode_prompt(tokenizer, shortest)) > limit - 12
        return
    ids = encode_prompt(tokenizer, found)
    assert len(ids) <= limit
    assert found[: len(head)] == head
    kept = found[len(head) :]
    assert [message["role"] for message in kept] == roles[: len(kept)]
    if len(kept) > 1 or found[-1] == prompt[-1]:  # whole exchanges, and no more of them than is needed
        assert kept == messages[len(messages) - len(kept) :]
        if len(kept) < len(messages):
            assert len(encode_prompt(tokenizer, [*head, *messages[len(messages) - len(kept) - 2 :]])) > limit
    else:
        content, cut = messages[-1]["content"], kept[0]["content"]
        assert any(cut == content[:n] + content[len(content) - len(cut) + n :] for n in range(len(cut) + 1))
    if tokenizer.bos_token is not None and tokenizer.bos_token not in (tokenizer.eos_token, "<|im_start|>"):
        assert ids.count(tokenizer.bos_token_id) == encode_prompt(tokenizer, found).count(tokenizer.bos_token_id)


def test_a_trimmed_conversation_keeps_its_answer_whole(name, tokenizer):
    long = [{"role": "user", "content": "word " * 40 + "So?"}, {"role": "assistant", "content": "Three weeks."}]
    whole = encode_conversation(tokenizer, long)
    for limit in range(len(whole.input_ids) - 60, len(whole.input_ids), 7):
        cut = fit(tokenizer, long, whole, limit)
        assert cut is not None
        assert limit - 12 < len(cut.input_ids) <= limit
        assert trained(tokenizer, cut) == trained(tokenizer, whole)
        assert (
            tokenizer.decode(cut.input_ids).replace(" ", "")[:12]
            == tokenizer.decode(whole.input_ids).replace(" ", "")[:12]
        )
    assert fit(tokenizer, long, whole, whole.num_response_tokens) is None
    assert fit(tokenizer, long, whole, len(whole.input_ids) - 1, "drop") is None


def test_a_trimmed_conversation_drops_whole_exchanges_with_their_answers(name, tokenizer):
    whole = encode_conversation(tokenizer, TALK)
    cut = fit(tokenizer, TALK, whole, len(whole.input_ids) - 1)
    assert cut == encode_conversation(tokenizer, TALK[2:])


# --- other tokenizers ----------------------------------------------------------------------------------------------


def test_a_generation_config_that_names_a_word_is_not_believed(tmp_path):
    """Configs of transformers say 2 where nobody said otherwise, which is a word of many vocabularies."""
    tokenizer = tiny.make_tokenizer()
    policy = tiny.make_policy(tokenizer)
    policy.generation_config.eos_token_id = 40
    tiny.write(tmp_path, policy, tokenizer)
    assert end_token_ids(load_tokenizer(str(tmp_path))) == (tokenizer.eos_token_id,)


def test_through_end_keeps_the_first_end_and_nothing_after_it():
    assert through_end([4, 9, 7, 0], (7, 9)) == [4, 9]
    assert through_end([4, 0, 4], (9,)) == [4, 0, 4]


def test_the_byte_that_no_text_has_pads_where_there_is_no_special_token(tmp_path):
    """GPT-2 has one special token for everything."""
    tokenizer = load_tokenizer(str(makers.publish("gpt-2", tmp_path)))
    pad_apart_from_ends(tokenizer)
    assert tokenizer.pad_token == "\u00ff"  # byte-level BPE's name of 0xFF
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again.pad_token_id == tokenizer.pad_token_id
    assert tokenizer.pad_token_id not in encode_prompt(again, [{"role": "user", "content": "na\u00efve \u00ff"}])
