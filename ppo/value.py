"""A critic before and after a run: fitted on answers before the policy moves, and published beside it."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from alignment.config.sections import DataConfig, DataPart, Format
from alignment.data.parsing import to_demonstrations, to_judgements
from alignment.data.reading import train_and_eval
from alignment.data.records import Comparison, Demonstration, Prompt
from alignment.data.row_files import BadRow
from alignment.data.sources import RowSource, open_source
from alignment.distributed import heartbeat
from alignment.distributed.engine import TrainingEngine
from alignment.distributed.processes import all_reduce_max, gather_lists, on_main_process, wait_for_everyone, world_size
from alignment.errors import ConfigError
from alignment.models.scalar import ScoreHead, write_score_bias
from alignment.models.shared_base import save_adapter
from alignment.models.sources import ModelSource
from alignment.ratings import RatingsStore, is_ratings_file
from alignment.seeds import stream_seed
from alignment.templates.rendering import Message, Unrenderable, encode_conversation, encode_prompt
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
PATIENCE = 3
"""Passes in a row without a new best, after which it ends. Any rise is a new best: at a low rate each is small."""


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
    bad: list[tuple[str, str]] = field(default_factory=list)
    """Rows that were set aside: where they stand, and why."""


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
    longest = config.data.max_length - limit
    bad, answers = list(found.bad), dict[tuple[tuple[int, ...], tuple[int, ...]], Answer]()
    for record in found.items:
        if len(answers) == config.ppo.value_pretrain_episodes:
            break
        try:
            answer = _answer(record, tokenizer, limit)
        except Unrenderable as reason:
            bad.append((record.place, str(reason)))
            continue
        if len(answer.ids) > longest:
            bad.append((record.place, f"the prompt has {len(answer.ids)} tokens, and PPO's may have {longest}"))
            continue
        answers.setdefault((tuple(answer.ids), tuple(answer.response)), answer)
    if not answers:
        raise ConfigError(
            f"ppo.value_pretrain={path}: none of its {len(found.items)} answers fits data.max_length="
            f"{config.data.max_length} less rollout.max_new_tokens={limit}; raise data.max_length, or use {ROLLOUTS}"
        )
    return Answers(list(answers.values()), list(found.fingerprints), bad)


def _answer(record: Demonstration, tokenizer: PreTrainedTokenizerBase, limit: int) -> Answer:
    """A response as sampling would give it: what follows the prompt, cut at the limit.

    Raises:
        Unrenderable: by this template the conversation does not begin with its prompt, or has no answer.
    """
    prompt = Prompt(record.messages[:-1], place=record.place)
    ids, encoded = encode_prompt(tokenizer, prompt.messages), encode_conversation(tokenizer, record.messages)
    response = encoded.input_ids[len(ids) :] if encoded.input_ids[: len(ids)] == ids else []
    if not response:
        raise Unrenderable("by this chat template the answer does not follow its prompt")
    return Answer(prompt, ids, response[:limit])


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


def _open_answers(part: DataPart, config: DataConfig) -> RowSource:
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
    return RowSource(rows, lambda: mark)


# --- fitting -------------------------------------------------------------------------------------------------------


class Best:
    """Keeps what is trained as it was at its best, in a folder that is gone afterwards; every process takes part."""

    def __init__(self, engine: TrainingEngine, folder: Path) -> None:
        self._engine, self._folder, self._kept, self._count = engine, folder, "", 0

    def keep(self) -> None:
        before, self._kept = self._kept, f"{self._count}"
        self._count += 1
        on_main_process(lambda: (self._folder / self._kept).mkdir(parents=True))
        self._engine.save(self._folder / self._kept)
        wait_for_everyone()
        if before:
            on_main_process(lambda: shutil.rmtree(self._folder / before))

    def restore(self) -> None:
        self._engine.load(self._folder / self._kept, world_size())

    def __enter__(self) -> Self:
        on_main_process(lambda: shutil.rmtree(self._folder, ignore_errors=True))
        return self

    def __exit__(self, *_: object) -> None:
        wait_for_everyone()
        on_main_process(lambda: shutil.rmtree(self._folder, ignore_errors=True))


def fit(
    updater: Updater,
    collector: Collector,
    rollout: Rollout,
    critic: CriticTargets,
    best: Best,
    batch_size: int,
    seed: int,
    before_pass: Callable[[], None],
) -> list[float]:
    """Fit the critic on a rollout in passes of minibatches, until what it explains of answers to prompts that are held
    out of this no longer rises (VC-PPO, Yuan et al. 2025, section 4.1). It is left as it was after its best pass.

    Args:
        batch_size: answers of one optimizer step on each process.
        before_pass: called by every process.

    Returns:
        The share of the held-out answers' variance that it explains, before and after each pass; nothing where all
        earn the same, so that there is nothing to learn.

    Raises:
        ConfigError: too few prompts to hold any out.
    """
    groups = [task.prompt.group for task in rollout.tasks]
    # The same prompts on every process: one that a process holds out must be trained on by none.
    everywhere = sorted(
        {group for share in gather_lists(groups) for group in share},
        key=lambda group: hashlib.sha256(group.encode()).digest(),
    )
    kept = set(everywhere[: max(1, round(HELD_OUT * len(everywhere)))])
    held_out = [row for row, group in enumerate(groups) if group in kept]
    train = [row for row, group in enumerate(groups) if group not in kept]
    count = -all_reduce_max(-len(train))  # each process takes as many steps, since their passes are collectives
    if not count:
        raise ConfigError(
            f"ppo.value_pretrain: {len(everywhere)} prompts are too few to hold some out; raise "
            "ppo.value_pretrain_episodes, or take value_pretrain out"
        )
    looked_at = held_out or [0]  # a process without one takes part, and its row does not count

    def explained() -> float | None:
        values = critic.head_unit.normalise(collector.values([rollout.rows[row] for row in looked_at]))
        width = values.shape[1]
        mask = rollout.response_mask[looked_at][:, :width] & bool(held_out)
        return explained_variance(critic.outcomes[looked_at][:, :width], values, mask)

    if (at_first := explained()) is None:
        return []
    history = [at_first]
    best.keep()
    generator = torch.Generator().manual_seed(stream_seed("value pretraining", seed))
    with progress("fitting the critic", MAX_EPOCHS, updater.engine.accelerator.is_main_process) as line:
        for epoch in range(MAX_EPOCHS):
            before_pass()
            heartbeat.enter(f"pass {epoch + 1} of fitting the critic")
            order = [train[place] for place in torch.randperm(len(train), generator=generator).tolist()][:count]
            for start in range(0, count, batch_size):
                updater.fit_critic(rollout, critic, order[start : start + batch_size])
            history.append(explained() or 0.0)
            line.advance(1, explained=history[-1])
            if history[-1] == max(history):
                best.keep()
            if len(history) > PATIENCE and max(history[-PATIENCE:]) <= max(history[:-PATIENCE]):
                break
    best.restore()
    return history


def said_of_fit(explained: Sequence[float]) -> str:
    """What `fit` did, in words."""
    if not explained:
        return "the critic was not fitted: all held-out answers earn the same"
    return (
        f"the critic explained {explained[0]:.2f} of the variance of what held-out answers earn, and "
        f"{max(explained):.2f} after the best of {len(explained) - 1} passes over the others"
    )


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
    scale = unit.std if role.head_scale is None else role.head_scale
    head, bias = head * scale, role.head.score_bias * scale
    if role.head_scale is None:  # it has learned normalised scores
        bias -= unit.mean
    if whole:
        own = {
            name.removeprefix("value_model."): each for name, each in weights.items() if name.startswith("value_model.")
        }
        role.base.config.score_bias = bias
        role.base.save_pretrained(folder, state_dict=own | {"score.weight": head})
        return None
    own = _below("policy." if role.model is models.policy.model else "value_model.", weights)
    assert isinstance(role.model, PeftModel) and role.adapter is not None
    save_adapter(role.model, role.adapter, folder, own, head=head)
    write_score_bias(folder, bias)
    return models.base if role.model is models.policy.model else frozen_below(models.reference, models.sources)


def _below(prefix: str, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): each for name, each in weights.items() if name.startswith(prefix)}
