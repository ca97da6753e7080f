"""The journal's files, and a W&B sink that can fail without anybody noticing but the person at the screen."""

import json
import math
import sys
import types

import pytest

from alignment.tracking import Journal, WandbSink
from alignment.tracking.wandb_sink import MAX_FAILURES, redact


def rows(path):
    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text(encoding="utf-8").split("\n") if line]


class FakeRun:
    def __init__(self, broken_logs=()):
        self.logged, self.codes, self.broken = [], [], set(broken_logs)
        self.calls = 0

    def log(self, metrics, step):
        self.calls += 1
        if self.calls in self.broken:
            raise ConnectionResetError("wandb-core is gone")
        self.logged.append((step, metrics))

    def finish(self, exit_code):
        self.codes.append(exit_code)


@pytest.fixture
def fake_wandb(monkeypatch):
    module = types.SimpleNamespace(Settings=lambda **kw: types.SimpleNamespace(**kw), inits=[], run=FakeRun())

    def init(**arguments):
        module.inits.append(arguments)
        if module.run is None:
            raise OSError("no space left\nsecond line")
        return module.run

    module.init = init
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def sink(tmp_path, **config):
    return WandbSink(tmp_path, mode="offline", project="p", name="n", stage="sft", config=config)


def test_values_that_are_not_finite_are_null_in_the_journal_and_absent_from_the_mirror(tmp_path, fake_wandb):
    with Journal(tmp_path, sink(tmp_path)) as journal:
        journal.log(3, {"train/loss": math.nan, "train/grad_norm": math.inf, "train/lr": 0.5})
        journal.event("published", metrics={"deep": [math.nan, {"x": -math.inf}]})
    (row,) = rows(tmp_path / "metrics.jsonl")
    assert (row["step"], row["train/loss"], row["train/grad_norm"], row["train/lr"]) == (3, None, None, 0.5)
    assert rows(tmp_path / "events.jsonl")[0]["metrics"] == {"deep": [None, {"x": None}]}
    assert fake_wandb.run.logged == [(3, {"train/lr": 0.5})]


def test_each_line_is_on_disk_when_log_returns_and_a_second_journal_appends(tmp_path):
    journal = Journal(tmp_path)
    journal.log(1, {"a": 1.0})
    assert len(rows(tmp_path / "metrics.jsonl")) == 1
    journal.close()
    with Journal(tmp_path) as again:
        again.log(2, {"a": 2.0})
        again.sample(2, prompt="p\u2028q", answer="é")
    assert [row["step"] for row in rows(tmp_path / "metrics.jsonl")] == [1, 2]
    assert rows(tmp_path / "samples.jsonl")[0]["prompt"] == "p\u2028q"


def test_a_journal_that_is_not_enabled_writes_nothing(tmp_path):
    with Journal(tmp_path / "run", enabled=False) as journal:
        journal.log(1, {"a": 1.0})
        journal.event("x")
        journal.sample(1)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("error", "code"), [(None, 0), (RuntimeError, 1)])
def test_the_mirror_is_told_how_the_run_ended(tmp_path, fake_wandb, error, code):
    try:
        with Journal(tmp_path, sink(tmp_path)):
            if error:
                raise error("boom")
    except RuntimeError:
        pass
    assert fake_wandb.run.codes == [code]


def test_a_mirror_that_cannot_start_is_one_warning(tmp_path, fake_wandb, capsys):
    fake_wandb.run = None
    broken = sink(tmp_path)
    broken.log(1, {"a": 1.0})
    broken.finish()
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "OSError: no space left" in error


def test_single_failures_are_passed_over_and_three_in_a_row_end_the_mirror(tmp_path, fake_wandb, capsys):
    fake_wandb.run = FakeRun(broken_logs={2, 4, 5, 6})
    mirror = sink(tmp_path)
    for step in range(1, 10):
        mirror.log(step, {"a": 1.0})
    assert MAX_FAILURES == 3
    assert [step for step, _ in fake_wandb.run.logged] == [1, 3]
    assert fake_wandb.run.calls == 6
    assert capsys.readouterr().err.count("ConnectionResetError") == 1


def test_secrets_do_not_leave_the_machine_and_token_names_of_a_tokenizer_do(tmp_path, fake_wandb):
    config = {"training": {"hub_token": "hf_x", "seed": 1}, "model": {"eos_token": "<e>", "pad_token": None}}
    sink(tmp_path, **config)
    stored = fake_wandb.inits[0]["config"]
    assert stored == {"training": {"hub_token": "(redacted)", "seed": 1}, "model": config["model"]}
    assert redact({"a": [{"API-KEY": "x", "apikey": "x", "api_key": "x", "password": None}]}) == {
        "a": [{"API-KEY": "(redacted)", "apikey": "(redacted)", "api_key": "(redacted)", "password": None}]
    }
    settings = fake_wandb.inits[0]["settings"]
    assert settings.x_disable_meta
    assert settings.disable_git
    assert settings.disable_code
