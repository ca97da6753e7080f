"""Read Parquet files in batches that fit into memory, also if a page or a dictionary unpacks to gigabytes."""

from __future__ import annotations

import math
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from alignment.data.opening import DataError, DataFile
from alignment.data.parquet_index import ColumnChunk, Compact, RowGroup, read_index

Weigh = Callable[[Any], NDArray[np.float64]]
"""A weight for each value of an Arrow array."""
BATCH = 256
"""Rows in memory at a time, at most."""
BATCH_BYTES = 256 << 20
"""What a batch may unpack to."""
LONGEST_VALUE = 16 << 20
"""Bytes of one value of a dictionary: a few bytes of indices may repeat it for every row of a batch."""
LARGEST_COPY = 16 << 30
"""Bytes of a packed file that are unpacked to the disk."""
UNPACKED_SIZE = 2
"""The number of this field in the header of a page."""
_LIST = re.compile(r"(?<=\.)(?:element|item|array_element|key|value)(?:\.[^.]+)?\Z")
_OBJECT = 56  # bytes of a short Python object and of the place that holds it
_FEW = 16  # so many rows at a time are read fast enough, so that lengths need not be summed
_WRITTEN_AT_ONCE = 1024  # rows that Arrow writes before it looks whether a page is full


def parquet_rows(file: DataFile) -> Iterator[tuple[str, Any]]:
    """Yield (`file:row N`, row) for each row.

    Raises:
        DataError: not a Parquet file, or a batch of it would not fit into memory.
    """
    import pyarrow
    import pyarrow.parquet

    with file.opened() as stream, tempfile.TemporaryFile() as copied:
        source: Any = stream
        if file.member or file.path.suffix.lower() == ".gz":  # the index is at the end, where a stream cannot seek
            _copy(file, stream, copied)
            source = copied
        index = 0
        try:
            # pre_buffer is on by default and loads a whole row group, which is often the whole file.
            parquet = pyarrow.parquet.ParquetFile(source, pre_buffer=False, buffer_size=1 << 20)
            groups = _index(file, parquet, source)
            sizes = [_batch_rows(file, group, source) for group in groups]
            for group, size in enumerate(sizes):
                size = min(size, _rows_that_fit(file, source, parquet, group, groups[group].columns, index))
                for batch in parquet.iter_batches(size, row_groups=[group]):
                    is_small = size == BATCH and batch.nbytes <= BATCH_BYTES
                    for row in _as_objects(batch, whole=is_small):
                        index += 1
                        yield f"{file}:row {index}", row
        except pyarrow.ArrowException as error:
            raise DataError(f"{file}: not a Parquet file that can be read: {str(error).splitlines()[0]}") from None
        except MemoryError:
            raise DataError(f"{file}: row {index + 1} does not fit into memory; write the rows as .jsonl") from None


def _index(file: DataFile, parquet: Any, source: IO[bytes]) -> list[RowGroup]:
    """What the row groups hold, for which Arrow must not be asked (see `parquet_index`)."""
    try:
        groups = read_index(source)
        if any(len(group.columns) != len(parquet.schema) for group in groups) or len(groups) != parquet.num_row_groups:
            raise ValueError("row groups and columns are not as many as it says")
    except ValueError as error:
        raise DataError(f"{file}: not a Parquet file that can be read: {error}") from None
    return groups


def _copy(file: DataFile, stream: IO[bytes], copied: IO[bytes]) -> None:
    """Unpack a file whole, to no more than LARGEST_COPY and half of the free disk."""
    limit = min(LARGEST_COPY, shutil.disk_usage(tempfile.gettempdir()).free // 2)
    size = 0
    while block := stream.read(1 << 20):
        size += len(block)
        if size > limit:
            raise DataError(
                f"{file}: unpacks to more than {_megabytes(limit)} of temporary disk; unpack it yourself and name the "
                ".parquet file (Parquet is compressed inside, so .gz gains nothing)"
            )
        copied.write(block)


def _rows_that_fit(
    file: DataFile, source: IO[bytes], parquet: Any, group: int, columns: Sequence[ColumnChunk], before: int
) -> int:
    """Number of rows of a row group whose lists fit into memory together, judged by the group's largest row.

    The index has sums alone, so where one row may hold too much, its values are counted, in the smallest column of each
    list; and where they may still be too many, their lengths are summed, while dictionaries stay packed.

    Args:
        before: number of rows before the group.

    Raises:
        DataError: one row is too large.
    """
    repeated = [column for index, column in enumerate(columns) if parquet.schema.column(index).max_repetition_level]
    longest = {column.path_in_schema: _OBJECT + _dictionary_size(source, column) for column in repeated}
    if not any(column.num_values * longest[column.path_in_schema] > BATCH_BYTES for column in repeated):
        return BATCH
    lists: dict[str, Any] = {}
    for column in sorted(repeated, key=lambda column: column.total_uncompressed_size):
        lists.setdefault(_LIST.sub("", column.path_in_schema), column)
    _, count = _largest_row(source, group, list(lists.values()), lambda leaf: np.ones(len(leaf)))
    if (at_least := int(BATCH_BYTES / (count * sum(longest.values())))) >= _FEW:
        return at_least
    row, size = _largest_row(source, group, repeated, _leaf_sizes)
    if size > BATCH_BYTES:
        raise DataError(f"{file}: row {before + row} unpacks to about {_megabytes(size)}; split its lists into rows")
    return max(1, int(BATCH_BYTES / size))


def _largest_row(source: IO[bytes], group: int, columns: Sequence[ColumnChunk], weigh: Weigh) -> tuple[int, float]:
    """The number in its group, from 1, and the weight of the row of a row group whose values weigh most."""
    import pyarrow.parquet

    coded = [column.path_in_schema for column in columns if column.dictionary_page_offset is not None]
    packed = pyarrow.parquet.ParquetFile(source, read_dictionary=coded, pre_buffer=False, buffer_size=1 << 20)
    before, found = 0, (0, 1.0)
    for batch in packed.iter_batches(BATCH, row_groups=[group], columns=[column.path_in_schema for column in columns]):
        weights = sum((_weights(column, weigh) for column in batch.columns), np.zeros(len(batch)))
        if weights.max() > found[1]:
            found = before + int(weights.argmax()) + 1, float(weights.max())
        before += len(batch)
    return found


def _weights(values: Any, weigh: Weigh) -> NDArray[np.float64]:
    """The sum of the weights of the values in each entry of an Arrow array."""
    import pyarrow

    kind = values.type
    if pyarrow.types.is_struct(kind):
        fields = (_weights(values.field(index), weigh) for index in range(kind.num_fields))
        return sum(fields, np.zeros(len(values)))
    if pyarrow.types.is_map(kind):
        inner = _weights(values.keys, weigh) + _weights(values.items, weigh)
    elif pyarrow.types.is_list(kind) or pyarrow.types.is_large_list(kind):
        inner = _weights(values.values, weigh)
    else:
        return weigh(values)
    return np.diff(np.concatenate([[0.0], np.cumsum(inner)])[values.offsets.to_numpy()])


def _leaf_sizes(values: Any) -> NDArray[np.float64]:
    """About how many bytes each value takes as a Python object."""
    import pyarrow
    import pyarrow.compute

    kind = values.type
    if pyarrow.types.is_dictionary(kind) and len(values.dictionary):
        return _leaf_sizes(values.dictionary)[values.indices.fill_null(0).to_numpy(zero_copy_only=False)]
    sizes = np.full(len(values), float(_OBJECT))
    if pyarrow.types.is_string(kind) or pyarrow.types.is_binary(kind) or pyarrow.types.is_large_string(kind):
        sizes += pyarrow.compute.binary_length(values).fill_null(0).to_numpy(zero_copy_only=False)
    return sizes


def _as_objects(batch: Any, whole: bool) -> Iterator[dict[str, Any]]:
    """The rows of a batch; one by one where they are large, so that they are not in memory twice."""
    if whole:
        yield from batch.to_pylist()
    else:
        for index in range(len(batch)):
            yield from batch.slice(index, 1).to_pylist()


def _batch_rows(file: DataFile, group: RowGroup, source: IO[bytes]) -> int:
    """Number of rows of a row group that unpack to no more than BATCH_BYTES together, estimated from its index."""
    rows = max(1, group.num_rows)
    mean = most = 0.0
    for column in group.columns:
        size = column.total_uncompressed_size
        mean += size / rows
        page = min(size, _WRITTEN_AT_ONCE * size / max(1, column.num_values))
        if page > BATCH_BYTES:
            raise DataError(
                f"{file}: a page of the column '{column.path_in_schema}' unpacks to about {_megabytes(page)}; write "
                "the file with smaller row groups (row_group_size=16), or as .jsonl"
            )
        longest = min(size, _dictionary_size(source, column))
        if longest > LONGEST_VALUE:
            raise DataError(
                f"{file}: a value of the column '{column.path_in_schema}' may unpack to {_megabytes(longest)} in "
                "every row (a dictionary page of that size); write the file with use_dictionary=False, or as .jsonl"
            )
        most += longest * math.ceil(column.num_values / rows)
    return max(1, min(BATCH, int(BATCH_BYTES / max(1.0, mean, most))))


def _dictionary_size(source: IO[bytes], column: ColumnChunk) -> int:
    """The size of a column chunk's dictionary page, 0 if it has none, from the page's header: no value is longer."""
    if column.dictionary_page_offset is None:
        return 0
    position = source.tell()
    try:
        source.seek(column.dictionary_page_offset)
        header = Compact(source.read(16)).fields()
        return next(int(value) for number, value in header if number == UNPACKED_SIZE)
    except (ValueError, TypeError, StopIteration):  # the place holds no page: the column bounds it
        return column.total_uncompressed_size
    finally:
        source.seek(position)


def _megabytes(size: float) -> str:
    return f"{size / (1 << 20):,.0f} MB"
