"""The reward report in a real browser: wide, as narrow as a phone, dark and on paper."""

import json
import shutil
import subprocess

import numpy as np
import pytest
from helpers.judging import by_length, comparison, question

from reward.evaluation import evaluate
from reward.evaluation.report import save_report

HOSTILE = "</div><script>document.title='run'</script><img src=x onerror=\"document.title='run'\"> " + "w" * 300


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A report with every part: rankings, three labelers, strengths, an ensemble, and texts that mean harm."""
    rng = np.random.default_rng(0)
    questions = []
    for n in range(150):
        votes = [
            ("first" if rng.random() < 0.6 else "second", int(rng.integers(1, 4)), f"labeler {k}") for k in range(3)
        ]
        row = comparison(f"q{n} {HOSTILE}", votes, (f"x{n} {HOSTILE}", f"y{n}"), place=f"{'d' * 80}.jsonl:{n}")
        questions.append(question(n, [(0, 1, row)], (int(rng.integers(2, 9)), int(rng.integers(2, 9)))))
    members = [[rng.normal(size=2).tolist() for _ in questions] for _ in range(3)]
    scores = np.mean(members, axis=0).tolist()
    folder = tmp_path_factory.mktemp("report")
    save_report(folder, "a-rather-long-name-" * 8, {"": evaluate(questions, scores, by_length, members=members)})
    return folder / "evaluation.html"


@pytest.fixture
def browse(tmp_path):
    """Runs Chromium on a page and returns what it prints."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("no Chromium; install chromium")

    def run(path, *options):
        command = [found, "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
        return subprocess.run(
            [*command, *options, f"file://{path}"], check=True, capture_output=True, text=True, timeout=120
        ).stdout

    return run


@pytest.mark.browser
@pytest.mark.parametrize("width", [1200, 360])
def test_nothing_is_wider_than_the_window(page, browse, tmp_path, width):
    """The page may run nothing, so a frame of this width asks a copy without its policy."""
    text = page.read_text()
    policy = text[text.index("<meta http-equiv") : text.index('<meta name="viewport"')]
    bare = text.replace(policy, "")
    ask = "<script>parent.postMessage([document.documentElement.scrollWidth, innerWidth], '*')</script></body>"
    (tmp_path / "asked.html").write_text(bare[: bare.rindex("</body>")] + ask)
    (tmp_path / "frame.html").write_text(
        "<script>onmessage = (event) => { document.title = JSON.stringify(event.data) }</script>"
        f'<iframe src="asked.html" style="width:{width}px;height:900px;border:0"></iframe>'
    )
    dom = browse(tmp_path / "frame.html", "--dump-dom", "--virtual-time-budget=3000", "--window-size=1400,1000")
    wide, window = json.loads(dom[dom.index("<title>") + 7 : dom.index("</title>")])
    assert window == width
    assert wide <= width


@pytest.mark.browser
def test_nobodys_text_runs_and_the_policy_would_stop_it_anyway(page, browse, tmp_path):
    dom = browse(page, "--dump-dom")
    assert dom.index("<title>Reward model report") > 0
    assert "<script" not in dom and "<img" not in dom
    harmed = tmp_path / "harmed.html"
    harmed.write_text(page.read_text().replace("<h1", "<script>document.title = 'run'</script><h1", 1))
    assert "<title>run" not in browse(harmed, "--dump-dom")


@pytest.mark.browser
def test_it_is_drawn_light_dark_and_on_paper(page, browse, tmp_path):
    shots = {}
    for name, options in (("light", []), ("dark", ["--blink-settings=preferredColorScheme=0"])):
        shots[name] = tmp_path / f"{name}.png"
        browse(page, *options, f"--screenshot={shots[name]}", "--window-size=1200,1000")
        assert shots[name].stat().st_size > 20_000
    assert shots["light"].read_bytes() != shots["dark"].read_bytes()
    browse(page, f"--print-to-pdf={tmp_path / 'page.pdf'}", "--no-pdf-header-footer")
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")
