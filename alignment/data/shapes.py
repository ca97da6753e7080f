"""The shapes that a row may have: which keys tell each, which it reads besides, and an example of it.

The guide's table, its tests and the reading are made from `SHAPES`. A row's shape is the first of them that it fits.
`a|b` is a key with its other names; the reading calls it by the first one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from alignment.config.sections import Format
from alignment.data.keys import BY_NAME

SYSTEM = ("|".join(BY_NAME["system"].names),)
TOOLS = ("tools|functions",)
HISTORY = "|".join(BY_NAME["history"].names)
REASONING = ("|".join(BY_NAME["reasoning_content"].names),)
LABELER = ("|".join(BY_NAME["labeler"].names),)
MODELS = ("model_a|model_1|generator_1", "model_b|model_2|generator_2")
TRAIN = ("train|trainable", "loss|loss_mask", "weight|loss_weight|sample_weight")
TURNS = "conversations|conversation|items|dialogue|dialog|chat"
ASKED = f"prompt|query|instruction|question|input|messages|{TURNS}"
"""What is asked: a text or turns."""
PROMPT = (ASKED, "input", "documents|context|passages", "distractors", HISTORY, *SYSTEM)
"""All parts of a prompt, which `alignment.data.questions.prompt_of` puts together."""
ANSWER = "completion|response|output|answer"
ANSWERS = "completions|responses|answers|candidates|generations"
FIRST = "first|answer_a|response_a|output_a|completion_a|response_1|output_1|answer_1|completion_1"
SECOND = "second|answer_b|response_b|output_b|completion_b|response_2|output_2|answer_2|completion_2"
_SCORE = (
    "score_SIDE|SIDE_score|SIDE_rating|SIDE-rating|rating_SIDE|rating-SIDE|SIDE-score|score-SIDE|reward_SIDE|SIDE_reward|"
    "SIDE-reward|reward-SIDE"
)
CHOICE = "choice|winner|vote|preference|preferred|preferred_answer|better|winner_model_a"


@dataclass(frozen=True)
class RowShape:
    """A shape of rows.

    Args:
        needs: the keys that tell it.
        reads: keys that it reads where they stand.
        example: a row.
        sft, reward, ppo: what each stage learns from it; empty: the stage refuses it.
    """

    needs: tuple[str, ...]
    reads: tuple[str, ...]
    example: Mapping[str, Any]
    sft: str
    reward: str
    ppo: str


_HI: dict[str, Any] = {"role": "user", "content": "Hi"}
_HELLO: dict[str, Any] = {"role": "assistant", "content": "Hello"}
_RUDE: dict[str, Any] = {"role": "assistant", "content": "Go away"}
_PAIR = "the preferred answer"

SHAPES: dict[Format, RowShape] = {
    "openai-preference": RowShape(
        ("input", "preferred_output", "non_preferred_output"),
        SYSTEM,
        {"input": {"messages": [_HI]}, "preferred_output": [_HELLO], "non_preferred_output": [_RUDE]},
        _PAIR, "the pair", "the question",
    ),
    "tree": RowShape(
        ("message_tree_id", "prompt"),
        (),
        {
            "message_tree_id": "1",
            "prompt": {"role": "prompter", "text": "Hi", "replies": [
                {"role": "assistant", "text": "Hello", "rank": 0, "replies": []},
                {"role": "assistant", "text": "Go away", "rank": 1, "replies": []},
            ]},
        },
        "chats along the best ranked answers, each answer once", "all pairs of ranked siblings", "as `chat`",
    ),
    "self-instruct": RowShape(
        ("instruction", "instances"),
        SYSTEM,
        {"instruction": "Sort.", "instances": [{"input": "3 1", "output": "1 3"}]},
        "each instance", "", "each instance",
    ),
    "arena": RowShape(
        ("conversation_a", "conversation_b", "winner"),
        ("turn", *LABELER, *MODELS, *SYSTEM),
        {"conversation_a": [_HI, _HELLO], "conversation_b": [_HI, _RUDE], "winner": "model_a", "judge": "ann"},
        _PAIR, "the pair with the judge's vote; `tie` is a tie", "the common start",
    ),
    "strength": RowShape(
        (ASKED + "|context", "first|response_1|response1", "second|response_2|response2",
         "preference_strength|overall_preference"),
        (*PROMPT, *LABELER),
        {"prompt": "Hi", "response_1": "Hello", "response_2": "Go away", "preference_strength": -2},
        _PAIR, "the pair with the strength: -3 the first is much better, 0 a tie, 3 the second", "the question",
    ),
    "pandalm": RowShape(
        ("instruction", "response1", "response2", "annotator1"),
        ("input", *SYSTEM),
        {"instruction": "Sort.", "input": "3 1", "response1": "1 3", "response2": "3 1", "annotator1": 1,
         "annotator2": 0},
        "the response that most preferred", "the pair with each annotator's vote; 0 a tie, 1, 2", "the instruction",
    ),
    "safety": RowShape(
        (ASKED, "response_0|answer_0|output_0|completion_0", "response_1|answer_1|output_1|completion_1",
         f"better_response_id|{CHOICE}"),
        (*PROMPT, *LABELER, *MODELS),
        {"prompt": "Hi", "response_0": "Hello", "response_1": "Go away", "better_response_id": 0},
        _PAIR, "the pair; 0 and 1 are the answers of these numbers", "the question",
    ),
    "webgpt": RowShape(
        ("question", "answer_0", "answer_1", "score_0", "score_1"),
        SYSTEM,
        {"question": {"full_text": "When?"}, "answer_0": "At nine.", "score_0": 0.5, "answer_1": "No.",
         "score_1": -0.5},
        _PAIR, "the pair; equal scores are a tie", "the question",
    ),
    "reddit": RowShape(
        ("history", "human_ref_A", "human_ref_B", "labels"),
        SYSTEM,
        {"history": "Hi", "human_ref_A": "Hello", "human_ref_B": "Go away", "labels": 1},
        _PAIR, "the pair; 1 says that A is better, 0 that B is", "the post",
    ),
    "vote": RowShape(
        (ASKED, FIRST, SECOND, CHOICE),
        (*PROMPT, *LABELER, *MODELS, "winner_model_b", "winner_tie"),
        {"prompt": "Hi", "answer_a": "Hello", "answer_b": "Go away", "vote": "A", "rater": "ann"},
        _PAIR, "the pair with the vote: a, b, 1, 2, tie, or a name in `model_a` or `model_b`", "the question",
    ),
    "pair": RowShape(
        ("chosen|chosen_response|accepted|messages", "rejected|rejected_response|rejected_messages"),
        (*PROMPT, *TOOLS, *LABELER, "margin", _SCORE.replace("SIDE", "chosen"), _SCORE.replace("SIDE", "rejected")),
        {"prompt": "Hi", "chosen": "Hello", "rejected": "Go away", "margin": 1.5},
        "the chosen one", "the pair; `margin` is a margin of the loss, scores are not", "the prompt",
    ),
    "qa-feedback": RowShape(
        ("question", "passages", "prediction 1", "preference"),
        (*SYSTEM, "gold", *(f"prediction {index}" for index in range(2, 10))),
        {"question": "When?", "passages": [["Hours", "9-17"]], "prediction 1": "At nine.", "prediction 2": "No.",
         "preference": [1], "gold": "At nine."},
        "`gold`", "all K(K-1)/2 pairs, (1,2), (1,3), ...: 0 a tie, 1 the first, 2 the second",
        "question and passages, as `rag`",
    ),
    "ranking": RowShape(
        (ASKED, ANSWERS, "ranks|ranking|scores|ratings|rewards"),
        (*PROMPT, *LABELER),
        {"prompt": "Hi", "completions": ["a", "b", "c"], "ranks": [2, 1, 2]},
        "the best one",
        "all K(K-1)/2 pairs, ties too; of `ranks` 1 is the best, of `scores` the highest; null: not judged",
        "the prompt",
    ),
    "unpaired": RowShape(
        ("label|kto_tag|desirable|is_desirable|is_good|thumbs_up|liked|quality", f"{ANSWER}|messages|{TURNS}"),
        (*PROMPT, *TOOLS, *REASONING),
        {"prompt": "Hi", "completion": "Go away", "label": False},
        "the answers whose label is true", "a rating of 0 or 1", "the prompt",
    ),
    "rating": RowShape(
        ("rating|score|reward|helpfulness", f"{ANSWER}|messages|{TURNS}"),
        (*PROMPT, *LABELER),
        {"prompt": "Hi", "completion": "a", "rating": 4, "labeler": "ann"},
        "", "the rating", "the prompt",
    ),
    "chat": RowShape(
        ("messages",),
        (*SYSTEM, *TOOLS, *TRAIN),
        {"messages": [_HI, _HELLO | {"weight": 0}, _HI, _HELLO], "tools": []},
        "every assistant turn whose `weight` (or `train`, `loss`) is not 0", "", "the turns before the last answer",
    ),
    "sharegpt": RowShape(
        (TURNS,),
        (*SYSTEM, *TOOLS, *TRAIN),
        {"system": "Be brief.", "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]},
        "as `chat`", "", "as `chat`",
    ),
    "rag": RowShape(
        ("question", "documents|context"),
        ("answer|answers|response|output|completion", "distractors", "unanswerable|is_impossible", HISTORY, *SYSTEM,
         *REASONING, *TRAIN),
        {"question": "When?", "documents": [{"title": "Hours", "text": "9-17"}], "distractors": ["Maps."],
         "answer": "At nine."},
        "the answer", "", "question and documents",
    ),
    "alpaca": RowShape(
        ("instruction", "output|response|completion|answer"),
        ("input|context", HISTORY, *TOOLS, *SYSTEM, *REASONING, *TRAIN),
        {"instruction": "Sort.", "input": "3 1", "output": "1 3"},
        "the output; of a list the first", "a list of outputs, best first", "the instruction",
    ),
    "completion": RowShape(
        ("prompt|query|input|message|user_message", "completion|response|output|reply"),
        (*TOOLS, *SYSTEM, HISTORY, *REASONING, *TRAIN),
        {"prompt": "Hi", "completion": "Hello"},
        "the completion", "", "the prompt",
    ),
    "calls": RowShape(
        ("query|prompt|question|instruction", "answers", "tools|functions"),
        SYSTEM,
        {"query": "Time?", "answers": [{"name": "clock", "arguments": {"zone": "UTC"}}], "tools": [{"name": "clock"}]},
        "the calls", "", "",
    ),
    "scored": RowShape(
        (ASKED, ANSWERS),
        (*PROMPT, "models"),
        {"prompt": "Hi", "answers": [{"answer": "Hello", "rank": 1}, {"answer": "Go away", "rank": 2}]},
        "the best one", "all pairs; each answer has its `rank` (1 is the best) or its score", "the prompt",
    ),
    "faq": RowShape(
        ("question", "answer|response|output|completion"),
        (HISTORY, *SYSTEM, *REASONING, *TRAIN),
        {"question": "When?", "answer": "At nine."},
        "the answer", "", "the question",
    ),
    "text": RowShape(("text",), (), {"text": "We open at nine."}, "every token", "", ""),
    "prompt": RowShape(
        (ASKED,),
        PROMPT,
        {"prompt": "Hi"},
        "", "", "the prompt",
    ),
}  # fmt: skip
"""By the name that `data.format` takes, in the order in which they are tried."""
