"""Agreement figures against textbook values, brute force and simulated labelers."""

import itertools
import json
import math
import os
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignment.ratings.agreement import (
    CERTAIN_OVERLAPS,
    FULL_TRUST,
    alpha_estimate,
    binomial_test,
    cohen_kappa,
    cohen_kappas,
    dawid_skene,
    fleiss_kappa,
    krippendorff_alpha,
    preference,
    reliability,
    three_way_agreement,
    wilson,
)

SHARED = Path(os.environ.get("ALIGNMENT_TEST_DATA") or Path(__file__).resolve().parents[5] / "shared" / "data")

# Krippendorff's example: four observers, twelve units, missing values (Content Analysis, chapter 11).
TEXTBOOK = {
    "A": "1233214 12 . . .".replace(" ", ""),
    "B": "123322412 5 . 3".replace(" ", ""),
    "C": ". 33323422 5 1 .".replace(" ", ""),
    "D": "123324412 5 1 .".replace(" ", ""),
}


def textbook():
    return [{who: int(values[unit]) for who, values in TEXTBOOK.items() if values[unit] != "."} for unit in range(12)]


def pandalm():
    path = SHARED / "pandalm" / "testset-v1.json"
    if not path.exists():
        pytest.skip("no pandalm; name the folder of published data in ALIGNMENT_TEST_DATA")
    return [{f"annotator{n}": row[f"annotator{n}"] for n in (1, 2, 3)} for row in json.loads(path.read_text())]


@pytest.mark.parametrize(("level", "value"), [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)])
def test_alpha_is_that_of_the_textbook(level, value):
    assert [len(values) for values in TEXTBOOK.values()] == [12] * 4
    assert krippendorff_alpha(textbook(), level) == pytest.approx(value, abs=5e-4)


def test_the_published_pandalm_figures():
    ballots = pandalm()
    assert round(krippendorff_alpha(ballots), 4) == 0.8642
    assert round(fleiss_kappa(ballots).value, 4) == 0.8642
    assert fleiss_kappa(ballots).n == 999
    kappas = cohen_kappas(ballots)
    assert [round(kappa.value, 4) for kappa in kappas.values()] == [0.8520, 0.8789, 0.8617]
    assert list(kappas) == [("annotator1", "annotator2"), ("annotator1", "annotator3"), ("annotator2", "annotator3")]


def test_three_way_agreement_of_pandalm_is_the_share_of_equal_triples():
    ballots = pandalm()
    equal = sum(len(set(ballot.values())) == 1 for ballot in ballots)
    found = three_way_agreement(ballots)
    assert found is not None and (found["value"], found["n"]) == (pytest.approx(equal / 999), 999)


# --- alpha by brute force --------------------------------------------------------------------------------------------


def slow_alpha(ballots, level):
    """By the definition: mean distance within units (each unit's pairs weighing 1/(m-1)) over that of all values."""
    units = [list(ballot.values()) for ballot in ballots if len(ballot) >= 2]
    values = [value for unit in units for value in unit]

    def distance(a, b):
        if level == "nominal":
            return float(a != b)
        if level == "interval":
            return (a - b) ** 2
        low, high = min(a, b), max(a, b)
        between = sum(low <= value <= high for value in values)
        return (between - (values.count(low) + values.count(high)) / 2) ** 2

    within = sum(distance(a, b) / (len(unit) - 1) for unit in units for a, b in itertools.permutations(unit, 2))
    overall = sum(distance(a, b) for a, b in itertools.permutations(values, 2)) / (len(values) - 1)
    return 1 - within / overall if overall else None


ballots_of_numbers = st.lists(
    st.dictionaries(st.sampled_from("abcd"), st.integers(1, 5), max_size=4), min_size=1, max_size=12
)


@given(ballots_of_numbers, st.sampled_from(["nominal", "ordinal", "interval"]))
@settings(max_examples=200, deadline=None)
def test_alpha_equals_brute_force_pair_counting(ballots, level):
    found, expected = krippendorff_alpha(ballots, level), slow_alpha(ballots, level)
    assert (found is None) == (expected is None)
    if expected is not None:
        assert found == pytest.approx(expected, abs=1e-9)


@given(ballots_of_numbers, st.permutations("abcd"), st.permutations([1, 2, 3, 4, 5]), st.randoms())
@settings(max_examples=100, deadline=None)
def test_names_order_and_nominal_labels_change_nothing(ballots, people, labels, rng):
    renamed = [{people["abcd".index(who)]: labels[label - 1] for who, label in ballot.items()} for ballot in ballots]
    rng.shuffle(renamed)
    assert krippendorff_alpha(renamed) == approximately(krippendorff_alpha(ballots))
    three, thrice = three_way_agreement(renamed), three_way_agreement(ballots)
    assert (three and three["value"]) == approximately(thrice and thrice["value"])
    one, other = fleiss_kappa(renamed), fleiss_kappa(ballots)
    assert (one and one.value) == approximately(other and other.value)
    before = {frozenset(people["abcd".index(who)] for who in pair): k for pair, k in cohen_kappas(ballots).items()}
    after = {frozenset(pair): kappa for pair, kappa in cohen_kappas(renamed).items()}
    assert before.keys() == after.keys()
    for pair, kappa in before.items():
        assert after[pair] == approximately(kappa)
    mine, theirs = dawid_skene(ballots), dawid_skene(renamed)
    assert {people["abcd".index(who)]: a for who, a in mine.accuracy.items()} == pytest.approx(
        theirs.accuracy, abs=1e-6, nan_ok=True
    )


def approximately(value):
    return None if value is None else pytest.approx(value, abs=1e-9)


def test_an_ordinal_or_interval_scale_may_be_turned_round():
    turned = [{who: 6 - label for who, label in ballot.items()} for ballot in textbook()]
    for level in ("ordinal", "interval"):
        assert krippendorff_alpha(turned, level) == pytest.approx(krippendorff_alpha(textbook(), level))


def test_kappas_by_hand():
    """Of ten items both say first on 4 and second on 3; p_o = .7, p_e = .6 * .5 + .4 * .5 = .5, kappa = .4."""
    said = [("f", "f")] * 4 + [("s", "s")] * 3 + [("f", "s")] * 2 + [("s", "f")]
    ballots = [{"ann": a, "bob": b} for a, b in said]
    assert cohen_kappa(ballots, "ann", "bob") == (pytest.approx(0.4), 10)
    # Fleiss pools the habits: p_e = (11/20)^2 + (9/20)^2 = .505, kappa = (.7 - .505) / .495.
    assert fleiss_kappa(ballots) == (pytest.approx(0.195 / 0.495), 10)


def test_fleiss_counts_items_of_the_commonest_number_of_labels():
    three = [{"a": 1, "b": 1, "c": 2}, {"a": 2, "b": 2, "c": 2}]
    assert fleiss_kappa([*three, {"a": 1, "b": 1}, {"a": 1}]) == fleiss_kappa(three)


@pytest.mark.parametrize("ballots", [[], [{}], [{"a": 1}], [{"a": 1}, {"b": 2}], [{"a": 1, "b": 1}] * 5])
def test_what_cannot_be_computed_is_none(ballots):
    assert krippendorff_alpha(ballots) is None
    assert alpha_estimate(ballots) is None
    assert fleiss_kappa(ballots) is None
    assert cohen_kappas(ballots) == {}
    assert three_way_agreement(ballots) is None


def test_three_way_agreement_of_more_than_three_counts_trios():
    """Of four labels a a a b one of four trios is equal."""
    found = three_way_agreement([dict(zip("wxyz", "aaab", strict=True)), {"w": "a", "x": "b"}])
    assert found is not None and (found["value"], found["n"]) == (0.25, 1)


def test_three_way_agreement_resamples_prompts():
    """36 pairs of one ranking tell of one prompt: the interval of 4 prompts is that of 4 items, not of 144."""
    same, apart = dict.fromkeys("wxy", "a"), dict(zip("wxy", "aab", strict=True))
    ballots = [same] * 36 + [apart] * 36 + [same] * 36 + [apart] * 36
    by_prompt = three_way_agreement(ballots, [number // 36 for number in range(144)])
    by_pair = three_way_agreement(ballots)
    assert by_prompt is not None and by_pair is not None
    assert by_prompt["ci"] == (0.0, 1.0) and by_pair["ci"][1] - by_pair["ci"][0] < 0.2


def test_alpha_estimate_holds_the_value_and_widens_when_prompts_repeat():
    rng = random.Random(0)
    ballots = []
    for _ in range(100):
        truth = rng.choice("fs")
        ballots.append({who: truth if rng.random() < 0.8 else rng.choice("fs") for who in "abc"})
    alone = alpha_estimate(ballots)
    assert alone["n"] == 100
    assert alone["value"] == pytest.approx(krippendorff_alpha(ballots))
    assert alone["ci"][0] < alone["value"] < alone["ci"][1]
    # Each item four times over: as items the interval would halve, as prompts it must stay.
    repeated = alpha_estimate(ballots * 4, groups=list(range(100)) * 4)
    as_items = alpha_estimate(ballots * 4)

    def width(estimate):
        return estimate["ci"][1] - estimate["ci"][0]

    assert width(repeated) == pytest.approx(width(alone), rel=0.15)
    assert width(as_items) == pytest.approx(width(alone) / 2, rel=0.2)


# --- shares ----------------------------------------------------------------------------------------------------------


@given(st.integers(1, 40), st.data(), st.sampled_from([0.5, 0.2]))
@settings(max_examples=100, deadline=None)
def test_binomial_test_equals_exact_sums(n, data, p):
    k = data.draw(st.integers(0, n))

    def mass(x):
        return math.comb(n, x) * p**x * (1 - p) ** (n - x)

    expected = sum(mass(x) for x in range(n + 1) if mass(x) <= mass(k) * (1 + 1e-7))
    assert binomial_test(k, n, p) == pytest.approx(expected, abs=1e-9)


def test_binomial_test_by_hand_and_for_many():
    assert binomial_test(0, 5) == pytest.approx(2 / 32)
    assert binomial_test(5, 10) == pytest.approx(1.0)
    z = 2.0  # far from exact only by the normal's own error
    assert binomial_test(50_000 + int(z * 0.5 * math.sqrt(100_000)), 100_000) == pytest.approx(0.0455, abs=5e-4)


def test_wilson_by_hand():
    """4 of 4: the lower end is n / (n + z^2)."""
    found = wilson(4, 4)
    assert found["value"] == 1
    assert found["ci"] == (pytest.approx(4 / (4 + 1.959964**2), abs=1e-6), pytest.approx(1.0))
    assert wilson(0, 4)["ci"][0] == pytest.approx(0.0)


def test_preference_is_none_without_a_decision():
    assert preference([]) is None
    found = preference([True] * 9 + [False])
    assert found.share["value"] == 0.9
    assert found.p_value == pytest.approx(22 / 1024)


# --- labelers --------------------------------------------------------------------------------------------------------


def simulated(accuracies, items, seed=0, labels=("first", "second", "tie"), each=None):
    rng = random.Random(seed)
    truths, ballots = [], []
    for _ in range(items):
        truth = rng.choice(labels)
        people = rng.sample(sorted(accuracies), each) if each else sorted(accuracies)
        ballots.append(
            {
                who: truth
                if rng.random() < accuracies[who]
                else rng.choice([label for label in labels if label != truth])
                for who in people
            }
        )
        truths.append(truth)
    return ballots, truths


def test_dawid_skene_finds_the_accuracies_of_simulated_labelers():
    accuracies = {"ann": 0.95, "bob": 0.8, "cyd": 0.65, "dot": 0.34, "eve": 0.75}
    ballots, truths = simulated(accuracies, 4000, each=4)
    found = dawid_skene(ballots)
    for who, accuracy in accuracies.items():
        assert found.accuracy[who] == pytest.approx(accuracy, abs=0.03)
    right = sum(max(truth, key=truth.get) == real for truth, real in zip(found.truth, truths, strict=True))
    majority = sum(
        max(set(ballot.values()), key=list(ballot.values()).count) == real
        for ballot, real in zip(ballots, truths, strict=True)
    )
    assert right > majority


SIDES = ("first", "second")


def test_reliability_is_the_share_of_informed_votes_normalised():
    """A labeler who is right in 75% of the cases knows half of the answers and guesses the others: 2a - 1."""
    ballots, _ = simulated({"ann": 0.95, "bob": 0.8, "cyd": 0.75, "dot": 0.5}, 6000, labels=SIDES)
    weights = reliability(ballots).weights
    assert sum(weights.values()) / 4 == pytest.approx(1)
    assert weights["cyd"] / weights["ann"] == pytest.approx(0.5 / 0.9, abs=0.04)
    assert weights["dot"] == 0


def with_ties(ballots, kind, seed):
    rng = random.Random(seed)
    if kind == "one":
        return [dict(ballots[0], ann="tie"), *ballots[1:]]
    if kind == "a coin's":
        return [dict(ballot, coin="tie") if rng.random() < 0.3 else ballot for ballot in ballots]
    share = 0.2 if kind == "everybody's" else 0.0
    return [{who: "tie" if rng.random() < share else said for who, said in ballot.items()} for ballot in ballots]


@pytest.mark.parametrize("kind", ["no", "one", "everybody's", "a coin's"])
def test_a_coin_weighs_nothing_with_and_without_ties(kind):
    """400 items; the others are right in 80% of the cases and weigh about alike: 4/3 on average."""
    people = {"ann": 0.8, "bob": 0.8, "cyd": 0.8, "coin": 0.5}
    others = []
    for seed in range(20):
        ballots = with_ties(simulated(people, 400, seed, SIDES)[0], kind, seed)
        weights = reliability(ballots).weights
        assert weights["coin"] < 0.05
        others.append([weights[who] for who in ("ann", "bob", "cyd")])
    assert [sum(column) / 20 for column in zip(*others, strict=True)] == pytest.approx([4 / 3] * 3, abs=0.15)
    assert min(map(min, others)) > 0.6


def test_one_tie_changes_nothing():
    """But for the vote that it takes the place of."""
    ballots, _ = simulated({"ann": 0.9, "bob": 0.8, "cyd": 0.75, "coin": 0.5}, 400, 3, SIDES)
    before = reliability(ballots).weights
    assert reliability([*ballots, {"ann": "tie", "bob": "tie", "cyd": "first"}]).weights == before
    after = reliability([dict(ballots[0], bob="tie"), *ballots[1:]]).weights
    assert all(after[who] == pytest.approx(weight, abs=0.03) for who, weight in before.items())


def test_who_says_tie_alone_is_like_the_others():
    ballots, _ = simulated({"ann": 0.8, "bob": 0.8, "cyd": 0.8}, 400, labels=SIDES)
    found = reliability([dict(ballot, dot="tie") for ballot in ballots])
    mean = sum(found.weights[who] for who in ("ann", "bob", "cyd")) / 3
    assert found.overlaps["dot"] == 0 and found.weights["dot"] == pytest.approx(mean, rel=0.1)


def test_a_labeler_below_chance_weighs_nothing():
    ballots, _ = simulated({"ann": 0.95, "bob": 0.9, "cyd": 0.9, "imp": 0.1}, 500, labels=SIDES)
    assert reliability(ballots).weights["imp"] == 0


@pytest.mark.parametrize("overlaps", [0, 5, FULL_TRUST, 40, CERTAIN_OVERLAPS])
def test_a_new_labeler_who_is_as_good_as_the_others_weighs_about_as_much(overlaps):
    """Averaged over seeds, since a few votes tell little."""
    shares = []
    for seed in range(20):
        ballots, _ = simulated(dict.fromkeys(("ann", "bob", "cyd", "new"), 0.8), 400, seed, SIDES)
        weights = reliability(
            [
                ballot if n < overlaps else {w: c for w, c in ballot.items() if w != "new"}
                for n, ballot in enumerate(ballots)
            ]
            + [{"new": "first"}]
        ).weights
        shares.append(weights["new"])
    assert sum(shares) / 20 > 0.7


def test_few_overlaps_are_drawn_toward_the_mean():
    """Always right on two overlaps against always right on FULL_TRUST: near the mean, and far above it."""
    ballots, truths = simulated({"ann": 0.7, "bob": 0.7, "cyd": 0.7, "dot": 0.7}, 400, labels=SIDES)
    few = [dict(b, new=t) if i < 2 else b for i, (b, t) in enumerate(zip(ballots, truths, strict=True))]
    many = [dict(b, new=t) if i < 3 * FULL_TRUST else b for i, (b, t) in enumerate(zip(ballots, truths, strict=True))]
    mean = sum(dawid_skene(ballots).accuracy.values()) / 4
    assert dawid_skene(few).accuracy["new"] == pytest.approx(mean, abs=0.05)
    assert dawid_skene(few).overlaps["new"] == 2
    assert dawid_skene(many).accuracy["new"] > mean + 0.15


def test_a_labeler_without_overlap_weighs_as_the_mean():
    ballots, _ = simulated({"ann": 0.9, "bob": 0.8, "cyd": 0.85}, 300)
    found = dawid_skene([*ballots, {"alone": "first"}])
    assert found.overlaps["alone"] == 0
    assert found.accuracy["alone"] == pytest.approx(sum(found.accuracy[w] for w in ("ann", "bob", "cyd")) / 3, abs=0.01)
    assert found.truth[-1] == {}


def test_without_any_overlap_nobodys_accuracy_is_known():
    assert math.isnan(dawid_skene([{"a": "first"}, {"b": "second"}]).accuracy["a"])


@pytest.mark.parametrize("ballots", [[], [{"a": "first"}, {"b": "second"}], [{"a": "first", "b": "first"}]])
def test_reliability_without_evidence_is_even(ballots):
    assert set(reliability(ballots).weights.values()) <= {1.0}
