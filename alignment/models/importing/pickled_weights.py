"""A program that converts pickled weights to safetensors: `python pickled_weights.py IN.bin OUT.safetensors`.

`alignment.models.importing.foreign` runs it. `weights_only` runs no code of the file, and a file that crashes the
reader or fills the memory ends only this process. Prints the tensors' names as JSON.
"""

from __future__ import annotations

import json
import sys

import torch
from safetensors.torch import save_file


def convert(source: str, target: str) -> list[str]:
    """Write the tensors of a state dict; those that share memory (tied weights, views) are written once per name.

    Raises:
        ValueError: it holds something other than named tensors.
    """
    state = torch.load(source, map_location="cpu", weights_only=True)
    if not isinstance(state, dict) or not state:
        raise ValueError("not a dictionary of tensors")
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise ValueError(f"{name!r:.60} is no named tensor")
    owned = {name: value.detach().clone().contiguous() for name, value in state.items()}
    save_file(owned, target, metadata={"format": "pt"})
    return list(owned)


if __name__ == "__main__":
    try:
        print(json.dumps(convert(*sys.argv[1:])))
    except Exception as error:  # noqa: BLE001 - a foreign file can make the reader raise anything
        sys.exit((str(error).strip().splitlines() or [type(error).__name__])[0])
