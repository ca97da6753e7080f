"""A published version behind an OpenAI-compatible server: `transformers serve`, or vLLM; no server of our own.

Both load a plain folder. A whole model is served from where it is; an adapter is merged once, into a cache.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from alignment.errors import ModelError, UserError, require_extra
from alignment.models.export import export
from alignment.models.reward_files import is_ensemble
from alignment.models.sources import ModelSource, find_model
from alignment.registry import Registry

ServingEngine = Literal["auto", "transformers", "vllm"]
NEEDED = ("fastapi", "uvicorn", "openai")
"""Packages of the extra `serve`."""


@dataclass(frozen=True)
class PlainModel:
    """A folder that plain transformers loads, under the name that clients give.

    Args:
        folder: where `name` is a folder, or a link to one.
    """

    folder: Path
    name: str

    @property
    def path(self) -> Path:
        return self.folder / self.name


def cache_folder() -> Path:
    """Where merged adapters are kept; they can be removed at any time."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "alignment" / "plain"


def plain_model(ref: str, registry: Registry, cache: Path | None = None) -> PlainModel:
    """A policy as a folder for other programs, verified; an adapter is merged, unless that was done before.

    Raises:
        RegistryError, ModelError: it cannot be had, or is no policy.
    """
    source = find_model(ref, registry, role="policy")
    if is_ensemble(source):
        raise ModelError(f"{source.label}: a reward model, which writes no answers; name a policy")
    if not Path(source.path).is_dir():
        raise ModelError(
            f"{source.label}: a hub name; `alignment models import {source.label} NAME` makes it a version"
        )
    folder = (cache or cache_folder()) / _folder_name(source)
    name = re.sub(r"[^\w.-]+", "-", source.ref or Path(source.path).resolve().name)
    folder.mkdir(parents=True, exist_ok=True)
    model = PlainModel(folder, name)
    if not (model.path / "config.json").is_file():
        if source.base is None:
            _link(Path(source.path).resolve(), model.path)
        else:
            _merge(source, model.path, registry)
    return model


def _folder_name(source: ModelSource) -> str:
    """Of the digest; a folder without one is served from its place, whatever is in it now."""
    if source.digest is not None:
        return source.digest.removeprefix("sha256:")[:24]
    return re.sub(r"[^\w.-]+", "-", str(Path(source.path).resolve())).strip("-")[-100:]


def _link(target: Path, path: Path) -> None:
    """A link, whose name has no `@`: servers would read what follows as a revision."""
    try:
        path.symlink_to(target, target_is_directory=True)
    except FileExistsError:
        if path.resolve() != target:
            raise ModelError(f"{path}: leads elsewhere than to {target}; remove it") from None
    except OSError as error:
        raise ModelError(f"{path}: cannot be made ({error.strerror}); set XDG_CACHE_HOME to a folder") from None


def _merge(source: ModelSource, path: Path, registry: Registry) -> None:
    assert source.ref is not None
    try:
        export(source.ref, path, registry)
    except ModelError:
        if not (path / "config.json").is_file():  # else another process has merged it meanwhile
            raise


def choose_engine(engine: ServingEngine) -> Literal["transformers", "vllm"]:
    """vLLM where it is installed, unless told otherwise.

    Raises:
        UserError: the engine is not installed.
    """
    chosen = engine if engine != "auto" else "vllm" if find_spec("vllm") else "transformers"
    if chosen == "vllm":
        require_extra("vllm", "vllm", purpose="--engine vllm")
    else:
        require_extra("serve", *NEEDED, purpose="alignment serve")
    return chosen


def free_port(host: str, port: int) -> int:
    """The port, or a free one for 0.

    Raises:
        UserError: it is taken, or no port.
    """
    try:
        with socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET) as found:
            return int(found.getsockname()[1])
    except (OSError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"--port {port}: cannot listen on {host} ({reason}); choose another port") from None


def server_command(
    model: PlainModel, engine: Literal["transformers", "vllm"], host: str, port: int, more: Sequence[str] = ()
) -> list[str]:
    """The command of the server, to be run in the folder of the model.

    Args:
        more: its own options.
    """
    at = ["--host", host, "--port", str(port)]
    if engine == "vllm":
        program = shutil.which("vllm")
        start = [program] if program else [sys.executable, "-m", "vllm.entrypoints.cli.main"]
        return [*start, "serve", str(model.path), "--served-model-name", model.name, *at, *more]
    return [sys.executable, "-m", "transformers.cli.transformers", "serve", model.name, *at, *more]
