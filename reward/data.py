"""Read judgements from ratings files and data files: comparisons of two completions, and ratings of one."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Any, NamedTuple

import datasets
import torch
from transformers import PreTrainedTokenizerBase

from alignment.config.sections import DataConfig, DataPart
from alignment.data.attributes import AttributeReader, vote_of
from alignment.data.formats import Choice
from alignment.data.importers import PassedOver
from alignment.data.parsing import to_judgements
from alignment.data.reading import Records, check_bad, train_and_eval
from alignment.data.records import Comparison, CompletionRating, Vote
from alignment.data.row_files import DataError
from alignment.data.sources import Rows, RowSource, open_source
from alignment.errors import did_you_mean
from alignment.ratings import Item, Rating, RatingsStore, is_ratings_file
from alignment.ratings.agreement import reliability
from alignment.ratings.preferred import notes_on_test_set, nothing_rated
from alignment.ratings.records import NO_VOTES, SCORES
from alignment.ratings.refereeing import verdicts_of
from alignment.ratings.rewrites import rewrites_of
from alignment.templates.rendering import Message, Unrenderable
from reward.batches import QuestionCollator
from reward.config import RewardSection
from reward.labelers import judgements_by, known_labelers, reader_of, resolved
from reward.questions import Note, Question, QuestionBuilder, combine_votes

Judgement = Comparison | CompletionRating


def open_ratings(
    part: DataPart,
    config: DataConfig,
    labelers: Collection[str] | None = None,
    attributes: AttributeReader | None = None,
) -> RowSource:
    """Open the judgements of a ratings file, which is recognized by its header; any other source is opened unchanged.

    Args:
        labelers: only these labelers count, named as in votes (`reward.labelers.resolved`); None: all. The rows of a
            data file are not filtered here; its fingerprint names the labelers that are used.
        attributes: which are judged; None: the answers as a whole.
    """
    if not is_ratings_file(part.path):
        source = open_source(part, config)
        if labelers is None:
            return source
        chosen = sorted(known_labelers(part, config, attributes or to_judgements).keys() & labelers)
        return RowSource(
            source.rows, lambda: source.fingerprint() | {"labelers": len(chosen), "of_labelers": chosen}, source.notes
        )
    with RatingsStore(part.path) as store:
        if not (names := store.labelers()):
            raise nothing_rated(part.path)
        if labelers is not None:
            names = [name for name in names if store.people.labeler_hash(name) in labelers]
        about = store.fingerprint(None if labelers is None else names)
        fingerprint, notes = {"name": store.path.name, **about}, notes_on_test_set(store)
    return RowSource(_judged(rated_items(part.path, labelers), attributes), lambda: fingerprint, notes)


def _judged(rows: Rows, attributes: AttributeReader | None) -> Rows:
    """Those judgements of a ratings file that are of the attributes; None: those of the answers as a whole."""
    for where, row in rows:
        if not isinstance(row, Comparison | CompletionRating):
            yield where, row
        elif attributes is None:
            if not row.attribute:
                yield where, row
        elif (judged := attributes.of_record(row)) is not None:
            yield where, judged


def rated_items(path: str, labelers: Collection[str] | None = None) -> Rows:
    """Yield the judgements of each rated item, without skips. A pair yields one comparison with all labelers' votes, a
    ranking of K completions K(K-1)/2 comparisons, a single completion one rating per labeler. A completion that was
    rewritten yields one more comparison: the rewritten text is better. Answers to questions of attributes yield
    judgements of these. On an item that a referee has decided, the verdict stands in the place of each vote, so that
    the item weighs what it weighed.

    Completions with equal texts are skipped. Labelers are hashed, as in manifests; `labelers` are the hashes of those
    who count, None: all.
    """
    with RatingsStore(path) as store:
        ratings: dict[int, list[Rating]] = {}
        # Names stay in the ratings file, where `alignment rate forget` removes them, and out of reports and journals.
        hashed = cache(store.people.labeler_hash)
        found = [replace(rating, labeler=hashed(rating.labeler)) for rating in store.ratings()]
        items = store.items()
    if labelers is not None:
        found = [rating for rating in found if rating.labeler in labelers]
    verdicts = verdicts_of(found)
    for rating in found:
        if rating.why not in NO_VOTES:
            ratings.setdefault(rating.item, []).append(rating)
    for item in items:
        item_ratings, verdict, where = ratings.get(item.id, []), verdicts.get(item.id), f"{path}:item {item.id}"
        prompt = tuple(Message(role=turn["role"], content=turn["content"]) for turn in item.prompt)
        texts = [completion.text for completion in item.completions]
        for new in rewrites_of(item, item_ratings if verdict is None else [*item_ratings, verdict]):
            votes = tuple(Vote("first", None, labeler) for labeler in new.labelers)
            yield where, Comparison(prompt, new.text, texts[new.completion], votes)
        for judged in _of_attributes(prompt, texts, item_ratings, verdict):
            yield where, judged
        if item.kind == "single":
            limits = _scale(item, item_ratings)
            scores = [
                CompletionRating(prompt, texts[0], _score(rating, limits), rating.labeler) for rating in item_ratings
            ]
            if verdict is not None:
                decided = CompletionRating(prompt, texts[0], _score(verdict, limits), verdict.labeler)
                scores = [replace(decided, overrules=score) for score in scores] or [decided]
            yield from ((where, score) for score in scores)
            continue
        for i, j in itertools.combinations(range(len(texts)), 2):
            votes = tuple(_vote(rating, i, j) for rating in item_ratings)
            if verdict is not None:
                ruling = _vote(verdict, i, j)
                votes = tuple(replace(ruling, overrules=vote) for vote in votes) or (ruling,)
            if texts[i] == texts[j] and votes:
                yield where, PassedOver(f"both completions of a rated {item.kind} are the same")
            elif votes:
                yield where, Comparison(prompt, texts[i], texts[j], votes, len(texts))


def _of_attributes(
    prompt: tuple[Message, ...], texts: Sequence[str], ratings: Sequence[Rating], verdict: Rating | None
) -> Iterator[Judgement]:
    """What labelers answered of attributes: on the pair scale a comparison with all votes, on the scale of 1 to 7 a
    rating of each completion by each labeler. A referee's answer stands in the place of each."""
    votes: dict[str, list[Vote]] = {}
    decided = {} if verdict is None else (verdict.answers or {}).get("attributes", {})
    for rating in ratings:
        for name, value in (rating.answers or {}).get("attributes", {}).items():
            ruling = decided.get(name)
            if not isinstance(value, list):
                vote = vote_of(value, rating.labeler)
                if verdict is not None and ruling is not None:
                    vote = replace(vote_of(ruling, verdict.labeler), overrules=vote)
                votes.setdefault(name, []).append(vote)
                continue
            for place, (text, score) in enumerate(zip(texts, value, strict=True)):
                given = CompletionRating(prompt, text, float(score), rating.labeler, attribute=name)
                if verdict is not None and ruling is not None:
                    ruled = replace(given, rating=float(ruling[place]), labeler=verdict.labeler)
                    given = replace(ruled, overrules=given)
                yield given
    if texts[0] != texts[-1]:
        for name, cast in votes.items():
            yield Comparison(prompt, texts[0], texts[1], tuple(cast), attribute=name)


def _scale(item: Item, ratings: Sequence[Rating]) -> tuple[float, float]:
    """The worst and the best score of an item: those of its source if that rated it, else 1 and 7."""
    scale = item.metadata.get("scale")
    if any(rating.given is not None for rating in ratings) and isinstance(scale, list) and len(scale) == 2:
        return float(scale[0]), float(scale[1])
    return float(SCORES[0]), float(SCORES[-1])


def _score(rating: Rating, scale: tuple[float, float]) -> float:
    """A labeler's score on the item's scale, on which a score from 1 to 7 has its place."""
    assert rating.score is not None
    if rating.given is not None:
        return float(rating.given)
    low, high = scale
    return low + (rating.score - SCORES[0]) * (high - low) / (SCORES[-1] - SCORES[0])


def _vote(rating: Rating, first: int, second: int) -> Vote:
    """A labeler's vote on two of an item's completions."""
    if rating.ranks is None:
        assert rating.choice in ("first", "second", "tie"), rating.choice
        return Vote(rating.choice, rating.strength, rating.labeler)
    ahead = rating.ranks[second] - rating.ranks[first]  # rank 1 is the best
    return Vote("first" if ahead > 0 else "second" if ahead < 0 else "tie", None, rating.labeler)


def read_judgements(config: DataConfig, settings: RewardSection) -> tuple[Records[Judgement], Records[Judgement]]:
    """Training and held-out judgements.

    Raises:
        DataError: see `alignment.data.reading.Reading`; there is no rated item, no rating by one of
            `settings.labelers`, or no usable data for the objective or the margin.
    """
    read = reader_of(settings)
    attributes = read if isinstance(read, AttributeReader) else None
    find = partial(open_ratings, attributes=attributes)
    if labelers := frozenset(resolved(settings.labelers, config, read)):
        read, find = partial(judgements_by, labelers, read=read), partial(find, labelers=labelers)
    train, held_out = train_and_eval(config, read, find, () if attributes is None else attributes.columns)
    where = config.parts[0].path
    rated = [row for row in train.items if isinstance(row, CompletionRating)]
    if settings.objective == "regression":
        if len({row.rating for row in rated}) < 2:
            raise DataError(
                f"{where}: reward.objective=regression needs differing ratings of single completions, found "
                f"{len(rated)} ratings with {len({row.rating for row in rated})} values; use reward.objective=pairs"
            )
        return train, held_out
    pairs = comparisons(train.items)
    if not pairs:
        raise DataError(
            f"{where}: the {len(rated)} training ratings give no pair: no two are of the same prompt and labeler; "
            "rate several completions of each prompt, or set reward.objective=regression"
        )
    if attributes is not None:
        _check_attributes(where, attributes, pairs)
    if all(row.target == 0.5 for row in pairs):
        raise DataError(
            f"{where}: each of the {len(pairs)} training pairs is a tie, so there is nothing to learn; rate more pairs"
        )
    if settings.margin and not any(vote.strength for row in pairs for vote in row.votes):
        raise DataError(
            f"{where}: reward.margin={settings.margin:g} needs votes with a strength (how much better), and no "
            "vote here has one; set reward.margin=0"
        )
    return train, held_out


def _check_attributes(where: str, attributes: AttributeReader, pairs: Sequence[Comparison]) -> None:
    """Refuse an attribute that no training pair decides: its head would stay as it was drawn.

    Raises:
        DataError: names it, and the attributes that there are.
    """
    for name in attributes.names:
        judged = [pair for pair in pairs if pair.attribute == name]
        if not judged:
            others = sorted(other for other in attributes.seen if other != name)
            raise DataError(
                f"{where}: no training pair judges {name!r} of reward.attributes; the rows judge "
                f"{', '.join(others) or 'no attribute'}" + did_you_mean(name, others)
            )
        if all(pair.target == 0.5 for pair in judged):
            raise DataError(
                f"{where}: each of the {len(judged)} training pairs is a tie in {name!r}, so there is nothing to "
                "learn of it; take it out of reward.attributes, or rate more pairs"
            )


def comparisons(judgements: Sequence[Judgement]) -> list[Comparison]:
    """The comparisons, and those implied by ratings of the same prompt."""
    compared = [row for row in judgements if isinstance(row, Comparison)]
    return compared + rated_pairs([row for row in judgements if isinstance(row, CompletionRating)])


def labeler_weights(judgements: Sequence[Judgement], where: str) -> dict[str, float]:
    """The weight of each labeler's votes, from agreement on completions that several labelers judged; verdicts of
    referees do not change what the labelers said.

    Args:
        where: names the data in errors.

    Raises:
        DataError: no pair was judged by two named labelers.
    """
    said = [row.overrules or row if isinstance(row, CompletionRating) else row for row in judgements]
    ballots = [{vote.labeler: vote.choice for vote in row.cast if vote.labeler} for row in comparisons(said)]
    if not any(len(ballot) > 1 for ballot in ballots):
        raise DataError(
            f"{where}: reward.use_reliability weights labelers by their agreement, and no pair here was judged by two "
            "named labelers; have items rated by several (need=3), or set reward.use_reliability=false"
        )
    return reliability(ballots).weights


class Encoding(NamedTuple):
    """Judgements as questions, and the number left out by reason (`QuestionBuilder.left_out`)."""

    questions: list[Question]
    left_out: dict[str, int]


def encode(
    judgements: Sequence[Judgement],
    tokenizer: PreTrainedTokenizerBase,
    config: DataConfig,
    settings: RewardSection,
    reliability: Mapping[str, float] | None = None,
    note: Note = lambda record, encoded, fitted: None,
    required: bool = True,
) -> Encoding:
    """Encode judgements as the objective's questions.

    Raises:
        DataError: none of them can be used, and `required` is true; the template cannot render too many of them.
    """
    builder = QuestionBuilder(tokenizer, config.max_length, config.too_long, note, settings.heads)
    unrenderable: list[tuple[str, str]] = []
    rated: list[CompletionRating] = []
    first: dict[str, str] = {}  # the attribute of the first judgement at each place
    for row in judgements:
        again = bool(row.place) and first.setdefault(row.place, row.attribute) != row.attribute
        try:
            if isinstance(row, Comparison):
                builder.add(row, again)
            else:
                builder.rate(row, again)
                rated.append(row)
        except Unrenderable as error:
            unrenderable.append((row.place, str(error)))
    if unrenderable:
        check_bad(config.parts[0].path, len(judgements) - len(unrenderable), unrenderable, config.max_bad_share)
        builder.left_out["unrenderable"] = len(unrenderable)
    for pair in rated_pairs(rated):
        builder.add(pair, again=True)
    questions = builder.questions(lambda row: combine_votes(row, settings.margin, reliability))
    usable = [
        question
        for question in questions
        if (question.ratings if settings.objective == "regression" else question.pairs)
    ]
    if judgements and not usable and required:
        advice = f"raise data.max_length={config.max_length}"
        if not builder.left_out["too_long"]:
            advice = f"reward.objective={settings.objective} cannot use any of them"
        raise DataError(
            f"none of the {len(judgements)} judgements can be used (left out: {dict(builder.left_out)}); {advice}"
        )
    return Encoding(usable, dict(builder.left_out))


def rated_pairs(ratings: Sequence[CompletionRating]) -> list[Comparison]:
    """The pairs implied by the ratings of each prompt: a labeler's higher rated completion has the vote, and equal
    ratings are a tie. Ratings of different labelers are not compared, because their scales differ.

    If a labeler (or unnamed people) rated a completion several times, n-th ratings are compared with n-th ratings.
    """
    attributes = dict.fromkeys(row.attribute for row in ratings)
    return [
        pair
        for attribute in attributes
        for pair in _rated_pairs([row for row in ratings if row.attribute == attribute], attribute)
    ]


def _rated_pairs(ratings: Sequence[CompletionRating], attribute: str) -> list[Comparison]:
    """`rated_pairs` of ratings of one attribute."""
    sheets: dict[tuple[Any, ...], dict[str, CompletionRating]] = {}  # (prompt, labeler, n) -> completion -> rating
    for row in ratings:
        key = (*((turn["role"], turn["content"]) for turn in row.prompt),)
        index = next(n for n in itertools.count() if row.completion not in sheets.get((key, row.labeler, n), {}))
        sheets.setdefault((key, row.labeler, index), {})[row.completion] = row
    sizes: dict[Any, int] = {}
    votes: dict[Any, dict[tuple[str, str], list[Vote]]] = {}
    places: dict[Any, CompletionRating] = {}
    for (key, labeler, _), sheet in sheets.items():
        for row, other_row in itertools.combinations(sheet.values(), 2):
            swapped = (other_row.completion, row.completion) in votes.get(key, {})
            first, second = (other_row, row) if swapped else (row, other_row)
            choice: Choice = (
                "first" if first.rating > second.rating else "second" if first.rating < second.rating else "tie"
            )
            texts = (first.completion, second.completion)
            votes.setdefault(key, {}).setdefault(texts, []).append(Vote(choice, None, labeler))
            sizes[key, texts] = max(len(sheet), sizes.get((key, texts), 0))  # one person's ratings form one ranking
            places.setdefault((key, texts), first)
    return [
        Comparison(
            places[key, texts].prompt,
            *texts,
            tuple(pair_votes),
            sizes[key, texts],
            places[key, texts].place,
            attribute=attribute,
        )
        for key, pairs in votes.items()
        for texts, pair_votes in pairs.items()
    ]


def as_dataset(questions: Sequence[Question], start: int = 0) -> datasets.Dataset:
    """Rows for TRL's trainer: indices of questions from `start` on, which `Batches` looks up, and their lengths for
    group_by_length."""
    indices = range(start, start + len(questions))
    return datasets.Dataset.from_dict(
        {"question": list(indices), "length": [max(question.lengths) for question in questions]}
    )


class Batches:
    """Looks up the questions of `as_dataset`'s rows and collates them; `questions`, (Q,) long, are their indices."""

    def __init__(self, questions: Sequence[Question], collate: QuestionCollator) -> None:
        self._questions, self._collate = questions, collate

    def __call__(self, rows: Sequence[Mapping[str, int]]) -> dict[str, Any]:
        indices = [row["question"] for row in rows]
        return self._collate([self._questions[index] for index in indices]) | {"questions": torch.tensor(indices)}
