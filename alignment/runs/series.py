"""Metrics over steps, in arrays: a journal of a million lines takes 8 bytes for each value, and no more for its steps.

`SeriesTable` reads a whole journal; a `Series` can also grow step by step, as that of a run that is watched.
"""

from __future__ import annotations

import math
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MAX_MAGNITUDE = 1e300
"""Larger values count as not finite: the span of a chart's axis would overflow."""


class Series:
    """A metric over the steps that have it; a value that was not finite is None."""

    def __init__(self, steps: Sequence[int] = (), values: Sequence[float | None] = ()) -> None:
        self._steps = array("q", steps)
        self._values = array("d", (math.nan if value is None else value for value in values))

    @classmethod
    def of(cls, steps: array[int], values: array[float]) -> Series:
        """A series of these very arrays, NaN for None; other series may share the steps, so it must not grow."""
        series = cls()
        series._steps, series._values = steps, values
        return series

    def __len__(self) -> int:
        return len(self._steps)

    @property
    def steps(self) -> Sequence[int]:
        return self._steps

    @property
    def values(self) -> list[float | None]:
        return [None if value != value else value for value in self._values]

    @property
    def as_array(self) -> NDArray[np.float64]:
        """The values, (number of steps,), NaN for None."""
        import numpy as np  # imported late, as in `journal.py`

        return np.frombuffer(self._values, dtype=np.float64) if len(self._values) else np.zeros(0)

    @property
    def first(self) -> float | None:
        """The first finite value."""
        return next((value for value in self._values if value == value), None)

    @property
    def last(self) -> float | None:
        """The last finite value."""
        return next((value for value in reversed(self._values) if value == value), None)

    def __eq__(self, other: object) -> bool:
        """Equal steps and values; values that are not finite are equal to each other."""
        if not isinstance(other, Series):
            return NotImplemented
        return self._steps == other._steps and self._values.tobytes() == other._values.tobytes()

    @property
    def last_point(self) -> tuple[int, float] | None:
        """The last step with a finite value, and the value."""
        pairs = zip(reversed(self._steps), reversed(self._values), strict=True)
        return next(((step, value) for step, value in pairs if value == value), None)

    @property
    def num_finite(self) -> int:
        import numpy as np

        return int(np.isfinite(self.as_array).sum())

    @property
    def first_not_finite(self) -> int | None:
        """The first step whose value is not finite."""
        import numpy as np

        where = np.flatnonzero(np.isnan(self.as_array))
        return int(self._steps[int(where[0])]) if len(where) else None

    def finite(self) -> Iterator[tuple[int, float]]:
        """Steps and values, without those that are not finite."""
        return ((step, value) for step, value in zip(self._steps, self._values, strict=True) if value == value)

    def at(self, step: int) -> float | None:
        """The finite value of a step."""
        index = bisect_left(self._steps, step)
        if self._steps[index : index + 1] != array("q", [step]) or math.isnan(self._values[index]):
            return None
        return self._values[index]

    def insert(self, step: int, value: float | None) -> None:
        """Insert a value in step order; a second value for a step replaces the first.

        The evaluation of the best model is written last and belongs to an earlier step.
        """
        stored = math.nan if value is None else value
        if not self._steps or step > self._steps[-1]:
            self._steps.append(step)
            self._values.append(stored)
            return
        index = bisect_left(self._steps, step)
        if self._steps[index] == step:
            self._values[index] = stored
        else:
            self._steps.insert(index, step)
            self._values.insert(index, stored)


class Times(MutableMapping[int, float]):
    """Seconds since the epoch by step, in the order of the steps."""

    def __init__(self, times: Series | None = None) -> None:
        self._series = Series() if times is None else times

    def __getitem__(self, step: int) -> float:
        if (time := self._series.at(step)) is None:
            raise KeyError(step)
        return time

    def __setitem__(self, step: int, time: float) -> None:
        self._series.insert(step, time)

    def __delitem__(self, step: int) -> None:
        raise TypeError("times are only added")

    def __iter__(self) -> Iterator[int]:
        return iter(self._series.steps)

    def __len__(self) -> int:
        return len(self._series)

    @property
    def last_step(self) -> int:
        """The highest step; 0 if there is none."""
        return self._series.steps[-1] if len(self._series) else 0

    def recent(self, count: int) -> list[int]:
        """The last so many steps."""
        return list(self._series.steps[-count:])


class SeriesTable:
    """Series of many rows. Rows with the same metrics are one block, whose steps are stored once."""

    def __init__(self, rows: Iterable[Mapping[str, Any]] = ()) -> None:
        self._blocks: dict[tuple[str, ...], _Block] = {}
        self._times = _Block(("time",))
        self._num_rows = 0
        for row in rows:
            self.add(row)

    def add(self, row: Mapping[str, Any]) -> None:
        """Add a row of metrics.jsonl; fields that are not numbers are ignored."""
        step = row.get("step")
        if not isinstance(step, int) or abs(step) >= 1 << 62:
            return
        names, values = [], []
        for name, value in row.items():
            if (value is None or isinstance(value, int | float)) and name not in ("step", "time"):
                names.append(name)
                values.append(value if value is not None and abs(value) < MAX_MAGNITUDE else math.nan)
        key = tuple(names)
        block = self._blocks.get(key)
        if block is None:
            block = self._blocks[key] = _Block(key)
        block.add(step, self._num_rows, values)
        time = row.get("time")
        self._times.add(step, self._num_rows, [float(time) if isinstance(time, int | float) else 0.0])
        self._num_rows += 1

    def times(self) -> Times:
        return Times(_merged([self._times], {})["time"])

    def series(self) -> dict[str, Series]:
        """The series by name; the table is empty afterwards."""
        blocks, self._blocks = list(self._blocks.values()), {}
        in_order = dict.fromkeys(name for block in blocks for name in block.columns)
        merged: dict[str, Series] = {}
        together: dict[tuple[int, ...], list[str]] = {}
        for name in in_order:
            holders = tuple(index for index, block in enumerate(blocks) if name in block.columns)
            together.setdefault(holders, []).append(name)
        for holders, names in together.items():
            merged |= _merged([blocks[index] for index in holders], dict.fromkeys(names))
        return {name: merged[name] for name in in_order}


class _Block:
    """Rows with the same metrics."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.steps, self.rows = array("q"), array("q")
        self.columns = {name: array("d") for name in names}
        self._appends = [column.append for column in self.columns.values()]

    def add(self, step: int, row: int, values: Sequence[float]) -> None:
        self.steps.append(step)
        self.rows.append(row)
        for append, value in zip(self._appends, values, strict=True):
            append(value)


def _merged(blocks: Sequence[_Block], names: Mapping[str, None]) -> dict[str, Series]:
    """Series of metrics that are all in each of these blocks, in step order; of two values of a step the later stays.

    The columns leave the blocks.
    """
    import numpy as np

    wanted = list(names) or list(blocks[0].columns)
    steps = np.concatenate([np.array(block.steps, dtype=np.int64) for block in blocks])
    if len(blocks) == 1 and (np.diff(steps) > 0).all():
        return {name: Series.of(blocks[0].steps, blocks[0].columns.pop(name)) for name in wanted}
    order = np.lexsort((np.concatenate([np.array(block.rows, dtype=np.int64) for block in blocks]), steps))
    steps = steps[order]
    order = order[np.append(steps[1:] != steps[:-1], True)[: len(steps)]]
    shared = array("q", np.unique(steps).tobytes())
    found = {}
    for name in wanted:
        parts = [np.frombuffer(block.columns.pop(name), dtype=np.float64) for block in blocks]
        found[name] = Series.of(shared, array("d", np.concatenate(parts)[order].tobytes()))
    return found
