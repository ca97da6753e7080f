"""`python -m sft --find-lr` and `--learning-curve`: what they write, and that they stand in no run's way."""

import json
from dataclasses import replace

import launching
import pytest

from alignment.config.loading import load_config
from alignment.registry import Registry
from alignment.training.start_model import unpublished_base
from sft.building import build_trainer
from sft.config import SFTStageConfig
from sft.data import IGNORED
from sft.prepare import prepare
from sft.studies.learning_curve import row_losses

SCRATCH = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
}
WORDS = ("red", "blue", "green", "white", "black", "brown", "pink", "grey")


@pytest.fixture
def house(tmp_path):
    """Prompts with two answers each; the recipe of a model from scratch; a launch file for two processes."""
    rows = [
        {"prompt": f"Colour {number}?", "completion": f"{WORDS[number % 8]} {style}"}
        for number in range(64)
        for style in ("it is.", "of course!")
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {
        "name": "toy",
        "model": {"name": "scratch:llama", "scratch": SCRATCH},
        "data": {"train": "rows.jsonl", "eval_share": 0.25, "max_length": 64},
        "training": {"num_train_epochs": 1, "learning_rate": 1e-2, "per_device_train_batch_size": 4},
        "registry": {"name": "toy", "path": "registry"},
        "tracking": {"wandb": "disabled"},
    }
    (tmp_path / "toy.yaml").write_text(json.dumps(config))
    (tmp_path / "ddp.yaml").write_text(launching.DDP)
    return tmp_path


@pytest.fixture
def stage(house, forks):
    """Runs `sft toy.yaml ARGUMENTS`; returns what it printed."""

    def call(*arguments, code=0):
        (house / "log.txt").unlink(missing_ok=True)
        found = forks(house, "sft", ["toy.yaml", *arguments])
        output = (house / "log.txt").read_text()
        assert found == code, output[-3000:]
        return output

    return call


def names(house):
    return {path.name for path in (house / "runs" / "toy").iterdir()} - {"lease"}


def read(house, name):
    return json.loads((house / "runs" / "toy" / f"{name}.json").read_text())


def check_range(house, output):
    found = read(house, "find_lr")
    assert 1e-6 < found["suggestion"] < 1e-1
    assert f"suggested training.learning_rate={found['suggestion']:.2g} (" in output
    assert found["rates"][0] == pytest.approx(1e-7)
    assert len(found["rates"]) == len(found["losses"]) == len(found["smoothed"]) > 30
    assert min(found["smoothed"]) < found["losses"][0] - 0.5  # it learned on the way
    assert (house / "runs" / "toy" / "find_lr.png").read_bytes().startswith(b"\x89PNG")


def check_curve(house, output, shares, seeds):
    found = read(house, "learning_curve")
    points = found["points"]
    assert [point["share"] for point in points] == shares
    assert [len(point["losses"]) for point in points] == [seeds] * len(shares)
    for point in points:
        assert point["loss"]["value"] == pytest.approx(sum(point["losses"]) / seeds)
        assert point["loss"]["ci"][0] < point["loss"]["value"] < point["loss"]["ci"][1]
        assert f"{point['prompts']} prompts: held-out loss {point['loss']['value']:.4f}" in output
    assert len({loss for point in points for loss in point["losses"]}) == seeds * len(shares)
    assert points[0]["loss"]["value"] > points[-1]["loss"]["value"]  # more steps on more data
    assert found["sentence"] in output
    assert "same number of epochs" in output
    assert (house / "runs" / "toy" / "learning_curve.png").read_bytes().startswith(b"\x89PNG")
    return found


def test_both_leave_two_files_and_the_run_goes_on_as_if_they_had_not_been(house, stage):
    check_range(house, stage("--find-lr"))
    assert names(house) == {"find_lr.json", "find_lr.png"}
    found = check_curve(house, stage("--learning-curve", "0.25,0.5,1", "--seeds", "2"), [0.25, 0.5, 1], 2)
    prompts = found["points"][-1]["prompts"]
    assert [point["prompts"] for point in found["points"]] == [-(-prompts // 4), -(-prompts // 2), prompts]
    assert prompts < 64  # of two answers each
    studies = {"find_lr.json", "find_lr.png", "learning_curve.json", "learning_curve.png"}
    assert names(house) == studies
    assert not (house / "registry").exists()
    stage()
    assert sorted(Registry(house / "registry").names()) == ["toy", "toy-base"]
    assert studies < names(house)
    before = {path: path.read_bytes() for path in (house / "runs" / "toy").glob("*.json*") if path.name not in studies}
    stage("--find-lr")  # beside a finished run, which stays as it is
    assert all(path.read_bytes() == text for path, text in before.items())
    assert [len(Registry(house / "registry").versions(name)) for name in ("toy", "toy-base")] == [1, 1]


@pytest.mark.parametrize("packing", [True, False])
def test_the_losses_of_the_rows_add_up_to_the_trainers_own(house, monkeypatch, packing):
    """One model, two ways: each row padded here, all of them as the trainer evaluates them, packed or not."""
    monkeypatch.chdir(house)
    config = load_config(SFTStageConfig, "toy.yaml", [f"training.packing={packing}"])
    prepared = prepare(config)
    with unpublished_base(config, prepared.start, seed=0) as start:
        trainer = build_trainer(config, replace(prepared, start=start))
    losses = row_losses(trainer, prepared.data.eval, prepared.start.tokenizer.pad_token_id)
    tokens = sum(label != IGNORED for labels in prepared.data.eval["labels"] for label in labels[1:])
    assert losses.sum() / tokens == pytest.approx(trainer.evaluate()["eval_loss"], rel=1e-5)


def test_what_cannot_be_studied_is_one_line(house, stage):
    shares = ("--learning-curve", "0.5,1")
    assert "set data.eval or data.eval_share" in stage(*shares, "data.eval_share=0", code=2)
    assert "set training.max_steps=-1" in stage(*shares, "training.max_steps=3", code=2)
    assert "not allowed with" in stage(*shares, "--find-lr", code=2)
    assert not (house / "runs").exists()


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["ddp", "zero2"])
def test_on_two_processes_one_of_them_writes(house, backend):
    accelerate = launching.ZERO2 if backend == "zero2" else house / "ddp.yaml"
    for arguments in (["--find-lr"], ["--learning-curve", "0.5,1", "--seeds", "1"]):
        done = launching.launch(accelerate, ["-m", "sft", "toy.yaml", *arguments], house)
        assert done.code == 0, done.output[-3000:]
        if arguments == ["--find-lr"]:
            check_range(house, done.output)
            assert done.output.count("suggested training.learning_rate=") == 1
        else:
            found = check_curve(house, done.output, [0.5, 1], 1)
            assert found["verdict"] == "cannot tell"
    assert names(house) == {"find_lr.json", "find_lr.png", "learning_curve.json", "learning_curve.png"}
    assert not (house / "registry").exists()


def test_a_dry_run_of_a_launch_joins_both_processes_and_prints_once(house):
    done = launching.launch(house / "ddp.yaml", ["-m", "sft", "toy.yaml", "--dry-run"], house)
    assert done.code == 0, done.output[-3000:]
    assert done.output.count('"processes": 2') == 1
    assert not (house / "runs").exists()
