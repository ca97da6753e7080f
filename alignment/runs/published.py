"""What run folders recorded of versions: the digests of those that they used and published."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from alignment.errors import UserError
from alignment.registry.witnesses import Witness, witness
from alignment.runs.record import find_runs, read_rows
from alignment.runs.run import Run


def run_witnesses(folder: Path) -> Iterator[Witness]:
    """The digests in the runs of a folder; runs that cannot be read are passed over."""
    for path in find_runs(folder):
        found: list[tuple[Any, Any, str]] = []
        try:
            run = Run.read(path) or Run()
            found += [(ref, f"sha256:{pin.partition('@sha256:')[2]}", "used it") for ref, pin in run.models.items()]
            for row in read_rows(path / "events.jsonl"):
                if row.get("event") == "published":
                    found.append((row.get("model"), row.get("digest"), "published it"))
        except UserError:
            pass
        for ref, digest, what in found:
            if said := witness(ref, digest, f"the run {path}, which {what}"):
                yield said
