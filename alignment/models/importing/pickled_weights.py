"""One pickled weights file to safetensors, as a program of its own: `python bin_weights.py IN.bin OUT.safetensors`.

`alignment.models.importing.model` runs it: weights_only lets no code of the file run, and a file that makes the reader
crash or fill the memory takes this process with it and no other. Prints the tensors' names as JSON.
"""

from __future__ import annotations

import json
import sys

import torch
from safetensors.torch import save_file


def convert(source: str, target: str) -> list[str]:
    """Write the tensors of a state dict; ones that share memory (tied weights, views) are written for each name.

    Raises:
        ValueError: it holds something else than named tensors.
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
    except Exception as error:  # noqa: BLE001 - whatever a file of somebody else's makes the reader raise
        sys.exit((str(error).strip().splitlines() or [type(error).__name__])[0])
