"""The command line that the stages share: exit codes, the run folder, and what is said to whom."""

import json
import os
import subprocess
import sys

import pytest
from wandb.sdk.launch.sweeps.utils import create_sweep_command_args

from alignment.config.sections import RunConfig
from alignment.data.reading import DataError
from alignment.training.stage import run_stage, write_bad_rows

TEXT = "name: toy\ndata: {train: d.jsonl}\nregistry: {name: toy}\ntracking: {runs: RUNS}\n"


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Runs the stage `toy` with a config in tmp_path; `seen` collects what reached `train`."""
    monkeypatch.delenv("RANK", raising=False)
    (tmp_path / "c.yaml").write_text(TEXT.replace("RUNS", str(tmp_path / "runs")))

    def run(*arguments, train=lambda config: {"model": "toy@v1"}, plan=lambda config, world: {"processes": world}):
        return run_stage("toy", RunConfig, train, plan, [str(tmp_path / "c.yaml"), *arguments])

    run.folder = tmp_path / "runs" / "toy"
    return run


def fail(error):
    def train(config):
        raise error

    return train


def exit_record(command):
    return json.loads((command.folder / "exit.json").read_text())


def test_a_run_that_ends_leaves_its_config_and_its_exit(command, capsys):
    assert command("name=toy", train=lambda config: {"model": "toy@v1", "metrics": {"loss": float("nan")}}) == 0
    assert json.loads((command.folder / "config.json").read_text())["registry"]["name"] == "toy"
    record = exit_record(command)
    assert (record["code"], record["reason"], record["model"]) == (0, "done", "toy@v1")
    assert record["metrics"] == {"loss": None}
    assert "toy@v1" in capsys.readouterr().out


def test_a_users_mistake_is_one_safe_line_and_code_2(command, capsys):
    assert command(train=fail(DataError("d.jsonl:3: found \x1b[31m'a\nb'\u2028c"))) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: d.jsonl:3: found ")
    assert len(error.splitlines()) == 1
    assert "\x1b" not in error
    assert exit_record(command)["code"] == 2


def test_a_run_folder_that_cannot_be_made_is_the_users_mistake(command, tmp_path, capsys):
    assert command(f"tracking.runs={tmp_path / 'c.yaml'}") == 2
    error = capsys.readouterr().err
    assert "the run folder cannot be made (Not a directory); set tracking.runs" in error
    assert len(error.splitlines()) == 1


def test_our_own_mistake_is_a_traceback_and_code_1(command, capsys):
    assert command(train=fail(RuntimeError("boom"))) == 1
    assert "Traceback" in capsys.readouterr().err
    assert exit_record(command)["reason"] == "RuntimeError: boom"


class Left(DataError):
    exit_code = 1


def test_a_line_may_come_with_another_exit_code(command, capsys):
    assert command(train=fail(Left("f raised SystemExit"))) == 1
    assert capsys.readouterr().err == "error: f raised SystemExit\n"
    assert exit_record(command)["code"] == 1


class Panic(BaseException):
    """As the tokenizers library raises it."""


@pytest.mark.parametrize("kind", [DataError, RuntimeError, Panic])
def test_no_error_shows_a_secret_that_it_quotes(command, capsys, kind):
    assert command(train=fail(kind("401 for sk-abcdefghijklmnopqrst"))) == (2 if kind is DataError else 1)
    error = capsys.readouterr().err
    assert "401 for (redacted)" in error
    assert "sk-abc" not in error + (command.folder / "exit.json").read_text()


def test_what_leaves_a_run_by_sys_exit_has_not_finished_it(command, capsys):
    assert command(train=fail(SystemExit(0))) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: SystemExit: something in the run called sys.exit(0) (/")
    assert exit_record(command)["reason"] == line.removeprefix("error: ")


def test_the_panic_of_a_library_is_one_line_with_its_place_and_code_1(command, capsys):
    """The tokenizers library raises a BaseException that is no Exception."""
    assert command(train=fail(Panic("byte index 9\nis out of bounds"))) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: Panic: byte index 9 is out of bounds (") and "test_stage.py:" in line
    assert exit_record(command)["code"] == 1


def test_what_a_sweep_has_drawn_comes_with_hyphens(command):
    seen = []

    def train(config):
        seen.append(config)
        return {}

    drawn = create_sweep_command_args(
        {"args": {"registry.name": {"value": "drawn"}, "data.eval_share": {"value": 0.25}, "name": {"value": "toy"}}}
    )
    assert command(*drawn["args"], "--resume=no", train=train) == 0
    assert (seen[0].registry.name, seen[0].data.eval_share) == ("drawn", 0.25)


def test_an_interrupt_is_code_1_without_a_traceback(command, capsys):
    assert command(train=fail(KeyboardInterrupt())) == 1
    assert capsys.readouterr().err == "interrupted\n"


def test_a_config_error_makes_no_folder(command, capsys):
    assert command("dat.train=x") == 2
    assert "unknown key 'dat'; did you mean 'data'?" in capsys.readouterr().err
    assert not command.folder.parent.exists()


def test_dry_run_prints_json_and_makes_nothing(command, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert command("--dry-run", "data.train=é.jsonl", train=fail(AssertionError("must not train"))) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["config"]["data"]["train"] == "é.jsonl"
    assert report["plan"] == {"processes": 4}
    assert not command.folder.parent.exists()


def test_options_may_stand_among_the_overrides(command, capsys):
    assert command("name=a", "--dry-run", "data.eval=x") == 0
    assert json.loads(capsys.readouterr().out)["config"]["name"] == "a"


def test_an_earlier_run_is_kept_unless_told(command, capsys):
    assert command() == 0
    (command.folder / "metrics.jsonl").write_text("{}\n")
    assert command() == 2
    assert (
        "holds an earlier run; resume it (--resume auto), choose another name (name=toy-2), or pass --overwrite"
        in capsys.readouterr().err
    )
    assert (command.folder / "metrics.jsonl").exists()
    assert exit_record(command)["code"] == 0
    assert command("--overwrite") == 0
    assert not (command.folder / "metrics.jsonl").exists()


def test_an_overwriting_run_that_fails_leaves_the_earlier_one(command, capsys):
    assert command(train=lambda config: (config.run_dir / "metrics.jsonl").write_text("{}\n") and {}) == 0
    assert command("--overwrite", "data.trian=x") == 2
    assert command("--overwrite", "data.train=x", train=fail(DataError("no file x"))) == 2
    assert "the earlier run is back in" in capsys.readouterr().err
    assert (command.folder / "metrics.jsonl").read_text() == "{}\n"
    assert json.loads((command.folder / "config.json").read_text())["data"]["train"] == "d.jsonl"
    assert exit_record(command)["code"] == 0
    assert json.loads((command.folder / "failed" / "exit.json").read_text())["reason"] == "no file x"


@pytest.mark.parametrize("options", [[], ["--resume", "auto"], ["--overwrite"]])
def test_a_second_start_while_one_trains_is_refused_and_touches_nothing(command, capsys, options):
    def train(config):
        before = {path: path.read_bytes() for path in config.run_dir.rglob("*") if path.is_file()}
        assert command(*options, train=fail(AssertionError("must not train"))) == 2
        assert {path: path.read_bytes() for path in config.run_dir.rglob("*") if path.is_file()} == before
        return {}

    assert command(train=train) == 0
    assert f"{command.folder} belongs to process {os.getpid()} on " in capsys.readouterr().err
    assert command("--overwrite") == 0


def test_a_run_refused_before_its_first_step_may_be_started_again(command):
    assert command(train=fail(DataError("no"))) == 2
    assert command() == 0


def test_a_run_that_stepped_is_kept_whatever_it_ended_with(command):
    def train(config):
        (config.run_dir / "metrics.jsonl").write_text("{}\n")
        raise DataError("late")

    assert command(train=train) == 2
    assert command() == 2
    assert exit_record(command)["reason"] == "late"


def test_only_the_main_process_speaks_and_writes(command, capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    assert command() == 0
    assert command(train=fail(DataError("no"))) == 2
    assert capsys.readouterr() == ("", "")
    assert not command.folder.exists()


def test_bad_rows_are_listed_and_the_first_is_shown(tmp_path, capsys):
    write_bad_rows(tmp_path, [])
    assert list(tmp_path.iterdir()) == []
    write_bad_rows(tmp_path, [("d.jsonl:2", "bad \x1b[2J é"), ("d.jsonl:9", "worse")])
    rows = [json.loads(line) for line in (tmp_path / "bad_rows.jsonl").read_text().splitlines()]
    assert rows == [{"where": "d.jsonl:2", "reason": "bad \x1b[2J é"}, {"where": "d.jsonl:9", "reason": "worse"}]
    error = capsys.readouterr().err
    assert error.startswith("2 rows set aside")
    assert "\x1b" not in error


LEAVING = """
import atexit
from alignment.training.stage import exit_process
class LateWitness:
    def __del__(self):
        print("interpreter shutdown", flush=True)
witness = LateWitness()
atexit.register(print, "exit functions")
print("done")
exit_process(3)
"""


@pytest.mark.parametrize(
    ("processes", "said"),
    [("1", ["done", "exit functions", "interpreter shutdown"]), ("2", ["done", "exit functions"])],
)
def test_one_of_several_processes_leaves_without_the_interpreters_shutdown(processes, said):
    environment = {**os.environ, "WORLD_SIZE": processes}
    left = subprocess.run([sys.executable, "-c", LEAVING], env=environment, capture_output=True, text=True, timeout=60)
    assert (left.returncode, left.stdout.splitlines(), left.stderr) == (3, said, "")


@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_a_checkpoint_that_is_none_is_refused_wherever_the_run_stands(command, capsys, more):
    assert command() == 0  # finished, which `--resume auto` would say and leave it at
    assert command("--resume", "runs/toy/checkpoints/step-000900", *more) == 2
    assert "--resume runs/toy/checkpoints/step-000900: no such folder" in capsys.readouterr().err
