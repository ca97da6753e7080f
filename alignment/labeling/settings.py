"""What the organiser of a rating sets: invitations, the guideline, and how many control items labelers get."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from alignment.errors import UserError
from alignment.ratings import RatingsStore
from alignment.ratings.questionnaire import read_questionnaire
from alignment.ratings.settings import WORDING_KINDS

PAGE = "http://127.0.0.1:8765"  # where `alignment rate --web` serves by default


def invite(db: str, labelers: Sequence[str], url: str = PAGE) -> list[dict[str, str]]:
    """A personal link for each labeler, named once or twice; an earlier link of theirs ends."""
    if not url.startswith(("http://", "https://")) or urlsplit(url).path not in ("", "/"):
        raise UserError(
            f"--url {url!a}: expected the page's address with http:// or https:// and no path, such as {PAGE}"
        )
    with RatingsStore(db) as store, store.transaction():  # a bad name among them: nobody's old link ends
        return [
            {"labeler": name, "link": f"{url.rstrip('/')}/l/{store.people.invite(name)}"}
            for name in dict.fromkeys(labelers)
        ]


def settings(
    db: str,
    calibration: int | None = None,
    gold_share: float | None = None,
    repeat_share: float | None = None,
    guideline: str | None = None,
    questions: str | None = None,
) -> dict[str, Any]:
    """Change what is given, together or not at all, and return how everything is set, and the number of gold items,
    without which calibration and controls are none; `guideline` is a text file, `questions` a YAML file."""
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
        }


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--guideline {path}: cannot be read as UTF-8 text ({error})") from error
