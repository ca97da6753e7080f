"""The model card: README.md of a version whose source folder had none."""

import html
import re

from alignment.registry.lineage import describe_data, flat_metrics
from alignment.registry.manifest import Manifest
from alignment.terminal import one_line

_ROLES = {"policy": "A policy (it writes answers)", "reward": "A reward model (it scores answers)"}
_SIMULATED = (
    "> **Simulated ratings.** The ratings behind this model were made by a program, not by people. "
    "It says nothing about what people prefer."
)


def model_card(manifest: Manifest, simulated: bool) -> str:
    """Markdown: what it is, lineage, data, metrics, how it was made. `simulated`: such ratings are in its lineage.

    Everything taken from the manifest is escaped: it cannot make links, HTML or table cells.
    """
    ref = f"{manifest.name}@v{manifest.version}"
    lines = [f"# {escape(ref)}", ""]
    lines += [f"{_ROLES[manifest.role]} from stage {manifest.stage}, {manifest.created_at:%Y-%m-%d %H:%M} UTC.", ""]
    if simulated:
        lines += [_SIMULATED, ""]
    parents = [*manifest.parents, *([manifest.base] if manifest.base else [])]
    lines += _table(
        "Made from", ("as", "model", "digest"), [(p.role, p.ref, p.digest or "not recorded") for p in parents]
    )
    if manifest.data:
        lines += ["## Data", "", *[f"- {escape(describe_data(data))}" for data in manifest.data], ""]
    lines += _table("Metrics", ("metric", "value"), list(flat_metrics(manifest.metrics or {})))
    made = [("run", manifest.run_id), ("seed", manifest.seed), ("processes", manifest.world_size)]
    if manifest.code:
        made.append(("commit", manifest.code.commit + (" with uncommitted changes" if manifest.code.dirty else "")))
    made += list(manifest.packages.items())
    lines += _table("Made with", ("what", "which"), [(key, str(value)) for key, value in made if value is not None])
    lines += [
        "## Use",
        "",
        f"`alignment models graph {ref}` shows the whole lineage; `manifest.json` holds every detail.",
        "",
    ]
    return "\n".join(lines)


def escape(text: str) -> str:
    """Untrusted text as one line of markdown that shows as it was written."""
    plain = re.sub(r"([\\`*\[\]|~])", r"\\\1", html.escape(one_line(text), quote=False))
    plain = re.sub(r"(?i)(://|(?<=www)\.)", r"\\\1", plain)  # readers turn bare addresses into links
    return re.sub(r"^([#+=-])", r"\\\1", plain)


def _table(title: str, head: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    if not rows:
        return []
    body = [f"| {' | '.join(map(escape, row))} |" for row in rows]
    return [f"## {title}", "", f"| {' | '.join(head)} |", f"|{'---|' * len(head)}", *body, ""]
