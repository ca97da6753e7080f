"""Runs on a disk that is full, over its quota, broken or read-only, for a while or for good."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest
from resuming import TRAINING, check_same, configure, run_whole

TITLE = "Full and broken disks"
SFT = {"model": {"name": "base"}, "training": {**TRAINING, "logging_steps": 1, "save_steps": 1}}
SECTIONS = {
    "sft": SFT,
    "reward": SFT,
    "ppo": {
        "model": {"policy": "base", "reward": "judge"},
        "rollout": {"batch_size": 8, "max_new_tokens": 6},
        "ppo": {"num_epochs": 1, "num_minibatches": 2},
        "training": {"max_steps": 8, "learning_rate": 1e-3, "save_steps": 1, "eval_steps": 2},
    },
}
SLOW = pytest.mark.slow
FULL, QUOTA, BROKEN, READ_ONLY = errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS


class Attempts:
    """Starts a run again and again; the disk under its folder fails from a step on."""

    def __init__(self, house: Path, forks, name: str, stage: str) -> None:
        self.house, self.forks, self.name, self.stage = house, forks, name, stage
        self.run_dir, self.flag = house / "runs" / name, house / f"{name}.flag"
        self.config = configure(house, name, stage, SECTIONS[stage])

    def start(self, *arguments: str, fails_at: int | None = None, with_errno: int = FULL, room: int = 0, until: int = 0,
              match: str = "", actions: dict | None = None, **variables: str) -> tuple[int, str]:  # fmt: skip
        """The exit code, and what was said. The disk fails before optimizer step `fails_at` (0: at once), `until`."""
        actions = dict(actions or {})
        if fails_at is not None:
            (self.house / f"{self.name}.fault").write_text(f"{with_errno} {room}")
            if fails_at:
                actions[str(fails_at)] = f"copy {self.name}.fault {self.flag}"
            else:
                self.flag.write_text(f"{with_errno} {room}")
            if until:
                actions[str(until)] = f"remove {self.flag}"
        log = self.house / "log.txt"
        if "FILE_LIMIT" in variables:
            log.write_text("")  # it has the limit too
        before = log.stat().st_size if log.exists() else 0
        variables |= {"DISK_FLAG": str(self.flag), "DISK_MATCH": match or f"/runs/{self.name}/"}
        code = self.forks(self.house, self.stage, [self.config, *arguments], actions, **variables)
        self.flag.unlink(missing_ok=True)
        return code, log.read_bytes()[before:].decode()

    def outcome(self) -> dict:
        return json.loads((self.run_dir / "exit.json").read_text())

    def goes_on(self) -> None:
        """With the disk as it should be, the run is resumed and ends as one that nothing has happened to."""
        code, text = self.start("--resume", "auto")
        assert code == 0, text
        check_same(self.house, self.stage, self.name)


@pytest.fixture
def attempts(house, forks):
    """Makes a run to start, beside one that nothing happens to."""

    def make(name: str, stage: str = "sft") -> Attempts:
        run_whole(house, stage, SECTIONS[stage], lambda *given: forks(house, *given))
        return Attempts(house, forks, name, stage)

    return make


def errors(text: str) -> list[str]:
    """The error lines; there is no traceback."""
    assert "Traceback" not in text, text
    return [line for line in text.splitlines() if line.startswith("error:")]


@pytest.mark.parametrize("stage", ["ppo", pytest.param("sft", marks=SLOW), pytest.param("reward", marks=SLOW)])
def test_while_the_disk_is_full_training_goes_on_and_nothing_is_lost(attempts, tried, stage):
    tried(
        f"{stage}: the disk is full during two steps",
        "training goes on with a warning; the result and the journal are those of a run without it",
    )
    run = attempts(f"{stage}-a-while", stage)
    code, text = run.start(fails_at=4, room=30, until=6)
    assert (code, errors(text)) == (0, []), text
    assert "training goes on" in text
    assert "it is whole" in text
    assert "training continues without it" in text
    check_same(run.house, stage, run.name)


@pytest.mark.parametrize("stage", ["sft", pytest.param("reward", marks=SLOW), pytest.param("ppo", marks=SLOW)])
def test_a_disk_that_stays_full_ends_the_run_at_the_third_checkpoint(attempts, tried, stage):
    tried(
        f"{stage}: the disk stays full",
        "exit code 1 at the third checkpoint, in one line; exit.json is written; resumed, bit for bit",
    )
    run = attempts(f"{stage}-for-good", stage)
    code, text = run.start(fails_at=4, room=100)
    assert code == 1, text
    assert len(errors(text)) == 1, text
    assert "3 checkpoints in a row could not be written" in text
    assert "--resume auto" in errors(text)[0]
    assert text.count("training continues without it") == 2
    outcome = run.outcome()
    assert outcome["code"] == 1
    assert outcome["last_checkpoint"]
    assert "3 checkpoints" in outcome["reason"]
    assert not list(run.run_dir.glob("checkpoints/.staging*/manifest.json"))
    run.goes_on()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "number"), [("quota", QUOTA), ("broken", BROKEN), ("read-only", READ_ONLY)],
    ids=["quota", "broken", "read only"],
)  # fmt: skip
def test_other_faults_of_a_disk_end_the_same_way(attempts, tried, name, number):
    tried(f"sft: {name}", "exit code 1 in one line at the third checkpoint; resumed, bit for bit")
    run = attempts(f"sft-{name}")
    code, text = run.start(fails_at=4, with_errno=number)
    assert code == 1, text
    assert len(errors(text)) == 1, text
    if number == QUOTA:
        assert run.outcome()["code"] == 1
    else:  # no file can be written at all
        assert "exit.json cannot be written" in text
        assert not (run.run_dir / "exit.json").exists()
    run.goes_on()


@pytest.mark.slow
def test_what_a_disk_takes_and_loses_at_the_sync_is_written_again(attempts, tried):
    tried("sft: fsync fails for two steps", "checkpoints fail with a warning; the journal is written again and whole")
    run = attempts("sft-sync")
    code, text = run.start(fails_at=4, with_errno=FULL, until=6, DISK_SYNC="1")
    assert (code, errors(text)) == (0, []), text
    assert "training continues without it" in text
    check_same(run.house, "sft", run.name)


@pytest.mark.parametrize("number", [FULL, pytest.param(READ_ONLY, marks=SLOW)], ids=["full", "read only"])
def test_a_start_on_a_full_disk_is_one_line(attempts, tried, number):
    tried(f"sft: start, {errno.errorcode[number]}", "one line, code 2")
    run = attempts(f"sft-start-{number}")
    code, text = run.start(fails_at=0, with_errno=number)
    assert code in (1, 2), text
    assert len(errors(text)) == 1, text
    assert not (run.run_dir / "config.json").exists()
    assert not list(run.run_dir.glob(".*")), "nothing is left that takes up room"
    run.goes_on()


@pytest.mark.slow
def test_a_start_over_an_earlier_run_leaves_it_whole(attempts, tried):
    tried("sft: --overwrite on a full disk", "the earlier run is whole")
    run = attempts("sft-over")
    assert run.start("training.max_steps=2")[0] == 0
    before = {path.name: path.read_bytes() for path in run.run_dir.glob("*.json*")}
    code, text = run.start("--overwrite", fails_at=0)
    assert code in (1, 2), text
    assert len(errors(text)) == 1, text
    assert {path.name: path.read_bytes() for path in run.run_dir.glob("*.json*")} == before


@pytest.mark.slow
def test_publishing_into_a_full_registry_is_one_line_and_is_done_later(attempts, tried):
    tried("sft: the registry's disk is full", "one line; resumed, it is published")
    run = attempts("sft-registry")
    code, text = run.start(fails_at=4, match="/registry/")
    assert code in (1, 2), text
    assert len(errors(text)) == 1, text
    assert run.outcome()["code"] == code
    run.goes_on()


@pytest.mark.slow
def test_a_report_without_room_is_a_warning(attempts, tried):
    tried("sft: no room for the report", "a warning with the command")
    run = attempts("sft-report")
    code, text = run.start(fails_at=0, match="/.report.html")
    assert (code, errors(text)) == (0, []), text
    assert "no report was written" in text
    check_same(run.house, "sft", run.name)


@pytest.mark.slow
def test_a_full_temporary_folder_is_one_line(attempts, tried):
    tried("sft: TMPDIR is full", "another temporary folder, or one line")
    run = attempts("sft-tmp")
    (run.house / "temporary").mkdir()
    code, text = run.start(fails_at=0, match="/temporary/", TMPDIR=str(run.house / "temporary"))
    assert code in (0, 1, 2), text
    assert len(errors(text)) == (code != 0), text


@pytest.mark.slow
def test_a_journal_that_waits_too_long_ends_the_run_after_an_attempt_at_a_checkpoint(attempts, tried):
    tried(
        "sft: the journal alone cannot be written",
        "after the limit an attempt at a checkpoint, then exit code 1 in one line; resumed, bit for bit",
    )
    run = attempts("sft-overdue")
    code, text = run.start(fails_at=4, RECORDER="impatient", match="metrics.jsonl")
    assert code == 1, text
    assert len(errors(text)) == 1, text
    assert "of the journal cannot be written" in errors(text)[0]
    assert text.count("training continues without it") <= 2
    assert "3 checkpoints" not in text
    assert run.outcome()["code"] == 1
    run.goes_on()


@pytest.mark.parametrize("limit", [64_000, pytest.param(8_000, marks=SLOW), pytest.param(200_000, marks=SLOW)])
def test_a_limit_on_the_size_of_files_is_one_line(attempts, tried, limit):
    tried(f"sft: ulimit -f at {limit} bytes", "one line")
    run = attempts(f"sft-limit-{limit}")
    code, text = run.start(RECORDER="small_files", FILE_LIMIT=str(limit))
    assert code in (1, 2), text
    assert len(errors(text)) == 1, text
    run.goes_on()
