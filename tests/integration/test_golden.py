"""Ten-step losses of each stage against those on record: a refactor must leave them as they are.

They are equal to the last digit on the machine that recorded them and agree to 1e-5 elsewhere. After a change that is
meant to move them: ALIGNMENT_RECORD_GOLDEN=1 scripts/test tests/integration/test_golden.py, and say why in the commit.
"""

import json
import os
import platform
from pathlib import Path

import pytest
import torch

from alignment.config.loading import validate
from ppo.config import PPOStageConfig
from reward.config import RewardStageConfig
from sft.config import SFTStageConfig

GOLDEN = Path(__file__).parent.parent / "golden" / "losses.json"
TOPICS = ("cats", "rain", "bread", "trains", "tea", "snow", "maps", "bells")
ADJECTIVES = ("quiet", "old", "warm", "small", "bright")
SHAPE = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}


def write(path: Path, rows: list[dict[str, str]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def logged(run: str, *names: str) -> dict[str, list[float]]:
    rows = [json.loads(line) for line in Path("runs", run, "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return {name: [row[name] for row in rows if name in row] for name in names}


def run_all() -> dict[str, dict[str, list[float]]]:
    import ppo.train
    import reward.train
    import sft.train

    pairs = [(topic, adjective) for topic in TOPICS for adjective in ADJECTIVES]
    demonstrations = [{"prompt": f"Say that {t} are {a}.", "completion": f"Yes, {t} are {a}."} for t, a in pairs]
    comparisons = [
        {"prompt": f"Say that {t} are {a}.", "chosen": f"Yes, {t} are {a}.", "rejected": f"No, {t} are never {a}, no."}
        for t, a in pairs
    ]
    data = {"train": write(Path("demonstrations.jsonl"), demonstrations), "eval_share": 0, "max_length": 64}
    quiet = {"tracking": {"wandb": "disabled"}}
    training = {"max_steps": 10, "logging_steps": 1, "per_device_train_batch_size": 4, "seed": 1}
    common = {"training": training | {"learning_rate": 1e-3}, **quiet}
    model = {"name": "scratch:llama", "scratch": SHAPE}
    values = {"name": "sft", "model": model, "data": data, "registry": {"name": "golden-sft"}, **common}
    config = validate(SFTStageConfig, values, "golden")
    config.run_dir.mkdir(parents=True)
    sft.train.train(config)
    pairs_data = data | {"train": write(Path("pairs.jsonl"), comparisons)}
    values |= {"name": "reward", "model": {"name": "golden-sft"}, "data": pairs_data}
    values |= {"registry": {"name": "golden-reward"}}
    config = validate(RewardStageConfig, values, "golden")
    config.run_dir.mkdir(parents=True)
    reward.train.train(config)
    values = {
        "name": "ppo",
        "model": {"policy": "golden-sft", "reward": "golden-reward"},
        "data": data,
        "rollout": {"batch_size": 8, "max_new_tokens": 12},
        "ppo": {"num_minibatches": 2},
        "training": {"max_steps": 10, "learning_rate": 1e-3, "seed": 1},
        "registry": {"name": "golden-ppo"},
        **quiet,
    }
    config = validate(PPOStageConfig, values, "golden")
    config.run_dir.mkdir(parents=True)
    ppo.train.train(config)
    return {
        "sft": logged("sft", "train/loss"),
        "reward": logged("reward", "train/loss"),
        "ppo": logged("ppo", "rollout/score", "rollout/kl", "policy/loss", "value/loss"),
    }


def machine() -> dict[str, str]:
    return {"torch": torch.__version__, "processor": platform.processor() or platform.machine(), "threads": "1"}


def test_ten_step_losses_are_those_on_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found = run_all()
    finally:
        torch.set_num_threads(threads)
    if os.environ.get("ALIGNMENT_RECORD_GOLDEN"):
        GOLDEN.write_text(json.dumps({"machine": machine(), "losses": found}, indent=1) + "\n", encoding="utf-8")
    recorded = json.loads(GOLDEN.read_text(encoding="utf-8"))["losses"]
    for stage, metrics in recorded.items():
        for name, values in metrics.items():
            assert len(values) == 10, (stage, name)
            assert found[stage][name] == pytest.approx(values, abs=1e-5, rel=1e-5), (stage, name)
