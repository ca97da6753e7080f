"""A process with everything imported and the shim of full_disk.c, and the models that small runs begin with."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / "integration"))  # `resuming` and what it imports

from resuming import Server, build_house, one_code  # noqa: E402


@pytest.fixture(scope="session")
def shim(tmp_path_factory):
    """The compiled shim."""
    if (compiler := shutil.which("cc")) is None:
        pytest.skip("no C compiler for the shim of a full disk")
    path = tmp_path_factory.mktemp("shim") / "full_disk.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", path, HERE / "full_disk.c", "-ldl"], check=True)
    return path


@pytest.fixture(scope="session")
def forks(shim):
    """Runs a stage in one process; call(folder, stage, arguments, actions, **variables)."""
    server = Server(LD_PRELOAD=str(shim), PYTHONPATH=os.pathsep.join([str(HERE), *sys.path]))

    def call(folder, stage, arguments, actions=None, **variables):
        return one_code(server.run(folder, stage, arguments, [(variables, actions or {})]))

    yield call
    server.process.kill()
    server.process.wait()


@pytest.fixture(scope="session")
def house(tmp_path_factory, forks):
    folder = tmp_path_factory.mktemp("house")
    build_house(folder, forks)
    return folder
