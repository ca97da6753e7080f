"""What the organiser of a rating sets: invitations, the guideline, and how many control items labelers get."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from alignment.errors import UserError
from alignment.ratings import RatingsStore
from alignment.ratings.progress import labelers_of
from alignment.ratings.questionnaire import read_questionnaire
from alignment.ratings.settings import WORDING_KINDS
from alignment.ratings.setup_warnings import setup_warnings

PAGE = "http://127.0.0.1:8765"  # where `alignment rate --web` serves by default


def invite(
    db: str, labelers: Sequence[str], url: str = PAGE, referee: bool = False, new: bool = False
) -> dict[str, Any]:
    """A personal link for each labeler, named once or twice; an earlier link of theirs ends.

    Args:
        referee: the links are those of referees, who decide disputed items.
        new: names that are near known ones are other people's.

    Returns:
        `invitations`, each with its `labeler` and `link`, and `warnings` about the set-up.
    """
    base = _base(url)
    with RatingsStore(db) as store, store.transaction():  # a bad name among them: nobody's old link ends
        if not new:
            for name in labelers:
                store.people.check_new(name, "add --new-labeler")
        links = [
            {"labeler": name, "link": f"{base}/l/{store.people.invite(name, referee)}"}
            for name in dict.fromkeys(labelers)
        ]
        return {"invitations": links, "warnings": setup_warnings(store)}


def invitations(db: str) -> list[dict[str, Any]]:
    """The labelers whose links are open, as `labelers_of` describes them, by the time of their invitation."""
    with RatingsStore(db) as store:
        rows = [row for row in labelers_of(store) if row["invited"] is not None]
    return sorted(rows, key=lambda row: row["invited"])


def revoke(db: str, labelers: Sequence[str]) -> list[str]:
    """End the links of labelers, all or none; returns their names.

    Raises:
        UserError: one of them has no link.
    """
    with RatingsStore(db) as store, store.transaction():
        for name in dict.fromkeys(labelers):
            if not store.people.revoke(store.people.found(name)):
                raise UserError(f"{db}: {name!a} has no open link; see invite --list")
    return list(dict.fromkeys(labelers))


def organiser_link(db: str, url: str = PAGE) -> str:
    """The link to the page of progress; an earlier one ends."""
    base = _base(url)
    with RatingsStore(db) as store:
        return f"{base}/progress/{store.desk.new_link()}"


def _base(url: str) -> str:
    if not url.startswith(("http://", "https://")) or urlsplit(url).path not in ("", "/"):
        raise UserError(
            f"--url {url!a}: expected the page's address with http:// or https:// and no path, such as {PAGE}"
        )
    return url.rstrip("/")


def settings(
    db: str,
    calibration: int | None = None,
    gold_share: float | None = None,
    repeat_share: float | None = None,
    guideline: str | None = None,
    questions: str | None = None,
) -> dict[str, Any]:
    """Change what is given, together or not at all, and return how everything is set, the number of gold items, without
    which calibration and controls are none, and what is missing, in words; `guideline` is a text file, `questions` a
    YAML file."""
    changes = {"calibration": calibration, "gold_share": gold_share, "repeat_share": repeat_share}
    with RatingsStore(db) as store, store.transaction():
        for name, value in changes.items():
            if value is not None:
                setattr(store.settings, name, value)
        if guideline is not None:
            store.settings.guideline = _read(guideline)
        if questions is not None:
            store.settings.ask(read_questionnaire(questions))
        versions = {kind: len(store.settings.wordings(kind)) or None for kind in WORDING_KINDS}
        asked = store.settings.questionnaire(versions["questions"])
        gold_items = sum(item.gold is not None for item in store.items())
        return {name: getattr(store.settings, name) for name in (*changes, "guideline")} | {
            "questions": asked.model_dump(mode="json", exclude_defaults=True),
            "versions": versions,
            "gold_items": gold_items,
            "warnings": setup_warnings(store),
        }


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--guideline {path}: cannot be read as UTF-8 text ({error})") from error
