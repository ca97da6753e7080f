"""Loading a model from a local folder: ours, which checks what it loads, against transformers' `from_pretrained`.

All read the same float32 files, which are in the page cache after the first round, and touch every weight once.
"""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

from benchmarks.base import base_model
from benchmarks.ppo_work import MEMORY

REQUIREMENTS: tuple[str, ...] = ()
OURS = "load_weights"
UNIT = "parameters/s"
ROWS = 1
PEERS: dict[str, tuple[str, dict[str, Any]]] = {"transformers": ("load_weights", {"how": "transformers"})}


def prepare(folder: Path, options: Namespace) -> dict[str, Any]:
    """Write the model, in the registry too."""
    from alignment.registry import Registry

    texts = ("Some words to learn a vocabulary from.", "And some others.")
    model, tokenizer = base_model(options, MEMORY, texts)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    Registry(folder / "registry").publish("model", folder / "model", stage="base", role="policy")
    return {"parameters": model.num_parameters()}
