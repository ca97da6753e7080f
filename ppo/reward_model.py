"""Scores of responses by a reward model or an ensemble, in the policy's tokens or through its own tokenizer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from alignment.distributed import processes
from alignment.models.ensembles import RewardEnsemble, disagreement
from alignment.models.lengths import LengthError
from alignment.models.scalar import ScalarModel
from alignment.templates.rendering import Message, encode_to_score
from alignment.tensors import pad_rows
from ppo.roles import Role
from ppo.rows import Row
from ppo.sequences import lay_out, split_by_tokens, split_further


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
        self.sharded = False
        """Each pass is a collective, so all processes make as many (ZeRO-3)."""

    def modules(self) -> list[nn.Module]:
        """The modules that must be on the device."""
        if self.text_model is not None:
            return [self.text_model]
        return [module for member in self.members for module in member.modules()]

    def bodies(self) -> list[nn.Module]:
        """The transformer bodies below the heads, each once."""
        if self.text_model is None:
            bodies = [member.base.base_model for member in self.members]
        elif isinstance(self.text_model, RewardEnsemble):
            bodies = [self.text_model.member(n).model.base_model for n in range(self.text_model.size)]
        else:
            bodies = [self.text_model.model.base_model]
        return list({id(body): body for body in bodies}.values())

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

        Every process must call this, and each with one response or more.

        Args:
            rows: prompts and responses in the policy's tokens, through EOS.
            conversations: the same as messages, the last of them the response.

        Raises:
            LengthError: a conversation has more tokens of the text model's than it has positions.
        """
        if self.text_model is not None:
            return self._by_text(conversations, device)
        scores = torch.zeros(len(self.heads) or len(self.members), len(rows), device=device)
        for part in self._in_step(split_by_tokens(rows, range(len(rows)), self.max_tokens, self.packed)):
            batch = lay_out([rows[number] for number in part], part, self.packed, 0, device)
            for number, member in enumerate(self.members):
                found = member.read(member.states(batch, batch.last)).float()
                scores[slice(None) if self.heads else number, batch.rows] = found.T if self.heads else found
        return scores

    def _in_step(self, parts: list[list[int]]) -> list[list[int]]:
        """As many parts as the process with the most has; where rows are too few, some are computed twice."""
        if not self.sharded:
            return parts
        count = processes.all_reduce_max(len(parts))
        parts = split_further(parts, count)
        return parts + parts[:1] * (count - len(parts))

    def _by_text(self, conversations: Sequence[Sequence[Message]], device: torch.device) -> Tensor:
        assert self.text_model is not None and self.tokenizer is not None
        ids = processes.on_every_process(lambda: self._encode(conversations))
        size = self.text_model.size if isinstance(self.text_model, RewardEnsemble) else len(self.heads) or 1
        scores = torch.zeros(size, len(ids), device=device)
        by_length, parts = sorted(range(len(ids)), key=lambda number: len(ids[number])), list[list[int]]()
        while by_length:
            count = max(1, min(len(by_length), self.max_tokens // len(ids[by_length[-1]])))
            parts.append(by_length[-count:])
            by_length = by_length[:-count]
        for part in self._in_step(parts):
            batch, mask = (x.to(device) for x in pad_rows([ids[n] for n in part], self.tokenizer.pad_token_id, "right"))
            if isinstance(self.text_model, RewardEnsemble):
                scores[:, part] = self.text_model.member_scores(batch, mask)
            else:
                found = self.text_model.score(batch, mask)
                scores[:, part] = found.T if self.heads else found[None]
        return scores

    def _encode(self, conversations: Sequence[Sequence[Message]]) -> list[list[int]]:
        assert self.tokenizer is not None
        ids = [encode_to_score(self.tokenizer, conversation) for conversation in conversations]
        longest = max(map(len, ids))
        if self.max_positions is not None and longest > self.max_positions:  # an IndexError of its embedding else
            raise LengthError(
                f"a conversation has {longest} of the reward model's tokens, which has {self.max_positions} positions; "
                "lower data.max_length, which is in the policy's tokens"
            )
        return ids
