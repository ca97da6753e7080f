"""The journal's files, and a W&B sink that can fail without anybody noticing but the person at the screen."""

import itertools
import json
import math
import os
import sys
import threading
import types

import pytest
from typer.testing import CliRunner

from alignment.cli.main import app
from alignment.config.sections import RunConfig
from alignment.reports.verdicts import verdicts
from alignment.runs import metrics as declared
from alignment.runs.journal import Journal
from alignment.runs.record import RunRecord
from alignment.tracking import wandb_sink
from alignment.tracking.wandb_sink import MAX_FAILURES, WandbSink, as_table
from alignment.training import opening


def rows(path):
    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text(encoding="utf-8").split("\n") if line]


class FakeRun:
    def __init__(self, broken_logs=()):
        self.logged, self.codes, self.broken = [], [], set(broken_logs)
        self.summary = {}
        self.calls = 0

    def define_metric(self, name, **options):
        pass

    def log(self, row):
        self.calls += 1
        if self.calls in self.broken:
            raise ConnectionResetError("wandb-core is gone")
        self.logged.append((row["step"], {name: value for name, value in row.items() if name != "step"}))

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
    not_finite, published = rows(tmp_path / "events.jsonl")
    assert (not_finite["event"], not_finite["step"]) == ("not_finite", 3)
    assert published["metrics"] == {"deep": [None, {"x": None}]}
    assert fake_wandb.run.logged == [(3, {"train/lr": 0.5})]


def test_each_line_is_on_disk_when_log_returns_and_a_second_journal_appends(tmp_path):
    journal = Journal(tmp_path)
    journal.log(1, {"a": 1.0})
    assert len(rows(tmp_path / "metrics.jsonl")) == 1
    journal.close()
    with Journal(tmp_path) as again:
        again.log(2, {"a": 2.0})
        again.samples(2, [{"id": 0, "prompt": "p\u2028q", "response": "é"}])
    assert [row["step"] for row in rows(tmp_path / "metrics.jsonl")] == [1, 2]
    assert rows(tmp_path / "samples.jsonl")[0]["prompt"] == "p\u2028q"


def test_a_journal_that_is_not_enabled_writes_nothing(tmp_path):
    with Journal(tmp_path / "run", enabled=False) as journal:
        journal.log(1, {"a": 1.0})
        journal.event("x")
        journal.samples(1, [{"id": 0}])
        journal.histogram(1, "a", [1.0])
        journal.finding(1, "a", "error", "b")
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
    mirror.finish()
    assert MAX_FAILURES == 3
    assert [step for step, _ in fake_wandb.run.logged] == [1, 3]
    assert fake_wandb.run.calls == 6
    assert capsys.readouterr().err.count("ConnectionResetError") == 1


def test_secrets_do_not_leave_the_machine_and_token_names_of_a_tokenizer_do(tmp_path, fake_wandb, monkeypatch):
    monkeypatch.setenv("SOME_SERVICE_TOKEN", "correct horse battery")
    config = {"training": {"hub_token": "x", "seed": 1}, "model": {"eos_token": "<e>", "pad_token": None}}
    config["note"] = "say correct horse battery at the door"
    sink(tmp_path, **config).finish()
    stored = fake_wandb.inits[0]["config"]
    assert stored["training"] == {"hub_token": "(redacted)", "seed": 1}
    assert stored["model"] == config["model"]
    assert stored["note"] == "say (redacted) at the door"
    settings = fake_wandb.inits[0]["settings"]
    assert settings.x_disable_meta
    assert settings.disable_git
    assert settings.disable_code


# --- what a journal says of a step ------------------------------------------------------------------------------------


def test_an_undeclared_name_fails_where_tests_run(tmp_path, monkeypatch):
    assert os.environ[declared.STRICT] == "1"  # tests/conftest.py, for every test and what it starts
    with Journal(tmp_path, stage="sft") as journal:
        journal.log(1, {"train/loss": 1.0})
        for name in ("train/losss", "rollout/score"):
            with pytest.raises(AssertionError, match=f"{name} of sft is not declared"):
                journal.log(1, {name: 1.0})
        with pytest.raises(AssertionError, match="eval/score"):
            journal.histogram(1, "eval/score", [1.0])
    monkeypatch.delenv(declared.STRICT)
    with Journal(tmp_path, stage="sft") as journal:
        journal.log(2, {"train/losss": 1.0})  # not for a user, whose run it would end


def test_a_member_of_an_ensemble_and_a_part_of_a_reward_have_declarations():
    assert declared.find("reward", "member-12/eval/loss") is declared.find("reward", "eval/loss") is not None
    assert declared.find("ppo", "member-1/eval/score") is None
    assert declared.find("ppo", "reward/my_function").name == "reward/*"
    assert declared.find("ppo", "rewards/my_function") is None
    assert declared.find("ppo", "rollout/advantage") is None
    assert declared.find("ppo", "rollout/advantage", histogram=True) is not None


@pytest.mark.parametrize("stage", declared.STAGES)
def test_each_metric_is_declared_once_with_a_meaning(stage):
    for metrics in (declared.STAGES[stage], declared.HISTOGRAMS[stage]):
        assert len({metric.name for metric in metrics}) == len(metrics)
        assert all(metric.meaning and "/" in metric.name for metric in metrics)


def test_events_show_no_secret_that_an_error_quotes(tmp_path):
    with Journal(tmp_path) as journal:
        journal.finding(3, "stopped", "error", "f raised RuntimeError: 401, key sk-abcdefghijklmnopqrst")
        journal.event("checkpoint_failed", step=3, reason="https://me:correct-horse@host/ cannot be written")
    text = (tmp_path / "events.jsonl").read_text()
    assert "401, key (redacted)" in text
    assert "sk-abc" not in text
    assert "correct-horse" not in text


def test_a_histogram_counts_what_is_finite_and_tells_of_the_rest(tmp_path):
    values = [*range(100), math.nan, math.inf]
    with Journal(tmp_path) as journal:
        journal.histogram(7, "eval/score", values)
        journal.histogram(8, "eval/score", [math.nan])
    (row,) = rows(tmp_path / "events.jsonl")
    assert (row["event"], row["step"], row["not_finite"]) == ("histogram", 7, 2)
    assert (row["edges"][0], row["edges"][-1], len(row["edges"])) == (0.0, 99.0, len(row["counts"]) + 1)
    inside = [sum(low <= v < high for v in range(99)) for low, high in itertools.pairwise(row["edges"])]
    inside[-1] += 1  # the last bin has its end too
    assert row["counts"] == inside


def test_findings_become_verdicts(tmp_path):
    (tmp_path / "config.json").write_text('{"name": "n"}')
    with Journal(tmp_path) as journal:
        journal.watching(["a", "b", "c"])
        journal.finding(3, "b", "error", "b is bad")
        journal.finding(4, "c", "warning", "c is odd")
        journal.cleared(9, "c")
    found = {verdict.name: verdict for verdict in verdicts(RunRecord.read(tmp_path))}
    assert [found[name].outcome for name in ("a", "b", "c")] == ["pass", "fail", "warn"]
    assert found["b"].reason == "b is bad"
    assert "cleared at step 9" in found["c"].reason


# --- the mirror ---------------------------------------------------------------------------------------------------


SAMPLES = [
    {"id": 0, "prompt": [{"role": "user", "content": "Why?"}], "response": "Because.", "score": 1.5, "ended": True},
    {"id": 1, "prompt": "Who?", "response": "", "score": math.nan, "votes": {"first": 2, "tie": 0}},
]


def test_texts_reach_a_table_only_where_that_is_asked_for():
    columns, table = as_table(SAMPLES, text=False)
    assert columns == ["id", "prompt characters", "response characters", "score", "ended", "votes first", "votes tie"]
    assert table == [[0, len("user: Why?"), 8, 1.5, True, None, None], [1, 4, 0, None, None, 2, 0]]
    columns, table = as_table(SAMPLES, text=True)
    assert columns[:3] == ["id", "prompt", "response"]
    assert table[0][:3] == [0, "user: Why?", "Because."]


def test_no_text_is_shown_unless_the_config_says_so(stage_text):
    assert stage_text({}) is False
    assert stage_text({"wandb_text": True}) is True


@pytest.fixture
def stage_text(monkeypatch, tmp_path):
    """Whether a stage's sink is asked to show texts."""

    def build(tracking):
        asked = {}
        monkeypatch.setattr(opening, "WandbSink", lambda run_dir, **options: asked.update(options))
        values = {"name": "t", "data": {"train": "x"}, "registry": {"name": "t"}}
        values["tracking"] = {"runs": str(tmp_path), **tracking}
        opening.open_journal(RunConfig.model_validate(values), "sft").close()
        return asked["text"]

    return build


def test_a_call_that_hangs_holds_up_nothing_and_is_told_of(tmp_path, fake_wandb, monkeypatch, capsys):
    release = threading.Event()
    monkeypatch.setattr(wandb_sink, "FINISH_SECONDS", 0.2)
    monkeypatch.setattr(fake_wandb.run, "log", lambda row: release.wait(60))
    with Journal(tmp_path, sink(tmp_path)) as journal:
        for step in range(100):
            journal.log(step, {"a": 1.0})
    assert len(rows(tmp_path / "metrics.jsonl")) == 100
    assert "did not finish" in capsys.readouterr().err
    release.set()


def test_a_mirror_that_falls_behind_is_given_up_before_it_fills_the_memory(tmp_path, fake_wandb, monkeypatch, capsys):
    release = threading.Event()
    monkeypatch.setattr(wandb_sink, "MAX_WAITING", 5)
    monkeypatch.setattr(fake_wandb.run, "log", lambda row: release.wait(60))
    mirror = sink(tmp_path)
    for step in range(20):
        mirror.log(step, {"a": 1.0})
    assert capsys.readouterr().err.count("5 calls are waiting") == 1
    release.set()
    mirror.finish()


def test_an_online_run_that_cannot_begin_goes_on_offline(tmp_path, fake_wandb, monkeypatch, capsys):
    init = fake_wandb.init

    def offline_only(**arguments):
        if arguments["mode"] == "online":
            raise OSError("no route to host")
        return init(**arguments)

    monkeypatch.setattr(fake_wandb, "init", offline_only)
    mirror = WandbSink(tmp_path, mode="online", project="p", name="n", stage="sft", config={})
    mirror.log(1, {"a": 1.0})
    assert mirror.url is None
    mirror.finish()
    assert fake_wandb.run.logged == [(1, {"a": 1.0})]
    assert "no route to host" in capsys.readouterr().err
    strict = WandbSink(tmp_path, mode="online", project="p", name="n", stage="sft", config={}, patient=True)
    assert not strict.is_open


# --- replay ---------------------------------------------------------------------------------------------------------


def test_a_replay_has_one_row_a_step_and_says_which_models_are_gone(tmp_path, fake_wandb):
    fake_wandb.Table = lambda columns, data: ("table", columns, data)
    fake_wandb.Histogram = lambda np_histogram: ("histogram", *np_histogram)
    run = tmp_path / "run"
    with Journal(run) as journal:
        journal.log(1, {"train/loss": 2.0})
        journal.log(1, {"eval/loss": 3.0})
        journal.log(2, {"train/loss": math.nan, "eval/loss": 1.0})
        journal.samples(2, SAMPLES)
        journal.histogram(2, "eval/score", [0.0, 1.0])
        journal.event("published", model="gone@v1")
    (run / "config.json").write_text('{"name": "n", "tracking": {"project": "p", "wandb_text": true}}')
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "train/lo')  # the run is writing it
    command = ["runs", "replay", str(run), "--registry", str(tmp_path / "registry"), "--json"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert (found["steps"], found["tables"], found["histograms"], found["missing"]) == (2, 1, 1, ["gone@v1"])
    first, second, (at, table), (then, histogram) = fake_wandb.run.logged
    assert first == (1, {"train/loss": 2.0, "eval/loss": 3.0})
    assert second == (2, {"eval/loss": 1.0})
    assert (at, then) == (2, 2)
    assert "response" in table["samples"][1]  # as the run's config asks for
    assert sum(histogram["histograms/eval/score"][1]) == 2
    assert fake_wandb.inits[0]["dir"] == str(run / "replay")


def test_a_replay_of_no_run_is_one_line(tmp_path):
    done = CliRunner().invoke(app, ["runs", "replay", str(tmp_path)])
    assert done.exit_code == 2
    assert f"no run {str(tmp_path)!r}" in done.stderr and "give its name, its folder" in done.stderr


@pytest.mark.parametrize("values", [[2e-6 * n for n in range(-50, 50)], [0.3, 0.1 + 0.2], [5.0, 5.0], [1e-300, 2e-300]])
def test_a_histogram_of_any_spread_has_bins_that_differ(tmp_path, values):
    with Journal(tmp_path) as journal:
        journal.histogram(1, "rollout/kl", values)
    (event,) = rows(tmp_path / "events.jsonl")
    assert len(set(event["edges"])) == len(event["counts"]) + 1
    assert sum(event["counts"]) == len(values)


def test_a_replay_of_which_wandb_did_not_take_all_says_so(tmp_path, fake_wandb):
    with Journal(tmp_path) as journal:
        for step in range(6):
            journal.log(step, {"train/loss": 1.0})
    (tmp_path / "config.json").write_text(json.dumps({"name": "r", "registry": {"path": str(tmp_path / "registry")}}))
    fake_wandb.run = FakeRun(broken_logs=[2, 4])
    done = CliRunner().invoke(app, ["runs", "replay", str(tmp_path)])
    assert done.exit_code == 2
    assert "2 calls to W&B failed (ConnectionResetError: wandb-core is gone)" in done.stderr


def test_rows_of_samples_that_are_none_do_not_reach_the_training(tmp_path, fake_wandb):
    mirror = sink(tmp_path)
    mirror.samples(1, [{"prompt": None, "response": "a"}])
    mirror.log(1, {"train/loss": 1.0})
    mirror.finish()
    assert [row for _, row in fake_wandb.run.logged] == [{"train/loss": 1.0}]
