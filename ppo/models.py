"""The four roles of PPO together: policy, critic, reference and reward model, and where their weights wait."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from alignment.distributed import one_reader, processes, zero3
from alignment.distributed.engine import run_as_forward
from alignment.models.host_copies import keep_on_host, lent_to
from alignment.models.shared_base import save_adapter
from alignment.models.sources import ModelSource
from alignment.registry import Parent
from ppo.config import PPOStageConfig
from ppo.lower_layers import LowerLayers
from ppo.reward_model import RewardModel
from ppo.roles import PolicyAndValue, Role

T = TypeVar("T")


def settle(modules: Sequence[nn.Module], config: PPOStageConfig, *, frozen: bool) -> None:
    """Bring models that were read straight onto their device to the size that they will have there, before the next is
    read: in bfloat16 where DeepSpeed's engine casts them, and in the host's memory where they wait there (`place`)."""
    for module in modules if one_reader.is_active() else ():
        if config.training.bf16 and processes.under_deepspeed() and not isinstance(module, PeftModel):
            zero3.cast(module, torch.bfloat16)
        if frozen and config.model.offload:
            module.to("cpu")


@dataclass
class Models:
    """The roles, the policy's tokenizer, and where each model came from.

    Args:
        packed: batches of policy, critic and reference are laid out without padding.
        offloaded: the reference and the reward models wait in the host's memory.
        sharded: each process holds a shard of every weight (ZeRO-3), so each pass is a collective.
    """

    trained: PolicyAndValue
    reference: Role
    reward: RewardModel | None
    held_out_reward: RewardModel | None
    tokenizer: PreTrainedTokenizerBase
    sources: dict[str, ModelSource]
    base: ModelSource | None = None
    """The base of the policy's adapter; None: the policy is a whole model."""
    packed: bool = False
    offloaded: bool = False
    sharded: bool = False
    lower: Sequence[LowerLayers] = ()
    """The frozen lower layers of each base, where there are any and `ppo.selfcheck` has found their states right."""

    @property
    def policy(self) -> Role:
        return self.trained.roles[0]

    @property
    def critic(self) -> Role | None:
        """None where the advantages need none."""
        return self.trained.roles[1]

    def scorers(self) -> list[RewardModel]:
        return [scorer for scorer in (self.reward, self.held_out_reward) if scorer is not None]

    def frozen(self) -> list[nn.Module]:
        """Models of which nothing is trained."""
        trained = {id(module) for module in self.trained.modules()}
        modules = [self.reference.model, *(module for scorer in self.scorers() for module in scorer.modules())]
        return [module for module in modules if id(module) not in trained]

    def roles(self) -> list[Role]:
        """All roles that read the policy's tokens."""
        roles = [*self.trained.roles, self.reference, *(role for scorer in self.scorers() for role in scorer.members)]
        return [role for role in roles if role is not None]

    @contextmanager
    def keeping_states(self) -> Iterator[None]:
        """Compute frozen lower layers once for each row inside, and forget their states at the end."""
        with ExitStack() as stack:
            for layers in self.lower:
                stack.enter_context(layers.keeping())
            yield

    def save_policy(self, folder: Path, weights: dict[str, Tensor]) -> None:
        """Write the policy as a model or, if it is one, as an adapter.

        Args:
            weights: the state dict of the policy's model.
        """
        if isinstance(self.policy.model, PeftModel):
            assert self.policy.adapter is not None
            save_adapter(self.policy.model, self.policy.adapter, folder, weights)
        else:
            self.policy.model.save_pretrained(folder, state_dict=weights)

    def parents(self) -> list[Parent]:
        """Lineage entries of a policy trained from these."""
        return [source.parent(role) for role, source in self.sources.items()]

    def on_policy(self) -> list[nn.Module]:
        """The policy, and the heads of other roles that are on the same weights."""
        roles = [role for role in (*self.trained.roles, self.reference) if role is not None]
        return [module for role in roles if role.model is self.policy.model for module in role.modules()]

    def match_reference_dtype(self) -> None:
        """Cast the reference as the engine has cast the policy (afterwards): DeepSpeed rounds weights to bfloat16,
        but no buffers (rotary frequencies); with a reference of another dtype the KL starts above 0."""
        if self.reference.model is not self.policy.model:
            zero3.cast(self.reference.model, self.policy.base.dtype)

    def place(self, device: torch.device, sharded: bool) -> None:
        """Put the frozen models where they wait for their use, on the device or in the host's memory.

        Args:
            sharded: leave each rank a shard of their weights alone, which passes gather layer by layer. Heads are
                left whole.
        """
        self.sharded = sharded
        for scorer in self.scorers():
            scorer.sharded = sharded
        for root in self._frozen_roots() if sharded else ():
            zero3.fetch_by_layer(root, in_host_memory=self.offloaded)
        for module in self.frozen():
            if self.offloaded and not sharded:
                keep_on_host(module)
            else:
                module.to(device)

    def _frozen_roots(self) -> list[nn.Module]:
        """The frozen models, without the heads of reward models."""
        trained = {id(module) for module in self.trained.modules()}
        roots = [self.reference.model, *(body for scorer in self.scorers() for body in scorer.bodies())]
        return [root for root in roots if id(root) not in trained]

    @contextmanager
    def resident(self, modules: Sequence[nn.Module], device: torch.device, whole: bool = False) -> Iterator[None]:
        """Put models on the device; every rank enters. Those that are not frozen are there anyway: a reference can be
        the policy's base.

        Args:
            whole: gather what ZeRO-3 shards for the time inside, where no pass is a collective then. FSDP's shards
                are always gathered.
        """
        frozen = {id(module) for module in self.frozen()} if self.offloaded and not self.sharded else set()
        waiting = [module for module in modules if id(module) in frozen]
        gathered = zero3.gathered_modules(modules) if whole or not self.sharded else nullcontext()
        with lent_to(device, waiting), gathered:
            yield
        if self.sharded:
            zero3.release(modules)

    def run(self, role: Role, compute: Callable[..., T], *args: Any) -> T:
        """Call `compute` as a pass of the module that holds the role's weights.

        ZeRO-3 fetches the weights of submodules ahead of their use once it has seen their order, which it counts from
        the module's start.
        """
        trained = any(module is role.model for module in self.trained.modules())
        root = self.trained if trained else role.model
        return run_as_forward(root, root, compute, *args) if self.sharded else compute(*args)
