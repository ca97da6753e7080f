"""Random damage to data files, configs, registries and requests: right, or refused in one of our own errors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import launching
import pytest
from helpers.figures import Trials

TITLE = "Random damage"
SECONDS = float(os.environ.get("ALIGNMENT_FUZZ_SECONDS", "60"))
TARGETS = ["data", "configs", "registry", "requests"]
ANSWER = "our own error or a result, within 10 s of work and 1 GiB"


def fuzz(tried: Trials, seconds: float, *targets: str) -> None:
    command = [sys.executable, str(Path(__file__).with_name("fuzzing.py")), str(seconds), *targets]
    limit = 600 + 8 * seconds
    done = subprocess.run(command, capture_output=True, text=True, env=launching.environment(), timeout=limit)
    try:
        found = json.loads(done.stdout)
    except ValueError:
        found = {"all": {"cases": 1, "finding": done.stderr[-6000:]}}
    for target, outcome in found.items():
        tried(f"{target}: cases", ANSWER, outcome["cases"])
    for target, outcome in found.items():
        assert "finding" not in outcome, f"{target}, seed {outcome.get('seed')}:\n{outcome['finding']}"
        assert outcome["cases"] > 0


def test_random_damage_is_refused_in_our_own_errors(tried):
    """A moment of each target."""
    fuzz(tried, 1, *TARGETS)


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_random_damage_is_refused_in_our_own_errors_for_long(tried, target):
    """For `ALIGNMENT_FUZZ_SECONDS`."""
    fuzz(tried, SECONDS, target)
