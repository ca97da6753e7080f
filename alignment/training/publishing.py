"""What the two TRL stages share: starting model, trainer arguments, the batch plan, and publishing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from alignment.config.sections import RunConfig
from alignment.distributed import processes
from alignment.errors import ConfigError
from alignment.models.policies import check_finite
from alignment.models.same_tokenizer import check_folder
from alignment.registry import Parent, Registry, RegistryError, Version
from alignment.registry.manifest import Role, Stage
from alignment.registry.references import check_alias
from alignment.runs.journal import Journal
from alignment.runs.run import Run
from alignment.tracking.mirror import mirrored_model
from alignment.training.start_model import compared_parts


def open_registry(config: RunConfig, run: Run | None = None) -> Registry:
    """The config's registry; an alias that could not be set after the training is refused before it.

    Args:
        run: what its references meant when it began is what they mean.
    """
    if config.registry.alias:
        try:
            check_alias(config.registry.alias)
        except RegistryError as error:
            raise ConfigError(f"registry.alias: {error}") from None
    return Registry(config.registry.path, pins=run.models if run else None)


def pin_models(config: RunConfig, registry: Registry, run: Run) -> None:
    """Write down what each reference meant that was looked up so far: an alias may move while the run lies still."""
    if processes.is_main_process() and run.attempts:
        run.model_copy(
            update={"models": {**run.models, **{ref: pin for ref, pin in registry.resolved.items() if ref != pin}}}
        ).write(config.run_dir)


def published_before(config: RunConfig, registry: Registry, run: Run) -> dict[str, Any] | None:
    """What an attempt of this run has published before it was killed; None where there is nothing."""

    def find() -> dict[str, Any] | None:
        version = registry.published(config.registry.name, run.publish_id(config.registry.name))
        if version is None:
            return None
        if config.registry.alias:
            registry.set_alias(version.name, config.registry.alias, version.number)
        return {"model": version.ref, "metrics": version.manifest.metrics}

    return processes.on_main_process(find)


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
) -> Version:
    """Publish a saved model (main process only), or an adapter of `base`, and move the config's alias to it.

    The journal's mirror is told of it.

    Raises:
        ModelError: the weights are not finite.
        TokenizerError: the tokenizer or template is not that of the model it started from.
    """
    check_finite(folder)
    model = getattr(config, "model", None)  # each stage has a section of its own under this name
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
        run_id=config.name,
        publish_id=run.publish_id(config.registry.name),
        remote_code=trusted and any(folder.rglob("*.py")),
        wandb_url=journal.wandb_url if journal else None,
    )
    if config.registry.alias:
        registry.set_alias(version.name, config.registry.alias, version.number)
    if journal is not None:
        journal.mirror(mirrored_model(version, registry))
    return version
