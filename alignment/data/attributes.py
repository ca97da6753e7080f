"""Judgements of attributes: what a row says of `helpful` or `correctness`, apart from the answers as a whole.

A row of two answers has votes, `{"prompt": ..., "chosen": ..., "rejected": ..., "attributes": {"helpful": 1,
"harmless": -2}}`: -3 to 3, above 0 where the first answer (`chosen`, `response_1`) is the better one, 0 for a tie. A
row of one answer has scores, `{"prompt": ..., "completion": ..., "attributes": {"correctness": 4}}`. Columns named as
the attributes (HelpSteer's `correctness`) are read as well. A row may leave any of them out, and its judgement of the
whole. A QA-Feedback row has the errors that annotators marked, which judge `relevance`, `factuality` and
`completeness` (`alignment.data.error_feedback`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from alignment.config.sections import Format
from alignment.data import error_feedback
from alignment.data.formats import shape_of
from alignment.data.importers import PassedOver
from alignment.data.keys import is_empty
from alignment.data.messages import parsed
from alignment.data.parsing import LEARNED, to_judgements
from alignment.data.preferences import Choice, number_of
from alignment.data.records import Comparison, CompletionRating, Vote
from alignment.data.row_files import BadRow
from alignment.errors import did_you_mean

COLUMN = "attributes"
OVERALL = "overall"
"""The name of the judgement of the answers as a whole among the attributes."""
MUCH_BETTER = 3
_SHAPES = tuple(shape for shape in LEARNED["reward"] if shape != "alpaca")
_ADDED: tuple[dict[str, Any], ...] = ({}, {"choice": "tie"}, {"rating": 0})
"""What makes a row without a judgement of the whole one that is read; that judgement is dropped again."""
Judgement = Comparison | CompletionRating


@dataclass
class AttributeReader:
    """Reads judgements of some attributes from rows.

    Args:
        names: the attributes; `overall` is the row's own vote or rating.
        seen: every attribute that a row has had.
    """

    names: Sequence[str]
    seen: dict[str, None] = field(default_factory=dict)

    @property
    def columns(self) -> Collection[str]:
        """Keys of a row that are read beside those of its shape."""
        marked = (error_feedback.COLUMN,) if error_feedback.KINDS.keys() & set(self.names) else ()
        return (COLUMN, *marked, *self.names)

    def __call__(self, row: Mapping[str, Any], format: Format = "auto") -> list[Judgement]:
        """The judgements of a row, one for each of the attributes that it judges.

        Raises:
            BadRow: a value is no vote or score, or the row has another number of answers than one or two.
            PassedOver: it judges none of the attributes.
        """
        given = parsed(row.get(COLUMN))
        given = given if isinstance(given, Mapping) else {}
        self.seen |= dict.fromkeys(name for name, value in given.items() if not is_empty(value))
        said = {name: given[name] if name in given else row.get(name) for name in self.names}
        said = {name: value for name, value in said.items() if not is_empty(value)}
        rest = {key: value for key, value in row.items() if key != COLUMN and key not in self.names}
        whole = OVERALL in self.names and OVERALL not in said
        rest, added = _completed(rest, format) if said or given else (rest, {})
        own = to_judgements(rest, format)
        judged: list[Judgement] = [replace(each, attribute=OVERALL) for each in own] if whole and not added else []
        if said:
            judged += _on_attributes(own, said, shape_of(rest, format, _SHAPES))
        others = [name for name, value in given.items() if not is_empty(value)]
        if not is_empty(rest.get(error_feedback.COLUMN)) and shape_of(rest, format, _SHAPES) == "qa-feedback":
            judged += self._of_errors(rest, bool(judged))
            others += error_feedback.KINDS
        self.seen |= dict.fromkeys(each.attribute for each in judged)
        if not judged:
            raise PassedOver(self._none_of(others))
        return judged

    def _of_errors(self, row: Mapping[str, Any], judged: bool) -> list[Judgement]:
        """A comparison of an answer with the corrected one for each attribute that an annotator marked errors of.

        Args:
            judged: whether the row judges something else too, so that one without a correction is no bad row.
        """
        self.seen |= dict.fromkeys(error_feedback.KINDS)
        names = [name for name in self.names if name in error_feedback.KINDS]
        if not names:
            return []
        try:
            pair = error_feedback.read_corrected(row)
        except PassedOver:
            if judged:
                return []
            raise
        return [
            Comparison(
                pair.prompt, pair.answer, pair.corrected, (vote_of(-min(pair.errors[name], MUCH_BETTER), None),),
                attribute=name,
            )
            for name in names
        ]  # fmt: skip

    def _none_of(self, others: Sequence[str]) -> str:
        """Why a row that judges these attributes alone is passed over."""
        hints = filter(None, (did_you_mean(name, others) for name in self.names))
        return (
            "judges none of reward.attributes"
            + (f", but {', '.join(sorted(others))}" if others else "")
            + next(hints, "")
        )

    def of_record(self, record: Judgement) -> Judgement | None:
        """A record of a ratings file by the name of its attribute; None if it is none of these."""
        record = record if record.attribute else replace(record, attribute=OVERALL)
        self.seen[record.attribute] = None
        return record if record.attribute in self.names else None


def _completed(row: Mapping[str, Any], format: Format) -> tuple[dict[str, Any], dict[str, Any]]:
    """The row as one with a judgement of the whole, and what was added for that."""
    errors: list[BadRow] = []
    for added in _ADDED:
        try:
            shape_of({**row, **added}, format, _SHAPES)
        except BadRow as error:
            errors.append(error)
        else:
            return {**row, **added}, added
    raise errors[0]


def _on_attributes(own: Sequence[Judgement], said: Mapping[str, Any], shape: Format) -> list[Judgement]:
    """The same answers with what was said of each attribute."""
    (first, *more) = own
    if more or (isinstance(first, Comparison) and first.size != 2):
        raise BadRow(f"'{COLUMN}' is read beside one or two answers, and this row has more; write a row for each pair")
    if isinstance(first, CompletionRating):
        return [
            replace(first, rating=number_of(value, f"'{COLUMN}.{name}'"), attribute=name)
            for name, value in said.items()
        ]
    if shape == "strength":
        raise BadRow(
            f"'{COLUMN}' beside a strength is not read, since the two may count the other way round; write the two "
            "answers as `chosen` and `rejected`"
        )
    labeler = first.votes[0].labeler if len(first.votes) == 1 else None
    return [
        replace(first, votes=(_vote(value, name, labeler),), margin=None, scores=None, attribute=name)
        for name, value in said.items()
    ]


def _vote(value: Any, name: str, labeler: str | None) -> Vote:
    number = number_of(value, f"'{COLUMN}.{name}'")
    if number != int(number) or abs(number) > MUCH_BETTER:
        raise BadRow(
            f"'{COLUMN}.{name}' is {number:g}; expected a whole number from {MUCH_BETTER} (the first answer is much "
            f"better) through 0 (a tie) to -{MUCH_BETTER} (the second is)"
        )
    return vote_of(int(number), labeler)


def vote_of(number: int, labeler: str | None) -> Vote:
    """The vote that a number on the pair scale is: above 0 for the first answer, below for the second, 0 a tie."""
    choice: Choice = "first" if number > 0 else "second" if number < 0 else "tie"
    return Vote(choice, abs(number) or None, labeler)
