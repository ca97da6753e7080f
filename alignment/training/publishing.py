"""Publishing a stage's model: the registry, pinned references, and the published version."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from alignment.config.sections import RunConfig
from alignment.distributed import processes
from alignment.models import saved_adapters
from alignment.models.policies import check_finite
from alignment.models.same_tokenizer import check_folder
from alignment.models.sources import ModelSource
from alignment.registry import Parent, Registry, Version
from alignment.registry.manifest import Role, Stage
from alignment.runs.journal import Journal
from alignment.runs.record import read_rows
from alignment.runs.resume import Start
from alignment.runs.run import Run
from alignment.tracking.mirror import mirrored_model
from alignment.training.opening import open_journal
from alignment.training.start_model import compared_parts


def pin_models(config: RunConfig, registry: Registry, run: Run) -> None:
    """Save the meaning of each reference that was resolved, since an alias may move before the run is resumed."""
    if processes.is_main_process() and run.attempts:
        run.model_copy(
            update={"models": {**run.models, **{ref: pin for ref, pin in registry.resolved.items() if ref != pin}}}
        ).write(config.run_dir)


def only_model(folder: Path, base: ModelSource | None) -> Path:
    """Remove the trainer's pickled arguments, which the registry refuses, and PEFT's card, which would replace the
    registry's. An adapter gets the name of its base."""
    for name in ("training_args.bin", "README.md"):
        (folder / name).unlink(missing_ok=True)
    if base:
        saved_adapters.name_base(folder, base.label)
    return folder


def published_before(config: RunConfig, stage: Stage, registry: Registry, run: Run) -> dict[str, Any] | None:
    """The version that an earlier attempt of this run published before it was killed, if any.

    If that attempt could not say so in the journal, this one does.
    """

    def find() -> dict[str, Any] | None:
        version = registry.published(config.registry.name, run.publish_id(config.registry.name))
        if version is None:
            return None
        if config.registry.alias:
            registry.set_alias(version.name, config.registry.alias, version.number)
        metrics = version.manifest.metrics
        events = read_rows(config.run_dir / "events.jsonl")
        if not any(event.get("event") == "published" for event in events):
            with open_journal(config, stage, Start(run)) as journal:
                journal.mirror(mirrored_model(version, registry))
                announce(journal, registry, version.ref, metrics or {})
        return {"model": version.ref, "metrics": metrics}

    return processes.on_main_process(find)


def announce(journal: Journal, registry: Registry, ref: str, metrics: Mapping[str, Any]) -> None:
    """Write into the journal what was published, with its digest: `alignment models verify` compares it."""
    if processes.is_main_process():
        journal.event("published", model=ref, digest=registry.resolve(ref).digest, **metrics)


def publish(
    config: RunConfig,
    registry: Registry,
    folder: Path,
    *,
    stage: Stage,
    role: Role,
    parents: Sequence[Parent],
    data: Sequence[Mapping[str, Any]],
    metrics: Mapping[str, Any],
    seed: int,
    run: Run,
    base: Parent | None = None,
    journal: Journal | None = None,
    has_folder: bool = True,
) -> Version:
    """Publish a saved model (main process only), or an adapter of `base`, and move the config's alias to it.

    The journal's mirror gets it too. Without a run folder (`has_folder` is false) the version names no run.

    Raises:
        ModelError: the weights are not finite.
        DiskError: lines of the journal wait for room, which a resumed run would not write after a publish.
        TokenizerError: the tokenizer or template differs from the initial model's.
    """
    check_finite(folder)
    if journal is not None:
        journal.check_written()
    model = getattr(config, "model", None)  # each stage has its own class for this section
    trusted = bool(getattr(model, "trust_remote_code", False))
    init = next((parent for parent in parents if parent.role == "init"), None)
    if init is not None and not config.registry.allow_new_tokenizer:
        check_folder(folder, init, registry, trust_remote_code=trusted, **compared_parts(model, stage))
    version = registry.publish(
        config.registry.name,
        folder,
        stage=stage,
        role=role,
        parents=parents,
        base=base,
        data=[dict(entry) for entry in data],
        config=config.model_dump(mode="json"),
        metrics=dict(metrics),
        seed=seed,
        world_size=processes.world_size(),
        run_id=config.name if has_folder else None,
        publish_id=run.publish_id(config.registry.name),
        remote_code=trusted and any(folder.rglob("*.py")),
        wandb_url=journal.wandb_url if journal else None,
    )
    if config.registry.alias:
        registry.set_alias(version.name, config.registry.alias, version.number)
    if journal is not None:
        journal.mirror(mirrored_model(version, registry))
    return version
