"""Where an evaluation is shown: `models show`, the card of an export, `runs show`."""

import json
from datetime import UTC, datetime
from pathlib import Path

from helpers import tiny
from helpers.models_command import as_json, publish, run

from alignment.models.export import export
from alignment.registry import Registry
from alignment.registry.evaluations import WinRecord, add_evaluation
from alignment.reports.review import evaluations_of_run
from alignment.runs.record import RunRecord

TEXT = "wins 60% (55 to 65%) against sft@v1 on 50 prompts of p.jsonl, judged by people, "


def tell(registry, version):
    add_evaluation(
        registry,
        version,
        WinRecord(
            at=datetime.now(UTC), by="ann@host", digest=version.digest, against="sft@v1", judge="people",
            judged_by="people", prompts="p.jsonl", n=50, win_rate=0.6, low=0.55, high=0.65, wins=30, ties=0, losses=20,
        ),
    )  # fmt: skip


def test_models_show_has_it_and_promote_reads_it(registry: Registry) -> None:
    tell(registry, publish(registry))
    (row,) = [line for line in run("show", "m").stdout.splitlines() if line.startswith("compared")]
    assert TEXT in row
    (told,) = as_json("show", "m")["evaluations"]
    assert (told["judge"], told["win_rate"], told["low"], told["n"]) == ("people", 0.6, 0.55, 50)
    moved = as_json("promote", "m@v1", "prod", "--require", "compare.win_rate.low>0.5")
    assert moved["caveats"] == ["m@v1: its win rate against sft@v1 is judged by people on 50 prompts"]


def test_the_card_of_an_export_has_it(tmp_path, tokenizer) -> None:
    registry = Registry(tmp_path / "registry")
    model = tiny.write(tmp_path / "model", tiny.make_policy(tokenizer), tokenizer)
    tell(registry, registry.publish("m", model, stage="sft", role="policy"))
    export("m", tmp_path / "out", registry)
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"## Compared with other models\n\n- It {TEXT}" in card
    assert "## This folder" in card.partition("## Compared with other models")[2]


def test_runs_show_has_it(registry: Registry) -> None:
    version = publish(registry)
    tell(registry, version)
    folder = Path(registry.path.parent / "runs" / "r")
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"name": "r", "registry": {"path": str(registry.path)}}))
    (folder / "events.jsonl").write_text(json.dumps({"event": "published", "model": version.ref, "step": 1}) + "\n")
    record = RunRecord.read(folder)
    assert [each.text.startswith(TEXT) for each in evaluations_of_run(record)] == [True]
    (folder / "config.json").write_text(json.dumps({"name": "r", "registry": {"path": str(folder / "elsewhere")}}))
    assert evaluations_of_run(RunRecord.read(folder)) == []
