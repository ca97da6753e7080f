"""TRL's RewardTrainer on questions.

It adds soft votes and weights, several completions of a prompt in one forward pass, a loss that is normalized over the
whole optimizer batch on all ranks, and the scores of a probe with each saved model. Rows are indices of questions
(`reward.data.as_dataset`), so `per_device_train_batch_size` counts questions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import datasets
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedConfig
from transformers.trainer_utils import EvalLoopOutput
from trl import RewardTrainer

from alignment.distributed.processes import all_reduce_sum
from alignment.errors import ConfigError
from alignment.models.forward import switch_off_dropout
from alignment.models.selfcheck import agreed
from alignment.training import methods as training_methods
from alignment.training.finite_steps import with_nan_gradient
from alignment.training.halving import even_parts
from alignment.training.resumable import Resumable
from alignment.training.throughput import TokenCount
from reward.batches import QuestionCollator, check_layout, score_batch
from reward.config import RewardSection
from reward.data import Batches, as_dataset
from reward.loss import pair_loss, regression_loss, smoothed
from reward.questions import Question

SUMS = ("loss", "weight", "right", "decided", "score", "judged")
"""Running sums over batches, for each head: loss times weight; weight; decided pairs in the right order; pairs that are
no ties; the scores of judged completions; and their number."""


@dataclass(frozen=True)
class Probe:
    """A few sequences with the scores of the model in memory, to verify the saved files."""

    questions: list[Question]
    scores: list[float]
    """One score per completion, in order; those of one head after those of the other."""
    rounded: bool
    """Whether the scores were computed in half precision, so that a float32 model agrees only roughly."""


class QuestionTrainer(Resumable, RewardTrainer):
    """A RewardTrainer on questions.

    Args:
        settings: the `reward` section.
        collate: collates questions.
        train, held_out: questions; `held_out` may be empty.
        probe: questions that are scored whenever the model is saved.
    """

    loss_is_scaled_for_ga = True  # _get_num_items_in_batch normalizes; otherwise the Trainer would divide again

    def __init__(
        self,
        *,
        settings: RewardSection,
        collate: QuestionCollator,
        train: Sequence[Question],
        held_out: Sequence[Question] = (),
        probe: Sequence[Question] = (),
        **options: Any,
    ) -> None:
        questions = self._questions = [*train, *held_out]
        self._filler = len(questions)
        if held_out:
            # A question without pairs, which fills up the ranks' last batches in evaluation.
            shortest = min(held_out, key=lambda question: max(question.lengths))
            questions.append(Question(shortest.prompt_ids, shortest.completion_ids[:1], ()))
        with _as_one_label(options["model"].config):
            super().__init__(
                data_collator=Batches(questions, collate),
                train_dataset=as_dataset(train),
                eval_dataset=as_dataset(held_out, len(train)) if held_out else None,
                **options,
            )
        if self.args.disable_dropout:
            switch_off_dropout(self.model)
        self._settings, self._collate, self._probe_questions = settings, collate, list(probe)
        empty = torch.zeros(len(settings.heads), len(SUMS), dtype=torch.float64, device=self.args.device)
        self._sums = {"train": empty.clone(), "eval": empty.clone()}
        """The running sums named in `SUMS`."""
        self._tokens = TokenCount()
        self.probe: Probe | None = None
        """The probe of the last saved model."""

    def _prepare_dataset(self, dataset: datasets.Dataset, *args: Any) -> datasets.Dataset:
        """Skip TRL's tokenization: rows are prepared already."""
        return dataset

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Tensor]], device: torch.device) -> Tensor:
        """The total weight of an optimizer batch; the Trainer would count label tokens, which questions do not have."""
        if not batch_samples:
            raise ConfigError(
                "training.dataloader_drop_last leaves no full batch; lower the batch size or remove the key"
            )
        total = torch.stack([self._weights(batch).sum() for batch in batch_samples]).sum()
        return all_reduce_sum(total.to(device))

    def _weights(self, batch: dict[str, Tensor]) -> Tensor:
        if self._settings.objective == "pairs":
            return batch["weight"]
        return batch["rating_weights"] if "ratings" in batch else torch.zeros(1, device=batch["weight"].device)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | None = None,
    ) -> Any:
        assert num_items_in_batch is not None and not return_outputs
        self._tokens.add(inputs)
        scores = self._score(model, inputs)
        self._accumulate("train", scores.detach(), inputs)
        if self._settings.objective == "pairs":
            loss = pair_loss(
                *_sides(scores, inputs),
                smoothed(inputs["target"], self._settings.label_smoothing),
                inputs["weight"],
                num_items_in_batch,
                inputs["margin"],
                self.args.center_rewards_coefficient or 0.0,
            )
        else:
            loss = regression_loss(scores, inputs["ratings"].nan_to_num(), inputs["rating_weights"], num_items_in_batch)
        loss = (
            loss * self.accelerator.num_processes
        )  # the engine averages gradients over ranks; here they must be summed
        return with_nan_gradient(
            loss + training_methods.regularisation(self.model) / self.current_gradient_accumulation_steps
        )

    def rows_of(self, batch: dict[str, Any]) -> list[Any]:
        """The numbers of a batch's questions, from 0 on, and the places of their pairs in the data."""
        asked = [(index, self._questions[index]) for index in batch["questions"].tolist()]
        return [
            {"question": index, "places": [pair.comparison.place for pair in question.pairs]}
            for index, question in asked
        ]

    def tokens_of_rows(self) -> list[int] | None:
        rows = [self._questions[index] for index in self.train_dataset["question"]]
        return [len(row.prompt_ids) + sum(map(len, row.completion_ids)) for row in rows]

    counted = ("_tokens", "_sums", "_metrics")

    def split(self, batch: dict[str, Any], count: int) -> list[dict[str, Any]]:
        """A batch's questions in parts."""
        rows = [{"question": index} for index in batch["questions"].tolist()]
        return [self.data_collator(part) for part in even_parts(rows, count)]

    def _score(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        with self.accelerator.autocast():  # autocast wraps `forward`, which a packed row bypasses
            return score_batch(self.model, inputs, model)

    def verify_layout(self) -> str | None:
        """Verify the layout, and switch to padded rows if it is wrong for this model; returns the reason.

        Raises:
            CheckError: see `reward.batches.check_layout`; raised on every rank.
        """
        pad, layout = self._collate.pad_token_id, self._collate.layout
        with self.accelerator.autocast():
            self._collate.layout, reason = check_layout(
                self.model, self._probe_questions, pad, layout, self.model_wrapped, agreed
            )
        return reason

    @torch.no_grad()
    def _accumulate(self, mode: str, scores: Tensor, inputs: dict[str, Any]) -> None:
        """Add a batch to the running sums without a device synchronization."""
        if len(self._sums[mode]) == 1:
            self._sums[mode][0] += self._batch_sums(scores, inputs)
            return
        for head, sums in enumerate(self._sums[mode]):
            # Masked, not selected: a selection would wait for the device.
            of_head = (inputs["head"] == head).float()
            sums += self._batch_sums(scores[:, head], {**inputs, "weight": inputs["weight"] * of_head}, of_head)

    def _batch_sums(self, scores: Tensor, inputs: dict[str, Any], counts: Tensor | None = None) -> Tensor:
        """The sums named in `SUMS` of one head's scores, (C,).

        Args:
            counts: (P,), 1 for the head's pairs and 0 for others; None: all are.
        """
        first, second, target = inputs["first"], inputs["second"], inputs["target"]
        ahead, weight = scores[first] - scores[second], self._weights(inputs)
        decided = (target != 0.5) if counts is None else (target != 0.5) & (counts > 0)
        right = (torch.sign(ahead) == torch.sign(target - 0.5)) & decided
        if self._settings.objective == "pairs":
            sides = torch.cat([first, second])
            each = torch.ones_like(sides, dtype=scores.dtype) if counts is None else counts.repeat(2)
            judged_mask = torch.zeros_like(scores).index_add(0, sides, each).clamp(max=1.0)
            loss = pair_loss(scores[first], scores[second], target, weight, 1.0)
        elif "ratings" in inputs:
            judged_mask = (weight > 0).float()
            loss = regression_loss(scores, inputs["ratings"].nan_to_num(), weight, 1.0)
        else:
            judged_mask, loss = torch.zeros_like(scores), torch.zeros_like(weight.sum())
        parts = (loss, weight.sum(), right.sum(), decided.sum(), (scores * judged_mask).sum(), judged_mask.sum())
        return torch.stack([part.double() for part in parts])

    def _reduce_metrics(self, mode: str) -> dict[str, float]:
        """Metrics over all ranks: `loss` per weight, without margins, smoothing and centering; `accuracy` over pairs
        that are not ties; `mean_reward` over judged completions. With several heads over all, and of each
        (`accuracy/helpful`)."""
        sums = all_reduce_sum(self._sums[mode])
        self._sums[mode] = torch.zeros_like(self._sums[mode])
        metrics = _means(sums.sum(0))
        for name, row in zip(self._settings.score_names, sums, strict=False):
            metrics |= {f"{metric}/{name}": value for metric, value in _means(row).items()}
        return metrics

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Add a batch to the sums of `evaluation_loop`; a mean of batch means would weight pairs unequally."""
        with torch.no_grad():
            inputs = self._prepare_inputs(inputs)
            self._accumulate("eval", self._score(model, inputs), inputs)
        return None, None, None

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        self._sums["eval"] = torch.zeros_like(self._sums["eval"])
        output = super().evaluation_loop(dataloader, description, True, ignore_keys, metric_key_prefix)
        output.metrics.update(
            {f"{metric_key_prefix}_{name}": value for name, value in self._reduce_metrics("eval").items()}
        )
        return output

    def get_eval_dataloader(self, eval_dataset: str | datasets.Dataset | None = None) -> DataLoader:
        """A loader that sorts rows by length and fills up the last batches with questions that do not count; otherwise
        the sampler would repeat rows, which would count twice."""
        rows = self.eval_dataset if eval_dataset is None else eval_dataset
        assert isinstance(rows, datasets.Dataset)
        rows = rows.sort("length")
        missing = -len(rows) % (self.args.eval_batch_size * self.args.world_size)
        if missing:
            filler = {"question": [self._filler] * missing, "length": [0] * missing}
            rows = datasets.concatenate_datasets([rows, datasets.Dataset.from_dict(filler, features=rows.features)])
        return super().get_eval_dataloader(rows)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        self._tokens.pause(logs.get("eval_runtime", 0.0))
        if self.model.training:
            metrics = self._reduce_metrics("train") | self._tokens.metrics(self.args.device)
            # The Trainer logs the minimized loss.
            self._metrics["train"] |= {
                name: [value] for name, value in metrics.items() if name.partition("/")[0] != "loss"
            }
        super().log(logs, start_time)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model and score the probe; every rank takes part, because ZeRO-3 gathers weights."""
        super().save_model(output_dir, _internal_call)
        if not self._probe_questions:
            return
        was_training = self.model.training
        self.model.eval()
        with torch.no_grad():
            batch = self._prepare_inputs(self._collate(self._probe_questions))
            scores = self._score(self.model_wrapped, batch)
        by_head = scores.reshape(len(scores), -1).T.flatten().tolist()
        self.model.train(was_training)
        weight_dtype = next(self.model.parameters()).dtype
        rounded = self.accelerator.mixed_precision != "no" or weight_dtype != torch.float32 or bool(self.args.tf32)
        self.probe = Probe(self._probe_questions, by_head, rounded)

    def running_state(self) -> dict[str, Any]:
        probe = None if self.probe is None else {"scores": self.probe.scores, "rounded": self.probe.rounded}
        return super().running_state() | {
            "sums": self._sums["train"].cpu(), "tokens_seen": self._tokens.total, "probe": probe,
        }  # fmt: skip

    def load_running_state(self, state: dict[str, Any]) -> None:
        super().load_running_state(state)
        self._sums["train"] = state["sums"].to(self.args.device).view_as(self._sums["train"])
        self._tokens.total = state["tokens_seen"]
        self.probe = None if state["probe"] is None else Probe(self._probe_questions, **state["probe"])


@contextmanager
def _as_one_label(config: PreTrainedConfig) -> Iterator[None]:
    """Let TRL take a model with several heads, which it refuses; it reads the labels nowhere else."""
    labels = config.id2label, config.label2id
    if len(labels[0]) > 1:
        config.num_labels = 1
    yield
    config.id2label, config.label2id = labels


def _sides(scores: Tensor, inputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """The scores of both completions of each pair, by the pair's head: (C,) or (C, H) -> (P,) each."""
    first, second = inputs["first"], inputs["second"]
    if scores.dim() == 1:
        return scores[first], scores[second]
    return scores[first, inputs["head"]], scores[second, inputs["head"]]


def _means(sums: Tensor) -> dict[str, float]:
    """Metrics of the sums named in `SUMS`."""
    loss, weight, right, decided, score, judged = sums.tolist()
    metrics = {"loss": loss / max(weight, 1e-12)}
    if decided:  # a batch of ties has no accuracy
        metrics["accuracy"] = right / decided
    return metrics | ({"mean_reward": score / judged} if judged else {})
