"""Starting `accelerate launch` from a test, and leaving nothing of it behind."""

from __future__ import annotations

import contextlib
import json
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


SETTINGS = (
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
    "gradient_clipping",
)
"""What a DeepSpeed config has to leave to the suite's."""


def deepspeed_file(folder: Path, name: str, **zero: object) -> Path:
    """A launch file for two processes with such a `zero_optimization` section."""
    # DeepSpeed's own Adam would have to be compiled first.
    given = {"zero_optimization": zero, "zero_force_ds_cpu_optimizer": False} | dict.fromkeys(SETTINGS, "auto")
    (folder / f"{name}.json").write_text(json.dumps(given))
    file = folder / f"{name}.yaml"
    file.write_text(
        f"distributed_type: DEEPSPEED\ndeepspeed_config:\n  zero3_init_flag: {zero['stage'] == 3}\n"
        f"  deepspeed_config_file: {folder / name}.json\nnum_processes: 2\nuse_cpu: false\n"
    )
    return file


PARTED = {"stage": 3, "stage3_param_persistence_threshold": 0, "stage3_gather_16bit_weights_on_model_save": True}
"""ZeRO-3 that parts every weight: DeepSpeed leaves those below 100,000 numbers whole, which are all that tests have."""


@dataclass
class Finished:
    code: int
    output: str


def environment(**variables: str) -> dict[str, str]:
    """This one's, with the checkout and tests/ to import from."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths, **variables}


def heed_signals() -> None:
    """For `preexec_fn`: a shell's background jobs ignore SIGINT, those of `nohup` SIGHUP, and their children too."""
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)


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
        preexec_fn=heed_signals,
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
