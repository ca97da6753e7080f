"""The over-optimisation study: its settings, its table and its picture from rows that are made up."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[3] / "scripts" / "studies" / "overoptimisation.py"


@pytest.fixture
def study(monkeypatch):
    spec = importlib.util.spec_from_file_location("overoptimisation", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(__import__("sys").modules, "overoptimisation", module)
    spec.loader.exec_module(module)
    return module


def rows(study):
    found = []
    for cell in (study.Cell(100, "one", 0.0, 0), study.Cell(100, "one", 0.0, 1), study.Cell(3000, "min", 0.0, 0)):
        for step, (kl, gold) in enumerate([(0.0, 1.0), (4.0, 2.5), (9.0, 2.0 - cell.seed)]):
            values = {"step": step, "kl": kl, "proxy": kl, "gold": gold, "gold_se": 0.1, "length": 20.0}
            found.append({**vars(cell), **values})
    return found


def test_every_size_and_combination_is_run_without_a_kl_and_no_cell_twice(study):
    cells = study.cells([0, 1])
    assert len(set(cells)) == len(cells)
    without = {(cell.ratings, cell.combine) for cell in cells if cell.kl_coef == 0 and cell.seed == 1}
    assert without == {(size, combine) for size in study.SIZES for combine in study.COMBINATIONS}
    assert {cell.kl_coef for cell in cells} == {0.0, 0.05, 0.2}


def test_the_table_has_means_over_seeds_in_the_middle_of_the_page(study, tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text("# Said\n\n<!-- table -->\nstale\n<!-- end -->\n\nAnd after.\n")
    monkeypatch.setattr(study, "PAGE", page)
    monkeypatch.setattr(study, "PICTURE", tmp_path / "page.png")
    study.write_page(rows(study))
    text = page.read_text()
    assert text.startswith("# Said\n")
    assert text.endswith("And after.\n")
    assert "stale" not in text
    assert "| 100 | one | 0.0 | 2 | 1.00 | 2.50 | 4.00 | 1.50 | 9.00 | 9.00 |" in text
    assert (tmp_path / "page.png").read_bytes().startswith(b"\x89PNG")


def test_runs_that_are_there_are_read_in_the_order_of_their_steps(study, tmp_path):
    path = tmp_path / "rows.jsonl"
    assert study.read_rows(path) == []
    path.write_text("".join(json.dumps(row) + "\n" for row in reversed(rows(study))))
    runs = study.curves(study.read_rows(path))
    assert len(runs) == 3
    assert all([row["step"] for row in course] == [0, 1, 2] for course in runs.values())
