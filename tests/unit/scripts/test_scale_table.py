"""docs/cluster/memory.md must say what the planner says, and its times must be the arithmetic that it describes."""

import pytest
from scale_table import PAGE, decode_seconds, pass_seconds, written


@pytest.mark.slow
def test_the_page_has_the_tables_of_the_code():
    page = PAGE.read_text(encoding="utf-8")
    assert written(page) == page, "run scripts/scale_table.py"


def test_sampling_by_hand():
    """16 GB of weights, 64 rows of 1024 + 500 tokens with 131,072 bytes each: 28.78 GB a step at 2.01 TB/s."""
    assert decode_seconds(16e9, 131072, 64, 1000, 2.01e12) == pytest.approx(
        1000 * (16e9 + 12.784e9) / 2.01e12, rel=1e-3
    )


def test_training_by_hand():
    """8e9 parameters, 10^6 tokens, 6 operations: 4.8e16 on 8 GPUs at 35% of 989e12."""
    assert pass_seconds(8e9, 1e6, 6, 8) == pytest.approx(4.8e16 / (8 * 346.15e12))
