"""Texts that lie inside other keys: read by paths, and suggested where a row is refused; hints of unread rows."""

import json
import re
import shlex

import pytest

from alignment.data.importers import PassedOver
from alignment.data.parsing import to_examples, to_judgements, to_prompts
from alignment.data.row_files import BadRow
from alignment.data.sources import renamed

ASKED = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "When?"}]
ANSWER = {"role": "assistant", "content": "At nine."}
WANTED = [("system", "Be brief."), ("user", "When?"), ("assistant", "At nine.")]
LOGS = {
    "openai": {"ts": 1, "request": {"messages": ASKED}, "response": {"choices": [{"message": ANSWER}]}},
    "langfuse": {"trace": {"input": ASKED, "output": ANSWER}},
    "anthropic": {
        "request": {"system": "Be brief.", "messages": ASKED[1:]},
        "response": {"role": "assistant", "content": [{"type": "text", "text": "At nine."}]},
    },
    "inputs": {"inputs": {"system": "Be brief.", "question": "When?"}, "outputs": {"answer": "At nine."}},
    "chat": {"snapshot": {"chat": {"messages": [*ASKED, ANSWER]}}},
    "text": {"body": json.dumps({"messages": [*ASKED, ANSWER]})},
    "gemini": {
        "systemInstruction": {"parts": [{"text": "Be brief."}]},
        "contents": [
            {"role": "user", "parts": [{"text": "When?"}]},
            {"role": "model", "parts": [{"text": "At nine."}]},
        ],
    },
    "speakers": {
        "system": "Be brief.",
        "turns": [{"speaker": "customer", "utterance": "When?"}, {"speaker": "agent", "utterance": "At nine."}],
    },
}


def columns_in(reason):
    options = shlex.split(reason.partition("keys: ")[2].partition(" (data.columns")[0])
    return dict(option.split("=", 1) for option in options if option != "--column")


@pytest.mark.parametrize("name", LOGS)
def test_the_columns_that_a_refusal_names_read_the_row(name):
    with pytest.raises(BadRow, match="its texts lie inside other keys: --column") as refused:
        to_examples(LOGS[name])
    (record,) = to_examples(renamed(LOGS[name], columns_in(str(refused.value))))
    assert [(turn["role"], turn["content"]) for turn in record.messages] == WANTED


def test_what_stands_beside_a_path_is_not_lost():
    row = LOGS["anthropic"]
    with pytest.raises(BadRow, match=r"'request.system' .* --column system=request.system reads it"):
        renamed(row, {"prompt": "request.messages", "completion": "response"})
    with_none = renamed(row, {"prompt": "request.messages", "completion": "response", "system": None})
    assert to_examples(with_none)[0].messages[0]["role"] == "user"
    with pytest.raises(BadRow, match=r"no key 'request.nothing'"):
        renamed(row, {"prompt": "request.nothing"})


def test_failed_and_cut_answers_of_logs_are_skipped():
    columns = {"prompt": "request.messages", "completion": "response"}
    cut = {"choices": [{"message": ANSWER, "finish_reason": "length"}]}
    for response, reason in ((cut, "finish_reason: length"), ({"error": {"code": 429}}, "the request failed")):
        with pytest.raises(PassedOver, match=reason):
            to_examples(renamed({**LOGS["openai"], "response": response}, columns))
    with pytest.raises(PassedOver, match="marked as failed"):
        renamed({"request": {"messages": ASKED}, "error": "timeout"}, columns)
    two = {"choices": [{"message": ANSWER}, {"message": ANSWER}]}
    with pytest.raises(BadRow, match=r"2 answers in 'choices'"):
        to_examples(renamed({**LOGS["openai"], "response": two}, columns))


def test_a_suggestion_drops_nothing_that_is_known():
    history = [{"role": "USER", "message": "Hi"}, {"role": "CHATBOT", "message": "Hello"}]
    row = {"preamble": "Be brief.", "chat_history": history, "message": "When?", "response": "At nine."}
    (record,) = to_examples(row)
    assert [turn["content"] for turn in record.messages] == ["Be brief.", "Hi", "Hello", "When?", "At nine."]
    with pytest.raises(BadRow, match="in a form that is not read"):
        to_examples({"data": {"messages": ASKED}, "id": 1})  # there is no answer to learn
    assert len(to_prompts(renamed({"data": {"messages": ASKED}}, {"prompt": "data.messages"}))) == 1


@pytest.mark.parametrize(
    ("read", "row", "said"),
    [
        (to_examples, {"When do you open?": "At nine.", "x": 1}, "the file has no header line"),
        (to_prompts, {"text": "When?"}, 'write an object a line, {"prompt": ...}'),
        (to_examples, {"id": 1, "author": "Cy", "content": "Hi", "timestamp": "x"}, "single messages of a chat"),
        (to_examples, {"user": "U1", "text": "Hi", "ts": "1.2"}, "a message of a chat, not a document"),
        (to_examples, {"fields": {"description": "Hi"}, "key": 1}, "in a form that is not read"),
        (to_judgements, {"x": "a", "chosen": "b", "rejected": "c"}, "--column prompt=KEY"),
    ],
    ids=["header", "text", "messages", "slack", "nested", "pair"],
)
def test_rows_that_are_not_read_are_told_by_what_they_are(read, row, said):
    with pytest.raises(BadRow, match=re.escape(said)):
        read(row)
