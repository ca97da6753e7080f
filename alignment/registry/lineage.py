"""The lineage of a version: its ancestors, with the data of each, as a graph or a tree on screen."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from pydantic import JsonValue
from rich.text import Text
from rich.tree import Tree

from alignment.registry.errors import RegistryError
from alignment.registry.manifest import DataFingerprint, Manifest
from alignment.registry.references import enumerated
from alignment.registry.version import Version
from alignment.terminal import one_line

MAX_GENERATIONS = 100
_SHOWN_METRICS = 4


@dataclass(frozen=True)
class LineageEdge:
    """A parent and its roles, such as "init, reference"."""

    relation: str
    node: LineageNode


@dataclass(frozen=True)
class LineageNode:
    """One model of a lineage. `version` is None if it is not in this registry; `problem` describes a fault."""

    ref: str
    version: Version | None
    problem: str | None
    parents: tuple[LineageEdge, ...] = ()
    rejected: str | None = None
    """The last review, if it was a rejection, and the aliases that point here all the same."""

    @property
    def data(self) -> tuple[DataFingerprint, ...]:
        """Fingerprints of the data that it was made from."""
        return self.version.manifest.data if self.version else ()


class Tracer:
    """Follows parents. Each version is read once and shared by its children, so a diamond does not grow the graph."""

    def __init__(
        self, resolve: Callable[[str], Version], rejected: Callable[[Version], str | None] = lambda version: None
    ) -> None:
        self._resolve, self._rejected = resolve, rejected
        self._done: dict[tuple[str, str | None], LineageNode] = {}
        self._open: list[str] = []

    def root(self, version: Version) -> LineageNode:
        """The lineage of a version."""
        return self._descend(version, None)

    def edges(self, manifest: Manifest) -> tuple[LineageEdge, ...]:
        """The parents of a manifest, an adapter's base among them; a version with several roles is one edge."""
        relations: dict[tuple[str, str | None], list[str]] = {}
        for parent in [*manifest.parents, *([manifest.base] if manifest.base else [])]:
            roles = relations.setdefault((parent.ref, parent.digest), [])
            if parent.role not in roles:
                roles.append(parent.role)
        return tuple(LineageEdge(", ".join(roles), self._node(*key)) for key, roles in relations.items())

    def _node(self, ref: str, digest: str | None) -> LineageNode:
        if (ref, digest) in self._done:
            return self._done[ref, digest]
        try:
            version = self._resolve(ref)
        except RegistryError as error:
            return LineageNode(ref, None, f"missing: {error}")
        problem = None
        if digest not in (None, version.digest):
            problem = f"not the same any more: recorded {digest}, found {version.digest}"
        if version.ref in self._open:
            return LineageNode(ref, version, "its own ancestor: one of these manifests is forged")
        if len(self._open) >= MAX_GENERATIONS:
            return LineageNode(ref, version, f"more than {MAX_GENERATIONS} generations: not followed further")
        node = self._descend(version, problem)
        self._done[ref, digest] = node
        return node

    def _descend(self, version: Version, problem: str | None) -> LineageNode:
        self._open.append(version.ref)
        edges = self.edges(version.manifest)
        node = LineageNode(version.ref, version, problem, edges, self._rejected(version))
        self._open.pop()
        return node


def walk(nodes: Iterator[LineageNode]) -> Iterator[LineageNode]:
    """These nodes and all their ancestors, each once."""
    waiting, seen = list(nodes), set()
    while waiting:
        node = waiting.pop(0)
        if (key := (node.ref, node.problem)) not in seen:
            seen.add(key)
            yield node
            waiting += [edge.node for edge in node.parents]


def simulated_ratings(nodes: Iterator[LineageNode]) -> bool:
    """Whether any of these models or their ancestors learned from ratings that a program made."""
    return any(data.simulated for node in walk(nodes) for data in node.data)


def render_lineage(node: LineageNode) -> Tree:
    """The lineage as a rich tree; a model that appears twice is spelled out the first time only.

    Text from manifests is cleaned and never read as markup.
    """
    seen: set[str] = set()

    def grow(tree: Tree, node: LineageNode) -> None:
        for data in node.data:
            tree.add(Text(f"data: {describe_data(data)}", style="green"))
        for edge in node.parents:
            parent = edge.node
            repeated = parent.ref in seen and bool(parent.parents or parent.data)
            branch = tree.add(_label(parent, f"{one_line(edge.relation)}: ", repeated))
            if not repeated:
                seen.add(parent.ref)
                grow(branch, parent)

    root = Tree(_label(node))
    seen.add(node.ref)
    grow(root, node)
    return root


def _label(node: LineageNode, before: str = "", repeated: bool = False) -> Text:
    label = Text(before, style="dim").append(one_line(node.ref), style="not dim bold")
    if repeated:
        return label.append("  (shown above)", style="dim")
    if node.version:
        manifest = node.version.manifest
        label.append(f"  {manifest.stage}  ", style="not dim cyan").append(node.version.digest[:15], style="dim")
        shown = list(flat_metrics(manifest.metrics or {}))[:_SHOWN_METRICS]
        label.append("".join(f"  {key} {value}" for key, value in shown), style="not dim")
    for said in filter(None, (node.rejected, node.problem)):
        label.append(f"  [{one_line(said)}]", style="not dim red")
    return label


def describe_data(data: DataFingerprint) -> str:
    """One line: `ratings.db - 2400 ratings, 4 simulated labelers`."""
    facts = [f"{count} {unit}" for count, unit in ((data.rows, "rows"), (data.items, "items")) if count is not None]
    kind = "simulated " if data.simulated else ""
    if data.ratings is not None:
        facts.append(f"{data.ratings} {'' if data.labelers is not None else kind}ratings")
    if data.labelers is not None:
        facts.append(f"{data.labelers} {kind}labeler{'' if data.labelers == 1 else 's'}")
    elif data.simulated and data.ratings is None:
        facts.append("simulated ratings")
    if data.answered_by:
        facts.append(f"answers by {enumerated([one_line(ref) for ref in data.answered_by])}")
    if data.use == "eval":
        facts.append("held out")
    if data.split:
        facts.append(f"split {one_line(data.split)}")
    return " - ".join(filter(None, [one_line(data.name), ", ".join(facts)]))


def flat_metrics(metrics: Mapping[str, JsonValue], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every number in (nested) metrics as a dotted key and its text; {"value", "ci"} is one: `0.71 [0.68, 0.74]`."""
    for key, value in metrics.items():
        name = prefix + one_line(key)
        if isinstance(value, dict) and _is_number(value.get("value")):
            ends = value.get("ci")
            interval = (
                f" [{', '.join(map(number, ends))}]" if isinstance(ends, list) and all(map(_is_number, ends)) else ""
            )
            yield name, number(value["value"]) + interval
        elif isinstance(value, dict):
            yield from flat_metrics(value, f"{name}.")
        elif _is_number(value):
            yield name, number(value)


def _is_number(value: JsonValue) -> bool:
    return (isinstance(value, int | float) and not isinstance(value, bool)) or value in ("nan", "inf", "-inf")


def number(value: JsonValue) -> str:
    """A number in four significant digits, as every view shows it."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
