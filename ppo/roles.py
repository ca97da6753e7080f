"""A model as one role of PPO sees it: its own, or an adapter and a head on one that is shared.

Nothing else knows how the roles are held.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Literal, NamedTuple

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from alignment.models.adapters import without_adapter
from alignment.models.forward import TokenLogprobs, body_and_head, options_of, token_logprobs
from alignment.models.packing import attend_by_group, uses_flash, why_not_packed
from alignment.models.scalar import ScoreHead
from alignment.models.shared_base import adapter_parameters, checkpointing, using
from alignment.models.trainable import blocks
from alignment.tensors import entropy_from_logits, logprobs_from_logits
from ppo.lower_layers import LowerLayers, first_changed, frozen_depth
from ppo.sequences import Microbatch

Pass = Literal["policy", "value", "both"]


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
        self.lower: LowerLayers | None = None
        """Layers below all adapters, whose states are kept for other passes over the same rows."""
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
        with self.active(), self._lower_layers(batch):
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
        with self.active(), self._lower_layers(batch):
            inputs = batch.inputs | options_of(self.base)
            logits = self.base(**inputs, **({"logits_to_keep": columns} if kept else {})).logits
        where = batch.before
        if kept:
            where = batch.before // width * len(columns) + torch.searchsorted(columns, batch.before % width)
        logits = logits.flatten(0, 1)[where, : self.vocabulary]
        entropy = entropy_from_logits(logits, temperature) if with_entropy else None
        return TokenLogprobs(logprobs_from_logits(logits, batch.targets, temperature), entropy)

    def _lower_layers(self, batch: Microbatch) -> AbstractContextManager[None]:
        return nullcontext() if self.lower is None else self.lower.around(batch)

    def rescale_head(self) -> Role:
        """Scale the head's weight to length 1, so that an optimizer step has the same effect at any scale of scores."""
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


def share_lower_layers(roles: Sequence[Role]) -> list[LowerLayers]:
    """Let roles keep the states of frozen lower layers, where all that is trained is above them; returns these layers
    of each base."""
    bases: dict[int, list[Role]] = {}
    for role in roles:
        bases.setdefault(id(role.base), []).append(role)
    found = []
    for same in bases.values():
        layers, first = list(blocks(same[0].base)), [first_changed(role.base, role.adapter) for role in same]
        if (depth := frozen_depth(first, len(layers))) is not None:
            found.append(LowerLayers(layers, depth))
            for role, index in zip(same, first, strict=True):
                role.lower = found[-1] if index >= depth else None
    return found


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
