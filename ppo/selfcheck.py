"""PPO's computations of its roles, by the paths that it takes, against plain forward passes (`models/selfcheck.py`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from alignment.distributed import processes
from alignment.distributed.processes import Accelerator, say, under_fsdp
from alignment.errors import ConfigError, ModelError
from alignment.generation.engine import TransformersEngine
from alignment.generation.sampler_check import find_way
from alignment.generation.sampling import WAYS, Engine, Sampling, set_way
from alignment.models.forward import options_of
from alignment.models.selfcheck import (
    CheckError,
    agreed,
    plain_logits,
    plain_logprobs,
    row_tensor,
    undisturbed,
    why_not_split,
    why_wrong,
)
from alignment.tensors import logprobs_from_logits
from ppo.config import PPOStageConfig
from ppo.critic import not_on_trunk
from ppo.models import Models
from ppo.roles import Role, share_lower_layers
from ppo.rows import Row
from ppo.sequences import Microbatch, lay_out

PROMPTS, RESPONSES = (13, 7), (8, 5, 6)
"""Tokens of what is tried: two responses to one prompt, which packing computes once, and one to a shorter prompt."""


def check_models(
    config: PPOStageConfig,
    models: Models,
    accelerator: Accelerator,
    engine: Engine,
    sampling: Sampling,
    prompts: Sequence[Sequence[int]],
) -> None:
    """Take from the roles the short cuts that are wrong for them, and from the sampler the padding of prompts.

    Every process calls this, with the same prompts.

    Raises:
        CheckError, GenerationError: a model that is wrong by every way.
        ModelError: a critic on the trunk of a policy that is not simply a body and a head.
        ConfigError: the user wants rows packed, and that is wrong.
    """
    if not prompts:
        return
    check = _Check(config, models, accelerator, prompts)
    check.split()
    if models.packed and (reason := check.why_wrong(packed=True)):
        if config.training.packing:
            raise ConfigError(f"training.packing: {reason}; leave it out, and rows are padded")
        say(f"ppo: rows are padded, not packed: {reason}")
        models.packed = False
    if not models.packed and (reason := check.why_wrong(packed=False)):
        raise CheckError(f"{reason}; name another model")
    if models.packed and not models.sharded and not under_fsdp():  # a pass that gathers shards is of all processes
        models.lower = share_lower_layers(models.roles())
        if reason := check.why_kept_states_wrong():
            say(f"ppo: frozen lower layers are computed in each pass: {reason}")
            models.lower = ()
    for scorer in models.scorers():
        for member in scorer.members:
            if scorer.packed and (reason := check.why_states_wrong(member, packed=True)):
                say(f"ppo: rows of the reward model are padded, not packed: {reason}")
                scorer.packed = False
            if not scorer.packed and (reason := check.why_states_wrong(member, packed=False)):
                raise CheckError(f"{reason}; name another reward model")
    if isinstance(engine, TransformersEngine):
        policy = models.policy
        whole = models.resident(models.on_policy(), accelerator.device, whole=True)
        with accelerator.autocast(), whole, policy.active():
            sample = TransformersEngine(policy.model).sample
            way = processes.on_every_process(lambda: find_way(policy.model, prompts, sampling, sample))
        ways = [each for share in processes.gather_lists([way]) for each in share]
        set_way(policy.model, max(ways, key=WAYS.index))


class _Check:
    def __init__(
        self, config: PPOStageConfig, models: Models, accelerator: Accelerator, prompts: Sequence[Sequence[int]]
    ) -> None:
        self.models, self.accelerator, self.device = models, accelerator, accelerator.device
        self.temperature = config.rollout.temperature
        first, second = prompts[0], prompts[-1]
        asked = [list(first[-PROMPTS[0] :]), list(second[-PROMPTS[1] :])]
        said = [list(text[:length]) for text, length in zip((second, first, first), RESPONSES, strict=True)]
        self.rows = [Row(asked[0], said[0]), Row(asked[0], said[1]), Row(asked[1], said[2])]

    def split(self) -> None:
        """Check that each policy can be run at all, is causal, and is a body and a head."""
        for role in self._policies():
            reason = self._of(role, self._why_not_split)
            if reason is None:
                continue
            if role is self.models.policy and self.models.trained.on_trunk:
                raise ModelError(not_on_trunk(role))
            role.layers = None
            say(f"ppo: {type(role.base).__name__} computes whole logits, as {reason}")

    def why_wrong(self, packed: bool) -> str | None:
        """Why the roles' rows are wrong if they are laid out so, of the first that is."""
        critic = self.models.critic
        for role in self._policies():
            if reason := self._of(role, self._why_logprobs_wrong, packed):
                return f"{type(role.base).__name__}: {reason}"
        if critic is not None and not self.models.trained.on_trunk:
            return self.why_states_wrong(critic, packed)
        return None

    def why_kept_states_wrong(self) -> str | None:
        """Why the roles' passes are wrong from kept states of frozen lower layers."""
        with self.models.keeping_states():
            for _ in range(2 if self.models.lower else 0):  # the first pass of all keeps them
                if reason := self.why_wrong(packed=True):
                    return reason
            for scorer in self.models.scorers():
                for member in scorer.members if scorer.packed else ():
                    if member.lower is not None and (reason := self.why_states_wrong(member, packed=True)):
                        return reason
        return None

    def why_states_wrong(self, role: Role, packed: bool) -> str | None:
        """The same of the last hidden states, which a critic or reward model reads."""
        reason = self._of(role, self._why_states_wrong, packed)
        return f"{type(role.base).__name__}: {reason}" if reason else None

    def _policies(self) -> list[Role]:
        policy, reference = self.models.policy, self.models.reference
        same = (policy.model, policy.adapter) == (reference.model, reference.adapter)
        return [policy] if same else [policy, reference]

    def _of(self, role: Role, find: Callable[..., str | None], *args: Any) -> str | None:
        """What one of the functions below finds of a role, on any process."""
        models = self.models
        modules = models.on_policy() if role.model is models.policy.model else role.modules()
        resident = models.resident(modules, self.device)
        with self.accelerator.autocast(), resident, undisturbed(role.model), role.active():
            return agreed(models.run(role, find, role, *args))

    def _why_not_split(self, role: Role) -> str | None:
        row = self.rows[0].prompt + self.rows[0].response
        plain_logprobs(role.base, [row])
        return why_not_split(role.base, row) if role.layers is not None else None

    def _why_logprobs_wrong(self, role: Role, packed: bool) -> str | None:
        expected = [self._plain_logprobs(role, row) for row in self.rows]
        return why_wrong(role.base, partial(self._logprobs, role, packed), expected)

    def _why_states_wrong(self, role: Role, packed: bool) -> str | None:
        expected = [self._plain_states(role, row) for row in self.rows]
        scale = float(torch.cat(expected).float().std()) or 1.0
        return why_wrong(role.base, partial(self._states, role, packed), expected, scale)

    def _plain_logprobs(self, role: Role, row: Row) -> Tensor:
        logits = plain_logits(role.base, row.prompt + row.response)[len(row.prompt) - 1 : -1, : role.vocabulary]
        return logprobs_from_logits(logits, torch.tensor(row.response, device=logits.device), self.temperature)

    def _plain_states(self, role: Role, row: Row) -> Tensor:
        ids = row_tensor(role.base, row.prompt + row.response)
        body = role.base.base_model
        hidden: Tensor = body(input_ids=ids, **options_of(body)).last_hidden_state[0]
        return hidden[len(row.prompt) - 1 : -1]

    def _logprobs(self, role: Role, packed: bool) -> list[Tensor]:
        return self._by_row(packed, lambda batch: role.logprobs(batch, self.temperature).logprobs)

    def _states(self, role: Role, packed: bool) -> list[Tensor]:
        return self._by_row(packed, lambda batch: role.states(batch, batch.before))

    def _by_row(self, packed: bool, compute: Callable[[Microbatch], Tensor]) -> list[Tensor]:
        pad = self.models.tokenizer.pad_token_id
        batch = lay_out(self.rows, range(len(self.rows)), packed, pad, self.device)
        found = compute(batch)
        return [found[batch.row == number] for number in range(len(self.rows))]
