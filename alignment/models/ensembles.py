"""Ensembles of reward models: their disagreement marks answers whose scores cannot be trusted.

An ensemble's version has `ensemble.json` and the tokenizer at its top, and each member in a folder of its own,
`member-0` and so on: a full model, or an adapter with its head on the base that the manifest names. Members that are
adapters share one body, which holds all adapters and switches between them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from peft import PeftModel
from torch import Tensor, nn

from alignment.config.sections import ModelConfig
from alignment.errors import ModelError
from alignment.models import adapters
from alignment.models.heads import take_head
from alignment.models.names import ENSEMBLE
from alignment.models.reward_files import Bias, is_ensemble, member_name, read_ensemble, read_score_bias
from alignment.models.scalar import ScalarModel, in_dtype, load_body, load_merged, load_scalar_model
from alignment.models.sources import ModelSource

Combine = Literal["mean", "min", "mean_minus_std"]


class RewardEnsemble(nn.Module):
    """n reward models whose scores are combined into one.

    Args:
        members: one model per member; or, with `adapted`, the one shared body.
        adapted: the same body with an adapter `member-N` for each member in it.
        size: number of members.
        combine: `mean`, `min` (the most pessimistic member), or `mean_minus_std` (Coste et al. 2023, "Reward Model
            Ensembles Help Mitigate Overoptimization", section 3.2, with the standard deviation in place of the
            variance, so that it has the unit of a score).
        std_coefficient: how many standard deviations `mean_minus_std` subtracts.
    """

    def __init__(
        self,
        members: Sequence[ScalarModel],
        size: int,
        adapted: PeftModel | None = None,
        combine: Combine = "mean",
        std_coefficient: float = 1.0,
    ) -> None:
        super().__init__()
        self._members = nn.ModuleList(members)
        self._adapted = [adapted]  # the list hides it from nn.Module, which would count its parameters twice
        self.size, self.combine, self.std_coefficient = size, combine, std_coefficient

    def member(self, number: int) -> ScalarModel:
        """One member; with a shared body only one member may be used at a time."""
        assert 0 <= number < self.size, number
        (adapted,) = self._adapted
        if adapted is not None:
            adapted.set_adapter(member_name(number), inference_mode=True)
        member = self._members[0 if adapted is not None else number]
        assert isinstance(member, ScalarModel)
        return member

    def member_scores(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Score of each sequence by each member: (B, L) -> (n, B) float32."""
        return torch.stack([self.member(number).score(input_ids, attention_mask) for number in range(self.size)])

    def combined(self, scores: Tensor) -> Tensor:
        """One score for each sequence: (n, B) -> (B,)."""
        if self.combine == "min":
            return scores.amin(0)
        if self.combine == "mean":
            return scores.mean(0)
        return scores.mean(0) - self.std_coefficient * disagreement(scores)

    def score(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Combined score of each sequence: (B, L) -> (B,) float32."""
        return self.combined(self.member_scores(input_ids, attention_mask))


def disagreement(scores: Tensor) -> Tensor:
    """Standard deviation over the members: (n, B) -> (B,), 0 for a single member."""
    return scores.std(0, correction=0)


def write_ensemble(folder: Path, score_bias: Sequence[float] | None, size: int) -> None:
    """Write the description of a folder of `member-N` folders.

    Args:
        score_bias: of each member, if they are adapters, which have no config of their own for it.
    """
    record = {"members": size, **({} if score_bias is None else {"score_bias": list(score_bias)})}
    (folder / ENSEMBLE).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def load_reward_model(
    source: ModelSource,
    config: ModelConfig | None = None,
    *,
    combine: Combine = "mean",
    std_coefficient: float = 1.0,
    several_heads: bool = False,
    head: str | None = None,
) -> ScalarModel | RewardEnsemble:
    """A trained reward model, or all members of an ensemble.

    Args:
        several_heads: the caller knows what to do with several scores of an answer.
        head: the one that is meant, or weights of all (`alignment.models.heads`).

    Raises:
        ModelError, AdapterError: see `load_scalar_model`; a member that is missing or does not fit; a model has
            several scores where one is needed.
    """
    if not is_ensemble(source):
        scalar = load_scalar_model(source, config, trained=True)
        if head is not None:
            return take_head(scalar, head, source.label)
        if scalar.heads and not several_heads:
            raise ModelError(
                f"{source.label}: a reward model with a score for each of {', '.join(scalar.heads)}, where one score "
                f"is needed; alignment score, a judge and chosen_by take a head, as {source.label}#{scalar.heads[0]}; "
                "elsewhere name a model that was trained without reward.attributes"
            )
        return scalar
    if head is not None:
        raise ModelError(f"{source.label}: several reward models in one, with one score; leave #{head} out")
    record = read_ensemble(source)
    size = record["members"]
    if source.base is None:
        folders = [str(Path(source.path) / member_name(number)) for number in range(size)]
        members = [load_scalar_model(folder, config, trained=True) for folder in folders]
        return RewardEnsemble(members, size, None, combine, std_coefficient)
    with adapters.loading_to_merge(str(Path(source.path) / member_name(0))):
        body = load_body(source, config)
        adapted = None
        for number in range(size):
            name = member_name(number)
            adapted = adapters.put_on(adapted or body.model, str(Path(source.path) / name), name=name)
            adapter_head = body.model.score.modules_to_save[name]
            adapter_head.score_bias += float(record["score_bias"][number])
    in_dtype(body, config)
    return RewardEnsemble([body], size, adapted, combine, std_coefficient)


def adapter_files(source: ModelSource, number: int = 0) -> tuple[str, Bias]:
    """The folder and the score bias of a reward adapter, or of one member of an ensemble.

    Raises:
        ModelError: the version is damaged.
    """
    assert source.base
    if is_ensemble(source):
        return str(Path(source.path) / member_name(number)), float(read_ensemble(source)["score_bias"][number])
    return source.path, read_score_bias(source.path)


def load_member(source: ModelSource, number: int, config: ModelConfig | None = None) -> ScalarModel:
    """One member of an ensemble as a model of its own, with adapters merged; any other reward model is itself.

    Raises:
        ModelError, AdapterError: as `load_reward_model`.
    """
    if not is_ensemble(source):
        return load_scalar_model(source, config, trained=True)
    if source.base is None:
        return load_scalar_model(str(Path(source.path) / member_name(number)), config, trained=True)
    return load_merged(source, *adapter_files(source, number), config)
