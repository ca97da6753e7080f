"""The forecast: on curves that are power laws, and on a world whose growth is known."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.rated_world import cut, world

from alignment.labeling.refit.growth import Curve, curves, forecast
from alignment.labeling.refit.head import fit_head, losses
from alignment.labeling.refit.table import refit


def curve(exponent, noise, seed=0, now=0.52):
    """a + b n^-c with n from 30 to 200 items; noise falls as the shares come near to all items."""
    sizes = np.array([30.0, 44, 64, 92, 136, 200])
    rng = np.random.default_rng(seed)
    power = now + 0.1 * ((sizes / 200) ** -exponent - 1)
    wobble = noise * np.sqrt(1 / sizes - 1 / 200) * rng.standard_normal((12, len(sizes)))
    return Curve("", sizes, power + wobble, ratings=600, held_out=100)


@pytest.mark.parametrize("exponent", [0.3, 0.5, 1.0])
def test_a_power_law_is_continued(exponent):
    found = forecast(curve(exponent, 0.02), more=600)
    wanted = 0.52 + 0.1 * (2**-exponent - 1)
    assert found.then == pytest.approx(wanted, abs=3e-3)
    assert found.ci[0] < wanted < found.ci[1] and found.ci[1] - found.ci[0] < 0.01


def test_noise_makes_the_interval_wide_and_distance_too():
    near, far = (forecast(curve(0.5, 0.1), more) for more in (60, 1200))
    assert near.ci[1] - near.ci[0] < far.ci[1] - far.ci[0]
    calm = forecast(curve(0.5, 0.01), 60)
    assert calm.ci[1] - calm.ci[0] < near.ci[1] - near.ci[0]


def test_a_curve_that_rises_foretells_no_gain():
    found = forecast(curve(-0.5, 1e-3), 600)
    assert found.then == pytest.approx(0.52, abs=1e-3)


def test_no_more_ratings_change_nothing():
    found = forecast(curve(0.5, 0.02), 0)
    assert found.then == pytest.approx(found.now)
    assert found.ci == pytest.approx((found.now, found.now))


def test_a_sentence_says_it():
    assert forecast(curve(0.5, 1e-6, now=0.531), 200).sentence.startswith("200 more ratings: 0.531 to 0.518 (0.5")


def test_curves_end_at_the_refit_of_all_and_slices_add_up():
    table = world()
    fitted = refit(table, "m", table.x, {})
    found = {each.name: each for each in curves(fitted)}
    assert set(found) == {"", "even", "odd"}
    target, weight = table.pooled()
    own = ~table.held_out
    head = fit_head(table.x[own], target[own], weight[own], fitted.l2)
    own = table.held_out
    wanted = weight[own] @ losses(table.x[own] @ head, target[own]) / weight[own].sum()
    assert found[""].losses[:, -1] == pytest.approx(np.full(12, wanted))
    assert (
        found[""].ratings
        == fitted.num_ratings
        == len(
            {(table.items[p], name) for p, name in zip(table.pair, table.labeler, strict=True) if not table.held_out[p]}
        )
    )
    assert found["even"].held_out + found["odd"].held_out == found[""].held_out
    assert found[""].losses[:, 0].mean() > found[""].now  # it learns


def test_the_interval_holds_what_came():
    """Half of the items is known, and the other half comes later."""
    held = 0
    for seed in range(10):
        table = world(seed, pairs=360)
        early = ~table.held_out & (np.arange(len(table.x)) < 180)
        fitted = refit(_first(table, early), "m", table.x, {})
        found = forecast(curves(fitted)[0], fitted.num_ratings)
        target, weight = table.pooled()
        own = ~table.held_out
        head = fit_head(table.x[own], target[own], weight[own], fitted.l2)
        own = table.held_out
        seen = weight[own] @ losses(table.x[own] @ head, target[own]) / weight[own].sum()
        held += found.ci[0] <= seen <= found.ci[1]
    assert held >= 8


def _first(table, early):
    return cut(table, (early | table.held_out)[table.pair])
