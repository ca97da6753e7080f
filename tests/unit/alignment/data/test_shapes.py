"""The tables of shapes and of known keys say what is done: each example is read, each known key is read or refused."""

import json

import pytest

from alignment.data.formats import plan_of, unused_keys
from alignment.data.importers import PassedOver
from alignment.data.keys import BY_NAME, KEYS
from alignment.data.parsing import LEARNED, to_examples, to_judgements, to_prompts
from alignment.data.row_files import BadRow
from alignment.data.shapes import SHAPES
from alignment.data.sources import renamed

READERS = {"sft": to_examples, "reward": to_judgements, "ppo": to_prompts}
QUESTION = {"role": "user", "content": "When?"}
ANSWER = {"role": "assistant", "content": "At nine."}
BASES = [
    {"messages": [QUESTION, ANSWER]},
    {"conversations": [{"from": "human", "value": "When?"}, {"from": "gpt", "value": "At nine."}]},
    {"prompt": "When?", "completion": "At nine."},
    {"instruction": "When?", "output": "At nine."},
    {"question": "When?", "answer": "At nine."},
    {"question": "When?", "documents": ["Open 9-17."], "answer": "At nine."},
    {"prompt": "When?", "chosen": "At nine.", "rejected": "No."},
    {"prompt": "When?", "completions": ["At nine.", "No."], "ranks": [1, 2]},
    {"prompt": "When?", "completion": "At nine.", "rating": 4},
    {"text": "Open at nine."},
]
SAID = {
    "unanswerable": True,
    "margin": 1.5,
    "ranks": [2, 1],
    "scores": [3, 4],
    "rating": 3,
    "label": "spam",
    "train": False,
    "weight": 0.25,
    "mask": [1],
    "tools": [{"type": "function", "function": {"name": "clock"}}],
    "history": [["Hm?", "Yes."]],
    "messages": [{"role": "user", "content": "Another thing?"}],
    "chat_template_kwargs": {"enable_thinking": False},
}
"""A value for each meaning that needs one of its own kind; the others take a text."""


def strings(value):
    return json.dumps(value, ensure_ascii=False, default=str)


@pytest.mark.parametrize("name", SHAPES)
def test_each_example_is_read_as_its_shape_and_as_the_table_says(name):
    shape = SHAPES[name]
    assert plan_of(shape.example, "auto", tuple(SHAPES)).shape == name
    assert unused_keys(shape.example, "auto") == ()
    for stage, read in READERS.items():
        try:
            learned = bool(read(dict(shape.example)))
        except PassedOver:  # the example of an answer that is marked as a bad one
            learned = True
        except BadRow:
            learned = False
        # Only lists of outputs are compared, so the example of an Alpaca row is nothing to the reward model.
        assert learned == bool(getattr(shape, stage)) or (stage, name) == ("reward", "alpaca"), stage
        assert (name in LEARNED[stage]) == bool(getattr(shape, stage))


@pytest.mark.parametrize(
    "base", [*BASES, *(shape.example for shape in SHAPES.values())], ids=lambda base: "+".join(base)
)
def test_no_row_is_read_without_a_key_of_known_meaning(base):
    """Adding the key changes what is learned, or the row is refused; nothing is dropped in silence."""
    shape = plan_of(base, "auto", tuple(SHAPES)).shape
    names = [
        name
        for name, key in BY_NAME.items()
        if name not in base and key.names[0] != "labeler" and (not key.only_in or shape in key.only_in)
    ]
    names = [name for name in names if BY_NAME[name].at_least == 1]
    assert [(name, stage) for name in names for stage in READERS if dropped(base, name, stage)] == []


def dropped(base, name, stage):
    read, key = READERS[stage], BY_NAME[name]
    row = {**base, name: SAID.get(key.names[0], "Something else entirely.")}
    try:
        plain, found = read(dict(base)), read(row)
    except BadRow:
        return False
    if stage == "ppo":
        return key.changes != "answer" and [prompt.messages for prompt in found] == [p.messages for p in plain]
    # What an answer is worth may be read and mean nothing to the stage: a margin to SFT.
    means_nothing = key.changes == "answer" and name in plan_of(row, "auto", tuple(SHAPES)).read
    return not means_nothing and strings(found) == strings(plain)


@pytest.mark.parametrize("key", [key for key in KEYS if key.changes == "media"], ids=lambda key: key.names[0])
def test_images_and_the_like_are_refused_wherever_they_stand(key):
    for base in BASES:
        for name in key.names:
            for read in READERS.values():
                with pytest.raises(BadRow):
                    read({**base, name: ["x.png"]})
            assert renamed({**base, name: ["x.png"]}, {name: None}) == base
    with pytest.raises(BadRow, match="'images': images, films and sound are not supported"):
        to_examples({**BASES[0], "images": ["x.png"]})


def test_a_refusal_names_the_key_its_meaning_and_a_fix_that_works():
    row = {**BASES[6], "rating": [5, 1]}
    with pytest.raises(BadRow) as refused:
        to_judgements(row)
    assert str(refused.value) == (
        "'rating' (how good the answer is) is not read in pair rows; rename it, or data.columns='{rating: null}' "
        "(--column rating=) reads the rows without it"
    )
    assert to_judgements(renamed(row, {"rating": None})) == to_judgements(BASES[6])


def test_what_says_nothing_or_repeats_the_conversation_is_no_reason_to_refuse():
    chat = {"messages": [QUESTION, ANSWER]}
    for more in (
        {"prompt": "When?"},  # UltraChat
        {"system": None, "images": [], "rating": None, "tools": []},
        {"train": True, "weight": 1},
        {"instruction": "When?", "response": "At nine.", "reward_model": "m"},  # Magpie
    ):
        assert to_examples({**chat, **more}) == to_examples(chat)
    with pytest.raises(BadRow, match=r"'prompt' \(the question, or the turns before the answer\) is not read in chat"):
        to_examples({**chat, "prompt": "Why?"})


def test_a_null_key_is_no_key():
    """A table with rows of several shapes has every key in every row."""
    nothing = dict.fromkeys(("messages", "prompt", "completion", "chosen", "rejected", "text"))
    assert to_examples({**nothing, **BASES[0]}) == to_examples(BASES[0])
    assert to_examples({**nothing, **BASES[2]}) == to_examples(BASES[2])
    assert to_judgements({**nothing, **BASES[6]}) == to_judgements(BASES[6])
    with pytest.raises(BadRow, match="'completion' must be a string, found NoneType"):
        to_examples({"prompt": "When?", "completion": None})


def test_reasons_use_the_names_of_the_file():
    with pytest.raises(BadRow, match="'response' is empty"):
        to_examples({"question": "When?", "response": " "})
    with pytest.raises(BadRow, match="'scores' must be numbers"):
        to_judgements({"query": "When?", "responses": ["a", "b"], "scores": ["x", "y"]})


def test_unknown_keys_are_listed():
    assert unused_keys({**BASES[0], "lang": "en", "split": "train"}, "auto") == ("lang", "split")
    assert unused_keys({**BASES[0], "lang": None}, "auto") == ()
    assert unused_keys({"prompt": "p", "completion": "c", "rating": 1}, "completion") == ("rating",)
