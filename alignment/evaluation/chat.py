"""A conversation with one model, or with two whose names stay hidden until a person has said which answer is better."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import numpy as np
import torch

from alignment.generation.engine import TransformersEngine
from alignment.generation.sampling import Sampling, has_ended, response_text
from alignment.models.lengths import LengthError, positions
from alignment.models.policies import load_policy
from alignment.models.sources import ModelSource
from alignment.models.tokenizers import load_tokenizer, vocabulary_of
from alignment.ratings import Completion, RatingsStore
from alignment.seeds import stream_seed
from alignment.templates.ends import end_token_ids
from alignment.templates.rendering import Message, encode_prompt

Heard = Callable[[str], bool]
"""Gets an answer as it grows; true ends it."""


@dataclass
class ChatSettings:
    """How answers are drawn; a person may change it between two questions."""

    temperature: float = 0.7
    max_new_tokens: int = 256
    seed: int = 0


class Speaker:
    """A loaded policy that answers a conversation.

    Raises:
        ModelError, AdapterError, TemplateError: the model cannot be loaded, or has no chat template.
    """

    def __init__(self, source: ModelSource) -> None:
        self.label = source.label
        self._tokenizer = load_tokenizer(source)
        self._context = (positions(source.config_path) or (None,))[0]
        self._policy = load_policy(source).to("cuda" if torch.cuda.is_available() else "cpu").eval()
        self._answered = 0
        # The engine's first call tries its ways to sample, which must not be heard as an answer.
        first = [Message(role="user", content="Hello.")]
        TransformersEngine(self._policy).generate([encode_prompt(self._tokenizer, first)], [0], self._sampling(1, 0.0))

    def answer(self, messages: Sequence[Message], settings: ChatSettings, heard: Heard) -> Completion:
        """Draw the next turn. Each call draws with another seed, so an answer can be drawn again.

        Raises:
            LengthError: the conversation leaves no room in the model's context.
            Unrenderable: the template refuses it.
        """
        row = encode_prompt(self._tokenizer, messages)
        room = settings.max_new_tokens if self._context is None else self._context - len(row)
        if room < 1:
            raise LengthError(
                f"the conversation has {len(row)} tokens, and {self.label} reads {self._context}: begin a new one"
            )
        sampling = self._sampling(min(settings.max_new_tokens, room), settings.temperature)
        seed = stream_seed("chat", settings.seed, self._answered)
        self._answered += 1

        def hear(tokens: Sequence[int]) -> bool:
            # A character of several tokens is decoded as U+FFFD until the last of them comes.
            return heard(response_text(tokens, sampling, self._tokenizer).rstrip("\ufffd").strip())

        engine = TransformersEngine(self._policy, self._tokenizer, hear)
        tokens = engine.generate([row], [seed], sampling).responses[0]
        text = response_text(tokens, sampling, self._tokenizer).strip()
        return Completion(text, has_ended(tokens, sampling, self._tokenizer), self.label, len(tokens))

    def _sampling(self, max_new_tokens: int, temperature: float) -> Sampling:
        ends, pad = end_token_ids(self._tokenizer), self._tokenizer.pad_token_id
        return Sampling(max_new_tokens, temperature, ends, pad, 1, vocabulary=vocabulary_of(self._tokenizer))


@dataclass
class Dialogue:
    """What was said, and the answers to the last question that wait for a choice.

    Two speakers are shown in an order that is drawn anew for each question. The history goes on with the better answer,
    or with the first one shown after a tie or a skip.
    """

    speakers: Sequence[Speaker]
    settings: ChatSettings
    system: str = ""
    turns: list[Message] = field(default_factory=list)
    order: list[int] = field(default_factory=lambda: [0])
    """`speakers[order[0]]` is shown first."""
    waiting: list[Completion] = field(default_factory=list)
    """The answers in the order shown, while one of two has to be chosen."""
    _asked: int = 0
    _shown_at: float = 0.0

    def messages(self) -> list[Message]:
        """The conversation with the system prompt, as the speakers read it."""
        return [*([Message(role="system", content=self.system)] if self.system else []), *self.turns]

    def ask(self, question: str) -> None:
        """Add a question, and draw the order of the speakers."""
        self.turns.append(Message(role="user", content=question))
        shuffled = np.random.default_rng(stream_seed("chat order", self.settings.seed, self._asked))
        self._asked += 1
        self.order = [int(index) for index in shuffled.permutation(len(self.speakers))]

    def answer(self, heard: Callable[[int, str], bool]) -> None:
        """Let the speakers answer, one after the other.

        Args:
            heard: gets the place on the screen and the answer so far; true ends that answer.
        """
        answers = [
            self.speakers[index].answer(self.messages(), self.settings, partial(heard, place))
            for place, index in enumerate(self.order)
        ]
        self._shown_at = time.monotonic()
        if len(answers) == 1:
            self._go_on(answers[0])
        else:
            self.waiting = answers

    def choose(self, choice: Literal["left", "right", "tie", "skip"], store: RatingsStore | None, labeler: str) -> str:
        """Choose between the answers that wait; the choice goes into the store. Returns who they were by, and whether
        the choice was kept.

        A skip is not stored, and neither is a choice between equal texts.
        """
        first, second = self.waiting
        lost = "you skipped" if choice == "skip" else "the answers are equal" if first.text == second.text else ""
        kept = f"not kept, since {lost}" if lost else "not kept: there is no --db FILE"
        if store is not None and not lost:
            kept = f"kept in {store.path.name}"
            answers = sorted(self.waiting, key=lambda each: str(each.model))
            prompt = [{"role": turn["role"], "content": turn["content"]} for turn in self.messages()]
            item = store.add_item(prompt, answers)
            order = [answers.index(first), answers.index(second)]
            preferred = {"left": order[0], "right": order[1]}.get(choice)
            stored = "tie" if preferred is None else ("first", "second")[preferred]
            seconds = time.monotonic() - self._shown_at
            store.import_rating(item, labeler, stored, order_shown=order, seconds=seconds, why="random")
        self._go_on(second if choice == "right" else first)
        return f"left: {first.model}, right: {second.model}; {kept}"

    def take_back(self) -> str:
        """Remove the last question with its answer, and return it; empty if nothing was asked."""
        self.waiting = []
        while self.turns and self.turns[-1]["role"] != "user":
            self.turns.pop()
        return self.turns.pop()["content"] if self.turns else ""

    def clear(self) -> None:
        """Begin a new conversation under the same system prompt."""
        self.turns, self.waiting = [], []

    def _go_on(self, answer: Completion) -> None:
        self.turns.append(Message(role="assistant", content=answer.text))
        self.waiting = []
