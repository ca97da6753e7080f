"""Write items so that what a format cannot hold is known: each row is read back, and compared with what is stored."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from alignment.data.importers import PassedOver
from alignment.data.row_files import BadRow
from alignment.errors import UserError
from alignment.labeling.entries import Entry, Rows, Stored
from alignment.labeling.formats.reading import ImportOptions, Reader
from alignment.labeling.joining import order_of, turned
from alignment.ratings import Item, Rating
from alignment.ratings.records import CONTROLS

Written = Iterator[tuple[dict[str, Any], Sequence[Rating]]]


class Votes(NamedTuple):
    """An item with the votes that count, and the pseudonym of each labeler."""

    item: Item
    ratings: list[Rating]
    hashes: Mapping[str, str]


ItemWriter = Callable[[Votes, Counter[str]], Written]
"""Yields each row with the votes in it, and counts those that the format cannot hold."""


def write_checked(stored: Stored, left_out: Counter[str], write: ItemWriter, read: Reader) -> Rows:
    """The rows of all items with votes that count; `stored.lost` takes what does not come back, in numbers.

    A row that would come back as something else is left out and counted.
    """
    _count_others(stored, left_out)
    by_item: dict[int, list[Rating]] = {}
    for rating in stored.counting:
        by_item.setdefault(rating.item, []).append(rating)
    named: set[str] = set()
    seen: set[int] = set()
    for item in stored.items:
        ratings = by_item.get(item.id, [])
        if not ratings:
            left_out["items without a rating that counts"] += 1
            continue
        metadata: Any = None
        for row, votes in write(Votes(item, ratings, stored.hashes), left_out):
            try:
                answers, metadata = _read_back(row, item, votes, read)
            except (BadRow, UserError, PassedOver) as reason:
                left_out[f"rows that would not come back ({str(reason)[:120]})"] += 1
                continue
            for vote, back in zip(votes, answers, strict=True):
                if vote.id not in seen:  # of a ranking, each pair is a row
                    stored.lost.update(_lost_of_vote(vote, back, stored))
                seen.add(vote.id)
                named |= {vote.labeler} if back["labeler"] == stored.hashes[vote.labeler] else set()
            yield row
        if metadata is not None:
            stored.lost.update(_lost_of_item(item, metadata))
    stored.lost["names of labelers"] += sum(stored.hashes[name] != name for name in named)
    stored.lost["versions of the guideline and of the questions' words"] += sum(map(len, stored.wordings.values()))


def _count_others(stored: Stored, left_out: Counter[str]) -> None:
    counting = {rating.id for rating in stored.counting}
    for rating in stored.ratings:
        if rating.id not in counting:
            skip, control = rating.choice == "skip", rating.why in CONTROLS
            place = "answers to control items and repeats" if control else "votes in whose place a verdict stands"
            left_out["skips" if skip else place] += 1


def _read_back(
    row: dict[str, Any], item: Item, votes: Sequence[Rating], read: Reader
) -> tuple[list[dict[str, Any]], Mapping[str, Any]]:
    """The answers of a row in the order of the item (of a ranking, to one of its pairs), and the item's metadata.

    Raises:
        BadRow: a text or a vote would be read as another one.
    """
    entries = [part for part in read(row, ImportOptions()) if isinstance(part, Entry)]
    answers: list[dict[str, Any]] = []
    wanted = [replace(each, model=None) for each in item.completions]
    for entry in entries:
        if list(entry.prompt) != list(item.prompt):
            raise BadRow("the prompt would be read as another one")
        if entry.kind != item.kind:
            pair = Counter(each.text for each in entry.completions)
            if entry.kind != "pair" or pair - Counter(each.text for each in wanted):
                raise BadRow("an answer would be read as another one")
            answers += [dict(answer) for answer in entry.answers]
            continue
        order = order_of(entry.completions, wanted) if len(entry.completions) == len(wanted) else None
        if order is None:
            raise BadRow("an answer would be read as another one")
        for answer, vote in zip(entry.answers, votes[len(answers) :], strict=False):
            answers.append(turned(answer, order))
            if answers[-1]["choice"] != vote.choice or list(answers[-1].get("ranks") or ()) != list(vote.ranks or ()):
                raise BadRow("a vote would be read as another one")
    if len(answers) != len(votes):
        raise BadRow("a vote would be read as none")
    return answers, entries[0].metadata or {}


def _lost_of_vote(vote: Rating, back: Mapping[str, Any], stored: Stored) -> Counter[str]:
    same_kind = (back["choice"] == "ranked") == (vote.choice == "ranked")
    lost: Counter[str] = Counter()
    lost["rankings, of which the pairs stay"] += not same_kind
    lost["labelers of votes"] += back.get("labeler") != stored.hashes[vote.labeler]
    lost["degrees of preference"] += same_kind and vote.strength != back.get("strength")
    lost["scores from 1 to 7 that are coarser here"] += same_kind and vote.score != back.get("score")
    lost["scores on the scale of their source"] += vote.given is not None and vote.given != back.get("given")
    lost["comments"] += bool(vote.comment) and vote.comment != back.get("comment")
    lost["flags"] += len(set(vote.flags) - set(back.get("flags") or ()))
    lost["seconds taken"] += vote.seconds is not None and vote.seconds != back.get("seconds")
    lost["orders shown"] += bool(vote.order_shown)
    lost["views"] += vote.view is not None
    lost["dates"] += 1
    lost["marks of verdicts"] += vote.why == "verdict"
    lost["marks of simulated labelers"] += vote.labeler in stored.simulated
    said, got = vote.answers or {}, back.get("answers") or {}
    given = got.get("attributes", {})
    for name, value in said.get("attributes", {}).items():
        lost["answers on attributes"] += name not in given
        lost["answers on attributes that are coarser here"] += name in given and given[name] != value
    lost["tags"] += len(set(said.get("tags", ())) - set(got.get("tags", ())))
    for key, words in (("rewrites", "rewrites"), ("comments", "comments on single answers")):
        texts, came = said.get(key, ()), got.get(key) or [None] * 9
        lost[words] += sum(bool(text) and text != came[place] for place, text in enumerate(texts))
    marks = got.get("spans") or [[]] * 9
    lost["spans"] += sum(
        list(span) not in [list(mark) for mark in marks[place]]
        for place, spans in enumerate(said.get("spans", ()))
        for span in spans
    )
    return lost


def _lost_of_item(item: Item, metadata: Mapping[str, Any]) -> dict[str, int]:
    return {
        "wanted numbers of votes": int(item.need != 1),
        "metadata of items": int(any(metadata.get(key) != value for key, value in item.metadata.items())),
        "known answers": int(item.gold is not None),
        "models of answers": sum(each.model is not None for each in item.completions),
        "marks of answers that hit the length limit": sum(not each.ended for each in item.completions),
        "token counts": sum(each.tokens is not None for each in item.completions),
    }
