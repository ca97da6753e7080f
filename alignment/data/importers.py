"""Import rows from plain documents and from question lists, in Markdown, HTML or text."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from alignment.data.html_text import Piece, as_markdown, page_pieces
from alignment.data.opening import DataError, DataFile, Note, PassedOver
from alignment.data.question_lists import html_questions, markdown_questions, num_questions, question_rows

__all__ = ["PassedOver", "document_rows", "faq_rows", "sectioned_text", "text_files"]

Rows = Iterator[tuple[str, Any]]
HTML_SUFFIXES = (".html", ".htm")
TEXT_SUFFIXES = (".md", ".markdown", ".txt", *HTML_SUFFIXES)
_FAQ_PAGE = 3
"""A page with so many questions that have answers is said to be a question list."""
_LOOKED_AT = 1 << 18
"""Characters of the largest page that is looked at for questions: parsing takes a second for each million."""
_MAY_ASK = re.compile(r"<summary|^[ \t]*(?:\*\*|__|[-*+][ \t]|Q|Question\b).*[?:]", re.MULTILINE)


def text_files(path: Path) -> list[Path]:
    """The Markdown, HTML and text files at or below a path, sorted."""
    files = [path] if path.is_file() else path.rglob("*")
    return sorted(
        file
        for file in files
        if file.suffix.lower() in TEXT_SUFFIXES and file.is_file() and not file.name.startswith("._")
    )


def document_rows(files: Sequence[Path], note: Note = lambda text: None) -> Rows:
    """Yield one `text` row for each file, with the file as its `source_id`; an HTML page as Markdown."""
    for file in files:
        raw = _read(file, note)
        if len(raw) <= _LOOKED_AT and raw.count("?") >= _FAQ_PAGE and file.suffix.lower() != ".txt":
            count = num_questions(_questions(file, raw))
            if count >= _FAQ_PAGE:
                note(f"{file}: has {count} questions with answers; data.format=faq (--format faq) reads it as such")
        yield str(file), {"text": _shown(file, raw), "source_id": str(file)}


def _shown(file: Path, raw: str) -> str:
    """The text of a document: an HTML page as Markdown, anything else as it is."""
    return as_markdown(page_pieces(raw)) if file.suffix.lower() in HTML_SUFFIXES else raw


def sectioned_text(file: Path, note: Note = lambda text: None) -> str:
    """The text of a document, with its questions as headings (in the file they may be bold lines or list items)."""
    raw = _read(file, note)
    is_html = file.suffix.lower() in HTML_SUFFIXES
    if not is_html and not _MAY_ASK.search(raw):
        return raw
    pieces = _questions(file, raw)
    return as_markdown(pieces) if is_html or any(piece.kind == "question" for piece in pieces) else raw


def faq_rows(files: Sequence[Path], note: Note = lambda text: None) -> Rows:
    """Yield a `question`, `answer` row for each question of a page that has text below it.

    Questions are headings, bold lines and list items that ask, folded parts (details) and terms (dl, dt).
    """
    for file in files:
        loose: list[Piece] = []
        found = False
        for line, row in question_rows(_questions(file, _read(file, note)), loose):
            found = True
            yield f"{file}:{line}", row
        if not found:
            raise DataError(
                f"{file}: no question with an answer below it; expected headings, bold questions, details or dl in "
                "Markdown or HTML (without data.format=faq it is read as a text)"
            )
        if loose:
            note(f"{file}: {len(loose)} texts that stand below no question are left out")


def _questions(file: Path, raw: str) -> list[Piece]:
    return html_questions(raw) if file.suffix.lower() in HTML_SUFFIXES else markdown_questions(raw)


def _read(file: Path, note: Note) -> str:
    source = DataFile(file)
    encoding = source.guessed_encoding()
    with source.utf8(encoding) as stream:
        text = stream.read().decode("utf-8")
    if encoding not in ("utf-8", "utf-8-sig"):
        note(f"{file}: read as {encoding}")
    return text.replace("\r\n", "\n").replace("\r", "\n")
