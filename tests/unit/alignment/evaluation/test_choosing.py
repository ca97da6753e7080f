"""Three models trained in seconds, under two tokenizers: on the text, on half of it, on another text."""

import json
import random
import re
from pathlib import Path

import pytest
import torch
from helpers import tiny
from transformers import AutoConfig

from alignment.cli.choose import main
from alignment.evaluation.choosing import memory_to_train
from alignment.memory.shapes import FIELDS, KNOWN
from alignment.models.policies import build_scratch_model
from alignment.models.sources import ModelSource
from alignment.models.tokenizers import train_tokenizer
from alignment.templates.rendering import encode_text
from alignment.tensors import pad_rows

OURS = [
    f"The {a} {b} opens at {c}." for a in ("old", "small") for b in ("library", "shop", "bath") for c in ("nine", "ten")
]
THEIRS = [f"{a * 3} kilowatt hours, {b} volts and {c} ohms" for a in range(4) for b in range(2) for c in range(2)]


def trained(folder, texts, vocab, seed, steps=60):
    """A tiny model fitted to some texts, with a tokenizer of its own."""
    tokenizer = train_tokenizer(OURS + THEIRS, vocab, None)
    torch.manual_seed(seed)
    model = build_scratch_model("llama", tiny.SHAPE.model_copy(update={"vocab_size": len(tokenizer)}), tokenizer)
    rows = [[tokenizer.eos_token_id, *encode_text(tokenizer, text)] for text in texts]
    ids, mask = pad_rows(rows, tokenizer.pad_token_id, "right")
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(steps):
        model(input_ids=ids, attention_mask=mask, labels=ids.masked_fill(~mask, -100)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return str(tiny.write(folder, model.eval(), tokenizer))


@pytest.fixture(scope="module")
def candidates(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bases")
    near = trained(folder / "near", OURS, 300, seed=1)
    half = trained(folder / "half", OURS[:3] + THEIRS, 420, seed=2)
    far = trained(folder / "far", THEIRS, 300, seed=3)
    (folder / "near" / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Near\n")
    return {"near": near, "half": half, "far": far}


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    texts = random.Random(0).sample(OURS, len(OURS))
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return "mine.jsonl"


def chosen(capsys, *arguments):
    assert main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_nearest_is_first_across_tokenizers(candidates, data, capsys):
    found = chosen(capsys, candidates["far"], candidates["near"], candidates["half"], "--data", data)
    assert [row["model"] for row in found["models"]] == [candidates[name] for name in ("near", "half", "far")]
    best, middle, last = found["models"]
    assert best["behind_the_best"] is None and best["license"] == "apache-2.0"
    for row in (middle, last):
        assert row["behind_the_best"]["ci"][0] > 0
        gap = row["bits_per_byte"]["value"] - best["bits_per_byte"]["value"]
        assert row["behind_the_best"]["value"] == pytest.approx(gap)
    assert middle["vocabulary"] != best["vocabulary"]
    assert middle["tokens_per_word"] < best["tokens_per_word"]  # the larger vocabulary needs fewer
    assert best["context"] == tiny.SHAPE.max_position_embeddings
    assert set(best["train_memory_gb"]) == {"full", "lora"}
    assert found["answers"] == len(OURS) and found["bytes"] == sum(map(len, OURS))


def test_bits_per_byte_are_those_of_plain_transformers(candidates, data, capsys):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    found = chosen(capsys, candidates["half"], "--data", data)
    model = AutoModelForCausalLM.from_pretrained(candidates["half"])
    tokenizer = AutoTokenizer.from_pretrained(candidates["half"])
    bits = 0.0
    for text in OURS:
        ids = torch.tensor([[tokenizer.eos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]]])
        with torch.no_grad():
            loss = model(input_ids=ids, labels=ids).loss
        bits += float(loss) * (ids.shape[1] - 1) / 0.6931471805599453
    assert found["models"][0]["bits_per_byte"]["value"] == pytest.approx(bits / sum(map(len, OURS)), abs=1e-5)


def test_a_model_that_cannot_be_had_does_not_stop_the_others_and_nothing_is_scored_twice(candidates, data, capsys):
    once = chosen(capsys, candidates["near"], "./nowhere", "--data", data)
    assert list(once["failed"]) == ["./nowhere"] and len(once["models"]) == 1
    (file,) = Path("choose", "mine").glob("*near.jsonl")  # a folder for each text
    before = file.read_bytes()
    again = chosen(capsys, candidates["near"], candidates["far"], "--data", data)
    assert file.read_bytes() == before
    assert again["models"][0]["bits_per_byte"] == once["models"][0]["bits_per_byte"]
    assert main(["./nowhere", "--data", data]) == 2
    assert "nowhere" in capsys.readouterr().err


def test_scores_of_another_text_are_told_with_the_folder_and_both_files(candidates, data, capsys):
    assert main([candidates["near"], "--data", data, "--out", "mine"]) == 0
    Path("other.jsonl").write_text(json.dumps({"text": "Another text."}) + "\n")
    capsys.readouterr()
    assert main([candidates["near"], "--data", "other.jsonl", "--out", "mine"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert re.search(r"--out mine/\S+near\.jsonl holds scores of other data: mine\.jsonl \(.*other\.jsonl \(", error)
    assert "{" not in error and "'" not in error
    assert main([candidates["near"], "--data", "other.jsonl"]) == 0  # by default each text has a folder


def test_memory_is_that_of_the_shape(tmp_path):
    kind, values = KNOWN["Qwen/Qwen2.5-0.5B"]
    AutoConfig.for_model(kind, **dict(zip(FIELDS, values, strict=True))).save_pretrained(tmp_path)
    found = memory_to_train(ModelSource(str(tmp_path)))
    assert found["full"] > 16 * 0.494  # weights, gradients and Adam's two states of 494M parameters, 4 bytes each
    assert 4 * 0.494 < found["lora"] < found["full"] - 10 * 0.494
