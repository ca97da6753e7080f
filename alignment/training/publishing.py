"""What the two TRL stages share: starting model, trainer arguments, the batch plan, and publishing."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase, Trainer
from transformers.training_args import TrainingArguments

from alignment.config.loading import (
    ADAPTERS,
    SCRATCH,
    BestModelArguments,
    CheckpointArguments,
    RunConfig,
    ScratchConfig,
    TrainerConfig,
    trainer_arguments,
)
from alignment.distributed import processes
from alignment.distributed.launch_files import check_against_config
from alignment.errors import ConfigError, UserError
from alignment.memory.plan import DDP, Strategy, Workload, estimate, in_gb
from alignment.memory.shapes import UnknownShape
from alignment.models.policies import (
    ModelSource,
    build_scratch_model,
    check_finite,
    find_model,
    load_tokenizer,
    num_parameters,
    pad_apart_from_ends,
    train_tokenizer,
)
from alignment.models.same_tokenizer import check_folder, check_same
from alignment.registry import Parent, Registry, RegistryError, Version
from alignment.registry.manifest import Role, Stage
from alignment.registry.references import check_alias
from alignment.reports.verdicts import summary_of
from alignment.runs.checkpoint import Checkpoints
from alignment.runs.journal import Journal
from alignment.runs.resume import Start
from alignment.runs.run import Run
from alignment.tracking.mirror import described
from alignment.tracking.wandb_names import WandbNames
from alignment.tracking.wandb_sink import WandbSink

ArgumentsT = TypeVar("ArgumentsT", bound=TrainingArguments)


@dataclass(frozen=True)
class StartModel:
    """The model that a stage starts from and its checked tokenizer."""

    source: ModelSource
    tokenizer: PreTrainedTokenizerBase


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


def open_journal(config: RunConfig, stage: str, start: Start | None = None) -> Journal:
    """The run's journal with its W&B mirror, on the main process; a silent one elsewhere.

    Args:
        start: where the run goes on; the journal is cut off there.
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
    """The run's checkpoints, once it is known that it can go on from the one that it starts from.

    Args:
        data: fingerprints of all data that is trained or judged on.
    """
    data = hashlib.sha256(json.dumps(data, sort_keys=True, default=str).encode()).hexdigest()
    backend = f"DeepSpeed ZeRO-{stage}" if (stage := processes.launched_zero_stage()) else "no DeepSpeed"
    processes.on_main_process(lambda: start.check(data, backend))
    return Checkpoints(
        config.run_dir, start.run.id, keep=keep, data=data, backend=backend, journal_offsets=journal.offsets,
        note=journal.event, part=part,
    )  # fmt: skip


def start_model(config: TrainerConfig, registry: Registry, texts: Iterable[str], stage: Stage = "sft") -> StartModel:
    """Find the model to start from; of a `scratch:` one there is only the tokenizer before `publish_base`.

    Args:
        texts: what a scratch model's tokenizer is trained on.

    Raises:
        TokenizerError: the config would give the model another tokenizer or template; said before it is trained.
    """
    name = config.model.name
    if name.startswith(SCRATCH):
        tokenizer = processes.on_main_process(lambda: _scratch_tokenizer(config, texts))
        with torch.device("meta"):  # takes no memory, and refuses a shape that makes no model
            _scratch_model(config, tokenizer)
        return StartModel(ModelSource(name), tokenizer)
    name = processes.on_main_process(lambda: _pinned(name, registry))
    source = find_model(name, registry, role="policy")
    tokenizer = load_tokenizer(source, config.model)
    if not config.registry.allow_new_tokenizer:
        own = AutoTokenizer.from_pretrained(source.path, trust_remote_code=config.model.trust_remote_code)
        check_same(tokenizer, own, source.label, **_compared(config.model, stage))
    if stage == "reward":
        pad_apart_from_ends(tokenizer)
    return StartModel(source, tokenizer)


def _compared(model: Any, stage: Stage) -> dict[str, bool]:
    """What of the tokenizer must be the parent's: in SFT not what the config has set."""
    eos, template = (stage == "sft" and getattr(model, key, None) is not None for key in ("eos_token", "template"))
    return {"eos": not eos, "template": not (template or eos)}  # templates write the EOS


def _pinned(name: str, registry: Registry) -> str:
    """`name@v3` for a reference that may move while the processes look it up one after the other."""
    return registry.resolve(name).ref if registry.is_reference(name) else name


def _scratch_tokenizer(config: TrainerConfig, texts: Iterable[str]) -> PreTrainedTokenizerBase:
    shape = config.model.scratch or ScratchConfig()
    with tempfile.TemporaryDirectory() as folder:
        train_tokenizer(texts, shape.vocab_size, config.model.template).save_pretrained(folder)
        return load_tokenizer(folder, config.model)  # as whoever loads the base will have it


def publish_base(config: TrainerConfig, registry: Registry, start: StartModel, seed: int, run: Run) -> StartModel:
    """Build a `scratch:` model and publish it as `<registry.name>-base`; any other start is returned as it is.

    To be called when the rows are encoded: a mistake in the data would otherwise leave a base without a child.
    """
    if not config.model.name.startswith(SCRATCH):
        return start

    def build_and_publish() -> str:
        with tempfile.TemporaryDirectory(dir=config.run_dir) as folder:
            _save_base(config, start, seed, folder)
            return registry.publish(
                f"{config.registry.name}-base",
                Path(folder),
                stage="base",
                role="policy",
                config=config.model.model_dump(mode="json"),
                seed=seed,
                run_id=config.name,
                publish_id=run.publish_id(f"{config.registry.name}-base"),
            ).ref

    ref = processes.on_main_process(build_and_publish)
    return StartModel(find_model(ref, registry, role="policy"), start.tokenizer)


@contextmanager
def unpublished_base(config: TrainerConfig, start: StartModel, seed: int) -> Iterator[StartModel]:
    """The same start as `publish_base` gives, for trials that publish nothing: in a folder that is gone afterwards."""
    if not config.model.name.startswith(SCRATCH):
        yield start
        return

    def build() -> str:
        config.run_dir.mkdir(parents=True, exist_ok=True)
        folder = tempfile.mkdtemp(prefix="base-", dir=config.run_dir)
        _save_base(config, start, seed, folder)
        return folder

    folder = processes.on_main_process(build)
    try:
        yield StartModel(ModelSource(folder), start.tokenizer)
    finally:
        if processes.is_main_process():
            shutil.rmtree(folder, ignore_errors=True)


def _save_base(config: TrainerConfig, start: StartModel, seed: int, folder: str) -> None:
    torch.manual_seed(seed)
    _scratch_model(config, start.tokenizer).save_pretrained(folder)
    start.tokenizer.save_pretrained(folder)


def _scratch_model(config: TrainerConfig, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    shape = config.model.scratch or ScratchConfig()
    return build_scratch_model(config.model.name.removeprefix(SCRATCH), shape, tokenizer)


def make_arguments(
    cls: type[ArgumentsT], config: TrainerConfig, defaults: Mapping[str, Any], *, no_eval: bool, **owned: Any
) -> ArgumentsT:
    """Build a TRL config from the `training` section over a stage's defaults, with what the suite owns on top.

    `no_eval` says that nothing is held out, so that there is nothing to evaluate on in between.
    """
    merged = trainer_arguments(cls, defaults, config.training)
    trains_weights = config.model.method not in ADAPTERS  # an adapter is float32 beside weights of any type
    if config.model.dtype == "bfloat16" and trains_weights and not processes.under_deepspeed():
        raise ConfigError(
            "model.dtype=bfloat16 would train rounded weights, on which small updates are lost; set training.bf16=true "
            "for bfloat16 arithmetic on float32 weights, or launch with a DeepSpeed config, which keeps float32 copies"
        )
    on_cpu = processes.on_cpu()
    # bfloat16 matmuls are fifty times slower than float32 on a CPU without AMX, so it is off there unless asked for.
    merged.setdefault("bf16", not on_cpu)
    if no_eval:
        merged["eval_strategy"] = "no"
    _take_out_best_model(merged, no_eval)
    processes.start_processes()
    with refused_arguments():
        arguments = cls(
            **merged,
            **owned,
            output_dir=str(config.run_dir),
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            use_cpu=on_cpu,
            remove_unused_columns=False,
        )
    check_against_config(
        bf16=arguments.bf16,
        accumulation=arguments.gradient_accumulation_steps,
        max_grad_norm=arguments.max_grad_norm,
    )
    return arguments


def _take_out_best_model(merged: dict[str, Any], no_eval: bool) -> None:
    """`alignment.training.best_model` reads these from the config; transformers would ask for checkpoints."""
    best = BestModelArguments.of(merged)
    if best.early_stopping_patience is None and best.early_stopping_threshold:
        raise ConfigError(
            "training.early_stopping_threshold is only for training.early_stopping_patience; set that too"
        )
    if best.early_stopping_patience is not None and not best.wanted:
        raise ConfigError(
            "training.early_stopping_patience stops after the best model, which is then published; "
            "take training.load_best_model_at_end=false out"
        )
    if best.wanted:
        key = "load_best_model_at_end" if best.early_stopping_patience is None else "early_stopping_patience"
        if no_eval:
            raise ConfigError(f"training.{key} needs held-out rows; set data.eval or data.eval_share")
        if merged.get("eval_strategy", "no") == "no":
            raise ConfigError(
                f"training.{key} needs evaluations in between; set training.eval_strategy=epoch, or =steps with "
                "training.eval_steps"
            )
    for field in (*fields(BestModelArguments), *fields(CheckpointArguments)):
        merged.pop(field.name, None)


@contextmanager
def refused_arguments() -> Iterator[None]:
    """What a TRL config or trainer says against its arguments, as one line about the `training` section."""
    try:
        yield
    except UserError:
        raise
    except (ValueError, TypeError, ImportError) as error:
        raise ConfigError(f"training: {(str(error).splitlines() or [type(error).__name__])[0]}") from error


def batch_plan(merged: Mapping[str, Any], world_size: int) -> dict[str, int]:
    """What is global, per device and accumulated.

    Args:
        merged: trainer arguments with the stage's defaults underneath.
    """
    per_device = int(merged.get("per_device_train_batch_size", 8))
    accumulated = int(merged.get("gradient_accumulation_steps", 1))
    return {
        "processes": world_size,
        "per_device_batch": per_device,
        "accumulated": accumulated,
        "global_batch": per_device * accumulated * world_size,
    }


def memory_plan(make: Callable[[], Workload], sources: Mapping[str, ModelSource], world_size: int) -> dict[str, Any]:
    """Parameters, and the memory of one process as it was launched (`alignment.memory.plan`), for `--dry-run`.

    Args:
        make: the run; it may say that it does not know the architecture.
        sources: models whose files are looked at.

    Raises:
        ModelError: a damaged file.
    """
    counts = {
        role: num_parameters(source.config_path if source.base else source.path) for role, source in sources.items()
    }
    try:
        work = make()
    except UnknownShape as error:
        return {"parameters": counts, "memory_gb_per_process": str(error)}
    stage = processes.launched_zero_stage()
    strategy = Strategy(f"zero{stage}", stage, processes.launched_offload()) if stage else DDP
    found = estimate(work, strategy, world_size, on_gpu=not processes.on_cpu())
    return {
        "parameters": counts,
        "trained_parameters": sum(model.trained for model in work.models),
        "memory_gb_per_process": in_gb(found),
    }


def backend_event(journal: Journal, trainer: Trainer) -> None:
    """Write down what really runs; a launch that fell back to one process must not go unseen."""
    journal.event("backend", **processes.backend(trainer.accelerator, trainer.model_wrapped))


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
        check_folder(folder, init, registry, trust_remote_code=trusted, **_compared(model, stage))
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
        journal.mirror(described(version, registry))
    return version
