"""Choices that are written as numbers: read where their coding is certain, else refused with the codings it may be."""

from __future__ import annotations

from collections.abc import Iterable

from alignment.data.preferences import choice_number
from alignment.data.row_files import BadRow
from alignment.errors import UserError
from alignment.labeling.formats.fields import ShownTask, ending
from alignment.labeling.formats.reading import SIDES, ImportOptions


def place_of(number: str, task: ShownTask, options: ImportOptions, is_labeled: bool) -> int:
    """The place of the answer that a number means, from 0.

    It is certain where an answer has this number in its name (`answer_0`), and else from 1 to the number of answers.
    One uncertain number in a file makes the others uncertain, so `options.numbers` takes each.

    Raises:
        BadRow: the number is not certain.
    """
    named = {place for place, answer in enumerate(task.answers) if number in (answer.text.strip(), answer.model)}
    place = _by_number(number, [ending(answer.key) for answer in task.answers])
    places = named | ({place} if place is not None else set())
    if len(places) == 1 and (place is None or is_labeled):
        return places.pop()
    is_certain = len(places) == 1 and _fits_labels(options)
    options.numbers[number] = is_certain and options.numbers.get(number, True)
    if not is_certain:
        raise BadRow(f"the choice {number} is a number whose meaning is not certain; {fix([number])}")
    return places.pop()


def _by_number(number: str, ends: list[str]) -> int | None:
    if number in ends:
        return ends.index(number)
    if any(end.isdigit() for end in ends) or not number.isdigit() or not 1 <= int(number) <= len(ends):
        return None
    return int(number) - 1


def _fits_labels(options: ImportOptions) -> bool:
    """Whether the labels leave 1 and 2 as they are: they name no number, or 0 alone and as no answer."""
    named = {word: ours for word, ours in options.labels.items() if choice_number(word) is not None}
    return all(word == "0" and ours.lower() not in (*SIDES, *"123456789") for word, ours in named.items())


def fix(numbers: Iterable[str]) -> str:
    """The option that says what numbers mean, in the two codings that are likely."""
    values = sorted({float(number.replace(",", ".").replace("\u2212", "-")): number for number in numbers}.items())
    if [name for _, name in values] == ["0"]:
        first, second = "0=tie", "0=a,1=b"
    elif [name for _, name in values] == ["0", "1", "2"]:
        first, second = "0=tie,1=a,2=b", "0=a,1=b,2=tie"
    else:
        low, high = values[0][0], values[-1][0]
        low = min(1.0, low) if low > 0 else -max(-low, high) if low < 0 else low
        high = max(-low, high) if low < 0 else high
        high = 2.0 if low == 1 and high < 2 else high
        middle = (low + high) / 2
        first, second = (
            ",".join(f"{name}={'tie' if value == middle else sides[value > middle]}" for value, name in values)
            for sides in ("ab", "ba")
        )
    other = f" or --labels='{second}'" if second != first else ""
    return f"say what each means with --labels='{first}'{other}"


def check_numbers(place: str, numbers: dict[str, bool]) -> None:
    """Refuse a file in which a number stands as a choice that is not certain.

    Args:
        place: where the first such number stands.
        numbers: each number that was seen, and whether it is certain by itself.

    Raises:
        UserError: with all numbers and two codings.
    """
    if not all(numbers.values()):
        seen = ", ".join(sorted(numbers, key=lambda number: float(number.replace(",", ".").replace("\u2212", "-"))))
        raise UserError(
            f"{place}: the choices are the numbers {seen}, and which answer each means is not certain; nothing was "
            f"imported: {fix(numbers)}"
        )
