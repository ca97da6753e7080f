"""Runs killed with SIGKILL at named places and at random times: each ends as the run that was left alone."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path
from typing import Any

import pytest
from helpers.figures import Trials
from resuming import SECTIONS, check_same, configure, run_whole

from alignment.registry import Registry

TITLE = "Kills"
BIT_FOR_BIT = "resumed, bit for bit; published once"
COMMIT = "alignment.runs.checkpoint:Checkpoints._commit"
CLAIM = "alignment.registry.publishing:_claim_number"
PLACES = {
    "the run folder is open": "0",
    "a checkpoint begins": "after alignment.runs.checkpoint:Checkpoints._stage",
    "a checkpoint is staged": f"before {COMMIT}",
    "a checkpoint is committed": f"after {COMMIT}",
    "its successor is committed": f"after {COMMIT}#2",
    "a line of the journal is written": "after alignment.runs.journal:Journal.log#3",
    "an evaluation": "{evaluation}",
    "the model is saved": f"before {CLAIM}",
    "the model is published": f"after {CLAIM}",
    "the end of the journal": "before alignment.runs.journal:Journal.close",
    "exit.json is written": "before alignment.reports.report:write_final_report",
}
"""Each kill comes after this; the last attempts have trained to the end."""
EVALUATION = {
    "sft": "before sft.trainer:SFTTrainer.evaluate",
    "reward": "before reward.trainer:RewardTrainer.evaluate",
    "ppo": "before ppo.loop:Evaluation.run#2",
}
STAGES = list(EVALUATION)


@pytest.fixture(scope="module")
def house(resumed_house):
    return resumed_house


def log(house: Path) -> str:
    return (house / "log.txt").read_text()[-4000:]


@pytest.mark.parametrize("stage", STAGES)
def test_killed_at_every_named_place_a_run_ends_as_if_nothing_had_happened(house, forks, stage, tried):
    run_whole(house, stage, SECTIONS[stage], lambda *given: forks(house, *given))
    name = f"{stage}-killed-by-name"
    config = configure(house, name, stage, SECTIONS[stage])
    for phase, place in PLACES.items():
        tried(f"{stage} on one process: SIGKILL at {len(PLACES)} named places", BIT_FOR_BIT)
        actions = {place.format(evaluation=EVALUATION[stage]): "SIGKILL"}
        assert forks(house, stage, [config, "--resume", "auto"], actions) == -9, (phase, log(house))
    assert forks(house, stage, [config, "--resume", "auto"]) == 0, log(house)
    check_same(house, stage, name)
    assert Registry(house / "registry").numbers(name) == [1]


# --- at random times -------------------------------------------------------------------------------------------------

KILLS_A_RUN = 10


def killed_at_random(
    house: Path, name: str, whole: str, kills: int, call: Any, seconds: float, draw: random.Random, tried: Trials
) -> int:
    """Start a run again and again, each time killed at a random moment, then to its end; returns the kills."""
    stage, done = whole.partition("-")[0], 0
    config = configure(house, name, stage, SECTIONS[stage])
    for _ in range(4 * kills):
        if done == kills:
            break
        codes = call(stage, [config, "--resume", "auto"], draw.uniform(0.1, 0.6 * seconds))  # later, it is often done
        if set(codes) == {0}:
            break  # it was done before the kill
        assert -9 in codes, (codes, log(house))
        done += 1
        where = "on two processes under ZeRO-2" if whole.endswith("-zero2") else "on one process"
        tried(f"{stage} {where}: SIGKILL at a random time", BIT_FOR_BIT)
    codes = call(stage, [config, "--resume", "auto"], 0.0)
    assert set(codes) == {0}, (codes, log(house))
    check_same(house, whole, name)
    assert Registry(house / "registry").numbers(name) == [1]
    return done


def random_kills(house: Path, whole: str, total: int, call: Any, tried: Trials) -> None:
    """So many kills, `KILLS_A_RUN` of them in each run at most."""
    draw, stage = random.Random(whole), whole.partition("-")[0]
    started = time.monotonic()
    run_whole(house, whole, SECTIONS[stage], lambda stage, arguments: max(call(stage, arguments, 0.0)))
    seconds = time.monotonic() - started  # 0 if another test has made the run
    if seconds < 0.5:
        seconds = json.loads((house / "runs" / whole / "exit.json").read_text())["seconds"]
    kills = runs = 0
    while kills < total:
        name = f"{whole}-random-{runs}"
        wanted = min(KILLS_A_RUN, total - kills)
        done = killed_at_random(house, name, whole, wanted, call, seconds, draw, tried)
        if done < wanted:  # the first run has compiled something, or the machine was busy: these are faster
            seconds *= 0.8
        kills, runs = kills + done, runs + 1
        tried.end(held=True)


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_180_kills_at_random_times(house, server, stage, tried):
    def call(stage: str, arguments: list[str], seconds: float) -> list[int | None]:
        return server.run(house, stage, arguments, [({}, {"seconds": str(seconds)} if seconds else {})])

    random_kills(house, stage, 180, call, tried)


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_20_kills_at_random_times_on_two_processes_under_zero_2(house, server, stage, tried):
    """Both are killed, as with their node; every third time one alone, and the other leaves by itself.

    One that is left alone may wait in the start-up of DeepSpeed or gloo, where nothing but the heartbeat ends it.
    """
    from launching import ZERO2
    from resuming import launched_ranks

    attempts = 0

    def call(stage: str, arguments: list[str], seconds: float) -> list[int | None]:
        nonlocal attempts
        attempts += 1
        killed = {attempts % 2} if attempts % 3 == 0 else {0, 1}
        ranks = [rank | {"ALIGNMENT_TIMEOUT": "20"} for rank in launched_ranks(ZERO2)]
        actions = [{"seconds": str(seconds)} if seconds and rank in killed else {} for rank in range(2)]
        return server.run(house, stage, arguments, list(zip(ranks, actions, strict=True)))

    random_kills(house, f"{stage}-zero2", 20, call, tried)
