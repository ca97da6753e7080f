"""PPO: a policy, a reward and prompts in, a better policy in the registry.

accelerate launch --config_file configs/accelerate/zero2.yaml -m ppo configs/ppo/demo.yaml
"""

from __future__ import annotations

from typing import Any

import torch

from alignment.distributed import heartbeat, one_reader, processes, zero3
from alignment.distributed.processes import Accelerator
from alignment.errors import ConfigError
from alignment.models import methods
from alignment.reports.verdicts import WON
from alignment.runs import resume
from alignment.runs.journal import Journal
from alignment.training import opening, publishing
from alignment.training.data_check import DATA_WATCHED, note_findings, write_report
from alignment.training.stage import write_bad_rows
from ppo.alarms import watched
from ppo.batch_plan import batch_plan, check_copies
from ppo.config import PPOStageConfig
from ppo.loading import load_models
from ppo.loop import STOPPED, Loop
from ppo.options import policy_options
from ppo.prepare import Prepared, check_config, prepare
from ppo.publish import Publisher, published_policy

CHECKPOINTS = 2
"""How many of the newest are kept: one may turn out to be damaged."""


def train(config: PPOStageConfig) -> dict[str, Any]:
    """Run the stage; returns the published reference and the metrics of the published policy."""
    config = config.with_bf16(processes.bf16_by_default)
    check_config(config)
    processes.start_processes()
    batch_plan(config, processes.world_size())
    check_copies(config, processes.world_size())
    accelerator = processes.make_accelerator(bf16=bool(config.training.bf16))
    processes.on_main_process(lambda: _check_backend(config, accelerator))
    begun = resume.begin(config.run_dir)
    registry = opening.open_registry(config, begun.run)
    if published := publishing.published_before(config, "ppo", registry, begun.run):
        return published
    prepared = prepare(config, registry)
    publishing.pin_models(config, registry, begun.run)
    heartbeat.enter("loading the models", patient=True)
    torch.manual_seed(config.training.seed)
    with zero3.loading_in_shards(), one_reader.reading_once():
        models = load_models(config, prepared.sources, prepared.tokenizer)
    data = prepared.fingerprints
    with opening.open_journal(config, "ppo", begun) as journal:
        checkpoints = opening.open_checkpoints(config, begun, journal, keep=CHECKPOINTS, data=data)
        loop = Loop(
            config, models, accelerator, journal,
            prepared.prompts, prepared.held_out, prepared.ptx.rows, prepared.answers.items,
        )  # fmt: skip
        _note_start(journal, prepared, loop)
        if begun.checkpoint is not None:
            loop.state.load(begun.checkpoint.path, begun.checkpoint.manifest.world_size)
            journal.mark_resumed(step=loop.step, checkpoint=begun.checkpoint.path.name)
        with loop.reporting_errors():
            loop.run(checkpoints)
        heartbeat.enter("the end of training", patient=True)
        with published_policy(loop) as metrics:
            ref = Publisher(config, registry, models, data, begun.run).publish(loop, metrics)
        publishing.announce(journal, registry, ref, metrics)
    return {"model": ref, "metrics": metrics}


def _check_backend(config: PPOStageConfig, accelerator: Accelerator) -> None:
    if "nvme" in processes.offload_devices(accelerator):
        raise ConfigError(
            "PPO does not run with weights or optimizer on NVMe, which each rollout and each pass would read; set "
            "offload_optimizer_device: cpu and offload_param_device: cpu in the launch file"
        )
    fsdp = processes.under_fsdp()
    if fsdp and config.model.offload:
        raise ConfigError(
            "model.offload=true does not work under FSDP2, which shards the frozen models; set it to false, or launch "
            "with configs/accelerate/zero3.yaml"
        )
    methods.check(policy_options(config.model), processes.zero_stage(accelerator), fsdp=fsdp)


def _note_start(journal: Journal, prepared: Prepared, loop: Loop) -> None:
    """Write down what the run is made of: the data and what was found in it, the backend, the models."""
    config, train_set = loop.config, prepared.train_set
    if processes.is_main_process():
        write_bad_rows(config.run_dir, prepared.bad, train_set.notes)
        write_report(config.run_dir, prepared.report)
    journal.event(
        "data", prompts=train_set.fingerprints, held_out=prepared.eval_set.fingerprints,
        ptx=prepared.ptx.fingerprints, notes=train_set.notes, **prepared.too_long,
    )  # fmt: skip
    journal.event("data_check", **prepared.report.summary())
    journal.event("backend", **processes.backend(loop.accelerator, loop.engine.wrapped))
    journal.watching([*DATA_WATCHED, STOPPED, *watched(config), WON])
    note_findings(journal, prepared.report)
    labels = {role: source.label for role, source in prepared.sources.items()}
    journal.event("models", **labels, packed=loop.models.packed)
