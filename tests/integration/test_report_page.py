"""The report in a real browser with the network off: nobody's text runs, nothing is asked for, readers look closer."""

import time

import pytest
from helpers.chromium import PROGRAM, Chromium
from helpers.full_runs import HOSTILE, full_run

from alignment.reports.report import write_report
from alignment.runs.journal import Journal

pytestmark = [pytest.mark.browser, pytest.mark.skipif(PROGRAM is None, reason="no Chromium; install chromium")]
FIGURES = 14
DRAWN = "document.querySelectorAll('.tip').length > 0"  # which the script alone makes


@pytest.fixture(scope="module")
def browser():
    with Chromium() as chromium:
        chromium.send(
            "Network.emulateNetworkConditions", offline=True, latency=0, downloadThroughput=0, uploadThroughput=0
        )
        yield chromium


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Reports of runs whose every text means harm, one of each stage and one that compares two."""
    folder = tmp_path_factory.mktemp("runs")
    runs = {stage: full_run(folder / stage, stage, texts=HOSTILE) for stage in ("sft", "reward", "ppo")}
    with Journal(runs["ppo"]) as journal:
        journal.finding(7, HOSTILE[0], "error", HOSTILE[1])
    pages = {stage: write_report([path])[0] for stage, path in runs.items()}
    other = full_run(folder / "other", "ppo", texts=HOSTILE)
    return pages | {"compare": write_report([runs["ppo"], other], folder / "both.html")[0]}


def open_page(browser, path, width=1280, **look):
    browser.look(width, 900, phone=width < 500, **look)
    browser.problems.clear()
    browser.requests.clear()
    browser.open(path.as_uri())
    browser.wait(DRAWN)


@pytest.mark.parametrize("name", ["sft", "reward", "ppo", "compare"])
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
def test_no_request_no_error_nobodys_text_runs_and_nothing_is_too_wide(browser, pages, name, width, dark):
    open_page(browser, pages[name], width, dark=dark)
    browser.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    browser.evaluate("document.querySelectorAll('*').forEach(each => each.dispatchEvent(new Event('mouseover')))")
    browser.pause(0.2)
    assert browser.problems == []
    assert browser.requests == [pages[name].as_uri()]
    assert browser.evaluate("document.title").endswith("report")
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    assert browser.evaluate("document.querySelectorAll('script').length") == 2
    assert browser.evaluate("document.querySelectorAll('img, iframe, link, base').length") == 0


def test_even_a_mistake_in_escaping_could_not_run(browser, pages, tmp_path):
    harmed = tmp_path / "harmed.html"
    text = pages["ppo"].read_text()
    harmed.write_text(
        text.replace("<h1", "<script>document.title='run'</script><img src=x onerror=document.title='run'><h1", 1)
    )
    browser.open(harmed.as_uri())
    browser.wait(DRAWN)
    assert browser.evaluate("document.title") != "run"
    browser.problems.clear()


def test_a_reader_sees_values_smooths_zooms_and_switches_the_axis(browser, pages):
    open_page(browser, pages["ppo"])
    chart = "[...document.querySelectorAll('.chart')].find(e => e.innerText.includes('Reward in training'))"
    browser.evaluate(f"chart = {chart}; plot = chart.querySelector('.plot'); plot.scrollIntoView({{block: 'center'}})")
    left, top, width, height = browser.evaluate(
        "(b => [b.left, b.top, b.width, b.height])(plot.getBoundingClientRect())"
    )
    mouse = {"y": top + height / 2, "button": "left", "clickCount": 1}
    browser.send("Input.dispatchMouseEvent", type="mouseMoved", x=left + width - 12, y=mouse["y"])
    tip = browser.evaluate("chart.querySelector('.tip').innerText")
    assert "step 20" in tip and "rollout/score 0.8" in tip and "rollout/reward 0.8" in tip
    crosses = browser.evaluate("document.querySelectorAll('.cross').length")
    assert crosses > 10  # the same step on all charts
    before = browser.evaluate("chart.querySelector('.line').getAttribute('points')")
    browser.evaluate("smooth.value = 0.9; smooth.dispatchEvent(new Event('input'))")
    assert browser.evaluate("chart.querySelectorAll('.raw').length") == 2
    assert browser.evaluate("chart.querySelector('.line:not(.raw)').getAttribute('points')") != before
    for kind, x in (("mousePressed", 0.3), ("mouseMoved", 0.5), ("mouseReleased", 0.6)):
        browser.send("Input.dispatchMouseEvent", type=kind, x=left + x * width, **mouse)
    ticks = "[...chart.querySelectorAll('text')].map(e => e.textContent)"
    assert "20" not in browser.evaluate(ticks) and "10" in browser.evaluate(ticks)
    browser.evaluate("document.getElementById('whole').click()")
    assert "20" in browser.evaluate(ticks)
    browser.evaluate("[...chart.querySelectorAll('.tools button')][0].click()")
    assert browser.evaluate("chart.querySelector('.tools button').getAttribute('aria-pressed')") == "true"
    browser.evaluate("chart.querySelector('.key').click()")
    assert browser.evaluate("chart.querySelectorAll('.line:not(.raw)').length") == 1
    assert browser.evaluate("document.querySelectorAll('.found.fail').length") > 10  # where something was found
    assert browser.problems == []


def test_a_reader_goes_through_steps_and_orders_of_answers_and_histograms(browser, pages):
    open_page(browser, pages["ppo"])
    at_the_end = browser.evaluate("document.querySelector('.sample').innerText")
    browser.evaluate(
        "slider = document.getElementById('at'); slider.value = 0; slider.dispatchEvent(new Event('input'))"
    )
    assert browser.evaluate("document.querySelector('.sample').innerText") != at_the_end
    assert (
        browser.evaluate("document.querySelectorAll('.sample ins, .sample del').length") == 0
    )  # the start beside itself
    browser.evaluate("slider.value = 2; slider.dispatchEvent(new Event('input'))")
    assert browser.evaluate("document.querySelector('.sample').innerText") == at_the_end
    assert browser.evaluate("document.querySelectorAll('.sample ins').length") > 0
    browser.evaluate(
        "order = document.getElementById('order'); order.value = 'score'; order.dispatchEvent(new Event('change'))"
    )
    assert browser.evaluate("document.querySelector('.sample .tag').textContent") == "best"
    shape = "document.querySelector('.chart .bins:not(.before)').getAttribute('points')"
    last = browser.evaluate(shape)
    browser.evaluate("frame = document.querySelector('.chart .frame input'); frame.value = 0")
    browser.evaluate("frame.dispatchEvent(new Event('input'))")
    assert browser.evaluate(shape) != last
    assert browser.evaluate("document.querySelector('.chart .frame output').textContent") == "step 0"
    assert browser.problems == []


def test_without_a_script_there_are_pictures_verdicts_and_answers(browser, pages):
    browser.send("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.look(1280, 900)
        browser.open(pages["ppo"].as_uri())
        assert browser.evaluate("document.querySelectorAll('.chart .plot svg polyline').length") > FIGURES
        text = browser.evaluate("document.body.innerText")
        assert "1 of 5 checks failed" in text and "smoothing" not in text
        assert browser.evaluate("document.querySelectorAll('.sample .text').length") >= 6
    finally:
        browser.send("Emulation.setScriptExecutionDisabled", value=False)


def test_it_prints(browser, pages):
    open_page(browser, pages["reward"])
    assert len(browser.send("Page.printToPDF")["data"]) > 20_000


@pytest.mark.slow
def test_a_hundred_thousand_steps_open_in_less_than_three_seconds(browser, tmp_path):
    path = full_run(tmp_path / "long", "ppo", 100_000)
    started = time.monotonic()
    page, _ = write_report([path])
    written = time.monotonic() - started
    browser.problems.clear()
    started = time.monotonic()
    browser.open(page.as_uri())
    browser.wait("document.querySelectorAll('.plot svg .line').length > 30")
    opened = time.monotonic() - started
    print(f"written in {written:.1f} s, {page.stat().st_size / 1e6:.2f} MB, opened in {opened:.2f} s")
    assert opened < 3
    assert browser.problems == []
