"""Judgments in the replies of a chat model: one JSON object, asked for again where it cannot be read."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from alignment.errors import UserError
from alignment.generation.chat_models import ChatModel, Failure, ReplySampling
from alignment.templates.rendering import Message

TRIES = 3
"""Replies that are read before a judgment is given up."""
MAX_REPLY_TOKENS = 512
_FENCED = re.compile(r"\s*```(?:json)?\s*(.*?)\s*```\s*", re.DOTALL | re.IGNORECASE)


class Choice(NamedTuple):
    """The choice that a reply must make: the key of its JSON object, and the values that it may have."""

    key: str
    values: tuple[str, ...]

    @property
    def schema(self) -> Mapping[str, Any]:
        """The reply's JSON schema: a sentence with the reason, then the choice."""
        return {
            "type": "object",
            "properties": {"reason": {"type": "string"}, self.key: {"type": "string", "enum": list(self.values)}},
            "required": ["reason", self.key],
            "additionalProperties": False,
        }

    def read(self, text: str) -> str | None:
        """The choice of a reply; None unless it is one JSON object, alone or in a code fence, with a right value."""
        try:
            said = json.loads(unfenced(text))
        except (ValueError, RecursionError):
            return None
        value = said.get(self.key) if isinstance(said, dict) else None
        return value if value in self.values else None


def ask_choice(model: ChatModel, text: str, choice: Choice, name: str) -> str | None:
    """What a model chooses; greedy first, then sampled. None where no reply could be read.

    Args:
        name: who judges, for the error.

    Raises:
        UserError: the model's server refuses.
    """
    messages = [Message(role="user", content=text)]
    for attempt in range(TRIES):
        sampling = ReplySampling(0.0 if attempt == 0 else 0.7, attempt, MAX_REPLY_TOKENS, choice.schema)
        (reply,) = model.ask([messages], sampling)
        if isinstance(reply, Failure):
            raise UserError(f"{name}: {reply.reason}; what was judged before is kept")
        said = choice.read(reply.text)
        if said is not None:
            return said
    return None


def unfenced(text: str) -> str:
    """A text without the Markdown code fence around it, if it stands in one."""
    fenced = _FENCED.fullmatch(text)
    return fenced[1] if fenced else text


def request_text(messages: Sequence[Message]) -> str:
    """What was asked, as a judge reads it: one question as it is, a conversation with its roles."""
    if len(messages) == 1:
        return messages[0]["content"]
    return "\n\n".join(f"[{message['role']}] {message['content']}" for message in messages)
