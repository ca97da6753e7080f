"""A ratings file, its store, and the page that serves it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.applications import Starlette

from alignment.labeling import web
from alignment.ratings import RatingsStore


@pytest.fixture
def db(tmp_path: Path) -> Path:
    path = tmp_path / "ratings.db"
    with RatingsStore(path, create=True) as store:
        store.settings.repeat_share = 0.0
    return path


@pytest.fixture
def store(db: Path) -> Iterator[RatingsStore]:
    with RatingsStore(db) as store:
        yield store


@pytest.fixture
def app(db: Path) -> Starlette:
    return web.make_app(db)
