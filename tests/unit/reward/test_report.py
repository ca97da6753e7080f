"""What the report says in words, what of it goes to the registry, and a page on which no text is more than text."""

import inspect
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from helpers.journals import make_run
from helpers.judging import by_length, comparison, pair_questions, question
from hypothesis import given, settings
from hypothesis import strategies as st

from alignment.registry.lineage import flat_metrics
from alignment.reports.pictures import histogram_chart
from alignment.runs.journal import Journal
from alignment.runs.record import RunRecord
from reward.evaluation import evaluate
from reward.evaluation.findings import WATCHED, findings, unmeasured, verdict
from reward.evaluation.page import html_page
from reward.evaluation.report import compact, save_report, summary

HOSTILE = "\x1b]52;c;QQ==\x07 \x9b31m \u202e </pre></div><script>alert(1)</script> <img src=//x onerror=a> {{ 7*7 }}"


def simulated(n=150, sure=1.6, right=None, length=0.0, seed=0, votes=1):
    """Questions of two answers, and scores. The model is this sure, and right with this probability (None: with the
    one that it says)."""
    rng = np.random.default_rng(seed)
    questions, scores = [], []
    for number in range(n):
        first_wins, lead = rng.random() < 0.5, sure * abs(rng.normal())
        model_right = rng.random() < (1 / (1 + np.exp(-lead)) if right is None else right)
        lengths = (5, 3) if rng.random() < 0.5 else (3, 5)
        choices = [("first" if first_wins else "second", None, f"labeler {k}") for k in range(votes)]
        questions.append(question(number, [(0, 1, comparison(f"q{number}", choices))], lengths))
        delta = lead * (1 if first_wins == model_right else -1) + length * (lengths[0] - lengths[1])
        scores.append([delta, 0.0])
    return questions, scores


def report_of(questions, scores, move=-0.1, **options):
    known = {tuple(one.prompt_ids): row for one, row in zip(questions, scores, strict=True)}
    return evaluate(
        questions, scores, lambda cut: [[x + move for x in known[tuple(one.prompt_ids)]] for one in cut], **options
    )


def kinds(report):
    return {finding.kind for finding in findings(report)}


def test_a_run_is_watched_for_each_kind_of_finding():
    source = Path(inspect.getsourcefile(findings)).read_text()
    said = re.findall(r'_finding\(\s*"(?:error|warning|note)",\s*"(\w+)"', source)
    assert set(said) == set(WATCHED)


def test_what_a_report_cannot_show_is_not_measured():
    whole = report_of(*simulated(400, votes=2))
    assert set(unmeasured(whole)) == {"ties", "near_duplicates"}  # it has no such pairs
    assert "there are 0 and 400" in unmeasured(whole)["ties"]
    assert {"no_overlap", "above_reachable"} <= unmeasured(report_of(*simulated(400, votes=1))).keys()
    nothing = unmeasured(report_of([], []))
    assert nothing.keys() == {*WATCHED} - {"nothing_held_out"} and set(nothing.values()) == {"nothing was held out"}
    ties = report_of(pair_questions([("a", ["tie"], (3, 2)), ("b", ["tie"], (3, 2))]), [[1.0, 0.0]] * 2)
    assert {"chance", "length_rule", "few_prompts"} <= unmeasured(ties).keys()
    assert not {"all_ties", "calibration", "log_loss", "nothing_held_out"} & unmeasured(ties).keys()
    alike = report_of(pair_questions([(f"q{n}", ["first"], (3, 3)) for n in range(30)]), [[1.0, 0.0]] * 30)
    assert "never differ" in unmeasured(alike)["length_correlation"]


def test_no_finding_is_of_what_was_not_measured():
    reports = [report_of(*simulated(n, votes=votes, right=right)) for n in (5, 40) for votes in (1, 2)
               for right in (0.2, 0.5, 0.97)]  # fmt: skip
    for report in reports:
        assert kinds(report) & unmeasured(report).keys() <= {"no_overlap"}  # a note that says why


@pytest.mark.parametrize(("accuracy", "kind"), [(0.47, "chance"), (0.3, "worse_than_chance")])
def test_labels_are_called_swapped_only_where_the_accuracy_is_far_below_guessing(accuracy, kind):
    """47% with an interval that ends below 50% is a model that learned nothing."""
    report = report_of(*simulated(400, votes=2))
    report["accuracy"] |= {"value": accuracy, "ci": (accuracy - 0.02, accuracy + 0.02)}
    assert {"chance", "worse_than_chance"} & kinds(report) == {kind}


@pytest.mark.parametrize(("low", "said"), [(0.6935, False), (0.71, True)])
def test_a_log_loss_is_worse_than_guessing_only_where_it_matters(low, said):
    report = report_of(*simulated(400, votes=2))
    report["log_loss"] |= {"value": low + 0.001, "ci": (low, low + 0.002)}  # guessing: 0.6931
    assert ("log_loss" in kinds(report)) == said


def test_the_page_of_a_run_shows_what_its_report_shows(tmp_path):
    """Two pages of one run: the near-duplicates that the data check found are on both."""
    from alignment.reports.report import report_page
    from alignment.reports.verdicts import ENDED, verdicts

    make_run(tmp_path / "run", "reward")
    report = report_of(*simulated(400, votes=2))
    with Journal(tmp_path / "run") as journal:
        journal.watching(["data check", "ties", "no overlap", "labels"])
        journal.finding(0, "data check", "warning", "80 of 346 held-out rows stand in training too")
        journal.not_measured(0, "ties", "there are none")
        journal.log(1, {"eval/length_baseline": 0.5, "eval/one_human": 0.7})
    record = RunRecord.read(tmp_path / "run")
    checks = [check for check in verdicts(record) if check.name != ENDED]
    save_report(tmp_path / "run", "run", {"": report}, checks)
    pages = [(tmp_path / "run" / "evaluation.html").read_text(), report_page([record])]
    for page in pages:
        assert "80 of 346 held-out rows stand in training too" in page and "there are none" in page
        assert "data clean" in page and "unsure where people tie" in page
    assert '<h1 class="warning">' in pages[0] and "1 of 5 checks to look at, 1 not measured" in pages[0]
    assert "1 of 6 checks to look at, 1 not measured" in pages[1]  # with how the run ended
    saved = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert [row["name"] for row in saved["checks"]] == [check.name for check in checks]


def test_a_good_model_gives_no_cause_for_complaint():
    report = report_of(*simulated(400, votes=2))
    assert kinds(report) == set()
    assert verdict(report) == f"Agrees with {report['accuracy']['value']:.1%} of 800 held-out votes"


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("suspicious", {"right": 0.97}),
        ("chance", {"right": 0.5}),
        ("worse_than_chance", {"right": 0.2}),
        ("few_prompts", {"n": 40}),
        ("length_rule", {"right": 0.5}),
        ("length_correlation", {"length": 2.0}),
        ("calibration", {"sure": 8.0, "right": 0.75}),
        ("calibration", {"sure": 0.05, "right": 0.9}),
        ("log_loss", {"sure": 3.0, "right": 0.5}),
        ("no_overlap", {}),
    ],
)
def test_each_fault_is_said_and_only_where_it_is(kind, options):
    assert kind in kinds(report_of(*simulated(**{"n": 300} | options)))
    good = kinds(report_of(*simulated(400, votes=2)))
    assert kind not in good


def test_the_worst_comes_first_and_says_what_to_do():
    found = findings(report_of(*simulated(40, right=0.05)))
    assert (found[0].level, found[0].kind) == ("error", "worse_than_chance")
    assert "swapped" in found[0].advice
    assert [finding.level for finding in found] == sorted(
        (finding.level for finding in found), key=["error", "warning", "note"].index
    )


def test_an_end_that_nobody_reads_and_one_that_costs():
    questions, scores = simulated(150)
    assert "eos_unread" in kinds(report_of(questions, scores, move=0.0))
    assert "eos_rise" in kinds(report_of(questions, scores, move=5.0))
    assert not {"eos_unread", "eos_rise"} & kinds(report_of(questions, scores, move=-5.0))


def test_too_sure_and_not_sure_enough_are_told_apart():
    sure = next(f for f in findings(report_of(*simulated(300, sure=8.0, right=0.75))) if f.kind == "calibration")
    unsure = next(f for f in findings(report_of(*simulated(300, sure=0.05, right=0.9))) if f.kind == "calibration")
    assert "is overconfident" in sure.text and "is underconfident" in unsure.text


def test_ties_that_the_model_is_sure_of():
    decided, scores = simulated(60)
    ties = pair_questions([(f"t{n}", ["tie"], (3, 2)) for n in range(25)])
    ties = [question(200 + n, [(0, 1, one.pairs[0].comparison)]) for n, one in enumerate(ties)]
    assert "ties" in kinds(report_of(decided + ties, scores + [[9.0, 0.0]] * 25))
    assert "ties" not in kinds(report_of(decided + ties, scores + [[0.01, 0.0]] * 25))


def people_and_a_model(right, seed, n=500, people=0.75):
    """Three people who are right in this share of the cases, and a model; None: one that has seen the votes."""
    rng = np.random.default_rng(seed)
    rows, scores = [], []
    for number in range(n):
        votes = [("first" if rng.random() < people else "second", None, name) for name in ("ann", "bob", "cyd")]
        knows = sum(vote[0] == "first" for vote in votes) >= 2 if right is None else rng.random() < right
        rows.append((f"q{number}", votes, (3, 2) if rng.random() < 0.5 else (2, 3)))
        scores.append([1.0, 0.0] if knows else [0.0, 1.0])
    return report_of(pair_questions(rows), scores)


@pytest.mark.parametrize("right", [0.75, 0.85, 1.0])
def test_a_model_that_averages_out_the_noise_of_labels_is_not_accused(right):
    """One person agrees with 62.5% of the votes, a model that is right in 85% of the cases with .85 x .75 + .15 x .25 =
    67.5%, and one that is always right with 75%, which is the best that can be reached."""
    for seed in range(5):
        report = people_and_a_model(right, seed)
        shared = report["shared"]
        assert shared["one_human"]["value"] == pytest.approx(0.625, abs=0.05)
        assert shared["model"]["value"] == pytest.approx(0.25 + 0.5 * right, abs=0.05)
        assert shared["best"]["ci"][0] < 0.75 < shared["best"]["ci"][1]
        assert not {"above_reachable", "suspicious"} & kinds(report)


def test_a_model_that_has_seen_the_votes_is_suspected():
    """It agrees with the majority, 81% of the votes, where the best that can be reached is 75%."""
    found = [finding for seed in range(3) for finding in findings(people_and_a_model(None, seed))]
    assert [finding.level for finding in found if finding.kind == "above_reachable"] == ["warning"] * 3
    assert any("leakage" in finding.advice for finding in found)


def test_a_high_accuracy_is_not_suspicious_where_people_agree():
    """Of people who are right in 97% of the cases 94% agree."""
    assert "suspicious" not in kinds(people_and_a_model(0.95, 0, people=0.97))
    assert "suspicious" in kinds(report_of(*simulated(300, right=0.95)))


def test_nothing_held_out_is_an_error():
    report = report_of([], [])
    (finding,) = findings(report)
    assert (finding.level, finding.kind, verdict(report)) == ("error", "nothing_held_out", "Nothing was held out")
    assert compact(report) == {"held_out_prompts": 0, "held_out_pairs": 0}
    assert "Nothing was held out" in html_page("run", report)


def test_all_ties_are_an_error_and_still_a_report():
    report = report_of(pair_questions([("a", ["tie"], (3, 2)), ("b", ["tie"], (3, 2))]), [[1.0, 0.0]] * 2)
    assert "all_ties" in kinds(report)
    assert "accuracy" not in compact(report) and compact(report)["log_loss"]["value"] > 0.69
    assert "No held-out vote is decided" in html_page("run", report)
    assert any("ECE" in line for line in summary(report))


def test_votes_that_are_equally_divided_are_still_a_report(tmp_path):
    """None of the answers is the preferred one."""
    report = report_of(pair_questions([("a", ["first", "second"], (3, 2))]), [[1.0, 0.0]])
    assert (report["accuracy"]["value"], report["scores"]) == (0.5, {"n": 0})
    save_report(tmp_path, "run", {"": report})
    assert "Agrees with 50.0%" in (tmp_path / "evaluation.html").read_text()


def test_the_registry_keeps_a_few_figures():
    kept = compact(report_of(*simulated(100, votes=2)))
    assert set(kept) == {
        "accuracy", "length_baseline", "shared_accuracy", "one_human", "best_reachable", "log_loss", "ece",
        "held_out_prompts", "held_out_pairs",
    }  # fmt: skip
    shown = dict(flat_metrics(json.loads(json.dumps(kept))))
    assert shown["held_out_pairs"] == "100"
    assert re.fullmatch(r"0\.\d+ \[0\.\d+, 0\.\d+\]", shown["accuracy"])
    assert set(shown) == set(kept)
    assert kept["shared_accuracy"]["n"] == kept["one_human"]["n"] == kept["best_reachable"]["n"] == 200
    assert set(compact(report_of(*simulated(100)))) == set(kept) - {"shared_accuracy", "one_human", "best_reachable"}


def test_the_run_keeps_json_and_a_page_and_prints_a_summary(tmp_path, capsys):
    questions, scores = simulated(120, votes=2)
    report = report_of(questions, scores, members=[scores, [[-a, b] for a, b in scores]])
    save_report(tmp_path, "my-run", {"": report})
    saved = json.loads((tmp_path / "evaluation.json").read_text(), parse_constant=pytest.fail)
    assert saved["verdict"] == verdict(report)
    assert saved["accuracy"]["value"] == report["accuracy"]["value"]
    assert [row["kind"] for row in saved["findings"]] == [finding.kind for finding in findings(report)]
    printed = capsys.readouterr().out
    for text in (
        "accuracy ",
        "longer is better",
        "on shared pairs",
        "one human",
        "best reachable",
        "log-loss",
        "ECE",
        "without EOS",
        "members differ",
    ):
        assert text in printed
    for finding in findings(report):
        assert finding.text in printed
    assert str(tmp_path / "evaluation.html") in printed
    assert "my-run" in (tmp_path / "evaluation.html").read_text()


def test_scores_that_are_no_numbers_leave_valid_json(tmp_path):
    questions, _ = simulated(10)
    save_report(tmp_path, "r", {"": report_of(questions, [[0.0, 0.0]] * 10)})
    assert (
        json.loads((tmp_path / "evaluation.json").read_text(), parse_constant=pytest.fail)["accuracy"]["value"] == 0.5
    )


def test_ratings_alone_are_reported_too():
    questions = [question(n, [], ratings=(float(n % 5), float(n % 3))) for n in range(30)]
    report = report_of(questions, [[n % 5 + 0.1, n % 3 - 0.1] for n in range(30)])
    text = "\n".join(summary(report))
    assert "squared error" in text and "0.010 (0.010 to 0.010)" in text
    assert "Ratings as numbers" in html_page("r", report)


def test_a_model_that_learned_numbers_is_not_blamed_for_its_probabilities():
    questions, scores = simulated(300, sure=8.0, right=0.75)
    assert "calibration" in kinds(report_of(questions, scores))
    rated = [replace(one, ratings=(1.0, 0.0)) for one in questions]
    assert not {"calibration", "log_loss"} & kinds(report_of(rated, scores))


# --- the page --------------------------------------------------------------------------------------------------------


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found, self.attributes, self.texts = [], set(), []

    def handle_starttag(self, tag, attrs):
        self.found.append(tag)
        self.attributes |= {(tag, name) for name, _ in attrs}

    def handle_data(self, data):
        self.texts.append(data)


def read(page):
    parser = Tags()
    parser.feed(page)
    return parser


def report_with(text):
    votes = [("second", 3, text), ("second", 1, "bob"), ("first", 2, "cyd")]
    rows = [comparison(f"{text}{n}", votes, (text + "1", text + "2"), place=f"{text}/{n}:{n}") for n in range(3)]
    questions = [question(n, [(0, 1, row)], (3, 2 + n)) for n, row in enumerate(rows)]
    return evaluate(questions, [[2.0 + n, 1.0] for n in range(3)], by_length)


@settings(deadline=None, max_examples=30)
@given(st.text(max_size=50) | st.just(HOSTILE) | st.sampled_from(["<img src=x onerror=a>", "{% if %}", "</article>"]))
def test_no_text_adds_a_tag_to_the_page_or_a_control_to_the_terminal(text):
    report, plain = report_with(text), report_with("plain")
    page = html_page(text, report)
    found, expected = read(page), read(html_page("plain", plain))
    assert (set(found.found), found.attributes) == (set(expected.found), expected.attributes)
    assert page.encode("utf-8")
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", page)
    for line in summary(report):
        assert line.isprintable()


def test_hostile_text_is_shown_as_what_it_is():
    shown = "".join(read(html_page("run", report_with(HOSTILE))).texts)
    assert "<script>alert(1)</script>" in shown and "{{ 7*7 }}" in shown and "␛]52;c;QQ==" in shown


def test_the_page_loads_nothing_and_has_each_part():
    questions, scores = simulated(120, votes=2)
    page = html_page("run", report_of(questions, scores, members=[scores, scores]))
    assert "default-src 'none'" in page
    assert not re.search(r"https?:|src=|href=|@import|url\(|<script", page)
    for part in (
        "Agrees with", "This model", "Longer is better", "One human", "Best reachable", "Reliability",
        "Scores of preferred",
        "By score difference", "By labeler", "Shortcuts", "ensemble", "Most confidently wrong",
        "Closest calls",
    ):  # fmt: skip
        assert part in page, part


def test_answers_keep_their_lines():
    row = comparison("a", ["second"], ("one\n\n  two", "y"))
    page = html_page("run", evaluate([question(0, [(0, 1, row)])], [[1.0, 0.0]], by_length))
    assert "one\n\n  two" in page


@settings(deadline=None)
@given(st.floats(-1e4, 1e4), st.floats(1e-4, 1e4))
def test_the_scores_axis_has_a_few_round_ticks_within_it(low, width):
    counts = {"counts": [1, 2], "mean": low}
    scores = {"n": 3, "edges": [low, low + width / 2, low + width], "preferred": counts, "other": counts}
    picture = histogram_chart({"scores": scores})
    ticks = [shape for shape in picture.shapes if shape["tag"] == "text" and shape["attributes"].get("y") == 267]
    assert 2 <= len(ticks) <= 7
    assert all(46 <= tick["attributes"]["x"] <= 342 for tick in ticks)
    assert len({tick["text"] for tick in ticks}) == len(ticks)
