"""Turn an Inspector's counts into findings with advice."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignment.data.check.inspector import Inspector
from alignment.data.check.judgements import Judged
from alignment.data.check.report import LEVELS, DataReport, Finding, Level, SetAside, histogram, percent, percentiles

USUAL_ROWS = 1000
"""Usual minimum number of demonstrations for fine-tuning (LIMA, Zhou et al. 2023: 1,000 good ones suffice)."""
MAX_EXAMPLES = 20

# Findings about single rows: level, text (after "12 of 300 rows (4.0%)") and advice.
_ROWS: dict[str, tuple[Level, str, str]] = {
    "template": (
        "error",
        "cannot be rendered by the chat template, so training would stop",
        "change the turns of these rows, or choose another model.template",
    ),
    "schema": (
        "error",
        "have an answer that does not fit the schema",
        "fix them: the model learns the mistake",
    ),
    "same_role": (
        "warning",
        "have consecutive turns of the same role",
        "merge such turns, unless they are meant to be separate",
    ),
    "assistant_first": ("warning", "begin with the assistant's turn", "begin with the turn that the assistant answers"),
    "system_later": ("warning", "have a system turn that is not the first", "move it to the front: most templates do"),
    "markers": (
        "warning",
        "have a template's markers (<|im_end|>, [INST], ### Response: ...) inside a turn",
        "give such rows as plain turns: the template adds its markers, and those in a text are trained on as text",
    ),
    "transcript": (
        "warning",
        "are texts of several turns, whose questions and marks (Human:, <|user|>, [INST] ...) are learned as text",
        "--column messages=text (data.columns='{messages: text}') reads turns marked Human: and Assistant:, ### "
        "Human:, <|user|> or <|im_start|>user; write others as `messages`",
    ),
    "transcript_prompt": (
        "warning",
        "have a transcript (Human: ... Assistant: ...) in one turn",
        "write its turns as `messages`: the template marks them itself",
    ),
    "marked_held_out": (
        "warning",
        "are kept for tests by a key of theirs, and would be learned all the same",
        "take them out of the file; a file of them may be named in data.eval",
    ),
    "marked_flagged": (
        "warning",
        "are flagged as harmful by a key of theirs, and would be learned all the same",
        "look at them, and take out those that the model must not learn",
    ),
    "echo": ("warning", "have an answer that repeats the user's turn word for word", "remove these rows"),
    "says_nothing": (
        "warning",
        'have an answer that is empty to the eye (invisible characters, "N/A", "...")',
        "remove these rows: the model learns to answer so",
    ),
    "html": (
        "warning",
        "have an answer in HTML",
        "write it as text or Markdown, unless the model is to answer in HTML",
    ),
    "scored_lower": (
        "warning",
        "prefer the answer with the lower score",
        "look at some: the scores are not learned, the preference is; swap or remove pairs that are wrong",
    ),
    "scored_equal": (
        "note",
        "prefer one of two answers with equal scores",
        "the scores are not learned; remove such pairs if the scores are right",
    ),
    "reasoning": (
        "note",
        "have reasoning beside the answer",
        "it is trained on where the chat template has a place for it: --model NAME says whether it has",
    ),
    "reasoned": ("note", "have reasoning beside the answer, which the chat template writes before it", ""),
    "reasoning_lost": (
        "warning",
        "have reasoning beside the answer that is not trained on: the chat template has no place for it",
        "choose a model.template that reads reasoning_content, or put the reasoning into the answer",
    ),
}
_PERSONAL = {"mail": "mail addresses", "phone": "phone numbers", "card": "payment card numbers"}


def report_of(rows: Inspector, sources: Sequence[str]) -> DataReport:
    """The report with all findings; the sketches are compared here."""
    trained = rows.num_trained / rows.num_tokens if rows.num_tokens else None
    whole, answers = numbers(rows.lengths), numbers(rows.answer_lengths)
    lengths = {"whole row": whole, "prompt": whole - answers, "answer": answers} if len(whole) else {}
    reasons = sorted(rows.set_aside.values(), key=lambda item: -item[1].count)
    findings = [*set_findings(rows), *row_findings(rows), *(group_findings(rows) if rows.num_kept else ())]
    return DataReport(
        sources=list(sources),
        rows=rows.num_rows,
        bad=rows.num_bad,
        kept=rows.num_kept,
        held_out=sum(rows.held_out),
        stage=rows.stage,
        readers={stage: rows.readers[stage] for stage in ("sft", "reward", "ppo") if rows.readers[stage]},
        shapes=dict(rows.shapes.most_common()),
        set_aside=[SetAside(reason, seen.count, seen.places) for reason, seen in reasons],
        unit="words" if rows.tokenizer is None else "tokens",
        max_length=None if rows.tokenizer is None else rows.config.max_length,
        lengths={name: percentiles(values) for name, values in lengths.items()},
        histogram=histogram(whole),
        trained_share=trained,
        personal_data=dict(sorted(rows.num_personal.items())),
        findings=sorted(findings, key=lambda finding: LEVELS.index(finding.level)),
    )


def set_findings(rows: Inspector) -> Iterator[Finding]:
    """Yield the findings about the whole set: what leaves nothing to train on, and what of it is not used."""
    kept, held_out, judged = rows.num_kept, sum(rows.held_out), rows.judged
    if rows.num_rows and not kept and not rows.num_bad:
        reason, _ = max(rows.passed_over.items(), key=lambda item: item[1].count)
        text = f"none of the {rows.num_rows:,} rows gives an example: {reason}"
        yield Finding("error", "no_example", rows.num_rows, text, "name other files, or who the assistant is", [])
    read = rows.shapes.total()
    if rows.readers and max(rows.readers.values()) < (1 - rows.config.max_bad_share) * read:
        counts = ", ".join(f"{stage} {count:,}" for stage, count in rows.readers.items())
        text = f"no stage learns from all of these rows: of {read:,}, {counts}"
        yield Finding("error", "mixed_stages", read, text, "--for STAGE says what one of them would do", [])
    if kept and rows.config.eval is None and rows.config.eval_share:
        yield from _split(rows, kept, held_out)
    if judged.num_pairs and judged.num_ties == judged.num_pairs and not judged.decided_pair:
        text = f"each of the {judged.num_pairs:,} pairs is a tie, so a reward model has nothing to learn"
        yield Finding("error", "all_ties", judged.num_pairs, text, "judge more pairs", [])
    elif judged.num_ratings and not judged.num_pairs:
        yield from _ratings(judged, rows.needs_pairs)
    unused = {"given to reward functions alone" if rows.stage == "ppo" else "not used": rows.unused}
    unused["not used in turns"] = dict.fromkeys(rows.unused_of_turns)
    said = [f"{where}: {', '.join(sorted(names))}" for where, names in unused.items() if names]
    if said:
        yield Finding("note", "not_used", sum(map(len, unused.values())), "; ".join(said), "", [])
    for index, (remark, count) in enumerate(rows.remarks.items()):
        yield Finding("note", f"remark_{index}" if index else "remark", count, f"{_of(count, kept)}: {remark}", "", [])


def _split(rows: Inspector, kept: int, held_out: int) -> Iterator[Finding]:
    config = rows.config
    groups = len(set(rows.groups))
    of = "one prompt" if groups == 1 else f"{groups:,} prompts"
    share = f"data.eval_share={config.eval_share:g} holds out whole prompts"
    advice = "name held-out rows in data.eval, or set data.eval_share=0"
    if held_out == kept:
        text = f"all {kept:,} rows are held out: they have {of}, and {share}"
        yield Finding("error", "all_held_out", kept, text, advice, [])
    elif not held_out:
        text = f"nothing is held out: the rows have {of}, and {share}"
        yield Finding("warning" if groups == 1 and kept > 1 else "note", "none_held_out", kept, text, advice, [])


def _ratings(judged: Judged, needs_pairs: bool) -> Iterator[Finding]:
    count = judged.num_ratings
    if len(judged.values) < 2:
        (value,) = judged.values
        text = f"each of the {count:,} ratings is {value:g}, so a reward model has nothing to learn"
        yield Finding("error", "constant_ratings", count, text, "rate more answers", [])
    elif not judged.decided_pair:
        why = "each pair that they give is a tie" if judged.rated_pair else "no two are of one prompt and labeler"
        text = f"the {count:,} ratings give no pair that could be learned from: {why}"
        advice = "rate several answers to each prompt, or set reward.objective=regression"
        yield Finding("error" if needs_pairs else "note", "no_pairs", count, text, advice, [])


def row_findings(rows: Inspector) -> Iterator[Finding]:
    """Yield the findings about single rows."""
    yield from _bad_rows(rows)
    kept = rows.num_kept
    for index, text in enumerate(rows.file_notes):
        yield Finding("note", f"file_{index}" if index else "file", 1, text, "", [])
    if 0 < kept < USUAL_ROWS:
        text = f"you have {kept} rows: the usual guidance is about {USUAL_ROWS:,}"
        advice = "add rows of the same quality; training on subsets of these shows whether more would help"
        yield Finding("note", "few_rows", kept, text, advice, [])
    for index, (reason, seen) in enumerate(rows.passed_over.items()):
        text = f"{seen.count:,} rows are skipped: {reason}"
        yield Finding("note", f"passed_over_{index}" if index else "passed_over", seen.count, text, "", seen.places)
    yield from _too_long(rows)
    for kind, (level, text, advice) in _ROWS.items():
        if kind in rows.seen:
            seen = rows.seen[kind]
            yield Finding(level, kind, seen.count, f"{_of(seen.count, kept)} {text}", advice, seen.places)
    for kind, seen in sorted(rows.personal.items()):
        where = f"in {seen.count:,} {'row' if seen.count == 1 else 'rows'}"
        text = f"{_PERSONAL[kind]} found: {rows.num_personal[kind]:,}, {where}"
        advice = "--scrub OUT.jsonl writes a copy without them"
        yield Finding("warning", f"personal_{kind}", seen.count, text, advice, seen.places)
    if rows.num_pairs >= 100 and abs(rows.num_chosen_longer / rows.num_pairs - 0.5) > 0.1:
        share = rows.num_chosen_longer / rows.num_pairs
        text = f"the preferred answer is the longer one in {share:.0%} of the pairs"
        advice = "a reward model may learn length; look at its scores by length"
        yield Finding("note", "length_bias", rows.num_chosen_longer, text, advice, [])


def _bad_rows(rows: Inspector) -> Iterator[Finding]:
    bad, allowed = rows.num_bad, rows.config.max_bad_share
    if bad:
        total = bad + rows.num_kept
        level: Level = "error" if bad > allowed * total else "warning"
        text = f"{_of(bad, total)} cannot be used and are set aside"
        advice = f"fix them; more than {100 * allowed:g}% of all (data.max_bad_share) stops training"
        reasons = [seen.places for _, seen in rows.set_aside.values()]
        places = [places[0] for places in reasons] + [place for places in reasons for place in places[1:MAX_EXAMPLES]]
        yield Finding(level, "set_aside", bad, text, advice, places[:MAX_EXAMPLES])


def _too_long(rows: Inspector) -> Iterator[Finding]:
    config, kept = rows.config, rows.num_kept
    if not len(rows.lengths):
        return
    longest = f"raise data.max_length (the longest row has {max(rows.lengths):,} tokens)"
    limit = f"data.max_length={config.max_length}"
    if "left_out" in rows.seen:
        seen = rows.seen["left_out"]
        if rows.stage == "ppo":
            all_of_them = seen.count == len(rows.lengths)
            text = (
                f"{_of(seen.count, kept)} have a prompt that is longer than {limit} tokens and cannot be trimmed to it"
            )
            yield Finding("error" if all_of_them else "warning", "left_out", seen.count, text, longest, seen.places)
        elif seen.count == len(rows.lengths):
            answers = numbers(rows.answer_lengths)
            prompt, answer = percentiles(numbers(rows.lengths) - answers).p50, percentiles(answers).p50
            text = (
                f"0 of {kept:,} rows have trainable tokens at {limit}; the median prompt is {prompt:,} tokens and the "
                f"median answer {answer:,}"
            )
            yield Finding("error", "left_out", seen.count, text, longest, seen.places)
        elif config.too_long == "trim_prompt":
            level: Level = "error" if seen.count > config.max_bad_share * kept else "warning"
            text = f"{_of(seen.count, kept)} are left out of training: the answer alone is longer than {limit} tokens"
            advice = f"{longest}, shorten these answers, or set data.too_long=drop to train without them"
            yield Finding(level, "left_out", seen.count, text, advice, seen.places)
        else:
            level = "error" if config.too_long == "raise" else "warning"
            text = f"{_of(seen.count, kept)} are longer than {limit} tokens (data.too_long={config.too_long})"
            yield Finding(level, "left_out", seen.count, text, longest, seen.places)
    if "truncated" in rows.seen:
        seen = rows.seen["truncated"]
        text = f"{_of(seen.count, kept)} lose the beginning of their prompt at {limit}"
        advice = f"{longest}, or set data.too_long=drop to leave such rows out"
        yield Finding("warning", "truncated", seen.count, text, advice, seen.places)


def _of(count: int, total: int) -> str:
    return f"{count:,} of {total:,} rows ({percent(count / total)})"


def group_findings(rows: Inspector) -> Iterator[Finding]:
    """Yield the findings about several rows: duplicates, contradictions, held-out prompts in the training rows."""
    questions, answers, groups, prompts = map(numbers, (rows.questions, rows.answers, rows.groups, rows.prompts))
    exact = _first_of_equal(questions * np.uint64(0x9E3779B97F4A7C15) + answers)
    itself = np.arange(len(exact))
    copies = np.flatnonzero(exact != itself)
    if len(copies):
        text = f"{_of(len(copies), len(exact))} repeat an earlier one exactly"
        advice = "keep one of each, unless the repetition is a deliberate weight"
        yield Finding("warning", "exact_duplicates", len(copies), text, advice, _pairs(rows, copies, exact))
    yield from _contradictions(rows, questions, exact)
    near = exact[rows.texts.labels()]  # exact copies are replaced by the first, so that they are not counted twice
    alike = np.flatnonzero((near != exact) & (exact == itself) & (prompts[near] != prompts))
    if len(alike):
        text = f"{_of(len(alike), len(exact))} nearly repeat an earlier one (texts filled into one form count too)"
        advice = "look at a few: copies with small changes teach little and may be on both sides of a split"
        yield Finding("note", "near_duplicates", len(alike), text, advice, _pairs(rows, alike, near))
    yield from _leaks(rows, groups)
    if rows.texts.num_unseen:
        first = len(exact) - rows.texts.num_unseen
        text = f"near duplicates were searched for among the first {first:,} rows only; exact ones among all"
        yield Finding("note", "near_duplicates_limit", rows.texts.num_unseen, text, "", [])


def _contradictions(rows: Inspector, questions: NDArray[np.uint64], exact: NDArray[np.int64]) -> Iterable[Finding]:
    different = np.flatnonzero(exact == np.arange(len(exact)))  # each (prompt, answer) once
    first = _first_of_equal(questions[different])
    again = np.flatnonzero(first != np.arange(len(first)))
    if not len(again):
        return
    count = len(np.unique(first[again]))
    if rows.num_pairs == len(exact):
        text = f"{count:,} pairs of answers are preferred one way in one row and the other way in another"
        advice = "people differ; give votes instead, or keep the majority's, unless the mixture is meant"
    else:
        have = "prompt has" if count == 1 else "prompts have"
        text = f"{count:,} {have} several different answers, so the model learns their mixture"
        advice = "keep the best answer to each, unless the mixture is meant"
    earlier = np.zeros(len(exact), np.int64)
    earlier[different[again]] = different[first[again]]
    yield Finding("warning", "contradictions", count, text, advice, _pairs(rows, different[again], earlier))


def _leaks(rows: Inspector, groups: NDArray[np.uint64]) -> Iterable[Finding]:
    held_out = np.frombuffer(rows.held_out, np.uint8).astype(bool)
    same = _first_marked(_first_of_equal(groups), ~held_out)
    near = _first_marked(rows.group_sketches.labels(), ~held_out)
    train = np.where(same >= 0, same, near)
    leaked = np.flatnonzero(held_out & (train >= 0))
    if len(leaked):
        text = (
            f"{len(leaked):,} of {held_out.sum():,} held-out rows have a prompt that is also in the training rows, "
            "exactly or nearly, so metrics on them are too good"
        )
        advice = "`alignment data split` keeps such prompts together"
        if rows.config.eval:
            advice += "; training leaves out rows whose prompt is exactly one of data.eval"
        yield Finding("warning", "split_leaks", len(leaked), text, advice, _pairs(rows, leaked, train))


def _pairs(rows: Inspector, indices: NDArray[np.int64], others: NDArray[np.int64]) -> list[str]:
    return [f"{rows.places[row]} and {rows.places[others[row]]}" for row in indices[:MAX_EXAMPLES]]


def _first_of_equal(keys: NDArray[Any]) -> NDArray[np.int64]:
    """The index of the first key equal to each key, (N,)."""
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    return first[inverse]


def _first_marked(labels: NDArray[np.int64], marked: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The index of the first marked row with each row's label, or -1."""
    first = np.full(len(labels), -1)
    marked_rows = np.flatnonzero(marked)[::-1]  # reversed, because the last assignment to an index wins
    first[labels[marked_rows]] = marked_rows
    return first[labels]


def numbers(values: array[int]) -> NDArray[np.uint64]:
    """The values of an array of type code "Q", without a copy."""
    return np.frombuffer(values, np.uint64)
