"""Order the messages of a conversation by their times, or refuse where the times can be read in two ways."""

from __future__ import annotations

import contextlib
import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any

from alignment.data.opening import BadRow, DataError

TIME_KEYS = ("ts", "ts_day_first", "ts_month_first", "ts_utc")
"""The key of a message's time. `ts_day_first` and `ts_month_first` say how 01/02/2026 is read; these and `ts_utc` also
that times without a zone are UTC."""
_EPOCHS = {"seconds": 1.0, "milliseconds": 1e3, "microseconds": 1e6, "nanoseconds": 1e9}
_EARLIEST, _LATEST = 9e8, 4.2e9  # seconds: 1998 to 2103
_NUMERIC = re.compile(r"(\d{1,2})[/.-](\d{1,2})[/.-](\d{4}|\d\d)(?:,?\s+|T|$)(.*)")
_YEAR_FIRST = re.compile(r"(\d{4})[/.](\d{1,2})[/.](\d{1,2})(.*)")
_ZONE = re.compile(r"\s*(Z|UTC|GMT|[+-]\d\d:?\d\d)$")
_CLOCKS = ("%H:%M:%S.%f", "%H:%M:%S", "%H:%M", "%I:%M:%S %p", "%I:%M %p", "%I:%M%p", "%I %p", "%I%p")
_DAYS = ("%b %d, %Y", "%B %d, %Y", "%d %b %Y", "%d %B %Y", "%d-%b-%Y", "%d-%b-%y")
_WIDEST = (-14, 12)  # hours to add to the time of a place to get UTC


@dataclass(frozen=True)
class _Time:
    """A parsed time: a number; or a date that may be read `day_first` or `month_first`, with or without a zone."""

    number: float | None = None
    day_first: datetime | None = None
    month_first: datetime | None = None
    has_zone: bool = False

    def seconds(self, day_first: bool, offset: int) -> float:
        """Seconds; the date in a reading, `offset` hours added where it has no zone."""
        if self.number is not None:
            return self.number
        when = self.day_first if day_first else self.month_first
        assert when is not None
        return (when if self.has_zone else when + timedelta(hours=offset)).timestamp()


class TimeColumn:
    """All times of a file. How they are read is decided from all of them.

    Args:
        values: place and time of each message.
        key: one of TIME_KEYS.
        column: the name that the file gives it, for errors; None in a nested export.

    Raises:
        DataError: the dates contradict each other.
    """

    def __init__(self, values: Iterable[tuple[str, Any]], key: str = "ts", column: str | None = None) -> None:
        self.notes: list[str] = []
        self._key, self._column = key, column
        self._times: dict[Any, _Time | BadRow] = {}
        self._places: dict[Any, str] = {}
        for where, value in values:
            if _is_given(value) and value not in self._times:
                self._places[value] = where
                try:
                    self._times[value] = _parsed(value)
                except BadRow as reason:
                    self._times[value] = reason
        self._scale_numbers()
        self._day_first = self._decided_day_first()

    def order(self, values: Sequence[Any]) -> list[int]:
        """The indices of a conversation's messages in order of time; as they stand if they have no times.

        Raises:
            BadRow: a time is not understood, or some are missing and the others are not in order.
            DataError: the order depends on how the times are read.
        """
        rows = list(range(len(values)))
        if not any(map(_is_given, values)):
            return rows
        times = [self._times[value] if _is_given(value) else None for value in values]
        for time in times:
            if isinstance(time, BadRow):
                raise time
        given = [time for time in times if isinstance(time, _Time)]
        dates = [time for time in given if time.number is None]
        if dates and len(dates) < len(given):
            raise BadRow(f"'{self._key}' mixes dates and plain numbers in one conversation")
        orders = [self._ordered(times, *reading) for reading in self._readings(dates)]
        if any(order != orders[0] for order in orders):
            raise self._ambiguous(values)
        return orders[0]

    def _scale_numbers(self) -> None:
        """Read epoch times in their unit, which their size tells, if every number of the column is one."""
        numbers = {value: number for value, time in self._times.items() if (number := _number_of(time)) is not None}
        units = [_unit(number) for number in numbers.values()]
        if None in units:
            return  # other numbers, such as 1, 2, 3
        for (value, number), unit in zip(numbers.items(), units, strict=True):
            self._times[value] = _Time(number / _EPOCHS[str(unit)])
        if len(set(units)) > 1:
            named = [unit for unit in _EPOCHS if unit in units]
            self.notes.append(f"'{self._key}' holds {' and '.join(named)}; each is read by its size")

    def _decided_day_first(self) -> bool | None:
        """How numeric dates are read: as the key says, or as the one way that all of them allow; else None."""
        only = {True: "", False: ""}
        for value, time in self._times.items():
            if isinstance(time, _Time) and time.number is None:
                if time.month_first is None:
                    only[True] = only[True] or str(value)
                elif time.day_first is None:
                    only[False] = only[False] or str(value)
        if only[True] and only[False]:
            raise DataError(
                f"'{self._key}' has dates with the day first ({only[True]!r}) and with the month first "
                f"({only[False]!r}); write them as 2026-01-31T09:00"
            )
        shown = only[True] or only[False]
        if shown:
            self.notes.append(f"'{self._key}' has the {'day' if only[True] else 'month'} first, as {shown!r} shows")
        named = {"ts_day_first": True, "ts_month_first": False}.get(self._key)
        if named is not None and only[not named]:
            raise DataError(f"'{self._key}': {only[not named]!r} cannot be read so; leave out the renaming")
        return named if named is not None else True if only[True] else False if only[False] else None

    def _readings(self, dates: Sequence[_Time]) -> list[tuple[bool, int]]:
        """The ways to read the dates of a conversation: is the day first, and hours from local time to UTC."""
        is_open = self._day_first is None and any(time.day_first != time.month_first for time in dates)
        days = [True, False] if is_open else [self._day_first is not False]
        mixes_zones = len({time.has_zone for time in dates}) > 1 and self._key == "ts"
        # Between the two outermost zones the order of two times changes once, so these two tell of all.
        return list(itertools.product(days, _WIDEST if mixes_zones else (0,)))

    def _ordered(self, times: Sequence[_Time | BadRow | None], day_first: bool, offset: int) -> list[int]:
        rows = list(range(len(times)))
        lead = next(row for row in rows if times[row] is not None)  # a ticket's description may have no time
        seconds = {row: time.seconds(day_first, offset) for row, time in enumerate(times) if isinstance(time, _Time)}
        if len(seconds) < len(times) - lead:
            if sorted(seconds, key=seconds.__getitem__) != list(seconds):
                raise BadRow(f"some messages have no '{self._key}', and the others are not in order of time")
            return rows
        given = [seconds[row] for row in rows[lead:]]
        is_newest_first = given[0] > given[-1] and given == sorted(given, reverse=True)
        order = rows[lead:][::-1] if is_newest_first else rows[lead:]  # so that equal times are in order too
        return rows[:lead] + sorted(order, key=seconds.__getitem__)

    def _ambiguous(self, values: Sequence[Any]) -> DataError:
        given = [value for value in values if _is_given(value)]
        first = next((value for value in given if self._is_open(value)), None)
        if first is not None:
            problem = f"the order of this conversation depends on how {str(first)!r} is read"
            return DataError(f"{self._places[first]}: {problem}; {self._renaming('ts_month_first', 'ts_day_first')}")
        bare = next(value for value in given if not getattr(self._times[value], "has_zone", True))
        problem = (
            f"{str(bare)!r} has no time zone and others of this conversation have one, so their order is not known"
        )
        return DataError(f"{self._places[bare]}: {problem}; {self._renaming('ts_utc')}")

    def _renaming(self, key: str, other: str = "") -> str:
        """The fix: the name that says how the times are read."""
        if self._column is None:
            return "write all times as 2026-01-31T09:00Z"
        either = f", or {other}" if other else " if it is UTC"
        return f"rename the column: data.columns={{{key}: {self._column}}} (--column {key}={self._column}){either}"

    def _is_open(self, value: Any) -> bool:
        time = self._times[value]
        return isinstance(time, _Time) and self._day_first is None and time.day_first != time.month_first


def _is_given(value: Any) -> bool:
    return value is not None and value != ""


def _number_of(time: _Time | BadRow) -> float | None:
    return time.number if isinstance(time, _Time) else None


def _unit(number: float) -> str | None:
    return next((unit for unit, scale in _EPOCHS.items() if _EARLIEST <= number / scale <= _LATEST), None)


def _parsed(value: Any) -> _Time:
    """A time as number or date.

    Raises:
        BadRow: neither a number nor a known form of a date.
    """
    problem = BadRow(f"ts {value!r} is neither a number nor a time such as 2026-01-31T09:00")
    if isinstance(value, Mapping | list | bool):
        raise problem
    if isinstance(value, datetime):
        return _date(value, value)
    text = str(value).strip()
    with contextlib.suppress(ValueError):
        if math.isfinite(number := float(text)):
            return _Time(number)
    zone = _ZONE.search(text) if ":" in text else None
    bare = text[: zone.start()] if zone else text
    suffix = {"Z": "+00:00", "UTC": "+00:00", "GMT": "+00:00"}.get(zone[1], zone[1]) if zone else ""
    numeric = _NUMERIC.fullmatch(bare)
    if numeric:
        one, two, year, clock = numeric.groups()
        year = year if len(year) == 4 else f"20{year}"
        readings = [_at(f"{year}-{month:>02}-{day:>02}", clock, suffix) for day, month in ((one, two), (two, one))]
        if readings == [None, None]:
            raise problem
        return _date(*readings)
    year_first = _YEAR_FIRST.fullmatch(bare)
    if year_first:
        bare = f"{year_first[1]}-{year_first[2]:>02}-{year_first[3]:>02}{year_first[4]}"
    when = _iso(bare + suffix) or _named_month(bare, suffix) or _mail_date(text)
    if when is None:
        raise problem
    return _date(when, when)


def _date(day_first: datetime | None, month_first: datetime | None) -> _Time:
    known = day_first or month_first
    assert known is not None
    has_zone = known.tzinfo is not None
    # A time without a zone is UTC here: the machine's own zone must not decide.
    aware = [when if when is None or has_zone else when.replace(tzinfo=UTC) for when in (day_first, month_first)]
    return _Time(day_first=aware[0], month_first=aware[1], has_zone=has_zone)


def _iso(text: str) -> datetime | None:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return None


def _at(day: str, clock: str, suffix: str) -> datetime | None:
    """The time on an ISO day; `clock` may have AM or PM, or be empty."""
    for form in _CLOCKS if clock else ("",):
        try:
            when = datetime.strptime(f"{day} {clock}".strip(), f"%Y-%m-%d {form}".strip())
            return datetime.fromisoformat(when.isoformat() + suffix)
        except ValueError:
            continue
    return None


def _named_month(text: str, suffix: str) -> datetime | None:
    """`Jan 5, 2024 9:00 AM`, `5 January 2024`, with a weekday before it or a comma before the clock."""
    bare = re.sub(r"^[A-Za-z]{3,9},\s*|\s+at\b", "", text)
    for day, joint, clock in itertools.product(_DAYS, (" ", ", "), _CLOCKS):
        try:
            return datetime.fromisoformat(datetime.strptime(bare, f"{day}{joint}{clock}").isoformat() + suffix)
        except ValueError:
            continue
    return None


def _mail_date(text: str) -> datetime | None:
    try:
        return parsedate_to_datetime(text)
    except (ValueError, TypeError):
        return None
