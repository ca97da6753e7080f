"""Questions, the reward model's training examples: a prompt's completions as token ids, with preferences or ratings."""

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
from alignment.data.messages import with_answer
from alignment.data.records import Comparison, CompletionRating, Vote
from alignment.data.row_files import DataError
from alignment.data.trimming import shortest, trim_prompt
from alignment.templates.rendering import Encoded, Message, encode_conversation, encode_prompt

MAX_COMPLETIONS = 9
"""Maximum per question. Larger groups are split, because a question's completions share one forward pass."""
KEPT = 1024
"""Size of the cache of encoded answers, which the next comparisons of a ranking reuse."""


@dataclass(frozen=True)
class JudgedPair:
    """Two completions of a question. `first` and `second` are indices in its `completion_ids`."""

    first: int
    second: int
    target: float
    """Probability that `first` is better, in [0, 1]."""
    weight: float
    margin: float
    """Required lead of the score of `first`; negative if `second` is preferred."""
    comparison: Comparison
    """The votes behind it."""
    head: int = 0
    """Which of the model's scores it is on."""


@dataclass(frozen=True)
class Question:
    """A prompt with its distinct completions; a full sequence is `prompt_ids + completion_ids[k]` and ends in EOS."""

    prompt_ids: list[int]
    completion_ids: list[list[int]]
    pairs: tuple[JudgedPair, ...]
    ratings: tuple[float | None, ...] = ()
    """Targets of the completions' scores for `objective: regression`; None for a completion without ratings."""
    rating_weights: tuple[float, ...] = ()
    """Number of ratings that each target is the mean of."""

    @property
    def lengths(self) -> list[int]:
        """Number of tokens of each full sequence."""
        return [len(self.prompt_ids) + len(ids) for ids in self.completion_ids]

    @property
    def sequences(self) -> list[list[int]]:
        """The full sequences."""
        return [self.prompt_ids + ids for ids in self.completion_ids]


class Weighed(NamedTuple):
    """Target, weight and margin of a pair; see `JudgedPair`."""

    target: float
    weight: float
    margin: float


def combine_votes(comparison: Comparison, margin: float, reliability: Mapping[str, float] | None) -> Weighed:
    """Combine the votes on a pair into target, weight and margin.

    Args:
        margin: the margin of a vote of strength 3. A vote of strength s has s/3 of it, a tie or a vote without strength
            none. Votes for the other side reduce it, at most to 0. A comparison with a margin of its own has that.
        reliability: weight of each labeler's votes; 1 if it is None or has no such labeler.
    """
    counted = [(vote, 1.0 if reliability is None else _reliability(vote, reliability)) for vote in comparison.votes]
    total = sum(weight for _, weight in counted)
    if total <= 0:
        return Weighed(0.5, 0.0, 0.0)
    lead = sum(weight * _SIDE[vote.choice] for vote, weight in counted) / total
    asked = sum(weight * _SIDE[vote.choice] * (vote.strength or 0) / 3 for vote, weight in counted) / total
    signed = margin * (max(asked, 0.0) if lead > 0 else min(asked, 0.0) if lead < 0 else 0.0)
    if comparison.margin is not None:
        signed = comparison.margin * lead
    per_vote = comparison.weight / len(comparison.votes)
    return Weighed((1 + lead) / 2, total * per_vote, signed)


_SIDE = {"first": 1, "second": -1, "tie": 0}


def _reliability(vote: Vote, reliability: Mapping[str, float]) -> float:
    return reliability.get(vote.labeler, 1.0) if vote.labeler is not None else 1.0


@dataclass
class _Group:
    """The judgements of one rendered prompt. Completions are identified by their token ids."""

    prompt_ids: list[int]
    prompt: tuple[Message, ...]
    least: int | None = None
    """Number of tokens of the shortest trimmed prompt; None if not computed yet."""
    completions: dict[tuple[int, ...], None] = field(default_factory=dict)
    pairs: list[tuple[tuple[int, ...], tuple[int, ...], Comparison]] = field(default_factory=list)
    ratings: dict[tuple[int, ...], list[float]] = field(default_factory=dict)


Note = Callable[[Comparison | CompletionRating, Encoded, Encoded | None], None]


class QuestionBuilder:
    """Encodes judgements and groups them by prompt.

    Args:
        note: called for each comparison or rated answer with all tokens of its longer side and the trimmed ones (None
            if it is left out as too long).
        heads: the attribute of each head.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        too_long: TooLong = "trim_prompt",
        note: Note = lambda record, encoded, fitted: None,
        heads: Sequence[str] = ("",),
    ) -> None:
        self._tokenizer, self._max_length, self._too_long, self._note = tokenizer, max_length, too_long, note
        self._heads = list(heads)
        self._groups: dict[tuple[int, ...], _Group] = {}
        self._by_prompt: dict[str, _Group] = {}
        self._encoded: dict[tuple[int, str], Encoded] = {}
        self.left_out: Counter[str] = Counter(too_long=0, identical=0, prompts_cut=0)
        """`too_long`: a completion alone exceeds `max_length`. `identical`: both sides have the same tokens, so the
        loss would always be ln 2. `prompts_cut`: questions that lost the oldest part of the prompt."""

    def add(self, comparison: Comparison, again: bool = False) -> None:
        """Add a comparison. Answers that came before, as ratings or with another attribute, are not noted `again`."""
        group = self._group(comparison.prompt)
        sides = [self._encode(group, comparison.prompt, text) for text in (comparison.first, comparison.second)]
        fits = [self._fit(group, side) for side in sides]
        if not again:
            longer = max(zip(sides, fits, strict=True), key=lambda side: len(side[0].input_ids))
            self._note(comparison, longer[0], longer[1] if all(fits) else None)
        first, second = (tuple(side.input_ids) for side in sides)
        if not all(fits):
            self.left_out["too_long"] += not again
        elif first == second:
            self.left_out["identical"] += 1
        else:
            group.completions |= dict.fromkeys((first, second))
            group.pairs.append((first, second, comparison))

    def rate(self, rating: CompletionRating, again: bool = False) -> None:
        """Add a rating as a number; one of an attribute counts in pairs alone. An answer that came before with another
        attribute is not noted `again`."""
        group = self._group(rating.prompt)
        encoding = self._encode(group, rating.prompt, rating.completion)
        fits = self._fit(group, encoding)
        known = group.completions if rating.attribute else group.ratings
        if not again and tuple(encoding.input_ids) not in known:  # an answer with several ratings is not a duplicate
            self._note(rating, encoding, fits)
        if fits is None:
            self.left_out["too_long"] += not again
            return
        group.completions[tuple(encoding.input_ids)] = None
        if rating.attribute:
            return
        group.ratings.setdefault(tuple(encoding.input_ids), []).append(rating.rating)

    def questions(self, combine: Callable[[Comparison], Weighed]) -> list[Question]:
        """All questions, in the order of their prompts; pairs with weight 0 are dropped."""
        questions: list[Question] = []
        for group in self._groups.values():
            for part in _parts(group):
                questions += self._question(part, combine)
        return questions

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
            self._encoded[key] = encode_conversation(self._tokenizer, with_answer(prompt, text))
        return self._encoded[key]

    def _fit(self, group: _Group, encoding: Encoded) -> Encoded | None:
        """The last `max_length` tokens, or None if the answer is left out. The prompt itself is trimmed once for its
        answers (`_question`); this checks that it can be trimmed far enough."""
        surplus = len(encoding.input_ids) - self._max_length
        if surplus <= 0:
            return encoding
        if self._too_long != "trim_prompt":
            return None
        if group.least is None:
            group.least = len(encode_prompt(self._tokenizer, shortest(group.prompt)))
        if group.least > len(group.prompt_ids) - surplus:
            return None
        return Encoded(encoding.input_ids[surplus:], encoding.loss_mask[surplus:])

    def _question(self, group: _Group, combine: Callable[[Comparison], Weighed]) -> list[Question]:
        sequences = list(group.completions)
        if not sequences:
            return []
        # No token spans the border of prompt and answer (alignment.templates.rendering), but a template may render more
        # between the two than its generation prompt has. The common prefix is then the prompt.
        border = min(_common(group.prompt_ids, ids) for ids in sequences)
        border = min(border, min(map(len, sequences)) - 1)
        tails = [list(ids[border:]) for ids in sequences]
        prompt = self._trimmed(group, border, self._max_length - max(map(len, tails)))
        self.left_out["prompts_cut"] += len(prompt) < border
        indices = {ids: index for index, ids in enumerate(sequences)}
        pairs = [
            JudgedPair(indices[first], indices[second], *combined, comparison, self._heads.index(comparison.attribute))
            for first, second, comparison in group.pairs
            if (combined := combine(comparison)).weight > 0
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
                tuple(fmean(values) if values else None for values in ratings) if rated else (),
                tuple(float(len(values or ())) for values in ratings) if rated else (),
            )
        ]

    def _trimmed(self, group: _Group, border: int, room: int) -> list[int]:
        """The first `border` tokens of the prompt, trimmed to `room` if needed."""
        if border <= room:
            return group.prompt_ids[:border]
        after = len(group.prompt_ids) - border  # tokens of the prompt that belong to each answer's part
        messages = trim_prompt(self._tokenizer, group.prompt, room + after)
        assert messages is not None, group.prompt  # `_fit` has checked this
        ids = encode_prompt(self._tokenizer, messages)
        return ids[: len(ids) - after]


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """Length of the longest common prefix."""
    if list(second[: len(first)]) == list(first):
        return len(first)
    return sum(1 for _ in itertools.takewhile(lambda both: both[0] == both[1], zip(first, second, strict=False)))


def _parts(group: _Group) -> Iterable[_Group]:
    """The group, split if it has too many completions, so that each pair is in one part."""
    if len(group.completions) <= MAX_COMPLETIONS:
        return [group]
    parts: list[_Group] = []
    newest: dict[
        tuple[int, ...], _Group
    ] = {}  # the last part of each completion, because trying all parts would be slow

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
    for ids, numbers in group.ratings.items():  # ratings go to one part only
        put((ids,)).ratings[ids] = numbers
    return parts


class Scale(NamedTuple):
    """Mean and standard deviation of the training ratings, in their own units."""

    mean: float
    std: float


def rating_scale(questions: Sequence[Question]) -> Scale:
    """The scale of the questions' ratings; each rating counts once.

    Raises:
        DataError: the ratings do not differ.
    """
    values = [
        rating
        for question in questions
        for rating, weight in zip(question.ratings, question.rating_weights, strict=True)
        for _ in range(int(weight))
        if rating is not None
    ]
    if len(set(values)) < 2:
        raise DataError(f"the {len(values)} ratings that can be used do not differ, so there is nothing to learn")
    return Scale(fmean(values), pstdev(values))


def standardize(questions: Sequence[Question], scale: Scale) -> list[Question]:
    """Questions with standardized ratings."""
    return [
        replace(
            question,
            ratings=tuple(None if value is None else (value - scale.mean) / scale.std for value in question.ratings),
        )
        for question in questions
    ]
