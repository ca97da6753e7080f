"""The four roles of PPO: policy, critic, reference and reward model, each a model of its own or an adapter on one base.

A `Role` is a model as one of them sees it. Nothing else knows how the roles are held.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from alignment.distributed import zero3
from alignment.models.adapters import without_adapter
from alignment.models.ensembles import RewardEnsemble, disagreement
from alignment.models.forward import TokenLogprobs, body_and_head, options_of, token_logprobs
from alignment.models.lengths import LengthError
from alignment.models.packing import attend_by_group, uses_flash, why_not_packed
from alignment.models.scalar import ScalarModel, ScoreHead
from alignment.models.shared_base import adapter_parameters, checkpointing, save_adapter, using
from alignment.models.sources import ModelSource
from alignment.registry import Parent
from alignment.templates.rendering import Message, encode_to_score
from alignment.tensors import entropy_from_logits, logprobs_from_logits, pad_rows
from ppo.sequences import Microbatch, Row, lay_out, split_by_tokens

Pass = Literal["policy", "value", "both"]
NO_GRADIENT = 4
"""A pass without gradients keeps no activations and takes so many times the tokens of one with."""


class Role:
    """A model as one role sees it.

    Args:
        model: of transformers, or of PEFT with any number of adapters in it.
        adapter: the adapter that is active; None: the bare base.
        head: hidden states (..., H) to one number, (..., 1), of a critic or reward model.
    """

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        adapter: str | None = None,
        head: nn.Module | None = None,
    ) -> None:
        self.model, self.adapter, self.head = model, adapter, head
        self.head_scale: float | None = None
        """Scores over the head's outputs, for a critic whose head was trained before. None: a new head, which learns
        normalised scores."""
        self.layers = body_and_head(model)
        """None: the model gives its logits itself, which takes more memory (`ppo.selfcheck` tries it)."""
        if self.layers is not None and isinstance(self.layers[1], BaseTunerLayer):
            self.layers = None  # what this head says depends on which adapter is active, and it is called outside
        self.vocabulary: int | None = None
        """The tokens that can be said: those of the tokenizer. A head that is padded to a round number has more rows,
        which nobody can read and another role may not be able to embed: they have no probability in any role, and the
        ratio and the KL are those of the distributions that are sampled from. None: all rows."""
        self.checkpointed = False
        """Keep the input of each transformer layer alone where there is a gradient, and run the layer again for it."""

    @property
    def base(self) -> PreTrainedModel:
        """The model, whose layers may have adapters in them."""
        return without_adapter(self.model)

    def modules(self) -> list[nn.Module]:
        """The modules that its forward passes need."""
        return [self.model] if self.head is None else [self.model, self.head]

    @contextmanager
    def active(self) -> Iterator[None]:
        """Forward passes inside are this role's."""
        with ExitStack() as stack:
            if isinstance(self.model, PeftModel):
                stack.enter_context(using(self.model, self.adapter))
            if self.checkpointed and torch.is_grad_enabled():
                stack.enter_context(checkpointing(self.model))
            yield

    def states(self, batch: Microbatch, where: Tensor) -> Tensor:
        """Last hidden states at flat positions: (..., H)."""
        with self.active():
            hidden: Tensor = self.base.base_model(**batch.inputs).last_hidden_state
        return hidden.flatten(0, 1)[where]

    def logprobs(self, batch: Microbatch, temperature: float, with_entropy: bool = False) -> TokenLogprobs:
        """Log-probabilities of the batch's response tokens, at the temperature that they were sampled at."""
        if self.layers is not None:
            states = self.states(batch, batch.before)
            head = self.layers[1]
            return token_logprobs(head, states, batch.targets, temperature, with_entropy, self.vocabulary)
        # Logits of the columns that any row asks for, where the model can leave others out: prompts have none.
        width = batch.inputs["input_ids"].shape[1]
        columns = torch.unique(batch.before % width)
        kept = "logits_to_keep" in inspect.signature(self.base.forward).parameters
        with self.active():
            inputs = batch.inputs | options_of(self.base)
            logits = self.base(**inputs, **({"logits_to_keep": columns} if kept else {})).logits
        where = batch.before
        if kept:
            where = batch.before // width * len(columns) + torch.searchsorted(columns, batch.before % width)
        logits = logits.flatten(0, 1)[where, : self.vocabulary]
        entropy = entropy_from_logits(logits, temperature) if with_entropy else None
        return TokenLogprobs(logprobs_from_logits(logits, batch.targets, temperature), entropy)

    def rescale_head(self) -> Role:
        """Bring the head's weight to length 1, so that an optimizer step means the same whatever the scores' scale."""
        assert isinstance(self.head, ScoreHead) and not isinstance(self.head.score_bias, list)
        scale = float(self.head.weight.detach().norm()) or 1.0
        with torch.no_grad():
            self.head.weight.div_(scale)
        self.head.score_bias /= scale
        self.head_scale = scale
        return self

    def read(self, states: Tensor) -> Tensor:
        """The head's outputs for hidden states: (..., H) -> (...) float32; (..., n) of a head with n scores."""
        assert self.head is not None
        return self.head(states).squeeze(-1)


class Outputs(NamedTuple):
    """Per-token outputs for M response tokens, (M,) float32; None if not requested."""

    logprobs: Tensor | None
    entropy: Tensor | None
    values: Tensor | None


class PolicyAndValue(nn.Module):
    """All that is trained, as one module: accelerate binds one DeepSpeed engine to an accelerator.

    Args:
        critic: None where the advantages need none; one with the policy's model and adapter is a head on its states.
    """

    def __init__(self, policy: Role, critic: Role | None) -> None:
        super().__init__()
        self.roles = (policy, critic)  # a tuple, so that the modules are registered once, by the names below
        self.policy = policy.model
        self.on_trunk = critic is not None and (critic.model, critic.adapter) == (policy.model, policy.adapter)
        if critic is not None:
            if critic.model is not policy.model:
                self.value_model = critic.model
            assert critic.head is not None
            if not any(module is critic.head for module in self.modules()):
                self.value_head = critic.head

    @property
    def passes(self) -> tuple[Pass, ...]:
        """The forward and backward passes of one update. One after the other, so that the activations of one role alone
        are kept at a time."""
        if self.on_trunk:
            return ("both",)
        return ("policy",) if self.roles[1] is None else ("policy", "value")

    def forward(self, batch: Microbatch, what: Pass, temperature: float, with_entropy: bool = False) -> Outputs:
        """Log-probabilities and entropy (`policy`), values (`value`), or all three of the response tokens.

        A value is read at the token before: it must not know what it is the value before.
        """
        policy, critic = self.roles
        if self.on_trunk:
            return self._from_trunk(batch, what, temperature, with_entropy)
        logprobs, entropy = (None, None)
        if what != "value":
            logprobs, entropy = policy.logprobs(batch, temperature, with_entropy)
        values = None
        if what != "policy" and critic is not None:
            values = critic.read(critic.states(batch, batch.before))
        return Outputs(logprobs, entropy, values)

    def _from_trunk(self, batch: Microbatch, what: Pass, temperature: float, with_entropy: bool) -> Outputs:
        policy, critic = self.roles
        assert critic is not None and policy.layers is not None
        if what == "value":  # the critic alone learns: its gradient ends at the head
            with torch.no_grad():
                states = policy.states(batch, batch.before)
            return Outputs(None, None, critic.read(states))
        states = policy.states(batch, batch.before)
        head, vocabulary = policy.layers[1], policy.vocabulary
        outputs = token_logprobs(head, states, batch.targets, temperature, with_entropy, vocabulary)
        return Outputs(outputs.logprobs, outputs.entropy, critic.read(states) if what == "both" else None)

    def trained_parameters(self, of: Literal["policy", "value"]) -> list[tuple[str, nn.Parameter]]:
        """Names and parameters that this role trains."""
        critic = self.roles[1]
        adapter: list[nn.Parameter] = []
        if critic is not None and critic.adapter is not None and not self.on_trunk:
            adapter = adapter_parameters(critic.model, critic.adapter)
        # By identity: a layer can have the name of an adapter.
        critic_ids = {id(p) for p in adapter}
        critic_ids |= {id(p) for name, p in self.named_parameters() if name.startswith(("value_model.", "value_head."))}
        trained = [(name, p) for name, p in self.named_parameters() if p.requires_grad]
        return [(name, p) for name, p in trained if (id(p) in critic_ids) == (of == "value")]


class RewardModel:
    """Scores of responses by a reward model or an ensemble.

    Args:
        members: of a decoder that reads the policy's tokens, a role for each member.
        ensemble: combines the members' scores; None for a single model.
        heads: the attributes of a model with several scores, which are not combined here.
        text_model, tokenizer: in place of members, a model that reads text through its own tokenizer: an encoder, or
            one with other tokens.
        max_positions: of the text model, where it has a last one.
    """

    def __init__(
        self,
        members: Sequence[Role] = (),
        ensemble: RewardEnsemble | None = None,
        text_model: ScalarModel | RewardEnsemble | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        packed: bool = False,
        max_tokens: int = 8192,
        max_positions: int | None = None,
        heads: Sequence[str] = (),
    ) -> None:
        assert bool(members) != (text_model is not None)
        self.heads = tuple(heads)
        self.members, self.ensemble = list(members), ensemble
        self.text_model, self.tokenizer = text_model, tokenizer
        self.packed, self.max_tokens, self.max_positions = packed, max_tokens, max_positions

    def modules(self) -> list[nn.Module]:
        """The modules that must be on the device."""
        if self.text_model is not None:
            return [self.text_model]
        return [module for member in self.members for module in member.modules()]

    def combined(self, scores: Tensor) -> tuple[Tensor, Tensor | None]:
        """Members' scores (n, B) as one, (B,), and of an ensemble how far the members disagree, (B,)."""
        if self.ensemble is None:
            return scores[0], None
        return self.ensemble.combined(scores), disagreement(scores)

    @torch.no_grad()
    def member_scores(
        self, rows: Sequence[Row], conversations: Sequence[Sequence[Message]], device: torch.device
    ) -> Tensor:
        """Score of each response by each member, or by each head of the only one: (n, B) float32.

        Args:
            rows: prompts and responses in the policy's tokens, through EOS.
            conversations: the same as messages, the last of them the response.

        Raises:
            LengthError: a conversation has more tokens of the text model's than it has positions.
        """
        if self.text_model is not None:
            return self._by_text(conversations, device)
        scores = torch.zeros(len(self.heads) or len(self.members), len(rows), device=device)
        for part in split_by_tokens(rows, range(len(rows)), self.max_tokens, self.packed):
            batch = lay_out([rows[number] for number in part], part, self.packed, 0, device)
            for number, member in enumerate(self.members):
                found = member.read(member.states(batch, batch.last)).float()
                scores[slice(None) if self.heads else number, batch.rows] = found.T if self.heads else found
        return scores

    def _by_text(self, conversations: Sequence[Sequence[Message]], device: torch.device) -> Tensor:
        assert self.text_model is not None and self.tokenizer is not None
        ids = [encode_to_score(self.tokenizer, conversation) for conversation in conversations]
        longest = max(map(len, ids))
        if self.max_positions is not None and longest > self.max_positions:  # an IndexError of its embedding else
            raise LengthError(
                f"a conversation has {longest} of the reward model's tokens, which has {self.max_positions} positions; "
                "lower data.max_length, which is in the policy's tokens"
            )
        size = self.text_model.size if isinstance(self.text_model, RewardEnsemble) else len(self.heads) or 1
        scores = torch.zeros(size, len(ids), device=device)
        by_length = sorted(range(len(ids)), key=lambda number: len(ids[number]))
        while by_length:
            count = max(1, min(len(by_length), self.max_tokens // len(ids[by_length[-1]])))
            part, by_length = by_length[-count:], by_length[:-count]
            batch, mask = (x.to(device) for x in pad_rows([ids[n] for n in part], self.tokenizer.pad_token_id, "right"))
            if isinstance(self.text_model, RewardEnsemble):
                scores[:, part] = self.text_model.member_scores(batch, mask)
            else:
                found = self.text_model.score(batch, mask)
                scores[:, part] = found.T if self.heads else found[None]
        return scores


@dataclass
class Models:
    """The roles, the policy's tokenizer, and where each model came from.

    Args:
        packed: batches of policy, critic and reference are laid out without padding.
        offloaded: the reference and the reward models wait in the host's memory.
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
            for parameter in self.reference.model.parameters():
                parameter.data = parameter.data.to(self.policy.base.dtype)

    def place(self, device: torch.device, sharded: bool) -> None:
        """Put the frozen models where they wait for their use, on the device or in the host's memory.

        Args:
            sharded: leave each rank a shard of their weights alone.
        """
        for module in self.frozen():
            if sharded:
                zero3.partition(module, in_host_memory=self.offloaded)
            module.to(device if sharded or not self.offloaded else "cpu")

    @contextmanager
    def resident(self, modules: Sequence[nn.Module], device: torch.device) -> Iterator[None]:
        """Gather models and put them on the device; every rank enters. Those that are neither sharded nor frozen are
        there anyway: a reference can be the policy's base."""
        frozen = {id(module) for module in self.frozen()} if self.offloaded else set()
        moved = [module for module in modules if id(module) in frozen and not zero3.is_partitioned(module)]
        for module in moved:
            module.to(device)
        with zero3.gathered_modules(modules):
            yield
        for module in moved:
            module.to("cpu")


def pack_if_possible(roles: Sequence[Role], max_length: int) -> str | None:
    """Let these models attend by group; returns why they cannot, with nothing changed, where they cannot.

    That their packed rows are right is seen when a run starts (`ppo.selfcheck`)."""
    bases = list({id(role.base): role.base for role in roles}.values())
    for model in bases:
        reason = "flash attention knows no shared prefix" if uses_flash(model) else why_not_packed(model, max_length)
        if reason:
            return f"{type(model).__name__}: {reason}"
    for model in bases:
        attend_by_group(model)
    return None
