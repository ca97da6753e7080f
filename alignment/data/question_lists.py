"""Read question lists: Markdown and HTML pages whose headings, bold lines, list items or folded parts are questions."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from alignment.data.html_text import COMMENT, PageParser, Piece, join_pieces, page_pieces

_FRONT_MATTER = re.compile(r"\A---[ \t]*\n[\w-]+[ \t]*:.*?\n(?:---|\.\.\.)[ \t]*\n", re.DOTALL)
_ASKED = re.compile(r"\A(?:Q|Question)\s*(?:\d+\s*)?[:.)]\s*", re.IGNORECASE)
_ANSWERED = re.compile(r"\A(\*\*|__)?(?:A|Answer)\s*(?:\d+\s*)?[:.)]\s*(?(1)\1\s*)", re.IGNORECASE)

_NUMBER = re.compile(
    r"\A(?:\(?\d{1,3}(?:\.\d{1,3})*[.):]|#\d{1,3}[.):]?|\d{1,3}(?:\.\d{1,3})+(?=\s+[^\W\d_a-z]))\s+(?=\S)"
)
"""The number of a question: `1.`, `2)`, `(3)`, `#4`, `1.2`."""
_TITLE = re.compile(
    r"faqs?|frequently asked questions(?: \(faqs?\))?|questions(?: (?:and|&) answers)?|q ?(?:&|and) ?a|help|overview|"
    r"introduction|(?:table of )?contents|about this page",
    re.IGNORECASE,
)
_LINK = re.compile(r"\[([^\]]*)\]\([^)]*\)")
_ITEM = re.compile(r"\A\s*(?:[-*+]|\d{1,3}[.)])\s+")


def question_rows(pieces: Iterable[Piece], loose: list[Piece] | None = None) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the line of each question that has text below it, and its `question`, `answer` row.

    Questions that follow each other in one list of terms share the answer. `loose` takes texts below no question.
    """
    asked: list[Piece] = []
    answer: list[Piece] = []
    for piece in [*_without_titles([*pieces]), Piece("end")]:
        if piece.kind in ("text", "item", "code"):
            if asked:
                answer.append(piece)
            elif loose is not None:
                loose.append(piece)
            continue
        text = join_pieces(answer)
        if _only_asks(text):
            if loose is not None:
                loose += answer
            text = ""
        if text.strip():
            for question in asked:
                yield question.line, {"question": _NUMBER.sub("", question.text, count=1), "answer": text.strip()}
        if text.strip() or piece.kind != "question" or not all(each.kind == "question" for each in asked):
            asked = []
        answer = []
        if piece.kind != "end":
            asked.append(piece)


def _asks(text: str) -> bool:
    return text.strip("*_ ").endswith("?")


def _without_titles(pieces: Sequence[Piece]) -> list[Piece]:
    """The pieces with titles as mere ends: their text introduces a page or a part, and answers nothing.

    A heading that does not ask is a title where its name says so, where questions or deeper headings follow before the
    next heading of its rank, or where it is the first and all others ask.
    """
    marks = [place for place, piece in enumerate(pieces) if piece.kind in ("heading", "question")]
    titles = set()
    for index, place in enumerate(marks):
        piece = pieces[place]
        following = pieces[marks[index + 1]] if index + 1 < len(marks) else None
        if piece.kind != "heading" or _asks(piece.text):
            continue
        is_parent = following is not None and (following.kind == "question" or following.level > piece.level)
        others_ask = not index and len(marks) > 2 and all(_asks(pieces[other].text) for other in marks[1:])
        if is_parent or others_ask or _TITLE.fullmatch(piece.text.strip("*_: ")):
            titles.add(place)
    return [Piece("end") if place in titles else piece for place, piece in enumerate(pieces)]


def _only_asks(text: str) -> bool:
    """Whether a text is a list of questions, as help pages have at their head; it is no answer."""
    items = [_ITEM.sub("", _LINK.sub(r"\1", line)).strip() for line in text.splitlines() if line.strip()]
    return len(items) > 1 and all(map(_asks, items))


def _without_marks(pieces: Sequence[Piece]) -> list[Piece]:
    """The pieces without `Q:` before questions, and `A:` before the answers of those."""
    bare: list[Piece] = []
    was_marked = False
    for piece in pieces:
        is_question = piece.kind in ("heading", "question")
        mark = _ASKED if is_question else _ANSWERED if was_marked and piece.kind == "text" else None
        was_marked = is_question and bool(_ASKED.match(piece.text))
        bare.append(replace(piece, text=mark.sub("", piece.text, count=1).strip() or piece.text) if mark else piece)
    return bare


def num_questions(pieces: Iterable[Piece]) -> int:
    """Number of rows whose question ends as one, by which a page is known as a question list."""
    return sum(row["question"].endswith("?") for _, row in question_rows(pieces))


# --- HTML ----------------------------------------------------------------------------------------------------------


def html_questions(page: str) -> list[Piece]:
    """The pieces of an HTML page; bold paragraphs that ask are questions."""
    pieces: list[Piece] = []
    for piece in page_pieces(page):
        first, _, rest = piece.text.partition("\n")
        if piece.kind == "text" and ((piece.is_bold and first.endswith("?")) or _ASKED.match(first)):
            pieces.append(Piece("question", first, line=piece.line))
            pieces += [Piece("text", rest, line=piece.line)] if rest.strip() else []
        else:
            pieces.append(piece)
    return _without_marks(pieces)


# --- Markdown ------------------------------------------------------------------------------------------------------


def markdown_questions(text: str) -> list[Piece]:
    """The pieces of a Markdown page: headings, bold lines and items that ask, folded parts; other text as it is."""
    from markdown_it import MarkdownIt

    text = _FRONT_MATTER.sub(lambda found: "\n" * found[0].count("\n"), text, count=1)
    lines = text.split("\n")
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    folded = PageParser()
    pieces: list[Piece] = []
    at = 0
    while at < len(tokens):
        token = tokens[at]
        end = _end_of(tokens, at)
        start, stop = token.map or (0, 0)
        source = Piece("text", "\n".join(lines[start:stop]).rstrip(), line=start + 1)
        if token.type == "heading_open":
            pieces.append(Piece("heading", _plain(tokens[at + 1]), int(token.tag[1]), line=start + 1))
        elif token.type == "html_block":
            pieces += _folded(folded, token.content, start)
        elif token.type == "paragraph_open":
            pieces += _paragraph(tokens[at + 1], source)
        elif token.type in ("bullet_list_open", "ordered_list_open"):
            pieces += _asking_items(tokens[at:end], lines) or [source]
        elif token.type != "hr":
            pieces.append(source)
        at = end
    return _without_marks(_joined(pieces))


def _end_of(tokens: Sequence[Any], at: int) -> int:
    """The index after the block that begins at a token."""
    depth = 0
    for index in range(at, len(tokens)):
        depth += tokens[index].nesting
        if depth == 0:
            return index + 1
    return len(tokens)


def _plain(inline: Any) -> str:
    """The text of an inline token without marks."""
    texts = [" " if child.type in ("softbreak", "hardbreak") else child.content for child in inline.children or []]
    return "".join(texts).strip()


def _folded(parser: PageParser, block: str, start: int) -> list[Piece]:
    """The new pieces that a block of HTML adds; the Markdown between such blocks is not the parser's."""
    known = len(parser.pieces)
    parser.feed(COMMENT.sub("", block))
    parser.feed("<div></div>")  # ends a text that no tag ends
    pieces, parser.pieces = parser.pieces[known:], parser.pieces[:known]
    for piece in pieces:
        piece.line = start + 1
    return pieces


def _paragraph(inline: Any, source: Piece) -> list[Piece]:
    """A paragraph that is a bold question, with what follows it, or one marked `Q:`; else its source."""
    children = inline.children or []
    if children and children[0].type in ("text", "strong_open") and not children[0].content:
        children = [child for index, child in enumerate(children) if index or child.type != "text"]
    if children and children[0].type == "strong_open":
        close = next(index for index, child in enumerate(children) if child.type == "strong_close")
        question = "".join(child.content for child in children[1:close]).strip()
        rest = inline.content.partition(children[0].markup)[2].partition(children[0].markup)[2].strip()
        if question.endswith("?") or (_ASKED.match(question) and _ASKED.sub("", question, count=1)):
            return _asked(question, rest, source)
    elif _ASKED.match(inline.content):
        first, _, rest = inline.content.partition("\n")
        return _asked(first, rest, source)
    return [source]


def _asked(question: str, rest: str, source: Piece) -> list[Piece]:
    pieces = [Piece("question", question, line=source.line)]
    return [*pieces, Piece("text", rest, line=source.line)] if rest.strip() else pieces


def _asking_items(tokens: Sequence[Any], lines: Sequence[str]) -> list[Piece]:
    """The items of a list as questions and answers, if each begins with a line that asks and goes on; else nothing."""
    pieces: list[Piece] = []
    for index, token in enumerate(tokens):
        if token.type != "list_item_open" or token.level != tokens[0].level + 1:
            continue
        inline = tokens[index + 2] if tokens[index + 1].type == "paragraph_open" else None
        question, _, rest = (inline.content if inline else "").partition("\n")
        bare = question.strip("*_ ")
        after = lines[inline.map[1] : token.map[1]] if inline else []
        answer = "\n".join([rest, *(line.strip() for line in after)]).strip()
        if not bare.endswith("?") or not answer:
            return []
        pieces += [Piece("question", bare, line=token.map[0] + 1), Piece("text", answer), Piece("end")]
    return pieces


def _joined(pieces: Sequence[Piece]) -> list[Piece]:
    """The pieces with texts that stand on adjacent lines as one, as they were written."""
    joined: list[Piece] = []
    for piece in pieces:
        last = joined[-1] if joined else None
        if last and last.kind == piece.kind == "text" and last.line + last.text.count("\n") + 1 == piece.line:
            last.text += "\n" + piece.text
        else:
            joined.append(piece)
    return joined
