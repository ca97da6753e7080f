"""A comparison told to W&B: a real offline run read back by W&B's own tool, with texts and without."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.compared import made_comparison

from alignment.evaluation.mirroring import mirror_result
from alignment.evaluation.page import write_page
from alignment.evaluation.result_text import sentences

SECRET = "nobody-shall-read-this"


def inspected(folder):
    (log,) = (folder / "wandb").glob("offline-run-*/run-*.wandb")
    command = [str(Path(sys.executable).with_name("wandb")), "leet", "inspect", "--json", str(log)]
    text = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    return [json.loads(line) for line in text.splitlines() if line.strip()], log.parent


def marked(own):
    """A mark on what somebody wrote, and none on names of models, judges and files."""
    return own if "=" in own or own.endswith(("@v1", ".jsonl")) else f"{own} {SECRET}"


@pytest.mark.parametrize("text", [False, True], ids=["figures", "texts"])
def test_figures_and_a_table_are_in_the_run_and_texts_where_they_are_wanted(tmp_path, monkeypatch, capsys, text):
    monkeypatch.setenv("WANDB_MODE", "offline")
    folder = tmp_path / "sft-against-ppo"
    folder.mkdir()
    result, found, judgments = made_comparison(folder, num_prompts=8, text=marked)
    page = write_page(folder, result, found)
    assert mirror_result(folder, result, found, page, text=text)
    assert f"wandb sync {folder}/wandb" in capsys.readouterr().err
    records, run = inspected(folder)
    updates = [each["summary"]["update"] for each in records if each["type"] == "summary"]
    told = {name: value for update in updates for name, value in update.items()}
    people = result["pairs"][0]["judges"][0]
    low, high = people["win_rate"]["ci"]
    assert told["result"] == sentences(result)[0]
    assert told["sft against ppo/people/win_rate"] == people["win_rate"]["value"]
    assert (told["sft against ppo/people/win_rate_low"], told["sft against ppo/people/win_rate_high"]) == (low, high)
    assert "sft against ppo/reward=rm@v1/kappa" in told and "sft against ppo/people/kappa" not in told
    table = json.loads((run / "files" / told["pairs.path"]).read_text())
    columns = table["columns"]
    assert {"a", "b", "outcome people", "outcome reward=rm@v1"} <= set(columns) and len(table["data"]) == 8
    said = {each.prompt: each.outcome for each in judgments if each.judge == "reward=rm@v1"}
    place, key = columns.index("outcome reward=rm@v1"), columns.index("prompt id")
    assert {row[key]: row[place] for row in table["data"]} == said
    assert ("prompt" in columns, "first characters" in columns) == (text, not text)
    written = b"".join(path.read_bytes() for path in run.rglob("*") if path.is_file()) + json.dumps(records).encode()
    assert (SECRET.encode() in written) == text
    if text:
        assert (run / "files" / told["page.path"]).read_text() == page.read_text()
    else:
        assert "page.path" not in told


def test_nothing_is_sent_where_wandb_is_off(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    result, found, _ = made_comparison(tmp_path, num_prompts=4)
    assert not mirror_result(tmp_path, result, found, None)
    assert not (tmp_path / "wandb").exists()
    assert capsys.readouterr().err == "W&B is off (WANDB_MODE=disabled): nothing was sent\n"
