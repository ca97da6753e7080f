"""Markdown as HTML of few elements. Nothing from a text gets into an attribute, so nothing can make a request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markdown_it.token import Token
from markupsafe import Markup, escape

from alignment.labeling.rendering.highlighting import colored
from alignment.labeling.rendering.reading import address, read_item
from alignment.ratings import Assignment
from alignment.terminal import clean

BOX = 'class="scroll" tabindex="0" role="group" aria-label='  # to scroll by keyboard, where it is too wide
INLINE: Mapping[str, str] = {
    "em_open": "<em>", "em_close": "</em>", "strong_open": "<strong>", "strong_close": "</strong>",
    "s_open": "<s>", "s_close": "</s>", "softbreak": "\n", "hardbreak": "\n", "link_open": '<span class="link">',
}  # fmt: skip


@dataclass(frozen=True)
class ItemHtml:
    """An item's texts rendered, None for one without Markdown, shown as it is. `note`: why none is rendered."""

    prompt: list[Markup | None]
    completions: list[Markup | None]
    formatted: bool
    note: str


def item_html(item: Assignment) -> ItemHtml:
    """What the page shows of an item beside its raw texts."""
    read = read_item(item.prompt, item.completions)
    prompt, completions = (
        [None if tokens is None else html(tokens) for tokens in texts] for texts in (read.prompt, read.completions)
    )
    return ItemHtml(prompt, completions, read.formatted, read.note)


def html(tokens: Sequence[Token]) -> Markup:
    """A text's blocks. Lines are broken where the text breaks them; no space is there that the text has not."""
    parts: list[str] = []
    level = 2  # of the last heading; the page's own are above, and no level may be left out
    for token in tokens:
        if token.type == "heading_open":
            level = min(level + 1, int(token.tag[1]) + 2, 6)
        if token.type == "inline":
            parts += _inline(token.children or ())
        elif token.type in ("fence", "code_block"):
            parts += _code(token)
        elif token.type == "tex_block":
            parts.append(f'<pre {BOX}"Formula" dir="ltr"><code class="tex">{escape(token.content)}</code></pre>')
        elif not token.hidden:
            parts.append(_block(token, f"h{level}" if token.type.startswith("heading") else token.tag))
    return Markup(clean("".join(parts)))  # noqa: S704 - every text in it was escaped


def _block(token: Token, tag: str) -> str:
    """A tag; a list or a quote is of one direction."""
    if token.nesting < 0:
        return f"</{tag}></div>" if tag == "table" else f"</{tag}>"
    more = ' dir="auto"' if token.level == 0 and tag != "hr" else ""
    if tag == "ol" and token.attrs.get("start", 1) != 1:
        more += f' start="{int(token.attrs["start"])}"'
    if tag in ("th", "td"):
        align = str(token.attrs.get("style", "")).removeprefix("text-align:")
        more += f' class="{align}"' if align in ("center", "right") else ""
    return f'<div {BOX}"Table"><table{more}>' if tag == "table" else f"<{tag}{more}>"


def _code(token: Token) -> list[str]:
    info = f'<p class="info">{escape(token.info.strip())}</p>' if token.info.strip() else ""
    parts = [f'{info}<pre {BOX}"Code" dir="ltr"><code>']
    for kind, text in colored(token.content, token.info):
        parts.append(f'<span class="{kind}">{escape(text)}</span>' if kind else escape(text))
    return [*parts, "</code></pre>"]


def _inline(children: Sequence[Token]) -> list[str]:
    parts: list[str] = []
    links: list[Token] = []
    for token in children:
        parts.append(INLINE.get(token.type, ""))
        if token.type == "link_open":
            links.append(token)
        elif token.type == "link_close":
            parts.append(f"</span>{_address(links.pop())}")
        elif token.type == "image":
            parts.append(f'<span class="link">{escape(token.content or "image")}</span>{_address(token)}')
        elif token.type == "code_inline":
            parts.append(f'<code dir="ltr">{escape(token.content)}</code>')
        elif token.type == "tex_inline":
            parts.append(f'<code class="tex" dir="ltr">{escape(token.content)}</code>')
        elif token.type not in INLINE:
            parts.append(escape(token.content))
    return parts


def _address(token: Token) -> str:
    shown = address(token)
    return f' <span class="address" dir="ltr">({escape(shown)})</span>' if shown else ""
