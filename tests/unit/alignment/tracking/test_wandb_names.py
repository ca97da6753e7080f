"""What W&B's environment variables mean to a run, read back from what W&B is started with."""

import os
from types import SimpleNamespace

import pytest

from alignment.config.sections import RunConfig
from alignment.runs.resume import Start
from alignment.runs.run import Attempt, Run
from alignment.tracking import wandb_sink
from alignment.training import opening


@pytest.fixture
def started(monkeypatch, tmp_path):
    """Opens the journal of a run and gives what `wandb.init` was called with; None where it was not."""

    def begin(run=None, **tracking):
        found = {}

        def init(self, mode):
            found.update(self._options, mode=mode)
            return SimpleNamespace(finish=lambda exit_code: None)

        monkeypatch.setattr(wandb_sink.WandbSink, "_begin", init)
        config = RunConfig.model_validate({
            "name": "mine", "data": {"train": "d"}, "registry": {"name": "x"},
            "tracking": {"runs": str(tmp_path), **tracking},
        })  # fmt: skip
        opening.open_journal(config, "sft", None if run is None else Start(run)).close()
        return found or None

    return begin


def attempts(number, run_id="0123456789abcdef"):
    return Run(id=run_id, attempts=tuple(Attempt(started_at="2026-01-01T00:00:00Z") for _ in range(number)))


def test_without_any_the_run_has_the_names_of_its_config(started):
    found = started()
    assert (found["mode"], found["project"], found["name"], found["group"]) == ("offline", "alignment", "mine", "mine")


def test_project_name_and_group_of_the_environment(started, monkeypatch):
    monkeypatch.setenv("WANDB_PROJECT", "theirs")
    monkeypatch.setenv("WANDB_NAME", "nice")
    monkeypatch.setenv("WANDB_RUN_GROUP", "study")
    monkeypatch.setenv("WANDB_MODE", "online")
    found = started(attempts(2))
    assert (found["mode"], found["project"]) == ("online", "theirs")
    assert (found["name"], found["group"]) == ("nice-a2", "study")
    assert started(wandb="offline")["mode"] == "offline"  # the config says otherwise


@pytest.mark.parametrize(("name", "value"), [("WANDB_MODE", "disabled"), ("WANDB_DISABLED", "true")])
@pytest.mark.parametrize("tracking", [{}, {"wandb": "offline"}, {"wandb": "online"}])
def test_disabled_writes_nothing(started, monkeypatch, name, value, tracking, tmp_path):
    monkeypatch.setenv(name, value)
    assert started(**tracking) is None
    assert not list(tmp_path.rglob("wandb"))


def test_an_id_of_the_shell_is_that_of_no_two_runs_or_attempts(started, monkeypatch):
    monkeypatch.setenv("WANDB_RUN_ID", "shared")
    runs = [attempts(1), attempts(2), attempts(1, "fedcba9876543210"), None]
    ids = [started(run)["id"] for run in runs]
    assert ids[:3] == ["shared-01234567", "shared-01234567-a2", "shared-fedcba98"]
    assert len(set(ids)) == 4
    other = wandb_sink.WandbSink(os.devnull, mode="offline", project="p", name="replay", stage="sft", config={})
    assert "shared" not in other._options["id"]
    other.finish()


def test_a_trial_of_a_sweep_has_the_id_that_its_agent_gave(started, monkeypatch):
    monkeypatch.setenv("WANDB_RUN_ID", "trial7")
    monkeypatch.setenv("WANDB_SWEEP_ID", "s")
    assert [started(attempts(n))["id"] for n in (1, 2)] == ["trial7", "trial7-a2"]
