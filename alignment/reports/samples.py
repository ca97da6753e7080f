"""Sampled answers to the same prompts during a run, compared word by word with a baseline."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from alignment.reports.charts import number
from alignment.runs.record import RunRecord
from alignment.terminal import clean

MAX_STEPS = 24
"""Maximum number of evaluations whose answers a report shows, including the first and the last."""
MAX_ITEMS = 64
MAX_TEXT = 4000
"""Maximum number of characters of a text."""
_WORDS = re.compile(r"\s+|\w+|[^\w\s]")
MAX_PRODUCT = 400_000
"""Maximum product of the two answers' word counts for an exact comparison."""
Part = tuple[str, str]
"""`=`, `-` (only before) or `+` (only after), and a text."""


def samples_of(record: RunRecord) -> dict[str, Any] | None:
    """The samples of a run for its report; None if there are none.

    An answer is compared with the one of the first step, or with the human `reference`. A reward model's pair is shown
    side by side.
    """
    by_prompt: dict[Any, dict[int, dict[str, Any]]] = {}
    for row in record.samples:
        if isinstance(row.get("step"), int):
            by_prompt.setdefault(_key(row), {})[row["step"]] = row
    all_steps = sorted({step for rows in by_prompt.values() for step in rows})
    steps = _spread(all_steps, record.published_step)
    if not steps:
        return None
    shown = record.published_step if record.published_step in steps else steps[-1]
    items = [_item(rows, steps) for rows in list(by_prompt.values())[:MAX_ITEMS]]
    items = [item for item in items if item["at"]]
    for item in items:
        item["shown"] = shown if shown in item["at"] else max(item["at"])
    _rank(items)
    return {"steps": steps, "shown": shown, "items": items, "left_out": max(0, len(by_prompt) - MAX_ITEMS)}


def side_by_side(records: Sequence[RunRecord]) -> list[dict[str, Any]]:
    """The answers of several runs' published (or last) models to the prompts that all runs share."""
    last: list[dict[str, dict[str, Any]]] = []
    for record in records:
        rows: dict[str, dict[str, Any]] = {}
        published: set[str] = set()
        for row in record.samples:
            if "response" in row and (key := str(_prompt(row))) not in published:
                rows[key] = row
                if row.get("step") == record.published_step:
                    published.add(key)
        last.append(rows)
    shared = [key for key in last[0] if all(key in rows for rows in last)][:MAX_ITEMS]
    return [
        {
            "prompt": _prompt(last[0][key]),
            "answers": [{"head": _head(rows[key]), "text": cut(rows[key]["response"])} for rows in last],
        }
        for key in shared
    ]


def _key(row: Mapping[str, Any]) -> Any:
    return row["id"] if isinstance(row.get("id"), (int, str)) else str(_prompt(row))


def _spread(steps: list[int], wanted: int | None) -> list[int]:
    """At most `MAX_STEPS` evenly spaced steps, including the first and the last, plus the wanted one."""
    if len(steps) <= MAX_STEPS:
        return steps
    chosen = {steps[round(index * (len(steps) - 1) / (MAX_STEPS - 1))] for index in range(MAX_STEPS)}
    return sorted(chosen | {step for step in steps if step == wanted})


def _item(rows: Mapping[int, Mapping[str, Any]], steps: Sequence[int]) -> dict[str, Any]:
    """One prompt with the left and right text at each step."""
    first = rows[min(rows)]
    at: dict[int, dict[str, Any]] = {}
    for step in steps:
        if (row := rows.get(step)) is None:
            continue
        if "first" in row and "second" in row:
            pair = [("-", cut(row["first"])), ("+", cut(row["second"]))]
            heads = (_judged("one answer", row, "first"), _judged("the other", row, "second"))
            at[step] = {"parts": pair, "marked": False, "left": heads[0], "right": heads[1], "score": _margin(row)}
            continue
        baseline = {"response": row["reference"]} if row.get("reference") is not None else first
        kind = "reference" if "reference" in row else f"start, step {first['step']}"
        parts = changes(cut(baseline.get("response")), cut(row.get("response")))
        left = _head(baseline, kind) if "reference" not in row else kind
        shown = {"parts": parts, "marked": True, "left": left, "right": _head(row, f"step {step}")}
        at[step] = shown | {"score": _number(row.get("score"))}
    return {"prompt": _prompt(first), "at": at, "tags": []}


def _rank(items: list[dict[str, Any]]) -> None:
    """Tag the best, the worst and the most changed answers, and measure the changes."""
    for index, item in enumerate(items):
        last = item["at"][item["shown"]]
        old, new = ("".join(text for kind, text in last["parts"] if kind in ("=", side)) for side in "-+")
        same = sum(len(text) for kind, text in last["parts"] if kind == "=")
        item["changed"] = 1 - 2 * same / max(1, len(old) + len(new)) if last["marked"] else 0.0
        item["score"], item["number"] = last["score"], index
    scored = [item for item in items if item["score"] is not None]
    if len(scored) > 1:
        best, worst = ("best", "worst") if last["marked"] else ("most surely right", "most surely wrong")
        max(scored, key=lambda item: item["score"])["tags"].append(best)
        if (lowest := min(scored, key=lambda item: item["score"]))["score"] < 0 or last["marked"]:
            lowest["tags"].append(worst)
    most_changed = max(items, key=lambda item: item["changed"])
    if most_changed["changed"] > 0:
        most_changed["tags"].append("most changed")


def changes(before: str, now: str) -> list[Part]:
    """The word-level diff of two texts; white space between two changed words counts as changed."""
    old, new = _WORDS.findall(before), _WORDS.findall(now)
    parts: list[Part] = []
    removed = added = ""

    def flush() -> None:
        nonlocal removed, added
        end = re.search(r"\s*$", removed)[0]  # type: ignore[index]
        end = end if end and added.endswith(end) and len(removed) > len(end) < len(added) else ""
        parts.extend((kind, text.removesuffix(end)) for kind, text in (("-", removed), ("+", added)) if text)
        if end:
            parts.append(("=", end))
        removed = added = ""

    # Without the heuristic, frequent words are compared too (as in a repetitive answer), which is slow.
    heuristic = len(old) * len(new) > MAX_PRODUCT
    for kind, a, b, c, d in difflib.SequenceMatcher(None, old, new, autojunk=heuristic).get_opcodes():
        left, right = "".join(old[a:b]), "".join(new[c:d])
        if kind == "equal" and not (left.isspace() and (removed or added)):
            flush()
            parts.append(("=", left))
        else:
            removed, added = removed + left, added + right
    flush()
    return parts


def _head(row: Mapping[str, Any], where: str = "") -> str:
    """A short caption of an answer: its score, KL and length."""
    parts = [where] if where else []
    for name, unit in (("score", ""), ("held_out_score", ""), ("kl", " nats"), ("length", " tokens")):
        if (value := _number(row.get(name))) is not None:
            label = {"score": "score", "held_out_score": "held-out judge", "kl": "KL", "length": ""}[name]
            parts.append(f"{label} {number(value)}{unit}".strip())
    if row.get("ended") is False:
        parts.append("cut off")
    return ", ".join(parts)


def _judged(name: str, row: Mapping[str, Any], side: str) -> str:
    """A short caption of one of two answers: its score and votes."""
    parts, score, votes = [name], _number(row.get(f"{side}_score")), row.get("votes")
    if score is not None:
        parts.append(f"score {number(score)}")
    if isinstance(votes, Mapping):
        parts.append(f"{votes.get(side, 0)} of {sum(votes.values())} votes")
    return ", ".join(parts)


def _margin(row: Mapping[str, Any]) -> float | None:
    """The score difference in favour of the majority's choice; None for a tie."""
    first, second, votes = _number(row.get("first_score")), _number(row.get("second_score")), row.get("votes")
    if first is None or second is None or not isinstance(votes, Mapping):
        return None
    lead = votes.get("first", 0) - votes.get("second", 0)
    return None if lead == 0 else (first - second) * (1 if lead > 0 else -1)


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _prompt(row: Mapping[str, Any]) -> list[dict[str, str]]:
    """The conversation with cleaned text."""
    prompt = row.get("prompt")
    turns = prompt if isinstance(prompt, list) else [{"role": "user", "content": prompt}]
    return [
        {"role": clean(str(turn.get("role", ""))), "content": cut(turn.get("content"))}
        for turn in turns
        if isinstance(turn, Mapping)
    ]


def cut(text: Any) -> str:
    """A text cleaned and shortened for display."""
    whole = "" if text is None else clean(str(text))
    return whole if len(whole) <= MAX_TEXT else f"{whole[:MAX_TEXT]} … ({len(whole) - MAX_TEXT:,} more characters)"


def left_and_right(parts: Sequence[Part]) -> Iterator[list[Part]]:
    """Yield the parts of the old text, then those of the new text."""
    for side in "-+":
        yield [part for part in parts if part[0] in ("=", side)]
