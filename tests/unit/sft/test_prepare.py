"""What the stage finds out about its data before it loads the model, and that the preview shows what is trained on."""

import json

import pytest
from helpers import tiny
from typer.testing import CliRunner

import alignment.cli.main
from alignment.config.loading import validate
from alignment.data.row_files import DataError
from alignment.training.data_check import write_report
from sft.building import build_trainer
from sft.config import SFTStageConfig
from sft.data import IGNORED
from sft.prepare import prepare


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory with a small model in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ALIGNMENT_REGISTRY", str(tmp_path / "registry"))
    tokenizer = tiny.make_tokenizer("chatml")
    tiny.write(tmp_path / "model", tiny.make_policy(tokenizer), tokenizer)
    return tmp_path


def row(prompt, answer):
    return {"prompt": prompt, "completion": answer}


def letters(number):
    return chr(97 + number % 26) * (12 + number // 26)


def config(folder, rows, **data):
    (folder / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {
        "name": "run",
        "model": {"name": str(folder / "model")},
        "data": {"train": "d.jsonl", "eval_share": 0, "max_length": 60, **data},
        "registry": {"name": "m"},
        "tracking": {"wandb": "disabled"},
        "training": {"per_device_train_batch_size": 1, "max_steps": 1},
    }
    (folder / "runs" / "run").mkdir(parents=True, exist_ok=True)
    return validate(SFTStageConfig, values, "test")


def test_no_row_that_can_be_trained_on_stops_the_run_with_the_median_prompt(folder):
    rows = [row("Short?", "word " * 90), row("w " * 10, "word " * 91), row("w " * 40, "word " * 92)]
    with pytest.raises(DataError) as caught:
        prepare(config(folder, rows))
    assert "0 of 3 rows have trainable tokens at data.max_length=60; the median prompt is " in str(caught.value)
    assert "raise data.max_length (the longest row has " in str(caught.value)
    assert "\n" not in str(caught.value)


def test_answers_that_do_not_fit_stop_the_run_above_the_allowed_share(folder):
    rows = [row(letters(number), "Yes.") for number in range(99)]
    report = prepare(config(folder, [*rows, row("Long?", "word " * 90)])).report
    assert [found.level for found in report.findings if found.kind == "left_out"] == ["warning"]
    two = [*rows, row("Long?", "word " * 90), row("Longer?", "word " * 91)]
    with pytest.raises(DataError, match=r"2 of 101 rows \(2\.0%\) are left out of training.*the first: d\.jsonl:100;"):
        prepare(config(folder, two))
    assert prepare(config(folder, two, too_long="drop")).data.left_out == 2
    assert len(prepare(config(folder, two, max_bad_share=0.05)).data.train) == 99


def test_one_row_that_is_too_long_can_be_made_to_stop_the_run(folder):
    rows = [row(letters(number), "Yes.") for number in range(9)]
    with pytest.raises(DataError, match=r"1 of 10 rows \(10\.0%\) are longer than .*too_long=raise.*d\.jsonl:10;"):
        prepare(config(folder, [*rows, row("word " * 90, "Yes.")], too_long="raise"))


def test_the_run_says_and_can_keep_what_was_found(folder, capsys):
    prompt = "Tell me at what hour the library on the main square opens on the first Monday of the month"
    rows = [row("Fine?", "Ten."), row("Fine?", "Nine."), row(prompt, "At nine."), row("word " * 190, "Yes.")]
    (folder / "held.jsonl").write_text(json.dumps(row(prompt + "!", "At nine.")))
    report = prepare(config(folder, rows, eval="held.jsonl", max_length=150)).report
    assert capsys.readouterr().err == ""
    assert not any((folder / "runs" / "run").iterdir())  # a dry run comes here too
    write_report(folder / "runs" / "run", report)
    shown = capsys.readouterr().err
    for part in (
        "data: Usable for python -m sft; 3 things to look at first; see ",
        "data: note: you have 5 rows: the usual guidance is about 1,000",
        "data: warning: 1 prompt has several different answers",
        "data: warning: 1 of 1 held-out rows have a prompt that is also in the training rows",
        "data: warning: 1 of 5 rows (20.0%) lose the beginning of their prompt at data.max_length=150",
    ):
        assert part in shown
    kinds = report.summary()["findings"]
    assert kinds["truncated"] == kinds["split_leaks"] == 1
    assert (report.unit, report.held_out) == ("tokens", 1)
    assert json.loads((folder / "runs" / "run" / "data_report.json").read_text())["verdict"] == report.verdict
    assert (folder / "runs" / "run" / "data_report.html").read_text().startswith("<!DOCTYPE html>")


def test_a_weight_of_a_part_makes_no_copies_and_rows_with_several_examples_are_one(folder):
    settings = config(folder, [row(letters(number), "Yes.") for number in range(3)])
    instances = [{"input": text, "output": text} for text in ("x", "y")]
    (folder / "e.jsonl").write_text(json.dumps({"instruction": "Say", "instances": instances}) + "\n{broken\n")
    parts = [{"path": "d.jsonl", "weight": 3}, {"path": "e.jsonl"}]
    values = settings.model_dump() | {"data": {"train": parts, "eval_share": 0, "max_bad_share": 0.5}}
    prepared = prepare(validate(SFTStageConfig, values, "test"))
    assert len(prepared.data.train) == 11
    report = prepared.report
    assert (report.rows, report.kept, report.bad) == (5, 5, 1)
    assert "exact_duplicates" not in report.summary()["findings"]


def test_the_loss_is_on_what_the_preview_colours_and_nothing_else(folder):
    """The ids and trained tokens of `alignment data preview` are the batches of the trainer, row by row."""
    turns = ["Hi", "Hello.", "Bye 猫", "See you."]
    chat = [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(turns)]
    rows = [
        {"messages": chat},
        {"messages": [{"role": "system", "content": "Be short."}, *chat[:2]]},
        row("When does it open?", "At nine."),
        row("word " * 90, "Cut."),  # loses the beginning of its prompt
        {"instruction": "Sort.", "input": "3 1", "output": "1 3"},
    ]
    trainer = build_trainer(settings := config(folder, rows), prepare(settings))
    (folder / "sft.yaml").write_text(json.dumps(settings.model_dump(mode="json")))
    arguments = ["data", "preview", "d.jsonl", "--config", "sft.yaml", "--rows", "9", "--json"]
    result = CliRunner().invoke(alignment.cli.main.app, arguments)
    assert result.exit_code == 0, result.output
    shown = json.loads(result.stdout)["rows"]
    trained = [
        (batch["input_ids"][0].tolist(), [label != IGNORED for label in batch["labels"][0].tolist()])
        for batch in trainer.get_train_dataloader()
    ]
    assert sorted(trained) == sorted((row["ids"], row["mask"]) for row in shown)
    assert all(sum(mask) for _, mask in trained)
