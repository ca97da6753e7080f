"""Restrict training to some labelers (`reward.labelers`), so that another reward model can train on the others."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from alignment.config.sections import DataConfig, DataPart, Format
from alignment.data.attributes import AttributeReader
from alignment.data.importers import PassedOver
from alignment.data.parsing import to_judgements
from alignment.data.records import Comparison, CompletionRating
from alignment.data.row_files import BadRow, DataError
from alignment.data.sources import open_source
from alignment.ratings import RatingsStore, is_ratings_file
from alignment.ratings.preferred import nothing_rated
from reward.config import RewardSection

Read = Callable[..., Sequence[Comparison | CompletionRating]]
MOST_SHOWN = 20
"""Maximum number of names in an error."""


def reader_of(settings: RewardSection) -> Read:
    """Gives the judgements of a row: of `reward.attributes`, or of the answers as a whole."""
    return AttributeReader(settings.attributes) if settings.attributes else to_judgements


def resolved(labelers: Sequence[str], config: DataConfig, read: Read = to_judgements) -> tuple[str, ...]:
    """Resolve labelers to the names in votes: a hash for a ratings file, the name for other files.

    A hash is kept, so the function is idempotent.

    Args:
        read: gives the judgements of a row (`reader_of`).

    Raises:
        DataError: a labeler has no rating, or a source has no rating by any of them.
    """
    if not labelers:
        return ()
    sources = {part.path: known_labelers(part, config, read) for part in (*config.parts, config.eval_part) if part}
    everybody = {name for known in sources.values() for name in known.values()}
    ids_used: dict[str, None] = {}
    for labeler in labelers:
        ids = [id for known in sources.values() for id, name in known.items() if labeler in (id, name)]
        if not ids:
            raise DataError(
                f"reward.labelers: no rating in {', '.join(sources)} is by {labeler!r}; there are ratings by "
                f"{_listed(everybody)}"
            )
        ids_used |= dict.fromkeys(ids)
    for path, known in sources.items():
        if not known.keys() & ids_used.keys():
            raise DataError(
                f"{path}: none of reward.labelers ({_listed(labelers)}) rated here; there are ratings by "
                f"{_listed(known.values())}; name one of them, or take the file out of the data section"
            )
    return tuple(ids_used)


def known_labelers(part: DataPart, config: DataConfig, read: Read = to_judgements) -> dict[str, str]:
    """The labelers of a source: the labeler in votes -> the name.

    Args:
        read: gives the judgements of a row.

    Raises:
        DataError: a ratings file has no ratings.
    """
    if is_ratings_file(part.path):
        with RatingsStore(part.path) as store:
            names = store.labelers()
            if not names:
                raise nothing_rated(part.path)
            return {store.people.labeler_hash(name): name for name in names}
    names_seen: set[str] = set()
    for _, row in open_source(part, config).rows:
        if isinstance(row, Mapping):
            try:
                judged = read(row, part.format or "auto")
            except (BadRow, PassedOver):  # the pass that reads the training data counts them
                continue
            names_seen |= {name for judgement in judged for name in _names(judgement) if name is not None}
    return {name: name for name in names_seen}


def judgements_by(
    labelers: Collection[str],
    row: Mapping[str, Any],
    format: Format = "auto",
    read: Read = to_judgements,
) -> list[Comparison | CompletionRating]:
    """The judgements by these labelers in a row of a file.

    Args:
        read: gives the judgements of a row by anybody.

    Raises:
        PassedOver: there are none.
    """
    kept: list[Comparison | CompletionRating] = []
    for judgement in read(row, format):
        if isinstance(judgement, CompletionRating):
            kept += [judgement] if judgement.labeler in labelers else []
        elif votes := tuple(vote for vote in judgement.votes if vote.labeler in labelers):
            kept.append(replace(judgement, votes=votes))
    if not kept:
        raise PassedOver("rated by none of reward.labelers")
    return kept


def _names(judgement: Comparison | CompletionRating) -> list[str | None]:
    if isinstance(judgement, CompletionRating):
        return [judgement.labeler]
    return [vote.labeler for vote in judgement.votes]


def _listed(names: Collection[str]) -> str:
    shown = sorted(set(names))
    if not shown:
        return "unnamed people"
    more = f" and {len(shown) - MOST_SHOWN} more" if len(shown) > MOST_SHOWN else ""
    return ", ".join(shown[:MOST_SHOWN]) + more
