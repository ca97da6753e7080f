"""Signatures over versions (Ed25519), so that whoever can write to the disk still cannot forge one.

    models/NAME/signatures/v000003/00000001.json      one signature; a version may have several

A signature is over the version's name, number and digest, and so, through the manifest, over each of its files. It
stands beside the version, which does not change. The organisation keeps public keys in a folder outside the registry;
the name of a key's file is the key's name. Private keys are PEM files that only their owner may read.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from alignment.registry.aliases import append_entry, entry_numbers
from alignment.registry.errors import RegistryError
from alignment.registry.files import one_line_errors, read_entry
from alignment.registry.keys import TrustedKey, fingerprint
from alignment.registry.layout import STAGING
from alignment.registry.manifest import Digest
from alignment.registry.trash import user_at_host
from alignment.registry.version import Version
from alignment.terminal import one_line

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

SIGNATURES = "signatures"
KIND: Literal["alignment model signature 1"] = "alignment model signature 1"

Outcome = Literal["signed", "unsigned", "unknown key", "forged", "replayed", "changed"]
EXIT_CODES: dict[Outcome, int] = {
    "signed": 0, "unsigned": 3, "unknown key": 4, "forged": 5, "replayed": 6, "changed": 7
}  # fmt: skip
"""Exit codes of `alignment models verify --keys`; 1 is damage, 2 a mistake in the command."""
GRAVITY = (1, 7, 5, 6, 4, 3, 0)
"""These codes, the gravest first."""


class SignedStatement(BaseModel):
    """What is signed: `name@vVERSION` has `digest`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["alignment model signature 1"]
    name: str
    version: int
    digest: Digest
    at: AwareDatetime
    by: str


class SignatureFile(BaseModel):
    """A signature as it is stored: `statement` is the JSON text whose bytes are signed, `signature` is base64."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str = Field(pattern=r"^sha256:[0-9a-f]{64}$")
    statement: str
    signature: str


@dataclass(frozen=True)
class SignatureCheck:
    """What came of checking a version's signatures: `text` says it in words."""

    outcome: Outcome
    text: str


def sign(root: Path, version: Version, private: Ed25519PrivateKey) -> str:
    """Sign a version that was verified; returns the key's fingerprint. Signing again adds nothing.

    Raises:
        RegistryError: the signature cannot be written.
    """
    key = TrustedKey("", fingerprint(private.public_key()), private.public_key())
    if _judge(version, _read(root, version), [key])[0].outcome == "signed":
        return key.fingerprint
    said = SignedStatement(
        kind=KIND, name=version.name, version=version.number, digest=version.digest, at=datetime.now(UTC),
        by=user_at_host(),
    )  # fmt: skip
    statement = json.dumps(said.model_dump(mode="json"), sort_keys=True)
    signature = base64.b64encode(private.sign(statement.encode())).decode()
    stored = SignatureFile(key=key.fingerprint, statement=statement, signature=signature)
    with one_line_errors(f"{version.ref} cannot be signed in {root}"):
        append_entry(_folder(root, version), root / STAGING, stored.model_dump_json().encode() + b"\n")
    return key.fingerprint


def check_signatures(root: Path, version: Version, keys: Sequence[TrustedKey]) -> SignatureCheck:
    """Whether one of these keys signed the version; else the gravest thing that was found.

    A good signature counts whatever lies beside it: who can write there could add files that are none.
    """
    checks = _judge(version, _read(root, version), keys)
    grave: list[Outcome] = ["signed", "changed", "forged", "replayed", "unknown key", "unsigned"]
    return min(checks, key=lambda check: grave.index(check.outcome))


def require_signature(root: Path, version: Version, keys: Sequence[TrustedKey]) -> None:
    """Refuse a version that none of these keys signed.

    Raises:
        RegistryError: what was found instead.
    """
    check = check_signatures(root, version, keys)
    if check.outcome != "signed":
        raise RegistryError(
            f"{version.ref} is not loaded: {check.text}; a signature is required here "
            f"(ALIGNMENT_KEYS): alignment models sign {version.ref} --key FILE"
        )


def _folder(root: Path, version: Version) -> Path:
    return root / "models" / version.name / SIGNATURES / f"v{version.number:06d}"


def _read(root: Path, version: Version) -> list[SignatureFile | str]:
    """The signatures of a version, or why one cannot be read."""
    found: list[SignatureFile | str] = []
    folder = _folder(root, version)
    for path in (folder / f"{number:08d}.json" for number in entry_numbers(folder)):
        try:
            found.append(SignatureFile.model_validate_json(read_entry(path)))
        except (ValidationError, RegistryError, OSError):
            found.append(f"{path.name} is no signature")
    return found


def _judge(version: Version, found: Sequence[SignatureFile | str], keys: Sequence[TrustedKey]) -> list[SignatureCheck]:
    known = {key.fingerprint: key for key in keys}
    if not found:
        return [SignatureCheck("unsigned", "nobody has signed it")]
    return [_judge_one(version, each, known) for each in found]


def _judge_one(version: Version, stored: SignatureFile | str, known: dict[str, TrustedKey]) -> SignatureCheck:
    from cryptography.exceptions import InvalidSignature

    if isinstance(stored, str):
        return SignatureCheck("forged", f"forged: {stored}")
    if stored.key not in known:
        return SignatureCheck("unknown key", f"signed with {stored.key[:23]}..., which is none of the keys given")
    who = one_line(known[stored.key].name)
    try:
        known[stored.key].key.verify(base64.b64decode(stored.signature, validate=True), stored.statement.encode())
        said = SignedStatement.model_validate_json(stored.statement)
    except (InvalidSignature, binascii.Error, ValidationError, UnicodeEncodeError):
        return SignatureCheck("forged", f"forged: a signature says that it is {who}'s, and it is not")
    if (said.name, said.version) != (version.name, version.number):
        return SignatureCheck("replayed", f"replayed: {who} signed {one_line(said.name)}@v{said.version}, not this")
    if said.digest != version.digest:
        return SignatureCheck(
            "changed", f"changed since {who} signed it: signed was {said.digest}, here is {version.digest}"
        )
    return SignatureCheck("signed", f"signed by {who} on {said.at:%Y-%m-%d}")
