"""`reward.labelers`: learning from some labelers alone, so that another reward model can learn from the others."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from alignment.config.sections import DataConfig, DataPart, Format
from alignment.data.importers import PassedOver
from alignment.data.parsing import to_judgements
from alignment.data.records import Comparison, Rating
from alignment.data.row_files import BadRow, DataError
from alignment.data.sources import open_source
from alignment.ratings import RatingsStore, is_ratings_file

MOST_SHOWN = 20
"""Names in an error."""


def resolved(labelers: Sequence[str], config: DataConfig) -> tuple[str, ...]:
    """The labelers as votes name them: by hash where they rated in a database, by name where a file says who voted.

    A hash stays as it is, so the result of one call may be given to another.

    Raises:
        DataError: there is no rating by one of them, or a source holds none by any of them.
    """
    if not labelers:
        return ()
    sources = {part.path: known_labelers(part, config) for part in (*config.parts, config.eval_part) if part}
    everybody = {name for known in sources.values() for name in known.values()}
    found: dict[str, None] = {}
    for labeler in labelers:
        ids = [id for known in sources.values() for id, name in known.items() if labeler in (id, name)]
        if not ids:
            raise DataError(
                f"reward.labelers: no rating in {', '.join(sources)} is by {labeler!r}; there are ratings by "
                f"{_listed(everybody)}"
            )
        found |= dict.fromkeys(ids)
    for path, known in sources.items():
        if not known.keys() & found.keys():
            raise DataError(
                f"{path}: none of reward.labelers ({_listed(labelers)}) rated here; there are ratings by "
                f"{_listed(known.values())}; name one of them, or take the file out of the data section"
            )
    return tuple(found)


def known_labelers(part: DataPart, config: DataConfig) -> dict[str, str]:
    """Who rated in a source: what stands for a labeler in votes -> the name.

    Raises:
        DataError: nothing is rated in a database.
    """
    if is_ratings_file(part.path):
        with RatingsStore(part.path) as store:
            names = store.labelers()
            if not names:
                raise nothing_rated(part.path)
            return {store.people.labeler_hash(name): name for name in names}
    found: set[str] = set()
    for _, row in open_source(part, config).rows:
        if isinstance(row, Mapping):
            try:
                judged = to_judgements(row, part.format or "auto")
            except (BadRow, PassedOver):  # counted by whoever reads the rows to learn from them
                continue
            found |= {name for each in judged for name in _names(each) if name is not None}
    return {name: name for name in found}


def nothing_rated(path: str) -> DataError:
    """The error of a database without a rating to learn from."""
    return DataError(f"{path}: nothing is rated yet; rate some with scripts/rate.py --db {path} --labeler NAME")


def judgements_by(
    labelers: Collection[str], row: Mapping[str, Any], format: Format = "auto"
) -> list[Comparison | Rating]:
    """What these labelers said in a row of a file.

    Raises:
        PassedOver: nothing.
    """
    found: list[Comparison | Rating] = []
    for each in to_judgements(row, format):
        if isinstance(each, Rating):
            found += [each] if each.labeler in labelers else []
        elif votes := tuple(vote for vote in each.votes if vote.labeler in labelers):
            found.append(replace(each, votes=votes))
    if not found:
        raise PassedOver("rated by none of reward.labelers")
    return found


def _names(judgement: Comparison | Rating) -> list[str | None]:
    if isinstance(judgement, Rating):
        return [judgement.labeler]
    return [vote.labeler for vote in judgement.votes]


def _listed(names: Collection[str]) -> str:
    shown = sorted(set(names))
    if not shown:
        return "people whose names are not in it"
    more = f" and {len(shown) - MOST_SHOWN} more" if len(shown) > MOST_SHOWN else ""
    return ", ".join(shown[:MOST_SHOWN]) + more
