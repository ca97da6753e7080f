"""Existing answers that the critic is fitted on (`ppo.value_pretrain`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from alignment.config.sections import DataConfig, DataPart, Format
from alignment.data.messages import with_answer
from alignment.data.parsing import to_demonstrations, to_judgements
from alignment.data.reading import train_and_eval
from alignment.data.records import Comparison, Demonstration, Prompt
from alignment.data.row_files import BadRow
from alignment.data.sources import RowSource, open_source
from alignment.errors import ConfigError
from alignment.ratings import RatingsStore, is_ratings_file
from alignment.templates.rendering import Unrenderable, encode_conversation, encode_prompt
from ppo.config import PPOStageConfig

ROLLOUTS = "rollouts"
"""The value of `ppo.value_pretrain` for answers of the policy itself."""
MAX_ANSWERS = 1024
"""Answers that the critic is fitted on."""


class Answer(NamedTuple):
    """An existing answer, in the policy's tokens."""

    prompt: Prompt
    ids: list[int]
    response: list[int]


@dataclass(frozen=True)
class Answers:
    """The answers that the critic is fitted on, and where they came from; none if the policy writes them."""

    items: list[Answer] = field(default_factory=list)
    fingerprints: list[Mapping[str, Any]] = field(default_factory=list)
    bad: list[tuple[str, str]] = field(default_factory=list)
    """Rows that were set aside: where they stand, and why."""


def read_answers(config: PPOStageConfig, tokenizer: PreTrainedTokenizerBase) -> Answers:
    """The first `MAX_ANSWERS` different answers of `ppo.value_pretrain` that fit the run's lengths.

    Raises:
        DataError, ConfigError: it holds none.
    """
    path, limit = config.ppo.value_pretrain, config.rollout.max_new_tokens
    if path is None or path == ROLLOUTS:
        return Answers()
    section = DataConfig(train=path, eval_share=0.0, max_bad_share=config.data.max_bad_share)
    records, _ = train_and_eval(section, to_answers, _open_answers)
    longest = config.data.max_length - limit
    bad, answers = list(records.bad), dict[tuple[tuple[int, ...], tuple[int, ...]], Answer]()
    for record in records.items:
        if len(answers) == MAX_ANSWERS:
            break
        try:
            answer = _answer(record, tokenizer, limit)
        except Unrenderable as reason:
            bad.append((record.place, str(reason)))
            continue
        if len(answer.ids) > longest:
            bad.append((record.place, f"the prompt has {len(answer.ids)} tokens, and PPO's may have {longest}"))
            continue
        answers.setdefault((tuple(answer.ids), tuple(answer.response)), answer)
    if not answers:
        raise ConfigError(
            f"ppo.value_pretrain={path}: none of its {len(records.items)} answers fits data.max_length="
            f"{config.data.max_length} less rollout.max_new_tokens={limit}; raise data.max_length, or use {ROLLOUTS}"
        )
    return Answers(list(answers.values()), list(records.fingerprints), bad)


def _answer(record: Demonstration, tokenizer: PreTrainedTokenizerBase, limit: int) -> Answer:
    """A response as sampling would give it: what follows the prompt, cut at the limit.

    Raises:
        Unrenderable: by this template the conversation does not begin with its prompt, or has no answer.
    """
    prompt = Prompt(record.messages[:-1], place=record.place)
    ids, encoded = encode_prompt(tokenizer, prompt.messages), encode_conversation(tokenizer, record.messages)
    response = encoded.input_ids[len(ids) :] if encoded.input_ids[: len(ids)] == ids else []
    if not response:
        raise Unrenderable("by this chat template the answer does not follow its prompt")
    return Answer(prompt, ids, response[:limit])


def to_answers(row: Mapping[str, Any], format: Format = "auto") -> list[Demonstration]:
    """Every answer of a row: both of a pair, all of a ranking, a rated or demonstrated one."""
    if "completion" in row:  # beside it, `answer` is a column for reward functions, as in the rows of prompts
        row = {key: value for key, value in row.items() if key != "answer"}
    try:
        judged = to_judgements(row, format)
    except BadRow:
        return to_demonstrations(row, format)
    answers: list[Demonstration] = []
    for each in judged:
        texts = (each.first, each.second) if isinstance(each, Comparison) else (each.completion,)
        answers += [Demonstration(with_answer(each.prompt, text)) for text in texts]
    return answers


def _open_answers(part: DataPart, config: DataConfig) -> RowSource:
    """All completions of a ratings database, rated or not; any other source as it is."""
    if not is_ratings_file(part.path):
        return open_source(part, config)
    with RatingsStore(part.path) as store:
        mark = {"name": store.path.name, **store.fingerprint()}
        items = store.items()
    rows = (
        (f"{part.path}:item {item.id}", {"messages": [*item.prompt, {"role": "assistant", "content": each.text}]})
        for item in items
        for each in item.completions
    )
    return RowSource(rows, lambda: mark)
