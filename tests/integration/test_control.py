"""Runs that are told something while they train: checkpoint, stop, make room; on one process and on two."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import launching
import pytest
import torch
from resuming import HERE, SECTIONS, TRAINING, check_same, configure, launched_ranks, plain_ranks, run_whole, same
from safetensors.torch import load_file

from alignment.registry import Registry
from alignment.runs.checkpoint import committed

PREEMPTED = 75


@pytest.fixture(scope="module")
def house(resumed_house):
    return resumed_house


def events(house: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (house / "runs" / name / "events.jsonl").read_text().splitlines()]


def exit_record(house: Path, name: str) -> dict[str, Any]:
    return json.loads((house / "runs" / name / "exit.json").read_text())


def log(house: Path) -> str:
    return (house / "log.txt").read_text()[-4000:]


def preempted_and_resumed(house: Path, name: str, how: list[dict[str, str]], call: Any, of: str | None = None) -> None:
    """Preempt a run once for each of `how`, and end it; it is as `of`, which nothing happened to."""
    stage, whole = name.partition("-")[0], of or name.removesuffix("-preempted")
    sections = SECTIONS[whole.removesuffix("-zero2")]
    run_whole(house, whole, sections, lambda *given: call(house, *given))
    config = configure(house, name, stage, sections)
    for attempt, actions in enumerate(how, start=1):
        assert call(house, stage, [config, "--resume", "auto"], actions) == PREEMPTED, log(house)
        record = exit_record(house, name)
        assert (record["code"], record["reason"][:11]) == (PREEMPTED, "preempted: ")
        assert (house / "runs" / name / "checkpoints" / record["last_checkpoint"]).is_dir()
        assert [event["event"] for event in events(house, name)].count("preempted") == attempt
    assert call(house, stage, [config, "--resume", "auto"]) == 0, log(house)
    assert len(json.loads((house / "runs" / name / "run.json").read_text())["attempts"]) == len(how) + 1
    check_same(house, whole, name)


@pytest.mark.parametrize("name", ["sft", pytest.param("reward", marks=pytest.mark.slow), "ppo"])
def test_preempted_twice_a_run_ends_as_if_nothing_had_happened(house, forks, name):
    """By a signal and by the file. The first SFT run ends between two of its own checkpoints, and the second at the end
    of an epoch, whose evaluation is still to come."""
    first, second = {"sft": ("3", "3"), "reward": ("5", "2"), "ppo": ("9", "5")}[name]
    file = f"touch runs/{name}-preempted/PREEMPT"
    how = [{first: "SIGTERM"}, {second: file}] if name == "sft" else [{first: file}, {second: "SIGUSR1"}]
    preempted_and_resumed(house, f"{name}-preempted", how, forks)
    assert not (house / "runs" / f"{name}-preempted" / "PREEMPT").exists()
    reasons = [event["reason"] for event in events(house, f"{name}-preempted") if event["event"] == "preempted"]
    assert reasons == (["SIGTERM", "RUN/PREEMPT"] if name == "sft" else ["RUN/PREEMPT", "SIGUSR1"])
    steps = [event["step"] for event in events(house, f"{name}-preempted") if event["event"] == "preempted"]
    assert steps == {"sft": [3, 6], "reward": [5, 7], "ppo": [3, 5]}[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sft", "reward", "ppo"])
def test_ten_preemptions_in_a_row(house, forks, name):
    preempted_and_resumed(house, f"{name}-preempted-ten", [{"1": "SIGTERM"}] * 10, forks, of=name)


def test_a_preemption_before_the_first_step_leaves_nothing_to_go_on_with(house, forks):
    """The signal comes while the model is loaded: there is nothing to save, and the next attempt begins."""
    config = configure(house, "sft-early", "sft", SECTIONS["sft"])
    assert forks(house, "sft", [config], {"0": "SIGTERM"}) == PREEMPTED, log(house)
    assert exit_record(house, "sft-early")["last_checkpoint"] is None
    assert forks(house, "sft", [config, "--resume", "auto"], {"3": "touch runs/sft-early/STOP"}) == 0, log(house)


STOPPED = {
    "sft": ({**TRAINING, "lr_scheduler_type": "constant", "save_steps": 0, "warmup_steps": 0}, "5", "3"),
    "ppo": ({**SECTIONS["ppo"]["training"], "lr_scheduler_type": "constant", "save_steps": 0}, "17", "9"),
}


@pytest.mark.parametrize("stage", ["sft", "ppo"])
def test_a_stopped_run_is_one_whose_steps_were_over(house, forks, stage):
    """Weights and figures are those of a run of five steps; a checkpoint that is asked for is saved, and is the only
    one."""
    training, stop, save = STOPPED[stage]
    sections = dict(SECTIONS[stage])
    if stage == "ppo":  # an adaptive KL coefficient follows the length that was planned
        sections["ppo"] = {key: value for key, value in sections["ppo"].items() if key != "kl_target"}
    name, other = f"{stage}-stopped", f"{stage}-five"
    run = house / "runs" / name
    config = configure(house, name, stage, {**sections, "training": training})
    actions = {save: f"touch {run}/CHECKPOINT", stop: f"touch {run}/STOP"}
    assert forks(house, stage, [config], actions) == 0, log(house)
    assert exit_record(house, name)["reason"] == "done"
    assert not [file for file in ("STOP", "CHECKPOINT") if (run / file).exists()]
    assert [path.name for path in (run / "checkpoints").glob("*")] == ["step-000003"]
    seen = {event["event"]: event.get("step") for event in events(house, name)}
    assert (seen["checkpoint"], seen["stopped"]) == (3, 5)
    config = configure(house, other, stage, {**sections, "training": {**training, "max_steps": 5}})
    assert forks(house, stage, [config]) == 0, log(house)
    registry = Registry(house / "registry")
    one, two = registry.resolve(name), registry.resolve(other)
    for path in one.manifest.files:
        if path.endswith(".safetensors"):
            assert same(load_file(one.path / path), load_file(two.path / path)), path
    figures = [version.manifest.metrics for version in (one, two)]
    assert figures[0] == figures[1]
    assert any("eval" in key for key in figures[0])


def test_a_stopped_ensemble_is_of_the_members_that_were_trained(house, forks):
    sections = {"model": {"name": "base"}, "training": {**TRAINING, "members": 3, "max_steps": 4}}
    config = configure(house, "reward-stopped", "reward", sections)
    assert forks(house, "reward", [config], {"6": "touch runs/reward-stopped/STOP"}) == 0, log(house)
    metrics = Registry(house / "registry").resolve("reward-stopped").manifest.metrics
    assert [metrics[f"member-{number}"]["steps"] for number in range(2)] == [4, 2]
    assert "member-2" not in metrics


# --- under a launcher ------------------------------------------------------------------------------------------------


def launch_acting(house: Path, config: Path, stage: str, arguments: list[str], actions: dict, **variables: str) -> Any:
    target = [str(HERE / "dying.py"), "run", stage, *arguments]
    return launching.launch(config, target, house, ACTIONS=json.dumps(actions), **variables)


def wait_for(path: Path, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, path
        time.sleep(0.1)


def test_a_launch_of_two_under_zero_2_that_gets_sigterm_leaves_a_checkpoint(house, two_forks):
    """The signal goes to the launcher, which hands it on to each of its processes in turn."""
    name = "sft-zero2-preempted"
    config = configure(house, name, "sft", SECTIONS["sft"])
    done = launch_acting(house, launching.ZERO2, "sft", [config], {"1": {"3": "SIGTERM parent"}})
    assert done.code != 0
    record = exit_record(house, name)
    assert (record["code"], record["reason"]) == (PREEMPTED, "preempted: SIGTERM"), done.output[-4000:]
    assert record["last_checkpoint"] in ("step-000003", "step-000004", "step-000005")
    run_whole(house, "sft-zero2", SECTIONS["sft"], lambda *given: two_forks(house, *given))
    assert two_forks(house, "sft", [config, "--resume", "auto"]) == 0, log(house)
    assert [event["zero_stage"] for event in events(house, name) if event["event"] == "backend"] == [2]
    check_same(house, "sft-zero2", name)


def test_a_launch_of_one_that_gets_sigterm_does_not_leave_its_process_alone(house, forks, tmp_path):
    """The launcher dies of it and tells nobody; its process notices that."""
    single = tmp_path / "single.yaml"
    single.write_text("distributed_type: 'NO'\nnum_processes: 1\nmixed_precision: 'no'\nuse_cpu: true\n")
    name = "sft-launched-preempted"
    config = configure(house, name, "sft", SECTIONS["sft"])
    done = launch_acting(house, single, "sft", [config], {"0": {"3": "SIGTERM parent"}})
    assert done.code == -15, done.output[-4000:]
    wait_for(house / "runs" / name / "exit.json")
    record = exit_record(house, name)
    assert (record["code"], record["reason"]) == (PREEMPTED, "preempted: the launcher has ended")
    run_whole(house, "sft", SECTIONS["sft"], lambda *given: forks(house, *given))
    assert forks(house, "sft", [config, "--resume", "auto"]) == 0, log(house)
    check_same(house, "sft", name)


# --- a process that is missing ---------------------------------------------------------------------------------------

LIMIT = 4
BRIEF = {"1": f"limit {LIMIT}"}


def ended_lines(text: str) -> list[str]:
    """Our lines, which may come in the middle of one of torch's: its threads write a line in pieces."""
    return re.findall(r"error: .*", text)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


MISSING = {
    "stopped": ({"2": "SIGSTOP"}, [1, -9], r"rank 1 of 2 \(process \d+ on .*\) is stopped in step 2, for 4 s"),
    "killed": ({"2": "SIGKILL"}, [1, -9], r"rank 1 of 2 \(process \d+ on .*\) is gone in step 2;"),
    "hanging": (
        {"2": "sleep 100"},
        [1, 1],
        r"the others wait for rank 1 of 2 \(at .+\) in step 2, for 4 s",
    ),
}


@pytest.mark.parametrize("how", list(MISSING))
def test_where_one_process_is_missing_both_leave_and_one_line_says_which(house, plain_forks, how):
    action, codes, said = MISSING[how]
    name = f"sft-missing-{how}"
    config = configure(house, name, "sft", SECTIONS["sft"])
    (house / "log.txt").write_text("")
    assert plain_forks(house, "sft", [config], BRIEF, {**BRIEF, **action}) == codes, log(house)
    assert time.time() - (house / "acted").stat().st_mtime < LIMIT + 30
    (line,) = ended_lines((house / "log.txt").read_text())
    assert re.search(said, line), line
    assert "ALIGNMENT_TIMEOUT" in line
    assert exit_record(house, name)["reason"] == line.removeprefix("error: ")


def test_a_process_that_others_do_not_join_leaves(house, server):
    """Here the first process, which the second would join, has found a mistake and left. It is alone at a port of its
    own: at the other's, the second would join it as long as it is there."""
    (house / "log.txt").write_text("")
    first, second = plain_ranks(1)[0], plain_ranks(2)[1]
    ranks = [(first, {}), ({**second, "ALIGNMENT_TIMEOUT": str(LIMIT)}, {})]
    config = configure(house, "sft-alone", "sft", {**SECTIONS["sft"], "model": {"name": "no-such-model"}})
    assert server.run(house, "sft", [config], ranks) == [2, 1], log(house)
    lines = sorted(ended_lines((house / "log.txt").read_text()))
    assert [line[:28] for line in lines] == ["error: no model 'no-such-mod", "error: rank 1 of 2 has waite"], log(house)


@pytest.mark.slow
def test_a_slow_process_is_waited_for(house, plain_forks):
    """Each step takes less than the timeout, all together more."""
    config = configure(house, "sft-slow", "sft", {**SECTIONS["sft"], "training": {**TRAINING, "max_steps": 5}})
    slow = {str(step): "sleep 1.5" for step in range(2, 6)}
    assert plain_forks(house, "sft", [config], BRIEF, {**BRIEF, **slow}) == [0, 0], log(house)


@pytest.mark.slow
@pytest.mark.parametrize("zero2", [False, True])
@pytest.mark.parametrize("action", ["SIGSTOP", "SIGKILL"])
def test_a_launch_leaves_no_process_behind(house, tmp_path, action, zero2):
    name = f"sft-launch-{action}-{zero2}".lower()
    ddp = tmp_path / "ddp.yaml"
    ddp.write_text(launching.DDP)
    config = configure(house, name, "sft", SECTIONS["sft"])
    done = launch_acting(
        house, launching.ZERO2 if zero2 else ddp, "sft", [config], {"0": BRIEF, "1": {**BRIEF, "3": action}},
    )  # fmt: skip
    assert done.code != 0
    assert time.time() - (house / "acted").stat().st_mtime < LIMIT + 30
    lines = ended_lines(done.output)
    assert len(lines) == 1, done.output[-5000:]
    (line,) = lines
    assert "rank 1 of 2" in line
    assert "in step " in line
    (pid,) = re.findall(r"process (\d+) on", line)
    assert not is_alive(int(pid))


# --- another number of processes -------------------------------------------------------------------------------------

BATCH = {
    "num_train_epochs": 3, "logging_steps": 1, "learning_rate": 1e-2, "save_steps": 0, "eval_strategy": "epoch",
    "data_seed": 5, "per_device_train_batch_size": 1,
    "adam_epsilon": 1e-4,  # the default turns rounding of a gradient near zero into a whole step
}  # fmt: skip
ELASTIC = {
    "sft": {"model": {"name": "base"}, "training": BATCH},
    "sft-padded": {"model": {"name": "base"}, "training": {**BATCH, "packing": False}},
    "reward": {"model": {"name": "base"}, "training": BATCH},
    **{
        name: {**SECTIONS[name], "training": {**SECTIONS[name]["training"], "max_steps": 6}}
        for name in ("ppo", "ppo-lag")
    },
}
ATTEMPTS = {
    # four optimizer steps are an iteration
    **{name: [(2, {"5": "SIGTERM"}), (1, {"8": "SIGUSR1"}), (4, {})] for name in ("ppo", "ppo-lag")},
    "rows": [(2, {"1": "SIGTERM"}), (1, {"4": "SIGUSR1"}), (4, {})],
}
"""Processes, and what happens to the last of them: one that is told is enough."""


def whole_batches(house: Path, stage: str) -> dict[str, Any]:
    """Twelve rows to train on, which are three batches of four in an epoch, and four held out."""
    lines = (house / f"{stage}.jsonl").read_text().splitlines(keepends=True)
    for name, part in (("twelve", lines[:12]), ("four", lines[12:])):
        (house / f"{stage}-{name}.jsonl").write_text("".join(part))
    return {"train": f"{stage}-twelve.jsonl", "eval": f"{stage}-four.jsonl", "max_length": 96}


def ids_of_steps(folder: Path) -> dict[int, list[tuple[int, ...]]]:
    """What each step trained on, on all processes together."""
    found: dict[int, list[tuple[int, ...]]] = {}
    for path in folder.glob("*.jsonl"):
        for row in map(json.loads, path.read_text().splitlines()):
            found.setdefault(row["step"], []).append(tuple(row["ids"]))
    return {step: sorted(rows) for step, rows in found.items()}


@pytest.mark.parametrize(
    "name",
    ["sft", *(pytest.param(name, marks=pytest.mark.slow) for name in ("sft-padded", "reward", "ppo-lag")), "ppo"],
)
def test_two_processes_then_one_then_four_take_the_steps_of_one(house, server, name, tmp_path):
    """Within the first epoch and within the second another number of processes goes on: each step has the rows that it
    has on one process, and their loss."""
    attempts = [(plain_ranks(count), action) for count, action in ATTEMPTS.get(name, ATTEMPTS["rows"])]
    takes_the_steps_of_one(house, server, name, f"{name}-elastic", attempts, tmp_path)


PARTED_ATTEMPTS = {
    "ppo": [(2, {"10": "SIGTERM"}), (4, {"16": "SIGUSR1"}), (2, {})],  # ZeRO steps policy and critic by themselves
    "rows": [(2, {"2": "SIGTERM"}), (4, {"8": "SIGUSR1"}), (2, {})],
}


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.parametrize("name", ["sft", "sft-padded", "reward", "ppo"])
def test_under_zero_two_processes_then_four_then_two_take_the_steps_of_one(house, server, name, stage, tmp_path):
    launch_file = launching.ROOT / "configs" / "accelerate" / f"zero{stage}.yaml"
    attempts = PARTED_ATTEMPTS.get(name, PARTED_ATTEMPTS["rows"])
    ranks = [(launched_ranks(launch_file, count), action) for count, action in attempts]
    run = f"{name}-elastic-zero{stage}"
    takes_the_steps_of_one(house, server, name, run, ranks, tmp_path)
    (backend,) = [event for event in events(house, run) if event["event"] == "backend"]
    assert (backend["engine"], backend["world_size"], backend["zero_stage"]) == ("DeepSpeedEngine", 2, stage)
    saved = [json.loads((path / "manifest.json").read_text()) for path in committed(house / "runs" / run)]
    assert 4 in [manifest["world_size"] for manifest in saved]
    assert not list((house / "runs" / run / "checkpoints").glob(".*"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sft", "sft-padded", "reward", "ppo"])
def test_under_fsdp2_two_processes_then_one_then_four_take_the_steps_of_one(house, server, name, tmp_path):
    launch_file = launching.ROOT / "configs" / "accelerate" / "fsdp2.yaml"
    attempts = ATTEMPTS.get(name, ATTEMPTS["rows"])
    ranks = [(launched_ranks(launch_file, count), action) for count, action in attempts]
    takes_the_steps_of_one(house, server, name, f"{name}-elastic-fsdp2", ranks, tmp_path)
    (backend,) = [event for event in events(house, f"{name}-elastic-fsdp2") if event["event"] == "backend"]
    assert (backend["engine"], backend["world_size"]) == ("FSDP2", 2 if name == "ppo" else 4)  # PPO notes its start


def takes_the_steps_of_one(house: Path, server: Any, name: str, other: str, attempts: list, folder: Path) -> None:
    """A run on one process, and another whose attempts have environments of processes, to the last of which something
    happens: rows, losses and weights are the same."""
    stage, rows = name.partition("-")[0], {}
    runs = {f"{name}-of-one": [(plain_ranks(1), {})], other: attempts}
    sections = {**ELASTIC[name], "data": whole_batches(house, stage)}
    for run, tried in runs.items():
        rows[run] = house / f"rows-{run}"
        if (house / "runs" / run / "exit.json").exists():
            continue
        rows[run].mkdir()
        config = configure(house, run, stage, sections)
        for environments, action in tried:
            batch = [] if stage == "ppo" else [f"training.gradient_accumulation_steps={4 // len(environments)}"]
            recorded = {"ROWS": str(rows[run]), "RECORDER": "record_rows"}
            ranks = [({**own, **recorded}, {}) for own in environments]
            ranks[-1][1].update(action)
            codes = server.run(house, stage, [config, *batch, "--resume", "auto"], ranks)
            assert codes == [PREEMPTED if action else 0] * len(ranks), log(house)
    one, other_rows = (ids_of_steps(folder) for folder in rows.values())
    assert len(one) == (6 if stage == "ppo" else 9)
    assert one == other_rows
    alone, elastic = (
        [json.loads(line) for line in (house / "runs" / run / "metrics.jsonl").read_text().splitlines()] for run in runs
    )
    figures = ("policy/loss", "value/loss", "rollout/score") if stage == "ppo" else ("train/loss", "eval/loss")
    for figure in figures:
        expected = [row[figure] for row in alone if figure in row]
        assert len(expected) >= 3
        assert [row[figure] for row in elastic if figure in row] == pytest.approx(expected, abs=1e-5), figure
    registry = Registry(house / "registry")
    whole, parts = (registry.resolve(run) for run in runs)
    for path in (path for path in whole.manifest.files if path.endswith(".safetensors")):
        weights = load_file(whole.path / path)
        other_weights = load_file(parts.path / path)
        assert weights.keys() <= other_weights.keys()  # DeepSpeed writes a tied head too
        for key, value in weights.items():
            torch.testing.assert_close(other_weights[key], value, atol=1e-5, rtol=1e-3)
