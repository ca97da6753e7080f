"""Parse a row of any shape into records."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from alignment.config.sections import Format
from alignment.data import formats, preferences, questions, votes
from alignment.data.chats import answered, chat_of
from alignment.data.importers import PassedOver
from alignment.data.keys import Changes, is_empty
from alignment.data.messages import (
    NOT_TRAINED,
    Chat,
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
    with_answer,
)
from alignment.data.openassistant import tree_chats, tree_rankings
from alignment.data.preferences import RankedAnswers, labeler_of, number_of
from alignment.data.records import Comparison, CompletionRating, Demonstration, Document, Prompt, Vote
from alignment.data.row_files import BadRow
from alignment.data.tool_calls import tools_of
from alignment.data.votes import VotedPair

Row = Mapping[str, Any]

_VOTED: dict[Format, Callable[[Row], VotedPair]] = {
    "arena": votes.arena,
    "strength": votes.strength,
    "safety": votes.safety,
    "webgpt": votes.two_scores,
    "reddit": votes.reddit,
    "vote": votes.voted,
}
_CHATS: tuple[Format, ...] = ("chat", "sharegpt")
_ANSWERED: tuple[Format, ...] = ("alpaca", "completion", "faq", "rag")
_COMPARISONS: tuple[Format, ...] = (
    "openai-preference", "tree", *_VOTED, "pandalm", "pair", "qa-feedback", "ranking", "scored", "alpaca",
)  # fmt: skip
_DEMONSTRATIONS: tuple[Format, ...] = (*_CHATS, *_ANSWERED, "self-instruct", "unpaired", *_COMPARISONS)
_EXAMPLES: tuple[Format, ...] = (*_DEMONSTRATIONS, "text")
_RATINGS: tuple[Format, ...] = ("rating", "unpaired")
_JUDGEMENTS: tuple[Format, ...] = (*_COMPARISONS, *_RATINGS)
_PROMPTS: tuple[Format, ...] = ("prompt", *_DEMONSTRATIONS, "rating")
LEARNED: dict[str, tuple[Format, ...]] = {"sft": _EXAMPLES, "reward": _JUDGEMENTS, "ppo": _PROMPTS}
"""The shapes that each stage learns from; the reward stage, of Alpaca rows, those with a list of outputs."""
JUDGED: tuple[Format, ...] = (
    "openai-preference",
    *_VOTED,
    "pandalm",
    "pair",
    "unpaired",
    "rating",
    "scored",
    "ranking",
)
"""The shapes that hold nothing but what somebody judged."""
_EVERYTHING: tuple[Changes, ...] = ("prompt", "answer", "media")
NO_TOOLS = "the reward model would not see the tools"


def to_examples(row: Row, format: Format = "auto") -> list[Demonstration | Document]:
    """The SFT examples of a row: demonstrations or a document."""
    return formats.read_as(row, format, _EXAMPLES, _EVERYTHING, _examples)


def to_demonstrations(row: Row, format: Format = "auto") -> list[Demonstration]:
    """The demonstrations of a row: several for Self-Instruct and OpenAssistant's trees, otherwise one.

    A pair yields its preferred completion, and a ranking its best one.
    """
    return formats.read_as(row, format, _DEMONSTRATIONS, _EVERYTHING, _demonstrations)


def to_demonstration(row: Row, format: Format = "auto") -> Demonstration:
    """The demonstration of a row that holds exactly one."""
    (demonstration,) = to_demonstrations(row, format)
    return demonstration


def _examples(shape: Format, row: Row, original: Row) -> list[Demonstration | Document]:
    return [Document(text_of(row, "text"))] if shape == "text" else [*_demonstrations(shape, row, original)]


def _demonstrations(shape: Format, row: Row, original: Row) -> list[Demonstration]:
    if shape == "tree":
        return [Demonstration(messages) for messages in tree_chats(row)]
    if shape == "self-instruct":
        return [Demonstration(with_answer(*instance)) for instance in questions.instances(row)]
    chat = _chat(shape, row, original)
    check_ends(chat.messages)
    if not any(turn.get("weight", 1) for turn in chat.messages if turn["role"] == "assistant"):
        raise PassedOver("every answer is marked as one not to train on")
    return [Demonstration(chat.messages, chat.tools, notes=chat.notes)]


def _chat(shape: Format, row: Row, original: Row) -> Chat:
    """The conversation that SFT learns from a row."""
    _check_marks(row)
    if shape in _CHATS:
        return answered(chat_of(row, shape_key(shape)))
    if shape == "unpaired":
        if not label_of(row):
            raise PassedOver("the answer is marked as a bad one (label: false)")
        return Chat(with_answer(*_rated(row)), tools_of(row))
    if shape in _ANSWERED:
        return _with_reasoning(row, Chat(_prefilled(*_question_and_answer(shape, row)), tools_of(row)))
    if shape == "qa-feedback":
        return Chat(with_answer(questions.qa_prompt(row), text_of(row, "gold")))
    if shape == "openai-preference":
        pair, asked = preferences.openai_pair(row)
        return Chat(with_answer(pair.prompt, pair.chosen), asked.tools)
    if shape == "pair":
        prompt, chosen, _ = preferences.pair_of(row)
        return Chat(with_answer(prompt, chosen), tools_of(row))
    if shape in ("ranking", "scored"):
        ranking = _ranking(shape, row, original)
        if len(set(ranking.ranks)) == 1:
            raise PassedOver("no answer was preferred")
        return Chat(with_answer(ranking.prompt, ranking.completions[ranking.ranks.index(min(ranking.ranks))]))
    return Chat(with_answer(*_preferred(_judged_pair(shape, row))))


def shape_key(shape: Format) -> str:
    """The key of a conversation by our name."""
    return "messages" if shape == "chat" else "conversations"


def _check_marks(row: Row) -> None:
    """Pass over a row that is marked as one not to train on.

    Raises:
        PassedOver: `train: false`, `loss: false` or `weight: 0`.
        BadRow: another value; a weight between 0 and 1 is not read.
    """
    for key in NOT_TRAINED:
        value = row.get(key)
        if is_empty(value) or str(value).lower() in ("1", "1.0", "true"):
            continue
        if str(value).lower() in ("0", "0.0", "false"):
            raise PassedOver(f"marked as one not to train on ({key}: {value})")
        raise BadRow(
            f"'{key}' is {value!r}; expected true or false: no row has a fraction of a loss (data.train weighs files)"
        )


def _question_and_answer(shape: Format, row: Row) -> tuple[Turns, str]:
    if shape == "rag":
        prompt, answer = questions.rag(row)
        if answer is None or answer == "":
            raise BadRow(
                "'answer' is empty; mark a question that the documents do not answer with `unanswerable: true`"
            )
        return prompt, check_text(answer, "'answer'")
    if shape == "alpaca":
        outputs = parsed(row["output"])
        if isinstance(outputs, list) and len(outputs) > 1:
            row = {**row, "output": outputs[0]}
        return questions.alpaca(row), text_of(row, "output")
    if shape == "faq":
        return questions.faq(row), text_of(row, "answer")
    return questions.prompt_of(row), completion_of(row, "completion")


def completion_of(row: Row, key: str) -> str:
    """An answer: a string, or turns that begin and end with the assistant's."""
    value = row.get(key)
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{") and holds_turns(parsed(value)):
        value = parsed(value)
    if not isinstance(value, list | dict):
        return text_of(row, key)
    turns = turns_in(list_of({key: value}, key), key)
    if turns[0]["role"] != "assistant" or turns[-1]["role"] != "assistant":
        raise BadRow(f"'{key}' must be one assistant message, or turns that begin and end with the assistant's")
    return answer_of(turns)


def _prefilled(prompt: Turns, answer: str) -> Turns:
    """The conversation; a prompt that ends with the beginning of the answer becomes part of it."""
    first, *rest = answer_turns(answer)
    if prompt[-1]["role"] == "assistant" and not prompt[-1].get("tool_calls"):
        return (*prompt[:-1], {**first, "content": prompt[-1]["content"] + first["content"]}, *rest)
    return (*prompt, first, *rest)


def _with_reasoning(row: Row, chat: Chat) -> Chat:
    reasoning = row.get("reasoning_content")
    if is_empty(reasoning):
        return chat
    *before, last = chat.messages
    last = {**last, "reasoning_content": check_text(reasoning, "'reasoning_content'")}
    return chat._replace(messages=(*before, last))


def _preferred(pair: Comparison) -> tuple[Turns, str]:
    if pair.target == 0.5:
        raise PassedOver("neither response was preferred")
    preferred = pair.first if pair.target > 0.5 else pair.second
    check_text(str(preferred), "the preferred response")
    return pair.prompt, preferred


# --- comparisons and ratings -----------------------------------------------------------------------------------------


def to_comparisons(row: Row, format: Format = "auto") -> list[Comparison]:
    """The comparisons of a row.

    A pair yields one, and so does a PandaLM row, with each annotator's vote. A ranking of K answers yields all K(K-1)/2
    pairs (InstructGPT, section 3.5), and so does each ranking of a tree. A QA-Feedback row yields its K(K-1)/2 pairs as
    they were judged, which need not be transitive. Equal completions of a ranking yield no pair.
    """
    pairs = formats.read_as(row, format, _COMPARISONS, _EVERYTHING, _all_pairs)
    return [pair for pair in pairs if pair.first != pair.second]


def to_judgements(row: Row, format: Format = "auto") -> list[Comparison] | list[CompletionRating]:
    """The reward model's examples of a row: comparisons, or the rating of one completion.

    Pairs of equal completions of a ranking are included: the reward stage drops and counts them.
    """
    return formats.read_as(row, format, _JUDGEMENTS, _EVERYTHING, _judgements)


def _judgements(shape: Format, row: Row, original: Row) -> list[Comparison] | list[CompletionRating]:
    if shape not in _RATINGS:
        return _all_pairs(shape, row, original)
    if tools_of(row):
        raise BadRow(f"ratings with tools are not read: {NO_TOOLS}")
    rating = float(label_of(row)) if shape == "unpaired" else number_of(row["rating"], "'rating'")
    return [CompletionRating(*_rated(row), rating, labeler_of(row))]


def to_comparison(row: Row) -> Comparison:
    """The comparison of a row with `chosen` and `rejected`: completions of `prompt`, or whole conversations."""
    (pair,) = formats.read_as(row, "pair", ["pair"], _EVERYTHING, _all_pairs)
    return pair


def _all_pairs(shape: Format, row: Row, original: Row) -> list[Comparison]:
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
        return list(_tournament_pairs(formats.qa_feedback(row)))
    if shape in ("pandalm", *_VOTED):
        return [_judged_pair(shape, row)]
    rankings = tree_rankings(row) if shape == "tree" else [_ranking(shape, row, original)]
    if not rankings:
        raise PassedOver("no answers of this tree were ranked")
    return [pair for ranking in rankings for pair in _ranked_pairs(ranking)]


def _ranking(shape: Format, row: Row, original: Row) -> RankedAnswers:
    if shape == "ranking":
        return preferences.ranking(row, original)
    if shape == "scored":
        return preferences.scored(row)
    outputs = parsed(row["output"])
    if not isinstance(outputs, list) or len(outputs) < 2:
        raise BadRow("an alpaca row, which this stage does not learn from unless its output is a list, the best first")
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


def _judged_pair(shape: Format, row: Row) -> Comparison:
    """The comparison of a row in which somebody chose one of two answers."""
    if shape == "pandalm":
        judged = preferences.pandalm(row)
        cast = tuple(Vote(choice, labeler=annotator) for annotator, choice in judged.votes)
        pair = Comparison(judged.prompt, judged.first, judged.second, cast)
    else:
        voted = _VOTED[shape](row)
        vote = Vote(voted.choice, voted.strength, voted.labeler)
        pair = Comparison(voted.prompt, voted.first, voted.second, (vote,), scores=voted.scores)
    if pair.first == pair.second:
        raise PassedOver("both responses are the same")
    return pair


def _tournament_pairs(tournament: formats.Tournament) -> Iterator[Comparison]:
    pairs = itertools.combinations(tournament.completions, 2)
    for (first, second), choice in zip(pairs, tournament.choices, strict=True):
        yield Comparison(tournament.prompt, first, second, (Vote(choice),), len(tournament.completions))


def _ranked_pairs(ranking: RankedAnswers) -> Iterator[Comparison]:
    size = len(ranking.completions)
    for (first, first_rank), (second, second_rank) in itertools.combinations(
        zip(ranking.completions, ranking.ranks, strict=True), 2
    ):
        choice: preferences.Choice = (
            "first" if first_rank < second_rank else "second" if second_rank < first_rank else "tie"
        )
        yield Comparison(ranking.prompt, first, second, (Vote(choice, labeler=ranking.labeler),), size)


def _rated(row: Row) -> tuple[Turns, str]:
    """The prompt and the answer that a rating or label is about; a conversation is rated by its last answer."""
    if "prompt" in row:
        prompt, answer = questions.prompt_of(row), completion_of(row, "completion")
        *before, last = _prefilled(prompt, answer)
        return tuple(before), answer_of((last,))
    chat = chat_of({**row, "messages": row["completion"]}, "messages")
    check_ends(chat.messages)
    return chat.messages[:-1], answer_of(chat.messages[-1:])


def label_of(row: Row) -> bool:
    """Whether an answer is marked as a good one."""
    said = str(row["label"]).lower().removesuffix(".0")
    if said not in ("true", "false", "1", "0"):
        raise BadRow(f"'label' is {row['label']!r}; expected true or false (a good answer or a bad one)")
    return said in ("true", "1")


# --- prompts ---------------------------------------------------------------------------------------------------------


def to_prompts(row: Row, format: Format = "auto") -> list[Prompt]:
    """The prompts of a row of any shape except `text`."""
    return formats.read_as(row, format, _PROMPTS, ("prompt", "media"), _prompts)


def _prompts(shape: Format, row: Row, original: Row) -> list[Prompt]:
    if shape == "tree":
        return [Prompt(messages[:-1]) for messages in tree_chats(row)]
    columns = {key: value for key, value in original.items() if key not in ("prompt", "messages", "instances")}
    if shape == "self-instruct":
        return [_checked(prompt, columns) for prompt, _ in questions.instances(row)]
    return [_checked(_prompt(shape, row), columns)]


def to_prompt(row: Row, format: Format = "auto") -> Prompt:
    """The prompt of a row that holds exactly one: the turns before the assistant's last turn."""
    (prompt,) = to_prompts(row, format)
    return prompt


def _checked(messages: Turns, columns: Row) -> Prompt:
    if not messages or messages[-1]["role"] != "user":
        raise BadRow("the prompt must end with the user's turn")
    return Prompt(messages, columns)


def _prompt(shape: Format, row: Row) -> Turns:
    if tools_of(row):
        raise BadRow("prompts with tools are for python -m sft only: reward models are not trained on tools")
    if shape in _CHATS:
        chat = chat_of(row, shape_key(shape))
        if chat.tools:
            raise BadRow("prompts with tools are for python -m sft only: reward models are not trained on tools")
        return chat.messages[:-1] if chat.messages[-1]["role"] == "assistant" else chat.messages
    if shape in _RATINGS:
        return questions.prompt_of(row) if "prompt" in row else _rated(row)[0]
    if shape == "alpaca":
        return questions.alpaca(row)
    if shape == "faq":
        return questions.faq(row)
    if shape == "rag":
        return questions.rag(row)[0]
    if shape == "pandalm":
        return preferences.pandalm_prompt(row)
    if shape == "pair":
        return preferences.pair_of(row)[0]
    if shape == "openai-preference":
        return preferences.openai_pair(row)[0].prompt
    if shape == "qa-feedback":
        return questions.qa_prompt(row)
    if shape in _VOTED:
        return _VOTED[shape](row).prompt
    return questions.prompt_of(row)
