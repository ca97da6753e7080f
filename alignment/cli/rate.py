"""`alignment rate`, and scripts/rate.py, which is a door to it: labelers rate, and their organiser does the rest."""

from __future__ import annotations

import argparse
import io
import json
import os
import shlex
import sqlite3
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from alignment import terminal
from alignment.cli.rate_command import NEW_LABELER, PORT, REGISTRY, Command, Parser
from alignment.cli.rate_desk import DESK
from alignment.cli.rate_refit import GROWTH, check_growth, growth_of, run_influence, show_growth, show_influence
from alignment.errors import UserError, require_extra

if TYPE_CHECKING:
    from alignment.ratings import Order, Progress, RatingsStore

ABOUT = """Rate answers, one key per decision. Every answer is saved before the next item is shown.

  {0} --db F --labeler NAME     rate in this terminal; --plain by lines, for screen readers and pipes
  {0} --db F --web              serve the same as a page for browsers, a personal link for each labeler

Commands for whoever organises the rating ({0} COMMAND --help):
  invite      make personal links to the page; --list shows them, revoke ends one
  settings    guideline, questions, calibration round, control items
  order       let a reward model say which items it is least sure of, for --order uncertain
  progress    who rates how fast, what is left and until when; labelers joins names and hashes
  report      how far labelers agree, with each other and with themselves; --model: what more ratings would bring
  influence   what a reward model would be without each labeler
  items       list what is flagged, disputed or commented on; show has all of one item
  import      bring ratings in from a file; export writes them to one
  forget      remove a labeler's ratings, and list the models trained on them
"""


# --- rating ----------------------------------------------------------------------------------------------------------


def rate(args: argparse.Namespace) -> int:
    """Rate in this terminal or serve the page; returns the exit status."""
    from alignment.labeling.desk import show_warnings
    from alignment.ratings import RatingsStore
    from alignment.ratings.setup_warnings import setup_warnings

    if args.order == "uncertain":
        with RatingsStore(args.db) as store:
            if not store.has_uncertainty():
                raise UserError(
                    f"--order uncertain: no reward model has scored the items of {args.db} yet; "
                    f"run {args.called} order --db {args.db} --model REF"
                )
    if args.web:
        require_extra("rating", "starlette", "uvicorn", purpose="--web")
        from alignment.labeling.web_serving import serve

        serve(args.db, "0.0.0.0" if args.public else "127.0.0.1", args.port, args.public, args.order, args.called)  # noqa: S104
        return 0
    with RatingsStore(args.db, seed=args.seed) as store:
        if not args.new_labeler:
            store.people.check_new(args.labeler, "add --new-labeler")
        check_input()
        if not store.progress(args.labeler, args.order).done:  # a bad name fails before the terminal is touched
            show_warnings(setup_warnings(store), terminal.screen(stderr=True))
        status = rate_here(store, args.labeler, args.order, args.plain, args.json)
        progress = store.progress(args.labeler, args.order)
    if status == 0:
        say_goodbye(args, progress)
    return status


def check_input() -> None:
    """Raise UserError if there is nothing to read answers from."""
    if sys.stdin is None:
        raise UserError("standard input is closed, and answers are read from it")


def rate_here(
    store: RatingsStore,
    labeler: str,
    order: Order = "random",
    by_lines: bool = False,
    stdout_is_taken: bool = False,
    limit: int | None = None,
) -> int:
    """On the screen, or by lines where none can be drawn; returns the exit status, 0 unless a signal ended it."""
    check_input()
    if not by_lines and can_draw(stdout_is_taken):
        require_extra("rating", "textual", purpose="the rating screen (--plain rates by lines)")
        from alignment.labeling import tui

        return tui.run(store, labeler, order, limit)
    from alignment.labeling import line_mode

    console = terminal.screen(stderr=stdout_is_taken)
    line_mode.run(store, labeler, order, line_mode.read_line, console, limit, line_mode.forget_typed)
    return 0


def can_draw(stdout_is_taken: bool) -> bool:
    """Whether there is a terminal for the screen, which reads standard input and draws on standard error."""
    out = stdout_is_taken or sys.stdout.isatty()
    return sys.stdin.isatty() and out and sys.stderr.isatty() and os.environ.get("TERM", "dumb") != "dumb"


def say_goodbye(args: argparse.Namespace, progress: Progress) -> None:
    """How far the labeler is and what comes next."""
    console = terminal.screen(stderr=args.json)
    skipped = f" ({progress.skipped} skipped)" if progress.skipped else ""
    console.print(f"{progress.done} of {progress.total} done{skipped}. Everything is saved. Thank you, {args.labeler}.")
    if progress.done < progress.total:
        console.print("Run the same command to go on.")
    if progress.done > progress.skipped:
        db = shlex.quote(terminal.clean(args.db))
        from alignment.ratings import RatingsStore

        aim = "To train a reward model on these ratings:"
        with RatingsStore(args.db) as store:
            if command := store.settings.comparison:
                aim = "To see who won, give the command again that made these pairs:"
        console.print(aim, style="dim")
        command = command or f"python -m reward configs/reward/demo.yaml data.train={db}"
        console.print(f"  {terminal.one_line(command)}", style="dim", soft_wrap=True)
    if args.json:
        result = {"done": progress.done, "total": progress.total, "labeler": args.labeler, "db": args.db}
        print(json.dumps(result))


# --- commands --------------------------------------------------------------------------------------------------------


def run_settings(args: argparse.Namespace) -> Any:
    from alignment.labeling.settings import settings

    return settings(args.db, args.calibration, args.gold_share, args.repeat_share, args.guideline, args.questions)


def run_order(args: argparse.Namespace) -> Any:
    from alignment.training.stage import quiet_libraries

    quiet_libraries()  # before the libraries are imported
    from alignment.labeling.uncertainty import order_items

    return order_items(args.db, args.model, args.registry)


def run_report(args: argparse.Namespace) -> Any:
    from alignment.ratings import RatingsStore
    from alignment.ratings.quality import report

    check_growth(args)
    with RatingsStore(args.db) as store:
        found = report(store)
    return found | growth_of(args)


def show_report(result: dict[str, Any], called: str) -> None:
    from alignment.labeling.report import show

    show(result, terminal.screen())
    show_growth(result)


def run_import(args: argparse.Namespace) -> Any:
    from alignment.labeling.formats.reading import import_options
    from alignment.labeling.import_export import import_into

    options = import_options(args.columns, args.labels, args.scale, args.labeler)
    return import_into(args.db, args.format, args.file, options)


def run_export(args: argparse.Namespace) -> Any:
    from alignment.labeling.import_export import export_file
    from alignment.ratings import RatingsStore

    with RatingsStore(args.db) as store:
        return export_file(store, args.format, args.file)


def show_fields(result: dict[str, Any], called: str) -> None:
    """A line for each field; lists and objects of one go under it."""
    console = terminal.screen()
    for name, value in result.items():
        inner = value.items() if isinstance(value, dict) else enumerate(value, 1) if isinstance(value, list) else ()
        shown = terminal.clean(str(value)) if not isinstance(value, dict | list) else "" if value else "none"
        console.print(f"{name.replace('_', ' ')}: {shown}".rstrip())
        for key, part in inner:
            console.print(f"  {terminal.clean(str(key))}: {terminal.clean(str(part))}")


WRITTEN = (
    ["--format"],
    {
        "required": True,
        "metavar": "NAME",
        "help": "jsonl (everything), argilla, label-studio, trl, trl-unpaired, openai, helpsteer, hh, pandalm, "
        "qa-feedback or oasst",
    },
)
READ_FORMATS = (
    "what wrote the file (default: auto, told by its keys): label-studio, argilla, potato, prodigy, doccano, arena, "
    "helpsteer, alpaca, summaries, webgpt, shp, reward-bench, votes (any table), openai, trl, trl-unpaired, jsonl, hh, "
    "pandalm, qa-feedback, oasst"
)
COLUMNS = (
    "which column is what: prompt=..,a=..,b=..,choice=..,labeler=.. (others: completion, rating, ranks, strength, "
    "comment, seconds, model_a, model_b)"
)
LABELS = "what a word in the file means: a, b, tie, both bad, skip or a number"
READ: list[tuple[Sequence[str], dict[str, Any]]] = [
    (["--format"], {"default": "auto", "metavar": "NAME", "help": READ_FORMATS}),
    (["--columns"], {"action": "append", "default": [], "metavar": "ROLE=KEY,...", "help": COLUMNS}),
    (["--labels"], {"action": "append", "default": [], "metavar": "WORD=MEANING,...", "help": LABELS}),
    (["--scale"], {"metavar": "LOW..HIGH", "help": "the worst and the best rating, as 0..100 (default: 1..7)"}),
    (["--labeler"], {"metavar": "NAME", "help": "who gave the votes that have no name"}),
]
COMMANDS = {
    **DESK,
    "settings": Command(
        "Change what labelers get, and show how everything is set.",
        "settings --db ratings.db --calibration 10 --guideline guideline.txt",
        run_settings,
        show_fields,
        [
            (["--calibration"], {"type": int, "metavar": "N", "help": "first items with known answers and feedback"}),
            (["--gold-share"], {"type": float, "metavar": "X", "help": "share of control items (default 0.05)"}),
            (["--repeat-share"], {"type": float, "metavar": "X", "help": "share of own pairs again (default 0.03)"}),
            (["--guideline"], {"metavar": "FILE", "help": "text that says what to prefer; labelers read it with ?"}),
            (
                ["--questions"],
                {"metavar": "FILE", "help": "YAML of what to ask beside the choice: attributes, reasons"},
            ),
        ],
    ),
    "order": Command(
        "Score the items with a reward model; --order uncertain then gives those near p = 1/2 half of the time.",
        "order --db ratings.db --model demo-reward@prod",
        run_order,
        show_fields,
        [(["--model"], {"required": True, "metavar": "REF", "help": "a reward model"}), REGISTRY],
    ),
    "report": Command(
        "How far labelers agree with each other, with themselves and with known answers.",
        "report --db ratings.db",
        run_report,
        show_report,
        [
            *GROWTH,
            REGISTRY,
        ],
    ),
    "influence": Command(
        "What a reward model's last layer would be without each labeler and each item.",
        "influence --db ratings.db --model demo-reward@prod",
        run_influence,
        show_influence,
        [
            (["--model"], {"required": True, "metavar": "REF", "help": "a reward model"}),
            (["--answers"], {"metavar": "FILE", "help": "answers to rank, as a policy's (default: the held-out ones)"}),
            REGISTRY,
        ],
    ),
    "import": Command(
        "Bring items and ratings in from a file; the ratings file is made if there is none.",
        "import --db ratings.db export.json",
        run_import,
        show_fields,
        [*READ, (["file"], {"metavar": "FILE", "help": "what to read"})],
    ),
    "export": Command(
        "Write items and ratings to a file.",
        "export --db ratings.db --format jsonl ratings.jsonl",
        run_export,
        show_fields,
        [WRITTEN, (["file"], {"metavar": "FILE", "help": "what to write"})],
    ),
}


# --- the command line ------------------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None, called: str = "alignment rate") -> int:
    """Parse the command line and do what it says. Exit code 2 for a mistake in it or in the data.

    Args:
        called: the command as a person types it, for help and messages.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without UTF-8 shows ? for what it does not have
    command = COMMANDS.get(argv[0]) if argv else None
    try:
        if command is None:
            return rate(parse_rating(argv, called))
        args = parse_command(argv[0], command, argv[1:], called)
        result = command.run(args)
        if args.json:
            print(json.dumps(result))
        else:
            command.show(result, called)
        return 0
    except UserError as error:
        print(f"{_program(called)}: {terminal.one_line(str(error))}", file=sys.stderr)
        return 2
    except sqlite3.DatabaseError as error:
        from alignment.ratings.file import BROKEN

        if type(error) not in BROKEN:
            raise
        print(f"{_program(called)}: the ratings file cannot be used: {error}, go back to a copy of it", file=sys.stderr)
        return 2


def _program(called: str) -> str:
    return called.removeprefix("scripts/")


def parse_rating(argv: Sequence[str], called: str) -> argparse.Namespace:
    parser = Parser(
        prog=_program(called),
        description=ABOUT.format(_program(called)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"Example:  {called} --db runs/ratings.db --labeler ada",
    )
    parser.set_defaults(called=called)
    add = parser.add_argument
    add("--db", required=True, metavar="F", help=f"ratings file, as {called.replace('rate', 'sample')} makes it")
    add("--labeler", metavar="NAME", help="who rates: the same name resumes")
    add("--order", choices=("random", "uncertain"), default="random", help="uncertain: see the command order")
    add("--adjudicate", action="store_true", help="be the referee: decide what labelers dispute, then see their votes")
    add(*NEW_LABELER[0], **NEW_LABELER[1])
    add("--seed", type=int, metavar="N", help="order of items and sides (default: the file's own)")
    add("--plain", action="store_true", help="by lines, also where a screen could be drawn")
    add("--json", action="store_true", help="at the end one JSON object on stdout, the rest on stderr")
    add("--web", action="store_true", help="serve the page instead; see the command invite")
    add("--port", type=int, default=PORT, metavar="N", help=f"of the page (default {PORT})")
    add(
        "--public", metavar="HOST", help="labelers come through a proxy with TLS of this name; listens on all addresses"
    )
    if argv and not argv[0].startswith("-"):
        parser.error(f"{argv[0]!a} is no command; the commands are {', '.join(COMMANDS)}")
    args = parser.parse_args(argv)
    if args.web and args.adjudicate:
        parser.error(
            "--adjudicate goes with --labeler; on the page, a referee comes by the link of invite --adjudicate"
        )
    if args.web and (args.labeler or args.plain or args.json or args.seed is not None or args.new_labeler):
        parser.error("--web serves all labelers; it goes with --db, --port, --public and --order alone")
    if args.adjudicate and args.order != "random":
        parser.error("--adjudicate gives the most disputed items first; leave --order out")
    if not args.web and (args.public or args.port != PORT):
        parser.error("--port and --public go with --web")
    if not args.web and not args.labeler:
        parser.error("the following arguments are required: --labeler (or --web)")
    if args.adjudicate:
        args.order = "disputed"
    return args


def parse_command(name: str, command: Command, argv: Sequence[str], called: str) -> argparse.Namespace:
    parser = Parser(
        prog=f"{_program(called)} {name}", description=command.about, epilog=f"Example:  {called} {command.example}"
    )
    parser.add_argument("--db", required=True, metavar="F", help="ratings file")
    for flags, options in command.arguments:
        parser.add_argument(*flags, **options)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout, the rest on stderr")
    return parser.parse_args(argv)
