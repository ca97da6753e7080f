"""People's votes on the answers of a comparison: blind items in a ratings file, and what was said of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from alignment.data.records import Prompt
from alignment.evaluation.answers import prompt_id
from alignment.evaluation.judgments import AnsweredPrompts, Bout, JudgeIdentity, Judgment, KnownJudgments, Measure
from alignment.ratings import Completion, RatingsStore
from alignment.ratings.pairs import choice_of
from alignment.ratings.records import NO_VOTES, Rating

PEOPLE = JudgeIdentity("people", "people")
SIMULATED = JudgeIdentity("simulated-people", "people")
FEW_LABELERS = 10
"""With fewer, labelers who lean to one side shift a win rate by more than its interval over prompts says."""


@dataclass(frozen=True)
class VoteCounts:
    """How far the rating is: items that are asked, those with a vote, and the votes."""

    items: int
    rated: int
    votes: int


class PeopleJudge:
    """The votes in a ratings file; pairs that it lacks are added to it, as `alignment sample` adds them.

    Gold items, calibration and repeats do not count: they measure the labelers. Verdicts of referees do not count:
    where labelers differ, the result says so. A vote on an item that a labeler got because a reward model was unsure
    of it does not count either, since such items are no random sample. Votes of simulated labelers count only where
    no person has voted, and the judge is then called what it is.

    Args:
        db: the ratings file; made if it is missing.
        labels: the models' references by side, which the file keeps and no labeler sees.
        need: how many labelers shall rate each pair.
    """

    def __init__(self, db: Path, labels: dict[str, str], need: int = 1) -> None:
        self.identity = PEOPLE
        self.notes: list[str] = []
        self.measures: list[Measure] = []
        self.labelers: dict[str, str] = {}
        """Name of each labeler's hash, for the screen."""
        self.counts = VoteCounts(0, 0, 0)
        self._db, self._labels, self._need = db, labels, need

    def judge(self, contest: AnsweredPrompts, known: KnownJudgments) -> list[Judgment]:
        """All votes on the pairs, in the order in which they were given."""
        bouts = [bout for bout in contest.bouts() if not bout.is_same]
        same = sum(1 for bout in contest.bouts() if bout.is_same)
        with RatingsStore(self._db, create=True) as store:
            with store.transaction():
                for bout in bouts:
                    self._add(store, bout)
            judgments = self._votes(store, bouts)
        rated = {(judgment.prompt, judgment.a, judgment.b) for judgment in judgments}
        self.counts = VoteCounts(len(bouts), len(rated), len(judgments))
        if same:
            self.notes.append(f"{same} pairs with the same answer on both sides are not asked")
        return judgments

    def _add(self, store: RatingsStore, bout: Bout) -> None:
        answers = [
            Completion(answer.text, answer.ended, self._labels[side], answer.tokens)
            for side, answer in ((bout.a, bout.first), (bout.b, bout.second))
        ]
        store.add_item(_shown(bout.prompt), answers, self._need, dict(bout.prompt.columns))

    def _votes(self, store: RatingsStore, bouts: Sequence[Bout]) -> list[Judgment]:
        wanted: dict[tuple[str, frozenset[str]], list[Bout]] = {}
        for bout in bouts:
            key = prompt_id(_shown(bout.prompt)), frozenset((bout.first.text, bout.second.text))
            wanted.setdefault(key, []).append(bout)
        items = {item.id: item for item in store.items() if item.gold is None and item.kind != "single"}
        votes: list[tuple[float, Bout, float, str]] = []
        uncertain = 0
        for rating in store.ratings():
            item = items.get(rating.item)
            if item is None or rating.why in NO_VOTES:
                continue
            texts = [completion.text for completion in item.completions]
            asked = prompt_id(item.prompt)
            for first in range(len(texts)):
                for second in range(first + 1, len(texts)):
                    for bout in wanted.get((asked, frozenset((texts[first], texts[second]))), ()):
                        if rating.why == "uncertain":
                            uncertain += 1
                        elif (vote := _vote(rating, first, second)) is not None:
                            outcome = vote if texts[first] == bout.first.text else 1.0 - vote
                            votes.append((rating.done_at, bout, outcome, rating.labeler))
        if uncertain:
            self.notes.append(
                f"{uncertain} votes are left out: their items were chosen for a reward model's doubt, not at random"
            )
        programs = store.people.simulated()
        real = [vote for vote in votes if vote[-1] not in programs]
        if real and len(real) < len(votes):
            self.notes.append(f"{len(votes) - len(real)} votes of simulated labelers are left out")
        self.identity = PEOPLE if real or not votes else SIMULATED
        self.labelers = {store.people.labeler_hash(name): name for name in dict.fromkeys(vote[-1] for vote in votes)}
        hashes = {name: who for who, name in self.labelers.items()}
        voters = len({vote[-1] for vote in real or votes})
        if 0 < voters < FEW_LABELERS:
            whom = "one labeler" if voters == 1 else f"{voters} labelers"
            self.notes.append(f"intervals are over prompts: they speak of the {whom} who voted, not of others")
        return [
            bout.judged(self.identity, outcome, labeler=hashes[name])
            for _, bout, outcome, name in sorted(real or votes, key=lambda vote: vote[0])
        ]


def _shown(prompt: Prompt) -> list[dict[str, str]]:
    """The messages as a ratings file has them."""
    return [{"role": message["role"], "content": message["content"]} for message in prompt.messages]


def _vote(rating: Rating, first: int, second: int) -> float | None:
    choice = choice_of(rating, first, second)
    return None if choice is None else {"first": 1.0, "second": 0.0, "tie": 0.5}[choice]


def rating_command(db: Path) -> str:
    """The command with which a person rates."""
    return f"alignment rate --db {db} --labeler NAME"
