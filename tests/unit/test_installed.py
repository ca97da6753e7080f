"""What a wheel holds, and that a user's files of the stages' names do no harm to the command `alignment`."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from alignment.cli.main import app
from alignment.config import shipped
from alignment.config.loading import read_values
from alignment.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
LOOK = """
import json, pathlib, alignment, sft
from alignment.config import shipped
from alignment.reports import dashboards, report
print(json.dumps({
    "from": [str(pathlib.Path(module.__file__).parents[1]) for module in (alignment, sft)],
    "dashboards": [dashboards.load(name).title for name in dashboards.names()],
    "recipes": [name for name, about in shipped.recipes() if about],
    "page": sorted(file.name for file in report.PAGE.iterdir()),
}))
"""


def python(code, *arguments, folder, path):
    command = [sys.executable, "-c", code, *arguments]
    environment = {**os.environ, "PYTHONPATH": str(path)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)


def test_a_wheel_holds_the_dashboards_the_recipes_and_the_page(tmp_path):
    source, wheels, site, empty = (tmp_path / name for name in ("source", "wheels", "site", "empty"))
    kept = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("alignment", "sft", "reward", "ppo", "configs"):
        shutil.copytree(ROOT / name, source / name, ignore=kept)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    offline = ["--no-deps", "--no-index"]
    subprocess.run([*pip, "wheel", "--no-build-isolation", *offline, "-w", wheels, source], check=True)
    subprocess.run([*pip, "install", *offline, "--target", site, *wheels.glob("*.whl")], check=True)
    empty.mkdir()
    done = python(LOOK, folder=empty, path=site)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert set(found["from"]) == {str(site)}
    assert len(found["dashboards"]) == len(list((ROOT / "configs" / "dashboards").glob("*.yaml")))
    assert set(found["recipes"]) >= {"sft/demo.yaml", "ppo/8b.yaml", "accelerate/zero2.yaml"}
    assert found["page"] == ["report.css", "report.html", "report.js"]


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
