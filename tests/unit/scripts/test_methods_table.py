"""docs/guides/methods.md must say what the table in the code says."""

from methods_table import END, MATRIX, PAGE, TABLE, defaults, matrix, replaced


def test_the_page_has_the_matrix_of_the_code():
    page = PAGE.read_text(encoding="utf-8")
    assert replaced(page, MATRIX, f"{defaults()}\n\n{matrix()}") == page, "run scripts/methods_table.py --matrix"


def test_every_method_is_measured():
    from alignment.models.methods import METHODS

    measured = PAGE.read_text(encoding="utf-8").partition(TABLE)[2].partition(END)[0]
    assert all(f"| `{name}` |" in measured for name in METHODS)


def test_only_what_stands_between_the_marks_is_replaced():
    page = f"a\n{MATRIX}\n\nold\n\n{END}\nb\n{TABLE}\n\nkept\n\n{END}\nc"
    assert replaced(page, MATRIX, "new") == f"a\n{MATRIX}\n\nnew\n\n{END}\nb\n{TABLE}\n\nkept\n\n{END}\nc"
