"""Generate pairs without a model, from a passage's sections, definitions and lists and a Jinja template.

The template is rendered once for each such finding, and each line is a question that the finding answers.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from alignment.errors import UserError
from alignment.qa.documents import Block, Chunk, plain
from alignment.qa.pairs import QAPair

QUESTIONS = """\
{% if kind == "section" and heading.endswith("?") %}
{{ heading }}
{% elif kind == "section" and topic %}
What does "{{ title }}" say about "{{ topic }}"?
{% elif kind == "section" %}
What is "{{ title }}" about?
{% elif kind == "definition" %}
What is meant by {{ term }}?
{% elif kind == "list" %}
What are the points under "{{ topic or title }}"?
{% elif kind == "steps" %}
What are the steps of "{{ topic or title }}"?
{% endif %}
"""
_TERM_FIRST = re.compile(
    r"(\*\*|__|`)(?P<term>[^*_`\s]+(?:\s[^*_`\s]+){0,3}?):?\1(?:\s*[:–—]|\s+-)\s+(?P<rest>\S.*)", re.DOTALL
)
_IS = re.compile(
    r"(?:(?:An?|The)\s+)?(?P<term>[^\s,;:.()]+(?:\s+[^\s,;:.()]+){0,4}?)\s+"
    r"(?:(?:is|are)\s+(?:an?|the|any|one\s+of)|means|refers\s+to)\s"
)
_NO_TERM = ("this", "that", "these", "those", "it", "he", "she", "they", "there", "here", "what", "which", "who", "if")
_SENTENCE_END = re.compile(r"(?<=[.!?])[\"')\]]*\s+(?=[\"'(\[]?[A-Z0-9À-Þ])")


@dataclass(frozen=True)
class Topic:
    """An answerable element of a passage. `kind` is section, definition, list or steps."""

    kind: str
    answer: str
    term: str = ""


def find(chunk: Chunk) -> Iterator[Topic]:
    """Yield the findings of a passage.

    A section's answer is its prose with the lists, code and tables after a colon, or its lists if it has no prose.
    """
    items = [block for block in chunk.blocks if block.kind == "item"]
    listed = "\n".join(map(_said, items))
    prose = _prose(chunk)
    if prose or listed:
        yield Topic("section", prose or listed)
    for block in chunk.blocks:
        definition = _definition(block) if block.kind in ("paragraph", "item") else None
        if definition:
            yield definition
    if prose and len(items) > 1:
        yield Topic("steps" if all(block.is_numbered for block in items) else "list", listed)


def _prose(chunk: Chunk) -> str:
    text, announced = "", False
    for block in chunk.blocks:
        if block.kind == "paragraph":
            announced = block.plain.endswith(":")
        if block.kind == "paragraph" or (announced and block.kind in ("item", "code", "table")):
            text += ("\n" if block.kind == "item" else "\n\n") + _said(block)
    return text.strip()


def _said(block: Block) -> str:
    if block.kind in ("code", "table"):
        return block.text.strip()
    marker = re.match(r"\s*(\d{1,9}[.)])", block.text) if block.kind == "item" else None
    return f"{marker[1] if marker else '-'} {block.plain}" if block.kind == "item" else block.plain


def _definition(block: Block) -> Topic | None:
    emphasized = _TERM_FIRST.match(block.unmarked)
    if emphasized:
        rest = first_sentences(plain(emphasized["rest"]), 1)
        return Topic("definition", f"{emphasized['term'].strip()}: {rest}", emphasized["term"].strip())
    sentence = first_sentences(block.plain, 1)
    match = _IS.match(sentence)
    if match and match["term"].split()[0].casefold() not in _NO_TERM:
        return Topic("definition", sentence, match["term"])
    return None


def first_sentences(text: str, count: int) -> str:
    """The first sentences of a text, or the whole text if it has fewer."""
    ends = [match.end() for match in itertools.islice(_SENTENCE_END.finditer(text), count)]
    return text[: ends[-1]].rstrip() if len(ends) == count else text


class Questions:
    """A question template with `kind`, `title`, `heading`, `headings`, `topic`, `term`, `items` and `answer`.

    Raises:
        UserError: the template does not parse, or has an unknown variable.
    """

    def __init__(
        self, source: str = QUESTIONS, name: str = "the question template", sentences: int | None = None
    ) -> None:
        self.name, self.sentences = name, sentences
        self.sha256 = hashlib.sha256(source.encode()).hexdigest()
        self._template = compile_template(source, name)

    def pairs(self, chunk: Chunk) -> list[QAPair]:
        """The pairs of a passage, in the order of its findings."""
        topics = [heading for heading in chunk.headings if heading != chunk.title]
        passage_variables = {
            "title": chunk.title,
            "heading": chunk.headings[-1] if chunk.headings else chunk.title,
            "headings": list(chunk.headings),
            "topic": ": ".join(topics),
            "items": [block.plain for block in chunk.blocks if block.kind == "item"],
        }
        pairs = []
        for finding in find(chunk):
            answer = first_sentences(finding.answer, self.sentences) if self.sentences else finding.answer
            variables = passage_variables | {"kind": finding.kind, "term": finding.term, "answer": answer}
            for line in render(self._template, self.name, variables).splitlines():
                if line.strip():
                    pairs.append(QAPair(chunk, line.strip(), answer, {"model": None, "prompt_sha256": self.sha256}))
        return pairs


def compile_template(source: str, name: str) -> jinja2.Template:
    """A Jinja template in a sandbox, because documents and templates are untrusted."""
    environment = ImmutableSandboxedEnvironment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    try:
        return environment.from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise UserError(f"{name}:{error.lineno}: not a Jinja template: {error.message}") from None


def render(template: jinja2.Template, name: str, variables: Mapping[str, Any]) -> str:
    try:
        return template.render(variables)
    except jinja2.TemplateError as error:
        raise UserError(
            f"{name}: {error.message}; the template's variables are {', '.join(sorted(variables))}"
        ) from None
