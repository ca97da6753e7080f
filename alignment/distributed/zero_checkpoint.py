"""Checkpoints of DeepSpeed's ZeRO for another number of processes than has saved them, by its universal format.

ZeRO parts the optimizer among the processes. DeepSpeed's converter (`deepspeed.checkpoint.ds_to_universal`) puts the
parts together, a folder for each parameter, and its engine reads from there what each process of this launch holds.
"""

from __future__ import annotations

import contextlib
import io
import shutil
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from alignment.distributed import processes
from alignment.errors import CheckpointError
from alignment.files import keep_files

LATEST, UNIVERSAL = "latest", "latest_universal"
"""DeepSpeed's files with the name of the folder that holds the newest checkpoint."""


@contextmanager
def for_this_launch(checkpoint: Path, saved: int) -> Iterator[Path]:
    """A folder that holds what a checkpoint holds, as this number of processes can read it; gone afterwards.

    Every process must enter. Its files are known to be the run's own: DeepSpeed's are pickles.

    Args:
        saved: processes that have saved it.

    Raises:
        CheckpointError: DeepSpeed cannot convert it.
    """
    if saved == processes.world_size():
        yield checkpoint
        return
    # Of the names that the next save clears away, should this process be killed.
    folder = checkpoint.with_name(f".staging-{checkpoint.name}-for-{processes.world_size()}")
    processes.on_main_process(lambda: _convert(checkpoint, folder))
    try:
        yield folder
        processes.wait_for_everyone()  # not where one process has failed, for which the others may not come
    finally:
        if processes.is_main_process():
            shutil.rmtree(folder, ignore_errors=True)


def _convert(checkpoint: Path, folder: Path) -> None:
    from deepspeed.checkpoint import ds_to_universal

    tag = (checkpoint / LATEST).read_text(encoding="utf-8").strip()
    keep_files(checkpoint, folder)
    shutil.rmtree(folder / tag)
    options = Namespace(
        input_folder=str(checkpoint / tag), output_folder=str(folder / tag), num_extract_workers=1, num_merge_workers=1,
        keep_temp_folder=False, strict=True, inject_missing_state=True,
    )  # fmt: skip
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):  # it has much to say
            ds_to_universal.main(options)
    except Exception as error:
        raise CheckpointError(
            f"{checkpoint}: DeepSpeed cannot convert it for another number of processes ({type(error).__name__}: "
            f"{error}); launch as many as before"
        ) from error
    (folder / UNIVERSAL).write_text(tag, encoding="utf-8")


def load(engine: Any, folder: Path) -> None:
    """Load a folder that `for_this_launch` gave into a DeepSpeed engine; every process must call this.

    Raises:
        CheckpointError: DeepSpeed has no part in it for one of the processes.
    """
    engine._config.load_universal_checkpoint = (folder / UNIVERSAL).exists()
    try:
        loaded, _ = engine.load_checkpoint(str(folder), load_module_strict=False)
    except IndexError as error:  # of a group with fewer numbers than processes
        raise CheckpointError(
            f"{folder}: DeepSpeed cannot part it among {processes.world_size()} processes; launch as many as before"
        ) from error
    assert loaded is not None, folder
    mend(engine, folder)


def mend(engine: Any, folder: Path) -> None:
    """Put right what DeepSpeed 0.19.8 loads wrongly under ZeRO-3: every group with the learning rate, the weight decay
    and the number of steps of the first, and all with one counter of these, which each then counts up. A folder
    as it was saved needs nothing."""
    if not (folder / UNIVERSAL).exists():
        return
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum

    engine._config.load_universal_checkpoint = False  # of what it loads later
    optimizer = engine.optimizer.optimizer
    path = folder / (folder / UNIVERSAL).read_text(encoding="utf-8").strip() / "zero" / "optimizer_state.pt"
    with torch.serialization.safe_globals([LossScaler, DynamicLossScaler, ZeroStageEnum]):
        saved = torch.load(path, map_location="cpu", weights_only=True)
    for group, own in zip(optimizer.param_groups, saved["param_groups"], strict=True):
        group.update({name: value for name, value in own.items() if name != "params"})
    if "optimizer_state_dict" in saved:  # of ZeRO-3; else each parameter's own file has its steps
        states = saved["optimizer_state_dict"]["state"].values()
        for state, own in zip(optimizer.state.values(), states, strict=True):
            state["step"] = own["step"].clone() if isinstance(own["step"], torch.Tensor) else own["step"]
