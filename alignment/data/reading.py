"""Records: prompts, demonstrations, texts and comparisons; reading, mixing, checking and splitting them.

`alignment.data.sources` finds the rows behind a path, `alignment.data.formats` the conversation in a row. A bad row is
named by file and line with the reason, set aside and counted; more than `data.max_bad_share` of them stops the run
before training. Splits are by prompt group (the first human turn), never by row.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from alignment.config.loading import DataConfig, DataPart, Format
from alignment.data import formats
from alignment.data.formats import Choice
from alignment.data.importers import PassedOver
from alignment.data.openassistant import tree_chats, tree_rankings
from alignment.data.row_files import BadRow, DataError
from alignment.data.sources import Source, open_source
from alignment.templates.rendering import Message


@dataclass(frozen=True)
class Prompt:
    """A conversation that the assistant is to continue. `columns` are the row's other keys."""

    messages: tuple[Message, ...]
    columns: Mapping[str, Any] = field(default_factory=dict, compare=False)
    place: str = field(default="", compare=False)

    @property
    def group(self) -> str:
        return prompt_group(self.messages)


@dataclass(frozen=True)
class Demonstration:
    """A conversation that ends with the assistant's turn, and the tools that were on offer (OpenAI's form).

    `place` is the `file:line` it was read from.
    """

    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...] = ()
    place: str = field(default="", compare=False)

    @property
    def group(self) -> str:
        return prompt_group(self.messages)


@dataclass(frozen=True)
class Document:
    """A text by itself, to learn all of."""

    text: str
    place: str = field(default="", compare=False)

    @property
    def group(self) -> str:
        return " ".join(self.text.casefold().split())


CHOICES: tuple[Choice, ...] = ("first", "second", "tie")


@dataclass(frozen=True)
class Vote:
    """What one person said of two completions. `strength` is 1 (slightly) to 3 (much better); None: not asked."""

    choice: Choice
    strength: int | None = None
    labeler: str | None = None


@dataclass(frozen=True)
class Comparison:
    """Two completions of one prompt and the votes on them. `size`: how many completions were judged together."""

    prompt: tuple[Message, ...]
    first: str
    second: str
    votes: tuple[Vote, ...] = (Vote("first"),)
    size: int = 2
    place: str = field(default="", compare=False)

    @property
    def group(self) -> str:
        return prompt_group(self.prompt)

    def count(self, choice: Choice) -> int:
        """How many votes said so."""
        return sum(vote.choice == choice for vote in self.votes)

    @property
    def weight(self) -> float:
        """Number of votes, each counting 1/C(K,2): the pairs of one ranking weigh as one (InstructGPT, section 3.5)."""
        return len(self.votes) / math.comb(self.size, 2)

    @property
    def target(self) -> float:
        """Share of the votes for `first`, a tie being half a vote for each."""
        return (self.count("first") + 0.5 * self.count("tie")) / len(self.votes)


@dataclass(frozen=True)
class Rating:
    """A number that one person gave to one completion; higher is better. `labeler` None: not known who."""

    prompt: tuple[Message, ...]
    completion: str
    rating: float
    labeler: str | None = None
    place: str = field(default="", compare=False)

    @property
    def group(self) -> str:
        return prompt_group(self.prompt)


def prompt_group(messages: Sequence[Message]) -> str:
    """Key under which conversations count as the same prompt: the first human turn, case and spaces folded."""
    first = next((message["content"] for message in messages if message["role"] == "user"), "")
    return " ".join(first.casefold().split())


# --- rows to records -----------------------------------------------------------------------------------------------

_DEMONSTRATIONS: tuple[Format, ...] = (
    "chat", "sharegpt", "tree", "self-instruct", "pandalm", "alpaca", "completion", "pair", "ranking", "qa-feedback",
    "rag", "faq",
)  # fmt: skip
_COMPARISONS: tuple[Format, ...] = ("pair", "ranking", "tree", "pandalm", "qa-feedback")
_PROMPTS: tuple[Format, ...] = ("prompt", *_DEMONSTRATIONS, "rating")


def to_examples(row: Mapping[str, Any], format: Format = "auto") -> list[Demonstration | Document]:
    """What SFT learns from a row: demonstrations, or a text."""
    shape = formats.shape_of(row, format, (*_DEMONSTRATIONS, "text"))
    return [Document(formats.text_of(row, "text"))] if shape == "text" else list(to_demonstrations(row, format))


def to_demonstrations(row: Mapping[str, Any], format: Format = "auto") -> list[Demonstration]:
    """Alpaca, chat, prompt and completion, question and answer, the side of a pair that most chose, the best of a
    ranking: one each. Self-instruct's instances and OpenAssistant's trees: as many as they hold."""
    shape = formats.shape_of(row, format, _DEMONSTRATIONS)
    if shape == "tree":
        return [Demonstration(messages) for messages in tree_chats(row)]
    if shape == "self-instruct":
        return [Demonstration(formats.with_answer(*instance)) for instance in formats.instances(row)]
    return [to_demonstration(row, shape)]


def to_demonstration(row: Mapping[str, Any], format: Format = "auto") -> Demonstration:
    """The demonstration of a row that holds one."""
    shape = formats.shape_of(
        row, format, [shape for shape in _DEMONSTRATIONS if shape not in ("tree", "self-instruct")]
    )
    if shape in ("chat", "sharegpt"):
        chat = _chat(row, shape)
        formats.split_answer(chat.messages)
        if not any(turn.get("weight", 1) for turn in chat.messages if turn["role"] == "assistant"):
            raise BadRow("every assistant message has weight 0, so there is nothing to learn")
        return Demonstration(chat.messages, chat.tools)
    if shape == "alpaca":
        prompt = formats.alpaca_prompt(formats.text_of(row, "instruction"), row.get("input"))
        answer = formats.text_of(row, "output")
    elif shape == "completion":
        prompt, answer = formats.prompt_turns(row), formats.completion_of(row, "completion")
    elif shape == "pair":
        prompt, answer, _ = formats.pair_of(row)
    elif shape == "ranking":
        found = formats.ranking(row)
        prompt, answer = found.prompt, found.completions[found.ranks.index(min(found.ranks))]
    elif shape == "pandalm":
        prompt, answer = _preferred(_judged_pair(row))
    elif shape == "qa-feedback":
        prompt, answer = formats.qa_prompt(row), formats.text_of(row, "gold")
    elif shape == "rag":
        prompt, found_answer = formats.rag(row)
        if found_answer is None or found_answer == "":
            raise BadRow(
                "'answer' is empty; mark a question that the documents do not answer with `unanswerable: true`"
            )
        answer = formats.check_text(found_answer, "'answer'")
    else:
        prompt = (Message(role="user", content=formats.text_of(row, "question")),)
        answer = formats.text_of(row, "answer")
    return Demonstration(formats.with_answer(prompt, answer))


def _preferred(pair: Comparison) -> tuple[tuple[Message, ...], str]:
    if pair.target == 0.5:
        raise PassedOver("neither response was preferred")
    return pair.prompt, formats.check_text(pair.first if pair.target > 0.5 else pair.second, "the preferred response")


def _chat(row: Mapping[str, Any], shape: Format) -> formats.Chat:
    if shape == "sharegpt":
        return formats.sharegpt(row)
    return formats.Chat(formats.messages_of(row, "messages"), formats.tools_of(row))


def to_comparisons(row: Mapping[str, Any], format: Format = "auto") -> list[Comparison]:
    """A pair: one. A ranking of K answers, or each of a tree's: all K(K-1)/2 pairs (InstructGPT, section 3.5).

    PandaLM's row: one, with a vote of each annotator. QA-Feedback's: the K(K-1)/2 pairs as they were judged, which is
    not always a ranking. Equal completions of a ranking make no pair.
    """
    return [pair for pair in _compared(row, format) if pair.first != pair.second]


def _compared(row: Mapping[str, Any], format: Format) -> list[Comparison]:
    shape = formats.shape_of(row, format, _COMPARISONS)
    if formats.tools_of(row):
        raise BadRow("comparisons with tools are not read: the reward model would not see the tools")
    if shape == "pair":
        return [to_comparison(row)]
    if shape == "pandalm":
        return [_judged_pair(row)]
    if shape == "qa-feedback":
        return list(_judged_pairs(formats.qa_feedback(row)))
    rankings = tree_rankings(row) if shape == "tree" else [formats.ranking(row)]
    if not rankings:
        raise PassedOver("no answers of this tree were ranked")
    return [pair for ranking in rankings for pair in _ranked_pairs(ranking)]


def to_judgements(row: Mapping[str, Any], format: Format = "auto") -> list[Comparison] | list[Rating]:
    """What the reward stage learns from a row: comparisons, or the rating of one completion.

    Pairs of equal completions of a ranking are among them: the stage counts what it leaves out.
    """
    if formats.shape_of(row, format, (*_COMPARISONS, "rating")) != "rating":
        return _compared(row, format)
    value, labeler = row["rating"], row.get("labeler")
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise BadRow(f"'rating' must be a number, found {value!r}")
    if labeler is not None and not isinstance(labeler, str):
        raise BadRow(f"'labeler' must be a text, found {type(labeler).__name__}")
    return [Rating(formats.prompt_turns(row), formats.completion_of(row, "completion"), float(value), labeler)]


def to_comparison(row: Mapping[str, Any]) -> Comparison:
    """A pair: prompt, chosen, rejected; or whole transcripts or conversations under chosen and rejected."""
    formats.shape_of(row, "pair", ["pair"])
    prompt, first, second = formats.pair_of(row)
    if first == second:
        raise BadRow("'chosen' and 'rejected' are the same")
    return Comparison(prompt, first, second)


def _judged_pair(row: Mapping[str, Any]) -> Comparison:
    judged = formats.pandalm(row)
    if judged.first == judged.second:
        raise PassedOver("both responses are the same")
    votes = tuple(Vote(choice, labeler=annotator) for annotator, choice in judged.votes)
    return Comparison(judged.prompt, judged.first, judged.second, votes)


def _judged_pairs(judged: formats.Tournament) -> Iterator[Comparison]:
    pairs = itertools.combinations(judged.completions, 2)
    for (first, second), choice in zip(pairs, judged.choices, strict=True):
        yield Comparison(judged.prompt, first, second, (Vote(choice),), len(judged.completions))


def _ranked_pairs(ranking: formats.Ranking) -> Iterator[Comparison]:
    size = len(ranking.completions)
    for (first, one), (second, other) in itertools.combinations(
        zip(ranking.completions, ranking.ranks, strict=True), 2
    ):
        vote = Vote("first" if one < other else "second" if other < one else "tie")
        yield Comparison(ranking.prompt, first, second, (vote,), size)


def to_prompts(row: Mapping[str, Any], format: Format = "auto") -> list[Prompt]:
    """The prompts of any row but a text."""
    shape = formats.shape_of(row, format, _PROMPTS)
    if shape == "tree":
        return [Prompt(messages[:-1]) for messages in tree_chats(row)]
    if shape == "self-instruct":
        columns = {key: value for key, value in row.items() if key != "instances"}
        return [Prompt(prompt, columns) for prompt, _ in formats.instances(row)]
    return [to_prompt(row, shape)]


def to_prompt(row: Mapping[str, Any], format: Format = "auto") -> Prompt:
    """The prompt of a row that holds one: the conversation before the assistant's last turn."""
    shape = formats.shape_of(row, format, [shape for shape in _PROMPTS if shape not in ("tree", "self-instruct")])
    if shape in ("chat", "sharegpt"):
        messages, tools = _chat(row, shape)
        if tools:
            raise BadRow("prompts with tools are for python -m sft alone: no reward model has seen any")
        messages = messages[:-1] if messages[-1]["role"] == "assistant" else messages
    elif shape == "pandalm":
        messages = formats.pandalm_prompt(row)
    elif shape == "alpaca":
        messages = formats.alpaca_prompt(formats.text_of(row, "instruction"), row.get("input"))
    elif shape == "pair":
        messages, _, _ = formats.pair_of(row)
    elif shape == "qa-feedback":
        messages = formats.qa_prompt(row)
    elif shape == "rag":
        messages, _ = formats.rag(row)
    elif shape == "faq":
        messages = (Message(role="user", content=formats.text_of(row, "question")),)
    else:
        messages = formats.prompt_turns(row)
    if not messages or messages[-1]["role"] != "user":
        raise BadRow("the prompt must end with the user's turn")
    return Prompt(messages, {key: value for key, value in row.items() if key not in ("prompt", "messages")})


# --- one pass over a data section ----------------------------------------------------------------------------------

R = TypeVar("R", bound=Prompt | Demonstration | Document | Comparison | Rating)
Convert = Callable[[Mapping[str, Any], Format], Sequence[R]]
Use = Literal["train", "eval"]


class Reading(Generic[R]):
    """One pass over the sources that a `data` section names, row by row; what it met is known when it is through.

    Iterating yields ("train" or "eval", record): held-out records once, those to train on as often as the weight of
    their part says. Where `data.eval` is named, rows of `data.train` with one of its prompts are left out.

    Args:
        convert: one of to_examples, to_demonstrations, to_comparisons, to_judgements, to_prompts.
        open: what finds the rows behind a part.

    Raises:
        DataError: from the iteration: nothing there, too large a share of bad rows, or nothing left to train on.
    """

    def __init__(
        self, config: DataConfig, convert: Convert[R], open: Callable[[DataPart, DataConfig], Source] = open_source
    ) -> None:
        self.config, self._convert, self._open = config, convert, open
        self.bad: list[tuple[str, str]] = []
        self.passed_over: Counter[str] = Counter()
        self.leaked = 0
        self.fingerprints: dict[Use, list[dict[str, Any]]] = {"train": [], "eval": []}

    def __iter__(self) -> Iterator[tuple[Use, R]]:
        config = self.config
        held_out: set[bytes] = set()
        if config.eval_part is not None:
            for use, record in self._read(config.eval_part, "eval"):
                held_out.add(_digest(record.group))
                yield use, record
        for part in config.parts:
            yield from self._read(part, "train", held_out)
        if not sum(mark["rows"] for mark in self.fingerprints["train"]):
            if config.eval is None:
                rows = sum(mark["rows"] for mark in self.fingerprints["eval"])
                raise DataError(
                    f"{config.parts[0].path}: all {rows} rows fell into the held-out share; lower data.eval_share"
                )
            raise DataError(f"{config.parts[0].path}: each of its prompts stands in data.eval={config.eval} too")

    def notes(self) -> list[str]:
        """What a person should know about rows that were neither bad nor used."""
        notes = [f"{count} passed over: {reason}" for reason, count in self.passed_over.items()]
        if self.leaked:
            notes.append(
                f"{self.leaked} rows of data.train left out: their prompts stand in data.eval={self.config.eval}"
            )
        return notes

    def _read(self, part: DataPart, use: Use, held_out: Collection[bytes] = ()) -> Iterator[tuple[Use, R]]:
        config = self.config
        source = self._open(part, config)
        num_read = 0
        bad: list[tuple[str, str]] = []
        counts: Counter[Use] = Counter()
        for record in self._records(source, part, bad):
            num_read += 1
            if use == "eval" or (config.eval is None and is_held_out(record, config.eval_share, config.split_seed)):
                counts["eval"] += 1
                yield "eval", record
            elif _digest(record.group) in held_out:
                self.leaked += 1
            else:
                times = _times(part.weight, f"{config.split_seed}\0{num_read}")
                counts["train"] += times
                for _ in range(times):
                    yield "train", record
            if num_read == part.cap:
                break
        self.bad += bad
        check_bad(part.path, num_read, bad, config.max_bad_share)
        is_split = config.eval is None and config.eval_share > 0
        uses: tuple[Use, ...] = ("train", "eval") if is_split else (use,)
        split = {"split": self._split()} if is_split else {}
        mark = source.fingerprint() | _mixing(part) | split
        for side in uses:
            self.fingerprints[side].append(mark | {"rows": counts[side], "use": side})

    def _records(self, source: Source, part: DataPart, bad: list[tuple[str, str]]) -> Iterator[R]:
        for where, row in source.rows:
            try:
                if isinstance(row, BadRow):
                    raise row
                for record in self._convert(row, part.format or "auto") if isinstance(row, Mapping) else [row]:
                    yield replace(record, place=where)
            except PassedOver as reason:
                self.passed_over[str(reason)] += 1
            except BadRow as reason:
                bad.append((where, str(reason)))

    def _split(self) -> str:
        return f"by prompt group, {self.config.eval_share:g} held out, seed {self.config.split_seed}"


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def _times(weight: float, key: str) -> int:
    """How often a row of this weight is used: the whole part, and once more with the probability of the rest."""
    whole, rest = divmod(weight, 1)
    return int(whole) + (rest > 0 and int.from_bytes(_digest(key)[:8], "big") < rest * 2**64)


def _mixing(part: DataPart) -> dict[str, Any]:
    """What of a part's settings decides which rows are used, for its fingerprint."""
    settings = {"weight": part.weight, "cap": part.cap, "format": part.format, "columns": part.columns}
    defaults: dict[str, Any] = {"weight": 1.0, "cap": None, "format": "auto", "columns": {}}
    return {key: value for key, value in settings.items() if value != defaults[key]}


def is_held_out(record: Prompt | Demonstration | Document | Comparison | Rating, share: float, seed: int) -> bool:
    """Whether a record's prompt group is held out.

    A group goes by the hash of its own text, so that adding rows never moves a prompt from one side to the other.
    """
    digest = hashlib.sha256(f"{seed}\0{record.group}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def check_bad(source: str, num_good: int, bad: Sequence[tuple[str, str]], max_bad_share: float) -> None:
    """Stop before training when a source is empty or too much of it is bad."""
    total = num_good + len(bad)
    if total == 0:
        raise DataError(f"{source}: the data set is empty; expected at least one row")
    if len(bad) > max_bad_share * total:
        where, reason = bad[0]
        more = f" ({len(bad)} of {total} rows are bad, data.max_bad_share is {max_bad_share:g})"
        raise DataError(f"{where}: {reason}{more}; mend the rows or raise data.max_bad_share")


# --- a whole data section in memory --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Records(Generic[R]):
    """Records for one use, what was set aside of them, and what identifies their sources."""

    items: list[R]
    bad: list[tuple[str, str]]
    fingerprints: list[dict[str, Any]]
    notes: list[str] = field(default_factory=list)


def read_records(path: str | Path, convert: Convert[R], config: DataConfig) -> Records[R]:
    """Every record behind one path; nothing is held out.

    Raises:
        DataError: see `Reading`.
    """
    whole = config.model_copy(update={"train": str(path), "eval": None, "eval_share": 0.0})
    return train_and_eval(whole, convert)[0]


def train_and_eval(
    config: DataConfig, convert: Convert[R], open: Callable[[DataPart, DataConfig], Source] = open_source
) -> tuple[Records[R], Records[R]]:
    """The training and held-out records that a `data` section names.

    Raises:
        DataError: see `Reading`.
    """
    reading = Reading(config, convert, open)
    items: dict[Use, list[R]] = {"train": [], "eval": []}
    for use, record in reading:
        items[use].append(record)
    marks = reading.fingerprints
    train = Records(items["train"], reading.bad, marks["train"], reading.notes())
    return train, Records(items["eval"], [], marks["eval"])
