"""The report as a text: its verdicts, that nobody's text is markup in it, and what it says when it cannot be made."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser

import pytest
from helpers.full_runs import HOSTILE, full_run
from helpers.journals import make_run
from markupsafe import escape
from typer.testing import CliRunner

from alignment.cli.main import app
from alignment.errors import UserError
from alignment.reports import checks, report
from alignment.reports.report import MAX_RUNS, report_page, write_final_report, write_report
from alignment.runs.journal import Journal
from alignment.runs.record import RunRecord
from ppo.alarms import Alarms, watched
from ppo.config import PPOStageConfig

STAGES = ("sft", "reward", "ppo")


def page_of(*paths, **options):
    return report_page([RunRecord.read(path) for path in paths], **options)


class Tags(HTMLParser):
    """Every tag of a page with its attributes, and the text of each script."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.scripts, self._inside = [], [], False
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._inside = tag == "script"

    def handle_data(self, data):
        if self._inside:
            self.scripts.append(data)

    def handle_endtag(self, tag):
        self._inside = False


# --- verdicts


CONFIG = PPOStageConfig.model_validate(
    {"name": "n", "model": {"policy": "p", "reward": "r"}, "data": {"train": "t"}, "registry": {"name": "n"}}
)


def course(path, stats, steps=25):
    """A PPO run whose figures take a course, watched by the stage's own alarms; as `ppo.train` writes it."""
    make_run(path)
    alarms = Alarms(CONFIG)
    alarms.begin(start := evaluation(0))
    with Journal(path, stage="ppo") as journal:
        journal.watching(watched(CONFIG))
        journal.log(0, start)
        for step in range(1, steps + 1):
            journal.log(step, stats(step) | evaluation(step))
            for alarm in alarms.check(step, stats(step), evaluation(step)):
                if alarm.text is None:
                    journal.cleared(step, alarm.name)
                else:
                    journal.finding(step, alarm.name, alarm.level, alarm.text)
    return path


def evaluation(step):
    return dict.fromkeys(("eval/score", "eval/held_out_score", "eval/raw_score", "eval/reward/model"), 0.1 * step)


def healthy(step):
    found = {
        "rollout/kl": 0.1 * step,
        "rollout/length": 20.0,
        "rollout/ended": 1.0,
        "policy/entropy": 0.2 - 0.003 * step,
    }
    return found | {"value/explained_variance": 0.5, "rollout/score": 0.1 * step, "rollout/length_correlation": 0.1}


def without_leash(step):
    """KL coefficient 0 and the learning rate a hundredfold, as the demo's PPO goes then."""
    gone = step > 1
    return healthy(step) | {
        "rollout/kl": 790.0 if gone else 0.0,
        "policy/entropy": 0.0 if gone else 0.2,
        "rollout/ended": 0.0 if gone else 1.0,
        "rollout/length": 64.0 if gone else 21.0,
        "value/explained_variance": -2.0 if gone else 0.1,
    }


def test_a_broken_run_turns_the_strip_red_with_the_reasons(tmp_path):
    path, outcome = write_report([course(tmp_path / "run", without_leash)])
    page = path.read_text()
    assert outcome == "fail"
    assert '<div class="verdict fail">' in page and "2 of 12 checks failed, 3 to look at" in page
    names = ("KL in bounds", "answers still vary", "answers end in time", "critic predicts the reward", "length steady")
    for name in names:
        assert f"<b>{name}</b>" in page
    assert "raise ppo.kl_coef" in page and "lower training.learning_rate" in page


def test_a_healthy_run_shows_no_failure(tmp_path):
    path, outcome = write_report([course(tmp_path / "run", healthy)])
    page = path.read_text()
    assert outcome == "pass"
    assert '<div class="verdict pass">' in page and "All 12 checks passed" in page
    assert 'class="fail"' not in page and 'class="warn"' not in page


def test_what_was_not_measured_is_counted_and_explained(tmp_path):
    """Without a held-out judge the strip is grey, not green."""
    path = course(tmp_path / "run", healthy)
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    kept = [{name: value for name, value in row.items() if name != "eval/held_out_score"} for row in rows]
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
    _, outcome = write_report([path])
    page = (path / "report.html").read_text()
    assert outcome == "not measured"
    assert '<div class="verdict not-measured">' in page and "11 of 12 checks passed, 1 not measured" in page
    assert "it needs a second reward model (model.held_out_reward)" in page
    for check in (*checks.COMMON, *(check for check in checks.PPO if check.key in watched(CONFIG))):
        assert f"<dt>{check.name}</dt><dd>{escape(check.about)}</dd>" in page


def test_a_run_that_goes_on_is_not_blamed_for_having_no_end(tmp_path):
    full_run(tmp_path / "run", "ppo")
    (tmp_path / "run" / "exit.json").unlink()
    assert "was killed" not in page_of(tmp_path / "run")


# --- what is on it


@pytest.mark.parametrize("stage", STAGES)
def test_each_panel_of_the_stage_is_on_its_page(tmp_path, stage):
    from alignment.reports import dashboards

    page = page_of(full_run(tmp_path / "run", stage))
    needs_evaluation = ("slices", "reliability", "scores", "shortcuts")
    for name in dashboards.OF_STAGE[stage]:
        for section in dashboards.load(name).sections:
            titles = [panel.title for panel in section.panels if panel.kind in ("line", "scatter", "histogram", "bars")]
            for title in titles:
                assert title.replace("&", "&amp;") in page, title
            if any(panel.kind not in needs_evaluation for panel in section.panels):
                assert f"<h2>{section.title}</h2>" in page or section.title == "Verdict"


def test_charts_have_a_still_picture_and_their_numbers(tmp_path):
    page = page_of(full_run(tmp_path / "run", "ppo", 50))
    data = json.loads(next(text for text in Tags(page).scripts if text.startswith("{")))
    assert page.count('class="card chart"') == len(data["charts"])
    assert page.count("<polyline") >= 20
    assert len(data["samples"]["items"]) == 3 and data["samples"]["steps"] == [0, 25, 50]
    lengths = next(c for c in data["charts"] if c["lines"][0]["name"] == "rollout/length")
    assert lengths["unit"] == "tokens" and lengths["lines"][0]["x"] == list(range(1, 51))


def test_runs_are_compared_in_config_verdicts_and_figures(tmp_path):
    one = full_run(tmp_path / "one", "ppo", ppo={"kl_coef": 0.05}, secret={"api_key": "KEY"})
    other = full_run(tmp_path / "other", "ppo", ppo={"kl_coef": 0.0}, secret={"api_key": "OTHER"})
    with Journal(other) as journal:
        journal.finding(3, "a thing", "error", "it broke")
    page = page_of(one, other)
    assert re.search(r"<code>ppo.kl_coef</code></th><td>0.05</td><td>0.0</td>", page)
    assert "1 of 4 checks failed" in page and "it broke" in page
    assert page.count('<span class="run c1">') > 3
    assert "KEY" not in page and "OTHER" not in page
    assert "<code>name</code>" not in page


def test_reviews_are_on_it(tmp_path):
    path = course(tmp_path / "run", healthy)
    say = ["--approve", "--note", "Reads <well>", "--reviewer", "Ada"]
    done = CliRunner().invoke(app, ["runs", "review", str(path), *say])
    assert done.exit_code == 0, done.output
    assert re.search(r"Approved</b> by .* on \d{4}-\d\d-\d\d: Reads &lt;well&gt;", page_of(path))


# --- hostile text


@pytest.mark.parametrize("stage", STAGES)
def test_nobodys_text_is_markup(tmp_path, stage):
    plain = Tags(page_of(full_run(tmp_path / "plain", stage)))
    harmed_page = page_of(full_run(tmp_path / "harmed", stage, texts=HOSTILE))
    harmed = Tags(harmed_page)
    allowed = {tag for tag, _ in plain.tags} | {"del", "ins", "details", "summary"}
    assert {tag for tag, _ in harmed.tags} <= allowed
    assert len(harmed.scripts) == 2  # the numbers and the script
    names = {name for _, attrs in harmed.tags for name in attrs}
    assert not {name for name in names if name.startswith("on")} and "src" not in names
    assert all(attrs["href"].startswith("#") for _, attrs in harmed.tags if "href" in attrs)
    assert not set("\x1b\u202e\u2028\x00") & set(harmed_page)
    json.loads(harmed.scripts[0])


def test_the_policy_allows_our_script_alone(tmp_path):
    tags = Tags(page_of(full_run(tmp_path / "run", "ppo")))
    policy = next(attrs["content"] for tag, attrs in tags.tags if attrs.get("http-equiv"))
    digest = base64.b64encode(hashlib.sha256(tags.scripts[1].encode()).digest()).decode()
    assert policy == f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    assert "http" not in policy


# --- when it cannot be made


def test_runs_of_two_stages_are_refused(tmp_path):
    with pytest.raises(UserError, match="of one stage, but these are of ppo and sft"):
        page_of(full_run(tmp_path / "a", "ppo", 2), full_run(tmp_path / "b", "sft", 2))


def test_more_runs_than_colours_are_refused(tmp_path):
    paths = [full_run(tmp_path / str(n), "sft", 1) for n in range(MAX_RUNS + 1)]
    with pytest.raises(UserError, match="up to 8 runs, found 9"):
        page_of(*paths)


def test_a_file_that_cannot_be_written_is_one_line(tmp_path):
    with pytest.raises(UserError, match="cannot be written: No such file or directory; name another"):
        write_report([full_run(tmp_path / "a", "ppo", 2)], tmp_path / "no" / "where.html")


def test_nothing_that_goes_wrong_with_the_report_reaches_the_run(tmp_path, monkeypatch, capsys):
    def broken(*_):
        raise RuntimeError("no\nway")

    monkeypatch.setattr(report, "report_page", broken)
    write_final_report(full_run(tmp_path / "run", "ppo", 2))
    said = capsys.readouterr().err
    assert said.startswith("warning: no report was written (RuntimeError: no way)") and said.count("\n") == 1
    assert not (tmp_path / "run" / "report.html").exists()


def test_the_command_writes_beside_the_run_or_where_it_is_told(tmp_path):
    full_run(tmp_path / "one", "ppo", 3)
    full_run(tmp_path / "two", "ppo", 3)

    def run(*arguments):
        return CliRunner().invoke(app, ["runs", "report", *arguments, "--runs", str(tmp_path), "--json"])

    told = json.loads(run("one").stdout)
    assert told == {"report": str(tmp_path / "one" / "report.html"), "verdict": "pass", "verdicts": ["pass"]}
    both = tmp_path / "both.html"
    assert json.loads(run("one", "two", "--out", str(both)).stdout)["report"] == str(both)
    assert "runs compared" in both.read_text()
    assert "did you mean one" in run("onee").stderr


def test_a_dashboard_of_ones_own(tmp_path):
    path = full_run(tmp_path / "run", "ppo", 3)
    (tmp_path / "mine.yaml").write_text(
        "title: Mine\nstage: ppo\nsections:\n  - title: Just this\n    panels:\n"
        "      - {kind: line, title: Only one, metrics: [policy/loss]}\n"
    )
    page = page_of(path, dashboard=str(tmp_path / "mine.yaml"))
    assert "Just this" in page and page.count('class="card chart"') == 1


@pytest.mark.parametrize("out", [".", "folder"])
def test_a_folder_for_the_page_is_one_line_and_leaves_nothing(tmp_path, monkeypatch, out):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    full_run(tmp_path / "run", "ppo", 3)
    done = CliRunner().invoke(app, ["runs", "report", str(tmp_path / "run"), "--out", out])
    assert done.exit_code == 2 and "that is a folder; name a file" in done.stderr
    assert not list(tmp_path.rglob(".*.part"))


def test_a_dashboard_of_another_stage_is_refused(tmp_path):
    with pytest.raises(UserError, match="the dashboard ppo has no data for a run of the stage sft"):
        page_of(full_run(tmp_path / "run", "sft", 3), dashboard="ppo")
