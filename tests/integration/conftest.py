"""One process with everything imported, and the models that small runs of the stages begin with."""

import pytest
from resuming import Server, build_house, one_code, plain_ranks, zero2_ranks


@pytest.fixture(scope="session")
def server():
    made = Server()
    yield made
    made.process.kill()
    made.process.wait()


@pytest.fixture(scope="session")
def forks(server):
    """Runs a stage in one process; call(folder, stage, arguments, actions)."""

    def call(folder, stage, arguments, actions=None):
        return one_code(server.run(folder, stage, arguments, [({}, actions or {})]))

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
def two_forks(server):
    """Runs a stage in two processes under ZeRO-2, to both of which the same happens."""

    def call(folder, stage, arguments, actions=None):
        ranks = [(variables, actions or {}) for variables in zero2_ranks()]
        return one_code(server.run(folder, stage, arguments, ranks))

    return call


@pytest.fixture(scope="session")
def resumed_house(tmp_path_factory, forks):
    folder = tmp_path_factory.mktemp("house")
    build_house(folder, forks)
    return folder
