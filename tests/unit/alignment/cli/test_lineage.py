"""`alignment models ratings`, `diff` and `graph --mermaid|--html`, against small registries worked out by hand."""

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner, Result

import alignment.cli.main
from alignment.ratings import Completion, RatingsStore
from alignment.registry import Parent, Registry, Version, provenance
from alignment.registry.graph import boxes, levels, mermaid
from alignment.registry.page import draw, lineage_page
from alignment.registry.words import in_words

HOSTILE = '<script>x</script>"] --> n9 & `c` \x1b[31m\u202e#quot;|'


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    monkeypatch.setattr(provenance, "code_state", lambda: None)
    monkeypatch.setenv("ALIGNMENT_REGISTRY", str(tmp_path / "registry"))
    return Registry()


def model(folder: Path, **tensors: torch.Tensor) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text("{}")
    weights = {name.replace("__", "."): value for name, value in tensors.items()} or {"w": torch.ones(1)}
    save_file(weights, folder / "model.safetensors")
    return folder


def rate(path: Path, start: int, count: int, labelers: tuple[str, ...]) -> dict[str, Any]:
    """Rate so many pairs of sft's answers; the store's fingerprint."""
    with RatingsStore(path, create=not path.exists()) as store:
        for number in range(start, start + count):
            answers = [Completion("yes", model="sft@v1"), Completion("no", model="sft@v1")]
            store.add_item([{"role": "user", "content": f"{number}?"}], answers, need=len(labelers))
        for labeler in labelers:
            while (assignment := store.claim(labeler)) is not None:
                store.submit(assignment, "left", 1.0)
        return {"name": path.name, "rows": count, **store.fingerprint()}


@pytest.fixture
def rounds(registry: Registry, tmp_path: Path) -> Registry:
    """Two rounds on one database: amy and bob rate 3 pairs, then amy 2 more; a reward model and a policy each time.

    Names with letters that no hexadecimal digest has: "ada" stands in one of five manifests by chance.
    """
    folder, db = model(tmp_path / "model"), tmp_path / "ratings.db"
    demonstrations = [{"name": "handbook.jsonl", "rows": 1500, "sha256": "ab" * 32}]
    registry.publish("sft", folder, stage="sft", role="policy", data=demonstrations)
    for number, (start, count, labelers) in enumerate([(0, 3, ("amy", "bob")), (3, 2, ("amy",))], 1):
        mark = rate(db, start, count, labelers)
        marks = [mark, mark | {"use": "eval", "rows": 1}]
        init = [Parent("init", "sft@v1")]
        registry.publish(f"judge{number}", folder, stage="reward", role="reward", parents=init, data=marks)
        before = [Parent("init", "ppo1@v1" if number == 2 else "sft@v1")]
        parents = [*before, Parent("reward", f"judge{number}@v1")]
        metrics = {"eval_win_rate": 0.94, "eval_win_rate_low": 0.91, "eval_win_rate_high": 0.96, HOSTILE: 1.0}
        registry.publish(f"ppo{number}", folder, stage="ppo", role="policy", parents=parents, metrics=metrics)
    return registry


def run(*arguments: str) -> Result:
    return CliRunner().invoke(alignment.cli.main.app, ["models", *arguments])


def as_json(*arguments: str) -> Any:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


# --- ratings -------------------------------------------------------------------------------------------------------


def test_each_rating_behind_a_model_counts_once_over_rounds_and_splits(rounds: Registry, tmp_path: Path) -> None:
    (first,) = as_json("ratings", "ppo1")["sources"]
    assert (first["ratings"], first["items"], first["models"]) == (6, 3, ["judge1@v1"])
    (both,) = as_json("ratings", "ppo2")["sources"]
    assert (both["ratings"], both["items"], both["models"]) == (8, 5, ["judge2@v1", "judge1@v1"])
    with RatingsStore(tmp_path / "ratings.db") as store:
        assert both["labelers"] == {store.people.labeler_hash("amy"): 5, store.people.labeler_hash("bob"): 3}
        assert len(store.ratings()) == 8
    text = run("ratings", "ppo2").stdout
    assert "8 ratings of 5 items" in text and "2 labelers" in text
    assert "amy" not in text and "amy" not in (rounds.resolve("judge2").path / "manifest.json").read_text()
    assert run("ratings", "sft").stderr == "No ratings are behind sft@v1.\n"


def test_a_labelers_ratings_are_followed_to_the_models_that_they_reached(rounds: Registry, tmp_path: Path) -> None:
    db = str(tmp_path / "ratings.db")
    found = as_json("ratings", "--labeler", "bob", "--db", db)
    reached = {each["ref"]: (each["ratings"], each["through"]) for each in found["models"]}
    assert reached == {
        "judge1@v1": (3, {}),
        "judge2@v1": (3, {}),
        "ppo1@v1": (0, {"judge1@v1": 3}),
        "ppo2@v1": (0, {"judge1@v1": 3, "judge2@v1": 3}),
    }
    assert as_json("ratings", "--labeler", found["labeler"]) == found
    lines = run("ratings", "--labeler", "bob", "--db", db).stdout.splitlines()
    assert any(line.startswith("ppo1@v1") and "through judge1@v1" in line for line in lines)
    nobody = run("ratings", "--labeler", "eve", "--db", db)
    assert nobody.exit_code == 0 and "have reached no model" in nobody.stderr and nobody.stdout == ""


def test_ratings_in_a_plain_file_are_counted_by_its_rows(registry: Registry, tmp_path: Path) -> None:
    parts = [{"name": "pairs.jsonl", "sha256": "cd" * 32, "rows": rows, "use": use}
             for rows, use in ((90, "train"), (10, "eval"))]  # fmt: skip
    registry.publish("judge", model(tmp_path / "m"), stage="reward", role="reward", data=parts)
    (source,) = as_json("ratings", "judge")["sources"]
    assert (source["ratings"], source["labelers"], source["database"]) == (100, None, None)
    assert "nothing is written down of who rated" in run("ratings", "judge").stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ratings"], "give a model, or --labeler"),
        (["ratings", "ppo1", "--labeler", "0" * 16], "give a model, or --labeler"),
        (["ratings", "--labeler", "amy"], "add --db RATINGS.db"),
        (["ratings", "--labeler", "amy", "--db", "nowhere.db"], "no such file"),
        (["graph", "ppo1", "--mermaid", "--json"], "one at a time"),
        (["graph", "ppo1", "--html", "/nowhere/at/all.html"], "cannot be written"),
    ],
)
def test_mistakes_are_one_line(rounds: Registry, arguments: list[str], message: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2 and message in result.stderr and result.stderr.count("\n") == 1


# --- diff ----------------------------------------------------------------------------------------------------------


def test_the_distance_of_weights_is_the_frobenius_norm_by_layer(registry: Registry, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    one = {name: torch.randn(4, 6, generator=generator) for name in ("a", "b")}
    two = {"a": one["a"] * 1.5, "b": one["b"] + 1}
    for name, w in (("m", one), ("n", two)):
        extra = {f"only_{name}": torch.ones(2), "odd": torch.ones(2 if name == "m" else 3), "zero": torch.zeros(2)}
        if name == "n":
            extra["zero"] = torch.ones(2)
        folder = model(
            tmp_path / name, h__0__up__weight=w["a"], h__0__down__weight=w["b"], head__weight=w["b"].clone(), **extra
        )
        registry.publish(name, folder, stage="sft", role="policy")
    found = as_json("diff", "m", "n")["weights"]
    ones = torch.ones(4, 6)
    expected = math.sqrt(float((0.5 * one["a"]).norm()) ** 2 + float(ones.norm()) ** 2) / math.sqrt(
        float(one["a"].norm()) ** 2 + float(one["b"].norm()) ** 2
    )
    assert found["layers"]["h.0"] == {"tensors": 2, "relative": pytest.approx(expected, rel=1e-6)}
    assert found["layers"]["head"]["relative"] == pytest.approx(float(ones.norm() / one["b"].norm()), rel=1e-6)
    assert found["layers"]["zero"]["relative"] is None
    assert found["other_shapes"] == {"odd": [[2], [3]]}
    assert (found["only_first"], found["only_second"]) == (["only_m"], ["only_n"])
    text = run("diff", "m", "n").stdout
    assert "not compared: odd is [2] in m@v1 and [3] in n@v1" in text and "in n@v1 alone: only_n" in text
    assert as_json("diff", "m", "m")["weights"]["relative"] == 0.0


def test_what_differs_is_named_and_what_does_not_is_left_out(registry: Registry, tmp_path: Path) -> None:
    folder = model(tmp_path / "m")
    data = [{"name": "a.jsonl", "sha256": "0" * 64, "rows": 5}, {"name": "b.jsonl", "sha256": "1" * 64, "rows": 5}]
    for number in (0, 1):
        config = {"training": {"learning_rate": 10.0 ** -(4 + number), "seed": 1}, "name": "same"}
        metrics = {"accuracy": {"value": 0.7 + number / 10, "ci": [0.6, 0.9]}, "steps": 3}
        registry.publish(
            "m", folder, stage="sft", role="policy", config=config, metrics=metrics, seed=7 + number, data=data[number:]
        )
    found = as_json("diff", "m@v1", "m@v2", "--no-weights")
    assert "weights" not in found
    assert found["config"] == {"training.learning_rate": [1e-4, 1e-5]}
    assert found["metrics"] == {"accuracy": ["0.7 [0.6, 0.9]", "0.8 [0.6, 0.9]"]}
    assert found["made"] == {"seed": [7, 8]} and found["packages"] == {}
    assert [len(found["data"][key]) for key in ("only_first", "only_second", "both")] == [1, 0, 1]
    text = run("diff", "m@v1", "m@v2").stdout
    assert re.search(r"training\.learning_rate +0\.0001 +1e-05", text) and "the same:" in text


# --- graph ---------------------------------------------------------------------------------------------------------


def test_data_and_ratings_are_nodes_between_the_models(rounds: Registry) -> None:
    found = boxes(rounds.lineage("ppo1"))
    names = [box.title for box in found]
    assert names[0] == "ppo1@v1" and sorted(names) == ["handbook.jsonl", "judge1@v1", "ppo1@v1", "ratings.db", "sft@v1"]
    edges = {(names[parent], box.title): relation for box in found for parent, relation in box.parents.items()}
    assert edges == {
        ("handbook.jsonl", "sft@v1"): "",
        ("sft@v1", "ratings.db"): "answers",
        ("ratings.db", "judge1@v1"): "",
        ("sft@v1", "judge1@v1"): "init",
        ("sft@v1", "ppo1@v1"): "init",
        ("judge1@v1", "ppo1@v1"): "reward",
    }
    rows = dict(zip(names, levels(found), strict=True))
    assert [rows[n] for n in ("handbook.jsonl", "sft@v1", "ratings.db", "judge1@v1", "ppo1@v1")] == [4, 3, 2, 1, 0]
    assert found[names.index("ratings.db")].lines[:2] == ["6 ratings of 3 items", "2 labelers"]


def test_mermaid_has_each_node_and_edge_and_nothing_leaves_a_label(rounds: Registry, tmp_path: Path) -> None:
    data = [{"name": HOSTILE, "rows": 1}]
    rounds.publish("evil", model(tmp_path / "e"), stage="sft", role="policy", data=data, metrics={HOSTILE: 2.0})
    text = run("graph", "evil", "--mermaid").stdout
    lines = text.splitlines()
    assert lines[0] == "flowchart TD"
    nodes = [
        line for line in lines if re.fullmatch(r'  n\d+\S?[\[(/]+"[^"<>|`&]*(<br/>[^"<>|`&]*)*"[\])/]+:::\w+', line)
    ]
    edges = [line for line in lines if re.fullmatch(r'  n\d+ -->(\|"[^"<>|]*"\|)? n\d+', line)]
    assert (len(nodes), len(edges)) == (2, 1)
    assert len(lines) == 1 + 2 + 1 + 6  # and the colours
    assert "\x1b" not in text and "\u202e" not in text
    assert mermaid(rounds.lineage("ppo2")).count(" -->") == 10


class Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_stands_alone_and_escapes_what_manifests_say(rounds: Registry, tmp_path: Path) -> None:
    target = tmp_path / "lineage.html"
    result = run("graph", "ppo2", "--html", str(target))
    assert (result.exit_code, result.stdout) == (0, "")
    reader = Reader()
    reader.feed(target.read_text())
    tags = {tag for tag, _ in reader.tags}
    assert not tags & {"script", "img", "link", "iframe", "object", "use", "image"}
    policy = next(attrs["content"] for tag, attrs in reader.tags if attrs.get("http-equiv"))
    assert policy == "default-src 'none'; style-src 'unsafe-inline'"
    links = [value for _, attrs in reader.tags for key, value in attrs.items() if key in ("href", "src", "xlink:href")]
    ids = {attrs["id"] for _, attrs in reader.tags if "id" in attrs}
    assert links and all(link and link[0] == "#" and link[1:] in ids for link in links)
    for part in ("8 ratings of 5 items", "1,500 rows", "94.0% (91.0% to 96.0%)", rounds.resolve("ppo2").digest):
        assert part in reader.text
    assert "<script>x</script>" in reader.text  # as text


def test_boxes_do_not_overlap_and_arrows_end_at_them(rounds: Registry) -> None:
    found = boxes(rounds.lineage("ppo2"))
    picture = draw(found, levels(found))
    shapes = picture.shapes
    assert len(shapes) == len(found)
    for i, one in enumerate(shapes):
        assert one["x"] >= 0 and one["x"] + one["width"] <= picture.width
        assert one["y"] >= 0 and one["y"] + one["height"] <= picture.height
        for other in shapes[:i]:
            apart_x = one["x"] >= other["x"] + other["width"] or other["x"] >= one["x"] + one["width"]
            apart_y = one["y"] >= other["y"] + other["height"] or other["y"] >= one["y"] + one["height"]
            assert apart_x or apart_y
    tops = {(shape["x"] + shape["width"] // 2, shape["y"]) for shape in shapes}
    assert len(picture.arrows) == 10
    for arrow in picture.arrows:
        x, y = map(int, arrow.split()[-2:])
        assert (x, y) in tops


def test_forged_rings_and_missing_parents_are_drawn_and_do_not_hang(registry: Registry, tmp_path: Path) -> None:
    parents = [Parent("init", "m@v2"), Parent("reward", "gone@v1")]
    folder = model(tmp_path / "m")
    registry.publish("m", folder, stage="sft", role="policy", parents=parents)
    registry.publish("m", folder, stage="sft", role="policy", parents=[Parent("init", "m@v1")])
    path = registry.resolve("m@v1").path / "manifest.json"
    forged = json.loads(path.read_bytes())
    forged["data"] = [{"name": "r.db", "ratings": 1, "database": "d", "answered_by": {"m@v2": 1, "m@v1": 1}}]
    path.unlink()
    path.write_text(json.dumps(forged))
    for ref in ("m@v1", "m@v2"):
        page = lineage_page(registry.lineage(ref))
        assert "its own ancestor" in page and "not in this registry" in page
        assert mermaid(registry.lineage(ref)).startswith("flowchart TD")


# --- cards ---------------------------------------------------------------------------------------------------------


def test_metrics_in_words_take_either_form_of_interval() -> None:
    metrics = {"accuracy": {"value": 0.5, "ci": [0.25, 0.75]}, "eval_win_rate": 0.1, "eval_score": "nan", "other": 1}
    said = "its answers beat the starting model's on 10.0% of the held-out prompts, judged by "
    assert in_words(metrics) == [
        "agrees with the labelers' choice in 50.0% (25.0% to 75.0%) of the held-out comparisons",
        said + "a judge that was not recorded",
    ]
    assert said + "people" in in_words({**metrics, "judge": "people"})


def test_a_card_says_what_it_is_how_it_did_where_it_comes_from_and_how_to_make_it_again(
    rounds: Registry, tmp_path: Path
) -> None:
    config = {"name": "x", "model": {"policy": "sft@v1"}, "note": "</pre><script>alert(1)</script>\n\n# h"}
    version: Version = rounds.publish(
        "last", model(tmp_path / "l"), stage="ppo", role="policy", parents=[Parent("init", "ppo2@v1")],
        config=config, world_size=2, seed=3, metrics={"eval_win_rate": {"value": 0.5, "ci": [0.4, 0.6]}},
        wandb_url="https://wandb.example/x",
    )  # fmt: skip
    card = (version.path / "README.md").read_text()
    sections = re.findall(r"^## (.+)$", card, re.MULTILINE)
    assert sections == ["Use", "How it did", "Where it comes from", "Limits", "How to make it again"]
    for part in (
        "alignment models export last@v1 FOLDER",
        "50.0% (40.0% to 60.0%)",
        "sft@v1 \u2192 judge1@v1 \u2192 ppo1@v1 \u2192 judge2@v1 \u2192 ppo2@v1 \u2192 last@v1",
        "accelerate launch --num_processes 2 -m ppo config.yaml",
        "rewarded by a program (a reward model, a function or a service), not by people",
        "<details><summary>Config</summary>",
    ):
        assert part in card
    html = pytest.importorskip("markdown_it").MarkdownIt("commonmark", {"html": True}).enable("table").render(card)
    assert "<script" not in html and "<h1>" in html and html.count("<h1>") == 1
    config_text = html[html.index("<pre>{") + 5 : html.index("}</pre>") + 1]
    assert json.loads(config_text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")) == config
