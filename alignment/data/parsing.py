"""One row to records, by its format."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any

from alignment.config.sections import Format
from alignment.data import formats
from alignment.data.importers import PassedOver
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
    """What SFT learns from a row: demonstrations, or a text."""
    shape = formats.shape_of(row, format, (*_DEMONSTRATIONS, "text"))
    return [Document(formats.text_of(row, "text"))] if shape == "text" else list(to_demonstrations(row, format))


def to_demonstrations(row: Mapping[str, Any], format: Format = "auto") -> list[Demonstration]:
    """Alpaca, chat, prompt and completion, question and answer, the side of a pair that most chose, the best of a
    ranking: one each. Self-instruct's instances and OpenAssistant's trees: as many as they hold."""
    shape = formats.shape_of(row, format, _DEMONSTRATIONS)
    if shape == "tree":
        return [Demonstration(messages) for messages in tree_chats(row)]
    if shape == "self-instruct":
        return [Demonstration(formats.with_answer(*instance)) for instance in formats.instances(row)]
    return [to_demonstration(row, shape)]


def to_demonstration(row: Mapping[str, Any], format: Format = "auto") -> Demonstration:
    """The demonstration of a row that holds one."""
    shape = formats.shape_of(
        row, format, [shape for shape in _DEMONSTRATIONS if shape not in ("tree", "self-instruct")]
    )
    if shape in ("chat", "sharegpt"):
        chat = _chat(row, shape)
        formats.split_answer(chat.messages)
        if not any(turn.get("weight", 1) for turn in chat.messages if turn["role"] == "assistant"):
            raise BadRow("every assistant message has weight 0, so there is nothing to learn")
        return Demonstration(chat.messages, chat.tools)
    if shape == "alpaca":
        prompt = formats.alpaca_prompt(formats.text_of(row, "instruction"), row.get("input"))
        answer = formats.text_of(row, "output")
    elif shape == "completion":
        prompt, answer = formats.prompt_turns(row), formats.completion_of(row, "completion")
    elif shape == "pair":
        prompt, answer, _ = formats.pair_of(row)
    elif shape == "ranking":
        found = formats.ranking(row)
        prompt, answer = found.prompt, found.completions[found.ranks.index(min(found.ranks))]
    elif shape == "pandalm":
        prompt, answer = _preferred(_judged_pair(row))
    elif shape == "qa-feedback":
        prompt, answer = formats.qa_prompt(row), formats.text_of(row, "gold")
    elif shape == "rag":
        prompt, found_answer = formats.rag(row)
        if found_answer is None or found_answer == "":
            raise BadRow(
                "'answer' is empty; mark a question that the documents do not answer with `unanswerable: true`"
            )
        answer = formats.check_text(found_answer, "'answer'")
    else:
        prompt = (Message(role="user", content=formats.text_of(row, "question")),)
        answer = formats.text_of(row, "answer")
    return Demonstration(formats.with_answer(prompt, answer))


def _preferred(pair: Comparison) -> tuple[tuple[Message, ...], str]:
    if pair.target == 0.5:
        raise PassedOver("neither response was preferred")
    return pair.prompt, formats.check_text(pair.first if pair.target > 0.5 else pair.second, "the preferred response")


def _chat(row: Mapping[str, Any], shape: Format) -> formats.Chat:
    if shape == "sharegpt":
        return formats.sharegpt(row)
    return formats.Chat(formats.messages_of(row, "messages"), formats.tools_of(row))


def to_comparisons(row: Mapping[str, Any], format: Format = "auto") -> list[Comparison]:
    """A pair: one. A ranking of K answers, or each of a tree's: all K(K-1)/2 pairs (InstructGPT, section 3.5).

    PandaLM's row: one, with a vote of each annotator. QA-Feedback's: the K(K-1)/2 pairs as they were judged, which is
    not always a ranking. Equal completions of a ranking make no pair.
    """
    return [pair for pair in _compared(row, format) if pair.first != pair.second]


def _compared(row: Mapping[str, Any], format: Format) -> list[Comparison]:
    shape = formats.shape_of(row, format, _COMPARISONS)
    if formats.tools_of(row):
        raise BadRow("comparisons with tools are not read: the reward model would not see the tools")
    if shape == "pair":
        return [to_comparison(row)]
    if shape == "pandalm":
        return [_judged_pair(row)]
    if shape == "qa-feedback":
        return list(_judged_pairs(formats.qa_feedback(row)))
    rankings = tree_rankings(row) if shape == "tree" else [formats.ranking(row)]
    if not rankings:
        raise PassedOver("no answers of this tree were ranked")
    return [pair for ranking in rankings for pair in _ranked_pairs(ranking)]


def to_judgements(row: Mapping[str, Any], format: Format = "auto") -> list[Comparison] | list[CompletionRating]:
    """What the reward stage learns from a row: comparisons, or the rating of one completion.

    Pairs of equal completions of a ranking are among them: the stage counts what it leaves out.
    """
    if formats.shape_of(row, format, (*_COMPARISONS, "rating")) != "rating":
        return _compared(row, format)
    value, labeler = row["rating"], row.get("labeler")
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise BadRow(f"'rating' must be a number, found {value!r}")
    if labeler is not None and not isinstance(labeler, str):
        raise BadRow(f"'labeler' must be a text, found {type(labeler).__name__}")
    return [
        CompletionRating(formats.prompt_turns(row), formats.completion_of(row, "completion"), float(value), labeler)
    ]


def to_comparison(row: Mapping[str, Any]) -> Comparison:
    """A pair: prompt, chosen, rejected; or whole transcripts or conversations under chosen and rejected."""
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


def _judged_pairs(judged: formats.Tournament) -> Iterator[Comparison]:
    pairs = itertools.combinations(judged.completions, 2)
    for (first, second), choice in zip(pairs, judged.choices, strict=True):
        yield Comparison(judged.prompt, first, second, (Vote(choice),), len(judged.completions))


def _ranked_pairs(ranking: formats.RankedAnswers) -> Iterator[Comparison]:
    size = len(ranking.completions)
    for (first, one), (second, other) in itertools.combinations(
        zip(ranking.completions, ranking.ranks, strict=True), 2
    ):
        vote = Vote("first" if one < other else "second" if other < one else "tie")
        yield Comparison(ranking.prompt, first, second, (vote,), size)


def to_prompts(row: Mapping[str, Any], format: Format = "auto") -> list[Prompt]:
    """The prompts of any row but a text."""
    shape = formats.shape_of(row, format, _PROMPTS)
    if shape == "tree":
        return [Prompt(messages[:-1]) for messages in tree_chats(row)]
    if shape == "self-instruct":
        columns = {key: value for key, value in row.items() if key != "instances"}
        return [Prompt(prompt, columns) for prompt, _ in formats.instances(row)]
    return [to_prompt(row, shape)]


def to_prompt(row: Mapping[str, Any], format: Format = "auto") -> Prompt:
    """The prompt of a row that holds one: the conversation before the assistant's last turn."""
    shape = formats.shape_of(row, format, [shape for shape in _PROMPTS if shape not in ("tree", "self-instruct")])
    if shape in ("chat", "sharegpt"):
        messages, tools = _chat(row, shape)
        if tools:
            raise BadRow("prompts with tools are for python -m sft alone: no reward model has seen any")
        messages = messages[:-1] if messages[-1]["role"] == "assistant" else messages
    elif shape == "pandalm":
        messages = formats.pandalm_prompt(row)
    elif shape == "alpaca":
        messages = formats.alpaca_prompt(formats.text_of(row, "instruction"), row.get("input"))
    elif shape == "pair":
        messages, _, _ = formats.pair_of(row)
    elif shape == "qa-feedback":
        messages = formats.qa_prompt(row)
    elif shape == "rag":
        messages, _ = formats.rag(row)
    elif shape == "faq":
        messages = (Message(role="user", content=formats.text_of(row, "question")),)
    else:
        messages = formats.prompt_turns(row)
    if not messages or messages[-1]["role"] != "user":
        raise BadRow("the prompt must end with the user's turn")
    return Prompt(messages, {key: value for key, value in row.items() if key not in ("prompt", "messages")})
