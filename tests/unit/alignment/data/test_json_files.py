"""JSON and JSONL files: wrappers, layouts of pandas, keys that stand twice, and sizes."""

import gzip
import json

import pytest

from alignment.data import json_files
from alignment.data.row_files import BadRow, DataError, read_rows

ROWS = [{"prompt": "a", "completion": "b"}, {"prompt": "c", "completion": "é\u2028"}]


def read(path, content):
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    notes = []
    return [row for _, row in read_rows(path, notes.append)], [note.removeprefix(f"{path}: ") for note in notes]


PROMPTS, COMPLETIONS = ([row[key] for row in ROWS] for key in ("prompt", "completion"))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (ROWS, []),
        ({"data": ROWS, "next": []}, ["read from its list 'data'; not used: next"]),
        ({"version": 1, "rows": ROWS, "tags": ["x"]}, ["read from its list 'rows'; not used: version, tags"]),
        (
            {"prompt": {"0": "a", "1": "c"}, "completion": {"0": "b", "1": ROWS[1]["completion"]}},
            ["pandas' layout by column"],
        ),
        ({"0": ROWS[0], "1": ROWS[1]}, ["pandas' layout by row number"]),
        ({"prompt": PROMPTS, "completion": COMPLETIONS}, ["a list for each column"]),
        (
            {"columns": ["prompt", "completion"], "index": [0, 1], "data": [list(row.values()) for row in ROWS]},
            ["pandas' layout of columns and data"],
        ),
        ("\n".join(map(json.dumps, ROWS)).encode(), ["one object a line, read as .jsonl"]),
        (json.dumps(ROWS, indent=1).encode("utf-16"), ["read as UTF-16"]),
    ],
)
def test_rows_are_found_in_what_wraps_them(tmp_path, content, said):
    assert read(tmp_path / "d.json", content) == (ROWS, said)


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ({"train": ROWS, "test": ROWS[:1]}, "holds several lists ('train' with 2, 'test' with 1)"),
        ({"messages": [{"role": "user", "content": "q"}]}, "found an object with the keys messages; put the rows"),
        ({"prompt": ["a"], "completion": ["b", "c"]}, "lists of different lengths (prompt: 1, completion: 2)"),
        ({}, "found an object with no keys"),
        (b'"text"', "Expecting value"),
        (b"[1, 2", "d.json:1: not valid JSON: Expecting ',' delimiter"),
        (b'[{"a": 1},\n{"a": }]', "d.json:2: not valid JSON: Expecting value"),
        (b'[{"a": 1}\n\n] x', "d.json:3: not valid JSON: Extra data"),
        (b'{"a": 1, "a": 2}', "the key 'a' stands twice in one object"),
        (b"\0" * 100, "not valid JSON"),
    ],
)
def test_what_holds_no_list_of_rows_is_named(tmp_path, content, part):
    with pytest.raises(DataError) as caught:
        read(tmp_path / "d.json", content)
    assert part in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "start", "end"), [("d.jsonl", "", "\n"), ("d.json", "[", "]")])
def test_a_key_that_stands_twice_sets_its_row_aside(tmp_path, name, start, end):
    rows = [
        '{"prompt": "a", "completion": "first", "completion": "second"}',
        '{"messages": [{"role": "user", "content": "x", "content": "y"}]}',
        '{"prompt": "a", "completion": "b"}',
    ]
    content = start + ("\n" if name == "d.jsonl" else ",").join(rows) + end
    first, second, third = read(tmp_path / name, content.encode())[0]
    assert isinstance(first, BadRow) and "the key 'completion' stands twice in one object" in str(first)
    assert isinstance(second, BadRow) and "'content'" in str(second)
    assert third == {"prompt": "a", "completion": "b"}


def test_ndjson_and_utf16_lines_are_jsonl(tmp_path):
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
    assert read(tmp_path / "d.ndjson", lines.encode()) == (ROWS, [])
    assert read(tmp_path / "d.jsonl", lines.encode("utf-16")) == (ROWS, ["read as UTF-16"])


def test_a_list_is_streamed_across_the_borders_of_blocks(tmp_path):
    rows = [{"prompt": f"é{number} " * 50, "n": [number, {"deep": "}],["}]} for number in range(10_000)]
    (tmp_path / "d.json.gz").write_bytes(
        gzip.compress(json.dumps(rows, ensure_ascii=False, indent=1).encode(), mtime=0)
    )
    assert [row for _, row in read_rows(tmp_path / "d.json.gz")] == rows


def test_what_would_not_fit_into_memory_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(json_files, "LONGEST_ROW", 2 << 20)
    monkeypatch.setattr(json_files, "LARGEST_OBJECT", 2 << 20)
    with pytest.raises(DataError, match=r"d\.json:1: one row of more than 2 MiB; split it"):
        read(tmp_path / "d.json", b'[{"a": "' + b"x" * (5 << 20) + b'"}]')
    with pytest.raises(DataError, match=r"one object of more than 2 MiB; only a list of rows is read in pieces"):
        read(tmp_path / "d.json", b'{"data": [{"a": "' + b"x" * (5 << 20) + b'"}]}')
    assert (
        len(read(tmp_path / "d.json", b"[" + b'{"a": "' + b"x" * 1000 + b'"},' + b" " * (5 << 20) + b'{"a": 1}]')[0])
        == 2
    )


def test_rows_of_the_hubs_viewer_are_taken_out_of_it(tmp_path):
    rows = [{"row_idx": index, "row": row, "truncated_cells": []} for index, row in enumerate(ROWS)]
    assert read(tmp_path / "rows.json", rows) == (ROWS, [])
    answer = {"features": [{"name": "prompt"}, {"name": "completion"}], "rows": rows, "num_rows_total": 90}
    assert read(tmp_path / "rows.json", answer) == (ROWS, ["the hub's viewer: 2 rows of 90"])
    (first, second), _ = read(tmp_path / "rows.json", [{**rows[0], "truncated_cells": ["prompt"]}, rows[1]])
    assert str(first).startswith("the viewer has cut the cells ['prompt']") and second == ROWS[1]


@pytest.mark.parametrize(
    ("content", "fix"),
    [
        (b'[\n{"prompt": "a"},\n{"prompt": "b"}\n]\n', "name the file of this list .json"),
        (b'{\n"prompt": "a"\n}\n{\n"prompt": "b"\n}\n', "an object must stand on one line"),
        (b'{"prompt": "a"},\n{"prompt": "b"},\n', "take out the comma after each row"),
    ],
)
def test_a_line_that_is_no_row_is_answered_with_the_fix(tmp_path, content, fix):
    rows, _ = read(tmp_path / "rows.jsonl", content)
    assert isinstance(rows[0], BadRow) and fix in str(rows[0])


def test_objects_of_several_lines_one_after_the_other_are_read(tmp_path):
    text = "\n".join(json.dumps(row, indent=1) for row in ROWS)
    assert read(tmp_path / "rows.json", text.encode()) == (
        ROWS,
        ["objects one after the other, of several lines each"],
    )
    with pytest.raises(DataError, match="not valid JSON"):
        read(tmp_path / "cut.json", text[:-5].encode())


def test_messages_of_an_export_are_rows_and_turns_are_not(tmp_path):
    messages = [{"id": 1, "from": "Cy", "text": "Hi", "date": "x"}]
    assert read(tmp_path / "a.json", {"name": "Support", "messages": messages})[0] == messages
    with pytest.raises(DataError, match=r"put the rows between \[ and \]"):
        read(tmp_path / "b.json", {"id": 1, "conversations": [{"from": "human", "value": "Hi"}]})
