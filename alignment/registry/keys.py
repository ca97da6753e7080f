"""Keys for signatures (Ed25519): the organisation's public ones, a signer's private one, and new pairs."""

from __future__ import annotations

import getpass
import hashlib
import os
import stat
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignment.errors import UserError, require_extra
from alignment.files import create, read_file

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

_LARGEST_KEY = 100_000  # bytes
_PUBLIC = (".pub", ".pem")


@dataclass(frozen=True)
class TrustedKey:
    """A public key of the organisation; `fingerprint` is sha256 of its 32 bytes."""

    name: str
    fingerprint: str
    key: Ed25519PublicKey


def fingerprint(key: Ed25519PublicKey) -> str:
    """sha256 of a public key's 32 bytes."""
    return f"sha256:{hashlib.sha256(key.public_bytes_raw()).hexdigest()}"


def trusted_keys(path: Path, registry: Path) -> list[TrustedKey]:
    """The public keys of a file, or of a folder's .pub and .pem files. PEM and OpenSSH's form are read.

    Raises:
        UserError: there is no key, one cannot be read, or they lie in the registry that they are to check.
    """
    _need_library()
    path = path.expanduser()
    if path.resolve().is_relative_to(registry.resolve()):
        raise UserError(f"keys {path}: in the registry itself, where a forger could add one; keep them elsewhere")
    try:
        files = sorted(each for each in path.iterdir() if each.suffix in _PUBLIC) if path.is_dir() else [path]
    except OSError as error:
        raise UserError(f"keys {path}: cannot be read: {error.strerror}") from None
    keys = [TrustedKey(file.stem, fingerprint(key), key) for file in files for key in [_public_key(file)]]
    if not keys:
        raise UserError(f"keys {path}: no .pub or .pem file in it; alignment models keygen NAME makes a pair")
    return keys


def _public_key(path: Path) -> Ed25519PublicKey:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key, load_ssh_public_key

    data = _key_bytes(path)
    if b"PRIVATE KEY" in data:
        raise UserError(f"{path}: a private key; --keys and ALIGNMENT_KEYS take public ones (its .pub file)")
    try:
        key = (load_ssh_public_key if data.startswith(b"ssh-") else load_pem_public_key)(data)
    except Exception:  # noqa: BLE001 - a dozen kinds, of which the message says nothing to a user
        raise UserError(f"{path}: no public key; alignment models keygen NAME makes a pair") from None
    if not isinstance(key, Ed25519PublicKey):
        raise UserError(f"{path}: not an Ed25519 key; alignment models keygen NAME makes a pair")
    return key


def private_key(path: Path) -> Ed25519PrivateKey:
    """An Ed25519 private key from a PEM file; its passphrase, if it has one, is asked for.

    Raises:
        UserError: it cannot be read, others may read it, or it is another kind of key.
    """
    _need_library()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    data = _key_bytes(path)
    if b"PRIVATE KEY-----" not in data:
        raise UserError(f"{path}: no private key in PEM form; alignment models keygen NAME makes one")
    if (mode := stat.S_IMODE(os.stat(path).st_mode)) & 0o077:
        raise UserError(
            f"{path}: others may read this private key (mode {mode:o}); chmod 600 {path}, or make a new one"
        )
    try:
        key = _load_private(data, None)
    except TypeError:  # it has a passphrase
        if not sys.stdin.isatty():
            raise UserError(f"{path}: has a passphrase; sign in a terminal, where it is asked for") from None
        try:
            key = _load_private(data, getpass.getpass(f"passphrase of {path}: ").encode())
        except ValueError:
            raise UserError(f"{path}: not its passphrase") from None
    except Exception:  # noqa: BLE001 - a dozen kinds, of which the message says nothing to a user
        raise UserError(f"{path}: no private key in PEM form; alignment models keygen NAME makes one") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise UserError(f"{path}: not an Ed25519 key; alignment models keygen NAME makes one")
    return key


def _load_private(data: bytes, passphrase: bytes | None) -> Any:
    from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_ssh_private_key

    return (load_ssh_private_key if b"BEGIN OPENSSH" in data else load_pem_private_key)(data, passphrase)


def _key_bytes(path: Path) -> bytes:
    try:
        return read_file(path, _LARGEST_KEY)
    except OSError as error:
        raise UserError(f"{path}: cannot be read as a key: {error.strerror}") from None


def make_keys(path: Path) -> tuple[Path, Path]:
    """Make a pair of keys: `path`.key (PEM, for its owner alone) and `path`.pub.

    Raises:
        UserError: one of the files is there, or cannot be written.
    """
    _need_library()
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    private, public = path.with_name(f"{path.name}.key"), path.with_name(f"{path.name}.pub")
    for each in (private, public):
        if os.path.lexists(each):
            raise UserError(f"{each}: is there already, and a key is never replaced; choose another name")
    key = Ed25519PrivateKey.generate()
    pem = serialization.Encoding.PEM
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    try:
        with open(os.open(private, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o400), "wb") as file:
            file.write(secret)
            file.flush()
            os.fsync(file.fileno())
        with create(public) as file:
            file.write(key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo))
    except OSError as error:
        raise UserError(f"{path}: no keys can be written there: {error.strerror}") from None
    return private, public


def _need_library() -> None:
    require_extra("signing", "cryptography", purpose="signing models")
