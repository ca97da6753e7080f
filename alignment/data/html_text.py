"""HTML as text: paragraphs, headings, lists and code of a page in order, with little else."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Literal

PieceKind = Literal["heading", "question", "text", "item", "code", "end"]
_BLOCKS = frozenset((
    "address", "article", "aside", "blockquote", "body", "caption", "dd", "details", "div", "dl", "dt", "fieldset",
    "figcaption", "figure", "footer", "form", "h1", "h2", "h3", "h4", "h5", "h6", "header", "hr", "html", "li", "main",
    "ol", "p", "pre", "section", "summary", "table", "tbody", "thead", "tr", "ul",
))  # fmt: skip
_SKIPPED = frozenset(("script", "style", "template", "noscript", "head", "nav", "footer", "aside", "svg"))
_SECTIONS = ("article", "section", "main")
_CELLS = ("td", "th")
_QUESTIONS = ("dt", "summary")
_LISTS = ("ul", "ol")
_WHOLE = re.compile(
    r"\s*<(!doctype|html|body|div|p|span|table|ul|ol|h[1-6]|br|b|strong|em|i|a|font)\b.*>\s*", re.I | re.S
)
# Removed first: the parser needs quadratic time for comments that do not end.
COMMENT = re.compile(r"<!--.*?(?:-->|\Z)", re.DOTALL)
_PART = re.compile(r"<br\s*/?>|</(p|div|span|li|ul|ol|table)>", re.I)


@dataclass
class Piece:
    """A block of a page: a heading (`level`), a question that the page marks as one, text, or where an answer ends."""

    kind: PieceKind
    text: str = ""
    level: int = 0
    is_bold: bool = False
    """All of the text is bold."""
    line: int = 1


@dataclass
class _Open:
    """The block that is being read."""

    kind: PieceKind = "text"
    level: int = 0
    line: int = 1
    parts: list[str] = field(default_factory=list)
    num_bold: int = 0


class PageParser(HTMLParser):
    """Collects the pieces of a page; `feed` may be called with parts of it.

    `num_images` counts images, which are left out.
    """

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.pieces: list[Piece] = []
        self.num_images = 0
        self._block = _Open()
        self._skipping: list[str] = []
        self._bold = self._code = self._sections = 0
        self._lists: list[bool] = []  # of each open list, whether its item has a heading and so is a section
        self._is_question = False  # in a dt or summary; a dt need not be closed
        self._links: list[tuple[str, int]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "body":
            self._skipping.clear()  # a head need not be closed
        if tag in _SKIPPED or (tag == "header" and not self._sections):  # one of a page, not of an article
            if tag in _BLOCKS and not self._skipping:
                self._close()
            self._skipping.append(tag)
        elif self._skipping:
            return
        elif tag == "br":
            self._add("\n")
        elif tag == "img":
            self.num_images += 1
        elif tag in ("b", "strong"):
            self._bold += 1
        elif tag == "a":
            self._links.append((dict(attrs).get("href") or "", len(self._block.parts)))
        elif tag in _CELLS:
            self._add(" | " if self._block.parts else "")
        elif tag in _BLOCKS:
            self._sections += tag in _SECTIONS
            self._enter(tag)
            self._code += tag == "pre"
            self._is_question = tag in _QUESTIONS or (self._is_question and tag not in ("dd", "dl", "details"))
            self._begin(int(tag[1]) if re.fullmatch(r"h[1-6]", tag) else 0)

    def handle_endtag(self, tag: str) -> None:
        if self._skipping:
            if tag in self._skipping:
                del self._skipping[self._skipping.index(tag) :]
        elif tag in ("b", "strong"):
            self._bold = max(0, self._bold - 1)
        elif tag == "a" and self._links:
            self._end_link(*self._links.pop())
        elif tag in _BLOCKS:
            self._close()
            self._sections = max(0, self._sections - (tag in _SECTIONS))
            if tag in _LISTS:
                del self._lists[-1:]
            self._code = max(0, self._code - (tag == "pre"))
            self._is_question = self._is_question and tag not in (*_QUESTIONS, "dd", "dl", "details")
            self._block.kind = self._kind_inside()
            if tag in ("details", "dl"):
                self.pieces.append(Piece("end", line=self.getpos()[0]))

    def handle_data(self, data: str) -> None:
        if not self._skipping:
            self._add(data if self._code else re.sub(r"\s+", " ", data))

    def close(self) -> None:
        super().close()
        self._close()

    def _enter(self, tag: str) -> None:
        """Keep track of lists; an li need not be closed."""
        if tag in _LISTS:
            self._lists.append(False)
        elif self._lists and (tag == "li" or tag == "summary" or re.fullmatch(r"h[1-6]", tag)):
            self._lists[-1] = tag != "li"

    def _begin(self, level: int) -> None:
        self._close()
        self._block = _Open("heading" if level else self._kind_inside(), level, self.getpos()[0])

    def _add(self, text: str) -> None:
        self._block.parts.append(text)
        self._block.num_bold += len(text.strip()) if self._bold else 0

    def _end_link(self, address: str, start: int) -> None:
        label = "".join(self._block.parts[start:]).strip()
        if address.startswith(("http://", "https://")) and address.rstrip("/") != label.rstrip("/"):
            self._add(f" ({address})" if label else address)

    def _close(self) -> None:
        block, self._block = self._block, _Open(self._kind_inside(), 0, self.getpos()[0])
        raw = "".join(block.parts)
        lines = raw.strip("\n").split("\n") if block.kind == "code" else [line.strip() for line in raw.split("\n")]
        text = "\n".join(lines).strip() if block.kind != "code" else "\n".join(lines).rstrip()
        if text.strip():
            is_bold = block.num_bold >= len(text.replace("\n", "")) - 2
            text = re.sub(r"[ \t]+", " ", text) if block.kind != "code" else text
            self.pieces.append(Piece(block.kind, text, block.level, is_bold, block.line))

    def _in_item(self) -> bool:
        return bool(self._lists) and not self._lists[-1]

    def _kind_inside(self) -> PieceKind:
        """The kind of a block by the elements around it."""
        return "code" if self._code else "question" if self._is_question else "item" if self._in_item() else "text"


def page_pieces(page: str) -> list[Piece]:
    """The pieces of an HTML page, in order."""
    parser = PageParser()
    parser.feed(COMMENT.sub("", page))
    parser.close()
    return parser.pieces


def as_markdown(pieces: Iterable[Piece]) -> str:
    """Pieces as Markdown: questions are headings of the lowest level, and text after the end of one is not below it."""
    shown: list[Piece] = []
    above = Piece("end")
    is_after_end = False
    for piece in pieces:
        if piece.kind in ("text", "item", "code") and is_after_end and above.kind == "heading":
            shown.append(above)
        above = piece if piece.kind == "heading" else above
        is_after_end = piece.kind == "end"
        shown += [] if is_after_end else [piece]
    return join_pieces(shown)


def join_pieces(pieces: Iterable[Piece]) -> str:
    """Pieces as Markdown, a blank line between them; items of a list stand on adjacent lines."""
    text, last = "", ""
    for piece in pieces:
        marked = {
            "heading": f"{'#' * piece.level} {piece.text}",
            "question": f"###### {piece.text}",
            "item": f"- {piece.text}",
            "code": f"```\n{piece.text}\n```",
        }.get(piece.kind, piece.text)
        text += ("\n" if last == piece.kind == "item" else "\n\n" if text else "") + marked
        last = piece.kind
    return text


def is_html(text: str) -> bool:
    """Whether a text looks like HTML: it begins and ends with tags, or has line breaks or ends of blocks."""
    return "<" in text and bool(_WHOLE.fullmatch(text) or _PART.search(text))


def body_text(body: str) -> tuple[str, int]:
    """The text of a message in HTML, and the number of images left out of it."""
    parser = PageParser()
    parser.feed(COMMENT.sub("", body))
    parser.close()
    pieces = [Piece("text", piece.text) if piece.kind == "heading" else piece for piece in parser.pieces]
    return join_pieces(piece for piece in pieces if piece.kind != "end"), parser.num_images
