"""What rendered Markdown may be made of, written down apart from the code, and hostile Markdown."""

import random
import re
from html.parser import HTMLParser

from helpers.rating_page import hostile

ELEMENTS = {
    "blockquote", "code", "div", "em", "h3", "h4", "h5", "h6", "hr", "li", "ol", "p", "pre", "s", "span", "strong",
    "table", "tbody", "td", "th", "thead", "tr", "ul",
}  # fmt: skip
CLASSES = "address|center|defined|info|keyword|link|number|remark|right|scroll|string|tex"
ATTRIBUTES = {
    "class": CLASSES,
    "dir": "auto|ltr",
    "start": r"\d{1,9}",
    "tabindex": "0",
    "role": "group",
    "aria-label": "Code|Formula|Table",
}  # not one of them makes a request, runs anything or sets a style


def check_tag(tag: str) -> None:
    """A start tag as it stands in the page."""
    name, *attributes = re.findall(r'^<\w+|[\w-]+="[^"]*"', tag)
    assert name[1:] in ELEMENTS, tag
    assert tag == f"{name}{''.join(f' {each}' for each in attributes)}>", tag
    for attribute in attributes:
        key, _, value = attribute.partition("=")
        assert re.fullmatch(ATTRIBUTES[key], value[1:-1]), tag


class Rendered(HTMLParser):
    """HTML of a text taken apart by the standard library: its tags are checked, and its text is kept."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == [], html

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        check_tag(self.get_starttag_text() or "")
        self.tags.append(tag)
        if tag != "hr":
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open and self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def handle_comment(self, data: str) -> None:
        raise AssertionError(f"a comment: {data}")

    def handle_decl(self, decl: str) -> None:
        raise AssertionError(f"a declaration: {decl}")

    unknown_decl = handle_pi = handle_decl


MARKS = [
    "**", "*", "_", "__", "~~", "`", "``", "```\n", "```python\n", "~~~js {x}\n", "\n", "\n\n", "  \n", "\\\n",
    "\n# ", "\n### ", "\n=====\n", "\n---\n", "\n***\n", "\n- ", "\n  - ", "\n1. ", "\n7) ", "\n> ", "\n>> ",
    "\n    ", "\n\t", "|", "\n|---|:-:|\n", "\n| a | b |\n|--:|---|\n| ", "\\|", "[", "](", ")", "](http://e.example/",
    "](javascript:alert(1))", "](<a b>)", '](u "', '")', "![", "![x](http://e.example/x.png)", "<http://e.example/>",
    "<javascript:alert(1)>", "[^1]", "\n[ref]: http://e.example 'title'\n", "[ref]", "$", "$$", "\n$$\n", "\\(", "\\)",
    "\\[", "\\]", "\n\\begin{align}\n", "\n\\end{align}\n", "\\*", "\\", "&amp;", "&#8238;", "&#x1b;", "&lt;b&gt;",
    "&nbsp;", "- [ ] ", ":---", "<div>\n", "</div>", "\n<script>\n", "<b onclick=x>", "\n<!--\n",
]  # fmt: skip


def hostile_markdown(rng: random.Random) -> tuple[str, list[str]]:
    """A text of Markdown's marks and of hostile pieces, and the words between them."""
    text, words = "", []
    for number in range(rng.randint(1, 8)):
        words.append(f"w{number}x{rng.randrange(10)}q")
        text += "".join(rng.choices(MARKS, k=rng.randint(1, 3))) + words[-1]
        if rng.random() < 0.3:
            text += hostile(rng)
    return text, words
