"""Published votes and any table of votes: who voted for which answer, and how much of it is kept."""

import importlib.util
import json
from collections import Counter

import pytest
from helpers.votes import QUESTION, RIGHT, WRONG, Imported

from alignment.errors import UserError
from alignment.labeling.formats.reading import import_options
from alignment.labeling.import_export import export_file, import_file
from alignment.ratings import RatingsStore

# --- Arena and MT-bench ----------------------------------------------------------------------------------------------


def turns(*texts):
    return [{"role": role, "content": text} for role, text in zip(("user", "assistant") * 3, texts, strict=False)]


def arena(winner, judge, **more):
    sides = {"conversation_a": turns(QUESTION, RIGHT), "conversation_b": turns(QUESTION, WRONG)}
    return {"model_a": "m1", "model_b": "m2", "winner": winner, "judge": judge, "turn": 1} | sides | more


def test_arena_votes_keep_models_judges_and_both_bad(tmp_path):
    said = [("model_a", "u0"), ("model_b", "u1"), ("tie", "u2"), ("tie (bothbad)", "u3"), ("both_bad", "u4")]
    done = Imported(tmp_path, [arena(*each) for each in said])
    assert done.result["read_as"] == "Arena or MT-bench votes: 1 pair, 5 votes of 5 labelers"
    assert [completion.model for completion in done.items[0].completions] == ["m1", "m2"]
    assert done.winners() == [("u0", RIGHT), ("u1", WRONG), ("u2", "tie"), ("u3", "tie"), ("u4", "tie")]
    assert [rating.flags for rating in done.ratings] == [(), (), (), ("both_bad",), ("both_bad",)]
    assert {rating.strength for rating in done.ratings} == {None}


def test_mt_bench_turns(tmp_path):
    shared = turns(QUESTION, "ja", "und?", RIGHT), turns(QUESTION, "ja", "und?", WRONG)
    apart = turns(QUESTION, "ja", "und?", RIGHT), turns(QUESTION, "nein", "und?", WRONG)

    def row(sides, turn, judge="author_0"):
        return arena("model_b", judge, turn=turn, conversation_a=sides[0], conversation_b=sides[1])

    done = Imported(tmp_path, [row(shared, 2), row(apart, 2), row(apart, 1), row(shared, 2, ["gpt-4", "pair-v2"])])
    assert done.result["passed_over"] == {"conversations that differ before the last turn": 1}
    assert [len(item.prompt) for item in done.items] == [3, 1]
    assert done.texts(1) == ["ja", "nein"]
    assert done.winners() == [("author_0", WRONG), ("author_0", "nein"), ("gpt-4 pair-v2", WRONG)]
    assert done.simulated == {"gpt-4 pair-v2"}


def test_the_arena_table_with_lists_in_its_cells(tmp_path):
    cells = {"model_a": "m1", "model_b": "m2", "prompt": json.dumps([QUESTION]), "response_a": json.dumps([RIGHT])}
    row = cells | {"response_b": json.dumps([WRONG])}
    hot = [(1, 0, 0), (0, 1, 0), (0, 0, 1)]
    rows = [row | dict(zip(("winner_model_a", "winner_model_b", "winner_tie"), each, strict=True)) for each in hot]
    done = Imported(tmp_path / "a", rows, name="train.csv")
    assert Counter(done.votes) == {("unnamed", "first"): 1, ("unnamed", "second"): 1, ("unnamed", "tie"): 1}
    empty = rows[0] | {"response_b": "[null]"}
    assert Imported(tmp_path / "b", [rows[1], empty]).result["passed_over"] == {"an empty answer or question": 1}
    with pytest.raises(UserError, match=r"2 of winner_model_a, winner_model_b, winner_tie are 1; expected one"):
        Imported(tmp_path / "c", [rows[0] | {"winner_tie": 1}])


# --- HelpSteer, AlpacaFarm, summarize-from-feedback, WebGPT, SHP, RewardBench ----------------------------------------


def test_helpsteer_ratings_preferences_and_votes(tmp_path):
    attributes = {"helpfulness": 3, "correctness": 4, "coherence": 4, "complexity": 1, "verbosity": 2}
    done = Imported(tmp_path / "a", [{"prompt": QUESTION, "response": RIGHT} | attributes])
    assert [(r.labeler, r.score, r.given) for r in done.ratings] == [("helpsteer", 6, 3.0)]
    assert done.items[0].metadata["helpsteer"]["verbosity"] == 2
    pairs = {"prompt": QUESTION, "response_1": RIGHT, "response_2": WRONG, "preference_strength": -2}
    done = Imported(tmp_path / "b", [pairs, pairs | {"prompt": "x", "preference_strength": 0}])
    assert [(r.choice, r.strength) for r in done.ratings] == [("first", 2), ("tie", None)]
    votes = [{"score": -1, "reasoning": "kürzer"}, {"score": 3}, {"score": None}]
    row = {"context": turns(QUESTION), "response1": RIGHT, "response2": WRONG, "overall_preference": 1}
    done = Imported(tmp_path / "c", [row | {"individual_preference": votes}])
    assert [(r.labeler, r.choice, r.strength, r.comment) for r in done.ratings] == [
        ("annotator1", "first", 1, "kürzer"),
        ("annotator2", "second", 3, ""),
    ]
    assert done.result["passed_over"] == {"a vote without a score": 1}
    with pytest.raises(UserError, match=r"the preference 5 is no whole number from -3 to 3"):
        Imported(tmp_path / "d", [pairs | {"preference_strength": 5}])


def test_alpaca_preferences(tmp_path):
    row = {"instruction": "Say", "input": "hi", "output_1": RIGHT, "output_2": WRONG, "generator_1": "g1"}
    said = [(1, 3), (2.0, 4), (1.5, 5), (1.2, "gpt4_eval"), (None, 6)]
    done = Imported(tmp_path, [row | {"preference": value, "annotator": by} for value, by in said])
    assert done.winners() == [("3", RIGHT), ("4", WRONG), ("5", "tie"), ("gpt4_eval", RIGHT)]
    assert done.ratings[3].comment == "preference 1.2"
    assert done.simulated == {"gpt4_eval"}
    assert done.items[0].completions[0].model == "g1"
    assert done.result["passed_over"] == {"a pair without a preference": 1}


def test_a_zero_in_a_table_with_columns_like_alpacas_is_asked_about(tmp_path):
    row = {"instruction": QUESTION, "output_1": RIGHT, "output_2": WRONG}
    rows = [row | {"preference": 1}, row | {"instruction": "x", "preference": 0}]
    with pytest.raises(UserError, match=r"votes.jsonl:2: the choices are the numbers 0, 1, .*--labels='0=a,1=b'"):
        Imported(tmp_path / "a", rows)
    assert Imported(tmp_path / "b", rows, labels={"0": "a", "1": "b"}).winners() == [
        ("unnamed", WRONG),
        ("unnamed", RIGHT),
    ]
    assert Imported(tmp_path / "c", [row | {"preference": 0, "annotator": 3}]).winners() == [("3", "tie")]


def test_summaries(tmp_path):
    info = {"id": "t", "title": "Titel", "post": "Langer Text."}
    both = [{"text": RIGHT, "policy": "sup1"}, {"text": WRONG, "policy": "ref"}]
    pair = {"info": info, "summaries": both, "choice": 1, "worker": "w1", "extra": {"confidence": 8}}
    done = Imported(tmp_path / "a", [pair, pair | {"worker": "w2", "choice": 0, "extra": {}}])
    assert done.winners() == [("w1", WRONG), ("w2", RIGHT)]
    assert [r.comment for r in done.ratings] == ["confidence 8", ""]
    assert done.items[0].prompt[0]["content"] == "Titel\n\nLanger Text."
    assert [c.model for c in done.items[0].completions] == ["sup1", "ref"]
    summary = {"text": RIGHT, "policy": "sup1", "axes": {"overall": 6, "accuracy": 7}, "note": "ok"}
    done = Imported(tmp_path / "b", [{"info": info, "summary": summary, "worker": "w1"}])
    assert [(r.score, r.given, r.comment) for r in done.ratings] == [(6, None, "ok\naccuracy 7")]


def test_scores_of_webgpt_and_shp_are_one_vote_a_row(tmp_path):
    row = {"question": {"full_text": QUESTION}, "answer_0": RIGHT, "answer_1": WRONG, "score_0": -0.5, "score_1": 0.5}
    done = Imported(tmp_path / "a", [row, row | {"question": {"full_text": "x"}, "score_0": 0, "score_1": 0}])
    assert done.winners() == [("webgpt", WRONG), ("webgpt", "tie")]
    assert done.items[0].metadata == {"webgpt": {"scores": [-0.5, 0.5]}}
    row = {"history": QUESTION, "human_ref_A": RIGHT, "human_ref_B": WRONG, "score_A": 40, "score_B": 4, "labels": 1}
    done = Imported(tmp_path / "b", [row])
    assert done.winners() == [("shp", RIGHT)]
    assert done.items[0].metadata == {"shp": {"scores": [40.0, 4.0]}}
    assert done.ratings[0].strength is None
    with pytest.raises(UserError, match=r"'labels' is 0, and the scores 40 and 4 say the other"):
        Imported(tmp_path / "c", [row | {"labels": 0}])


def test_reward_bench_1_and_2(tmp_path):
    row = {"prompt": QUESTION, "chosen": RIGHT, "rejected": WRONG, "chosen_model": "m1", "rejected_model": "m2"}
    done = Imported(tmp_path / "a", [row | {"subset": "easy", "id": 4}])
    assert done.winners() == [("reward-bench", RIGHT)]
    assert {c.text: c.model for c in done.items[0].completions} == {RIGHT: "m1", WRONG: "m2"}
    assert done.items[0].metadata == {"reward-bench": {"id": 4, "subset": "easy"}}
    lists = {"chosen": ["a", "b"], "rejected": ["x", "y", "z"], "num_correct": 2, "total_completions": 5}
    done = Imported(tmp_path / "b", [{"prompt": QUESTION} | lists])
    assert (len(done.items), Counter(text for _, text in done.winners())) == (6, {"a": 3, "b": 3})


# --- any table -------------------------------------------------------------------------------------------------------


def vote(choice, rater, **more):
    return {"prompt": QUESTION, "answer_a": RIGHT, "answer_b": WRONG, "rater": rater, "vote": choice} | more


@pytest.mark.parametrize("name", ["votes.csv", "votes.jsonl", "votes.json"])
def test_a_row_for_each_vote_joins_into_one_item(tmp_path, name):
    rows = [vote("A", "ada", lang="de"), vote("tie", "bo", lang="de"), vote("answer_b", "cy", lang="de")]
    done = Imported(tmp_path, rows, name=name)
    assert done.result["read_as"] == "a table of votes: 1 pair, 3 votes of 3 labelers"
    assert done.winners() == [("ada", RIGHT), ("bo", "tie"), ("cy", WRONG)]
    assert done.result["not_used"] == ["lang"]


@pytest.mark.parametrize(
    ("said", "choice", "strength"),
    [
        ("a", "first", None), ("Response B", "second", None), ("LEFT", "first", None), ("right", "second", None),
        ("1", "first", None), (2, "second", None), (2.0, "second", None), ("2.0", "second", None),
        (RIGHT, "first", None), ("first", "first", None), ("Model_B", "second", None), ("A>>B", "first", 3),
        ("B>A", "second", 1),
        ("A=B", "tie", None), ("[[A<B]]", "second", 1), ("Tie", "tie", None), ("draw", "tie", None),
        ("both_bad", "tie", None), ("same", "tie", None),
    ],
)  # fmt: skip
def test_choices_in_the_words_of_others(tmp_path, said, choice, strength):
    done = Imported(tmp_path, [vote(said, "ada")])
    assert [(r.choice, r.strength) for r in done.ratings] == [(choice, strength)]


def test_a_zero_that_may_be_a_tie_or_the_first_is_asked_about(tmp_path):
    with pytest.raises(UserError, match=r"votes.jsonl:1: the choices .* 0, .*--labels='0=tie' or --labels='0=a,1=b'"):
        Imported(tmp_path / "a", [vote(0, "ada")])
    assert Imported(tmp_path / "b", [vote(0, "ada")], labels={"0": "a", "1": "b"}).votes == [("ada", "first")]
    numbered = {"prompt": QUESTION, "answer_0": RIGHT, "answer_1": WRONG, "winner": 0}
    assert Imported(tmp_path / "c", [numbered]).winners() == [("unnamed", RIGHT)]


@pytest.mark.parametrize(
    ("said", "place", "numbers", "codings"),
    [
        ([-1, 1], 1, "-1, 1", ("-1=a,1=b", "-1=b,1=a")),
        (["+1", "-1"], 1, "-1, +1", ("-1=a,+1=b", "-1=b,+1=a")),
        ([1, 0, -1.0], 2, "-1, 0, 1", ("-1=a,0=tie,1=b", "-1=b,0=tie,1=a")),
        ([*[1] * 200, 0], 201, "0, 1", ("0=a,1=b", "0=b,1=a")),
        ([1, 2, 0], 3, "0, 1, 2", ("0=tie,1=a,2=b", "0=a,1=b,2=tie")),
        ([*[2] * 200, 6], 201, "2, 6", ("2=a,6=b", "2=b,6=a")),
        ([1, 4, "7"], 2, "1, 4, 7", ("1=a,4=tie,7=b", "1=b,4=tie,7=a")),
        (["1.5", "1"], 1, "1, 1.5", None),
    ],
)
def test_numbers_of_an_uncertain_coding_refuse_the_whole_file(tmp_path, said, place, numbers, codings):
    rows = [vote(value, f"rater {number}") for number, value in enumerate(said)]
    with pytest.raises(UserError) as error:
        Imported(tmp_path / "refused", rows)
    assert f"votes.jsonl:{place}: the choices are the numbers {numbers}, and which answer" in str(error.value)
    with RatingsStore(tmp_path / "refused" / "ratings.db") as store:
        assert store.ratings() == []
    for number, coding in enumerate(codings or ()):
        assert f"--labels='{coding}'" in str(error.value)
        labels = import_options(labels=[coding]).labels
        done = Imported(tmp_path / str(number), rows, labels=labels)
        sides = {"a": "first", "b": "second", "tie": "tie"}
        assert [choice for _, choice in done.votes] == [sides[labels[f"{value}".removesuffix(".0")]] for value in said]


def test_labels_of_some_numbers_leave_the_others_uncertain(tmp_path):
    rows = [vote(2, "ada"), vote(6, "bo")]
    with pytest.raises(UserError, match=r"the choices are the numbers 2, and"):
        Imported(tmp_path / "a", rows, labels={"6": "b"})
    with pytest.raises(UserError, match=r"the choices are the numbers -1, 1, and"):
        Imported(tmp_path / "b", [vote(-1, "ada"), vote(0, "bo"), vote(1, "cy")], labels={"0": "tie"})
    ties = [vote(1, "ada"), vote(2, "bo"), vote(0, "cy")]
    assert Imported(tmp_path / "c", ties, labels={"0": "tie"}).winners() == [
        ("ada", RIGHT),
        ("bo", WRONG),
        ("cy", "tie"),
    ]


def test_a_number_that_is_an_answer_itself_is_this_answer(tmp_path):
    sums = {"prompt": QUESTION, "answer_a": "42", "answer_b": "-7", "winner": "-7"}
    assert Imported(tmp_path / "a", [sums]).winners() == [("unnamed", "-7")]
    with pytest.raises(UserError, match=r"the choices are the numbers 2, and"):
        Imported(tmp_path / "b", [sums | {"answer_a": "2", "winner": 2}])  # the text of the first, or the second


def test_chosen_and_rejected_as_places_in_a_list(tmp_path):
    row = {"prompt": QUESTION, "responses": [RIGHT, WRONG]}
    done = Imported(tmp_path / "a", [row | {"chosen": 0, "rejected": 1}])
    assert (done.winners(), sorted(done.texts()), done.result["not_used"]) == (
        [("unnamed", RIGHT)],
        sorted([RIGHT, WRONG]),
        [],
    )
    lists = {"prompt": QUESTION, "candidates": json.dumps(["x", RIGHT, WRONG]), "chosen": "2", "rejected": "0"}
    assert Imported(tmp_path / "b", [lists], name="votes.csv").winners() == [("unnamed", WRONG)]
    models = [{"text": WRONG, "model": "m"}, {"text": RIGHT, "model": "n"}]
    done = Imported(tmp_path / "c", [{"prompt": QUESTION, "completions": models, "chosen": 1, "rejected": 0}])
    assert {each.text: each.model for each in done.items[0].completions} == {WRONG: "m", RIGHT: "n"}
    for number, (chosen, rejected) in enumerate([(1, 2), (0, 2), (-1, 0), (0.5, 0), (0, WRONG)]):
        with pytest.raises(UserError, match=r"'chosen' is .* beside 2 'responses', and it is not certain"):
            Imported(tmp_path / f"d{number}", [row | {"chosen": chosen, "rejected": rejected}])
    sums = {"prompt": QUESTION, "responses": ["42", "41"], "chosen": "42", "rejected": "41"}
    assert Imported(tmp_path / "sums", [sums]).winners() == [("unnamed", "42")]
    columns = {"prompt": QUESTION, "response_a": RIGHT, "response_b": WRONG, "chosen": 0, "rejected": 1}
    with pytest.raises(UserError, match=r"'chosen' is 0 and 'rejected' is 1 beside the answers; write the answers"):
        Imported(tmp_path / "e", [columns])
    sums = {"prompt": QUESTION, "chosen": 42, "rejected": 7}
    assert Imported(tmp_path / "f", [sums]).winners() == [("unnamed", "42")]


def test_best_and_worst_as_places_are_refused_until_labels_say_the_base(tmp_path):
    row = {"prompt": QUESTION, "candidates": ["x", RIGHT, WRONG], "best": 1, "worst": 2}
    with pytest.raises(UserError, match=r"'best' is 1, .*--labels='1=a,2=b,3=c' or --labels='0=a,1=b,2=c'"):
        Imported(tmp_path / "a", [row])
    done = Imported(tmp_path / "b", [row], labels={"0": "a", "1": "b", "2": "c"})
    assert sorted(done.winners()) == sorted([("unnamed", RIGHT)] * 2 + [("unnamed", "x")])  # x stands above the worst
    columns = {"prompt": QUESTION, "answer_a": RIGHT, "answer_b": WRONG, "best": 1, "worst": 2}
    with pytest.raises(UserError, match=r"'best' is 1, a place"):
        Imported(tmp_path / "c", [columns])
    del columns["worst"]
    assert Imported(tmp_path / "d", [columns]).winners() == [("unnamed", RIGHT)]


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        ({"AssignmentStatus": "Approved", "Reject": ""}, {"AssignmentStatus": "Rejected", "Reject": ""}),
        ({"AssignmentStatus": "Submitted", "Reject": ""}, {"AssignmentStatus": "Submitted", "Reject": "too fast"}),
        ({"HITId": "h", "RejectionTime": ""}, {"HITId": "h", "RejectionTime": "Mon May 06"}),
        ({"ASSIGNMENT:status": "APPROVED"}, {"ASSIGNMENT:status": "REJECTED"}),
        ({"ASSIGNMENT:status": "ACCEPTED"}, {"ASSIGNMENT:status": "EXPIRED"}),
    ],
)
def test_answers_that_the_requester_refused_are_no_votes(tmp_path, good, bad):
    rows = [vote("A", "ada") | good, vote("B", "bo") | bad]
    done = Imported(tmp_path, rows, name="votes.csv")
    assert done.winners() == [("ada", RIGHT)]
    assert done.result["passed_over"] == {"the assignment was rejected or has expired, so its answer is no vote": 1}
    assert not set(done.result["not_used"]) & {"AssignmentStatus", "Reject", "RejectionTime", "ASSIGNMENT:status"}


def test_skips_and_empty_choices_are_counted(tmp_path):
    done = Imported(tmp_path, [vote("skip", "ada"), vote("", "bo"), vote(None, "cy"), vote("a", "dee")])
    assert done.votes == [("dee", "first")]
    assert done.result["passed_over"] == {"the labeler skipped it": 3}


def test_columns_are_named_by_the_user(tmp_path):
    row = {
        "Frage": QUESTION,
        "X": RIGHT,
        "Y": WRONG,
        "wer": "Åsa",
        "Urteil": "Y",
        "wie sehr": 3,
        "m": "m1",
        "Notiz": "klar",
    }
    columns = "prompt=Frage,a=X,b=Y,labeler=wer,choice=Urteil,strength=wie sehr,model_a=m,comment=Notiz"
    done = Imported(tmp_path / "a", [row], columns=import_options([columns]).columns)
    assert done.winners() == [("Åsa", WRONG)]
    assert [(r.strength, r.comment) for r in done.ratings] == [(3, "klar")]
    assert done.items[0].completions[0].model == "m1"
    assert done.result["not_used"] == []
    with pytest.raises(UserError, match=r"found Frage, X, Y, .*name one with --format \(jsonl, .*--columns prompt=KEY"):
        Imported(tmp_path / "b", [row])
    with pytest.raises(UserError, match=r"no key 'Z', which --columns a=Z names; found Frage"):
        Imported(tmp_path / "c", [row], columns={"prompt": "Frage", "a": "Z"})


def test_options_of_the_command_line():
    options = import_options(["prompt=p,a=x", "b=y"], ["A better=a,-=tie"], "0..100", "ada")
    assert options.columns == {"prompt": "p", "a": "x", "b": "y"}
    assert (options.labels, options.scale, options.labeler) == ({"A better": "a", "-": "tie"}, (0.0, 100.0), "ada")
    words = import_options(labels=["4,5=5,A, clearly=a", "-1=a,A=B=tie"]).labels
    assert words == {"4,5": "5", "A, clearly": "a", "-1": "a", "A=B": "tie"}
    for labels in ("a", "a=b,c", "=a", "a="):
        with pytest.raises(UserError, match=rf"--labels {labels}: expected name=value"):
            import_options(labels=[labels])
    with pytest.raises(UserError, match=r"--columns promt=p: a column is one of prompt, a, b"):
        import_options(["promt=p"])
    with pytest.raises(UserError, match=r"--columns prompt: expected name=value"):
        import_options(["prompt"])
    for scale in ("5", "5..5", "a..b", "nan..1", "0..inf"):
        with pytest.raises(UserError, match=rf"--scale {scale}: expected WORST..BEST"):
            import_options(scale=scale)


def test_names_on_chosen_and_rejected_rows_are_kept_and_sides_join(tmp_path):
    rows = [
        {"prompt": QUESTION, "chosen": RIGHT, "rejected": WRONG, "annotator": "ada"},
        {"prompt": QUESTION, "chosen": WRONG, "rejected": RIGHT, "annotator": 7},
    ]
    for number, format in enumerate(("auto", "hh")):
        done = Imported(tmp_path / str(number), rows, format)
        assert len(done.items) == 1
        assert done.winners() == [("ada", RIGHT), ("7", WRONG)]
    transcript = {side: f"\n\nHuman: q\n\nAssistant: {text}" for side, text in (("chosen", "a"), ("rejected", "b"))}
    done = Imported(tmp_path / "hh", [transcript | {"worker": "bo"}, transcript])
    assert (done.result["format"], sorted(done.winners())) == ("hh", [("bo", "a"), ("hh", "a")])


def test_chosen_and_rejected_conversations(tmp_path):
    sides = {
        "chosen": turns(QUESTION, RIGHT),
        "rejected": turns(QUESTION, WRONG),
        "chosen_model": "m1",
        "rejected_model": "m2",
    }
    done = Imported(tmp_path / "a", [{"prompt": QUESTION} | sides])
    assert (done.result["format"], done.winners()) == ("votes", [("unnamed", RIGHT)])
    assert {c.text: c.model for c in done.items[0].completions} == {RIGHT: "m1", WRONG: "m2"}
    done = Imported(tmp_path / "b", [{"instruction": "Say", "input": "hi", "chosen": RIGHT, "rejected": WRONG}])
    assert done.items[0].prompt[0]["content"] == "Say\n\n### Input:\nhi"
    assert done.result["not_used"] == []
    with pytest.raises(UserError, match=r"'chosen' does not begin with the prompt"):
        Imported(tmp_path / "c", [{"prompt": "other"} | sides])
    with pytest.raises(UserError, match=r"'chosen' has 3 messages; an item to rate takes one answer"):
        Imported(tmp_path / "d", [{"prompt": QUESTION, "chosen": turns("a", "b", "c"), "rejected": WRONG}])


def test_rows_without_names_that_contradict_stay_apart(tmp_path):
    rows = [{"prompt": QUESTION, "chosen": a, "rejected": b} for a, b in ((RIGHT, WRONG), (WRONG, RIGHT))]
    done = Imported(tmp_path, rows)
    assert len(done.items) == 2
    assert sorted(done.winners()) == sorted([("unnamed", RIGHT), ("unnamed", WRONG)])


def test_a_labeler_votes_once_on_the_same_answers(tmp_path):
    swapped = {"answer_a": WRONG, "answer_b": RIGHT}
    done = Imported(tmp_path, [vote("a", "ada"), vote("b", "ada", **swapped), vote("b", "ada"), vote("b", "bo")])
    assert done.winners() == [("ada", RIGHT), ("bo", WRONG)]
    assert done.result["passed_over"] == {
        "a labeler's second vote on the same answers, as before": 1,
        "a labeler's second vote on the same answers, otherwise; the first is kept": 1,
    }


def test_the_same_answers_by_other_models_are_another_item(tmp_path):
    rows = [vote("a", "ada", model_a=a, model_b="m0") for a in ("m1", "m2")]
    done = Imported(tmp_path, rows)
    assert [[c.model for c in item.completions] for item in done.items] == [["m1", "m0"], ["m2", "m0"]]
    assert done.votes == [("ada", "first")] * 2


def test_votes_of_a_second_file_come_to_the_items_of_the_first(tmp_path):
    first = Imported(tmp_path, [vote("a", "ada", model_a="m1", model_b="m2")])
    swapped = {"prompt": QUESTION, "response_1": WRONG, "response_2": RIGHT, "labeler": "bo", "choice": 1}
    second = Imported(tmp_path, [swapped], name="more.jsonl")
    assert (len(first.items), len(second.items)) == (1, 1)
    assert second.winners() == [("ada", RIGHT), ("bo", WRONG)]


# --- ratings and rankings --------------------------------------------------------------------------------------------


def rating(value, by="ada", text=RIGHT):
    return {"prompt": QUESTION, "completion": text, "rating": value, "labeler": by}


def test_ratings_of_two_labelers_and_numbers_as_names(tmp_path):
    rows = [rating(5), rating("1", text=WRONG), rating(2.0, 7), rating("2.0", 7.0, WRONG)]
    done = Imported(tmp_path, rows)
    assert done.result["read_as"] == "a table of votes: 2 single answers (1 to 7), 4 votes of 2 labelers"
    assert sorted((r.labeler, done.texts(r.item - 1)[0], r.score, r.given) for r in done.ratings) == sorted(
        [("ada", RIGHT, 5, None), ("ada", WRONG, 1, None), ("7", RIGHT, 2, None), ("7", WRONG, 2, None)]
    )


@pytest.mark.parametrize(
    ("value", "options", "score", "given"),
    [
        (80, {"scale": (0.0, 100.0)}, 6, 80.0),
        (0.25, {"scale": (0.0, 1.0)}, 3, 0.25),
        ("80%", {}, 6, 80.0),
        ("4/5", {}, 6, 4.0),
        ("good", {}, 7, 1.0),
        (False, {}, 1, 0.0),
        (3.5, {"scale": (1.0, 7.0)}, 4, 3.5),
        ("4,5", {"scale": (1.0, 5.0)}, 6, 4.5),
        ("1,000", {"labels": {"1,000": "7"}}, 7, None),
        ("so so", {"labels": {"so so": "4"}}, 4, None),
    ],
)
def test_ratings_on_any_scale_are_kept_as_given(tmp_path, value, options, score, given):
    done = Imported(tmp_path, [rating(value)], **options)
    assert [(r.score, r.given) for r in done.ratings] == [(score, given)]
    with RatingsStore(tmp_path / "ratings.db") as store, RatingsStore(tmp_path / "copy.db", create=True) as copy:
        export_file(store, "jsonl", tmp_path / "out.jsonl")
        import_file(copy, "jsonl", tmp_path / "out.jsonl")
        assert [(r.score, r.given) for r in copy.ratings()] == [(score, given)]


@pytest.mark.parametrize(
    ("value", "options", "reason"),
    [
        (80, {}, "the rating 80 is no whole number from 1 to 7; name the scale with --scale LOW..HIGH, as 0..100"),
        (3.5, {}, "the rating 3.5 is no whole number"),
        (120, {"scale": (0.0, 100.0)}, "the rating 120 is not on the scale 0 to 100"),
        ("meh", {}, "the rating 'meh' is no number; say what each means with --labels=meh=MEANING"),
        (float("nan"), {}, "the rating 'nan' is no number"),
        ([1, 2], {}, "is no number"),
    ],
)
def test_a_rating_that_cannot_be_read_is_named(tmp_path, value, options, reason):
    with pytest.raises(UserError) as error:
        Imported(tmp_path, [rating(value)], **options)
    assert reason in str(error.value)
    assert "\n" not in str(error.value)


def test_two_scales_in_one_file_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"a rating from 0 to 10 beside others from 0 to 5: use two files"):
        Imported(tmp_path, [rating("4/5"), rating("8/10", "bo")])


def test_rankings_with_ties_and_scores(tmp_path):
    answers = {"prompt": QUESTION, "completions": ["a", "b", "c"]}
    rows = [answers | {"ranks": [1, 2.5, 2.5], "labeler": "ada"}, answers | {"scores": [1, 9, 5], "labeler": "bo"}]
    done = Imported(tmp_path / "a", rows)
    assert [(r.labeler, r.ranks) for r in done.ratings] == [("ada", (1, 2, 2)), ("bo", (3, 1, 2))]
    shuffled = {"prompt": QUESTION, "completions": ["c", "a", "b"], "ranks": [1, 2, 3], "labeler": "cy"}
    done = Imported(tmp_path / "b", [rows[0], shuffled])
    assert (len(done.items), done.ratings[1].ranks) == (1, (2, 3, 1))
    with pytest.raises(UserError, match=r"the ranks \[1, nan, 2\] must be numbers"):
        Imported(tmp_path / "c", [answers | {"ranks": [1, float("nan"), 2]}])


def test_pandalm_votes_as_decimals(tmp_path):
    row = {"instruction": QUESTION, "input": "", "response1": RIGHT, "response2": WRONG}
    done = Imported(tmp_path, [row | {"annotator1": "1.0", "annotator2": "", "annotator3": "0.0"}], name="votes.csv")
    assert done.votes == [("annotator1", "first"), ("annotator3", "tie")]


def test_a_rating_of_each_side(tmp_path):
    row = {"prompt": QUESTION, "response_a": RIGHT, "response_b": WRONG, "score_a": 5, "score_b": "2", "user": "ada"}
    done = Imported(tmp_path, [row])
    assert [(r.labeler, done.texts(n)[0], r.score) for n, r in enumerate(done.ratings)] == [
        ("ada", RIGHT, 5),
        ("ada", WRONG, 2),
    ]
    assert done.result["not_used"] == []


def test_several_votes_in_one_row(tmp_path):
    row = {"prompt": QUESTION, "responses": [RIGHT, WRONG]}
    listed = [{"annotator": "ada", "choice": 1, "comment": "ja"}, {"annotator": "bo", "choice": "skip"}]
    done = Imported(tmp_path / "a", [row | {"votes": listed}])
    assert done.winners() == [("ada", RIGHT)]
    assert (done.ratings[0].comment, done.result["passed_over"]) == ("ja", {"the labeler skipped it": 1})
    done = Imported(tmp_path / "b", [row | {"votes": {"ada": "2", "bo": "tie"}}])
    assert done.winners() == [("ada", WRONG), ("bo", "tie")]
    assert done.result["not_used"] == []


def test_ranks_and_scores_inside_the_answers(tmp_path):
    ranks = [{"answer": RIGHT, "model": "m", "rank": 1.0}, {"answer": WRONG, "rank": 2.0}, {"answer": "x", "rank": 2.0}]
    done = Imported(tmp_path / "a", [{"prompt": f"\n\nHuman: {QUESTION}\n\nAssistant: ", "answers": ranks}])
    assert [r.ranks for r in done.ratings] == [(1, 2, 2)]
    assert (done.items[0].prompt[0]["content"], done.items[0].completions[0].model) == (QUESTION, "m")
    scores = [{"response": RIGHT, "overall_score": 3}, {"response": WRONG, "overall_score": 8}]
    done = Imported(tmp_path / "b", [{"instruction": QUESTION, "completions": scores}])
    assert done.winners() == [("unnamed", WRONG)]


# --- files -----------------------------------------------------------------------------------------------------------


def test_import_only_formats_are_not_written(tmp_path):
    Imported(tmp_path, [vote("a", "ada")])
    with (
        RatingsStore(tmp_path / "ratings.db") as store,
        pytest.raises(
            UserError, match=r"--format potato: this format is only read; write one of jsonl, label-studio, "
        ),
    ):
        export_file(store, "potato", tmp_path / "out.jsonl")


def test_an_import_is_all_or_nothing(tmp_path):
    rows = [vote("a", f"rater {n}") for n in range(20)]
    with pytest.raises(UserError, match=r"votes.jsonl:21: the choice 'zwei' is none of"):
        Imported(tmp_path, [*rows, vote("zwei", "bo")])
    with RatingsStore(tmp_path / "ratings.db") as store:
        assert (store.items(), store.ratings()) == ([], [])


def test_an_excel_sheet(tmp_path):
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    book.active.append(["prompt", "answer_a", "answer_b", "rater", "vote", None])
    book.active.append([QUESTION, RIGHT, WRONG, 7, "A"])
    book.active.append([None] * 5)
    book.active.append([QUESTION, RIGHT, WRONG, "bo", "tie"])
    book.save(tmp_path / "votes.xlsx")
    with RatingsStore(tmp_path / "ratings.db", create=True) as store:
        import_file(store, "auto", tmp_path / "votes.xlsx")
        assert [(r.labeler, r.choice) for r in store.ratings()] == [("7", "first"), ("bo", "tie")]
        (tmp_path / "broken.xlsx").write_text("no book")
        with pytest.raises(UserError, match=r"broken.xlsx: not an Excel file that can be read"):
            import_file(store, "auto", tmp_path / "broken.xlsx")


def test_an_excel_sheet_names_the_extra_that_reads_it(tmp_path):
    if importlib.util.find_spec("openpyxl"):
        pytest.skip("openpyxl is installed")
    (tmp_path / "votes.xlsx").write_text("x")
    with (
        RatingsStore(tmp_path / "ratings.db", create=True) as store,
        pytest.raises(UserError, match=r"an Excel file needs openpyxl, not installed here: pip install '.*\[rating\]'"),
    ):
        import_file(store, "auto", tmp_path / "votes.xlsx")
