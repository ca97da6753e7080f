"""OpenAssistant's message trees: chats along the best replies, and rankings of the replies to one message."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from alignment.data.help_desks import flag_of
from alignment.data.messages import Turns, check_text
from alignment.data.preferences import RankedAnswers, number_of
from alignment.data.row_files import BadRow
from alignment.templates.rendering import Message

Node = Mapping[str, Any]
_FLAT = ("message_id", "parent_id", "text", "role")


def is_flat_tree(row: Mapping[str, Any]) -> bool:
    """Whether a row is one message of a tree, as OpenAssistant's tables have them."""
    return all(key in row for key in _FLAT)


def flat_trees(rows: Iterator[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    """Yield a row for each tree of a table with a row for each message, at the place of its first message.

    All messages are kept in memory, because a reply may stand before what it answers. A message whose parent is not in
    the table is yielded as a bad row.
    """
    nodes: dict[str, dict[str, Any]] = {}
    places: dict[str, str] = {}
    for where, row in rows:
        if not isinstance(row, Mapping) or not is_flat_tree(row):
            yield (
                where,
                row if isinstance(row, BadRow) else BadRow(f"no message of a tree; expected {', '.join(_FLAT)}"),
            )
        elif str(row["message_id"]) in nodes:
            yield where, BadRow(f"message {row['message_id']} stands twice")
        else:
            try:
                flags = {key: flag_of(row.get(key)) for key in ("deleted", "review_result")}  # a table has them as text
                nodes[str(row["message_id"])] = {**row, **flags, "rank": rank_of(row), "replies": []}
            except BadRow as error:
                yield where, error
                continue
            places[str(row["message_id"])] = where
    roots = [name for name, node in nodes.items() if node["parent_id"] in (None, "")]
    for node in nodes.values():
        if str(node["parent_id"]) in nodes:
            nodes[str(node["parent_id"])]["replies"].append(node)
    for name in nodes.keys() - _below([nodes[name] for name in roots]):
        yield places[name], BadRow(f"parent_id {nodes[name]['parent_id']!r} leads to no first message of this file")
    for name in roots:
        yield places[name], {"message_tree_id": name, "prompt": nodes[name]}


def _below(nodes: list[dict[str, Any]]) -> set[str]:
    """The names of messages and of all replies below them."""
    names: set[str] = set()
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        names.add(str(node["message_id"]))
        waiting += node["replies"]
    return names


def rank_of(node: Node) -> float | None:
    """The rank of a message, if it has one; a table has none as NaN, or as empty text."""
    value = node.get("rank")
    if value in (None, "") or value != value:
        return None
    rank = number_of(value, "'rank'")
    return int(rank) if rank == int(rank) else rank


def tree_chats(row: Mapping[str, Any]) -> list[Turns]:
    """The conversations of a tree along the top-ranked answers; deleted and rejected messages are dropped.

    Conversations that branch share their first turns; those answers have weight 0 in all but the first conversation,
    so that they are trained on once.
    """
    chats: list[Turns] = []
    seen: set[int] = set()
    for path in _paths(_root(row), []):
        messages = []
        for node in path:
            message = _turn(node)
            if message["role"] == "assistant":
                if id(node) in seen:
                    message["weight"] = 0
                seen.add(id(node))
            messages.append(message)
        chats.append(tuple(messages))
    if not chats:
        raise BadRow("the tree has no answer that was kept")
    return chats


def tree_rankings(row: Mapping[str, Any]) -> list[RankedAnswers]:
    """The rankings of a tree: messages with two or more ranked replies."""
    return [
        RankedAnswers(tuple(map(_turn, history)), tuple(_turn(reply)["content"] for reply in replies), ranks)
        for history, replies, ranks in ranked_replies(row)
    ]


def ranked_replies(row: Mapping[str, Any]) -> Iterator[tuple[list[Node], list[Node], tuple[float, ...]]]:
    """Yield each history of a tree that has two or more ranked replies, those replies, best first, and their ranks."""
    for history in _questions(_root(row), []):
        replies = _replies(history[-1], "assistant")
        ranks = tuple(rank for reply in replies if (rank := rank_of(reply)) is not None)
        if len(ranks) >= 2:
            yield history, replies[: len(ranks)], ranks  # those without a rank are the last ones


def _root(row: Mapping[str, Any]) -> Node:
    root = row["prompt"]
    if not isinstance(root, Mapping) or root.get("role") != "prompter":
        raise BadRow("'prompt' of a message tree must be the first message, with role 'prompter'")
    return root


def _turn(node: Node) -> Message:
    role = "assistant" if node["role"] == "assistant" else "user"
    return Message(role=role, content=check_text(node.get("text"), f"the text of message {node.get('message_id')}"))


def _replies(node: Node, role: str) -> list[Node]:
    """The replies that were neither deleted nor rejected, best first.

    Raises:
        BadRow: the replies are no list of messages, or a rank is no number.
    """
    found = node.get("replies")
    if found is not None and not (isinstance(found, list) and all(isinstance(reply, Mapping) for reply in found)):
        raise BadRow(f"'replies' of a message must be a list of messages, not {found!r:.60}")
    replies = [
        reply
        for reply in found or []
        if reply.get("role") == role and not reply.get("deleted") and reply.get("review_result") is not False
    ]
    ranks = {id(reply): rank_of(reply) for reply in replies}
    return sorted(replies, key=lambda reply: (ranks[id(reply)] is None, ranks[id(reply)] or 0))


def _paths(question: Node, history: list[Node]) -> Iterator[list[Node]]:
    """Yield the conversations that start at a question, along its best answer and each following question."""
    answers = _replies(question, "assistant")
    if not answers:
        return
    path = [*history, question, answers[0]]
    longer = [
        continuation for following in _replies(answers[0], "prompter") for continuation in _paths(following, path)
    ]
    yield from longer or [path]


def _questions(question: Node, history: list[Node]) -> Iterator[list[Node]]:
    """Yield each question of a tree with the messages before it."""
    path = [*history, question]
    yield path
    for answer in _replies(question, "assistant"):
        for following in _replies(answer, "prompter"):
            yield from _questions(following, [*path, answer])
