"""Dashboards, charts and the report as text; tests/integration/test_report_page.py looks at it in a browser."""

from __future__ import annotations

import json
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from journals import make_run
from typer.testing import CliRunner

from alignment.cli import app
from alignment.config import ConfigError
from alignment.tracking import dashboards, metrics, workspace
from alignment.tracking.charts import POINTS, thin
from alignment.tracking.record import Series
from alignment.tracking.report import write_report
from alignment.tracking.report_samples import changes

HEALTHY = {"rollout/score": 1.0, "rollout/kl": 2.0, "policy/entropy": 1.5, "train/learning_rate": 1e-4}


@pytest.mark.parametrize("name", ["sft", "reward", "ppo", "labels", "compare"])
def test_each_shipped_dashboard_is_read_and_shows_what_is_declared(name):
    assert name in dashboards.names()
    found = dashboards.load(name)
    shown = [each for section in found.sections for panel in section.panels for each in dashboards.shown(panel)]
    assert shown
    assert all(metrics.find(str(found.stage_of(s)), n, k == "histogram") for s in found.sections
               for p in s.panels for n, k in dashboards.shown(p))  # fmt: skip


def test_a_metric_that_nobody_declared_is_refused_by_its_name(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("title: T\nstage: ppo\nsections: [{title: S, panels: [{kind: line, title: L, metrics: [loss]}]}]")
    with pytest.raises(ConfigError, match=r"shows loss, which is no metric of ppo"):
        dashboards.load(str(path))


@given(st.lists(st.one_of(st.none(), st.floats(-1e6, 1e6)), min_size=1, max_size=5 * POINTS))
def test_thinning_loses_no_peak_and_no_gap(values):
    line = thin(Series(list(range(len(values))), values))
    good = [value for value in values if value is not None]
    assert len(line.x) == min(len(good), POINTS)
    if good:
        low, high = (line.low, line.high) if line.low else (line.y, line.y)
        assert (min(low), max(high)) == (min(good), max(good))
    assert set(line.bad) <= {step for step, value in enumerate(values) if value is None}
    assert bool(line.bad) == (None in values)


@given(st.text("ab ", max_size=30), st.text("ab ", max_size=30))
def test_marked_changes_hold_both_texts(before, now):
    parts = changes(before, now)
    words = lambda text: text.split()  # noqa: E731
    assert words("".join(text for kind, text in parts if kind != "+")) == words(before)
    assert words("".join(text for kind, text in parts if kind != "-")) == words(now)


def report(path, *more):
    page, outcome = write_report([path, *more], path / "report.html")
    return page.read_text(encoding="utf-8"), outcome


def test_the_strip_says_what_the_journal_found(tmp_path):
    finding = {"step": 3, "name": "exploding KL", "level": "error", "text": "793 nats a response"}
    events = [("watching", {"names": ["exploding KL", "truncation"]}), ("finding", finding)]
    make_run(tmp_path / "bad", rows=dict.fromkeys(range(1, 5), HEALTHY), events=events)
    make_run(tmp_path / "good", rows=dict.fromkeys(range(1, 5), HEALTHY), events=events[:1])
    text, outcome = report(tmp_path / "bad")
    assert outcome == "fail"
    assert "793 nats a response" in text
    _, outcome = report(tmp_path / "good")
    assert outcome == "pass"
    make_run(tmp_path / "nan", rows={1: HEALTHY, 2: HEALTHY | {"rollout/score": math.nan}}, events=events[:1])
    text, outcome = report(tmp_path / "nan")
    assert outcome == "fail"
    assert "was not finite, first at step 2" in text


def test_a_page_asks_for_nothing_and_runs_its_own_script_alone(tmp_path):
    sample = {"id": 0, "prompt": [{"role": "user", "content": "q"}], "response": "</script><script>alert(1)</script>",
              "score": 1.0}  # fmt: skip
    make_run(tmp_path / "run", rows={1: HEALTHY, 2: HEALTHY}, samples=[sample])
    text, _ = report(tmp_path / "run")
    policy = re.search(r'Content-Security-Policy"\s*content="([^"]*)"', text)
    assert policy is not None
    assert policy[1].startswith("default-src 'none'")
    assert "sha256-" in policy[1]
    assert "unsafe-inline" not in policy[1].partition("script-src")[2].partition(";")[0]
    assert "alert(1)</script>" not in text
    assert not re.findall(r'(?:src|href)="(?!#)[^"]*"', text)


def test_runs_side_by_side_show_what_differs(tmp_path):
    make_run(tmp_path / "one", rows={1: HEALTHY}, ppo={"kl_coef": 0.05})
    make_run(tmp_path / "two", rows={1: HEALTHY}, ppo={"kl_coef": 0.2})
    text, _ = report(tmp_path / "one", tmp_path / "two")
    assert "ppo.kl_coef" in text
    assert "0.05" in text
    assert "0.2" in text


def test_the_command_writes_the_file_and_names_the_nearest_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "runs" / "demo-ppo", rows={1: HEALTHY})
    done = CliRunner().invoke(app, ["runs", "report", "demo-ppo", "--json"])
    assert json.loads(done.stdout) == {"report": "runs/demo-ppo/report.html", "verdict": "pass"}
    assert (tmp_path / "runs/demo-ppo/report.html").exists()
    done = CliRunner().invoke(app, ["runs", "report", "demo-pp"])
    assert done.exit_code == 2
    assert "demo-ppo" in done.stderr


@pytest.mark.parametrize("name", ["sft", "reward", "ppo", "labels", "compare"])
def test_a_dashboard_becomes_a_workspace_view_without_network_or_key(name):
    """In W&B's own terms: each metric is named in it, and a section for each of ours."""
    dashboard = dashboards.load(name)
    text = json.dumps(workspace.view(dashboard, "project"))
    plotted = {
        each
        for section in dashboard.sections
        for panel in section.panels
        if panel.kind in ("line", "scalar", "bars")
        for each in panel.metrics_shown
    }
    assert plotted
    assert all(each.removesuffix("*") in text for each in plotted)
    assert all(json.dumps(section.title)[1:-1] in text for section in dashboard.sections)


def test_pushing_without_a_key_is_one_line(monkeypatch, tmp_path):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setattr("wandb.login", lambda **_: False)
    done = CliRunner().invoke(app, ["runs", "dashboard", "push", "ppo"])
    assert done.exit_code == 2
    assert "needs a W&B key" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
