"""The pairs of answers of a comparison's page: which are shown, in what order, and what each judge said of them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from statistics import fmean
from typing import Any, Literal, NamedTuple

from alignment.evaluation.figures import Figures
from alignment.evaluation.judgments import AnsweredPrompts, Bout, Judgment
from alignment.evaluation.result_text import leading
from alignment.evaluation.slices import OTHER, slice_value
from alignment.reports.charts import number
from alignment.reports.samples import Part, changes, cut, left_and_right

MAX_BOUTS = 200
"""Pairs of answers that a page shows."""
MAX_TURNS = 8
"""Turns of a prompt that a page shows, the last ones."""
MIN_SHARED = 0.3
"""Share of words that two answers have in common, below which marking the others would mark nearly all."""
MAX_COMPARED = 20_000_000
"""Products of the answers' word counts, in sum, up to which differences are marked: about ten seconds."""
Outcome = Literal["a", "b", "tie"]
_WORDS = re.compile(r"\w+")


class Column(NamedTuple):
    """A column of the prompts, and those of its values that are shown by themselves."""

    name: str
    values: list[str]

    def place(self, cell: Any) -> int:
        """The place of a prompt's value among those shown."""
        value = slice_value(cell)
        return self.values.index(value if value in self.values else OTHER)


def columns_of(result: Figures, contest: AnsweredPrompts) -> list[Column]:
    """The slices of a result, each with the values that some judge's figures show, and one for any others."""
    found: dict[str, dict[str, None]] = {}
    for pair in result["pairs"]:
        for row in pair["judges"]:
            for name, parts in row.get("slices", {}).items():
                found.setdefault(name, {}).update(dict.fromkeys(parts))
    columns = []
    for name, shown in found.items():
        values = [value for value in shown if value != OTHER]
        every = {slice_value(prompt.columns.get(name)) for prompt in contest.prompts.values()}
        columns.append(Column(name, values if every <= set(values) else [*values, OTHER]))
    return columns


@dataclass
class JudgedBout:
    """A pair of answers with all that was said of it.

    Args:
        pair: number of the pair of sides.
        said: judgments by judge, in the judges' order; those that did not judge it are missing.
    """

    number: int
    pair: int
    bout: Bout
    said: dict[str, list[Judgment]] = field(default_factory=dict)

    def mean(self, judge: str) -> float:
        """The outcome for `a`, over a judge's votes."""
        return fmean(judgment.outcome for judgment in self.said[judge])

    @property
    def outcomes(self) -> dict[str, Outcome]:
        """What each judge says, people by their majority."""
        means = {judge: self.mean(judge) for judge in self.said}
        return {judge: "a" if mean > 0.5 else "b" if mean < 0.5 else "tie" for judge, mean in means.items()}


def judged_bouts(result: Figures, contest: AnsweredPrompts, judgments: Iterable[Judgment]) -> list[JudgedBout]:
    """All pairs of answers, each with what the result's judges said of these two."""
    judges = [(judge["name"], judge["digest"]) for judge in result["judges"]]
    names = {tuple(pair[side] for side in "ab"): number for number, pair in enumerate(result["pairs"])}
    found = [JudgedBout(place, names[bout.a, bout.b], bout) for place, bout in enumerate(contest.bouts())]
    by_key = {(each.bout.id, each.bout.a, each.bout.b): each for each in found}
    for judgment in sorted(
        (each for each in judgments if (each.judge, each.digest) in judges),
        key=lambda each: judges.index((each.judge, each.digest)),
    ):
        each = by_key.get((judgment.prompt, judgment.a, judgment.b))
        if each and judgment.answers == (each.bout.first.digest, each.bout.second.digest):
            each.said.setdefault(judgment.judge, []).append(judgment)
    return found


def leader_of(pair: Figures) -> Literal["a", "b"]:
    """The side that the pair's sentence names first."""
    row = leading(pair["judges"])
    return "b" if row is not None and row["win_rate"]["ci"][1] < 0.5 else "a"


def worst_first(bouts: Iterable[JudgedBout], pair: Figures) -> list[JudgedBout]:
    """A pair's bouts, those first that its leader lost by most: by the leading judge, then by the others."""
    row = leading(pair["judges"])
    first = row["judge"] if row else None
    sign = 1.0 if leader_of(pair) == "a" else -1.0

    def key(each: JudgedBout) -> tuple[float, float, float, int]:
        others = [each.mean(judge) - 0.5 for judge in each.said if judge != first]
        rest = fmean(others) if others else 0.0
        if first not in each.said:
            return sign * rest, 0.0, 0.0, each.number
        scores = [judgment.scores for judgment in each.said[first] if judgment.scores is not None]
        margin = fmean(a - b for a, b in scores) if scores else 0.0
        return sign * (each.mean(first) - 0.5), sign * margin, sign * rest, each.number

    return sorted(bouts, key=key)


def chosen(ranked: Sequence[JudgedBout], most: int) -> list[JudgedBout]:
    """At most so many: the first half of them from the start, the others evenly from the rest."""
    if len(ranked) <= most:
        return list(ranked)
    head = (most + 1) // 2
    rest, others = ranked[head:], most - head
    return [*ranked[:head], *(rest[(2 * place + 1) * len(rest) // (2 * others)] for place in range(others))]


class BoutViews:
    """Makes the template's views; differences are marked as long as that takes seconds, and no longer."""

    def __init__(self, result: Figures, columns: Sequence[Column]) -> None:
        self._judges = {judge["name"]: place for place, judge in enumerate(result["judges"])}
        self._sides = {side: place for place, side in enumerate(result["sides"])}
        self._columns = columns
        self._left = MAX_COMPARED

    def view(self, each: JudgedBout) -> Figures:
        """One pair for the template."""
        bout, outcomes = each.bout, each.outcomes
        kinds: set[str] = set()
        for judge, outcome in outcomes.items():
            place = self._judges[judge]
            kinds |= {f"j{place}", f"j{place}{outcome}", f"any{outcome}"}
        if {"a", "b"} <= set(outcomes.values()):
            kinds.add("apart")
        values = []
        for place, column in enumerate(self._columns):
            at = column.place(bout.prompt.columns.get(column.name))
            kinds.add(f"s{place}v{at}")
            values.append((column.name, column.values[at]))
        turns = bout.prompt.messages
        first, second = cut(bout.first.text), cut(bout.second.text)
        parts = None if bout.is_same else self._parts(first, second)
        left, right = left_and_right(parts) if parts else ([("=", first)], [("=", second)])
        return {
            "classes": " ".join(sorted(kinds)),
            "prompt": [{"role": turn["role"], "content": cut(turn["content"])} for turn in turns[-MAX_TURNS:]],
            "turns_left_out": max(0, len(turns) - MAX_TURNS),
            "same": bout.is_same,
            "apart": "apart" in kinds,
            "values": values,
            "answers": [
                {"side": side, "colour": self._colour(side), "head": _head(answer), "parts": said}
                for side, answer, said in ((bout.a, bout.first, left), (bout.b, bout.second, right))
            ],
            "said": [self._word(each, judge, outcome) for judge, outcome in outcomes.items()],
        }

    def _word(self, each: JudgedBout, judge: str, outcome: Outcome) -> Figures:
        votes = each.said[judge]
        side = {"a": each.bout.a, "b": each.bout.b, "tie": None}[outcome]
        about = [
            f"{number(first)} against {number(second)}"
            for first, second in (vote.scores for vote in votes if vote.scores is not None)
        ]
        if len(votes) > 1:
            counts = {
                f"for {each.bout.a}": sum(vote.outcome > 0.5 for vote in votes),
                f"for {each.bout.b}": sum(vote.outcome < 0.5 for vote in votes),
                "tied": sum(vote.outcome == 0.5 for vote in votes),
            }
            about = [", ".join(f"{count} {what}" for what, count in counts.items() if count)]
        words = {1.0: each.bout.a, 0.0: each.bout.b}
        people = [(vote.labeler, words.get(vote.outcome, "tie")) for vote in votes if vote.labeler is not None]
        return {
            "judge": judge,
            "side": side,
            "colour": None if side is None else self._colour(side),
            "about": "; ".join(about),
            "votes": people,
        }

    def _parts(self, first: str, second: str) -> list[Part] | None:
        """The differences of two texts; None where they have little in common, or time is up."""
        words = _WORDS.findall(first.casefold()), _WORDS.findall(second.casefold())
        cost = (2 * len(words[0]) + 1) * (2 * len(words[1]) + 1)
        if cost > self._left or SequenceMatcher(None, *words).quick_ratio() < MIN_SHARED:
            return None
        self._left -= cost
        parts = changes(first, second)
        shared = sum(len(_WORDS.findall(text)) for kind, text in parts if kind == "=")
        return parts if 2 * shared >= MIN_SHARED * (len(words[0]) + len(words[1])) else None

    def _colour(self, side: str) -> int:
        return self._sides[side] % 8


def _head(answer: Any) -> str:
    tokens = "" if answer.tokens is None else f"{answer.tokens:,} tokens, "
    return f"{tokens}{len(answer.text):,} characters" + ("" if answer.ended else ", cut off")


def filter_rules(result: Figures, columns: Sequence[Column]) -> list[tuple[str, str]]:
    """For each choice of the filters, a selector of the chosen inputs and one of what is not shown then.

    They hold numbers alone, no text of anybody.
    """
    rules = [(f":has(#pair-{place}:checked)", f".pair:not(.p{place})") for place in range(len(result["pairs"]))]
    outcomes: tuple[Outcome, ...] = ("a", "b", "tie")
    anybody = ":has(#judge-any:checked)" if len(result["judges"]) > 1 else ""
    judges = {anybody: "any"} | {f":has(#judge-{at}:checked)": f"j{at}" for at in range(len(result["judges"]))}
    for judge, kind in judges.items():
        rules.append((judge, f".bout:not(.{kind})"))
        rules += [(f"{judge}:has(#outcome-{said}:checked)", f".bout:not(.{kind}{said})") for said in outcomes]
    rules.append((":has(#outcome-apart:checked)", ".bout:not(.apart)"))
    for place, column in enumerate(columns):
        rules += [
            (f":has(#slice-{place}-{at}:checked)", f".bout:not(.s{place}v{at})") for at in range(len(column.values))
        ]
    return [(inputs, gone) for inputs, gone in rules if gone != ".bout:not(.any)"]


def filters(result: Figures, columns: Sequence[Column]) -> list[Figures]:
    """The groups of choices above the pairs; each starts with all."""
    pairs = [f"{pair['a']} and {pair['b']}" for pair in result["pairs"]]
    one = result["pairs"][0] if len(pairs) == 1 else {"a": "the left one", "b": "the right one"}
    outcomes = [("a", f"{one['a']} is better"), ("b", f"{one['b']} is better"), ("tie", "tie")]
    if len(result["judges"]) > 1:
        outcomes.append(("apart", "judges disagree"))
    judges = [(str(place), judge["name"]) for place, judge in enumerate(result["judges"])]
    groups = [
        _group("pair", "sides", "all", [(str(place), name) for place, name in enumerate(pairs)]),
        _group("judge", "judge", "any", judges),
        _group("outcome", "outcome", "all", outcomes, even_one=True),
    ]
    for place, column in enumerate(columns):
        groups.append(
            _group(f"slice-{place}", column.name, "all", [(str(at), v) for at, v in enumerate(column.values)])
        )
    return [group for group in groups if group is not None]


def _group(name: str, title: str, everything: str, choices: Sequence[tuple[str, str]], even_one: bool = False) -> Any:
    if len(choices) < 2 and not even_one:
        return None
    options: list[Mapping[str, Any]] = [{"id": f"{name}-{everything}", "text": everything, "checked": True}]
    options += [{"id": f"{name}-{key}", "text": text, "checked": False} for key, text in choices]
    return {"name": name, "title": title, "options": options}
