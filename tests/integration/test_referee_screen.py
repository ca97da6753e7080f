"""A referee at the whole rating screen: all that the labelers said is read on 64 columns, and a key goes on."""

import asyncio
import time
from pathlib import Path

import pytest
from textual.pilot import Pilot

from alignment.labeling.session import Sitting
from alignment.labeling.tui import RatingApp
from alignment.ratings import RatingsStore

COMMENT = "the second one is kinder, but the first one is right and shorter; "


@pytest.fixture
def store(tmp_path: Path) -> RatingsStore:
    store = RatingsStore(tmp_path / "ratings.db", create=True)
    for number in range(2):
        prompt = [{"role": "user", "content": f"question {number}"}]
        item = store.add_item(prompt, [{"text": "good"}, {"text": "bad"}], need=3)
        for name, choice in {"ada": "first", "bob": "second", "cy": "tie"}.items():
            store.import_rating(item, name, choice, comment=COMMENT * 9 if name == "ada" else "")
    return store


async def press(pilot: Pilot, key: str) -> str:
    """Press a key as soon as the screen listens; what it shows then, its lines joined."""
    end = time.monotonic() + 20
    while time.monotonic() < pilot.app.deaf_until:  # type: ignore[attr-defined]
        assert time.monotonic() < end, "the screen never listened again"
        await pilot.pause(0.01)
    await pilot.press(key)
    await pilot.pause()
    strips = pilot.app.screen._compositor.render_strips()
    return " ".join(" ".join(strip.text for strip in strips).split())


def test_the_votes_are_read_whole_on_a_narrow_screen(store: RatingsStore) -> None:
    async def run() -> None:
        app = RatingApp(Sitting(store, "rita", "disputed"))
        async with app.run_test(size=(64, 30)) as pilot:
            await pilot.pause()
            shown = await press(pilot, "1")
            assert "WHAT THE LABELERS SAID Your verdict: LEFT is much better. The votes: 1 labeler:" in shown
            assert "1 labeler: a tie" in shown and (COMMENT * 9)[:299] + "…" in shown
            assert "any key goes on" in shown
            following = await press(pilot, "x")
            assert "WHAT THE LABELERS SAID" not in following and "2 of 2" in following
            back = await press(pilot, "u")
            assert "Your answer was: LEFT is much better" in back

    asyncio.run(run())
    assert [rating for rating in store.ratings() if rating.why == "verdict"] == []
