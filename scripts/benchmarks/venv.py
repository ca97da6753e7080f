"""A separate virtual environment for each peer, created on first use under `.bench/`, which git ignores."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from alignment.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


def peer_python(requirements: Sequence[str]) -> Path:
    """The Python of a venv with these pinned packages, and our constraints for everything else.

    torch is installed first and pinned; otherwise another package's range could select a build with gigabytes of CUDA.

    Raises:
        UserError: pip could not install them.
    """
    home = ROOT / ".bench" / "-".join(requirements).replace("==", "-")
    python, stamp = home / "bin" / "python", home / ".installed"
    if stamp.exists():
        return python
    print(f"setting up {home} (once; a few minutes)", file=sys.stderr)
    names = {requirement.partition("==")[0] for requirement in requirements}
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    torch = next(line for line in lines if line.startswith("torch=="))
    pip = [str(python), "-m", "pip", "install", "--quiet", "--quiet", "--disable-pip-version-check"]
    try:
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(home)], check=True, stdout=sys.stderr)
        pins = home / "constraints.txt"  # without our pins of the peer's own packages
        pins.write_text("\n".join(line for line in lines if line.partition("==")[0] not in names), encoding="utf-8")
        subprocess.run([*pip, torch], check=True, stdout=sys.stderr)
        subprocess.run([*pip, "-c", str(pins), *requirements], check=True, stdout=sys.stderr)
    except subprocess.CalledProcessError as error:
        raise UserError(f"{home}: cannot be set up ({error}); the first use needs a package index") from None
    stamp.touch()
    return python
