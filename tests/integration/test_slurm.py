"""The batch scripts on a real Slurm of two nodes: a job that makes room saves, waits, and ends as if it had not."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import launching
import pytest
from helpers.slurm_cluster import WHY_NOT, SlurmCluster
from test_two_processes import SCRATCH, TOPICS, turn

from alignment.ratings import RatingsStore
from alignment.registry import Registry

pytestmark = [pytest.mark.slurm, pytest.mark.skipif(bool(WHY_NOT), reason=f"no Slurm here: {WHY_NOT}")]
SCRIPTS = launching.ROOT / "scripts" / "slurm"
# Plain data parallelism over machines; without a GPU accelerate runs MULTI_GPU on the CPU, through gloo.
MULTINODE = (
    "distributed_type: MULTI_GPU\nrdzv_backend: static\nmixed_precision: 'no'\nsame_network: true\nuse_cpu: false\n"
)
STEPS = 400
TRAINING = {"per_device_train_batch_size": 2, "learning_rate": 1e-2, "logging_steps": 5, "save_steps": 0}
SECTIONS: dict[str, dict[str, Any]] = {
    "sft": {
        "model": {"name": "scratch:llama", "scratch": SCRATCH},
        "training": {**TRAINING, "max_steps": STEPS, "num_train_epochs": 100},
    },
    "reward": {"model": {"name": "sft"}, "training": {**TRAINING, "max_steps": STEPS, "num_train_epochs": 100}},
    "ppo": {
        "model": {"policy": "sft", "reward": "reward"},
        "rollout": {"batch_size": 16, "max_new_tokens": 8},
        "ppo": {"num_epochs": 2, "num_minibatches": 2},
        "training": {"max_steps": 60, "learning_rate": 1e-3, "save_steps": 0},
    },
}


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    with SlurmCluster(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster


@pytest.fixture
def house(tmp_path):
    """Data, and the launch file."""
    questions = [f"What about {TOPICS[n % 8]}, number {n}?" for n in range(24)]
    answers = [f"The {TOPICS[n % 8]} are on floor {n}." for n in range(24)]
    asked = list(zip(questions, answers, strict=True))
    rows = {
        "sft": [{"messages": [turn("user", q), turn("assistant", a)]} for q, a in asked],
        "reward": [{"prompt": q, "chosen": a, "rejected": "No."} for q, a in asked],
        "ppo": [{"prompt": q} for q in questions],
    }
    for stage, part in rows.items():
        text = "".join(json.dumps(row) + "\n" for row in part)
        (tmp_path / f"{stage}.jsonl").write_text(text, encoding="utf-8")
    (tmp_path / "multinode.yaml").write_text(MULTINODE, encoding="utf-8")
    return tmp_path


def configure(house: Path, stage: str, home: str, data: str | None = None) -> Path:
    """A config whose runs and registry are in a folder `home` of the house."""
    config = {
        "name": stage,
        "data": {"train": str(data or house / f"{stage}.jsonl"), "eval_share": 0.25, "max_length": 96},
        "registry": {"name": stage, "path": str(house / home / "registry")},
        "tracking": {"wandb": "disabled", "runs": str(house / home / "runs")},
        **SECTIONS[stage],
    }
    (house / home).mkdir(exist_ok=True)
    path = house / home / f"{stage}.yaml"
    path.write_text(json.dumps(config), encoding="utf-8")  # JSON is YAML
    return path


def environment(house: Path) -> dict[str, str]:
    return {
        "ALIGNMENT_HOME": str(launching.ROOT), "PYTHON": sys.executable, "OMP_NUM_THREADS": "1",
        "ACCELERATE_CONFIG": str(house / "multinode.yaml"),
    }  # fmt: skip


def submit(slurm: SlurmCluster, house: Path, stage: str, home: str) -> str:
    config = configure(house, stage, home)
    script = str(SCRIPTS / f"{stage}.sbatch")
    return slurm.submit("--nodes=2", "--exclusive", script, str(config), cwd=house, env=environment(house))


def log_of(house: Path, job: str) -> str:
    return "".join(path.read_text() for path in house.glob(f"slurm-*-{job}.log"))


def wait_for_step(slurm: SlurmCluster, house: Path, stage: str, home: str, step: int, job: str) -> None:
    """Until the run has journalled a step; its log is shown where it ends before."""
    path = house / home / "runs" / stage / "metrics.jsonl"

    def there() -> bool:
        state = slurm.state(job).get("JobState")
        assert state in ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING"), (state, log_of(house, job)[-6000:])
        return path.exists() and any(row["step"] >= step for row in map(json.loads, path.read_text().splitlines()))

    slurm.wait(there, f"step {step} of {stage}", 300)


def make_room(slurm: SlurmCluster, house: Path) -> None:
    """A job that goes before all others takes both nodes for a moment."""
    script = house / "urgent.sh"
    script.write_text("#!/bin/sh\nsleep 1\n", encoding="utf-8")
    job = slurm.submit("--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null", str(script), cwd=house)
    slurm.wait_for(job, "COMPLETED")


def weights(house: Path, stage: str, home: str) -> dict[str, str]:
    """sha256 of each weight file that was published."""
    files = Registry(house / home / "registry").resolve(stage).manifest.files
    return {name: file.sha256 for name, file in files.items() if name.endswith(".safetensors")}


def test_a_job_that_is_preempted_goes_on_and_ends_with_the_same_weights(slurm, house):
    whole = submit(slurm, house, "sft", "whole")
    assert slurm.wait_for(whole, "COMPLETED", "FAILED")["JobState"] == "COMPLETED", log_of(house, whole)[-6000:]
    job = submit(slurm, house, "sft", "preempted")
    wait_for_step(slurm, house, "sft", "preempted", 40, job)
    make_room(slurm, house)
    ended = slurm.wait_for(job, "COMPLETED", "FAILED")
    assert ended["JobState"] == "COMPLETED", log_of(house, job)[-6000:]
    assert ended["Restarts"] == "1"
    run = json.loads((house / "preempted" / "runs" / "sft" / "run.json").read_text())
    assert [bool(attempt["resumed_from"]) for attempt in run["attempts"]] == [False, True]
    events = [json.loads(line) for line in (house / "preempted/runs/sft/events.jsonl").read_text().splitlines()]
    (backend,) = [event for event in events if event["event"] == "backend"]
    assert backend["world_size"] == 2
    assert weights(house, "sft", "preempted") == weights(house, "sft", "whole")


@pytest.mark.slow
def test_a_job_that_is_cancelled_leaves_a_checkpoint_and_does_not_come_back(slurm, house):
    job = submit(slurm, house, "sft", "cancelled")
    wait_for_step(slurm, house, "sft", "cancelled", 40, job)
    slurm.run("scancel", job)
    run_dir = house / "cancelled" / "runs" / "sft"
    slurm.wait(lambda: (run_dir / "exit.json").exists(), "the end of the run")
    time.sleep(5)  # in which it would be put back
    ended = slurm.state(job)
    assert (ended["JobState"], ended["Restarts"]) == ("CANCELLED", "0"), log_of(house, job)[-6000:]
    assert json.loads((run_dir / "exit.json").read_text())["code"] == 75
    assert list((run_dir / "checkpoints").glob("step-*"))


def test_a_mistake_ends_the_job_before_its_nodes_start(slurm, house):
    script, config = str(SCRIPTS / "sft.sbatch"), str(configure(house, "sft", "whole"))
    arguments = ("--nodes=2", script, config, "training.learning_rat=1")
    job = slurm.submit(*arguments, cwd=house, env=environment(house))
    ended = slurm.wait_for(job, "COMPLETED", "FAILED")
    assert (ended["JobState"], ended["ExitCode"]) == ("FAILED", "2:0")
    assert "learning_rate" in log_of(house, job)
    assert "Restarts" in ended and ended["Restarts"] == "0"


def rate(path: Path) -> int:
    """A labeler who likes the longer answer."""
    count = 0
    with RatingsStore(path) as store:
        store.settings.repeat_share = 0.0
        while (assignment := store.claim("ada")) is not None:
            item = next(item for item in store.items() if item.id == assignment.item)
            left, right = (item.completions[index].text for index in assignment.order_shown)
            store.submit(assignment, "left" if len(left) >= len(right) else "right", seconds=1.0)
            count += 1
    return count


def run_pipeline(slurm: SlurmCluster, house: Path, home: str, preempt: bool) -> dict[str, str]:
    """All five jobs, with a labeler in between; the jobs by name."""
    ratings = house / home / "ratings.db"
    options = "--nodes=2 --exclusive"
    configs = [configure(house, stage, home, ratings if stage == "reward" else None) for stage in SECTIONS]
    done = subprocess.run(
        ["bash", str(SCRIPTS / "pipeline.sbatch"), *map(str, configs)], cwd=house, capture_output=True, text=True,
        env={
            **slurm.environment, **environment(house), "PROMPTS": str(house / "ppo.jsonl"), "RATINGS": str(ratings),
            "MIN_RATINGS": "12", "LOOK_EVERY": "5", "SFT_OPTIONS": options, "REWARD_OPTIONS": options,
            "PPO_OPTIONS": options, "SAMPLE_ARGUMENTS": "--max-new-tokens 8 --temperature 3",
            "ALIGNMENT_REGISTRY": str(house / home / "registry"),
        }, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    jobs = dict(line.split() for line in done.stdout.splitlines())
    assert list(jobs) == ["sft", "sample", "ratings", "reward", "ppo"]
    for name, job in jobs.items():
        if name in SECTIONS and preempt:
            slurm.wait_for(job, "RUNNING")
            wait_for_step(slurm, house, name, home, 10, job)
            make_room(slurm, house)
        elif name == "ratings":
            # It is put back until people have rated, and holds no node meanwhile.
            slurm.wait(lambda job=job: int(slurm.state(job).get("Restarts", 0)) > 0, "the job that waits for ratings")
            assert rate(ratings) >= 12
        ended = slurm.wait_for(job, "COMPLETED", "FAILED", "CANCELLED")
        assert ended["JobState"] == "COMPLETED", (name, log_of(house, job)[-6000:])
        if name in SECTIONS:
            assert ended["Restarts"] == ("1" if preempt else "0"), name
    return jobs


@pytest.mark.slow
def test_the_pipeline_preempted_in_the_middle_of_each_stage_ends_with_the_same_weights(slurm, house):
    run_pipeline(slurm, house, "whole", preempt=False)
    run_pipeline(slurm, house, "preempted", preempt=True)
    for stage in SECTIONS:
        assert weights(house, stage, "whole") == weights(house, stage, "preempted"), stage
        run = json.loads((house / "preempted" / "runs" / stage / "run.json").read_text())
        assert [bool(attempt["resumed_from"]) for attempt in run["attempts"]] == [False, True]
