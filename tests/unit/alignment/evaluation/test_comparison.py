"""The result of a comparison: figures that are worked by hand, who leads, and what is said in words."""

import io
import json
import math
import random

import pytest
from helpers.comparing import contest, question, said
from rich.console import Console

from alignment.errors import UserError
from alignment.evaluation.comparison import ComparisonSetup, judge_all, people_figures, powered_figures
from alignment.evaluation.figures import agreement_with_people, pair_figures
from alignment.evaluation.judgments import JudgeIdentity, KnownJudgments
from alignment.evaluation.people import PEOPLE
from alignment.evaluation.result_text import more_votes, sentence, sentences, tables
from alignment.evaluation.slices import MOST_SLICES, OTHER
from alignment.registry import Registry

RULE = JudgeIdentity("python=rule", "function")
TOPICS = ["x", "x", "y", "y", "y", None]
PROMPTS = [question(f"Q{number}", topic=topic) for number, topic in enumerate(TOPICS)]
FOUND = contest(PROMPTS, a=["a" * 4] * 6, b=["b" * 2] * 5 + ["b" * 6])
OUTCOMES = [1.0, 1.0, 0.0, 0.5, 1.0, 0.0]


class Fixed:
    """A judge with given outcomes of each pair of sides."""

    def __init__(self, identity, **outcomes):
        self.identity, self.outcomes, self.notes, self.measures = identity, outcomes, [], []

    def judge(self, found, known):
        seen = {}
        judgments = []
        for bout in found.bouts():
            place = seen[bout.a, bout.b] = seen.get((bout.a, bout.b), -1) + 1
            judgments.append(bout.judged(self.identity, self.outcomes[bout.a + bout.b][place]))
        return judgments


def compare(tmp_path, found, *judges, slices=()):
    identities = {side: {"kind": "file", "model": side, "digest": None} for side in found.sides}
    comparison = ComparisonSetup(found, identities, {"name": "p.jsonl", "sha256": "0" * 64}, {"seed": 0}, slices)
    return judge_all(comparison, judges, Registry(tmp_path / "registry"), tmp_path / "c")


def test_wins_ties_losses_and_slices():
    figures = pair_figures(FOUND, ("a", "b"), said(RULE, FOUND, OUTCOMES), ["topic"], 0)
    assert (figures["wins"], figures["ties"], figures["losses"], figures["prompts"]) == (3, 1, 2, 6)
    assert figures["win_rate"]["value"] == pytest.approx(3.5 / 6)
    assert figures["sign_test"] == 1.0  # 3 of 5 decided
    topics = {value: part["win_rate"]["value"] for value, part in figures["slices"]["topic"].items()}
    assert topics == {"y": 0.5, "x": 1.0, "(none)": 0.0}


def test_many_slices_are_joined():
    prompts = [question(f"Q{number}", topic=number // 2) for number in range(40)]
    found = contest(prompts, a=["a"] * 40, b=["b"] * 40)
    parts = pair_figures(found, ("a", "b"), said(RULE, found, [1.0] * 40), ["topic"], 0)["slices"]["topic"]
    assert len(parts) == MOST_SLICES and parts[OTHER]["prompts"] == 40 - 2 * (MOST_SLICES - 1)


def test_votes_by_labeler_and_on_one_prompt():
    bouts = list(FOUND.bouts())
    votes = [bouts[0].judged(PEOPLE, 1.0, labeler="h1"), bouts[0].judged(PEOPLE, 0.0, labeler="h2")]
    votes += [bout.judged(PEOPLE, 1.0, labeler="h1") for bout in bouts[1:3]]
    figures = pair_figures(FOUND, ("a", "b"), votes, [], 0)
    assert (figures["prompts"], figures["judgments"]) == (3, 4)
    assert {who: part["win_rate"]["value"] for who, part in figures["labelers"].items()} == {"h1": 1.0, "h2": 0.0}
    assert figures["win_rate"]["n"] == 4


def test_agreement_with_people_is_kappa_with_ties_as_a_label():
    """Of six pairs they agree on four; by hand (4/6 - 13/36) / (1 - 13/36)."""
    people = said(PEOPLE, FOUND, [1.0, 1.0, 0.0, 0.5, 0.0, 1.0])
    judge = said(RULE, FOUND, [1.0, 1.0, 0.0, 0.5, 1.0, 0.5])
    estimate = agreement_with_people(people, judge)
    # people: a 3, b 2, tie 1; judge: a 3, b 1, tie 2; chance 9/36 + 2/36 + 2/36
    assert estimate["value"] == pytest.approx((4 / 6 - 13 / 36) / (1 - 13 / 36)) and estimate["n"] == 6


def test_a_judges_help_leaves_out_pairs_that_people_are_not_asked():
    prompts = [question(f"Q{number}") for number in range(30)]
    found = contest(prompts, a=["a"] * 29 + ["same"], b=["b"] * 29 + ["same"])
    outcomes = [float(number % 3 == 0) for number in range(29)] + [0.5]
    people = said(PEOPLE, found, outcomes)[:10]
    figures = powered_figures(people, said(RULE, found, outcomes))
    assert figures["judged_alone"] == 19
    assert figures["plain"]["value"] == pytest.approx(0.4)
    assert figures["powered"]["value"] == pytest.approx(10 / 29, abs=0.01)  # a perfect judge: nearly the mean over all
    assert figures["votes_bought"] > 10
    assert powered_figures([], said(RULE, found, outcomes)) is None


def test_a_reward_model_helps_by_the_probability_that_it_gives_a_vote():
    """Its scores say who wins and how surely; a function's scores have no such unit, so its verdict counts."""
    bout = next(contest([question("Q")], a=["a"], b=["b"]).bouts())
    model = JudgeIdentity("reward=rm@v1", "reward model", "d")
    assert bout.judged(model, 1.0, (2.0, 1.0)).expected_outcome == pytest.approx(math.e / (1 + math.e))
    assert bout.judged(model, 0.0, (-1e6, 1e6)).expected_outcome == pytest.approx(0.0)
    assert bout.judged(model, 1.0, (1e6, -1e6)).expected_outcome == 1.0
    assert bout.judged(RULE, 1.0, (2.0, 1.0)).expected_outcome == 1.0
    assert bout.judged(PEOPLE, 0.5, labeler="h").expected_outcome == 0.5


def test_what_a_reward_model_knows_of_chances_saves_votes():
    """Votes are coins of unlike chances, all above one half: who wins is the same everywhere and says nothing."""
    rng = random.Random(0)
    chances = [rng.choice((0.55, 0.99)) for _ in range(400)]
    prompts = [question(f"Q{number}") for number in range(400)]
    found = contest(prompts, a=["a"] * 400, b=["b"] * 400)
    bouts = list(found.bouts())
    votes = [
        bout.judged(PEOPLE, float(rng.random() < chance), labeler=f"h{n}")
        for bout, chance in list(zip(bouts, chances, strict=True))[:100] for n in range(5)
    ]  # fmt: skip
    scores = [(math.log(chance / (1 - chance)), 0.0) for chance in chances]

    def width(identity):
        judged = [bout.judged(identity, 1.0, score) for bout, score in zip(bouts, scores, strict=True)]
        figures = powered_figures(votes, judged)
        return figures["powered"]["ci"][1] - figures["powered"]["ci"][0]

    assert width(JudgeIdentity("reward=rm@v1", "reward model", "d")) < 0.8 * width(RULE)


def test_the_stopping_rule_and_what_it_still_needs():
    prompts = [question(f"Q{number}") for number in range(60)]
    found = contest(prompts, a=["a"] * 60, b=["b"] * 60)
    all_won = people_figures(said(PEOPLE, found, [1.0] * 60))
    assert all_won["decision"]["decided"] == "a" and all_won["more_ratings"]["middle"] == 0
    open_yet = people_figures(said(PEOPLE, found, [1.0, 1.0, 0.0] * 20)[:6])
    assert open_yet["decision"]["decided"] is None and open_yet["more_ratings"]["middle"] > 0


def test_one_plain_sentence_says_who_won_by_whom_and_how_sure(tmp_path):
    prompts = [question(f"Q{number}") for number in range(40)]
    found = contest(prompts, a=["a"] * 40, b=["b"] * 40)
    won = compare(tmp_path, found, Fixed(RULE, ab=[1.0] * 36 + [0.0] * 4))
    lost = compare(tmp_path, found, Fixed(RULE, ab=[0.0] * 36 + [1.0] * 4))
    even = compare(tmp_path, found, Fixed(RULE, ab=[0.0, 1.0] * 20))
    low, high = won["pairs"][0]["judges"][0]["win_rate"]["ci"]
    assert sentences(won) == [
        f"a beats b: it is better on 90% of 40 prompts (95% interval {100 * low:.0f}% to {100 * high:.0f}%), "
        "judged by the function rule."
    ]
    assert sentences(lost)[0] == sentences(won)[0].replace("a beats b", "b beats a")
    assert sentences(even)[0].startswith("Nothing shown between a and b: a wins 50% of 40 prompts")


def row(kind, name, trained_on=(), value=0.9):
    return {
        "judge": name, "kind": kind, "judged_by": name, "trained_on": list(trained_on), "prompts": 9,
        "win_rate": {"value": value, "ci": (0.8, 0.95), "n": 9},
    }  # fmt: skip


def test_people_lead_and_a_judge_that_a_side_was_trained_on_comes_last():
    trained, other, people = row("reward model", "rm", ["a"]), row("function", "f"), row("people", "people")
    for judges, leading in (([trained, other], "f"), ([trained, other, people], "people"), ([trained], "rm")):
        text = sentence({"a": "a", "b": "b", "judges": judges})
        assert f"judged by {leading}" in text
        assert text.startswith("a beats b: ") == (leading != "rm")
        assert ("a scores higher than b by the reward model that it was trained on" in text) == (leading == "rm")
    foreign = sentence({"a": "a", "b": "b", "judges": [row("reward model", "rm", ["b"])]})
    assert foreign.startswith("a scores higher than b by the reward model that b was trained on: on 90%")
    for order in ([row("function", "f"), row("model", "m")], [row("model", "m"), row("function", "f")]):
        assert f"judged by {order[0]['judge']}" in sentence({"a": "a", "b": "b", "judges": order})  # the first --by
    assert sentence({"a": "a", "b": "b", "judges": [{"kind": "people"}]}) == "Nobody has judged a against b yet."


def test_the_stopping_rule_is_said_in_words():
    pair, decision = {"a": "new", "b": "old"}, {"decided": "b", "at": 12}
    more = {"low": 0, "middle": 0, "high": 0}
    assert more_votes(pair, {"decision": decision, "more_ratings": more, "judgments": 20}) == (
        "decided for old after 12 votes: further ones will not take it back"
    )
    for more, text in (
        ({"low": 5, "middle": 12, "high": 40}, "about 12 more ratings decide it (5 to 40)"),
        ({"low": 5, "middle": 90, "high": None}, "about 90 more ratings decide it (5 to more than 2,000)"),
        ({"low": 5, "middle": None, "high": None}, "more than 2,000 further ratings are needed: the two are close"),
    ):
        open_yet = {"decision": {"decided": None, "at": None}, "more_ratings": more, "judgments": 10}
        assert more_votes(pair, open_yet) == text
        few = "not decided: 9 votes, too few to say how many more decide it"
        assert more_votes(pair, open_yet | {"judgments": 9}) == few
    open_yet["more_ratings"] = {"low": 5, "middle": 12, "high": 40}
    assert more_votes(pair, open_yet | {"unrated": 12}).startswith("about 12 more ratings decide it")
    assert more_votes(pair, open_yet | {"unrated": 11}) == (
        "not decided, and 11 pairs are left to rate: it takes about 12 more ratings, on more prompts"
    )


def test_a_check_that_nobody_passes_is_said():
    failed = row("check", "json") | {"mean_scores": [0.0, 0.0], "win_rate": {"value": 0.5, "ci": (0.4, 0.6), "n": 9}}
    said_of = sentence({"a": "a", "b": "b", "judges": [failed]})
    assert said_of == "No side passes on any of 9 prompts: neither a nor b, judged by json."
    some = sentence({"a": "a", "b": "b", "judges": [failed | {"mean_scores": [0.0, 0.1]}]})
    assert some.startswith("Nothing shown between a and b")


def test_more_than_three_sides_are_one_table_per_judge(tmp_path):
    prompts = [question(f"Q{number}") for number in range(40)]
    found = contest(prompts, **{side: [side] * 40 for side in "abcd"})
    won, even = [1.0] * 40, [0.0, 1.0] * 20
    judge = Fixed(RULE, ab=won, ac=won, ad=even, bc=even, bd=even, cd=even)
    console = Console(width=60, record=True, quiet=False, file=io.StringIO())
    for table in tables(compare(tmp_path, found, judge), {}, boxed=False):
        console.print(table)
    lines = [line.split() for line in console.export_text().splitlines()]
    assert ["wins", "over", "1", "2", "3", "4"] in lines
    assert ["1", "a", "-", "100%*", "100%*", "50%"] in lines and ["2", "b", "0%*", "-", "50%", "50%"] in lines
    assert ["a", "against", "b"] not in lines


def test_three_sides_get_strengths_and_every_pair(tmp_path):
    prompts = [question(f"Q{number}") for number in range(20)]
    found = contest(prompts, a=["a"] * 20, b=["b"] * 20, c=["c"] * 20)
    mostly = [1.0] * 16 + [0.0] * 4
    result = compare(tmp_path, found, Fixed(RULE, ab=mostly, ac=mostly, bc=[1.0, 0.0] * 10))
    assert [(pair["a"], pair["b"]) for pair in result["pairs"]] == [("a", "b"), ("a", "c"), ("b", "c")]
    strengths = result["strengths"]["python=rule"]
    assert max(strengths, key=lambda side: strengths[side]["value"]) == "a"
    assert strengths["a"]["ci"][0] > strengths["b"]["value"]


def test_judgments_of_other_judges_stay_and_a_judges_own_are_replaced(tmp_path):
    other = JudgeIdentity("python=other", "function")
    compare(tmp_path, FOUND, Fixed(other, ab=[0.5] * 6))
    compare(tmp_path, FOUND, Fixed(RULE, ab=OUTCOMES))
    compare(tmp_path, FOUND, Fixed(RULE, ab=[0.0] * 6))
    rows = [json.loads(line) for line in (tmp_path / "c" / "judgments.jsonl").read_text().splitlines()]
    assert {(each["judge"], each["outcome"]) for each in rows} == {("python=other", 0.5), ("python=rule", 0.0)}
    assert len(rows) == 12


def test_half_a_line_of_a_killed_judge_costs_that_judgment_alone(tmp_path):
    path = tmp_path / "judgments.jsonl"
    known, (one, two, *_) = KnownJudgments(path), FOUND.bouts()
    known.add(one.judged(RULE, 1.0))
    with path.open("ab") as file:
        file.write(b'{"prompt": "1')
    KnownJudgments(path).add(two.judged(RULE, 0.0))
    again = KnownJudgments(path)
    assert again.of(RULE, one).outcome == 1.0 and again.of(RULE, two).outcome == 0.0


def test_the_same_answers_everywhere_are_refused(tmp_path):
    found = contest(PROMPTS, a=["x"] * 6, b=["x"] * 6)
    with pytest.raises(UserError, match="a and b gave the same answers to all 6 prompts"):
        compare(tmp_path, found, Fixed(RULE, ab=OUTCOMES))


def test_everything_fits_in_60_columns(tmp_path):
    long = JudgeIdentity("reward=help-desk-reward-of-many-words@v12", "reward model")
    votes = Fixed(PEOPLE, ab=OUTCOMES)
    result = compare(tmp_path, FOUND, votes, Fixed(long, ab=OUTCOMES), slices=["topic"])
    result["pairs"][0]["judges"][1]["with_people"]["judged_alone"] = 9  # all are rated here
    console = Console(width=60, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    for table in tables(result, {}):
        console.print(table)
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= 60
    assert "reward=help-desk-reward-of-many-words@v12" in "".join(
        line.split(" ")[1] for line in lines if line.startswith(" ")
    )
    assert any("58% (" in line for line in lines)
    assert any("people with the help of" in line for line in lines)
