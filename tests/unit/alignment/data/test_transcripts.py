"""Texts that hold the turns of a conversation: they are told, and read where their marks are known."""

import pytest
from helpers.inspecting import finding, inspect

from alignment.data.chats import is_transcript
from alignment.data.parsing import to_examples
from alignment.data.row_files import BadRow
from alignment.data.sources import renamed

MARKED = {
    "guanaco": "### Human: Hi### Assistant: Hello\nyou### Human: Bye### Assistant: Bye",
    "guanaco, on lines": "### Human: Hi\n### Assistant: Hello\nyou\n\n### Human: Bye\n### Assistant: Bye",
    "zephyr": "<|user|>\nHi</s>\n<|assistant|>\nHello\nyou</s>\n<|user|>\nBye</s>\n<|assistant|>\nBye</s>",
    "chatml": "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello\nyou<|im_end|>\n"
    "<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\nBye<|im_end|>\n",
    "words": "Human: Hi\nAssistant: Hello\nyou\nHuman: Bye\nAssistant: Bye",
    "HH": "\n\nHuman: Hi\n\nAssistant: Hello\nyou\n\nHuman: Bye\n\nAssistant: Bye",
}
TURNS = [("user", "Hi"), ("assistant", "Hello\nyou"), ("user", "Bye"), ("assistant", "Bye")]
TOLD_ONLY = ["<s>[INST] Hi [/INST] Hello </s>", "A chat. USER: Hi ASSISTANT: Hello", "User: Hi\nAI: Hello"]


@pytest.mark.parametrize("text", [*MARKED.values(), *TOLD_ONLY], ids=[*MARKED, "llama", "vicuna", "AI"])
def test_turns_inside_a_text_are_told(text):
    told = finding(inspect([{"text": text}], stage="sft"), "transcript")
    assert (told.level, told.count) == ("warning", 1)
    assert "--column messages=text (data.columns='{messages: text}')" in told.advice
    row = {"prompt": f"Go on:\n{text}", "completion": "Yes."}
    kinds = {found.kind for found in inspect([row], stage="sft").findings}
    assert len(kinds & {"markers", "transcript_prompt"}) == 1  # what marks are told of is not told twice


@pytest.mark.parametrize("style", MARKED)
def test_the_advice_reads_the_turns(style):
    (record,) = to_examples(renamed({"text": MARKED[style]}, {"messages": "text"}))
    assert [(turn["role"], turn["content"]) for turn in record.messages] == TURNS


def test_a_system_turn_in_a_text_is_read():
    text = "<|system|>\nBe brief.</s>\n<|user|>\nHi</s>\n<|assistant|>\nHello</s>"
    assert to_examples({"messages": text})[0].messages[0] == {"role": "system", "content": "Be brief."}


def test_marks_that_are_not_known_are_refused():
    with pytest.raises(BadRow, match="a text of turns marked 'USER:' and 'ASSISTANT:', '### Human:'"):
        to_examples({"messages": TOLD_ONLY[0]})


@pytest.mark.parametrize(
    "text", ["A user: somebody. An assistant: helper.", "Hours\n### Fees\n20 cents.", "Email: AI: no"]
)
def test_plain_texts_are_no_transcripts(text):
    assert not is_transcript(text)
