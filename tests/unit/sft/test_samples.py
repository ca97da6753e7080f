"""Answers to held-out prompts: greedy, from a model's files, and without a trace in any random state."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
import torch
from helpers import tiny

from alignment.config.loading import validate
from alignment.data.records import Demonstration
from alignment.data.trimming import trim_prompt
from alignment.models.sources import ModelSource
from alignment.runs.journal import Journal
from alignment.templates.rendering import encode_prompt
from sft import samples
from sft.config import SFTStageConfig
from sft.data import encode_data

QUESTIONS = ("When does the library open?", "How long can I keep a book, and a second line?")


def turn(role, content):
    return {"role": role, "content": content}


@pytest.fixture
def source(tmp_path, tokenizer):
    return ModelSource(str(tiny.write(tmp_path / "model", tiny.make_policy(tokenizer), tokenizer)))


@pytest.fixture
def config():
    values = {
        "name": "run", "model": {"name": "x"}, "data": {"train": "x", "max_length": 60}, "registry": {"name": "run"},
    }  # fmt: skip
    return validate(SFTStageConfig, values, "test")


@pytest.fixture
def held_out():
    return [Demonstration((turn("user", question), turn("assistant", "Nine."))) for question in QUESTIONS]


def test_answers_are_transformers_own_greedy_ones(source, config, tokenizer, held_out):
    model = tiny.make_policy(tokenizer)
    for row, question in zip(samples.answers(config, source, tokenizer, held_out), QUESTIONS, strict=True):
        ids = torch.tensor([encode_prompt(tokenizer, trim_prompt(tokenizer, [turn("user", question)], 30))])
        made = model.generate(ids, do_sample=False, max_new_tokens=30, eos_token_id=tokenizer.eos_token_id)[0]
        response = made[ids.shape[1] :].tolist()
        assert row["response"] == tokenizer.decode(response, skip_special_tokens=True).strip()
        assert (row["length"], row["ended"]) == (len(response), response[-1] == tokenizer.eos_token_id)
        assert (row["prompt"], row["reference"]) == ([turn("user", question)], "Nine.")


def drawn():
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def seed():
    random.seed(3)
    np.random.seed(3)
    torch.manual_seed(3)


def test_nothing_random_is_used_up(tmp_path, source, config, tokenizer, held_out, monkeypatch):
    def drawing(*arguments):
        drawn()  # as loading a model may
        return []

    seed()
    expected = drawn()
    monkeypatch.setattr(samples, "answers", drawing)
    with Journal(tmp_path / "run") as journal:
        seed()
        samples.write_samples(journal, 0, config, source, tokenizer, held_out)
        assert drawn() == expected


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("no room"), None])
def test_a_run_does_not_end_for_want_of_samples(tmp_path, source, config, tokenizer, held_out, monkeypatch, error):
    if error is not None:
        monkeypatch.setattr(samples, "load_policy", lambda *_: (_ for _ in ()).throw(error))
    else:
        source = ModelSource(str(tmp_path / "nothing"))
    with Journal(tmp_path / "run") as journal:
        samples.write_samples(journal, 4, config, source, tokenizer, held_out)
    (event,) = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    assert (event["event"], event["step"]) == ("no_samples", 4)
    assert ("no room" if error else "nothing") in event["reason"]


def test_the_first_held_out_conversations_are_kept(tmp_path, tokenizer, config):
    rows = [{"messages": [turn("user", f"Number {n}?"), turn("assistant", f"{n}.")]} for n in range(6)]
    rows[1]["tools"] = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    (tmp_path / "train.jsonl").write_text(json.dumps(rows[0]) + "\n")
    (tmp_path / "eval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[1:]))
    data = config.data.model_copy(
        update={"train": str(tmp_path / "train.jsonl"), "eval": str(tmp_path / "eval.jsonl"), "max_length": 200}
    )
    shown = encode_data(data, tokenizer, num_samples=3).samples
    assert [row.messages[0]["content"] for row in shown] == [f"Number {n}?" for n in (2, 3, 4)]  # 1 has tools
    assert encode_data(data, tokenizer).samples == []
