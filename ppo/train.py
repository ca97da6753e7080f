"""PPO: a policy, a reward and prompts in, a better policy in the registry.

accelerate launch --config_file configs/accelerate/zero2.yaml -m ppo configs/ppo/demo.yaml
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers

from alignment.data.parsing import to_prompts
from alignment.data.reading import train_and_eval
from alignment.distributed import heartbeat, processes, zero3
from alignment.distributed.launch_files import check_against_config
from alignment.distributed.processes import Accelerator
from alignment.errors import ConfigError
from alignment.models import adapters, methods
from alignment.models.ensembles import num_members
from alignment.models.lengths import check_length
from alignment.models.sources import ModelSource
from alignment.reports.verdicts import WON
from alignment.runs import resume
from alignment.runs.run import Run
from alignment.training import arguments, opening, publishing
from alignment.training.stage import write_bad_rows
from ppo.alarms import watched
from ppo.config import PPOStageConfig, batch_plan
from ppo.evaluation import check_selection
from ppo.loading import as_trained, critic_options, find_models, load_models, load_policy_tokenizer, policy_options
from ppo.loop import STOPPED, Loop
from ppo.models import Models
from ppo.plan import workload
from ppo.ptx import read_ptx
from ppo.rewards import load_sources
from ppo.rollout import encode_prompts
from ppo.value import read_answers, save_critic


def train(config: PPOStageConfig) -> dict[str, Any]:
    """Run the stage; returns the published reference and the figures of the published policy."""
    _check(config)
    processes.start_processes()
    batch_plan(config, processes.world_size())
    accelerator = processes.make_accelerator(bf16=config.training.bf16)
    processes.on_main_process(lambda: _check_backend(config, accelerator))
    begun = resume.begin(config.run_dir)
    registry = publishing.open_registry(config, begun.run)
    if published := publishing.published_before(config, registry, begun.run):
        return published
    heartbeat.enter("reading the data", patient=True)
    prompts, held_out = train_and_eval(config.data, to_prompts)
    check_selection(config.training, num_held_out=len(held_out.items))
    heartbeat.enter("loading the models", patient=True)
    sources = processes.on_main_process(lambda: find_models(config, registry))
    publishing.pin_models(config, registry, begun.run)
    _check_lengths(config, sources)
    torch.manual_seed(config.training.seed)
    with zero3.whole_models():  # parted later: parts can be neither merged nor given a head
        models = load_models(config, sources)
    ptx, answers = read_ptx(config, models.tokenizer), read_answers(config, models.tokenizer)
    data = [*prompts.fingerprints, *held_out.fingerprints, *ptx.fingerprints, *answers.fingerprints]
    with opening.open_journal(config, "ppo", begun) as journal:
        checkpoints = opening.open_checkpoints(config, begun, journal, keep=config.training.save_total_limit, data=data)
        if accelerator.is_main_process:
            write_bad_rows(config.run_dir, [*prompts.bad, *ptx.bad, *answers.bad], prompts.notes)
        loop = Loop(config, models, accelerator, journal, prompts.items, held_out.items, ptx.rows, answers.items)
        journal.event("data", prompts=prompts.fingerprints, held_out=held_out.fingerprints, ptx=ptx.fingerprints,
                      notes=prompts.notes, **loop.too_long)  # fmt: skip
        journal.event("backend", **processes.backend(accelerator, loop.engine.wrapped))
        journal.watching([STOPPED, *watched(config), WON])
        journal.event("models", **{role: source.label for role, source in sources.items()}, packed=models.packed)
        if begun.checkpoint is not None:
            loop.load(begun.checkpoint.path, begun.checkpoint.manifest.world_size)
            journal.go_on(step=loop.step, checkpoint=begun.checkpoint.path.name)
        with loop.noting_the_end():
            loop.run(checkpoints)
        heartbeat.enter("the end of training", patient=True)
        with loop.published_policy() as metrics:
            ref = _publish(config, registry, models, loop, data, metrics, begun.run)
        journal.event("published", model=ref, **metrics)
    return {"model": ref, "metrics": metrics}


def _publish(
    config: PPOStageConfig,
    registry: Any,
    models: Models,
    loop: Loop,
    data: Sequence[Mapping[str, Any]],
    metrics: Mapping[str, Any],
    run: Run,
) -> str:
    """Save and publish the policy, whole or as an adapter, and before it the critic; every process takes part in
    gathering the weights."""
    heartbeat.enter("saving and publishing the model", patient=True)
    weights = loop.engine.full_state_dict()
    published = partial(
        publishing.publish,
        registry=registry,
        stage="ppo",
        parents=models.parents(),
        data=data,
        seed=config.training.seed,
        run=run,
    )

    def publish_value() -> None:
        with tempfile.TemporaryDirectory(dir=config.run_dir) as folder:
            base = save_critic(models, Path(folder), weights, loop.scaler.unit)
            models.tokenizer.save_pretrained(folder)
            own = config
            if base is not None:
                adapters.name_base(Path(folder), base.label)
                options = critic_options(config.model)
                model = config.model.model_copy(update={"method": options.method, "adapter": options.adapter})
                own = config.model_copy(update={"model": model})
            # Without the alias, which would lead to a critic before its policy is there.
            entry = config.registry.model_copy(update={"name": f"{config.registry.name}-value", "alias": None})
            published(
                own.model_copy(update={"registry": entry}),
                folder=Path(folder),
                role="value",
                base=base.as_base() if base else None,
                metrics={key: value for key, value in loop.last_figures.items() if key == "explained_variance"},
            )

    def publish_policy() -> str:
        prefix = "policy."
        own = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
        with tempfile.TemporaryDirectory(dir=config.run_dir) as folder:
            models.save_policy(Path(folder), own)
            if models.base is not None:
                adapters.name_base(Path(folder), models.base.label)
            models.tokenizer.save_pretrained(folder)
            return published(
                as_trained(config, models.sources["init"], models.base),
                folder=Path(folder),
                role="policy",
                base=models.base.as_base() if models.base else None,
                metrics=metrics,
                journal=loop.journal,
            ).ref

    def publish_both() -> str:
        # The policy last: a run whose policy stands in the registry is done.
        if config.model.publish_value and models.trained.roles[1] is not None and not models.trained.on_trunk:
            publish_value()
        return publish_policy()

    return processes.on_main_process(publish_both)


def _check(config: PPOStageConfig) -> None:
    training = config.training
    check_against_config(bf16=training.bf16, accumulation=1, max_grad_norm=training.max_grad_norm)
    if config.rollout.max_new_tokens >= config.data.max_length:
        raise ConfigError(
            f"rollout.max_new_tokens={config.rollout.max_new_tokens} leaves no room for a prompt in "
            f"data.max_length={config.data.max_length}; raise data.max_length"
        )


def _check_backend(config: PPOStageConfig, accelerator: Accelerator) -> None:
    if "nvme" in processes.offload_devices(accelerator):
        raise ConfigError(
            "PPO does not run with weights or optimizer on NVMe, which each rollout and each pass would read; set "
            "offload_optimizer_device: cpu and offload_param_device: cpu in the launch file"
        )
    methods.check(policy_options(config.model), processes.zero_stage(accelerator))


def _check_lengths(config: PPOStageConfig, sources: Mapping[str, ModelSource]) -> None:
    """`data.max_length` is that of prompt and response together, which every model reads."""
    for path in dict.fromkeys(source.config_path for source in sources.values()):
        check_length(path, config.data.max_length, "data.max_length", config.model.trust_remote_code)


def plan(config: PPOStageConfig, world_size: int) -> dict[str, Any]:
    """What `--dry-run` prints beside the config."""
    _check(config)
    sizes = batch_plan(config, world_size)
    prompts, held_out = train_and_eval(config.data, to_prompts)
    check_selection(config.training, num_held_out=len(held_out.items))
    if config.rollout.engine == "vllm":
        from alignment.generation.vllm import check_installed

        check_installed()
    sources = find_models(config, publishing.open_registry(config))
    _check_lengths(config, sources)
    tokenizer = load_policy_tokenizer(config, sources)
    limit = config.data.max_length - config.rollout.max_new_tokens
    encoded, too_long = encode_prompts(prompts.items, tokenizer, limit, config.data.too_long)
    ptx, answers = read_ptx(config, tokenizer), read_answers(config, tokenizer)
    load_sources(config.rewards, prompts.items, held_out.items, [answer.prompt for answer in answers.items])
    trust = config.model.trust_remote_code
    shapes = {
        role: transformers.AutoConfig.from_pretrained(source.config_path, trust_remote_code=trust)
        for role, source in sources.items()
    }
    shared = config.model.mode == "shared"
    members = {  # elsewhere those that are adapters are on one body
        role: num_members(source)
        for role, source in sources.items()
        if source.base is None or (shared and role == "reward")
    }
    return {
        "train_prompts": len(encoded),
        "eval_prompts": len(held_out.items),
        "ptx_rows": len(ptx.rows),
        "value_pretrain_answers": len(answers.items),
        "bad_rows": len(prompts.bad) + len(ptx.bad) + len(answers.bad),
        "too_long": too_long,
        "processes": world_size,
        "episodes_per_iteration": config.rollout.batch_size,
        "episodes_per_device": sizes.episodes,
        "prompts_per_device": sizes.prompts,
        "minibatch": sizes.minibatch,
        "microbatch_tokens": config.training.microbatch_tokens,
        "optimizer_steps": config.training.max_steps * config.ppo.num_epochs * config.ppo.num_minibatches,
        **arguments.memory_plan(lambda: workload(config, shapes, world_size, members), sources, world_size),
    }
