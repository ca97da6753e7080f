"""Read Parquet files in batches that fit into memory, also if a page or a dictionary unpacks to gigabytes."""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from alignment.data.opening import DataError, DataFile

BATCH = 256
"""Rows in memory at a time, at most."""
BATCH_BYTES = 256 << 20
"""What a batch may unpack to."""
LONGEST_VALUE = 16 << 20
"""Bytes of one value of a dictionary: a few bytes of indices may repeat it for every row of a batch."""
LARGEST_COPY = 16 << 30
"""Bytes of a packed file that are unpacked to the disk."""
_OBJECT = 56  # bytes of a short Python object and of the place that holds it
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
            sizes = [_batch_rows(file, parquet.metadata, group, source) for group in range(parquet.num_row_groups)]
            for group, size in enumerate(sizes):
                if skewed := _repeated_columns(parquet, group):
                    size = min(size, max(1, int(BATCH_BYTES / _largest_row(file, source, group, skewed, index))))
                for batch in parquet.iter_batches(size, row_groups=[group]):
                    is_small = size == BATCH and batch.nbytes <= BATCH_BYTES
                    for row in _as_objects(batch, whole=is_small):
                        index += 1
                        yield f"{file}:row {index}", row
        except pyarrow.ArrowException as error:
            raise DataError(f"{file}: not a Parquet file that can be read: {str(error).splitlines()[0]}") from None
        except MemoryError:
            raise DataError(f"{file}: row {index + 1} does not fit into memory; write the rows as .jsonl") from None


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


def _repeated_columns(parquet: Any, group: int) -> list[Any]:
    """The columns inside lists of which one row may hold so many values that it does not fit, by the file's index."""
    row_group = parquet.metadata.row_group(group)
    found = []
    for index in range(row_group.num_columns):
        column = row_group.column(index)
        longest = LONGEST_VALUE if column.has_dictionary_page else 0
        worst = column.num_values * (_OBJECT + min(longest, column.total_uncompressed_size))
        if parquet.schema.column(index).max_repetition_level and worst > BATCH_BYTES:
            found.append(column)
    return found


def _largest_row(file: DataFile, source: IO[bytes], group: int, columns: Sequence[Any], before: int) -> float:
    """About how many bytes the largest row of a row group unpacks to, of some columns; dictionaries stay packed.

    Args:
        before: number of rows before the group.

    Raises:
        DataError: it is more than BATCH_BYTES.
    """
    import pyarrow.parquet

    coded = [column.path_in_schema for column in columns if column.has_dictionary_page]
    packed = pyarrow.parquet.ParquetFile(source, read_dictionary=coded, pre_buffer=False, buffer_size=1 << 20)
    largest = 1.0
    for batch in packed.iter_batches(BATCH, row_groups=[group], columns=[column.path_in_schema for column in columns]):
        sizes = sum(_sizes(column) for column in batch.columns)
        largest = max(largest, float(sizes.max()))
        if largest > BATCH_BYTES:
            row = before + int(sizes.argmax()) + 1
            raise DataError(f"{file}: row {row} unpacks to about {_megabytes(largest)}; split its lists into rows")
        before += len(batch)
    return largest


def _sizes(values: Any) -> NDArray[np.float64]:
    """About how many bytes each entry of an Arrow array takes as Python objects."""
    import pyarrow
    import pyarrow.compute

    kind = values.type
    if pyarrow.types.is_dictionary(kind):
        lengths = _sizes(values.dictionary)
        indices = values.indices.fill_null(0).to_numpy(zero_copy_only=False)
        return lengths[indices] if len(lengths) else np.full(len(values), float(_OBJECT))
    if pyarrow.types.is_struct(kind):
        return sum(
            (_sizes(values.field(index)) for index in range(kind.num_fields)), np.full(len(values), float(_OBJECT))
        )
    if pyarrow.types.is_map(kind):
        inner = _sizes(values.keys) + _sizes(values.items)
    elif pyarrow.types.is_list(kind) or pyarrow.types.is_large_list(kind):
        inner = _sizes(values.values)
    elif pyarrow.types.is_string(kind) or pyarrow.types.is_binary(kind) or pyarrow.types.is_large_string(kind):
        return pyarrow.compute.binary_length(values).fill_null(0).to_numpy(zero_copy_only=False) + float(_OBJECT)
    else:
        return np.full(len(values), float(_OBJECT))
    ends = np.concatenate([[0.0], np.cumsum(inner)])[values.offsets.to_numpy()]
    return np.diff(ends) + _OBJECT


def _as_objects(batch: Any, whole: bool) -> Iterator[dict[str, Any]]:
    """The rows of a batch; one by one where they are large, so that they are not in memory twice."""
    if whole:
        yield from batch.to_pylist()
    else:
        for index in range(len(batch)):
            yield from batch.slice(index, 1).to_pylist()


def _batch_rows(file: DataFile, metadata: Any, group: int, source: IO[bytes]) -> int:
    """Number of rows of a row group that unpack to no more than BATCH_BYTES together, estimated from its index."""
    row_group = metadata.row_group(group)
    rows = max(1, row_group.num_rows)
    mean = most = 0.0
    for index in range(row_group.num_columns):
        column = row_group.column(index)
        size = column.total_uncompressed_size
        mean += size / rows
        page = min(size, _WRITTEN_AT_ONCE * size / max(1, column.num_values))
        if page > BATCH_BYTES:
            raise DataError(
                f"{file}: a page of the column '{column.path_in_schema}' unpacks to about {_megabytes(page)}; write "
                "the file with smaller row groups (row_group_size=16), or as .jsonl"
            )
        if column.has_dictionary_page:
            longest = min(size, _dictionary_size(source, column))
            if longest > LONGEST_VALUE:
                raise DataError(
                    f"{file}: a value of the column '{column.path_in_schema}' may unpack to {_megabytes(longest)} in "
                    "every row (a dictionary page of that size); write the file with use_dictionary=False, or as .jsonl"
                )
            most += longest * math.ceil(column.num_values / rows)
    return max(1, min(BATCH, int(BATCH_BYTES / max(1.0, mean, most))))


def _dictionary_size(source: IO[bytes], column: Any) -> int:
    """The size of a column chunk's dictionary page, from the page's header: no value of it is longer.

    A header is Thrift's compact form: the type, the unpacked and the packed size, each a varint after the byte 0x15.
    """
    position = source.tell()
    try:
        source.seek(column.dictionary_page_offset or column.data_page_offset)
        header = source.read(16)
    finally:
        source.seek(position)
    sizes: list[int] = []
    at = 0
    while len(sizes) < 2 and at < len(header) and header[at] == 0x15:
        value = shift = 0
        more = True
        while more and at + 1 < len(header):
            at += 1
            value |= (header[at] & 0x7F) << shift
            shift += 7
            more = header[at] >= 0x80
        sizes.append(value >> 1)  # zigzag, and never negative
        at += 1
    return sizes[1] if len(sizes) == 2 else column.total_uncompressed_size


def _megabytes(size: float) -> str:
    return f"{size / (1 << 20):,.0f} MB"
