"""`python -m ppo` end to end on tiny models: what it publishes, what it writes, and how it says no."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import tiny

from alignment.models.policies import load_policy
from alignment.models.sources import find_model
from alignment.models.tokenizers import load_tokenizer
from alignment.registry import Registry
from alignment.registry.promotion import promote
from alignment.training.stage import run_stage
from ppo import best_of_n
from ppo.config import PPOStageConfig
from ppo.plan import plan
from ppo.train import train

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def house(tmp_path, tokenizer, monkeypatch):
    """A registry with an SFT model and a reward model, twelve prompts, and a config; the tests run beside them."""
    monkeypatch.chdir(tmp_path)
    registry = Registry("registry")
    policy = tiny.make_policy(tokenizer, seed=1)
    registry.publish("sft", tiny.write(tmp_path / "policy", policy, tokenizer), stage="sft", role="policy")
    scalar = tiny.make_scalar(tmp_path / "body", tiny.make_policy(tokenizer, seed=2), tokenizer, seed=2)
    folder = tiny.write(tmp_path / "reward", scalar.model, tokenizer)
    registry.publish("reward", folder, stage="reward", role="reward")
    rows = [{"prompt": f"What about floor {number}?" + " Please." * (number % 3)} for number in range(12)]
    Path("prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {
        "name": "first",
        "model": {"policy": "sft", "reward": "reward"},
        "data": {"train": "prompts.jsonl", "eval_share": 0.3, "max_length": 64},
        "rollout": {"batch_size": 8, "max_new_tokens": 6},
        "ppo": {"num_minibatches": 2},
        "training": {"max_steps": 3, "learning_rate": 1e-3, "eval_steps": 2, "load_best_model_at_end": False},
        "registry": {"name": "ppo", "path": "registry", "alias": "newest"},
        "tracking": {"wandb": "disabled"},
    }
    Path("ppo.yaml").write_text(json.dumps(config))  # JSON is YAML
    return registry


def stage(*arguments):
    return run_stage("ppo", PPOStageConfig, train, plan, ["ppo.yaml", *arguments])


def read(name, run="first"):
    return [json.loads(line) for line in Path("runs", run, f"{name}.jsonl").read_text().splitlines()]


def weights(registry, name):
    return load_policy(find_model(name, registry, role="policy")).state_dict()


def test_a_run_publishes_a_changed_policy_with_its_lineage_and_figures(house):
    assert stage() == 0
    version = house.resolve("ppo@newest")
    assert version.ref == "ppo@v1"
    manifest = version.manifest
    assert (manifest.stage, manifest.role) == ("ppo", "policy")
    assert {parent.role: parent.ref for parent in manifest.parents} == {
        "init": "sft@v1",
        "reference": "sft@v1",
        "reward": "reward@v1",
        "value": "reward@v1",
    }
    before, after = weights(house, "sft"), weights(house, "ppo")
    assert before.keys() == after.keys()
    assert all(torch.isfinite(value).all() for value in after.values())
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert load_tokenizer(find_model("ppo", house, role="policy")).get_vocab() == (
        load_tokenizer(find_model("sft", house, role="policy")).get_vocab()
    )
    metrics = read("metrics")
    steps = [row for row in metrics if "policy/loss" in row]
    assert [row["step"] for row in steps] == [1, 2, 3]
    assert [row["step"] for row in metrics if "eval/score" in row] == [0, 2, 3]
    for row in steps:
        assert row["policy/first_ratio"] == pytest.approx(1.0, abs=1e-6)
    assert steps[0]["rollout/kl"] == pytest.approx(0.0, abs=1e-5)
    assert steps[0]["rollout/reward"] == pytest.approx(steps[0]["rollout/score"], abs=1e-5)
    assert [row["train/learning_rate"] for row in steps] == pytest.approx([5e-4, 1e-3, 5e-4])
    first = next(row for row in metrics if row["step"] == 0)
    assert first["eval/kl"] == pytest.approx(0.0, abs=1e-5)
    last = next(row for row in metrics if row["step"] == 3 and "eval/score" in row)
    assert manifest.metrics["eval_score"] == pytest.approx(last["eval/score"])
    assert manifest.metrics["start_eval_score"] == pytest.approx(first["eval/score"])
    samples = read("samples")
    assert {row["step"] for row in samples} == {0, 2, 3}
    asked = {step: [row["prompt"] for row in samples if row["step"] == step] for step in (0, 2, 3)}
    assert asked[0] == asked[2] == asked[3]  # the same prompts each time, and none of those that are trained on
    assert json.loads(Path("runs/first/exit.json").read_text())["code"] == 0
    left = [path.name for path in Path("runs/first").iterdir() if path.is_dir()]
    assert left == ["lease"]  # no folder left from publishing


def test_a_seed_repeats_a_run_bit_for_bit_and_another_seed_does_not(house):
    assert stage() == stage("name=again") == stage("name=other", "training.seed=7") == 0
    first, again, other = (weights(house, f"ppo@v{number}") for number in (1, 2, 3))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)

    def figures(run):
        clocks = ("time", "rollout/tokens_per_second")
        return [
            {name: value for name, value in row.items() if not name.startswith(clocks)} for row in read("metrics", run)
        ]

    assert figures("first") == figures("again")


def test_a_dry_run_prints_the_plan_and_leaves_nothing(house, capsys):
    assert stage("--dry-run") == 0
    report = json.loads(capsys.readouterr().out)
    found = report["plan"]
    assert found["train_prompts"] + found["eval_prompts"] == 12
    assert found["optimizer_steps"] == 3 * 2 * 2
    assert (found["episodes_per_device"], found["minibatch"], found["too_long"]) == (8, 4, 0)
    assert set(found["parameters"]) == {"init", "reference", "reward", "value"}
    assert found["memory_gb_per_process"]["peak"] > 0
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("model.policy=sfd", ["sfd", "sft"]),
        ("model.reward=sft", ["sft", "reward"]),
        ("model.policy=reward", ["reward", "policy"]),
        ("data.train=promts.jsonl", ["promts.jsonl"]),
        ("rollout.batch_size=7", ["rollout.batch_size=7", "use 6 or 8"]),
        ("rollout.top_p=0.9", ["rollout.top_p", "taken out", "biased", "rollout.temperature"]),
        ("ppo.kl_estimator=k3", ["ppo.kl_estimator", "taken out", "ppo.kl_in"]),
        ("model.reward=null", ["nothing gives a reward"]),
        ("model.reward=policy", ["policy", "no score head"]),
        (
            "data={train: prompts.jsonl, eval_share: 0.3, max_length: 20, too_long: raise}",
            ["prompts.jsonl:", "data.max_length"],
        ),
        ("rewards.others=[{function: 'rewards_of_mine:short'}]", ["rewards_of_mine:short", "gave 1 scores for"]),
        ("rewards.others=[{function: 'rewards_of_mine:nan'}]", ["rewards_of_mine:nan", "gave nan"]),
        ("rewards.others=[{function: 'rewards_of_mine:shorts'}]", ["rewards.others.0.function", "did you mean"]),
        ("model.mode=shared", ["model.mode=shared", "whole model", "model.method=lora"]),
        ("rollout.max_new_tokens=64", ["rollout.max_new_tokens=64", "data.max_length"]),
        ("ppo.kl_coeff=0.1", ["ppo.kl_coeff", "kl_coef"]),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_two(house, capsys, monkeypatch, change, words):
    Path("rewards_of_mine.py").write_text(
        "def short(prompts, responses):\n    return [1.0]\n\n\n"
        "def nan(prompts, responses):\n    return [float('nan')] * len(responses)\n"
    )
    monkeypatch.syspath_prepend(".")  # as `python -m` does
    monkeypatch.delitem(sys.modules, "rewards_of_mine", raising=False)
    assert stage(change) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert all(word in line for word in words), line


@pytest.mark.parametrize("mode", [[], ["--dry-run"]])
def test_a_length_beyond_learned_positions_is_refused(house, tmp_path, tokenizer, capsys, mode):
    folder = tiny.write(tmp_path / "gpt2", tiny.make_gpt2(tokenizer), tokenizer)
    assert stage(f"model.policy={folder}", "data.max_length=257", *mode) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "data.max_length=257 is more than the 256 positions" in line


@pytest.mark.parametrize("rate", ["1e4", "1e10", "1e19"])
def test_training_that_diverges_is_one_line_and_publishes_nothing(house, capsys, rate):
    assert stage(f"training.learning_rate={rate}", "ppo.num_minibatches=1", "ppo.num_epochs=1") == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert "diverged" in line
    assert "lower training.learning_rate" in line
    assert "ppo" not in house.names()


def test_a_reward_model_with_another_tokenizer_reads_the_text(house, tmp_path, capsys):
    other = tiny.train_tokenizer(["quite other words, over and over"], 300, None)
    scalar = tiny.make_scalar(tmp_path / "other-body", tiny.make_policy(other, seed=2), other)
    folder = tiny.write(tmp_path / "other", scalar.model, other)
    for mode in ([], ["--dry-run"]):  # as the critic, which reads the policy's tokens, it will not do
        assert stage(f"model.reward={folder}", *mode) == 2
        assert "another tokenizer" in capsys.readouterr().err
    assert stage(f"model.reward={folder}", "model.value=trunk", "training.max_steps=1", "--overwrite") == 0


def test_the_best_of_the_evaluations_is_published(house, capsys):
    """At a rate at which nothing gets better that is the start, and it is said."""
    assert stage("training.load_best_model_at_end=true", "training.learning_rate=0.01", "training.eval_steps=1") == 0
    scores = {row["step"]: row["eval/score"] for row in read("metrics") if "eval/score" in row}
    best = max(scores, key=lambda step: (scores[step], -step))
    manifest = house.resolve("ppo").manifest
    assert manifest.metrics["best_step"] == best
    assert manifest.metrics["eval_score"] == pytest.approx(scores[best])
    before, after = weights(house, "sft"), weights(house, "ppo")
    assert all(torch.equal(before[name], after[name]) for name in before) == (best == 0)
    assert ("no evaluation was better than the start's" in capsys.readouterr().out) == (best == 0)


@pytest.mark.parametrize(
    "changes",
    [
        ["ppo.advantage_estimator=rloo", "rollout.num_generations=4", "model.method=lora"],
        ["model.value=adapter", "ppo.kl_in=loss", "training.ema_decay=0.5", "ppo.kl_target=1"],
        ["model.value=trunk", "ptx.train=demonstrations.jsonl", "rewards.normalize=running"],
        [
            "model.held_out_reward=reward",
            "training.max_kl=50",
            "training.load_best_model_at_end=true",
            "training.gradient_checkpointing=true",
        ],
        ["model.method=qlora", "model.value=trunk"],
        ["model.method=dora", "rewards.missing_eos_penalty=1", "model.offload=true", "rollout.lag=1"],
    ],
)
def test_options_run_together(house, changes, capsys):
    if "model.method=qlora" in changes:
        pytest.importorskip("bitsandbytes")
    rows = [{"prompt": f"Where is {n}?", "completion": f"On floor {n}."} for n in range(4)]
    Path("demonstrations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert stage("training.max_steps=2", *changes) == 0
    steps = [row for row in read("metrics") if "policy/ratio" in row or "value/loss" in row]
    assert len(steps) == 2
    version = house.resolve("ppo@v1")
    assert (version.manifest.base is not None) == any("model.method" in change for change in changes)
    weights(house, "ppo")
    if "ptx.train" in str(changes):
        assert all(row["ptx/loss"] > 0 for row in steps)
        assert "demonstrations.jsonl" in str(version.manifest.data)
    assert capsys.readouterr().err.count("rollout.lag=1 lets a vLLM server sample") == ("rollout.lag=1" in changes)


def test_what_it_publishes_can_be_asked_for_where_it_is_promoted(house):
    """As docs/results/registry.md has it."""
    (line,) = re.findall(r"alignment models promote .*", (ROOT / "docs" / "results" / "registry.md").read_text())
    names = [text.partition("=")[0].rstrip("<>") for text in re.findall(r"--require '(\S+)'", line)]
    assert stage("training.load_best_model_at_end=false", "training.eval_steps=1") == 0
    for name in names:
        promote(house, "ppo@v1", "prod", require=[f"{name}<=1e9"])
    assert len(names) == 2 and house.resolve("ppo@prod").number == 1


def test_a_dry_run_says_that_there_is_no_vllm(house, capsys):
    if importlib.util.find_spec("vllm"):
        pytest.skip("vLLM is installed")
    assert stage("rollout.vllm={}", "--dry-run") == 2
    assert "rollout.vllm needs vLLM" in capsys.readouterr().err


def test_texts_are_mixed_in_too_and_a_dry_run_reads_them(house, capsys):
    Path("notes.jsonl").write_text(
        "".join(json.dumps({"text": f"Floor {n} is for boots. " * 9}) + "\n" for n in range(4))
    )
    mixed = ["ptx.train=notes.jsonl"]
    assert stage("--dry-run", *mixed) == 0
    assert json.loads(capsys.readouterr().out)["plan"]["ptx_rows"] > 4  # in pieces of data.max_length
    assert stage("training.max_steps=1", *mixed) == 0
    assert all(row["ptx/loss"] > 0 for row in read("metrics") if "policy/ratio" in row)
    for arguments in (["--dry-run"], ["--overwrite"]):
        assert stage("ptx.train=nowhere.jsonl", *arguments) == 2
        assert "nowhere.jsonl: no such file; give data.train, data.eval or ptx.train" in capsys.readouterr().err


def test_the_command_itself(house):
    """As a process of its own, as a person types it."""
    command = [
        sys.executable,
        "-m",
        "ppo",
        "ppo.yaml",
        "training.max_steps=1",
        "training.eval_steps=0",
        "data.eval_share=0",
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "ppo@v1" in done.stdout
    assert Path("runs/first/metrics.jsonl").read_text().count("\n") == 1


def test_best_of_n_is_drawn_once_and_changes_nothing_else(house, monkeypatch):
    monkeypatch.setattr(best_of_n, "number_of_draws", lambda *_: 0)
    assert stage() == 0
    monkeypatch.setattr(best_of_n, "number_of_draws", lambda *_: 4)
    assert stage("name=lined", "model.held_out_reward=reward") == 0
    events = [json.loads(line) for line in Path("runs/lined/events.jsonl").read_text().splitlines()]
    (drawn,) = [event for event in events if event["event"] == "best_of_n"]
    assert [row["n"] for row in drawn["rows"]] == [1, 2, 4]
    scores = [row["score"] for row in drawn["rows"]]
    assert scores == sorted(scores) and scores[0] < scores[-1]
    held_out = [row["held_out_score"] for row in drawn["rows"]]  # the same judge; unfinished answers cost otherwise
    assert [now - held_out[0] for now in held_out] == pytest.approx([now - scores[0] for now in scores], abs=1e-5)
    plain, lined = ([row for row in read("metrics", run) if "eval/score" in row] for run in ("first", "lined"))
    assert [row["eval/best_of_n_score"] for row in lined] == [scores[-1]] * 3
    assert not any("eval/best_of_n_score" in row for row in plain)
    first, other = weights(house, "ppo@v1"), weights(house, "ppo@v2")
    assert all(torch.equal(first[name], other[name]) for name in first)
    assert "best of n, score" in Path("runs/lined/report.html").read_text()
