"""OpenAssistant's message trees: chats along the best replies, and rankings of the replies to one message."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from alignment.data.formats import RankedAnswers, Turns, check_text
from alignment.data.row_files import BadRow
from alignment.templates.rendering import Message

Node = Mapping[str, Any]


def tree_chats(row: Mapping[str, Any]) -> list[Turns]:
    """The conversations of a tree, each answer the best ranked one; deleted and rejected messages are left out.

    Where a conversation branches, the turns that both have in common are trained on once: in the second, those
    answers have weight 0.
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
    """The messages of a tree whose replies were ranked, two or more of them."""
    return [
        RankedAnswers(
            tuple(_turn(node) for node in history),
            tuple(_turn(reply)["content"] for reply in ranked),
            tuple(reply["rank"] for reply in ranked),
        )
        for history, ranked in ranked_replies(row)
    ]


def ranked_replies(row: Mapping[str, Any]) -> Iterator[tuple[list[Node], list[Node]]]:
    """The messages of a tree that lead to two or more ranked replies, and those replies, the best first."""
    for history in _questions(_root(row), []):
        ranked = [reply for reply in _replies(history[-1], "assistant") if reply.get("rank") is not None]
        if len(ranked) >= 2:
            yield history, ranked


def _root(row: Mapping[str, Any]) -> Node:
    root = row["prompt"]
    if not isinstance(root, Mapping) or root.get("role") != "prompter":
        raise BadRow("'prompt' of a message tree must be the first message, with role 'prompter'")
    return root


def _turn(node: Node) -> Message:
    role = "assistant" if node["role"] == "assistant" else "user"
    return Message(role=role, content=check_text(node.get("text"), f"the text of message {node.get('message_id')}"))


def _replies(node: Node, role: str) -> list[Node]:
    """The replies that were kept, the best ranked first."""
    replies = [
        reply
        for reply in node.get("replies") or []
        if reply.get("role") == role and not reply.get("deleted") and reply.get("review_result") is not False
    ]
    return sorted(replies, key=lambda reply: (reply.get("rank") is None, reply.get("rank") or 0))


def _paths(question: Node, history: list[Node]) -> Iterator[list[Node]]:
    """The conversations from a question on, along its best answer and each question that follows."""
    answers = _replies(question, "assistant")
    if not answers:
        return
    path = [*history, question, answers[0]]
    longer = [found for following in _replies(answers[0], "prompter") for found in _paths(following, path)]
    yield from longer or [path]


def _questions(question: Node, history: list[Node]) -> Iterator[list[Node]]:
    """Each question of a tree with all that comes before it."""
    path = [*history, question]
    yield path
    for answer in _replies(question, "assistant"):
        for following in _replies(answer, "prompter"):
            yield from _questions(following, [*path, answer])
