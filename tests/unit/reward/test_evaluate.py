"""The held-out report, worked by hand, and what must not change it."""

import itertools
import math

import numpy as np
import pytest
from helpers.judging import END, by_length, comparison, pair_questions, question, swap
from hypothesis import given, settings
from hypothesis import strategies as st

from reward.evaluation import evaluate
from reward.evaluation.judged import order, vote_accuracy
from reward.evaluation.shortcuts import cut_eos, rank_correlation


def judge(questions, scores, **options):
    return evaluate(questions, scores, lambda cut: [[0.0] * len(one.completion_ids) for one in cut], **options)


# --- accuracy --------------------------------------------------------------------------------------------------------


def test_accuracy_counts_votes_not_pairs_and_leaves_ties_out():
    rows = [
        comparison("a", ["first"] * 3 + ["second"]),
        comparison("b", ["second"] + ["tie"] * 5),
        comparison("c", ["tie"] * 2),
        comparison("d", ["first"]),
    ]
    says = [1.0, 1.0, 1.0, 0.5]
    found = vote_accuracy(rows, says.__getitem__)
    assert found["value"] == pytest.approx((3 + 0 + 0.5) / 6)
    assert found["n"] == 6
    assert found["ci"][0] <= found["value"] <= found["ci"][1]
    assert vote_accuracy(rows[2:3], says.__getitem__) is None


def test_order_knows_a_tie():
    assert (order(2, 1), order(1, 2), order(1, 1)) == (1.0, 0.0, 0.5)


def test_the_report_by_hand():
    questions = pair_questions(
        [
            ("a", ["first"], (3, 2)),  # right, the longer one is better
            ("b", ["second"] * 2, (1, 2)),  # wrong, the longer one is better
            ("c", ["first", "second"], (2, 1)),
            ("d", ["tie"], (2, 1)),
        ]
    )
    scores = [[1.0, -1.0], [0.5, 0.0], [2.0, 0.0], [800.0, -800.0]]
    found = judge(questions, scores)
    assert found["accuracy"]["value"] == pytest.approx((1 + 0 + 1) / 5)
    assert found["length"]["baseline"]["value"] == pytest.approx((1 + 2 + 1) / 5)
    assert (found["length"]["rule"], found["length"]["ahead"]["n"]) == ("longer", 5)
    assert found["length"]["ahead"]["value"] == pytest.approx((0 - 2 + 0) / 5)
    assert found["votes"] == {"first": 2, "second": 3, "tie": 1}

    def softplus(x):
        return math.log1p(math.exp(x))

    total = softplus(-2) + 2 * softplus(0.5) + (softplus(-2) + softplus(2)) + 800
    assert found["log_loss"]["value"] == pytest.approx(total / 6)
    # The bins of sigmoid(2) = 0.881 (three votes), sigmoid(1/2) = 0.622 (two) and 1 (the tie).
    gaps = 3 * abs(0.880797 - (1 + 1) / 3) + 2 * 0.622459 + abs(1 - 0.5)
    assert found["ece"]["value"] == pytest.approx(gaps / 6, abs=1e-5)


def test_pairs_of_one_ranking_weigh_as_one_pair_in_the_loss_and_as_votes_in_the_accuracy():
    rows = [
        (i, j, comparison("a", ["first"], (f"t{i}", f"t{j}"), size=3)) for i, j in itertools.combinations(range(3), 2)
    ]
    questions = [question(0, rows, (2, 2, 2)), question(1, [(0, 1, comparison("b", ["second"]))])]
    found = judge(questions, [[3.0, 2.0, 1.0], [1.0, 0.0]])

    def softplus(x):
        return math.log1p(math.exp(x))

    assert found["accuracy"]["value"] == pytest.approx(3 / 4)
    ranking = (2 * softplus(-1) + softplus(-2)) / 3
    assert found["log_loss"]["value"] == pytest.approx((ranking + softplus(1)) / 2)


# --- what must not matter --------------------------------------------------------------------------------------------

CHOICES = st.lists(st.sampled_from(["first", "second", "tie"]), min_size=1, max_size=4)
ROWS = st.lists(
    st.tuples(
        st.sampled_from("abcdef"),
        CHOICES,
        st.tuples(st.integers(2, 6), st.integers(2, 6)),
        st.tuples(st.integers(-8, 8), st.integers(-8, 8)),
    ),
    min_size=1,
    max_size=12,
)


def numbers(value):
    """The report's numbers that carry no order of rows: no samples, no interval."""
    if isinstance(value, dict):
        return {key: numbers(item) for key, item in value.items() if key not in ("samples", "ci", "ece_if_calibrated")}
    return [numbers(item) for item in value] if isinstance(value, list) else value


def flat(value):
    """All numbers of a report by their path, to be compared with a tolerance."""
    if isinstance(value, dict):
        return {f"{key}.{path}": item for key, part in value.items() for path, item in flat(part).items()}
    if isinstance(value, list):
        return {f"{n}.{path}": item for n, part in enumerate(value) for path, item in flat(part).items()}
    return {"": value}


@settings(deadline=None, max_examples=25)
@given(ROWS, st.randoms(use_true_random=False))
def test_which_side_comes_first_and_the_order_of_the_questions_change_nothing(rows, random):
    questions = pair_questions([row[:3] for row in rows])
    scores = {tuple(one.prompt_ids): [a / 4, b / 4] for one, (*_, (a, b)) in zip(questions, rows, strict=True)}

    def score(questions):
        return [scores[tuple(one.prompt_ids)] for one in questions]

    def report(questions):
        return evaluate(questions, score(questions), score)

    before = report(questions)
    changed = [swap(one) if random.random() < 0.5 else one for one in questions]
    assert flat(numbers(report(changed))) == pytest.approx(flat(numbers(before)) | swapped_votes(before, changed))
    assert report(changed)["ece_if_calibrated"] == before["ece_if_calibrated"]
    shuffled = list(questions)
    random.shuffle(shuffled)
    assert flat(numbers(report(shuffled))) == pytest.approx(flat(numbers(before)), abs=1e-9)


def swapped_votes(before, questions):
    """How many votes say first is all that knows which side is first."""
    found = {f"votes.{choice}.": 0 for choice in ("first", "second", "tie")}
    for one in questions:
        for pair in one.pairs:
            for vote in pair.comparison.votes:
                found[f"votes.{vote.choice}."] += 1
    return found


# --- slices ----------------------------------------------------------------------------------------------------------


def rows_of(slices):
    return {row["name"]: (pytest.approx(row["value"]), row["n"]) for row in slices}


def test_accuracy_by_labeler_strength_source_size_and_length():
    votes = [("first", 3, "ann"), ("second", 1, "bob"), ("tie", None, "cyd")]
    ranked = [comparison("b", [("second", None, "ann")], size=4, place="/else/r.db:item 7")]
    questions = [
        question(0, [(0, 1, comparison("a", votes, place="/data/d.jsonl:3"))], (5, 2)),
        question(1, [(0, 1, row) for row in ranked], (5, 2)),
    ]
    by = judge(questions, [[1.0, 0.0], [1.0, 0.0]])["by"]
    assert rows_of(by["labeler"]) == {"ann": (0.5, 2), "bob": (0.0, 1)}
    assert rows_of(by["strength"]) == {"slightly better": (0.0, 1), "much better": (1.0, 1), "not asked": (0.0, 1)}
    assert rows_of(by["source"]) == {"d.jsonl": (0.5, 2), "r.db": (0.0, 1)}
    assert rows_of(by["size"]) == {"2 answers": (0.5, 2), "4 answers": (0.0, 1)}
    assert rows_of(by["length"]) == {"the longer one": (1.0, 1), "the shorter one": (0.0, 2)}


def test_two_files_of_one_name_keep_their_folders():
    questions = [
        question(n, [(0, 1, comparison(str(n), place=f"/{folder}/d.jsonl:3"))]) for n, folder in enumerate("ab")
    ]
    by = judge(questions, [[1.0, 0.0]] * 2)["by"]
    assert [row["name"] for row in by["source"]] == ["/a/d.jsonl", "/b/d.jsonl"]


def test_accuracy_by_how_far_the_scores_are_apart_is_in_fifths():
    questions = pair_questions([(str(n), ["first"], (3, 2)) for n in range(50)])
    scores = [[0.0, 1 + n] if n < 10 else [1.0 + n, 0.0] for n in range(50)]  # the ten closest calls are wrong
    rows = judge(questions, scores)["by"]["difference"]
    assert [(row["value"], row["n"]) for row in rows] == [(0.0, 10)] + [(1.0, 10)] * 4
    assert (rows[0]["low"], rows[0]["high"], rows[-1]["high"]) == (1.0, 10.0, 50.0)


def test_more_than_twenty_labelers_are_the_twenty_with_most_votes_and_the_rest():
    rows = [
        comparison(f"{who} {n}", [("first", None, f"w{who:02}")]) for who in range(23) for n in range(1 + (who < 20))
    ]
    questions = [question(n, [(0, 1, row)]) for n, row in enumerate(rows)]
    found = judge(questions, [[1.0, 0.0]] * len(rows))["by"]["labeler"]
    assert [row["name"] for row in found] == [f"w{who:02}" for who in range(20)] + ["3 others"]
    assert found[-1]["n"] == 3


def test_people_and_the_model_are_judged_by_the_same_votes():
    """a: the model agrees with 2 of 3 votes, a person with (1/2 + 1/2 + 0) / 3 of the others'. b: with none of 3, and
    all. The pair with one vote is of the accuracy alone."""
    rows = [("a", ["first", "first", "second"], (3, 2)), ("b", ["second"] * 3, (3, 2)), ("c", ["first"], (3, 2))]
    report = judge(pair_questions(rows), [[1.0, 0.0]] * 3)
    found = report["shared"]
    assert report["accuracy"]["value"] == pytest.approx(3 / 7)
    assert found["model"]["value"] == pytest.approx(2 / 6)
    assert found["one_human"]["value"] == pytest.approx((3 * (1 / 3) + 3 * 1) / 6)
    assert (found["model"]["n"], found["one_human"]["n"], found["pairs"], found["best"]) == (6, 6, 2, None)
    assert judge(pair_questions(rows[2:]), [[1.0, 0.0]])["shared"] is None


# --- shortcuts -------------------------------------------------------------------------------------------------------


def test_correlation_with_length_is_spearmans_over_both_ways_round():
    rng = np.random.default_rng(0)
    one = rng.normal(size=40).round(1)
    other = (one + rng.normal(size=40)).round(1)

    def ranks(values):  # mean ranks, by counting
        return np.array([(values < x).sum() + ((values == x).sum() + 1) / 2 for x in values])

    both = np.concatenate([one, -one]), np.concatenate([other, -other])
    expected = np.corrcoef(*map(ranks, both))[0, 1]
    found = rank_correlation(one, other, range(40))
    assert found["value"] == pytest.approx(expected)
    assert found["ci"][0] < expected < found["ci"][1]
    assert rank_correlation([1, -2, 3], [5, -7, 9], range(3))["value"] == pytest.approx(1)
    assert rank_correlation([1, 2], [0, 0], range(2)) is None


def test_without_its_end_an_answer_of_a_known_model_loses_a_known_score():
    """A model that pays 1 for the end and a tenth a token; half of the shorter answers do not end otherwise."""
    questions = pair_questions([("a", ["first"], (3, 2)), ("b", ["second"], (2, 6))])
    found = evaluate(questions, by_length(questions), by_length)["without_eos"]
    assert found["moved"]["value"] == pytest.approx(-1.1)
    assert (found["questions"], found["flips"]["value"]) == (2, 0.0)
    assert found["spread"] == pytest.approx(np.std([1.3, 1.2, 1.2, 1.6]))
    assert found["accuracy"]["value"] == 1.0

    def turned(questions):  # a model that likes long answers only if they end
        return [[len(ids) * (1 if ids[-1] == END else -1) for ids in one.completion_ids] for one in questions]

    found = evaluate(questions, turned(questions), turned)["without_eos"]
    assert (found["flips"]["value"], found["accuracy"]["value"]) == (1.0, 0.0)


def test_an_empty_answer_has_no_end_to_cut():
    questions = pair_questions([("a", ["first"], (3, 1)), ("b", ["first"], (3, 2))])
    (cut,) = cut_eos(questions)
    assert cut.completion_ids == [questions[1].completion_ids[0][:-1], questions[1].completion_ids[1][:-1]]
    found = evaluate(questions, by_length(questions), by_length)["without_eos"]
    assert found["questions"] == 1
    only_empty = pair_questions([("a", ["first"], (3, 1))])
    assert evaluate(only_empty, [[1.0, 0.0]], by_length)["without_eos"] == {"questions": 0}


def test_ties_and_near_duplicates_are_measured_beside_the_others():
    alike = ("one two three four five six seven eight nine ten", "One two three four five six seven eight nine TEN!")
    questions = [
        question(0, [(0, 1, comparison("a", ["tie", "tie", "first"]))]),
        question(1, [(0, 1, comparison("b", ["first"], alike))]),
        question(2, [(0, 1, comparison("c", ["tie", "first"]))]),  # as many ties as not: no tie
    ]
    found = judge(questions, [[0.5, 0.0], [0.0, 0.1], [3.0, 0.0]])
    assert found["ties"] == {"n": 1, "median_difference": 0.5, "others": {"n": 2, "median_difference": 1.55}}
    assert found["near_duplicates"]["n"] == 1
    assert found["near_duplicates"]["median_difference"] == pytest.approx(0.1)
    assert found["near_duplicates"]["others"] == {"n": 2, "median_difference": 1.75}


# --- the rest --------------------------------------------------------------------------------------------------------


def test_the_histogram_has_each_decided_pair_once_on_either_side():
    questions = pair_questions(
        [
            ("a", ["first"], (3, 2)),
            ("b", ["second"], (3, 2)),
            ("c", ["tie"], (3, 2)),
            ("d", ["first", "second"], (3, 2)),
        ]
    )
    found = judge(questions, [[2.0, 0.0], [1.0, 4.0], [9.0, 9.0], [9.0, 8.0]])["scores"]
    assert found["n"] == 2
    assert (found["preferred"]["mean"], found["other"]["mean"]) == (3.0, 0.5)
    assert sum(found["preferred"]["counts"]) == sum(found["other"]["counts"]) == 2
    assert found["preferred"]["quantiles"]["50%"] == 3.0


def test_members_that_differ():
    questions = pair_questions([("a", ["first"], (3, 2)), ("b", ["first"], (3, 2))])
    members = [[[1.0, 0.0], [1.0, 0.0]], [[3.0, 0.0], [0.0, 1.0]]]
    found = judge(questions, [[2.0, 0.0], [0.5, 0.5]], members=members)["ensemble"]
    assert [row["value"] for row in found["accuracy"]] == [1.0, 0.5]
    assert found["spread"]["value"] == pytest.approx((1.0 + 1.0) / 2)
    assert found["split"]["value"] == 0.5
    assert judge(questions, [[2.0, 0.0], [0.5, 0.5]])["ensemble"] is None


def test_ratings_as_numbers():
    rng = np.random.default_rng(0)
    said, rated = rng.normal(size=(2, 30, 2))
    questions = [
        question(n, [], ratings=(float(rated[n, 0]), None if n % 2 else float(rated[n, 1]))) for n in range(30)
    ]
    kept = np.array([True, True] * 15).reshape(15, 2).repeat(2, 0)
    kept[1::2, 1] = False
    x, y = said[kept], rated[kept]
    found = judge(questions, (said - 2.5).tolist(), rating_offset=2.5)
    assert found["accuracy"] is None
    assert found["ratings"]["squared_error"]["value"] == pytest.approx(((x - y) ** 2).mean())
    assert found["ratings"]["squared_error"]["n"] == 45
    assert found["ratings"]["squared_error_of_the_mean"] == pytest.approx(y.var())
    assert found["ratings"]["correlation"]["value"] == pytest.approx(np.corrcoef(x, y)[0, 1])


def test_samples_are_the_surest_mistakes_and_the_closest_calls_one_of_a_question():
    rows = [comparison("a", ["second"], (f"x{n}", f"y{n}"), size=3) for n in range(2)]
    questions = [
        question(0, [(0, 1, rows[0]), (0, 2, rows[1])], (3, 2, 4)),
        *pair_questions([("b", ["second"], (3, 2)), ("c", ["first"], (3, 2)), ("d", ["tie"], (3, 2))]),
    ]
    found = judge(questions, [[5.0, 1.0, 0.0], [2.0, 1.0], [1.5, 1.0], [9.0, 0.0]])["samples"]
    wrong = [(item["prompt"][0]["content"], item["answers"][0]["text"]) for item in found["wrong"]]
    assert wrong == [("a", "x1"), ("b", "x")]
    assert found["wrong"][0]["probability"] == pytest.approx(1 / (1 + math.exp(-5)))
    assert [(answer["score"], answer["votes"]) for answer in found["wrong"][0]["answers"]] == [(5.0, 0), (0.0, 1)]
    assert [item["prompt"][0]["content"] for item in found["close"]] == ["c", "b", "a"]


def test_long_texts_are_cut_in_samples():
    row = comparison("p" * 5000 + "What?", ["second"], ("x" * 5000, "y"))
    (item,) = judge([question(0, [(0, 1, row)])], [[1.0, 0.0]])["samples"]["wrong"]
    assert len(item["answers"][0]["text"]) < 2010 and item["answers"][0]["text"].endswith("x …")
    shown = item["prompt"][0]["content"]
    assert len(shown) < 1010 and shown.startswith("… p") and shown.endswith("What?")


def test_nothing_held_out_and_all_ties():
    assert judge([], [])["accuracy"] is None
    found = judge(pair_questions([("a", ["tie"], (3, 2))]), [[1.0, 0.0]])
    assert (found["accuracy"], found["length"]["baseline"], found["length"]["ahead"]) == (None, None, None)
    assert found["ece"]["value"] == pytest.approx(1 / (1 + math.exp(-1)) - 0.5)


def test_a_question_whose_votes_are_replaced_keeps_its_texts():
    """Slices by vote copy the comparison: the one that samples show must stay whole."""
    row = comparison("a", [("first", None, "ann"), ("second", None, "bob"), ("second", None, "cyd")])
    found = judge([question(0, [(0, 1, row)])], [[1.0, 0.0]])
    assert [answer["votes"] for answer in found["samples"]["wrong"][0]["answers"]] == [1, 2]
