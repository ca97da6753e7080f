"""One labeler at work: the rules of rating, whatever draws the items and reads the keys."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Literal

from alignment.errors import UserError
from alignment.labeling.answers import FLAGGED, PAIR, SINGLE, SKIP, LabelerAnswer, as_shown
from alignment.labeling.asking import OVERALL, Draft, Step, TextKind, heading, name_of, new_draft, taken_back
from alignment.labeling.feedback import said_and_expected
from alignment.labeling.marking import Mark
from alignment.labeling.refereeing import decided
from alignment.ratings import Assignment, Order, Progress, RatingsStore, View
from alignment.ratings.questionnaire import Questionnaire
from alignment.terminal import clean, one_line

State = Literal["rate", "wait", "end"]
WaitsFor = Literal["right", "wrong", "votes", "store"]
NOTHING_TO_RATE = "There is nothing to rate here for you yet."
NOTHING_DISPUTED = "No disputed item is left for you: you do not decide items that you have rated yourself."
LAST = "That was the last one."
NOTHING_BACK = "There is nothing to take back."
PRACTICE_STAYS = "There is nothing to take back: you were told the right answer to the one before."
WRITTEN = {"rewrites": "Rewritten, and saved with your answer", "comments": "With a comment, saved with your answer"}
RESUMED = "What you gave to this item before is still here."
NO_KEY = "That key does nothing here; ? shows the keys."


@dataclass
class Sitting:
    """What is shown to a labeler now, and what each of their decisions does.

    `state` is `rate` (an assignment waits for an answer), `wait` (until `go_on`: after feedback on a calibration item
    or a verdict, or where the answer was saved and the next item could not be fetched) or `end`. Every answer is on
    disk before the next item is claimed. `limit` ends the sitting after so many answers; skips are not counted.
    """

    store: RatingsStore
    labeler: str
    order: Order = "random"
    limit: int | None = None
    state: State = field(default="end", init=False)
    assignment: Assignment | None = field(default=None, init=False)
    progress: Progress = field(init=False)
    view: View = field(default="raw", init=False)
    """How the item is shown; a screen that renders sets it."""
    said: str = field(default="", init=False)
    """What became of the last key."""
    failed: bool = field(default=False, init=False)
    """Whether `said` tells of something that went wrong."""
    waits_for: WaitsFor = field(default="right", init=False)
    """In the state `wait`: feedback, by whether the answer was right; the votes behind a verdict; or the store."""

    def __post_init__(self) -> None:
        self.progress = self.store.progress(self.labeler, self.order)
        self._start = self.given
        self._questionnaires: dict[int | None, Questionnaire] = {}  # by version
        self._drafts: dict[int, Draft] = {}  # by rating; one that an undo left open comes back as it was
        self._next()

    @property
    def given(self) -> int:
        """Answers so far that are no skips, in earlier sittings too."""
        return self.progress.done - self.progress.skipped

    @property
    def given_now(self) -> int:
        """Answers of this sitting; below 0 when it took back more than it gave."""
        return self.given - self._start

    @property
    def draft(self) -> Draft:
        """Of the assignment on the screen."""
        assert self.assignment is not None
        rating = self.assignment.rating
        if rating not in self._drafts:
            kept = self.store.drafts.of(self.assignment)
            self._drafts[rating] = new_draft(self.questionnaire, self.assignment, kept)
        return self._drafts[rating]

    @property
    def questionnaire(self) -> Questionnaire:
        """What is asked of the assignment on the screen."""
        version = self.assignment.questions if self.assignment else None
        if version not in self._questionnaires:
            self._questionnaires[version] = self.store.settings.questionnaire(version)
        return self._questionnaires[version]

    @property
    def question(self) -> str:
        """What is asked now, and its place among the questions; empty for an item with the one choice alone."""
        if self.assignment is None:
            return ""
        draft = self.draft
        if not draft.steps:
            return self.questionnaire.overall or ""
        number, total = len(draft.given) + 1, len(draft.steps) + 1
        if draft.step is not None:
            return heading(number, total, draft.step.name, draft.step.attribute.ask)
        return heading(number, total, "", self.questionnaire.overall or OVERALL[self.assignment.kind])

    @property
    def nothing(self) -> str:
        """Why there is no item, where none was answered."""
        return NOTHING_DISPUTED if self.order == "disputed" else NOTHING_TO_RATE

    def seen(self) -> None:
        """The item is on the screen from now on; the clock of its answer starts."""
        self._seen_at = time.monotonic()

    def press(self, key: str) -> None:
        """A key that may decide: `1` to `9`, `b`, `left`, `right`, `=`, `backspace`, `enter`."""
        assert self.state == "rate" and self.assignment is not None, self.state
        kind, step = self.assignment.kind, self.draft.step
        if step is not None:
            self._answer(step, key)
        elif kind != "rank":
            answer = (PAIR if kind == "pair" else SINGLE).get(key)
            if answer is None:
                self.say(NO_KEY, failed=True)
            else:
                self.save(answer)
        elif key != "enter":
            wrong = self.draft.ranking.press(key)
            self._keep(wrong, failed=bool(wrong))
        elif self.draft.ranking.answer is None:
            left = ", ".join(map(str, self.draft.ranking.left))
            self.say(f"Not saved yet: {left} {'has' if len(left) == 1 else 'have'} no place.", failed=True)
        else:
            self.save(self.draft.ranking.answer)

    def _answer(self, step: Step, key: str) -> None:
        """A key to the attribute that is asked now; it is stored with the overall choice."""
        value = step.keys.get(key)
        if value is None:
            self.say(NO_KEY, failed=True)
            return
        self.draft.given.append(value)
        self._keep(f"{step.in_words(value)}.")

    def tag(self, key: str) -> bool:
        """A letter that may set or clear a reason; False if it is none."""
        words = self.questionnaire.tags.get(key)
        if words is not None:
            self.draft.toggle(words)
            self._keep(f"Reasons: {', '.join(self.draft.tags) or 'none'}.")
        return words is not None

    def write(self, kind: TextKind, place: int, text: str) -> None:
        """Keep a rewritten answer, or a comment on one; see `Draft.write`."""
        assert self.assignment is not None
        self.draft.write(kind, place, text, self.assignment.completions[place])
        places = sorted(self.draft.texts[kind])
        names = ", ".join(name_of(self.assignment.kind, place) or "the answer" for place in places)
        self._keep(f"{WRITTEN[kind]}: {names or 'none'}.")

    def mark(self, place: int, marks: list[Mark]) -> None:
        """Keep which passages of an answer are wrong."""
        assert self.assignment is not None
        self.draft.marks[place] = marks
        count = sum(map(len, self.draft.marks.values()))
        self._keep(f"{count} passage{'s' * (count != 1)} marked, saved with your answer.")

    def skip(self) -> None:
        """Leave the item to others."""
        self.save(SKIP)

    def save(self, answer: LabelerAnswer) -> None:
        """Store the answer and go on; if that fails the item stays, with all that was typed."""
        assignment, draft = self.assignment, self.draft
        assert assignment is not None
        try:
            self.store.submit(
                assignment,
                answer.choice,
                time.monotonic() - self._seen_at,
                strength=answer.strength,
                comment=draft.comment,
                flags=answer.flags + (FLAGGED,) * draft.flagged,
                ranks_shown=answer.ranks,
                score=answer.score,
                view=self.view,
                answers=draft.answers,
            )
            feedback = self.store.feedback(assignment)
            shown = decided(self.store, assignment)
        except UserError as error:  # the disk is full, or it was answered in another window meanwhile
            self._next(f"Not saved: {clean(str(error))}", failed=True)
            return
        del self._drafts[assignment.rating]
        if shown is not None:
            self.progress = self.store.progress(self.labeler, self.order)
            self._wait("votes", f"Your verdict: {shown.verdict}. The votes: {'; '.join(shown.votes + shown.comments)}.")
            return
        if feedback is None:
            self._next("Skipped." if answer == SKIP else f"Saved: {answer}.")
            return
        self.progress = self.store.progress(self.labeler, self.order)
        self._wait("right" if feedback.right else "wrong", said_and_expected(answer, feedback))

    def go_on(self) -> None:
        """From the state `wait` to the next item."""
        assert self.state == "wait"
        self._next()

    def undo(self) -> None:
        """Take the last key to the questions of this item back, or else the last answer, to be given anew."""
        if self.state == "rate" and self.draft.given:
            value = self.draft.given.pop()
            assert self.draft.step is not None
            self._keep(f"Taken back: {self.draft.step.in_words(value)}.")
            return
        try:
            former = self.store.last_rating(self.labeler, self.order)
            undone = self.store.undo(self.labeler, self.order)
            self.progress = self.store.progress(self.labeler, self.order)
        except UserError as error:
            self.say(f"Not taken back: {clean(str(error))}", failed=True)
            return
        if undone is None or former is None:
            self.say(NOTHING_BACK if former is None else PRACTICE_STAYS, failed=True)
            return
        self._show(undone)
        self._drafts[undone.rating] = new_draft(self.questionnaire, undone, taken_back(former, undone))
        self._keep(f"Taken back, please answer again. Your answer was: {as_shown(former, undone)}.")

    def flag(self) -> None:
        """Set or clear the mark that somebody should look at the item."""
        self.draft.flagged = not self.draft.flagged
        self._keep("Flagged: somebody will look at this item." if self.draft.flagged else "The flag is off.")

    def comment(self, text: str) -> None:
        """Keep a note with the item; an empty one clears it."""
        self.draft.comment = one_line(text)
        self._keep("The comment is kept and saved with your answer." if self.draft.comment else "No comment.")

    def _keep(self, said: str, failed: bool = False) -> None:
        """Write what was given to the item so far to disk, so that a kill loses none of it; then tell the labeler."""
        assert self.assignment is not None
        try:
            self.store.drafts.keep(self.assignment, self.draft.kept)
        except UserError as error:
            said, failed = f"{said} It is not on disk yet: {clean(str(error))}", True
        self.say(said, failed)

    def say(self, text: str, failed: bool = False) -> None:
        """Tell the labeler something."""
        self.said, self.failed = text, failed

    def _next(self, said: str = "", failed: bool = False) -> None:
        """Claim what comes next; a store that cannot even do that leaves what is on the screen."""
        try:
            self.progress = self.store.progress(self.labeler, self.order)
            reached = self.limit is not None and self.given_now >= self.limit
            assignment = None if reached else self.store.claim(self.labeler, order=self.order)
        except UserError as error:
            if self.assignment is None:
                raise
            if failed:  # the item is still open
                self.say(said, failed)
            else:
                self._wait("store", f"{said} The next item cannot be fetched: {clean(str(error))}".strip())
            return
        self._show(assignment, said, failed)

    def _wait(self, what: WaitsFor, said: str) -> None:
        self.state, self.waits_for = "wait", what
        self.say(said, failed=what in ("wrong", "store"))

    def _show(self, assignment: Assignment | None, said: str = "", failed: bool = False) -> None:
        if assignment != self.assignment:
            self.assignment, self.view = assignment, "raw"
            if assignment and not said and assignment.rating not in self._drafts and self.draft.kept:
                said = RESUMED
        self.state = "end" if assignment is None else "rate"
        self.say(said, failed)
        self.seen()


def position(progress: Progress) -> str:
    """Where the labeler is: `37 of 200, ~21 s each, 57 min left`."""
    if progress.done >= progress.total:
        return f"{progress.done} of {progress.total}"
    parts = [f"{progress.done + 1} of {progress.total}"]
    if progress.seconds is not None:
        left = (progress.total - progress.done) * progress.seconds
        parts.append(f"~{max(1, progress.seconds):.0f} s each")
        parts.append(_duration(left))
    return ", ".join(parts)


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes < 1:
        return "under a minute left"
    return f"{minutes} min left" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min left"
