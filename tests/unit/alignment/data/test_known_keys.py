"""Keys of known meaning by their other names: each is read, or its row is refused with a fix that works."""

import json

import pytest

from alignment.config.sections import DataConfig
from alignment.data.formats import unused_keys
from alignment.data.parsing import to_examples, to_judgements, to_prompts
from alignment.data.reading import read_records
from alignment.data.row_files import BadRow
from alignment.data.sources import renamed
from alignment.data.votes import UncertainChoice

CHAT = {"messages": [{"role": "user", "content": "When?"}, {"role": "assistant", "content": "At nine."}]}
ROW = {"prompt": "When?", "completion": "At nine."}
SIDES = {"prompt": "When?", "answer_0": "At nine.", "answer_1": "No."}


@pytest.mark.parametrize("name", ["sys", "preamble", "instructions", "developer", "sys_prompt", "system_instruction"])
@pytest.mark.parametrize("row", [CHAT, ROW, {"prompt": "When?", "chosen": "At nine.", "rejected": "No."}], ids=str)
def test_system_prompts_by_other_names_are_read(name, row):
    read = to_judgements if "chosen" in row else to_examples
    assert read({**row, name: "Be brief."}) == read({**row, "system": "Be brief."}) != read(row)


def test_instructions_beside_an_input_may_be_the_task():
    row = {"instructions": "Sort.", "input": "3 1", "output": "1 3"}
    with pytest.raises(BadRow, match=r"--column system=instructions .*--column instruction=instructions the task"):
        to_examples(row)
    task = to_examples(renamed(row, {"instruction": "instructions"}))
    assert task == to_examples({"instruction": "Sort.", "input": "3 1", "output": "1 3"})


def test_a_persona_is_not_read_as_whose_it_may_not_be():
    with pytest.raises(BadRow, match=r"'persona' .*--column system=persona reads it as the system turn"):
        to_prompts({**ROW, "persona": "A pirate."})
    (read,) = to_examples(renamed({**ROW, "persona": ["A pirate.", "He sings."]}, {"system": "persona"}))
    assert read.messages[0] == {"role": "system", "content": "A pirate.\n\nHe sings."}


@pytest.mark.parametrize("name", ["rater1", "rater_2", "annotator 3", "labeller_12", "judge4"])
def test_what_several_raters_said_is_not_dropped(name):
    with pytest.raises(BadRow, match=rf"'{name}' .*`alignment rate import` reads"):
        to_examples({**ROW, name: 4})
    with pytest.raises(BadRow, match=r"a prompt row, which .*`alignment rate import` reads"):
        to_judgements({"prompt": "q", "response_a": "x", "response_b": "y", name: "a"})


def test_a_chain_of_thought_is_reasoning(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"Question": "When?", "Complex_CoT": "Hm.", "Response": "At nine."}) + "\n")
    (record,) = read_records(path, to_examples, DataConfig(train="x")).items
    assert record.messages[1] == {"role": "assistant", "content": "At nine.", "reasoning_content": "Hm."}
    turn = {"role": "assistant", "content": "At nine.", "cot": "Hm."}
    (record,) = to_examples({"messages": [CHAT["messages"][0], turn]})
    assert record.messages[1]["reasoning_content"] == "Hm."


@pytest.mark.parametrize("answer", [1, "B", "At nine."])
def test_choices_that_the_question_does_not_hold_are_refused(answer):
    row = {"question": "When?", "choices": ["At six.", "At nine."], "answer": answer}
    for read in (to_examples, to_prompts):
        with pytest.raises(BadRow, match=r"'choices' .*write them into the question, and the right one as the answer"):
            read(row)
    whole = {**row, "question": "When?\nA. At six.\nB. At nine.", "answer": "B"}
    assert to_examples(whole)[0].messages[1]["content"] == "B"


@pytest.mark.parametrize("name", ["rating_SIDE", "SIDE_rating", "score_SIDE", "SIDE-score", "reward_SIDE"])
def test_scores_of_both_sides_are_kept_and_are_no_margin(name):
    row = {"prompt": "q", "chosen": "a", "rejected": "b"}
    scored = {**row, name.replace("SIDE", "chosen"): 4, name.replace("SIDE", "rejected"): 1}
    (pair,) = to_judgements(scored)
    assert (pair.scores, pair.margin, unused_keys(scored, "auto")) == ((4, 1), None, ())
    with pytest.raises(BadRow, match="the score of the chosen or the rejected answer"):
        to_examples({**ROW, name.replace("SIDE", "chosen"): 4})


@pytest.mark.parametrize("said", [0, "0", "answer_0", "response0", "a"])
def test_answers_that_are_named_0_and_1_are_chosen_by_these_numbers(said):
    (pair,) = to_judgements({**SIDES, "choice": said})
    assert (pair.first, pair.second, pair.target) == ("At nine.", "No.", 1.0)
    assert to_judgements({**SIDES, "choice": "tie"})[0].target == 0.5
    assert to_judgements({**SIDES, "choice": 1})[0].target == 0.0
    with pytest.raises(UncertainChoice, match="'choice' is 2 beside answers named 0 and 1"):
        to_judgements({**SIDES, "choice": 2})


@pytest.mark.parametrize("ends", ["012", "123", "abc"])
def test_a_third_answer_is_not_dropped(ends):
    row = {"prompt": "q", "choice": "a", **{f"answer_{end}": f"text {end}" for end in ends}}
    with pytest.raises(BadRow, match=r"\(one of several answers\) is not read in \w+ rows"):
        to_judgements(row)


def test_a_model_may_have_won_by_its_name():
    row = {"prompt": "q", "response_a": "x", "response_b": "y", "model_a": "llama-3", "model_b": "gpt-4"}
    assert to_judgements({**row, "winner": "gpt-4"})[0].target == 0.0
    assert to_judgements({**row, "winner": "model_a"})[0].target == 1.0
    with pytest.raises(BadRow, match=r"who won is 'claude'; expected .* one of the models llama-3 and gpt-4"):
        to_judgements({**row, "winner": "claude"})
    with pytest.raises(BadRow, match="who won is 'gpt-4'"):
        to_judgements({**row, "model_a": "gpt-4", "winner": "gpt-4"})


def test_a_rejected_answer_beside_a_conversation_makes_a_pair():
    system = {**CHAT, "system": "Be brief.", "rejected_response": "No."}
    (pair,) = to_judgements(system)
    assert (pair.first, pair.second, len(pair.prompt), pair.target) == ("At nine.", "No.", 2, 1.0)
    whole = [CHAT["messages"][0], {"role": "assistant", "content": "No."}]
    assert to_judgements({**CHAT, "rejected_messages": whole}) == to_judgements({**CHAT, "rejected_response": "No."})
    assert to_examples({**CHAT, "rejected_response": "No."}) == to_examples(CHAT)


def test_calls_of_tools_as_answers_are_read():
    tool = {"name": "clock", "description": "The time.", "parameters": {"zone": {"type": "str"}}}
    call = {"name": "clock", "arguments": {"zone": "UTC"}}
    row = {"id": 1, "query": "Time?", "answers": json.dumps([call]), "tools": json.dumps([tool])}
    (record,) = to_examples(row)
    assert record.messages[1]["tool_calls"] == [{"type": "function", "function": call}]
    schema = {"type": "object", "properties": tool["parameters"]}
    assert record.tools == ({"type": "function", "function": {**tool, "parameters": schema}},)
    with pytest.raises(BadRow, match="each of tool_calls must be"):
        to_examples({**row, "answers": ["At nine."]})
