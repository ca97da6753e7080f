"""lm-eval on a task of a local folder, and forgetting: a model that was trained away from a text."""

import hashlib
import json
from importlib.metadata import version
from importlib.util import find_spec

import pytest
import torch
from helpers import tiny
from transformers import AutoModelForCausalLM, AutoTokenizer

from alignment.cli.eval import main
from alignment.evaluation.harness import TaskScores, task_report
from alignment.registry import Registry
from alignment.registry.evaluations import evaluations_of, newest_evaluations
from alignment.registry.promotion import promote
from alignment.templates.rendering import encode_text

needs_extra = pytest.mark.skipif(find_spec("lm_eval") is None, reason="the extra `eval` (lm-eval) is not installed")
TASK = """task: opening
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
metadata: {version: 1}
"""
QUESTIONS = [
    {"question": f"Floor {n} opens at", "choices": [" nine", " ten today", " noon"], "answer": n % 3} for n in range(9)
]


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    """A policy before and after it was trained on one sentence alone, a text, and a task."""
    folder = tmp_path_factory.mktemp("eval")
    tokenizer = tiny.make_tokenizer()
    policy = tiny.make_policy(tokenizer, seed=1)
    tiny.write(folder / "before", policy, tokenizer)
    ids = torch.tensor([encode_text(tokenizer, "no no no no no")])
    optimizer = torch.optim.SGD(policy.parameters(), lr=1.0)
    for _ in range(5):
        policy(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    tiny.write(folder / "after", policy, tokenizer)
    texts = [{"text": line * (1 + n % 2)} for n, line in enumerate(tiny.CORPUS[:2] * 6)]
    (folder / "general.jsonl").write_text("".join(json.dumps(row | {"n": n}) + "\n" for n, row in enumerate(texts)))
    (folder / "one.txt").write_text("\n\n".join(f"{tiny.CORPUS[0]} Floor {n}. {'word ' * 150}" for n in range(4)))
    (folder / "tasks").mkdir()
    (folder / "questions.json").write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS))
    (folder / "tasks" / "opening.yaml").write_text(TASK.replace("DATA", str(folder / "questions.json")))
    return folder


def evaluated(capsys, *arguments):
    assert main([*map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def bits_per_byte(folder, text):
    """By plain transformers, the text after an end token."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ids = torch.tensor([[tokenizer.eos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]]])
    with torch.no_grad():
        return float(model(input_ids=ids, labels=ids).loss) * (ids.shape[1] - 1) / 0.6931471805599453 / len(text)


def test_forgetting_is_the_paired_change_on_a_general_text(house, capsys):
    found = evaluated(capsys, house / "after", "--before", house / "before", "--text", house / "general.jsonl")["text"]
    lines = [json.loads(line)["text"] for line in (house / "general.jsonl").read_text().splitlines()]
    size = sum(map(len, lines))
    for name, key in (("after", "bits_per_byte"), ("before", "before")):
        expected = sum(bits_per_byte(house / name, text) * len(text) for text in lines) / size
        assert found[key] == pytest.approx(expected, abs=1e-5)
    low, high = found["difference"]["ci"]
    assert found["difference"]["value"] == pytest.approx(found["bits_per_byte"] - found["before"])
    assert low <= found["difference"]["value"] <= high


def test_one_text_is_cut_into_passages_since_one_document_has_no_interval(house, capsys):
    found = evaluated(capsys, house / "after", "--before", house / "after", "--text", house / "one.txt")["text"]
    assert found["documents"] == 2  # of 1,000 characters and more
    assert found["difference"] == {"value": 0.0, "ci": [0.0, 0.0], "n": 2}


@needs_extra
def test_tasks_before_and_after(house, tmp_path, capsys):
    out = tmp_path / "eval.json"
    tasks = ("--tasks", "opening", "--task-folder", house / "tasks", "--out", out)
    found = evaluated(capsys, house / "after", "--before", house / "before", *tasks)
    assert json.loads(out.read_text()) == found
    (row,) = [row for row in found["tasks"] if row["metric"] == "acc"]
    correct = {}
    for name in ("after", "before"):
        model = AutoModelForCausalLM.from_pretrained(house / name)
        tokenizer = AutoTokenizer.from_pretrained(house / name)
        correct[name] = [chosen(model, tokenizer, each) == each["answer"] for each in QUESTIONS]
    assert row["value"] == pytest.approx(sum(correct["after"]) / 9)
    assert row["before"] == pytest.approx(sum(correct["before"]) / 9)
    assert row["difference"]["value"] == pytest.approx(row["value"] - row["before"])
    assert row["difference"]["n"] == row["n"] == 9
    share = row["value"]
    low, high = row["ci"]
    spread = 1.96 * (share * (1 - share) / 9) ** 0.5
    assert low <= share <= high and (high - low) / 2 == pytest.approx(spread, abs=0.12)
    assert found["recorded"] == []  # folders are no versions


@pytest.fixture
def published(house, tmp_path):
    """The two policies as versions of a registry."""
    registry = Registry(tmp_path / "registry")
    for name in ("before", "after"):
        registry.publish(name, house / name, stage="sft", role="policy")
    return registry


def test_forgetting_stands_beside_the_version(house, published, capsys):
    where = ("--registry", published.path, "--text", house / "general.jsonl")
    found = evaluated(capsys, "after", "--before", "before", *where)
    assert found["recorded"] == ["after@v1"]
    value, change = evaluations_of(published, published.resolve("after"))
    text, digest = found["text"], hashlib.sha256((house / "general.jsonl").read_bytes()).hexdigest()
    assert (value.figure, value.data, value.data_sha256) == ("bits per byte", "general.jsonl", digest)
    assert (value.value, value.low, value.high) == (text["bits_per_byte"], *text["ci"])
    assert value.low < value.value < value.high and (value.n, value.unit) == (text["documents"], "documents")
    assert (change.against, change.against_digest) == ("before@v1", published.resolve("before").digest)
    assert (change.value, change.low, change.high) == (text["difference"]["value"], *text["difference"]["ci"])
    promote(published, "after@v1", "prod", require=["eval.bits_per_byte.change.low>0"])  # it did forget
    assert evaluations_of(published, published.resolve("before")) == []
    assert evaluated(capsys, "before", *where, "--no-record")["recorded"] == []
    assert main(["before", *map(str, where)]) == 0
    assert "an evaluation of before@v1 is in the registry" in capsys.readouterr().err
    assert len(evaluations_of(published, published.resolve("before"))) == 1


@needs_extra
def test_tasks_stand_beside_the_version(house, published, capsys):
    tasks = ("--tasks", "opening", "--task-folder", house / "tasks", "--registry", published.path, "--num-fewshot", 0)
    (row,) = [row for row in evaluated(capsys, "after", *tasks)["tasks"] if row["metric"] == "acc"]
    told = evaluations_of(published, published.resolve("after"))
    (acc,) = [each for each in told if each.figure == "acc"]
    assert (acc.value, acc.low, acc.high, acc.n) == (row["value"], *row["ci"], 9)
    assert acc.judged_by == f"lm-eval {version('lm-eval')} with 0 examples" and len(acc.data_sha256) == 64
    evaluated(capsys, "after", *tasks, "--limit", 5)
    newest = [each for each in newest_evaluations(published, published.resolve("after")) if each.figure == "acc"]
    assert [each.n for each in newest] == [5] and newest[0].data_sha256 != acc.data_sha256


def chosen(model, tokenizer, question):
    """The likeliest choice, by plain transformers."""
    totals = []
    for choice in question["choices"]:
        before = len(tokenizer(question["question"], add_special_tokens=False)["input_ids"])
        ids = torch.tensor([tokenizer(question["question"] + choice, add_special_tokens=False)["input_ids"]])
        with torch.no_grad():
            logprobs = model(input_ids=ids).logits.log_softmax(-1)[0, :-1]
        totals.append(float(logprobs.gather(-1, ids[0, 1:, None])[before - 1 :].sum()))
    return totals.index(max(totals))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["--tasks", "--text"]),
        (["--text", "nowhere.txt"], ["nowhere.txt", "no such file"]),
        pytest.param(["--tasks", "openings"], ["openings", "opening"], marks=[needs_extra, pytest.mark.slow]),
        pytest.param(["--tasks", "opening", "--task-folder", "none"], ["--task-folder none"], marks=needs_extra),
    ],
    ids=["nothing", "no-text", "no-task", "no-folder"],
)
def test_a_mistake_is_one_line(house, arguments, words, capsys):
    folder = [] if "--task-folder" in arguments or "--tasks" not in arguments else ["--task-folder", house / "tasks"]
    assert main([str(house / "after"), *map(str, [*arguments, *folder])]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("error: ") and all(word in said for word in words), said


def test_a_metric_without_questions_has_no_interval():
    now, before = ({("wiki", "ppl"): TaskScores(value, None, {})} for value in (12.0, 10.0))
    (row,) = task_report(now, before)
    assert row["difference"] == {"value": 2.0, "ci": None, "n": 0}
