"""What answers cost, worked by hand."""

import pytest
from helpers.comparing import contest, question
from rich.console import Console

from alignment.errors import UserError
from alignment.evaluation.answers import SideAnswer
from alignment.evaluation.costs import parse_prices, side_costs
from alignment.evaluation.score_text import cost_table

PROMPTS = [question(f"Q{n}") for n in range(20)]
FOUND = contest(
    PROMPTS,
    timed=[SideAnswer("x", True, 30, 0.5, latency=n + 1.0, peak_bytes=2**30 * (1 + n % 2)) for n in range(20)],
    untimed=["y"] * 20,
)  # fmt: skip


def test_speed_latency_memory_and_price():
    costs = side_costs(FOUND, "timed", {"timed": 3.6})
    assert costs == {
        "tokens_per_second": 60.0,
        "latency_p50": 10.5,
        "latency_p95": pytest.approx(19.05),
        "peak_bytes": 2 * 2**30,
        "price_per_hour": 3.6,
        "price_per_1000": pytest.approx(0.5),  # 500 s of a machine that costs 0.001 a second
    }


def test_what_nobody_measured_is_not_made_up():
    assert set(side_costs(FOUND, "untimed", {}).values()) == {None}
    assert side_costs(FOUND, "untimed", {"untimed": 1.0})["price_per_1000"] is None
    assert cost_table({"untimed": {"costs": side_costs(FOUND, "untimed", {})}}, None) is None


def test_the_table_fits_in_60_columns():
    costs = side_costs(FOUND, "timed", {"timed": 3.6})
    sides = {f"help-desk-policy-of-many-words@v{n}": {"costs": costs} for n in (11, 12)}
    console = Console(width=60, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(cost_table(sides, None))
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 60 and "…" not in text
    assert "60" in text and "10" in text and "2.0" in text and "price of 1,000 answers" in text


@pytest.mark.parametrize(
    ("given", "expected"),
    [([], {}), (["2.5"], {"a": 2.5, "b": 2.5}), (["2.5", "b=0.8"], {"a": 2.5, "b": 0.8}), (["b=0"], {"b": 0.0})],
    ids=["none", "all", "one apart", "free"],
)
def test_prices(given, expected):
    assert parse_prices(given, ["a", "b"]) == expected


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("x", "--price-per-hour x: expected a number such as 2.5, or SIDE=2.5"),
        ("nan", "expected a number"),
        ("inf", "expected a number"),
        ("-1", "expected a number"),
        ("c=1", "no side is called c; the sides are a, b"),
    ],
)
def test_a_wrong_price_is_one_line(given, message):
    with pytest.raises(UserError, match=message):
        parse_prices([given], ["a", "b"])
