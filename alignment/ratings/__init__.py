"""The ratings store: what is to be rated, who looks at it now, and what they said. One SQLite file.

Keep the file on one local disk. It is in WAL mode, whose locks and shared memory do not work over NFS and its like:
there, give each labeler a file of their own and bring them together with `alignment rate export` and `import`.
"""

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
    "Why",
    "is_ratings_file",
    "is_right",
]
