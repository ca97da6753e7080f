"""The ratings store: items to rate, claims by labelers, and their ratings, in one SQLite file.

Keep the file on one local disk. It is in WAL mode, whose locks and shared memory do not work over network file systems
such as NFS. There, give each labeler a separate file and combine them with `alignment rate export` and `import`.
"""

from __future__ import annotations

from alignment.ratings.file import BUSY_SECONDS, is_ratings_file
from alignment.ratings.records import (
    Assignment,
    Choice,
    ChoiceShown,
    Completion,
    Feedback,
    Gold,
    Item,
    Kind,
    Order,
    Progress,
    Rating,
    View,
    Why,
    is_right,
)
from alignment.ratings.store import LEASE_SECONDS, RatingsStore

__all__ = [
    "BUSY_SECONDS",
    "LEASE_SECONDS",
    "Assignment",
    "Choice",
    "ChoiceShown",
    "Completion",
    "Feedback",
    "Gold",
    "Item",
    "Kind",
    "Order",
    "Progress",
    "Rating",
    "RatingsStore",
    "View",
    "Why",
    "is_ratings_file",
    "is_right",
]
