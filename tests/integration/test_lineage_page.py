"""The lineage page in a real browser: wide, as narrow as a phone, dark; nobody's text runs."""

import json

import pytest
from safetensors.torch import save_file
from test_reward_report_page import HOSTILE, browse  # noqa: F401 - a fixture
from torch import ones

from alignment.registry import Parent, Registry
from alignment.registry.page import lineage_page


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The four models of one round, with ratings of the SFT model's answers and texts that mean harm."""
    folder = tmp_path_factory.mktemp("lineage")
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text("{}")
    save_file({"w": ones(1)}, folder / "model" / "model.safetensors")
    registry = Registry(folder / "registry")
    ratings = {"name": f"ratings.db {HOSTILE}", "ratings": 5088, "items": 1696, "labelers": 4, "simulated": True}
    ratings |= {"database": "d", "answered_by": {"sft@v1": 1696}}
    data = {
        "base": [],
        "sft": [{"name": "d" * 200, "rows": 1422, "sha256": "ab" * 32}],
        "reward": [ratings],
        "ppo": [{"name": f"{n}.jsonl", "rows": n} for n in range(3)],
    }
    parents = {"base": [], "sft": ["base"], "reward": ["sft"], "ppo": ["sft", "reward"]}
    for stage, marks in data.items():
        made_from = [Parent("init" if name != "reward" else "reward", f"{name}@v1") for name in parents[stage]]
        registry.publish(
            stage,
            folder / "model",
            stage=stage,
            role="reward" if stage == "reward" else "policy",
            parents=made_from,
            data=marks,
            metrics={HOSTILE: 1.0, "accuracy": {"value": 0.8, "ci": [0.7, 0.9]}},
            run_id=HOSTILE,
        )
    (folder / "page.html").write_text(lineage_page(registry.lineage("ppo")))
    return folder / "page.html"


@pytest.mark.browser
@pytest.mark.parametrize(("width", "shown"), [(1200, "wide"), (360, "narrow")])
def test_the_picture_suits_the_window_and_nothing_is_wider(page, browse, tmp_path, width, shown):  # noqa: F811
    text = page.read_text()
    policy = text[text.index("<meta http-equiv") : text.index('<meta name="viewport"')]
    ask = """<script>parent.postMessage([document.documentElement.scrollWidth, innerWidth,
        ...[...document.querySelectorAll('.scroll')].filter(e => e.offsetWidth).map(e => e.className)], '*')</script>"""
    bare = text.replace(policy, "")
    (tmp_path / "asked.html").write_text(bare[: bare.rindex("</body>")] + ask)
    (tmp_path / "frame.html").write_text(
        "<script>onmessage = (event) => { document.title = JSON.stringify(event.data) }</script>"
        f'<iframe src="asked.html" style="width:{width}px;height:900px;border:0"></iframe>'
    )
    dom = browse(tmp_path / "frame.html", "--dump-dom", "--virtual-time-budget=3000", "--window-size=1400,1000")
    wide, window, *pictures = json.loads(dom[dom.index("<title>") + 7 : dom.index("</title>")])
    assert window == width and wide <= width
    assert pictures == [f"scroll {shown}"]


@pytest.mark.browser
def test_nobodys_text_runs_and_it_is_drawn_light_and_dark(page, browse, tmp_path):  # noqa: F811
    dom = browse(page, "--dump-dom")
    assert "<title>Lineage of ppo@v1" in dom
    assert "<script" not in dom and "<img" not in dom
    shots = {}
    for name, options in (("light", []), ("dark", ["--blink-settings=preferredColorScheme=0"])):
        shots[name] = tmp_path / f"{name}.png"
        browse(page, *options, f"--screenshot={shots[name]}", "--window-size=1200,1000")
        assert shots[name].stat().st_size > 20_000
    assert shots["light"].read_bytes() != shots["dark"].read_bytes()
