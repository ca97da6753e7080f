"""`alignment models`: what it prints for people, for pipes and for programs, and how it fails."""

import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

import alignment.cli.main
from alignment.registry import Parent, Registry, Version, provenance

HOSTILE = "[red]bold[/red]\x1b[31m\x9b2J\u202e\nnext"


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    monkeypatch.setattr(provenance, "code_state", lambda: None)
    monkeypatch.setenv("ALIGNMENT_REGISTRY", str(tmp_path / "registry"))
    return Registry()


@pytest.fixture
def ppo(registry: Registry, tmp_path: Path) -> Version:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}" + b"w" * 1990)
    demonstrations = [{"name": HOSTILE, "rows": 1500}]
    sft = registry.publish("desk-sft", folder, stage="sft", role="policy", data=demonstrations)
    start = Parent("init", sft.ref, sft.digest)
    ratings = [{"name": "ratings.db", "ratings": 2400, "labelers": 4, "simulated": True}]
    reward = registry.publish("desk-reward", folder, stage="reward", role="reward", parents=[start], data=ratings)
    parents = [start, Parent("reward", reward.ref, reward.digest), Parent("value", "gone@v1")]
    metrics = {"win_rate": {"value": 0.71, "ci": [0.65, 0.77]}, HOSTILE: 1.0}
    version = registry.publish("desk-ppo", folder, stage="ppo", role="policy", parents=parents, metrics=metrics)
    registry.set_alias("desk-ppo", "prod", 1)
    return version


def run(*arguments: str) -> Result:
    return CliRunner().invoke(alignment.cli.main.app, ["models", *arguments])


def as_json(*arguments: str) -> Any:
    result = run(*arguments, "--json")
    assert result.exit_code == 0
    assert result.stderr == ""
    return json.loads(result.stdout)


def test_list_has_one_line_a_model_and_no_codes_in_a_pipe(ppo: Version) -> None:
    result = run("list")
    assert result.exit_code == 0
    lines = [line.split() for line in result.stdout.splitlines()]
    assert [line[:3] for line in lines] == [
        ["model", "stage", "role"],
        ["desk-ppo@v1", "ppo", "policy"],
        ["desk-reward@v1", "reward", "reward"],
        ["desk-sft@v1", "sft", "policy"],
    ]
    assert lines[1][-1] == "prod=v1"
    assert "\x1b" not in result.stdout


def test_list_as_json_names_every_version_and_alias(ppo: Version, registry: Registry) -> None:
    found = as_json("list")
    assert found["registry"] == str(registry.path)
    assert [model["name"] for model in found["models"]] == ["desk-ppo", "desk-reward", "desk-sft"]
    assert found["models"][0]["aliases"] == {"prod": 1}
    (version,) = found["models"][0]["versions"]
    assert (version["ref"], version["digest"], version["role"]) == ("desk-ppo@v1", ppo.digest, "policy")


def test_an_empty_registry_is_said_on_stderr(registry: Registry) -> None:
    result = run("list")
    assert result.exit_code == 0
    assert result.stdout == ""
    assert str(registry.path) in result.stderr
    assert as_json("list")["models"] == []
    assert not registry.path.exists()


def test_a_damaged_version_does_not_hide_the_rest(ppo: Version) -> None:
    os.unlink(ppo.path / "manifest.json")
    result = run("list")
    assert result.exit_code == 0
    assert "cannot be read" in result.stdout
    assert "desk-sft@v1" in result.stdout
    (version,) = as_json("list")["models"][0]["versions"]
    assert version["ref"] == "desk-ppo@v1"
    assert "cannot be read" in version["error"]


def test_show_says_everything_and_json_holds_the_manifest(ppo: Version) -> None:
    text = run("show", "desk-ppo").stdout
    for part in (
        "desk-ppo@v1 (policy, stage ppo)",
        ppo.digest,
        str(ppo.path),
        "prod",
        "desk-reward@v1",
        "0.71 [0.65, 0.77]",
    ):
        assert part in text
    shown = as_json("show", "desk-ppo@prod")
    assert shown["manifest"] == json.loads((ppo.path / "manifest.json").read_bytes())
    assert (shown["digest"], shown["aliases"]) == (ppo.digest, ["prod"])


def test_graph_reaches_the_data_and_shows_what_is_missing(ppo: Version) -> None:
    text = run("graph", "desk-ppo").stdout
    assert text.splitlines()[0].startswith("desk-ppo@v1  ppo  " + ppo.digest[:15])
    assert "ratings.db - 2400 ratings, 4 simulated labelers" in text
    assert "value: gone@v1  [missing: " in text
    graph = as_json("graph", "desk-ppo")
    assert graph["root"] == "desk-ppo@v1"
    assert {node["ref"] for node in graph["nodes"]} == {"desk-ppo@v1", "desk-reward@v1", "desk-sft@v1", "gone@v1"}
    assert {"child": "desk-reward@v1", "as": "init", "parent": "desk-sft@v1"} in graph["edges"]
    assert len(graph["edges"]) == 4


@pytest.mark.parametrize("command", [["list"], ["show", "desk-ppo"], ["graph", "desk-ppo"], ["show", "desk-sft"]])
def test_hostile_text_is_printed_as_text(ppo: Version, command: list[str]) -> None:
    printed = run(*command).stdout
    assert not set(printed) & set("\x1b\x9b\u202e")
    if command != ["list"]:
        assert "[red]bold[/red]" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", "desk-pop"], "did you mean desk-ppo"),
        (["graph", "desk-ppo@v7"], "has no version v7"),
        (["show", "desk-ppo@\x1b[31m"], "is not a model reference"),
        (["list", "--registry", __file__], "is not a folder"),
    ],
)
def test_a_mistake_is_one_line_on_stderr_and_exit_2(ppo: Version, arguments: list[str], message: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert "\x1b" not in result.stderr


def test_the_registry_option_wins_over_the_environment(ppo: Version, tmp_path: Path) -> None:
    assert as_json("list", "--registry", str(tmp_path / "other"))["models"] == []


def test_a_terminal_gets_colour_and_no_hostile_codes(ppo: Version) -> None:
    screen, inside = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "160"}
    environment.pop("NO_COLOR", None)
    subprocess.run(
        [sys.executable, "-m", "alignment.cli.main", "models", "graph", "desk-ppo"],
        cwd=Path(alignment.cli.main.__file__).parents[2],
        env=environment,
        stdout=inside,
        check=True,
        timeout=60,
    )
    os.close(inside)
    printed = b""
    try:
        while chunk := os.read(screen, 65536):
            printed += chunk
    except OSError:  # Linux says EIO at the end of a closed terminal
        pass
    os.close(screen)
    text = printed.decode()
    assert "\x1b[1m" in text
    assert "desk-ppo@v1" in text
    assert "\x1b[31m\x9b" not in text
    assert "\x9b" not in text
    assert "\u241b[31m" in text


def test_export_writes_a_new_folder_and_says_what_it_wrote(ppo: Version, tmp_path: Path) -> None:
    target = tmp_path / "out" / "desk"
    found = as_json("export", "desk-ppo", str(target))
    assert found == {"model": "desk-ppo@v1", "folder": str(target), "written": "the whole model, file by file"}
    assert sorted(path.name for path in target.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    again = run("export", "desk-ppo", str(target))
    assert (again.exit_code, again.stdout) == (2, "")
    assert again.stderr == f"error: {target} exists already; name a new folder\n"
