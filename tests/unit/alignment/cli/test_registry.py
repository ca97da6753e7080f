"""The commands of `alignment models` that change the registry or look after it, judged by the files they leave."""

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
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

import alignment.cli.main
from alignment.registry import (
    Parent,
    Registry,
    RegistryError,
    Version,
    aliases,
    provenance,
    publishing,
    retention,
    trash,
)
from alignment.registry.aliases import AliasEntry
from alignment.registry.lineage import flat_metrics
from alignment.registry.promotion import metric_values

CONTENT = (2).to_bytes(8, "little") + b"{}" + b"weights"
METRICS = {"win_rate": {"value": 0.71, "ci": [0.65, 0.77]}, "eval": {"kl": 4.5, "loss": "nan"}, "rows": 12}


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    monkeypatch.setattr(provenance, "code_state", lambda: None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("ALIGNMENT_VERIFY", raising=False)
    monkeypatch.setenv("ALIGNMENT_REGISTRY", str(tmp_path / "registry"))
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "adapter_config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(CONTENT)
    return Registry()


def publish(registry: Registry, name: str = "m", *parents: str, **fields: Any) -> Version:
    source = registry.path.parent / "source"
    made_from = [Parent("init", parent) for parent in parents]
    return registry.publish(name, source, **{"stage": "sft", "role": "policy", "parents": made_from, **fields})


def run(*arguments: str) -> Result:
    return CliRunner().invoke(alignment.cli.main.app, ["models", *arguments])


def as_json(*arguments: str, code: int = 0) -> Any:
    result = run(*arguments, "--json")
    assert (result.exit_code, result.stderr) == (code, "")
    return json.loads(result.stdout)


def refused(*arguments: str) -> str:
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.count("\n") == 1
    return result.stderr.removeprefix("error: ").strip()


def there(registry: Registry) -> set[str]:
    """The versions on disk."""
    folders = (registry.path / "models").glob("*/v*")
    return {f"{folder.parent.name}@v{int(folder.name[1:])}" for folder in folders}


def in_trash(registry: Registry) -> set[str]:
    return {re.sub(r"@v0*(\d+)@\d+$", r"@v\1", path.name) for path in (registry.path / ".trash").glob("*")}


# promote, rollback, aliases


def test_a_promotion_is_recorded_with_its_reasons(registry: Registry) -> None:
    publish(registry, metrics=METRICS)
    done = as_json("promote", "m", "prod", "--require", "win_rate.low >= 0.6", "--require", "eval.kl<8",
                   "--reviewed-by", "Ada", "--expect", "none")  # fmt: skip
    told = ["m@v1: its win rate is judged by a judge that was not recorded"]
    assert done == {"name": "m", "alias": "prod", "version": 1, "caveats": told}
    (path,) = (registry.path / "models/m/aliases/prod").iterdir()
    entry = json.loads(path.read_bytes())
    assert entry["digest"] == registry.resolve("m@v1").digest
    assert (entry["reviewed_by"], entry["required"]) == ("Ada", ["win_rate.low>=0.6", "eval.kl<8"])
    assert re.fullmatch(r"\S+@\S+", entry["by"])
    table = run("aliases", "m", "prod").stdout
    assert all(word in table for word in ("v1", "Ada", "win_rate.low>=0.6, eval.kl<8", entry["by"]))
    assert as_json("aliases", "m") == {"name": "m", "aliases": {"prod": 1}}
    assert as_json("aliases", "m", "prod")["history"][0]["reviewed_by"] == "Ada"


@pytest.mark.parametrize(
    ("requirement", "message"),
    [
        ("win_rate>0.71", "win_rate is 0.71, required win_rate>0.71"),
        ("win_rate.low>=0.7", "win_rate.low is 0.65, required"),
        ("win_rate.high<=0.7", "win_rate.high is 0.77, required"),
        ("rows==13", "rows is 12, required rows==13"),
        ("eval.loss<1e9", "eval.loss is nan, required"),
        ("eval.loss>=-1e9", "eval.loss is nan, required"),
        ("winrate>=0.5", "has no metric 'winrate'; did you mean win_rate"),
        ("loss<1", "has no metric 'loss'; did you mean eval.loss"),
        ("win_rate", "is not a requirement: write METRIC>=NUMBER"),
        ("win_rate>=much", "is not a requirement"),
        ("win_rate>=nan", "is not a requirement"),
        (">=3", "is not a requirement"),
    ],
)
def test_what_is_required_and_not_met_stops_the_move(registry: Registry, requirement: str, message: str) -> None:
    publish(registry, metrics=METRICS)
    assert message in refused("promote", "m", "prod", "--require", "rows>=1", "--require", requirement)
    assert registry.aliases("m") == {}


def test_a_damaged_version_is_not_promoted(registry: Registry) -> None:
    version = publish(registry)
    (version.path / "config.json").unlink()
    assert "config.json is missing" in refused("promote", "m", "prod")


def test_a_promotion_can_expect_where_the_alias_is(registry: Registry) -> None:
    publish(registry), publish(registry)
    as_json("promote", "m@v1", "prod")
    assert "'prod' is v1, expected v2" in refused("promote", "m@v2", "prod", "--expect", "v2")
    assert "'prod' is v1, expected not set" in refused("promote", "m@v2", "prod", "--expect", "none")
    assert "--expect is '1'" in refused("promote", "m@v2", "prod", "--expect", "1")
    as_json("promote", "m@v2", "prod", "--expect", "v1")
    assert registry.aliases("m") == {"prod": 2}


numbers = st.integers(-5, 5) | st.floats(-5, 5)
leaves = numbers | st.booleans() | st.just("nan") | st.text(max_size=3)
metrics_like = st.recursive(
    leaves | st.fixed_dictionaries({"value": numbers, "ci": st.lists(numbers, min_size=2, max_size=2)}),
    lambda inner: st.dictionaries(st.text("ab.\n ", max_size=3), inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.text("ab", min_size=1, max_size=2), metrics_like, max_size=3))
def test_metrics_are_named_as_they_are_printed(metrics: dict[str, Any]) -> None:
    printed = [name for name, _ in flat_metrics(metrics)]
    assert [name for name, _ in metric_values(metrics) if not name.endswith((".low", ".high"))] == printed


def test_rollback_goes_back_through_the_choices(registry: Registry) -> None:
    for _ in range(4):
        publish(registry)
    for number in (1, 2, 2, 3):
        as_json("promote", f"m@v{number}", "prod")
    assert run("rollback", "m", "prod").stdout == "m@prod is v2 again, it was v3\n"
    assert as_json("rollback", "m", "prod")["version"] == 1
    assert refused("rollback", "m", "prod") == "m@prod cannot be rolled back: v1 is the first version that it points to"
    as_json("promote", "m@v4", "prod")
    assert as_json("rollback", "m", "prod")["version"] == 1
    moves = as_json("aliases", "m", "prod")["history"]
    assert [(move["version"], move["rollback"]) for move in moves] == [
        *((1, False), (2, False), (2, False), (3, False)),
        *((2, True), (1, True), (4, False), (1, True)),
    ]
    assert "has no alias 'best'" in refused("rollback", "m", "best")


@given(st.lists(st.integers(1, 4) | st.none(), max_size=12))
def test_rollback_is_undo(steps: list[int | None]) -> None:
    """Against a plain stack of choices; None is a rollback."""
    moves: list[AliasEntry] = []
    stack: list[int] = []
    for step in steps:
        before = aliases.version_before(moves)
        assert before == (stack[-2] if len(stack) > 1 else None)
        if step is None and before is None:
            continue
        if step is None:
            stack.pop()
        elif not stack or stack[-1] != step:
            stack.append(step)
        fields = {"version": stack[-1], "rollback": step is None, "at": "2030-01-01T00:00:00Z"}
        moves.append(AliasEntry.model_validate({**fields, "digest": "sha256:" + "0" * 64}))


def test_a_rollback_to_a_removed_version_leaves_the_alias(registry: Registry) -> None:
    publish(registry), publish(registry)
    as_json("promote", "m@v1", "prod")
    as_json("promote", "m@v2", "prod")
    shutil.rmtree(registry.path / "models/m/v000001")
    assert refused("rollback", "m", "prod").startswith("m@prod stays at v2: m has no version v1")


# verify and doctor


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


def test_doctor_ends_a_removal_that_was_cut_off(registry: Registry) -> None:
    publish(registry), publish(registry), publish(registry, "child", "m@v2")
    trash.write_note(registry.path, ("m", 1), trash.REMOVED, "")
    publish(registry)
    trash.move_to_trash(registry.path, ("m", 2), "")
    kinds = {item["kind"] for item in as_json("doctor", code=1)["findings"]}
    assert kinds == {"cut off", "in the trash"}
    as_json("doctor", "--fix")
    assert there(registry) == {"m@v1", "m@v2", "m@v3", "child@v1"}
    assert as_json("doctor")["findings"] == []


# gc, delete, protect


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


# Completion


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
