"""`alignment score --serve` as PPO's reward: the same run, to the last bit, as with the model in the process."""

import json
import re
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import httpx
import launching
import pytest
import torch
from helpers import tiny

from alignment.models.policies import load_policy
from alignment.models.sources import find_model
from alignment.registry import Registry
from alignment.training.stage import run_stage
from ppo.config import PPOStageConfig
from ppo.plan import plan
from ppo.train import train

CLOCKS = ("time", "rollout/tokens_per_second")


@contextmanager
def serving(folder, *arguments, **variables):
    """`alignment score MODEL --serve` on a free port; yields its address."""
    command = [sys.executable, "-m", "alignment.cli.main", "score", *arguments, "--serve", "--port", "0"]
    process = subprocess.Popen(
        command, cwd=folder, env=launching.environment(**variables), stderr=subprocess.PIPE, text=True
    )
    try:
        said = []
        for line in process.stderr:
            said.append(line)
            if found := re.search(r"(http://[\d.]+:\d+)/score", line):
                yield found[1]
                break
        else:
            raise AssertionError("".join(said))
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    assert process.returncode == 0


@pytest.fixture
def house(tmp_path, monkeypatch):
    """A policy, a reward model of the same tokenizer and one of another, published; prompts and a config."""
    monkeypatch.chdir(tmp_path)
    registry, tokenizer, other = Registry("registry"), tiny.make_tokenizer(), tiny.make_tokenizer("alpaca")
    policy = tiny.make_policy(tokenizer, seed=1)
    registry.publish("sft", tiny.write(tmp_path / "policy", policy, tokenizer), stage="sft", role="policy")
    for name, words in (("reward", tokenizer), ("foreign", other)):
        scalar = tiny.make_scalar(tmp_path / f"{name}-body", tiny.make_policy(words, seed=2), words, seed=2)
        registry.publish(name, tiny.write(tmp_path / name, scalar.model, words), stage="reward", role="reward")
    rows = [{"prompt": f"What about floor {number}?" + " Please." * (number % 3)} for number in range(12)]
    Path("prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {
        "name": "first",
        "model": {"policy": "sft", "reward": "reward", "value_init": "reward"},
        "data": {"train": "prompts.jsonl", "eval_share": 0.3, "max_length": 64},
        "rollout": {"batch_size": 8, "max_new_tokens": 6},
        "ppo": {"num_minibatches": 2},
        "training": {"max_steps": 3, "learning_rate": 1e-3, "eval_steps": 2, "load_best_model_at_end": False},
        "registry": {"name": "ppo", "path": "registry"},
        "tracking": {"wandb": "disabled"},
    }
    Path("ppo.yaml").write_text(json.dumps(config))  # JSON is YAML
    return registry


def run(name, *arguments):
    assert run_stage("ppo", PPOStageConfig, train, plan, ["ppo.yaml", f"name={name}", *arguments]) == 0


def figures(name):
    """All metrics but clocks and the parts of the score, which have the source's name."""
    rows = [json.loads(line) for line in Path("runs", name, "metrics.jsonl").read_text().splitlines()]
    return [{key: v for key, v in row.items() if not key.startswith(CLOCKS) and "reward" not in key} for row in rows]


def weights(registry, name):
    return load_policy(find_model(name, registry, role="policy")).state_dict()


@pytest.mark.parametrize("reward", ["reward", "foreign"], ids=["by-tokens", "by-text"])
def test_the_run_is_the_same_to_the_bit(house, reward, monkeypatch):
    run("inside", f"model.reward={reward}")
    monkeypatch.setenv("ALIGNMENT_SCORE_TOKEN", "correct-horse-battery")
    with serving(Path.cwd(), reward) as address:
        entry = f"url: '{address}/score'"
        run("outside", "model.reward=null", f"rewards.others=[{{{entry}}}]")
    inside, outside = figures("inside"), figures("outside")
    assert inside == outside
    assert any(row.get("rollout/ended", 1.0) < 1.0 for row in inside)  # unfinished responses too
    one, other = weights(house, "ppo@v1"), weights(house, "ppo@v2")
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    config = Path("runs/outside/config.json").read_text()
    assert "correct-horse" not in config


def test_what_is_no_request_of_the_protocol_is_refused(house):
    with serving(Path.cwd(), "reward", ALIGNMENT_SCORE_TOKEN="correct-horse-battery") as address:
        key = {"Authorization": "Bearer correct-horse-battery"}
        assert httpx.get(f"{address}/health").json() == {"status": "ok"}
        known = httpx.get(f"{address}/health", headers=key).json()
        assert known == {"status": "ok", "model": "reward@v1", "digest": house.resolve("reward").digest}
        good = {"prompts": ["When?", [{"role": "user", "content": "Why?"}]], "responses": ["At nine.", "No."]}
        answer = httpx.post(f"{address}/score", json=good, headers=key)
        assert answer.status_code == 200
        assert list(answer.json()) == ["scores"] and len(answer.json()["scores"]) == 2
        wrong = httpx.post(f"{address}/score", json=good, headers={"Authorization": "Bearer correct"})
        assert wrong.status_code == 401
        refused = httpx.post(f"{address}/score", json=good | {"filler": "x" * 2**25})  # read to its end, then refused
        assert (refused.status_code, refused.headers["Alignment-Wants"]) == (401, "key")
        offered = httpx.post(f"{address}/score", json=good, headers=key | {"Alignment-Offers": "tokens"})
        assert (offered.status_code, offered.headers["Alignment-Wants"]) == (428, "tokens")
        assert httpx.post(f"{address}/score", content=json.dumps(good), headers=key).status_code == 415
        host = {"Host": "evil.example"}
        assert httpx.post(f"{address}/score", json=good, headers=key | host).status_code == 400
        for wrong in (
            [],
            {"prompts": ["a"], "responses": []},
            {"prompts": [], "responses": []},
            {"prompts": [1], "responses": ["a"]},
            {"prompts": [[]], "responses": ["a"]},
            {"prompts": ["a"], "responses": [None]},
            {**good, "tokens": {"mark": "", "vocabulary": 1, "prompts": [[1]], "responses": [[1]]}},
            {**good, "tokens": {"mark": "", "vocabulary": 1, "prompts": [[1], [2]], "responses": [[1], [True]]}},
        ):
            refused = httpx.post(f"{address}/score", json=wrong, headers=key)
            assert refused.status_code == 400, wrong
            assert refused.json()["error"]


def test_a_service_open_to_everybody_needs_a_token(house):
    command = [sys.executable, "-m", "alignment.cli.main", "score", "reward", "--serve", "--host", "0.0.0.0"]
    done = launching.run(command, Path.cwd())
    assert done.code == 2
    assert "ALIGNMENT_SCORE_TOKEN" in done.output and "Traceback" not in done.output
