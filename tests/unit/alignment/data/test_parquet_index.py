"""The index of a Parquet file is what Arrow says it is, and no damage to it ends the process."""

from __future__ import annotations

import io
import subprocess
import sys

import pyarrow
import pyarrow.parquet
import pytest

from alignment.data.parquet_index import Compact, read_index

TABLE = pyarrow.table(
    {
        "text": ["one", "two", None, "two"] * 50,
        "score": [0.5, float("nan"), -1.0, 2.0] * 50,
        "messages": [[{"role": "user", "content": "Hi"}], [], None, [{"role": None, "content": "x" * 99}]] * 50,
        "flags": pyarrow.array([True, False, None, True] * 50),
        "map": pyarrow.array([[("a", 1)], [], None, [("b", 2), ("c", 3)]] * 50, pyarrow.map_("string", "int8")),
    }
)


def written(**options):
    out = io.BytesIO()
    pyarrow.parquet.write_table(TABLE, out, **options)
    return out


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"row_group_size": 30},
        {"use_dictionary": False, "compression": "none"},
        {"use_dictionary": ["text"], "version": "1.0", "data_page_version": "2.0"},
        {"write_page_index": True, "write_statistics": False, "store_schema": False},
    ],
)
def test_it_is_what_arrow_reads(options):
    source = written(**options)
    source.seek(7)
    found, metadata = read_index(source), pyarrow.parquet.ParquetFile(source).metadata
    assert len(found) == metadata.num_row_groups
    for number, group in enumerate(found):
        theirs = metadata.row_group(number)
        assert (group.num_rows, len(group.columns)) == (theirs.num_rows, theirs.num_columns)
        for place, column in enumerate(group.columns):
            chunk = theirs.column(place)
            assert column.path_in_schema == chunk.path_in_schema
            assert column.num_values == chunk.num_values
            assert column.total_uncompressed_size == chunk.total_uncompressed_size
            assert column.dictionary_page_offset == (
                chunk.dictionary_page_offset if chunk.has_dictionary_page else None
            )


def test_the_file_is_left_where_it_was():
    source = written()
    source.seek(7)
    read_index(source)
    assert source.tell() == 7


@pytest.mark.parametrize(
    "data",
    [
        b"\x19\xff\xff\xff\xff\x7f",  # a list of more than it holds
        b"\x1c" * 100,  # structures inside each other
        b"\x15" + b"\xff" * 12,  # a number of more than 64 bits
        b"\x18\x7f",  # text that ends early
        b"\x1e",  # a type that there is not
    ],
)
def test_damage_is_a_value_error(data):
    with pytest.raises(ValueError):
        list(Compact(data).fields())


EACH_BYTE_CHANGED = """
import sys
from pathlib import Path
from alignment.data.opening import DataError, DataFile
from alignment.data.parquet_files import parquet_rows
path = Path(sys.argv[1])
good = path.read_bytes()
length = int.from_bytes(good[-8:-4], "little")
refused = 0
for at in range(len(good) - 8 - length, len(good)):
    for flip in (1, 4):
        path.write_bytes(good[:at] + bytes([good[at] ^ flip]) + good[at + 1:])
        try:
            list(parquet_rows(DataFile(path)))
        except (DataError, OSError):  # Arrow's own is an OSError too, which the reader of files puts into words
            refused += 1
print(refused)
"""


def test_no_damaged_byte_of_an_index_ends_the_process(tmp_path):
    """Arrow's `row_group(i).column(j)` aborts, where the entry's histograms are not as long as they should be."""
    path = tmp_path / "d.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"messages": [[{"role": "user", "content": "Hi"}], None, []]}), path)
    done = subprocess.run([sys.executable, "-c", EACH_BYTE_CHANGED, path], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) > 100
