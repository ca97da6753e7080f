"""Small contests of answers, for judges that need no model."""

from __future__ import annotations

from collections.abc import Sequence

from alignment.data.records import Prompt
from alignment.evaluation.answers import SideAnswer, prompt_id
from alignment.evaluation.judgments import AnsweredPrompts, JudgeIdentity, Judgment
from alignment.templates.rendering import Message


def question(text: str, **columns: object) -> Prompt:
    return Prompt((Message(role="user", content=text),), columns)


def contest(prompts: Sequence[Prompt], **answers: Sequence[str | SideAnswer]) -> AnsweredPrompts:
    """A contest of sides by name; their answers stand in the order of the prompts."""
    asked = {prompt_id(prompt.messages): prompt for prompt in prompts}
    return AnsweredPrompts(
        asked,
        list(answers),
        {
            side: {
                key: text if isinstance(text, SideAnswer) else SideAnswer(text)
                for key, text in zip(asked, texts, strict=True)
            }
            for side, texts in answers.items()
        },
    )


def said(judge: JudgeIdentity, found: AnsweredPrompts, outcomes: Sequence[float]) -> list[Judgment]:
    """Judgments of a contest of two sides, in the order of the prompts."""
    return [bout.judged(judge, outcome) for bout, outcome in zip(found.bouts(), outcomes, strict=True)]
