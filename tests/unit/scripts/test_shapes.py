"""The table of shapes, for a handful of types: each was wrong, or a traceback, at some step."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
FEW = ("granitemoe", "bert (no decoder)")
MORE = (
    "llama", "mixtral (router logits on)", "gpt_oss", "doge", "bert", "roberta", "modernbert-decoder", "bart",
    "rwkv", "nemotron_h", "cohere", "mamba", "opt (projected, as OPT-350m)", "xglm (an added token)",
    "llama (padded vocabulary)",
)  # fmt: skip


def outcomes(folder, kinds):
    command = [sys.executable, str(ROOT / "scripts" / "shapes.py"), *kinds, "--json", "--out", str(folder / "page.md")]
    run = subprocess.run(command, capture_output=True, text=True, timeout=600)
    found = json.loads(run.stdout.splitlines()[-1])["results"]
    assert run.returncode == 0, run.stderr
    return {result["kind"]: result for result in found}


def test_a_handful_of_types_is_right_or_refused_at_once(tmp_path):
    found = outcomes(tmp_path, FEW)
    assert found["granitemoe"]["outcome"] == "ok", found
    refused = found["bert (no decoder)"]
    assert (refused["outcome"], refused["stage"]) == ("refused", "sft")
    assert "no causal model" in refused["said"]
    page = (tmp_path / "page.md").read_text()
    assert "granitemoe" in page.partition("Without a remark")[2].partition("| model type")[0]
    assert "| bert (no decoder) | refused (sft) |" in page


@pytest.mark.slow
def test_types_that_were_wrong_are_right(tmp_path):
    found = outcomes(tmp_path, MORE)
    assert {kind: result["outcome"] for kind, result in found.items()} == dict.fromkeys(MORE, "ok")
