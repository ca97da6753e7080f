"""Parse a row of any shape into records."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from alignment.config.sections import Format
from alignment.data import formats, preferences, questions
from alignment.data.chats import answered, calling_chat, chat_of
from alignment.data.help_desks import MESSAGE_KEYS, plain_name
from alignment.data.importers import PassedOver
from alignment.data.judging import (
    NO_TOOLS,
    VOTED,
    all_pairs,
    completion_of,
    judged_pair,
    label_of,
    prefilled,
    ranking,
    rated,
)
from alignment.data.keys import Changes, is_empty
from alignment.data.messages import (
    NOT_TRAINED,
    Chat,
    Turns,
    answer_turns,
    check_ends,
    check_text,
    text_of,
    with_answer,
)
from alignment.data.openassistant import tree_chats
from alignment.data.preferences import labeler_of, number_of
from alignment.data.records import Comparison, CompletionRating, Demonstration, Document, Prompt
from alignment.data.row_files import BadRow
from alignment.data.tool_calls import tools_of

Row = Mapping[str, Any]

_CHATS: tuple[Format, ...] = ("chat", "sharegpt")
_ANSWERED: tuple[Format, ...] = ("alpaca", "completion", "faq", "rag")
_COMPARISONS: tuple[Format, ...] = (
    "openai-preference", "tree", *VOTED, "pandalm", "pair", "qa-feedback", "ranking", "scored", "alpaca",
)  # fmt: skip
_DEMONSTRATIONS: tuple[Format, ...] = (*_CHATS, *_ANSWERED, "self-instruct", "calls", "unpaired", *_COMPARISONS)
_EXAMPLES: tuple[Format, ...] = (*_DEMONSTRATIONS, "text")
_RATINGS: tuple[Format, ...] = ("rating", "unpaired")
_JUDGEMENTS: tuple[Format, ...] = (*_COMPARISONS, *_RATINGS)
_PROMPTS: tuple[Format, ...] = (
    "prompt", *(shape for shape in _DEMONSTRATIONS if shape != "calls"), "rating",
)  # fmt: skip
LEARNED: dict[str, tuple[Format, ...]] = {"sft": _EXAMPLES, "reward": _JUDGEMENTS, "ppo": _PROMPTS}
"""The shapes that each stage learns from; the reward stage, of Alpaca rows, those with a list of outputs."""
JUDGED: tuple[Format, ...] = (
    "openai-preference",
    *VOTED,
    "pandalm",
    "pair",
    "unpaired",
    "rating",
    "scored",
    "ranking",
)
"""The shapes that hold nothing but what somebody judged."""
_EVERYTHING: tuple[Changes, ...] = ("prompt", "answer", "media")


def to_examples(row: Row, format: Format = "auto") -> list[Demonstration | Document]:
    """The SFT examples of a row: demonstrations or a document."""
    return formats.read_as(row, format, _EXAMPLES, _EVERYTHING, _examples)


def to_demonstrations(row: Row, format: Format = "auto") -> list[Demonstration]:
    """The demonstrations of a row: several for Self-Instruct and OpenAssistant's trees, otherwise one.

    A pair yields its preferred completion, and a ranking its best one.
    """
    return formats.read_as(row, format, _DEMONSTRATIONS, _EVERYTHING, _demonstrations)


def to_demonstration(row: Row, format: Format = "auto") -> Demonstration:
    """The demonstration of a row that holds exactly one."""
    (demonstration,) = to_demonstrations(row, format)
    return demonstration


def _examples(shape: Format, row: Row, original: Row) -> list[Demonstration | Document]:
    if shape != "text":
        return [*_demonstrations(shape, row, original)]
    _refuse_message(original)
    return [Document(text_of(row, "text"))]


_SLACK_KEYS = ("user", "thread_ts", "parent_user_id", "client_msg_id", "subtype")
_CHAT_KEYS = (
    *_SLACK_KEYS,
    *("reply_to_message_id", "in_reply_to", "from_id", "from", "reply_to", "replyToId", "channel_id"),
)
"""Keys of messages in exports of chats; `user` is one beside `ts`."""


def _refuse_message(row: Row) -> None:
    """Refuse a message of a ticket, of which the text alone would be learned as a document."""
    keys = [str(key) for key, value in row.items() if plain_name(key) in MESSAGE_KEYS and not is_empty(value)]
    chat = [str(key) for key in row if key in _CHAT_KEYS]
    if chat and (chat[0] != "user" or "ts" in row):
        slack = "thread_ts" in chat or "ts" in row
        left_out = " ".join(f"--column {key}=" for key in (_SLACK_KEYS if slack else chat))
        export = "read Slack's file (.json), folder or zip with --format slack --agent NAME, or " if slack else ""
        raise BadRow(
            f"'{chat[0]}' beside 'text' says that the row is a message of a chat, not a document; {export}write the "
            f"columns of tickets, conversation_id, role, text and ts; {left_out} reads the texts alone as documents"
        )
    if keys:
        left_out = " ".join(f"--column '{key}='" if " " in key else f"--column {key}=" for key in keys)
        raise BadRow(
            f"'{keys[0]}' beside 'text' says that the row is a message of a ticket, not a document; name the columns "
            "of tickets, conversation_id, role and text (--column role=NAME), or read the texts alone as documents "
            f"with {left_out}"
        )


def _demonstrations(shape: Format, row: Row, original: Row) -> list[Demonstration]:
    if shape == "tree":
        return [Demonstration(messages) for messages in tree_chats(row)]
    if shape == "calls":
        return [Demonstration(*calling_chat(row)[:2])]
    if shape == "self-instruct":
        return [Demonstration(with_answer(*instance)) for instance in questions.instances(row)]
    chat = _chat(shape, row, original)
    check_ends(chat.messages)
    if not any(turn.get("weight", 1) for turn in chat.messages if turn["role"] == "assistant"):
        raise PassedOver("every answer is marked as one not to train on")
    return [Demonstration(chat.messages, chat.tools, notes=chat.notes)]


def _chat(shape: Format, row: Row, original: Row) -> Chat:
    """The conversation that SFT learns from a row."""
    _check_marks(row)
    if shape in _CHATS:
        return _corrected(row, answered(chat_of(row, shape_key(shape))))
    if shape == "unpaired":
        if not label_of(row, original):
            raise PassedOver("the answer is marked as a bad one (label: false)")
        return Chat(with_answer(*rated(row)), tools_of(row))
    if shape in _ANSWERED:
        return _corrected(row, _with_reasoning(row, Chat(prefilled(*_question_and_answer(shape, row)), tools_of(row))))
    if shape == "qa-feedback":
        return Chat(with_answer(questions.qa_prompt(row), text_of(row, "gold")))
    if shape == "openai-preference":
        pair, asked = preferences.openai_pair(row)
        return Chat(with_answer(pair.prompt, pair.chosen), asked.tools)
    if shape == "pair":
        prompt, chosen, _ = preferences.pair_of(row)
        return Chat(with_answer(prompt, chosen), tools_of(row))
    if shape in ("ranking", "scored"):
        ranked = ranking(shape, row, original)
        if len(set(ranked.ranks)) == 1:
            raise PassedOver("no answer was preferred")
        return Chat(with_answer(ranked.prompt, ranked.completions[ranked.ranks.index(min(ranked.ranks))]))
    return Chat(with_answer(*_preferred(judged_pair(shape, row))))


def shape_key(shape: Format) -> str:
    """The key of a conversation by our name."""
    return "messages" if shape == "chat" else "conversations"


def _check_marks(row: Row) -> None:
    """Pass over a row that is marked as one not to train on.

    Raises:
        PassedOver: `train: false`, `loss: false` or `weight: 0`.
        BadRow: another value; a weight between 0 and 1 is not read.
    """
    for key in NOT_TRAINED:
        value = row.get(key)
        if is_empty(value) or str(value).lower() in ("1", "1.0", "true"):
            continue
        if str(value).lower() in ("0", "0.0", "false"):
            raise PassedOver(f"marked as one not to train on ({key}: {value})")
        raise BadRow(
            f"'{key}' is {value!r}; expected true or false: no row has a fraction of a loss (data.train weighs files)"
        )


def _question_and_answer(shape: Format, row: Row) -> tuple[Turns, str]:
    if shape == "rag":
        prompt, answer = questions.rag(row)
        if answer is None or answer == "":
            raise BadRow(
                "'answer' is empty; mark a question that the documents do not answer with `unanswerable: true`"
            )
        return prompt, check_text(answer, "'answer'")
    if shape == "alpaca":
        if isinstance(row["output"], list) and len(row["output"]) > 1:
            row = {**row, "output": row["output"][0]}
        return questions.alpaca(row), text_of(row, "output")
    if shape == "faq":
        return questions.faq(row), text_of(row, "answer")
    return questions.prompt_of(row), completion_of(row, "completion")


def _with_reasoning(row: Row, chat: Chat) -> Chat:
    reasoning = row.get("reasoning_content")
    if is_empty(reasoning):
        return chat
    *before, last = chat.messages
    last = {**last, "reasoning_content": check_text(reasoning, "'reasoning_content'")}
    return chat._replace(messages=(*before, last))


CORRECTED = "the corrected answer is learned in place of the first one"


def _corrected(row: Row, chat: Chat) -> Chat:
    """The conversation with the answer that somebody wrote in place of the last one, where the row has such."""
    text = row.get("corrected_answer")
    if is_empty(text) or isinstance(text, bool) or (isinstance(text, str) and not text.strip()):
        return chat
    *before, last = chat.messages
    text = completion_of(row, "corrected_answer")
    if last.get("tool_calls") or not isinstance(text, str) or answer_turns(text)[0].keys() != {"role", "content"}:
        raise BadRow("'corrected_answer' beside an answer that calls tools is not read; write it as the answer")
    if text.strip() == last["content"].strip():
        return chat
    last = {**last, "content": text}
    last.pop("reasoning_content", None)  # it led to the first answer
    return chat._replace(messages=(*before, last), notes=(*chat.notes, CORRECTED))


def _preferred(pair: Comparison) -> tuple[Turns, str]:
    if pair.target == 0.5:
        raise PassedOver("neither response was preferred")
    preferred = pair.first if pair.target > 0.5 else pair.second
    check_text(str(preferred), "the preferred response")
    return pair.prompt, preferred


# --- comparisons and ratings -----------------------------------------------------------------------------------------


def to_comparisons(row: Row, format: Format = "auto") -> list[Comparison]:
    """The comparisons of a row.

    A pair yields one, and so does a PandaLM row, with each annotator's vote. A ranking of K answers yields all K(K-1)/2
    pairs (InstructGPT, section 3.5), and so does each ranking of a tree. A QA-Feedback row yields its K(K-1)/2 pairs as
    they were judged, which need not be transitive. Equal completions of a ranking yield no pair.
    """
    pairs = formats.read_as(row, format, _COMPARISONS, _EVERYTHING, all_pairs)
    return [pair for pair in pairs if pair.first != pair.second]


def to_judgements(row: Row, format: Format = "auto") -> list[Comparison] | list[CompletionRating]:
    """The reward model's examples of a row: comparisons, or the rating of one completion.

    Pairs of equal completions of a ranking are included: the reward stage drops and counts them.
    """
    return formats.read_as(row, format, _JUDGEMENTS, _EVERYTHING, _judgements)


def _judgements(shape: Format, row: Row, original: Row) -> list[Comparison] | list[CompletionRating]:
    if shape not in _RATINGS:
        return all_pairs(shape, row, original)
    if tools_of(row):
        raise BadRow(f"ratings with tools are not read: {NO_TOOLS}")
    rating = float(label_of(row, original)) if shape == "unpaired" else number_of(row["rating"], "'rating'")
    return [CompletionRating(*rated(row), rating, labeler_of(row))]


def to_comparison(row: Row) -> Comparison:
    """The comparison of a row with `chosen` and `rejected`: completions of `prompt`, or whole conversations."""
    (pair,) = formats.read_as(row, "pair", ["pair"], _EVERYTHING, all_pairs)
    return pair


# --- prompts ---------------------------------------------------------------------------------------------------------


def to_prompts(row: Row, format: Format = "auto") -> list[Prompt]:
    """The prompts of a row of any shape except `text`."""
    return formats.read_as(row, format, _PROMPTS, ("prompt", "media"), _prompts)


def _prompts(shape: Format, row: Row, original: Row) -> list[Prompt]:
    if shape == "tree":
        return [Prompt(messages[:-1]) for messages in tree_chats(row)]
    columns = {key: value for key, value in original.items() if key not in ("prompt", "messages", "instances")}
    if shape == "self-instruct":
        return [_checked(prompt, columns) for prompt, _ in questions.instances(row)]
    return [_checked(_prompt(shape, row), columns)]


def to_prompt(row: Row, format: Format = "auto") -> Prompt:
    """The prompt of a row that holds exactly one: the turns before the assistant's last turn."""
    (prompt,) = to_prompts(row, format)
    return prompt


def _checked(messages: Turns, columns: Row) -> Prompt:
    if not messages or messages[-1]["role"] != "user":
        raise BadRow("the prompt must end with the user's turn")
    return Prompt(messages, columns)


def _prompt(shape: Format, row: Row) -> Turns:
    if tools_of(row):
        raise BadRow("prompts with tools are for python -m sft only: reward models are not trained on tools")
    if shape in _CHATS:
        chat = chat_of(row, shape_key(shape))
        if chat.tools:
            raise BadRow("prompts with tools are for python -m sft only: reward models are not trained on tools")
        return chat.messages[:-1] if chat.messages[-1]["role"] == "assistant" else chat.messages
    if shape in _RATINGS:
        return questions.prompt_of(row) if "prompt" in row else rated(row)[0]
    if shape == "alpaca":
        return questions.alpaca(row)
    if shape == "faq":
        return questions.faq(row)
    if shape == "rag":
        return questions.rag(row)[0]
    if shape == "pandalm":
        return preferences.pandalm_prompt(row)
    if shape == "pair":
        return preferences.pair_of(row)[0]
    if shape == "openai-preference":
        return preferences.openai_pair(row)[0].prompt
    if shape == "qa-feedback":
        return questions.qa_prompt(row)
    if shape in VOTED:
        return VOTED[shape](row).prompt
    return questions.prompt_of(row)
