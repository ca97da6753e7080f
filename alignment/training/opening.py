"""Opening a run's outputs: its journal with the W&B mirror, and its checkpoints."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from alignment.config.sections import RunConfig
from alignment.distributed import processes
from alignment.errors import ConfigError
from alignment.registry import Registry, RegistryError
from alignment.registry.references import check_alias
from alignment.reports.verdicts import summary_of
from alignment.runs.checkpoint import Checkpoints
from alignment.runs.journal import Journal, Recorder
from alignment.runs.resume import Start
from alignment.runs.run import Run
from alignment.tracking.wandb_names import WandbNames
from alignment.tracking.wandb_sink import WandbSink

if TYPE_CHECKING:
    from transformers import Trainer


def open_journal(config: RunConfig, stage: str, start: Start | None = None) -> Journal:
    """The run's journal with its W&B mirror on the main process, and a disabled one on other ranks.

    Args:
        start: the checkpoint to resume from; the journal is truncated there.
    """
    is_main = processes.is_main_process()
    run = start.run if start else Run()
    names = WandbNames.of(config.tracking, config.name, run.id)
    sink = None
    if is_main and names.mode != "disabled":
        sink = WandbSink(
            config.run_dir,
            mode=names.mode,
            project=names.project,
            name=names.name,
            group=names.group,
            run_id=names.run_id,
            stage=stage,
            config=config.model_dump(mode="json"),
            attempt=run.attempt,
            text=config.tracking.wandb_text,
        )
    return Journal(
        config.run_dir,
        sink,
        stage,
        enabled=is_main,
        resume=start.journal if start else None,
        summary=lambda code: summary_of(config.run_dir, code),
    )


def open_checkpoints(
    config: RunConfig, start: Start, journal: Journal, *, keep: int, data: Any, part: str | None = None
) -> Checkpoints:
    """The run's checkpoints, after checking that the run can resume from the one in `start`.

    Args:
        data: fingerprints of all training and evaluation data.
    """
    data = hashlib.sha256(json.dumps(data, sort_keys=True, default=str).encode()).hexdigest()
    backend = f"DeepSpeed ZeRO-{stage}" if (stage := processes.launched_zero_stage()) else "no DeepSpeed"
    if processes.under_fsdp():
        backend = "FSDP2"
    processes.on_main_process(lambda: start.check(data, backend))
    return Checkpoints(
        config.run_dir, start.run.id, keep=keep, data=data, backend=backend, journal_offsets=journal.offsets,
        note=journal.event, part=part,
    )  # fmt: skip


def backend_event(journal: Recorder, trainer: Trainer) -> None:
    """Recorder the backend in use, so that a silent fallback to one process is visible."""
    journal.event("backend", **processes.backend(trainer.accelerator, trainer.model_wrapped))


def open_registry(config: RunConfig, run: Run | None = None) -> Registry:
    """The config's registry; a bad `registry.alias` is refused here, before the training.

    Args:
        run: pins references to what they meant when the run began.
    """
    if config.registry.alias:
        try:
            check_alias(config.registry.alias)
        except RegistryError as error:
            raise ConfigError(f"registry.alias: {error}") from None
    return Registry(config.registry.path, pins=run.models if run else None)
