"""Read and check the strings and turns of a row, in the dialects that chat files have."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from alignment.data.json_values import json_or_python
from alignment.data.keys import BY_NAME, HARMLESS_ELSEWHERE, is_empty, known_key, repeats
from alignment.data.marks import heeded_in_turns, is_marked_turn
from alignment.data.row_files import BadRow
from alignment.data.tool_calls import call_of, calls_in_text
from alignment.templates.rendering import Message

ROLES: dict[str, str] = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "prompter", "customer", "visitor", "client", "caller"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bing", "bard", "claude", "model", "bot", "ai"), "assistant"),
    **dict.fromkeys(("chatbot", "agent", "representative", "function_call", "tool_call"), "assistant"),
    **dict.fromkeys(("tool", "function", "observation", "ipython", "function_response", "tool_response"), "tool"),
}  # fmt: skip
"""The roles in files, in lower case, and ours."""
NOT_TRAINED = (*BY_NAME["weight"].names, *BY_NAME["train"].names)
"""Keys of an assistant's turn that say 0 or false where it is not to be trained on."""
REASONING = BY_NAME["reasoning_content"].names
_JUDGED = [name for key in ("rating", "label", "ranks", "chosen", "rejected") for name in BY_NAME[key].names]
_SENDER = ("role", "from", "speaker", "sender", "author", "sender_type", "author_role", "author_type", "sender_role")
_TEXT = ("content", "value", "text", "message", "utterance", "parts", "body")
_MEDIA = re.compile(r"image|audio|video|pixel")
_PLAIN = (frozenset({"role", "content"}), frozenset({"from", "value"}))
_OF_TURNS = frozenset((
    *_SENDER, *_TEXT, *REASONING, *NOT_TRAINED, *_JUDGED, *BY_NAME["mask"].names, *HARMLESS_ELSEWHERE,
    "tool_calls", "function_call", "tool_call_id", "name", "refusal", "channel",
))  # fmt: skip
"""The keys that are read in a turn, or refused by the reading of it."""

Turns = tuple[Message, ...]


class Chat(NamedTuple):
    """A conversation with the tools that the assistant may call, and what its row says that is not learned."""

    messages: Turns
    tools: tuple[dict[str, Any], ...] = ()
    notes: tuple[str, ...] = ()


class LongAnswer(str):
    """What follows a prompt where it is more than one plain turn: the text that people read, and its `turns`."""

    turns: Turns

    def __new__(cls, text: str, turns: Turns = ()) -> LongAnswer:
        answer = super().__new__(cls, text)
        answer.turns = turns
        return answer


def key_names(row: Mapping[str, Any]) -> str:
    return ", ".join(map(str, row)) or "none"


def text_of(row: Mapping[str, Any], key: str) -> str:
    """The string under a key.

    Raises:
        BadRow: it is missing, not a string, or empty.
    """
    if key not in row:
        raise BadRow(f"no key '{key}'; found the keys {key_names(row)} (data.columns renames)")
    return check_text(row[key], f"'{key}'")


def check_text(value: Any, name: str) -> str:
    """The value, if it is a non-empty string; `name` names it in errors."""
    if not isinstance(value, str):
        raise BadRow(f"{name} must be a string, found {type(value).__name__}")
    if not value.strip():
        raise BadRow(f"{name} is empty")
    if not value.isascii() and any("\ud800" <= char <= "\udfff" for char in value):
        raise BadRow(f"{name} holds half of a surrogate pair, which is no character")
    return value


def parsed(value: Any) -> Any:
    """A value that a table holds as JSON text (or as Python prints a list); any other value as it is."""
    if not isinstance(value, str) or value.lstrip()[:1] not in ("[", "{"):
        return value
    return json_or_python(value)


def holds_turns(value: Any) -> bool:
    """Whether a value is a list of turns, or one turn, rather than an answer that happens to be JSON."""
    items = value if isinstance(value, list) else [value]
    return bool(items) and all(
        isinstance(item, Mapping) and str(item.get("role", item.get("from"))).lower() in ROLES for item in items
    )


# --- turns -----------------------------------------------------------------------------------------------------------


def messages_of(row: Mapping[str, Any], key: str) -> Turns:
    """The conversation under a key: objects with a role and a text, or with `input` and `output`, or texts by turns.

    An empty system turn is left out.
    """
    return turns_in(list_of(row, key), key)


def turns_in(items: Sequence[Any], key: str) -> Turns:
    """As `messages_of`, of a list that was found under `key`."""
    if all(isinstance(item, str) for item in items):
        items = [{"role": ("user", "assistant")[index % 2], "content": item} for index, item in enumerate(items)]
    messages: list[Message] = []
    thought = None
    for index, item in enumerate(items, 1):
        name = f"message {index} of '{key}'"
        if (
            isinstance(item, Mapping)
            and item.get("type") == "reasoning"
            and not (item.get("summary") or item.get("content"))
        ):
            continue  # OpenAI's responses begin with one, mostly empty
        if not isinstance(item, Mapping):
            raise BadRow(f"{name} must be an object, found {type(item).__name__}")
        if thought is not None:
            item = {"reasoning_content": thought, **item}
        thought = _thought_before(item, items[index : index + 1])
        if thought is None:
            new = message_of(item, name)
            messages += _without_repeated_system(new, messages, name) if _is_exchange(item) else new
    if items and not messages:  # an empty system turn is left out
        raise BadRow(f"'{key}' has no turn with a text")
    return tuple(messages)


def _thought_before(item: Mapping[str, Any], after: Sequence[Any]) -> Any:
    """The reasoning that a turn in the channel `analysis` holds, if the next turn is the answer to it."""
    answer = after[0] if after and isinstance(after[0], Mapping) else {}
    is_thought = item.get("channel") == "analysis" and answer.get("channel") == "final"
    return item.get("content") if is_thought and item.get("role") == answer.get("role") else None


def _without_repeated_system(new: list[Message], before: list[Message], name: str) -> list[Message]:
    """The turns of an `input`, `output` object; a later one may repeat the system turn of the first.

    Raises:
        BadRow: it has another one.
    """
    if new[0]["role"] != "system" or not before:
        return new
    if new[0]["content"] != before[0]["content"]:
        raise BadRow(f"{name} has another 'system' than the first; only the first turn's is read, so split the row")
    return new[1:]


def list_of(row: Mapping[str, Any], key: str) -> Sequence[Any]:
    value = parsed(row[key])
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, list) or not value:
        raise BadRow(f"'{key}' must be a list of messages, found {type(value).__name__ if value else 'an empty one'}")
    return value


def message_of(item: Mapping[str, Any], name: str) -> list[Message]:
    """The turn, or turns, of an object in any dialect; `name` names it in errors."""
    if len(item) > 2:  # a Parquet column gives each turn the keys of all others, as null
        item = {key: value for key, value in item.items() if value is not None}
    if item.keys() in _PLAIN:
        sender, content = item.values() if next(iter(item)) in _SENDER else reversed(list(item.values()))
        role = ROLES.get(sender) if isinstance(sender, str) else None
        if isinstance(content, str) and role in ("user", "assistant") and not sender.endswith("_call"):
            return [Message(role=role, content=check_text(content, f"the content of {name}"))]
    if _is_exchange(item):
        rest = {key: value for key, value in item.items() if key not in ("input", "output", "system")}
        turns = [("system", item.get("system")), ("user", item["input"])]
        before = [turn for role, text in turns for turn in message_of({"role": role, "content": text}, name)]
        return [*before, *message_of({"role": "assistant", "content": item["output"], **rest}, name)]
    _refuse_media(item, name)
    _refuse_unread(item, name)
    sender = next((item[key] for key in _SENDER if item.get(key) is not None), None)
    role = ROLES.get(sender.strip().lower().replace(" ", "_")) if isinstance(sender, str) else None
    if sender is None:
        raise BadRow(
            f"{name} says under none of {', '.join(_SENDER)} who wrote it; it has the keys {key_names(item)[:120]}: "
            "name the roles in the file (user, assistant, ...), for --column renames keys of rows alone"
        )
    if role is None:
        raise BadRow(
            f"{name} has role {sender!r}; expected system, user, assistant, tool, or a usual name (human, gpt, ...)"
        )
    content = next((item[key] for key in _TEXT if item.get(key) is not None), None)
    if role == "system" and is_empty(content):
        return []
    return _messages(item, role, content, name, is_call=str(sender).strip().lower().endswith("_call"))


def _messages(item: Mapping[str, Any], role: str, content: Any, name: str, is_call: bool) -> list[Message]:
    parts = _Parts(content, name)
    calls = [call_of(call, name) for call in item.get("tool_calls") or []] + parts.calls
    if item.get("function_call"):
        calls.append(call_of(item["function_call"], name))
    text = parts.text
    if is_call:
        calls, text = calls_in_text(check_text(text, f"the content of {name}"), name), ""
    if is_empty(text) and item.get("refusal"):
        text = item["refusal"]
    if calls and role != "assistant":
        raise BadRow(f"{name} has tool_calls; only the assistant calls tools")
    if role == "tool" and not isinstance(text, str) and not is_empty(text):
        text = json.dumps(text, ensure_ascii=False)
    if parts.results and is_empty(text):
        return parts.results
    message = Message(role=role, content="" if calls and is_empty(text) else check_text(text, f"the content of {name}"))
    if calls:
        message["tool_calls"] = calls
    weight = _weight(item, role, name)
    if weight is not None:
        message["weight"] = weight
    for key in ("name", "tool_call_id"):
        if isinstance(item.get(key), str):
            message[key] = item[key]
    reasoning = next((item[key] for key in REASONING if not is_empty(item.get(key))), parts.reasoning)
    if reasoning and role == "assistant":
        message["reasoning_content"] = check_text(reasoning, f"the reasoning of {name}")
    return [*parts.results, message]


def _weight(item: Mapping[str, Any], role: str, name: str) -> int | None:
    """0 or 1 where a turn of the assistant's says whether it is trained on; other turns never are."""
    if any(item.get(key) for key in BY_NAME["mask"].names):
        raise BadRow(
            f"{name} has a mask of parts that are not trained on, which is not read; give whole turns `weight: 0`"
        )
    judged = next((key for key in _JUDGED if not is_empty(item.get(key))), None)
    if judged is not None and role == "assistant":
        raise BadRow(
            f"{name} has '{judged}' ({BY_NAME[judged].about}), which is not read of a turn; take the key out, and give "
            "turns that are not to be learned `weight: 0`"
        )
    said = [(key, item[key]) for key in NOT_TRAINED if item.get(key) is not None]
    names = [key for key in item if key not in _OF_TURNS] if role != "system" else []
    if names and is_marked_turn(item, names, role, name):
        said.append(("weight", 0))
    for key, value in said:
        if value not in (0, 1) or (role != "assistant" and value):
            raise BadRow(f"{name} has {key} {value!r}; expected 0 or 1, on an assistant's message")
    return int(all(value for _, value in said)) if said and role == "assistant" else None


def _is_exchange(item: Mapping[str, Any]) -> bool:
    return "input" in item and "output" in item and not any(key in item for key in _SENDER)


def _refuse_unread(item: Mapping[str, Any], name: str) -> None:
    """Refuse a turn with a key of known meaning that is read of rows only, or with what is no answer."""
    texts = [item.get(key) for key in _TEXT]
    for key, value in item.items():
        known = None if key in _OF_TURNS or is_empty(value) or value is False else known_key(key)
        if known is not None and not (known.may_repeat and repeats(value, texts)):
            raise BadRow(
                f"{name} has '{key}' ({known.about}), which is not read of a turn; move it to the row, or take it out"
            )
    if item.get("channel") not in (None, "", "final"):
        raise BadRow(
            f"{name} is in the channel {item['channel']!r}, which is no answer; write it as 'reasoning_content' of the "
            "answer after it, or take it out"
        )


def unused_of_turns(row: Mapping[str, Any]) -> set[str]:
    """The keys of the turns in a row that mean nothing to us."""
    return {
        str(key)
        for value in row.values()
        if isinstance(value, list) and value and isinstance(value[0], Mapping)
        if _is_exchange(value[0]) or holds_turns(value[:1])
        for item in value
        if isinstance(item, Mapping) and item.keys() not in _PLAIN
        for key, held in item.items()
        if held is not None and key not in _OF_TURNS and not known_key(key) and not heeded_in_turns(key)
    }


def _refuse_media(item: Mapping[str, Any], name: str) -> None:
    for key, value in item.items():
        if isinstance(key, str) and _MEDIA.match(key) and not is_empty(value):
            raise BadRow(f"{name} has '{key}': images, films and sound are not supported; take such rows out")


class _Parts:
    """What a turn's content holds: a text, or a list of parts as OpenAI's and Anthropic's."""

    def __init__(self, content: Any, name: str) -> None:
        self.calls: list[dict[str, Any]] = []
        self.results: list[Message] = []
        self.reasoning: str | None = None
        self.text: Any = content
        if isinstance(content, list):
            texts = [text for part in content if (text := self._read(part, name)) is not None]
            self.text = joined(texts)

    def _read(self, part: Any, name: str) -> str | None:
        if isinstance(part, str):
            return check_text(part, f"a part of {name}")
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind in ("thinking", "reasoning"):
            self.reasoning = part.get("thinking", part.get("text", part.get("reasoning")))
        elif kind == "tool_use":
            self.calls.append(call_of({key: part.get(key) for key in ("id", "name", "input")}, name))
        elif kind == "tool_result":
            inner = _Parts(part.get("content"), name).text
            text = inner if isinstance(inner, str) else json.dumps(inner, ensure_ascii=False)
            result = Message(role="tool", content=check_text(text, f"a tool's result in {name}"))
            if isinstance(part.get("tool_use_id"), str):
                result["tool_call_id"] = part["tool_use_id"]
            self.results.append(result)
        elif isinstance(part, Mapping) and isinstance(part.get("text", part.get("refusal")), str):
            _refuse_media(part, f"a part of {name}")
            if part.get("text") == "":
                return None
            return check_text(part.get("text", part.get("refusal")), f"a part of {name}")
        elif isinstance(kind, str):
            raise BadRow(
                f"{name} has a part of type {kind!r}: only texts are read, images are not supported; take such rows out"
            )
        else:
            raise BadRow(f"a part of {name} must have a 'text', found {str(part)[:60]}")
        return None


def joined(texts: Sequence[str]) -> str:
    """Parts of one turn as one text: paragraphs of their own, unless the parts hold white space where they meet."""
    text = ""
    for part in texts:
        apart = not text or text[-1].isspace() or part[0].isspace()
        text += part if apart else f"\n\n{part}"
    return text


def with_answer(prompt: Turns, answer: str) -> Turns:
    """The conversation followed by the assistant's answer."""
    return (*prompt, *answer_turns(answer))


def answer_turns(answer: str) -> Turns:
    """The turns of an answer: one of the assistant's, unless it is a `LongAnswer` of several."""
    return getattr(answer, "turns", ()) or (Message(role="assistant", content=answer),)


def answer_of(turns: Turns) -> str:
    """Turns after a prompt as one answer, which is a plain string where they are one plain turn."""
    if len(turns) == 1 and turns[0].keys() == {"role", "content"}:
        return turns[0]["content"]
    return LongAnswer("\n\n".join(_shown(turns)), turns)


def _shown(turns: Turns) -> Iterator[str]:
    for index, turn in enumerate(turns):
        calls = [json.dumps(call["function"], ensure_ascii=False) for call in turn.get("tool_calls", ())]
        text = "\n".join(part for part in (turn["content"], *calls) if part)
        yield text if index == 0 else f"{turn['role'].capitalize()}: {text}"


def split_answer(messages: Turns) -> tuple[Turns, str]:
    """The turns before the assistant's last turn, and that turn's content."""
    check_ends(messages)
    return messages[:-1], messages[-1]["content"]


def check_ends(messages: Turns) -> None:
    """Refuse a conversation that does not end with an answer to something."""
    if not messages or messages[-1]["role"] != "assistant":
        raise BadRow("the conversation must end with the assistant's turn")
    if len(messages) < 2:
        raise BadRow("the conversation has no turn before the assistant's")


def merge_turns(messages: Sequence[Message]) -> Turns:
    """Merge consecutive turns of one role; drop turns before the first question and after the last answer."""
    turns: list[Message] = []
    for message in messages:
        if turns and turns[-1]["role"] == message["role"]:
            turns[-1] = Message(role=message["role"], content=f"{turns[-1]['content']}\n{message['content']}")
        elif turns or message["role"] != "assistant":
            turns.append(Message(role=message["role"], content=message["content"]))
    while turns and turns[-1]["role"] != "assistant":
        turns.pop()
    return tuple(turns)
