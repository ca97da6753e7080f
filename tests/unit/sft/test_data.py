"""Demonstrations as the trainer sees them: the labels it computes its loss on are ours, EOS included."""

import pytest
import tiny
import torch
from trl import SFTConfig, SFTTrainer

from alignment.data import DataError, Demonstration
from sft.data import IGNORED, encode_demonstrations

ANSWERS = ["The library opens at nine on weekdays.", "Yes."]


def demonstrations(*answers):
    return [
        Demonstration(({"role": "user", "content": f"Question {n}?"}, {"role": "assistant", "content": answer}))
        for n, answer in enumerate(answers)
    ]


def texts(tokenizer, labels):
    return tokenizer.decode([label for label in labels if label != IGNORED])


def test_labels_are_the_answer_through_eos(tokenizer):
    rows, left_out = encode_demonstrations(demonstrations(*ANSWERS), tokenizer, 200)
    assert left_out == 0
    assert [texts(tokenizer, labels) for labels in rows["labels"]] == [a + tokenizer.eos_token for a in ANSWERS]
    for row in rows:
        assert len(row["labels"]) == len(row["input_ids"])
        assert all(label in (IGNORED, token) for label, token in zip(row["labels"], row["input_ids"], strict=True))


def test_responses_that_do_not_fit_are_left_out_and_counted(tokenizer):
    rows, left_out = encode_demonstrations(demonstrations(*ANSWERS, "word " * 60), tokenizer, 60)
    assert (len(rows), left_out) == (2, 1)
    assert max(map(len, rows["input_ids"])) <= 60
    with pytest.raises(DataError, match=r"none of the 1 responses fits into data\.max_length=60 tokens; raise it"):
        encode_demonstrations(demonstrations("word " * 60), tokenizer, 60)
    assert len(encode_demonstrations([], tokenizer, 60)[0]) == 0


def test_the_trainer_computes_its_loss_on_these_labels(tokenizer, tmp_path):
    """TRL prepares data sets of its own accord; pre-tokenised rows must pass through it unchanged."""
    policy = tiny.make_policy(tokenizer)
    rows, _ = encode_demonstrations(demonstrations(*ANSWERS), tokenizer, 200)
    arguments = SFTConfig(
        str(tmp_path),
        per_device_train_batch_size=2,
        per_device_eval_batch_size=2,
        max_length=None,
        report_to="none",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        remove_unused_columns=False,
    )
    trainer = SFTTrainer(policy, arguments, train_dataset=rows, eval_dataset=rows, processing_class=tokenizer)
    batch = next(iter(trainer.get_train_dataloader()))
    assert sorted(texts(tokenizer, row.tolist()) for row in batch["labels"]) == sorted(
        answer + tokenizer.eos_token for answer in ANSWERS
    )
    total, count = 0.0, 0
    for row in rows:  # token mean over both rows, worked alone and without padding
        with torch.no_grad():
            logp = torch.log_softmax(policy(input_ids=torch.tensor([row["input_ids"]])).logits[0].double(), dim=-1)
        for position, label in enumerate(row["labels"]):
            if label != IGNORED:
                total -= logp[position - 1, label].item()
                count += 1
    assert trainer.evaluate()["eval_loss"] == pytest.approx(total / count, rel=1e-4)
