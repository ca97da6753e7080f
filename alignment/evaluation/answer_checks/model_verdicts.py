"""A chat model that is asked about one answer at a time."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed

from alignment.errors import UserError
from alignment.evaluation.replies import Choice, ask_choice
from alignment.generation.chat_models import ChatModel
from alignment.terminal import one_line, progress

AT_A_TIME = 4
"""Prompts for each request at a time, after which judgments are put on disk."""


class ModelVerdicts:
    """Asks a chat model to choose; `label` is as `--judge-model` names it."""

    def __init__(self, model: ChatModel, label: str) -> None:
        self._model = model
        self.label, self.identity = label, model.identity
        self.at_a_time = AT_A_TIME * model.concurrency

    def choices(self, texts: Sequence[str], choice: Choice, name: str) -> list[str | None]:
        """Its choice for each text, in their order; None where it gave no reply that could be read.

        Raises:
            UserError: its server refuses, or no reply at all could be read.
        """
        found: list[str | None] = [None] * len(texts)
        with (
            progress(f"judgments of {one_line(self._model.label)}", len(texts)) as line,
            ThreadPoolExecutor(self._model.concurrency) as pool,
        ):
            asked = {pool.submit(ask_choice, self._model, text, choice, name): at for at, text in enumerate(texts)}
            try:
                for future in as_completed(asked):
                    found[asked[future]] = future.result()
                    line.advance()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        if texts and not any(found):
            raise UserError(
                f"{name}: no reply could be read, of {len(texts)} answers; expected a JSON object with "
                f'"{choice.key}"; name a larger model'
            )
        return found
