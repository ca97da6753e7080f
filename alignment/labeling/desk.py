"""What the organiser reads on a terminal of 80 columns: items, one item, labelers, progress, invitations."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from alignment.labeling.answers import BOTH_BAD, LabelerAnswer
from alignment.labeling.feedback import gold_in_words
from alignment.labeling.report import named_line
from alignment.ratings import Gold
from alignment.terminal import clean, one_line

Row = dict[str, Any]
NAME_WIDTH = 14
PROMPT_CHARACTERS = 60
WIDE = 200
WHY = {
    "gold": "gold item",
    "calibration": "calibration",
    "repeat": "their own pair again, sides flipped",
    "import": "imported",
    "verdict": "VERDICT",
}


def show_items(rows: list[Row], console: Console) -> None:
    """Print a line for each item."""
    if not rows:
        console.print("No item is like that.")
        return
    table = _table(console, "item", "kind", "votes", "what is special", "prompt")
    for row in rows:
        table.add_row(
            str(row["item"]),
            row["kind"],
            "gold" if row["gold"] else f"{row['votes']}/{row['need']}",
            Text(special(row)),
            Text(_cut(row["prompt"], PROMPT_CHARACTERS)),
        )
    table.columns[3].min_width, table.columns[3].no_wrap, table.columns[4].no_wrap = 28, False, True
    console.print(table)
    console.print(
        f"{len(rows)} item{'s' * (len(rows) != 1)}; alignment rate show --db F NUMBER has all of one", style="dim"
    )


def special(row: Row) -> str:
    """What is special about an item, in words."""
    votes = ", ".join(f"{count} {said}" for said, count in row["said"].items())
    parts = [f"disputed: {votes}"] * (row["disputed"] > 0)
    parts += [f"verdict: {row['verdict']}"] * (row["verdict"] is not None)
    parts += [f"{count} {one_line(flag).replace('_', ' ')}" for flag, count in row["flags"].items()]
    parts += [f"{row['comments']} comment{'s' * (row['comments'] > 1)}"] * (row["comments"] > 0)
    return "; ".join(parts)


def show_item(row: Row, console: Console) -> None:
    """Print an item, then who said what of it, and how."""
    head = f"Item {row['item']} ({row['kind']}), {row['votes']} of {row['need']} votes"
    if row["gold"]:
        head = f"Item {row['item']} ({row['kind']}), a gold item; expected: {_expected(row['gold'], row['kind'])}"
    console.print("; ".join(filter(None, [head, special(row)])), style="bold")
    for message in row["prompt"]:
        _print_text(console, one_line(message["role"]).upper(), message["content"])
    for number, completion in enumerate(row["completions"], 1):
        cut = "" if completion["ended"] else " (cut off at the length limit)"
        _print_text(console, _answer_name(row["kind"], number) + cut, completion["text"])
    console.print()
    for rating in row["ratings"]:
        seconds = "" if rating["seconds"] is None else f", {rating['seconds']:.0f} s"
        line = Text(f"{one_line(rating['labeler'])}: ", style="bold")
        line.append(Text(f"{in_words(rating)}", style="not bold"))
        line.append(Text(f"   {clock(rating['done_at'])}{seconds}, {_guideline(rating)}", style="dim not bold"))
        console.print(line)
        for note in _notes(rating):
            console.print(Text(f"  {note}"))
    if not row["ratings"]:
        console.print("Nobody has answered it.")


def in_words(rating: Row) -> str:
    """An answer by the item's own order: FIRST is clearly better."""
    if rating["choice"] in ("first", "second"):
        side = LabelerAnswer("left" if rating["choice"] == "first" else "right", rating["strength"])
        return str(side).replace("LEFT", "FIRST").replace("RIGHT", "SECOND")
    if rating["given"] is not None:
        return f"{rating['given']:g}"
    flags = tuple(flag for flag in rating["flags"] if flag == BOTH_BAD)
    return str(LabelerAnswer(rating["choice"], None, flags, rating["ranks"], rating["score"]))


def _expected(gold: Row, kind: str) -> str:
    lists = {name: None if gold[name] is None else tuple(gold[name]) for name in ("ranks", "tags")}
    return gold_in_words(Gold(**gold | lists), kind)


def _guideline(rating: Row) -> str:
    return "no guideline" if rating["guideline"] is None else f"guideline {rating['guideline']}"


def _notes(rating: Row) -> list[str]:
    """What else there is to an answer."""
    notes = [WHY[rating["why"]]] if rating["why"] in WHY else []
    if rating["after_votes"]:
        notes.append("changed after the votes were seen")
    order = list(rating["order_shown"])
    if order and order != sorted(order):
        notes.append(f"shown in the order {' '.join(str(place + 1) for place in order)}")
    notes += [one_line(flag) for flag in rating["flags"] if flag != BOTH_BAD]
    comment = [f'"{one_line(rating["comment"])}"'] * bool(rating["comment"])
    return ["; ".join(notes)] * bool(notes) + list(_answers(rating["answers"] or {})) + comment


def _answers(answers: Row) -> Iterator[str]:
    """The answers to the questions beside the choice, a line for each kind."""
    named = [f"{name} {_listed(value)}" for name, value in answers.get("attributes", {}).items()]
    if named:
        yield one_line("; ".join(named))
    if tags := answers.get("tags"):
        yield one_line(f"reasons: {', '.join(tags)}")
    for number, marks in enumerate(answers.get("spans", ()), 1):
        if marks:
            yield one_line(f"in {number}: " + ", ".join(f"{kind} at {start} to {end}" for start, end, kind in marks))
    for key, words in (("rewrites", "rewritten"), ("comments", "comment")):
        for number, text in enumerate(answers.get(key, ()), 1):
            if text is not None:
                yield f'{words} {number}: "{one_line(text)}"'


def _listed(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else f"{value:+d}" if value else "0"


def show_labelers(rows: list[Row], console: Console) -> None:
    """Print who stands behind each hash of the reports."""
    if not rows:
        console.print("Nobody has rated or has a link yet.")
        return
    table = _table(console, "labeler", "in reports", "answers", "agreement", "last seen", least=16)
    for row in rows:
        table.add_row(
            Text(one_line(row["labeler"])),
            row["hash"],
            str(row["answers"]),
            _percent(row["agreement"]),
            seen(row, time.time()),
        )
    console.print(table)
    console.print(AGREEMENT, style="dim")


LABELER_COLUMNS = ("labeler", "answers", "skip", "sec", "a day", "agreement", "last seen")
AGREEMENT = "agreement: share of the others' votes on the same answers that are theirs too, and of how many"


def show_progress(found: Row, console: Console) -> None:
    """Print how the rating stands."""
    for name, words in progress_lines(found):
        named_line(console, name, words)
    if found["labelers"]:
        table = _table(console, *LABELER_COLUMNS)
        for row in found["labelers"]:
            table.add_row(*(Text(cell) for cell in labeler_cells(row, found["at"])))
        console.print()
        console.print(table)
        console.print(AGREEMENT, style="dim")
    show_warnings(found["warnings"], console)


def progress_lines(found: Row) -> list[tuple[str, str]]:
    """How the rating stands, as names and words."""
    pace, agreement = found["pace"], found["agreement"]
    lines = [("Items", f"{found['items']}; {found['complete']} have all their votes")]
    left = f"{found['left']} votes" if found["left"] else "nothing"
    if found["left"] and found["hours"] is not None:
        left += f", {span(3600 * found['hours'])} of work at {found['seconds']:.0f} s a vote"
    lines.append(("Votes", f"{found['votes']} given"))
    lines.append(("Left", left))
    if pace is None:
        lines.append(("Pace", "too few votes here in the last seven days to tell"))
    else:
        lines.append(("Pace", f"{pace['votes']} votes since {clock(pace['since'])}: {pace['a_day']:.0f} a day"))
        if pace["until"] is not None:
            lines.append(("Done at this pace", clock(pace["until"])))
    if found["disputed"]:
        lines.append(("Disputed items", f"{found['disputed']}; {found['undecided']} wait for a referee (--adjudicate)"))
    for name, estimate in agreement.items():
        if estimate is not None:
            low, high = estimate["ci"]
            alpha = f"{estimate['value']:.2f} [{low:.2f}, {high:.2f}]"
            lines.append((f"Agreement, {name}", f"alpha {alpha}, {estimate['n']} items"))
    return lines


def labeler_cells(row: Row, now: float) -> list[str]:
    """A labeler's line in the table of progress."""
    return [
        one_line(row["labeler"]),
        str(row["answers"]),
        str(row["skips"]),
        "-" if row["seconds"] is None else f"{row['seconds']:.0f}",
        "-" if row["a_day"] is None else f"{row['a_day']:.0f}",
        _percent(row["agreement"]),
        seen(row, now),
    ]


def seen(row: Row, now: float) -> str:
    """When a labeler was last here, or that they never were."""
    if row["seen"] is not None:
        words = ago(now - row["seen"])
    elif row["invited"] is not None:
        words = f"never; invited {ago(now - row['invited'])}"
    else:
        words = "imported"
    if row["referee"] or row["verdicts"]:
        words += f", referee: {row['verdicts']} verdict{'s' * (row['verdicts'] != 1)}"
    return words + ", a program" * row["simulated"]


def show_invitations(rows: list[Row], console: Console) -> None:
    """Print whose links are open."""
    if not rows:
        console.print("No link is open.")
        return
    table = _table(console, "labeler", "invited", "answers", "last seen")
    for row in rows:
        table.add_row(
            Text(one_line(row["labeler"])), clock(row["invited"]), str(row["answers"]), seen(row, time.time())
        )
    console.print(table)


def show_warnings(warnings: list[str], console: Console) -> None:
    """Print sentences, each behind a mark."""
    for warning in warnings:
        console.print(Text.assemble(("! ", "bold red"), one_line(warning)))


def clock(at: float) -> str:
    """A time on this machine's clock, to the minute."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(at))


def span(seconds: float) -> str:
    """A length of time: `40 min`, `3 h 20 min`."""
    minutes = max(1, round(seconds / 60))
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def ago(seconds: float) -> str:
    """How long ago something was."""
    minutes = round(seconds / 60)
    if minutes < 2:
        return "just now"
    if minutes < 120:
        return f"{minutes} min ago"
    return f"{minutes // 60} h ago" if minutes < 48 * 60 else f"{minutes // (24 * 60)} days ago"


def _percent(share: Row | None) -> str:
    return "-" if share is None else f"{share['value']:.0%} of {share['n']}"


def _table(console: Console, *names: str, least: int = 0) -> Table:
    """A table whose first column is cut on a screen; the last one goes on below itself.

    Args:
        least: columns of the second one, which is not cut.
    """
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for name in names:
        table.add_column(Text(name, style="bold"), no_wrap=name != names[-1], overflow="ellipsis")
    table.columns[0].max_width = NAME_WIDTH if console.is_terminal or console.width < WIDE else None
    table.columns[1].min_width = least or None
    return table


def _cut(text: str, most: int) -> str:
    line = one_line(text)
    return line if len(line) <= most else f"{line[: most - 1]}…"


def _answer_name(kind: str, number: int) -> str:
    if kind == "pair":
        return ("FIRST", "SECOND")[number - 1]
    return "ANSWER" if kind == "single" else f"ANSWER {number}"


def _print_text(console: Console, head: str, text: str) -> None:
    """A text of the data under its head, set in, so that no line of it can be taken for a head."""
    shown = clean(text).strip("\n")
    console.print(f"\n{head}:", style="bold")
    for line in Text(shown if shown.strip() else "(empty)").wrap(console, console.width - 2):
        console.print(Text("  ") + line)
