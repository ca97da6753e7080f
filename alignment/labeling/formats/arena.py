"""Chatbot Arena and MT-bench: which of two models' conversations a person liked better."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from alignment.data.importers import PassedOver
from alignment.data.messages import messages_of, parsed
from alignment.data.row_files import BadRow
from alignment.labeling.entries import Entry, plain_turns
from alignment.labeling.formats.fields import ShownAnswer, ShownTask, first_key, listed, text_turn
from alignment.labeling.formats.reading import ImportOptions, Read, Row
from alignment.labeling.formats.voting import COMMENTS, Who, judged, labeler_of

DROPS = (
    "how much better (no row says it), times, languages and tags; conversations that differ before the last turn, "
    "whose answers have no prompt in common (counted). A judge that is a model is kept, as a simulated labeler"
)
_ONE_HOT = {
    "winner_model_a": "model_a",
    "winner_model_b": "model_b",
    "winner_tie": "tie",
    "winner_tie_bothbad": "both bad",
}


def recognises_arena(row: Row) -> bool:
    has_winner = "winner" in row or {"winner_model_a", "winner_model_b"} <= row.keys()
    texts = {"conversation_a", "conversation_b"}, {"response_a", "response_b", "prompt"}
    return has_winner and {"model_a", "model_b"} <= row.keys() and any(keys <= row.keys() for keys in texts)


def read_arena(row: Row, options: ImportOptions) -> Read:
    sides = [_conversation(row, side) for side in ("a", "b")]
    (prompt, first), (other_prompt, second) = sides
    if prompt != other_prompt:
        raise PassedOver("conversations that differ before the last turn")
    models = [str(row[key]) if row.get(key) not in (None, "") else None for key in ("model_a", "model_b")]
    task = ShownTask(
        prompt, (ShownAnswer("model_a", first, models[0]), ShownAnswer("model_b", second, models[1])), frozenset()
    )
    judge = parsed(row.get("judge", row.get("judge_hash", row.get("evaluation_session_id"))))
    simulated = isinstance(judge, list)  # MT-bench names a model with its prompt: ["gpt-4", "pair-v2"]
    name = " ".join(map(str, judge)) if isinstance(judge, list) else labeler_of(judge)
    comment = first_key(row, COMMENTS)
    who = Who(name, str(row[comment] or "") if comment else "")
    read = judged(task, _winner(row), who, options)
    if simulated and name:
        return [_simulated(entry, name) if isinstance(entry, Entry) else entry for entry in read]
    return read


def _simulated(entry: Entry, name: str) -> Entry:
    return replace(entry, simulated=frozenset([name]))


def _winner(row: Row) -> Any:
    if "winner" in row:
        return row["winner"]
    said = [word for key, word in _ONE_HOT.items() if str(row.get(key, 0)).strip().lower() in ("1", "1.0", "true")]
    if len(said) != 1:
        raise BadRow(f"{len(said)} of {', '.join(key for key in _ONE_HOT if key in row)} are 1; expected one")
    return said[0]


def _conversation(row: Row, side: str) -> tuple[list[dict[str, str]], str]:
    """The turns before a model's last answer, and that answer."""
    key = f"conversation_{side}"
    turns: Sequence[Mapping[str, Any]]
    if key in row:
        turns = plain_turns(messages_of({key: [text_turn(turn) for turn in listed(parsed(row[key]), key)]}, key))
        shown = row.get("turn")
        if isinstance(shown, int | float) and not isinstance(shown, bool) and 0 < 2 * shown < len(turns):
            turns = turns[: 2 * int(shown)]  # MT-bench has both turns in the rows on the first
    else:
        asked, answered = (_turns(row[name]) for name in ("prompt", f"response_{side}"))
        if len(asked) != len(answered):
            raise BadRow(f"'prompt' has {len(asked)} turns and 'response_{side}' {len(answered)}")
        if any(text is None or not str(text).strip() for text in (*asked, *answered)):
            raise PassedOver("an empty answer or question")
        pairs = zip(asked, answered, strict=True)
        turns = [
            {"role": role, "content": str(text)}
            for pair in pairs
            for role, text in zip(("user", "assistant"), pair, strict=True)
        ]
    if not turns or turns[-1]["role"] != "assistant":
        raise BadRow(f"the conversation of side {side} does not end with the assistant's turn")
    return [dict(turn) for turn in turns[:-1]], turns[-1]["content"]


def _turns(value: Any) -> list[Any]:
    value = parsed(value)
    return value if isinstance(value, list) else [value]
