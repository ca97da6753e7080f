"""Split documents into passages: at headings, and within long sections at paragraph borders.

The split is lossless: the concatenated texts of a document's chunks are the document.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from alignment.data.importers import TEXT_SUFFIXES, sectioned_text
from alignment.data.row_files import DataError, Note, read_rows
from alignment.errors import UserError

SUFFIXES = (*TEXT_SUFFIXES, ".jsonl", ".jsonl.gz")
CHUNK_SIZE = 4000
"""Maximum number of characters of a passage: about 1,000 tokens of English."""

Kind = Literal["heading", "paragraph", "item", "table", "code", "aside", "blank"]

_ATX = re.compile(r" {0,3}(#{1,6})([ \t].*)?")
_UNDERLINE = re.compile(r" {0,3}(=+|-+)[ \t]*")
_RULE = re.compile(r" {0,3}([-*_])(?:[ \t]*\1){2,}[ \t]*")
_ITEM = re.compile(r"([ \t]*)([-*+]|\d{1,9}[.)])[ \t]+(?=\S)")
# At any indentation: a fence in a list item is indented, and splitting it would turn the following prose into code.
_FENCE = re.compile(r"[ \t]*(?:(`{3,})[^`]*|(~{3,}).*)")


@dataclass(frozen=True)
class SourceDocument:
    """A text and its source: `docs/guide.md`, or `docs/rows.jsonl:12`."""

    file: str
    text: str


@dataclass(frozen=True)
class Block:
    """Lines of a document. Headings have `level` and `title`; an `aside` is front matter, a comment or a rule."""

    kind: Kind
    text: str
    level: int = 0
    title: str = ""

    @property
    def unmarked(self) -> str:
        """The text without a list item's bullet or number."""
        return _ITEM.sub("", self.text, count=1) if self.kind == "item" else self.text.lstrip()

    @property
    def plain(self) -> str:
        """`unmarked` without inline markup and line breaks."""
        return plain(self.unmarked)

    @property
    def is_numbered(self) -> bool:
        """Whether this is a numbered list item."""
        return self.kind == "item" and self.text.lstrip()[:1].isdigit()


@dataclass(frozen=True)
class Chunk:
    """A passage: blocks of one section, and the headings above them, outermost first."""

    file: str
    title: str
    headings: tuple[str, ...]
    blocks: tuple[Block, ...]

    @property
    def text(self) -> str:
        """The passage as in the document, including its heading."""
        return "".join(block.text for block in self.blocks)

    @property
    def body(self) -> str:
        """The passage without headings and asides."""
        return "".join(block.text for block in self.blocks if block.kind not in ("heading", "aside")).strip()

    @property
    def context(self) -> str:
        """The headings and the body, which questions may be about."""
        return "\n\n".join(part for part in (" > ".join(self.headings), self.body) if part)

    @property
    def sha256(self) -> str:
        """The hash of the context; the same passage in two files has the same hash."""
        return hashlib.sha256(self.context.encode("utf-8", "surrogatepass")).hexdigest()


# --- reading ---------------------------------------------------------------------------------------------------------


def read_documents(
    paths: Sequence[str | Path], note: Note = lambda text: None
) -> tuple[list[SourceDocument], list[tuple[str, str]]]:
    """The documents of files and folders without hidden ones, and the texts set aside with the reason.

    Markdown and plain text are read alike, HTML as Markdown; questions in bold or in folded parts become headings. A
    JSONL file has one document per row, under `text`.

    Args:
        note: takes a line about a file that is not read as UTF-8.

    Raises:
        UserError: a path does not exist or is not supported, or there is no document.
    """
    documents: list[SourceDocument] = []
    bad: list[tuple[str, str]] = []
    for path in map(Path, paths):
        root = path.resolve()
        for file in _files(path):
            # Relative to the folder, so that pairs do not reveal local paths.
            name = (Path(root.name) / file.relative_to(path) if path.is_dir() else Path(file.name)).as_posix()
            for place, text in _texts(file, name, note):
                if isinstance(text, DataError):
                    bad.append((place, str(text)))
                elif not text.isascii() and any("\ud800" <= char <= "\udfff" for char in text):
                    bad.append((place, "holds half of a surrogate pair, which is no character"))
                elif text.strip():
                    documents.append(SourceDocument(place, text))
                else:
                    bad.append((place, "empty"))
    if not documents:
        first = f"; the first of {len(bad)} set aside: {bad[0][0]}: {bad[0][1]}" if bad else ""
        raise UserError(
            f"{', '.join(map(str, paths))}: no document to read; expected {', '.join(SUFFIXES)} with text{first}"
        )
    return documents, bad


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        return sorted(
            file
            for file in path.rglob("*")
            if file.name.endswith(SUFFIXES)
            and file.is_file()
            and not any(part.startswith(".") for part in file.relative_to(path).parts)
        )
    if not path.exists():
        raise UserError(f"{path}: no such file or folder; give the documents, as a folder or as files")
    if not path.name.endswith(SUFFIXES):
        raise UserError(f"{path}: this file type is not supported; expected {', '.join(SUFFIXES)}")
    return [path]


def _texts(file: Path, name: str, note: Note) -> Iterator[tuple[str, str | DataError]]:
    try:
        if file.name.endswith((".jsonl", ".jsonl.gz")):
            for where, row in read_rows(file, note):
                text = row.get("text") if isinstance(row, dict) else None
                place = f"{name}:{where.rpartition(':')[2]}"
                yield place, text if isinstance(text, str) else DataError("no text under 'text'")
        else:
            yield name, sectioned_text(file, note)
    except DataError as error:
        yield name, DataError(str(error).removeprefix(f"{file}:").lstrip())


# --- blocks ----------------------------------------------------------------------------------------------------------


def parse_blocks(text: str) -> list[Block]:
    """The blocks of a Markdown or plain text, in order; their concatenated texts are the text."""
    lines = re.findall(r"[^\n]*\n|[^\n]+", text)
    blocks: list[Block] = []
    line_index = _front_matter(lines)
    if line_index:
        blocks.append(Block("aside", "".join(lines[:line_index])))
    while line_index < len(lines):
        block, line_index = _block_at(lines, line_index)
        blocks.append(block)
    return blocks


def _front_matter(lines: list[str]) -> int:
    """Number of lines of YAML front matter, whose last line would otherwise turn the previous one into a heading."""
    if len(lines) > 2 and lines[0].rstrip() == "---" and re.match(r"[\w-]+[ \t]*:", lines[1]):
        return next((index for index, line in enumerate(lines[1:], 2) if line.rstrip() in ("---", "...")), 0)
    return 0


def _block_at(lines: list[str], start: int) -> tuple[Block, int]:
    """The block that begins at a line, and the index of the line after it."""
    line = lines[start].rstrip("\r\n")
    heading = _ATX.fullmatch(line)
    if heading:
        return Block("heading", lines[start], len(heading[1]), _atx_title(heading[2] or "")), start + 1
    if not line.strip():
        return Block("blank", lines[start]), start + 1
    if _RULE.fullmatch(line):
        return Block("aside", lines[start]), start + 1
    fence = _FENCE.fullmatch(line)
    if fence:
        mark = fence[1] or fence[2]
        closing = re.compile(rf"[ \t]*{re.escape(mark[0])}{{{len(mark)},}}\s*")
        stop = next(
            (index + 1 for index in range(start + 1, len(lines)) if closing.fullmatch(lines[index])), len(lines)
        )
        return Block("code", "".join(lines[start:stop])), stop
    if line.lstrip().startswith("<!--"):
        stop = next((index + 1 for index in range(start, len(lines)) if "-->" in lines[index]), 0)
        if stop:
            return Block("aside", "".join(lines[start:stop])), stop
    stop = start + 1
    while stop < len(lines) and not _interrupts(lines[stop].rstrip("\r\n")):
        stop += 1
    text = "".join(lines[start:stop])
    if _ITEM.match(line):
        return Block("item", text), stop
    underline = _UNDERLINE.fullmatch(lines[stop].rstrip("\r\n")) if stop < len(lines) else None
    if underline and lines[stop].strip():
        return Block("heading", text + lines[stop], 1 if underline[1][0] == "=" else 2, plain(text)), stop + 1
    return Block("table" if line.lstrip().startswith("|") else "paragraph", text), stop


def _atx_title(text: str) -> str:
    title = text.strip()
    opened = title.rstrip("#")  # "## Fees ##" is closed, "## C#" is not
    return plain(opened if not opened or opened[-1].isspace() else title)


def _interrupts(line: str) -> bool:
    """Return whether a line ends the paragraph or list item before it."""
    patterns = (_ATX, _RULE, _UNDERLINE, _FENCE)
    return not line.strip() or bool(_ITEM.match(line)) or any(pattern.fullmatch(line) for pattern in patterns)


def plain(markdown: str) -> str:
    """Text without inline markup and line breaks."""
    text = re.sub(r"(?m)^[ \t]*>[ \t]?", "", markdown)
    parts = re.split(
        r"(?<!`)(`{1,5})(?!`)(.{1,500}?)(?<!`)\1(?!`)", text, flags=re.DOTALL
    )  # text, backticks, code, text, ...
    parts[::3] = [_without_marks(part) for part in parts[::3]]
    return " ".join("".join(part for index, part in enumerate(parts) if index % 3 != 1).split())


def _without_marks(text: str) -> str:
    # The text between two marks is bounded; otherwise a text of opening marks would take quadratic time.
    text = re.sub(r"!?\[([^\[\]]*)\](?:\([^()\s]*(?:[ \t]+\"[^\"]*\")?\)|\[[^\[\]]*\])", r"\1", text)
    text = re.sub(r"(?<!\\)(\*\*|__)(?=\S)(.{1,500}?)(?<=\S)\1", r"\2", text, flags=re.DOTALL)
    text = re.sub(r"(?<![\w*\\])\*(?=[^\s*])([^*]{1,500}?)(?<=\S)\*(?![\w*])", r"\1", text)
    text = re.sub(r"(?<![\w\\])_(?=[^\s_])([^_]{1,500}?)(?<=\S)_(?!\w)", r"\1", text)
    return re.sub(r"\\([\\`*_{}\[\]()#+.!>-])", r"\1", text)


# --- chunks ----------------------------------------------------------------------------------------------------------


def cut(document: SourceDocument, chunk_size: int = CHUNK_SIZE) -> list[Chunk]:
    """A document's passages in order: one per section, or more if its body exceeds `chunk_size` characters.

    Long sections are split between blocks, and a block that is too long at a line, a sentence or a space. Fenced code
    is never split, so a long code block is a larger passage.
    """
    blocks = parse_blocks(document.text)
    title = next((block.title for block in blocks if block.level == 1 and block.title), Path(document.file).stem)
    chunks: list[Chunk] = []
    above: list[Block] = []
    for section in _sections(blocks):
        if section[0].kind == "heading":
            above = [block for block in above if block.level < section[0].level] + [section[0]]
        headings = tuple(block.title for block in above if block.title)
        chunks += [Chunk(document.file, title, headings, tuple(part)) for part in _parts(section, chunk_size)]
    return chunks


def _sections(blocks: list[Block]) -> Iterator[list[Block]]:
    starts = [index for index, block in enumerate(blocks) if block.kind == "heading"]
    for start, stop in itertools.pairwise(sorted({0, *starts, len(blocks)})):
        yield blocks[start:stop]


def _parts(section: list[Block], size: int) -> Iterator[list[Block]]:
    part: list[Block] = []
    length = 0
    for block in itertools.chain.from_iterable(_pieces(block, size) for block in section):
        is_body = block.kind not in ("heading", "aside")
        if length and is_body and block.kind != "blank" and length + len(block.text) > size:
            yield part
            part, length = [], 0
        part.append(block)
        if is_body and (length or block.kind != "blank"):
            length += len(block.text)
    yield part


def _pieces(block: Block, size: int) -> Iterator[Block]:
    """The block, or parts of it of at most `size` characters."""
    text = block.text
    while block.kind in ("paragraph", "item", "table") and len(text) > size:
        stop = _border(text, size)
        yield Block(block.kind, text[:stop])
        text = text[stop:]
    yield Block(block.kind, text, block.level, block.title)


def _border(text: str, size: int) -> int:
    """The split position: after the last line, sentence or word that ends in the second half of `size`."""
    for pattern in (r"\n", r"[.!?][\"')\]]*\s+", r"\s+"):
        ends = [match.end() for match in re.finditer(pattern, text[:size]) if 2 * match.end() > size]
        if ends:
            return ends[-1]
    return size
