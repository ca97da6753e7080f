"""A comparison's page: what it says, that nobody's text is markup in it, its size, and which answers come first."""

import copy
from html.parser import HTMLParser

import pytest
from helpers.compared import made_comparison
from helpers.comparing import contest, question
from helpers.full_runs import HOSTILE
from markupsafe import escape

from alignment.evaluation import page_bouts
from alignment.evaluation.judgments import Judgment
from alignment.evaluation.page import FILE, comparison_page, mirrored, write_page
from alignment.evaluation.page_bouts import MAX_BOUTS, BoutViews, chosen, columns_of, judged_bouts, worst_first
from alignment.evaluation.result_text import sentences
from alignment.evaluation.score_text import difference_lines
from alignment.evaluation.slices import OTHER


class Elements(HTMLParser):
    """Every tag of a page with its attributes, and its visible text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def one_space(text):
    return " ".join(text.split())


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return made_comparison(tmp_path_factory.mktemp("made"), ("sft", "ppo", "prompted"))


def test_the_page_says_what_the_terminal_says_and_every_figure(made):
    result, found, _ = made
    text = one_space(Elements(comparison_page(*made)).text)
    for sentence in sentences(result):
        assert sentence in text
    for pair in result["pairs"]:
        reward = pair["judges"][1]
        assert f"{reward['agreement']['value']:.2f} ({reward['agreement']['ci'][0]:.2f} to" in text
        bought = round(reward["with_people"]["votes_bought"])
        assert f"the judge {f'is worth {bought} vote' if bought >= 1 else 'adds nothing'}" in text
    assert "not decided, and 20 pairs are left to rate" in text
    for judge, measures in result["scores"].items():
        for side, estimate in measures[0]["sides"].items():
            assert f"{estimate['value']:.2f} ({estimate['ci'][0]:.2f} to" in text, (judge, side)
        assert next(difference_lines(measures[0])) in text
    assert result["scores"]
    assert text.count("at equal length") == 9
    for part in (
        "its two orders disagreed on 7%",
        "a1a1a1a1a1a1a1a1",
        "By labeler",
        "By topic",
        "system prompt Be brief.",
    ):
        assert part in text
    for strength in result["strengths"]["people"].values():
        assert f"{strength['value']:+.2f}" in text
    assert all(answer.text in text for answers in found.answers.values() for answer in answers.values())


def test_a_pair_that_the_second_side_won_is_told_from_its_side(made):
    """74 of 100 lost is 26 of 100 won by the other; what is not a win rate stays."""
    rate = {"value": 0.26, "ci": (0.2, 0.4), "n": 100}
    part = {"wins": 20, "ties": 12, "losses": 68, "prompts": 100, "judgments": 100, "win_rate": rate}
    row = part | {
        "length_controlled": None,
        "mean_scores": [0.1, 0.9],
        "agreement": {"value": 0.3, "ci": (0.2, 0.4), "n": 9},
        "with_people": {"plain": rate, "powered": rate, "votes_bought": 3.0},
        "decision": {"decided": "b", "at": 30},
        "slices": {"wins": {"losses": part}},
        "labelers": {"h": part},
    }
    turned = mirrored({"a": "x", "b": "y", "judges": [row, {"judge": "nobody"}]})
    assert (turned["a"], turned["b"]) == ("y", "x") and turned["judges"][1] == {"judge": "nobody"}
    won = turned["judges"][0]
    assert (won["wins"], won["ties"], won["losses"]) == (68, 12, 20)
    assert won["win_rate"] == {"value": 0.74, "ci": (0.6, 0.8), "n": 100}
    assert won["slices"]["wins"]["losses"]["win_rate"] == won["labelers"]["h"]["win_rate"] == won["win_rate"]
    assert won["with_people"] == {"plain": won["win_rate"], "powered": won["win_rate"], "votes_bought": 3.0}
    assert won["mean_scores"] == [0.9, 0.1] and won["decision"]["decided"] == "a"
    assert won["agreement"] == row["agreement"] and won["length_controlled"] is None
    result, found, judgments = copy.deepcopy(made[0]), *made[1:]
    result["pairs"][0]["judges"][0]["win_rate"] = rate
    text = comparison_page(result, found, judgments)
    assert "ppo beats sft: it is better on 74% of" in text and "<b>74%</b>" in text and "<b>26%</b>" not in text


@pytest.mark.parametrize("number", range(len(HOSTILE)))
def test_nobodys_text_is_markup_asks_for_anything_or_is_lost(tmp_path, number):
    harm = HOSTILE[number]
    text = comparison_page(*made_comparison(tmp_path, (f"a{harm}", f"b{harm}"), 6, text=lambda own: f"{own} {harm}"))
    found = Elements(text)
    assert not {tag for tag, _ in found.tags} & {"script", "img", "iframe", "link", "base", "object", "embed"}
    attributes = [(name, value or "") for _, attrs in found.tags for name, value in attrs.items()]
    assert not [name for name, _ in attributes if name.startswith("on")]
    assert all("url" not in value for name, value in attributes if name == "style")
    assert all(value.startswith("#") for name, value in attributes if name in ("href", "src", "action"))
    policy = next(attrs["content"] for tag, attrs in found.tags if attrs.get("http-equiv") == "Content-Security-Policy")
    assert policy == "default-src 'none'; style-src 'unsafe-inline'"
    style = text[text.index("<style>") : text.index("</style>")]
    assert harm not in style and "url(" not in style and "@import" not in style
    assert not any(hidden in text for hidden in "\x1b\u202e\u2028\0")
    if number < 9:
        assert str(escape(harm)) in text


def test_a_long_comparison_makes_a_page_of_bounded_size_that_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(page_bouts, "MAX_COMPARED", 100_000)  # what takes long is tried elsewhere
    made = made_comparison(tmp_path, num_prompts=MAX_BOUTS + 100, text=lambda own: own if len(own) < 40 else own * 200)
    text = comparison_page(*made)
    assert len(text) < 3_000_000
    assert f"{MAX_BOUTS} of {MAX_BOUTS + 100} pairs of answers" in one_space(text)
    assert text.count("<article") == MAX_BOUTS
    assert "more characters)" in text


@pytest.mark.parametrize(("count", "most"), [(5, 9), (9, 9), (10, 9), (300, 20), (21, 20), (7, 1)])
def test_half_of_the_pairs_that_are_shown_are_the_worst_and_none_comes_twice(count, most):
    kept = chosen(range(count), most)
    assert len(kept) == min(count, most) and kept == sorted(set(kept))
    half = (most + 1) // 2
    assert kept[:half] == list(range(min(half, count)))
    if count == 300:
        gaps = [after - before for before, after in zip(kept[half:], kept[half + 1 :], strict=False)]
        assert max(gaps) - min(gaps) <= 1  # even


def a_result(*judges, **columns):
    """A result of two sides with no more than the answers' views need; the first judge leads."""
    rows = [
        {
            "judge": name, "kind": "people" if name == "people" else "function", "trained_on": [],
            "win_rate": {"value": 0.6, "ci": (0.5, 0.7), "n": 4}, "slices": columns,
        }
        for name in judges
    ]  # fmt: skip
    return {
        "sides": {"a": {}, "b": {}},
        "pairs": [{"a": "a", "b": "b", "judges": rows}],
        "judges": [{"name": name, "digest": None} for name in judges],
    }


TOPICS = [question(f"Q{n}", topic="xyz"[n % 3]) for n in range(4)]
FOUND = contest(TOPICS, a=["p", "q", "same", "s"], b=["1", "2", "same", "4"])


def word(place, judge, outcome, scores=None, labeler=None, answers=None):
    bout = list(FOUND.bouts())[place]
    return Judgment(
        bout.id, "a", "b", judge, None, outcome, scores, labeler, answers or (bout.first.digest, bout.second.digest)
    )


def test_the_worst_losses_come_first_by_the_leading_judge_its_margin_and_the_others():
    result = a_result("f", "g")
    said = [word(0, "f", 1.0, (2.0, 1.0)), word(1, "f", 0.0, (0.0, 1.0)), word(2, "f", 0.0, (0.0, 5.0))]
    said += [word(3, "g", 1.0), word(0, "g", 0.0)]
    order = [each.number for each in worst_first(judged_bouts(result, FOUND, said), result["pairs"][0])]
    assert order == [2, 1, 3, 0]
    lost = a_result("f")
    lost["pairs"][0]["judges"][0]["win_rate"]["ci"] = (0.1, 0.3)  # b leads: what a won is the loss
    assert next(iter(worst_first(judged_bouts(lost, FOUND, said), lost["pairs"][0]))).number == 0


def test_a_view_has_each_judges_word_the_votes_and_the_classes_that_the_filters_use():
    result = a_result("people", "f", topic={"x": {}, OTHER: {}})
    said = [
        word(0, "people", 1.0, labeler="h1"),
        word(0, "people", 1.0, labeler="h2"),
        word(0, "people", 0.0, labeler="h3"),
    ]
    said += [word(0, "f", 0.0, (0.5, 1.5)), word(1, "f", 0.5), word(3, "f", 1.0, answers=("of", "others"))]
    bouts = judged_bouts(result, FOUND, [*said, word(0, "nobody asked", 0.0)])
    columns = columns_of(result, FOUND)
    first, second, same, last = (BoutViews(result, columns).view(each) for each in bouts)
    people, rule = first["said"]
    assert (people["side"], people["about"]) == ("a", "2 for a, 1 for b")
    assert people["votes"] == [("h1", "a"), ("h2", "a"), ("h3", "b")]
    assert (rule["side"], rule["about"], rule["votes"]) == ("b", "0.5 against 1.5", [])
    assert set(first["classes"].split()) == {"j0", "j0a", "j1", "j1b", "anya", "anyb", "apart", "s0v0"}
    assert set(second["classes"].split()) == {"j1", "j1tie", "anytie", "s0v1"} and second["values"] == [
        ("topic", OTHER)
    ]
    assert same["same"] and not same["said"] and last["said"] == []  # judged were other answers


def test_words_are_marked_where_answers_have_enough_in_common_and_time_is_left(monkeypatch):
    texts = "the red cat sat here", "the old cat sat here"
    found = contest([question("Q")], a=[texts[0]], b=[texts[1]])
    parts = [answer["parts"] for answer in view_of(found)["answers"]]
    assert parts[0] == [("=", "the "), ("-", "red"), ("=", " cat sat here")]
    assert parts[1] == [("=", "the "), ("+", "old"), ("=", " cat sat here")]
    unlike = contest([question("Q")], a=["the red cat sat here"], b=["quite another answer of some words"])
    assert [answer["parts"] for answer in view_of(unlike)["answers"]] == [
        [("=", "the red cat sat here")], [("=", "quite another answer of some words")]
    ]  # fmt: skip
    monkeypatch.setattr(page_bouts, "MAX_COMPARED", 50)
    assert [answer["parts"] for answer in view_of(found)["answers"]] == [[("=", text)] for text in texts]


def view_of(found):
    result = a_result("f")
    (bout,) = judged_bouts(result, found, [])
    return BoutViews(result, []).view(bout)


def test_a_page_that_cannot_be_made_is_a_warning_and_the_result_stays(tmp_path, capsys, made):
    result, found, _ = made
    assert write_page(tmp_path, result, found) == tmp_path / FILE
    assert write_page(tmp_path / "none", result, found) is None
    assert capsys.readouterr().err.startswith(f"warning: {tmp_path / 'none' / FILE} was not written (FileNotFoundError")


def test_answers_that_nobody_has_judged_yet_can_be_read(made):
    """As `--by people` leaves them before the first vote."""
    result, found, _ = copy.deepcopy(made[0]), *made[1:]
    result.pop("strengths")
    for pair in result["pairs"]:
        pair["judges"] = [
            {"judge": "people", "kind": "people", "digest": None, "judged_by": "people", "trained_on": []}
        ]
    text = one_space(Elements(comparison_page(result, found, [])).text)
    assert "Nobody has judged sft against ppo yet." in text and "not judged" in text
    assert all(answer.text in text for answers in found.answers.values() for answer in answers.values())


def test_a_lead_that_only_the_judge_of_its_training_saw_is_no_green_one(made):
    result, *rest = copy.deepcopy(made[0]), *made[1:]
    pair = result["pairs"][0]
    (reward,) = (row for row in pair["judges"] if row["kind"] == "reward model")
    pair["judges"] = [reward]
    reward["win_rate"] |= {"value": 0.8, "ci": (0.7, 0.9)}
    for trained, state, wins in ((["sft"], "warn", "scores higher than"), ([], "pass", "beats")):
        reward["trained_on"] = trained
        text = comparison_page(result, *rest)
        assert f'<div class="verdict {state} small"><p class="headline">sft {wins} ppo' in text
        assert ("it says that training worked, not who is better" in text) == bool(trained)
