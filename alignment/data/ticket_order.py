"""Refuse ticket files whose order stands in a column that is not read."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from alignment.data.opening import BadRow, DataError
from alignment.data.times import TimeColumn

_EARLIEST_EPOCH = 9e8
"""Numbers from here on are seconds (1998) or smaller units, as `alignment.data.times` reads them."""


def refuse_lost_order(conversations: Sequence[Sequence[tuple[str, Mapping[str, Any]]]]) -> None:
    """Refuse conversations that a column which is not read would put in another order than the file's.

    Args:
        conversations: place and columns that are not read, of each message; none where times are read.

    Raises:
        DataError: names the column and the two ways out.
    """
    for name in dict.fromkeys(name for messages in conversations for _, rest in messages for name in rest):
        values = [
            [rest[name] for _, rest in messages if rest.get(name) not in (None, "")] for messages in conversations
        ]
        if not str(name).lower().endswith("id") and _reorders(values):
            raise DataError(
                f"{conversations[0][0][0]}: '{name}' looks like the time or the number of a message and gives another "
                f"order than the file's; --column ts={name} sorts by it, --column {name}= leaves it out"
            )


def _reorders(conversations: Sequence[Sequence[Any]]) -> bool:
    """Whether all values are dates or numbers of messages that are not in order in some conversation."""
    values = [value for conversation in conversations for value in conversation]
    if not values or any(isinstance(value, bool | list | dict) for value in values):
        return False
    numbers = [[_number(value) for value in conversation] for conversation in conversations]
    are_numbers = {number is not None for conversation in numbers for number in conversation}
    if len(are_numbers) > 1 or (True in are_numbers and not all(map(_counts, numbers))):
        return False
    try:
        column = TimeColumn(("", value) for value in values)
        return any(column.order(conversation) != list(range(len(conversation))) for conversation in conversations)
    except BadRow:
        return False
    except DataError:
        return True  # dates whose order depends on how they are read


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _counts(numbers: Sequence[float | None]) -> bool:
    """Whether numbers count the messages of a conversation, in any order, or are epoch times."""
    given = sorted(number for number in numbers if number is not None)
    return all(number > _EARLIEST_EPOCH for number in given) or all(
        after - before == 1 for before, after in itertools.pairwise(given)
    )
