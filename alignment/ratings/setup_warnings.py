"""What is missing or contradicts itself in how a rating is set up, as sentences. They are said at its start."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from alignment.ratings.store import RatingsStore
from alignment.terminal import one_line


def setup_warnings(store: RatingsStore) -> list[str]:
    """Each with what to do about it; empty if there are none."""
    return list(_warnings(store))


def _warnings(store: RatingsStore) -> Iterator[str]:
    groups, settings, db = store.desk.groups(), store.settings, shlex.quote(one_line(str(store.path)))
    ordinary = [group for group in groups if not group.is_gold]
    gold = sum(group.items for group in groups if group.is_gold)
    if not ordinary:
        yield "there is nothing to rate yet; add items with `alignment sample` or `alignment rate import`"
    if not settings.guideline.strip():
        yield f"no guideline says what to prefer; set one: alignment rate settings --db {db} --guideline FILE"
    if settings.calibration > gold:
        yield (
            f"the calibration round wants {settings.calibration} gold items and there {_are(gold)}, so it is "
            f"{'shorter' if gold else 'left out'}; import more, or set: "
            f"alignment rate settings --db {db} --calibration {gold}"
        )
    elif 0 < gold == settings.calibration and settings.gold_share > 0:
        yield (
            f"the calibration round takes all {gold} gold items, so none is left to check labelers later; import more, "
            f"or set: alignment rate settings --db {db} --calibration {gold // 2}"
        )
    if not gold and store.desk.is_set("gold_share") and settings.gold_share > 0:
        yield f"--gold-share is {settings.gold_share:g} and there are no gold items; import items with the field `gold`"
    yield from _not_asked(store)
    repeats = groups and settings.repeat_share > 0 and store.desk.is_set("repeat_share")
    if repeats and not any(group.kind == "pair" for group in ordinary):
        yield f"--repeat-share is {settings.repeat_share:g}, and only pairs are repeated, of which there are none"
    if (raters := len(store.people.known())) > 1 and ordinary and all(group.need == 1 for group in ordinary):
        yield (
            f"each item is rated once, so nobody will know how far the {raters} labelers agree; add items again with a "
            "higher need"
        )
    if equal := store.desk.equal_pairs():
        yield f"{equal} pair{'s have' if equal > 1 else ' has'} the same text on both sides, which teaches nothing"


def _not_asked(store: RatingsStore) -> Iterator[str]:
    """Gold answers to what nobody is asked."""
    versions = store.settings.wordings("questions")
    asked = store.settings.questionnaire(versions[-1].version if versions else None)
    names, tags = store.desk.gold_answers()
    missing = [name for name in names if name not in {attribute.name for attribute in asked.attributes}]
    missing += [f"the reason {tag!a}" for tag in tags if tag not in asked.tags.values()]
    if missing:
        yield (
            f"gold items have right answers to what is not asked ({', '.join(missing[:5])}), and none is compared; "
            "ask it with --questions, or import these items anew without them"
        )


def _are(count: int) -> str:
    return f"are {count}" if count > 1 else "is 1" if count else "are none"
