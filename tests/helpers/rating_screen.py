"""The rating screen driven by Textual's Pilot: real widgets, real layout, no terminal."""

import asyncio
import time
from collections.abc import Awaitable, Callable

from textual.pilot import Pilot

from alignment.labeling.session import Sitting
from alignment.labeling.tui import RatingApp
from alignment.ratings import RatingsStore

KEYS = {"=": "equals_sign", "?": "question_mark"}


def drive(
    store: RatingsStore, script: Callable[[Pilot], Awaitable[None]], size: tuple[int, int] = (120, 40), **options
) -> RatingApp:
    async def run() -> RatingApp:
        app = RatingApp(Sitting(store, "ada", **options))
        async with app.run_test(size=size) as pilot:
            await pilot.pause()
            await asyncio.wait_for(script(pilot), 60)
        return app

    return asyncio.run(run())


async def press(pilot: Pilot, *keys: str) -> None:
    """Press each key as soon as the screen listens to it."""
    for key in keys:
        await listening(pilot)
        await pilot.press(KEYS.get(key, key))
        await pilot.pause()
    await listening(pilot)


async def listening(pilot: Pilot) -> None:
    end = time.monotonic() + 10
    while time.monotonic() < pilot.app.deaf_until:
        assert time.monotonic() < end, "the screen never listened again"
        await pilot.pause(0.01)


def lines(pilot: Pilot) -> list[str]:
    return [strip.text for strip in pilot.app.screen._compositor.render_strips()]


def text(pilot: Pilot) -> str:
    return "\n".join(lines(pilot))
