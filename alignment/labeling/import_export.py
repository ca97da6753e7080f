"""Ratings in and out of files, and out of the world: what `alignment rate import`, `export` and `forget` do."""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from alignment.data.formats import UNFORESEEN, unforeseen
from alignment.data.importers import PassedOver
from alignment.data.row_files import BadRow
from alignment.data.writers import row_writer
from alignment.errors import UserError
from alignment.files import new_file
from alignment.labeling.entries import Entry, counted, stored_of
from alignment.labeling.formats.choice_numbers import check_numbers
from alignment.labeling.formats.inner import inner_fix, with_inner
from alignment.labeling.formats.reading import FileFormat, ImportOptions, Read
from alignment.labeling.formats.sheets import rating_rows
from alignment.labeling.formats.table import FORMATS, UNNAMED, WRITTEN, recognised
from alignment.labeling.formats.voting import UnknownWord, words_fix
from alignment.labeling.joining import Joiner
from alignment.ratings import RatingsStore
from alignment.ratings.records import item_key
from alignment.ratings.settings import WORDING_KINDS
from alignment.registry import Registry
from alignment.registry.ratings import reached_by
from alignment.terminal import one_line

MAX_BAD_SHARE = 0.01
"""A larger share of rows that cannot be used, and nothing is imported; as `data.max_bad_share` of training."""
_MOST_WORDS = 20
KINDS = {"pair": "pair", "rank": "ranking", "single": "single answer"}


def import_into(
    db: str | os.PathLike[str], format: str, path: str | Path, options: ImportOptions | None = None
) -> dict[str, Any]:
    """`import_file` into a ratings file; a missing one is made once the import has succeeded.

    The new file is built beside its place and linked into it. If another command has made the file meanwhile, that one
    stays, and the same rows are added to it.
    """
    if not os.path.exists(db):  # not Path.exists, which raises where a folder may not be entered
        try:
            with new_file(Path(db)) as part:
                try:
                    with RatingsStore(part, create=True) as store:
                        return import_file(store, format, path, options)
                except UserError as error:
                    raise UserError(str(error).replace(str(part), str(db))) from error
        except FileExistsError:
            pass
        except OSError as error:
            raise UserError(f"{db}: cannot be written: {error.strerror}; make room or name another --db") from error
    with RatingsStore(db, create=True) as store:
        return import_file(store, format, path, options)


def import_file(
    store: RatingsStore, format: str, path: str | Path, options: ImportOptions | None = None
) -> dict[str, Any]:
    """Take the items and ratings of a file into the store, all or none; the same file again changes nothing.

    Votes on the same answers come together in one item, or (in formats whose rows are items) the nth item of the same
    texts in a file is the nth such item of the store. An answer that contradicts what the labeler said in the store
    already is set aside, as a row is that cannot be used.

    Args:
        format: a name of `FORMATS`, or `auto`: told by the keys of the first row.

    Returns:
        Counts: `rows`, `items`, `new_items`, `ratings`, `new_ratings`, `labelers` and `passed_over` (by reason);
        `bad`, the reason by the place of each row set aside; `drops`, in words, what the format or this import leaves
        behind; `read_as`, all in a sentence; `notes`, how the file was read.

    Raises:
        UserError: no such format or file, nothing in it, or more than 1% of its rows are bad; nothing is imported.
    """
    if format != "auto":
        _known_format(format)
    if not os.path.lexists(path) and os.access(Path(path).absolute().parent, os.X_OK):
        raise UserError(f"{path}: no such file; name a data file or a folder of them")
    options = options or ImportOptions()
    notes: list[str] = []
    rows = rating_rows(path, notes.append)
    first = list(itertools.islice(rows, 1))
    name = format if format != "auto" else _told(path, first, options)
    chosen = FORMATS[name]
    importing = _Import(store, chosen, options, options.labeler or UNNAMED.get(name, "unnamed"))
    with store.transaction():
        for place, row in itertools.chain(first, rows):
            importing.take(place, row)
        check_numbers(importing.first_uncertain or str(path), importing.numbers)
        _check(path, importing.rows, importing.bad, importing.words)
        if not importing.items:
            reasons = "; ".join(f"{count} times {reason}" for reason, count in importing.passed_over.items())
            raise UserError(f"{path}: no vote in it as {chosen.title}: {reasons}; --columns choice=KEY names the votes")
        asked = store.settings.declare(importing.answered)
        for labeler in sorted(importing.simulated):
            store.people.mark_simulated(labeler)
    return importing.result(name, path) | {"notes": [*notes, *importing.notes(), *asked]}


def _told(path: str | Path, first: Sequence[tuple[str, Any]], options: ImportOptions) -> str:
    """The format that the first row has."""
    if not first:
        raise UserError(f"{path}: no rows in it; expected at least one")
    place, row = first[0]
    if isinstance(row, BadRow):
        raise UserError(f"{place}: {row}")
    name = recognised(row) if isinstance(row, Mapping) else None
    if name is None and not (options.columns and isinstance(row, Mapping)):
        keys = ", ".join(map(str, row)) if isinstance(row, Mapping) else f"no keys but a {type(row).__name__}"
        raise UserError(
            f"{place}: found {keys}, which no known format has; name one with --format ({', '.join(FORMATS)}), or say "
            f"which column is what: --columns prompt=KEY,a=KEY,b=KEY,choice=KEY,labeler=KEY{inner_fix(row)}"
        )
    return name or "votes"


class _Import:
    """An import on its way: what was read, and what was not."""

    def __init__(self, store: RatingsStore, chosen: FileFormat, options: ImportOptions, unnamed: str) -> None:
        self.store, self.chosen, self.options = store, chosen, options
        self.known = {item.id for item in store.items()}
        self.joiner = Joiner(store, unnamed) if chosen.joins else None
        self.copies: Counter[str] = Counter()  # items of the same texts
        self.rows = self.ratings = self.new_ratings = 0
        self.items: dict[int, str] = {}
        self.said: dict[tuple[int, str], tuple[Any, ...]] = {}
        self.simulated: set[str] = set()
        self.not_used: dict[str, None] = {}
        self.passed_over: Counter[str] = Counter()
        self.bad: dict[str, str] = {}
        self.words: dict[str, UnknownWord] = {}
        self.scale: Any = None
        self.scores: set[float] = set()
        self.numbers: dict[str, bool] = {}
        self.versions: dict[str, Mapping[int, int]] = {}
        self.answered: list[tuple[int, str, Mapping[str, Any]]] = []  # answers to questions that the file does not have
        self.first_uncertain: str | None = None  # the place of a choice whose number is not certain

    def take(self, place: str, row: Any) -> None:
        """Take one row of the file."""
        self.rows += 1
        try:
            read = self._read(place, row)
        except PassedOver as reason:
            self.passed_over[str(reason)] += 1
            return
        except (BadRow, UserError) as reason:
            if isinstance(reason, UnknownWord):
                self.words.setdefault(place, reason)
            self.bad[place] = str(reason)
            return
        self.passed_over.update(str(part) for part in read if isinstance(part, PassedOver))
        entries = [part for part in read if isinstance(part, Entry)]
        if reasons := [reason for entry in entries for reason in self._take(entry)]:
            self.bad[place] = "; ".join(dict.fromkeys(reasons))

    def _read(self, place: str, row: Any) -> Read:
        if isinstance(row, BadRow):
            raise row
        if not isinstance(row, Mapping):
            raise BadRow(f"expected an object with named keys, found a {type(row).__name__}")
        row = with_inner(row, self.options.columns.values())
        options = replace(self.options, file=Path(place.rpartition(":")[0]), numbers=self.numbers)
        try:
            read = self.chosen.read(row, options)
        except (BadRow, UserError):
            raise
        except UNFORESEEN as error:
            raise unforeseen(error, self.chosen.title) from error
        finally:
            if self.first_uncertain is None and not all(self.numbers.values()):
                self.first_uncertain = place
        if self.chosen.used is not None:
            used = self.chosen.used(row, options)
            used |= {name.partition(".")[0] for name in self.options.columns.values()}
            self.not_used |= dict.fromkeys(str(key) for key in row if key not in used)
        return read

    def _take(self, entry: Entry) -> Iterator[str]:
        """Take an item and its answers into the store; the reasons why it, or some of them, cannot be."""
        scale = (entry.metadata or {}).get("scale", [1, 7]) if entry.kind == "single" and self.joiner else None
        if scale is not None and scale != (self.scale or scale):
            low, high = self.scale
            yield f"a rating from {scale[0]:g} to {scale[1]:g} beside others from {low:g} to {high:g}: use two files"
            return
        self.scale = self.scale or scale
        if scale is not None:
            self.scores |= {answer["score"] for answer in entry.answers if "score" in answer}
        self.simulated |= entry.simulated
        for kind in WORDING_KINDS:
            if kind in entry.wordings:
                wordings = [(each["at"], each["text"]) for each in entry.wordings[kind]]
                self.versions[kind] = self.store.settings.take_wordings(kind, wordings)
        for part, copy in self.joiner.place(entry) if self.joiner else [(entry, self._copy(entry))]:
            try:
                item = self.store.add_item(
                    part.prompt, part.completions, part.need, part.metadata, part.kind, part.gold, copy=copy
                )
            except UserError as reason:
                yield str(reason)
                continue
            self.items[item] = part.kind
            for answer in part.answers:
                yield from self._answer(item, answer)

    def notes(self) -> list[str]:
        """Which scale was assumed, where the ratings do not show it."""
        highest = max(self.scores, default=7)
        if self.options.worst_high:
            return ["the highest rating is the worst, so ratings were turned round: the best is kept as the highest"]
        if self.scale is None or list(self.scale) != [1, 7] or self.options.scale or highest >= 7:
            return []
        low = min(self.scores)
        return [
            f"the ratings are read on the scale 1 to 7, of which the file has {low:g} to {highest:g}; if the labelers "
            f"had another, import into a new --db with --scale LOW..HIGH, as --scale 1..{highest:g}"
        ]

    def _copy(self, entry: Entry) -> int:
        key = item_key(entry.kind, [dict(turn) for turn in entry.prompt], entry.completions)
        self.copies[key] += 1
        return self.copies[key] - 1

    def _answer(self, item: int, answer: Mapping[str, Any]) -> Iterator[str]:
        answer = dict(answer)
        for kind in WORDING_KINDS:  # the file's versions have other numbers here
            answer[kind] = self.versions.get(kind, {}).get(answer.get(kind) or 0)
        key = (item, answer["labeler"])
        said = tuple(str(answer.get(name)) for name in ("choice", "strength", "ranks", "score", "given"))
        if self.joiner and key in self.said:
            same = "as before" if self.said[key] == said else "otherwise; the first is kept"
            self.passed_over[f"a labeler's second vote on the same answers, {same}"] += 1
            return
        try:
            self.new_ratings += self.store.import_rating(item, **answer)
            self.ratings += 1
            self.said[key] = said
            if self.chosen.asks and answer.get("answers"):
                self.answered.append((item, answer["labeler"], answer["answers"]))
        except UserError as reason:
            yield str(reason).removeprefix(f"{self.store.path}: ")

    def result(self, name: str, path: str | Path) -> dict[str, Any]:
        labelers = {labeler for _, labeler in self.said}
        kinds = Counter(self.items.values())
        scale = " ({:g} to {:g})".format(*self.scale) if self.scale else ""
        items = [_count(count, KINDS[kind]) + scale * (kind == "single") for kind, count in kinds.items()]
        people = f"{_count(self.ratings, 'vote')} of {_count(len(labelers), 'labeler')}"
        return {
            "read_as": f"{self.chosen.title}: {' and '.join(items) or 'no items'}, {people}",
            "format": name,
            "file": str(path),
            "rows": self.rows,
            "items": len(self.items),
            "new_items": len(self.items.keys() - self.known),
            "ratings": self.ratings,
            "new_ratings": self.new_ratings,
            "labelers": len(labelers),
            "passed_over": dict(self.passed_over),
            "not_used": list(self.not_used),
            "bad": self.bad,
            "drops": self.chosen.import_drops,
        }


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'s' * (number != 1)}"


def _check(path: str | Path, rows: int, bad: dict[str, str], words: Mapping[str, UnknownWord]) -> None:
    if rows == 0:
        raise UserError(f"{path}: no rows in it; expected at least one")
    if len(bad) > MAX_BAD_SHARE * rows:
        place, reason = next(iter(bad.items()))
        if place in words:
            same = [word for word in words.values() if word.about == words[place].about]
            reason = words_fix(list({word.word: word for word in same}.values())[:_MOST_WORDS])
        raise UserError(
            f"{place}: {reason} ({len(bad)} of {rows} rows cannot be used, 1 in 100 may); nothing "
            "was imported: fix the rows, or name another --format"
        )


def export_file(store: RatingsStore, format: str, path: str | Path) -> dict[str, Any]:
    """Write the store's items and ratings to a new file, in one piece or not at all.

    Returns:
        Counts: `rows` written, `items` and `ratings` of the store (skips and controls too), `left_out` by reason;
        `drops`, in words, what the format has no room for; of some formats `not_in_this_format`, with its numbers.

    Raises:
        UserError: no such format, a suffix that it is not written with, a file that exists, or nothing to write.
    """
    chosen = _known_format(format)
    if chosen.write is None:
        raise UserError(f"--format {format}: this format is only read; write one of {', '.join(WRITTEN)}")
    stored = stored_of(store)
    left_out: Counter[str] = Counter()
    rows = 0
    with row_writer(Path(path), suffixes=chosen.suffixes) as write:
        for row in chosen.write(stored, left_out):
            write(row)
            rows += 1
        if rows == 0:
            reasons = "; ".join(f"{count} {reason}" for reason, count in left_out.items()) or "it has no items"
            raise UserError(f"{store.path}: nothing to write as {format}: {reasons}")
    return {
        "format": format,
        "file": str(path),
        "rows": rows,
        "items": len(stored.items),
        "ratings": len(stored.ratings),
        "left_out": dict(left_out),
        "drops": chosen.export_drops,
    } | ({"not_in_this_format": f"{words}; --format jsonl keeps them"} if (words := counted(stored.lost)) else {})


def _known_format(name: str) -> FileFormat:
    if name not in FORMATS:
        raise UserError(f"--format {name}: no such format; expected one of {', '.join(FORMATS)}")
    return FORMATS[name]


# --- forget --------------------------------------------------------------------------------------------------------


def forget(db: str | Path, labeler: str, registry_path: str | Path | None = None) -> dict[str, Any]:
    """Remove a labeler from the store and list the models of a registry that learned from their ratings.

    The models stay: what to do about them is a person's decision.

    Returns:
        `ratings` removed; `hash`, which stands for the labeler in manifests; `registry` that was searched and how many
        `versions` it holds; `models`, each with its `ref`, the number
        of `ratings` of theirs that it was trained on itself (0: it was made with such a model), and `through`, the
        references of its own ancestors that were; `unreadable`, versions whose manifest could not be read.

    Raises:
        UserError: no such store; or the labeler's bytes could not be wiped because another program has the file open.
    """
    registry = Registry(registry_path)
    with RatingsStore(db) as store:
        hashed = store.people.labeler_hash(labeler)
        reached, unreadable = reached_by(registry, hashed)  # first: a bad registry stops all
        removed = store.people.forget(labeler)
    return {
        "labeler": labeler,
        "hash": hashed,
        "ratings": removed,
        "registry": str(registry.path),
        "versions": sum(len(registry.numbers(name)) for name in registry.names()),
        "models": [{"ref": each.ref, "ratings": each.ratings, "through": list(each.through)} for each in reached],
        "unreadable": unreadable,
    }


def show_forgotten(found: dict[str, Any], console: Console, called: str = "alignment rate") -> None:
    """Print what `forget` did and found."""
    console.print(f"{one_line(found['labeler'])}: {found['ratings']} ratings removed; {found['hash']} in manifests")
    if not found["ratings"]:
        console.print(f"There are no ratings by this name here (any more); {called} report lists the labelers.")
    for model in found["models"]:
        origin = [f"trained on {model['ratings']} ratings of theirs"] * bool(model["ratings"])
        origin += [f"made with {', '.join(map(one_line, model['through']))}"] * bool(model["through"])
        console.print(f"  {one_line(model['ref'])}: {'; '.join(origin)}")
    if found["models"]:
        console.print("These models stay. Train them anew on what is left, or say why they may stay.")
    elif found["versions"]:
        console.print(f"No model in the registry {one_line(found['registry'])} was trained on their ratings.")
    else:
        console.print(
            f"There are no models in the registry {one_line(found['registry'])}; if yours are in another, run this"
            " again with --registry."
        )
    for problem in found["unreadable"]:
        console.print(f"  cannot be read, so nobody knows: {one_line(problem)}")
