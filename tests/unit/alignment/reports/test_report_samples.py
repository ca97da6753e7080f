"""Samples of a report: what changed between two answers, and which answers a reader should see first."""

import pytest
from helpers.journals import make_run
from hypothesis import given, settings
from hypothesis import strategies as st

from alignment.reports.samples import MAX_STEPS, MAX_TEXT, changes, left_and_right, samples_of, side_by_side
from alignment.runs.journal import Journal
from alignment.runs.record import RunRecord

TEXT = st.lists(st.sampled_from(["the", "cat", " ", "  ", "\n", "sat", ".", "é", "!"]), max_size=30).map("".join)


@settings(deadline=None)
@given(TEXT, TEXT)
def test_the_parts_of_a_side_are_its_text(before, now):
    left, right = left_and_right(changes(before, now))
    assert "".join(text for _, text in left) == before
    assert "".join(text for _, text in right) == now


@given(TEXT)
def test_nothing_differs_in_equal_texts(text):
    assert all(kind == "=" for kind, _ in changes(text, text))


def test_words_are_marked_and_not_letters():
    assert changes("You can go now.", "You may go home now.") == [
        ("=", "You "), ("-", "can"), ("+", "may"), ("=", " go "), ("+", "home "), ("=", "now."),
    ]  # fmt: skip


def test_words_that_differ_side_by_side_are_one_change():
    assert changes("Now move along.", "Have fun today.") == [
        ("-", "Now move along"),
        ("+", "Have fun today"),
        ("=", "."),
    ]


def with_samples(path, *steps):
    make_run(path, samples=())
    with Journal(path) as journal:
        for step, rows in steps:
            journal.samples(step, rows)
    return RunRecord.read(path)


def row(number, response, score, **more):
    prompt = [{"role": "user", "content": f"q{number}"}]
    return {"id": number, "prompt": prompt, "response": response, "score": score, **more}


def test_the_best_the_worst_and_the_most_changed_of_the_last_step(tmp_path):
    run = with_samples(
        tmp_path / "run",
        (0, [row(0, "same words", 9.0), row(1, "b", 0.0), row(2, "c d e", 0.0)]),
        (5, [row(0, "same words", 1.0), row(1, "b!", 3.0), row(2, "x y z", 2.0)]),
    )
    found = samples_of(run)
    assert found["steps"] == [0, 5]
    assert [item["tags"] for item in found["items"]] == [["worst"], ["best"], ["most changed"]]
    assert found["items"][0]["changed"] == 0


def test_sft_is_compared_with_what_people_wrote(tmp_path):
    run = with_samples(
        tmp_path / "run", (0, [row(0, "no", None, reference="yes")]), (9, [row(0, "yes", None, reference="yes")])
    )
    item = samples_of(run)["items"][0]
    assert item["at"][0]["parts"] == [("-", "yes"), ("+", "no")]
    assert item["at"][9]["parts"] == [("=", "yes")]
    assert item["at"][9]["left"] == "reference"


def test_a_reward_models_pairs_stand_side_by_side_the_surest_right_and_wrong_named(tmp_path):
    def pair(number, first_score, second_score, first, second):
        scores = {"first_score": first_score, "second_score": second_score}
        votes = {"first": first, "second": second, "tie": 1}
        return {"id": number, "prompt": "q", "first": "a", "second": "b", "votes": votes, **scores}

    rows = [pair(0, 1.5, -2.0, 2, 0), pair(1, 0.5, 0.1, 2, 0), pair(2, 3.0, 0.0, 0, 2), pair(3, 9.0, 0.0, 1, 1)]
    items = samples_of(with_samples(tmp_path / "run", (3, rows)))["items"]
    at = items[0]["at"][3]
    assert at["parts"] == [("-", "a"), ("+", "b")] and not at["marked"]
    assert (at["left"], at["right"]) == ("one answer, score 1.5, 2 of 3 votes", "the other, score -2, 0 of 3 votes")
    assert [item["tags"] for item in items] == [["most surely right"], [], ["most surely wrong"], []]


def test_many_steps_and_long_texts_are_held_in_bounds(tmp_path):
    run = with_samples(tmp_path / "run", *((step, [row(0, "a" * 9000, step)]) for step in range(100)))
    found = samples_of(run)
    assert len(found["steps"]) == MAX_STEPS and found["steps"][0] == 0 and found["steps"][-1] == 99
    assert all(len(part) < MAX_TEXT + 60 for at in found["items"][0]["at"].values() for _, part in at["parts"])


@pytest.mark.parametrize(
    "rows", [[{"step": "x"}], [{"prompt": 5}], [{"id": [1], "prompt": None, "response": 3, "score": "high"}]]
)
def test_rows_that_no_stage_writes_do_no_harm(tmp_path, rows):
    found = samples_of(with_samples(tmp_path / "run", (1, rows)))
    assert found is None or len(found["items"]) == 1


def test_runs_show_the_prompts_that_all_of_them_have(tmp_path):
    one = with_samples(tmp_path / "a", (0, [row(0, "old", 0.0), row(1, "x", 0.0)]), (9, [row(0, "new", 1.0)]))
    other = with_samples(tmp_path / "b", (0, [row(0, "other", 2.0)]))
    (shown,) = side_by_side([one, other])
    assert [answer["text"] for answer in shown["answers"]] == ["new", "other"]


def test_an_answer_that_repeats_itself_is_not_wholly_changed():
    again = "I do not know. " * 40
    found = changes("Sorry. " + again, again)
    assert sum(len(text) for kind, text in found if kind == "=") >= len(again) - 2
