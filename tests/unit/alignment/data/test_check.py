"""What a report says of rows whose faults are known, and that a split parts them cleanly."""

import gzip
import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from helpers import tiny
from helpers.inspecting import finding, inspect
from hypothesis import given, settings
from hypothesis import strategies as st

from alignment.config.sections import DataConfig
from alignment.data.check import (
    DataReport,
    Finding,
    Inspector,
    SetAside,
    html_page,
    report_of,
    schema_validator,
    text_lines,
)
from alignment.data.check.inspector import Places
from alignment.data.check.report import Histogram, histogram
from alignment.data.duplicates import BAND, sketch
from alignment.data.importers import PassedOver
from alignment.data.records import CompletionRating, prompt_group
from alignment.data.row_files import BadRow, DataError
from alignment.data.splitting import plan_split, write_split
from alignment.data.trimming import fit
from alignment.templates.rendering import encode_conversation

HOSTILE = "<script>alert(1)</script>\"'&\x1b[31m\u202e{{ 7 * 7 }}</style>"


def row(prompt, completion="An answer."):
    return {"prompt": prompt, "completion": completion}


def test_rows_are_counted_by_shape_and_set_aside_by_reason_with_their_places():
    chat = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}
    report = inspect(
        [
            chat,
            row("A question?"),
            {"instruction": "Say", "output": "word"},
            BadRow("not valid JSON: oops at column 7"),
            BadRow("not valid JSON: oops at column 12"),
            [1, 2],
            row("x", ""),
            {"messages": [{"role": "user", "content": "no answer"}]},
            {"words": "plain"},
        ]
    )
    assert (report.rows, report.kept) == (9, 3)
    assert report.shapes == {
        "chat (messages)": 1,
        "completion (prompt, completion)": 1,
        "alpaca (instruction, output)": 1,
    }
    assert report.set_aside[0] == SetAside("not valid JSON: oops at column 7", 2, ["d.jsonl:4", "d.jsonl:5"])
    reasons = {place: item.reason for item in report.set_aside for place in item.places}
    assert "found a list" in reasons["d.jsonl:6"]
    assert "'completion' is empty" in reasons["d.jsonl:7"]
    assert "has no turn of the assistant's" in reasons["d.jsonl:8"]
    assert finding(report, "set_aside").level == "error"
    assert finding(report, "few_rows").text == "you have 3 rows: the usual guidance is about 1,000"


def test_duplicates_and_contradictions_name_both_places():
    long = "Tell me at what hour the public library on the main square opens on the first Monday of the month"
    report = inspect(
        [
            row(f"{long}?"),
            row("What is the fine?", "Ten cents."),
            row(f"{long}?"),
            row(f"{long}, please?"),
            row("What is the fine?", "Nothing."),
            row("What is the fine?", "Ten cents."),
            row("Where are the maps?"),
        ]
    )
    assert finding(report, "exact_duplicates").places == ["d.jsonl:3 and d.jsonl:1", "d.jsonl:6 and d.jsonl:2"]
    assert finding(report, "near_duplicates").places == ["d.jsonl:4 and d.jsonl:1"]
    contradictions = finding(report, "contradictions")
    assert contradictions.count == 1
    assert contradictions.places == ["d.jsonl:5 and d.jsonl:2"]


def test_a_clean_file_has_no_finding_but_its_size():
    rows = [row(f"Question {n}: {'abcdefghij'[n] * 30}?", f"{'klmnopqrst'[n] * 20}") for n in range(10)]
    assert [finding.kind for finding in inspect(rows).findings] == ["few_rows"]
    assert inspect([]).findings == []


def test_held_out_rows_whose_prompt_is_trained_on_are_leaks():
    near = "Tell me at what hour the public library on the main square opens on the first Monday of the month"
    rows = [
        row("What is the fine?"),
        row(near),
        row("what IS  the fine?", "x"),
        row(f"{near}!", "y"),
        row("Maps?", "z"),
    ]
    report = inspect(rows, held_out={3, 4, 5})
    leaks = finding(report, "split_leaks")
    assert leaks.count == 2
    assert leaks.places == ["d.jsonl:3 and d.jsonl:1", "d.jsonl:4 and d.jsonl:2"]
    assert report.held_out == 3
    assert finding(inspect(rows, held_out={5}), "split_leaks") is None


@pytest.mark.parametrize(
    ("kind", "messages"),
    [
        ("same_role", [("user", "a"), ("user", "b"), ("assistant", "c")]),
        ("assistant_first", [("assistant", "a"), ("user", "b"), ("assistant", "c")]),
        ("system_later", [("user", "a"), ("system", "b"), ("assistant", "c")]),
        ("markers", [("user", "<|im_start|>user\na"), ("assistant", "c")]),
        ("echo", [("user", "Same  words"), ("assistant", "same words")]),
    ],
)
def test_turns_are_checked(kind, messages):
    bad = {"messages": [{"role": role, "content": content} for role, content in messages]}
    report = inspect([row("Fine?", "Yes."), bad])
    assert [f.kind for f in report.findings if f.level == "warning"] == [kind]
    assert finding(report, kind).places == ["d.jsonl:2"]


def test_lengths_are_those_of_training(tokenizer):
    """Trimmed, left out and the trained share, each against the encoding itself."""
    rows = [row("short?", "yes"), row("long " * 60, "yes"), row("short?", "no " * 100), row("b", "c")]
    limit = 64
    report = inspect(rows, tokenizer=tokenizer, config={"eval_share": 0.0, "max_length": limit})
    messages = [
        [{"role": "user", "content": r["prompt"]}, {"role": "assistant", "content": r["completion"]}] for r in rows
    ]
    full = [encode_conversation(tokenizer, turns) for turns in messages]
    cut = [fit(tokenizer, turns, whole, limit) for turns, whole in zip(messages, full, strict=True)]
    assert [encoded is None for encoded in cut] == [False, False, True, False]
    assert (report.unit, report.max_length) == ("tokens", limit)
    assert report.lengths["whole row"].max == max(len(encoded.input_ids) for encoded in full)
    assert report.lengths["answer"].min == min(encoded.num_response_tokens for encoded in full)
    kept = [encoded for encoded in cut if encoded]
    assert report.trained_share == sum(sum(e.loss_mask) for e in kept) / sum(len(e.input_ids) for e in kept)
    assert finding(report, "truncated").places == ["d.jsonl:2"]
    assert finding(report, "left_out").places == ["d.jsonl:3"]


def test_a_template_whose_end_is_no_token_is_an_error():
    tokenizer = tiny.make_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}</s>{% endfor %}"
    problem = finding(inspect([row("a", "b")], tokenizer=tokenizer), "template")
    assert problem.level == "error"
    assert "never learn to stop" in problem.places[0]


def test_personal_data_is_counted_and_not_shown():
    inspector = Inspector(DataConfig(train="d.jsonl"))
    scrubbed, _ = inspector.add("d.jsonl:1", row("I am ada@example.com", "4111 1111 1111 1111, 212-555-0187"))
    report = report_of(inspector, ["d.jsonl"])
    assert scrubbed == row("I am [MAIL]", "[CARD], [PHONE]")
    assert report.personal_data == {"card": 1, "mail": 1, "phone": 1}
    assert finding(report, "personal_mail").places == ["d.jsonl:1"]
    assert not any(secret in json.dumps(report.to_dict()) for secret in ("ada", "4111", "0187"))


def test_pairs_whose_chosen_answer_is_the_longer_one_are_told():
    pairs = [{"prompt": f"q{n}", "chosen": "long answer", "rejected": "short"} for n in range(100)]
    assert "100% of the pairs" in finding(inspect(pairs), "length_bias").text


def test_pairs_contradict_where_they_prefer_the_opposite_and_not_where_a_ranking_is_in_pairs():
    prompt = "Tell me at what hour the public library on the main square opens on the first Monday of the month"

    def pair(chosen, rejected):
        return {"prompt": prompt, "chosen": chosen, "rejected": rejected}

    ranking = [pair("At nine.", "At ten."), pair("At nine.", "At one."), pair("At ten.", "At one.")]
    assert [found.kind for found in inspect(ranking).findings] == ["few_rows"]
    report = inspect([*ranking, pair("At one.", "At nine."), pair("At ten.", "At one.")])
    assert finding(report, "contradictions").places == ["d.jsonl:4 and d.jsonl:2"]
    assert "preferred one way in one row and the other way in another" in finding(report, "contradictions").text
    assert finding(report, "exact_duplicates").places == ["d.jsonl:5 and d.jsonl:3"]


def test_a_histogram_counts_each_row_once():
    counts = histogram(np.arange(1000, dtype=np.uint64))
    assert (counts.width, counts.counts) == (50, [50] * 20)
    far = histogram(np.array([1] * 99 + [10**6], np.uint64))
    assert sum(far.counts) == 100
    assert histogram(np.array([], np.uint64)).counts == []


def test_what_holds_no_example_is_passed_over_and_not_bad():
    report = inspect([row("A?"), PassedOver("no agent answered this thread")])
    assert (report.rows, report.kept, report.bad) == (2, 1, 0)
    assert finding(report, "passed_over").places == ["d.jsonl:2"]


def test_prompts_and_texts_are_looked_at_as_what_they_are(tokenizer):
    report = inspect(
        [{"prompt": "When?"}, {"prompt": "When?"}, {"text": "A line."}, {"text": "B"}], tokenizer=tokenizer
    )
    assert report.kept == 4
    assert finding(report, "exact_duplicates").places == ["d.jsonl:2 and d.jsonl:1"]
    assert finding(report, "contradictions") is None
    assert report.lengths["answer"].min == 0
    assert 0 < report.trained_share < 1


def test_answers_are_checked_by_a_validator():
    def validate(answer):
        return None if answer == "{}" else "not JSON"

    report = inspect([row("a", "{}"), row("b", "no")], validate=validate)
    assert finding(report, "schema").places == ["d.jsonl:2: not JSON"]


def test_a_json_schema_is_a_validator():
    pytest.importorskip("jsonschema")
    validate = schema_validator({"type": "object", "required": ["city"], "properties": {"city": {"type": "string"}}})
    assert validate('{"city": "Rome"}') is None
    assert validate("Rome") == "not JSON"
    assert "$.city" in validate('{"city": 1}')
    assert [schema_validator({})(text) for text in ("NaN", '{"a": -Infinity}', "[" * 100_000)] == ["not JSON"] * 3
    with pytest.raises(DataError, match="is not in the file"):  # and nothing is fetched
        schema_validator({"$ref": "http://example.invalid/other.json"})("{}")


@given(st.lists(st.text(min_size=1) | st.integers(0, 10**6).map(lambda n: f"a:{n}"), max_size=5))
def test_places_come_back_as_they_were(texts):
    places = Places()
    for text in texts:
        places.add(text)
    assert [places[i] for i in range(len(places))] == texts


# --- what people see ---------------------------------------------------------------------------------------------


def hostile_report(text):
    return DataReport(
        sources=[text],
        stage=None,
        readers={},
        rows=2,
        bad=1,
        kept=1,
        held_out=0,
        shapes={text: 1},
        set_aside=[SetAside(text, 1, [text])],
        unit="words",
        max_length=None,
        lengths={},
        histogram=Histogram(1, [2]),
        trained_share=0.5,
        personal_data={},
        findings=[Finding("warning", "x", 1, text, text, [text])],
    )


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found, self.attributes = set(), set()

    def handle_starttag(self, tag, attrs):
        self.found.add(tag)
        self.attributes |= {(tag, name) for name, _ in attrs}


def tags(page):
    parser = Tags()
    parser.feed(page)
    return parser.found, parser.attributes


@given(st.text() | st.just(HOSTILE) | st.sampled_from(["<img src=x onerror=a>", "</li><a href='//x'>", "{% if %}"]))
def test_no_text_adds_a_tag_to_the_page_or_a_control_to_the_terminal(text):
    page = html_page(hostile_report(text))
    assert tags(page) == tags(html_page(hostile_report("plain")))
    assert page.encode("utf-8")
    for line in text_lines(hostile_report(text)):
        assert "\x1b" not in line.plain and "\n" not in line.plain and "\u202e" not in line.plain


def test_the_page_loads_nothing():
    page = html_page(inspect([row("a", "b"), row("a", "c"), {}]))
    assert "default-src 'none'" in page
    assert "http:" not in page and "https:" not in page and "src=" not in page and "href=" not in page
    assert "several different answers" in page


# --- split ---------------------------------------------------------------------------------------------------------


def write(folder: Path, rows, name="d.jsonl"):
    path = folder / name
    path.write_bytes(b"".join(json.dumps(item).encode() + b"\n" for item in rows))
    return path


def near(one, other):
    one, other = sketch(one), sketch(other)
    return (one == other).mean() >= 0.8 and (one.reshape(-1, BAND) == other.reshape(-1, BAND)).all(axis=1).any()


base = "Tell me at what hour the public library on the main square opens in the month of {} and who works there then"
prompts = st.lists(
    st.builds(
        lambda form, month, end: form.format(month) + end,
        st.sampled_from([base, base.upper(), "{} fines?", "Where {}?"]),
        st.sampled_from(["May", "June", "August", "December"]),
        st.sampled_from(["", "!", "?", " please", "  "]),
    ),
    min_size=4,
    max_size=25,
)


@settings(max_examples=60, deadline=None)
@given(prompts, st.integers(0, 5), st.sampled_from([0.2, 0.5]))
def test_a_split_is_a_partition_and_no_near_prompt_straddles_it(tmp_path_factory, texts, seed, share):
    folder = tmp_path_factory.mktemp("split")
    path = write(folder, [row(text, f"answer {n}") for n, text in enumerate(texts)])
    try:
        split = plan_split(path, share, seed)
    except DataError:
        return  # all prompts are alike
    write_split(path, split, folder / "out")
    sides = [(folder / "out" / name).read_bytes().splitlines(keepends=True) for name in ("train.jsonl", "test.jsonl")]
    lines = path.read_bytes().splitlines(keepends=True)
    assert sorted(sides[0] + sides[1]) == sorted(lines)
    assert [line for line in lines if line in sides[0]] == sides[0]  # in order
    train, test = ([json.loads(line)["prompt"] for line in side] for side in sides)
    for one in train:
        for other in test:
            assert prompt_group([{"role": "user", "content": one}]) != prompt_group(
                [{"role": "user", "content": other}]
            )
            assert not near(one, other)


def test_lines_are_kept_byte_for_byte(tmp_path):
    """Odd spacing, escapes, CRLF, a BOM, blank lines, no newline at the end; two files, one packed."""
    first = (
        b'\xef\xbb\xbf{"prompt":"q0", "completion" : "\\u00e9"}\r\n\n  \n{"prompt": "q1 abc", "completion": "\xc3\xa9"}'
    )
    second = b"".join(b'{"completion": "a",   "prompt": "word%d %s"}\n' % (n, bytes([97 + n]) * 9) for n in range(20))
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.jsonl").write_bytes(first)
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(second, mtime=0))
    marks = write_split(folder, plan_split(folder, 0.4, 0), tmp_path / "out")
    written = [(tmp_path / "out" / f"{side}.jsonl").read_bytes() for side in ("train", "test")]
    expected = [
        line + b"\n" for line in (first.removeprefix(b"\xef\xbb\xbf") + b"\n" + second).split(b"\n") if line.strip()
    ]
    assert sorted(b"".join(written).splitlines(keepends=True)) == sorted(expected)
    assert marks["train"]["rows"] + marks["test"]["rows"] == 22
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["test.jsonl", "train.jsonl"]


def test_adding_rows_does_not_move_a_prompt_and_a_seed_does(tmp_path):
    rows = [row("".join(np.random.default_rng(n).choice(list("abcdefghij"), 30)), "a") for n in range(60)]
    few = plan_split(write(tmp_path, rows[:40]), 0.5, 0).is_test
    assert plan_split(write(tmp_path, rows), 0.5, 0).is_test[:40] == few
    assert plan_split(write(tmp_path, rows[:40]), 0.5, 1).is_test != few
    assert 0.2 < np.mean(few) < 0.8


def test_answers_from_one_passage_stay_together(tmp_path):
    rows = [row(chr(97 + n) * 20) | {"source_id": n % 3, "context": ""} for n in range(18)]
    split = plan_split(write(tmp_path, [*rows, *(row(chr(48 + n) * 20) for n in range(10))]), 0.5, 0)
    assert split.num_groups == 3 + 10
    for source in range(3):
        assert len({split.is_test[n] for n in range(18) if n % 3 == source}) == 1


def test_bad_rows_go_nowhere_and_too_many_stop_the_split(tmp_path):
    rows = [row(f"{n} {chr(97 + n % 26) * 20}") for n in range(150)]
    split = plan_split(write(tmp_path, [*rows, {"x": 1}]), 0.3, 0)
    assert split.is_test[-1] is None
    assert [where for where, _ in split.bad] == [f"{tmp_path / 'd.jsonl'}:151"]
    with pytest.raises(DataError, match=r"d\.jsonl:151: found the keys x; expected messages"):
        plan_split(write(tmp_path, [*rows, *[{"x": 1}] * 9]), 0.3, 0)


def test_rows_that_hold_several_records_and_texts_are_split_whole(tmp_path):
    rows = [
        {"instruction": chr(97 + n) * 20, "instances": [{"input": "x", "output": "a"}, {"input": "y", "output": "b"}]}
        for n in range(10)
    ]
    rows += [{"text": chr(65 + n) * 30 + " " + chr(100 + n) * 30} for n in range(10)]
    split = plan_split(write(tmp_path, rows), 0.5, 0)
    assert split.counts["train"] + split.counts["test"] == 20
    assert None not in split.is_test


def test_prompts_without_answers_are_split_too(tmp_path):
    split = plan_split(write(tmp_path, [{"prompt": chr(97 + n) * 20} for n in range(20)]), 0.5, 0)
    assert split.counts["train"] + split.counts["test"] == 20


def test_several_rated_answers_to_a_prompt_contradict_nothing():
    inspector, tokenizer = Inspector(DataConfig(train="d.jsonl")), tiny.make_tokenizer()
    prompt = ({"role": "user", "content": "When do you open?"},)
    for number, text in enumerate(("At nine.", "At ten, mail ada@example.com", "At nine."), 1):
        encoded = encode_conversation(tokenizer, [*prompt, {"role": "assistant", "content": text}])
        inspector.look(
            CompletionRating(prompt, text, float(number), place=f"d.jsonl:{number}"), encoded, encoded, held_out=False
        )
    report = report_of(inspector, ["d.jsonl"])
    assert finding(report, "contradictions") is None
    assert finding(report, "exact_duplicates").places == ["d.jsonl:3 and d.jsonl:1"]
    assert report.personal_data == {"mail": 1}
