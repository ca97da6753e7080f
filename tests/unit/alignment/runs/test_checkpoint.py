"""Checkpoints: whole or not there, found by what they hold, and never mixed up."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
from collections import namedtuple
from pathlib import Path

import numpy
import pytest
import torch
from safetensors.torch import save_file

from alignment import seeds
from alignment.config.sections import RunConfig
from alignment.errors import CheckpointError, UserError
from alignment.runs import checkpoint, resume
from alignment.runs.checkpoint import Checkpoints, committed, newest, open_checkpoint, set_aside
from alignment.runs.journal import Journal
from alignment.runs.run import Run

RUN = "a" * 32


def saver(run_dir: Path, **changes) -> Checkpoints:
    options = {"keep": 2, "data": "d", "backend": "plain", "journal_offsets": dict} | changes
    return Checkpoints(run_dir, RUN, **options)


def write(folder: Path) -> None:
    (folder / "weights.bin").write_bytes(random.Random(1).randbytes(3000))
    (folder / "deep").mkdir()
    (folder / "deep" / "state.json").write_text('{"step": 1}')


@pytest.fixture
def run_dir(tmp_path):
    save = saver(tmp_path)
    for step in (10, 20):
        assert save.save(step, write) == tmp_path / "checkpoints" / f"step-{step:06d}"
    return tmp_path


def test_the_newest_is_found_whole_and_older_ones_go(run_dir):
    saver(run_dir).save(30, write)
    assert [path.name for path in committed(run_dir)] == ["step-000030", "step-000020"]
    found = newest(run_dir, RUN, pytest.fail)
    assert found is not None and found.step == 30
    assert set(found.manifest.files) == {"weights.bin", "deep/state.json"}
    assert not list((run_dir / "checkpoints").glob(".*"))


def test_a_step_of_seven_digits_is_later_than_one_of_six(tmp_path):
    save = saver(tmp_path)
    for step in (999_998, 999_999, 1_000_000):
        save.save(step, write)
    assert [path.name for path in committed(tmp_path)] == ["step-1000000", "step-999999"]
    found = newest(tmp_path, RUN, pytest.fail)
    assert found is not None and found.step == 1_000_000
    assert (
        set_aside(tmp_path, open_checkpoint(tmp_path / "checkpoints" / "step-999999", RUN))[0][:13] == "step-1000000."
    )


def damage(path: Path, draw: random.Random) -> None:
    data = bytearray(path.read_bytes())
    if draw.random() < 0.5:
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    else:
        del data[draw.randrange(len(data)) :]
    path.chmod(0o644)
    path.write_bytes(data)


def test_a_hundred_flipped_bits_and_cut_files_are_all_found(run_dir):
    path, draw = run_dir / "checkpoints" / "step-000020", random.Random(0)
    whole = run_dir / "whole"
    shutil.copytree(path, whole)
    for _ in range(100):
        file = draw.choice([file for file in sorted(path.rglob("*")) if file.is_file()])
        damage(file, draw)
        warnings: list[str] = []
        found = newest(run_dir, RUN, warnings.append)
        assert found is not None and found.step == 10, file
        assert len(warnings) == 1 and "step-000020" in warnings[0]
        shutil.rmtree(path)
        shutil.copytree(whole, path)
    assert newest(run_dir, RUN, pytest.fail).step == 20


@pytest.mark.parametrize("what", ["missing file", "foreign file", "linked file", "no manifest", "other run", "renamed"])
def test_what_is_not_as_it_was_saved_is_passed_over(run_dir, what, tmp_path):
    path = run_dir / "checkpoints" / "step-000020"
    if what == "missing file":
        (path / "weights.bin").unlink()
    elif what == "foreign file":
        (path / "planted.pkl").write_bytes(b"cos\nsystem\n")
    elif what == "linked file":
        (path / "weights.bin").rename(tmp_path / "elsewhere")
        (path / "weights.bin").symlink_to(tmp_path / "elsewhere")
    elif what == "no manifest":
        (path / "manifest.json").unlink()
    elif what == "other run":
        manifest = checkpoint.CheckpointManifest.model_validate_json((path / "manifest.json").read_bytes())
        (path / "manifest.json").unlink()
        forged = manifest.model_copy(update={"run_id": "b" * 32}).sealed()
        (path / "manifest.json").write_text(forged.model_dump_json())
    else:
        path.rename(path.with_name("step-000099"))
    warnings: list[str] = []
    assert newest(run_dir, RUN, warnings.append).step == 10
    assert len(warnings) == (0 if what == "no manifest" else 1)  # which was never committed


def test_somebody_elses_folder_is_not_read(run_dir, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(CheckpointError, match="belongs to user"):
        open_checkpoint(run_dir / "checkpoints" / "step-000020", RUN)


def test_a_run_none_of_whose_checkpoints_is_whole_does_not_silently_begin_again(run_dir):
    for path in committed(run_dir):
        (path / "weights.bin").unlink()
    with pytest.raises(CheckpointError, match="none of its 2 checkpoints is intact"):
        newest(run_dir, RUN, lambda text: None)
    shutil.rmtree(run_dir / "checkpoints")
    assert newest(run_dir, RUN, pytest.fail) is None


def test_an_older_one_stays_while_a_newer_one_is_damaged(run_dir, capsys):
    (run_dir / "checkpoints" / "step-000020" / "weights.bin").unlink()
    saver(run_dir).save(30, write)
    assert [path.name for path in committed(run_dir)] == ["step-000030", "step-000020", "step-000010"]
    assert "weights.bin is missing" in capsys.readouterr().err
    saver(run_dir).save(40, write)
    assert [path.name for path in committed(run_dir)] == ["step-000040", "step-000030"]


def test_a_full_disk_leaves_the_last_one_and_ends_the_run_at_the_third_time(run_dir, capsys, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 100))
    notes = []
    save = saver(run_dir, note=lambda kind, **fields: notes.append((kind, fields["step"])))
    assert save.save(30, write) is None and save.save(40, write) is None
    with pytest.raises(CheckpointError, match="no room for a checkpoint of step 50"):
        save.save(50, write)
    assert notes == [("checkpoint_failed", 30), ("checkpoint_failed", 40)]
    assert capsys.readouterr().err.count("training continues without it") == 2
    assert newest(run_dir, RUN, pytest.fail).step == 20


def test_a_disk_that_fills_while_it_is_written_leaves_the_last_one(run_dir):
    def full(folder: Path) -> None:
        (folder / "weights.bin").write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    assert saver(run_dir).save(30, full) is None
    assert newest(run_dir, RUN, pytest.fail).step == 20
    assert saver(run_dir).save(40, write) is not None
    assert not list((run_dir / "checkpoints").glob(".*"))


@pytest.mark.parametrize("library", ["torch", "safetensors", "python"])
def test_a_file_that_cannot_be_written_leaves_the_last_one(run_dir, library):
    def large(folder: Path) -> None:
        if library == "torch":
            checkpoint.save_state(folder / "state.pt", {"x": torch.zeros(100_000)})
        elif library == "safetensors":
            save_file({"x": torch.zeros(100_000)}, folder / "x.safetensors")
        else:
            (folder / "x").write_bytes(bytes(400_000))

    child = os.fork()
    if not child:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        os._exit(0 if saver(run_dir).save(30, large) is None else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert newest(run_dir, RUN, pytest.fail).step == 20


CALLS = ("mkdir", "fsync", "rename", "open", "unlink")


def die_at(number: int, run_dir: Path) -> bool:
    """Save step 30 in a fork that dies before its n-th call that changes the disk; whether it came to an end."""
    child = os.fork()
    if not child:
        count = 0

        def counted(call):
            def wrapper(*args, **options):
                nonlocal count
                count += 1
                if count == number:
                    os._exit(9)
                return call(*args, **options)

            return wrapper

        for name in CALLS:
            setattr(os, name, counted(getattr(os, name)))
        try:
            saver(run_dir).save(30, write)
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_killed_at_any_call_the_newest_is_whole_and_the_next_save_succeeds(run_dir):
    saved = run_dir / "saved"
    shutil.copytree(run_dir / "checkpoints", saved)
    number, seen, ended = 0, set(), False
    while not ended:
        number += 1
        ended = die_at(number, run_dir)
        found = newest(run_dir, RUN, pytest.fail)
        assert found is not None and found.step in (20, 30), number
        seen.add(found.step)
        assert saver(run_dir).save(40, write) is not None
        assert newest(run_dir, RUN, pytest.fail).step == 40
        shutil.rmtree(run_dir / "checkpoints")
        shutil.copytree(saved, run_dir / "checkpoints")
    assert seen == {20, 30} and number > 10


def test_random_states_come_back(tmp_path):
    checkpoint.save_state(tmp_path / "random.pt", seeds.random_state())

    def draw():
        return random.random(), float(numpy.random.rand()), float(torch.rand(()))

    first = draw()
    assert draw() != first
    seeds.set_random_state(checkpoint.load_state(tmp_path / "random.pt"))
    assert draw() == first


def test_state_that_would_run_code_is_refused(tmp_path):
    class Canary:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save({"x": Canary()}, tmp_path / "state.pt")
    with pytest.raises(Exception, match=r"weights_only|Unsupported"):
        checkpoint.load_state(tmp_path / "state.pt")
    assert not (tmp_path / "ran").exists()


def test_changed_keys():
    before = {"a": {"b": 1, "c": [1, 2]}, "tracking": {"x": 1}}
    assert resume.changed_keys(before, {"a": {"b": 2, "c": [1]}, "tracking": {"x": 2}}, ["tracking"]) == ["a.b", "a.c"]
    assert resume.changed_keys(before, before) == []
    assert resume.changed_keys({"a": 1}, {"b": 1}) == ["a", "b"]


# --- opening a run's folder ------------------------------------------------------------------------------------------


def config(tmp_path: Path, **changes) -> RunConfig:
    values = {"name": "r", "data": {"train": "x"}, "registry": {"name": "m"}, "tracking": {"runs": str(tmp_path)}}
    return RunConfig.model_validate(values | changes)


@pytest.fixture
def begun(tmp_path):
    """A run with two checkpoints and some journal after the last."""
    resume.open_run_dir(config(tmp_path), overwrite=False)
    run_dir = tmp_path / "r"
    run = Run.read(run_dir)
    with Journal(run_dir) as journal:
        save = Checkpoints(run_dir, run.id, keep=2, data="d", backend="plain", journal_offsets=journal.offsets)
        for step in (10, 20):
            journal.log(step, {"x": 1.0 * step})
            save.save(step, write)
        journal.log(21, {"x": 21.0})
    return run_dir


def test_without_resume_an_earlier_run_is_refused_and_with_overwrite_removed(begun, tmp_path):
    with pytest.raises(UserError, match="--resume auto"):
        resume.open_run_dir(config(tmp_path), overwrite=False)
    before = Run.read(begun)
    resume.open_run_dir(config(tmp_path), overwrite=True)
    assert not (begun / "checkpoints").exists()
    assert Run.read(begun).id != before.id


def test_auto_goes_on_from_the_newest_and_cuts_the_journal(begun, tmp_path, capsys):
    before = Run.read(begun)
    (begun / "exit.json").write_text('{"code": 1}')
    resume.open_run_dir(config(tmp_path), overwrite=False, resume="auto")
    assert "resumes from step 20 (step-000020, verified)" in capsys.readouterr().err
    start = resume.begin(begun)
    assert (start.run.id, start.run.attempt, start.checkpoint.step) == (before.id, 2, 20)
    assert not (begun / "exit.json").exists()
    with Journal(begun, resume=start.journal) as journal:
        journal.event("data")  # is there already
        journal.mark_resumed(step=20)
        journal.log(21, {"x": 21.0})
    rows = [json.loads(line) for line in (begun / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [10, 20, 21]
    assert [json.loads(line)["event"] for line in (begun / "events.jsonl").read_text().splitlines()] == ["resumed"]


def test_a_journal_that_lost_lines_is_refused(begun, tmp_path):
    resume.open_run_dir(config(tmp_path), overwrite=False, resume="auto")
    (begun / "metrics.jsonl").write_text("")
    with pytest.raises(UserError, match=r"metrics.jsonl has 0 bytes and had"):
        Journal(begun, resume=resume.begin(begun).journal)


def test_an_older_one_by_its_path_sets_the_later_one_aside(begun, tmp_path, capsys):
    resume.open_run_dir(config(tmp_path), overwrite=False, resume=str(begun / "checkpoints" / "step-000010"))
    assert resume.begin(begun).checkpoint.step == 10
    assert "set aside as step-000020.aside-" in capsys.readouterr().err
    assert [path.name for path in committed(begun)] == ["step-000010"]


def test_a_path_elsewhere_is_refused(begun, tmp_path):
    with pytest.raises(UserError, match="not one of this run's checkpoints"):
        resume.open_run_dir(config(tmp_path), overwrite=False, resume=str(tmp_path / "step-000010"))


def test_a_changed_config_is_named_and_can_be_allowed(begun, tmp_path, capsys):
    other = config(tmp_path, data={"train": "y"})
    with pytest.raises(UserError, match=r"data.train: 'x', now 'y'"):
        resume.open_run_dir(other, overwrite=False, resume="auto")
    assert (begun / "checkpoints").exists()
    resume.open_run_dir(other, overwrite=False, resume="auto", allow_changes=True)
    assert "with a changed config (data.train" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("data", "backend", "words"), [("other", "plain", "the data has changed"), ("d", "z", "under")]
)
def test_other_data_or_another_engine_is_refused(begun, tmp_path, data, backend, words):
    resume.open_run_dir(config(tmp_path), overwrite=False, resume="auto")
    start = resume.begin(begun)
    start.check("d", "plain")
    with pytest.raises(CheckpointError, match=words):
        start.check(data, backend)


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_again(tmp_path, capsys):
    resume.open_run_dir(config(tmp_path), overwrite=False)
    (tmp_path / "r" / "metrics.jsonl").write_text('{"step": 1}\n')
    resume.open_run_dir(config(tmp_path), overwrite=False, resume="auto")
    assert "starts from the beginning" in capsys.readouterr().err
    assert resume.begin(tmp_path / "r").checkpoint is None
    assert not (tmp_path / "r" / "metrics.jsonl").exists()


def test_auto_without_an_earlier_run_begins(tmp_path):
    resume.open_run_dir(config(tmp_path), overwrite=False, resume="auto")
    assert resume.begin(tmp_path / "r").checkpoint is None


def test_a_damaged_run_file_is_one_line(begun, tmp_path):
    (begun / "run.json").write_text("{")
    with pytest.raises(UserError, match=r"run.json, which identifies the run, cannot be read"):
        resume.open_run_dir(config(tmp_path), overwrite=False, resume="auto")


@pytest.mark.parametrize("text", ["{", "{}", ""])
def test_a_damaged_manifest_does_not_keep_the_next_save_from_being_made(run_dir, text):
    (committed(run_dir)[0] / "manifest.json").write_text(text)
    assert saver(run_dir).save(30, write) is not None
    assert open_checkpoint(committed(run_dir)[0], RUN).step == 30


def test_nothing_is_read_back_where_nothing_is_too_many(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "open_checkpoint", lambda *given, **options: pytest.fail("read back"))
    for step in (10, 20):
        assert saver(tmp_path).save(step, write) is not None


@pytest.mark.parametrize(
    ("saved", "there", "current", "expected"), [(1, 1, 0, 0), (1, 4, 3, 0), (8, 2, 1, 1), (2, 8, 5, 1)]
)
def test_a_gpus_random_state_comes_back_with_another_number_of_gpus(monkeypatch, saved, there, current, expected):
    """Checkpoints of before hold a state of each GPU; torch's `set_rng_state_all` ends where there are fewer."""
    state = {**seeds.random_state(), "cuda": [torch.tensor([number]) for number in range(saved)]}
    given = []

    def set_one(value, device=current):
        assert device < there
        given.append(value)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: current)
    monkeypatch.setattr(torch.cuda, "set_rng_state", set_one)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda: torch.tensor([7]))
    seeds.set_random_state(state)
    assert [int(value) for value in given] == [expected]
    assert [int(value) for value in seeds.random_state()["cuda"]] == [7]
