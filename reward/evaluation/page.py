"""Render the held-out report as one HTML page: findings, metrics with intervals, plots, and sample pairs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from alignment.html import render
from alignment.reports.bars import MACRO as BARS
from alignment.reports.bars import STYLE as BARS_STYLE
from alignment.reports.bars import ShareScale, bar, percent, percents, slice_rows
from alignment.reports.pictures import MACRO as PICTURE
from alignment.reports.pictures import STYLE as PICTURE_STYLE
from alignment.reports.pictures import histogram_chart, reliability_chart
from alignment.reports.verdicts import Verdict, headline
from reward.evaluation.calibration import LN2
from reward.evaluation.findings import chosen_on, findings, verdict

_STYLE = """body { overflow-wrap: anywhere; } h3 { font-size: 1rem; margin: 1.4rem 0 .2rem; }
.intro { color: var(--dim); margin-bottom: .6rem; max-width: 46rem; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr));
  gap: 1rem 2rem; margin-bottom: 1rem; }
.slices { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); gap: 0 2.5rem; }
.pair { border-top: 1px solid var(--line); padding: 1rem 0; } .pair p { margin-bottom: .5rem; }
.answers { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 18rem), 1fr)); gap: .8rem; }
.said { white-space: pre-wrap; overflow-wrap: anywhere; background: var(--soft); border-radius: .2rem;
  padding: .5rem .7rem; max-height: 15rem; overflow-y: auto; font-size: .92rem; }
.who { color: var(--dim); font-size: .85rem; margin: .3rem 0 .15rem; }
.mine { border-left: .2rem solid var(--warning); } .theirs { border-left: .2rem solid var(--good); }
@media (max-width: 30rem) { body { padding: 0 .8rem; } .facts th { width: 6rem; white-space: normal; }
  th, td { padding-right: .5rem; } }
@media print { body { font-size: 11pt; max-width: none; margin: 0; } .said { max-height: none; }
  .finding, figure, .pair, tr { break-inside: avoid; } h2, h3 { break-after: avoid; } }
"""
_MACROS = (
    BARS
    + PICTURE
    + """{% macro facts(rows) %}<table class="facts">
{% for name, value in rows %}<tr><th scope="row">{{ name }}</th><td>{{ value }}</td></tr>
{% endfor %}</table>{% endmacro %}
{% macro pair(item) %}<article class="pair"><p>{{ item.head }}</p>
{% if item.earlier_turns %}<p class="dim">{{ item.earlier_turns }} earlier turns left out</p>{% endif %}
{% for turn in item.prompt %}<p class="who">{{ turn.role }}</p><div class="said">{{ turn.content | lines }}</div>
{% endfor %}<div class="answers">
{% for answer in item.answers %}<div><p class="who">{{ answer.head }}</p>
<div class="said {{ answer.kind }}">{{ answer.text | lines }}</div></div>
{% endfor %}</div></article>{% endmacro %}
"""
)
_BODY = """<h1 class="{{ worst }}">{{ verdict }}</h1>
<p class="source">{{ name }}</p>
{{ facts(head) }}
<h2>Findings</h2>
{% if headline %}<p>{{ headline }}.</p>{% endif %}
{% for row in findings %}<div class="finding {{ row.level }}">
<p><b>{{ row.word }}</b> {% if row.name %}{{ row.name }}: {% endif %}{{ row.text }}</p>
{% if row.advice %}<p class="advice">{{ row.advice }}</p>{% endif %}
{% if row.about %}<p class="dim">{{ row.about }}</p>{% endif %}</div>
{% else %}{% if not headline %}<p>There are no findings.</p>{% endif %}
{% endfor %}
{% if key %}<h2>Accuracy</h2>
<p class="intro">Fraction of the held-out votes that the scores agree with, without ties. Bars are 95% intervals over
prompts. Dashed: guessing. Shaded: above 80%, more than people usually agree.{% if reachable %} People differ, so no
model can expect to agree with more of the votes on shared pairs than the interval of 'best reachable' holds; the votes
do not tell where in it the share is.{% endif %}</p>
{{ bars(key, scale) }}
{% endif %}
{% if charts %}<h2>Probabilities and scores</h2>
<div class="charts">{% for picture in charts %}{{ chart(picture) }}{% endfor %}</div>
{{ facts(probabilities) }}{% endif %}
{% if quantiles %}<h3>Scores</h3><div class="scroll"><table><thead><tr><th></th>
{% for column in quantiles.columns %}<th scope="col" class="number">{{ column }}</th>{% endfor %}</tr></thead>
{% for side, numbers in quantiles.rows %}<tr><th scope="row">{{ side }}</th>
{% for number in numbers %}<td class="number">{{ number }}</td>{% endfor %}</tr>
{% endfor %}</table></div>{% endif %}
{% if slices %}<h2>Where it is right</h2>
<div class="slices">{% for title, about, rows in slices %}<section><h3>{{ title }}</h3>
{% if about %}<p class="intro">{{ about }}</p>{% endif %}
{{ bars(rows, scale) }}</section>
{% endfor %}</div>{% endif %}
{% if shortcuts %}<h2>Shortcuts</h2>
{{ facts(shortcuts) }}{% endif %}
{% if ensemble %}<h2>The ensemble's members</h2>
{{ bars(ensemble.rows, scale) }}
{{ facts(ensemble.facts) }}{% endif %}
{% if ratings %}<h2>Ratings as numbers</h2>
{{ facts(ratings) }}{% endif %}
{% for title, about, items in samples %}<h2>{{ title }}</h2>
<p class="intro">{{ about }}</p>
{% for item in items %}{{ pair(item) }}{% endfor %}
{% endfor %}"""


_HEADS = """<h1>{{ heading }}</h1>
<p class="source">{{ name }}</p>
{% if headline %}<p>{{ headline }}.</p>{% endif %}
<div class="scroll"><table><thead><tr><th scope="col">attribute</th>
{% for column in columns %}<th scope="col" class="number">{{ column }}</th>{% endfor %}</tr></thead>
{% for head, numbers in overview %}<tr><th scope="row"><a href="#head-{{ loop.index }}">{{ head }}</a></th>
{% for number in numbers %}<td class="number">{{ number }}</td>{% endfor %}</tr>
{% endfor %}</table></div>
"""


def html_page(name: str, report: Mapping[str, Any], checks: Sequence[Verdict] | None = None) -> str:
    """The report as a page; every string in it is escaped.

    Args:
        name: name of the run.
        checks: the run's verdicts, which report.html shows too; None if there is no run.
    """
    values = _values(name, report, checks)
    return render(f"Reward model report: {name}", BARS_STYLE + PICTURE_STYLE + _STYLE, _MACROS, _BODY, **values)


def heads_page(name: str, reports: Mapping[str, Mapping[str, Any]], checks: Sequence[Verdict] | None = None) -> str:
    """The reports of a model's heads as one page: a table of all, then each as `html_page` has it."""
    pages = [_values(f"{name}: {head}", report, None) for head, report in reports.items()]
    scoped = ", ".join(f"{key}=page.{key}" for key in pages[0])
    body = (
        _HEADS + '{% for page in pages %}<hr id="head-{{ loop.index }}">{% with ' + scoped + " %}" + _BODY
        + "{% endwith %}{% endfor %}"
    )  # fmt: skip
    return render(
        f"Reward model report: {name}",
        BARS_STYLE + PICTURE_STYLE + _STYLE,
        _MACROS,
        body,
        heading=f"{len(reports)} scores of an answer: {', '.join(reports)}",
        name=name,
        headline=headline(checks) if checks is not None else None,
        columns=("pairs", "accuracy (95%)", "one human", "best reachable", "log-loss", "ECE"),
        overview=[(head, _overview(report)) for head, report in reports.items()],
        pages=pages,
    )


def _overview(report: Mapping[str, Any]) -> list[str]:
    """A head's row in the table of all heads."""
    shared = report.get("shared") or {}
    best, human, accuracy = shared.get("best"), shared.get("one_human"), report["accuracy"]
    return [
        f"{report['pairs']:,}",
        "-" if accuracy is None else f"{percent(accuracy['value'])} ({percents(accuracy['ci'])})",
        "-" if human is None else percent(human["value"]),
        "-" if best is None else percents(best["ci"]),
        _number(report["log_loss"]["value"]) if report["pairs"] else "-",
        _number(report["ece"]["value"]) if report["pairs"] else "-",
    ]


def _values(name: str, report: Mapping[str, Any], checks: Sequence[Verdict] | None) -> dict[str, Any]:
    """What the template shows of a report."""
    finding_rows = _finding_rows(report, checks)
    has_pairs, decided = report["pairs"] > 0, report["accuracy"] is not None
    has_sides = decided and report["scores"]["n"] > 0  # equal votes have no preferred answer
    key = _key_rows(report) if decided else []
    slices = slice_rows(report) if decided else []
    ensemble = _ensemble(report) if report.get("ensemble") else None
    scale = ShareScale.around([row for rows in (key, *(rows for _, _, rows in slices)) for row in rows])
    for rows in (key, *(rows for _, _, rows in slices), ensemble["rows"] if ensemble else []):
        scale.place(rows)
    return {
        "name": name,
        "verdict": verdict(report),
        "worst": finding_rows[0]["level"] if finding_rows else "note",
        "headline": headline(checks) if checks is not None else None,
        "findings": finding_rows,
        "head": _head(report),
        "key": key,
        "reachable": decided and report["shared"] is not None and report["shared"]["best"] is not None,
        "slices": slices,
        "scale": scale.drawn(),
        "charts": [reliability_chart(report), *([histogram_chart(report)] if has_sides else [])] if decided else [],
        "probabilities": _probabilities(report) if has_pairs else [],
        "quantiles": _quantiles(report["scores"]) if has_sides else None,
        "shortcuts": _shortcuts(report) if has_pairs else [],
        "ensemble": ensemble,
        "ratings": _ratings(report["ratings"]) if report["ratings"] else [],
        "samples": _samples(report["samples"]) if decided else [],
    }


def _finding_rows(report: Mapping[str, Any], checks: Sequence[Verdict] | None) -> list[dict[str, str]]:
    """The findings, the worst first: the run's checks that did not pass, as in report.html, and this report's notes.
    Without a run, they are the report's findings."""
    rows = [
        {"level": finding.level, "word": finding.level, "name": "", "text": finding.text, "advice": finding.advice}
        for finding in findings(report)
        if checks is None or finding.level == "note"
    ]
    levels = {"fail": "error", "warn": "warning", "not measured": "note"}
    failed = [check for check in checks or () if check.outcome in levels]
    names = {check.name for check in failed}
    if checks is not None:  # the check covers the note on an unmeasured finding
        notes = [finding.kind.replace("_", " ") for finding in findings(report) if finding.level == "note"]
        rows = [row for row, kind in zip(rows, notes, strict=True) if kind not in names]
    return [
        {"level": levels[check.outcome], "word": check.outcome, "name": check.title, "text": check.reason,
         "about": check.about}
        for check in failed
    ] + rows  # fmt: skip


# --- numbers as text -------------------------------------------------------------------------------------------------


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _interval(estimate: Mapping[str, Any] | None, unit: str = "") -> str:
    if estimate is None:
        return "not known"
    low, high = estimate["ci"]
    return f"{estimate['value']:.3f}{unit} (95%: {low:.3f} to {high:.3f})"


def _share(estimate: Mapping[str, Any]) -> str:
    return f"{percent(estimate['value'])} (95%: {percents(estimate['ci'])})"


# --- rows with bars --------------------------------------------------------------------------------------------------


def _key_rows(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    shared = report["shared"]
    rows = [
        bar("This model", report["accuracy"], main=True),
        bar("Longer is better", report["length"]["baseline"], "a rule that ignores the text"),
    ]
    if shared is not None:
        rows.append(
            bar("This model, shared pairs", shared["model"], f"{shared['pairs']:,} pairs that several people decided")
        )
        rows.append(bar("One human", shared["one_human"], "on the same votes, against each other person"))
        if shared["best"] is not None:
            rows.append(
                bar(
                    "Best reachable",
                    shared["best"],
                    "on the same votes, by a model that knows each probability; the dot assumes a beta distribution",
                )
            )
    return rows


def _ensemble(report: Mapping[str, Any]) -> dict[str, Any]:
    ensemble = report["ensemble"]
    rows = [bar(f"Member {index}", row) for index, row in enumerate(ensemble["accuracy"], 1) if row]
    halves = [("The half they agree on most", "most_agreed"), ("The half they agree on least", "least_agreed")]
    rows += [bar(name, ensemble[key], "all members together") for name, key in halves if ensemble[key]]
    return {
        "rows": rows,
        "facts": [
            (
                "disagreement",
                f"{_interval(ensemble['spread'])}: standard deviation of a score difference over the members",
            ),
            ("split", f"{_share(ensemble['split'])} of the pairs, on which not all prefer the same answer"),
        ],
    }


# --- tables ----------------------------------------------------------------------------------------------------------


def _head(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    votes = report["votes"]
    decided = votes["first"] + votes["second"]
    facts = [("held out", f"{report['prompts']:,} prompts, {report['pairs']:,} pairs")]
    if report["questions"] and report["questions"] != report["prompts"]:
        facts[0] = ("held out", f"{facts[0][1]} in {report['questions']:,} sets of answers")
    facts.append(("votes", f"{decided:,} for one of the two, {votes['tie']:,} ties"))
    if chosen := chosen_on(report):
        facts.append(("the model", chosen))
    return facts if report["questions"] else []


def _probabilities(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    calibrated = report["ece_if_calibrated"]
    return [
        ("log-loss", f"{_interval(report['log_loss'], ' nats')}; predicting 50% for every pair gives {LN2:.3f}"),
        (
            "ECE",
            f"{report['ece']['value']:.3f} over 15 bins; a perfectly calibrated model would show "
            f"{calibrated['ci'][0]:.3f} to {calibrated['ci'][1]:.3f} on these pairs",
        ),
        ("confidence", f"{percent(report['confidence']['value'])} on average in the preferred answer"),
        ("agreement", f"{_share(report['agreement'])} of the votes agree with it; a tie is half a vote"),
    ]


def _quantiles(scores: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "columns": ["median" if share == "50%" else share for share in scores["preferred"]["quantiles"]]
        + ["mean", "sd"],
        "rows": [
            (name, [f"{x:.2f}" for x in (*side["quantiles"].values(), side["mean"], side["sd"])])
            for name, side in (("preferred", scores["preferred"]), ("the other", scores["other"]))
        ],
    }


def _shortcuts(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    length, eos = report["length"], report["without_eos"]
    rows = []
    if length["ahead"] is not None:
        ahead, ends = 100 * length["ahead"]["value"], [100 * end for end in length["ahead"]["ci"]]
        rows.append(
            (
                "length",
                f"{ahead:+.1f} points (95%: {ends[0]:+.1f} to {ends[1]:+.1f}) ahead of '{length['rule']} is better'",
            )
        )
    rows.append(("", f"Spearman correlation of score and length differences: {_interval(length['correlation'])}"))
    if eos["questions"]:
        rows += [
            ("without EOS", f"a score moves by {_interval(eos['moved'])}; all scores spread by {eos['spread']:.3f}"),
            ("", f"the order flips in {_share(eos['flips'])} of the pairs ({eos['questions']:,} sets of answers)"),
        ]
        if eos["accuracy"] is not None:
            rows.append(("", f"accuracy {_share(eos['accuracy'])}"))
    for name, about, group in (
        ("ties", "most people call a tie", report["ties"]),
        ("alike", "share four fifths of their words", report["near_duplicates"]),
    ):
        if group["n"]:
            others = group["others"]
            rows.append(
                (
                    name,
                    f"pairs that {about} ({group['n']:,}): median distance {_number(group['median_difference'])}, "
                    f"others ({others['n']:,}) {_number(others['median_difference'])}",
                )
            )
    return rows


def _ratings(metrics: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [
        ("squared error", f"{_interval(metrics['squared_error'])}, {metrics['squared_error']['n']:,} ratings"),
        ("", f"predicting the mean: {metrics['squared_error_of_the_mean']:.3f}"),
        ("correlation", f"{_interval(metrics['correlation'])} (Pearson)"),
    ]


def _samples(samples: Mapping[str, Sequence[Mapping[str, Any]]]) -> Iterator[tuple[str, str, list[dict[str, Any]]]]:
    """Yield title, introduction and pairs of each group of samples."""
    titles = {
        "wrong": (
            "Most confidently wrong",
            "Read these first: errors of the model, errors of the votes, or a shortcut.",
        ),
        "close": ("Closest calls", "The pairs with the smallest score differences."),
    }
    for kind, (title, about) in titles.items():
        if samples[kind]:
            yield title, about, [_sample(item) for item in samples[kind]]


def _sample(item: Mapping[str, Any]) -> dict[str, Any]:
    ties = f", {item['ties']} ties" if item["ties"] else ""
    votes = [answer["votes"] for answer in item["answers"]]
    answers = []
    for index, answer in enumerate(item["answers"]):
        label = "The model prefers" if index == 0 else "The other"
        kind = "theirs" if votes[index] > votes[1 - index] else "mine" if index == 0 else ""
        count = f"{answer['votes']} {'vote' if answer['votes'] == 1 else 'votes'}"
        answers.append({"head": f"{label}: score {answer['score']:.2f}, {count}", "text": answer["text"], "kind": kind})
    probability = min(99.9, 100 * item["probability"])
    head = f"It says {probability:.1f}%; the votes are {votes[0]} to {votes[1]}{ties}. {item['place']}"
    return {**item, "head": head, "answers": answers}
