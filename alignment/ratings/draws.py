"""Completions in the order in which they are drawn, kept so that a killed `alignment sample` resumes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict

from alignment.ratings.file import RatingsFile
from alignment.ratings.records import Completion, dump

_TABLE = "CREATE TABLE IF NOT EXISTS draw(key TEXT PRIMARY KEY, completion TEXT NOT NULL) WITHOUT ROWID"


class Draws:
    """The drawn completions of one ratings file. A key names the model, the prompt, its place and the settings."""

    def __init__(self, file: RatingsFile) -> None:
        self._file = file

    def add(self, drawn: Mapping[str, Completion]) -> None:
        """Keep completions by their keys; a key that is there already keeps its completion."""
        rows = [(key, dump(asdict(completion))) for key, completion in drawn.items()]
        with self._file.transaction():
            self._file.db.execute(_TABLE)
            self._file.db.executemany("INSERT OR IGNORE INTO draw(key, completion) VALUES(?, ?)", rows)

    def known(self, keys: Iterable[str]) -> dict[str, Completion]:
        """The kept completions among these keys."""
        with self._file.transaction():
            self._file.db.execute(_TABLE)
            found = {
                key: self._file.db.execute("SELECT completion FROM draw WHERE key = ?", (key,)).fetchone()
                for key in keys
            }
        return {key: Completion(**json.loads(row["completion"])) for key, row in found.items() if row is not None}
