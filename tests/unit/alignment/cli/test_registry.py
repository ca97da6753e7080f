"""`alignment models verify`, `doctor`, `gc` and `delete`, judged by the files that they leave."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from helpers.models_command import CONTENT, as_json, publish, refused, run

import alignment.cli.main
from alignment.registry import (
    Parent,
    Registry,
    RegistryError,
    aliases,
    publishing,
    retention,
    trash,
)


def there(registry: Registry) -> set[str]:
    """The versions on disk."""
    folders = (registry.path / "models").glob("*/v*")
    return {f"{folder.parent.name}@v{int(folder.name[1:])}" for folder in folders}


def in_trash(registry: Registry) -> set[str]:
    return {re.sub(r"@v0*(\d+)@\d+$", r"@v\1", path.name) for path in (registry.path / ".trash").glob("*")}


def test_verify_names_the_damage_and_exits_1(registry: Registry, tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        publish(registry, name)
    assert run("verify", "--all").stdout == "a@v1 ok\nb@v1 ok\nc@v1 ok\n"
    weights = registry.resolve("b").path / "model.safetensors"
    weights.chmod(0o644)
    weights.write_bytes(CONTENT[:-1] + b"S")
    os.link(registry.resolve("c").path / "config.json", tmp_path / "link")
    report = as_json("verify", "--all", code=1)
    assert [report[key] for key in ("checked", "damaged")] == [3, 2]
    assert [version["ref"] for version in report["versions"] if version["problems"]] == ["b@v1", "c@v1"]
    assert "model.safetensors has sha256" in report["versions"][1]["problems"][0]
    assert "config.json has another hard link" in report["versions"][2]["problems"][0]
    assert run("verify", "b", "--mode", "fast").exit_code == 0
    assert run("verify", "b@v1").exit_code == run("verify", "b", "--mode", "cached").exit_code == 1
    assert run("verify", "a").exit_code == 0
    assert "--all" in refused("verify")
    assert "--all" in refused("verify", "a", "--all")
    assert "expected one of cached, full, fast" in refused("verify", "a", "--mode", "quick")


def test_verify_finds_an_unreadable_manifest(registry: Registry) -> None:
    (publish(registry).path / "manifest.json").unlink()
    assert "manifest.json cannot be read" in as_json("verify", "m@v1", code=1)["versions"][0]["problems"][0]


def leave_behind(registry: Registry, host: str, pid: int, hours: float, suffix: str = "") -> Path:
    path = registry.path / ".staging" / f"{host}-{pid}-{'0' * 31}{len(os.listdir(registry.path / '.staging'))}{suffix}"
    if suffix:
        path.write_text("{}")
    else:
        (path / "sub").mkdir(parents=True)
    for place in [*path.rglob("*"), path]:
        os.utime(place, (time.time() - hours * 3600,) * 2)
    return path


def test_doctor_tells_what_is_left_behind_from_what_is_at_work(registry: Registry) -> None:
    publish(registry)
    host = re.sub(r"[^A-Za-z0-9.]", "", os.uname().nodename)
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    gone = [
        leave_behind(registry, host, child.pid, 0),
        leave_behind(registry, host, child.pid, 0, ".json"),
        leave_behind(registry, "elsewhere", os.getpid(), 25),
        leave_behind(registry, host, os.getpid(), 25, ".json"),
    ]
    busy = [leave_behind(registry, "elsewhere", child.pid, 23), leave_behind(registry, host, os.getpid(), 0)]
    (busy[0] / "sub" / "late").write_text("")
    found = as_json("doctor", code=1)["findings"]
    assert {item["where"] for item in found} == {f".staging/{path.name}" for path in gone}
    assert all(item["kind"] == "leftover" and item["safe"] and not item["mended"] for item in found)
    assert as_json("doctor", "--fix")["findings"][0]["mended"]
    assert sorted((registry.path / ".staging").iterdir()) == sorted(busy)
    assert as_json("doctor")["findings"] == []


def test_doctor_finds_damage_gaps_and_aliases_to_nowhere(registry: Registry, tmp_path: Path) -> None:
    for name in ("a", "b", "c", "d"):
        for _ in range(3):
            publish(registry, name)
    publish(registry, "child", "d@v1")
    assert as_json("doctor")["findings"] == []
    models = registry.path / "models"
    (models / "a/v000002/config.json").unlink()
    registry.set_alias("b", "prod", 2)
    shutil.rmtree(models / "b/v000002")
    as_json("delete", "c@v2")
    (models / "c/stray").mkdir()
    (models / "Odd").mkdir()
    (models / "d/v000001").rename(tmp_path / "d1")
    os.link(models / "a/v000001/config.json", tmp_path / "link")
    (models / "c/v000003").rename(tmp_path / "real")
    (models / "c/v000003").symlink_to(tmp_path / "real")
    found = {(item["kind"], item["where"]) for item in as_json("doctor", code=1)["findings"]}
    assert found == {
        ("shared file", "a@v1"),
        ("damaged version", "a@v2"),
        ("gap", "b@v2"),
        ("alias", "b@prod"),
        ("damaged version", "c@v3"),
        ("gap", "d@v1"),
        ("missing", "d@v1"),
        ("stray", "models/Odd"),
        ("stray", "models/c/stray"),
    }
    assert run("doctor", "--fix").exit_code == 1
    assert "fix: publish it again, then alignment models delete a@v2" in run("doctor").stdout


def test_doctor_ends_a_removal_that_was_cut_off(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(registry), publish(registry), publish(registry, "child", "m@v2")
    trash.write_note(registry.path, ("m", 1), trash.REMOVED, "")
    publish(registry)
    trash.move_to_trash(registry.path, ("m", 2), "")
    kinds = {item["kind"] for item in as_json("doctor", code=1)["findings"]}
    assert kinds == {"in the trash"}, "a note on what came to its place just now may be that of a job at work"
    monkeypatch.setattr(trash, "TRANSIT_SECONDS", 0.0)
    kinds = {item["kind"] for item in as_json("doctor", code=1)["findings"]}
    assert kinds == {"cut off", "in the trash"}
    as_json("doctor", "--fix")
    assert there(registry) == {"m@v1", "m@v2", "m@v3", "child@v1"}
    assert as_json("doctor")["findings"] == []


def family(registry: Registry) -> None:
    """m: v1 base of the adapter, v2 to v5 once prod, v6 forgotten, v7 protected, v8 newest; old and older: a chain."""
    for _ in range(8):
        publish(registry)
    base = registry.resolve("m@v1")
    publish(registry, "adapter", base=Parent("base", base.ref, base.digest))
    for number in (2, 3, 4, 5):
        as_json("promote", f"m@v{number}", "prod")
    as_json("protect", "m@v7", "--why", "in the paper")
    publish(registry, "older", "m@v6"), publish(registry, "older")
    publish(registry, "old", "older@v1"), publish(registry, "old")


def test_gc_removes_what_nothing_needs_and_only_when_told(registry: Registry) -> None:
    family(registry)
    before = there(registry)
    assert as_json("gc")["removed"] == []  # all of them are younger than a week
    plan = as_json("gc", "--grace", "0")
    assert set(plan["removed"]) == {"m@v2", "m@v6", "old@v1", "older@v1"}
    order = plan["removed"]
    assert order.index("old@v1") < order.index("older@v1") < order.index("m@v6")
    assert plan["kept"] == {
        "adapter@v1": "the newest",
        "m@v1": "parent of adapter@v1",
        "m@v3": "alias prod pointed to it before",
        "m@v4": "alias prod pointed to it before",
        "m@v5": "alias prod",
        "m@v7": "protected",
        "m@v8": "the newest",
        "old@v2": "the newest",
        "older@v2": "the newest",
    }
    assert there(registry) == before
    result = run("gc", "--grace", "0", "--delete")
    assert result.exit_code == 0
    removed = {"m@v2", "m@v6", "old@v1", "older@v1"}
    assert {line.split()[1] for line in result.stdout.splitlines() if line.startswith("remove")} == removed
    assert there(registry) == before - removed
    assert in_trash(registry) == removed
    assert publish(registry).number == 9
    assert as_json("doctor")["findings"] == []
    assert as_json("restore", "m@v6") == {"ref": "m@v6", "done": "restored"}
    registry.load("m@v6", verify="full")
    assert as_json("gc", "--purge-after", "0", "--delete")["purged"] == ["m@v2", "old@v1", "older@v1"]
    assert in_trash(registry) == set()
    assert "is not in the trash" in refused("restore", "m@v2")
    assert registry.numbers("m") == [1, 3, 4, 5, 6, 7, 8, 9]


def test_gc_keeps_as_many_former_versions_as_told(registry: Registry) -> None:
    family(registry)
    as_json("gc", "--grace", "0", "--keep", "0", "--delete")
    assert {ref for ref in there(registry) if ref.startswith("m@")} == {"m@v1", "m@v5", "m@v7", "m@v8"}


@pytest.mark.parametrize(("age", "removed"), [("59m", ["m@v1"]), ("61m", []), ("1h", ["m@v1"])])
def test_grace_counts_from_the_younger_of_both_clocks(registry: Registry, age: str, removed: list[str]) -> None:
    version = publish(registry)
    publish(registry)
    hour_ago = time.time() - 3601
    os.utime(version.path, (hour_ago, hour_ago))
    assert as_json("gc", "--grace", age)["removed"] == []  # the manifest says it was made now
    manifest = version.path / "manifest.json"
    changed = json.loads(manifest.read_bytes()) | {"created_at": "2020-01-01T00:00:00Z"}
    manifest.unlink()
    manifest.write_text(json.dumps(changed))
    assert as_json("gc", "--grace", "1m")["removed"] == []  # the folder does
    os.utime(version.path, (hour_ago, hour_ago))
    assert as_json("gc", "--grace", age)["removed"] == removed
    assert "'1w' is no age" in refused("gc", "--grace", "1w")


def test_gc_removes_nothing_while_a_version_cannot_be_read(registry: Registry) -> None:
    publish(registry), publish(registry), publish(registry)
    (registry.path / "models/m/v000002/manifest.json").unlink()
    before = there(registry)
    assert refused("gc", "--grace", "0", "--delete").startswith("nothing is removed: what m@v2 was made from is not")
    assert there(registry) == before
    as_json("delete", "m@v2")  # its own advice
    assert as_json("gc", "--grace", "0", "--delete")["removed"] == ["m@v1"]


def test_a_parent_taken_while_it_is_removed_comes_back(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever is first: the job that starts to use a version, or the collection that removes it."""
    publish(registry, "grandparent"), publish(registry, "grandparent")
    publish(registry, "parent", "grandparent@v1"), publish(registry, "parent")
    move = retention.move_to_trash

    def at_once(root: Path, key: trash.Key, why: str) -> bool:
        monkeypatch.setattr(retention, "move_to_trash", move)
        monkeypatch.setattr(publishing, "restore_used", lambda *_: [])  # that job is killed before it looks itself
        publish(registry, "child", "parent@v1")
        return move(root, key, why)

    monkeypatch.setattr(retention, "move_to_trash", at_once)
    plan = as_json("gc", "--grace", "0", "--delete")
    assert (plan["removed"], set(plan["returned"])) == ([], {"parent@v1", "grandparent@v1"})
    assert {"parent@v1", "grandparent@v1"} <= there(registry)
    assert as_json("doctor")["findings"] == []


def test_a_job_takes_its_parents_out_of_the_trash(registry: Registry) -> None:
    publish(registry, "grandparent"), publish(registry, "grandparent")
    publish(registry, "parent", "grandparent@v1"), publish(registry, "parent")
    pinned = registry.resolve("parent@v1")
    as_json("gc", "--grace", "0", "--delete")
    assert there(registry) == {"grandparent@v2", "parent@v2"}
    start = Parent("init", pinned.ref, pinned.digest)
    child = registry.publish("child", registry.path.parent / "source", stage="sft", role="policy", parents=[start])
    assert child.manifest.parents == (start,)
    assert there(registry) == {"grandparent@v1", "grandparent@v2", "parent@v1", "parent@v2", "child@v1"}
    assert in_trash(registry) == set()


def test_an_alias_set_while_its_version_is_removed_brings_it_back(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(registry), publish(registry)
    real = aliases.move_alias

    def late(*arguments: Any) -> None:
        trash.move_to_trash(registry.path, ("m", 1), "")
        real(*arguments)

    monkeypatch.setattr(aliases, "move_alias", late)
    registry.set_alias("m", "prod", 1)
    assert registry.load("m@prod").number == 1


def test_a_number_that_was_removed_is_not_taken_by_a_slow_job(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(registry)
    rename = os.rename

    def slow(old: Any, new: Any) -> None:
        monkeypatch.setattr(os, "rename", rename)
        publish(registry), publish(registry)
        trash.move_to_trash(registry.path, ("m", 2), "")
        rename(old, new)  # to v2, which is free again

    monkeypatch.setattr(os, "rename", slow)
    late = publish(registry)
    assert late.number == json.loads((late.path / "manifest.json").read_bytes())["version"] == 4
    assert there(registry) == {"m@v1", "m@v3", "m@v4"}
    late.verify()


def test_what_is_being_restored_is_not_removed_again(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """A removal between the rename and the end of its note would leave the number free, without a note."""
    publish(registry), publish(registry)
    trash.move_to_trash(registry.path, ("m", 1), "")
    drop = trash.drop_note

    def collected_first(*arguments: Any) -> bool:
        monkeypatch.setattr(trash, "drop_note", drop)
        assert as_json("gc", "--grace", "0", "--delete")["removed"] == []
        assert "another job is moving it" in refused("delete", "m@v1")
        return drop(*arguments)

    monkeypatch.setattr(trash, "drop_note", collected_first)
    assert trash.restore_version(registry.path, ("m", 1))
    assert there(registry) == {"m@v1", "m@v2"}
    assert as_json("doctor")["findings"] == []
    assert as_json("gc", "--grace", "0", "--delete")["removed"] == ["m@v1"]


def test_a_removal_that_was_killed_after_its_note_is_done_by_the_next(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(registry), publish(registry)
    trash.write_note(registry.path, ("m", 1), trash.REMOVED, "")
    monkeypatch.setattr(trash, "TRANSIT_SECONDS", 0.0)
    assert as_json("gc", "--grace", "0", "--delete")["removed"] == ["m@v1"]


def test_a_slow_job_takes_back_its_own_folder_and_no_other(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """While it stands at a number that was removed, a collection runs, and somebody begins to use that version."""
    publish(registry)
    rename, noted = os.rename, publishing.noted
    taken = {}

    def slow(old: Any, new: Any) -> None:
        monkeypatch.setattr(os, "rename", rename)
        taken["digest"] = publish(registry).digest
        publish(registry)
        trash.move_to_trash(registry.path, ("m", 2), "")
        monkeypatch.setattr(publishing, "noted", between)
        rename(old, new)  # to v2, which is free again

    def between(*arguments: Any) -> list[int]:
        monkeypatch.setattr(publishing, "noted", noted)
        assert "m@v2" not in as_json("gc", "--grace", "0", "--delete")["removed"]
        start = Parent("init", "m@v2", taken["digest"])
        registry.publish("child", registry.path.parent / "source", stage="sft", role="policy", parents=[start])
        return noted(*arguments)

    monkeypatch.setattr(os, "rename", slow)
    late = publish(registry)
    late.verify()
    assert late.number == 4
    assert as_json("gc", "--grace", "0", "--delete")["returned"] == ["m@v2"]
    assert registry.resolve("m@v2").digest == taken["digest"]


def test_delete_is_refused_for_what_is_in_use(registry: Registry) -> None:
    family(registry)
    assert "adapter@v1 was made from it" in refused("delete", "m@v1")
    assert "alias 'prod' points to it" in refused("delete", "m@prod")
    assert "older@v1 was made from it" in refused("delete", "m@v6")
    assert "it is protected" in refused("delete", "m@v7")
    assert "it is the newest" in refused("delete", "m@v8")
    assert "has no version v99" in refused("delete", "m@v99")
    before = there(registry)
    assert as_json("unprotect", "m@v7") == {"ref": "m@v7", "done": "unprotected"}
    assert refused("unprotect", "m@v7") == "m@v7 is not protected; nothing to do"
    assert as_json("delete", "m@v7") == {"ref": "m@v7", "done": "deleted"}
    assert there(registry) == before - {"m@v7"}
    note = json.loads((registry.path / "models/m/removed/v000007.json").read_bytes())
    assert note["why"] == "deleted"


def test_two_collections_at_once_do_not_fail(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(registry), publish(registry)
    move = retention.move_to_trash

    def twice(root: Path, key: trash.Key, why: str) -> bool:
        assert move(root, key, why)
        return move(root, key, why)

    monkeypatch.setattr(retention, "move_to_trash", twice)
    assert as_json("gc", "--grace", "0", "--delete")["removed"] == []
    assert there(registry) == {"m@v2"}


def test_an_empty_registry_needs_nothing(registry: Registry) -> None:
    assert as_json("gc", "--delete")["removed"] == []
    assert as_json("doctor")["findings"] == as_json("verify", "--all")["versions"] == []
    assert not registry.path.exists()


def completed(words: str) -> list[str]:
    environment = {**os.environ, "_ALIGNMENT_COMPLETE": "complete_bash", "COMP_WORDS": words}
    environment["COMP_CWORD"] = str(len(words.split(" ")) - 1)
    command = [sys.executable, "-m", "alignment.cli.main"]
    root = Path(alignment.cli.main.__file__).parents[2]
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=60).stdout.split()


def test_the_shell_completes_commands_names_aliases_and_versions(registry: Registry) -> None:
    publish(registry, "desk-sft"), publish(registry, "desk-sft"), publish(registry, "desk-ppo"), publish(registry, "x")
    registry.set_alias("desk-sft", "prod", 1)
    assert "promote" in completed("alignment models pro")
    assert completed("alignment models show desk-") == ["desk-ppo", "desk-sft"]
    assert completed("alignment models rollback desk-s") == ["desk-sft"]
    from alignment.cli.completion import complete_reference

    class Context:
        params: dict[str, Any] = {}

    assert complete_reference(Context(), "desk-sft@") == ["desk-sft@prod", "desk-sft@v2", "desk-sft@v1"]
    assert complete_reference(Context(), "nobody@") == []
    Context.params = {"registry": __file__}
    assert complete_reference(Context(), "d") == []
    with pytest.raises(RegistryError):
        Registry(__file__)
