"""How often gradients are summed over two processes in an optimizer step, by the number of its backward passes."""

from __future__ import annotations

import json

import launching
import pytest
from resuming import configure

STEPS = 2
TRAINER = {"max_steps": STEPS, "save_steps": 0, "logging_steps": STEPS}
PPO = {
    "model": {"policy": "base", "reward": "judge"},
    "rollout": {"batch_size": 8, "max_new_tokens": 6},
    "ppo": {"num_minibatches": 1, "num_epochs": 1},
}
FEW_AND_MANY = {
    "ppo": [{**PPO, "training": {"max_steps": STEPS, "save_steps": 0, "microbatch_tokens": n}} for n in (4096, 1)],
    "sft": [
        {"model": {"name": "base"}, "training": {**TRAINER, "per_device_train_batch_size": 3}},
        {
            "model": {"name": "base"},
            "training": {**TRAINER, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 3},
        },
    ],
}
"""The same optimizer steps in few passes and in many."""


@pytest.fixture(scope="module")
def launch_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("launch")
    zero = launching.ZERO2.read_text()
    texts = {"ddp": launching.DDP, "zero1": zero.replace("zero_stage: 2", "zero_stage: 1"), "zero2": zero}
    for name, text in texts.items():
        (folder / f"{name}.yaml").write_text(text)
    return {name: folder / f"{name}.yaml" for name in texts}


def counts(house, forks, name, stage, sections):
    """(sums, backward passes) of a run's training on the first process."""
    rows = house / f"rows-{name}"
    rows.mkdir()
    arguments = [configure(house, name, stage, sections)]
    assert forks(house, stage, arguments, RECORDER="record_collectives", ROWS=str(rows)) == 0, (
        house / "log.txt"
    ).read_text()[-4000:]
    found = [json.loads(line) for line in (rows / "0.jsonl").read_text().splitlines()]
    return sum(row["sums"] for row in found), sum(row["passes"] for row in found)


@pytest.mark.parametrize("stage", ["ppo", pytest.param("sft", marks=pytest.mark.slow)])
@pytest.mark.parametrize("backend", ["ddp", "zero1", "zero2"])
def test_gradients_are_summed_once_in_an_optimizer_step(resumed_house, forks_of, launch_files, backend, stage):
    """By ZeRO-2, which keeps a shard of the gradients alone, once in each pass."""
    forks = forks_of(launch_files[backend])
    few, many = (
        counts(resumed_house, forks, f"{stage}-{backend}-{which}", stage, sections)
        for which, sections in enumerate(FEW_AND_MANY[stage])
    )
    assert many[1] - few[1] >= 2 * STEPS
    once = many[0] - few[0] < many[1] - few[1]
    assert once == (backend != "zero2"), (few, many)
    if once:
        assert many[0] == few[0]
