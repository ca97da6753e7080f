"""Published sets of preferences, each in its own shape."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from alignment.data.annotations import parsed
from alignment.data.importers import PassedOver
from alignment.data.messages import check_text, text_of
from alignment.data.preferences import choice_number
from alignment.data.questions import alpaca_prompt
from alignment.data.row_files import BadRow
from alignment.labeling.entries import Entry, plain_turns
from alignment.labeling.formats.fields import ShownAnswer, ShownTask, answer_of, listed, object_of, turns_of
from alignment.labeling.formats.reading import ImportOptions, Read, Row
from alignment.labeling.formats.voting import Who, judged, labeler_of, meaning, pair, preferred, ranked, scored

# --- HelpSteer 2 and 3 ---------------------------------------------------------------------------------------------

HELPSTEER_DROPS = (
    "the elaborations, languages and domains; HelpSteer 3's votes have no names: annotator1 of one row need not be "
    "that of another. Ratings are of helpfulness (0 to 4), the other attributes are answers to questions, as 1 to 7"
)
_RATED = {"prompt", "response", "helpfulness", "correctness"}
_COMPARED = {"prompt", "response_1", "response_2", "preference_strength"}
HELPSTEER_ATTRIBUTES = ("correctness", "coherence", "complexity", "verbosity")


def recognises_helpsteer(row: Row) -> bool:
    keys = row.keys()
    return keys >= _RATED or keys >= _COMPARED or {"context", "response1", "response2", "overall_preference"} <= keys


def read_helpsteer(row: Row, options: ImportOptions) -> Read:
    if row.keys() >= _RATED:
        task = ShownTask(turns_of(row["prompt"], "prompt"), (answer_of(row.get("response"), "response"),))
        kept = {name: row[name] for name in HELPSTEER_ATTRIBUTES if name in row}
        score = scored(task, row["helpfulness"], Who(None), options, (0.0, 4.0), {"helpsteer": kept})
        return _beside(
            score, {"attributes": {name: [_of_seven(value)] for name, value in kept.items() if _fits(value)}}
        )
    if row.keys() >= _COMPARED:
        task = _pair_task(row, "prompt", "response_1", "response_2")
        return [_signed(task, row["preference_strength"], Who(None, str(row.get("preference_statement") or "")))]
    task = _pair_task(row, "context", "response1", "response2")
    each = listed(parsed(row.get("individual_preference")), "individual_preference") or [
        {"score": row["overall_preference"]}
    ]
    read: Read = []
    for number, vote in enumerate(each, 1):
        vote = object_of(vote, "individual_preference")
        if vote.get("score") is None:
            read.append(PassedOver("a vote without a score"))
            continue
        name = f"annotator{number}" if "individual_preference" in row else None
        entry = _signed(task, vote["score"], Who(name, str(vote.get("reasoning") or "")))
        comments = [str(vote.get(key) or "") or None for key in ("feedback1", "feedback2")]
        read += _beside([entry], {"comments": comments} if any(comments) else {})
    return read


def _beside(read: Read, answers: Mapping[str, Any]) -> Read:
    """The same vote with answers to questions beside it."""
    kept = {key: value for key, value in answers.items() if value}
    return [
        replace(part, answers=[{**answer, "answers": kept or None} for answer in part.answers])
        if isinstance(part, Entry)
        else part
        for part in read
    ]


def _fits(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 4


def _of_seven(value: float) -> int:
    """The place on 1 to 7 of a number from 0 to 4."""
    return 1 + math.floor(6 * value / 4 + 0.5)


def _pair_task(row: Row, prompt: str, first: str, second: str) -> ShownTask:
    return ShownTask(
        turns_of(row[prompt], prompt), (answer_of(row[first], first), answer_of(row[second], second)), frozenset()
    )


def _signed(task: ShownTask, value: Any, who: Who) -> Entry:
    """A vote from -3 (the first is much better) to 3."""
    degree = _number(value, "the preference")
    if degree not in range(-3, 4):
        raise BadRow(f"the preference {value!a} is no whole number from -3 to 3")
    return pair(task, "tie" if degree == 0 else "first" if degree < 0 else "second", who, abs(int(degree)))


def _number(value: Any, name: str) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise BadRow(f"{name} is {value!a}; expected a number")
    return number


# --- AlpacaFarm and AlpacaEval -------------------------------------------------------------------------------------

ALPACA_DROPS = (
    "prices, times, raw completions and raw preferences; a preference between 1 and 2 is a vote for the nearer output "
    "with the number as its comment. Annotators that are models are kept, as simulated labelers"
)


_ALPACA_MARKS = {"annotator", "annotator_index", "generator_1", "generator_2", "raw_preference"}
"""Keys of the published files, in which 0 is a tie; in a table of one's own with these columns it may be the first."""


def recognises_alpaca(row: Row) -> bool:
    return {"instruction", "output_1", "output_2", "preference"} <= row.keys()


def read_alpaca(row: Row, options: ImportOptions) -> Read:
    prompt = plain_turns(alpaca_prompt(text_of(row, "instruction"), row.get("input")))
    sides = [
        answer_of(row[f"output_{side}"], f"output_{side}")._replace(model=_text_or_none(row.get(f"generator_{side}")))
        for side in (1, 2)
    ]
    value = row["preference"]
    if value in (None, "") or (isinstance(value, float) and math.isnan(value)):
        raise PassedOver("a pair without a preference")
    said = meaning(value, options)
    if isinstance(said, str) and choice_number(said) is None and said != value:
        return judged(ShownTask(prompt, tuple(sides)), value, Who(labeler_of(row.get("annotator"))), options)
    number = _number(value, "'preference'")
    if number == 0 and not row.keys() & _ALPACA_MARKS:
        options.numbers["0"] = False
        raise BadRow("'preference' is 0, a tie in AlpacaFarm's files alone")
    options.numbers.setdefault(f"{number:g}", True)
    if number != 0 and not 1 <= number <= 2:
        raise BadRow(f"'preference' is {value!a}; expected 1, 2, a number between, or 0 (a tie)")
    name = labeler_of(row.get("annotator", row.get("annotator_index")))
    who = Who(name, "" if number in (0, 1, 1.5, 2) else f"preference {number:g}")
    choice = "tie" if number in (0, 1.5) else "first" if number < 1.5 else "second"
    entry = pair(ShownTask(prompt, tuple(sides)), choice, who)  # type: ignore[arg-type]
    is_model = name is not None and isinstance(row.get("annotator"), str) and not name.isdigit()
    return [replace(entry, simulated=frozenset([name])) if is_model else entry]  # type: ignore[list-item]


def _text_or_none(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


# --- summarize-from-feedback ---------------------------------------------------------------------------------------

SUMMARIES_DROPS = (
    "batches, splits and notes; confidence (1 to 9) and the axes besides `overall` are comments; the prompt is the "
    "title and the post or article"
)


def recognises_summaries(row: Row) -> bool:
    return (
        isinstance(parsed(row.get("info")), Mapping) and bool({"summaries", "summary"} & row.keys()) and "worker" in row
    )


def read_summaries(row: Row, options: ImportOptions) -> Read:
    info = object_of(row["info"], "info")
    text = check_text(info.get("post") or info.get("article"), "the post or article of 'info'")
    prompt = turns_of("\n\n".join(part for part in (info.get("title"), text) if isinstance(part, str) and part), "info")
    worker = labeler_of(row["worker"])
    if "summaries" not in row:
        summary = object_of(row["summary"], "summary")
        axes = dict(object_of(summary.get("axes") or {}, "axes"))
        value = axes.pop("overall", None)
        comment = ", ".join(f"{name} {value}" for name, value in axes.items() if value is not None)
        note = str(summary.get("note") or "")
        who = Who(worker, "\n".join(part for part in (note, comment) if part))
        return scored(ShownTask(prompt, (_summary(summary),)), value, who, options)
    shown = parsed(row["summaries"])
    if not isinstance(shown, list) or len(shown) != 2:
        raise BadRow("'summaries' must be two")
    choice = _number(row.get("choice"), "'choice'")
    if choice not in (0, 1):
        raise BadRow(f"'choice' is {row['choice']!a}; expected 0 or 1")
    extra = parsed(row.get("extra"))
    confidence = extra.get("confidence") if isinstance(extra, Mapping) else None
    who = Who(worker, "" if confidence is None else f"confidence {confidence}")
    task = ShownTask(prompt, tuple(_summary(each) for each in shown))
    return [pair(task, "first" if choice == 0 else "second", who)]


def _summary(value: Any) -> ShownAnswer:
    return answer_of(value, "summary")._replace(model=_text_or_none(object_of(value, "summary").get("policy")))


# --- WebGPT and SHP ------------------------------------------------------------------------------------------------

WEBGPT_DROPS = (
    "names (there are none), quotes and tokens; the two scores stand with the item, and how much better is not guessed "
    "from them"
)
SHP_DROPS = (
    "who voted: the scores are counts of votes, so a row is one vote for the answer with more of them; the counts "
    "stand with the item, and how much better is not guessed from their ratio"
)


def recognises_webgpt(row: Row) -> bool:
    return {"question", "answer_0", "answer_1", "score_0", "score_1"} <= row.keys()


def read_webgpt(row: Row, options: ImportOptions) -> Read:
    question = parsed(row["question"])
    question = question.get("full_text") if isinstance(question, Mapping) else question
    scores = [_number(row[key], f"'{key}'") for key in ("score_0", "score_1")]
    return _by_scores(row, turns_of(question, "question"), ("answer_0", "answer_1"), scores, "webgpt")


def recognises_shp(row: Row) -> bool:
    return {"history", "human_ref_A", "human_ref_B", "score_A", "score_B"} <= row.keys()


def read_shp(row: Row, options: ImportOptions) -> Read:
    scores = [_number(row[key], f"'{key}'") for key in ("score_A", "score_B")]
    label = row.get("labels")
    if label not in (None, "") and scores[0] != scores[1] and (str(label) in ("1", "1.0")) != (scores[0] > scores[1]):
        raise BadRow(f"'labels' is {label}, and the scores {scores[0]:g} and {scores[1]:g} say the other")
    return _by_scores(row, turns_of(row["history"], "history"), ("human_ref_A", "human_ref_B"), scores, "shp")


def _by_scores(row: Row, prompt: Any, keys: tuple[str, str], scores: list[float], name: str) -> Read:
    task = ShownTask(prompt, tuple(answer_of(row[key], key) for key in keys))
    return ranked(task, [-score for score in scores], Who(None), {name: {"scores": scores}})


# --- RewardBench ---------------------------------------------------------------------------------------------------

REWARD_BENCH_DROPS = (
    "names (there are none), subsets beside the item's, and which model gave which answer of version 2; several right "
    "answers become a pair each with each wrong one"
)


def recognises_reward_bench(row: Row) -> bool:
    """Texts, or lists of texts: other sets have the same keys with conversations in them."""
    chosen = parsed(row.get("chosen"))
    if isinstance(chosen, list):
        is_bench = {"num_correct", "total_completions"} <= row.keys() and all(isinstance(each, str) for each in chosen)
    else:
        is_bench = isinstance(chosen, str) and {"chosen_model", "rejected_model", "subset"} <= row.keys()
    return is_bench and {"prompt", "rejected"} <= row.keys()


def read_reward_bench(row: Row, options: ImportOptions) -> Read:
    groups: list[list[ShownAnswer]] = []
    for side in ("chosen", "rejected"):
        value = parsed(row[side])
        texts = value if isinstance(value, list) else [value]
        model = _text_or_none(row.get(f"{side}_model"))
        groups.append([answer_of(text, side)._replace(model=model) for text in texts])
    chosen, rejected = groups
    prompt = turns_of(row["prompt"], "prompt")
    kept = {"reward-bench": {key: row[key] for key in ("id", "subset") if key in row}}
    return [preferred(prompt, good, bad, Who(None), None, kept) for good in chosen for bad in rejected]
