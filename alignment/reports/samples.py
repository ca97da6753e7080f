"""Answers to the same prompts across a run: side by side with what they are compared with, and what differs."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from alignment.reports.charts import number
from alignment.runs.record import RunRecord
from alignment.terminal import clean

MAX_STEPS = 24
"""Evaluations whose answers a report holds: the first, the last, and some between."""
MAX_ITEMS = 64
MAX_TEXT = 4000
"""Characters of a text that are shown."""
_WORDS = re.compile(r"\s+|\w+|[^\w\s]")
MAX_PRODUCT = 400_000
"""Words of one answer times those of the other, up to which they are compared exactly."""
Part = tuple[str, str]
"""`=`, `-` (only before) or `+` (only now), and a text."""


def samples_of(record: RunRecord) -> dict[str, Any] | None:
    """Everything that a report shows of a run's samples; None where there are none.

    An answer is compared with the one of the first step, or with the `reference` that people wrote; of a reward model's
    pair the two answers stand side by side.
    """
    by_prompt: dict[Any, dict[int, dict[str, Any]]] = {}
    for row in record.samples:
        if isinstance(row.get("step"), int):
            by_prompt.setdefault(_key(row), {})[row["step"]] = row
    there = sorted({step for rows in by_prompt.values() for step in rows})
    steps = _some(there, record.published_step)
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
    """The answers of several runs' published models, or the last ones, to the prompts that all of them have."""
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
            "answers": [{"head": _head(rows[key]), "text": _cut(rows[key]["response"])} for rows in last],
        }
        for key in shared
    ]


def _key(row: Mapping[str, Any]) -> Any:
    return row["id"] if isinstance(row.get("id"), (int, str)) else str(_prompt(row))


def _some(steps: list[int], wanted: int | None) -> list[int]:
    """At most `MAX_STEPS` of the steps, evenly spread, with the first and the last; and the wanted one."""
    if len(steps) <= MAX_STEPS:
        return steps
    some = {steps[round(place * (len(steps) - 1) / (MAX_STEPS - 1))] for place in range(MAX_STEPS)}
    return sorted(some | {step for step in steps if step == wanted})


def _item(rows: Mapping[int, Mapping[str, Any]], steps: Sequence[int]) -> dict[str, Any]:
    """One prompt: what is to the left and to the right at each step."""
    first = rows[min(rows)]
    at: dict[int, dict[str, Any]] = {}
    for step in steps:
        if (row := rows.get(step)) is None:
            continue
        if "first" in row and "second" in row:
            pair = [("-", _cut(row["first"])), ("+", _cut(row["second"]))]
            heads = (_judged("one answer", row, "first"), _judged("the other", row, "second"))
            at[step] = {"parts": pair, "marked": False, "left": heads[0], "right": heads[1], "score": _margin(row)}
            continue
        before = {"response": row["reference"]} if row.get("reference") is not None else first
        kind = "people wrote" if "reference" in row else f"start, step {first['step']}"
        parts = changes(_cut(before.get("response")), _cut(row.get("response")))
        left = _head(before, kind) if "reference" not in row else kind
        shown = {"parts": parts, "marked": True, "left": left, "right": _head(row, f"step {step}")}
        at[step] = shown | {"score": _number(row.get("score"))}
    return {"prompt": _prompt(first), "at": at, "tags": []}


def _rank(items: list[dict[str, Any]]) -> None:
    """Name the best, the worst and the most changed answers that are shown at first, and how much each has changed."""
    for number_, item in enumerate(items):
        last = item["at"][item["shown"]]
        old, new = ("".join(text for kind, text in last["parts"] if kind in ("=", side)) for side in "-+")
        same = sum(len(text) for kind, text in last["parts"] if kind == "=")
        item["changed"] = 1 - 2 * same / max(1, len(old) + len(new)) if last["marked"] else 0.0
        item["score"], item["number"] = last["score"], number_
    scored = [item for item in items if item["score"] is not None]
    if len(scored) > 1:
        best, worst = ("best", "worst") if last["marked"] else ("most surely right", "most surely wrong")
        max(scored, key=lambda item: item["score"])["tags"].append(best)
        if (least := min(scored, key=lambda item: item["score"]))["score"] < 0 or last["marked"]:
            least["tags"].append(worst)
    most = max(items, key=lambda item: item["changed"])
    if most["changed"] > 0:
        most["tags"].append("most changed")


def changes(before: str, now: str) -> list[Part]:
    """What two texts share and where they differ, by words; the space between two changed words is changed too."""
    old, new = _WORDS.findall(before), _WORDS.findall(now)
    found: list[Part] = []
    gone = come = ""

    def flush() -> None:
        nonlocal gone, come
        end = re.search(r"\s*$", gone)[0]  # type: ignore[index]
        end = end if end and come.endswith(end) and len(gone) > len(end) < len(come) else ""
        found.extend((kind, text.removesuffix(end)) for kind, text in (("-", gone), ("+", come)) if text)
        if end:
            found.append(("=", end))
        gone = come = ""

    # Without the heuristic frequent words count too, as those of an answer that repeats itself; it takes its time.
    heuristic = len(old) * len(new) > MAX_PRODUCT
    for kind, a, b, c, d in difflib.SequenceMatcher(None, old, new, autojunk=heuristic).get_opcodes():
        left, right = "".join(old[a:b]), "".join(new[c:d])
        if kind == "equal" and not (left.isspace() and (gone or come)):
            flush()
            found.append(("=", left))
        else:
            gone, come = gone + left, come + right
    flush()
    return found


def _head(row: Mapping[str, Any], where: str = "") -> str:
    """What is known of an answer in few words."""
    said = [where] if where else []
    for name, unit in (("score", ""), ("held_out_score", ""), ("kl", " nats"), ("length", " tokens")):
        if (value := _number(row.get(name))) is not None:
            label = {"score": "score", "held_out_score": "held-out judge", "kl": "KL", "length": ""}[name]
            said.append(f"{label} {number(value)}{unit}".strip())
    if row.get("ended") is False:
        said.append("cut off")
    return ", ".join(said)


def _judged(name: str, row: Mapping[str, Any], side: str) -> str:
    """What is known of one of two answers: its score, and how many people preferred it."""
    said, score, votes = [name], _number(row.get(f"{side}_score")), row.get("votes")
    if score is not None:
        said.append(f"score {number(score)}")
    if isinstance(votes, Mapping):
        said.append(f"{votes.get(side, 0)} of {sum(votes.values())} votes")
    return ", ".join(said)


def _margin(row: Mapping[str, Any]) -> float | None:
    """By how much the scores of a pair agree with most people; negative where they do not, None for a tie."""
    first, second, votes = _number(row.get("first_score")), _number(row.get("second_score")), row.get("votes")
    if first is None or second is None or not isinstance(votes, Mapping):
        return None
    lead = votes.get("first", 0) - votes.get("second", 0)
    return None if lead == 0 else (first - second) * (1 if lead > 0 else -1)


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _prompt(row: Mapping[str, Any]) -> list[dict[str, str]]:
    """The conversation, cleaned."""
    prompt = row.get("prompt")
    turns = prompt if isinstance(prompt, list) else [{"role": "user", "content": prompt}]
    return [
        {"role": clean(str(turn.get("role", ""))), "content": _cut(turn.get("content"))}
        for turn in turns
        if isinstance(turn, Mapping)
    ]


def _cut(text: Any) -> str:
    """A text as it is shown: cleaned, and no longer than a reader reads."""
    whole = "" if text is None else clean(str(text))
    return whole if len(whole) <= MAX_TEXT else f"{whole[:MAX_TEXT]} … ({len(whole) - MAX_TEXT:,} more characters)"


def left_and_right(parts: Sequence[Part]) -> Iterator[list[Part]]:
    """The parts of the text before, and those of the text now."""
    for side in "-+":
        yield [part for part in parts if part[0] in ("=", side)]
