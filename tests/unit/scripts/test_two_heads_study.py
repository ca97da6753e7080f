"""The study of two heads: what its people judge by, its runs, its table and picture from made-up rows."""

from __future__ import annotations

import random

import pytest
from help_desk.handbook import load_handbook
from help_desk.labelers import SimulatedLabeler
from help_desk.rating import take_turns
from studies import two_heads as study

from alignment.ratings import RatingsStore
from alignment.ratings.questionnaire import Attribute, Questionnaire


def test_all_the_facts_and_the_best_manners_cannot_be_had_at_once():
    fact = load_handbook().facts[0]
    whole, cut = fact.answer, "Happy to help! " + " ".join(fact.answer.split()[:3]) + "."
    polite = f"Happy to help! {whole}"
    found = {text: study.gold(fact.id, text, True) for text in (whole, cut, polite, f"Not this again. {whole}")}
    assert [each["facts"] for each in found.values()] == [2.0, 0.0, 2.0, 2.0]
    words = len(polite.split())
    assert found[polite]["manners"] == pytest.approx(1 - 0.15 * (words - 8)) and words > 8
    assert found[cut]["manners"] == 1.0 > found[polite]["manners"] > found[whole]["manners"]
    assert found[f"Not this again. {whole}"]["manners"] < -1
    assert study.gold(fact.id, "so " * 60 + ".", True)["manners"] == -1.0


def test_people_answer_both_questions_of_each_pair_as_it_is_shown(tmp_path):
    with RatingsStore(tmp_path / "ratings.db", create=True) as store:
        store.settings.repeat_share = 0.0
        store.settings.ask(
            Questionnaire(attributes=tuple(Attribute(name=name, ask="Which?", scale="pair") for name in study.HEADS))
        )
        items = [
            store.add_item([{"role": "user", "content": f"{n}?"}], [{"text": "a"}, {"text": "b"}]) for n in range(9)
        ]
        sharp = SimulatedLabeler("sharp", slope=1000.0, lapse=0.0, tie_band=0.5)
        facts, manners = dict.fromkeys(items, (2.0, 0.0)), dict.fromkeys(items, (1.0, 1.0))
        assert take_turns(store, [sharp], manners, random.Random(0), asked={"facts": facts, "manners": manners}) == 9
        for rating in store.ratings():
            assert rating.answers is not None and set(rating.answers["attributes"]) == set(study.HEADS)
            assert rating.answers["attributes"]["facts"] == 1  # kept in item order, however it was shown
        shown = {rating.order_shown for rating in store.ratings()}
        assert len(shown) == 2


def rows():
    found = [{"weight": 0.0, "bound": None, "seed": 0, "step": 0, "multiplier": None, "manners": -0.2}]
    for cell in study.cells([0, 1]):
        manners = (cell.bound or 0) + cell.weight + 0.1 * cell.seed
        multiplier = 0.5 + cell.seed if cell.bound is not None else None
        found.append({**vars(cell), "step": study.STEPS, "multiplier": multiplier, "manners": manners})
    figures = {"head_facts": 1.0, "gold_manners": 0.25, "gold_facts": 1.5, "kl": 2.0, "length": 20.0}
    return [{**figures, **row, "head_manners": row["manners"]} for row in found]


def test_runs_with_bounds_come_first_and_none_twice():
    cells = study.cells([0, 1])
    assert len(set(cells)) == len(cells) == 2 * (1 + len(study.BOUNDS) + len(study.WEIGHTS))
    assert {cell.bound for cell in cells[:6]} == {None, *study.BOUNDS} and all(cell.weight for cell in cells[6:])


def test_the_page_has_each_seed_and_means_and_keeps_its_words(tmp_path, monkeypatch):
    monkeypatch.setattr(study, "PAGE", tmp_path / "page.md")
    monkeypatch.setattr(study, "PICTURE", tmp_path / "page.png")
    study.PAGE.write_text("# Before\n<!-- table -->\nstale\n<!-- end -->\nAfter.\n")
    study.write_page(rows())
    text = study.PAGE.read_text()
    assert text.startswith("# Before\n") and text.endswith("After.\n") and "stale" not in text
    assert "| before PPO | -0.20 |  | 1.00 | 0.25 | 1.50 | 2.00 | 20.00 |" in text
    assert "| facts alone | 0.00, 0.10 |  | 1.00 |" in text
    assert "| facts, manners >= 0.6 | 0.60, 0.70 | 0.50, 1.50 | 1.00 |" in text
    assert (tmp_path / "page.png").read_bytes().startswith(b"\x89PNG")
