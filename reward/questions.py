"""What the reward model learns from, as token ids: a prompt, the completions to it, and which of two were preferred."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean, pstdev
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from alignment.config.sections import TooLong
from alignment.data.records import Comparison, Rating, Vote
from alignment.data.row_files import DataError
from alignment.data.trimming import shortest, trim_prompt
from alignment.templates.rendering import Encoded, Message, encode_conversation, encode_prompt

MAX_COMPLETIONS = 9
"""Of one question; more are parted, since all of a question's completions are in one forward."""
KEPT = 1024
"""Encoded answers kept for the next comparisons of a ranking; all of them would be a second copy of the data."""


@dataclass(frozen=True)
class JudgedPair:
    """Two completions of a question. `first` and `second` are places in its `completion_ids`."""

    first: int
    second: int
    target: float
    """Probability that `first` is the better one, in [0, 1]."""
    weight: float
    margin: float
    """By how much the score of `first` should be ahead of that of `second`; negative where `second` is preferred."""
    comparison: Comparison
    """The votes behind it."""


@dataclass(frozen=True)
class Question:
    """A prompt with its distinct completions; the whole of one is `prompt_ids + completion_ids[k]`, and ends in EOS."""

    prompt_ids: list[int]
    completion_ids: list[list[int]]
    pairs: tuple[JudgedPair, ...]
    ratings: tuple[float | None, ...] = ()
    """For `objective: regression`: the number that each completion's score is drawn to, None where there is none."""
    rating_weights: tuple[float, ...] = ()
    """How many ratings each of those is the mean of."""

    @property
    def lengths(self) -> list[int]:
        """Tokens of each whole sequence."""
        return [len(self.prompt_ids) + len(ids) for ids in self.completion_ids]

    @property
    def sequences(self) -> list[list[int]]:
        """Each whole sequence."""
        return [self.prompt_ids + ids for ids in self.completion_ids]


class Weighed(NamedTuple):
    """What the votes on a pair ask of its scores; see `JudgedPair`."""

    target: float
    weight: float
    margin: float


def weigh(comparison: Comparison, margin: float, reliability: Mapping[str, float] | None) -> Weighed:
    """Votes as target, weight and margin.

    Args:
        margin: that of a vote of strength 3; one of strength s asks for s/3 of it, a tie or one without strength for
            none. Votes against the preferred side lower it, to 0 at most.
        reliability: what a vote of each labeler counts; None, or a labeler who is not in it: 1.
    """
    counted = [(vote, 1.0 if reliability is None else _reliability(vote, reliability)) for vote in comparison.votes]
    total = sum(weight for _, weight in counted)
    if total <= 0:
        return Weighed(0.5, 0.0, 0.0)
    lead = sum(weight * _SIDE[vote.choice] for vote, weight in counted) / total
    asked = sum(weight * _SIDE[vote.choice] * (vote.strength or 0) / 3 for vote, weight in counted) / total
    signed = margin * (max(asked, 0.0) if lead > 0 else min(asked, 0.0) if lead < 0 else 0.0)
    per_vote = comparison.weight / len(comparison.votes)
    return Weighed((1 + lead) / 2, total * per_vote, signed)


_SIDE = {"first": 1, "second": -1, "tie": 0}


def _reliability(vote: Vote, reliability: Mapping[str, float]) -> float:
    return reliability.get(vote.labeler, 1.0) if vote.labeler is not None else 1.0


@dataclass
class _Group:
    """The judgements of one rendered prompt. Completions are told apart by their ids."""

    prompt_ids: list[int]
    prompt: tuple[Message, ...]
    least: int | None = None
    """Tokens of the prompt when it is trimmed as far as it can be; None: not counted yet."""
    completions: dict[tuple[int, ...], None] = field(default_factory=dict)
    pairs: list[tuple[tuple[int, ...], tuple[int, ...], Comparison]] = field(default_factory=list)
    ratings: dict[tuple[int, ...], list[float]] = field(default_factory=dict)


Note = Callable[[Comparison | Rating, Encoded, Encoded | None], None]


class QuestionBuilder:
    """Renders judgements and gathers those of one prompt.

    Args:
        note: is told of each comparison (or answer that was rated) all tokens of its longer side, and those
            that are left (None: it is left out as too long).
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        too_long: TooLong = "trim_prompt",
        note: Note = lambda record, encoded, fitted: None,
    ) -> None:
        self._tokenizer, self._max_length, self._too_long, self._note = tokenizer, max_length, too_long, note
        self._groups: dict[tuple[int, ...], _Group] = {}
        self._by_prompt: dict[str, _Group] = {}
        self._encoded: dict[tuple[int, str], Encoded] = {}
        self.left_out: Counter[str] = Counter(too_long=0, identical=0, prompts_cut=0)
        """`too_long`: a completion alone exceeds `max_length`. `identical`: both sides have the same tokens, so the
        loss would be ln 2 whatever the model says. `prompts_cut`: questions that lost the oldest part of the prompt."""

    def add(self, comparison: Comparison, derived: bool = False) -> None:
        """Take a comparison in; one that is `derived` from two ratings is counted and noted as those."""
        group = self._group(comparison.prompt)
        sides = [self._encode(group, comparison.prompt, text) for text in (comparison.first, comparison.second)]
        fits = [self._fit(group, side) for side in sides]
        if not derived:
            longer = max(zip(sides, fits, strict=True), key=lambda side: len(side[0].input_ids))
            self._note(comparison, longer[0], longer[1] if all(fits) else None)
        first, second = (tuple(side.input_ids) for side in sides)
        if not all(fits):
            self.left_out["too_long"] += not derived
        elif first == second:
            self.left_out["identical"] += 1
        else:
            group.completions |= dict.fromkeys((first, second))
            group.pairs.append((first, second, comparison))

    def rate(self, rating: Rating) -> None:
        """Take a rating in, as a number."""
        group = self._group(rating.prompt)
        whole = self._encode(group, rating.prompt, rating.completion)
        fits = self._fit(group, whole)
        if tuple(whole.input_ids) not in group.ratings:  # an answer that many people rated is no copy in the file
            self._note(rating, whole, fits)
        if fits is None:
            self.left_out["too_long"] += 1
            return
        group.completions[tuple(whole.input_ids)] = None
        group.ratings.setdefault(tuple(whole.input_ids), []).append(rating.rating)

    def questions(self, weigh: Callable[[Comparison], Weighed]) -> list[Question]:
        """All of it, in the order in which prompts came; pairs that weigh nothing are gone."""
        found: list[Question] = []
        for group in self._groups.values():
            for part in _parts(group):
                found += self._question(part, weigh)
        return found

    def _group(self, prompt: tuple[Message, ...]) -> _Group:
        key = json.dumps(prompt)
        if key not in self._by_prompt:
            ids = encode_prompt(self._tokenizer, prompt)
            self._by_prompt[key] = self._groups.setdefault(tuple(ids), _Group(ids, prompt))
        return self._by_prompt[key]

    def _encode(self, group: _Group, prompt: tuple[Message, ...], text: str) -> Encoded:
        key = (id(group), text)
        if len(self._encoded) >= KEPT and key not in self._encoded:
            self._encoded.clear()
        if key not in self._encoded:
            self._encoded[key] = encode_conversation(
                self._tokenizer, [*prompt, Message(role="assistant", content=text)]
            )
        return self._encoded[key]

    def _fit(self, group: _Group, whole: Encoded) -> Encoded | None:
        """The newest `max_length` tokens, None where they are left out: the prompt is trimmed once for all its answers
        (`_question`), if it can be trimmed far enough for this one."""
        surplus = len(whole.input_ids) - self._max_length
        if surplus <= 0:
            return whole
        if self._too_long != "trim_prompt":
            return None
        if group.least is None:
            group.least = len(encode_prompt(self._tokenizer, shortest(group.prompt)))
        if group.least > len(group.prompt_ids) - surplus:
            return None
        return Encoded(whole.input_ids[surplus:], whole.loss_mask[surplus:])

    def _question(self, group: _Group, weigh: Callable[[Comparison], Weighed]) -> list[Question]:
        sequences = list(group.completions)
        if not sequences:
            return []
        # No token spans the border of prompt and answer (alignment.templates.rendering), but a template may render more
        # between # the two than its generation prompt says; what all have in common is then the prompt.
        border = min(_common(group.prompt_ids, ids) for ids in sequences)
        border = min(border, min(map(len, sequences)) - 1)
        tails = [list(ids[border:]) for ids in sequences]
        prompt = self._trimmed(group, border, self._max_length - max(map(len, tails)))
        self.left_out["prompts_cut"] += len(prompt) < border
        places = {ids: number for number, ids in enumerate(sequences)}
        pairs = [
            JudgedPair(places[first], places[second], *weighed, comparison)
            for first, second, comparison in group.pairs
            if (weighed := weigh(comparison)).weight > 0
        ]
        ratings = [group.ratings.get(ids) for ids in sequences]
        rated = any(ratings)
        if not pairs and not rated:
            return []
        return [
            Question(
                prompt,
                tails,
                tuple(pairs),
                tuple(fmean(numbers) if numbers else None for numbers in ratings) if rated else (),
                tuple(float(len(numbers or ())) for numbers in ratings) if rated else (),
            )
        ]

    def _trimmed(self, group: _Group, border: int, room: int) -> list[int]:
        """The first `border` of the prompt's tokens; where those are more than `room`, of the trimmed prompt's."""
        if border <= room:
            return group.prompt_ids[:border]
        after = len(group.prompt_ids) - border  # tokens of the prompt that stand in each answer's part
        messages = trim_prompt(self._tokenizer, group.prompt, room + after)
        assert messages is not None, group.prompt  # `_fit` has seen that there is room
        ids = encode_prompt(self._tokenizer, messages)
        return ids[: len(ids) - after]


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """Length of the longest common prefix."""
    if list(second[: len(first)]) == list(first):
        return len(first)
    return sum(1 for _ in itertools.takewhile(lambda both: both[0] == both[1], zip(first, second, strict=False)))


def _parts(group: _Group) -> Iterable[_Group]:
    """The group, or where it has too many completions several, such that each pair is in one of them."""
    if len(group.completions) <= MAX_COMPLETIONS:
        return [group]
    parts: list[_Group] = []
    newest: dict[tuple[int, ...], _Group] = {}  # where a completion was put last: all parts would be too many to try

    def put(sequences: Sequence[tuple[int, ...]]) -> _Group:
        for part in (*(newest[ids] for ids in sequences if ids in newest), *parts[-1:]):
            if len({*part.completions, *sequences}) <= MAX_COMPLETIONS:
                break
        else:
            part = _Group(group.prompt_ids, group.prompt)
            parts.append(part)
        part.completions |= dict.fromkeys(sequences)
        newest.update(dict.fromkeys(sequences, part))
        return part

    for first, second, comparison in group.pairs:
        put((first, second)).pairs.append((first, second, comparison))
    for ids, numbers in group.ratings.items():  # each rating counts once
        put((ids,)).ratings[ids] = numbers
    return parts


class Scale(NamedTuple):
    """Mean and standard deviation of the ratings to learn from, in their own units."""

    mean: float
    std: float


def rating_scale(questions: Sequence[Question]) -> Scale:
    """That of the ratings of some questions, each rating counting once.

    Raises:
        DataError: they do not differ.
    """
    numbers = [
        value
        for question in questions
        for value, weight in zip(question.ratings, question.rating_weights, strict=True)
        for _ in range(int(weight))
        if value is not None
    ]
    if len(set(numbers)) < 2:
        raise DataError(f"the {len(numbers)} ratings that can be used do not differ, so there is nothing to learn")
    return Scale(fmean(numbers), pstdev(numbers))


def standardised(questions: Sequence[Question], scale: Scale) -> list[Question]:
    """Questions whose ratings are in standard deviations from the mean."""
    return [
        replace(
            question,
            ratings=tuple(None if value is None else (value - scale.mean) / scale.std for value in question.ratings),
        )
        for question in questions
    ]
