"""Parquet files that are small on the disk and large in memory. The limits are scaled down."""

import gzip

import pyarrow
import pyarrow.parquet
import pytest

from alignment.data import parquet_files
from alignment.data.row_files import DataError, read_rows


@pytest.fixture(autouse=True)
def _small_limits(monkeypatch):
    monkeypatch.setattr(parquet_files, "BATCH_BYTES", 1 << 20)
    monkeypatch.setattr(parquet_files, "LONGEST_VALUE", 64 << 10)


def write(path, table, **options):
    pyarrow.parquet.write_table(
        table, path, compression="zstd", dictionary_pagesize_limit=1 << 30, write_statistics=False, **options
    )
    return path


def repeated(text, rows):
    return pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * rows, pyarrow.int32()), pyarrow.array([text]))


def test_a_value_that_every_row_repeats_is_refused_before_it_is_unpacked(tmp_path):
    path = write(tmp_path / "d.parquet", pyarrow.table({"prompt": ["q"] * 500, "text": repeated("x" * 100_000, 500)}))
    assert path.stat().st_size < 10_000
    with pytest.raises(
        DataError, match=r"a value of the column 'text' may unpack to .* MB in every row .*use_dictionary"
    ):
        next(read_rows(path))


def test_one_in_a_list_is_refused_too(tmp_path):
    turns = pyarrow.StructArray.from_arrays(
        [pyarrow.array(["user", "assistant"] * 100), repeated("x" * 100_000, 200)], ["role", "content"]
    )
    chats = pyarrow.ListArray.from_arrays(pyarrow.array(range(0, 201, 2), pyarrow.int32()), turns)
    with pytest.raises(DataError, match=r"column 'messages\.list\.element\.content' may unpack"):
        next(read_rows(write(tmp_path / "d.parquet", pyarrow.table({"messages": chats}))))


def test_a_batch_holds_fewer_rows_where_they_are_large(tmp_path, monkeypatch):
    sizes = []
    monkeypatch.setattr(
        parquet_files, "_as_objects", lambda batch, whole: sizes.append(len(batch)) or batch.to_pylist()
    )
    short = write(tmp_path / "s.parquet", pyarrow.table({"text": [f"{n}" for n in range(1000)]}), use_dictionary=False)
    assert len(list(read_rows(short))) == 1000
    assert max(sizes) == parquet_files.BATCH
    sizes.clear()
    wide = pyarrow.table({"text": [f"{n} " + "word " * 20_000 for n in range(40)]})
    assert len(list(read_rows(write(tmp_path / "w.parquet", wide, use_dictionary=False, row_group_size=5)))) == 40
    assert max(sizes) <= 10  # 100 kB each, 1 MB a batch
    coded = write(tmp_path / "c.parquet", pyarrow.table({"text": repeated("x" * 60_000, 100)}))
    sizes.clear()
    assert {len(row["text"]) for _, row in read_rows(coded)} == {60_000}
    assert max(sizes) <= 17


def test_a_page_that_does_not_fit_is_refused(tmp_path):
    wide = pyarrow.table({"text": [f"{n} " + "word " * 20_000 for n in range(40)]})
    with pytest.raises(DataError, match=r"a page of the column 'text' unpacks to about 4 MB; .*row_group_size=16"):
        next(read_rows(write(tmp_path / "d.parquet", wide, use_dictionary=False)))


def chats(lengths, content):
    """A row for each length, with so many turns."""
    ends = pyarrow.array([sum(lengths[:index]) for index in range(len(lengths) + 1)], pyarrow.int32())
    count = sum(lengths)
    turns = pyarrow.StructArray.from_arrays([pyarrow.array(["user"] * count), content(count)], ["role", "content"])
    return pyarrow.table({"messages": pyarrow.ListArray.from_arrays(ends, turns)})


@pytest.mark.parametrize("text", ["x" * 1000, ""], ids=["long", "empty"])
def test_one_row_with_very_many_values_is_refused_before_it_is_unpacked(tmp_path, text):
    lengths = [1] * 90 + [20_000] + [1] * 9
    path = write(tmp_path / "d.parquet", chats(lengths, lambda count: repeated(text, count)))
    assert path.stat().st_size < 10_000
    with pytest.raises(DataError, match=r"d\.parquet: row 91 unpacks to about .* MB; split its lists into rows"):
        list(read_rows(path))


def test_rows_with_long_lists_that_fit_are_read_few_at_a_time(tmp_path, monkeypatch):
    sizes, whole = [], parquet_files._as_objects
    monkeypatch.setattr(
        parquet_files, "_as_objects", lambda batch, **more: sizes.append(len(batch)) or whole(batch, **more)
    )
    lengths = [3] * 200 + [600] + [2] * 99
    path = write(tmp_path / "d.parquet", chats(lengths, lambda count: repeated("x" * 1000, count)))
    assert [len(row["messages"]) for _, row in read_rows(path)] == lengths
    assert max(sizes) == 1


def test_a_packed_file_that_fills_the_disk_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "d.parquet.gz"
    path.write_bytes(gzip.compress(bytes(3 << 20)))
    monkeypatch.setattr(parquet_files, "LARGEST_COPY", 2 << 20)
    with pytest.raises(DataError, match=r"d\.parquet\.gz: unpacks to more than 2 MB of temporary disk; unpack it"):
        list(read_rows(path))
