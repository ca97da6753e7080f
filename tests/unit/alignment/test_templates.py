"""Rendering: what is trained on, what is cut, and that a prompt is a prefix of the conversation it begins."""

import pytest
import tiny
from hypothesis import example, given, settings
from hypothesis import strategies as st

from alignment.templates import TEMPLATES, TemplateError, encode_conversation, encode_prompt, set_template

# Words and white space of every kind, but none of the special tokens.
words = st.text(st.sampled_from("abc \n\t\r.é\u00a0\u2028猫<|"), min_size=1, max_size=12)
turns = st.lists(words, min_size=1, max_size=5)

# As hub models have it: no {% generation %}, a BOS, and something rendered after the last EOS.
PLAIN = (
    "{{ bos_token }}{% for message in messages %}[{{ message['role'] }}]\n{{ message['content'] | trim }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]\n{% endif %}"
)


def conversation(contents, system=False):
    roles = ["user", "assistant"] * len(contents)
    messages = [{"role": role, "content": text} for role, text in zip(roles, contents, strict=False)]
    if len(messages) % 2:
        messages.append({"role": "assistant", "content": "ok"})
    return [{"role": "system", "content": "Be kind."}, *messages] if system else messages


@pytest.fixture(scope="module", params=[*TEMPLATES, "plain"])
def any_tokenizer(request):
    if request.param != "plain":
        return tiny.make_tokenizer(request.param)
    tokenizer = tiny.make_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    tokenizer.chat_template = PLAIN
    return tokenizer


def trained(tokenizer, encoded):
    """The texts of the runs of trained tokens."""
    runs, last = [], False
    for token, kept in zip(encoded.input_ids, encoded.loss_mask, strict=True):
        if kept and not last:
            runs.append([])
        if kept:
            runs[-1].append(token)
        last = kept
    return [tokenizer.decode(run) for run in runs]


def test_the_templates_render_the_formats_they_are_named_after():
    messages = conversation(["Hi.", " Hello. ", "Bye.", "Bye!"], system=True)
    chatml = tiny.make_tokenizer("chatml").apply_chat_template(
        messages[:-1], tokenize=False, add_generation_prompt=True
    )
    assert chatml == (
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi.<|im_end|>\n"
        "<|im_start|>assistant\nHello.<|im_end|>\n<|im_start|>user\nBye.<|im_end|>\n<|im_start|>assistant\n"
    )
    alpaca = tiny.make_tokenizer("alpaca").apply_chat_template(messages, tokenize=False)
    assert alpaca == (
        "Be kind.\n\n### Instruction:\nHi.\n\n### Response:\nHello.<|im_end|>\n\n"
        "### Instruction:\nBye.\n\n### Response:\nBye!<|im_end|>\n\n"
    )


@settings(max_examples=60, deadline=None)
@given(contents=turns, system=st.booleans())
@example(contents=["a", "\n\n\nb"], system=False)
@example(contents=["a", "  b  \n"], system=False)
def test_the_loss_is_on_the_assistants_text_and_eos_and_on_nothing_else(any_tokenizer, contents, system):
    messages = conversation(contents, system)
    encoded = encode_conversation(any_tokenizer, messages)
    answers = [message["content"].strip() for message in messages if message["role"] == "assistant"]
    assert trained(any_tokenizer, encoded) == [answer + any_tokenizer.eos_token for answer in answers]
    assert encoded.input_ids[-1] == any_tokenizer.eos_token_id
    assert encoded.loss_mask[-1]


@settings(max_examples=60, deadline=None)
@given(contents=turns)
@example(contents=["a", "\n\n\nb"])
def test_the_prompt_is_a_prefix_and_the_rest_is_the_response(any_tokenizer, contents):
    messages = conversation(contents)
    prompt = encode_prompt(any_tokenizer, messages[:-1])
    encoded = encode_conversation(any_tokenizer, messages)
    assert encoded.input_ids[: len(prompt)] == prompt
    assert encoded.num_response_tokens == len(encoded.input_ids) - len(prompt)
    assert not encoded.loss_mask[len(prompt) - 1]


def test_there_is_one_bos_and_it_survives_the_cut(any_tokenizer):
    messages = conversation(["How long can I keep a book?", "Three weeks."] * 3)
    whole = encode_conversation(any_tokenizer, messages)
    cut = encode_conversation(any_tokenizer, messages, len(whole.input_ids) - 5)
    prompt = encode_prompt(any_tokenizer, messages[:-1], 20)
    assert len(prompt) == 20
    for ids in (whole.input_ids, cut.input_ids, prompt):
        if any_tokenizer.bos_token is None:
            break
        assert [index for index, token in enumerate(ids) if token == any_tokenizer.bos_token_id] == [0]


def test_a_long_conversation_loses_its_oldest_tokens_never_the_response(any_tokenizer):
    messages = conversation(["When does the library open?", "At nine."] * 4)
    whole = encode_conversation(any_tokenizer, messages)
    has_bos = any_tokenizer.bos_token is not None
    for limit in range(whole.num_response_tokens + 1, len(whole.input_ids)):
        cut = encode_conversation(any_tokenizer, messages, limit)
        assert len(cut.input_ids) == len(cut.loss_mask) == limit
        assert cut.input_ids[has_bos:] == whole.input_ids[-limit + has_bos :]
        assert cut.loss_mask[1:] == whole.loss_mask[-limit + 1 :]
        assert not cut.loss_mask[0]  # nothing stands before it, least of all when it is BOS


def test_a_response_that_does_not_fit_is_none_and_one_that_does_is_whole(any_tokenizer):
    messages = conversation(["When?", "At nine on weekdays."])
    size = encode_conversation(any_tokenizer, messages).num_response_tokens
    assert encode_conversation(any_tokenizer, messages, size) is None
    assert encode_conversation(any_tokenizer, messages, size + 1).num_response_tokens == size


def test_a_template_that_does_not_end_in_eos_is_refused():
    tokenizer = tiny.make_tokenizer()
    tokenizer.chat_template = PLAIN.replace("{{ eos_token }}", "").replace("{{ bos_token }}", "")
    with pytest.raises(TemplateError, match=r"never learn to stop; set model\.eos_token"):
        encode_conversation(tokenizer, conversation(["a", "b"]))
    tokenizer.chat_template = TEMPLATES["chatml"].replace("{{ eos_token }}", "")
    with pytest.raises(TemplateError, match="'b', not with the tokenizer's EOS"):
        encode_conversation(tokenizer, conversation(["a", "b"]))


def test_a_template_that_renders_old_turns_otherwise_is_refused():
    tokenizer = tiny.make_tokenizer()
    tokenizer.chat_template = PLAIN.replace("{{ bos_token }}", "").replace(
        "message['content'] | trim", "(message['content'] if loop.last or message['role'] != 'assistant' else '...')"
    )
    encode_conversation(tokenizer, conversation(["a", "b"]))
    with pytest.raises(TemplateError, match="renders turn 2 otherwise"):
        encode_conversation(tokenizer, conversation(["a", "b", "c", "d"]))


def test_a_template_that_refuses_a_role_says_so_in_one_line():
    tokenizer = tiny.make_tokenizer()
    tokenizer.chat_template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + PLAIN
    )
    with pytest.raises(TemplateError, match=r"refuses a conversation of system, user.*System role not supported"):
        encode_prompt(tokenizer, conversation(["a", "b"], system=True)[:-1])


def test_set_template_names_the_choices():
    tokenizer = tiny.make_tokenizer()
    set_template(tokenizer, "alpaca")
    assert tokenizer.chat_template == TEMPLATES["alpaca"]
    set_template(tokenizer, None)
    assert tokenizer.chat_template == TEMPLATES["alpaca"]
    with pytest.raises(TemplateError, match="no template 'llama'; known: chatml, alpaca"):
        set_template(tokenizer, "llama")
    tokenizer.chat_template = None
    with pytest.raises(TemplateError, match=r"no chat template; set model\.template"):
        set_template(tokenizer, None)
