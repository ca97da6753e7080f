"""A lineage as boxes and arrows: models, and the data and ratings that they were made from, as nodes of their own."""

from __future__ import annotations

from dataclasses import dataclass, field

from alignment.registry import DataFingerprint, LineageNode
from alignment.registry.lineage import walk
from alignment.registry.words import headline
from alignment.terminal import one_line

_SHOWN = 3


@dataclass
class Box:
    """A node: a model, data, ratings, or a missing model. `lines` are shown below the title."""

    kind: str
    title: str
    lines: list[str]
    parents: dict[int, str] = field(default_factory=dict)
    """The role of each parent, by the index of its box; "" for data."""
    node: LineageNode | None = None
    data: list[DataFingerprint] = field(default_factory=list)


def boxes(root: LineageNode) -> list[Box]:
    """The nodes of a lineage, its root first; data that several models share is one node."""
    all_nodes = list(walk(iter([root])))
    nodes = list({node.ref: node for node in [*all_nodes[::-1], root]}.values())
    nodes.sort(key=all_nodes.index)  # a forged manifest can make a model its own ancestor: the first one counts
    problems = {node.ref: node.problem for node in all_nodes if node.problem}
    result = [Box(_kind(node), node.ref, _model_lines(node, problems.get(node.ref)), node=node) for node in nodes]
    indices = {node.ref: index for index, node in enumerate(nodes)}
    sources: dict[tuple[str | None, ...], int] = {}
    for node in nodes:
        box = result[indices[node.ref]]
        for data in node.data:
            key = ("database", data.database) if data.database else (data.name, data.sha256)
            if key not in sources:
                sources[key] = len(result)
                result.append(Box("ratings" if data.ratings is not None else "data", data.name, []))
            result[sources[key]].data.append(data)
            box.parents[sources[key]] = ""
        for edge in node.parents:
            box.parents[indices[edge.node.ref]] = edge.relation
    for box in result[len(nodes) :]:
        box.lines = data_lines(box.data)
        box.parents = {indices[ref]: "answers" for data in box.data for ref in data.answered_by if ref in indices}
    return result


def _kind(node: LineageNode) -> str:
    return node.version.manifest.role if node.version else "missing"


def _model_lines(node: LineageNode, problem: str | None) -> list[str]:
    if node.version is None:
        return ["not in this registry"]
    manifest = node.version.manifest
    lines = [f"{manifest.stage} - {node.version.digest[7:19]}"]
    lines += [f"{name} {value}" for name, value in headline(manifest.metrics or {}, _SHOWN)]
    return lines + [one_line(said) for said in (node.rejected, problem) if said]


def data_lines(entries: list[DataFingerprint]) -> list[str]:
    """The size of a data set in lines of text, over all its uses."""
    lines = []
    latest = max(entries, key=lambda data: data.ratings or 0)
    if latest.ratings is not None:
        lines.append(f"{latest.ratings:,} ratings" + (f" of {latest.items:,} items" if latest.items else ""))
        if latest.labelers is not None:
            kind = "simulated " if latest.simulated else ""
            lines.append(f"{latest.labelers:,} {kind}labeler{'' if latest.labelers == 1 else 's'}")
    else:
        rows = {use: max((d.rows or 0 for d in entries if d.use == use), default=0) for use in ("train", "eval")}
        lines += [f"{rows['train']:,} rows"] * bool(rows["train"]) + [f"{rows['eval']:,} held out"] * bool(rows["eval"])
    if latest.sha256:
        lines.append(f"sha256 {one_line(latest.sha256)[:12]}")
    return lines


def levels(nodes: list[Box]) -> list[int]:
    """The longest path from each box to the root (box 0); a forged cycle is cut where it closes."""
    children: dict[int, list[int]] = {number: [] for number in range(len(nodes))}
    for number, box in enumerate(nodes):
        for parent in box.parents:
            children[parent].append(number)
    done: dict[int, int] = {}
    open_: set[int] = set()

    def level(number: int) -> int:
        if number not in done:
            open_.add(number)
            below = [level(child) for child in children[number] if child not in open_]
            open_.discard(number)
            done[number] = 1 + max(below, default=-1)
        return done[number]

    return [level(number) for number in range(len(nodes))]


def mermaid(root: LineageNode) -> str:
    """The lineage as a Mermaid diagram for Markdown viewers; text from a manifest cannot leave its label."""
    nodes = boxes(root)
    lines = ["flowchart TD"]
    shapes = {"data": ("[(", ")]"), "ratings": ("[(", ")]"), "missing": ("[/", "/]")}
    for number, box in enumerate(nodes):
        before, after = shapes.get(box.kind, ("[", "]"))
        text = "<br/>".join(map(_quoted, [box.title, *box.lines]))
        lines.append(f'  n{number}{before}"{text}"{after}:::{box.kind}')
    for number, box in enumerate(nodes):
        for parent, relation in box.parents.items():
            served = f'|"{_quoted(relation)}"|' if relation else ""
            lines.append(f"  n{parent} -->{served} n{number}")
    lines += [
        "  classDef policy fill:#e3f2fd,stroke:#1565c0,color:#0d2b4d",
        "  classDef reward fill:#fff3e0,stroke:#b26a00,color:#4a2c00",
        "  classDef value fill:#f3e5f5,stroke:#6a1b9a,color:#2e0b45",
        "  classDef data fill:#f1f8e9,stroke:#558b2f,color:#23380f",
        "  classDef ratings fill:#fce4ec,stroke:#ad1457,color:#4a0a25",
        "  classDef missing fill:#eeeeee,stroke:#888888,color:#444444,stroke-dasharray:4",
    ]
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    """The text in Mermaid's entity codes, so that it can neither end the label nor be read as markup."""
    return "".join(c if c.isalnum() or c in " .,-_@:()[]/+=%" else f"#{ord(c)};" for c in one_line(text))
