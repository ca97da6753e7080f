"""Influence of labelers and items: against refits of tables from which they were cut out."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.rated_world import NAMES, cut, world

from alignment.labeling.refit.head import fit_head
from alignment.labeling.refit.influence import item_influences, labeler_influence, labeler_influences, top_kept
from alignment.labeling.refit.table import refit


@pytest.fixture(scope="module")
def fitted():
    table = world()
    return refit(table, "m", table.x[table.held_out], {})


SCALES = np.linspace(0, 6, 3001)


def held_out_losses(table, head, votes):
    """At each scale of the head, (SCALES,): each vote by itself."""
    votes = votes & table.held_out[table.pair]
    logits = np.outer(SCALES, table.x[table.pair[votes]] @ head)
    target, weight = table.target[votes], table.weight[votes]
    found = -target * np.log(1 / (1 + np.exp(-logits))) - (1 - target) * np.log(1 / (1 + np.exp(logits)))
    return found @ weight / weight.sum()


def fit_of(table, l2):
    """Each vote is a row of its own."""
    own = ~table.held_out[table.pair]
    return fit_head(table.x[table.pair[own]], table.target[own], table.weight[own], l2)


def test_a_labeler_is_left_out_exactly(fitted):
    table, l2 = fitted.table, fitted.l2
    assert fitted.head == pytest.approx(fit_of(table, l2), abs=1e-6)
    for each in labeler_influences(fitted):
        others = table.labeler != NAMES.index(each.labeler)
        head = fit_of(cut(table, others), l2)
        wanted = held_out_losses(table, head, others).min() - held_out_losses(table, fitted.head, others).min()
        assert each.log_loss["value"] == pytest.approx(wanted, abs=2e-5)
        signs = [np.sign(table.x[table.held_out] @ one) for one in (head, fitted.head)]
        assert each.turned == pytest.approx(np.mean(signs[0] != signs[1]))
        assert each.ratings == len(set(table.items[table.pair[~others]].tolist()))


def test_who_prefers_the_worse_answer_is_found():
    table = world(pairs=300, held_out=200, skill=(2.0, 2.0, 2.0, -4.0))
    fitted = refit(table, "m", table.x, {})
    found = {each.labeler: each for each in labeler_influences(fitted)}
    assert list(found)[-1] == "dan"
    assert found["dan"].log_loss["value"] < -0.005 < found["bob"].log_loss["value"]
    assert labeler_influence(fitted, "dan") == found["dan"]
    assert labeler_influence(fitted, "eve") is None


def test_one_step_is_nearly_the_refit_without_an_item(fitted):
    table = fitted.table
    found = {each.item: each.log_loss for each in item_influences(fitted)}
    assert set(found) == set(table.items[~table.held_out].tolist())
    everything = np.ones(len(table.pair), bool)
    before = held_out_losses(table, fitted.head, everything)
    best = int(before.argmin())
    exact = {}
    for item in list(found)[::12]:
        head = fit_of(cut(table, table.items[table.pair] != item), fitted.l2)
        exact[item] = (held_out_losses(table, head, everything) - before)[best]
    size = max(map(abs, exact.values()))
    assert [found[item] for item in exact] == pytest.approx(list(exact.values()), abs=0.03 * size)


def test_the_top_answers_are_counted():
    before = np.arange(40.0)
    after = before.copy()
    after[[39, 0]] = after[[0, 39]]  # the best answer becomes the worst
    assert top_kept(before, after) == 0.75
    assert top_kept(before, before * 2) == 1.0


def test_a_labeler_with_held_out_votes_alone_has_no_influence(fitted):
    table = cut(fitted.table, (fitted.table.labeler != 0) | fitted.table.held_out[fitted.table.pair])
    again = refit(table, "m", table.x, {})
    assert "ann" not in {each.labeler for each in labeler_influences(again)}
    assert labeler_influence(again, "ann") is None
