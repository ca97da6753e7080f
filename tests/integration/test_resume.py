"""A run that is killed with SIGKILL and resumed ends as if nothing had happened: weights, optimizer, journal."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import launching
import pytest
from resuming import SECTIONS, TRAINING, check_same, configure, run_whole
from safetensors.torch import load_file

from alignment.models.methods import METHODS
from alignment.registry import Registry

UNTIL_SAVED = {"ppo": 8, "ppo-lora": 8, "ppo-lag": 8, "ppo-bound": 8}
"""Optimizer steps between two checkpoints on one process; of the others 2."""


@pytest.fixture(scope="module")
def house(resumed_house):
    return resumed_house


def killed_and_resumed(
    house: Path, name: str, kills: list[int], start: Any, sections: dict[str, Any] | None = None
) -> None:
    """Run `name` whole, and again under another name with kills; every attempt but the last one dies."""
    stage, sections = name.partition("-")[0], sections or SECTIONS[name]
    run_whole(house, name, sections, lambda *given: start(*given, 0))
    other = f"{name}-killed"
    config = configure(house, other, stage, sections)
    for number, kill_at in enumerate(kills):
        assert start(stage, [config, *(["--resume", "auto"] if number else [])], kill_at) != 0
    assert start(stage, [config, "--resume", "auto"], 0) == 0
    attempts = json.loads((house / "runs" / other / "run.json").read_text())["attempts"]
    assert any(attempt["resumed_from"] for attempt in attempts)
    check_same(house, name, other)
    assert start(stage, [config, "--resume", "auto"], 0) == 0  # is finished, and says so
    assert Registry(house / "registry").numbers(other) == [1]


def kills_of(name: str, count: int) -> list[int]:
    """Before which of its own optimizer steps each attempt dies: the first has saved something by then, and the others
    may come to save once more."""
    draw, saved = random.Random(name), UNTIL_SAVED.get(name, 2)
    return [draw.randint(saved + 1, 2 * saved), *(draw.randint(1, saved + 2) for _ in range(count - 1))]


def killing(house: Path, call: Any) -> Any:
    """Starts a stage that is killed before its n-th optimizer step, and is not where n is 0."""

    def start(stage: str, arguments: list[str], kill_at: int) -> int:
        code = call(house, stage, arguments, {str(kill_at): "SIGKILL"} if kill_at else {})
        assert code in (0, -9), (house / "log.txt").read_text()[-4000:]
        return code

    return start


def test_an_epoch_that_is_not_the_first_goes_on_in_its_order(house, forks):
    """Order by length is drawn from the global generator: that of the first epoch comes back with the seed alone, that
    of the second, in which this run dies, does not."""
    killed_and_resumed(house, "sft-second-epoch", [10, 2], killing(house, forks), SECTIONS["sft-padded"])


ON_ONE = [pytest.param(name, marks=[pytest.mark.slow] * (name == "reward-heads")) for name in SECTIONS]


@pytest.mark.parametrize("name", ON_ONE)
def test_killed_and_resumed_on_one_process_ends_as_if_nothing_had_happened(house, forks, name):
    killed_and_resumed(house, name, kills_of(name, 5), killing(house, forks))


@pytest.mark.slow
@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if "resume" not in method.fails])
def test_every_method_resumes(house, forks, method):
    sections = {"model": {"name": "base", "method": method}, "training": TRAINING}
    killed_and_resumed(house, f"sft-{method}-once", [4, 3], killing(house, forks), sections)


def resumed_on_two(house: Path, name: str, ran: tuple[str, int], call: Any, calls_per_step: int) -> None:
    """Killed and resumed under an engine and its ZeRO stage, which is also what ran."""
    kills, run = [kill_at * calls_per_step for kill_at in kills_of(name, 5)], f"{name}-{ran[0].lower()}{ran[1]}"
    killed_and_resumed(house, run, kills, killing(house, call), SECTIONS[name])
    events = [json.loads(line) for line in (house / "runs" / run / "events.jsonl").read_text().splitlines()]
    backends = [event for event in events if event["event"] == "backend"]  # one a member
    assert {(each["engine"], each["zero_stage"], each["world_size"]) for each in backends} == {(*ran, 2)}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sft", "sft-padded", "reward", "reward-heads", "ppo", "ppo-lag"])
def test_killed_and_resumed_under_zero_2_on_two_processes(house, two_forks, name):
    # ZeRO steps each parameter group by itself
    resumed_on_two(house, name, ("DeepSpeedEngine", 2), two_forks, calls_per_step=1 if name == "sft" else 2)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sft-padded", "reward", "reward-heads", "ppo", "ppo-lora", "ppo-lag"])
def test_killed_and_resumed_under_zero_3_on_two_processes(house, forks_of, name):
    zero3 = launching.ROOT / "configs" / "accelerate" / "zero3.yaml"
    resumed_on_two(house, name, ("DeepSpeedEngine", 3), forks_of(zero3), calls_per_step=2)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sft", "sft-padded", "reward", "reward-members", "ppo", "ppo-lora"])
def test_killed_and_resumed_under_fsdp2_on_two_processes(house, forks_of, name):
    fsdp2 = launching.ROOT / "configs" / "accelerate" / "fsdp2.yaml"
    resumed_on_two(house, name, ("FSDP2", 0), forks_of(fsdp2), calls_per_step=1)


@pytest.mark.slow
@pytest.mark.parametrize("zero_stage", [2, 3])
def test_the_multiplier_of_a_bound_comes_back_on_two_processes(house, forks_of, zero_stage):
    launch_file = launching.ROOT / "configs" / "accelerate" / f"zero{zero_stage}.yaml"
    resumed_on_two(house, "ppo-bound", ("DeepSpeedEngine", zero_stage), forks_of(launch_file), calls_per_step=2)
    lines = (
        (house / "runs" / f"ppo-bound-deepspeedengine{zero_stage}-killed" / "metrics.jsonl").read_text().splitlines()
    )
    multipliers = [row["multiplier/brief"] for row in map(json.loads, lines) if "multiplier/brief" in row]
    assert len(multipliers) == len(set(multipliers)) == 12


def changed_and_resumed(house: Path, name: str, start: Any, kill_at: int, run: str) -> None:
    """Killed, given another learning rate, and resumed: torch puts the checkpoint's own in its place."""
    stage, sections = name.partition("-")[0], SECTIONS[name]
    for rate, arguments, kill in ((1e-3, [], kill_at), (2e-4, ["--resume", "auto", "--allow-changes"], 0)):
        training = {**sections["training"], "learning_rate": rate, "lr_scheduler_type": "constant", "logging_steps": 1}
        training = {key: value for key, value in training.items() if stage != "ppo" or key != "logging_steps"}
        config = configure(house, run, stage, {**sections, "training": training})
        assert (start(stage, [config, *arguments], kill) == 0) == (kill == 0)
    rows = [json.loads(line) for line in (house / "runs" / run / "metrics.jsonl").read_text().splitlines()]
    rates = [rate for row in rows if (rate := row.get("train/learning_rate"))]  # 0 while a critic learns alone
    saved = sum(rate > 5e-4 for rate in rates)
    assert 0 < saved < len(rates)
    assert rates == pytest.approx([1e-3] * saved + [2e-4] * (len(rates) - saved))


@pytest.mark.parametrize("name", ["sft", "reward"])
def test_a_changed_rate_is_what_a_resumed_run_goes_by(house, forks, name):
    changed_and_resumed(house, name, killing(house, forks), 4, f"{name}-changed")


@pytest.mark.slow
@pytest.mark.parametrize("zero_stage", [2, 3])
@pytest.mark.parametrize("name", ["sft-padded", "reward", "ppo"])
def test_a_changed_rate_is_what_a_resumed_run_goes_by_under_zero(house, forks_of, name, zero_stage):
    launch_file = launching.ROOT / "configs" / "accelerate" / f"zero{zero_stage}.yaml"
    calls = kills_of(name, 1)[0] * 2
    changed_and_resumed(house, name, killing(house, forks_of(launch_file)), calls, f"{name}-changed{zero_stage}")


def last_events(house: Path, run: str, kind: str) -> list[dict[str, Any]]:
    lines = (house / "runs" / run / "events.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["event"] == kind]


@pytest.mark.parametrize("name", ["sft-padded", "reward"])
def test_a_run_that_diverges_stops_and_keeps_its_healthy_checkpoints(house, forks, name):
    """Before, it trained to the end on NaN, and each of its checkpoints replaced a healthy one."""
    run, stage = f"{name}-wild", name.partition("-")[0]
    training = {**TRAINING, "eval_strategy": "no", "load_best_model_at_end": False, "save_steps": 1, "packing": False}
    config = configure(house, run, stage, {"model": {"name": "base"}, "training": training})
    assert forks(house, stage, [config], {"5": "SIGTERM"}) == 75
    configure(house, run, stage, {"model": {"name": "base"}, "training": {**training, "learning_rate": 1e30}})
    assert forks(house, stage, [config, "--resume", "auto", "--allow-changes"]) == 2
    reason = json.loads((house / "runs" / run / "exit.json").read_text())["reason"]
    assert reason.startswith("training diverged: the loss or gradient of steps 7 to 9 was not finite")
    assert [row["step"] for row in last_events(house, run, "step_skipped")] == [7, 8, 9]
    report = json.loads((house / "runs" / run / "bad_batch.json").read_text())
    assert len(report["processes"][0]["rows"]) == 2
    checkpoints = sorted(path.name for path in (house / "runs" / run / "checkpoints").glob("step-*"))
    assert checkpoints == ["step-000005", "step-000006"]
    for checkpoint in checkpoints:
        weights = load_file(house / "runs" / run / "checkpoints" / checkpoint / "weights.safetensors")
        assert all(weight.isfinite().all() for weight in weights.values())
    assert not Registry(house / "registry").numbers(run)
