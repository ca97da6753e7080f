"""Publishing: the policy that was chosen, and beside it the critic."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from alignment.distributed import heartbeat, processes, zero3
from alignment.models import saved_adapters
from alignment.registry import Registry, Version
from alignment.reports.judges import judge_of
from alignment.reports.verdicts import WON
from alignment.runs.run import Run
from alignment.training import publishing
from ppo.alarms import not_better
from ppo.config import PPOStageConfig
from ppo.critic import save_critic
from ppo.loop import Loop
from ppo.models import Models
from ppo.options import critic_options, with_trained_method


@contextlib.contextmanager
def published_policy(loop: Loop) -> Iterator[dict[str, Any]]:
    """The models hold the policy that is to be published inside; gives its metrics."""
    best, metrics = loop.evaluation.best, _metrics(loop)
    with loop.ema.applied() if loop.ema is not None else contextlib.nullcontext():
        if best.step is not None:
            zero3.scatter_weights(loop.models.trained.trained_parameters("policy"), best.weights())
        yield metrics


def _metrics(loop: Loop) -> dict[str, Any]:
    """The published policy's metrics; a policy that is not better than the start is a finding."""
    evaluation, best, training = loop.evaluation, loop.evaluation.best, loop.config.training
    is_chosen = best.metrics is not None
    published = evaluation.last_metrics if best.metrics is None else best.metrics
    start = evaluation.start_reported if is_chosen else evaluation.start_metrics
    metrics: dict[str, Any] = {f"eval_{name}": value for name, value in published.items()}
    metrics |= {f"start_eval_{name}": value for name, value in start.items()}
    if is_chosen:
        metrics |= {"choosing_prompts": len(evaluation.choosing), "reported_prompts": len(evaluation.reporting)}
    judge = judge_of(loop.config.model_dump())
    if judge is not None and "win_rate" in published:
        metrics["judge"] = judge.text
    if best.step is not None:
        metrics["best_step"] = best.step
        if best.step == 0:
            text = "no evaluation was better than the start's, which is published; see samples.jsonl"
            loop.report(WON, "error", text)
    elif best.wanted and evaluation.prompts:
        missed = [*(["below training.max_kl"] if training.max_kl is not None else []),
                  *(["within rewards.constraints"] if loop.config.rewards.constraints else [])]  # fmt: skip
        text = f"no evaluation was {' and '.join(missed)}, so that the last policy is published, whatever it is"
        loop.report(WON, "error", text)
    if best.step != 0 and (finding := not_better(published)) is not None:
        loop.report(WON, *finding)
    return metrics


@dataclass(frozen=True)
class Publisher:
    """Publishes the models of a run."""

    config: PPOStageConfig
    registry: Registry
    models: Models
    data: Sequence[Mapping[str, Any]]
    run: Run

    def publish(self, loop: Loop, metrics: Mapping[str, Any]) -> str:
        """Save and publish the policy, whole or as an adapter, and before it the critic; every process takes part in
        gathering the weights."""
        heartbeat.enter("saving and publishing the model", patient=True)
        weights = loop.engine.full_state_dict()

        def publish_both() -> str:
            # The policy last: a run whose policy is in the registry is done.
            trained = self.models.trained
            if self.models.critic is not None and not trained.on_trunk:
                self._publish_value(loop, weights)
            return self._publish_policy(loop, weights, metrics)

        return processes.on_main_process(publish_both)

    def _publish_value(self, loop: Loop, weights: Mapping[str, Tensor]) -> None:
        config, metrics = self.config, loop.evaluation.last_metrics
        with tempfile.TemporaryDirectory(dir=config.run_dir) as folder:
            base = save_critic(self.models, Path(folder), weights, loop.target_builder.stats)
            self.models.tokenizer.save_pretrained(folder)
            if base is not None:
                saved_adapters.name_base(Path(folder), base.label)
                options = critic_options(config.model)
                changes = {"method": options.method, "adapter": options.adapter}
                config = config.model_copy(update={"model": config.model.model_copy(update=changes)})
            # Without the alias, which would lead to a critic before its policy is there.
            entry = config.registry.model_copy(update={"name": f"{config.registry.name}-value", "alias": None})
            self._publish(
                config.model_copy(update={"registry": entry}),
                folder=Path(folder),
                role="value",
                base=base.as_base() if base else None,
                metrics={name: value for name, value in metrics.items() if name == "explained_variance"},
            )

    def _publish_policy(self, loop: Loop, weights: Mapping[str, Tensor], metrics: Mapping[str, Any]) -> str:
        prefix, models = "policy.", self.models
        policy = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
        with tempfile.TemporaryDirectory(dir=self.config.run_dir) as folder:
            models.save_policy(Path(folder), policy)
            if models.base is not None:
                saved_adapters.name_base(Path(folder), models.base.label)
            models.tokenizer.save_pretrained(folder)
            return self._publish(
                with_trained_method(self.config, models.sources["init"], models.base),
                folder=Path(folder),
                role="policy",
                base=models.base.as_base() if models.base else None,
                metrics=metrics,
                journal=loop.journal,
            ).ref

    def _publish(self, config: PPOStageConfig, **version: Any) -> Version:
        return publishing.publish(
            config,
            registry=self.registry,
            stage="ppo",
            parents=self.models.parents(),
            data=self.data,
            seed=config.training.seed,
            run=self.run,
            **version,
        )
