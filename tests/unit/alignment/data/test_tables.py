"""CSV and TSV files as spreadsheets write them."""

import gzip
import zipfile

import pytest

from alignment.data import tables
from alignment.data.row_files import BadRow, DataError, read_rows

ROWS = [
    {"prompt": "Where is the café?", "completion": "Left, then right: 5 steps."},
    {"prompt": "q", "completion": "a"},
]


def read(path, content):
    path.write_bytes(content)
    notes = []
    return [row for _, row in read_rows(path, notes.append)], [note.removeprefix(f"{path}: ") for note in notes]


COMMAS = 'prompt,completion\r\nWhere is the café?,"Left, then right: 5 steps."\r\nq,a\r\n'
SEMICOLONS = "prompt;completion\r\nWhere is the café?;Left, then right: 5 steps.\r\nq;a\r\n"
TABS = SEMICOLONS.replace(";", "\t")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("d.csv", COMMAS.encode("utf-8-sig"), []),
        ("d.csv", SEMICOLONS.encode("utf-8-sig"), ["read as semicolon-separated"]),
        ("d.csv", ("sep=;\r\n" + SEMICOLONS).encode(), ["read as semicolon-separated"]),
        ("d.csv", ("sep=,\r\n" + COMMAS).encode(), []),
        ("d.csv", SEMICOLONS.encode("cp1252"), ["read as semicolon-separated, cp1252"]),
        ("d.csv", TABS.encode("utf-16"), ["read as tab-separated, UTF-16"]),
        ("d.csv", TABS.encode("utf-16-be"), ["read as tab-separated, UTF-16"]),
        ("d.csv", COMMAS.replace("\r\n", "\r").encode(), ["read as comma-separated, old Mac line ends"]),
        ("d.csv", (COMMAS + ",\r\n,\r\n").encode(), ["2 empty lines skipped"]),
        ("d.csv", SEMICOLONS.replace(";", "|").encode(), ["read as separated by |"]),
        ("d.csv", ("sep=#\n" + SEMICOLONS.replace(";", "#")).encode(), ["read as separated by #"]),
        ("d.tsv", TABS.encode(), ["read as tab-separated"]),
        ("D.TSV", TABS.encode(), ["read as tab-separated"]),
        ("d.csv.gz", gzip.compress(SEMICOLONS.encode("cp1252"), mtime=0), ["read as semicolon-separated, cp1252"]),
        (
            "d.csv",
            SEMICOLONS.replace("prompt;completion", " prompt ;completion ").encode(),
            ["read as semicolon-separated"],
        ),
    ],
)
def test_a_table_is_read_as_it_was_written_and_that_is_said(tmp_path, name, content, said):
    assert read(tmp_path / name, content) == (ROWS, said)


def test_places_are_lines_of_the_file(tmp_path):
    (tmp_path / "d.csv").write_text('sep=;\na;b\n"two\nlines";x\ny;z\n')
    assert [where.rpartition(":")[2] for where, _ in read_rows(tmp_path / "d.csv")] == ["4", "5"]


def test_one_column_and_numbers_are_left_alone(tmp_path):
    assert read(tmp_path / "d.csv", b"text\nOne; two.\nThree\n") == ([{"text": "One; two."}, {"text": "Three"}], [])
    assert read(tmp_path / "d.csv", b"prompt,rating\nq,1.0\n")[0] == [{"prompt": "q", "rating": "1.0"}]


@pytest.mark.parametrize(
    "text",
    [
        "Привет, как дела?".encode("cp1251"),
        "Zażółć gęślą jaźń, a potem wróć do domu".encode("cp1250"),
        "café crème".encode("mac_roman"),
        "señor Müller".encode("cp437"),
        "şimdi değil".encode("cp1254"),
        "東京の天気".encode("shift_jis"),
        b"a\x81b",
    ],
)
def test_an_encoding_that_is_not_known_is_refused_by_its_line(tmp_path, text):
    (tmp_path / "d.csv").write_bytes(b"prompt,completion\nq,plain English words here\nq," + text)
    with pytest.raises(DataError, match=r"d\.csv:3: not UTF-8 \(byte 0x..\); save the file as UTF-8"):
        list(read_rows(tmp_path / "d.csv"))


def test_a_typing_mistake_is_no_other_encoding(tmp_path):
    text = "text\n" + "Le café est fermé à midi, dès l'été.\n" * 30 + "lÉtat\n"
    assert read(tmp_path / "d.csv", text.encode("cp1252"))[1] == ["read as comma-separated, cp1252"]


def test_a_column_that_stands_twice_is_refused_and_columns_without_names_may_be_empty(tmp_path):
    with pytest.raises(DataError, match=r"d\.csv:1: the column 'completion' stands twice in the header"):
        read(tmp_path / "d.csv", b"prompt,completion,completion\na,b,c\n")
    rows, _ = read(tmp_path / "d.csv", b"prompt;completion;;\na;b;;\na;b;;lost\n")
    assert rows[0] == {"prompt": "a", "completion": "b"}
    assert isinstance(rows[1], BadRow) and "column 4, which has no name" in str(rows[1])
    assert read(tmp_path / "d.csv", b",prompt\n0,a\n")[0] == [{"": "0", "prompt": "a"}]  # pandas' row numbers


def test_a_cell_with_a_conversation_is_read_as_json_or_as_python_prints_it(tmp_path):
    turns = [{"role": "user", "content": "it's"}, {"role": "assistant", "content": 'a "b"'}]
    content = "messages,prompt,completions\n" + ",".join(
        '"' + text.replace('"', '""') + '"' for text in (repr(turns), "[1, 2]", '["a", "b"]')
    )
    assert read(tmp_path / "d.csv", content.encode())[0] == [
        {"messages": turns, "prompt": "[1, 2]", "completions": ["a", "b"]}  # a prompt may be text in brackets
    ]
    assert read(tmp_path / "d.csv", b"messages\n[broken\n")[0] == [{"messages": "[broken"}]


def test_a_row_without_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "LONGEST_RECORD", 1000)
    for content in (b"a,b\n" + b"," * 2000, b'a,b\n"x' + b"\n" * 2000):
        (tmp_path / "d.csv").write_bytes(content)
        with pytest.raises(DataError, match=r"one row of more than .*; is a quote missing, or every line break\?"):
            list(read_rows(tmp_path / "d.csv"))
    (tmp_path / "d.csv").write_bytes(b"a,b\n" + b"c,d\n" * 2000)
    assert len(list(read_rows(tmp_path / "d.csv"))) == 2000


def test_a_zip_archive_of_data_files_is_read_and_what_macos_adds_is_not(tmp_path):
    path = tmp_path / "d.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("in/a.csv", SEMICOLONS.encode("cp1252"))
        archive.writestr("in/b.jsonl", '{"prompt": "b"}\n')
        archive.writestr("__MACOSX/in/._a.csv", b"\0\5\26\7")
        archive.writestr("README.txt", "about")
    notes = []
    rows = list(read_rows(path, notes.append))
    assert [row for _, row in rows] == [*ROWS, {"prompt": "b"}]
    assert rows[-1][0] == f"{path}:in/b.jsonl:1"
    assert notes == [f"{path}:in/a.csv: read as semicolon-separated, cp1252"]
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.pdf", "x")
    with pytest.raises(DataError, match=r"d\.zip: no data file in this archive but a\.pdf; expected \.jsonl"):
        list(read_rows(path))


def test_a_spreadsheet_is_refused_with_what_to_do(tmp_path):
    (tmp_path / "d.xlsx").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"d\.xlsx: a spreadsheet; save its sheet as CSV"):
        list(read_rows(tmp_path / "d.xlsx"))


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        ('prompt\tresponse\n"Open Q1\tA1\n"Open Q2\tA2\nQ3\tA3\n', "2 to 3"),
        ('prompt\tresponse\nQ1\tA1\n"Open Q2\tA2\nQ3\tthe "end"\n', "3 to 4"),
        ('prompt\tresponse\nQ1\t"Open A1\nQ2\tA2\n', "2 to 3"),
        ('prompt,completion,id\n"Hi" he said, A1,1\nQ2,"Well" she said,2\nQ3,"Open\n"Q4,A4,4\n', "4 to 5"),
    ],
)
def test_a_quote_that_joins_rows_is_refused_with_its_lines(tmp_path, content, lines):
    first = lines.split()[0]
    with pytest.raises(DataError, match=rf"t.tsv:{first}: a cell begins with a quote .* lines {lines} are read as one"):
        read(tmp_path / "t.tsv", content.encode())


def test_texts_in_quotes_may_have_lines_separators_and_quotes(tmp_path):
    text = 'Dear Ann,\nhe said "yes", twice\t(2)\n\nBye, Bob'
    quoted = text.replace('"', '""')
    for separator, name in ((",", "t.csv"), ("\t", "t.tsv")):
        content = f'prompt{separator}completion\n"{quoted}"{separator}"{quoted}"\nq{separator}a\n'
        rows, _ = read(tmp_path / name, content.encode())
        assert rows == [{"prompt": text, "completion": text}, ROWS[1]]
