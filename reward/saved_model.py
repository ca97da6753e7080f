"""Scoring with a saved model: on the main process alone, or under ZeRO-3 and FSDP2 by all ranks in shards."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import safe_open
from torch import nn
from transformers import AutoConfig

from alignment.distributed import fsdp, heartbeat, processes, zero3
from alignment.errors import UserError
from alignment.files import replace_text
from alignment.models.classifiers import AnyClassifier
from alignment.models.ensembles import RewardEnsemble
from alignment.models.scalar import ScalarModel
from reward.batches import score_heads
from reward.questions import Question

T = TypeVar("T")
END = "end"


def is_checked_in_shards(path: str, trust_remote_code: bool) -> bool:
    """Whether a saved model of this config is checked in shards: under ZeRO-3 and FSDP2, and with a head that is apart
    from its body. An encoder, whose head is part of it, is small."""
    if not (processes.launched_zero_stage() == 3 or processes.under_fsdp()):
        return False
    shape = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
    with zero3.on_meta_device():
        model = AnyClassifier.from_config(shape, trust_remote_code=trust_remote_code)
    return isinstance(getattr(model, "score", None), nn.Linear)


class SavedModel:
    """The model that is loaded last, and its scores.

    Args:
        sharded: each rank loads a shard of every weight, so that no device has to hold the model. Each pass is a
            collective then, in which all ranks compute the same scores.
    """

    def __init__(self, sharded: bool) -> None:
        self.sharded = sharded
        self.model: ScalarModel | RewardEnsemble | None = None

    def run(self, work: Callable[[], T]) -> T:
        """Call `work` on the main process; every rank must call this, and returns its result or raises its UserError.

        Where the model is sharded, the others take part in what `work` does with it.
        """
        if not self.sharded or processes.world_size() == 1:
            return processes.on_main_process(work)
        value, error = None, None
        if processes.is_main_process():
            try:
                value = work()
            except UserError as raised:
                error = raised
            processes.broadcast([END, value, error])
        else:
            value, error = self._take_part()
        self.model = None
        if error is not None:
            raise error
        return value  # type: ignore[return-value]

    def _take_part(self) -> tuple[Any, UserError | None]:
        """Do what the main process asks for until it ends; returns its result."""
        with heartbeat.within("checking the reward model", patient=True):
            while True:
                method, *arguments = processes.broadcast(list[Any]())
                if method == END:
                    return arguments[0], arguments[1]
                with suppress(UserError):  # the main process has it too, and says how it ends
                    processes.on_every_process(partial(getattr(self, method), *arguments))

    def load(self, folder: Path, read: Callable[[], ScalarModel | RewardEnsemble]) -> ScalarModel | RewardEnsemble:
        """Load the model of a folder with `read` (which can be pickled), in place of the one before."""
        self._everywhere("_look", folder)
        self._everywhere("_load", read)
        assert self.model is not None
        return self.model

    def scores(
        self, questions: Sequence[Question], pad_token_id: int, doing: str, member: int | None = None
    ) -> list[list[list[float]]]:
        """`score_heads` of the model, or of one member of an ensemble."""
        return self._everywhere("_scores", list(questions), pad_token_id, doing, member)

    def _everywhere(self, method: str, *arguments: Any) -> Any:
        if self.sharded and processes.world_size() > 1:
            processes.broadcast([method, *arguments])
            return processes.on_every_process(partial(getattr(self, method), *arguments))
        return getattr(self, method)(*arguments)

    def _look(self, folder: Path) -> None:
        """Raise a UserError where this node does not see what was saved: loading would wait for it."""
        if not folder.is_dir():
            raise UserError(
                f"{folder} is not there on {socket.gethostname()}: under ZeRO-3 and FSDP2 every node reads what was "
                "saved; put the run folder on a disk that all nodes see"
            )

    def _load(self, read: Callable[[], ScalarModel | RewardEnsemble]) -> None:
        self.model = None  # a large model must not be in memory twice
        with zero3.loading_in_shards() if self.sharded else nullcontext():
            model = read()
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model = model.eval().requires_grad_(False) if self.sharded else model
        if not self.sharded:
            model.to(device)
        elif processes.under_fsdp():
            processes.reset_accelerator()  # the trainer's, which may compute in bfloat16
            fsdp.shard_frozen(self._roots(), processes.make_accelerator())
        else:
            for root in self._roots():
                zero3.fetch_by_layer(root.base_model)  # heads stay whole
            model.to(device)

    def _scores(
        self, questions: list[Question], pad_token_id: int, doing: str, member: int | None
    ) -> list[list[list[float]]]:
        assert self.model is not None
        model = self.model if isinstance(self.model, ScalarModel) else self.model.member(member or 0)
        scores = score_heads(model, questions, pad_token_id, doing=doing)
        if self.sharded:
            zero3.release([model])
        return scores

    def _roots(self) -> list[Any]:
        """The transformers models, each once: members that are adapters share one."""
        model = self.model
        members = [model] if isinstance(model, ScalarModel) else [model.member(n) for n in range(model.size)]  # type: ignore[union-attr]
        return list({id(member.model): member.model for member in members}.values())


def write_score_offset(folder: Path, scalar: ScalarModel) -> None:
    """Write a decoder's score bias, and the type of the weights, into the config of its folder."""
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    weight = next(iter(folder.glob("*.safetensors")))
    with safe_open(weight, framework="pt") as tensors:
        dtype = tensors.get_tensor(next(iter(tensors.keys()))).dtype
    config |= {"score_bias": scalar.model.config.score_bias, "dtype": str(dtype).removeprefix("torch.")}
    replace_text(path, json.dumps(config, indent=2) + "\n")
