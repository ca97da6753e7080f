"""W&B under real stages: what its runs hold, what breaks in it and changes nothing, and that no secret gets out.

Real wandb, offline or against servers on this machine that refuse; `wandb leet inspect` reads back.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from alignment.registry import Registry
from alignment.runs import metrics as declared
from alignment.runs.journal import NUM_SAMPLES
from alignment.tracking.replay import replay

ROOT = Path(__file__).resolve().parents[2]
SCRATCH = {
    "vocab_size": 300, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
    "max_position_embeddings": 128,
}  # fmt: skip
STEPS = 12
PATIENCE = 300
"""Seconds in which a stage that takes five must be done, whatever hangs in it."""
SFT = {
    "model": {"name": "scratch:llama", "scratch": SCRATCH},
    "training": {
        "max_steps": STEPS, "per_device_train_batch_size": 4, "logging_steps": 1, "learning_rate": 1e-2,
        "eval_strategy": "steps", "eval_steps": 4, "save_steps": 2,
    },
}  # fmt: skip
FAULTS = (
    "core killed", "core stopped", "file too large", "disk full", "dead server", "server is silent",
    "server answers 500", "bad key",
)  # fmt: skip
ONLINE = FAULTS[4:]
SAID = {"core stopped": "did not finish", "core killed": "W&B is off", **dict.fromkeys(ONLINE, "W&B is offline")}
# Not written out, so that no scanner takes them for real ones; and none of them is in this repository as such.
CANARIES = {
    "WANDB_API_KEY": "0123456789abcdef" * 2 + "feedbeef",
    "HF_TOKEN": "hf_" + "canary" * 5,
    "MY_DATABASE_PASSWORD": "canary-in-" + "the-environment",
}
ARGUMENT = "canary-in-the-" + "arguments"


class Driver:
    """`wandb_driver.py` at work in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        environment = {**os.environ, "PYTHONPATH": str(ROOT)} | CANARIES
        command = [sys.executable, str(Path(__file__).with_name("wandb_driver.py"))]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=folder,
            start_new_session=True,
        )

    def run(
        self, stage: str, config: dict[str, Any], *arguments: str, fault: str | None = None, at: int = 0,
        where: str = "", **variables: str,
    ) -> int:  # fmt: skip
        """The exit code of a stage; its output is in NAME.log."""
        path = self.folder / where / f"{config['name']}.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(config))
        request = {"folder": str(self.folder), "name": config["name"], "stage": stage, "fault": fault, "at": at}
        request |= {"arguments": [str(path), *arguments], "variables": variables}
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        ready, *_ = select.select([self.process.stdout], [], [], PATIENCE)
        if not ready:
            os.killpg(self.process.pid, signal.SIGKILL)
        assert ready, f"{config['name']} hangs: {self.log(config['name'])}"
        return int(self.process.stdout.readline())

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    folder = tmp_path_factory.mktemp("house")
    facts = [("cats", "quiet"), ("rain", "warm"), ("bread", "old"), ("tea", "bright")]
    rows = [{"prompt": f"Say {n}: {t}?", "completion": f"{t} are {a}, {n}."} for n in range(12) for t, a in facts]
    pairs = [{"prompt": row["prompt"], "chosen": row["completion"], "rejected": "No, never."} for row in rows]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    made = Driver(folder)
    yield made
    made.process.kill()
    made.process.wait()


def configure(name: str, sections: dict[str, Any], train: str = "rows.jsonl", wandb: str = "offline") -> dict[str, Any]:
    return {
        "name": name,
        "data": {"train": train, "eval_share": 0.3, "max_length": 64},
        "registry": {"name": name, "path": "registry"},
        "tracking": {"wandb": wandb},
        **sections,
    }


@pytest.fixture(scope="module")
def runs(driver):
    """Folders of one run of each stage, with canaries in the environment and the arguments."""
    training = {"max_steps": 4, "logging_steps": 1, "eval_strategy": "steps", "eval_steps": 2, "learning_rate": 1e-2}
    reward = {"model": {"name": "sft"}, "training": {**training, "members": 2}}
    ppo = {
        "model": {"policy": "sft", "reward": "reward", "held_out_reward": "reward"},
        "rollout": {"batch_size": 8, "max_new_tokens": 8},
        "ppo": {"num_epochs": 1, "kl_in": "loss"},
        "ptx": {"train": "rows.jsonl", "coef": 0.1},
        "training": {"max_steps": 3, "eval_steps": 1, "learning_rate": 1e-3},
    }
    for stage, sections, train in (("sft", SFT, "rows.jsonl"), ("reward", reward, "pairs.jsonl"),
                                   ("ppo", ppo, "rows.jsonl")):  # fmt: skip
        assert driver.run(stage, configure(stage, sections, train), where=ARGUMENT) == 0, driver.log(stage)
    return {stage: driver.folder / "runs" / stage for stage in ("sft", "reward", "ppo")}


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def records(folder: Path) -> list[dict[str, Any]]:
    """What a W&B run holds, as W&B's own tool reads it."""
    command = [str(Path(sys.executable).with_name("wandb")), "leet", "inspect", "--json", str(folder)]
    found = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert found.returncode == 0, found.stderr
    return [json.loads(line) for line in found.stdout.splitlines() if line.strip()]


def offline(run: Path) -> list[Path]:
    return sorted((run / "wandb").glob("offline-run-*"))


def history(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [record["history"]["item"] for record in found if record["type"] == "history"]


def numbers(found: list[dict[str, Any]]) -> dict[tuple[int, str], float]:
    """By step and name; tables, histograms and W&B's own figures left out."""
    plain: dict[tuple[int, str], float] = {}
    for item in history(found):
        for name, value in item.items():
            if "." not in name and not name.startswith("_") and name != "step":
                plain[item["step"], name] = value
    return plain


def journalled(run: Path) -> dict[tuple[int, str], float]:
    found = {}
    for row in rows_of(run / "metrics.jsonl"):
        step = row.pop("step")
        row.pop("time")
        found |= {(step, name): value for name, value in row.items() if value is not None}
    return found


def artifacts(found: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    logged = [record["artifact"] for record in found if record["type"] == "artifact"]
    return [each for each in logged if each["type"] == kind]


# --- what is in it ----------------------------------------------------------------------------------------------------

ELSEWHERE = {
    "sft": {"train/aux_loss", "train/entropy"},  # a mixture of experts; TRL's loss
    "reward": {  # pairs that two people judged; ratings
        "eval/shared_accuracy",
        "eval/one_human",
        "eval/best_reachable",
        *(metric.name for metric in declared.REWARD if metric.name.startswith("labels/")),
    },
    # Families, by their parts; bounds; where several responses to a prompt are compared; where vLLM samples.
    "ppo": {
        "reward/*",
        "eval/reward/*",
        "eval/reward_se/*",
        "multiplier/*",
        "slack/*",
        "rollout/without_spread",
        "rollout/sampler_gap_mean",
        "rollout/lag",
        "rollout/sampler_gap_max",
        "rollout/importance_capped",  # of vLLM
    },
}
"""Declared, and of other runs than these."""


@pytest.mark.parametrize("stage", ["sft", "reward", "ppo"])
def test_an_offline_run_holds_every_declared_metric_the_tables_and_the_published_model(runs, stage):
    (folder,) = offline(runs[stage])
    found = records(folder)
    (about,) = [record["run"] for record in found if record["type"] == "run"]
    assert (about["job_type"], about["run_group"], about["host"]) == (stage, stage, "not recorded")
    assert numbers(found) == pytest.approx(journalled(runs[stage]))
    emitted = {name for _, name in numbers(found)}
    missing = {metric.name for metric in declared.STAGES[stage]} - emitted
    assert missing == ELSEWHERE[stage]
    if stage == "ppo":
        assert {"reward/model", "eval/reward/model"} <= emitted
    histograms = {name.split(".")[0] for item in history(found) for name in item if name.startswith("histograms/")}
    assert histograms == {f"histograms/{metric.name}" for metric in declared.HISTOGRAMS[stage]}
    (model,) = artifacts(found, "model")
    assert json.loads(model["metadata"])["ref"] == f"{stage}@v1"
    assert all(f"models/{stage}/v000001/" in json.dumps(file) for file in model["manifest"]["contents"])
    assert any(file["path"].endswith(".safetensors") for file in model["manifest"]["contents"])
    check_tables(found, folder, rows_of(runs[stage] / "samples.jsonl"))


def check_tables(found: list[dict[str, Any]], folder: Path, samples: list[dict[str, Any]]) -> None:
    """A fresh table for each evaluation, with the numbers and without a word of the texts."""
    tables = sorted(
        (folder / "files" / "media" / "table").glob("*.json"), key=lambda path: int(path.name.split("_")[1])
    )
    steps = list(dict.fromkeys(row["step"] for row in samples))
    assert len(tables) == len(artifacts(found, "run_table")) == len(steps)
    for path, step in zip(tables, steps, strict=True):
        table = json.loads(path.read_text())
        rows = [row for row in samples if row["step"] == step]
        assert [line[table["columns"].index("id")] for line in table["data"]] == [row["id"] for row in rows]
        for name in ("score", "length", "first_score"):
            if name in rows[0]:
                assert [line[table["columns"].index(name)] for line in table["data"]] == [row[name] for row in rows]
        assert not {"prompt", "response", "reference", "first", "second"} & set(table["columns"])
        assert "Say" not in path.read_text()


def test_samples_are_the_same_prompts_at_each_evaluation(runs):
    for stage, evaluations in {"sft": 1, "reward": 1, "ppo": 4}.items():
        samples = rows_of(runs[stage] / "samples.jsonl")
        shown = len({row["id"] for row in samples})
        assert 4 <= shown <= NUM_SAMPLES
        assert Counter(row["id"] for row in samples) == dict.fromkeys(range(shown), evaluations), stage
        assert len({json.dumps((row["id"], row["prompt"])) for row in samples}) == shown
    assert all(row["reference"] for row in rows_of(runs["sft"] / "samples.jsonl"))


def test_no_secret_is_in_any_file(runs, driver):
    secrets = [*CANARIES.values(), ARGUMENT]
    files = [path for path in driver.folder.rglob("*") if path.is_file()]
    written = [path for path in files if path.relative_to(driver.folder).parts[0] in ("runs", "registry")]
    assert any(path.suffix == ".wandb" for path in written)
    for path in written:
        content = path.read_bytes()
        assert not [secret for secret in secrets if secret.encode() in content], path
    assert not [path for path in written for secret in secrets if secret in str(path)]


def test_a_config_with_a_secret_is_refused_before_anything_is_written(driver):
    for override in (f"tracking.project={CANARIES['MY_DATABASE_PASSWORD']}", f"data.train={CANARIES['HF_TOKEN']}"):
        assert driver.run("sft", configure("refused", SFT), override) == 2
    assert "tracking.project holds a secret" in driver.log("refused")
    assert not [canary for canary in CANARIES.values() if canary in driver.log("refused")]
    assert not (driver.folder / "runs" / "refused").exists()


# --- what breaks in it ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plain(driver):
    """The run without W&B."""
    assert driver.run("sft", configure("plain", SFT, wandb="disabled")) == 0, driver.log("plain")
    return result(driver, "plain")


def result(driver: Driver, name: str) -> tuple[dict[str, torch.Tensor], dict[str, list[dict[str, Any]]]]:
    """Weights, and the journal without clocks."""
    version = Registry(driver.folder / "registry").resolve(name)
    journal = {}
    for file in ("metrics", "samples", "events"):
        rows = rows_of(driver.folder / "runs" / name / f"{file}.jsonl")
        clocks = ("time", "per_second", "model", "digest")  # a manifest has its time in it
        journal[file] = [{k: v for k, v in row.items() if not any(word in k for word in clocks)} for row in rows]
        journal[file] = [row for row in journal[file] if row.get("event") != "resumed"]
    return load_file(version.path / "model.safetensors"), journal


def check_same(driver: Driver, name: str, plain: Any) -> None:
    weights, journal = result(driver, name)
    assert journal == plain[1]
    assert weights.keys() == plain[0].keys()
    assert all(torch.equal(weights[key], plain[0][key]) for key in weights)


@pytest.fixture
def full_disk(driver):
    """A disk of 64 KiB where W&B is to write, almost full."""
    folder = driver.folder / "runs" / "disk-full" / "wandb"
    folder.mkdir(parents=True, exist_ok=True)
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], capture_output=True).returncode:
        pytest.skip("nothing can be mounted here, so no disk is full")
    (folder / "rest").write_bytes(b"x" * 52_000)
    yield
    subprocess.run(["umount", "-l", str(folder)], check=True)


SLOW = ("dead server", "file too large")
"""Much like others."""


@pytest.mark.parametrize("fault", [pytest.param(f, marks=[pytest.mark.slow] * (f in SLOW)) for f in FAULTS])
def test_whatever_breaks_in_wandb_the_run_is_the_same(driver, plain, fault, request):
    name = fault.replace(" ", "-")
    if fault == "disk full":
        request.getfixturevalue("full_disk")
    config = configure(name, SFT, wandb="online" if fault in ONLINE else "offline")
    code = driver.run("sft", config, fault=fault, at=3)
    assert code == 0, driver.log(name)
    assert "Traceback" not in driver.log(name)
    assert driver.log(name).count("warning: W&B") <= 2
    assert SAID.get(fault, "") in driver.log(name)
    check_same(driver, name, plain)
    run = driver.folder / "runs" / name
    held = numbers(records(offline(run)[0])) if offline(run) else {}
    if fault in ONLINE:  # what could not be sent is kept
        assert held == pytest.approx(journalled(run))
    else:  # it did break
        assert held.keys() < journalled(run).keys()


# --- kills ------------------------------------------------------------------------------------------------------------


def test_killed_and_resumed_three_times_and_replayed_there_is_no_gap_and_no_double(driver, plain):
    config, run = configure("killed", SFT), driver.folder / "runs" / "killed"
    for fault, line in (("killed later", 6), ("killed", 4), ("killed", 5)):
        arguments = ["--resume", "auto"] if fault == "killed" else []
        assert driver.run("sft", config, *arguments, fault=fault, at=line) == -9, driver.log("killed")
    first = numbers(records(offline(run)[0]))
    assert {step for step, name in first if name == "train/loss"} >= set(range(1, 5))  # all of before the kill
    assert driver.run("sft", config, "--resume", "auto") == 0, driver.log("killed")
    check_same(driver, "killed", plain)
    # An attempt that lived for less than 2 s has left nothing there.
    groups = [record["run"] for folder in offline(run) for record in records(folder) if record["type"] == "run"]
    names = [each["display_name"] for each in groups]
    assert (names[0], names[-1]) == ("killed", "killed-a4")
    assert set(names) <= {"killed", "killed-a2", "killed-a3", "killed-a4"}
    assert {each["run_group"] for each in groups} == {"killed"}

    found = replay(run, registry=driver.folder / "registry")
    again = records(Path(found.where))
    assert [item["step"] for item in history(again) if "train/loss" in item] == list(range(1, STEPS + 1))
    assert numbers(again) == pytest.approx(journalled(run))
    assert Counter(item["step"] for item in history(again) if not any("." in name for name in item)) == Counter(
        {row["step"] for row in rows_of(run / "metrics.jsonl")}
    )
    assert found.models == ("killed@v1",)
    assert len(artifacts(again, "model")) == 1
    check_tables(again, Path(found.where), rows_of(run / "samples.jsonl"))
