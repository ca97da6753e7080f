"""Planned memory against the peak of real runs on models of 110 million parameters, each in a process of its own."""

import launching
import pytest

BRIEF = ("sft full", "sft lora", "reward", "ppo separate", "ppo shared")


@pytest.mark.slow
def test_a_run_takes_what_was_planned_within_fifteen_percent(monkeypatch):
    monkeypatch.syspath_prepend(str(launching.ROOT / "scripts"))
    monkeypatch.setenv("WANDB_MODE", "offline")
    from memory_table import compare

    report = compare(BRIEF, threads=1)
    assert report["parameters"] >= 100_000_000
    ratios = {case: found["planned"] / found["measured"] for case, found in report["cases"].items()}
    assert set(ratios) == set(BRIEF)
    assert {case: ratio for case, ratio in ratios.items() if not 0.85 <= ratio <= 1.15} == {}
