"""A comparison's result in words and tables, for a terminal of 60 columns or a log."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from alignment.evaluation.figures import Figures
from alignment.evaluation.score_text import cost_table, interval, percent, score_tables
from alignment.terminal import counted, one_line

FEWEST_VOTES = 10
"""With fewer, nothing is said of how many further ones decide."""
MOST_PAIRS = 3
"""With more pairs than three sides have, the terminal shows one table per judge; the page has each pair."""


def leading(judges: Sequence[Figures]) -> Figures | None:
    """The row of the judge that the first line quotes: people where they voted, else the first `--by`; one that a side
    was trained on comes after the others."""
    judged = [row for row in judges if "win_rate" in row]
    return min(judged, key=lambda row: (row["kind"] != "people", bool(row["trained_on"])), default=None)


def sentences(result: Figures) -> list[str]:
    """Who won each pair, by whom judged, on how many prompts, and how sure."""
    return [sentence(pair) for pair in result["pairs"]]


def sentence(pair: Figures) -> str:
    """One pair's outcome. Where the interval covers 50%, nothing is shown."""
    a, b, row = pair["a"], pair["b"], leading(pair["judges"])
    if row is None:
        return f"Nobody has judged {a} against {b} yet."
    value, (low, high) = row["win_rate"]["value"], row["win_rate"]["ci"]
    if high < 0.5:
        a, b, value, low, high = b, a, 1 - value, 1 - high, 1 - low
    judged = counted(row["prompts"], row.get("unit", "prompt"))
    share = f"{percent(value)} of {judged} (95% interval {percent(low)} to {percent(high)})"
    judge = f"judged by {row['judged_by']}"
    if row["kind"] == "check" and max(row.get("mean_scores", [1.0])) == 0:
        return f"No side passes on any of {judged}: neither {a} nor {b}, {judge}."
    if low <= 0.5:
        return f"Nothing shown between {a} and {b}: {a} wins {share}, {judge}{_trained(row)}."
    if row["trained_on"]:
        whom = "it was" if row["trained_on"] == [a] else f"{' and '.join(row['trained_on'])} was"
        higher = f"{a} scores higher than {b} by the {row['kind']} that {whom} trained on: on {share}, {judge}."
        return f"{higher} It says that training worked, not that the answers are better."
    return f"{a} beats {b}: it is better on {share}, {judge}."


def _trained(row: Figures) -> str:
    sides = " and ".join(row["trained_on"])
    return f", which {sides} was trained on, so it says little" if sides else ""


def more_votes(pair: Figures, row: Figures) -> str:
    """What the stopping rule says of a pair's votes, or how many further ratings decide it."""
    low, middle, high = (row["more_ratings"][name] for name in ("low", "middle", "high"))
    votes, unrated = row["judgments"], row.get("unrated")
    if decided := row["decision"]["decided"]:
        return f"decided for {pair[decided]} after {row['decision']['at']} votes: further ones will not take it back"
    if votes < FEWEST_VOTES:
        return f"not decided: {counted(votes, 'vote')}, too few to say how many more decide it"
    if middle is None:
        return "more than 2,000 further ratings are needed: the two are close"
    more = f"about {middle} more ratings decide it ({low} to {high if high is not None else 'more than 2,000'})"
    if unrated is not None and middle > unrated:
        left = f"{counted(unrated, 'pair')} {'is' if unrated == 1 else 'are'} left to rate"
        return f"not decided, and {left}: it takes about {middle} more ratings, on more prompts"
    return more


def votes_worth(joined: Figures) -> str:
    """What a judge's help is worth in people's votes, after "the judge"."""
    bought = round(joined["votes_bought"])
    return f"is worth {bought} vote{'s' * (bought != 1)}" if bought >= 1 else "adds nothing"


def tables(result: Figures, names: Mapping[str, str] | None = None, *, boxed: bool = True) -> Iterator[RenderableType]:
    """The tables of a result.

    Args:
        names: the labelers' names by hash, which the result does not hold.
        boxed: for a screen; a log gets plain columns.
    """
    box = SIMPLE_HEAD if boxed else None
    many = len(result["pairs"]) > MOST_PAIRS
    if many:
        yield from _matrices(result, box)
    for pair in [] if many else result["pairs"]:
        judged = [row for row in pair["judges"] if "win_rate" in row]
        if judged:
            yield _judges(pair, judged, box)
        yield from _people_lines(pair, judged)
        yield from _slices(pair, judged, box)
        yield from _labelers(judged, names or {}, box)
    yield from _strengths(result, box)
    yield from score_tables(result["scores"], box, by_pair=not many)
    yield _sides(result, box)
    if (costs := cost_table(result["sides"], box)) is not None:
        yield costs


def _matrices(result: Figures, box: Any) -> Iterator[RenderableType]:
    """For each judge, the win rate of the side of each row over the side of each column."""
    sides = list(result["sides"])
    rates: dict[str, dict[tuple[str, str], str]] = {}
    for pair in result["pairs"]:
        for row in pair["judges"]:
            if "win_rate" in row:
                value, (low, high) = row["win_rate"]["value"], row["win_rate"]["ci"]
                mark = "*" if low > 0.5 or high < 0.5 else ""
                mark += "!" if row["trained_on"] else ""
                cells = rates.setdefault(row["judge"], {})
                cells[pair["a"], pair["b"]] = percent(value) + mark
                cells[pair["b"], pair["a"]] = percent(1 - value) + mark
    for judge, cells in rates.items():
        table = Table("wins over", *(str(number) for number, _ in enumerate(sides, 1)), box=box, pad_edge=False)
        for number, side in enumerate(sides, 1):
            table.add_row(Text(one_line(f"{number} {side}")), *(cells.get((side, other), "-") for other in sides))
        yield Group(Text(one_line(judge), style="bold"), table)
    notes = "* the 95% interval leaves 50% out"
    if any("!" in cell for cells in rates.values() for cell in cells.values()):
        notes += "   ! one of the two was trained on this judge, or chosen by it"
    yield Text(notes)


def _judges(pair: Figures, rows: Sequence[Figures], box: Any) -> RenderableType:
    table = Table("judge", "won/tied/lost", "win rate", "same length", box=box, pad_edge=False)
    table.columns[0].overflow = "fold"  # a name that is cut short names nobody
    for column in table.columns[1:]:
        column.no_wrap = True
    for row in rows:
        mark = " (trained on)" if row["trained_on"] else ""
        table.add_row(
            Text(one_line(row["judge"]) + mark),
            f"{row['wins']}/{row['ties']}/{row['losses']}",
            interval(row["win_rate"]),
            interval(row["length_controlled"]),
        )
    tests = ", ".join(f"{row['judge']} {row['sign_test']:.2g}" for row in rows)
    title = Text(one_line(f"{pair['a']} against {pair['b']}"), style="bold")
    return Group(title, table, Text(one_line(f"sign test, p: {tests}")))


def _people_lines(pair: Figures, rows: Sequence[Figures]) -> Iterator[Text]:
    for row in rows:
        if row["kind"] == "people":
            yield Text(one_line(more_votes(pair, row)))
        elif row.get("with_people"):
            joined = row["with_people"]
            if joined["judged_alone"]:
                yield Text(
                    one_line(
                        f"people with the help of {row['judge']}: {interval(joined['powered'])}, people alone "
                        f"{interval(joined['plain'])}; the judge {votes_worth(joined)}"
                    )
                )
            if kappa := row.get("agreement"):
                low, high = kappa["ci"]
                yield Text(
                    one_line(
                        f"{row['judge']} agrees with people: kappa {kappa['value']:.2f} ({low:.2f} to {high:.2f}) "
                        f"on {kappa['n']} votes"
                    )
                )


def _slices(pair: Figures, rows: Sequence[Figures], box: Any) -> Iterator[RenderableType]:
    row = leading(rows)
    for column, parts in (row["slices"] if row else {}).items():
        table = Table(one_line(column), "prompts", "win rate", box=box, pad_edge=False)
        for value, part in parts.items():
            table.add_row(Text(one_line(value)), str(part["prompts"]), interval(part["win_rate"]))
        assert row is not None
        yield Group(Text(one_line(f"{pair['a']} against {pair['b']}, by {row['judge']}")), table)


def _labelers(rows: Sequence[Figures], names: Mapping[str, str], box: Any) -> Iterator[RenderableType]:
    for row in rows:
        if labelers := row.get("labelers"):
            table = Table("labeler", "votes", "win rate", box=box, pad_edge=False)
            for who, part in labelers.items():
                table.add_row(Text(one_line(names.get(who, who))), str(part["judgments"]), interval(part["win_rate"]))
            yield table


def _strengths(result: Figures, box: Any) -> Iterator[RenderableType]:
    for judge, strengths in (result.get("strengths") or {}).items():
        table = Table("side", "strength", box=box, pad_edge=False)
        for side, estimate in sorted(strengths.items(), key=lambda pair: -pair[1]["value"]):
            low, high = estimate["ci"]
            table.add_row(Text(one_line(side)), f"{estimate['value']:+.2f} ({low:+.2f} to {high:+.2f})")
        yield Group(Text(one_line(f"strength by {judge} (Bradley-Terry, in logits)")), table)


def _sides(result: Figures, box: Any) -> RenderableType:
    table = Table("side", "characters", "tokens", "ended", "s/answer", box=box, pad_edge=False)
    for side, figures in result["sides"].items():
        seconds, tokens = figures["seconds_per_answer"], figures["mean_tokens"]
        table.add_row(
            Text(one_line(side)),
            f"{figures['mean_characters']:.0f}",
            "-" if tokens is None else f"{tokens:.0f}",
            percent(figures["ended"]),
            "-" if seconds is None else f"{seconds:.2g}",
        )
    return table
