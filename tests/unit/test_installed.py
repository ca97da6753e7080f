"""The shipped recipes, extras that are not installed, and a user's files of the stages' names."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from alignment.cli.main import app
from alignment.config import shipped
from alignment.config.loading import read_values
from alignment.errors import ConfigError
from alignment.ratings import RatingsStore

ROOT = Path(__file__).resolve().parents[2]


def python(code, *arguments, folder, path):
    command = [sys.executable, "-c", code, *arguments]
    environment = {**os.environ, "PYTHONPATH": str(path)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)


def test_recipes_are_listed_and_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["recipes"])
    assert done.exit_code == 0
    assert "accelerate/zero2.yaml" in done.output
    with pytest.raises(
        ConfigError, match=r"no config file at configs/sft/demo\.yaml; .*alignment recipes --copy configs"
    ):
        read_values("configs/sft/demo.yaml")
    assert CliRunner().invoke(app, ["recipes", "--copy", "configs"]).exit_code == 0
    assert read_values("configs/sft/demo.yaml")["name"] == "demo-sft"  # as the message says
    assert (tmp_path / "configs/accelerate/zero2.yaml").read_bytes() == (
        ROOT / "configs/accelerate/zero2.yaml"
    ).read_bytes()
    again = CliRunner().invoke(app, ["recipes", "--copy", "configs"])
    assert (again.exit_code, "configs is there already" in again.output) == (2, True)


def test_one_recipe_is_shown_and_copied(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shipped_text = (ROOT / "configs/ppo/demo.yaml").read_text()
    assert CliRunner().invoke(app, ["recipes", "show", "ppo/demo"]).output == shipped_text
    listed = json.loads(CliRunner().invoke(app, ["recipes", "list", "--json"]).output)["recipes"]
    assert "ppo/demo.yaml" in [row["file"] for row in listed] and all(row["about"] for row in listed)
    assert CliRunner().invoke(app, ["recipes", "copy", "ppo/demo.yaml"]).output == "wrote configs/ppo/demo.yaml\n"
    assert (tmp_path / "configs/ppo/demo.yaml").read_text() == shipped_text
    assert CliRunner().invoke(app, ["recipes", "copy", "accelerate/zero2", "here"]).exit_code == 0
    assert (tmp_path / "here/accelerate/zero2.yaml").is_file()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["show", "ppo/dem"], "ppo/dem: no such recipe or launch file; did you mean 'ppo/demo.yaml'?"),
        (["show", "../../pyproject"], "../../pyproject: no such recipe or launch file"),
        (["copy", "ppo/demo", "there"], "there/ppo/demo.yaml is there already; remove it, or name another folder"),
        (["copy", "ppo/demo", "file"], "file/ppo/demo.yaml: cannot be written: Not a directory; name another folder"),
        (["--copy", "new", "list"], "--copy writes them all; leave out the command after it"),
    ],
)
def test_a_mistake_with_recipes_is_one_line(tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there/ppo").mkdir(parents=True)
    (tmp_path / "there/ppo/demo.yaml").write_text("mine\n")
    (tmp_path / "file").write_text("")
    done = CliRunner().invoke(app, ["recipes", *arguments])
    assert done.exit_code == 2 and done.output.startswith(f"error: {said}") and done.output.count("\n") == 1
    assert (tmp_path / "there/ppo/demo.yaml").read_text() == "mine\n"


@pytest.mark.parametrize(
    ("command", "package", "extra"),
    [
        (["rate", "--db", "r.db", "--labeler", "ada"], "textual", "rating"),
        (["rate", "--db", "r.db", "--web"], "starlette", "rating"),
        (["rate", "--db", "r.db", "--web"], "uvicorn", "rating"),
        (["runs", "dashboard", "push", "ppo", "--json"], "wandb_workspaces", "dashboards"),
        (["sft", str(ROOT / "configs/sft/demo.yaml"), "--find-lr"], "matplotlib", "plots"),
        (["sft", str(ROOT / "configs/sft/demo.yaml"), "--learning-curve", "0.5,1"], "matplotlib", "plots"),
    ],
)
def test_a_missing_extra_is_one_line_that_names_it(command, package, extra, tmp_path):
    """The import is blocked, and `can_draw` told that there is a terminal."""
    with RatingsStore(tmp_path / "r.db", create=True) as store:
        store.add_item([{"role": "user", "content": "When?"}], [{"text": "At nine."}, {"text": "At ten."}])
        store.settings.guideline = "Facts first."  # without one there is a warning
    code = (
        f"import sys; sys.modules[{package!r}] = None; from alignment.cli import main, rate;"
        " rate.can_draw = lambda _: True; main.main()"
    )
    done = python(code, *command, folder=tmp_path, path=ROOT)
    assert done.returncode == 2
    assert f" needs {package}, not installed here: pip install 'rlhf-alignment-suite[{extra}]'\n" in done.stderr
    assert (done.stdout, done.stderr.count("\n")) == ("", 1)


@pytest.mark.parametrize("stage", ["sft", "reward", "ppo"])
def test_a_file_of_the_stages_name_does_not_run_in_its_place(stage, tmp_path):
    (tmp_path / f"{stage}.py").write_text("print('nothing is trained')\n")
    shadowed = subprocess.run(
        [sys.executable, "-m", stage, "c.yaml"], cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert (shadowed.returncode, shadowed.stdout) == (0, "nothing is trained\n")  # which nobody can prevent
    # `-c` looks into the current folder first, as `-m alignment.cli.main` does under a launcher.
    done = python("from alignment.cli.main import main; main()", stage, "c.yaml", folder=tmp_path, path=ROOT)
    assert done.returncode == 2
    assert f"`python -m {stage}` runs your {stage}.py; rename it" in done.stderr
    assert "error: no config file at c.yaml" in done.stderr
    assert done.stdout == ""


def test_the_shipped_folder_is_found_from_a_checkout():
    assert shipped.configs() == ROOT / "configs"
