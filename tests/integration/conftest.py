"""Processes that stages are run in, without the time that importing them takes."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import launching
import pytest

HERE = Path(__file__).resolve().parent


class Server:
    """A process that has everything imported, and forks one for each stage that it is to run (`dying.py`)."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "dying.py"), "preload"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True, cwd=HERE, env=launching.environment(),
        )  # fmt: skip

    def start(self, folder: Path, stage: str, arguments: list[str], kill_at: int, **variables: str) -> None:
        request = {"folder": str(folder), "stage": stage, "arguments": arguments, "kill_at": kill_at}
        assert self.process.stdin
        self.process.stdin.write(json.dumps(request | {"variables": variables}) + "\n")
        self.process.stdin.flush()

    def wait(self) -> int:
        assert self.process.stdout
        return int(self.process.stdout.readline())


@pytest.fixture(scope="session")
def servers():
    made = [Server(), Server()]
    yield made
    for server in made:
        server.process.kill()
        server.process.wait()


@pytest.fixture(scope="session")
def forks(servers):
    """Runs a stage in one process; call(folder, stage, arguments, kill_at)."""

    def call(folder: Path, stage: str, arguments: list[str], kill_at: int = 0, **variables: str) -> int:
        servers[0].start(folder, stage, arguments, kill_at, **variables)
        return servers[0].wait()

    return call


@pytest.fixture(scope="session")
def forks_of(servers, tmp_path_factory) -> Callable[[Path], Callable[..., int]]:
    """Given a launch file for two processes, what runs a stage in two, in the environment that `accelerate launch` with
    that file makes for them."""

    @functools.cache
    def environments(launch_file: Path) -> list[dict[str, str]]:
        folder = tmp_path_factory.mktemp("launch")
        done = launching.launch(launch_file, [str(HERE / "dying.py"), "environment"], folder)
        assert done.code == 0, done.output
        given = [json.loads((folder / f"environment-{rank}.json").read_text()) for rank in range(2)]
        for variables in given:  # there is no launcher here whose store the processes could meet in
            variables.pop("TORCHELASTIC_USE_AGENT_STORE")
        return given

    def of(launch_file: Path) -> Callable[..., int]:
        def call(folder: Path, stage: str, arguments: list[str], kill_at: int = 0, **variables: str) -> int:
            more = {**variables, "MASTER_PORT": str(launching.free_port())}
            for server, own in zip(servers, environments(launch_file), strict=True):
                server.start(folder, stage, arguments, kill_at, **{**own, **more})
            codes = [server.wait() for server in servers]
            assert codes[0] == codes[1], codes
            return codes[0]

        return call

    return of


@pytest.fixture(scope="session")
def two_forks(forks_of):
    """Runs a stage in two processes under ZeRO-2."""
    return forks_of(launching.ZERO2)
