"""The shape of a row by its keys, and the row with the names of `alignment.data.shapes` for them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from alignment.config.sections import Format
from alignment.data.chats import parse_transcript
from alignment.data.hints import unread_hint
from alignment.data.keys import (
    ANSWERED,
    HARMLESS_ELSEWHERE,
    PASSAGE_NAMES,
    Changes,
    KnownKey,
    is_empty,
    known_key,
    refuse_unread,
)
from alignment.data.marks import Effect, check_marks, is_heeded, marks_in, warned_marks
from alignment.data.messages import key_names
from alignment.data.nested import inner_value
from alignment.data.preferences import AnnotatedPair, Choice, RankedAnswers, Tournament, pair_of, pandalm, qa_feedback
from alignment.data.questions import UNANSWERABLE, rag_prompt
from alignment.data.row_files import BadRow
from alignment.data.shapes import SHAPES
from alignment.errors import UserError
from alignment.terminal import one_line

__all__ = [
    "SHAPES",
    "UNANSWERABLE",
    "UNFORESEEN",
    "AnnotatedPair",
    "Choice",
    "RankedAnswers",
    "RowPlan",
    "Tournament",
    "key_words",
    "pair_of",
    "pandalm",
    "parse_transcript",
    "plan_of",
    "qa_feedback",
    "rag_prompt",
    "read_as",
    "shape_of",
    "unforeseen",
    "unused_keys",
    "warnings_of",
]

T = TypeVar("T")
_PLANS: dict[tuple[tuple[str, ...], Format], RowPlan | None] = {}
_MOST_PLANS = 4096
_NUMBERED = {"pandalm": "annotator", "qa-feedback": "prediction "}
"""Shapes that read as many columns as there are of this name."""


class RowPlan(NamedTuple):
    """How rows with certain keys are read."""

    shape: Format
    renames: tuple[tuple[str, str], ...]
    """(our name, name in the file) where they differ."""
    read: frozenset[str]
    """The names in the file that are read."""
    known: tuple[str, ...]
    """Names of known meaning that this shape does not read."""
    unknown: tuple[str, ...]

    def renamed(self, row: Mapping[str, Any]) -> Mapping[str, Any]:
        """The row with our names."""
        if not self.renames:
            return row
        theirs = {name for _, name in self.renames}
        rest = {key: value for key, value in row.items() if key not in theirs}
        return rest | {ours: row[name] for ours, name in self.renames}

    def lost(self, ours: Collection[str]) -> list[str]:
        """The file's names for those of our keys that were read."""
        names = dict(self.renames)
        return [names.get(key, key) for key in ours if names.get(key, key) in self.read]

    def in_their_words(self, reason: str) -> str:
        """A reason with the file's names for our keys."""
        for ours, name in self.renames:
            reason = reason.replace(f"'{ours}'", f"'{name}'").replace(f"={ours} ", f"={name} ")
        return reason


def plan_of(row: Mapping[str, Any], format: Format, allowed: Collection[Format]) -> RowPlan:
    """How a row is read: as the first shape whose keys it has, or as the one that `data.format` names.

    Raises:
        BadRow: the row has none of the `allowed` shapes.
    """
    plan = _cached(tuple([key for key in row if row[key] is not None]), format)
    if plan is None or plan.shape not in allowed:
        everywhere = _cached(tuple(row), format)  # a key whose value is null may tell what was meant
        if everywhere is not None and everywhere.shape in allowed:
            return everywhere
        raise _unread(row, format, plan or everywhere, allowed)
    return plan


def _unread(row: Mapping[str, Any], format: Format, plan: RowPlan | None, allowed: Collection[Format]) -> BadRow:
    note = f", a {plan.shape} row, which this stage does not learn from" if plan else ""
    wanted: Sequence[Format] = [format] if format in allowed else [shape for shape in USUAL if shape in allowed]
    expected = " | ".join("+".join(key_words(shape)) for shape in wanted)
    known = (
        (key, known_key(key, plan.shape))
        for key, value in row.items()
        if plan and key in plan.known and not is_empty(value)
    )
    fixes = [f"; '{key}' ({each.about}): {each.fix}" for key, each in known if each and each.changes == "answer"]
    hint = ""
    if format == "auto" and all(fix.endswith(": rename it") for fix in fixes):
        hint = unread_hint(row, plan.shape if plan else None, lambda columns: _reads(row, columns, format, allowed))
    usual = f"expected {expected} (--column OURS=THEIRS or data.columns renames)"
    return BadRow(f"found the keys {key_names(row)}{note}; {hint or usual}{''.join(fixes[:1])}")


def _reads(row: Mapping[str, Any], columns: Mapping[str, str], format: Format, allowed: Collection[Format]) -> bool:
    """Whether a row with columns taken from inside it has one of the shapes."""
    outer = {path.partition(".")[0] for path in columns.values()}
    rest = {key: value for key, value in row.items() if key not in outer}
    named = {**rest, **{ours: inner_value(row, path) for ours, path in columns.items()}}
    plan = _cached(tuple(key for key, value in named.items() if value is not None), format)
    if plan is None or plan.shape not in allowed:
        return False
    try:
        refuse_unread(named, plan.known, plan.read, plan.shape, ("prompt", "answer", "media"))
    except BadRow:
        return False
    return True


USUAL: tuple[Format, ...] = (
    "chat",
    "sharegpt",
    "alpaca",
    "completion",
    "pair",
    "ranking",
    "rating",
    "rag",
    "faq",
    "text",
)
"""The shapes that an error names; docs/guides/data.md has all of them."""


def _cached(keys: tuple[str, ...], format: Format) -> RowPlan | None:
    try:
        return _PLANS[keys, format]
    except KeyError:
        if len(_PLANS) >= _MOST_PLANS:
            _PLANS.clear()
        return _PLANS.setdefault((keys, format), _plan(keys, format))


def _plan(keys: tuple[str, ...], format: Format) -> RowPlan | None:
    for shape in [format] if format in SHAPES else SHAPES:
        plan = _fitted(keys, shape)
        if plan is not None:
            return plan
    return None


def _fitted(keys: tuple[str, ...], shape: Format) -> RowPlan | None:
    """The plan of reading rows with these keys as a shape, None if one is missing."""
    names: dict[str, str] = {}
    free = dict.fromkeys(keys)
    for place, slot in enumerate((*SHAPES[shape].needs, *SHAPES[shape].reads)):
        ours, *_ = alternatives = slot.split("|")
        found = next((name for name in alternatives if name in free and not _is_task(name, names)), None)
        if found is None and place < len(SHAPES[shape].needs):
            return None
        if found is not None and ours not in names:
            names[ours] = found
            del free[found]
    if prefix := _NUMBERED.get(shape):
        numbered = [key for key in free if key.startswith(prefix) and key[len(prefix) :].isdigit()]
        names |= {key: key for key in numbered}
        free = {key: None for key in free if key not in numbered}
    known = _known(free, shape)
    if shape in ANSWERED:
        corrected = [key for key, each in known.items() if each.names[0] == "corrected_answer"]
        if len(corrected) == 1:
            names["corrected_answer"] = corrected[0]
            del free[corrected[0]], known[corrected[0]]
    return RowPlan(
        shape,
        tuple((ours, name) for ours, name in names.items() if ours != name),
        frozenset(names.values()),
        tuple(known),
        tuple(key for key in free if key not in known),
    )


def _known(free: Collection[str], shape: str) -> dict[str, KnownKey]:
    """The keys of known meaning that a shape has not read."""
    known = {key: each for key in free if key not in HARMLESS_ELSEWHERE and (each := known_key(key, shape))}
    counts = Counter(each.names[0] for each in known.values())
    return {key: each for key, each in known.items() if counts[each.names[0]] >= each.at_least}


def _is_task(name: str, names: Mapping[str, str]) -> bool:
    """Whether `instructions` may be the task, not the system turn: beside an `input` and no other question it may."""
    return name == "instructions" and names.get("prompt") == "input"


UNFORESEEN = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError)
"""What a parser raises on a value of a kind that nobody thought of: one row is set aside, and the command goes on."""


def _is_left_out(name: str, format: Format) -> bool:
    """Whether naming the format says that a key of known meaning is not meant."""
    key = known_key(name)
    return format != "auto" and key is not None and key.by_format


def read_as(
    row: Mapping[str, Any],
    format: Format,
    allowed: Collection[Format],
    changes: Collection[Changes],
    parse: Callable[[Format, Mapping[str, Any], Mapping[str, Any]], T],
) -> T:
    """What `parse` makes of a row's shape, the row with our names, and the row itself.

    Args:
        changes: what the reader learns from; a key that says otherwise of it must be read.

    Raises:
        BadRow: the row has none of the shapes, holds a key of known meaning that its shape does not read, or `parse`
            refuses it.
        PassedOver: it is marked as one not to use.
    """
    plan = plan_of(row, format, allowed)
    if plan.unknown:
        check_marks(row, plan.unknown, plan.shape, changes)
    if plan.known:
        names = [name for name in plan.known if not _is_left_out(name, format)]
        refuse_unread(row, names, plan.read, plan.shape, changes)
    try:
        return parse(plan.shape, plan.renamed(row), row)
    except BadRow as error:
        raise type(error)(plan.in_their_words(str(error))) from None
    except UserError:
        raise
    except UNFORESEEN as error:
        raise unforeseen(error, plan.shape) from error


def unforeseen(error: Exception, shape: str) -> BadRow:
    """The bad row for such an error."""
    text = f"{type(error).__name__}: {one_line(str(error))}"
    return BadRow(f"a value is built otherwise than in the shape '{shape}' ({text})")


def shape_of(row: Mapping[str, Any], format: Format, allowed: Collection[Format]) -> Format:
    """The shape of a row; see `plan_of`."""
    return plan_of(row, format, allowed).shape


def unused_keys(row: Mapping[str, Any], format: Format) -> tuple[str, ...]:
    """The keys of a row that mean nothing to us, or that naming the format leaves out."""
    plan = _cached(tuple([key for key in row if row[key] is not None]), format)
    if plan is None:
        return ()
    left_out = [name for name in plan.known if _is_left_out(name, format)]
    heeded = {each.column for each in marks_in(row, plan.unknown) if is_heeded(each.mark, plan.shape, ["answer"])}
    return (*(name for name in plan.unknown if name not in PASSAGE_NAMES and name not in heeded), *left_out)


def warnings_of(row: Mapping[str, Any], format: Format) -> set[tuple[Effect, str]]:
    """The marks of a row that is read all the same: kept for tests, or flagged as harmful; each with its key."""
    plan = _cached(tuple([key for key in row if row[key] is not None]), format)
    return warned_marks(row, plan.unknown) if plan is not None and plan.unknown else set()


def key_words(shape: Format) -> list[str]:
    """The keys that tell a shape, as it is shown to people."""
    return [
        " or ".join(keys.split("|")[:2]) if keys.startswith("documents") else keys.split("|")[0]
        for keys in SHAPES[shape].needs
    ]
