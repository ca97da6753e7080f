"""The registry told to W&B: a real offline run read back, a server that is down, and what is told again."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

import alignment.cli.main
from alignment.config.loading import validate
from alignment.config.sections import TrainerConfig
from alignment.registry import Parent, Registry, provenance
from alignment.runs.journal import Journal
from alignment.runs.run import Run
from alignment.tracking import mirror
from alignment.tracking.wandb_sink import WandbSink
from alignment.training import publishing


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    monkeypatch.setattr(provenance, "code_state", lambda: None)
    monkeypatch.setenv("ALIGNMENT_REGISTRY", str(tmp_path / "registry"))
    return Registry()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "model"
    made.mkdir()
    (made / "config.json").write_text("{}")
    save_file({"w": torch.full((9,), 0.123)}, made / "model.safetensors")
    return made


def publish(registry: Registry, folder: Path, tmp_path: Path, sink: WandbSink) -> Any:
    values = {
        "name": "run",
        "model": {"name": "base"},
        "data": {"train": "rows.jsonl"},
        "registry": {"name": "desk", "path": str(registry.path), "alias": "prod"},
    }
    parents = [Parent("reference", "base@v1")]
    with Journal(tmp_path / "run", sink) as journal:
        return publishing.publish(
            validate(TrainerConfig, values, "test"), registry, folder, stage="sft", role="policy", parents=parents,
            data=[{"name": "rows.jsonl", "rows": 5}], metrics={"loss": 0.5}, seed=0, run=Run(), journal=journal,
        )  # fmt: skip


def make_sink(tmp_path: Path, mode: Literal["offline", "online"] = "offline") -> WandbSink:
    return WandbSink(tmp_path / "run", mode=mode, project="p", name="n", stage="sft", config={})


def test_a_publish_is_in_the_offline_run_as_a_reference_with_its_lineage(
    registry: Registry, folder: Path, tmp_path: Path
) -> None:
    registry.publish("base", folder, stage="base", role="policy")
    version = publish(registry, folder, tmp_path, make_sink(tmp_path))
    (log,) = (tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb")
    command = [str(Path(sys.executable).with_name("wandb")), "leet", "inspect", "--json", str(log)]
    text = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    records = [json.loads(line) for line in text.splitlines() if line.strip()]
    (artifact,) = [found for record in records for found in artifacts(record)]
    metadata = json.loads(artifact["metadata"])
    assert (artifact["name"], artifact["type"]) == ("desk", "model")
    assert sorted(artifact["aliases"]) == ["latest", "prod", "registry-v1"]  # the first is W&B's own
    assert (metadata["ref"], metadata["digest"]) == ("desk@v1", version.digest)
    assert metadata["lineage"] == [{"as": "reference", "ref": "base@v1", "digest": registry.resolve("base").digest}]
    told = json.dumps(artifact["manifest"])
    assert (version.path / "model.safetensors").as_uri() in told
    assert not list((tmp_path / "run" / "wandb").rglob("*.safetensors"))  # a reference, no copy


def artifacts(value: Any) -> list[Any]:
    """Each artifact in a record, however deep."""
    if not isinstance(value, dict):
        return []
    own = [value["artifact"]] if isinstance(value.get("artifact"), dict) else []
    return own + [found for item in value.values() for found in artifacts(item)]


class FakeRun:
    url = "https://wandb.example/run"
    path = "me/p/run"

    def __init__(self, down: bool = False) -> None:
        self.logged: list[Any] = []
        self.down = down

    def log_artifact(self, artifact: Any, aliases: list[str]) -> Any:
        if self.down:
            raise ConnectionError("the server is down")
        self.logged.append((artifact, aliases))
        return SimpleNamespace(wait=lambda timeout: None)

    def define_metric(self, name: str, **options: Any) -> None:
        pass

    def finish(self, exit_code: int) -> None:
        pass


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Any:
    def artifact(name: str, type: str, metadata: dict[str, Any]) -> Any:
        made = SimpleNamespace(name=name, type=type, metadata=metadata, references=[])
        made.add_reference = lambda uri, checksum: made.references.append((uri, checksum))
        return made

    module = SimpleNamespace(Settings=lambda **kw: None, Artifact=artifact, run=FakeRun())
    module.init = lambda **kw: module.run
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def test_a_server_that_is_down_does_not_stop_a_publish(
    registry: Registry, folder: Path, tmp_path: Path, fake: Any
) -> None:
    fake.run = FakeRun(down=True)
    version = publish(registry, folder, tmp_path, make_sink(tmp_path, "online"))
    assert registry.resolve("desk@prod").digest == version.digest
    assert version.manifest.wandb_url == "https://wandb.example/run"
    assert "https\\://wandb.example/run" in (version.path / "README.md").read_text()


def test_what_was_missed_is_told_later_and_once_and_again_when_an_alias_has_moved(
    registry: Registry, folder: Path, tmp_path: Path, fake: Any
) -> None:
    for _ in range(2):
        registry.publish("desk", folder, stage="sft", role="policy")
    registry.publish("gone", folder, stage="sft", role="policy")
    (registry.resolve("gone").path / "manifest.json").unlink()  # a damaged one does not keep the rest
    fake.run = FakeRun(down=True)
    assert mirror.mirror_all(registry, "p") == ([], ["desk@v1", "desk@v2"])
    fake.run = FakeRun()
    assert mirror.mirror_all(registry, "p") == (["desk@v1", "desk@v2"], [])
    (artifact, aliases), _ = fake.run.logged
    assert artifact.references == [(registry.resolve("desk@v1").path.as_uri(), False)] and aliases == ["registry-v1"]
    assert mirror.mirror_all(registry, "p") == ([], [])
    registry.set_alias("desk", "prod", 2)
    assert mirror.mirror_all(registry, "p") == (["desk@v2"], [])
    registry.resolve("desk@v1").verify()  # nothing was written into a version


def test_the_command_says_what_it_told(registry: Registry, folder: Path, fake: Any) -> None:
    registry.publish("desk", folder, stage="sft", role="policy")
    run = CliRunner().invoke(alignment.cli.main.app, ["models", "mirror", "--json"])
    assert (run.exit_code, json.loads(run.stdout)) == (0, {"mirrored": ["desk@v1"], "failed": []})
    again = CliRunner().invoke(alignment.cli.main.app, ["models", "mirror"])
    assert again.stdout == "W&B knows of every version\n"
    registry.set_alias("desk", "prod", 1)
    fake.run = FakeRun(down=True)
    failed = CliRunner().invoke(alignment.cli.main.app, ["models", "mirror"])
    assert failed.exit_code == 1 and "not yet: desk@v1" in failed.stderr
    fake.init = None
    assert CliRunner().invoke(alignment.cli.main.app, ["models", "mirror"]).exit_code == 2
