"""`alignment models import`: what comes in, what it is turned into, and what stays outside."""

import json
import os
import pickle
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import tiny
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

import alignment.cli.main
from alignment.errors import UserError
from alignment.models.importing.model import import_model
from alignment.models.policies import load_policy
from alignment.models.sources import find_model
from alignment.models.tokenizers import load_tokenizer
from alignment.registry import Registry, provenance

CARD = "---\nlicense: apache-2.0\nlanguage: en\n---\n# Theirs\n"


@pytest.fixture(autouse=True)
def _no_git(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "code_state", lambda: None)


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "registry")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = tiny.make_tokenizer()
    folder = tiny.write(tmp_path_factory.mktemp("saved") / "model", tiny.make_policy(tokenizer), tokenizer)
    (folder / "README.md").write_text(CARD)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return shutil.copytree(saved, tmp_path / "theirs")


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=torch.arange(40).view(2, 20)).logits


def as_pickles(folder: Path, shards: int = 0) -> dict[str, torch.Tensor]:
    """Swap the safetensors for what torch.save writes, tied weights sharing memory under both names."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    names = sorted(weights)
    if not shards:
        torch.save(weights, folder / "pytorch_model.bin")
        return weights
    where = {}
    for number in range(shards):
        file = f"pytorch_model-{number + 1:05d}-of-{shards:05d}.bin"
        part = names[number::shards]
        torch.save({name: weights[name] for name in part}, folder / file)
        where |= dict.fromkeys(part, file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return weights


def test_a_folder_comes_in_as_it_is_with_its_license_and_loads_as_a_stage_loads_it(
    registry: Registry, folder: Path
) -> None:
    (folder / "tf_model.h5").write_bytes(b"another framework's")
    (folder / "onnx").mkdir()
    (folder / "onnx" / "model.onnx").write_bytes(b"x")
    expected = logits(AutoModelForCausalLM.from_pretrained(folder))
    version, left_out = import_model(str(folder), "theirs", registry)
    assert left_out == ["onnx/model.onnx", "tf_model.h5"]
    manifest = version.manifest
    assert (manifest.stage, manifest.role, manifest.remote_code) == ("import", "policy", False)
    assert manifest.origin is not None
    assert manifest.origin.model_dump() == {
        "source": str(folder),
        "revision": None,
        "license": "apache-2.0",
        "converted": False,
    }
    assert (version.path / "SOURCE.md").read_text() == CARD
    assert "comes from" in (version.path / "README.md").read_text()
    source = find_model("theirs", registry, "policy")
    assert torch.equal(logits(load_policy(source)), expected)
    assert load_tokenizer(source).eos_token == AutoTokenizer.from_pretrained(folder).eos_token


@pytest.mark.parametrize("shards", [0, 3])
def test_pickled_weights_are_written_anew_with_tied_ones_under_both_names(
    registry: Registry, folder: Path, shards: int
) -> None:
    expected = logits(AutoModelForCausalLM.from_pretrained(folder))
    weights = as_pickles(folder, shards)
    version, _ = import_model(str(folder), "theirs", registry)
    assert not list(version.path.glob("*.bin*"))
    stored = {}
    for file in version.path.glob("*.safetensors"):
        with safe_open(file, framework="pt") as tensors:
            stored |= {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118
    assert stored.keys() == weights.keys()
    assert all(torch.equal(stored[name], weights[name]) for name in weights)
    assert len(list(version.path.glob("*.safetensors"))) == max(1, shards)
    assert version.manifest.origin is not None and version.manifest.origin.converted
    assert torch.equal(logits(load_policy(find_model("theirs", registry, "policy"))), expected)


class Payload:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


def test_code_in_a_pickle_never_runs(registry: Registry, folder: Path, tmp_path: Path) -> None:
    mark = tmp_path / "it-ran"
    (folder / "model.safetensors").unlink()
    torch.save({"w": torch.ones(1), "x": Payload(mark)}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=re.escape("pytorch_model.bin cannot be converted")):
        import_model(str(folder), "theirs", registry)
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Payload(mark)))
    with pytest.raises(UserError, match="cannot be converted"):
        import_model(str(folder), "theirs", registry)
    assert not mark.exists()
    assert registry.names() == []
    pickle.loads(pickle.dumps(Payload(mark)))
    assert mark.exists()  # it would have


@pytest.mark.parametrize("where", ["config.json", "tokenizer_config.json"])
@pytest.mark.parametrize("form", [{"AutoModel": "modeling.X"}, ["modeling.X", None]])
def test_a_config_that_asks_for_code_is_refused(registry: Registry, folder: Path, where: str, form: Any) -> None:
    config = json.loads((folder / where).read_bytes())
    (folder / where).write_text(json.dumps(config | {"auto_map": form}))
    with pytest.raises(UserError, match=f"{where} has 'auto_map'.*--trust-remote-code"):
        import_model(str(folder), "theirs", registry)


def test_code_comes_in_only_when_trusted_and_the_manifest_says_so(registry: Registry, folder: Path) -> None:
    (folder / "modeling.py").write_text("raise SystemExit('it ran')\n")
    with pytest.raises(UserError, match=r"modeling.py is code.*--trust-remote-code"):
        import_model(str(folder), "theirs", registry)
    assert registry.names() == []
    version, _ = import_model(str(folder), "theirs", registry, trust_remote_code=True)
    assert json.loads((version.path / "manifest.json").read_bytes())["remote_code"] is True
    assert "modeling.py" in version.manifest.files
    shown = (
        CliRunner()
        .invoke(alignment.cli.main.app, ["models", "show", "theirs", "--registry", str(registry.path)])
        .stdout
    )
    assert "brings Python of its own" in shown and "apache-2.0" in shown and str(folder) in shown
    assert "brings Python code" in (version.path / "README.md").read_text()
    registry.load("theirs").verify()


def test_a_word_of_a_vocabulary_is_no_code(registry: Registry, folder: Path) -> None:
    (folder / "vocab.json").write_text(json.dumps({"auto_map": 5, "custom_pipelines": 6}))
    assert import_model(str(folder), "theirs", registry)[0].number == 1


def test_links_lead_nowhere_else(registry: Registry, folder: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.json"
    secret.write_text("{}")
    (folder / "extra.json").symlink_to(secret)
    with pytest.raises(UserError, match=r"extra\.json is a link to somewhere else"):
        import_model(str(folder), "theirs", registry)
    (folder / "extra.json").unlink()
    os.mkfifo(folder / "pipe.json")
    with pytest.raises(UserError, match="not a regular file"):
        import_model(str(folder), "theirs", registry)


@pytest.mark.parametrize("name", ["../../x.bin", "/etc/passwd", "pytorch_model-00009-of-00003.bin"])
def test_an_index_cannot_name_files_elsewhere(registry: Registry, folder: Path, name: str) -> None:
    as_pickles(folder, 3)
    index = json.loads((folder / "pytorch_model.bin.index.json").read_bytes())
    index["weight_map"]["model.norm.weight"] = name
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="which is not in the folder"):
        import_model(str(folder), "theirs", registry)


@pytest.mark.parametrize(
    ("remove", "message"),
    [("config.json", "no config.json"), ("model.safetensors", "no weights"), ("tokenizer.json", "holds no tokenizer")],
)
def test_what_lacks_a_part_is_refused(registry: Registry, folder: Path, remove: str, message: str) -> None:
    (folder / remove).unlink()
    with pytest.raises(UserError, match=message):
        import_model(str(folder), "theirs", registry)
    assert registry.names() == []


def test_damaged_weights_are_refused(registry: Registry, folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match="cannot be loaded"):
        import_model(str(folder), "theirs", registry)


def test_the_role_is_what_the_config_says(registry: Registry, tmp_path: Path) -> None:
    tokenizer = tiny.make_tokenizer()
    scalar = tiny.make_scalar(tmp_path / "policy", tiny.make_policy(tokenizer), tokenizer)
    judge = tiny.write(tmp_path / "judge", scalar.model, tokenizer)
    with pytest.raises(UserError, match="a reward; leave --role out"):
        import_model(str(judge), "judge", registry, role="policy")
    assert import_model(str(judge), "judge", registry)[0].manifest.role == "reward"
    with pytest.raises(UserError, match="expected policy or reward"):
        import_model(str(judge), "judge", registry, role="judge")


def test_a_hub_name_is_fetched_at_its_revision(
    registry: Registry, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cache's layout: files are links into `blobs`, the snapshot is named by its commit."""
    import huggingface_hub

    commit = "0123456789abcdef0123456789abcdef01234567"
    blobs, snapshot = tmp_path / "cache" / "blobs", tmp_path / "cache" / "snapshots" / commit
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for file in folder.iterdir():
        shutil.copyfile(file, blobs / file.name)
        (snapshot / file.name).symlink_to(Path("../../blobs") / file.name)
    asked = SimpleNamespace()

    def download(name: str, **options: Any) -> str:
        asked.name, asked.options = name, options
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    version, _ = import_model("some/model", "theirs", registry, revision="main")
    assert (asked.name, asked.options["revision"]) == ("some/model", "main")
    assert version.manifest.origin is not None
    assert (version.manifest.origin.source, version.manifest.origin.revision) == ("some/model", commit)

    def offline(name: str, **options: Any) -> str:
        raise ConnectionError("no network\nmore")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(UserError, match=r"the hub does not give it: no network$"):
        import_model("some/model", "theirs", registry)


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        ("---\nlicense: other\nlicense_name: theirs-1.0\n---\n", "theirs-1.0"),
        ("---\nlicense: [mit]\n---\n", "['mit']"),
        ("---\nlicense: !!python/object/apply:os.mkdir [x]\n---\n", None),
        ("license: mit\n", None),
        ("---\n: : [\n---\n", None),
    ],
)
def test_the_license_is_read_from_the_cards_head(
    registry: Registry, folder: Path, head: str, expected: str | None
) -> None:
    (folder / "README.md").write_text(head)
    origin = import_model(str(folder), "theirs", registry)[0].manifest.origin
    assert origin is not None and origin.license == expected


def test_the_command_says_what_it_did(registry: Registry, folder: Path) -> None:
    (folder / "notes.pdf").write_bytes(b"x")
    arguments = ["models", "import", str(folder), "theirs", "--registry", str(registry.path)]
    done = CliRunner().invoke(alignment.cli.main.app, arguments)
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("theirs@v1 from ") and "not copied: notes.pdf" in done.stderr
    again = json.loads(CliRunner().invoke(alignment.cli.main.app, [*arguments, "--json"]).stdout)
    assert (again["ref"], again["left_out"]) == ("theirs@v2", ["notes.pdf"])
    wrong = CliRunner().invoke(alignment.cli.main.app, ["models", "import", "/nowhere at all", "theirs"])
    assert wrong.exit_code == 2 and wrong.stderr.count("\n") == 1
