"""Formulas in TeX keep their source: without this, Markdown would eat their backslashes, `_` and `*`."""

from __future__ import annotations

import re
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.rules_block import StateBlock
from markdown_it.rules_inline import StateInline

MOST_LINES = 40  # of a formula; no text makes the search for an end longer
INLINE = re.compile(
    r"\\\(.{1,1000}?\\\)"
    r"|\\\[.{1,1000}?\\\]"
    r"|\$\$.{1,1000}?\$\$"
    # As Pandoc has it, so that prices are none: no space within the dollars, no digit behind them.
    r"|\$(?![\s$])(?:[^$\\]|\\.){1,1000}(?<!\s)\$(?![\d$])",
    re.DOTALL,
)
OPENING = re.compile(r"\$\$|\\\[|\\begin\{([A-Za-z]{1,20}\*?)\}")


def keep_tex(parser: MarkdownIt) -> None:
    """Make tokens `tex_inline` and `tex_block`, with the source as content, of all formulas."""
    parser.inline.ruler.before("escape", "tex_inline", _inline)
    alternatives: Any = {"alt": ["paragraph", "reference", "blockquote", "list"]}
    parser.block.ruler.before("code", "tex_block", _block, alternatives)


def _inline(state: StateInline, silent: bool) -> bool:
    found = INLINE.match(state.src, state.pos, state.posMax) if state.src[state.pos] in "\\$" else None
    if found is None:
        return False
    if not silent:
        state.push("tex_inline", "", 0).content = found[0]
    state.pos = found.end()
    return True


def _block(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    """A formula that begins a line and whose end ends one, or comes before its full stop, with no empty line in it."""
    first = _line(state, start)
    opening = None if state.is_code_block(start) else OPENING.match(first)
    if opening is None:
        return False
    closing = rf"\end{{{opening[1]}}}" if opening[1] else {"$$": "$$", r"\[": r"\]"}[opening[0]]
    for line in range(start, min(end, start + MOST_LINES)):
        text = first[opening.end() :] if line == start else _line(state, line)
        if line > start and (not text or state.sCount[line] < state.blkIndent):
            return False
        if text.rstrip(".,;").endswith(closing):
            if not silent:
                token = state.push("tex_block", "", 0)
                token.content = state.getLines(start, line + 1, state.blkIndent, False).rstrip()
                token.map = [start, line + 1]
                state.line = line + 1
            return True
    return False


def _line(state: StateBlock, line: int) -> str:
    return state.src[state.bMarks[line] + state.tShift[line] : state.eMarks[line]].rstrip()
