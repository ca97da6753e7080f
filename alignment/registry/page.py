"""A lineage as one self-contained page: a picture, then each step with its data, metrics and digests."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from alignment import html
from alignment.registry import LineageNode
from alignment.registry.graph import Box, boxes, data_lines, levels
from alignment.registry.lineage import flat_metrics
from alignment.registry.words import in_words, with_intervals

WIDTH = 272
"""Width of a box, in the picture's units, as are the next three."""
GAP = 28
"""Between two boxes of a row."""
LINE = 18
"""Height of a line of text."""
BEND = 46
"""Between two rows."""
_CUT = 38
_LANE = 10
"""The gap in a picture with one box per row, as on a phone."""

GRAPH_STYLE = """.lineage svg { display: block; margin: 0 auto; }
.lineage svg text { font: 12px system-ui, sans-serif; fill: currentColor; }
.lineage svg .name { font-weight: 600; font-size: 13px; }
.box { fill: var(--soft); stroke: var(--dim); stroke-width: 1.5; }
.policy .box { fill: #1565c018; stroke: var(--note); } .reward .box { fill: #b26a0018; stroke: var(--warning); }
.value .box { fill: #6a1b9a18; stroke: #8e44ad; }
.data .box { fill: #2e7d3218; stroke: var(--good); } .ratings .box { fill: #ad145718; stroke: var(--rated); }
.missing .box { stroke-dasharray: 4; }
.arrow { fill: none; stroke: var(--dim); stroke-width: 1.5; opacity: .8; } marker path { fill: var(--dim); }
:root { --rated: #ad1457; } @media (prefers-color-scheme: dark) { :root { --rated: #f48fb1; } }
.narrow { display: none; } @media (max-width: 44rem) { .wide { display: none; } .narrow { display: block; } }
.lineage .scroll { padding: .6rem 0; border: 1px solid var(--line); border-radius: .4rem; }
.keys { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; margin: .5rem 0 0; color: var(--dim); font-size: .85rem; }
"""
_STYLE = (
    GRAPH_STYLE
    + """.step { border: 1px solid var(--line); border-left: .3rem solid var(--dim); border-radius: .3rem;
  padding: .7rem .9rem; margin: .8rem 0; }
.step.policy { border-left-color: var(--note); } .step.reward { border-left-color: var(--warning); }
.step.data { border-left-color: var(--good); } .step.ratings { border-left-color: var(--rated); }
.step h3 { margin: 0; font-size: 1rem; overflow-wrap: anywhere; } .step p { overflow-wrap: anywhere; }
.step h3 span { font-weight: 400; color: var(--dim); } .step table { margin-top: .4rem; font-size: .92rem; }
.step th { width: 8rem; color: var(--dim); font-weight: 400; } code { font-size: .85rem; overflow-wrap: anywhere; }
"""
)

GRAPH = """{% macro draw(picture, root, name, links) %}
<svg width="{{ picture.width }}" height="{{ picture.height }}" role="img"
 viewBox="0 0 {{ picture.width }} {{ picture.height }}"
 aria-label="The models and data behind {{ root }}, oldest at the top">
<defs><marker id="tip-{{ name }}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" orient="auto">
<path d="M0 0 L8 4 L0 8 z"/></marker></defs>
{% for arrow in picture.arrows %}<path class="arrow" d="{{ arrow }}" marker-end="url(#tip-{{ name }})"/>
{% endfor %}{% for shape in picture.shapes %}<g class="{{ shape.kind }}">
{%- if links %}<a href="#step-{{ shape.number }}">{% endif %}

<rect class="box" x="{{ shape.x }}" y="{{ shape.y }}" width="{{ shape.width }}" height="{{ shape.height }}" rx="8"/>
{% for line in shape.lines %}<text x="{{ shape.x + 12 }}" y="{{ shape.y + 22 + 18 * loop.index0 }}"
{%- if loop.first %} class="name"{% endif %}>{{ line }}</text>
{% endfor %}{% if links %}</a>{% endif %}</g>
{% endfor %}</svg>
{% endmacro %}
{% macro lineage(graph, links=true) %}<div class="lineage">
<div class="scroll wide">{{ draw(graph.wide, graph.root, "wide", links) }}</div>
<div class="scroll narrow">{{ draw(graph.narrow, graph.root, "narrow", links) }}</div>
<p class="keys"><span>Oldest at the top; an arrow leads to what was made from it.</span>
<span>Blue: policies. Orange: reward models. Violet: critics. Green: data. Pink: ratings.</span></p></div>{% endmacro %}
"""

_BODY = """
<h1>Where {{ root }} comes from</h1>
<p class="source">{{ digest }}</p>
{{ lineage(graph) }}
<h2>Step by step</h2>
{% for step in steps %}<section class="step {{ step.kind }}" id="step-{{ step.number }}">
<h3>{{ step.title }} <span>{{ step.what }}</span></h3>
{% if step.problem %}<div class="finding error"><p><b>problem</b>{{ step.problem }}</p></div>{% endif %}
{% if step.rejected %}<div class="finding error"><p><b>rejected</b>{{ step.rejected }}</p></div>{% endif %}
{% if step.simulated %}<div class="finding warning"><p><b>simulated</b>These ratings were made by a program, not by
people.</p></div>{% endif %}
{% for sentence in step.words %}<p>{{ sentence }}</p>
{% endfor %}
{% if step.facts %}<table>{% for key, value in step.facts %}<tr><th>{{ key }}</th><td>{{ value }}</td></tr>
{% endfor %}</table>{% endif %}
{% if step.metrics %}<details><summary>All {{ step.metrics | length }} figures</summary><table>
{% for key, value in step.metrics %}<tr><td>{{ key }}</td><td class="number">{{ value }}</td></tr>
{% endfor %}</table></details>{% endif %}
</section>
{% endfor %}
"""


@dataclass(frozen=True)
class GraphLayout:
    """The layout: boxes, arrows as paths, and the total size."""

    width: int
    height: int
    shapes: list[dict[str, Any]]
    arrows: list[str]


_WHAT = {"policy": "a policy", "reward": "a reward model", "value": "a critic"}


def lineage_page(root: LineageNode) -> str:
    """The page of a lineage."""
    nodes = boxes(root)
    return html.render(
        f"Lineage of {root.ref}",
        _STYLE,
        GRAPH,
        _BODY,
        root=root.ref,
        digest=root.version.digest if root.version else "",
        graph=graph(root),
        steps=[_step(number, nodes) for number in _order(nodes)],
    )


def graph(root: LineageNode) -> dict[str, Any]:
    """Input of the macro `lineage`: a wide picture, and one with a box per row for a phone."""
    nodes = boxes(root)
    order = _order(nodes)
    one_a_row = [len(order) - 1 - order.index(number) for number in range(len(order))]
    return {"root": root.ref, "wide": draw(nodes, levels(nodes)), "narrow": draw(nodes, one_a_row, gap=_LANE)}


def _order(nodes: list[Box]) -> list[int]:
    """The boxes from the oldest to the newest; data before the models of a level."""
    depth = levels(nodes)
    return sorted(
        range(len(nodes)), key=lambda number: (-depth[number], nodes[number].kind in ("policy", "reward", "value"))
    )


def draw(nodes: list[Box], depth: list[int], gap: int = GAP) -> GraphLayout:
    """Rows by depth, the last at the top; an arrow over several rows has a lane of its own in those between."""
    rows: list[list[tuple[int, ...]]] = [[] for _ in range(max(depth) + 1)]
    for number, level in enumerate(depth):
        rows[level].append((number,))
    chains = []
    for child, box in enumerate(nodes):
        for parent in box.parents:
            lanes = [(parent, child, level) for level in range(depth[parent] - 1, depth[child], -1)]
            for lane in lanes:
                rows[lane[2]].append(lane)
            chains.append([(parent,), *lanes, (child,)])
    _untangle(rows, chains)
    high = [max(_height(nodes[key[0]]) for key in row if len(key) == 1) for row in rows]
    widths = [sum(_width(key) for key in row) + gap * (len(row) - 1) for row in rows]
    width, y = max(widths) + 2 * gap, gap
    place: dict[tuple[int, ...], tuple[int, int]] = {}
    for level in reversed(range(len(rows))):
        x = (width - widths[level]) // 2
        for key in rows[level]:
            place[key] = (x, y)
            x += _width(key) + gap
        y += high[level] + BEND
    shapes = [
        {
            "number": number,
            "kind": box.kind,
            "x": place[number,][0],
            "y": place[number,][1],
            "width": WIDTH,
            "height": _height(box),
            "lines": [_cut(line) for line in (box.title, *box.lines)],
        }
        for number, box in enumerate(nodes)
    ]
    return GraphLayout(width, y - BEND + gap, shapes, [_path(chain, place, nodes, high, depth) for chain in chains])


def _untangle(rows: list[list[tuple[int, ...]]], chains: list[list[tuple[int, ...]]]) -> None:
    """Order each row by the middle of its neighbours, down and up a few times."""
    near: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
    for chain in chains:
        for one, other in itertools.pairwise(chain):
            near.setdefault(one, []).append(other)
            near.setdefault(other, []).append(one)
    for _ in range(4):
        for order in (range(len(rows)), reversed(range(len(rows)))):
            for level in order:
                at = {key: (i + 0.5) / len(row) for row in rows for i, key in enumerate(row)}
                rows[level].sort(key=lambda key, at=at: fmean([at[n] for n in near.get(key, [key])]))  # type: ignore[misc]


def _width(key: tuple[int, ...]) -> int:
    return WIDTH if len(key) == 1 else 0


def _height(box: Box) -> int:
    return 18 + LINE * (1 + len(box.lines))


def _path(
    chain: list[tuple[int, ...]],
    place: dict[tuple[int, ...], tuple[int, int]],
    nodes: list[Box],
    high: list[int],
    depth: list[int],
) -> str:
    """From the bottom of the parent, straight down the lanes, to the top of the child."""
    x, y = place[chain[0]]
    x, y = x + WIDTH // 2, y + _height(nodes[chain[0][0]])
    path = f"M{x} {y}"
    for key in chain[1:]:
        to_x, to_y = place[key]
        to_x += _width(key) // 2
        path += f" C{x} {(y + to_y) // 2} {to_x} {(y + to_y) // 2} {to_x} {to_y}"
        x, y = to_x, to_y
        if len(key) > 1:
            y += high[key[2]]
            path += f" L{x} {y}"
    return path


def _cut(line: str) -> str:
    return line if len(line) <= _CUT else line[: _CUT - 1] + "\u2026"


def _step(number: int, nodes: list[Box]) -> dict[str, Any]:
    """The page's content for one box."""
    box = nodes[number]
    step: dict[str, Any] = {"number": number, "kind": box.kind, "title": box.title, "words": [], "metrics": []}
    made_from = [
        (relation or "data", nodes[parent].title) for parent, relation in box.parents.items() if relation != "answers"
    ]
    if box.node is None:
        answers = [("answers by", nodes[parent].title) for parent in box.parents]
        latest = max(box.data, key=lambda data: data.ratings or 0)
        facts = [*answers, ("used by", ", ".join(b.title for b in nodes if number in b.parents))]
        facts += [("sha256", latest.sha256 or ""), ("split", latest.split or "")]
        what = "ratings" if box.kind == "ratings" else "data"
        words = [", ".join(line for line in data_lines(box.data) if not line.startswith("sha256"))]
        return step | {
            "what": what,
            "words": words,
            "facts": [fact for fact in facts if fact[1]],
            "simulated": any(d.simulated for d in box.data),
        }
    if box.node.version is None:
        return step | {"what": "a model that is not in this registry", "problem": box.node.problem, "facts": []}
    manifest = box.node.version.manifest
    facts = [
        ("digest", box.node.version.digest),
        ("published", f"{manifest.created_at:%Y-%m-%d %H:%M} UTC"),
        *made_from,
        *(
            [("commit", manifest.code.commit + (" with changes" if manifest.code.dirty else ""))]
            if manifest.code
            else []
        ),
        *([("from", manifest.origin.source)] if manifest.origin else []),
    ]
    metrics = manifest.metrics or {}
    return step | {
        "what": f"{_WHAT[manifest.role]}, stage {manifest.stage}",
        "problem": box.node.problem,
        "rejected": box.node.rejected,
        "facts": facts,
        "words": in_words(metrics),
        "metrics": list(flat_metrics(with_intervals(metrics))),
    }
