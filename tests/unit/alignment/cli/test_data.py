"""`alignment data`: what it prints for people, for pipes and for programs, and how it fails."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers import tiny
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

import alignment.cli.data
import alignment.cli.main
from alignment import html
from alignment.config.loading import read_values
from alignment.config.recipes import read_recipe
from alignment.config.sections import DataConfig
from alignment.data.preview import encode_for_preview, preview_json, preview_lines
from alignment.data.records import Demonstration
from alignment.errors import ConfigError, UserError
from alignment.templates.rendering import TEMPLATES, Message
from sft.data import IGNORED, encode_example

ROOT = Path(__file__).resolve().parents[4]
ROWS = [
    {"prompt": "When does it open?", "completion": "At nine."},
    {"prompt": "Can I renew by mail?", "completion": "Yes: write to desk@example.org, 猫."},
    {"prompt": "What is the fine for a late book?", "completion": "Ten cents."},
]


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ALIGNMENT_REGISTRY", str(tmp_path / "registry"))
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    tiny.make_tokenizer("chatml").save_pretrained(folder)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    return folder


def run(*arguments: Any) -> Result:
    return CliRunner().invoke(alignment.cli.main.app, ["data", *map(str, arguments)])


def done(*arguments: Any) -> str:
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_a_page_is_written_over_a_page_and_over_nothing_else(tmp_path: Path) -> None:
    page, rows, empty = tmp_path / "page.html", tmp_path / "rows.jsonl", tmp_path / "empty"
    rows.write_text('{"prompt": "mine"}\n')
    empty.touch()
    for text in ("first", "second"):
        whole = html.render(text, "", "", "<p>x</p>")
        for path in (page, empty, Path(os.devnull)):
            html.write(path, whole, "--html")
        assert page.read_text() == empty.read_text() == whole
    link = tmp_path / "link.html"
    link.symlink_to(page)
    html.write(link, whole.replace("second", "third"), "--html")
    assert link.is_symlink() and "third" in page.read_text()
    link.unlink()
    html.write(tmp_path / f"{'n' * 250}.html", whole, "--html")
    (tmp_path / f"{'n' * 250}.html").unlink()
    for wrong in (rows / "page.html", tmp_path / f"{'n' * 300}.html", tmp_path / "no" / "folder.html"):
        with pytest.raises(UserError, match="cannot be written"):
            html.write(wrong, whole, "--html")
    with pytest.raises(UserError, match="exists already and is no page; remove it or name another file"):
        html.write(rows, whole, "--html")
    assert rows.read_text() == '{"prompt": "mine"}\n'
    assert not Path(os.devnull).is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "page.html", "rows.jsonl"]


RECIPES = [path for stage in ("sft", "reward", "ppo") for path in sorted((ROOT / "configs" / stage).glob("*.yaml"))]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_config_of_any_stage_says_which_data_and_model(path: Path) -> None:
    recipe = read_recipe(path)
    values = read_values(path)
    assert recipe.model.name == values["model"].get("name", values["model"].get("policy"))
    assert [part.path for part in recipe.data.parts] == [part.path for part in DataConfig(**values["data"]).parts]


def test_mistakes_in_those_two_sections_are_named(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("model: {name: m}\ndata: {train: x, max_lenght: 3}\nreward: {margin: 1}\n")
    with pytest.raises(ConfigError, match=r"data\.max_lenght.*max_length"):
        read_recipe(path)
    path.write_text("model: {name: m}\n")
    with pytest.raises(ConfigError, match=r"'data'"):
        read_recipe(path)
    path.write_text("model: {polcy: m}\ndata: {train: x}\n")
    with pytest.raises(ConfigError, match=r"neither model.name nor, as PPO's, model.policy"):
        read_recipe(path)


def test_a_ratings_database_is_sent_to_the_command_that_reads_it(tmp_path: Path) -> None:
    (tmp_path / "ratings.db").touch()
    result = run("check", tmp_path / "ratings.db")
    assert result.exit_code == 2 and "`alignment rate report`" in result.output


def test_check_prints_lines_without_codes_in_a_pipe(rows: Path) -> None:
    out = done("check", rows)
    assert "3 read, 3 usable, 0 set aside" in out
    assert "you have 3 rows: the usual guidance is about 1,000" in out
    assert (
        "  warning   mail addresses found: 1, in 1 row\n            -> --scrub OUT.jsonl writes a copy without them\n"
        "            at rows.jsonl:2\n"
    ) in out
    assert out.startswith("Can be trained on; 1 thing to look at first\n")
    assert "\x1b" not in out and "desk@" not in out


def test_check_gives_json_a_page_and_a_scrubbed_copy(rows: Path, model: Path, tmp_path: Path) -> None:
    page, copy = tmp_path / "r.html", tmp_path / "copy.jsonl.gz"
    report = json.loads(done("check", rows, "--model", model, "--json", "--html", page, "--scrub", copy))
    assert (report["rows"], report["kept"], report["unit"], report["max_length"]) == (3, 3, "tokens", 1024)
    assert page.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    copied = [json.loads(line) for line in gzip.decompress(copy.read_bytes()).splitlines()]
    assert copied == [ROWS[0], ROWS[1] | {"completion": "Yes: write to [MAIL], 猫."}, ROWS[2]]
    assert run("check", rows, "--scrub", copy).exit_code == 2  # it exists


def test_check_reads_a_stages_config(rows: Path, tmp_path: Path) -> None:
    renamed, held = tmp_path / "renamed.csv", tmp_path / "held.jsonl"
    renamed.write_text("question,answer\nWhen does it open?,At nine.\n")
    held.write_text(json.dumps({"question": "WHEN does it open?", "answer": "At ten."}) + "\n")
    config = tmp_path / "sft.yaml"
    config.write_text(
        f"name: x\nmodel: {{name: 'scratch:llama'}}\nregistry: {{name: x}}\n"
        f"data: {{train: {renamed}, eval: {held}, columns: {{prompt: question, completion: answer}}}}\n"
    )
    report = json.loads(done("check", "--config", config, "--json"))
    assert (report["kept"], report["held_out"], report["unit"]) == (2, 1, "words")
    leak = next(finding for finding in report["findings"] if finding["kind"] == "split_leaks")
    assert leak["places"] == [f"{held}:1 and {renamed}:2"]


def test_check_reads_the_parts_of_a_mixture_as_training_does(rows: Path, tmp_path: Path) -> None:
    (tmp_path / "faq.csv").write_text("q,a\nWhere?,There.\n")
    parts = f"[{{path: {rows}, cap: 2, weight: 3}}, {{path: {tmp_path}/faq.csv, columns: {{question: q, answer: a}}}}]"
    config = tmp_path / "sft.yaml"
    config.write_text(f"name: x\nmodel: {{name: 'scratch:llama'}}\nregistry: {{name: x}}\ndata: {{train: {parts}}}\n")
    report = json.loads(done("check", "--config", config, "--json"))
    assert (report["rows"], report["kept"]) == (3, 3)
    assert report["shapes"] == {"completion (prompt, completion)": 2, "faq (question, answer)": 1}
    assert not [finding for finding in report["findings"] if "duplicates" in finding["kind"]]


def test_check_and_convert_say_how_a_file_was_read(tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    path.write_bytes("Prompt ;COMPLETION;Category\nWhere is the café?;Left, then right.;x\n".encode("cp1252"))
    said = f"{path}: read as semicolon-separated, cp1252"
    keys = f"{path}:2: read as prompt, completion: the keys 'Prompt', 'COMPLETION'"
    report = json.loads(done("check", path, "--json"))
    assert (report["kept"], [f["text"] for f in report["findings"] if f["kind"].startswith("file")]) == (
        1,
        [said, keys],
    )
    assert f"note      {said}" in done("check", path)
    converted = json.loads(done("convert", path, tmp_path / "out.jsonl", "--to", "completion", "--json"))
    assert converted["notes"] == [said, keys]
    assert json.loads((tmp_path / "out.jsonl").read_text())["Category"] == "x"
    named = ["--column", "prompt=Prompt", "--column", "completion=COMPLETION"]
    assert json.loads(done("check", path, "--json", *named))["kept"] == 1  # the names of the file hold as well


def test_agents_are_named_on_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("conversation_id,role,text\n1,user,When?\n1,Ann,At nine.\n")
    assert "role 'Ann'; expected user" in run("check", path).output
    assert json.loads(done("check", path, "--agent", "Ann", "--json"))["kept"] == 1
    assert (
        "At nine."
        in done("convert", path, tmp_path / "o.jsonl", "--to", "chat", "--agent", "Ann")
        + (tmp_path / "o.jsonl").read_text()
    )


def test_rows_of_which_none_gives_an_example_are_not_ready(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("conversation_id,role,text\n1,agent,Hello\n1,user,Thanks\n")
    result = run("check", path)
    assert result.exit_code == 2
    assert "Not ready to train on: 1 problem to fix" in result.output
    assert (
        "none of 1 rows gives an example: a conversation in which the assistant answered no question" in result.output
    )


def test_check_reports_before_it_refuses_too_many_bad_rows(rows: Path) -> None:
    with rows.open("a") as stream:
        stream.write('{"prompt": 1, "completion": "x"}\nno json\n')
    result = run("check", rows, "--json")
    assert result.exit_code == 2
    report = json.loads(result.stdout)
    assert sorted(place for item in report["set_aside"] for place in item["places"]) == [f"{rows}:4", f"{rows}:5"]
    assert result.stderr.count("\n") == 1
    assert "2 of 5 rows are bad" in result.stderr


def test_each_broken_row_of_a_hundred_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    broken = set(range(50, 3000, 100))
    path.write_text("".join("{broken\n" if n in broken else json.dumps(ROWS[0]) + "\n" for n in range(1, 3001)))
    report = json.loads(done("check", path, "--json"))
    assert [place for item in report["set_aside"] for place in item["places"]] == [
        f"{path}:{n}" for n in sorted(broken)
    ]


def test_preview_shows_what_is_trained_on(rows: Path, model: Path) -> None:
    out = done("preview", rows, "--model", model, "--rows", 2)
    assert "<|im_start|>user\nWhen does it open?<|im_end|>" in out
    assert "[[At nine.<|im_end|>]]" in out
    assert "[[Yes: write to desk@example.org, 猫.<|im_end|>]]" in out
    shown = json.loads(done("preview", rows, "--model", model, "--rows", 9, "--json"))["rows"]
    assert [row["place"] for row in shown] == [f"{rows}:{n}" for n in (1, 2, 3)]


turn = st.text(st.sampled_from("abc \n\té猫[]<|\x1b\u202e"), min_size=1, max_size=12).filter(str.strip)


@pytest.mark.parametrize("template", sorted(TEMPLATES))
@pytest.mark.parametrize("kind", ["bpe", "unigram", "wordlevel"])
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(turns=st.lists(turn, min_size=2, max_size=6).filter(lambda turns: len(turns) % 2 == 0), limit=st.integers(8, 90))
def test_the_loss_is_on_what_the_preview_colours(kind: str, template: str, turns: list[str], limit: int) -> None:
    """The ids and the mask are the labels that SFT trains on; the green part of the text is the trained tokens."""
    tokenizer = TOKENIZERS.setdefault((kind, template), make_tokenizer(kind, template))
    config = DataConfig(train="d.jsonl", max_length=limit)
    messages = tuple(Message(role=("user", "assistant")[n % 2], content=text) for n, text in enumerate(turns))
    shown = preview_json("d:1", encode_for_preview(Demonstration(messages), tokenizer, config), tokenizer)
    rows = encode_example(Demonstration(messages), tokenizer, limit)
    if not rows:
        assert "are too many" in shown["left_out"]
        return
    assert shown["ids"] == rows[0]["input_ids"]
    assert shown["mask"] == [label != IGNORED for label in rows[0]["labels"]]
    assert shown["tokens"] == tokenizer.convert_ids_to_tokens(shown["ids"])
    _, text, numbers = preview_lines(shown, tokenizer, marks=False)
    assert not set("\x1b\u202e") & set(text.plain)
    green = "".join(text.plain[span.start : span.end] for span in text.spans if "green" in str(span.style))
    trained = [token for token, kept in zip(shown["ids"], shown["mask"], strict=True) if kept]
    if kind == "bpe":  # the others drop a space between two runs that are decoded apart
        assert green == alignment.terminal.clean(tokenizer.decode(trained))
    assert numbers.plain == "ids: " + " ".join(map(str, shown["ids"]))


def make_tokenizer(kind: str, template: str) -> Any:
    return tiny.make_tokenizer(template) if kind == "bpe" else tiny.make_wordy_tokenizer(kind, template)


TOKENIZERS: dict[tuple[str, str], Any] = {}


def test_split_writes_both_files_and_prints_fingerprints(rows: Path, tmp_path: Path) -> None:
    for n in range(20):
        with rows.open("a") as stream:
            stream.write(json.dumps({"prompt": chr(97 + n) * 20, "completion": "x"}) + "\n")
    out = done("split", rows, "--out", tmp_path / "a", "--test", 0.3, "--seed", 1)
    again = json.loads(done("split", rows, "--out", tmp_path / "b", "--test", 0.3, "--seed", 1, "--json"))
    for side in ("train", "test"):
        assert again[side]["sha256"] in out
        assert (tmp_path / "a" / f"{side}.jsonl").read_bytes() == (tmp_path / "b" / f"{side}.jsonl").read_bytes()
    assert again["train"]["rows"] + again["test"]["rows"] == 23


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["check"], "which data?"),
        (["check", "gone.jsonl"], "gone.jsonl: no such file"),
        (["check", "ROWS", "--schema", "gone.json"], "gone.json: cannot be read"),
        (["check", "ROWS", "--html", "no/folder/r.html"], "--html no/folder/r.html: cannot be written"),
        (["check", "ROWS", "--html", "ROWS"], "exists already and is no page"),
        (["check", "ROWS", "--html", "."], "that is a folder; name a file"),
        (["check", "ROWS", "--scrub", "copy.csv"], "use .jsonl"),
        (["check", "ROWS", "--scrub", "no/folder/c.jsonl"], "cannot be written"),
        (["check", "ROWS", "--model", "nobody"], "nobody"),
        (["preview", "ROWS"], "a preview needs a tokenizer"),
        (["split", "ROWS", "--out", "o", "--test", "1.5"], "--test 1.5: expected a share"),
        (["split", "ROWS", "--out", "o", "--test", "0.0001"], "fell on one side"),
        (["split", "gone.jsonl", "--out", "o"], "gone.jsonl: no such file"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(
    rows: Path, arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(rows.parent)
    result = run(*(rows if argument == "ROWS" else argument for argument in arguments))
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    assert message in result.stderr
    assert "Traceback" not in result.output


def test_a_schema_without_jsonschema_is_one_clear_line(rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (rows.parent / "schema.json").write_text("{}")
    monkeypatch.setitem(sys.modules, "jsonschema", None)
    monkeypatch.setitem(sys.modules, "jsonschema.validators", None)
    result = run("check", rows, "--schema", rows.parent / "schema.json")
    assert result.exit_code == 2
    assert "pip install" in result.stderr and result.stderr.count("\n") == 1


def test_a_split_is_not_written_over(rows: Path, tmp_path: Path) -> None:
    (tmp_path / "o").mkdir()
    (tmp_path / "o" / "test.jsonl").write_text("mine")
    assert "exists already" in run("split", rows, "--out", tmp_path / "o").stderr
    assert (tmp_path / "o" / "test.jsonl").read_text() == "mine"


def test_the_real_command_starts_without_torch_and_reports(rows: Path) -> None:
    code = "import sys, alignment.cli.main; sys.exit(any(m in sys.modules for m in ('torch', 'transformers', 'numpy')))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    assert subprocess.run([sys.executable, "-c", code], env=environment, timeout=60).returncode == 0
    command = [sys.executable, "-m", "alignment.cli.main", "data", "check", str(rows), "--json"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["rows"] == 3
