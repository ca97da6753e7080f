"""Demonstrations as the trainer sees them: the labels it computes its loss on are ours, EOS included."""

import json
import tracemalloc

import pytest
import torch
from helpers import tiny
from trl import SFTConfig, SFTTrainer

from alignment.config.sections import DataConfig
from alignment.data.reading import DataError
from alignment.data.records import Demonstration, Document
from sft.data import IGNORED, encode_data, encode_example, training_texts

ANSWERS = ["The library opens at nine on weekdays.", "Yes."]


def demonstration(answer, number=0):
    return Demonstration(({"role": "user", "content": f"Question {number}?"}, {"role": "assistant", "content": answer}))


def texts(tokenizer, labels):
    return tokenizer.decode([label for label in labels if label != IGNORED])


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def pairs(*answers):
    return [{"prompt": f"Question {number}?", "completion": answer} for number, answer in enumerate(answers)]


def encode(tmp_path, tokenizer, rows, **config):
    path = write(tmp_path / "d.jsonl", rows)
    return encode_data(DataConfig(**{"train": path, "eval_share": 0.0, "max_length": 200, **config}), tokenizer)


def test_labels_are_the_answer_through_eos(tokenizer):
    for answer in ANSWERS:
        (row,) = encode_example(demonstration(answer), tokenizer, 200)
        assert texts(tokenizer, row["labels"]) == answer + tokenizer.eos_token
        assert len(row["labels"]) == len(row["input_ids"])
        assert all(label in (IGNORED, token) for label, token in zip(row["labels"], row["input_ids"], strict=True))


def test_a_text_is_trained_on_whole_in_pieces_that_fit(tokenizer):
    text = "You can keep a book for three weeks. " * 30
    rows = encode_example(Document(text), tokenizer, 64)
    assert len(rows) > 1
    assert all(row["labels"] == row["input_ids"] for row in rows)
    assert [len(row["input_ids"]) for row in rows[:-1]] == [64] * (len(rows) - 1)
    assert tokenizer.decode([token for row in rows for token in row["labels"]]) == text + tokenizer.eos_token


def test_the_rows_are_those_of_the_file_in_its_order(tokenizer, tmp_path):
    data = encode(tmp_path, tokenizer, [*pairs(*ANSWERS), {"text": "A line."}])
    assert [texts(tokenizer, labels) for labels in data.train["labels"]] == [
        answer + tokenizer.eos_token for answer in (*ANSWERS, "A line.")
    ]
    assert len(data.eval) == 0
    assert (data.bad, data.left_out, data.notes) == ([], 0, [])
    assert data.fingerprints["train"][0]["rows"] == 3


def test_what_is_held_out_is_not_trained_on(tokenizer, tmp_path):
    data = encode(tmp_path, tokenizer, pairs(*["Yes."] * 40), eval_share=0.3)
    questions = [{tokenizer.decode(ids) for ids in rows["input_ids"]} for rows in (data.train, data.eval)]
    assert len(questions[0]) + len(questions[1]) == 40
    assert len(questions[1]) > 0
    assert not questions[0] & questions[1]
    assert list(training_texts(DataConfig(train=str(tmp_path / "d.jsonl"), eval_share=0.3))).count("Yes.") == len(
        data.train
    )


def test_responses_that_do_not_fit_are_left_out_and_counted(tokenizer, tmp_path):
    data = encode(tmp_path, tokenizer, pairs(*ANSWERS, "word " * 60), max_length=60)
    assert (len(data.train), data.left_out) == (2, 1)
    assert max(map(len, data.train["input_ids"])) <= 60
    assert len(encode(tmp_path, tokenizer, pairs("word " * 60), max_length=60).train) == 0


@pytest.mark.parametrize("too_long", ["trim_prompt", "drop"])
def test_a_long_prompt_is_cut_or_the_row_left_out(tokenizer, too_long):
    """Either way the row is noted, with its whole length and what is left of it."""
    long = Demonstration(({"role": "user", "content": "word " * 60}, {"role": "assistant", "content": "Yes."}))
    noted = []
    rows = encode_example(long, tokenizer, 60, too_long, lambda *note: noted.append(note))
    ((example, whole, fitted),) = noted
    assert example is long
    assert len(whole.input_ids) > 60
    if too_long == "drop":
        assert (rows, fitted) == ([], None)
    else:
        assert rows[0]["input_ids"] == fitted.input_ids
        assert len(fitted.input_ids) <= 60


def test_rows_that_the_template_cannot_render_are_set_aside_by_line(tmp_path):
    tokenizer = tiny.make_tokenizer("alpaca")
    tools = [{"type": "function", "function": {"name": "f"}}]
    rows = [*pairs(*["Yes."] * 9), {"messages": demonstration("No.").messages, "tools": tools}]
    data = encode(tmp_path, tokenizer, rows, max_bad_share=0.2)
    assert len(data.train) == 9
    ((where, reason),) = data.bad
    assert where.endswith("d.jsonl:10")
    assert "no place for tools" in reason
    with pytest.raises(DataError, match=r"d\.jsonl:10: the chat template has no place for tools.*1 of 10 rows are bad"):
        encode(tmp_path, tokenizer, rows, max_bad_share=0.0)


def test_the_data_are_never_all_in_memory(tokenizer, tmp_path):
    rows = ({"prompt": f"Question {number}?", "completion": "word " * 300} for number in range(6000))
    write(tmp_path / "d.jsonl", rows)  # 9 MB of text, 44 MB of ids
    config = DataConfig(train=str(tmp_path / "d.jsonl"), eval_share=0.1, max_length=2000)
    tracemalloc.start()
    data = encode_data(config, tokenizer, tmp_path)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(data.train) + len(data.eval) == 6000
    assert most < 24 << 20
    folder = next(tmp_path.glob("rows-*"))
    del data
    assert not folder.exists()


def test_the_trainer_computes_its_loss_on_these_labels(tokenizer, tmp_path):
    """TRL prepares data sets of its own accord; pre-tokenised rows must pass through it unchanged."""
    policy = tiny.make_policy(tokenizer)
    rows = encode(tmp_path, tokenizer, pairs(*ANSWERS)).train
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
