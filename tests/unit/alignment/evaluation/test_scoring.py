"""Scores of files against plain transformers, row by row; what is written, kept and refused."""

import hashlib
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import tiny
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from alignment.cli.score import main
from alignment.intervals import spearman
from alignment.registry import Registry
from alignment.registry.evaluations import evaluations_of

PAIRS = [
    {
        "prompt": f"What about floor {n}?",
        "chosen": f"It is {n}." + " yes" * (n % 3),
        "rejected": "no way " * (1 + n % 2),
    }
    for n in range(9)
]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scored")
    tokenizer = tiny.make_tokenizer()
    tiny.write(folder / "policy", tiny.make_policy(tokenizer, seed=1), tokenizer)
    scalar = tiny.make_scalar(folder / "body", tiny.make_policy(tokenizer, seed=2), tokenizer, seed=2)
    tiny.write(folder / "reward", scalar.model, tokenizer)
    gpt2 = tiny.make_gpt2(tokenizer)
    tiny.write(folder / "gpt2", gpt2, tokenizer)
    return folder


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(name, rows):
    Path(name).write_text("".join(json.dumps(row) + "\n" if isinstance(row, dict) else f"{row}\n" for row in rows))
    return name


def scored(capsys, model, file, *arguments):
    """The summary and the lines."""
    assert main([str(model), file, "--out", "scores.jsonl", "--json", *arguments]) == 0
    lines = [json.loads(line) for line in Path("scores.jsonl").read_text().splitlines()]
    return json.loads(capsys.readouterr().out), lines


def rendered(tokenizer, prompt, answer):
    """The prompt's ids and the answer's, through the end token."""
    before = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], add_generation_prompt=True, tokenize=False
    )
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in (before, answer.strip())]
    return ids[0], [*ids[1], tokenizer.eos_token_id]


def test_scores_are_those_of_plain_transformers(models, here, capsys):
    model = AutoModelForSequenceClassification.from_pretrained(models / "reward").eval()
    tokenizer = AutoTokenizer.from_pretrained(models / "reward")
    summary, lines = scored(capsys, models / "reward", write("pairs.jsonl", PAIRS), "--batch-size", "4")
    agreed = 0
    for row, line in zip(PAIRS, lines, strict=True):
        expected = []
        for side in ("chosen", "rejected"):
            ids = sum(rendered(tokenizer, row["prompt"], row[side]), [])
            with torch.no_grad():
                expected.append(float(model(input_ids=torch.tensor([ids])).logits))
        assert line["scores"] == pytest.approx(expected, abs=1e-5)
        assert line["votes_agreed"] == float(expected[0] > expected[1])
        agreed += line["votes_agreed"]
    assert summary["accuracy"]["value"] == pytest.approx(agreed / len(PAIRS))
    assert (summary["rows"], summary["completions"], summary["not_scored"]) == (9, 18, 0)
    assert summary["mean"] == pytest.approx(np.mean([line["scores"] for line in lines]))


def test_the_summary_stands_beside_the_version(models, here, capsys):
    registry = Registry("registry")
    for name in ("reward", "policy"):
        registry.publish(name, models / name, stage="sft", role=name)
    file = write("pairs.jsonl", PAIRS)
    summary, _ = scored(capsys, "reward", file, "--record")
    assert summary["recorded"] == ["reward@v1"]
    mean, accuracy = evaluations_of(registry, registry.resolve("reward"))
    assert (mean.figure, mean.value, mean.n) == ("mean score", summary["mean"], 18)
    assert (mean.low, mean.high) == tuple(summary["mean_ci"]) and mean.low < mean.value < mean.high
    assert (accuracy.value, accuracy.n, accuracy.judged_by) == (
        summary["accuracy"]["value"],
        9,
        "the votes in the file",
    )
    assert (accuracy.data, accuracy.data_sha256) == (file, hashlib.sha256(Path(file).read_bytes()).hexdigest())
    assert main(["policy", file]) == 0
    assert "3 results on fewer than 30" in capsys.readouterr().err
    assert main(["policy", file, "--record"]) == 0
    assert "an evaluation of policy@v1 is in the registry" in capsys.readouterr().err
    told = evaluations_of(registry, registry.resolve("policy"))
    assert [each.figure for each in told] == ["bits per byte", "log-probability per token", "accuracy"]
    assert main(["policy", write("other.jsonl", PAIRS[:4]), "--no-record"]) == 0
    assert len(evaluations_of(registry, registry.resolve("policy"))) == 3


def test_the_mean_score_has_an_interval_over_prompts(models, here, capsys):
    once, _ = scored(capsys, models / "reward", write("pairs.jsonl", PAIRS))
    Path("scores.jsonl").unlink()
    twice, _ = scored(capsys, models / "reward", write("again.jsonl", PAIRS * 2))
    assert twice["mean_ci"] == pytest.approx(once["mean_ci"], abs=1e-5)  # the same prompts say nothing new
    low, high = once["mean_ci"]
    assert low < once["mean"] < high


@pytest.mark.parametrize("name", ["policy", "gpt2"])
def test_logprobs_are_those_of_plain_transformers(models, here, capsys, name):
    model = AutoModelForCausalLM.from_pretrained(models / name).eval()
    tokenizer = AutoTokenizer.from_pretrained(models / name)
    _, lines = scored(capsys, models / name, write("pairs.jsonl", PAIRS))
    for row, line in zip(PAIRS, lines, strict=True):
        for place, side in enumerate(("chosen", "rejected")):
            before, after = rendered(tokenizer, row["prompt"], row[side])
            with torch.no_grad():
                logprobs = model(input_ids=torch.tensor([before + after])).logits.log_softmax(-1)[0, :-1]
            each = logprobs.gather(-1, torch.tensor([*before, *after])[1:, None])[len(before) - 1 :, 0]
            assert line["logprobs"][place] == pytest.approx(float(each.sum()), abs=1e-4)
            assert line["tokens"][place] == len(after)
            assert line["logprobs_per_token"][place] == pytest.approx(float(each.mean()), abs=1e-5)
            bits = -float(each[:-1].sum()) / math.log(2) / len(row[side].strip().encode())  # the end is not of the text
            assert line["bits_per_byte"][place] == pytest.approx(bits, rel=1e-5, abs=1e-5)


def test_a_long_text_counts_each_token_once_with_half_a_window_before_it(models, here, capsys):
    model = AutoModelForCausalLM.from_pretrained(models / "gpt2").eval()
    tokenizer = AutoTokenizer.from_pretrained(models / "gpt2")
    text = " ".join(f"Floor {n} opens at nine." for n in range(40))
    ids = [tokenizer.eos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]]
    assert len(ids) > 256  # positions of the model
    total, counted = 0.0, 1
    while counted < len(ids):
        stop = min(len(ids), 64 if counted == 1 else counted + 32)
        start = max(0, stop - 64)
        with torch.no_grad():
            logprobs = model(input_ids=torch.tensor([ids[start:stop]])).logits.log_softmax(-1)[0, :-1]
        each = logprobs.gather(-1, torch.tensor(ids[start + 1 : stop])[:, None])[:, 0]
        total += float(each[counted - start - 1 :].sum())
        counted = stop
    _, (line,) = scored(capsys, models / "gpt2", write("texts.jsonl", [{"text": text}]), "--max-length", "64")
    assert line["logprobs"][0] == pytest.approx(total, abs=1e-3)
    assert line["tokens"] == [len(ids) - 1]


def test_rows_of_every_shape_stand_in_their_order(models, here, capsys):
    rows = [
        {"prompt": "When?", "completions": ["At nine.", "At ten.", "Never."], "ranks": [1, 1, 3]},
        {"prompt": "When?", "completion": "At nine.", "rating": 4},
        "no JSON",
        {"prompt": "Why?", "completion": "Because.", "rating": 2},
        {"prompt": "When?", "completion": "At nine."},
        {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]},
        {"text": "A plain text."},
        {"prompt": "Only a prompt"},
    ]
    summary, lines = scored(capsys, models / "reward", write("mixed.jsonl", rows), "--batch-size", "3")
    assert [line["row"] for line in lines] == list(range(1, 9))
    assert [line["place"] for line in lines] == [f"mixed.jsonl:{n}" for n in range(1, 9)]
    ranked, rated, broken, _, completed, _, text, prompt = lines
    assert len(ranked["scores"]) == 3 and ranked["votes"] == 2  # a tie is no vote
    assert rated["rating"] == 4.0
    assert rated["scores"] == completed["scores"] and rated["scores"][0] == pytest.approx(ranked["scores"][0], abs=1e-5)
    assert "error" in broken and "plain text" in text["error"] and "error" in prompt
    assert summary["rating_correlation"]["n"] == 2
    assert (summary["rows"], summary["not_scored"]) == (8, 3)
    policy, lines = scored(capsys, models / "policy", "mixed.jsonl", "--out", "other.jsonl")
    texts = [json.loads(line) for line in Path("other.jsonl").read_text().splitlines()]
    assert texts[6]["bits_per_byte"] and policy["not_scored"] == 2


def test_a_run_that_was_cut_off_goes_on_and_gives_the_same_bytes(models, here, capsys):
    rows = [*PAIRS, {"nonsense": 1}, *PAIRS]
    _, _ = scored(capsys, models / "reward", write("pairs.jsonl", rows), "--batch-size", "4")
    whole = Path("scores.jsonl").read_bytes()
    before = capsys.readouterr()
    for cut in (0, 100, len(whole) // 2, len(whole) - 1, len(whole)):
        Path("scores.jsonl").write_bytes(whole[:cut])
        again, _ = scored(capsys, models / "reward", "pairs.jsonl", "--batch-size", "4")
        assert Path("scores.jsonl").read_bytes() == whole, cut
    assert again["rows"] == len(rows) and again["not_scored"] == 1 and before is not None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["policy", "pairs.jsonl", "--out", "scores.jsonl"], ["scores.jsonl", "another model"]),
        (["reward", "pairs.jsonl", "--out", "scores.jsonl", "--batch-size", "5"], ["of another batch size: 64, now 5"]),
        (["reward", "none.jsonl"], ["none.jsonl", "no such file"]),
        (["reward"], ["which file"]),
        (["reward", "prompts.jsonl"], ["prompts.jsonl:1", "nothing was scored"]),
        (["reward", "pairs.jsonl", "--batch-size", "0"], ["--batch-size 0"]),
        (["reward", "pairs.jsonl", "--column", "prompt"], ["--column prompt", "OURS=THEIRS"]),
    ],
    ids=["other-model", "other-batches", "no-file", "no-argument", "no-answers", "no-rows", "no-column"],
)
def test_a_mistake_is_one_line_and_leaves_the_scores(models, here, capsys, arguments, words):
    write("prompts.jsonl", [{"prompt": "Only a prompt"}])
    scored(capsys, models / "reward", write("pairs.jsonl", PAIRS))
    kept = Path("scores.jsonl").read_bytes()
    model, *rest = arguments
    assert main([str(models / model), *rest]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("error: ") and all(word in said for word in words), said
    assert Path("scores.jsonl").read_bytes() == kept


def test_a_prompt_beyond_the_length_is_trimmed_and_an_answer_is_not(models, here, capsys):
    long = {"prompt": "Please tell me. " * 40 + "When?", "completion": "At nine."}
    answer = {"prompt": "When?", "completion": "At nine. " * 60}
    _, lines = scored(capsys, models / "reward", write("long.jsonl", [long, answer]), "--max-length", "64")
    assert lines[0]["tokens"][0] <= 64 and "leaves no room" in lines[1]["error"]


def test_a_published_version_is_named_with_its_digest(models, here, capsys):
    registry = Registry("registry")
    version = registry.publish("reward", models / "reward", stage="reward", role="reward")
    summary, _ = scored(capsys, "reward", write("pairs.jsonl", PAIRS))
    assert (summary["model"], summary["digest"]) == ("reward@v1", version.digest)


def test_spearman_of_ties_and_constants():
    assert spearman(np.array([1.0, 2.0, 3.0]), np.array([2.0, 4.0, 9.0])) == pytest.approx(1.0)
    assert spearman(np.array([1.0, 2.0, 2.0, 3.0]), np.array([4.0, 3.0, 2.0, 1.0])) == pytest.approx(-0.9486833)
    assert spearman(np.array([1.0, 1.0]), np.array([1.0, 2.0])) == 0.0
