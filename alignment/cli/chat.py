"""`alignment chat`: talk with a model, or with two side by side without knowing which is which."""

from __future__ import annotations

import getpass
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from alignment.errors import UserError, require_extra
from alignment.terminal import clean, one_line

if TYPE_CHECKING:
    from alignment.evaluation.chat import Dialogue
    from alignment.ratings import RatingsStore

chats = typer.Typer()


def _complete(ctx: Any, incomplete: str) -> list[str]:
    from alignment.cli.completion import complete_reference  # imported late: it opens the registry

    return list(complete_reference(ctx, incomplete))


ModelsArgument = Annotated[
    list[str],
    typer.Argument(metavar="MODEL [MODEL]", help="A reference, a folder, or two.", autocompletion=_complete),
]
DbOption = Annotated[Path | None, typer.Option("--db", help="Keep the choices between two models in this file.")]


@chats.command("chat")
def chat(
    models: ModelsArgument,
    system: Annotated[str, typer.Option("--system", help="A system prompt.")] = "",
    temperature: Annotated[float, typer.Option("--temperature", min=0.0)] = 0.7,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1)] = 256,
    db: DbOption = None,
    labeler: Annotated[str | None, typer.Option("--labeler", help="Who chooses [default: the login name].")] = None,
    new_labeler: Annotated[
        bool, typer.Option("--new-labeler", help="The name is somebody new's, though it is near a known one.")
    ] = False,
    plain: Annotated[bool, typer.Option("--plain", help="By lines, as it is without a terminal.")] = False,
    seed: Annotated[int, typer.Option("--seed", min=0, max=2**32 - 1)] = 0,
    registry: Annotated[
        Path | None,
        typer.Option("--registry", help="The registry's folder [default: $ALIGNMENT_REGISTRY or ./registry]."),
    ] = None,
) -> None:
    """Talk with a model, or with two blind.  Example: alignment chat my-sft my-ppo --db ratings.db --labeler ada"""
    if len(models) > 2:
        raise UserError(f"{len(models)} models: expected one, or two to choose between")
    if db is not None and len(models) == 1:
        raise UserError("--db keeps choices between two models: name a second one, or leave --db out")
    if labeler is not None and db is None:
        raise UserError("--labeler names who chooses, and nothing is kept without --db FILE")
    if new_labeler and labeler is None:
        raise UserError("--new-labeler goes with --labeler NAME")
    by_lines = plain or not (sys.stdin.isatty() and sys.stdout.isatty())
    if not by_lines:
        require_extra("rating", "textual", purpose="the chat screen (--plain chats by lines)")
    from alignment.evaluation.chat import ChatSettings, Dialogue, Speaker
    from alignment.models.sources import find_model
    from alignment.ratings import RatingsStore
    from alignment.ratings.records import check_labeler
    from alignment.registry import Registry

    name = labeler or getpass.getuser()
    check_labeler(name)
    opened = Registry(registry)
    speakers = [Speaker(find_model(each, opened, role="policy")) for each in models]
    dialogue = Dialogue(speakers, ChatSettings(temperature, max_new_tokens, seed), system)
    with ExitStack() as stack:
        store = None if db is None else stack.enter_context(RatingsStore(db, create=True))
        if store is not None and labeler is not None and not new_labeler:
            store.people.check_new(name, "add --new-labeler")
        if by_lines:
            talk(dialogue, store, name)
            return
        from alignment.evaluation.chat_screen import ChatApp

        status = ChatApp(dialogue, store, name).run()
    raise typer.Exit(status or 0)


def talk(dialogue: Dialogue, store: RatingsStore | None, labeler: str) -> None:
    """A chat by lines of standard input; answers go to standard output as they are drawn, and the rest to stderr."""
    while (question := _line("> ")) is not None:
        if not question:
            continue
        dialogue.ask(question)
        try:
            dialogue.answer(_printer(streams=len(dialogue.speakers) == 1))
        except UserError as error:
            dialogue.take_back()
            print(f"error: {one_line(str(error))}", file=sys.stderr)
            continue
        print()
        if dialogue.waiting:
            _choose(dialogue, store, labeler)


def _printer(streams: bool) -> Callable[[int, str], bool]:
    """Prints an answer as it grows; two answers are printed whole, once both are there."""
    written = ""

    def heard(place: int, text: str) -> bool:
        nonlocal written
        if streams and text.startswith(written):
            print(clean(text[len(written) :]), end="", flush=True)
            written = text
        return False

    return heard


def _choose(dialogue: Dialogue, store: RatingsStore | None, labeler: str) -> None:
    keys: dict[str, Literal["left", "right", "tie", "skip"]] = {"1": "left", "2": "right", "0": "tie", "s": "skip"}
    for number, answer in enumerate(dialogue.waiting, 1):
        print(f"[{number}] {clean(answer.text)}")
    while dialogue.waiting:
        key = _line("which is better? 1, 2, 0 equal, s skip: ")
        if key is None:
            return
        if key in keys:
            print(clean(dialogue.choose(keys[key], store, labeler)))


def _line(prompt: str) -> str | None:
    """The next line, or None at the end of the input; the prompt is shown on a terminal alone."""
    if sys.stdin.isatty():
        print(prompt, end="", file=sys.stderr, flush=True)
    line = sys.stdin.readline()
    return line.strip() if line else None
