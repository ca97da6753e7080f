"""All formats of `alignment rate import` and `export`, and which of them a row has."""

from __future__ import annotations

from collections.abc import Callable

from alignment.data.annotations import annotation_format
from alignment.data.messages import key_names
from alignment.data.row_files import BadRow
from alignment.labeling.formats import (
    arena,
    argilla,
    columns,
    exchanged,
    label_studio,
    published,
    text_tools,
    tools_written,
    training_files,
    trees,
)
from alignment.labeling.formats.fields import PROMPTS, first_key
from alignment.labeling.formats.reading import FileFormat, ImportOptions, Read, Reader, Row

_PEOPLE = "strength, seconds, comments, answers to questions, flags, order shown, skips, gold and repeats"
_LINES = (".jsonl", ".jsonl.gz")


def _has(*keys: str) -> Callable[[Row], bool]:
    return lambda row: row.keys() >= set(keys)


def _is_tool(name: str) -> Callable[[Row], bool]:
    return lambda row: annotation_format(row) == name


def _is_hh(row: Row) -> bool:
    return {"chosen", "rejected"} <= row.keys() and first_key(row, PROMPTS) is None


_COUNTED = "what `not in this format` counts"


def _only(title: str, recognises: Callable[[Row], bool], read: Reader, drops: str) -> FileFormat:
    """A format that others publish, and whose rows all have the keys that it is recognised by."""

    def checked(row: Row, options: ImportOptions) -> Read:
        if not recognises(row):
            raise BadRow(f"found the keys {key_names(row)}, which are not those of {title}")
        return read(row, options)

    return FileFormat(title, checked, recognises, drops)


FORMATS: dict[str, FileFormat] = {
    "jsonl": FileFormat(
        "the suite's own format",
        exchanged.read_jsonl,
        _has("kind", "prompt", "completions"),
        "nothing",
        exchanged.write_jsonl,
        _LINES,
        "nothing of items and ratings; not in it are the shares of control items, invitations, open claims and answers "
        "that were taken back",
        joins=False,
    ),
    "label-studio": FileFormat(
        "Label Studio",
        label_studio.read_label_studio,
        _is_tool("label-studio"),
        label_studio.DROPS,
        tools_written.write_label_studio,
        (".json", *_LINES),
        _COUNTED,
        asks=True,
    ),
    "argilla": FileFormat(
        "Argilla",
        argilla.read_argilla,
        _is_tool("argilla"),
        argilla.DROPS,
        tools_written.write_argilla,
        (".json", *_LINES),
        _COUNTED,
        asks=True,
    ),
    "potato": FileFormat("Potato", text_tools.read_potato, _is_tool("potato"), text_tools.POTATO_DROPS),
    "prodigy": FileFormat("Prodigy", text_tools.read_prodigy, _is_tool("prodigy"), text_tools.PRODIGY_DROPS),
    "doccano": FileFormat("doccano", text_tools.read_doccano, _is_tool("doccano"), text_tools.DOCCANO_DROPS),
    "arena": _only("Arena or MT-bench votes", arena.recognises_arena, arena.read_arena, arena.DROPS),
    "helpsteer": _only(
        "HelpSteer 2 or 3", published.recognises_helpsteer, published.read_helpsteer, published.HELPSTEER_DROPS
    )._replace(write=training_files.write_helpsteer, suffixes=_LINES, export_drops=_COUNTED, asks=True),
    "openai": FileFormat(
        "OpenAI's preference fine-tuning",
        training_files.read_openai,
        training_files.recognises_openai,
        "nothing; rows with tools or with answers of several turns are refused, and no row has a name",
        training_files.write_openai,
        _LINES,
        _COUNTED,
    ),
    "trl": FileFormat(
        "TRL's preferences",
        exchanged.read_hh,
        training_files.recognises_trl,
        "nothing; it has no ties",
        training_files.write_trl,
        _LINES,
        _COUNTED,
    ),
    "trl-unpaired": FileFormat(
        "TRL's unpaired preferences",
        columns.read_votes,
        training_files.recognises_trl_unpaired,
        "nothing; a label is a score from 0 to 1",
        training_files.write_trl_unpaired,
        _LINES,
        _COUNTED,
    ),
    "alpaca": _only(
        "AlpacaFarm or AlpacaEval", published.recognises_alpaca, published.read_alpaca, published.ALPACA_DROPS
    ),
    "summaries": _only(
        "summarize-from-feedback", published.recognises_summaries, published.read_summaries, published.SUMMARIES_DROPS
    ),
    "webgpt": _only("WebGPT", published.recognises_webgpt, published.read_webgpt, published.WEBGPT_DROPS),
    "shp": _only("SHP", published.recognises_shp, published.read_shp, published.SHP_DROPS),
    "reward-bench": _only(
        "RewardBench", published.recognises_reward_bench, published.read_reward_bench, published.REWARD_BENCH_DROPS
    ),
    "hh": FileFormat(
        "HH transcripts",
        exchanged.read_hh,
        _is_hh,
        "nothing; it has no ties, and where a row has no name one labeler, hh, gave the choice",
        exchanged.write_hh,
        _LINES,
        f"ties, who said what and how many (the majority's choice stays), {_PEOPLE}, models, spaces around a text, "
        "and which pairs come from one ranking",
    ),
    "pandalm": FileFormat(
        "PandaLM",
        exchanged.read_pandalm,
        _has("instruction", "response1", "response2", "annotator1"),
        "nothing but the kind of an answer that is a truth value (true is read as the text True)",
        exchanged.write_pandalm,
        (".json", *_LINES),
        f"the names of labelers (a numbered column each), {_PEOPLE}, and which pairs come from one ranking",
        joins=False,
    ),
    "qa-feedback": FileFormat(
        "QA-Feedback",
        exchanged.read_qa_feedback,
        _has("question", "passages", "prediction 1", "preference"),
        "nothing; the pairs of one question are items of their own, judged by one labeler, qa-feedback",
        exchanged.write_qa_feedback,
        (".json", *_LINES),
        f"who said what and how many (the majority's choice stays), {_PEOPLE}, and models",
        joins=False,
    ),
    "oasst": FileFormat(
        "message trees",
        trees.read_trees,
        _has("message_tree_id", "prompt"),
        "answers without a rank, deleted ones and those that reviewers refused, trees without any ranking, review "
        "counts and emojis; the ranking is one labeler's, oasst, for the many behind it are not in the file",
        trees.write_trees,
        _LINES,
        f"who said what (the order of mean ranks stays), {_PEOPLE}; ties, which are rare in such trees, stay as equal "
        "ranks",
        joins=False,
    ),
    "votes": FileFormat(
        "a table of votes", columns.read_votes, columns.recognises_votes, columns.DROPS, used=columns.used_by_votes
    ),
}
"""By the name that --format takes. Recognised in this order, the most particular keys first."""

UNNAMED = {name: name for name in ("hh", "webgpt", "shp", "helpsteer", "reward-bench")}
"""Who gave the votes of sets that name nobody; in other files it is `unnamed`."""
WRITTEN = [name for name, format in FORMATS.items() if format.write is not None]


def recognised(row: Row) -> str | None:
    """The format of a row, by its keys; None if it has none."""
    return next((name for name, format in FORMATS.items() if format.recognises(row)), None)
