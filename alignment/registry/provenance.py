"""Provenance that a manifest records by itself: code, packages, and hashes of the tokenizer and the chat template."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Mapping
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from alignment.files import FileRecord
from alignment.registry.manifest import Code

PACKAGES = ("torch", "transformers", "trl", "peft", "datasets", "accelerate", "deepspeed", "wandb")
_TOKENIZER_FILES = {
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "vocab.txt", "merges.txt", "tokenizer.tiktoken"),
    *("tokenizer.model", "spiece.model", "sentencepiece.bpe.model"),
}
_TEMPLATE = "chat_template.jinja"
_TIMEOUT = 20  # seconds: git on a slow network disk must not block a publish


@lru_cache
def package_versions() -> dict[str, str]:
    """Versions of python and of the installed ones of PACKAGES; none of them is imported."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def code_state() -> Code | None:
    """The commit of the suite's checkout and a hash of uncommitted changes; None if there is no checkout.

    Untracked files that git does not ignore count too, since they run like the rest.
    """
    root = Path(__file__).resolve().parents[2]
    try:
        top, commit = _git(root, "rev-parse", "--show-toplevel", "HEAD").decode().split("\n")[:2]
        if Path(top).resolve() != root:  # an unrelated checkout around an installed package
            return None
        changes = _git(root, "diff", "--binary", "--no-ext-diff", "--no-textconv", "HEAD")
        untracked = _git(root, "ls-files", "-z", "--others", "--exclude-standard", "--", "*.py", "*.yaml", "scripts")
        digest = hashlib.sha256(changes)
        for name in filter(None, untracked.split(b"\0")):
            path = os.path.join(os.fsencode(root), name)
            if os.path.isfile(path):
                with open(path, "rb") as file:
                    digest.update(name + b"\0" + hashlib.file_digest(file, "sha256").digest())
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    return Code(commit=commit, dirty=digest.hexdigest() if changes or untracked else None)


def _git(root: Path, *arguments: str) -> bytes:
    # A hook or a wrapper may have set GIT_DIR for another repository; no optional locks, since jobs share the checkout.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    environment["GIT_OPTIONAL_LOCKS"] = "0"
    done = subprocess.run(
        ["git", "-C", str(root), *arguments], env=environment, capture_output=True, check=True, timeout=_TIMEOUT
    )
    return done.stdout


def tokenizer_hash(files: Mapping[str, FileRecord]) -> str | None:
    """One sha256 over names and hashes of the tokenizer's files; None if there are none."""
    lines = [f"{path} {record.sha256}\n" for path, record in sorted(files.items()) if path in _TOKENIZER_FILES]
    return hashlib.sha256("".join(lines).encode()).hexdigest() if lines else None


def chat_template_hash(folder: Path) -> str | None:
    """sha256 of the chat template's text, from chat_template.jinja or the tokenizer's config; None without one."""
    if (folder / _TEMPLATE).is_file():
        return hashlib.sha256((folder / _TEMPLATE).read_bytes()).hexdigest()
    try:
        template = json.loads((folder / "tokenizer_config.json").read_bytes()).get("chat_template")
    except (OSError, ValueError, AttributeError):
        return None
    if not template:
        return None
    text = template if isinstance(template, str) else json.dumps(template, sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
