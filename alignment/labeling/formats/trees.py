"""Message trees, as OpenAssistant publishes them: ranked replies in and out of a ratings file."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Sequence
from typing import Any

from alignment.data import formats
from alignment.data.importers import PassedOver
from alignment.data.marks import check_marks
from alignment.data.messages import check_text
from alignment.data.openassistant import ranked_replies
from alignment.labeling.entries import Entry, Rows, Stored, exportable, kept_row, short_digest
from alignment.labeling.formats.reading import ImportOptions, Read, Row
from alignment.ratings import Completion


def read_trees(row: Row, options: ImportOptions) -> Read:
    formats.shape_of(row, "tree", ["tree"])
    check_marks(row, [key for key in row if key != "prompt"], "tree", ["answer"])
    entries: Read = []
    for history, ranked, ranks in ranked_replies(row):
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
                answers=[{"labeler": "oasst", "choice": "ranked", "ranks": [rank + 1 for rank in ranks]}],
                metadata={"oasst": kept, "lang": ranked[0].get("lang")},
            )
        )
    if not entries:
        raise PassedOver("no answers of this tree were ranked")
    return entries


def write_trees(stored: Stored, left_out: Counter[str]) -> Rows:
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
        kept = kept_row(item, "oasst", tree=str, path=list, replies=list)
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
    for pair in exportable(stored, left_out):
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
    return str(uuid.UUID(short_digest(text, 32)))
