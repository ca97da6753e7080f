"""What a row says of answers: comparisons of two, rankings, ratings of one."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from alignment.config.sections import Format
from alignment.data import preferences, questions, votes
from alignment.data.chats import chat_of
from alignment.data.importers import PassedOver
from alignment.data.keys import is_api_answer, is_empty
from alignment.data.messages import (
    Turns,
    answer_of,
    answer_turns,
    check_ends,
    check_text,
    holds_turns,
    list_of,
    parsed,
    text_of,
    turns_in,
)
from alignment.data.openassistant import tree_rankings
from alignment.data.preferences import Choice, RankedAnswers, Tournament, labeler_of, number_of
from alignment.data.records import Comparison, Vote
from alignment.data.row_files import BadRow
from alignment.data.tool_calls import tools_of
from alignment.data.votes import VotedPair

Row = Mapping[str, Any]

VOTED: dict[Format, Callable[[Row], VotedPair]] = {
    "arena": votes.arena,
    "strength": votes.strength,
    "safety": votes.safety,
    "webgpt": votes.two_scores,
    "reddit": votes.reddit,
    "vote": votes.voted,
}
NO_TOOLS = "the reward model would not see the tools"


def all_pairs(shape: Format, row: Row, original: Row) -> list[Comparison]:
    if tools_of(row):
        raise BadRow(f"comparisons with tools are not read: {NO_TOOLS}")
    if shape == "pair":
        return [_pair(row)]
    if shape == "openai-preference":
        pair, asked = preferences.openai_pair(row)
        if asked.tools:
            raise BadRow(f"comparisons with tools are not read: {NO_TOOLS}")
        return [_compared(*pair)]
    if shape == "qa-feedback":
        return list(_tournament_pairs(preferences.qa_feedback(row)))
    if shape in ("pandalm", *VOTED):
        return [judged_pair(shape, row)]
    rankings = tree_rankings(row) if shape == "tree" else [ranking(shape, row, original)]
    if not rankings:
        raise PassedOver("no answers of this tree were ranked")
    return [pair for ranking in rankings for pair in _ranked_pairs(ranking)]


def ranking(shape: Format, row: Row, original: Row) -> RankedAnswers:
    if shape == "ranking":
        return preferences.ranking(row, original)
    if shape == "scored":
        return preferences.scored(row)
    outputs = row["output"]
    if not isinstance(outputs, list) or len(outputs) < 2:
        raise BadRow("an alpaca row, which is read here only if its output is a list, the best first")
    texts = tuple(check_text(text, f"output {index}") for index, text in enumerate(outputs, 1))
    return RankedAnswers(questions.alpaca(row), texts, tuple(range(1, len(texts) + 1)))


def _pair(row: Row) -> Comparison:
    scores = [row.get(key) for key in ("score_chosen", "score_rejected")]
    given = None
    if not any(is_empty(score) for score in scores):
        given = tuple(
            number_of(score, f"the score of '{key}'") for score, key in zip(scores, ("chosen", "rejected"), strict=True)
        )
    margin = None if is_empty(row.get("margin")) else number_of(row["margin"], "'margin'")
    if margin is not None and margin < 0:
        raise BadRow(f"'margin' is {margin:g}: the rejected answer would be the better one; swap them, or take it out")
    vote = Vote("first", labeler=labeler_of(row))
    return _compared(*preferences.pair_of(row), votes=(vote,), margin=margin, scores=given)


def _compared(prompt: Turns, chosen: str, rejected: str, **more: Any) -> Comparison:
    if chosen == rejected:
        raise BadRow("'chosen' and 'rejected' are the same")
    if chosen.strip() == rejected.strip():
        raise BadRow("'chosen' and 'rejected' differ in white space alone, which the templates trim")
    return Comparison(prompt, chosen, rejected, **more)


def judged_pair(shape: Format, row: Row) -> Comparison:
    """The comparison of a row in which somebody chose one of two answers."""
    if shape == "pandalm":
        judged = preferences.pandalm(row)
        cast = tuple(Vote(choice, labeler=annotator) for annotator, choice in judged.votes)
        pair = Comparison(judged.prompt, judged.first, judged.second, cast)
    else:
        voted = VOTED[shape](row)
        vote = Vote(voted.choice, voted.strength, voted.labeler)
        pair = Comparison(voted.prompt, voted.first, voted.second, (vote,), scores=voted.scores)
    if pair.first == pair.second:
        raise PassedOver("both responses are the same")
    return pair


def _tournament_pairs(tournament: Tournament) -> Iterator[Comparison]:
    pairs = itertools.combinations(tournament.completions, 2)
    for (first, second), choice in zip(pairs, tournament.choices, strict=True):
        yield Comparison(tournament.prompt, first, second, (Vote(choice),), len(tournament.completions))


def _ranked_pairs(ranking: RankedAnswers) -> Iterator[Comparison]:
    size = len(ranking.completions)
    for (first, first_rank), (second, second_rank) in itertools.combinations(
        zip(ranking.completions, ranking.ranks, strict=True), 2
    ):
        choice: Choice = "first" if first_rank < second_rank else "second" if second_rank < first_rank else "tie"
        yield Comparison(ranking.prompt, first, second, (Vote(choice, labeler=ranking.labeler),), size)


def rated(row: Row) -> tuple[Turns, str]:
    """The prompt and the answer that a rating or label is about; a conversation is rated by its last answer."""
    if "prompt" in row:
        prompt, answer = questions.prompt_of(row), completion_of(row, "completion")
        *before, last = prefilled(prompt, answer)
        return tuple(before), answer_of((last,))
    chat = chat_of({**row, "messages": row["completion"]}, "messages")
    check_ends(chat.messages)
    return chat.messages[:-1], answer_of(chat.messages[-1:])


_GOOD = ("true", "1", "good", "desirable", "acceptable", "accepted")
_BAD = ("false", "0", "bad", "undesirable", "unacceptable", "rejected")


def label_of(row: Row, original: Row) -> bool:
    """Whether an answer is marked as a good one.

    Args:
        original: the row with its own names; a number under `quality` is no label, for 1 may be the lowest of a scale.
    """
    said = str(row["label"]).strip().lower().removesuffix(".0")
    is_quality = "quality" in original and original["quality"] is row["label"]
    if said not in (*_GOOD, *_BAD) or (is_quality and said in ("0", "1")):
        rating = "; --column rating=quality reads numbers as ratings" if is_quality else ""
        raise BadRow(f"'label' is {row['label']!r}; expected true or false (a good answer or a bad one){rating}")
    return said in _GOOD


def completion_of(row: Row, key: str) -> str:
    """An answer: a string, or turns that begin and end with the assistant's."""
    value = row.get(key)
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{") and holds_turns(parsed(value)):
        value = parsed(value)
    value = _from_api(value)
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str):  # doccano's answers to a text
        value = value[0]
    if not isinstance(value, list | dict):
        return text_of({**row, key: value}, key) if key in row else text_of(row, key)
    turns = turns_in(list_of({key: value}, key), key)
    if turns[0]["role"] != "assistant" or turns[-1]["role"] != "assistant":
        raise BadRow(f"'{key}' must be one assistant message, or turns that begin and end with the assistant's")
    return answer_of(turns)


_CUT = ("length", "max_tokens", "content_filter", "error")


def _from_api(value: Any) -> Any:
    """The message in the answer of a chat API, an object with `choices` or these alone; any other value as it is.

    Raises:
        PassedOver: the answer was cut off, or filtered; BadRow: there are several.
    """
    found = parsed(value) if isinstance(value, str) and '"choices"' in value else value
    choices = found.get("choices") if isinstance(found, Mapping) else found
    if isinstance(found, Mapping) and not is_empty(found.get("error")) and not found.keys() & {"role", "content"}:
        raise PassedOver("the request failed: it has an 'error' in place of an answer")
    if not is_api_answer(choices):
        return value
    if len(choices) > 1:
        raise BadRow(f"{len(choices)} answers in 'choices'; name one with --column completion=KEY.choices.0.message")
    reason = choices[0].get("finish_reason")
    if reason in _CUT:
        raise PassedOver(f"the answer was cut off or filtered (finish_reason: {reason})")
    return choices[0]["message"]


def prefilled(prompt: Turns, answer: str) -> Turns:
    """The conversation; a prompt that ends with the beginning of the answer becomes part of it."""
    first, *rest = answer_turns(answer)
    if prompt[-1]["role"] == "assistant" and not prompt[-1].get("tool_calls"):
        return (*prompt[:-1], {**first, "content": prompt[-1]["content"] + first["content"]}, *rest)
    return (*prompt, first, *rest)
