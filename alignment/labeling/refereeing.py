"""What a referee sees after a verdict: the votes that it decides, without names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from alignment.labeling.answers import as_shown
from alignment.ratings import Assignment, Rating, RatingsStore
from alignment.ratings.records import NO_VOTES
from alignment.terminal import one_line


def votes_shown(store: RatingsStore, assignment: Assignment) -> list[Rating]:
    """The votes on the item once the referee has decided it; [] before, after a skip, and for any other answer."""
    if assignment.why != "verdict":
        return []
    ratings = store.ratings(item=assignment.item)
    if not any(rating.id == assignment.rating for rating in ratings):
        return []
    return [rating for rating in ratings if rating.why not in NO_VOTES]


def votes_in_words(votes: Sequence[Rating], assignment: Assignment) -> str:
    """How many say what, as the referee saw the item, and the comments: `2 LEFT is better, 1 a tie; "too long"`."""
    said = Counter(str(as_shown(vote, assignment)) for vote in votes)
    comments = [f'"{one_line(vote.comment)}"' for vote in votes if vote.comment]
    return "; ".join([", ".join(f"{count} {words}" for words, count in said.most_common()), *comments])
