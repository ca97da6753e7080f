"""A critic before and after a run: fitted on answers before the policy moves, and published beside it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from alignment import heartbeat
from alignment.config import ConfigError, DataConfig, DataPart, Format
from alignment.data import Comparison, Demonstration, Prompt, to_demonstrations, to_judgements, train_and_eval
from alignment.distributed import all_reduce_max
from alignment.generation import stream_seed
from alignment.models import ModelSource
from alignment.ratings import RatingsStore, is_ratings_file
from alignment.readers import BadRow
from alignment.scalar_models import ScoreHead, write_score_bias
from alignment.shared_base import save_adapter
from alignment.sources import Source, open_source
from alignment.templates import Message, Unrenderable, encode_conversation, encode_prompt
from alignment.terminal import progress
from ppo.algorithm import Unit
from ppo.config import PPOStageConfig
from ppo.loading import frozen_below
from ppo.models import Models
from ppo.rollout import Collector, Rollout
from ppo.stats import explained_variance
from ppo.update import CriticTargets, Updater

ROLLOUTS = "rollouts"
HELD_OUT = 0.125
"""Share of the prompts."""
MAX_EPOCHS = 20
GAIN = 0.002
"""A rise of the explained variance by less counts as none."""
PATIENCE = 2
"""Passes in a row without a rise, after which it ends."""


class Answer(NamedTuple):
    """An answer that is there already, in the policy's tokens."""

    prompt: Prompt
    ids: list[int]
    response: list[int]


@dataclass(frozen=True)
class Answers:
    """What the critic is fitted on, and where it came from; nothing where the policy is to write it."""

    items: list[Answer] = field(default_factory=list)
    fingerprints: list[Mapping[str, Any]] = field(default_factory=list)


# --- answers that are there ----------------------------------------------------------------------------------------


def read_answers(config: PPOStageConfig, tokenizer: PreTrainedTokenizerBase) -> Answers:
    """The first `value_pretrain_episodes` different answers of `ppo.value_pretrain` that fit the run's lengths.

    Raises:
        DataError, ConfigError: it holds none.
    """
    path, limit = config.ppo.value_pretrain, config.rollout.max_new_tokens
    if path is None or path == ROLLOUTS:
        return Answers()
    section = DataConfig(train=path, eval_share=0.0, max_bad_share=config.data.max_bad_share)
    found, _ = train_and_eval(section, to_answers, _open_answers)
    answers: dict[tuple[tuple[int, ...], tuple[int, ...]], Answer] = {}
    for record in found.items:
        prompt = Prompt(record.messages[:-1], place=record.place)
        try:
            ids, encoded = encode_prompt(tokenizer, prompt.messages), encode_conversation(tokenizer, record.messages)
        except Unrenderable:
            continue
        # A response as sampling would give it: what follows the prompt, cut at the limit.
        if encoded is None or encoded.input_ids[: len(ids)] != ids or not encoded.input_ids[len(ids) :]:
            continue
        response = encoded.input_ids[len(ids) :][:limit]
        if len(ids) <= config.data.max_length - limit:
            answers.setdefault((tuple(ids), tuple(response)), Answer(prompt, ids, response))
        if len(answers) == config.ppo.value_pretrain_episodes:
            break
    if not answers:
        raise ConfigError(
            f"ppo.value_pretrain={path}: none of its {len(found.items)} answers fits data.max_length="
            f"{config.data.max_length} less rollout.max_new_tokens={limit}; raise data.max_length, or use {ROLLOUTS}"
        )
    return Answers(list(answers.values()), list(found.fingerprints))


def to_answers(row: Mapping[str, Any], format: Format = "auto") -> list[Demonstration]:
    """Every answer of a row: both of a pair, all of a ranking, a rated or demonstrated one."""
    try:
        judged = to_judgements(row, format)
    except BadRow:
        return to_demonstrations(row, format)
    found: list[Demonstration] = []
    for each in judged:
        texts = (each.first, each.second) if isinstance(each, Comparison) else (each.completion,)
        found += [Demonstration((*each.prompt, Message(role="assistant", content=text))) for text in texts]
    return found


def _open_answers(part: DataPart, config: DataConfig) -> Source:
    """All completions of a ratings database, rated or not; any other source as it is."""
    if not is_ratings_file(part.path):
        return open_source(part, config)
    with RatingsStore(part.path) as store:
        mark = {"name": store.path.name, **store.fingerprint()}
        items = store.items()
    rows = (
        (f"{part.path}:item {item.id}", {"messages": [*item.prompt, {"role": "assistant", "content": each.text}]})
        for item in items
        for each in item.completions
    )
    return Source(rows, lambda: mark)


# --- fitting -------------------------------------------------------------------------------------------------------


def fit(
    updater: Updater, collector: Collector, rollout: Rollout, critic: CriticTargets, batch_size: int, seed: int
) -> list[float]:
    """Fit the critic on a rollout in passes of minibatches, until what it explains of answers to prompts that are held
    out of this no longer rises (VC-PPO, Yuan et al. 2025, section 4.1).

    Args:
        batch_size: answers of one optimizer step on each process.

    Returns:
        The share of the held-out answers' variance that it explains, before and after each pass; nothing where all
        earn the same, so that there is nothing to learn.

    Raises:
        ConfigError: too few prompts to hold any out.
    """
    groups = [task.prompt.group for task in rollout.tasks]
    by_digest = sorted(set(groups), key=lambda group: hashlib.sha256(group.encode()).digest())
    kept = set(by_digest[: max(1, round(HELD_OUT * len(by_digest)))])
    held_out = [row for row, group in enumerate(groups) if group in kept]
    train = [row for row, group in enumerate(groups) if group not in kept]
    count = -all_reduce_max(-len(train))  # each process takes as many steps, since their passes are collectives
    if not count:
        raise ConfigError(
            f"ppo.value_pretrain: {len(set(groups))} prompts on a process are too few to hold some out; raise "
            "ppo.value_pretrain_episodes, or take value_pretrain out"
        )

    def explained() -> float | None:
        values = critic.head_unit.normalise(collector.values([rollout.rows[row] for row in held_out]))
        width = values.shape[1]
        mask = rollout.response_mask[held_out][:, :width]
        return explained_variance(critic.outcomes[held_out][:, :width], values, mask)

    if (at_first := explained()) is None:
        return []
    history = [at_first]
    generator = torch.Generator().manual_seed(stream_seed("value pretraining", seed))
    with progress("fitting the critic", MAX_EPOCHS, updater.engine.accelerator.is_main_process) as line:
        for epoch in range(MAX_EPOCHS):
            heartbeat.enter(f"pass {epoch + 1} of fitting the critic")
            order = [train[place] for place in torch.randperm(len(train), generator=generator).tolist()][:count]
            for start in range(0, count, batch_size):
                updater.fit_critic(rollout, critic, order[start : start + batch_size])
            history.append(explained() or 0.0)
            line.advance(1, explained=history[-1])
            if len(history) > PATIENCE and max(history[-PATIENCE:]) < max(history[:-PATIENCE]) + GAIN:
                break
    return history


# --- keeping it ----------------------------------------------------------------------------------------------------


def save_critic(models: Models, folder: Path, weights: Mapping[str, Tensor], unit: Unit) -> ModelSource | None:
    """Write the critic as a reward model is published, so that its values are scores as they are.

    Args:
        weights: the state dict of what was trained.
        unit: in which a new head has learned.

    Returns:
        What it is an adapter on; None for a whole model.
    """
    role = models.trained.roles[1]
    assert role is not None and isinstance(role.head, ScoreHead) and not models.trained.on_trunk
    whole = role.adapter is None
    head = weights["value_model.score.weight" if whole else "value_head.weight"].float()
    bias = role.head.score_bias
    if not role.gives_scores:
        head, bias = head * unit.std, bias * unit.std - unit.mean
    if whole:
        own = {name.removeprefix("value_model."): each for name, each in weights.items() if "value_model." in name}
        role.base.config.score_bias = bias
        role.base.save_pretrained(folder, state_dict=own | {"score.weight": head})
        return None
    prefix = "policy." if role.model is models.policy.model else "value_model."
    own = {name.removeprefix(prefix): each for name, each in weights.items() if name.startswith(prefix)}
    assert isinstance(role.model, PeftModel) and role.adapter is not None
    save_adapter(role.model, role.adapter, folder, own, head=head)
    write_score_bias(folder, bias)
    return models.base if role.model is models.policy.model else frozen_below(models.reference, models.sources)
