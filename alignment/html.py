"""Self-contained HTML pages: one file to open, print, mail or attach, in light and dark.

The page's content security policy forbids every request, and every script except this page's own, by its hash, so that
even an escaping mistake is harmless.
"""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

from alignment.errors import UserError
from alignment.files import new_file
from alignment.terminal import clean, one_line

_HEAD = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'{{ page_policy | safe }}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ page_title }}</title>
<style>
:root { color-scheme: light dark; --error: #c62828; --warning: #b26a00; --note: #1565c0; --good: #2e7d32;
  --line: #8884; --soft: #8881; --dim: #666; }
@media (prefers-color-scheme: dark) {
  :root { --error: #ff8a80; --warning: #ffb74d; --note: #82b1ff; --good: #81c784; --dim: #aaa; }
}
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 1.5rem auto 4rem; padding: 0 1rem; }
h1 { font-size: 1.5rem; line-height: 1.3; margin: 0 0 .2rem; }
h2 { font-size: 1.1rem; margin: 2.2rem 0 .6rem; }
p { margin: 0; } .source { color: var(--dim); overflow-wrap: anywhere; margin-bottom: 1.2rem; }
.scroll { overflow-x: auto; } .facts th { width: 7.5rem; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; padding: .3rem .9rem .3rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { font-weight: 600; white-space: nowrap; } thead th { color: var(--dim); font-weight: 400; }
td { overflow-wrap: anywhere; } .number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.finding { border-left: .3rem solid; border-radius: .2rem; background: var(--soft); padding: .6rem .9rem;
  margin: .6rem 0; }
.finding b { text-transform: capitalize; margin-right: .4rem; }
.error { border-color: var(--error); } .warning { border-color: var(--warning); } .note { border-color: var(--note); }
.error > p > b, h1.error { color: var(--error); } .warning > p > b, h1.warning { color: var(--warning); }
.note > p > b { color: var(--note); } h1.note { color: var(--good); }
.advice::before { content: "\\2192\\00a0"; } .advice { color: var(--dim); }
.dim { color: var(--dim); font-size: .9rem; margin-top: .4rem; }
details { font-size: .9rem; margin-top: .2rem; } summary { cursor: pointer; color: var(--dim); }
ul { margin: .3rem 0; padding-left: 1.2rem; max-height: 20rem; overflow-y: auto; } li { overflow-wrap: anywhere; }
"""


class _Lines(str):
    """A cleaned text that keeps its line breaks; it is escaped like any other."""


def render(
    title: str, style: str, macros: str, body: str, *, script: str = "", data: Any = None, **context: Any
) -> str:
    """A whole page; every text that the templates insert is cleaned of controls and escaped.

    Args:
        style: CSS beside the frame's.
        macros, body: trusted Jinja templates.
        script: trusted JavaScript, the only script that the page may run.
        data: plain values for the script, as JSON in the element `data`.
        context: values for the templates. A text becomes one line; one that may have several lines goes through
            `| lines`.
    """
    from jinja2 import Environment

    def safe(value: Any) -> Any:  # only plain text is cleaned, since a macro's result is markup already
        return one_line(value) if type(value) is str else value

    environment = Environment(autoescape=True, trim_blocks=True, finalize=safe)
    environment.filters["lines"] = lambda text: _Lines(clean(text))
    policy = f"; script-src 'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
    end = f"{_embedded(data)}<script>{script}</script>\n" if script else ""
    page = f"{macros}{_HEAD}{style}</style>\n</head>\n<body>\n{body}{{{{ page_end | safe }}}}</body>\n</html>\n"
    return environment.from_string(page).render(
        page_title=title, page_policy=policy if script else "", page_end=end, **context
    )


def write(path: Path, text: str, option: str) -> None:
    """Write a page atomically; it may replace an earlier page, but nothing else.

    Args:
        option: the command-line option that names the file.

    Raises:
        UserError: the path is a folder or another kind of file, or cannot be written.
    """
    try:
        if path.is_dir() or not path.name:
            raise UserError(f"{option} {path}: that is a folder; name a file, as in {option} {path / 'page.html'}")
        if path.is_file() and not _is_page(path):
            raise UserError(f"{option} {path}: exists already and is no page; remove it or name another file")
        # A link means its target, such as /dev/stdout; pipes are written directly too.
        if path.is_symlink() or (path.exists() and not path.is_file()):
            path.write_text(text, encoding="utf-8")
            return
        with new_file(path, replace=path.exists()) as part:
            part.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{option} {path}: cannot be written: {error.strerror}; name another file") from None


def _is_page(path: Path) -> bool:
    with path.open("rb") as file:
        start = file.read(200)
    return not start or start.lstrip().startswith(b"<!DOCTYPE html>")


def _embedded(data: Any) -> str:
    """JSON in a script element that no text in it can close: `<` is escaped."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    return f'<script type="application/json" id="data">{text}</script>\n'
