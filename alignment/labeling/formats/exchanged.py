"""Formats that are read and written: our own, HH transcripts, PandaLM and QA-Feedback.

A writer turns the whole store into rows and counts, by reason, the items that the format cannot hold.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

from alignment.data import formats
from alignment.data.messages import LongAnswer
from alignment.data.row_files import BadRow
from alignment.labeling.checks import checked_entry
from alignment.labeling.entries import Entry, Rows, Stored, exportable, kept_row, plain_turns, short_digest
from alignment.labeling.formats.fields import ShownAnswer, named_key
from alignment.labeling.formats.reading import ImportOptions, Read, Row
from alignment.labeling.formats.voting import LABELERS, Who, labeler_of, meaning, preferred
from alignment.ratings import Completion, Item, Rating
from alignment.ratings.pairs import Pair
from alignment.templates.builtin import INPUT_HEADING

CODES = {"tie": 0, "first": 1, "second": 2}
"""How PandaLM and QA-Feedback write a choice."""


# --- jsonl: our own ------------------------------------------------------------------------------------------------


def read_jsonl(row: Row, options: ImportOptions) -> Read:
    return [Entry(**checked_entry(row))]


def write_jsonl(stored: Stored, left_out: Counter[str]) -> Rows:
    given: dict[int, list[Rating]] = {}
    for rating in stored.ratings:
        given.setdefault(rating.item, []).append(rating)
    names = [field.name for field in fields(Rating) if field.name not in ("id", "item", "kind")]
    for place, item in enumerate(stored.items):
        row: dict[str, Any] = {"item": item.id}
        row |= {name: getattr(item, name) for name in ("kind", "prompt", "need", "metadata")}
        if stored.wordings and place == 0:
            row["wordings"] = stored.wordings
        yield row | {
            "completions": [asdict(completion) for completion in item.completions],
            "gold": None if item.gold is None else asdict(item.gold),
            "ratings": [
                {name: getattr(rating, name) for name in names} | {"simulated": rating.labeler in stored.simulated}
                for rating in given.get(item.id, [])
            ],
        }


# --- hh: chosen and rejected transcripts ---------------------------------------------------------------------------


def read_hh(row: Row, options: ImportOptions) -> Read:
    formats.shape_of(row, "pair", ["pair"])
    prompt, chosen, rejected = formats.pair_of(row)
    if isinstance(chosen, LongAnswer) or isinstance(rejected, LongAnswer):
        raise BadRow("'chosen' and 'rejected' differ before the assistant's last turn, and labelers judge one answer")
    name = named_key(row, "labeler", LABELERS, options)
    who = Who(labeler_of(row[name]) if name else None)
    return [preferred(plain_turns(prompt), ShownAnswer("chosen", chosen), ShownAnswer("rejected", rejected), who)]


def write_hh(stored: Stored, left_out: Counter[str]) -> Rows:
    for pair in exportable(stored, left_out):
        first, second = (pair.item.completions[place].text for place in (pair.first, pair.second))
        sides = [_transcript(pair.item.prompt, text) for text in (first, second)]
        if pair.majority == "tie":
            left_out["ties"] += 1
        elif None in sides:
            left_out["pairs that a transcript cannot hold (another role, an empty turn, a turn mark in a text)"] += 1
        else:
            chosen, rejected = sides if pair.majority == "first" else sides[::-1]
            yield {"chosen": chosen, "rejected": rejected, "item": pair.item.id}


def _transcript(prompt: Sequence[Mapping[str, str]], answer: str) -> str | None:
    """The conversation as one text, None where it would not be read as what it is."""
    turns = [(turn["role"], turn["content"].strip()) for turn in prompt] + [("assistant", answer.strip())]
    names = {"user": "Human", "assistant": "Assistant"}
    text = "".join(f"\n\n{names.get(role, role)}: {content}" for role, content in turns)
    try:
        told = [(turn["role"], turn["content"]) for turn in formats.parse_transcript(text)]
    except BadRow:
        return None
    return text if told == turns else None


# --- pandalm: two responses and a column for each annotator --------------------------------------------------------


def read_pandalm(row: Row, options: ImportOptions) -> Read:
    formats.shape_of(row, "pandalm", ["pandalm"])
    # A table with an empty cell has its whole numbers as 1.0.
    votes = {key: meaning(value, options) for key, value in row.items() if key.startswith("annotator")}
    judged = formats.pandalm({**row, **votes})
    makers = str(row.get("cmp_key") or "").split("_")
    named = len(makers) == 2 and all(makers)
    models = makers if named else [None, None]
    apart = ("response", "annotator", "cmp_key") if named else ("response", "annotator")
    kept = {key: value for key, value in row.items() if not key.startswith(apart)}
    return [
        Entry(
            kind="pair",
            prompt=plain_turns(judged.prompt),
            completions=tuple(map(Completion, (judged.first, judged.second), (True, True), models)),
            answers=[{"labeler": annotator, "choice": choice} for annotator, choice in judged.votes],
            need=len(judged.votes),
            metadata={"pandalm": kept},
        )
    ]


def write_pandalm(stored: Stored, left_out: Counter[str]) -> Rows:
    pairs = list(exportable(stored, left_out))
    # Names that end in numbers (annotator2, annotator10) keep their order, so that a file comes back as it was.
    labelers = sorted({name for pair in pairs for name in pair.choices}, key=lambda name: (len(name), name))
    for pair in pairs:
        instruction = _instruction(pair.item)
        if instruction is None:
            left_out[_NOT_ONE_QUESTION] += 1
            continue
        first, second = (pair.item.completions[place] for place in (pair.first, pair.second))
        makers = {"cmp_key": f"{first.model}_{second.model}"} if first.model and second.model else {}
        votes = [pair.choices.get(labeler) for labeler in labelers]
        yield (
            instruction
            | makers
            | {"response1": first.text, "response2": second.text}
            | {f"annotator{n}": None if vote is None else CODES[vote] for n, vote in enumerate(votes, 1)}
        )


_NOT_ONE_QUESTION = "pairs whose prompt is a conversation, not one question"


def _instruction(item: Item) -> dict[str, Any] | None:
    """What the row of an imported item had, or the user's single turn."""
    if kept := kept_row(item, "pandalm", instruction=str):
        return kept
    if [turn["role"] for turn in item.prompt] != ["user"]:
        return None
    question = item.prompt[0]["content"]
    instruction, _, extra = question.partition(INPUT_HEADING)
    asked = (instruction, extra) if instruction and extra else (question, "")
    return {"idx": item.id, "instruction": asked[0], "input": asked[1]}


# --- qa-feedback: a question, K predictions, and what was said of each two -----------------------------------------


def read_qa_feedback(row: Row, options: ImportOptions) -> Read:
    """Pairs, not a ranking: people judged pairs, and not every six of their judgements make a ranking."""
    formats.shape_of(row, "qa-feedback", ["qa-feedback"])
    judged = formats.qa_feedback(row)
    size = len(judged.completions)
    name = short_digest(json.dumps([judged.prompt, judged.completions]))
    rest = {key: value for key, value in row.items() if not key.startswith(("prediction ", "preference"))}
    prompt = plain_turns(judged.prompt)
    entries: Read = []
    pairs = itertools.combinations(range(size), 2)
    for (first, second), choice in zip(pairs, judged.choices, strict=True):
        place: dict[str, Any] = {"set": name, "pair": [first + 1, second + 1], "size": size}
        # The passages are long, so they stand with the first pair alone.
        kept = place if entries else place | {"row": rest}
        texts = (judged.completions[first], judged.completions[second])
        answer = {"labeler": "qa-feedback", "choice": choice}
        entries.append(Entry("pair", prompt, tuple(map(Completion, texts)), (answer,), 1, {"qa-feedback": kept}))
    return entries


def write_qa_feedback(stored: Stored, left_out: Counter[str]) -> Rows:
    sets: dict[object, list[Pair]] = {}
    copies: Counter[str] = Counter()
    for pair in exportable(stored, left_out):
        name: object = pair.item.id
        if kept := kept_row(pair.item, "qa-feedback", set=str, pair=list, size=int):
            place = json.dumps([kept["set"], kept["pair"]])
            copies[place] += 1  # a question that stands twice in its file is two sets
            name = (kept["set"], copies[place])
        sets.setdefault(name, []).append(pair)
    for pairs in sets.values():
        kept = kept_row(pairs[0].item, "qa-feedback", set=str, pair=list, size=int)
        size = kept["size"] if kept else len(pairs[0].item.completions)
        texts: dict[int, str] = {}
        said: dict[tuple[int, ...], int] = {}
        for pair in pairs:
            told = kept_row(pair.item, "qa-feedback", set=str, pair=list, size=int)
            names = tuple(told["pair"]) if told else (pair.first + 1, pair.second + 1)
            texts |= zip(
                names, (pair.item.completions[place].text for place in (pair.first, pair.second)), strict=False
            )
            said[names] = CODES[pair.majority]
        wanted = list(itertools.combinations(range(1, size + 1), 2))
        question = _question(pairs)
        if sorted(said) != wanted:
            left_out["pairs of a set that is not rated as a whole"] += len(pairs)
        elif question is None:
            left_out[_NOT_ONE_QUESTION] += len(pairs)
        elif not all(text.strip() for text in texts.values()):
            left_out["pairs with an empty answer"] += len(pairs)
        else:
            predictions = {f"prediction {number}": texts[number] for number in range(1, size + 1)}
            yield question | predictions | {"preference": [said[names] for names in wanted]}


def _question(pairs: Sequence[Pair]) -> dict[str, Any] | None:
    for pair in pairs:
        if kept := kept_row(pair.item, "qa-feedback", row=dict):
            return dict(kept["row"])
    item = pairs[0].item
    if [turn["role"] for turn in item.prompt] != ["user"]:
        return None
    return {"question": item.prompt[0]["content"], "passages": [], "item": item.id}
