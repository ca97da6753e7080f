"""Line charts in braille characters, for the terminal."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from alignment.runs.record import Series

_DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))
"""Bits of a braille cell by column and by row from the top."""


def chart(series: Series, width: int, height: int, ascii_only: bool = False) -> list[str]:
    """Draw a series over its steps, from the minimum at the bottom to the maximum at the top.

    Each column of dots spans all values of its steps, so that a spike of one step stays visible. A value that is not
    finite leaves a gap.

    Args:
        width, height: in characters; a braille one has 2 by 4 dots, an ASCII one 1 by 2.
    """
    across, down = (1, 2) if ascii_only else (2, 4)
    dots = np.zeros((height * down, width * across), dtype=bool)
    values = series.as_array
    steps = np.array(series.steps, dtype=np.float64)
    if np.isfinite(values).any():
        with np.errstate(all="ignore"):  # values whose difference overflows are not drawn
            _draw(dots, steps, values)
    cells = dots.reshape(height, down, width, across).transpose(0, 2, 3, 1)  # row, column, dot column, dot row
    if ascii_only:
        return ["".join(" .':"[int(cell[0, 1]) + 2 * int(cell[0, 0])] for cell in row) for row in cells]
    codes = (cells * np.array(_DOTS)).sum(axis=(2, 3))
    return ["".join(chr(0x2800 + int(code)) if code else " " for code in row) for row in codes]


def _draw(dots: NDArray[np.bool_], steps: NDArray[np.float64], values: NDArray[np.float64]) -> None:
    rows, columns = dots.shape
    low, high = np.nanmin(values), np.nanmax(values)
    fraction = (high - values) / (high - low) if high > low else np.where(np.isnan(values), np.nan, 0.5)
    level = fraction * (rows - 1)
    first, last = steps.min(), steps.max()
    column = ((steps - first) / max(1.0, last - first) * (columns - 1)).round().astype(int)
    starts = np.flatnonzero(np.diff(column, prepend=-1))
    previous: tuple[int, float] | None = None
    for column_index, levels in zip(column[starts].tolist(), np.split(level, starts[1:]), strict=True):
        finite = levels[np.isfinite(levels)]
        if not len(finite):
            previous = None
            continue
        dots[int(finite.min().round()) : int(finite.max().round()) + 1, column_index] = True
        if previous is not None:
            _join(dots, previous, (column_index, float(finite[0])))
        previous = (column_index, float(finite[-1]))


def _join(dots: NDArray[np.bool_], a: tuple[int, float], b: tuple[int, float]) -> None:
    """Draw a connected line between two dots."""
    count = max(abs(b[0] - a[0]), abs(round(b[1] - a[1]))) + 1
    rows = np.linspace(a[1], b[1], count).round().astype(int)
    dots[rows, np.linspace(a[0], b[0], count).round().astype(int)] = True
