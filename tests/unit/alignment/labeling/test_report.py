"""The quality report over stores whose labelers are known: what it counts, and what it warns of."""

import io
import json
import os
import random
import shutil
from pathlib import Path

import pytest
from rich.console import Console

from alignment.config.sections import DataConfig
from alignment.data.records import Comparison, Vote
from alignment.labeling.import_export import import_file
from alignment.labeling.report import show
from alignment.ratings import Completion, Gold, RatingsStore
from alignment.ratings.agreement import binomial_test, krippendorff_alpha, preference, wilson
from alignment.ratings.quality import label_events, report
from alignment.ratings.warnings import warnings_of

SHARED = Path(os.environ.get("ALIGNMENT_TEST_DATA") or Path(__file__).resolve().parents[5] / "shared" / "data")


def question(text):
    return [{"role": "user", "content": text}]


@pytest.fixture
def store(tmp_path):
    with RatingsStore(tmp_path / "ratings.db", create=True) as store:
        yield store


def shown(found, width=80):
    stream = io.StringIO()
    show(found, Console(file=stream, width=width, markup=False, highlight=False, emoji=False))
    return stream.getvalue()


def work(store, people, rounds, seed=0):
    """Each labeler answers by their rule, `rounds` items each at most: rule(assignment, rng) -> choice, seconds."""
    rng = random.Random(seed)
    for name, rule in people.items():
        for _ in range(rounds):
            assignment = store.claim(name)
            if assignment is None:
                break
            choice, seconds = rule(assignment, rng)
            store.submit(assignment, choice, seconds)


def honest(accuracy):
    """Knows the better answer (marked by a star) with this accuracy."""

    def rule(assignment, rng):
        good = "left" if "*" in assignment.completions[0] else "right"
        bad = "right" if good == "left" else "left"
        return (good if rng.random() < accuracy else bad), rng.uniform(18, 24)

    return rule


def leftist(assignment, rng):
    return ("left" if rng.random() < 0.9 else "right"), rng.uniform(2, 4)


def fill(store, items, gold=0, need=3):
    for number in range(items + gold):
        answers = [Completion(f"good* {number}", model="secret-model@v1"), Completion(f"bad {number} " + "x" * 9)]
        right = number % 2
        if right:
            answers.reverse()
        told = Gold(choice="second" if right else "first") if number >= items else None
        store.add_item(question(f"q{number}"), answers, need, gold=told)


@pytest.fixture(scope="module")
def busy_file(tmp_path_factory):
    """Three honest labelers and one who clicks left without reading."""
    path = tmp_path_factory.mktemp("busy") / "ratings.db"
    with RatingsStore(path, create=True) as store:
        store.settings.gold_share, store.settings.repeat_share = 0.2, 0.2
        fill(store, 120, gold=40, need=4)
        work(store, {"ann": honest(0.95), "bob": honest(0.9), "cyd": honest(0.8), "lefty": leftist}, 300)
    return path


@pytest.fixture
def busy(busy_file, tmp_path):
    shutil.copy(busy_file, tmp_path / "busy.db")
    with RatingsStore(tmp_path / "busy.db") as store:
        yield store


def test_figures_of_known_labelers(busy):
    found = report(busy)
    ratings = busy.ratings()
    for name, accuracy in (("ann", 0.95), ("bob", 0.9), ("cyd", 0.8), ("lefty", 0.5)):
        mine = found["labelers"][name]
        gold = [r for r in ratings if r.labeler == name and r.why == "gold"]
        right = sum(r.choice == ("second" if r.item % 2 == 0 else "first") for r in gold)
        assert (mine["gold"]["value"], mine["gold"]["n"]) == (pytest.approx(right / len(gold)), len(gold))
        assert len(gold) > 15
        assert mine["gold"]["ci"][0] < mine["gold"]["value"] <= mine["gold"]["ci"][1]
        assert mine["reliability"]["accuracy"] == pytest.approx(accuracy, abs=0.1)
        assert mine["reliability"]["overlaps"] == 120
        assert mine["position"]["n"] == sum(r.labeler == name and r.why != "repeat" for r in ratings)
        assert mine["rated"] == sum(r.labeler == name for r in ratings)
    assert found["labelers"]["ann"]["self_agreement"]["value"] > 0.8
    assert found["labelers"]["lefty"]["self_agreement"]["value"] < 0.4  # the same side is the other answer
    assert found["labelers"]["lefty"]["position"]["value"] == pytest.approx(0.9, abs=0.06)
    assert found["labelers"]["ann"]["position"]["value"] == pytest.approx(0.5, abs=0.1)
    assert found["items"] == {"kinds": {"pair": 120}, "gold": 40, "answers": {4: 120}, "complete": 120, "wanted": 0}
    assert found["ratings"]["counting"] == 480
    assert found["ratings"]["controls"] == len(ratings) - 480
    assert found["agreement"]["overlap"] == 120
    assert len(found["agreement"]["cohen_kappa"]) == 6
    mean = sum(mine["reliability"]["weight"] for mine in found["labelers"].values()) / 4
    assert mean == pytest.approx(1)


def test_the_longer_answer_is_counted_by_its_characters(busy):
    """The bad answer is the longer one, so honest labelers choose it as often as they are wrong."""
    found = report(busy)
    assert found["labelers"]["ann"]["length"]["value"] < 0.15
    wrong = sum(r.choice == ("first" if r.item % 2 == 0 else "second") for r in busy.ratings(for_training=True))
    assert found["length"]["value"] == pytest.approx(wrong / 480)


def test_warnings_name_who_does_not_read(busy):
    warnings = report(busy)["warnings"]
    told = "\n".join(warnings)
    assert any(w.startswith("Position bias: the answer shown first was chosen in") for w in warnings)
    assert any(w.startswith("lefty: the answer shown first was chosen in ") for w in warnings)
    assert any(w.startswith("lefty is right on") and "where guessing gives 50%" in w for w in warnings)
    assert any(w.startswith("lefty gave the same answer to") for w in warnings)
    assert any(w.startswith("lefty takes 3 s an answer where the others take 2") for w in warnings)
    assert not any(name in told for name in ("ann", "bob", "cyd"))


def without_faults(**changed):
    """Figures of a large project in which nothing is wrong, but for what is changed; one labeler."""
    labeler = {"rated": 4600, "skips": 0, "seconds": None, "position": None, "gold": None, "self_agreement": None,
               "reliability": None}  # fmt: skip
    return {
        "ratings": {"simulated": [], "counting": 4600},
        "agreement": {"overlap": 900, "alpha_nominal": None},
        "position": None,
        "ordered": {"ranks": {}, "scores": {}},
        "labelers": {"ann": labeler, "bob": labeler},
    } | changed


def chosen_first(first, of):
    found = preference([True] * first + [False] * (of - first))
    return {**found.share, "p_value": found.p_value}


@pytest.mark.parametrize(
    ("first", "of", "warned"),
    [
        (2397, 4600, False),  # 52.1%, p = .004: no accident, and too little to matter
        (2580, 4600, False),  # 56.1%, whose interval begins at 54.6%
        (2600, 4600, True),  # 56.5%, 55.1%
        (2700, 4600, True),  # 58.7%
        (1900, 4600, True),  # 58.7% for the second
        (9, 15, False),  # 60%, an accident
        (60, 64, True),
    ],
)
def test_a_position_bias_is_one_only_where_its_size_matters(first, of, warned):
    position = chosen_first(first, of)
    (said,) = warnings_of(without_faults(position=position)) or [None]
    assert (said is not None) == warned
    if said:
        assert f"{max(first, of - first) / of:.0%} of {of} decisions (95%: " in said and "p =" not in said


@pytest.mark.parametrize(
    ("alpha", "said"),
    [
        ((0.05, 0.02, 0.08, 5000), "hardly more than by chance"),  # significant, and next to nothing
        ((0.02, -0.1, 0.15, 300), "hardly more than by chance"),
        ((0.3, -0.1, 0.7, 12), "not known yet"),
        ((0.3, 0.25, 0.35, 900), None),
        ((0.0, -0.9, 0.9, 5), None),  # too few
    ],
)
def test_agreement_is_told_by_its_size(alpha, said):
    value, low, high, n = alpha
    agreement = {"overlap": 900, "alpha_nominal": {"value": value, "ci": (low, high), "n": n}}
    found = warnings_of(without_faults(agreement=agreement))
    assert [said in text for text in found] == ([] if said is None else [True])


@pytest.mark.parametrize(
    ("right", "of", "warned"), [(520, 1000, True), (6, 10, False), (3, 10, True), (80, 100, False)]
)
def test_gold_items_are_told_by_how_many_are_right(right, of, warned):
    """52% of a thousand is as bad as guessing; 6 of 10 may well be four in five."""
    found = without_faults()
    gold = {**wilson(right, of), "items": of, "guessing": 0.5, "p_value": binomial_test(right, of, 0.5)}
    found["labelers"]["ann"] = found["labelers"]["ann"] | {"gold": gold}
    assert bool(warnings_of(found)) == warned


def test_honest_labelers_are_not_warned_of(store):
    store.settings.gold_share, store.settings.repeat_share = 0.2, 0.2
    fill(store, 80, gold=30)
    work(store, {"ann": honest(0.95), "bob": honest(0.9), "cyd": honest(0.92)}, 150)
    found = report(store)
    assert found["warnings"] == []
    assert "Nothing to worry about was found." in shown(found)


def test_what_is_shown_fits_80_columns_names_no_model_and_acts_on_no_terminal(busy):
    evil = busy.add_item(question("evil"), [{"text": "a"}, {"text": "b"}], need=9)
    busy.import_rating(evil, "[red]mark[/red] up", "first", comment="\x1b[2J", flags=["flagged", "both_bad"])
    found = report(busy)
    text = shown(found)
    assert max(len(line) for line in text.splitlines()) <= 80
    assert "secret-model" not in text + json.dumps(found)
    assert "\x1b" not in text
    assert "[red]mark[/red]" in text
    assert f"Items to look at        {evil}" in text
    assert found["flags"] == {"counts": {"flagged": 1, "both_bad": 1}, "comments": 1, "look_at": [evil]}
    assert json.loads(json.dumps(found))["ratings"] == found["ratings"]


def test_an_empty_store_has_no_figures_and_says_so(store):
    found = report(store)
    assert found["labelers"] == {}
    assert found["agreement"]["alpha_nominal"] is None
    assert found["warnings"] == []
    assert "nothing to compute it from" in shown(found)


def test_skips_are_counted_apart(store):
    fill(store, 30, need=1)
    work(store, {"ann": lambda assignment, rng: ("skip", 1.0)}, 12)
    work(store, {"ann": honest(1.0)}, 10)
    found = report(store)
    assert (found["labelers"]["ann"]["rated"], found["labelers"]["ann"]["skips"]) == (10, 12)
    assert found["seconds"]["n"] == 10
    assert found["seconds"]["median"] > 10
    assert "ann skipped 12 of 22 items." in found["warnings"]
    assert any("No item was rated by two people" in warning for warning in found["warnings"])


def test_rankings_count_as_pairs_and_scores_by_their_order(store):
    rank = store.add_item(question("r"), [{"text": t} for t in "xyz"], need=2, kind="rank")
    store.import_rating(rank, "ann", "ranked", ranks=[1, 2, 3])
    store.import_rating(rank, "bob", "ranked", ranks=[1, 3, 2])
    for number, (one, other) in enumerate([(1, 2), (4, 4), (7, 6)]):
        item = store.add_item(question(f"s{number}"), [{"text": "s"}], need=2, kind="single")
        store.import_rating(item, "ann", "scored", score=one)
        store.import_rating(item, "bob", "scored", score=other)
    found = report(store)
    assert found["agreement"]["overlap"] == 3  # x y, x z, y z
    (kappa,) = found["agreement"]["cohen_kappa"]
    # Both say first twice; ann of three, bob of two and once second: p_o = 2/3, p_e = 2/3.
    assert (kappa["value"], kappa["n"]) == (pytest.approx(0.0), 3)
    assert found["ordered"]["ranks"]["alpha_ordinal"]["n"] == 3
    # Within: 2 * (1 + 0 + 1) = 4 over 6 values; over all 30 ordered pairs of 1 2 4 4 7 6: 6 * 122 - 24^2 twice over.
    values = [1, 2, 4, 4, 7, 6]
    overall = sum((a - b) ** 2 for a in values for b in values) / 5
    assert found["ordered"]["scores"]["alpha_interval"]["value"] == pytest.approx(1 - 4 / overall)


def test_gold_of_every_kind_is_checked_against_what_guessing_reaches(store):
    rank = store.add_item(question("r"), [{"text": t} for t in "xyz"], kind="rank", gold=Gold(ranks=(1, 2, 2)))
    single = store.add_item(question("s"), [{"text": "s"}], kind="single", gold=Gold(score=7))
    store.import_rating(rank, "ann", "ranked", ranks=[1, 3, 2], why="gold", order_shown=[0, 1, 2])
    store.import_rating(single, "ann", "scored", score=5, why="calibration", order_shown=[0])
    gold = report(store)["labelers"]["ann"]["gold"]
    assert (gold["value"], gold["n"]) == (0.5, 2)
    assert gold["guessing"] == pytest.approx((2 / 6 + 2 / 7) / 2)  # x first in 2 of 6 orders; 6 and 7 of seven scores


def test_programs_are_named(store):
    fill(store, 2, need=2)
    work(store, {"robot": honest(1.0), "ann": honest(1.0)}, 2)
    store.people.mark_simulated("robot")
    found = report(store)
    assert found["ratings"]["simulated"] == ["robot"]
    assert found["warnings"][0].startswith("Some ratings are made by programs (robot)")


def test_the_published_pandalm_file_has_its_published_figures(store):
    path = SHARED / "pandalm" / "testset-v1.json"
    if not path.exists():
        pytest.skip("no pandalm; name the folder of published data in ALIGNMENT_TEST_DATA")
    import_file(store, "pandalm", path)
    found = report(store)
    agreement = found["agreement"]
    assert round(agreement["alpha_nominal"]["value"], 4) == round(agreement["fleiss_kappa"]["value"], 4) == 0.8642
    assert [round(kappa["value"], 4) for kappa in agreement["cohen_kappa"]] == [0.8520, 0.8789, 0.8617]
    assert found["items"]["answers"] == {3: 999}
    text = shown(found)
    assert "0.8642" in text
    assert all(value in text for value in ("0.8520", "0.8789", "0.8617"))
    assert max(map(len, text.splitlines())) <= 80


def test_what_a_run_journals_of_it_names_nobody(busy):
    config = DataConfig(train=str(busy.path))
    (found,) = label_events(config, [])
    whole = report(busy)
    hashes = {busy.people.labeler_hash(name): name for name in whole["labelers"]}
    assert {hashes[name]: of["rated"] for name, of in found["labelers"].items()} == {
        name: of["rated"] for name, of in whole["labelers"].items()
    }
    assert found["alpha"] == whole["agreement"]["alpha_nominal"]
    assert (found["position"], found["seconds"]) == (whole["position"], whole["seconds"])
    assert found["ratings"]["skips"] == whole["ratings"]["skips"]
    assert len(found["warnings"]) == len(whole["warnings"]) > 0
    assert not [name for name in ("ann", "bob", "cyd", "lefty") if name in json.dumps(found)]


def test_votes_of_other_files_have_agreement_alone(tmp_path):
    def pair(number, *said):
        votes = tuple(Vote(choice, None, labeler) for choice, labeler in zip(said, "abc", strict=False))
        return Comparison(tuple(question(f"q{number}")), "x", "y", votes)

    rows = [pair(0, "first", "first"), pair(1, "second", "second"), pair(2, "first", "second"), pair(3, "tie")]
    path = tmp_path / "rows.jsonl"
    path.write_text("{}\n")
    (found,) = label_events(DataConfig(train=str(path)), rows)
    assert (found["source"], found["overlap"]) == ("votes", 3)
    # By hand: 2 of 3 items agree; labels 3 first, 3 second of 6, so 1 - (1/3) / (2 * 9 / (6 * 5)) = 4/9.
    assert found["alpha"]["value"] == pytest.approx(4 / 9)
    assert list(label_events(DataConfig(train=str(path)), rows[3:])) == []  # nobody overlaps with anybody


def test_answers_to_questions_are_counted_and_agreed_on(store):
    ids = [store.add_item(question(f"q{n}"), [{"text": "a"}, {"text": "b"}], need=2) for n in range(4)]
    helps = {"ann": [3, -2, 0, 1], "bob": [2, -3, 1, -1]}
    true = {"ann": [[7, 1], [2, 5], [4, 4], [6, 3]], "bob": [[6, 2], [1, 5], [4, 3], [5, 3]]}
    choices = {"ann": ["first", "second", "tie", "first"], "bob": ["first", "first", "tie", "second"]}
    for name, place in [(name, place) for name in helps for place in range(4)]:
        answers = {"attributes": {"helps": helps[name][place], "true": true[name][place]}, "tags": ["too [long"]}
        if name == "bob":
            answers["tags"] = ["wrong", "too [long"] if place else []
            answers["rewrites"] = [None, "new"]
        store.import_rating(ids[place], name, choices[name][place], answers=answers)
    store.import_rating(ids[0], "cyd", "first", why="repeat", order_shown=[0, 1], answers={"tags": ["wrong"]})
    found = report(store)["questions"]
    assert found["tags"] == {"too [long": 7, "wrong": 3} and (found["rewrites"], found["comments"]) == (4, 0)
    figures = found["attributes"]["helps"]
    assert (figures["answers"], figures["counts"]) == (8, {-3: 1, -2: 1, -1: 1, 0: 1, 1: 2, 2: 1, 3: 1})
    assert figures["mean"] == pytest.approx(1 / 8)
    # Decided in both: ann's 3, -2, 1 follow her choice; bob's 2 and -1 do, and his -3 does not.
    assert (figures["choice"]["value"], figures["choice"]["n"]) == (pytest.approx(5 / 6), 6)
    ballots = [{"ann": helps["ann"][n], "bob": helps["bob"][n]} for n in range(4)]
    assert figures["alpha_ordinal"]["value"] == pytest.approx(krippendorff_alpha(ballots, "ordinal"))
    of_each = [{who: true[who][n][side] for who in true} for n in range(4) for side in (0, 1)]
    figures = found["attributes"]["true"]
    assert figures["alpha_ordinal"]["value"] == pytest.approx(krippendorff_alpha(of_each, "ordinal"))
    assert (figures["alpha_ordinal"]["n"], figures["answers"], sum(figures["counts"].values())) == (8, 8, 16)
    assert (figures["choice"]["value"], figures["choice"]["n"]) == (pytest.approx(4 / 6), 6)
    text = shown(report(store))
    assert "Questions beside the choice" in text and "7 too [long, 3 wrong" in text
    assert "8 answers, mean 0.12" in text and "83.3%" in text and "4 with a rewritten one, 0 with a comment" in text


def test_a_report_without_questions_says_nothing_of_them(store):
    fill(store, 3)
    work(store, {"ann": honest(1.0)}, 3)
    assert "Questions" not in shown(report(store))
