"""Find the prompt and its answers among the keys of a row, by the names that people give them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from alignment.data import formats
from alignment.data.annotations import parsed
from alignment.data.importers import PassedOver
from alignment.data.keys import BY_NAME
from alignment.data.messages import check_text, key_names, messages_of
from alignment.data.questions import alpaca_prompt
from alignment.data.row_files import BadRow
from alignment.labeling.entries import plain_turns
from alignment.labeling.formats.reading import SIDES, ImportOptions, Row

PROMPTS = (
    "prompt", "question", "instruction", "query", "userprompt", "userquery", "usermessage", "userinput", "context",
    "conversation", "messages", "history", "input", "request", "post", "article", "document", "source",
)  # fmt: skip
SINGLES = ("completion", "response", "answer", "output", "reply", "generation", "modelresponse", "modeloutput")
LISTS = ("completions", "responses", "answers", "outputs", "candidates", "generations", "options", "items", "texts")
_STEMS = (
    "answer|response|reply|output|completion|candidate|generation|option|text|summary|translation|message|item|result|"
    "continuation|side|"
)
_ENDS = "[a-i]|[0-9]|left|right|first|second|third"
_SLOT = re.compile(f"({_STEMS})({_ENDS})")
_MODELS = ("model", "generator", "modelname", "system")
_CONTENT = ("text", "content", "response", "answer", "completion", "body", "value", "html", "title")


class ShownAnswer(NamedTuple):
    """An answer of a row: its key there, its text, and the model that gave it."""

    key: str
    text: str
    model: str | None = None


class ShownTask(NamedTuple):
    """What labelers saw: the prompt and its answers, and the row's keys that hold them."""

    prompt: list[dict[str, str]]
    answers: tuple[ShownAnswer, ...]
    used: frozenset[str] = frozenset()


def plain(name: object) -> str:
    """A key or a word in lower case, letters and digits alone: `Response_A` is `responsea`."""
    return re.sub(r"[\W_]+", "", str(name).lower())


_SYSTEM = tuple(plain(name) for name in BY_NAME["system"].names)


def first_key(row: Row, names: Sequence[str], holds: Callable[[Any], bool] = lambda value: True) -> str | None:
    """The row's key that is the first of these names, however it is written."""
    found = {plain(key): key for key in reversed(list(row)) if holds(row[key])}
    return next((found[name] for name in names if name in found), None)


def named_key(row: Row, role: str, names: Sequence[str], options: ImportOptions) -> str | None:
    """The key that the user named for a role, or else the first of these names."""
    return options.key(role, row) or first_key(row, names)


def filled(value: Any) -> bool:
    return value not in (None, "", [], {})


def listed(value: Any, name: str) -> list[Any]:
    """The list, empty where there is none.

    Raises:
        BadRow: it is something else.
    """
    if not isinstance(value, list | None):
        raise BadRow(f"'{name}' must be a list, found a {type(value).__name__}")
    return value or []


def object_of(value: Any, name: str) -> Mapping[str, Any]:
    """The object; raises BadRow if it is none."""
    value = parsed(value)
    if not isinstance(value, Mapping):
        raise BadRow(f"'{name}' must be an object, found a {type(value).__name__}")
    return value


def text_turn(turn: Any) -> Any:
    """A turn whose content is a list of parts, as a text."""
    content = turn.get("content") if isinstance(turn, Mapping) else None
    if not isinstance(content, list):
        return turn
    parts = [object_of(part, "content") for part in content]
    if any(part.get("type", "text") != "text" for part in parts):
        raise PassedOver("a conversation with images or files, which are not supported")
    return {**turn, "content": "\n".join(str(part.get("text") or "") for part in parts)}


# --- the prompt ----------------------------------------------------------------------------------------------------


def turns_of(value: Any, name: str) -> list[dict[str, str]]:
    """A prompt: a question, a transcript (`\\n\\nHuman: ...`) or a list of messages."""
    value = parsed(value)
    if isinstance(value, list) and all(isinstance(turn, Mapping) for turn in value):
        return plain_turns(messages_of({name: [text_turn(turn) for turn in value]}, name))
    if isinstance(value, list) and value and all(isinstance(turn, str) for turn in value):
        roles = ("user", "assistant") * len(value)
        return [{"role": role, "content": check_text(turn, name)} for role, turn in zip(roles, value, strict=False)]
    text = check_text(value, f"'{name}'")
    if re.match(r"\s*\n\nHuman:", text):
        return plain_turns(formats.parse_transcript(re.sub(r"\n\nAssistant:\s*$", "", text)))
    return [{"role": "user", "content": text}]


def prompt_of(row: Row, options: ImportOptions) -> tuple[list[dict[str, str]], set[str]]:
    """The prompt of a row, and the keys that hold it.

    Raises:
        BadRow: there is none, or it ends with an answer.
    """
    key = options.key("prompt", row) or first_key(row, PROMPTS, filled)
    if key is None:
        raise BadRow(f"no prompt among the keys {key_names(row)}; name it with --columns prompt=KEY")
    turns, used = turns_of(row[key], key), {key}
    extra = first_key(row, ("input",))
    if plain(key) == "instruction" and extra and len(turns) == 1:
        turns = plain_turns(alpaca_prompt(turns[0]["content"], row[extra]))
        used.add(extra)
    system = first_key(row, _SYSTEM, lambda value: isinstance(value, str) and bool(value.strip()))
    if system == "instructions" and plain(key) == "input":
        raise BadRow("'instructions' beside 'input' is the system turn or the task; name it with --columns prompt=KEY")
    if system and turns[0]["role"] != "system":
        turns.insert(0, {"role": "system", "content": row[system]})
        used.add(system)
    if turns[-1]["role"] == "assistant":
        raise BadRow(f"'{key}' ends with the assistant's turn; the prompt ends with the user's")
    return turns, used


# --- the answers ---------------------------------------------------------------------------------------------------


def answer_of(value: Any, name: str, key: str | None = None) -> ShownAnswer:
    """An answer: a text, an object with one, or a list with one message of the assistant's."""
    value = _turns_or_text(value)
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, list):
        raise BadRow(f"'{name}' has {len(value)} messages; an item to rate takes one answer of the assistant's")
    if isinstance(value, Mapping):
        if value.get("role") not in (None, "assistant"):
            raise BadRow(f"'{name}' is a turn of the {value['role']}'s; expected the assistant's")
        inner = first_key(value, _CONTENT, lambda each: isinstance(each, str))
        model = value.get("model") or value.get("model_name") or value.get("generator")
        return ShownAnswer(key or name, check_text(value.get(inner), name), model if isinstance(model, str) else None)
    if isinstance(value, bool | int | float):  # a CSV reader takes the answer 42 for a number
        value = str(value)
    return ShownAnswer(key or name, check_text(value, f"'{name}'"))


def _turns_or_text(value: Any) -> Any:
    """A message or a list that a table holds as text; an answer that happens to be JSON or code stays a text."""
    inner = parsed(value)
    if isinstance(inner, Mapping):
        return inner if "role" in inner or first_key(inner, _CONTENT) else value
    if isinstance(inner, list):
        kept = bool(inner) and all(isinstance(each, Mapping | str) for each in inner)
        return inner if kept or not isinstance(value, str) else value
    return inner


def slot_keys(row: Row) -> list[str]:
    """The keys of answers side by side, as `answer_a` and `answer_b`; the largest group of one stem."""
    groups: dict[str, list[str]] = {}
    for key in row:
        match = _SLOT.fullmatch(plain(key))
        if match and (isinstance(row[key], str | int | float | list | Mapping)):
            groups.setdefault(match[1], []).append(key)
    sides = max(groups.values(), key=len, default=[])
    return sorted(sides, key=lambda key: _place(ending(key))) if len(sides) > 1 else []


def ending(name: object) -> str:
    """What tells the sides of a name apart: `b` of `Response B`, `1` of `answer1`; "" if there is no such end."""
    match = re.fullmatch(f"(?:(?:{_STEMS}|model|assistant|chatbot|system|the)*)({_ENDS}|one|two)", plain(name))
    return match[1] if match else ""


def _place(end: str) -> int:
    words = {"left": 0, "right": 1, "first": 0, "second": 1, "third": 2}
    return words.get(end, int(end) if end.isdigit() else ord(end[0]) - ord("a"))


def _answers(row: Row, options: ImportOptions) -> tuple[ShownAnswer, ...]:
    if keys := [key for side in SIDES if (key := options.key(side, row))]:
        return tuple(
            with_model(answer_of(row[key], key), side, row, options) for side, key in zip(SIDES, keys, strict=False)
        )
    if key := options.key("completion", row):
        return (with_model(answer_of(row[key], key), "", row, options),)
    listed = options.key("completions", row)
    slots = [] if listed else slot_keys({key: value for key, value in row.items() if filled(value)})
    if slots:
        return tuple(with_model(answer_of(row[key], key), ending(key), row, options) for key in slots)
    listed = listed or first_key(row, LISTS, lambda value: isinstance(parsed(value), list) and len(parsed(value)) > 1)
    if listed:
        each = enumerate(parsed(row[listed]), 1)
        return tuple(answer_of(value, f"answer {number} of '{listed}'", str(number)) for number, value in each)
    single = first_key(row, SINGLES, filled)
    if single:
        return (with_model(answer_of(row[single], single), "", row, options),)
    if empty := slot_keys({key: value if filled(value) else "-" for key, value in row.items()}):
        missing = next((key for key in empty if not filled(row[key])), empty[0])
        raise BadRow(
            f"'{missing}' is empty; take the line out (a line of totals, or a note?), or write the answer there"
        )
    raise BadRow(
        f"no answers among the keys {key_names(row)}; name them with --columns a=KEY,b=KEY (or completion=KEY)"
    )


def with_model(answer: ShownAnswer, end: str, row: Row, options: ImportOptions) -> ShownAnswer:
    """The answer with the model that the row names for this side, as in `model_a`."""
    role = f"model_{end}" if end in SIDES else "model"
    key = options.key(role, row) or first_key(row, [name + end for name in _MODELS if end or name == "model"])
    model = row[key] if key else None
    return answer._replace(model=model) if isinstance(model, str) and model else answer


def task_of(row: Row, options: ImportOptions) -> ShownTask:
    """The prompt and the answers of a row.

    Raises:
        BadRow: there is none, or it cannot be told which key it is.
    """
    for role in ("prompt", *SIDES, "completion", "completions"):
        options.key(role, row)  # a wrong name is an error before anything is looked for
    prompt, used = prompt_of(row, options)
    answers = _answers({key: value for key, value in row.items() if key not in used}, options)
    models = {key for key in row if plain(key).rstrip("abcdefghi0123456789") in _MODELS}
    lists = {key for key in row if plain(key) in LISTS or key == options.columns.get("completions")}
    return ShownTask(prompt, answers, frozenset(used | {answer.key for answer in answers} | models | lists))
