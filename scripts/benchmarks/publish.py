"""Publishing a model as a version, hashed and synced to the disk, against transformers' `save_pretrained`.

Publishing writes the same files, then hashes and syncs them, so it cannot be as fast: the ratio is what that costs.
"""

from __future__ import annotations

from typing import Any

from benchmarks import load

REQUIREMENTS: tuple[str, ...] = ()
OURS = "publish_weights"
UNIT = load.UNIT
ROWS = load.ROWS
PEERS: dict[str, tuple[str, dict[str, Any]]] = {"save_pretrained": ("publish_weights", {"how": "transformers"})}
prepare = load.prepare
