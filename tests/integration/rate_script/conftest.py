"""A ratings file, and terminals that are closed after the test."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.rate_script import Screen, fill

from alignment.ratings import RatingsStore


@pytest.fixture
def screens() -> Iterator[list[Screen]]:
    opened: list[Screen] = []
    yield opened
    for screen in opened:
        screen.close()


@pytest.fixture
def db(tmp_path: Path) -> str:
    with RatingsStore(tmp_path / "ratings.db", create=True) as store:
        fill(store, 12, need=2)
    return str(tmp_path / "ratings.db")
