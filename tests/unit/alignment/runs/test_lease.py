"""One run folder, one owner; and an earlier run that is kept until its successor stands."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from alignment.config.sections import RunConfig
from alignment.errors import UserError
from alignment.runs import aside, lease, resume
from alignment.runs.checkpoint import Checkpoints, committed
from alignment.runs.journal import Journal
from alignment.runs.lease import LeaseRecord, hold
from alignment.runs.run import Run

RACING = Path(__file__).with_name("racing.py")


@pytest.fixture(autouse=True)
def no_job(monkeypatch):
    for name in ("SLURM_JOB_ID", "SLURM_RESTART_COUNT", "SLURM_PROCID", "RANK"):
        monkeypatch.delenv(name, raising=False)


def own(run_dir: Path, seconds_ago: float = 0.0, **changes) -> Path:
    """The record of another process, whose last heartbeat is so many seconds old."""
    (run_dir / "lease").mkdir(parents=True)
    path = run_dir / "lease" / "000004.json"
    path.write_text(LeaseRecord.of_this_process().model_copy(update={"pid": 1, **changes}).model_dump_json())
    os.utime(path, (time.time() - seconds_ago,) * 2)
    return path


def dead_process() -> int:
    child = subprocess.Popen(["true"])
    child.wait()
    return child.pid


# --- who owns the folder ---------------------------------------------------------------------------------------------


def test_the_second_is_told_who_where_and_since_when(tmp_path):
    with hold(tmp_path / "r"), pytest.raises(UserError) as error, hold(tmp_path / "r"):
        pass
    words = str(error.value)
    assert f"r belongs to process {os.getpid()} on {lease.host_name()}, since 20" in words
    assert f"touch {tmp_path}/r/STOP" in words and "name=r-2" in words
    with hold(tmp_path / "r"):  # released, and no record is left but this one's
        assert [path.name for path in (tmp_path / "r" / "lease").iterdir()] == ["000002.json"]


def test_a_lease_is_released_where_an_error_ends_the_run(tmp_path):
    with pytest.raises(KeyboardInterrupt), hold(tmp_path):
        raise KeyboardInterrupt
    with hold(tmp_path):
        pass


def test_on_this_machine_an_owner_that_is_gone_is_followed_at_once(tmp_path, capsys):
    own(tmp_path / "r", pid=dead_process(), started="1")
    with hold(tmp_path / "r"):
        assert "is taken over from process" in (said := capsys.readouterr().err) and "it has ended" in said


def test_a_process_id_that_is_used_again_is_not_the_owner(tmp_path, capsys):
    own(tmp_path / "r", pid=os.getpid(), started="1")
    with hold(tmp_path / "r"):
        assert "it has ended" in capsys.readouterr().err


def test_a_zombie_has_ended(tmp_path):
    child = subprocess.Popen(["true"])
    while "Z" not in Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2][:3]:
        time.sleep(0.01)
    own(tmp_path / "r", pid=child.pid, started=Path(f"/proc/{child.pid}/stat").read_text().split()[21])
    with hold(tmp_path / "r"):
        child.wait()


@pytest.mark.parametrize(("seconds", "lives"), [(0, True), (40, True), (90, False)])
def test_on_another_machine_the_heartbeat_tells(tmp_path, capsys, seconds, lives):
    """Also one in another container of this host: its process ids mean others here."""
    own(tmp_path / "r", seconds, pid=dead_process(), machine="elsewhere", host="node7", job="12")
    if lives:
        with pytest.raises(UserError, match=r"process \d+ on node7, Slurm job 12, since"), hold(tmp_path / "r"):
            pass
    else:
        with hold(tmp_path / "r"):
            assert "no heartbeat for 9" in capsys.readouterr().err


def test_a_clock_that_differs_does_not_matter(tmp_path, monkeypatch):
    own(tmp_path / "r", machine="elsewhere")
    monkeypatch.setattr(time, "time", lambda: 4e9)
    with pytest.raises(UserError, match="belongs to"), hold(tmp_path / "r"):
        pass


def test_a_heartbeat_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "BEAT_SECONDS", 0.02)
    with hold(tmp_path):
        path = tmp_path / "lease" / "000001.json"
        os.utime(path, (0, 0))
        end = time.monotonic() + 10
        while not path.stat().st_mtime:
            assert time.monotonic() < end
            time.sleep(0.01)


def test_an_owner_that_lost_the_folder_ends(tmp_path):
    """A machine that was suspended: another has taken the folder over meanwhile."""
    program = (
        "import sys, time; from pathlib import Path; from alignment.runs import lease; lease.BEAT_SECONDS = 0.05\n"
        "with lease.hold(Path(sys.argv[1])):\n"
        "    next(Path(sys.argv[1], 'lease').glob('*.json')).unlink(); time.sleep(20)"
    )
    done = subprocess.run([sys.executable, "-c", program, tmp_path / "r"], capture_output=True, text=True, timeout=30)
    assert done.returncode == 1
    assert "was removed or taken over by another process; this one ends at once" in done.stderr


def test_a_job_that_slurm_starts_again_is_the_owner_of_its_own_run(tmp_path, monkeypatch, capsys):
    own(tmp_path / "r", machine="elsewhere", job="77", restart=0)
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    with pytest.raises(UserError), hold(tmp_path / "r"):
        pass
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    with hold(tmp_path / "r"):
        assert "Slurm has started the job again" in capsys.readouterr().err


def test_tasks_side_by_side_are_told_of_a_launcher(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setenv("SLURM_PROCID", "1")
    own(tmp_path / "r", machine="elsewhere", job="77")
    with pytest.raises(UserError, match="`accelerate launch`"), hold(tmp_path / "r"):
        pass


@pytest.mark.parametrize(("seconds", "lives"), [(0, True), (90, False)])
def test_a_record_that_a_power_cut_left_empty_counts_by_its_age(tmp_path, seconds, lives):
    path = own(tmp_path / "r")
    path.write_text("")
    os.utime(path, (time.time() - seconds,) * 2)
    if lives:
        with pytest.raises(UserError, match="an unknown process"), hold(tmp_path / "r"):
            pass
    else:
        with hold(tmp_path / "r"):
            pass


def test_a_record_taken_below_a_newer_one_is_given_up(tmp_path, monkeypatch):
    """A slow process has read number 4 when others are at 6 and have removed 5."""
    own(tmp_path / "r", pid=dead_process(), started="1")
    link, others = lease._link, []

    def late(draft: Path, path: Path) -> bool:
        if not others:
            others.append(path.with_name("000006.json"))
            others[0].write_text(LeaseRecord.of_this_process().model_dump_json())
            path.with_name("000004.json").unlink()
        return link(draft, path)

    monkeypatch.setattr(lease, "_link", late)
    with pytest.raises(UserError, match="belongs to"), hold(tmp_path / "r"):
        pass
    assert [path.name for path in (tmp_path / "r" / "lease").iterdir()] == ["000006.json"]


def test_thirty_processes_start_resume_and_overwrite_one_run(tmp_path):
    (tmp_path / "c.yaml").write_text(
        f"name: toy\ndata: {{train: d.jsonl}}\nregistry: {{name: toy}}\ntracking: {{runs: {tmp_path / 'runs'}}}\n"
    )
    began = time.monotonic()
    environment = {key: value for key, value in os.environ.items() if key != "RANK"} | {"ALIGNMENT_TICK": "0"}
    done = subprocess.run(
        [sys.executable, RACING, tmp_path], capture_output=True, text=True, timeout=120, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    seen = "".join(path.read_text() for path in tmp_path.glob("seen-*"))
    assert "Traceback" not in seen, seen[-5000:]
    codes = [json.loads(line) for line in seen.splitlines() if line.startswith("{")]
    assert {row["code"] for row in codes} <= {0, 2}
    assert sum(row["code"] == 0 for row in codes) > 1
    assert "belongs to process" in seen and "failed as told" in seen
    run_dir = tmp_path / "runs" / "toy"
    assert sorted(path.name for path in run_dir.iterdir()) == [
        "config.json", "exit.json", "lease", "run.json", "samples.jsonl",
    ]  # fmt: skip
    assert len((run_dir / "samples.jsonl").read_text().splitlines()) == 1
    assert time.monotonic() - began < 20


# --- nothing is removed before its successor stands ------------------------------------------------------------------


def config(folder: Path, **changes) -> RunConfig:
    values = {"name": "r", "data": {"train": "x"}, "registry": {"name": "m"}, "tracking": {"runs": str(folder)}}
    return RunConfig.model_validate(values | changes)


def write(folder: Path) -> None:
    (folder / "weights").write_bytes(b"w")


def save(run_dir: Path, step: int) -> None:
    run = Run.read(run_dir)
    with Journal(run_dir) as journal:
        saver = Checkpoints(run_dir, run.id, keep=2, data="d", backend="plain", journal_offsets=journal.offsets)
        journal.log(step, {"x": 1.0})
        assert saver.save(step, write)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def earlier(tmp_path):
    """A run with a checkpoint that has ended."""
    resume.open_run_dir(config(tmp_path), overwrite=False)
    save(tmp_path / "r", 10)
    (tmp_path / "r" / "exit.json").write_text('{"code": 0}')
    return tmp_path / "r"


def test_an_overwritten_run_goes_at_the_first_checkpoint_of_the_new_one(earlier, tmp_path):
    before = contents(earlier)
    resume.open_run_dir(config(tmp_path), overwrite=True)
    assert contents(earlier / "aside-1") == before
    assert committed(earlier) == []
    save(earlier, 5)
    assert not aside.stack(earlier)
    assert [path.name for path in committed(earlier)] == ["step-000005"]


def test_an_overwritten_run_goes_at_the_end_of_one_that_saves_no_checkpoint(earlier, tmp_path):
    resume.open_run_dir(config(tmp_path), overwrite=True)
    resume.settle(earlier, 0)
    assert not aside.stack(earlier)


@pytest.mark.parametrize("code", [1, 2])
def test_where_the_new_run_fails_the_earlier_one_is_back(earlier, tmp_path, code, capsys):
    before = contents(earlier)
    for _ in range(2):
        resume.open_run_dir(config(tmp_path, data={"train": "y"}), overwrite=True)
        (earlier / "bad_rows.jsonl").write_text("{}\n")
        (earlier / "exit.json").write_text('{"code": 2}')
        resume.settle(earlier, code)
        now = contents(earlier)
        failed = {name: now.pop(name) for name in list(now) if name.startswith("failed/")}
        assert now == before
        assert sorted(failed) == [
            f"failed/{name}" for name in ("bad_rows.jsonl", "config.json", "exit.json", "run.json")
        ]
        assert "the earlier run is back in" in capsys.readouterr().err
    resume.open_run_dir(config(tmp_path), overwrite=False, resume="auto")
    save(earlier, 20)
    assert not (earlier / "failed").exists()


def test_a_killed_run_without_a_checkpoint_keeps_its_journal_and_the_job_script_its_code(tmp_path):
    resume.open_run_dir(config(tmp_path), overwrite=False)
    run_dir = tmp_path / "r"
    (run_dir / "metrics.jsonl").write_text('{"step": 1}\n')
    resume.open_run_dir(config(tmp_path, data={"train": "typo"}), overwrite=False, resume="auto")
    assert not (run_dir / "metrics.jsonl").exists()
    (run_dir / "exit.json").write_text('{"code": 2}')
    resume.settle(run_dir, 2)
    assert (run_dir / "metrics.jsonl").read_text() == '{"step": 1}\n'
    assert json.loads((run_dir / "config.json").read_text())["data"]["train"] == "x"
    assert json.loads((run_dir / "exit.json").read_text())["code"] == 2


def test_a_run_that_was_preempted_or_killed_early_goes_on_in_the_place_of_the_earlier_one(earlier, tmp_path):
    before = contents(earlier)
    resume.open_run_dir(config(tmp_path), overwrite=True)
    resume.settle(earlier, 75)
    assert contents(earlier / "aside-1") == before
    with pytest.raises(UserError, match="holds an earlier run"):  # also where it was refused: one is still aside
        resume.open_run_dir(config(tmp_path), overwrite=False)
    resume.open_run_dir(config(tmp_path), overwrite=False, resume="auto")
    assert [path.name for path in aside.stack(earlier)] == ["aside-2", "aside-1"]
    save(earlier, 5)
    assert not aside.stack(earlier)


@pytest.mark.parametrize("operation", ["push", "restore"])
def test_a_kill_at_any_step_loses_nothing(earlier, tmp_path, monkeypatch, operation):
    """A kill before the n-th rename; the next start finds the earlier run whole."""
    before, rename = contents(earlier), Path.rename
    for killed_at in range(30):
        done = []

        def rename_until(path: Path, target: Path, done=done, killed_at=killed_at) -> Path:
            if len(done) == killed_at:
                raise KeyboardInterrupt
            done.append(path)
            return rename(path, target)

        if operation == "restore":
            resume.open_run_dir(config(tmp_path), overwrite=True)
        try:
            with monkeypatch.context() as patched:
                patched.setattr(Path, "rename", rename_until)
                aside.push(earlier) if operation == "push" else aside.restore(earlier)
            break
        except KeyboardInterrupt:
            aside.recover(earlier)
            assert {name: data for name, data in contents(earlier).items() if "failed/" not in name} == before
    assert 4 < killed_at < 29


def test_a_kill_before_the_new_run_has_begun_takes_the_overwriting_back(earlier, tmp_path):
    before = contents(earlier)
    aside.push(earlier)
    with pytest.raises(UserError, match="holds an earlier run"):
        resume.open_run_dir(config(tmp_path), overwrite=False)
    assert contents(earlier) == before


def test_a_changed_config_holds_from_the_first_checkpoint_that_was_made_with_it(earlier, tmp_path):
    """Before, one that failed in the data check was what the next start was compared with."""
    changed = config(tmp_path, data={"train": "y"})

    def train_on() -> str:
        return json.loads((earlier / "config.json").read_text())["data"]["train"]

    for code in (2, 1, 75, None):  # None: it is killed
        resume.open_run_dir(changed, overwrite=False, resume="auto", allow_changes=True)
        assert train_on() == "y"
        if code is not None:
            resume.settle(earlier, code)
        with pytest.raises(UserError, match="was begun with another config"):
            resume.open_run_dir(changed, overwrite=False, resume="auto")
        assert train_on() == "x"
    resume.open_run_dir(changed, overwrite=False, resume="auto", allow_changes=True)
    save(earlier, 20)
    resume.settle(earlier, 1)
    assert train_on() == "y"
    assert not (earlier / "config-before.json").exists()
    resume.open_run_dir(changed, overwrite=False, resume="auto")


# --- a folder with a part missing ------------------------------------------------------------------------------------


def test_a_run_without_its_config_is_not_written_into(earlier, tmp_path):
    (earlier / "config.json").unlink()
    before = contents(earlier)
    with pytest.raises(UserError, match="holds an earlier run"):
        resume.open_run_dir(config(tmp_path), overwrite=False)
    assert contents(earlier) == before


@pytest.mark.parametrize("text", ["", "[]", "[" * 100_000, None])
def test_a_config_that_cannot_be_compared_is_one_line(earlier, tmp_path, text, capsys):
    path = earlier / "config.json"
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(UserError, match=r"config.json cannot be read .*--allow-changes") as error:
        resume.open_run_dir(config(tmp_path), overwrite=False, resume="auto")
    assert len(str(error.value).splitlines()) == 1
    resume.open_run_dir(config(tmp_path), overwrite=False, resume="auto", allow_changes=True)
    assert json.loads(path.read_text())["name"] == "r"


def test_checkpoints_without_run_json_are_refused_with_advice_that_helps(earlier, tmp_path):
    (earlier / "run.json").unlink()
    with pytest.raises(UserError, match=r"run.json.* is missing; .*--overwrite") as error:
        resume.open_run_dir(config(tmp_path), overwrite=False, resume="auto")
    assert "--resume auto" not in str(error.value)
    resume.open_run_dir(config(tmp_path), overwrite=True)


def test_a_folder_without_run_json_and_checkpoints_begins(tmp_path):
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "config.json").write_text("{}")  # killed between the two
    resume.open_run_dir(config(tmp_path), overwrite=False, resume="auto")
    assert Run.read(tmp_path / "r").attempt == 1


def test_a_refused_resume_sets_no_checkpoint_aside(earlier, tmp_path):
    save(earlier, 20)
    changed = config(tmp_path, data={"train": "y"})
    with pytest.raises(UserError, match="was begun with another config"):
        resume.open_run_dir(changed, overwrite=False, resume=str(earlier / "checkpoints" / "step-000010"))
    assert [path.name for path in committed(earlier)] == ["step-000020", "step-000010"]


@pytest.mark.parametrize(
    "name", ["checkpoints/step-000010/manifest.json", "run.json", "config.json", "exit.json", "metrics.jsonl"]
)
def test_a_fifo_in_a_files_place_does_not_hang(earlier, tmp_path, name, request):
    (earlier / name).unlink()
    os.mkfifo(earlier / name)
    signal.alarm(30)  # of a process that hangs
    request.addfinalizer(lambda: signal.alarm(0))

    def resumed() -> None:
        resume.finished(earlier)
        resume.open_run_dir(config(tmp_path), overwrite=False, resume="auto")
        Journal(earlier, resume=resume.begin(earlier).journal)

    if name == "exit.json":  # of an earlier attempt: it is replaced
        resumed()
    else:
        with pytest.raises(UserError, match=r"not a regular file|none of its 1 checkpoints is intact"):
            resumed()
