"""The colours of code, by Pygments. They never change a character, and no code takes long."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from itertools import groupby
from operator import itemgetter

from pygments.lexers import get_lexer_by_name
from pygments.token import Comment, Keyword, Name, Number, Operator, String, _TokenType

KINDS: Mapping[_TokenType, str] = {
    Comment: "remark",
    Keyword: "keyword",
    Operator.Word: "keyword",
    String: "string",
    Number: "number",
    Name.Function: "defined",
    Name.Class: "defined",
    Name.Tag: "keyword",
    Name.Attribute: "defined",
    Name.Builtin: "defined",
}
LANGUAGES: Mapping[str, str] = {
    name: lexer
    for lexer, names in {
        "python": "python py python3",
        "typescript": "typescript ts tsx",
        "java": "java",
        "c": "c",
        "cpp": "cpp c++",
        "csharp": "csharp c# cs",
        "go": "go golang",
        "rust": "rust rs",
        "ruby": "ruby rb",
        "php": "php",
        "kotlin": "kotlin",
        "swift": "swift",
        "r": "r",
        "yaml": "yaml yml",
        "toml": "toml",
        "diff": "diff patch",
        "tex": "tex latex",
        "javascript": "javascript js jsx",
        "json": "json",
        "bash": "bash sh shell zsh",
        "html": "html",
        "xml": "xml svg",
        "css": "css",
        "sql": "sql",
    }.items()
    for name in names.split()
}
MOST_CHARACTERS = 20_000  # of a block of code
MOST_SECONDS = 0.2  # of the processor, for a block; what is left then has no colours


def colored(code: str, info: str) -> Iterator[tuple[str, str]]:
    """Pieces of a block of code with their kind, "" for plain; `info` is what stands behind its opening fence."""
    for kind, pieces in groupby(_pieces(code, info), key=itemgetter(0)):
        yield kind, "".join(text for _, text in pieces)


def _pieces(code: str, info: str) -> Iterator[tuple[str, str]]:
    lexer = LANGUAGES.get(info.split(maxsplit=1)[0].lower() if info.strip() else "")
    done = 0
    if lexer is not None and len(code) <= MOST_CHARACTERS:
        tokens = get_lexer_by_name(lexer, stripnl=False, ensurenl=False).get_tokens(code)
        end = time.thread_time() + MOST_SECONDS
        for number, (kind, text) in enumerate(tokens):
            late = number % 100 == 0 and time.thread_time() > end
            if late or not code.startswith(text, done):  # a lexer that makes up or drops characters
                break
            done += len(text)
            yield _kind(kind), text
    if done < len(code):
        yield "", code[done:]


def _kind(token: _TokenType | None) -> str:
    while token is not None:
        if token in KINDS:
            return KINDS[token]
        token = token.parent
    return ""
