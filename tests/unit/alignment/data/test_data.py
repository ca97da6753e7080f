"""Reading, checking and splitting rows, in every kind of file and with every kind of damage."""

import csv
import gzip
import json
import os
import tracemalloc
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from helpers import tiny
from hypothesis import given
from hypothesis import strategies as st

import alignment.data.row_files
from alignment.config.sections import DataConfig
from alignment.data.formats import parse_transcript
from alignment.data.parsing import (
    to_comparison,
    to_comparisons,
    to_demonstration,
    to_demonstrations,
    to_examples,
    to_prompt,
    to_prompts,
)
from alignment.data.reading import Reading, is_held_out, read_records, train_and_eval
from alignment.data.records import Comparison, Demonstration, prompt_group
from alignment.data.row_files import BadRow, DataError, data_files, file_fingerprint, read_rows

ROWS = [
    {"prompt": 'a "quoted", cut\nword', "completion": "x"},
    {"prompt": "line\u2028separator\u0085 and \x0b", "completion": "é"},
    {"prompt": "c", "completion": "猫 ☂"},
]


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def write(path, rows=ROWS):
    suffix = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    if suffix == ".jsonl":
        raw = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    elif suffix == ".json":
        raw = json.dumps(rows, ensure_ascii=False, indent=1).encode()
    elif suffix == ".csv":
        plain = path.with_name("plain")
        with plain.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        raw = plain.read_bytes()
        plain.unlink()
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        raw = path.read_bytes()
    path.write_bytes(gzip.compress(raw, mtime=0) if path.suffix == ".gz" else raw)
    return path


def config(**changes):
    return DataConfig(**{"train": "unused", **changes})


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet", "jsonl.gz", "json.gz", "csv.gz", "parquet.gz"])
def test_every_kind_of_file_gives_the_same_records(tmp_path, kind):
    records = read_records(write(tmp_path / f"d.{kind}"), to_demonstrations, config())
    expected = [Demonstration((user(row["prompt"]), assistant(row["completion"]))) for row in ROWS]
    assert records.items == expected
    assert records.bad == []
    assert (records.fingerprints[0]["name"], records.fingerprints[0]["rows"]) == (f"d.{kind}", 3)


def test_a_byte_order_mark_and_windows_line_ends_are_no_part_of_the_data(tmp_path):
    path = tmp_path / "d.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"prompt": "a"}\r\n\r\n{"prompt": "b"}')
    assert [row for _, row in read_rows(path)] == [{"prompt": "a"}, {"prompt": "b"}]
    assert [where for where, _ in read_rows(path)] == [f"{path}:1", f"{path}:3"]


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "csv", "csv.gz", "parquet", "parquet.gz"])
def test_a_file_is_read_as_a_stream(tmp_path, kind):
    rows = [{"prompt": f"{number} " * 200, "completion": "c"} for number in range(20_000)]
    path = write(tmp_path / f"d.{kind}", rows)  # 25 MB
    del rows
    pyarrow.default_memory_pool().release_unused()
    before, most = pyarrow.total_allocated_bytes(), 0
    tracemalloc.start()
    for number, (_, row) in enumerate(read_rows(path)):
        assert row["prompt"].startswith(f"{number} ")
        if number % 100 == 0:
            most = max(most, pyarrow.total_allocated_bytes() - before)
    file_fingerprint(path, number + 1)
    most += tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert number == 19_999
    assert most < 8 << 20


def test_a_byte_that_is_not_utf8_costs_its_line_alone(tmp_path):
    (tmp_path / "d.jsonl").write_bytes(b'{"prompt": "a"}\n{"prompt": "\xe9"}\n{"prompt": "c"}\n')
    (_, first), (where, bad), (_, last) = read_rows(tmp_path / "d.jsonl")
    assert (first, last) == ({"prompt": "a"}, {"prompt": "c"})
    assert where.endswith("d.jsonl:2")
    assert isinstance(bad, BadRow)
    assert "byte 0xe9" in str(bad)


def test_a_line_without_end_is_a_bad_row_and_the_next_one_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(alignment.data.row_files, "LONGEST_LINE", 20)
    (tmp_path / "d.jsonl").write_bytes(b'{"a": 1}\n{"a": "' + b"x" * 100 + b'"}\n' + b'{"a": "' + b"x" * 10 + b'"}\n{}')
    rows = list(read_rows(tmp_path / "d.jsonl"))
    assert [where.rpartition(":")[2] for where, _ in rows] == ["1", "2", "3", "4"]
    assert isinstance(rows[1][1], BadRow)
    assert [rows[n][1] for n in (0, 2, 3)] == [{"a": 1}, {"a": "x" * 10}, {}]


def test_a_folder_is_its_data_files_in_order(tmp_path):
    write(tmp_path / "b.jsonl", ROWS[1:2])
    write(tmp_path / "a.json", ROWS[:1])
    (tmp_path / "README.md").write_text("not data")
    assert [file.name for file in data_files(tmp_path)] == ["a.json", "b.jsonl"]
    assert [row["completion"] for _, row in read_rows(tmp_path)] == ["x", "é"]
    before = file_fingerprint(tmp_path, 2)["sha256"]
    write(tmp_path / "b.jsonl", ROWS[2:])
    assert file_fingerprint(tmp_path, 2)["sha256"] != before


@pytest.mark.parametrize(
    ("name", "content", "part"),
    [
        ("missing.jsonl", None, "no such file"),
        ("d.pdf", b"x", "not a kind of file that is read; expected .jsonl"),
        ("d.jsonl", b"", "the data set is empty"),
        ("d.jsonl", b"\n \n", "the data set is empty"),
        ("d.csv", b"prompt,completion\n", "the data set is empty"),
        ("d.json", b"[]", "the data set is empty"),
        (
            "d.json",
            b'[{"prompt": "a"}]\n{"prompt": "b"}',
            "d.json:2: not valid JSON: Extra data; one object a line is .jsonl",
        ),
        ("d.json", b'{"rows": 1}', "expected a JSON list of rows, found an object with the keys rows; put the rows"),
        ("d.jsonl", b'{"prompt": "a", "completion": "b"}\n{"prompt": "\xff"}', "d.jsonl:2: not UTF-8 (byte 0xff)"),
        ("d.csv", b"prompt,completion\na,b\na,\xff", "d.csv:3: not UTF-8 (byte 0xff)"),
        ("d.json", b'[{"prompt": "a"},\n{"prompt": "\xff"}]', "d.json:2: not UTF-8 (byte 0xff)"),
        ("d.jsonl.gz", b"not gzip", "d.jsonl.gz: cannot be read"),
        ("d.jsonl.gz", gzip.compress(b'{"prompt": "a"}' * 99, mtime=0)[:-12], "d.jsonl.gz: cannot be read"),
        ("d.parquet", b"PAR1 not really", "d.parquet: not a Parquet file"),
        ("d.csv", b"prompt,completion\na," + b"x" * 200_000, "d.csv:2: not valid CSV: field larger"),
        ("d.jsonl", b'{"prompt": \n', "d.jsonl:1: not valid JSON: Expecting value at column"),
        ("d.jsonl", b"9" * 5000, "d.jsonl:1: expected an object with named keys, found a float"),
        ("d.jsonl", b"[" * 100_000, "d.jsonl:1: not valid JSON"),
        ("d.jsonl", b"[1]", "expected an object with named keys, found a list"),
        ("d.jsonl", b'{"ask": "a", "reply": "b"}', "found the keys ask, reply; expected messages | conversations |"),
        ("d.jsonl", b"{}", "found the keys none"),
        ("d.jsonl", b'{"instruction": "a", "outputs": []}', "found the keys instruction, outputs, a prompt row, which"),
        ("d.jsonl", b'{"prompt": "a", "completion": ""}', "'completion' is empty"),
        ("d.jsonl", b'{"prompt": "a", "completion": null}', "'completion' must be a string, found NoneType"),
        ("d.jsonl", b'{"prompt": 3, "completion": "b"}', "'prompt' must be a string, found int"),
        ("d.jsonl", b'{"prompt": "a\\ud800", "completion": "b"}', "'prompt' holds half of a surrogate pair"),
        ("d.jsonl", b'{"messages": []}', "'messages' must be a list of messages, found an empty one"),
        ("d.jsonl", b'{"messages": [7]}', "message 1 of 'messages' must be an object, found int"),
        ("d.jsonl", b'{"messages": [{"role": "narrator", "content": "x"}]}', "has role 'narrator'; expected system"),
        ("d.jsonl", b'{"messages": [{"role": "user", "content": "x"}]}', "has no turn of the assistant's"),
        ("d.jsonl", b'{"messages": [{"role": "assistant", "content": "x"}]}', "no turn before the assistant's"),
        ("d.csv", b"prompt,completion\nhello, you,fine\n", "d.csv:2: more values than the header has columns"),
        ("d.csv", b"prompt,completion\nhello\n", "'completion' must be a string, found NoneType"),
    ],
)
def test_what_cannot_be_used_is_named_in_one_line(tmp_path, name, content, part):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_records(path, to_demonstrations, config())
    assert str(caught.value).startswith(str(path))
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(DataError, match="no data file in this folder"):
        data_files(tmp_path)


def test_bad_rows_are_set_aside_by_line_up_to_the_share(tmp_path):
    path = tmp_path / "d.jsonl"
    rows = [{"prompt": f"p{number}", "completion": "c"} for number in range(99)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + "{broken\n")
    records = read_records(path, to_demonstrations, config())
    assert len(records.items) == 99
    assert [where for where, _ in records.bad] == [f"{path}:100"]
    with pytest.raises(DataError, match=r"d\.jsonl:100: .*1 of 100 rows are bad, data\.max_bad_share is 0\.009"):
        read_records(path, to_demonstrations, config(max_bad_share=0.009))


def test_no_share_of_bad_rows_lets_an_all_bad_file_through(tmp_path):
    (tmp_path / "d.jsonl").write_text("{}\n")
    with pytest.raises(DataError):
        read_records(tmp_path / "d.jsonl", to_demonstrations, config(max_bad_share=0.99))


def test_columns_rename_and_a_named_column_beats_one_of_our_name(tmp_path):
    rows = [{"question": "q", "prompt": "an id", "answer": "a"}]
    records = read_records(
        write(tmp_path / "d.jsonl", rows),
        to_demonstrations,
        config(columns={"prompt": "question", "completion": "answer"}),
    )
    assert records.items == [Demonstration((user("q"), assistant("a")))]
    with pytest.raises(DataError, match=r"no key 'title', which data\.columns names; found question, prompt, answer"):
        read_records(tmp_path / "d.jsonl", to_demonstrations, config(columns={"prompt": "title"}))


@pytest.mark.parametrize(
    ("row", "messages"),
    [
        (
            {"instruction": "Sort.", "input": "3 1", "output": "1 3"},
            (user("Sort.\n\n### Input:\n3 1"), assistant("1 3")),
        ),
        ({"instruction": "Sort.", "input": " ", "output": "?"}, (user("Sort."), assistant("?"))),
        ({"instruction": "Sort.", "output": "?"}, (user("Sort."), assistant("?"))),
        ({"messages": [user("a"), assistant("b")], "prompt": "a"}, (user("a"), assistant("b"))),
        ({"prompt": [user("a")], "completion": [assistant("b")]}, (user("a"), assistant("b"))),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, (user("a"), assistant("b"))),
    ],
)
def test_demonstrations_are_told_apart_by_their_keys(row, messages):
    assert to_demonstration(row).messages == messages


def test_hh_transcripts_become_a_shared_prompt_and_two_answers():
    start = "\n\nHuman: Hi \x00\n\nthere\n\nAssistant: Hello.\n\nHuman: Bye"
    pair = to_comparison({"chosen": start + "\n\nAssistant: Good bye.", "rejected": start + "\n\nAssistant: No. "})
    prompt = (user("Hi \x00\n\nthere"), assistant("Hello."), user("Bye"))
    assert pair == Comparison(prompt, "Good bye.", "No.")
    assert (pair.target, pair.weight) == (1.0, 1.0)
    assert to_prompt({"chosen": start + "\n\nAssistant: a", "rejected": start + "\n\nAssistant: b"}).messages == prompt


@pytest.mark.parametrize(
    ("chosen", "rejected", "part"),
    [
        ("\n\nHuman: a\n\nAssistant: b", "\n\nHuman: a\n\nAssistant: b", "are the same"),
        ("\n\nHuman: a\n\nAssistant: b", "\n\nHuman: x\n\nAssistant: c", "begin with different questions"),
        (
            "\n\nHuman: a\n\nAssistant: ",
            "\n\nHuman: a\n\nAssistant: c",
            r"turn 2 of the transcript \(assistant\) is empty",
        ),
        ("\n\nHuman: a", "\n\nHuman: b", "must end with the assistant's turn"),
        ("plain text", "other", "must begin with"),
        ("Hi\n\nHuman: a\n\nAssistant: b", "other", "must begin with"),
    ],
)
def test_transcripts_that_are_no_pair(chosen, rejected, part):
    with pytest.raises(BadRow, match=part):
        to_comparison({"chosen": chosen, "rejected": rejected})


@given(st.lists(st.text(min_size=1).filter(str.strip), min_size=2, max_size=6))
def test_a_transcript_is_the_turns_it_was_made_from(texts):
    names = [("Human", "user"), ("Assistant", "assistant")] * len(texts)
    joined = "".join(f"\n\n{name}: {text.strip()}" for (name, _), text in zip(names, texts, strict=False))
    assert parse_transcript(joined) == tuple(
        {"role": role, "content": text.strip()} for (_, role), text in zip(names, texts, strict=False)
    )


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ({"prompt": "a", "tag": 1}, "a"),
        ({"messages": [user("a"), assistant("b")]}, "a"),
        ({"messages": [user("a")]}, "a"),
        ({"instruction": "a", "output": "b"}, "a"),
    ],
)
def test_any_row_has_a_prompt(row, text):
    assert to_prompt(row).messages == (user(text),)


def test_a_prompt_keeps_the_rows_other_columns_and_ends_with_the_user():
    assert to_prompt({"prompt": "a", "topic": "hours"}).columns == {"topic": "hours"}
    with pytest.raises(BadRow, match="must end with the user's turn"):
        to_prompt({"prompt": [user("a"), assistant("b")]})
    with pytest.raises(BadRow, match="found the keys x"):
        to_prompt({"x": 1})


@given(
    st.integers(0, 5),
    st.integers(0, 5),
    st.integers(0, 5).filter(bool),
)
def test_votes_make_a_share_and_a_weight(first, second, ties):
    row = Comparison((user("a"),), "x", "y", tiny.votes(first, second, ties))
    swapped = Comparison((user("a"),), "y", "x", tiny.votes(second, first, ties))
    assert row.weight == first + second + ties
    assert row.target + swapped.target == pytest.approx(1.0)
    assert row.target == pytest.approx((first + ties / 2) / (first + second + ties))


prompts = st.lists(st.text(max_size=4), max_size=40)


def parted(records, share, seed=0):
    held_out = [record for record in records if is_held_out(record, share, seed)]
    return [record for record in records if record not in held_out], held_out


@given(prompts, prompts, st.floats(0, 0.99), st.integers(0, 3))
def test_a_prompt_is_on_one_side_and_stays_there_when_rows_come(texts, more, share, seed):
    def records(items):
        return [Demonstration((user(text), assistant(str(number)))) for number, text in enumerate(items)]

    train, held_out = parted(records(texts), share, seed)
    assert not {row.group for row in train} & {row.group for row in held_out}
    grown = parted(records([*texts, *more]), share, seed)
    assert {row.group for row in train} <= {row.group for row in grown[0]}
    assert {row.group for row in held_out} <= {row.group for row in grown[1]}


def test_the_share_is_about_the_share_and_the_seed_moves_it():
    rows = [Demonstration((user(f"prompt {number}"), assistant("x"))) for number in range(2000)]
    held_out = parted(rows, 0.2)[1]
    assert 340 <= len(held_out) <= 460
    assert parted(rows, 0.2, 1)[1] != held_out
    assert parted(rows, 0.0)[1] == []


def test_a_group_is_the_first_human_turn_folded():
    assert (
        prompt_group([{"role": "system", "content": "s"}, user(" How\nLONG? "), assistant("x"), user("y")])
        == "how long?"
    )
    assert prompt_group([user("a")]) != prompt_group([user("b")])


def numbered(path, numbers, answer="c"):
    return str(write(path, [{"prompt": f"p{number}", "completion": answer} for number in numbers]))


def said(records):
    return [record.messages[0]["content"] for record in records.items]


def test_train_and_eval_split_and_say_so(tmp_path):
    train = numbered(tmp_path / "train.jsonl", range(50))
    kept, out = train_and_eval(config(train=train, eval_share=0.3), to_demonstrations)
    assert len(kept.items) + len(out.items) == 50
    ((kept_mark,), (out_mark,)) = kept.fingerprints, out.fingerprints
    assert (kept_mark["use"], kept_mark["rows"]) == ("train", len(kept.items))
    assert (out_mark["use"], out_mark["rows"]) == ("eval", len(out.items))
    assert "0.3 held out, seed 0" in kept_mark["split"]
    assert kept_mark["sha256"] == out_mark["sha256"]
    other, _ = train_and_eval(config(train=train, eval_share=0.3, split_seed=5), to_demonstrations)
    assert said(other) != said(kept)
    one = numbered(tmp_path / "one.jsonl", range(1))
    with pytest.raises(DataError, match=r"all 1 rows are held out; lower data\.eval_share"):
        train_and_eval(config(train=one, eval_share=0.999999), to_demonstrations)


def test_all_stages_hold_out_the_same_prompts(tmp_path):
    """Whatever their seeds: what the reward model is judged on, the policy has not seen."""
    rows = [{"prompt": f"p{number}", "chosen": "a", "rejected": "b"} for number in range(60)]
    data = config(train=str(write(tmp_path / "pairs.jsonl", rows)), eval_share=0.3)
    held_out = [
        {record.group for record in train_and_eval(data, convert)[1].items}
        for convert in (to_examples, to_comparisons, to_prompts)
    ]
    assert held_out[0] == held_out[1] == held_out[2] != set()


def test_training_rows_whose_prompt_is_held_out_by_name_are_left_out_and_counted(tmp_path):
    train, held = numbered(tmp_path / "train.jsonl", range(50)), numbered(tmp_path / "held.jsonl", [3, 4, 99], "else")
    kept, out = train_and_eval(config(train=train, eval=held), to_demonstrations)
    assert said(kept) == [f"p{number}" for number in range(50) if number not in (3, 4)]
    assert said(out) == ["p3", "p4", "p99"]
    assert kept.notes == [f"2 rows of data.train left out: their prompts are in data.eval={held}"]
    assert (kept.fingerprints[0]["rows"], out.fingerprints[0]["rows"]) == (48, 3)
    assert "split" not in kept.fingerprints[0]
    with pytest.raises(DataError, match=r"each of its prompts is in data\.eval"):
        train_and_eval(config(train=held, eval=held), to_demonstrations)


def test_a_mixture_weighs_and_caps_its_parts_and_lists_them(tmp_path):
    a, b, c = (
        numbered(tmp_path / f"{name}.jsonl", range(start, start + 100))
        for name, start in zip("abc", (0, 100, 200), strict=True)
    )
    alien = str(write(tmp_path / "d.jsonl", [{"question": "q", "answer": "a", "tag": "x"}]))
    parts = [
        {"path": a, "weight": 2},
        {"path": b, "weight": 0.3},
        {"path": c, "cap": 7, "weight": 1.5},
        {"path": alien, "columns": {"prompt": "question", "completion": "answer"}, "format": "completion"},
    ]
    data = config(train=parts, eval_share=0.0)
    records = read_all(data)
    texts = said(records)
    assert texts[:200] == [f"p{number}" for number in range(100) for _ in range(2)]
    halves = texts[200 : texts.index("p200")]
    assert 15 <= len(halves) <= 45
    assert len(set(halves)) == len(halves)
    rest = texts[texts.index("p200") : -1]
    assert set(rest) == {f"p{number}" for number in range(200, 207)}
    assert 7 < len(rest) < 14
    assert texts[-1] == "q"
    assert texts == said(read_all(data))  # the same in every run
    assert texts != said(read_all(data.model_copy(update={"split_seed": 1})))
    marks = records.fingerprints
    assert [mark["name"] for mark in marks] == ["a.jsonl", "b.jsonl", "c.jsonl", "d.jsonl"]
    assert [mark["rows"] for mark in marks] == [200, len(halves), len(rest), 1]
    assert [mark.get("weight") for mark in marks] == [2, 0.3, 1.5, None]
    assert marks[2]["cap"] == 7
    assert marks[3]["columns"] == {"prompt": "question", "completion": "answer"}


def read_all(data):
    return train_and_eval(data, to_demonstrations)[0]


def test_held_out_rows_of_a_mixture_come_once(tmp_path):
    data = config(train=[{"path": numbered(tmp_path / "a.jsonl", range(50)), "weight": 3}], eval_share=0.3)
    train, held_out = train_and_eval(data, to_demonstrations)
    assert len(set(said(held_out))) == len(held_out.items) > 0
    assert len(train.items) == 3 * (50 - len(held_out.items))


def test_a_bad_part_is_not_hidden_by_a_good_one(tmp_path):
    good = numbered(tmp_path / "a.jsonl", range(200))
    bad = str(write(tmp_path / "b.jsonl", [{"x": 1}]))
    with pytest.raises(DataError, match=r"b\.jsonl:1: found the keys x"):
        read_all(config(train=[{"path": good}, {"path": bad}]))


def test_a_reading_is_a_stream(tmp_path):
    """The first record is there before the last row is read."""
    path = tmp_path / "d.jsonl"
    path.write_text('{"prompt": "a", "completion": "b"}\n{broken\n')
    reading = Reading(config(train=str(path), eval_share=0.0, max_bad_share=0.5), to_examples)
    records = iter(reading)
    assert next(records)[1].messages[0]["content"] == "a"
    assert reading.bad == []
    assert list(records) == []
    assert [where for where, _ in reading.bad] == [f"{path}:2"]


SHARED = Path(os.environ.get("ALIGNMENT_TEST_DATA") or Path(__file__).resolve().parents[5] / "shared" / "data")


@pytest.mark.skipif(
    not (SHARED / "hh-harmless").is_dir(), reason="no HH pairs; name their folder in ALIGNMENT_TEST_DATA"
)
def test_the_published_hh_pairs_read_as_they_are():
    """1606 pairs as published; four have an empty or an equal side."""
    records = read_records(SHARED / "hh-harmless" / "pairs.jsonl.gz", to_comparisons, config())
    assert len(records.items) + len(records.bad) == 1606
    assert len(records.bad) <= 8
    train, held_out = parted(records.items, 0.1)
    assert not {row.group for row in train} & {row.group for row in held_out}


def test_what_is_not_used_is_noted_once(tmp_path):
    path = tmp_path / "d.jsonl"
    chat = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    rows = [{"messages": chat, "lang": "en"}, {"messages": [*chat, chat[0]], "split": 1, "lang": "de"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = DataConfig(train="unused")
    assert read_records(path, to_demonstrations, config).notes == [
        "1 rows: the turns after the last answer are left out",
        f"{path}: not used: lang, split",
    ]
    assert read_records(path, to_prompts, config).notes == [f"{path}: given to reward functions alone: lang, split"]
