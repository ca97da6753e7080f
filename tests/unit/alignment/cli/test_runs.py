"""`alignment runs list|show|compare|review`, and what a review does to `alignment models promote`."""

import json
import os
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from helpers.journals import make_run
from typer.testing import CliRunner, Result

import alignment.cli.main
from alignment.cli.recorded import keep
from alignment.files import host_name
from alignment.registry import Registry, Version, provenance
from alignment.registry.evaluations import FigureRecord, evaluations_of
from alignment.reports import overview
from alignment.reports.review import review
from alignment.runs.journal import Journal
from alignment.runs.lease import hold
from alignment.runs.record import RunRecord
from alignment.runs.run import Attempt, Run

HOSTILE = "\x1b[2Jwiped\u202e\x07"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with an empty registry."""
    monkeypatch.setattr(provenance, "code_state", lambda: None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("ALIGNMENT_REGISTRY", str(tmp_path / "registry"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def command(*arguments: str) -> Result:
    return CliRunner().invoke(alignment.cli.main.app, arguments)


def said(*arguments: str) -> str:
    result = command(*arguments)
    assert (result.exit_code, result.stderr) == (0, "")
    return result.stdout


def as_json(*arguments: str) -> Any:
    return json.loads(said(*arguments, "--json"))


def refused(*arguments: str) -> str:
    result = command(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.count("\n") == 1
    return result.stderr.removeprefix("error: ").strip()


ROWS = {
    0: {"eval/score": 0.5},
    1: {"rollout/score": 1.0, "rollout/kl": 2.0},
    2: {"rollout/score": 3.0, "rollout/kl": 1.0, "eval/score": 2.0},
    3: {"eval/score": 1.5, "eval/win_rate": 0.75, "eval/win_rate_low": 0.5, "eval/win_rate_high": 0.875},
}
FINDING = ("finding", {"step": 2, "name": "critic", "level": "warning", "text": f"it explains nothing {HOSTILE}"})
WATCHED = ("watching", {"names": ["critic", "exploding KL"]})


# list


def test_the_list_says_where_each_run_stands(home: Path) -> None:
    make_run(home / "runs" / "done", rows=ROWS)
    make_run(home / "runs" / "going", rows=ROWS, events=[WATCHED], exit_code=None)
    make_run(home / "runs" / "red", "sft", {4: {"train/epoch": 1.0, "train/loss": 2.0}}, exit_code=1)
    make_run(home / "runs" / "moved", exit_code=75)
    (home / "runs" / "not-a-run").mkdir()
    found = {run["name"]: run for run in as_json("runs", "list")["runs"]}
    assert {name: run["state"] for name, run in found.items()} == {
        "done": "done", "going": "running", "red": "failed", "moved": "preempted",
    }  # fmt: skip
    assert {name: run["verdict"] for name, run in found.items()} == {
        "done": "pass", "going": "pass", "red": "fail", "moved": "warn",
    }  # fmt: skip
    assert (found["going"]["step"], found["going"]["total_steps"]) == (3, 10)
    assert (found["red"]["step"], found["red"]["total_steps"]) == (4, 16)  # one of four epochs
    assert found["done"]["figures"] == {"eval/win_rate": 0.75, "eval/score": 1.5, "rollout/score": 3.0}
    table = said("runs", "list")
    assert [line.split()[:3] for line in table.splitlines() if "going" in line] == [["going", "ppo", "running"]]


def test_a_run_whose_process_is_gone_was_killed(home: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    make_run(home / "runs" / "r", rows=ROWS, exit_code=None)
    run = Run.read(home / "runs" / "r")
    assert run is not None and run.attempts[-1].pid == os.getpid()
    attempt = run.attempts[-1].model_copy(update={"pid": ended.pid})
    run.model_copy(update={"attempts": (attempt,)}).write(home / "runs" / "r")
    assert as_json("runs", "list")["runs"][0]["state"] == "killed"
    there = attempt.model_copy(update={"host": "another-" + host_name()})
    run.model_copy(update={"attempts": (there,)}).write(home / "runs" / "r")
    record = RunRecord.read(home / "runs" / "r")
    assert overview.state_of(record) == "running"
    assert overview.state_of(record, time.time() + overview.SILENT_SECONDS + 60) == "killed"


def test_a_run_from_before_processes_were_written_down_is_read(home: Path) -> None:
    make_run(home / "runs" / "r", exit_code=None)
    before = Run(attempts=(Attempt(started_at=datetime(2026, 1, 1, tzinfo=UTC)),)).model_dump(mode="json")
    before["attempts"] = [{key: before["attempts"][0][key] for key in ("started_at", "resumed_from")}]
    (home / "runs" / "r" / "run.json").write_text(json.dumps(before))
    assert as_json("runs", "list")["runs"][0]["state"] == "killed"  # silent since then


def test_one_damaged_run_does_not_hide_the_others(home: Path) -> None:
    make_run(home / "runs" / "good")
    make_run(home / "runs" / "bad")
    (home / "runs" / "bad" / "config.json").write_text("{")
    found = as_json("runs", "list")["runs"]
    assert sorted(run.get("name", "?") for run in found) == ["?", "good"]
    assert any("config.json cannot be read" in run.get("error", "") for run in found)
    assert "bad" in said("runs", "list")


def test_without_runs_the_list_says_how_to_make_one(home: Path) -> None:
    result = command("runs", "list")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "No runs in runs" in result.stderr
    assert as_json("runs", "list") == {"runs": []}


def test_time_left_is_by_the_speed_of_this_attempt(home: Path) -> None:
    make_run(home / "runs" / "r", exit_code=None)
    start = datetime(2026, 1, 1, tzinfo=UTC)
    run = Run(attempts=(Attempt(started_at=start),))
    run.write(home / "runs" / "r")
    times = {1: -900.0, 2: -600.0, 3: 10.0, 4: 12.0, 5: 14.0}
    rows = [{"step": step, "time": start.timestamp() + at, "x": 1} for step, at in times.items()]
    (home / "runs" / "r" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    record = RunRecord.read(home / "runs" / "r")
    assert overview.step_seconds(record) == pytest.approx(2.0)
    assert overview.seconds_left(record) == pytest.approx(10.0)


# show


def test_a_run_is_shown_whole(home: Path) -> None:
    make_run(home / "elsewhere" / "r", rows=ROWS, events=[WATCHED, FINDING, ("published", {"model": "m@v1"})])
    shown = as_json("runs", "show", "elsewhere/r")
    by_name = {figure["name"]: figure for figure in shown["figures"]}
    assert by_name["eval/score"] == {
        "name": "eval/score", "unit": "",
        "meaning": "of answers to the held-out prompts, with what long and unfinished ones cost",
        "last": 1.5, "step": 3, "ci": None, "best": 2.0, "best_step": 2,
    }  # fmt: skip
    assert by_name["eval/win_rate"]["ci"] == [0.5, 0.875]
    assert (by_name["rollout/kl"]["unit"], by_name["rollout/kl"]["best"]) == ("nats/response", None)
    outcomes = {verdict["name"]: verdict["outcome"] for verdict in shown["verdicts"]}
    assert outcomes == {"critic": "warn", "end": "pass", "finite": "pass", "exploding KL": "pass"}
    assert [event["name"] for event in shown["findings"]] == ["critic"]
    assert (shown["published"], len(shown["attempts"]), shown["checkpoints"]) == ("m@v1", 1, [])
    text = said("runs", "show", "r", "--runs", "elsewhere")
    assert "0.75 [0.5, 0.875]" in text and "nats/response" in text and "it explains nothing \u241b[2Jwiped" in text
    assert "\x1b" not in text and "\u202e" not in text


def test_an_unknown_run_names_the_nearest(home: Path) -> None:
    make_run(home / "runs" / "help-desk")
    assert "did you mean help-desk?" in refused("runs", "show", "helpdesk")
    assert "it has help-desk" in refused("runs", "show", "zzz")
    assert "it has none" in refused("runs", "watch", "zzz", "--runs", "nowhere")
    assert "\x1b" not in refused("runs", "show", HOSTILE)


def test_the_shell_is_offered_runs_by_name(home: Path) -> None:
    from types import SimpleNamespace

    from alignment.cli.completion import complete_run

    make_run(home / "runs" / "help-desk")
    make_run(home / "other" / "elsewhere")
    assert complete_run(SimpleNamespace(params={}), "he") == ["help-desk"]
    assert complete_run(SimpleNamespace(params={"folder": home / "other"}), "") == ["elsewhere"]


# compare


def test_runs_are_compared_by_what_was_set_and_what_came_of_it(home: Path) -> None:
    make_run(home / "runs" / "a", rows=ROWS, events=[WATCHED])
    other = {**ROWS, 4: {"eval/score": 4.0}}
    make_run(home / "runs" / "b", rows=other, events=[WATCHED, FINDING], ppo={"kl_coef": 0.0}, tracking={"wandb": "x"})
    found = as_json("runs", "compare", "a", "b")
    assert found["config"] == {"ppo.kl_coef": [0.05, 0.0]}
    assert found["verdicts"] == {"critic": ["not measured", "warn"]}
    figures = {row["name"]: [(each["last"], each["best"], each["best_step"]) for each in row["figures"]]
               for row in found["figures"]}  # fmt: skip
    assert figures["eval/score"] == [(1.5, 2.0, 2), (4.0, 4.0, 4)]
    assert figures["rollout/kl"] == [(1.0, None, None)] * 2
    assert next(iter(figures)) == "eval/win_rate" and "eval/win_rate_low" not in figures
    text = said("runs", "compare", "a", "b")
    assert "0.75 [0.5, 0.875]" in text and "1.5 (best 2 at 2)" in text


def test_loss_is_best_where_it_is_lowest(home: Path) -> None:
    rows = {1: {"eval/loss": 2.0, "eval/accuracy": 0.5}, 2: {"eval/loss": 1.0, "eval/accuracy": 0.75},
            3: {"eval/loss": 3.0, "eval/accuracy": 0.25}}  # fmt: skip
    estimate = {"value": 0.25, "ci": [0.125, 0.5], "n": 9}
    make_run(home / "runs" / "a", "reward", rows, events=[("published", {"model": "m@v1", "accuracy": estimate})])
    figures = {figure["name"]: figure for figure in as_json("runs", "show", "a")["figures"]}
    assert (figures["eval/loss"]["best"], figures["eval/loss"]["best_step"]) == (1.0, 2)
    assert (figures["eval/accuracy"]["best"], figures["eval/accuracy"]["ci"]) == (0.75, [0.125, 0.5])


def test_what_cannot_be_compared_is_refused(home: Path) -> None:
    make_run(home / "runs" / "a")
    make_run(home / "runs" / "s", "sft")
    assert "a is ppo, s is sft" in refused("runs", "compare", "a", "s")
    assert "two runs or more" in refused("runs", "compare", "a")


# review


@pytest.fixture
def published(home: Path) -> Registry:
    """A run `r` that published m@v1, and one `early` that has published nothing."""
    source = home / "source"
    source.mkdir()
    (source / "config.json").write_text("{}")
    (source / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}" + b"weights")
    registry = Registry()
    run = make_run(home / "runs" / "r", rows=ROWS, events=[("published", {"model": "m@v1"})])
    registry.publish(
        "m", source, stage="ppo", role="policy", run_id="r", publish_id=run.publish_id("m"),
        config={"name": "r", "tracking": {"runs": "runs"}},
    )  # fmt: skip
    make_run(home / "runs" / "early", rows=ROWS, exit_code=None)
    return registry


def test_a_review_is_found_from_the_run_and_from_the_model(published: Registry) -> None:
    done = as_json("runs", "review", "r", "--approve", "--note", f"Reads well {HOSTILE}", "--reviewer", "Ada\x1b")
    digest = published.resolve("m@v1").digest
    assert (done["decision"], done["model"], done["digest"], done["step"]) == ("approve", "m@v1", digest, 3)
    assert (done["note"], done["reviewer"]) == ("Reads well \u241b[2Jwiped\ufffd\u2407", "Ada\u241b")
    assert done.pop("still_pointed_to") == []
    assert as_json("runs", "show", "r")["reviews"] == [done]
    assert as_json("models", "show", "m")["reviews"] == [done]
    assert "approved by Ada" in said("runs", "show", "r") and "approved by Ada" in said("models", "show", "m")
    assert as_json("models", "doctor")["findings"] == []


def test_who_reviews_is_the_login_unless_it_is_said(published: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGNAME", "grace")
    assert as_json("runs", "review", "r", "--reject", "--note", "no")["reviewer"] == "grace"
    monkeypatch.setattr("getpass.getuser", lambda: (_ for _ in ()).throw(KeyError("uid")))
    assert as_json("runs", "review", "r", "--reject", "--note", "no")["reviewer"] == str(os.getuid())


def test_the_gate_wants_an_approval_and_the_last_word_counts(published: Registry) -> None:
    gate = ("models", "promote", "m@v1", "prod", "--require-review")
    assert "m@v1 has no review" in refused(*gate)
    as_json("runs", "review", "r", "--approve", "--note", "fine", "--reviewer", "Ada")
    as_json("runs", "review", "r", "--reject", "--note", "too polite", "--reviewer", "Grace")
    assert "rejected by Grace" in refused(*gate) and "too polite" in refused(*gate)
    assert "rejected by Grace" in refused(*gate[:-1])  # also where no review is asked for
    assert published.aliases("m") == {}
    as_json("runs", "review", "r", "--approve", "--note", "on second thoughts", "--reviewer", "Ada")
    as_json(*gate)
    (move,) = published.alias_history("m", "prod")
    assert (move.version, move.reviewed_by, move.required) == (1, "Ada", ("review",))


def test_a_promotion_says_what_the_review_does_not_rest_on_and_who_judged(published: Registry, home: Path) -> None:
    with Journal(home / "runs" / "r") as journal:
        journal.watching(["over-optimisation"])
    done = command("runs", "review", "r", "--approve", "--note", "fine", "--reviewer", "Ada")
    assert "the run was not checked for: held-out judge agrees" in done.stderr
    gate = ("models", "promote", "m@v1", "prod", "--require-review")
    done = command(*gate)
    assert (done.exit_code, done.stdout) == (0, "m@prod is v1\n")
    assert done.stderr == "note: m@v1: the run was not checked for: held-out judge agrees\n"
    metrics = {
        "eval_win_rate": 0.75,
        "judge": "the reward model that it was trained on (rm@v1), which is biased upward",
    }
    published.publish("m", home / "source", stage="ppo", role="policy", metrics=metrics)
    moved = as_json("models", "promote", "m@v2", "prod", "--require", "eval_win_rate>0.5")
    assert moved["caveats"] == [f"m@v2: its win rate is judged by {metrics['judge']}"]
    assert f"judged by {metrics['judge']}" in " ".join(said("models", "show", "m@v2").split())


def test_what_was_never_reviewed_moves_as_before(published: Registry) -> None:
    as_json("models", "promote", "m@v1", "prod")
    assert published.alias_history("m", "prod")[0].reviewed_by is None


def test_a_rollback_does_not_lead_to_a_rejected_version(published: Registry, home: Path) -> None:
    as_json("models", "promote", "m@v1", "prod")
    published.publish("m", home / "source", stage="ppo", role="policy")
    as_json("models", "promote", "m@v2", "prod")
    as_json("runs", "review", "r", "--reject", "--note", "unsafe")
    assert "stays at v2" in refused("models", "rollback", "m", "prod")
    assert published.aliases("m") == {"prod": 2}


def test_a_run_without_a_model_can_be_reviewed_but_that_is_no_approval_of_one(published: Registry) -> None:
    result = command("runs", "review", "early", "--approve", "--note", "goes well")
    assert result.exit_code == 0 and "review its model too" in result.stderr
    assert as_json("runs", "show", "early")["reviews"][0]["model"] is None
    assert "no review" in refused("models", "promote", "m@v1", "prod", "--require-review")


def test_a_review_of_a_run_that_goes_on_outlives_its_resume(published: Registry, home: Path) -> None:
    folder = home / "runs" / "early"
    journal = Journal(folder)
    offsets = journal.offsets()
    journal.log(9, {"rollout/score": 9.0})
    as_json("runs", "review", "early", "--reject", "--note", "stop this")
    journal.log(10, {"rollout/score": 10.0})
    journal.close()
    with Journal(folder, resume=offsets) as journal:
        journal.mark_resumed(step=3)
    assert RunRecord.read(folder).last_step == 3
    assert [each["note"] for each in as_json("runs", "show", "early")["reviews"]] == ["stop this"]


def test_a_line_that_was_cut_off_spoils_no_other(published: Registry, home: Path) -> None:
    record = RunRecord.read(home / "runs" / "early")
    review(record, "approve", "one")
    with (record.path / "reviews.jsonl").open("a") as file:
        file.write('{"at": "2026')
    review(record, "reject", "two")
    assert [each["note"] for each in as_json("runs", "show", "early")["reviews"]] == ["one", "two"]


def test_reviewers_at_the_same_time_lose_nothing(published: Registry, home: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    record = RunRecord.read(home / "runs" / "r")
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: review(record, "approve", f"note {number} " + "x" * 5000), range(24)))
    wanted = {f"note {number} " + "x" * 5000 for number in range(24)}
    assert {each["note"] for each in as_json("runs", "show", "r")["reviews"]} == wanted
    assert {each["note"] for each in as_json("models", "show", "m")["reviews"]} == wanted


def test_a_review_that_says_nothing_or_of_nothing_is_refused(published: Registry, home: Path) -> None:
    assert "--approve or --reject" in refused("runs", "review", "r", "--note", "x")
    assert "--approve or --reject" in refused("runs", "review", "r", "--approve", "--reject", "--note", "x")
    assert "--note is empty" in refused("runs", "review", "r", "--approve", "--note", " \n")
    elsewhere = refused("runs", "review", "r", "--approve", "--note", "x", "--registry", str(home / "nowhere"))
    assert "m@v1" in elsewhere and "--registry" in elsewhere
    assert not (home / "runs" / "r" / "reviews.jsonl").exists()


def test_a_run_cannot_speak_for_the_model_of_another(published: Registry, home: Path) -> None:
    make_run(home / "runs" / "other", rows=ROWS, events=[("published", {"model": "m@v1"})])
    assert "published by another run" in refused("runs", "review", "other", "--approve", "--note", "x")
    assert as_json("models", "show", "m")["reviews"] == []


def test_a_damaged_review_is_no_approval(published: Registry, home: Path) -> None:
    as_json("runs", "review", "r", "--reject", "--note", "no")
    (path,) = (home / "registry" / "models" / "m" / "reviews" / "v000001").iterdir()
    whole = json.loads(path.read_text())
    path.chmod(0o644)
    path.write_text("{")
    assert "is damaged" in refused("models", "promote", "m@v1", "prod")
    path.write_text(json.dumps({**whole, "digest": "sha256:" + "0" * 64}))
    assert "is a review of sha256:000" in refused("models", "promote", "m@v1", "prod")


# a run that belongs to another process


def test_a_run_in_progress_is_neither_replayed_nor_written_into(home: Path) -> None:
    make_run(home / "runs" / "going", rows=ROWS, exit_code=None)
    make_run(home / "runs" / "done", rows=ROWS)
    with hold(home / "runs" / "going"):
        owner = f"runs/going belongs to process {os.getpid()} on {host_name()}, since 20"
        assert (line := refused("runs", "replay", "going")).startswith(owner), line
        assert line.endswith("replay it once that has ended")
        into = home / "runs" / "going" / "metrics.jsonl"
        line = refused("runs", "report", "done", "--out", str(into))
        assert owner in line
        assert line.endswith("write the report elsewhere (--out FILE)")
        assert len(into.read_text().splitlines()) == len(ROWS)
        said("runs", "report", "going")  # its own page may be written at any time
    said("runs", "report", "done", "--out", str(home / "runs" / "going" / "other.html"))


def test_rejecting_what_an_alias_points_to_says_how_to_take_it_away(published: Registry, home: Path) -> None:
    published.set_alias("m", "prod", 1)
    said("runs", "report", "r")
    page = home / "runs/r/report.html"
    assert "Still in use" not in page.read_text()
    result = command("runs", "review", "r", "--reject", "--note", "unsafe")
    advice = "alignment models demote m prod takes it away, alignment models rollback m prod goes back"
    assert f"m@prod points to it all the same: {advice}." in result.stderr
    assert "Still in use" in page.read_text() and "m@prod" in page.read_text()  # the report is redone
    assert as_json("runs", "review", "r", "--reject", "--note", "unsafe")["still_pointed_to"] == ["m@prod"]
    as_json("models", "demote", "m", "prod")
    assert "Still in use" not in page.read_text()
    assert as_json("runs", "review", "r", "--reject", "--note", "unsafe")["still_pointed_to"] == []
    assert "Still in use" not in page.read_text()


def figure(version: Version, **fields: Any) -> FigureRecord:
    return FigureRecord(
        at=datetime.now(UTC), by="ann@host", digest=version.digest, command="eval", figure="acc", value=0.4, low=0.3,
        high=0.5, n=500, unit="questions", judge="lm-eval", judged_by="lm-eval <b>0.4</b>", data="arc_easy", **fields,
    )  # fmt: skip


def test_an_evaluation_stands_in_the_runs_report(published: Registry, home: Path, capsys: Any) -> None:
    said("runs", "report", "r")
    page, version = home / "runs/r/report.html", published.resolve("m")
    assert "Measured" not in page.read_text()
    assert keep(published, iter([(version, figure(version))])) == ["m@v1"]
    assert "acc 0.4 (0.3 to 0.5) on 500 questions of arc_easy, judged by lm-eval &lt;b&gt;0.4" in page.read_text()
    assert "acc 0.4 (0.3 to 0.5)" in said("runs", "show", "r")
    assert [each["value"] for each in as_json("runs", "show", "r")["evaluations"]] == [0.4]
    page.write_text("as it was")
    assert keep(published, iter([(version, figure(version))])) == []  # nothing new, nothing to write
    assert page.read_text() == "as it was" and capsys.readouterr().err == ""


def test_the_report_of_a_run_that_another_process_owns_is_left_alone(published: Registry, home: Path) -> None:
    said("runs", "report", "r")
    page, version = home / "runs/r/report.html", published.resolve("m")
    before, prompt = page.read_text(), f"import sys; from alignment.cli.recorded import keep; {KEEPS}"
    with hold(home / "runs" / "r"):
        done = subprocess.run(
            [sys.executable, "-c", prompt, version.digest], capture_output=True, text=True, check=True
        )
    assert "report.html is as it was before: runs/r belongs to process" in done.stderr
    assert done.stdout.strip() == "['m@v1']" and page.read_text() == before
    assert len(evaluations_of(published, version)) == 1


KEEPS = """
from datetime import UTC, datetime
from alignment.registry import Registry
from alignment.registry.evaluations import FigureRecord
version = Registry().resolve('m')
fields = dict(at=datetime.now(UTC), by='a', digest=version.digest, command='eval', figure='acc', value=1.0, low=None,
              high=None, n=1, unit='questions', judge='j', judged_by='j', data='d')
print(keep(Registry(), iter([(version, FigureRecord(**fields))])))
"""


@pytest.mark.parametrize("config", [{}, {"name": "r"}, {"name": "r", "tracking": {"runs": "\0"}}, {"tracking": [1]}])
def test_a_manifest_that_names_no_run_folder_is_no_mistake(home: Path, config: dict[str, Any], capsys: Any) -> None:
    (home / "source").mkdir()
    (home / "source" / "config.json").write_text("{}")
    (home / "source" / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}" + b"weights")
    version = Registry().publish("m", home / "source", stage="ppo", role="policy", config=config)
    assert keep(Registry(), iter([(version, figure(version))])) == ["m@v1"]
    assert capsys.readouterr().err == ""
