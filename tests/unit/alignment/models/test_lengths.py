"""Lengths against the positions of a model: refused where the table ends, a word of warning where it does not."""

import pytest
import torch
from helpers import tiny

from alignment.models.lengths import LengthError, check_length, check_prompts, positions

PROMPTS = [[{"role": "user", "content": text}] for text in ("Hi", "When? " * 60, "How long?")]


@pytest.fixture(scope="module")
def folders(tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("models")
    models = {"learned": tiny.make_gpt2(tokenizer), "rotary": tiny.make_policy(tokenizer)}
    return {name: str(tiny.write(folder / name, model, tokenizer)) for name, model in models.items()}


def test_the_limit_is_where_a_forward_breaks(folders, tokenizer):
    """The two models themselves say which of them can go on."""
    models = {"learned": tiny.make_gpt2(tokenizer), "rotary": tiny.make_policy(tokenizer)}
    for name, model in models.items():
        limit, is_rotary = positions(folders[name])
        model(input_ids=torch.ones(1, limit, dtype=torch.long))
        beyond = torch.ones(1, limit + 1, dtype=torch.long)
        if is_rotary:
            model(input_ids=beyond)
        else:
            with pytest.raises(IndexError):
                model(input_ids=beyond)
    assert positions(folders["learned"]) == (256, False)
    assert positions(folders["rotary"]) == (256, True)


def test_more_than_the_learned_positions_is_refused_with_the_key(folders, capsys):
    check_length(folders["learned"], 256, "data.max_length")
    with pytest.raises(
        LengthError, match=r"data.max_length=257 is more than the 256 positions of .*; set data.max_len"
    ):
        check_length(folders["learned"], 257, "data.max_length")
    assert capsys.readouterr().err == ""


def test_rotary_positions_go_on_with_a_warning(folders, capsys):
    check_length(folders["rotary"], 256, "data.max_length")
    assert capsys.readouterr().err == ""
    check_length(folders["rotary"], 257, "data.max_length")
    assert "more than the 256 positions" in capsys.readouterr().err


def test_what_cannot_be_read_is_left_to_the_loading(tmp_path):
    check_length(str(tmp_path), 10**6, "data.max_length")


def test_prompts_must_leave_room_for_the_answer(folders, tokenizer, capsys):
    longest = len(tokenizer.apply_chat_template(PROMPTS[1], add_generation_prompt=True, return_dict=True)["input_ids"])
    room = 256 - longest
    assert room > 0
    check_prompts(folders["learned"], tokenizer, PROMPTS, room)
    with pytest.raises(LengthError, match=f"prompt 2 has {longest} tokens"):
        check_prompts(folders["learned"], tokenizer, PROMPTS, room + 1)
    check_prompts(folders["rotary"], tokenizer, PROMPTS, room)
    assert capsys.readouterr().err == ""
    check_prompts(folders["rotary"], tokenizer, PROMPTS, 10**6)
    assert f"prompt 2 has {longest} tokens, which with 1000000 new ones" in capsys.readouterr().err
