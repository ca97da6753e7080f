"""SFT's held-out loss before the first step: right, shown, and without a trace in what is trained."""

import json
from pathlib import Path

import pytest
import torch

import sft.train
from alignment.config.loading import validate
from alignment.data.parsing import to_demonstrations
from alignment.data.reading import train_and_eval
from alignment.intervals import choosing_half
from alignment.models.policies import load_policy
from alignment.models.sources import find_model
from alignment.models.tokenizers import load_tokenizer
from alignment.registry import Registry
from alignment.reports.verdicts import verdicts
from alignment.runs.record import RunRecord
from sft.config import SFTStageConfig

NUM_HELD_OUT = 10
SHAPE = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}


def run(name, folder, **training):
    rows = [{"prompt": f"Say that {n}.", "completion": f"Yes, {'very ' * (n % 5)}{n}."} for n in range(40)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = validate(SFTStageConfig, {
        "name": name,
        "model": {"name": "scratch:llama", "scratch": SHAPE},
        "data": {"train": "rows.jsonl", "eval_share": 0.25, "max_length": 64},
        "training": {
            "max_steps": 6, "logging_steps": 1, "per_device_train_batch_size": 4, "learning_rate": 1e-2, "seed": 1,
            "eval_strategy": "steps", "eval_steps": 3, "neftune_noise_alpha": 5.0, "packing": False, **training,
        },
        "registry": {"name": name, "path": "registry"},
        "tracking": {"wandb": "disabled"},
    }, name)  # fmt: skip
    config.run_dir.mkdir(parents=True)
    (config.run_dir / "config.json").write_text(config.model_dump_json())
    metrics = sft.train.train(config)["metrics"]
    journal = [json.loads(line) for line in Path("runs", name, "metrics.jsonl").read_text().splitlines()]
    return config, metrics, journal


def losses(journal, name):
    return [(row["step"], row[name]) for row in journal if name in row]


def plain_loss(config, keep=(True,) * NUM_HELD_OUT):
    """Mean loss of the base's response tokens over held-out conversations, with transformers alone."""
    source = find_model(f"{config.name}-base@v1", Registry("registry"), role="policy")
    policy, tokenizer = load_policy(source).eval(), load_tokenizer(source)
    held_out = train_and_eval(config.data, to_demonstrations)[1].items
    total = count = 0
    for row, kept in zip(held_out, keep, strict=True):
        if not kept:
            continue
        turns = list(row.messages)
        ids = tokenizer.apply_chat_template(turns, return_dict=True)["input_ids"]
        start = tokenizer.apply_chat_template(turns[:1], add_generation_prompt=True, return_dict=True)
        begin = len(start["input_ids"])
        stop = max(place for place, token in enumerate(ids) if token == tokenizer.eos_token_id) + 1
        with torch.no_grad():
            logprobs = policy(input_ids=torch.tensor([ids[:stop]])).logits[0].log_softmax(-1)
        total -= sum(float(logprobs[place - 1, ids[place]]) for place in range(begin, stop))
        count += stop - begin
    return total / count


def test_it_is_the_first_point_of_the_curve_and_of_the_summary(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config, metrics, journal = run("plain", tmp_path)
    evaluated = losses(journal, "eval/loss")
    assert [step for step, _ in evaluated] == [0, 3, 6]
    expected = plain_loss(config)
    assert evaluated[0][1] == pytest.approx(expected, abs=1e-4)
    assert metrics["start_eval_loss"] == evaluated[0][1]
    assert metrics["eval_loss"] == evaluated[-1][1] < evaluated[0][1]
    checks = {check.name: check for check in verdicts(RunRecord.read(Path("runs", "plain")))}
    assert checks["overfitting"].outcome == "pass"  # two evaluations beside the first


def test_it_changes_nothing_of_what_is_trained(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = losses(run("with", tmp_path)[2], "train/loss")
    monkeypatch.setattr(sft.train.MeasureStart, "on_train_begin", lambda *given, **more: None)
    _, metrics, journal = run("without", tmp_path)
    assert losses(journal, "train/loss") == found
    assert "start_eval_loss" not in metrics


def test_where_the_best_model_is_kept_it_is_of_the_rows_that_report_on_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config, metrics, journal = run("best", tmp_path, load_best_model_at_end=True)
    assert metrics["best_of"] == 2  # the start is none of those that are chosen among
    chosen = choosing_half(range(NUM_HELD_OUT))  # each of another prompt, in the order of the data
    assert losses(journal, "eval/loss")[0][1] == pytest.approx(plain_loss(config, chosen), abs=1e-4)
    assert metrics["start_eval_loss"] == pytest.approx(plain_loss(config, [not each for each in chosen]), abs=1e-4)


def test_with_one_evaluation_alone_it_is_of_all_rows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config, metrics, _ = run("one", tmp_path, load_best_model_at_end=True, eval_steps=6)
    assert metrics["start_eval_loss"] == pytest.approx(plain_loss(config), abs=1e-4)
