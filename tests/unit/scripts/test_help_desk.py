"""The demo's world: what it promises about its data, its gold score and its simulated labelers."""

import json
import math
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from help_desk import gold, labelers, manners, world
from help_desk.handbook import load_handbook, parse_handbook, plain_values
from help_desk.rating import RATINGS_PER_PAIR, item_gold, rate
from help_desk.reports import BY_HAND, MEANT, SHUFFLED, SIMULATED, explain
from helpers.journals import make_run
from hypothesis import given
from hypothesis import strategies as st

from alignment.ratings import RatingsStore

SCRIPTS = Path(__file__).parents[3] / "scripts"
FACT_IDS = [fact.id for fact in load_handbook().facts]


def total(fact: str, text: str, ended: bool = True) -> float:
    return gold.gold_score(fact, text, ended).total


def test_handbook_has_the_promised_size_and_no_two_facts_share_a_question() -> None:
    handbook = load_handbook()
    assert 40 <= len(handbook.facts) <= 48 and len(handbook.page_values) == 10
    assert len(set(FACT_IDS)) == len(FACT_IDS)
    asked = [question for fact in handbook.facts for question in (*fact.questions, fact.held_out_question)]
    assert len({world.normalise(question) for question in asked}) == len(asked) == 5 * len(handbook.facts)
    assert all(fact.required and len(fact.answer.split()) <= 16 for fact in handbook.facts)


def test_a_handbook_page_is_read_as_written() -> None:
    handbook = parse_handbook(
        "# H\n\nintro\n\n## Tea\n\n### tea-price\nTea costs **2 dollars** on Mondays.\n- a\n- b\n- c\n"
    )
    (fact,) = handbook.facts
    assert (fact.id, fact.page, fact.answer) == ("tea-price", "Tea", "Tea costs 2 dollars on Mondays.")
    assert (fact.required, fact.questions, fact.held_out_question) == (("2 dollars",), ("a", "b"), "c")
    assert handbook.page_values == {"Tea": frozenset({"2 dollar", "monday"})}


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("from 9 am to 7 pm", ["9 am", "7 pm"]),
        ("Ten days, or 21 Days", ["10 day", "21 day"]),
        ("at 10:30 am on Tuesdays in March", ["10:30 am", "tuesday", "march"]),
        ("you may ask one person", []),
        ("90 days is not 90 minutes nor 90", ["90 day", "90 minute", "90"]),
    ],
)
def test_values_are_found_in_plain_text(text: str, values: list[str]) -> None:
    assert plain_values(text) == values


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_held_out_prompts_are_disjoint_from_everything_trained_or_rated_on(seed: int) -> None:
    held_out = {world.normalise(row["prompt"]) for row in world.held_out_prompts(seed)}
    pool = [world.normalise(row["prompt"]) for row in world.training_prompts(seed)]
    shown = {world.normalise(row.prompt) for row in world.demonstrations(seed)}
    assert len(held_out) >= 240 and len(set(pool)) == len(pool) >= 1500
    assert not held_out & set(pool) and shown <= set(pool)
    assert {row["fact"] for row in world.held_out_prompts(seed)} == set(FACT_IDS)


def test_held_out_questions_reach_no_training_prompt() -> None:
    pool = [world.normalise(row["prompt"]) for row in world.training_prompts(0)]
    for fact in load_handbook().facts:
        question = world.normalise(fact.held_out_question)
        known = {world.normalise(asked) for other in load_handbook().facts for asked in other.questions}
        if not any(question in asked for asked in known):
            assert not any(f" {question} " in f" {prompt} " for prompt in pool), question


def test_demonstrations_cover_facts_evenly_and_mix_manners_as_promised() -> None:
    rows = world.demonstrations(0)
    assert len(rows) == 1500
    per_fact = Counter(row.fact for row in rows)
    assert set(per_fact) == set(FACT_IDS) and max(per_fact.values()) - min(per_fact.values()) <= 1
    for manner, share in world.MANNER_SHARES.items():
        assert Counter(row.manner for row in rows)[manner] / len(rows) == pytest.approx(share, abs=0.04)


@pytest.mark.parametrize("fact", load_handbook().facts, ids=FACT_IDS)
def test_gold_tells_each_manner_for_what_it_is(fact: world.Fact) -> None:
    rng = random.Random(f"manners {fact.id}")
    for _ in range(20):
        assert total(fact.id, world.answer(fact, "good", rng)) == gold.BEST
        curt = gold.gold_score(fact.id, world.answer(fact, "curt", rng), True)
        assert (curt.right, curt.polite, curt.honest, curt.short, curt.ends_cleanly) == (2, -1, 0, 0, 0)
        rambling = gold.gold_score(fact.id, world.answer(fact, "rambling", rng), True)
        assert (rambling.right, rambling.honest, rambling.short, rambling.ends_cleanly) == (2, 0, -1, 0)
        made_up = gold.gold_score(fact.id, world.answer(fact, "made up", rng), True)
        assert made_up.honest == -1
        trailing = gold.gold_score(fact.id, world.answer(fact, "trailing", rng), True)
        assert (trailing.honest, trailing.ends_cleanly) == (0, -1)
        lie = gold.gold_score(fact.id, world.falsify(fact, rng), True)
        assert (lie.right, lie.honest) == (0, -1), world.falsify(fact, rng)


@pytest.mark.parametrize("fact", FACT_IDS)
def test_degenerate_answers_never_approach_a_good_one(fact: str) -> None:
    handbook = load_handbook()
    sentence = handbook.fact(fact).answer
    polite = " ".join((*manners.COURTEOUS_OPENINGS, *manners.COURTEOUS_CLOSINGS))
    every_value = " ".join(value for entry in handbook.facts for value in entry.required)
    page = [entry for entry in handbook.facts if entry.page == handbook.fact(fact).page]
    degenerate = [
        "",
        " ",
        "!",
        "Happy to help!",
        polite,
        f"{polite} {sentence}",
        f"{sentence} {sentence}",
        f"{every_value}.",
        f"{' '.join(handbook.fact(fact).required)}.",
        f"{'Thank you for asking! ' * 3}{sentence}",
        " ".join(entry.answer for entry in page),
        sentence.removesuffix("."),
        f"{sentence} Thank",
    ]
    for text in degenerate:
        assert total(fact, text) <= 1, text
    assert total(fact, "") == -2
    assert total(fact, f"Happy to help! {sentence}", ended=False) == gold.BEST - 1


def test_right_needs_the_sentence_and_not_a_list_of_values() -> None:
    def right(text: str) -> bool:
        return gold.gold_score("fine-late", text, True).right > 0

    assert right("A late book costs 20 cents a day.")
    assert right("A late book is 20 cents for a day, damage is 4 dollars.")
    assert not right("Green umbrellas near 20 cents sleep.")
    assert not right("A late book costs 21 cents a day.")
    listing = "A late book costs 10 cents, 20 cents, 60 cents or 90 cents a day."
    assert not right(listing)


def test_an_answer_to_another_question_is_not_right() -> None:
    for asked in load_handbook().facts:
        for told in load_handbook().facts:
            assert (gold.gold_score(asked.id, told.answer, True).right == 2) == (asked.id == told.id), (
                asked.id,
                told.id,
            )


@given(fact=st.sampled_from(FACT_IDS), text=st.text(max_size=200), ended=st.booleans())
def test_gold_is_total_bounded_and_never_rewards_a_missing_end(fact: str, text: str, ended: bool) -> None:
    score = gold.gold_score(fact, text, ended)
    assert gold.WORST <= score.total <= gold.BEST and score == gold.gold_score(fact, text, ended)
    assert total(fact, text, ended=False) <= total(fact, text, ended=True)


@pytest.mark.parametrize("labeler", [*labelers.LABELERS, *labelers.JUDGES], ids=lambda labeler: labeler.name)
@pytest.mark.parametrize("difference", [-2.0, 0.0, 1.0])
def test_choices_follow_the_stated_model(labeler: labelers.SimulatedLabeler, difference: float) -> None:
    rng = random.Random(7)
    draws = Counter(labelers.choose(labeler, 1.0 + difference, 1.0, rng) for _ in range(20_000))
    perceived = labeler.slope * difference + labeler.left_bias
    attentive = 1 / (1 + math.exp(labeler.tie_band - perceived))
    assert draws["left"] / 20_000 == pytest.approx((1 - labeler.lapse) * attentive + labeler.lapse / 2, abs=0.012)
    opposed = 1 / (1 + math.exp(labeler.tie_band + perceived))
    assert draws["right"] / 20_000 == pytest.approx((1 - labeler.lapse) * opposed + labeler.lapse / 2, abs=0.012)


def test_labelers_are_four_and_two_others_and_say_that_they_are_simulated() -> None:
    names = [labeler.name for labeler in (*labelers.LABELERS, *labelers.JUDGES)]
    assert (len(labelers.LABELERS), len(labelers.JUDGES), len(set(names))) == (4, 2, 6)
    assert all(name.startswith("simulated") for name in names)
    assert "SIMULATED" in (labelers.__doc__ or "")


@pytest.fixture
def pairs(tmp_path: Path) -> Iterator[RatingsStore]:
    """Forty pairs of a good answer and a rude one."""
    rng = random.Random(0)
    with RatingsStore(tmp_path / "r.db", create=True) as store:
        for fact in load_handbook().facts[:40]:
            texts = [{"text": world.answer(fact, manner, rng)} for manner in ("good", "curt")]
            store.add_item([{"role": "user", "content": fact.id}], texts, RATINGS_PER_PAIR, {"fact": fact.id})
        yield store


def right_share(store: RatingsStore, group: tuple[labelers.SimulatedLabeler, ...]) -> float:
    names = {labeler.name for labeler in group}
    said = [rating.choice for rating in store.ratings() if rating.labeler in names and rating.choice != "tie"]
    return said.count("first") / len(said)


def test_two_groups_rate_the_same_pairs_each_by_itself(pairs: RatingsStore) -> None:
    assert rate(pairs, seed=1) == (120, 40)
    judges = {labeler.name for labeler in labelers.JUDGES}
    judged = Counter(rating.item for rating in pairs.ratings() if rating.labeler in judges)
    others = Counter(rating.item for rating in pairs.ratings() if rating.labeler not in judges)
    assert set(judged.values()) == {2} and len(judged) == 20
    assert set(others.values()) == {3} and len(others) == 40
    assert pairs.people.simulated() == {labeler.name for labeler in (*labelers.LABELERS, *labelers.JUDGES)}
    assert right_share(pairs, labelers.LABELERS) > 0.8 and right_share(pairs, labelers.JUDGES) > 0.8


def test_shuffled_ratings_are_those_of_other_pairs_for_both_groups(pairs: RatingsStore) -> None:
    for item in pairs.items():  # the other way round too: half of all pairs begin with the rude answer
        pairs.add_item(item.prompt, item.completions[::-1], RATINGS_PER_PAIR, item.metadata)
    rate(pairs, seed=1, shuffle=True)
    better = {item.id: "first" if item_gold(item)[0] > item_gold(item)[1] else "second" for item in pairs.items()}
    for group in (labelers.LABELERS, labelers.JUDGES):
        names = {labeler.name for labeler in group}
        right = [rating.choice == better[rating.item] for rating in pairs.ratings()
                 if rating.labeler in names and rating.choice != "tie"]  # fmt: skip
        assert 0.25 < sum(right) / len(right) < 0.75


def test_written_data_has_only_the_promised_keys_and_does_not_hang_on_hash_order(tmp_path: Path) -> None:
    command = (
        "import sys; from pathlib import Path; from help_desk.world import write_data; write_data(Path(sys.argv[1]), 3)"
    )
    for hash_seed in ("1", "2"):
        subprocess.run(
            [sys.executable, "-c", command, str(tmp_path / hash_seed)],
            env={"PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.pathsep.join([str(SCRIPTS), str(SCRIPTS.parent)])},
            check=True,
        )
    promised = {
        "demonstrations": {"prompt", "completion"},
        "prompts": {"prompt", "fact"},
        "held_out": {"prompt", "fact"},
    }
    for name, keys in promised.items():
        text = (tmp_path / "1" / f"{name}.jsonl").read_text(encoding="utf-8")
        assert text == (tmp_path / "2" / f"{name}.jsonl").read_text(encoding="utf-8")
        assert all(set(json.loads(line)) == keys for line in text.splitlines())


def test_more_demonstrations_than_prompts_are_refused() -> None:
    with pytest.raises(ValueError, match="9999 demonstrations asked for"):
        world.demonstrations(0, 9999)


def test_each_warning_that_is_meant_in_this_world_is_of_a_check():
    from alignment.reports import checks

    for table in (MEANT, SIMULATED, BY_HAND, SHUFFLED):
        assert all(checks.find(stage, check) is not None for stage, check in table)


def test_a_warning_that_is_not_meant_says_so(tmp_path):
    findings = [
        ("finding", {"step": 1, "name": "data check", "level": "warning", "text": "frames"}),
        ("finding", {"step": 1, "name": "set aside", "level": "warning", "text": "3 rows"}),
    ]
    make_run(tmp_path / "r", "sft", {1: {"train/loss": 1.0}}, events=findings)
    head, meant, not_meant = explain([tmp_path / "r"])
    assert head == "r: 2 of 4 checks to look at"
    assert meant.startswith("  warn: data clean; meant here: all questions are")
    assert not_meant == "  warn: rows usable; not meant here, look at it: 3 rows"
