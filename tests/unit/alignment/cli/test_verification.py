"""A forged version is found by what was recorded elsewhere, and by signatures whatever was recorded."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from helpers.models_command import CONTENT, as_json, publish, refused, run

from alignment.registry import Registry, RegistryError, Version
from alignment.registry.reviews import Review, add_review
from alignment.runs.journal import Journal
from alignment.runs.run import Run

EXIT_CODES = {"unsigned": 3, "unknown key": 4, "forged": 5, "replayed": 6, "changed": 7}


def forge(version: Version) -> None:
    """As somebody could who may write to the registry: other weights, and a manifest that agrees with them."""
    content = CONTENT[:-1] + b"!"
    for name in ("model.safetensors", "manifest.json"):
        (version.path / name).chmod(0o644)
    (version.path / "model.safetensors").write_bytes(content)
    manifest = json.loads((version.path / "manifest.json").read_bytes())
    manifest["files"]["model.safetensors"]["sha256"] = hashlib.sha256(content).hexdigest()
    (version.path / "manifest.json").write_text(json.dumps(manifest))


def an_alias(registry: Registry, version: Version) -> str:
    registry.set_alias("m", "prod", 1)
    return "alias m@prod (move 1)"


def an_alias_that_moved_on(registry: Registry, version: Version) -> str:
    registry.set_alias("m", "prod", 1)
    registry.set_alias("m", "prod", 2)
    return "alias m@prod (move 1)"


def a_child(registry: Registry, version: Version) -> str:
    publish(registry, "child", "m@v1")
    return "child@v1, which was made from it"


def a_review(registry: Registry, version: Version) -> str:
    said: dict[str, Any] = {"reviewer": "Ada", "note": "", "by": "x", "run": "r", "run_id": "r", "step": 1}
    review = Review(at=datetime.now(UTC), decision="approve", verdict="pass", digest=version.digest, **said)
    add_review(registry, version, review)
    return "the review v000001/00000001.json"


def a_run_that_used_it(registry: Registry, version: Version) -> str:
    folder = Path("runs/r")
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    Run(models={"m@v1": f"m@{version.digest}"}).write(folder)
    return "the run runs/r, which used it"


def the_run_that_published_it(registry: Registry, version: Version) -> str:
    Path("runs/r").mkdir(parents=True)
    Path("runs/r/config.json").write_text("{}")
    with Journal(Path("runs/r")) as journal:
        journal.event("published", model="m@v1", digest=version.digest)
    return "the run runs/r, which published it"


def a_note_for_wandb(registry: Registry, version: Version) -> str:
    note = registry.path / ".mirror/m/v000001.json"
    note.parent.mkdir(parents=True)
    note.write_text(json.dumps({"digest": version.digest, "aliases": []}))
    return "the note of what W&B was told"


RECORDS = [
    an_alias, an_alias_that_moved_on, a_child, a_review, a_run_that_used_it, the_run_that_published_it, a_note_for_wandb
]  # fmt: skip


@pytest.mark.parametrize("record", RECORDS, ids=[each.__name__ for each in RECORDS])
def test_a_rewritten_version_is_found_wherever_its_digest_was_recorded(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record: Callable[[Registry, Version], str]
) -> None:
    monkeypatch.chdir(tmp_path)
    version = publish(registry)
    publish(registry)
    where = record(registry, version)
    assert run("verify", "--all").exit_code == 0
    forge(version)
    result = run("verify", "--all")
    assert result.exit_code == 1
    assert f"m@v1 DAMAGED: it is not what was published, or the record is wrong: {version.digest}" in result.stdout
    assert where in result.stdout
    assert as_json("verify", "m@v1", code=1)["damaged"] == 1
    assert as_json("verify", "m@v2")["damaged"] == 0


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    """`release` and `intruder`, of which the folder `trusted` has the first."""
    for name in ("release", "second", "intruder"):
        as_json("keygen", str(tmp_path / name))
    (tmp_path / "trusted").mkdir()
    shutil.copy(tmp_path / "release.pub", tmp_path / "trusted")
    return tmp_path


def verified(keys: Path, code: int, ref: str = "m@v1") -> dict[str, Any]:
    (version,) = as_json("verify", ref, "--keys", str(keys / "trusted"), code=code)["versions"]
    return dict(version)


def signature_of(registry: Registry, number: int = 1) -> Path:
    return registry.path / f"models/m/signatures/v{number:06d}/00000001.json"


def test_a_signature_is_beside_the_version_and_does_not_change_it(registry: Registry, keys: Path) -> None:
    version = publish(registry)
    before = {path.name: path.read_bytes() for path in version.path.iterdir()}
    assert as_json("sign", "m", "--key", str(keys / "release.key"))["digest"] == version.digest
    as_json("sign", "m", "--key", str(keys / "release.key"))  # again: nothing is added
    as_json("sign", "m", "--key", str(keys / "second.key"))
    assert len(list(signature_of(registry).parent.iterdir())) == 2
    assert {path.name: path.read_bytes() for path in version.path.iterdir()} == before
    assert verified(keys, 0)["signature"] == "signed"
    assert "ok, signed by release on" in run("verify", "m", "--keys", str(keys / "trusted")).stdout
    assert run("verify", "m", "--keys", str(keys / "second.pub")).exit_code == 0
    assert as_json("doctor")["findings"] == []


def unsigned(registry: Registry, keys: Path) -> str:
    return "nobody has signed it"


def unknown_key(registry: Registry, keys: Path) -> str:
    as_json("sign", "m@v1", "--key", str(keys / "intruder.key"))
    return "which is none of the keys given"


def forged(registry: Registry, keys: Path) -> str:
    as_json("sign", "m@v1", "--key", str(keys / "intruder.key"))
    as_json("sign", "m@v2", "--key", str(keys / "release.key"))
    mine, theirs = (json.loads(signature_of(registry, number).read_bytes()) for number in (1, 2))
    signature_of(registry).unlink()
    signature_of(registry).write_text(json.dumps(mine | {"key": theirs["key"]}))
    return "a signature says that it is release's, and it is not"


def garbage(registry: Registry, keys: Path) -> str:
    signature_of(registry).parent.mkdir(parents=True)
    signature_of(registry).write_text("{}")
    return "00000001.json is no signature"


def replayed(registry: Registry, keys: Path) -> str:
    as_json("sign", "m@v2", "--key", str(keys / "release.key"))
    shutil.copytree(signature_of(registry, 2).parent, signature_of(registry).parent)
    return "release signed m@v2, not this"


def changed(registry: Registry, keys: Path) -> str:
    as_json("sign", "m@v1", "--key", str(keys / "release.key"))
    forge(registry.resolve("m@v1"))
    return "changed since release signed it"


ATTACKS = [unsigned, unknown_key, forged, garbage, replayed, changed]


@pytest.mark.parametrize("attack", ATTACKS, ids=[each.__name__ for each in ATTACKS])
def test_each_failure_has_its_words_and_its_exit_code(
    registry: Registry, keys: Path, monkeypatch: pytest.MonkeyPatch, attack: Callable[[Registry, Path], str]
) -> None:
    for _ in range(2):
        publish(registry)
    words = attack(registry, keys)
    outcome = {"unknown_key": "unknown key", "garbage": "forged"}.get(attack.__name__, attack.__name__)
    assert verified(keys, EXIT_CODES[outcome])["signature"] == outcome
    assert words in run("verify", "m@v1", "--keys", str(keys / "trusted")).stdout
    assert words in refused("promote", "m@v1", "prod", "--keys", str(keys / "trusted"))
    with pytest.raises(RegistryError, match=r"is not loaded: .*; a signature is required here") as caught:
        Registry(keys=keys / "trusted").load("m@v1")
    assert words in str(caught.value)
    monkeypatch.setenv("ALIGNMENT_KEYS", str(keys / "trusted"))
    assert words in refused("promote", "m@v1", "prod")
    monkeypatch.delenv("ALIGNMENT_KEYS")
    if outcome != "changed":
        as_json("sign", "m@v1", "--key", str(keys / "release.key"))  # a good one counts, whatever lies beside it
        assert Registry(keys=keys / "trusted").load("m@v1").number == 1
        assert verified(keys, 0)["signature"] == "signed"


def test_what_is_damaged_or_rewritten_is_not_signed(registry: Registry, keys: Path) -> None:
    version = publish(registry)
    registry.set_alias("m", "prod", 1)
    forge(version)
    assert "m@v1 is not signed: it is not what was published" in refused(
        "sign", "m@v1", "--key", str(keys / "release.key")
    )
    (version.path / "model.safetensors").write_bytes(b"x")
    assert "is damaged" in refused("sign", "m@v1", "--key", str(keys / "release.key"))


def test_wrong_keys_are_one_line(registry: Registry, keys: Path) -> None:
    publish(registry)
    private, public = keys / "release.key", keys / "release.pub"
    assert "is there already" in refused("keygen", str(keys / "release"))
    os.mkfifo(keys / "fifo.pub")
    (keys / "empty").mkdir()
    (keys / "text.pub").write_text("hello")
    inside = registry.path / "keys"
    shutil.copytree(keys / "trusted", inside)
    for path, words in {
        private: "a private key; --keys and ALIGNMENT_KEYS take public ones",
        keys / "fifo.pub": "a FIFO, not a regular file",
        keys / "text.pub": "no public key",
        keys / "empty": "no .pub or .pem file in it",
        keys / "nothing": "No such file",
        inside: "in the registry itself, where a forger could add one",
    }.items():
        assert words in refused("verify", "--all", "--keys", str(path))
    assert "no private key in PEM form" in refused("sign", "m", "--key", str(keys / "text.pub"))
    assert "no private key in PEM form" in refused("sign", "m", "--key", str(public))
    assert private.stat().st_mode & 0o777 == 0o400
    private.chmod(0o644)
    assert f"others may read this private key (mode 644); chmod 600 {private}" in refused(
        "sign", "m", "--key", str(private)
    )


def test_keys_of_openssl_and_ssh_keygen_are_read(registry: Registry, tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization as s
    from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    publish(registry)
    key = Ed25519PrivateKey.generate()
    private, public = tmp_path / "k", tmp_path / "k.pub"
    private.write_bytes(key.private_bytes(s.Encoding.PEM, s.PrivateFormat.OpenSSH, s.NoEncryption()))
    public.write_bytes(key.public_key().public_bytes(s.Encoding.OpenSSH, s.PublicFormat.OpenSSH))
    private.chmod(0o600)
    as_json("sign", "m", "--key", str(private))
    assert run("verify", "m", "--keys", str(public)).exit_code == 0
    private.write_bytes(key.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, s.BestAvailableEncryption(b"x")))
    assert "has a passphrase" in refused("sign", "m", "--key", str(private))
    other = generate_private_key(SECP256R1())
    private.write_bytes(other.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, s.NoEncryption()))
    assert "not an Ed25519 key" in refused("sign", "m", "--key", str(private))
