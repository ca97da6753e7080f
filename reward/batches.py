"""Collate questions and score their completions with one forward pass of the body per batch.

The `packed` layout packs a batch into one row without padding, so the prompt of a question is computed once
(`alignment.models.packing`). The `padded` layout is for models that do not support this: each completion follows its
prompt in a separate row, padded on the right. Sorting rows by length (`train_sampling_strategy: group_by_length`)
helps the padded layout only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from alignment.distributed import heartbeat
from alignment.distributed.engine import run_as_forward
from alignment.models.adapters import without_adapter
from alignment.models.forward import options_of
from alignment.models.packing import attend_by_group, positions, row_arguments, uses_flash, why_not_packed
from alignment.models.scalar import ScalarModel
from alignment.models.selfcheck import CheckError, row_tensor, tried, undisturbed, why_wrong
from alignment.tensors import pad_rows
from reward.questions import Question

Layout = Literal["packed", "padded"]
TOKENS_AT_ONCE = 8192


_LAYOUTS: WeakKeyDictionary[nn.Module, Layout] = WeakKeyDictionary()
"""Layouts of the models that `score_questions` has checked."""


def choose_batch_layout(model: nn.Module, max_length: int) -> tuple[Layout, str | None]:
    """Choose the layout of a classifier's batches, with the reason if it is `padded`; `check_layout` verifies it.

    A model with the `packed` layout is switched to attention by group; batches that are not packed are computed
    as before.

    Args:
        model: a transformers model, or a PEFT model.
        max_length: number of tokens of the longest sequence.
    """
    base = without_adapter(model)
    reason = _why_padded(base, max_length)
    if reason:
        return "padded", reason
    attend_by_group(base)
    return "packed", None


def _why_padded(model: PreTrainedModel, max_length: int) -> str | None:
    if not isinstance(getattr(model, "score", None), nn.Module):
        return "its head is not a layer named `score`"
    return (
        "flash attention does not support a shared prefix" if uses_flash(model) else why_not_packed(model, max_length)
    )


def check_layout(
    model: nn.Module,
    questions: Sequence[Question],
    pad_token_id: int,
    layout: Layout,
    wrapper: nn.Module | None = None,
    agree: Callable[[str | None], str | None] = lambda reason: reason,
) -> tuple[Layout, str | None]:
    """Verify the layout on short sequences; return `padded` and the reason if its scores differ from single sequences'.

    Args:
        wrapper: DDP or DeepSpeed's engine around the model.
        agree: combines the reasons of all ranks, if all of them call this.

    Raises:
        CheckError: the model cannot be run, or padded rows are wrong too.
    """
    probe = [_cut(question, *lengths) for question, lengths in zip(questions, ((19, 13), (11, 8)), strict=False)]
    rows = [question.prompt_ids + ids for question in probe for ids in question.completion_ids]
    if any(row[-1] == pad_token_id for row in rows):
        return layout, None
    device, name = next(model.parameters()).device, type(without_adapter(model)).__name__

    def alone() -> list[Tensor]:
        return [score_batch(model, {"input_ids": row_tensor(model, row)}, wrapper) for row in rows]

    def together(layout: Layout) -> list[Tensor]:
        batch = QuestionCollator(layout, pad_token_id)(probe)
        batch = {key: x.to(device) if isinstance(x, Tensor) else x for key, x in batch.items()}
        return list(score_batch(model, batch, wrapper).split(1))

    with undisturbed(model):
        expected, failed = tried(alone)
        if failed or not all(bool(score.isfinite().all()) for score in expected):
            raise CheckError(f"{name} gives no score for a plain row ({failed or 'not finite'}); name another model")
        scale = max(1.0, *(float(score.abs().max()) for score in expected))
        reason = None
        if layout == "packed":
            reason = agree(why_wrong(model, lambda: together("packed"), expected, scale))
            if reason is None:
                return layout, None
        if failure := agree(why_wrong(model, lambda: together("padded"), expected, scale)):
            raise CheckError(f"{name} cannot score padded rows: {failure}; name another model")
    return "padded", reason


def _cut(question: Question, prompt: int, completion: int) -> Question:
    """The beginnings of the prompt and of two completions, with different lengths."""
    ids = question.completion_ids[:2]
    cut = [row[: completion - 3 * index] for index, row in enumerate(ids)]
    return Question(question.prompt_ids[:prompt], cut, ())


@dataclass
class QuestionCollator:
    """Collates questions into one batch. If `layout` fails its check, it is changed before training.

    Args:
        pad_to_multiple_of: applies to the width of the `padded` layout.
    """

    layout: Layout
    pad_token_id: int
    pad_to_multiple_of: int = 1

    def __call__(self, questions: Sequence[Question]) -> dict[str, Any]:
        """The model's inputs, and tensors over the C completions and P pairs of the batch, in order:

        first, second: (P,) long, indices of a pair's completions in the batch.
        head: (P,) long, which of the scores the pair is on.
        target, weight, margin: (P,) float32, one per pair.
        ratings, rating_weights: (C,) float32, NaN and 0 if missing; left out if no question has ratings.
        last: (C,) long, index of each completion's last token in the packed row; `packed` only.
        """
        if self.layout == "padded":
            return self._padded_rows(questions) | _targets(questions)
        return _packed_row(questions) | _targets(questions)

    def _padded_rows(self, questions: Sequence[Question]) -> dict[str, Any]:
        rows = [question.prompt_ids + ids for question in questions for ids in question.completion_ids]
        # transformers reads the score at the last token whose id is not the pad token's.
        assert all(row[-1] != self.pad_token_id for row in rows)
        ids, mask = pad_rows(rows, self.pad_token_id, "right", self.pad_to_multiple_of)
        return {"input_ids": ids, "attention_mask": mask}


def _packed_row(questions: Sequence[Question]) -> dict[str, Any]:
    ids: list[int] = []
    groups: list[list[int]] = []
    last: list[int] = []
    for question in questions:
        prefix, *branches = _split(question)
        ids += prefix
        for branch in branches:
            ids += branch
            last.append(len(ids) - 1)
        groups.append([len(prefix), *map(len, branches)])
    row = {"input_ids": torch.tensor([ids]), "position_ids": positions(groups), "last": torch.tensor(last)}
    return row | row_arguments(groups)


def _split(question: Question) -> list[list[int]]:
    """The shared prompt, then each completion; a single completion is joined with its prompt."""
    assert all(question.completion_ids)
    if len(question.completion_ids) == 1:
        return [[], question.prompt_ids + question.completion_ids[0]]
    return [question.prompt_ids, *question.completion_ids]


def _targets(questions: Sequence[Question]) -> dict[str, Tensor]:
    first: list[int] = []
    second: list[int] = []
    ratings: list[float] = []
    for question in questions:
        start = len(ratings)
        first += [start + pair.first for pair in question.pairs]
        second += [start + pair.second for pair in question.pairs]
        numbers = question.ratings or [None] * len(question.completion_ids)
        ratings += [math.nan if rating is None else rating for rating in numbers]
    pairs = [pair for question in questions for pair in question.pairs]
    targets = {
        "first": torch.tensor(first, dtype=torch.long),
        "second": torch.tensor(second, dtype=torch.long),
        "head": torch.tensor([pair.head for pair in pairs], dtype=torch.long),
        "target": torch.tensor([pair.target for pair in pairs], dtype=torch.float32),
        "weight": torch.tensor([pair.weight for pair in pairs], dtype=torch.float32),
        "margin": torch.tensor([pair.margin for pair in pairs], dtype=torch.float32),
    }
    if any(question.ratings for question in questions):
        targets["ratings"] = torch.tensor(ratings, dtype=torch.float32)
        weights = [question.rating_weights or [0.0] * len(question.completion_ids) for question in questions]
        targets["rating_weights"] = torch.tensor([weight for row in weights for weight in row], dtype=torch.float32)
    return targets


def score_batch(model: nn.Module, batch: Mapping[str, Any], wrapper: nn.Module | None = None) -> Tensor:
    """The score of each completion at its last token: (C,) float32; (C, H) of a model with several heads.

    Args:
        model: a transformers or PEFT model, prepared by `choose_batch_layout`.
        wrapper: DDP or DeepSpeed's engine around it; the one forward goes through it.
    """
    wrapper = wrapper or model
    base = without_adapter(model)
    if "packed_groups" not in batch:
        options = options_of(base)
        masked = {"attention_mask": batch["attention_mask"]} if "attention_mask" in batch else {}
        rows = wrapper(input_ids=batch["input_ids"], **masked, **options)
        logits: Tensor = rows.logits
        return logits.squeeze(-1).float()
    names = ("input_ids", "attention_mask", "position_ids", "packed_groups")
    inputs = {name: batch[name] for name in names} | {"use_cache": False}

    def forward() -> Tensor:
        hidden = base.base_model(**inputs).last_hidden_state
        scores: Tensor = base.score(hidden[0, batch["last"]])
        return scores.squeeze(-1).float()

    scores: Tensor = run_as_forward(wrapper, model, forward)
    return scores


def score_questions(
    model: nn.Module,
    questions: Sequence[Question],
    pad_token_id: int,
    max_tokens: int = TOKENS_AT_ONCE,
    doing: str = "scoring",
) -> list[list[float]]:
    """`score_heads` of a model with one head."""
    (scores,) = score_heads(model, questions, pad_token_id, max_tokens, doing) or [[]]
    return scores


@torch.no_grad()
def score_heads(
    model: nn.Module,
    questions: Sequence[Question],
    pad_token_id: int,
    max_tokens: int = TOKENS_AT_ONCE,
    doing: str = "scoring",
) -> list[list[list[float]]]:
    """Each head's scores of the completions of each question, without dropout; the result does not depend on the
    batching. Empty without questions.

    Args:
        model: a ScalarModel, or a model for `score_batch`.
        max_tokens: maximum size of a batch with padding; a longer question gets its own batch.
        doing: the purpose, for the heartbeat's messages.
    """
    model = model.model if isinstance(model, ScalarModel) else model
    if not questions:
        return []
    layout = _LAYOUTS.get(model)
    if layout is None:
        layout, _ = choose_batch_layout(model, max(max(question.lengths) for question in questions))
        layout, _ = check_layout(model, questions, pad_token_id, layout)
        _LAYOUTS[model] = layout
    collate = QuestionCollator(layout, pad_token_id)
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    scores: list[list[list[float]]] = [[] for _ in questions]  # of each completion by each head
    done = 0
    with heartbeat.within(doing, patient=True):
        for indices in _batches(questions, layout, max_tokens):
            heartbeat.enter(f"{doing}, {done} of {len(questions)}", patient=True)
            batch = collate([questions[index] for index in indices])
            on_device = {name: x.to(device) if isinstance(x, Tensor) else x for name, x in batch.items()}
            batch_scores = score_batch(model, on_device)
            rows = iter(batch_scores.reshape(len(batch_scores), -1).tolist())
            for index in indices:
                scores[index] = [next(rows) for _ in questions[index].completion_ids]
            done += len(indices)
    model.train(was_training)
    return [[[row[head] for row in each] for each in scores] for head in range(len(scores[0][0]))]


def _batches(questions: Sequence[Question], layout: Layout, max_tokens: int) -> Iterator[list[int]]:
    """Yield batches of question indices, shortest first, as many as fit."""
    batch: list[int] = []
    tokens = rows = 0
    for index in sorted(range(len(questions)), key=lambda index: max(questions[index].lengths)):
        lengths, packed_tokens = questions[index].lengths, sum(map(len, _split(questions[index])))
        size = tokens + packed_tokens if layout == "packed" else (rows + len(lengths)) * max(lengths)
        if batch and size > max_tokens:
            yield batch
            batch, tokens, rows = [], 0, 0
        batch.append(index)
        tokens, rows = tokens + packed_tokens, rows + len(lengths)
    yield batch
