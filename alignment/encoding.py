"""A record as token ids, whole: what training, its check and the preview all start from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alignment.data import Comparison, Demonstration, Document, Prompt
from alignment.templates import Encoded, Message, encode_conversation, encode_prompt, encode_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Record = Demonstration | Document | Comparison | Prompt


def encode_record(record: Record, tokenizer: PreTrainedTokenizerBase) -> Encoded:
    """All tokens of a record; of a comparison those of its longer side.

    Raises:
        Unrenderable: the template cannot render this record.
        TemplateError: the template or tokenizer cannot render any.
    """
    if isinstance(record, Document):
        ids = encode_text(tokenizer, record.text)
        return Encoded(ids, [True] * len(ids))
    if isinstance(record, Prompt):
        ids = encode_prompt(tokenizer, record.messages)
        return Encoded(ids, [False] * len(ids))
    if isinstance(record, Comparison):
        sides = [(*record.prompt, Message(role="assistant", content=text)) for text in (record.first, record.second)]
        both = [encode_conversation(tokenizer, side) for side in sides]
        return max((side for side in both if side is not None), key=lambda side: len(side.input_ids))
    encoded = encode_conversation(tokenizer, record.messages, tools=record.tools)
    assert encoded is not None  # nothing is left out without max_length
    return encoded
