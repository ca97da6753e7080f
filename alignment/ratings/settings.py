"""The settings of a ratings file: guideline and questions with their versions, controls, and what its items are for."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

from alignment.errors import UserError
from alignment.ratings.choosing import ControlShares
from alignment.ratings.file import RatingsFile
from alignment.ratings.imported_questions import described, missing_question, questions_of
from alignment.ratings.questionnaire import Answers, Questionnaire, as_kept
from alignment.terminal import clean

WordingKind = Literal["guideline", "questions"]
WORDING_KINDS: tuple[WordingKind, ...] = get_args(WordingKind)


class Wording(NamedTuple):
    """One version of the guideline or of the questions, numbered from 1, and when it was set."""

    version: int
    at: float
    text: str


class StoreSettings:
    """The settings of one ratings file; each assignment is one transaction and one event."""

    def __init__(self, file: RatingsFile) -> None:
        self._file = file

    @property
    def guideline(self) -> str:
        """The guideline that labelers read; empty if there is none. Another text is its next version."""
        versions = self.wordings("guideline")
        return versions[-1].text if versions else ""

    @guideline.setter
    def guideline(self, text: str) -> None:
        self._reword("guideline", clean(text))

    def questionnaire(self, version: int | None) -> Questionnaire:
        """What labelers are asked beside the choice by a version of the questions; nothing by None."""
        if version is None:
            return Questionnaire()
        texts = {wording.version: wording.text for wording in self.wordings("questions")}
        return Questionnaire.model_validate_json(texts.get(version) or "{}")

    def ask(self, questionnaire: Questionnaire) -> None:
        """Set what labelers are asked from now on. Another questionnaire than the last one is its next version."""
        self._reword("questions", as_kept(questionnaire))

    def declare(self, answered: Sequence[tuple[int, str, Answers]]) -> list[str]:
        """Find the version of the questions that imported answers fit, or make one of them, and note it.

        Args:
            answered: item, labeler and answers of each.

        Returns:
            What is to be said about it, in sentences.

        Raises:
            UserError: this file asks other questions.
        """
        if not answered:
            return []
        with self._file.transaction():
            try:
                asked = questions_of([answers for _, _, answers in answered])
            except ValueError as error:
                reason = str(error).partition(": ")[2] or str(error)
                return [f"the answers to questions are kept without a version of the questions: {reason}"]
            versions = self.wordings("questions")
            known = [(each.version, self.questionnaire(each.version)) for each in reversed(versions)]
            fitting = next((version for version, here in known if missing_question(here, asked) is None), None)
            if fitting is None and known and known[0][1] != Questionnaire():
                raise UserError(
                    f"{self._file.path}: found {missing_question(known[0][1], asked)} in the file to import, which the "
                    "questions here do not have; add it with `alignment rate settings --questions FILE`, or import "
                    "into a new --db"
                )
            if fitting is None:
                self.ask(asked)
                fitting = len(versions) + 1
            for item, labeler, _ in answered:
                self._file.db.execute(
                    "UPDATE rating SET questions = ? WHERE item = ? AND labeler = ? AND why = 'import'"
                    " AND questions IS NULL",
                    (fitting, item, labeler),
                )
        return [] if known else [f"questions were made of the answers: {described(asked)}"]

    @property
    def calibration(self) -> int:
        """Number of gold items with feedback that each labeler gets first."""
        return int(self._file.meta("calibration", "0"))

    @calibration.setter
    def calibration(self, count: int) -> None:
        if count < 0:
            raise UserError(f"calibration is how many gold items come first: expected 0 or more, found {count}")
        self._set("calibration", str(count))

    @property
    def gold_share(self) -> float:
        """Fraction of gold items among a labeler's items, as long as there are unseen ones."""
        return float(self._file.meta("gold_share", "0.05"))

    @gold_share.setter
    def gold_share(self, share: float) -> None:
        self._set_share("gold_share", share)

    @property
    def repeat_share(self) -> float:
        """Fraction of a labeler's items that repeat their earlier pairs with the sides flipped."""
        return float(self._file.meta("repeat_share", "0.03"))

    @repeat_share.setter
    def repeat_share(self, share: float) -> None:
        self._set_share("repeat_share", share)

    @property
    def comparison(self) -> str:
        """The command of `alignment compare` whose answers the items are; empty for a file that is none of it."""
        return self._file.meta("comparison", "")

    @comparison.setter
    def comparison(self, command: str) -> None:
        self._set("comparison", clean(command))

    def shares(self) -> ControlShares:
        """The settings that decide which items are controls."""
        return ControlShares(self.calibration, self.gold_share, self.repeat_share)

    def wordings(self, kind: WordingKind) -> list[Wording]:
        """All versions of the guideline or of the questions, oldest first; the last one holds."""
        rows = self._file.db.execute(
            "SELECT version, at, text FROM wording WHERE kind = ? ORDER BY version", (kind,)
        ).fetchall()
        return [Wording(*row) for row in rows]

    def take_wordings(self, kind: WordingKind, wordings: Sequence[tuple[float, str]]) -> dict[int, int]:
        """Take over the versions that another file had, unless this one has some already.

        Args:
            wordings: time and text of each version of the other file, oldest first.

        Returns:
            The version here, by the version there, of each text that is here too.
        """
        with self._file.transaction():
            here = {wording.text: wording.version for wording in self.wordings(kind)}
            if here:
                return {version: here[text] for version, (_, text) in enumerate(wordings, 1) if text in here}
            for version, (at, text) in enumerate(wordings, 1):
                self._file.db.execute("INSERT INTO wording VALUES(?, ?, ?, ?)", (kind, version, at, text))
                self._file.log(time.time(), "", None, "setting", {kind: text})
        return {version: version for version in range(1, len(wordings) + 1)}

    def _reword(self, kind: WordingKind, text: str) -> None:
        with self._file.transaction():
            versions = self.wordings(kind)
            if text == (versions[-1].text if versions else ""):
                return
            now = time.time()
            self._file.db.execute("INSERT INTO wording VALUES(?, ?, ?, ?)", (kind, len(versions) + 1, now, text))
            self._file.log(now, "", None, "setting", {kind: text})

    def _set_share(self, name: str, share: float) -> None:
        if not 0 <= share <= 0.5:
            raise UserError(f"{name}: expected a number from 0 to 0.5, found {share}")
        self._set(name, repr(float(share)))

    def _set(self, name: str, value: str) -> None:
        with self._file.transaction():
            self._file.set_meta(name, value)
            self._file.log(time.time(), "", None, "setting", {name: value})
