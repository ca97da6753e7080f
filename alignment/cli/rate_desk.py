"""The organiser's commands of `alignment rate`: items, one item, labelers, progress, links, and forgetting."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from alignment import terminal
from alignment.cli.rate_command import NEW_LABELER, REGISTRY, URL, Command
from alignment.cli.rate_refit import GROWTH, change_of, check_growth, growth_of, show_growth
from alignment.errors import UserError


def run_items(args: argparse.Namespace) -> Any:
    from alignment.ratings import RatingsStore
    from alignment.ratings.items import items_with

    with RatingsStore(args.db) as store:
        return {"items": items_with(store, args.flagged, args.disputed, args.commented, args.by)}


def show_items(result: dict[str, Any], called: str) -> None:
    from alignment.labeling import desk

    desk.show_items(result["items"], terminal.screen())


def run_show(args: argparse.Namespace) -> Any:
    from alignment.ratings import RatingsStore
    from alignment.ratings.items import one_item

    with RatingsStore(args.db) as store:
        return one_item(store, args.number)


def show_item(result: dict[str, Any], called: str) -> None:
    from alignment.labeling import desk

    desk.show_item(result, terminal.screen())


def run_labelers(args: argparse.Namespace) -> Any:
    from alignment.ratings import RatingsStore
    from alignment.ratings.progress import labelers_of

    with RatingsStore(args.db) as store:
        return {"labelers": labelers_of(store)}


def show_labelers(result: dict[str, Any], called: str) -> None:
    from alignment.labeling import desk

    desk.show_labelers(result["labelers"], terminal.screen())


def run_progress(args: argparse.Namespace) -> Any:
    from alignment.labeling.settings import organiser_link
    from alignment.ratings import RatingsStore
    from alignment.ratings.progress import progress_of

    check_growth(args)
    if args.link:
        if args.model:
            raise UserError("--model makes a forecast, which the page of --link does not show; leave one of them out")
        return {"link": organiser_link(args.db, args.url)}
    with RatingsStore(args.db) as store:
        found = progress_of(store)
    return found | growth_of(args)


def show_progress(result: dict[str, Any], called: str) -> None:
    from alignment.labeling import desk

    if "link" in result:
        print(result["link"])
        print(
            "It shows the names and the progress of all labelers, and is shown only now; an earlier one has ended. "
            f"The page runs with: {called} --db F --web",
            file=sys.stderr,
        )
        return
    desk.show_progress(result, terminal.screen())
    show_growth(result)


def run_invite(args: argparse.Namespace) -> Any:
    from alignment.labeling.settings import invitations, invite

    if args.list:
        if args.names or args.adjudicate or args.new_labeler:
            raise UserError("invite --list shows the open links and makes none; give it with --db alone")
        return {"invited": invitations(args.db)}
    if not args.names:
        raise UserError("invite: expected a NAME for each labeler who gets a link, as `invite ada bob`, or --list")
    return invite(args.db, args.names, args.url, referee=args.adjudicate, new=args.new_labeler)


def show_invitations(result: dict[str, Any], called: str) -> None:
    from alignment.labeling import desk

    if "invited" in result:
        desk.show_invitations(result["invited"], terminal.screen())
        return
    for each in result["invitations"]:
        print(f"{each['labeler']}  {each['link']}")
    print(f"Each link is personal, and shown only now. The page runs with: {called} --db F --web", file=sys.stderr)
    desk.show_warnings(result["warnings"], terminal.console(stderr=True))


def run_revoke(args: argparse.Namespace) -> Any:
    from alignment.labeling.settings import revoke

    return {"revoked": revoke(args.db, args.names)}


def show_revoked(result: dict[str, list[str]], called: str) -> None:
    for name in result["revoked"]:
        print(f"{terminal.one_line(name)}: the link is dead; answers stay ({called} forget removes them)")


def run_forget(args: argparse.Namespace) -> Any:
    from alignment.labeling.import_export import forget
    from alignment.ratings import RatingsStore

    with RatingsStore(args.db) as store:
        goes = store.people.holdings(args.name)
    change = change_of(args) if args.model else {}
    if any(goes.values()) and not args.yes:
        _ask(args, goes)
    return forget(args.db, args.name, args.registry) | change


def _ask(args: argparse.Namespace, goes: dict[str, int]) -> None:
    """Show what would be removed and let a person decide. Raises UserError if they do not, or if there is nobody."""
    name = terminal.one_line(args.name)
    counts = ", ".join(f"{count} {WORDS[what]}" for what, count in goes.items() if count)
    what = f"{counts} of {name} in {terminal.one_line(str(args.db))}"
    if not (sys.stdin is not None and sys.stdin.isatty() and sys.stderr.isatty()):
        raise UserError(f"forget removes {what}, for good; add --yes to do it without a question")
    print(f"This removes {what}, for good. Models that learned from them stay.", file=sys.stderr)
    print("Remove it? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise UserError(f"nothing of {name} was removed")


WORDS = {"ratings": "ratings", "open": "open items", "invitations": "link", "events": "events of the log"}


def show_forgotten(result: dict[str, Any], called: str) -> None:
    from alignment.labeling.import_export import show_forgotten as show

    show(result, terminal.screen(), called)


DESK = {
    "items": Command(
        "List items with what is special about them; each option narrows the list.",
        "items --db ratings.db --disputed",
        run_items,
        show_items,
        [
            (["--flagged"], {"action": "store_true", "help": "somebody should look at them, a labeler says"}),
            (["--disputed"], {"action": "store_true", "help": "two labelers contradict each other"}),
            (["--commented"], {"action": "store_true", "help": "there is a comment"}),
            (["--by"], {"metavar": "NAME", "help": "answered, flagged or commented on by this labeler"}),
        ],
    ),
    "show": Command(
        "Show an item as labelers see it, and every answer: by whom, when, under which guideline, with what comment.",
        "show 9 --db ratings.db",
        run_show,
        show_item,
        [(["number"], {"type": int, "metavar": "N", "help": "the item's number"})],
    ),
    "progress": Command(
        "Who has begun, how fast they are, what is left and until when, and how far labelers agree so far.",
        "progress --db ratings.db",
        run_progress,
        show_progress,
        [
            (["--link"], {"action": "store_true", "help": "make the link to this as a page; an earlier one ends"}),
            URL,
            *GROWTH,
            REGISTRY,
        ],
    ),
    "labelers": Command(
        "Join names and the hashes that reports show, with answers, agreement and when each was last seen.",
        "labelers --db ratings.db",
        run_labelers,
        show_labelers,
    ),
    "invite": Command(
        "Make a personal link to the rating page for each labeler; an earlier link of theirs ends.",
        "invite ada bob --db ratings.db --url https://rate.example.org",
        run_invite,
        show_invitations,
        [
            (["names"], {"nargs": "*", "metavar": "NAME", "help": "labelers"}),
            URL,
            (["--list"], {"action": "store_true", "help": "show whose links are open, and who has begun"}),
            (["--adjudicate"], {"action": "store_true", "help": "links for referees, who decide disputed items"}),
            NEW_LABELER,
        ],
    ),
    "revoke": Command(
        "End the links of labelers at once; their answers stay.",
        "revoke ada --db ratings.db",
        run_revoke,
        show_revoked,
        [(["names"], {"nargs": "+", "metavar": "NAME", "help": "labelers"})],
    ),
    "forget": Command(
        "Remove a labeler's ratings and all that is known of them, and list the models trained on their ratings.",
        "forget ada --db ratings.db",
        run_forget,
        show_forgotten,
        [
            (["name"], {"metavar": "NAME", "help": "the labeler"}),
            (["--model"], {"metavar": "REF", "help": "a reward model: what would it be without these ratings?"}),
            REGISTRY,
            (["--yes"], {"action": "store_true", "help": "do not ask"}),
        ],
    ),
}
