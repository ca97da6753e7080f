"""The door to the studies; and the over-optimisation study: its settings, its table and picture from made-up rows."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from studies import overoptimisation as study
from studies import upper_layers

DOOR = Path(__file__).resolve().parents[3] / "scripts" / "study.py"


def test_the_door_runs_a_study_and_names_them_all():
    def run(*arguments):
        return subprocess.run([sys.executable, DOOR, *arguments], capture_output=True, text=True, timeout=120)

    shown = run("overoptimisation", "--help")
    assert shown.returncode == 0 and "usage: study.py overoptimisation" in shown.stdout
    studies = (
        "influence, intervals, length_bias, overoptimisation, real_model, saved_votes, selection, stopping, two_heads, "
        "upper_layers, warm_critic"
    )
    assert studies in run("--help").stdout
    wrong = run("length-bias")
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)
    assert f"'length-bias' is no study; expected one of {studies}" in wrong.stderr


def rows():
    found = []
    for cell in (study.Cell(100, "one", 0.0, 0), study.Cell(100, "one", 0.0, 1), study.Cell(3000, "min", 0.0, 0)):
        for step, (kl, gold) in enumerate([(0.0, 1.0), (4.0, 2.5), (9.0, 2.0 - cell.seed)]):
            values = {"step": step, "kl": kl, "proxy": kl, "gold": gold, "gold_se": 0.1, "length": 20.0}
            found.append({**vars(cell), **values})
    return found


def test_every_size_and_combination_is_run_without_a_kl_and_no_cell_twice():
    cells = study.cells([0, 1])
    assert len(set(cells)) == len(cells)
    without = {(cell.ratings, cell.combine) for cell in cells if cell.kl_coef == 0 and cell.seed == 1}
    assert without == {(size, combine) for size in study.SIZES for combine in study.COMBINATIONS}
    assert {cell.kl_coef for cell in cells} == {0.0, 0.05, 0.2}


def test_the_table_has_means_over_seeds_in_the_middle_of_the_page(tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text("# Said\n\n<!-- table -->\nstale\n<!-- end -->\n\nAnd after.\n")
    monkeypatch.setattr(study, "PAGE", page)
    monkeypatch.setattr(study, "PICTURE", tmp_path / "page.png")
    study.write_page(rows())
    text = page.read_text()
    assert text.startswith("# Said\n")
    assert text.endswith("And after.\n")
    assert "stale" not in text
    assert "| 100 | one | 0.0 | 2 | 1.00 | 2.50 | 4.00 | 1.50 | 9.00 | 9.00 |" in text
    assert (tmp_path / "page.png").read_bytes().startswith(b"\x89PNG")


def test_runs_that_are_there_are_read_in_the_order_of_their_steps(tmp_path):
    path = tmp_path / "rows.jsonl"
    assert study.read_rows(path) == []
    path.write_text("".join(json.dumps(row) + "\n" for row in reversed(rows())))
    runs = study.curves(study.read_rows(path))
    assert len(runs) == 3
    assert all([row["step"] for row in course] == [0, 1, 2] for course in runs.values())


def test_the_upper_layers_are_compared_with_all_by_seed():
    made = [
        ("all", 0, 1.0, 10.0),
        ("upper", 0, 0.9, 5.0),
        ("all", 1, 2.0, 10.0),
        ("upper", 1, 2.1, 6.0),
        ("all", 2, 9.0, 9.0),
    ]
    rows = [
        {"setting": setting, "seed": seed, "gold": gold, "kl": 3.0, "score": 0.0, "cpu_seconds": seconds}
        for setting, seed, gold, seconds in made
    ]
    text = upper_layers.table(rows)  # seed 2 is not complete
    assert "| all layers | 1.500 | 3.00 | 0.40 |" in text
    assert "| the upper half | 1.500 | 3.00 | 0.22 |" in text
    assert "gold +0.000 (Student's 95% interval -1.271 to +1.271, 2 seeds)" in text  # 12.706 * 0.1
    assert "0.55 (0.50 to 0.60)" in text
