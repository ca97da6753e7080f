#!/usr/bin/env python3
"""Write docs/reference/: every config key, command, metric, check and ticket column, read from the code.

scripts/reference.py            some seconds
scripts/reference.py --check    write nothing; exit code 1 if a page is stale
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "docs" / "reference"
WRITTEN = "Written by `scripts/reference.py`; do not edit."
STAGES = ("sft", "reward", "ppo")
SCRIPTS = ("bench", "demo")


def pages(names: Iterable[str] | None = None) -> dict[str, str]:
    """The pages, or those named, by their files' names."""
    return {name: "\n".join(PAGES[name]()).rstrip() + "\n" for name in (PAGES if names is None else names)}


def stage_config(stage: str) -> type[Any]:
    module = importlib.import_module(f"{stage}.config")
    return next(each for name, each in vars(module).items() if name.lower() == f"{stage}stageconfig")


# --- keys ------------------------------------------------------------------------------------------------------------


def config_page() -> Iterator[str]:
    from alignment.config.reference import keys

    yield from ("# Config keys", "", WRITTEN, "", "```bash", "python -m ppo --keys ppo.     # the same in the terminal")
    yield from ("python -m ppo configs/ppo/demo.yaml ppo.kl_coef=0.1 --dry-run", "```", "")
    yield (
        "A config is one YAML file with these sections; `key=value` on the command line overrides it. An unknown key "
        "is an error that names the nearest one. `[]` stands for an entry of a list."
    )
    every = {stage: list(keys(stage_config(stage))) for stage in STAGES}
    for stage in STAGES:
        yield from ("", f"## {stage}", "")
        for section in dict.fromkeys(key.section or key.name.partition(".")[0] for key in every[stage]):
            inside = [key for key in every[stage] if (key.section or key.name) == section]
            before = STAGES[: STAGES.index(stage)]
            same = next((other for other in before if _within(every[other], section) == inside), None)
            yield from (f"### {stage}: {section}", "")
            if same:
                yield from (f"As [{same}: {section}](#{same}-{section}).", "")
                continue
            yield from ("| key | type | default | meaning |", "|---|---|---|---|")
            yield from (
                f"| `{key.name}` | {_cell(key.kind)} | {_cell(_code(key.default))} | {_cell(key.about)} |"
                for key in inside
            )
            trainer = getattr(stage_config(stage), "trainer", None)
            if section == "training" and trainer is not None:
                yield from ("", f"Every other argument of `trl.{trainer.trl_class}` is taken too, by its own name.")
            yield ""


def _within(found: Sequence[Any], section: str) -> list[Any]:
    return [key for key in found if (key.section or key.name) == section]


def _code(default: str) -> str:
    return default if default == "required" else f"`{default}`"


def _cell(text: str) -> str:
    return text.replace("|", r"\|")


# --- commands --------------------------------------------------------------------------------------------------------


class _Parser(Exception):
    """No error: how a command's parser is brought out of its `main`."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self.parser = parser


def parser_of(main: Callable[[list[str]], Any], argv: Sequence[str] = ()) -> argparse.ArgumentParser:
    """The argparse parser that a command's `main` builds; nothing else of the command runs."""

    def stop(parser: argparse.ArgumentParser, *_: Any, **__: Any) -> Any:
        raise _Parser(parser)

    names = ("parse_args", "parse_known_args", "parse_intermixed_args", "parse_known_intermixed_args")
    kept = {name: getattr(argparse.ArgumentParser, name) for name in names}
    try:
        for name in names:
            setattr(argparse.ArgumentParser, name, stop)
        main(list(argv))
    except _Parser as found:
        return found.parser
    finally:
        for name, method in kept.items():
            setattr(argparse.ArgumentParser, name, method)
    raise AssertionError(f"{main.__module__} parses nothing")


def typer_commands() -> dict[str, Any]:
    """The commands of `alignment` by their full names, those that hand their arguments on left out."""
    import typer

    from alignment.cli.main import app

    def walk(command: Any, name: str) -> Iterator[tuple[str, Any]]:
        below = getattr(command, "commands", None)
        if below is None and not command.context_settings.get("ignore_unknown_options"):
            yield name, command
        for word, each in (below or {}).items():
            yield from walk(each, f"{name} {word}")

    return dict(walk(typer.main.get_command(app), "alignment"))


def argparse_commands() -> dict[str, argparse.ArgumentParser]:
    """The commands with argparse: the stages, and the scripts that users run."""
    found = {f"python -m {stage}": parser_of(importlib.import_module(f"{stage}.__main__").main) for stage in STAGES}
    sample, rate, compare = (importlib.import_module(f"alignment.cli.{name}") for name in ("sample", "rate", "compare"))
    found |= {"alignment sample": parser_of(sample.main), "alignment rate": parser_of(rate.main, ["--db", "F"])}
    found["alignment compare"] = parser_of(compare.main)
    for name in ("score", "choose", "serve", "eval"):
        found[f"alignment {name}"] = parser_of(importlib.import_module(f"alignment.cli.{name}").main)
    found |= {f"alignment rate {name}": parser_of(rate.main, [name]) for name in rate.COMMANDS}
    return found | {f"scripts/{name}.py": parser_of(importlib.import_module(name).main) for name in SCRIPTS}


def cli_page() -> Iterator[str]:
    yield from ("# Commands", "", WRITTEN, "", "```bash", "alignment --help", "python -m sft --help", "```", "")
    yield "`alignment sft|reward|ppo` take what `python -m sft|reward|ppo` take; `scripts/rate.py` is `alignment rate`,"
    yield "`scripts/sample.py` is `alignment sample`, and `scripts/demo` sets up and runs `scripts/demo.py`."
    for name, parser in argparse_commands().items():
        about = (parser.description or "").strip().split("\n\n")[0]
        shown = [each for each in parser._actions if each.help != argparse.SUPPRESS and each.dest != "help"]
        yield from _command(name, about, [_argument(each) for each in shown])
    group = ""
    for name, command in typer_commands().items():
        if name.rpartition(" ")[0] not in ("alignment", group):
            group = name.rpartition(" ")[0]
            yield from ("", f"## {group}")
        options = [_typer_option(each) for each in command.params if not getattr(each, "hidden", False)]
        yield from _command(name, command.help or "", options, level=2 if " " not in name[10:] else 3)


def _command(name: str, about: str, options: Sequence[tuple[str, str, str]], level: int = 2) -> Iterator[str]:
    text, _, rest = about.partition("Example: ")
    example, _, rest = rest.partition("\n\n")  # the prose of the next paragraph is no part of the command
    text, example, rest = (" ".join(part.split()) for part in (text, example, rest))
    yield from ("", f"{'#' * level} {name}", "", _cell(text).replace("<", "&lt;"), "")
    if example:
        yield from (f"Example: `{example}`", "")
    if rest:
        yield from (_cell(rest).replace("<", "&lt;"), "")
    yield from ("| argument | meaning | default |", "|---|---|---|")
    yield from (f"| `{_cell(words)}` | {_cell(meaning)} | {default} |" for words, meaning, default in options)


def _argument(action: argparse.Action) -> tuple[str, str, str]:
    shown = action.metavar or (action.dest.upper() if action.nargs != 0 else "")
    shown = "|".join(map(str, action.choices)) if action.choices and not action.metavar else str(shown)
    shown = f"[{shown}]" if action.nargs == "?" and action.option_strings else shown
    words = ", ".join(action.option_strings) + (f" {shown}" if shown else "") if action.option_strings else str(shown)
    return (
        (words if action.option_strings else shown or action.dest),
        action.help or "",
        _default(action.default, action),
    )


def _default(value: Any, action: argparse.Action) -> str:
    if value in (None, False, argparse.SUPPRESS) or value == [] or "default" in (action.help or ""):
        return "required" if action.required and action.option_strings else ""
    return f"`{value}`"


def _typer_option(parameter: Any) -> tuple[str, str, str]:
    names = ", ".join([*parameter.opts, *parameter.secondary_opts])
    metavar = parameter.metavar or parameter.name.upper()
    is_flag = getattr(parameter, "is_flag", False)
    words = metavar if not names.startswith("-") else names if is_flag else f"{names} {metavar}"
    default = parameter.default if parameter.default not in (None, False, "", [], ()) else ""
    default = "" if callable(default) or "default" in (parameter.help or "") else default
    return (
        words,
        " ".join((parameter.help or "").split()),
        "required" if parameter.required else f"`{default}`" if default != "" else "",
    )


# --- metrics and checks ----------------------------------------------------------------------------------------------


def metrics_page() -> Iterator[str]:
    from alignment.runs import metrics

    yield from (
        "# Metrics",
        "",
        WRITTEN,
        "",
        "```bash",
        "alignment runs show demo-ppo     # a run's metrics with units",
    )
    yield from ("```", "", "Names as in `metrics.jsonl`. `share` is a fraction from 0 to 1; `*` stands for any name.")
    for stage, title in {"sft": "SFT", "reward": "Reward model", "ppo": "PPO"}.items():
        yield from ("", f"## {title}", "", "| metric | unit | meaning |", "|---|---|---|")
        yield from (
            f"| `{each.name}` | {each.unit} | {_cell(each.meaning)} |" for each in getattr(metrics, stage.upper())
        )


def checks_page() -> Iterator[str]:
    from alignment.reports import checks

    yield from (
        "# Checks",
        "",
        WRITTEN,
        "",
        "```bash",
        "alignment runs show demo-ppo     # a run's verdicts with reasons",
    )
    yield from ("```", "")
    yield (
        "A check has passed, failed, is worth a look (warn), or was not measured. A run in which a check in bold was "
        "not measured does not read `pass`. The second column is its name in `events.jsonl`."
    )
    yield ""
    yield from (re.sub(r"^\*\*(.+)\*\*$", r"## \1", line) for line in checks.docs_tables())


def tickets_page() -> Iterator[str]:
    from alignment.data.help_desks import AGENT_FLAGS, TICKET_COLUMNS, TICKET_ROLES, WEAKER_COLUMNS

    yield from ("# Columns of ticket files", "", WRITTEN, "")
    yield (
        "A file of tickets has one row for each message. Upper case, spaces and hyphens in a header do not matter "
        "(`Ticket ID`). Two columns for one key are refused, unless they hold the same text (`plain_body`, `body`): "
        "`--column text=body` names the one that is meant."
    )
    yield from ("", "| key | columns |", "|---|---|")
    for key, families in TICKET_COLUMNS.items():
        named = ", ".join(f"`{name}`" for family in families for name in family)
        yield f"| `{key}` | {named} |"
    for key, tiers in WEAKER_COLUMNS.items():
        for tier in tiers:
            named = ", ".join(f"`{name}`" for family in tier for name in family)
            yield f"| `{key}`, where none of the above is there | {named} |"
    yield ""
    flags = ", ".join(f"`{name}`" for name in AGENT_FLAGS)
    yield f"A role that is true or false: true in {flags} is the assistant's, in the others the customer's."
    yield from ("", "| turn | role |", "|---|---|")
    for turn in dict.fromkeys(TICKET_ROLES.values()):
        yield f"| {turn} | {', '.join(f'`{role}`' for role, known in TICKET_ROLES.items() if known == turn)} |"


def shapes_page() -> Iterator[str]:
    from alignment.data.keys import KEYS
    from alignment.data.marks import MARKS
    from alignment.data.shapes import SHAPES

    yield from ("# Shapes of rows", "", WRITTEN, "", "```bash")
    yield from ("alignment data check demonstrations.jsonl --for sft     # how a stage reads a file", "```", "")
    yield (
        "A row's shape is the first below of which it has all keys. `data.format` names another; "
        "`data.columns='{prompt: q}'` renames `q` to `prompt`. The keys have [other names](#other-names) too. A cell "
        "without words: the stage refuses the row."
    )
    yield from ("", "| `format` | keys | also read | SFT learns | reward | PPO |", "|---|---|---|---|---|---|")
    for name, shape in SHAPES.items():
        cells = (_keys(shape.needs), _keys(shape.reads), shape.sft, shape.reward, shape.ppo)
        yield f"| `{name}` | " + " | ".join(_cell(cell) for cell in cells) + " |"
    yield from ("", "## An example of each", "")
    for name, shape in SHAPES.items():
        yield f"- `{name}`: `{json.dumps(shape.example, ensure_ascii=False)}`"
    yield from ("", "## Other names", "", "| key | other names, by shape the first that a row has |", "|---|---|")
    others: dict[str, dict[str, None]] = {}
    for slot in (slot for shape in SHAPES.values() for slot in (*shape.needs, *shape.reads) if "|" in slot):
        ours, *alternatives = slot.split("|")
        others.setdefault(ours, {}).update(dict.fromkeys(alternatives))
    yield from (
        f"| `{ours}` | {', '.join(f'`{name}`' for name in alternatives)} |"
        for ours, alternatives in sorted(others.items())
    )
    yield from ("", "## Known keys", "")
    yield (
        "A row that says something under one of these is refused by name where its shape does not read it, with one "
        "exception: a text that the conversation holds already (*may repeat*). `data.columns='{rating: null}'` reads "
        "the rows without their `rating`. PPO learns from no answer, so it refuses only what changes the prompt. All "
        "other keys are listed once as not used; PPO gives them to reward functions."
    )
    yield from ("", "| key | meaning | changes | may repeat |", "|---|---|---|---|")
    changed = {"prompt": "the prompt", "answer": "what is learned of the answer", "media": "refused everywhere"}
    for key in KEYS:
        names = ", ".join(f"`{name}`" for name in key.names)
        yield f"| {names} | {_cell(key.about)} | {changed[key.changes]} | {'yes' if key.may_repeat else ''} |"

    yield from ("", "## Marks of rows", "")
    yield (
        "A row that a person marked as not to be used is left out and counted, with the option that reads it; one that "
        "is kept for tests or flagged as harmful is read, with a warning. Names are taken without case and signs, with "
        "or without `is_`, and inside objects (`review.status`) too. Other values say nothing; the key is listed. A "
        "turn that is marked so is not trained on."
    )
    done = {
        "out": "left out", "bad": "no demonstration", "held_out": "warned of", "flagged": "warned of",
        "no_vote": "no vote",
    }  # fmt: skip
    yield from ("", "| key | meaning | says so if | effect |", "|---|---|---|---|")
    for mark in MARKS:
        names = ", ".join(f"`{name}`" for name in mark.names) or f"`{_cell(mark.pattern)}`"
        said = ", ".join(f"`{word}`" for word in sorted(mark.words)) or mark.bad_if
        yield f"| {names} | {_cell(mark.about)} | {said} | {done[mark.effect]} |"


def _keys(slots: Sequence[str]) -> str:
    return ", ".join(dict.fromkeys(f"`{slot.partition('|')[0]}`" for slot in slots))


PAGES: dict[str, Callable[[], Iterator[str]]] = {
    "config.md": config_page, "cli.md": cli_page, "metrics.md": metrics_page, "checks.md": checks_page,
    "tickets.md": tickets_page,
    "shapes.md": shapes_page,
}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Write docs/reference/.", epilog="example: scripts/reference.py")
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if a page is stale")
    args = parser.parse_args(argv)
    stale = {name: text for name, text in pages().items() if not _is(FOLDER / name, text)}
    for name, text in stale.items():
        print(f"{FOLDER / name}{' is stale; run scripts/reference.py' if args.check else ''}")
        if not args.check:
            (FOLDER / name).write_text(text, encoding="utf-8")
    return 1 if args.check and stale else 0


def _is(path: Path, text: str) -> bool:
    return path.is_file() and path.read_text(encoding="utf-8") == text


if __name__ == "__main__":
    from project_python import use_project_python

    use_project_python()
    sys.exit(main())
