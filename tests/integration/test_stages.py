"""`python -m sft` and `-m reward` as a user starts them: what they leave behind, and what they say to bad input."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import tiny
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from alignment.memory.plan import PARTS
from alignment.models.policies import load_policy
from alignment.models.scalar import load_scalar_model
from alignment.ratings import RatingsStore
from alignment.registry import Registry

ROOT = Path(__file__).resolve().parents[2]
SCRATCH = {
    "vocab_size": 300,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 128,
}


def recipe(house, name, model, train, **training):
    return {
        "name": name,
        "model": model,
        "data": {"train": str(train), "eval_share": 0.3, "max_length": 96},
        "training": {"max_steps": 3, "per_device_train_batch_size": 4, "logging_steps": 1, "learning_rate": 1e-2}
        | training,
        "registry": {"name": f"{name}-model", "path": str(house.registry), "alias": "newest"},
        "tracking": {"runs": str(house.runs)},
    }


def command(folder, stage, config, *arguments, timeout=240, **variables):
    path = folder / f"{config['name']}.yaml"
    path.write_text(json.dumps(config))  # JSON is YAML
    return subprocess.run(
        [sys.executable, "-m", stage, str(path), *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), **variables},
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def write_demonstrations(path, count=24):
    rows = [{"prompt": f"Question {n}\u2028here?", "completion": f"Answer {n * 7}."} for n in range(count)]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    folder = tmp_path_factory.mktemp("house")
    return SimpleNamespace(folder=folder, registry=folder / "registry", runs=folder / "runs")


@pytest.fixture(scope="module")
def sft(house):
    """One SFT run from scratch; a bad row is among its data."""
    train = write_demonstrations(house.folder / "demonstrations.jsonl", 120)
    with train.open("a") as file:
        file.write('{"prompt": "no answer"}\n')
    house.sft_config = recipe(house, "toy-sft", {"name": "scratch:llama", "scratch": SCRATCH}, train)
    return command(house.folder, "sft", house.sft_config)


@pytest.fixture(scope="module")
def rated(house, sft):
    """A reward model from a ratings database that is filled through the store."""
    path = house.folder / "ratings.db"
    with RatingsStore(path, create=True, seed=1) as store:
        for number in range(16):
            prompt = [{"role": "user", "content": f"Question {number}?"}]
            store.add_item(prompt, [{"text": f"Good {number}."}, {"text": f"Bad {number * 3} bad."}], need=2)
        good = {item.id: item.completions[0].text for item in store.items()}
        for labeler in ("ann", "bob"):
            while (shown := store.claim(labeler)) is not None:
                left_is_good = shown.completions[0] == good[shown.item]
                store.submit(shown, "left" if left_is_good else "right", seconds=2.0)
    return command(house.folder, "reward", recipe(house, "toy-reward", {"name": "toy-sft-model@newest"}, path))


@pytest.fixture(scope="module")
def paired(house, sft):
    """A reward model from pairs in a file, with soft centering and evaluation in between."""
    path = house.folder / "pairs.jsonl"
    rows = [{"prompt": f"p{n}", "chosen": f"yes {n}", "rejected": f"no {n} no"} for n in range(20)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = recipe(
        house,
        "toy-pairs",
        {"name": "toy-sft-model"},
        path,
        center_rewards_coefficient=0.01,
        pad_to_multiple_of=8,
        eval_strategy="steps",
        eval_steps=2,
        gradient_accumulation_steps=2,
    )
    return command(house.folder, "reward", config)


def check_run(house, name, result):
    """What every finished run leaves behind; returns its metrics."""
    assert result.returncode == 0, result.stderr
    assert "Traceback" not in result.stderr
    run = house.runs / name
    record = json.loads((run / "exit.json").read_text())
    assert (record["code"], record["reason"], record["model"]) == (0, "done", f"{name}-model@v1")
    assert json.loads((run / "config.json").read_text())["name"] == name
    metrics = lines(run / "metrics.jsonl")
    losses = [row for row in metrics if "train/loss" in row]
    assert [row["step"] for row in losses] == [1, 2, 3]
    assert all(0 < row["train/loss"] < 20 for row in losses)
    events = {row["event"]: row for row in lines(run / "events.jsonl")}
    said = ("method", "batches", "finding", "not_measured", "histogram", "labels")
    assert [kind for kind in events if kind not in said] == ["data", "data_check", "watching", "backend", "published"]
    backend = events["backend"]
    assert (backend["world_size"], backend["zero_stage"]) == (1, 0)
    assert {path.name for path in run.iterdir()} <= {
        "config.json", "run.json", "exit.json", "metrics.jsonl", "samples.jsonl", "events.jsonl", "bad_rows.jsonl",
        "eval_pairs.jsonl", "data_report.json", "data_report.html", "evaluation.json", "evaluation.html", "report.html",
        "wandb", "lease",
    }  # fmt: skip
    return metrics


def inspect(run):
    """A W&B run's records, read back by W&B's own tool."""
    (offline,) = (run / "wandb").glob("offline-run-*")
    result = subprocess.run(
        [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(offline)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines() if line.strip()]


def test_sft_leaves_a_run_and_a_policy_that_loads_equal(house, sft):
    check_run(house, "toy-sft", sft)
    registry = Registry(house.registry)
    version = registry.load("toy-sft-model@newest", role="policy")
    base = registry.load("toy-sft-model-base@v1", role="policy")
    assert version.parent("init").digest == base.digest
    train, held_out = version.manifest.data
    assert (train.use, held_out.use) == ("train", "eval")
    assert train.rows + held_out.rows == 120
    assert json.loads((house.runs / "toy-sft" / "exit.json").read_text())["metrics"]["steps"] == 3
    (bad,) = lines(house.runs / "toy-sft" / "bad_rows.jsonl")
    assert bad["where"].endswith("demonstrations.jsonl:121")
    assert "1 rows set aside" in sft.stderr
    names = {path.name for path in version.path.iterdir()}
    assert not {name for name in names if name.endswith((".bin", ".pt", ".pkl"))}
    ids = AutoTokenizer.from_pretrained(version.path)("Question 3\n\nhere?", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        theirs = AutoModelForCausalLM.from_pretrained(version.path).eval()(input_ids=ids).logits
        ours = load_policy(str(version.path)).eval()(input_ids=ids).logits
        before = load_policy(str(base.path)).eval()(input_ids=ids).logits
    assert torch.equal(theirs, ours)
    assert not torch.equal(ours, before)


def test_the_mirror_has_what_the_journal_has(house, sft):
    text = json.dumps(inspect(house.runs / "toy-sft"))
    for row in lines(house.runs / "toy-sft" / "metrics.jsonl"):
        for name, value in row.items():
            if name.startswith("train/loss"):
                assert "train/loss" in text
                assert str(value) in text, value


@pytest.mark.parametrize(("name", "fixture"), [("toy-reward", "rated"), ("toy-pairs", "paired")])
def test_a_reward_model_is_published_judged_and_centered(house, name, fixture, request):
    result = request.getfixturevalue(fixture)
    metrics = check_run(house, name, result)
    version = Registry(house.registry).load(f"{name}-model", role="reward")
    assert version.parent("init").ref.startswith("toy-sft-model@v1")
    report = version.manifest.metrics
    assert 0 <= report["accuracy"]["value"] <= 1
    assert metrics[-1]["eval/accuracy"] == report["accuracy"]["value"]
    assert report["accuracy"]["n"] >= report["length_baseline"]["n"] > 0
    pairs = lines(house.runs / name / "eval_pairs.jsonl")
    told = json.loads((house.runs / name / "evaluation.json").read_text())
    assert told["accuracy"] == report["accuracy"]
    assert told["pairs"] == len(pairs) == report["held_out_pairs"]
    assert told["without_eos"]["questions"] == told["questions"] and told["without_eos"]["largest"] > 0
    assert told["verdict"] in result.stdout and "longer is better" in result.stdout
    assert told["verdict"] in (house.runs / name / "evaluation.html").read_text()
    scalar = load_scalar_model(str(version.path)).eval()
    tokenizer = AutoTokenizer.from_pretrained(version.path)
    theirs = AutoModelForSequenceClassification.from_pretrained(version.path).eval()
    for row in pairs:
        for side in ("first", "second"):
            messages = [*row["prompt"], {"role": "assistant", "content": row[side]}]
            ids = tokenizer.apply_chat_template(messages, return_tensors="pt", return_dict=True)["input_ids"][:, :-1]
            assert ids[0, -1] == tokenizer.eos_token_id
            mask = torch.ones_like(ids, dtype=torch.bool)
            with torch.no_grad():
                score = scalar.score(ids, mask).item()
                pooled = theirs(input_ids=ids).logits.item()
            assert score == pytest.approx(row[f"{side}_score"], abs=1e-5)
            assert score == pytest.approx(pooled - report["score_bias"], abs=1e-5)


def test_a_reward_model_may_be_the_best_by_its_accuracy(house, sft):
    path = house.folder / "pairs-best.jsonl"
    rows = [{"prompt": f"p{n}", "chosen": f"yes {n}", "rejected": f"no {n} no"} for n in range(20)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    training = {"load_best_model_at_end": True, "metric_for_best_model": "accuracy", "eval_strategy": "steps"}
    config = recipe(house, "toy-best", {"name": "toy-sft-model"}, path, **training, eval_steps=1)
    assert command(house.folder, "reward", config).returncode == 0
    run = house.runs / "toy-best"
    accuracy = {row["step"]: row["eval/accuracy"] for row in lines(run / "metrics.jsonl") if "eval/loss" in row}
    metrics = Registry(house.registry).resolve("toy-best-model").manifest.metrics
    assert list(accuracy) == [1, 2, 3]
    best = max(accuracy.values())
    assert metrics["best_step"] == next(step for step, value in accuracy.items() if value == best)
    (held_out,) = [event["held_out"] for event in lines(run / "events.jsonl") if event["event"] == "data"]
    reported = lines(run / "eval_pairs.jsonl")  # none of which had a say in which step is the best
    assert metrics["accuracy"]["n"] == metrics["held_out_prompts"] == len(reported) == held_out // 2 > 1
    assert metrics["accuracy"]["value"] == sum(row["first_score"] > row["second_score"] for row in reported) / len(
        reported
    )
    assert (metrics["best_of"], metrics["choosing_prompts"]) == (3, held_out - len(reported))
    assert "the best of 3 evaluations" in (run / "evaluation.html").read_text()
    assert not (run / "best").exists()


def test_evaluation_in_between_is_in_the_journal(house, paired):
    steps = [row["step"] for row in lines(house.runs / "toy-pairs" / "metrics.jsonl") if "eval/loss" in row]
    assert 2 in steps


def test_a_second_start_is_refused_and_leaves_the_first_alone(house, sft):
    result = command(house.folder, "sft", house.sft_config)
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert (
        "holds an earlier run; resume it (--resume auto), choose another name (name=toy-sft-2), or pass --overwrite"
        in result.stderr
    )
    assert json.loads((house.runs / "toy-sft" / "exit.json").read_text())["code"] == 0


def test_dry_run_prints_the_plan_and_makes_nothing(house, sft):
    before = sorted(house.folder.rglob("*"))
    config = house.sft_config | {"name": "planned", "model": {"name": "toy-sft-model"}}
    override = "training.gradient_accumulation_steps=3"
    result = command(house.folder, "sft", config, "--dry-run", override, WANDB_MODE="offline")  # transformers greets
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    plan = report["plan"]
    assert (plan["per_device_batch"], plan["accumulated"], plan["global_batch"]) == (4, 3, 12)
    assert plan["train_rows"] + plan["eval_rows"] == 120
    assert plan["parameters"]["init"] == plan["trained_parameters"] > 1000
    memory = plan["memory_gb_per_process"]
    assert memory["peak"] == pytest.approx(sum(memory[part] for part in PARTS), abs=1e-4) and memory["peak"] > 0
    assert report["config"]["training"]["gradient_accumulation_steps"] == 3
    assert sorted(set(house.folder.rglob("*")) - set(before)) == [house.folder / "planned.yaml"]


# --- bad input -------------------------------------------------------------------------------------------------------


def bad_tokenizer(folder, **changes):
    tokenizer = tiny.make_tokenizer()
    for name, value in changes.items():
        setattr(tokenizer, name, value)
    return str(tiny.write(folder / "model", tiny.make_policy(tiny.make_tokenizer()), tokenizer))


def write_gpt2(folder):
    tokenizer = tiny.make_tokenizer()
    return str(tiny.write(folder / "model", tiny.make_gpt2(tokenizer), tokenizer))


def write(path, text):
    path.write_text(text)
    return str(path)


BAD = {
    "unknown key": (lambda f: {"training.learning_rat": 1}, ["'training.learning_rat'", "'training.learning_rate'"]),
    "unknown section": (lambda f: {"modle.name": "x"}, ["unknown key 'modle'", "did you mean 'model'"]),
    "missing file": (lambda f: {"data.train": str(f / "none.jsonl")}, ["none.jsonl: no such file; give data.train"]),
    "empty data set": (lambda f: {"data.train": write(f / "e.jsonl", "")}, ["e.jsonl: the data set is empty"]),
    "row of the wrong shape": (
        lambda f: {"data.train": write(f / "w.jsonl", '{"question": "a"}\n')},
        [
            "w.jsonl:1: found the keys question, a prompt row, which is not read here; expected messages",
            "data.columns",
        ],
    ),
    "no template": (
        lambda f: {"model.name": bad_tokenizer(f, chat_template=None)},
        ["no chat template; set model.template to one of: chatml, alpaca"],
    ),
    "unknown template": (
        lambda f: {"model.name": "scratch:llama", "model.template": "llama"},
        ["model.template: no template 'llama'; known: chatml, alpaca"],
    ),
    "unknown model": (lambda f: {"model.name": "nobody"}, ["nobody"]),
    "no such folder": (lambda f: {"model.name": "./nobody"}, ["./nobody: no such folder; give a registry reference"]),
    "value TRL refuses": (lambda f: {"training.eval_strategy": "sometimes"}, ["training:", "sometimes"]),
    "loss TRL refuses": (lambda f: {"training.loss_type": "sometimes"}, ["training:", "`loss_type` sometimes"]),
    "alias that is a version": (lambda f: {"registry.alias": "v3"}, ["registry.alias: 'v3'", "choose another word"]),
    "answers too long": (
        lambda f: {"data.max_length": 4},
        ["0 of 24 rows have trainable tokens at data.max_length=4", "raise data.max_length"],
    ),
    "a shape that makes no model": (
        lambda f: {"model.scratch.num_attention_heads": 7},
        ["model.scratch: hidden_size 128 is not divisible by 2 x num_attention_heads 7"],
    ),
    "longer than learned positions": (
        lambda f: {"model.name": write_gpt2(f), "data.max_length": 257},
        ["data.max_length=257 is more than the 256 positions", "set data.max_length=256 or lower"],
    ),
    "scratch beside a name": (
        lambda f: {"model.name": bad_tokenizer(f), "model.scratch.hidden_size": 16},
        ["scratch is only for name=scratch:llama", "add model.scratch=null"],
    ),
}


# The rest needs the model itself, or the trainer around it.
FOUND_WITHOUT_WEIGHTS = set(BAD) - {"loss TRL refuses"}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_with_the_fix_and_code_2(tmp_path, monkeypatch, capfd, case):
    from sft.__main__ import main

    make, parts = BAD[case]
    house = SimpleNamespace(registry=tmp_path / "registry", runs=tmp_path / "runs")
    train = write_demonstrations(tmp_path / "d.jsonl")
    config = recipe(house, "bad", {"name": "scratch:llama"}, train)
    path = write(tmp_path / "c.yaml", json.dumps(config))
    overrides = [f"{key}={value}" for key, value in make(tmp_path).items()]
    capfd.readouterr()
    monkeypatch.setattr(sys, "argv", ["sft", path, *overrides, "tracking.wandb=disabled"])
    assert main() == 2
    error = capfd.readouterr().err
    assert error.startswith("error: ")
    assert len(error.splitlines()) == 1, error
    for part in parts:
        assert part in error
    if case in FOUND_WITHOUT_WEIGHTS:
        assert not house.registry.exists()  # no base is published for rows that cannot be trained on
        shutil.rmtree(house.runs, ignore_errors=True)
        monkeypatch.setattr(sys, "argv", ["sft", path, *overrides, "--dry-run"])
        assert main() == 2
        assert capfd.readouterr().err == error
        assert not house.runs.exists()


def test_a_pad_token_that_the_config_names_may_be_new(tmp_path, monkeypatch):
    """A model whose tokenizer pads with EOS, as most do: it trains as it is, and with another pad token."""
    from sft.__main__ import main

    house = SimpleNamespace(registry=tmp_path / "registry", runs=tmp_path / "runs")
    model = {"name": bad_tokenizer(tmp_path, pad_token="<|im_end|>")}
    path = write(
        tmp_path / "c.yaml", json.dumps(recipe(house, "mended", model, write_demonstrations(tmp_path / "d.jsonl")))
    )
    monkeypatch.setattr(sys, "argv", ["sft", path, "tracking.wandb=disabled"])
    assert main() == 0
    assert len(AutoTokenizer.from_pretrained(Registry(house.registry).load("mended-model").path)) == 320
    argv = ["sft", path, "tracking.wandb=disabled", "model.pad_token=<new>", "--overwrite"]
    monkeypatch.setattr(sys, "argv", argv)
    assert main() == 0
    version = Registry(house.registry).load("mended-model")
    tokenizer = AutoTokenizer.from_pretrained(version.path)
    policy = load_policy(str(version.path))
    assert tokenizer.pad_token == "<new>"
    assert policy.get_input_embeddings().num_embeddings == len(tokenizer)
    assert policy.config.pad_token_id == tokenizer.pad_token_id != tokenizer.eos_token_id


def test_a_model_that_diverged_is_not_published(tmp_path, monkeypatch, capfd):
    from sft.__main__ import main

    house = SimpleNamespace(registry=tmp_path / "registry", runs=tmp_path / "runs")
    model = {"name": "scratch:llama", "scratch": SCRATCH}
    train = write_demonstrations(tmp_path / "d.jsonl")
    config = recipe(house, "wild", model, train, learning_rate=1e30, max_grad_norm=0.0, warmup_steps=0)
    path = write(tmp_path / "c.yaml", json.dumps(config))
    monkeypatch.setattr(sys, "argv", ["sft", path, "tracking.wandb=disabled"])
    assert main() == 2
    assert "training diverged" in capfd.readouterr().err
    assert Registry(house.registry).names() == ["wild-model-base"]
    assert json.loads((house.runs / "wild" / "exit.json").read_text())["code"] == 2


def test_a_process_says_no_more_than_that_line(tmp_path):
    house = SimpleNamespace(registry=tmp_path / "registry", runs=tmp_path / "runs")
    model = {"name": bad_tokenizer(tmp_path, chat_template=None)}
    result = command(tmp_path, "sft", recipe(house, "bad", model, write_demonstrations(tmp_path / "d.jsonl")))
    assert (result.returncode, result.stdout) == (2, "")
    assert len(result.stderr.splitlines()) == 1, result.stderr
    assert json.loads((house.runs / "bad" / "exit.json").read_text())["code"] == 2


@pytest.mark.parametrize(
    ("model", "part"),
    [("scratch:llama", "starts from a trained policy, not from scratch"), ("toy-reward-model", "is a reward model")],
)
def test_a_reward_model_starts_from_a_policy(house, rated, tmp_path, monkeypatch, capfd, model, part):
    from reward.__main__ import main

    config = recipe(house, "wrong-start", {"name": model}, house.folder / "ratings.db")
    path = write(tmp_path / "c.yaml", json.dumps(config))
    capfd.readouterr()
    monkeypatch.setattr(sys, "argv", ["reward", path, f"tracking.runs={tmp_path}"])
    assert main() == 2
    error = capfd.readouterr().err
    assert part in error
    assert len(error.splitlines()) == 1
