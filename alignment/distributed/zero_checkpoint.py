"""ZeRO checkpoints at another world size, through DeepSpeed's universal format.

ZeRO shards the optimizer over the ranks. DeepSpeed's converter (`deepspeed.checkpoint.ds_to_universal`) merges the
shards into one folder per parameter, and its engine reads from there what each rank of this launch holds.
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

LATEST = "latest"
"""DeepSpeed's file that names the folder of the newest checkpoint."""
UNIVERSAL = "latest_universal"
"""DeepSpeed's file that names the folder of the newest checkpoint in universal format."""


@contextmanager
def resharded(checkpoint: Path, saved: int) -> Iterator[Path]:
    """A folder with the checkpoint's contents, readable at this world size; it is removed at the end.

    Every rank must enter. The checkpoint must be verified first: DeepSpeed's files are pickles.

    Args:
        saved: world size of the run that saved it.

    Raises:
        CheckpointError: DeepSpeed cannot convert the checkpoint.
    """
    if saved == processes.world_size():
        yield checkpoint
        return
    # The next save clears folders of this name, should this process be killed.
    folder = checkpoint.with_name(f".staging-{checkpoint.name}-for-{processes.world_size()}")
    processes.on_main_process(lambda: _convert(checkpoint, folder))
    try:
        yield folder
        processes.wait_for_everyone()  # skipped after an error: the other ranks may not arrive
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
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            ds_to_universal.main(options)  # the converter is chatty
    except Exception as error:
        raise CheckpointError(
            f"{checkpoint}: DeepSpeed cannot convert it for another number of processes ({type(error).__name__}: "
            f"{error}); launch as many as before"
        ) from error
    (folder / UNIVERSAL).write_text(tag, encoding="utf-8")


def load(engine: Any, folder: Path) -> None:
    """Load a folder from `resharded` into a DeepSpeed engine; every rank must call this.

    Raises:
        CheckpointError: the folder has no shard for one of the ranks.
    """
    engine._config.load_universal_checkpoint = (folder / UNIVERSAL).exists()
    try:
        loaded, _ = engine.load_checkpoint(str(folder), load_module_strict=False)
    except IndexError as error:  # a group has fewer elements than there are ranks
        raise CheckpointError(
            f"{folder}: DeepSpeed cannot shard it over {processes.world_size()} processes; launch as many as before"
        ) from error
    assert loaded is not None, folder
    repair_zero3_state(engine, folder)


def repair_zero3_state(engine: Any, folder: Path) -> None:
    """Repair what DeepSpeed 0.19.8 loads wrongly from a universal checkpoint under ZeRO-3.

    It gives every group the first group's learning rate, weight decay and step count, and lets all groups share one
    counter object, which each of them then increments. A folder in DeepSpeed's own format needs no repair.
    """
    if not (folder / UNIVERSAL).exists():
        return
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum

    engine._config.load_universal_checkpoint = False  # later loads are in DeepSpeed's own format
    optimizer = engine.optimizer.optimizer
    path = folder / (folder / UNIVERSAL).read_text(encoding="utf-8").strip() / "zero" / "optimizer_state.pt"
    with torch.serialization.safe_globals([LossScaler, DynamicLossScaler, ZeroStageEnum]):
        saved = torch.load(path, map_location="cpu", weights_only=True)
    for group, saved_group in zip(optimizer.param_groups, saved["param_groups"], strict=True):
        group.update({name: value for name, value in saved_group.items() if name != "params"})
    if "optimizer_state_dict" in saved:  # ZeRO-3 saves this; otherwise each parameter's own file has its steps
        saved_states = saved["optimizer_state_dict"]["state"].values()
        for state, saved_state in zip(optimizer.state.values(), saved_states, strict=True):
            step = saved_state["step"]
            state["step"] = step.clone() if isinstance(step, torch.Tensor) else step
