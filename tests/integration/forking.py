"""Fixtures: one process with everything imported, and the models that small runs of the stages begin with."""

import launching
import pytest
from resuming import Server, build_house, launched_ranks, one_code, plain_ranks


@pytest.fixture(scope="session")
def server():
    made = Server()
    yield made
    made.process.kill()
    made.process.wait()


@pytest.fixture(scope="session")
def forks(server):
    """Runs a stage in one process; call(folder, stage, arguments, actions, **variables)."""

    def call(folder, stage, arguments, actions=None, **variables):
        return one_code(server.run(folder, stage, arguments, [(variables, actions or {})]))

    return call


@pytest.fixture(scope="session")
def plain_forks(server):
    """Runs a stage in some processes without DeepSpeed; actions of each, and more variables of all."""

    def call(folder, stage, arguments, *actions, **variables):
        given = plain_ranks(len(actions))
        ranks = [({**own, **variables}, done) for own, done in zip(given, actions, strict=True)]
        return server.run(folder, stage, arguments, ranks)

    return call


@pytest.fixture(scope="session")
def forks_of(server):
    """Given a launch file for two processes, what runs a stage in them, to both of which the same happens."""

    def of(launch_file):
        def call(folder, stage, arguments, actions=None, **variables):
            ranks = [({**own, **variables}, actions or {}) for own in launched_ranks(launch_file)]
            return one_code(server.run(folder, stage, arguments, ranks))

        return call

    return of


@pytest.fixture(scope="session")
def two_forks(forks_of):
    """Runs a stage in two processes under ZeRO-2."""
    return forks_of(launching.ZERO2)


@pytest.fixture(scope="session")
def resumed_house(tmp_path_factory, forks):
    folder = tmp_path_factory.mktemp("house")
    build_house(folder, forks)
    return folder
