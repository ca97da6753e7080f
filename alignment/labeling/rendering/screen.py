"""Markdown in a terminal, for Rich to lay out. Every text goes through `clean`, into `Text`, which reads no markup."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from markdown_it.token import Token
from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.padding import Padding
from rich.rule import Rule
from rich.segment import Segment
from rich.style import Style
from rich.table import Table
from rich.text import Text

from alignment.labeling.rendering.highlighting import colored
from alignment.labeling.rendering.reading import address
from alignment.terminal import clean

GROUND = "on #262b31"
STYLES: Mapping[str, str] = {
    "em_open": "italic",
    "strong_open": "bold",
    "s_open": "strike",
    "link_open": "underline",
    "image": "underline",
    "code_inline": f"#e6c07b {GROUND}",
    "tex_inline": "#a5d6a7",
    "address": "dim",
    "keyword": "#c792ea",
    "string": "#a5d6a7",
    "number": "#f6c177",
    "remark": "italic #9aa4af",
    "defined": "#82b1ff",
    "": "",
}
NARROWEST = 16  # columns for a text
NARROWEST_COLUMN = 6  # of a table


def blocks(tokens: Sequence[Token]) -> RenderableType:
    """A text's blocks, with an empty line between them."""
    return LaidOut(Group(*_spaced(_Blocks(tokens).until(""))))


def conversation(messages: Sequence[Mapping[str, str]], tokens: Sequence[Sequence[Token] | None]) -> RenderableType:
    """A prompt's messages, each under its role; one without Markdown is shown as it is."""
    parts: list[RenderableType] = []
    for message, blocks_of in zip(messages, tokens, strict=True):
        role = Text(clean(message["role"]).upper(), "bold green")
        if blocks_of is not None:
            parts.append(Group(role, blocks(blocks_of)))
        elif shown := clean(message["content"]).strip():
            parts.append(Text("  ").join([role, Text(shown)]))
        else:
            parts.append(Text("  ").join([role, Text("(empty)", "dim italic")]))
    return Group(*_spaced(parts))


def _spaced(parts: list[RenderableType]) -> Iterator[RenderableType]:
    for index, part in enumerate(parts):
        if index:
            yield Text()
        yield part


class _Blocks:
    """Walks over tokens and makes what they say."""

    def __init__(self, tokens: Sequence[Token]) -> None:
        self._tokens = iter(tokens)

    def until(self, closing: str) -> list[RenderableType]:
        """What comes before a closing token, which is taken too."""
        parts: list[RenderableType] = []
        for token in self._tokens:
            if token.type == closing:
                break
            made = self._block(token)
            parts += [] if made is None else [made]
        return parts

    def _block(self, token: Token) -> RenderableType | None:
        match token.type:
            case "inline":
                return line(token.children or ())
            case "heading_open":
                style = "bold underline" if token.tag in ("h1", "h2") else "bold"
                return Group(*(_styled(part, style) for part in self.until("heading_close")))
            case "blockquote_open":
                return Indented(Group(*_spaced(self.until("blockquote_close"))), "▌ ", "▌ ")
            case "bullet_list_open" | "ordered_list_open":
                return self._list(token)
            case "table_open":
                return self._table()
            case "fence" | "code_block":
                code = Text(tab_size=4)
                for kind, text in colored(token.content.rstrip("\n"), token.info):
                    code.append(clean(text), STYLES[kind])
                info = [Text(clean(token.info.strip()), "dim")] if token.info.strip() else []
                return Group(*info, Padding(code, (0, 1), style=GROUND))
            case "tex_block":
                return Padding(Text(clean(token.content), STYLES["tex_inline"], tab_size=4), (0, 2))
            case "hr":
                return Rule(characters="─", style="dim")
            case _:  # of a paragraph, or of a list whose lines are no paragraphs
                return None

    def _list(self, opening: Token) -> RenderableType:
        items: list[RenderableType] = []
        number = int(opening.attrs.get("start", 1))
        for token in self._tokens:
            if token.type != "list_item_open":
                break
            mark = "• " if opening.tag == "ul" else f"{number + len(items)}. "
            items.append(Indented(Group(*self.until("list_item_close")), mark, " " * len(mark)))
        return Group(*items)

    def _table(self) -> RenderableType:
        rows: list[list[Text]] = []
        aligned: list[str] = []
        for token in self._tokens:
            if token.type == "table_close":
                break
            if token.type == "tr_open":
                rows.append([])
            elif token.type in ("th_open", "td_open"):
                if token.type == "th_open":
                    aligned.append(str(token.attrs.get("style", "")).removeprefix("text-align:") or "left")
            elif token.type == "inline":
                rows[-1].append(line(token.children or ()))
        return Cells(rows, aligned)


class LaidOut:
    """Something long that is laid out once for a width: the screen asks for its height, and then for its lines."""

    def __init__(self, inside: RenderableType) -> None:
        self._inside = inside
        self._lines: list[list[Segment]] = []
        self._width: int | None = None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
        if self._width != options.max_width:
            self._lines = console.render_lines(self._inside, options.update(height=None), pad=False)
            self._width = options.max_width
        for strip in self._lines:
            yield from strip
            yield Segment.line()


class Indented:
    """A quote or an item of a list: with a mark before each line, or above them where too little room would be left."""

    def __init__(self, inside: RenderableType, first: str, others: str) -> None:
        self._inside, self._marks = inside, (first, others)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType | Segment]:
        first, others = self._marks
        room = options.max_width - len(first)
        if room < NARROWEST:
            yield Text(first, "dim")
            yield self._inside
            return
        lines = console.render_lines(self._inside, options.update(width=room, height=None), pad=False)
        for index, strip in enumerate(lines):
            yield Segment(others if index else first, Style(dim=True))
            yield from strip
            yield Segment.line()


class Cells:
    """A table, or its rows as lines where the screen is too narrow for columns that can be read."""

    def __init__(self, rows: Sequence[Sequence[Text]], aligned: Sequence[str]) -> None:
        self._rows, self._aligned = rows, aligned

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        if len(self._aligned) * NARROWEST_COLUMN > options.max_width:
            for row in self._rows:
                yield Text(" | ").join(row)
            return
        table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
        for head, align in zip(self._rows[0], self._aligned, strict=True):
            table.add_column(head, justify=align, overflow="fold")  # type: ignore[arg-type]
        for row in self._rows[1:]:
            table.add_row(*row)
        yield table


def line(children: Sequence[Token]) -> Text:
    """A paragraph's text with its styles."""
    text = Text(overflow="fold")
    styles: list[str] = []
    links: list[Token] = []
    for token in children:
        if token.nesting > 0:
            styles.append(STYLES[token.type])
            links += [token] if token.type == "link_open" else []
        elif token.nesting < 0:
            styles.pop()
            if token.type == "link_close":
                _append_address(text, links.pop())
        elif token.type in ("softbreak", "hardbreak"):
            text.append("\n")
        else:
            content = token.content or ("image" if token.type == "image" else "")
            shown = clean(content).replace("\t", "    ")  # Rich would take a tab for one column where it measures
            text.append(shown, " ".join([*styles, STYLES.get(token.type, "")]))
            if token.type == "image":
                _append_address(text, token)
    return text


def _append_address(text: Text, link: Token) -> None:
    shown = address(link)
    if shown:
        text.append(clean(f" ({shown})"), STYLES["address"])


def _styled(part: RenderableType, style: str) -> RenderableType:
    if isinstance(part, Text):
        part.stylize(style)
    return part
