"""scripts/rate.py import, report, export and forget, as people run them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SHARED = Path(os.environ.get("ALIGNMENT_TEST_DATA") or ROOT.parent / "shared" / "data")


def rate(*arguments, code=0):
    command = [sys.executable, "scripts/rate.py", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == code, done.stderr
    return done


def test_published_ratings_come_in_are_reported_and_go_out(tmp_path):
    source = SHARED / "pandalm" / "testset-v1.json"
    if not source.exists():
        pytest.skip("no pandalm; name the folder of published data in ALIGNMENT_TEST_DATA")
    db, out = tmp_path / "ratings.db", tmp_path / "out.jsonl"
    done = json.loads(rate("import", "--db", db, "--format", "pandalm", source, "--json").stdout)
    assert (done["new_items"], done["new_ratings"], done["bad"]) == (999, 2997, {})
    shown = rate("report", "--db", db).stdout
    for figure in ("0.8642", "0.8520", "0.8789", "0.8617"):
        assert figure in shown
    found = json.loads(rate("report", "--db", db, "--json").stdout)
    assert round(found["agreement"]["alpha_nominal"]["value"], 4) == 0.8642
    said = rate("export", "--db", db, "--format", "hh", out).stdout
    assert "drops: ties" in said
    again = json.loads(rate("import", "--db", tmp_path / "b.db", "--format", "hh", out, "--json").stdout)
    written = len(out.read_text().splitlines())
    assert again["rows"] == again["new_items"] == again["new_ratings"] == written
    assert 800 < written < 999


def test_a_labeler_is_forgotten(tmp_path):
    rows = [
        {
            "kind": "pair",
            "prompt": [{"role": "user", "content": f"q{number}"}],
            "completions": [{"text": "a"}, {"text": "b"}],
            "ratings": [{"labeler": name, "choice": "first"} for name in ("ann", "bob")],
        }
        for number in range(3)
    ]
    source, db = tmp_path / "in.jsonl", tmp_path / "ratings.db"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    rate("import", "--db", db, "--format", "jsonl", source)
    registry = tmp_path / "registry"
    done = json.loads(rate("forget", "ann", "--db", db, "--registry", registry, "--json", "--yes").stdout)
    assert (done["ratings"], done["models"]) == (3, [])
    assert list(json.loads(rate("report", "--db", db, "--json").stdout)["labelers"]) == ["bob"]
    assert "ann: 0 ratings removed" in rate("forget", "ann", "--db", db, "--registry", registry).stdout


def test_a_file_that_cannot_be_imported_leaves_no_ratings_file(tmp_path):
    source, db = tmp_path / "in.jsonl", tmp_path / "ratings.db"
    source.write_text('{"chosen": "a"}\n')
    done = rate("import", "--db", db, "--format", "hh", source, code=2)
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert f"{source}:1: found the keys chosen; expected chosen+rejected" in done.stderr
    assert not db.exists()
