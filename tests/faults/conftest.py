"""Makes the fixtures of `forking.py` known here, and counts what is tried."""

from __future__ import annotations

from collections.abc import Generator, Iterator

import pytest
from forking import forks, forks_of, plain_forks, resumed_house, server, two_forks  # noqa: F401
from helpers.figures import Trials

OUTCOME = pytest.StashKey[str]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.when == "call":
        item.stash[OUTCOME] = report.outcome
    return report


@pytest.fixture
def tried(request: pytest.FixtureRequest) -> Iterator[Trials]:
    """Call it with each fault, before what could fail; see helpers/figures.py. The module's TITLE names the table."""
    trials = Trials(request.module.TITLE)
    yield trials
    if (outcome := request.node.stash.get(OUTCOME, None)) in ("passed", "failed"):  # neither skipped nor interrupted
        trials.end(held=outcome == "passed")
