"""Drawing the answers of a comparison: each side answers each prompt once, with the same seeds."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from transformers import PreTrainedModel

from alignment.config.sections import DataConfig, ModelConfig
from alignment.data.parsing import to_demonstrations
from alignment.data.reading import read_records
from alignment.data.records import Prompt
from alignment.errors import UserError
from alignment.evaluation.answers import (
    AnswerSettings,
    AnswersFile,
    SideAnswer,
    is_answers_file,
    prompt_id,
    read_answers,
)
from alignment.evaluation.score_judges import RewardModelScorer
from alignment.evaluation.sides import SideSpec
from alignment.generation.chat_models import Endpoint, Failure, ReplySampling
from alignment.generation.engine import complete
from alignment.models.lengths import check_prompts
from alignment.models.policies import load_policy
from alignment.models.sources import find_model
from alignment.models.tokenizers import fit_embeddings, load_tokenizer
from alignment.registry import Registry
from alignment.seeds import stream_seed
from alignment.templates.rendering import Message, encode_prompt
from alignment.terminal import ProgressLine, one_line, progress

KEY_VARIABLE = "OPENAI_API_KEY"
WINDOW = 8
"""Batches that are sorted by length together, which leaves little padding."""
Save = Callable[[Sequence[Prompt], Sequence[SideAnswer]], None]


@dataclass(frozen=True)
class DrawOptions:
    """What does not change the answers, up to rounding, and so may change between two runs of one comparison."""

    batch_size: int = 64
    concurrency: int = 8
    key: str | None = None
    """Of the endpoints; it is neither printed nor stored."""


class Side(Protocol):
    """Somebody who answers prompts."""

    name: str
    identity: dict[str, Any]
    """Its `model`, `digest` (None: unknown) and prompting, for the record."""

    def check(self, prompts: Sequence[Prompt]) -> None:
        """Find what would stop it, before anything is drawn."""
        ...

    def draw(self, prompts: Sequence[Prompt], known: set[str], save: Save) -> None:
        """Answer the prompts whose id is not `known`; `save` is called with each batch."""
        ...


def open_side(spec: SideSpec, registry: Registry, settings: AnswerSettings, options: DrawOptions) -> Side:
    """The side that a spec names.

    Raises:
        UserError: there is no such model, file or address.
    """
    if spec.is_endpoint:
        return EndpointSide(spec, settings, options)
    if (path := spec.answers_file) is not None:
        return FileSide(spec, path)
    return ModelSide(spec, registry, settings, options)


def named(sides: Sequence[Side]) -> list[Side]:
    """The sides, none of which has the name of another.

    Raises:
        UserError: two have.
    """
    seen: dict[str, Side] = {}
    for side in sides:
        if side.name in seen:
            raise UserError(f"two sides are called {side.name}; name them apart: one={side.name} two={side.name}")
        seen[side.name] = side
    return list(sides)


def draw(file: AnswersFile, sides: Sequence[Side], prompts: Sequence[Prompt]) -> None:
    """Draw the answers that the file lacks; each batch is on disk before the next one is drawn.

    Raises:
        UserError: a side cannot answer; what was drawn before is kept.
    """
    for side in sides:
        side.check(prompts)
    for side in sides:
        file.add_side(side.name, side.identity)
    ids = [prompt_id(prompt.messages) for prompt in prompts]
    for side in sides:
        known = set(file.content.answers.get(side.name, {}))
        missing = sum(key not in known for key in ids)
        if not missing:
            continue
        with progress(f"answers of {one_line(side.name)}", len(ids)) as line:
            line.advance(len(ids) - missing)
            side.draw(prompts, known, _saver(file, side.name, known, line))


def _saver(file: AnswersFile, name: str, known: set[str], line: ProgressLine) -> Save:
    def save(prompts: Sequence[Prompt], answers: Sequence[SideAnswer]) -> None:
        file.add(name, prompts, answers)
        line.advance(sum(prompt_id(prompt.messages) not in known for prompt in prompts))

    return save


class ModelSide:
    """A policy of the registry, a folder or the hub, sampled here."""

    def __init__(self, spec: SideSpec, registry: Registry, settings: AnswerSettings, options: DrawOptions) -> None:
        self._spec, self._settings, self._options = spec, settings, options
        self._source = find_model(spec.model, registry, role="policy")
        self._config = ModelConfig(name=spec.model, template=spec.template, eos_token=spec.eos_token)
        self._tokenizer = load_tokenizer(self._source, self._config)
        self._chooser = None if spec.chosen_by is None else RewardModelScorer(spec.chosen_by, registry, kept=True)
        self.name = spec.name or self._source.label
        digest = self._source.digest or self._source.as_base().digest
        self.identity: dict[str, Any] = {
            "kind": "model", "model": self._source.label, "digest": digest, **spec.prompting
        }  # fmt: skip
        if self._chooser is not None:
            self.identity["chosen_by_digest"] = self._chooser.identity.digest

    def check(self, prompts: Sequence[Prompt]) -> None:
        messages = [self._spec.messages(prompt) for prompt in prompts]
        check_prompts(self._source.config_path, self._tokenizer, messages, self._settings.max_new_tokens)

    def draw(self, prompts: Sequence[Prompt], known: set[str], save: Save) -> None:
        import torch

        policy = load_policy(self._source, self._config)
        fit_embeddings(policy, self._tokenizer)
        on_gpu = torch.cuda.is_available()
        policy.to("cuda" if on_gpu else "cpu")
        asked = [self._spec.messages(prompt) for prompt in prompts]
        lengths = [len(encode_prompt(self._tokenizer, messages)) for messages in asked]
        ids = [prompt_id(prompt.messages) for prompt in prompts]
        for batch in _batches(lengths, self._options.batch_size):
            if all(ids[index] in known for index in batch):
                continue
            # The whole batch is drawn, also where some of it is known: rounding depends on the batch.
            if on_gpu:
                torch.cuda.reset_peak_memory_stats()
            started = time.perf_counter()
            numbers = [int(ids[index], 16) for index in batch]
            drawn = [
                self._draw(policy, [asked[index] for index in batch], numbers, n) for n in range(self._spec.best_of)
            ]
            batch_prompts = [prompts[index] for index in batch]
            best = self._best(batch_prompts, drawn)
            latency = time.perf_counter() - started
            seconds, peak = latency / len(batch), torch.cuda.max_memory_allocated() if on_gpu else None
            save(
                batch_prompts,
                [
                    replace(answer, seconds=round(seconds, 6), latency=round(latency, 4), peak_bytes=peak)
                    for answer in best
                ],
            )

    def _draw(
        self, policy: PreTrainedModel, asked: Sequence[Sequence[Message]], numbers: Sequence[int], repeat: int
    ) -> list[SideAnswer]:
        """One answer per prompt; each `repeat` draws others, the first those of a side without `best_of`."""
        drawn = complete(
            policy,
            self._tokenizer,
            asked,
            max_new_tokens=self._settings.max_new_tokens,
            temperature=self._settings.temperature,
            batch_size=self._options.batch_size,
            seed=stream_seed("compare", self._settings.seed, *([repeat] if repeat else [])),
            indices=numbers,
        )
        return [SideAnswer(each.text, each.ended, len(each.ids)) for each in drawn]

    def _best(self, prompts: Sequence[Prompt], drawn: Sequence[Sequence[SideAnswer]]) -> Sequence[SideAnswer]:
        """The answer to each prompt that scores highest; of equal ones the first."""
        if self._chooser is None:
            return drawn[0]
        scores = [self._chooser.scores(prompts, answers) for answers in drawn]
        best = [max(range(len(drawn)), key=lambda n: scores[n][place]) for place in range(len(prompts))]
        return [drawn[n][place] for place, n in enumerate(best)]


def _batches(lengths: Sequence[int], size: int) -> Iterator[list[int]]:
    """Places of prompts in batches of similar length."""
    for start in range(0, len(lengths), WINDOW * size):
        window = range(start, min(start + WINDOW * size, len(lengths)))
        order = sorted(window, key=lambda index: -lengths[index])
        for first in range(0, len(order), size):
            yield order[first : first + size]


class EndpointSide:
    """A model behind an OpenAI-compatible address."""

    def __init__(self, spec: SideSpec, settings: AnswerSettings, options: DrawOptions) -> None:
        self._spec, self._settings = spec, settings
        self._model = open_endpoint(spec.model, options)
        self.name = spec.name or self._model.label
        self.identity: dict[str, Any] = {
            "kind": "endpoint", "model": self._model.identity, "digest": None, **spec.prompting
        }  # fmt: skip

    def check(self, prompts: Sequence[Prompt]) -> None:
        for prompt in prompts:
            self._spec.messages(prompt)

    def draw(self, prompts: Sequence[Prompt], known: set[str], save: Save) -> None:
        waiting = [prompt for prompt in prompts if prompt_id(prompt.messages) not in known]
        failures = []
        last = time.perf_counter()
        with ThreadPoolExecutor(self._model.concurrency) as pool:
            asked = {pool.submit(self._answer, prompt): prompt for prompt in waiting}
            try:
                for future in as_completed(asked):
                    answer, now = future.result(), time.perf_counter()
                    if isinstance(answer, Failure):
                        failures.append(answer.reason)
                    else:
                        save([asked[future]], [replace(answer, seconds=round(now - last, 6))])
                        last = now
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        if failures:
            raise UserError(
                f"{self.name} did not answer {len(failures)} of {len(prompts)} prompts ({failures[0]}); the same "
                "command asks for these alone"
            )

    def _answer(self, prompt: Prompt) -> SideAnswer | Failure:
        seed = stream_seed("compare", self._settings.seed, int(prompt_id(prompt.messages), 16)) % 2**31
        started = time.perf_counter()
        sampling = ReplySampling(self._settings.temperature, seed, self._settings.max_new_tokens)
        (reply,) = self._model.ask([self._spec.messages(prompt)], sampling)
        if isinstance(reply, Failure):
            return reply
        latency = round(time.perf_counter() - started, 4)
        return SideAnswer(reply.text.strip(), reply.whole, reply.tokens_out, latency=latency)


def open_endpoint(address: str, options: DrawOptions) -> Endpoint:
    """The chat model behind `http://host/v1#model`.

    Raises:
        UserError: the address names no model, or is none.
    """
    url, _, model = address.partition("#")
    if not model:
        raise UserError(f"{address}: the model's name is missing; write it behind a #, as in {url}#my-model")
    key = options.key or os.environ.get(KEY_VARIABLE, "").strip() or None
    return Endpoint(url, model, key, options.concurrency, option="side or judge")


class FileSide:
    """Answers that stand in a file: one of this command's own (`FILE#side`), or rows with a prompt and its answer."""

    def __init__(self, spec: SideSpec, path: Path) -> None:
        if spec.is_prompted:
            raise UserError(f"{path}: its answers are given already; take {', '.join(spec.prompting)} out")
        self._path = path
        wanted = spec.model.partition("#")[2]
        if is_answers_file(path):
            content = read_answers(path)
            if not wanted and len(content.answers) > 1:
                names = ", ".join(content.answers)
                raise UserError(f"{path} has the answers of {names}; name one: {path}#{next(iter(content.answers))}")
            wanted = wanted or next(iter(content.answers))
            if wanted not in content.answers:
                raise UserError(f"{path} has no answers of {wanted}; it has those of {', '.join(content.answers)}")
            assert content.settings is not None
            self._answers = content.answers[wanted]
            self.identity: dict[str, Any] = {**content.sides[wanted], "drawn": asdict(content.settings)}
            self.name = spec.name or wanted
            return
        rows = read_records(path, to_demonstrations, DataConfig(train=str(path))).items
        self._answers = {prompt_id(row.messages[:-1]): SideAnswer(row.messages[-1]["content"].strip()) for row in rows}
        content_hash = hashlib.sha256(path.read_bytes()).hexdigest()
        self.identity = {"kind": "file", "model": str(path), "digest": None, "sha256": content_hash}
        self.name = spec.name or path.stem

    def check(self, prompts: Sequence[Prompt]) -> None:
        missing = [prompt for prompt in prompts if prompt_id(prompt.messages) not in self._answers]
        if missing:
            text = one_line(missing[0].messages[-1]["content"])[:60]
            raise UserError(
                f"{self._path} has no answer to {len(missing)} of {len(prompts)} prompts, as to {text!r}; its prompts "
                "must be the same messages"
            )

    def draw(self, prompts: Sequence[Prompt], known: set[str], save: Save) -> None:
        save(prompts, [self._answers[prompt_id(prompt.messages)] for prompt in prompts])
