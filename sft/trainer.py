"""A faster SFTTrainer: no padding, logits for labelled positions only, and no redundant computation.

TRL 1.16 computes logits at every position on a CPU, including prompt and padding, and entropies. Here the loss is
computed on the labelled tokens of packed rows (`sft.packing`, `sft.loss`), with the same loss and gradients.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import datasets
import torch
import trl
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers.trainer_utils import EvalLoopOutput

from alignment.distributed.engine import run_as_forward
from alignment.distributed.processes import all_reduce_sum
from alignment.models.adapters import without_adapter
from alignment.models.forward import body_and_head, options_of
from alignment.training.finite_steps import with_nan_gradient
from alignment.training.halving import even_parts
from alignment.training.resumable import Resumable
from alignment.training.throughput import TokenCount
from sft.data import IGNORED
from sft.loss import TokenSums, next_token_sums

ROUTER = ("output_router_logits", "router_aux_loss_coef")


class SFTTrainer(Resumable, trl.SFTTrainer):
    """An SFTTrainer on rows of `input_ids` and `labels`. The loss of a step is the mean over its labelled tokens on all
    ranks and accumulated batches; `eval_loss` is the mean over the labelled tokens of the whole set.

    Args:
        penalty: an additional term of the loss, given the model, added once per optimizer step.
    """

    def __init__(
        self, *args: Any, penalty: Callable[[nn.Module], Tensor | float] | None = None, **options: Any
    ) -> None:
        text_config = without_adapter(options["model"]).config.get_text_config()
        published = {name: getattr(text_config, name) for name in ROUTER if hasattr(text_config, name)}
        super().__init__(*args, **options)
        for name, value in published.items():  # TRL has changed them for its own forward pass
            setattr(text_config, name, value)
        self.penalty = penalty
        # TRL's loss is used if run_as_forward cannot replace the forward of a compiled model.
        self._ours = not self.args.torch_compile
        split = self._ours and not self.aux_loss_enabled
        self.layers = body_and_head(self.model) if split else None
        """Body and head; None if the model must compute all logits itself, for example for a router's loss."""
        self.model_accepts_loss_kwargs |= self._ours  # otherwise the Trainer does not count the tokens of a step
        self._train_sums = TokenSums.zeros()
        self._eval_sums = TokenSums.zeros()
        self._tokens = TokenCount()
        self.start_losses: dict[str, float] = {}
        """Losses of the initial model, by the name of the held-out rows."""

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        if self.model.training:
            self._tokens.add(inputs)
        if return_outputs or not self._ours:
            loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        else:
            loss = self._mean_loss(model, inputs, num_items_in_batch)
        if return_outputs or not self.model.training:
            return loss
        if self.penalty is not None:
            loss = loss + self.penalty(self.model) / self.current_gradient_accumulation_steps
        return with_nan_gradient(loss)

    def _mean_loss(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None) -> Tensor:
        smoothing, dft = self.args.label_smoothing_factor, self.args.loss_type == "dft"
        sums, router = self._sums_and_router_loss(model, inputs, smoothing, dft)
        self._train_sums = self._train_sums.plus(sums)
        if num_items_in_batch is None:
            loss = sums.loss / sums.tokens.clamp(min=1)
        else:  # the number covers all ranks, whose gradients are averaged
            processes = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
            loss = sums.loss * processes / num_items_in_batch
        if router is None:
            return loss
        self._metrics["train"]["aux_loss"].append(float(router))
        return loss + self.router_aux_loss_coef * router / self.current_gradient_accumulation_steps

    def _token_sums(self, model: nn.Module, inputs: dict[str, Any]) -> TokenSums:
        return self._sums_and_router_loss(model, inputs)[0]

    def _sums_and_router_loss(
        self, model: nn.Module, inputs: dict[str, Any], label_smoothing: float = 0.0, dft: bool = False
    ) -> tuple[TokenSums, Tensor | None]:
        """The sums of a batch and, in training, the router's load-balancing loss if it is enabled."""
        labels = inputs["labels"]
        rest = {name: value for name, value in inputs.items() if name != "labels"} | self._options
        vocabulary = self.model.config.get_text_config().vocab_size
        if self.layers is None:
            routed = self._ours and self.aux_loss_enabled and self.model.training
            output = model(**rest | ({"output_router_logits": True} if routed else {}))
            sums = next_token_sums(nn.Identity(), output.logits, labels, vocabulary, label_smoothing, dft)
            return sums, output.aux_loss if routed else None
        body, head = self.layers

        def forward() -> TokenSums:
            hidden = body(**rest).last_hidden_state
            return next_token_sums(head, hidden, labels, vocabulary, label_smoothing, dft)

        with self.accelerator.autocast():  # autocast wraps the forward that run_as_forward replaces
            return run_as_forward(model, self.model, forward), None

    def logits(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        """All logits of a batch, computed as in training: (B, L, V)."""
        rest = {name: value for name, value in inputs.items() if name != "labels"} | self._options
        if self.layers is None:
            whole: Tensor = model(**rest).logits
            return whole
        body, head = self.layers
        split: Tensor = run_as_forward(model, self.model, lambda: head(body(**rest).last_hidden_state))
        return split

    def rows_of(self, batch: dict[str, Any]) -> list[Any]:
        """The numbers of a batch's training rows, from 0 on, found by their tokens."""
        wanted = {tuple(row) for row in rows_in(batch)}
        return [index for index, ids in enumerate(self.train_dataset["input_ids"]) if tuple(ids) in wanted]

    def tokens_of_rows(self) -> list[int] | None:
        import pyarrow.compute

        # By Arrow: as Python lists the tokens of a million rows would take minutes.
        rows = self.train_dataset.select_columns(["input_ids"]).with_format("arrow")[:]["input_ids"]
        lengths: list[int] = pyarrow.compute.list_value_length(rows).to_pylist()
        return lengths

    counted = ("_tokens", "_train_sums", "_metrics")

    def split(self, batch: dict[str, Any], count: int) -> list[dict[str, Any]]:
        """A batch's rows in parts; a packed batch is packed again."""
        if "position_ids" not in batch:
            size = len(batch["input_ids"])
            return [
                {name: x[part[0] : part[-1] + 1] if isinstance(x, Tensor) and len(x) == size else x
                 for name, x in batch.items()}
                for part in even_parts(range(size), count)
            ]  # fmt: skip
        lengths = [len(ids) for ids in rows_in(batch)]
        labels = [row.tolist() for row in batch["labels"].flatten().cpu().split(lengths)]
        rows = [{"input_ids": ids, "labels": of} for ids, of in zip(rows_in(batch), labels, strict=True)]
        return [self.data_collator(part) for part in even_parts(rows, count)]

    @property
    def _options(self) -> dict[str, bool]:
        options = options_of(without_adapter(self.model))
        return options if self.layers is None else {"use_cache": False}

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Add a batch to the sums of `evaluation_loop`; a mean of batch means would weight tokens unequally."""
        with torch.no_grad():
            self._eval_sums = self._eval_sums.plus(self._token_sums(model, self._prepare_inputs(inputs)))
        return None, None, None

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        self._eval_sums = TokenSums.zeros()
        output = super().evaluation_loop(dataloader, description, True, ignore_keys, metric_key_prefix)
        loss, accuracy = self._means(self._eval_sums)
        output.metrics[f"{metric_key_prefix}_loss"] = loss
        output.metrics[f"{metric_key_prefix}_mean_token_accuracy"] = accuracy
        return output

    def loss_on(self, rows: datasets.Dataset) -> float:
        """The current loss per token on rows, in nats, on every rank; it is not logged."""
        return self.loss_and_accuracy_on(rows)[0]

    def loss_and_accuracy_on(self, rows: datasets.Dataset) -> tuple[float, float]:
        """The loss as in `loss_on`, and the accuracy of the top predictions."""
        start = time.monotonic()
        # With persistent workers, Trainer caches one loader, which would be that of other rows.
        kept = self.__dict__.pop("_eval_dataloaders", None)
        output = self.evaluation_loop(self.get_eval_dataloader(rows), "Reporting", metric_key_prefix="report")
        self.__dict__.pop("_eval_dataloaders", None)
        if kept is not None:
            self._eval_dataloaders = kept
        self._tokens.pause(time.monotonic() - start)
        return float(output.metrics["report_loss"]), float(output.metrics["report_mean_token_accuracy"])

    def get_eval_dataloader(self, eval_dataset: str | datasets.Dataset | None = None) -> DataLoader:
        rows = self.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(rows, str):
            rows = self.eval_dataset[rows]
        if isinstance(rows, datasets.Dataset):
            rows = sorted_and_even(rows, self.args.eval_batch_size * self.args.world_size)
        return super().get_eval_dataloader(rows)

    def _track_num_input_tokens(self, inputs: dict[str, Any]) -> None:
        packed = "position_ids" in inputs  # its mask does not mark padding
        super()._track_num_input_tokens({"input_ids": inputs["input_ids"]} if packed else inputs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        self._tokens.pause(logs.get("eval_runtime", 0.0))
        if self.model.training:
            counted = self._tokens.metrics(self.args.device)
            self._metrics["train"] |= {name: [value] for name, value in counted.items()}
            if self._ours and counted:  # otherwise the last line would show an accuracy of 0
                self._metrics["train"]["mean_token_accuracy"] = [self._means(self._train_sums)[1]]
                self._train_sums = TokenSums.zeros()
        super().log(logs, start_time)

    def running_state(self) -> dict[str, Any]:
        return super().running_state() | {
            "sums": list(self._train_sums), "tokens_seen": self._tokens.total, "start_losses": self.start_losses,
        }  # fmt: skip

    def load_running_state(self, state: dict[str, Any]) -> None:
        super().load_running_state(state)
        self._train_sums, self._tokens.total = TokenSums(*state["sums"]), state["tokens_seen"]
        self.start_losses = state.get("start_losses", {})

    def _means(self, sums: TokenSums) -> tuple[float, float]:
        """Loss and accuracy per token, over all ranks."""
        loss, correct, tokens = all_reduce_sum(torch.stack(sums).to(self.args.device)).tolist()
        return loss / max(tokens, 1), correct / max(tokens, 1)


def rows_in(batch: dict[str, Any]) -> list[list[int]]:
    """The token ids of each row of a packed or padded batch."""
    if "position_ids" in batch:
        starts = (batch["position_ids"].flatten() == 0).nonzero().flatten()[1:]
        return [row.tolist() for row in batch["input_ids"].flatten().tensor_split(starts.cpu())]
    rows = zip(batch["input_ids"], batch["attention_mask"].bool(), strict=True)
    return [ids[mask].tolist() for ids, mask in rows]


def sorted_and_even(rows: datasets.Dataset, multiple: int) -> datasets.Dataset:
    """Sort rows by length and fill up with rows without labels to a multiple.

    Otherwise the sampler would repeat rows to fill the ranks' last batches, and these would count twice.
    """
    lengths = [len(ids) for ids in rows["input_ids"]]
    rows = rows.select(sorted(range(len(rows)), key=lengths.__getitem__))
    missing = -len(rows) % multiple
    if not missing:
        return rows
    filler = {"input_ids": [rows[0]["input_ids"][:1]] * missing, "labels": [[IGNORED]] * missing}
    return datasets.concatenate_datasets([rows, datasets.Dataset.from_dict(filler, features=rows.features)])
