"""Rows come back as they were from every shape and kind of file, or the command says what did not."""

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import alignment.cli.main
from alignment.config.sections import DataConfig
from alignment.data.convert import TARGETS, convert
from alignment.data.parsing import to_comparisons, to_examples
from alignment.data.reading import read_records
from alignment.errors import UserError
from alignment.templates.builtin import INPUT_HEADING

texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20).filter(str.strip)


@st.composite
def chats(draw):
    turns = [{"role": "system", "content": draw(texts)}] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        turns += [{"role": "user", "content": draw(texts)}, {"role": "assistant", "content": draw(texts)}]
    return {"messages": turns}


questions = st.builds(lambda q, a: {"prompt": q, "completion": a}, texts, texts)
alpaca = st.builds(lambda q, i, a: {"instruction": q, "input": i, "output": a}, texts, texts, texts)


def write(path: Path, rows) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def records(path, to_records=to_examples):
    return read_records(path, to_records, DataConfig(train="unused", max_bad_share=0.999)).items


def converted(source: Path, name: str, target: str):
    out = source.with_name(name)
    out.unlink(missing_ok=True)
    return out, convert(DataConfig(train=str(source)), out, target)


@pytest.mark.parametrize("target", ["chat", "openai", "sharegpt", "completion"])
@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".parquet"])
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(chats() | questions | alpaca, min_size=1, max_size=5))
def test_a_conversation_comes_back_as_it_was(tmp_path, rows, target, suffix):
    source = write(tmp_path / "in.jsonl", rows)
    out, done = converted(source, f"out{suffix}", target)
    assert records(out) == records(source)
    assert (done.written, done.bad, dict(done.lost)) == (len(rows), [], {})


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(questions | alpaca | chats(), min_size=1, max_size=5))
def test_alpaca_holds_questions_and_names_what_it_cannot_hold(tmp_path, rows, suffix):
    source = write(tmp_path / "in.jsonl", rows)
    fits = [len(record.messages) == 2 for record in records(source)]
    if not any(fits):
        with pytest.raises(UserError, match="no row can be written as alpaca"):
            converted(source, f"out{suffix}", "alpaca")
        return
    out, done = converted(source, f"out{suffix}", "alpaca")
    assert records(out) == [record for record, held in zip(records(source), fits, strict=True) if held]
    assert [where for where, _ in done.bad] == [f"{source}:{n}" for n, held in enumerate(fits, 1) if not held]
    assert all("holds one question and its answer; this conversation has" in reason for _, reason in done.bad)


@given(questions | alpaca)
def test_an_input_is_a_column_of_its_own_again(tmp_path_factory, row):
    source = write(tmp_path_factory.mktemp("c") / "in.jsonl", [row])
    out, _ = converted(source, "out.jsonl", "alpaca")
    new = json.loads(out.read_text(encoding="utf-8"))
    assert (new["input"] != "") == (INPUT_HEADING in records(source)[0].messages[0]["content"])


def test_tools_weights_and_calls_survive_where_there_is_room(tmp_path):
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    turns = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "2", "tool_call_id": "1"},
        {"role": "assistant", "content": "b", "weight": 0},
        {"role": "user", "content": "c"},
        {"role": "assistant", "content": "d"},
    ]
    source = write(tmp_path / "in.jsonl", [{"messages": turns, "tools": tools}])
    for target in ("chat", "openai", "sharegpt"):
        out, _ = converted(source, "out.jsonl", target)
        assert records(out) == records(source)
    row = json.loads(converted(source, "out.jsonl", "openai")[0].read_text())
    assert row["messages"][1]["tool_calls"][0]["function"]["arguments"] == '{"x": 1}'
    for target, name in (("completion", "o.jsonl"), ("text", "o.jsonl"), ("chat", "o.parquet")):
        with pytest.raises(UserError, match=r"no tools|no room for tools"):
            converted(source, name, target)
        assert not (tmp_path / name).exists()


def test_pairs_keep_both_answers_and_a_ranking_is_its_pairs(tmp_path):
    prompt = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Hi"}]
    rows = [
        {"prompt": prompt, "chosen": "good", "rejected": "bad"},
        {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"},
        {"prompt": "q", "completions": ["x", "y", "z"], "ranks": [2, 1, 3]},
    ]
    source = write(tmp_path / "in.jsonl", rows)
    for name in ("out.jsonl", "out.parquet"):
        out, done = converted(source, name, "pair")
        pairs = records(out, to_comparisons)
        assert done.written == len(pairs) == 5
        assert pairs[0].prompt == tuple(prompt)
        assert all(pair.target == 1 for pair in pairs)
    chosen = [(json.loads(line)["chosen"], json.loads(line)["rejected"]) for line in (tmp_path / "out.jsonl").open()]
    assert chosen == [("good", "bad"), ("b", "c"), ("y", "x"), ("x", "z"), ("y", "z")]
    _, done = converted(source, "chats.jsonl", "chat")
    assert dict(done.lost) == {"rejected": 2, "completions": 1, "ranks": 1}  # a chat with `rejected` would be refused


def test_of_several_pairs_in_a_row_the_decided_ones_are_written_and_ties_named(tmp_path):
    rows = [
        {"prompt": "q", "completions": ["x", "y", "z"], "ranks": [1, 1, 2]},
        {"question": "q", "passages": [], "prediction 1": "a", "prediction 2": "b", "preference": [2]},
    ]
    source = write(tmp_path / "in.jsonl", rows)
    out, done = converted(source, "out.jsonl", "pair")
    pairs = [json.loads(line) for line in out.open()]
    assert [(row["chosen"], row["rejected"]) for row in pairs] == [("x", "z"), ("y", "z"), ("b", "a")]
    assert done.lost["ties"] == 1
    assert done.bad == []


def test_other_columns_go_along_or_are_named(tmp_path):
    rows = [{"question": "q", "answer": "a", "source_id": 7, "tags": ["x"]}, {"question": "r", "answer": "b"}]
    source = write(tmp_path / "in.jsonl", rows)
    out, done = converted(source, "out.jsonl", "completion")
    assert [json.loads(line) for line in out.open()] == [
        {"prompt": "q", "completion": "a", "source_id": 7, "tags": ["x"]},
        {"prompt": "r", "completion": "b"},
    ]
    assert dict(done.lost) == {}
    _, done = converted(source, "out.csv", "completion")
    assert dict(done.lost) == {"source_id": 1, "tags": 1}
    # A key that would change the shape of the new row is no longer carried, and named.
    source = write(tmp_path / "in.jsonl", [{"question": "q", "answer": "a", "message_tree_id": 5}])
    out, done = converted(source, "out.jsonl", "completion")
    assert dict(done.lost) == {"message_tree_id": 1}
    assert records(out)[0].messages[0]["content"] == "q"


def test_a_text_holds_everything_but_who_says_what(tmp_path):
    source = write(tmp_path / "in.jsonl", [{"text": "A line."}, {"prompt": "q", "completion": "a"}])
    out, done = converted(source, "out.csv", "text")
    assert [record.text for record in records(out)] == ["A line.", "q\n\na"]
    assert dict(done.lost) == {"who says what": 1}
    with pytest.raises(UserError, match="a plain text has no turns; only --to text can hold it"):
        converted(write(tmp_path / "in.jsonl", [{"text": "A line."}]), "out.jsonl", "chat")


def run(*arguments):
    return CliRunner().invoke(alignment.cli.main.app, ["data", "convert", *map(str, arguments)])


def test_the_command_says_what_it_wrote_and_what_it_left(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(Path("a.jsonl"), [{"question": "q", "reply": "a", "id": 1}, {"question": "", "reply": "x"}])
    Path("b.md").write_text("# Fees\n\nTen cents.\n")
    columns = ("--column", "prompt=question", "--column", "completion=reply")
    result = run("a.jsonl", "out.csv", "--to", "completion", *columns, "--bad", "bad.jsonl")
    assert result.exit_code == 0, result.output
    assert result.stdout == (
        "out.csv  1 rows\n  not carried  id (1 rows)\n  set aside    a.jsonl:2: 'prompt' is empty\n"
    )
    assert json.loads(Path("bad.jsonl").read_text()) == {"where": "a.jsonl:2", "reason": "'prompt' is empty"}
    result = run("b.md", "faq.jsonl", "--to", "alpaca", "--format", "faq", "--json")
    facts = json.loads(result.stdout)
    assert (facts["rows"], facts["bad"], facts["not_carried"]) == (1, [], {})
    assert json.loads(Path("faq.jsonl").read_text())["instruction"] == "Fees"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a.jsonl", "out.jsonl", "--to", "xml"], "--to xml: expected one of chat, openai"),
        (["a.jsonl", "--to", "chat"], "what is written? Name a file after a.jsonl"),
        (["a.jsonl", "out.txt", "--to", "chat"], "out.txt: this file type is not supported; use .jsonl"),
        (["a.jsonl", "out.csv", "--to", "chat"], "a CSV file has no room for turns"),
        (["a.jsonl", "a.jsonl", "--to", "chat"], "a.jsonl: exists already"),
        (["gone.jsonl", "out.jsonl", "--to", "chat"], "gone.jsonl: no such file"),
        (["a.jsonl", "no/out.jsonl", "--to", "chat"], "no/out.jsonl: cannot be written"),
        (["a.jsonl", "o.jsonl", "--to", "chat", "--format", "xml"], "format"),
        (["a.jsonl", "o.jsonl", "--to", "chat", "--column", "x"], "--column x: expected OURS=THEIRS"),
        (["bad.jsonl", "o.jsonl", "--to", "chat"], "bad.jsonl: no row can be written as chat; the first: bad.jsonl:1:"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    write(Path("a.jsonl"), [{"prompt": "q", "completion": "a"}])
    Path("bad.jsonl").write_text("{broken\n")
    before = Path("a.jsonl").read_bytes()
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    assert message in result.stderr
    assert sorted(path.name for path in Path().iterdir()) == ["a.jsonl", "bad.jsonl"]
    assert Path("a.jsonl").read_bytes() == before


def test_every_target_is_a_shape_that_is_read(tmp_path):
    """What is written in one target can be converted from it again."""
    source = write(tmp_path / "in.jsonl", [{"prompt": "q", "chosen": "a", "rejected": "b"}])
    for target in TARGETS:
        out, _ = converted(source, "out.jsonl", target)
        _, done = converted(out, "again.jsonl", "text" if target == "text" else "chat")
        assert done.written == 1


def test_margins_and_answers_of_several_turns_survive_in_pairs(tmp_path):
    later = [{"role": "user", "content": "r"}, {"role": "assistant", "content": "d"}]
    rows = [
        {"prompt": "q", "chosen": "a", "rejected": "b", "margin": 2.0},
        {"prompt": "q", "chosen": "a", "rejected": "b", "annotator": "ada"},
        {"prompt": "q", "chosen": [{"role": "assistant", "content": "c"}, *later], "rejected": "b"},
    ]
    source = write(tmp_path / "in.jsonl", rows)
    out, done = converted(source, "out.jsonl", "pair")
    assert records(out, to_comparisons) == records(source, to_comparisons)
    assert dict(done.lost) == {}
