"""An alias can be taken away; a rejected model that an alias points to is marked wherever it is listed."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from helpers.models_command import as_json, publish, refused, run

from alignment.registry import Registry
from alignment.registry.reviews import Review, add_review


def reject(registry: Registry, ref: str, decision: str = "reject") -> None:
    version = registry.resolve(ref)
    said: dict[str, Any] = {"reviewer": "Ada", "note": "rude", "by": "x", "run": "r", "run_id": "r", "step": 1}
    add_review(registry, version, Review(at=datetime.now(UTC), decision=decision, verdict="pass",
                                         digest=version.digest, **said))  # fmt: skip


def test_an_alias_is_taken_away_with_history_and_comes_back(registry: Registry) -> None:
    for _ in range(3):
        publish(registry)
    for number in (1, 2, 3):
        as_json("promote", f"m@v{number}", "prod")
    assert as_json("demote", "m", "prod", "--why", "too rude") == {
        "name": "m", "alias": "prod", "version": None, "left": 3
    }  # fmt: skip
    assert as_json("aliases", "m")["aliases"] == {}
    assert "prod" not in run("list").stdout
    told = refused("show", "m@prod")
    assert "m@prod was taken away from v3 on" in told
    assert "(too rude), and points nowhere; it has v1, v2, v3 and no aliases" in told
    assert "taken away" in refused("demote", "m", "prod")
    assert as_json("doctor")["findings"] == []
    moves = as_json("aliases", "m", "prod")["history"]
    assert [(move["version"], move["demoted"], move["why"]) for move in moves][-1] == (3, True, "too rude")
    assert "v3 (taken away)" in run("aliases", "m", "prod").stdout and "too rude" in run("aliases", "m", "prod").stdout
    assert "expected v3" in refused("promote", "m@v1", "prod", "--expect", "v3")
    assert run("rollback", "m", "prod").stdout == "m@prod is v2 again, it was v3\n"
    assert as_json("rollback", "m", "prod")["version"] == 1
    as_json("demote", "m", "prod")
    assert as_json("promote", "m@v3", "prod", "--expect", "none")["version"] == 3
    assert "has no alias 'other'" in refused("demote", "m", "other")
    assert "no model 'n'" in refused("demote", "n", "prod")


def test_the_first_choice_can_be_taken_away(registry: Registry) -> None:
    publish(registry)
    as_json("promote", "m", "prod")
    assert "`alignment models demote m prod`" in refused("rollback", "m", "prod")
    as_json("demote", "m", "prod")
    told = refused("rollback", "m", "prod")
    assert told == (
        "m@prod was taken away from v1, the first version it pointed to; alignment models promote m@vN prod sets it"
    )
    as_json("promote", "m@v1", "prod")
    assert registry.load("m@prod").number == 1


def test_what_was_taken_away_is_kept_for_a_rollback_and_may_be_deleted(registry: Registry) -> None:
    for _ in range(4):
        publish(registry)
    as_json("promote", "m@v2", "prod")
    assert "alias 'prod' points to it" in refused("delete", "m@v2")
    as_json("demote", "m", "prod")
    assert as_json("gc", "--grace", "0")["kept"]["m@v2"] == "alias prod pointed to it before"
    assert as_json("gc", "--grace", "0", "--keep", "0")["removed"] == ["m@v1", "m@v2", "m@v3"]
    as_json("delete", "m@v2")


def test_a_rollback_from_nowhere_does_not_lead_to_a_rejected_version(registry: Registry) -> None:
    for _ in range(2):
        publish(registry)
    as_json("promote", "m@v1", "prod")
    as_json("promote", "m@v2", "prod")
    as_json("demote", "m", "prod")
    reject(registry, "m@v1")
    assert "m@prod points nowhere, since it was taken away from v2: m@v1 was rejected" in refused(
        "rollback", "m", "prod"
    )


def test_a_rejected_model_in_use_is_marked_everywhere(registry: Registry, tmp_path: Path) -> None:
    publish(registry)
    as_json("promote", "m@v1", "prod")
    reject(registry, "m@v1")
    child = publish(registry, "child", "m@v1")
    marked = "m@prod points to it"
    assert as_json("list")["models"][1]["rejected"]["prod"].endswith(marked)
    listed = run("list").stdout
    assert "m@v1 (rejected)" in listed and "prod=v1 (REJECTED)" in listed
    assert marked in as_json("show", "m")["rejected"] and "REJECTED" in run("show", "m").stdout
    assert marked in run("aliases", "m").stdout and marked in as_json("aliases", "m")["rejected"]["prod"]
    assert marked in run("graph", "child").stdout and marked in run("graph", "child", "--mermaid").stdout
    assert [node["rejected"] is not None for node in as_json("graph", "child")["nodes"]] == [False, True]
    page = tmp_path / "lineage.html"
    run("graph", "child", "--html", str(page))
    assert "<b>rejected</b>" in page.read_text() and marked in page.read_text()
    assert "**m@v1** was rejected by Ada" in (child.path / "README.md").read_text()
    reject(registry, "m@v1", "approve")
    assert as_json("show", "m")["rejected"] is None
    assert "ejected" not in run("list").stdout and "REJECTED" not in run("show", "m").stdout


def test_an_entry_of_the_highest_number_is_named_by_writer_and_doctor(registry: Registry) -> None:
    for _ in range(2):
        publish(registry)
    as_json("promote", "m@v1", "prod")
    history = registry.path / "models/m/aliases/prod"
    jump = history / "99999999.json"
    jump.write_bytes((history / "00000001.json").read_bytes())
    told = refused("promote", "m@v2", "prod")
    assert f"{jump} has the highest number, so nothing can follow it" in told
    assert as_json("aliases", "m")["aliases"] == {"prod": 1}
    (finding,) = as_json("doctor", code=1)["findings"]
    assert finding["problem"] == "its history jumps from move 1 to 99999999, and nothing can follow"
    assert finding["fix"] == f"move {jump} elsewhere: the alias is then where move 1 put it"
    jump.unlink()  # what the line says
    as_json("promote", "m@v2", "prod")
    assert as_json("aliases", "m")["aliases"] == {"prod": 2}
    assert as_json("doctor")["findings"] == []


@pytest.mark.parametrize("number", [9, 99_999_998])
def test_a_jump_that_leaves_room_is_followed_by_writer_and_reader_alike(registry: Registry, number: int) -> None:
    for _ in range(2):
        publish(registry)
    as_json("promote", "m@v1", "prod")
    history = registry.path / "models/m/aliases/prod"
    (history / f"{number:08d}.json").write_bytes((history / "00000001.json").read_bytes())
    as_json("promote", "m@v2", "prod")
    assert as_json("aliases", "m")["aliases"] == {"prod": 2}
    assert (history / f"{number + 1:08d}.json").exists()
    finding = as_json("doctor", code=1)["findings"][0]
    assert finding["problem"] == f"its history jumps from move 1 to {number}"


def test_numbers_beyond_the_limit_are_no_versions(registry: Registry) -> None:
    version = publish(registry)
    models = registry.path / "models/m"
    (models / "v9999999999").mkdir()
    (models / "v0000002").mkdir()
    assert [finding["where"] for finding in as_json("doctor", code=1)["findings"]] == [
        "models/m/v0000002", "models/m/v9999999999"
    ]  # fmt: skip
    assert publish(registry).number == 2
    manifest = json.loads((version.path / "manifest.json").read_bytes())
    (models / "v999999999").mkdir()
    (models / "v999999999/manifest.json").write_text(json.dumps(manifest | {"version": 999_999_999}))
    result = run("doctor", "--json")
    gap = next(item for item in json.loads(result.stdout)["findings"] if item["kind"] == "gap")
    assert gap["where"] == "m@v3 to v999999998" and str(models / "v999999999") in gap["fix"]
    with pytest.raises(Exception, match=r"m cannot be published: .*v999999999 has the highest number"):
        publish(registry)


def test_demote_takes_the_name_with_its_version(registry: Registry) -> None:
    for number in (1, 2):
        publish(registry)
        as_json("promote", f"m@v{number}", "prod")
    assert "m@prod points to v2, not v1: alignment models demote m prod" in refused("demote", "m@v1", "prod")
    assert as_json("demote", "m@v2", "prod")["left"] == 2


def test_promote_says_that_its_arguments_are_swapped(registry: Registry) -> None:
    publish(registry)
    assert refused("promote", "prod", "m@v1") == (
        "m@v1 is a model: it stands first, then the alias: alignment models promote m@v1 prod"
    )
