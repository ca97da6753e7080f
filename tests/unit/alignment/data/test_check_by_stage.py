"""What `alignment data check` says that a stage would do with rows, and of answers and judgements as a whole."""

import pytest
from helpers import tiny
from helpers.inspecting import finding, inspect

from alignment.config.sections import DataConfig
from alignment.data.check import STAGES, Inspector, example_lines, refuse
from alignment.data.row_files import DataError


def row(prompt, completion="An answer."):
    return {"prompt": prompt, "completion": completion}


def pair(prompt, chosen="good", rejected="bad", **more):
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **more}


def kinds(report, level=None):
    return {found.kind for found in report.findings if level in (None, found.level)}


@pytest.mark.parametrize(
    ("rows", "ready"),
    [
        ([row("a", "b"), row("c", "d")], {"sft", "ppo"}),
        ([pair("a"), pair("c")], {"sft", "reward", "ppo"}),
        ([{"prompt": "a"}, {"prompt": "c"}], {"ppo"}),
        ([{"prompt": "a", "completion": text, "rating": n} for n, text in enumerate("bc")], {"reward", "ppo"}),
        ([{"prompt": "a", "completion": "b", "rating": n} for n in (1, 2)], {"ppo"}),  # one answer: no pair
        ([{"prompt": p, "completion": "b", "rating": 3} for p in "ac"], {"ppo"}),  # nothing differs
        ([{"prompt": "a", "completions": ["b", "c"], "ranks": [1, 1]}], {"ppo"}),  # a tie
        ([{"prompt": "a", "completion": "b", "label": False}], {"ppo"}),  # nothing good
        ([{"text": "a"}, {"text": "c"}], {"sft"}),
    ],
)
def test_ready_is_what_the_stage_would_train_on(rows, ready):
    for stage in STAGES.values():
        report = inspect(rows, stage=stage, needs_pairs=True)
        assert (report.verdict.startswith("Not ready")) == (stage not in ready), (stage, report.verdict)
        assert f"for python -m {stage}" in report.verdict


def test_no_example_is_never_ready():
    report = inspect([{"prompt": "a", "completion": "b", "label": False}])
    assert "gives an example" not in report.verdict
    report = inspect([{"prompt": "a", "completion": "b", "label": False}], stage="sft")
    assert (report.verdict, report.kept) == ("Not ready for python -m sft: 1 problem to fix", 0)
    assert finding(report, "no_example").text.startswith("none of the 1 rows gives an example: ")
    with pytest.raises(DataError, match="none of the 1 rows gives an example"):
        refuse(report, DataConfig(train="d.jsonl"))


def test_rows_for_no_one_stage_are_told_by_stage():
    report = inspect([{"prompt": "a", "completion": "b", "rating": 1}, {"text": "c"}])
    assert finding(report, "mixed_stages").text == (
        "no stage learns from all of these rows: of 2, reward 1, ppo 1, sft 1"
    )
    assert inspect([row("a"), pair("b"), {"text": "c"}]).readers == {"sft": 3, "reward": 1, "ppo": 2}


@pytest.mark.parametrize("nothing", ["N/A", "...", "\u200b", "\u2060 \ufeff", "None", " - ", "\u3164"])
def test_answers_that_are_empty_to_the_eye_are_told(nothing):
    rows = [row("a", nothing), row("b", "Nothing is wrong."), row("c", "No.")]
    assert finding(inspect(rows), "says_nothing").places == ["d.jsonl:1"]
    assert finding(inspect([pair("a", rejected=nothing)]), "says_nothing").count == 1


def test_answers_in_html_are_told_and_code_is_not():
    rows = [row("a", "<p>It is <b>here</b>.</p>"), row("b", "one<br>two"), row("c", "1&nbsp;kg")]
    rows += [row("d", "Use `<br>`:\n```\n<p>a</p>\n```"), row("e", "if a < b and b > c"), row("f", "vector<int> x")]
    assert finding(inspect(rows), "html").places == ["d.jsonl:1", "d.jsonl:2", "d.jsonl:3"]


def test_pairs_against_their_scores_are_counted():
    rows = [pair(name, score_chosen=a, score_rejected=b) for name, a, b in (("a", 1, 2), ("b", 3, 1), ("c", 2, 2))]
    report = inspect(rows, stage="reward")
    assert finding(report, "scored_lower").places == ["d.jsonl:1"]
    assert (finding(report, "scored_equal").places, finding(report, "scored_equal").level) == (["d.jsonl:3"], "note")


def test_one_prompt_in_all_rows_cannot_be_held_out():
    rows = [pair("Write a line.", chosen=f"good {n}", rejected=f"bad {n}") for n in range(5)]
    config = {"eval_share": 0.1}
    told = finding(inspect(rows, config=config, stage="reward"), "none_held_out")
    assert (told.level, told.text) == (
        "warning",
        "nothing is held out: the rows have one prompt, and data.eval_share=0.1 holds out whole prompts",
    )
    held_out = inspect(rows, held_out=range(1, 6), config=config)
    assert finding(held_out, "all_held_out").level == "error"
    assert not kinds(inspect(rows)) & {"none_held_out", "all_held_out"}  # nothing is to be held out


def test_people_who_differ_are_no_contradiction():
    rows = [pair("q", annotator="ada"), pair("q", "bad", "good", annotator="bo")]
    assert "contradictions" not in kinds(inspect(rows))
    assert "contradictions" in kinds(inspect([pair("q"), pair("q", "bad", "good")]))


def test_unknown_keys_and_remarks_are_said_once():
    chat = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "lang": "en"}
    thanks = {"messages": [*chat["messages"], {"role": "user", "content": "Thanks"}], "split": "x"}
    report = inspect([chat, thanks])
    assert finding(report, "not_used").text == "not used: lang, split"
    assert "the turns after the last answer are left out" in finding(report, "remark").text
    assert finding(inspect([chat], stage="ppo"), "not_used").text == "given to reward functions alone: lang"


def test_reasoning_that_is_not_trained_on_is_told():
    turn = {"role": "assistant", "content": "b", "reasoning_content": "hm"}
    rows = [{"messages": [{"role": "user", "content": "a"}, turn]}]
    assert finding(inspect(rows), "reasoning").level == "note"
    assert finding(inspect(rows, tokenizer=tiny.make_tokenizer("chatml")), "reasoning_lost").level == "warning"


def test_the_first_example_is_shown_as_it_is_learned():
    def shown(item, stage, tokenizer=None):
        inspector = Inspector(DataConfig(train="d.jsonl"), tokenizer, None, stage)
        inspector.add("d.jsonl:1", item)
        return "\n".join(line.plain for line in example_lines(inspector.first, tokenizer))

    assert shown(pair("q", margin=2), "reward").split("\n")[2:] == [
        "  user                  q",
        "  first, preferred      good",
        "  second, rejected      bad",
        "  margin                2",
    ]
    text = shown(row("q", "a"), "sft", tiny.make_tokenizer("chatml"))
    assert "assistant, trained on a" in text
    assert "[[a<|im_end|>]]" in text
    assert "trained on" not in shown(row("q", "a"), "ppo")
    assert shown({}, "sft") == ""
