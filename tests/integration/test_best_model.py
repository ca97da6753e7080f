"""A run that is made to overfit publishes its best step, and stops; on one process and on two."""

import json
import math
import sys

import launching
import pytest
import torch

from alignment.intervals import choosing_half
from alignment.models.policies import load_policy
from alignment.models.sources import find_model
from alignment.models.tokenizers import load_tokenizer
from alignment.registry import Registry

WORDS = ("red", "blue", "green", "white", "black", "brown", "pink", "grey")
SCRATCH = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
}
EPOCHS, STEPS = 40, 2  # epochs, optimizer steps of each


def messages(prompt, answer):
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]


def overfit(folder, *command, **training):
    """Eight rows to learn by heart, held out alike with other answers; (journalled losses, events, held-out). The last
    loss is that of the published model on the rows that did not choose it."""
    rows = {
        "train": [messages(f"Colour {n}?", f"{word} it is.") for n, word in enumerate(WORDS)],
        "eval": [messages(f"The colour {n}?", f"{word} it is.") for n, word in enumerate(reversed(WORDS))],
    }
    for name, conversations in rows.items():
        text = "".join(json.dumps({"messages": row}) + "\n" for row in conversations)
        (folder / f"{name}.jsonl").write_text(text)
    config = {
        "name": "over",
        "model": {"name": "scratch:llama", "scratch": SCRATCH},
        "data": {"train": "train.jsonl", "eval": "eval.jsonl", "max_length": 64},
        "training": {"num_train_epochs": EPOCHS, "learning_rate": 1e-2, "lr_scheduler_type": "constant"} | training,
        "registry": {"name": "over", "path": "registry"},
        "tracking": {"wandb": "disabled"},
    }
    (folder / "over.yaml").write_text(json.dumps(config))
    done = launching.run([*command, "over.yaml"], folder) if command[0] == sys.executable else (
        launching.launch(command[0], [*command[1:], "over.yaml"], folder)
    )  # fmt: skip
    assert done.code == 0, done.output[-3000:]
    run = folder / "runs" / "over"
    journal, events = ([json.loads(line) for line in (run / f"{name}.jsonl").read_text().splitlines()]
                       for name in ("metrics", "events"))  # fmt: skip
    assert not (run / "best").exists()
    return (
        [(row["step"], row["eval/loss"]) for row in journal if row["step"] and "eval/loss" in row],
        events,
        rows["eval"],
    )


def held_out_loss(folder, conversations):
    """Mean loss per response token of the published model, row by row with nothing but its forward."""
    source = find_model("over@v1", Registry(folder / "registry"), role="policy")
    policy, tokenizer = load_policy(source).eval(), load_tokenizer(source)
    total = count = 0
    for conversation in conversations:
        start = tokenizer.apply_chat_template(conversation[:1], add_generation_prompt=True, return_dict=True)
        ids = tokenizer.apply_chat_template(conversation, return_dict=True)["input_ids"]
        stop = max(place for place, token in enumerate(ids) if token == tokenizer.eos_token_id) + 1
        begin = len(start["input_ids"])
        with torch.no_grad():
            logprobs = policy(input_ids=torch.tensor([ids[:stop]])).logits[0].double().log_softmax(-1)
        total -= sum(float(logprobs[place - 1, ids[place]]) for place in range(begin, stop))
        count += stop - begin
    return total / count


def check(folder, evaluations, events, conversations, stopped):
    *evaluations, reported = evaluations
    best_step, best_loss = min(evaluations, key=lambda pair: pair[1])
    last_step, last_loss = evaluations[-1]
    assert best_step < last_step
    assert best_loss < last_loss - 0.02  # it did overfit
    metrics = Registry(folder / "registry").resolve("over@v1").manifest.metrics
    assert (metrics["best_step"], metrics["steps"]) == (best_step, last_step)
    chooses = choosing_half(range(len(conversations)))
    halves = [[row for row, one in zip(conversations, chooses, strict=True) if one == half] for half in (True, False)]
    choosing, reporting = (held_out_loss(folder, half) for half in halves)
    assert choosing == pytest.approx(best_loss, rel=1e-3)
    assert metrics["eval_loss"] == pytest.approx(reporting, rel=1e-3) != pytest.approx(choosing, rel=1e-2)
    assert reported == (best_step, pytest.approx(metrics["eval_loss"]))
    assert metrics["eval_perplexity"] == pytest.approx(math.exp(metrics["eval_loss"]))
    assert (metrics["best_of"], metrics["eval_rows"], metrics["choosing_rows"]) == (len(evaluations), 4, 4)
    assert [event["step"] for event in events if event["event"] == "best"][-1] == best_step
    assert any(event["event"] == "stopped_early" for event in events) is stopped


def test_the_best_step_is_published(tmp_path):
    training = {"load_best_model_at_end": True, "per_device_train_batch_size": 4}
    evaluations, events, held_out = overfit(tmp_path, sys.executable, "-m", "sft", **training)
    assert [step for step, _ in evaluations[:-1]] == [STEPS * epoch for epoch in range(1, EPOCHS + 1)]
    check(tmp_path, evaluations, events, held_out, stopped=False)


def test_one_evaluation_chooses_nothing_and_all_rows_are_reported(tmp_path):
    training = {"load_best_model_at_end": True, "per_device_train_batch_size": 4, "num_train_epochs": 1}
    _, _, held_out = overfit(tmp_path, sys.executable, "-m", "sft", **training)
    metrics = Registry(tmp_path / "registry").resolve("over@v1").manifest.metrics
    assert metrics["eval_loss"] == pytest.approx(held_out_loss(tmp_path, held_out), rel=1e-3)
    assert metrics["eval_rows"] == 8 and "best_of" not in metrics


def test_training_stops_early_and_publishes_the_best_step(tmp_path):
    training = {"early_stopping_patience": 2, "per_device_train_batch_size": 4}
    evaluations, events, held_out = overfit(tmp_path, sys.executable, "-m", "sft", **training)
    best_step = min(evaluations[:-1], key=lambda pair: pair[1])[0]
    assert evaluations[-2][0] == best_step + 2 * STEPS < EPOCHS * STEPS
    check(tmp_path, evaluations, events, held_out, stopped=True)


@pytest.mark.parametrize("zero_stage", [0, pytest.param(3, marks=pytest.mark.slow)])
def test_two_processes_stop_at_the_same_step(tmp_path, zero_stage):
    """A process that went on alone would wait for the other for ever."""
    accelerate = tmp_path / "accelerate.yaml"
    zero3 = launching.ZERO2.read_text().replace("zero_stage: 2", "zero_stage: 3\n  zero3_save_16bit_model: true")
    accelerate.write_text(zero3 if zero_stage else launching.DDP)
    training = {"early_stopping_patience": 2, "per_device_train_batch_size": 2}
    evaluations, events, held_out = overfit(tmp_path, accelerate, "-m", "sft", **training)
    (backend,) = [event for event in events if event["event"] == "backend"]
    assert (backend["world_size"], backend["zero_stage"]) == (2, zero_stage)
    check(tmp_path, evaluations, events, held_out, stopped=True)
