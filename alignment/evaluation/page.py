"""A comparison as one self-contained page: who won, how sure, by judge, slice and labeler, and the answers to read.

It has no script at all: the filters of the answers are style rules, so that nobody's text could run even by mistake.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from alignment import html
from alignment.evaluation.comparison import JUDGMENTS, RESULT
from alignment.evaluation.figures import Figures
from alignment.evaluation.judgments import AnsweredPrompts, Judgment, KnownJudgments
from alignment.evaluation.page_bouts import (
    MAX_BOUTS,
    BoutViews,
    Column,
    chosen,
    columns_of,
    filter_rules,
    filters,
    judged_bouts,
    leader_of,
    worst_first,
)
from alignment.evaluation.result_text import interval, leading, more_votes, percent, sentence, votes_worth
from alignment.evaluation.score_text import cell, difference_lines, gap_line
from alignment.files import replace_text
from alignment.reports import bars
from alignment.reports.report import PAGE as REPORT_PAGE
from alignment.terminal import one_line

FILE = "compare.html"
PAGE = Path(__file__).parent / "page"
SCALE = bars.ShareScale(0.0, 1.0, beyond=None)
"""One scale for all win rates, so that they can be compared."""


def write_page(folder: Path, result: Figures, contest: AnsweredPrompts) -> Path | None:
    """Write the page beside the result, from the folder's judgments; a failure is only a warning."""
    path = folder / FILE
    try:
        replace_text(path, comparison_page(result, contest, KnownJudgments(folder / JUDGMENTS).rows))
    except Exception as error:  # noqa: BLE001 - a failed page must not cost a result that took hours
        reason = f"{type(error).__name__}: {error}"
        print(one_line(f"warning: {path} was not written ({reason}); the result is in {RESULT}"), file=sys.stderr)
        return None
    return path


def comparison_page(result: Figures, contest: AnsweredPrompts, judgments: Sequence[Judgment]) -> str:
    """The page as a string; untrusted text is cleaned and escaped."""
    columns = columns_of(result, contest)
    bouts = judged_bouts(result, contest, judgments)
    most = max(1, MAX_BOUTS // len(result["pairs"]))
    views = BoutViews(result, columns)
    shown = []
    for place, pair in enumerate(result["pairs"]):
        ranked = worst_first([each for each in bouts if each.pair == place], pair)
        leader = pair[leader_of(pair)]
        shown.append({"leader": leader, "bouts": [views.view(each) for each in chosen(ranked, most)]})
    sides = {side: place % 8 for place, side in enumerate(result["sides"])}
    pairs = [_pair(pair) for pair in result["pairs"]]
    title = " against ".join(result["sides"])
    return html.render(
        f"Who won: {title}",
        bars.STYLE + _text(REPORT_PAGE / "report.css") + _text(PAGE / "compare.css") + _rules(result, columns),
        bars.MACRO + _text(REPORT_PAGE / "prompt.html"),
        _text(PAGE / "compare.html"),
        sides=sides,
        facts=_facts(result),
        pairs=pairs,
        scale=SCALE.drawn(),
        strengths=_strengths(result),
        judges=[_judge(judge, result) for judge in result["judges"]],
        scores=[_scores(judge, measures) for judge, measures in result["scores"].items()],
        side_rows=[_side(name, side) for name, side in result["sides"].items()],
        filters=filters(result, columns),
        shown=shown,
        num_shown=sum(len(each["bouts"]) for each in shown),
        num_bouts=len(bouts),
        settings=[(key.replace("_", " "), str(value)) for key, value in result["settings"].items()],
        prompts=result["prompts"],
    )


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def _rules(result: Figures, columns: Sequence[Column]) -> str:
    """The filters as style: what is not chosen is not shown."""
    return "".join(f"#answers{inputs} {gone} {{ display: none; }}\n" for inputs, gone in filter_rules(result, columns))


def _facts(result: Figures) -> list[tuple[str, str]]:
    facts = [("prompts", f"{result['prompts']['n']:,}"), ("judges", str(len(result["judges"])))]
    if people := result.get("people"):
        facts.append(
            ("rated by people", f"{people['rated']:,} of {people['items']:,} pairs, {people['votes']:,} votes")
        )
    return [*facts, ("made", result["at"][:16].replace("T", " ") + " UTC")]


# --- win rates ------------------------------------------------------------------------------------------------------


def _pair(pair: Figures) -> Figures:
    """All of one pair of sides: its sentence, win rates by judge, by slice and by labeler, and the judges' worth.

    The side that the sentence names first is the first here too, so that its win rate is the one of the sentence.
    """
    text = sentence(pair)
    if leader_of(pair) == "b":
        pair = mirrored(pair)
    judged = [row for row in pair["judges"] if "win_rate" in row]
    lead = leading(judged)
    groups: list[Figures] = []
    more: list[Figures] = []
    if judged:
        groups.append(_card("By judge", "", [line for row in judged for line in _win_rates(row, row is lead)]))
    for row in judged:
        for column, parts in row["slices"].items():
            lines = [_line(name, part, _counted(part)) for name, part in parts.items()]
            (groups if row is lead else more).append(_card(f"By {column}", f"Judged by {row['judged_by']}.", lines))
        if labelers := row.get("labelers"):
            lines = [_line(who, part, _counted(part)) for who, part in labelers.items()]
            groups.append(_card("By labeler", "Labelers are hashes; their names are in the ratings file alone.", lines))
    state = "not-measured"
    if lead is not None and not lead["win_rate"]["ci"][0] <= 0.5 <= lead["win_rate"]["ci"][1]:
        state = "warn" if lead["trained_on"] else "pass"
    return {
        "a": pair["a"],
        "b": pair["b"],
        "sentence": text,
        "state": state,
        "said": [more_votes(pair, row) for row in judged if row["kind"] == "people"],
        "groups": groups,
        "more": more,
        "judged": [_worth(row) for row in judged],
    }


def _card(title: str, about: str, rows: list[dict[str, Any]]) -> Figures:
    SCALE.place(rows)
    return {"title": title, "about": about, "rows": rows}


def mirrored(pair: Figures) -> Figures:
    """The same pair from the other side: what was won is lost, and a win rate is what it lacked to 1."""
    return {**pair, "a": pair["b"], "b": pair["a"], "judges": [_mirrored_row(row) for row in pair["judges"]]}


def _mirrored_row(row: Figures) -> Figures:
    turned = _mirrored_part(row) if "win_rate" in row else dict(row)
    for key in ("length_controlled", "mean_scores", "decision", "with_people"):
        if turned.get(key) is None:
            continue
        if key == "length_controlled":
            turned[key] = _mirrored_rate(row[key])
        elif key == "mean_scores":
            turned[key] = row[key][::-1]
        elif key == "decision":
            turned[key] = {**row[key], "decided": {"a": "b", "b": "a"}.get(row[key]["decided"])}
        else:
            turned[key] = row[key] | {name: _mirrored_rate(row[key][name]) for name in ("plain", "powered")}
    if "slices" in row:
        turned["slices"] = {
            column: {value: _mirrored_part(part) for value, part in parts.items()}
            for column, parts in row["slices"].items()
        }
    if "labelers" in row:
        turned["labelers"] = {who: _mirrored_part(part) for who, part in row["labelers"].items()}
    return turned


def _mirrored_part(part: Figures) -> Figures:
    return {**part, "wins": part["losses"], "losses": part["wins"], "win_rate": _mirrored_rate(part["win_rate"])}


def _mirrored_rate(rate: Figures) -> Figures:
    low, high = rate["ci"]
    return {**rate, "value": 1 - rate["value"], "ci": (1 - high, 1 - low)}


def _win_rates(row: Figures, main: bool) -> list[dict[str, Any]]:
    mark = " (trained on)" if row["trained_on"] else ""
    lines = [_line(row["judge"] + mark, row, _counted(row), main)]
    if row["length_controlled"]:
        lines.append(_line("at equal length", {"win_rate": row["length_controlled"]}, row["judge"]))
    joined = row.get("with_people")
    if joined and joined["judged_alone"]:
        about = f"people alone {interval(joined['plain'])}; the judge {votes_worth(joined)}"
        lines.append(_line(f"people with the help of {row['judge']}", {"win_rate": joined["powered"]}, about))
    return lines


def _counted(row: Figures) -> str:
    votes = f", {row['judgments']:,} votes" if row["judgments"] != row["prompts"] else ""
    return f"{row['wins']:,} won, {row['ties']:,} tied, {row['losses']:,} lost; {row['prompts']:,} prompts{votes}"


def _line(name: str, row: Mapping[str, Any], about: str, main: bool = False) -> dict[str, Any]:
    """A row with a bar."""
    value, (low, high) = row["win_rate"]["value"], row["win_rate"]["ci"]
    return {
        "name": name,
        "about": about,
        "value": percent(value),
        "range": f"{percent(low)} to {percent(high)}",
        "mean": value,
        "ends": (low, high),
        "enough": True,
        "main": main,
    }


def _worth(row: Figures) -> Figures:
    """A row of the table that tells what a judge's word is worth."""
    kappa, joined, scores = row.get("agreement"), row.get("with_people"), row.get("mean_scores")
    return {
        "judge": row["judge"],
        "trained_on": row["trained_on"],
        "p": f"{row['sign_test']:.2g}",
        "kappa": kappa and f"{kappa['value']:.2f} ({kappa['ci'][0]:.2f} to {kappa['ci'][1]:.2f})",
        "votes": kappa and f"{kappa['n']:,}",
        "bought": votes_worth(joined) if joined and joined["judged_alone"] else None,
        "scores": scores and " against ".join(f"{score:.3g}" for score in scores),
    }


def _strengths(result: Figures) -> list[Figures]:
    """Bradley-Terry strengths by judge, the strongest first, each judge with a scale of its own."""
    shown = []
    for judge, strengths in (result.get("strengths") or {}).items():
        rows = [
            {
                "name": side,
                "about": "",
                "value": f"{round(estimate['value'], 2) + 0.0:+.2f}",  # no -0.00
                "range": " to ".join(f"{end:+.2f}" for end in estimate["ci"]),
                "mean": estimate["value"],
                "ends": estimate["ci"],
                "enough": True,
                "main": False,
            }
            for side, estimate in sorted(strengths.items(), key=lambda pair: -pair[1]["value"])
        ]
        scale = bars.ShareScale.holding(rows, [(0.0, "0")])
        scale.place(rows)
        shown.append({"judge": judge, "rows": rows, "scale": scale.drawn()})
    return shown


def _scores(judge: str, measures: Sequence[Figures]) -> Figures:
    """A judge's measures by side, and what is said of the difference in the first and of its gaps."""
    sides, first = measures[0]["sides"], measures[0]
    gaps = [gap_line(first, name, side, parts) for name, of in first["gaps"].items() for side, parts in of.items()]
    return {
        "judge": judge,
        "measures": [measure["measure"] for measure in measures],
        "rows": [
            (side, [cell(measure["sides"][side], is_share=measure["is_share"]) for measure in measures])
            for side in sides
        ],
        "lines": [*difference_lines(first), *gaps],
    }


# --- judges and sides -----------------------------------------------------------------------------------------------


def _judge(judge: Figures, result: Figures) -> Figures:
    rows = [row for pair in result["pairs"] for row in pair["judges"] if row["judge"] == judge["name"]]
    trained = dict.fromkeys(side for row in rows for side in row["trained_on"])
    notes = list(judge["notes"])
    if trained:
        notes.insert(0, f"{', '.join(trained)} was trained on it: it says that training worked, not who is better")
    return {**judge, "notes": notes, "judgments": f"{sum(row.get('judgments', 0) for row in rows):,}"}


def _side(name: str, side: Figures) -> Figures:
    """A side's row; a long system prompt stands in the result as its hash."""
    prompting = [
        (what, str(side[key]))
        for key, what in (
            ("system", "system prompt"), ("examples", "examples"), ("context", "context from column"),
            ("template", "chat template"), ("eos_token", "end token"),
        )
        if side.get(key)
    ]  # fmt: skip
    tokens, seconds = side["mean_tokens"], side["seconds_per_answer"]
    return {
        "name": name,
        "model": str(side["model"]),
        "digest": side.get("digest") or side.get("sha256") or "",
        "prompting": prompting,
        "figures": [
            f"{side['mean_characters']:,.0f}",
            "-" if tokens is None else f"{tokens:,.0f}",
            percent(side["ended"]),
            "-" if seconds is None else f"{seconds:.2g}",
        ],
    }
