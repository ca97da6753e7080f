"""Lineage and the model card."""

import subprocess
import sys
from pathlib import Path

import pytest
from helpers.versions import printed, publish, rewrite_manifest
from hypothesis import given
from hypothesis import strategies as st

import alignment.registry as package
from alignment.registry import (
    Parent,
    Registry,
    Version,
    lineage,
    render_lineage,
)
from alignment.registry.card import escape

RATINGS = {"name": "ratings.db", "ratings": 2400, "labelers": 4, "simulated": True}


def three_stages(registry: Registry, source: Path) -> Version:
    demonstrations = {"name": "handbook.jsonl", "rows": 1500, "split": "train"}
    sft = publish(registry, source, name="sft", data=[demonstrations])
    start = Parent("init", sft.ref, sft.digest)
    reward = publish(registry, source, name="judge", stage="reward", role="reward", parents=[start], data=[RATINGS])
    parents = [start, Parent("reference", sft.ref, sft.digest), Parent("reward", reward.ref, reward.digest)]
    return publish(registry, source, name="ppo", stage="ppo", parents=parents, metrics={"kl": 4.25})


def test_the_lineage_reaches_the_ratings_and_joins_a_shared_parent(registry: Registry, source: Path) -> None:
    ppo = three_stages(registry, source)
    node = registry.lineage("ppo")
    assert [(edge.relation, edge.node.ref) for edge in node.parents] == [
        ("init, reference", "sft@v1"),
        ("reward", "judge@v1"),
    ]
    reward = node.parents[1].node
    assert reward.data[0].labelers == 4
    assert reward.parents[0].node is node.parents[0].node
    assert ppo.parent("reward") == Parent("reward", "judge@v1", reward.version.digest if reward.version else None)
    assert ppo.parent("value") is None
    tree = printed(render_lineage(node))
    assert "ppo@v1  ppo  " + ppo.digest[:15] + "  kl 4.25" in tree
    assert "ratings.db - 2400 ratings, 4 simulated labelers" in tree
    assert "handbook.jsonl - 1500 rows, split train" in tree
    assert tree.count("handbook.jsonl") == 1
    assert "init: sft@v1" in tree
    assert "(shown above)" in tree


def test_parents_are_pinned_and_strangers_kept(registry: Registry, source: Path) -> None:
    sft = publish(registry, source, name="sft")
    registry.set_alias("sft", "prod", 1)
    parents = [
        Parent("init", "sft@prod"),
        Parent("base", "org/base-7b"),
        Parent("reward", "sft@v9", "sha256:" + "0" * 64),
    ]
    version = publish(registry, source, parents=parents)
    assert version.manifest.parents == (Parent("init", "sft@v1", sft.digest), *parents[1:])
    nodes = [edge.node for edge in registry.lineage("m").parents]
    assert [node.version is None for node in nodes] == [False, True, True]
    assert all("missing" in (node.problem or "missing") for node in nodes)
    assert "missing" in printed(render_lineage(registry.lineage("m")))


def test_a_parent_moved_by_an_alias_since_is_still_found_by_digest(registry: Registry, source: Path) -> None:
    first = publish(registry, source, name="sft")
    publish(registry, source, name="sft")
    version = publish(registry, source, parents=[Parent("init", "sft@latest", first.digest)])
    assert version.manifest.parents == (Parent("init", "sft@v1", first.digest),)


def test_a_changed_parent_a_cycle_and_a_long_chain_are_shown_not_crashed_on(
    registry: Registry, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = three_stages(registry, source)
    sft = registry.resolve("sft")
    rewrite_manifest(sft, parents=[{"role": "init", "ref": "ppo@v1", "digest": None}])
    tree = printed(render_lineage(registry.lineage(version.ref)))
    assert "not the same any more" in tree
    assert "its own ancestor" in tree
    monkeypatch.setattr(lineage, "MAX_GENERATIONS", 5)
    for number in range(1, 9):
        publish(registry, source, name="chain", parents=[Parent("init", f"chain@v{number - 1}")] if number > 1 else [])
    tree = printed(render_lineage(registry.lineage("chain")))
    assert "more than 5 generations" in tree
    assert "chain@v4" in tree
    assert "chain@v1" not in tree


def test_a_deep_diamond_is_read_in_linear_time(registry: Registry, source: Path) -> None:
    for number in range(1, 41):
        parents = [Parent(role, f"d@v{number - 1}") for role in "ab"] + [Parent("c", f"d@v{max(1, number - 2)}")]
        publish(registry, source, name="d", parents=parents if number > 1 else [])
    assert len(printed(render_lineage(registry.lineage("d"))).splitlines()) < 100


def test_hostile_text_in_a_manifest_is_only_text(registry: Registry, source: Path) -> None:
    hostile = "[red]x[/red]\x1b]52;c;AA==\x07\x9b31m\u202e\nnew line"
    publish(
        registry,
        source,
        data=[{"name": hostile, "split": hostile}],
        metrics={hostile: 1.0},
        parents=[Parent(hostile, hostile)],
    )
    tree = printed(render_lineage(registry.lineage("m")))
    assert "[red]x[/red]" in tree
    assert not set(tree) & set("\x1b\x07\x9b\u202e")
    assert len(tree.splitlines()) == 3


def test_the_card_says_when_ratings_were_simulated_also_for_descendants(registry: Registry, source: Path) -> None:
    ppo = three_stages(registry, source)
    cards = {name: (registry.resolve(name).path / "README.md").read_text() for name in ("sft", "judge", "ppo")}
    assert "imulated" not in cards["sft"]
    assert "**Simulated ratings.**" in cards["judge"]
    assert "**Simulated ratings.**" in cards["ppo"]
    assert ppo.ref in cards["ppo"]
    assert "judge@v1" in cards["ppo"]
    assert "| kl | 4.25 |" in cards["ppo"]


def test_a_card_of_the_sources_own_is_kept(registry: Registry, source: Path) -> None:
    (source / "README.md").write_text("mine")
    assert (publish(registry, source).path / "README.md").read_text() == "mine"


def test_a_card_cannot_be_injected_into(registry: Registry, source: Path) -> None:
    hostile = "<script>alert(1)</script> | [x](http://evil.example) `code`\n# heading"
    version = publish(registry, source, data=[{"name": hostile}], metrics={hostile: 1.0}, run_id=hostile)
    card = (version.path / "README.md").read_text()
    markdown = pytest.importorskip("markdown_it").MarkdownIt("commonmark").enable("table")
    html = markdown.render(card)
    assert "<script" not in html
    assert "<a " not in html
    assert "<code>code" not in html
    assert html.count("<h1>") == 1
    assert html.count("heading") == 3


@given(st.text(max_size=60))
def test_escaped_text_renders_as_itself(text: str) -> None:
    markdown = pytest.importorskip("markdown_it").MarkdownIt("commonmark")
    rendered = markdown.renderInline(escape(text))
    assert "<a" not in rendered
    assert "<img" not in rendered
    assert "<code" not in rendered


def test_exports_are_what_they_say() -> None:
    assert sorted(package.__all__) == package.__all__
    assert all(hasattr(package, name) for name in package.__all__)


def test_importing_the_registry_does_not_import_torch() -> None:
    code = "import sys, alignment.cli.main; print([m for m in ('torch', 'transformers', 'wandb') if m in sys.modules])"
    root = Path(package.__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
