"""Starting `accelerate launch` from a test, and leaving nothing of it behind."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ZERO2 = ROOT / "configs" / "accelerate" / "zero2.yaml"
# Two processes of plain data parallelism; without a GPU accelerate runs MULTI_GPU on the CPU, through gloo.
DDP = "distributed_type: MULTI_GPU\nnum_processes: 2\nmixed_precision: 'no'\nuse_cpu: false\n"


@dataclass
class Finished:
    code: int
    output: str


def environment(**variables: str) -> dict[str, str]:
    """This one's, with the checkout and tests/ to import from."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths, **variables}


def run(command: list[str], folder: Path, timeout: float = 300, **variables: str) -> Finished:
    """Run a command in a process group of its own, which is gone when this returns, whatever happened."""
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=environment(**variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=timeout)
    finally:
        if process.poll() is None:  # the launcher's workers are in sessions of their own, and it alone can end them
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(40)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return Finished(process.returncode, output)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def launch(config: Path, target: list[str], folder: Path, **variables: str) -> Finished:
    """`accelerate launch --config_file CONFIG TARGET...` on a free port."""
    port = free_port()
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config)]
    return run([*command, "--main_process_port", str(port), *target], folder, **variables)
