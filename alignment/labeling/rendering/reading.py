"""Prompts and answers taken apart as Markdown, so that nothing is hidden and no text takes long.

Raw HTML and definitions of references stay text. A text that is beyond the limits stays raw, with all of its item:
answers that look unlike are not judged alike.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.rules_block import StateBlock
from markdown_it.rules_core import StateCore
from markdown_it.rules_inline import StateInline
from markdown_it.token import Token

from alignment.labeling.rendering.tex import keep_tex
from alignment.terminal import clean

MOST_CHARACTERS = 300_000  # of an item's texts together, as the two below
MOST_STEPS = 100_000  # rules tried at characters that mean something, a few for each such character
MOST_BLOCKS = 100_000
MOST_DEPTH = 20  # of quotes in lists, and of marks in a line
MOST_ADDRESS = 300  # characters; an image may be written out in its address
TOO_LONG, TOO_DEEP, TOO_HARD = "too long to render", "too deeply nested to render", "cannot be rendered"
PLAIN = {"paragraph_open", "inline", "paragraph_close", "text", "softbreak"}
_BAR = re.compile(r"(?<!\\)\|")


class BeyondLimits(Exception):
    """A text that is not rendered; says why."""


@dataclass
class Budget:
    """What is left of an item's limits."""

    characters: int = MOST_CHARACTERS
    steps: int = MOST_STEPS
    blocks: int = MOST_BLOCKS


@dataclass(frozen=True)
class ItemMarkdown:
    """The texts of an item as tokens, None for a text without Markdown, which is shown as it is."""

    prompt: list[list[Token] | None] = field(default_factory=list)
    completions: list[list[Token] | None] = field(default_factory=list)
    note: str = ""
    """Why the item is only shown raw, if it has Markdown and is."""

    @property
    def formatted(self) -> bool:
        """Whether rendered looks other than raw."""
        return any(tokens is not None for tokens in (*self.prompt, *self.completions))


def read_item(prompt: Sequence[Mapping[str, str]], completions: Sequence[str]) -> ItemMarkdown:
    """Take an item's texts apart, all of them or none."""
    budget = Budget()
    try:
        said = [read(message["content"], budget) for message in prompt]
        return ItemMarkdown(said, [read(text, budget) for text in completions])
    except BeyondLimits as beyond:
        return ItemMarkdown([None] * len(prompt), [None] * len(completions), str(beyond))
    except Exception:  # noqa: BLE001 - an item that the parser stumbles over must not end the rating
        return ItemMarkdown([None] * len(prompt), [None] * len(completions), TOO_HARD)


def read(text: str, budget: Budget | None = None) -> list[Token] | None:
    """The blocks of a text, None if it has no Markdown. Texts in them are to be cleaned: `&#8238;` is a control.

    Raises BeyondLimits.
    """
    budget = budget or Budget()
    budget.characters -= len(text)
    if budget.characters < 0:
        raise BeyondLimits(TOO_LONG)
    tokens = _parser().parse(clean(text), {"budget": budget})
    if all(token.type in PLAIN and all(each.type in PLAIN for each in token.children or ()) for token in tokens):
        return None
    if any(token.level > MOST_DEPTH or _depth(token.children or ()) > MOST_DEPTH for token in tokens):
        raise BeyondLimits(TOO_DEEP)
    return tokens


@cache
def _parser() -> MarkdownIt:
    # Two levels more than are let through: at its own limit the parser drops what is deeper.
    parser = MarkdownIt("commonmark", {"html": False, "maxNesting": MOST_DEPTH + 2})
    parser.enable(["table", "strikethrough"]).disable(["html_block", "html_inline", "reference", "text_join"])
    keep_tex(parser)
    everywhere: Any = {"alt": ["paragraph", "reference", "blockquote", "list"]}
    parser.block.ruler.before("table", "limit_blocks", _limit_blocks, everywhere)
    parser.inline.ruler.after("text", "limit_steps", _limit_steps)
    parser.core.ruler.after("block", "keep_cells", _keep_cells)
    as_written: Any = str  # an address; nothing can follow it
    parser.normalizeLink = parser.normalizeLinkText = as_written  # type: ignore[method-assign]
    parser.validateLink = as_written  # type: ignore[method-assign]
    return parser


def _limit_blocks(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    """Called for each line of a paragraph or table too; a few characters can make thousands of empty cells."""
    if len(state.tokens) > state.env["budget"].blocks:
        raise BeyondLimits(TOO_LONG)
    return False


def _limit_steps(state: StateInline, silent: bool) -> bool:
    state.env["budget"].steps -= 1
    if state.env["budget"].steps < 0:
        raise BeyondLimits(TOO_LONG)
    return False


def _keep_cells(state: StateCore) -> None:
    """Cells beyond a table's columns, which Markdown drops, stay in the last one."""
    state.env["budget"].blocks -= len(state.tokens)
    lines = state.src.split("\n")
    cells = 0
    for index, token in enumerate(state.tokens):
        if token.type == "tr_open" and token.map:
            parts = _BAR.split(lines[token.map[0]].lstrip("> \t").rstrip())
            parts = parts[not parts[0].strip() :]
            parts = parts[: len(parts) - (not parts[-1].strip())] if parts else []
            cells = 0
        elif token.type == "td_close":
            cells += 1
        elif token.type == "tr_close" and 0 < cells < len(parts):
            last = state.tokens[index - 2]
            last.content = " | ".join([last.content, *(part.strip() for part in parts[cells:])])


def _depth(children: Sequence[Token]) -> int:
    depth = deepest = 0
    for token in children:
        depth += token.nesting
        deepest = max(deepest, depth)
    return deepest


def address(link: Token) -> str:
    """Where a link or an image points, with its title, to be read; nothing where the link's text says it."""
    if link.markup == "autolink":
        return ""
    where = str(link.attrs.get("href") or link.attrs.get("src") or "")
    where = where if len(where) <= MOST_ADDRESS else f"{where[:MOST_ADDRESS]}…"
    return f'{where} "{link.attrs["title"]}"' if link.attrs.get("title") else where
