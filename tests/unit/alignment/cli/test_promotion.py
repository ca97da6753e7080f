"""`alignment models promote` and `rollback`, judged by the files that they leave."""

import json
import re
import shutil
from typing import Any

import pytest
from helpers.models_command import as_json, publish, refused, run
from hypothesis import given
from hypothesis import strategies as st

from alignment.registry import (
    Registry,
    aliases,
)
from alignment.registry.aliases import AliasEntry
from alignment.registry.lineage import flat_metrics
from alignment.registry.promotion import metric_values

METRICS = {"win_rate": {"value": 0.71, "ci": [0.65, 0.77]}, "eval": {"kl": 4.5, "loss": "nan"}, "rows": 12}


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
    assert as_json("aliases", "m") == {"name": "m", "aliases": {"prod": 1}, "rejected": {}}
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
    assert refused("rollback", "m", "prod") == (
        "m@prod cannot be rolled back: v1 is the first version that it points to; `alignment models demote m prod`"
    )
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
