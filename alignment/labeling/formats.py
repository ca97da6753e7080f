"""The file formats of `rate.py import` and `export`: how each is read and written, and what it has no room for.

A reader turns a row into items with their answers, or raises BadRow (the row is wrong) or PassedOver (nothing to rate).
A writer turns the whole store into rows and counts, by reason, the items that the format cannot hold.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple

from alignment.data import formats
from alignment.data.importers import PassedOver
from alignment.data.messages import check_text
from alignment.data.openassistant import ranked_replies
from alignment.data.row_files import BadRow
from alignment.labeling.checks import checked_entry
from alignment.ratings import Completion, Gold, Item, Kind, Rating
from alignment.ratings.pairs import Pair, pairs_with_choices
from alignment.templates.builtin import INPUT_HEADING
from alignment.templates.rendering import Message

CODES = {"tie": 0, "first": 1, "second": 2}
"""How PandaLM and QA-Feedback write a choice."""


@dataclass(frozen=True)
class Entry:
    """An item as a file has it. `answers` are arguments of `RatingsStore.import_rating`, `item` aside."""

    kind: Kind
    prompt: Sequence[Mapping[str, str]]
    completions: Sequence[Completion]
    answers: Sequence[Mapping[str, Any]]
    need: int = 1
    metadata: Mapping[str, Any] | None = None
    gold: Gold | None = None
    simulated: frozenset[str] = frozenset()


class Stored(NamedTuple):
    """A store as writers see it. `ratings` are all, skips and controls too; `counting` those that models learn from."""

    items: list[Item]
    ratings: list[Rating]
    counting: list[Rating]
    simulated: frozenset[str]


Rows = Iterator[dict[str, Any]]


class FileFormat(NamedTuple):
    """How a format is read and written. `import_drops` and `export_drops` say in words what does not come along."""

    read: Callable[[Mapping[str, Any]], list[Entry]]
    write: Callable[[Stored, Counter[str]], Rows]
    suffixes: tuple[str, ...]
    import_drops: str
    export_drops: str


# --- jsonl: our own ------------------------------------------------------------------------------------------------


def _read_jsonl(row: Mapping[str, Any]) -> list[Entry]:
    return [Entry(**checked_entry(row))]


def _write_jsonl(stored: Stored, left_out: Counter[str]) -> Rows:
    given: dict[int, list[Rating]] = {}
    for rating in stored.ratings:
        given.setdefault(rating.item, []).append(rating)
    names = [field.name for field in fields(Rating) if field.name not in ("id", "item", "kind")]
    for item in stored.items:
        row = {name: getattr(item, name) for name in ("kind", "prompt", "need", "metadata")}
        yield row | {
            "completions": [asdict(completion) for completion in item.completions],
            "gold": None if item.gold is None else asdict(item.gold),
            "ratings": [
                {name: getattr(rating, name) for name in names} | {"simulated": rating.labeler in stored.simulated}
                for rating in given.get(item.id, [])
            ],
        }


# --- hh: chosen and rejected transcripts ---------------------------------------------------------------------------


def _read_hh(row: Mapping[str, Any]) -> list[Entry]:
    formats.shape_of(row, "pair", ["pair"])
    prompt, chosen, rejected = formats.pair_of(row)
    if chosen == rejected:
        raise BadRow("'chosen' and 'rejected' are the same")
    # Which of them stands first is drawn from the texts: were it always the chosen one, `first` would say what won.
    first, second = sorted((chosen, rejected), key=lambda text: _short_digest(text))
    answer = {"labeler": "hh", "choice": "first" if first == chosen else "second"}
    return [Entry("pair", _plain(prompt), (Completion(first), Completion(second)), (answer,))]


def _write_hh(stored: Stored, left_out: Counter[str]) -> Rows:
    for pair in _exportable(stored, left_out):
        first, second = (pair.item.completions[place].text for place in (pair.first, pair.second))
        sides = [_transcript(pair.item.prompt, text) for text in (first, second)]
        if pair.majority == "tie":
            left_out["ties"] += 1
        elif None in sides:
            left_out["pairs that a transcript cannot hold (another role, an empty turn, a turn mark in a text)"] += 1
        else:
            chosen, rejected = sides if pair.majority == "first" else sides[::-1]
            yield {"chosen": chosen, "rejected": rejected}


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


def _read_pandalm(row: Mapping[str, Any]) -> list[Entry]:
    formats.shape_of(row, "pandalm", ["pandalm"])
    judged = formats.pandalm(row)
    makers = str(row.get("cmp_key") or "").split("_")
    named = len(makers) == 2 and all(makers)
    models = makers if named else [None, None]
    apart = ("response", "annotator", "cmp_key") if named else ("response", "annotator")
    kept = {key: value for key, value in row.items() if not key.startswith(apart)}
    return [
        Entry(
            kind="pair",
            prompt=_plain(judged.prompt),
            completions=tuple(map(Completion, (judged.first, judged.second), (True, True), models)),
            answers=[{"labeler": annotator, "choice": choice} for annotator, choice in judged.votes],
            need=len(judged.votes),
            metadata={"pandalm": kept},
        )
    ]


def _write_pandalm(stored: Stored, left_out: Counter[str]) -> Rows:
    pairs = list(_exportable(stored, left_out))
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
    if kept := _kept(item, "pandalm", instruction=str):
        return kept
    if [turn["role"] for turn in item.prompt] != ["user"]:
        return None
    question = item.prompt[0]["content"]
    instruction, _, extra = question.partition(INPUT_HEADING)
    return (
        {"instruction": instruction, "input": extra}
        if instruction and extra
        else {"instruction": question, "input": ""}
    )


# --- qa-feedback: a question, K predictions, and what was said of each two -----------------------------------------


def _read_qa_feedback(row: Mapping[str, Any]) -> list[Entry]:
    """Pairs, not a ranking: people judged pairs, and not every six of their judgements make a ranking."""
    formats.shape_of(row, "qa-feedback", ["qa-feedback"])
    judged = formats.qa_feedback(row)
    size = len(judged.completions)
    name = _short_digest(json.dumps([judged.prompt, judged.completions]))
    rest = {key: value for key, value in row.items() if not key.startswith(("prediction ", "preference"))}
    prompt = _plain(judged.prompt)
    entries: list[Entry] = []
    pairs = itertools.combinations(range(size), 2)
    for (first, second), choice in zip(pairs, judged.choices, strict=True):
        place: dict[str, Any] = {"set": name, "pair": [first + 1, second + 1], "size": size}
        # The passages are long, so they stand with the first pair alone.
        kept = place if entries else place | {"row": rest}
        texts = (judged.completions[first], judged.completions[second])
        answer = {"labeler": "qa-feedback", "choice": choice}
        entries.append(Entry("pair", prompt, tuple(map(Completion, texts)), (answer,), 1, {"qa-feedback": kept}))
    return entries


def _write_qa_feedback(stored: Stored, left_out: Counter[str]) -> Rows:
    sets: dict[object, list[Pair]] = {}
    copies: Counter[str] = Counter()
    for pair in _exportable(stored, left_out):
        name: object = pair.item.id
        if kept := _kept(pair.item, "qa-feedback", set=str, pair=list, size=int):
            place = json.dumps([kept["set"], kept["pair"]])
            copies[place] += 1  # a question that stands twice in its file is two sets
            name = (kept["set"], copies[place])
        sets.setdefault(name, []).append(pair)
    for pairs in sets.values():
        kept = _kept(pairs[0].item, "qa-feedback", set=str, pair=list, size=int)
        size = kept["size"] if kept else len(pairs[0].item.completions)
        texts: dict[int, str] = {}
        said: dict[tuple[int, ...], int] = {}
        for pair in pairs:
            told = _kept(pair.item, "qa-feedback", set=str, pair=list, size=int)
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
        if kept := _kept(pair.item, "qa-feedback", row=dict):
            return dict(kept["row"])
    prompt = pairs[0].item.prompt
    return {"question": prompt[0]["content"], "passages": []} if [turn["role"] for turn in prompt] == ["user"] else None


# --- oasst: message trees ------------------------------------------------------------------------------------------


def _read_oasst(row: Mapping[str, Any]) -> list[Entry]:
    formats.shape_of(row, "tree", ["tree"])
    entries = []
    for history, ranked in ranked_replies(row):
        texts = [check_text(node.get("text"), f"the text of {node.get('message_id')}") for node in history]
        roles = ["assistant" if node["role"] == "assistant" else "user" for node in history]
        answers = [
            Completion(check_text(node.get("text"), f"the text of {node.get('message_id')}"), model=model)
            for node in ranked
            for model in [node.get("model_name")]
        ]
        kept = {
            "tree": row["message_tree_id"],
            "path": [node.get("message_id") for node in history],
            "replies": [node.get("message_id") for node in ranked],
        }
        entries.append(
            Entry(
                kind="rank",
                prompt=[{"role": role, "content": text} for role, text in zip(roles, texts, strict=True)],
                completions=answers,
                answers=[{"labeler": "oasst", "choice": "ranked", "ranks": [node["rank"] + 1 for node in ranked]}],
                metadata={"oasst": kept, "lang": ranked[0].get("lang")},
            )
        )
    if not entries:
        raise PassedOver("no answers of this tree were ranked")
    return entries


def _write_oasst(stored: Stored, left_out: Counter[str]) -> Rows:
    trees: dict[str, dict[str, Any]] = {}
    ranked: set[str] = set()
    ranks = _ranks(stored, left_out)
    for item in stored.items:
        if item.id not in ranks:
            continue
        roles = [turn["role"] for turn in item.prompt]
        texts = [turn["content"] for turn in item.prompt] + [completion.text for completion in item.completions]
        if roles != ["user", "assistant"] * (len(roles) // 2) + ["user"] or not all(text.strip() for text in texts):
            left_out["items that a tree cannot hold (another role, turns out of turn, an empty text)"] += 1
            continue
        kept = _kept(item, "oasst", tree=str, path=list, replies=list)
        if [len(kept.get(key, ())) for key in ("path", "replies")] != [len(roles), len(item.completions)]:
            kept = {}
        path: list[str | None] = kept.get("path", [None] * len(roles))
        ids: list[str | None] = kept.get("replies", [None] * len(item.completions))
        name = kept.get("tree", _message_id(item.prompt[0]["content"]))
        if not kept and len({completion.text for completion in item.completions}) < len(item.completions):
            left_out["items with two equal answers"] += 1
            continue
        lang = {"lang": item.metadata["lang"]} if item.metadata.get("lang") else {}
        first = item.prompt[0]["content"]
        node = trees.setdefault(name, _node(name if path[0] is None else path[0], None, "user", first) | lang)
        if node["text"] != first:
            left_out["items of a tree that begins otherwise"] += 1
            continue
        for turn, message_id in zip(item.prompt[1:], path[1:], strict=True):
            node = _child(node, turn["role"], turn["content"], message_id, lang)
        if node["message_id"] in ranked:
            left_out["items on a question whose answers stand ranked in the tree already"] += 1
            continue
        ranked.add(node["message_id"])
        for completion, rank, message_id in zip(item.completions, ranks[item.id], ids, strict=True):
            reply = _child(node, "assistant", completion.text, message_id, lang)
            reply["rank"] = rank
            if completion.model:
                reply |= {"synthetic": True, "model_name": completion.model}
    for name, root in trees.items():
        yield {"message_tree_id": name, "tree_state": "ready_for_export", "prompt": root}


def _ranks(stored: Stored, left_out: Counter[str]) -> dict[int, list[int]]:
    """Per rated item the places of its completions, 0 the best: by their mean rank over labelers, or the majority."""
    sums: dict[int, Sequence[float]] = {}
    for rating in stored.counting:
        if rating.ranks is not None:
            before = sums.get(rating.item, [0.0] * len(rating.ranks))
            sums[rating.item] = [total + rank for total, rank in zip(before, rating.ranks, strict=True)]
    for pair in _exportable(stored, left_out):
        if pair.item.kind == "pair":
            sums[pair.item.id] = {"first": [0, 1], "second": [1, 0], "tie": [0, 0]}[pair.majority]
    return {item: [sorted(set(totals)).index(total) for total in totals] for item, totals in sums.items()}


def _node(message_id: str, parent: str | None, role: str, text: str) -> dict[str, Any]:
    name = {"user": "prompter"}.get(role, role)
    parents = {} if parent is None else {"parent_id": parent}
    reviewed = {"review_result": True, "deleted": False, "synthetic": False}
    return {"message_id": message_id, **parents, "text": text, "role": name, **reviewed, "replies": []}


def _child(node: dict[str, Any], role: str, text: str, message_id: str | None, lang: dict[str, Any]) -> dict[str, Any]:
    """The reply with this text (and, where one is known, this id), added if it is not there."""
    for reply in node["replies"]:
        if reply["text"] == text and message_id in (None, reply["message_id"]):
            return reply
    name = message_id or _message_id(f"{node['message_id']}\0{len(node['replies'])}\0{text}")
    reply = _node(name, node["message_id"], role, text) | lang
    node["replies"].append(reply)
    return reply


def _message_id(text: str) -> str:
    return str(uuid.UUID(_short_digest(text, 32)))


# --- common to the formats of pairs --------------------------------------------------------------------------------


def _exportable(stored: Stored, left_out: Counter[str]) -> Iterator[Pair]:
    """Judged pairs; counts the items that are none: single scores, and those without a rating that counts."""
    rated = {rating.item for rating in stored.counting}
    for item in stored.items:
        if item.kind == "single":
            left_out["single items (scores of one answer)"] += 1
        elif item.id not in rated:
            left_out["items without a rating that counts"] += 1
    return pairs_with_choices(stored.items, stored.counting)


def _kept(item: Item, format: str, **types: type) -> dict[str, Any]:
    """What an import kept of the row that an item comes from; {} of any other item."""
    kept = item.metadata.get(format)
    fits = isinstance(kept, dict) and all(isinstance(kept.get(key), kind) for key, kind in types.items())
    return dict(kept) if fits else {}  # type: ignore[arg-type]


def _plain(turns: Sequence[Message]) -> list[dict[str, str]]:
    if any(set(turn) != {"role", "content"} for turn in turns):
        raise BadRow("the prompt has tools, weights or names, for which a ratings file has no room")
    return [{"role": turn["role"], "content": turn["content"]} for turn in turns]


def _short_digest(text: str, digits: int = 16) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:digits]


_PEOPLE = "strength, seconds, comments, flags, order shown, skips, gold and repeats"
FORMATS: dict[str, FileFormat] = {
    "jsonl": FileFormat(
        _read_jsonl,
        _write_jsonl,
        (".jsonl", ".jsonl.gz"),
        "nothing",
        "nothing of items and ratings; not in it are the store's settings and guideline, invitations, open claims and "
        "answers that were taken back",
    ),
    "hh": FileFormat(
        _read_hh,
        _write_hh,
        (".jsonl", ".jsonl.gz"),
        "nothing; it has neither ties nor names, so one labeler, hh, gave every choice",
        f"ties, who said what and how many (the majority's choice stays), {_PEOPLE}, models, spaces around a text, "
        "and which pairs come from one ranking",
    ),
    "pandalm": FileFormat(
        _read_pandalm,
        _write_pandalm,
        (".json", ".jsonl", ".jsonl.gz"),
        "nothing but the kind of an answer that is a truth value (true is read as the text True)",
        f"the names of labelers (a numbered column each), {_PEOPLE}, and which pairs come from one ranking",
    ),
    "qa-feedback": FileFormat(
        _read_qa_feedback,
        _write_qa_feedback,
        (".json", ".jsonl", ".jsonl.gz"),
        "nothing; the pairs of one question are items of their own, judged by one labeler, qa-feedback",
        f"who said what and how many (the majority's choice stays), {_PEOPLE}, and models",
    ),
    "oasst": FileFormat(
        _read_oasst,
        _write_oasst,
        (".jsonl", ".jsonl.gz"),
        "answers without a rank, deleted ones and those that reviewers refused, trees without any ranking, review "
        "counts and emojis; the ranking is one labeler's, oasst, for the many behind it are not in the file",
        f"who said what (the order of mean ranks stays), {_PEOPLE}; ties, which are rare in such trees, stay as equal "
        "ranks",
    ),
}
