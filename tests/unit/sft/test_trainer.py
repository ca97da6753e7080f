"""One optimizer step, and the evaluation, against sums over the rows one by one."""

from __future__ import annotations

import math

import datasets
import peft
import pytest
import torch
import trl
from helpers.architectures import build, row
from torch.nn.functional import cross_entropy
from transformers import TrainerCallback

from alignment.distributed.processes import reset_accelerator
from sft.packing import pack_attention
from sft.selfcheck import SelfCheck
from sft.trainer import SFTTrainer, sorted_and_even

ROWS = [row(list(range(3, 3 + length)), prompt=length // 3) for length in (4, 17, 9, 30, 5, 12, 21, 8)]


@pytest.fixture(autouse=True)
def fresh_accelerator():
    """accelerate keeps the precision of the last trainer in this process, and other tests ask for another."""
    yield
    reset_accelerator()


def make(tmp_path, tokenizer, model, *, packed=False, eval_rows=None, penalty=None, **arguments):
    defaults = {
        "per_device_train_batch_size": 8,
        "max_steps": 1,
        "optim": "sgd",
        "learning_rate": 1.0,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "gradient_checkpointing": False,
        "logging_steps": 1,
        "bf16": False,
    }
    owned = {"save_strategy": "no", "report_to": "none", "use_cpu": True, "disable_tqdm": True}
    return SFTTrainer(
        model=model,
        args=trl.SFTConfig(str(tmp_path), max_length=None, **owned, **(defaults | arguments)),
        train_dataset=datasets.Dataset.from_list(ROWS),
        eval_dataset=None if eval_rows is None else datasets.Dataset.from_list(eval_rows),
        data_collator=pack_attention(model) if packed else None,
        processing_class=tokenizer,
        penalty=penalty,
    )


def row_losses(model, rows):
    """Loss of each trained token of the rows, one row at a time."""
    losses = []
    for r in rows:
        logits = model(input_ids=torch.tensor([r["input_ids"]])).logits[0, :-1]
        labels = torch.tensor(r["labels"][1:])
        losses.append(cross_entropy(logits, labels, reduction="none")[labels != -100])
    return torch.cat(losses)


def weights(model):
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


def step_of(trainer):
    """What one step of gradient descent at rate 1 took off each weight, which is its gradient; and the loss."""
    before = weights(trainer.model)
    trainer.train()
    logged = next(entry["loss"] for entry in trainer.state.log_history if "loss" in entry)
    return {name: before[name] - weight for name, weight in weights(trainer.model).items()}, logged


def assert_same_gradients(found, expected):
    scale = math.sqrt(sum(float(g.norm()) ** 2 for g in expected.values()))
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() < 1e-5 * scale, name


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen2"])
@pytest.mark.parametrize(
    ("packed", "arguments"),
    [
        (True, {}),
        (True, {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}),
        (False, {}),
        (False, {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}),
        (False, {"train_sampling_strategy": "group_by_length", "per_device_train_batch_size": 4,
                 "gradient_accumulation_steps": 2}),
        (True, {"gradient_checkpointing": True}),
    ],
)  # fmt: skip
def test_any_layout_of_the_same_rows_makes_the_same_step(tmp_path, tokenizer, kind, packed, arguments):
    """The loss is the mean over all trained tokens of the step, however they are batched."""
    model = build(kind, initializer_range=0.1)
    loss = row_losses(model, ROWS).mean()
    names, parameters = zip(*model.named_parameters(), strict=True)
    expected = dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))
    found, logged = step_of(make(tmp_path, tokenizer, model, packed=packed, **arguments))
    assert logged == pytest.approx(loss.item(), rel=1e-5)
    assert_same_gradients(found, expected)


def test_a_model_that_takes_no_loss_arguments_is_weighted_by_tokens_too(tmp_path, tokenizer):
    """transformers counts the tokens of a step only for models whose own loss would use the number."""
    model = build("llama")
    model.accepts_loss_kwargs = False
    with torch.no_grad():
        expected = row_losses(model, ROWS).mean().item()
    trainer = make(tmp_path, tokenizer, model, per_device_train_batch_size=2, gradient_accumulation_steps=4)
    assert step_of(trainer)[1] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("size", [1, 7])
def test_eval_loss_is_the_mean_over_the_tokens_of_the_set(tmp_path, tokenizer, packed, size):
    """For any batch size; a mean of batch means would weigh the tokens of short rows more."""
    model = build("llama")
    with torch.no_grad():
        expected = row_losses(model, ROWS[:5]).mean().item()
    trainer = make(
        tmp_path, tokenizer, model, packed=packed, eval_rows=ROWS[:5], per_device_eval_batch_size=size,
        label_smoothing_factor=0.3,
    )  # fmt: skip
    metrics = trainer.evaluate()
    assert metrics["eval_loss"] == pytest.approx(expected, rel=1e-5)  # smoothing is for training
    assert trainer.evaluate()["eval_loss"] == metrics["eval_loss"]


def test_the_log_counts_real_tokens_and_right_guesses(tmp_path, tokenizer):
    counted = []
    for packed in (True, False):
        model = build("llama")
        trainer = make(tmp_path, tokenizer, model, packed=packed, include_num_input_tokens_seen="non_padding")
        with torch.no_grad():
            guesses = [model(input_ids=torch.tensor([r["input_ids"]])).logits[0, :-1].argmax(-1) for r in ROWS]
        trainer.train()
        (entry,) = [entry for entry in trainer.state.log_history if "loss" in entry]
        counted.append((entry["num_tokens"], entry["mean_token_accuracy"], trainer.state.num_input_tokens_seen))
    labels = [torch.tensor(r["labels"][1:]) for r in ROWS]
    right = sum(int((g == label).sum()) for g, label in zip(guesses, labels, strict=True))
    tokens = sum(len(r["input_ids"]) for r in ROWS)
    accuracy = pytest.approx(right / sum(int((label != -100).sum()) for label in labels))
    assert counted == [(tokens, accuracy, tokens)] * 2


def test_a_penalty_counts_once_per_step(tmp_path, tokenizer):
    """However many batches are accumulated."""
    model = build("llama", initializer_range=0.1)
    weight = model.model.norm.weight
    plain, _ = step_of(make(tmp_path, tokenizer, model))
    for accumulated in (1, 4):
        model = build("llama", initializer_range=0.1)
        trainer = make(
            tmp_path, tokenizer, model, packed=True, penalty=lambda model: 3 * model.model.norm.weight.sum(),
            per_device_train_batch_size=8 // accumulated, gradient_accumulation_steps=accumulated,
        )  # fmt: skip
        found, _ = step_of(trainer)
        torch.testing.assert_close(found["model.norm.weight"], plain["model.norm.weight"] + torch.full_like(weight, 3))


def test_adapters_and_a_trained_copy_of_the_head_get_their_gradients(tmp_path, tokenizer):
    settings = peft.LoraConfig(
        r=2, target_modules=["q_proj"], modules_to_save=["lm_head"], task_type="CAUSAL_LM", init_lora_weights=False
    )
    torch.manual_seed(1)
    model = peft.get_peft_model(build("llama", initializer_range=0.1), settings)
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    gradients = torch.autograd.grad(row_losses(model, ROWS).mean(), list(trained.values()))
    pack = pack_attention(model.get_base_model())
    trainer = make(tmp_path, tokenizer, model)
    trainer.data_collator = pack
    found, _ = step_of(trainer)
    assert any("lm_head" in name for name in trained)
    assert_same_gradients({name: found[name] for name in trained}, dict(zip(trained, gradients, strict=True)))


@pytest.mark.parametrize(
    ("kind", "changes"),
    [("gemma2", {"final_logit_softcapping": 1.0}), ("granite", {"logits_scaling": 8.0}), ("cohere", {})],
)
def test_a_model_that_changes_its_logits_keeps_its_own_loss(tmp_path, tokenizer, kind, changes):
    model = build(kind, **changes)
    with torch.no_grad():
        expected = row_losses(model, ROWS).mean().item()
    trainer = make(tmp_path, tokenizer, model, eval_rows=ROWS)
    SelfCheck(trainer, asked=False).attach()
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-5)
    assert step_of(trainer)[1] == pytest.approx(expected, rel=1e-5)


def test_autocast_reaches_the_body_and_the_loss_stays_in_float32(tmp_path, tokenizer):
    model = build("llama")
    seen = {}
    model.model.layers[0].mlp.register_forward_hook(lambda _m, _i, output: seen.update(mlp=output.dtype))
    trainer = make(tmp_path, tokenizer, model, packed=True, bf16=True)
    losses = []

    class Keep(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            losses.append(logs)

    trainer.add_callback(Keep())
    with torch.no_grad():
        expected = row_losses(model, ROWS).mean().item()
    trainer.train()
    assert seen["mlp"] == torch.bfloat16
    assert losses[0]["loss"] == pytest.approx(expected, rel=2e-2)
    assert all(weight.dtype == torch.float32 for weight in model.parameters())


def test_held_out_rows_are_sorted_and_no_row_is_counted_twice():
    rows = sorted_and_even(datasets.Dataset.from_list(ROWS[:5]), 4)
    assert [len(ids) for ids in rows["input_ids"]] == [4, 5, 9, 17, 30, 1, 1, 1]
    assert rows["labels"][5:] == [[-100]] * 3
    assert len(sorted_and_even(datasets.Dataset.from_list(ROWS), 4)) == 8
