"""The wheel, installed beside no checkout and used from an empty folder."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("alignment", "sft", "reward", "ppo")
LOOK = """
import json, pathlib, sys, alignment, sft, reward, ppo
from alignment.config import shipped
from alignment.labeling import web
from alignment.reports import dashboards, report
web.make_app(sys.argv[1], allowed_hosts=["localhost"])
print(json.dumps({
    "from": [str(pathlib.Path(module.__file__).parents[1]) for module in (alignment, sft, reward, ppo)],
    "configs": str(shipped.configs()),
    "dashboards": [dashboards.load(name).title for name in dashboards.names()],
    "page": sorted(file.name for file in report.PAGE.iterdir()),
}))
"""
ROW = {
    "kind": "pair",
    "prompt": [{"role": "user", "content": "When does the library open?"}],
    "completions": [{"text": "At nine."}, {"text": "At ten."}],
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy, as setuptools leaves its build folder in the source."""
    source, wheels = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheels")
    for name in (*PACKAGES, "configs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip("wheel", "--no-build-isolation", "-w", wheels, source)
    (made,) = wheels.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def site(wheel, tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    pip("install", "--target", folder, wheel)
    return folder


@pytest.fixture
def run(site, tmp_path):
    """Runs a command in an empty folder; every package comes from the wheel."""

    def call(*command, code=0, stdin=""):
        environment = {**os.environ, "PYTHONPATH": str(site), "ALIGNMENT_REGISTRY": "registry"}
        done = subprocess.run(
            [sys.executable, *map(str, command)], cwd=tmp_path, env=environment, input=stdin,
            capture_output=True, text=True, timeout=240,
        )  # fmt: skip
        assert done.returncode == code, done.stderr
        assert str(ROOT) not in done.stdout + done.stderr
        return done

    return call


def pip(*arguments):
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", *map(str, arguments)]
    subprocess.run([*command, "--no-deps", "--no-index"], check=True)


def test_it_holds_each_module_and_each_file_that_a_module_reads(wheel):
    files = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    configs = {f"alignment/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "configs").rglob("*.yaml")}
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert names == files | configs


def test_the_labelers_commands_work(run, tmp_path):
    def alignment(*arguments, **options):
        return run("-m", "alignment.cli.main", *arguments, **options)

    (tmp_path / "rows.jsonl").write_text(json.dumps(ROW) + "\n")
    alignment("rate", "import", "--db", "r.db", "--format", "jsonl", "rows.jsonl")
    assert "1 of 1 done" in alignment("rate", "--db", "r.db", "--labeler", "ada", stdin="1\n").stdout
    assert json.loads(alignment("rate", "report", "--db", "r.db", "--json").stdout)["labelers"]["ada"]["rated"] == 1
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "When?"}\n')
    wrong = alignment("sample", "no/model", "--prompts", "prompts.jsonl", "--db", "r.db", code=2).stderr
    assert wrong.startswith("error: no/model") and wrong.count("\n") == 1
    found = json.loads(run("-c", LOOK, "r.db").stdout.splitlines()[-1])
    assert set(found["from"]) == {os.path.dirname(found["configs"]).removesuffix("/alignment")}
    assert len(found["dashboards"]) == len(list((ROOT / "configs" / "dashboards").glob("*.yaml")))
    assert found["page"] == ["prompt.html", "report.css", "report.html", "report.js"]


@pytest.mark.parametrize("group", ["data", "models", "runs", "plan", "recipes", "rate", "sample"])
def test_each_command_answers(group, run):
    assert f"alignment {group}" in run("-m", "alignment.cli.main", group, "--help").stdout


@pytest.mark.parametrize(
    "stage", [pytest.param("sft", marks=pytest.mark.slow), pytest.param("reward", marks=pytest.mark.slow), "ppo"]
)
def test_a_stage_plans_a_recipe_that_was_copied(stage, run):
    assert f"python -m {stage}" in run("-m", stage, "--help").stdout
    run("-m", "alignment.cli.main", "recipes", "copy", f"{stage}/demo")
    missing = run("-m", stage, f"configs/{stage}/demo.yaml", code=2).stderr
    assert missing.startswith("error: ") and missing.count("\n") == 1  # the demo's data, not the recipe
    assert "runs/demo" in missing or "help-desk" in missing
