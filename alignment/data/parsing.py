"""Parse a row of any format into records."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any

from alignment.config.sections import Format
from alignment.data import formats
from alignment.data.importers import PassedOver
from alignment.data.messages import Chat, check_text, messages_of, split_answer, text_of, tools_of, with_answer
from alignment.data.openassistant import tree_chats, tree_rankings
from alignment.data.records import Comparison, CompletionRating, Demonstration, Document, Prompt, Vote
from alignment.data.row_files import BadRow
from alignment.templates.rendering import Message

_DEMONSTRATIONS: tuple[Format, ...] = (
    "chat", "sharegpt", "tree", "self-instruct", "pandalm", "alpaca", "completion", "pair", "ranking", "qa-feedback",
    "rag", "faq",
)  # fmt: skip
_COMPARISONS: tuple[Format, ...] = ("pair", "ranking", "tree", "pandalm", "qa-feedback")
_PROMPTS: tuple[Format, ...] = ("prompt", *_DEMONSTRATIONS, "rating")


def to_examples(row: Mapping[str, Any], format: Format = "auto") -> list[Demonstration | Document]:
    """The SFT examples of a row: demonstrations or a document."""
    shape = formats.shape_of(row, format, (*_DEMONSTRATIONS, "text"))
    return [Document(text_of(row, "text"))] if shape == "text" else list(to_demonstrations(row, format))


def to_demonstrations(row: Mapping[str, Any], format: Format = "auto") -> list[Demonstration]:
    """The demonstrations of a row: several for Self-Instruct and OpenAssistant's trees, otherwise one.

    A pair yields its preferred completion, and a ranking its best one.
    """
    shape = formats.shape_of(row, format, _DEMONSTRATIONS)
    if shape == "tree":
        return [Demonstration(messages) for messages in tree_chats(row)]
    if shape == "self-instruct":
        return [Demonstration(with_answer(*instance)) for instance in formats.instances(row)]
    return [to_demonstration(row, shape)]


def to_demonstration(row: Mapping[str, Any], format: Format = "auto") -> Demonstration:
    """The demonstration of a row whose format holds exactly one."""
    shape = formats.shape_of(
        row, format, [shape for shape in _DEMONSTRATIONS if shape not in ("tree", "self-instruct")]
    )
    if shape in ("chat", "sharegpt"):
        chat = _chat(row, shape)
        split_answer(chat.messages)
        if not any(turn.get("weight", 1) for turn in chat.messages if turn["role"] == "assistant"):
            raise BadRow("every assistant message has weight 0, so there is nothing to learn")
        return Demonstration(chat.messages, chat.tools)
    if shape == "alpaca":
        prompt = formats.alpaca_prompt(text_of(row, "instruction"), row.get("input"))
        answer = text_of(row, "output")
    elif shape == "completion":
        prompt, answer = formats.prompt_turns(row), formats.completion_of(row, "completion")
    elif shape == "pair":
        prompt, answer, _ = formats.pair_of(row)
    elif shape == "ranking":
        ranking = formats.ranking(row)
        prompt, answer = ranking.prompt, ranking.completions[ranking.ranks.index(min(ranking.ranks))]
    elif shape == "pandalm":
        prompt, answer = _preferred(_judged_pair(row))
    elif shape == "qa-feedback":
        prompt, answer = formats.qa_prompt(row), text_of(row, "gold")
    elif shape == "rag":
        prompt, rag_answer = formats.rag(row)
        if rag_answer is None or rag_answer == "":
            raise BadRow(
                "'answer' is empty; mark a question that the documents do not answer with `unanswerable: true`"
            )
        answer = check_text(rag_answer, "'answer'")
    else:
        prompt = (Message(role="user", content=text_of(row, "question")),)
        answer = text_of(row, "answer")
    return Demonstration(with_answer(prompt, answer))


def _preferred(pair: Comparison) -> tuple[tuple[Message, ...], str]:
    if pair.target == 0.5:
        raise PassedOver("neither response was preferred")
    return pair.prompt, check_text(pair.first if pair.target > 0.5 else pair.second, "the preferred response")


def _chat(row: Mapping[str, Any], shape: Format) -> Chat:
    if shape == "sharegpt":
        return formats.sharegpt(row)
    return Chat(messages_of(row, "messages"), tools_of(row))


def to_comparisons(row: Mapping[str, Any], format: Format = "auto") -> list[Comparison]:
    """The comparisons of a row.

    A pair yields one, and so does a PandaLM row, with each annotator's vote. A ranking of K answers yields all K(K-1)/2
    pairs (InstructGPT, section 3.5), and so does each ranking of a tree. A QA-Feedback row yields its K(K-1)/2 pairs as
    they were judged, which need not be transitive. Equal completions of a ranking yield no pair.
    """
    return [pair for pair in _all_pairs(row, format) if pair.first != pair.second]


def _all_pairs(row: Mapping[str, Any], format: Format) -> list[Comparison]:
    shape = formats.shape_of(row, format, _COMPARISONS)
    if tools_of(row):
        raise BadRow("comparisons with tools are not read: the reward model would not see the tools")
    if shape == "pair":
        return [to_comparison(row)]
    if shape == "pandalm":
        return [_judged_pair(row)]
    if shape == "qa-feedback":
        return list(_tournament_pairs(formats.qa_feedback(row)))
    rankings = tree_rankings(row) if shape == "tree" else [formats.ranking(row)]
    if not rankings:
        raise PassedOver("no answers of this tree were ranked")
    return [pair for ranking in rankings for pair in _ranked_pairs(ranking)]


def to_judgements(row: Mapping[str, Any], format: Format = "auto") -> list[Comparison] | list[CompletionRating]:
    """The reward model's examples of a row: comparisons, or the rating of one completion.

    Pairs of equal completions of a ranking are included: the reward stage drops and counts them.
    """
    if formats.shape_of(row, format, (*_COMPARISONS, "rating")) != "rating":
        return _all_pairs(row, format)
    value, labeler = row["rating"], row.get("labeler")
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise BadRow(f"'rating' must be a number, found {value!r}")
    if labeler is not None and not isinstance(labeler, str):
        raise BadRow(f"'labeler' must be a string, found {type(labeler).__name__}")
    return [
        CompletionRating(formats.prompt_turns(row), formats.completion_of(row, "completion"), float(value), labeler)
    ]


def to_comparison(row: Mapping[str, Any]) -> Comparison:
    """The comparison of a row with `chosen` and `rejected`: completions of `prompt`, or whole conversations."""
    formats.shape_of(row, "pair", ["pair"])
    prompt, first, second = formats.pair_of(row)
    if first == second:
        raise BadRow("'chosen' and 'rejected' are the same")
    return Comparison(prompt, first, second)


def _judged_pair(row: Mapping[str, Any]) -> Comparison:
    judged = formats.pandalm(row)
    if judged.first == judged.second:
        raise PassedOver("both responses are the same")
    votes = tuple(Vote(choice, labeler=annotator) for annotator, choice in judged.votes)
    return Comparison(judged.prompt, judged.first, judged.second, votes)


def _tournament_pairs(tournament: formats.Tournament) -> Iterator[Comparison]:
    pairs = itertools.combinations(tournament.completions, 2)
    for (first, second), choice in zip(pairs, tournament.choices, strict=True):
        yield Comparison(tournament.prompt, first, second, (Vote(choice),), len(tournament.completions))


def _ranked_pairs(ranking: formats.RankedAnswers) -> Iterator[Comparison]:
    size = len(ranking.completions)
    for (first, first_rank), (second, second_rank) in itertools.combinations(
        zip(ranking.completions, ranking.ranks, strict=True), 2
    ):
        vote = Vote("first" if first_rank < second_rank else "second" if second_rank < first_rank else "tie")
        yield Comparison(ranking.prompt, first, second, (vote,), size)


def to_prompts(row: Mapping[str, Any], format: Format = "auto") -> list[Prompt]:
    """The prompts of a row of any format except `text`."""
    shape = formats.shape_of(row, format, _PROMPTS)
    if shape == "tree":
        return [Prompt(messages[:-1]) for messages in tree_chats(row)]
    if shape == "self-instruct":
        columns = {key: value for key, value in row.items() if key != "instances"}
        return [Prompt(prompt, columns) for prompt, _ in formats.instances(row)]
    return [to_prompt(row, shape)]


def to_prompt(row: Mapping[str, Any], format: Format = "auto") -> Prompt:
    """The prompt of a row whose format holds exactly one: the turns before the assistant's last turn."""
    shape = formats.shape_of(row, format, [shape for shape in _PROMPTS if shape not in ("tree", "self-instruct")])
    if shape in ("chat", "sharegpt"):
        messages, tools = _chat(row, shape)
        if tools:
            raise BadRow("prompts with tools are for python -m sft only: reward models are not trained on tools")
        messages = messages[:-1] if messages[-1]["role"] == "assistant" else messages
    elif shape == "pandalm":
        messages = formats.pandalm_prompt(row)
    elif shape == "alpaca":
        messages = formats.alpaca_prompt(text_of(row, "instruction"), row.get("input"))
    elif shape == "pair":
        messages, _, _ = formats.pair_of(row)
    elif shape == "qa-feedback":
        messages = formats.qa_prompt(row)
    elif shape == "rag":
        messages, _ = formats.rag(row)
    elif shape == "faq":
        messages = (Message(role="user", content=text_of(row, "question")),)
    else:
        messages = formats.prompt_turns(row)
    if not messages or messages[-1]["role"] != "user":
        raise BadRow("the prompt must end with the user's turn")
    return Prompt(messages, {key: value for key, value in row.items() if key not in ("prompt", "messages")})
