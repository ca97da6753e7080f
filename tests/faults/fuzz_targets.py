"""What `fuzzing.py` damages: data files, configs, registries, and requests to the rating page."""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import json
import logging
import os
import random
import socket
import threading
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any, get_args
from unittest import mock
from urllib.parse import urlencode

import pyarrow
import pyarrow.parquet
from fuzzing import PIECES, Case, Finding, changed, changed_value
from helpers.models_command import run as models
from helpers.rating_page import Page, pairs
from helpers.registry_faults import make_source, publish

from alignment.config.loading import load_config
from alignment.config.sections import DataConfig, Format
from alignment.config.yaml_text import parse_yaml
from alignment.data import parsing
from alignment.data.check.findings import report_of
from alignment.data.check.inspector import Inspector
from alignment.data.check.page import html_page
from alignment.data.check.report import text_lines
from alignment.data.convert import TARGETS as FORMS
from alignment.data.convert import convert
from alignment.data.reading import train_and_eval
from alignment.data.shapes import SHAPES
from alignment.data.sources import open_source
from alignment.errors import UserError
from alignment.labeling.formats.table import FORMATS
from alignment.labeling.import_export import import_into
from alignment.labeling.web import make_app
from alignment.labeling.web_connections import listen, page_server
from alignment.ratings import RatingsStore
from alignment.registry import Parent, Registry, hashes, provenance, retention
from alignment.registry.doctor import examine
from ppo.config import PPOStageConfig
from reward.config import RewardStageConfig
from sft.config import SFTStageConfig

ROOT = Path(__file__).resolve().parents[2]

# --- data files ------------------------------------------------------------------------------------------------------

NAMES = sorted(
    {name for shape in SHAPES.values() for needed in (*shape.needs, *shape.reads) for name in needed.split("|")}
)
TASK = {
    "id": 1, "data": {"prompt": "Hi", "answer1": "Hello", "answer2": "Go away"},
    "annotations": [{"completed_by": 1, "result": [{"type": "pairwise", "value": {"selected": "left"}}]}],
}  # fmt: skip
ITEM = {
    "kind": "pair", "prompt": [{"role": "user", "content": "Hi"}], "completions": [{"text": "Hello"}, {"text": "No"}],
    "ratings": [{"labeler": "ann", "choice": "first", "strength": 2, "seconds": 3.5}],
}  # fmt: skip
RECORD = {"fields": {"prompt": "Hi"}, "responses": [{"values": {"best": {"value": "a"}}, "user_id": "ann"}]}
TICKET = {"ticket_id": 1, "created_at": "2024-01-02T03:04:05Z", "author": "ann", "body": "Hi", "role": "customer"}
MESSAGE = {"type": "message", "user": "U1", "text": "Hi <@U2>", "ts": "1700000000.0001", "thread_ts": "1700000000.0001"}
ROWS: list[Any] = [*(dict(shape.example) for shape in SHAPES.values()), TASK, ITEM, RECORD, TICKET, MESSAGE]
TEXTS = {
    ".md": "# Desk\n\n## When?\n\nAt *nine*.\n\n- a\n  - b\n\n```py\nx\n```\n\n| a | b |\n| - | - |\n| 1 | 2 |\n",
    ".html": "<html><h1>Desk</h1><dl><dt>When?</dt><dd>At <b>nine</b>.</dd></dl><table><tr><td>1</table><pre>x</pre>",
    ".txt": "Q: When?\nA: At nine.\n\nQ: Where?\nA: Here.\n",
}
CONVERTERS = ("to_examples", "to_demonstrations", "to_comparisons", "to_judgements", "to_prompts")


def table(rows: list[Any], separator: str) -> bytes:
    rows = [row if isinstance(row, dict) else {"text": row} for row in rows]
    text = io.StringIO(newline="")
    names = list(dict.fromkeys(str(name) for row in rows for name in row))
    writer = csv.DictWriter(text, names, delimiter=separator)
    writer.writeheader()
    for row in rows:
        cells = {str(name): cell if isinstance(cell, str) else json.dumps(cell) for name, cell in row.items()}
        with suppress(csv.Error):
            writer.writerow(cells)
    return text.getvalue().encode("utf-8", "surrogatepass")


def as_parquet(rows: list[Any]) -> bytes:
    out = io.BytesIO()
    try:
        made = pyarrow.Table.from_pylist([row for row in rows if isinstance(row, dict)])
        pyarrow.parquet.write_table(made, out)
    except (pyarrow.ArrowException, TypeError, ValueError, OverflowError, RecursionError):  # no such table
        made = pyarrow.table({"messages": [json.dumps(row, default=str)[:1000] for row in ROWS]})
        pyarrow.parquet.write_table(made, out)
    return out.getvalue()


def as_lines(rows: list[Any]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def packed(draw: random.Random, name: str, data: bytes) -> tuple[str, bytes]:
    """The file, or one in gzip or zip."""
    match draw.randrange(6):
        case 0:
            return f"{name}.gz", gzip.compress(data, 1)
        case 1:
            out = io.BytesIO()
            with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
                for member in draw.sample([name, "2024-01-02.json", "users.json", "../up.jsonl", f"d/{name}"], 2):
                    archive.writestr(member, data)
            return "d.zip", out.getvalue()
    return name, data


def data_file(draw: random.Random, folder: Path, given: list[Path]) -> Path:
    """A file of a few rows or a text, in one of the kinds, damaged in its values, in its bytes, or in both."""
    bytes_too = draw.random() < 0.5
    if given and draw.random() < 0.5:
        chosen = draw.choice(given)
        name, data, bytes_too = chosen.name, chosen.read_bytes()[:200_000], True
    elif draw.random() < 0.15:
        suffix = draw.choice(list(TEXTS))
        name, data, bytes_too = f"d{suffix}", TEXTS[suffix].encode(), True
    else:
        rows = [draw.choice(ROWS)] * draw.randint(1, 4)
        for _ in range(draw.randint(0 if bytes_too else 1, 3)):
            rows = changed_value(draw, rows, NAMES)
        rows = rows if isinstance(rows, list) else [rows]
        suffix = draw.choice([".jsonl", ".jsonl", ".ndjson", ".json", ".json", ".csv", ".tsv", ".parquet"])
        match suffix:
            case ".csv" | ".tsv":
                data = table(rows, draw.choice(",;\t") if suffix == ".csv" else "\t")
            case ".parquet":
                data = as_parquet(rows)
            case ".json":
                data = json.dumps(rows if draw.random() < 0.7 else {"data": rows}).encode()
            case _:
                data = as_lines(rows)
        name = f"d{suffix}"
    if bytes_too:
        data = changed(draw, data)
    name, whole = packed(draw, name, data)
    path = folder / name
    path.write_bytes(changed(draw, whole) if whole is not data and draw.random() < 0.3 else whole)
    return path


def inspect(config: DataConfig) -> None:
    inspector = Inspector(config)
    for part in config.parts:
        for where, row in open_source(part, config).rows:
            inspector.add(where, row, part.format or "auto")
    report = report_of(inspector, [config.parts[0].path])
    list(text_lines(report, 80))
    html_page(report)


def read(draw: random.Random, path: Path) -> None:
    format: Format = draw.choice(get_args(Format)) if draw.random() < 0.2 else "auto"
    columns = {"prompt": draw.choice(NAMES)} if draw.random() < 0.1 else {}
    bad = draw.choice([0.01, 0.999, 0.999])
    config = DataConfig(train=str(path), format=format, columns=columns, max_bad_share=bad, agents=("U2",))
    match draw.randrange(4):
        case 0 | 1:
            train_and_eval(config, getattr(parsing, draw.choice(CONVERTERS)))
        case 2:
            inspect(config)
        case _:
            convert(
                config, path.with_name(f"out{draw.choice(['.jsonl', '.csv', '.json', '.parquet'])}"), draw.choice(FORMS)
            )
    if draw.random() < 0.3:
        import_into(path.with_name("r.db"), "auto" if draw.random() < 0.7 else draw.choice(list(FORMATS)), path)


@contextmanager
def data(folder: Path) -> Iterator[Case]:
    """Every shape in every kind of file, through reading, checking, converting and importing."""
    more = os.environ.get("ALIGNMENT_FUZZ_FILES")  # a folder of other files to begin with
    given = sorted(path for path in Path(more).rglob("*") if path.is_file()) if more else []

    def case(draw: random.Random, place: Path) -> None:
        path = data_file(draw, place, given)
        with suppress(UserError):
            read(draw, path)

    yield case


# --- configs ---------------------------------------------------------------------------------------------------------

YAML = [
    *("a: ", "- ", "[", "]", "{", "}", "&x ", "*x", "<<: ", "? ", "|\n", ">\n", "\n", "  ", "'", '"', "#", "\t", "\\"),
    *("1e-5", "0x", "2024-13-45", "1:2:3", "~", "---\n", "...\n", "%YAML 9.9\n", "\ufeff", "\x00", "\u00e9", "&x [*x]"),
    *("!!int ", "!!float ", "!!bool ", "!!timestamp ", "!!binary ", "!!set ", "!!omap ", "!!python/name:os.system "),
]
STAGES = {"sft": SFTStageConfig, "reward": RewardStageConfig, "ppo": PPOStageConfig}


@contextmanager
def configs(folder: Path) -> Iterator[Case]:
    """The shipped configs of the stages, damaged as text and as values; overrides; and texts of YAML's signs alone."""
    shipped = [
        (name, path.read_bytes()) for name in STAGES for path in sorted((ROOT / "configs" / name).glob("*.yaml"))
    ]
    pieces = [*(piece.encode() for piece in YAML), *PIECES]
    values = {name: [parse_yaml(text.decode(), name) for stage, text in shipped if stage == name] for name in STAGES}
    sections = [section for parsed in sum(values.values(), []) for section in parsed.values()]
    names = sorted({key for section in sections if isinstance(section, dict) for key in section})

    def case(draw: random.Random, place: Path) -> None:
        stage, text = draw.choice(shipped)
        match draw.randrange(3):
            case 0:
                text = changed(draw, text, pieces)
            case 1:
                text = json.dumps(changed_value(draw, draw.choice(values[stage]), names)).encode()
            case _:
                text = "".join(draw.choice(YAML) for _ in range(draw.randint(1, 60))).encode()
        path = place / "c.yaml"
        path.write_bytes(text)
        key = f"{draw.choice(['training', 'data', 'model', 'ppo', ''])}.{draw.choice(names)}"
        said = changed(draw, f"{key}={draw.choice(['1', '[1]', '{a: 1}', 'null', 'x'])}".encode(), pieces)
        overrides = [said.decode("utf-8", "replace")] if draw.random() < 0.3 else []
        with suppress(UserError):
            load_config(STAGES[stage], path, overrides)

    yield case


# --- registries ------------------------------------------------------------------------------------------------------

COMMANDS = (
    *(("list", "--json"), ("show", "m@prod"), ("aliases", "m", "prod"), ("graph", "n"), ("doctor", "--json"), ("gc",)),
    *(("verify", "--all", "--mode", "cached"), ("promote", "m@v1", "prod")),
)


def calls(root: Path, source: Path) -> list[Callable[[Registry], Any]]:
    return [
        lambda registry: [registry.versions(name) for name in registry.names()],
        lambda registry: registry.load("m@prod", verify="always"),
        lambda registry: registry.lineage("n"),
        lambda registry: (registry.aliases("m"), registry.alias_history("m", "prod")),
        lambda registry: registry.set_alias("m", "prod", 2),
        lambda registry: list(examine(registry)),
        lambda registry: retention.protect(registry, "m@v1"),
        lambda registry: retention.remove(registry, "n@v1"),
        lambda registry: retention.collect(registry, keep=0, grace=0, delete=True),
        lambda registry: publish(registry, source, parents=[Parent("init", "m@prod")]),
    ]


OTHERS: list[Callable[[Path], object]] = [
    Path.mkdir, os.mkfifo, lambda path: path.symlink_to(path.parents[1]), lambda path: None,
]  # fmt: skip


def damage(draw: random.Random, root: Path) -> None:
    """One or two files changed, gone, in another's place or of another kind."""
    files = sorted(path for path in root.rglob("*") if path.is_file())
    for path in draw.sample(files, draw.randint(1, 2)):
        if not path.is_file():
            continue
        content = path.read_bytes()
        path.unlink()
        match draw.randrange(6):
            case 0 if path.suffix == ".json":
                path.write_text(
                    json.dumps(changed_value(draw, json.loads(content), ["version", "digest", "at", "files"]))
                )
            case 1 if (other := draw.choice(files)).is_file():
                path.write_bytes(other.read_bytes())
            case 2:
                draw.choice(OTHERS)(path)
            case _:
                path.write_bytes(changed(draw, content))


@contextmanager
def registry(folder: Path) -> Iterator[Case]:
    """Registries with damaged files, through the commands and the calls of `Registry`."""
    source, sound = make_source(folder / "source"), folder / "sound"
    variables = {"XDG_CACHE_HOME": str(folder / "cache")}
    with (
        mock.patch.dict(os.environ, variables),
        mock.patch.object(provenance, "code_state", return_value=None),
        mock.patch.object(hashes, "SETTLED_NS", 0),
    ):
        made = Registry(sound)
        for _ in range(2):
            publish(made, source)
        publish(made, source, "n", parents=[Parent("init", "m@v1")])
        made.set_alias("m", "prod", 1)
        made.set_alias("m", "prod", 2)
        copies = {path.relative_to(sound): path.read_bytes() for path in sound.rglob("*") if path.is_file()}

        def case(draw: random.Random, place: Path) -> None:
            for path, content in copies.items():
                (place / path).parent.mkdir(parents=True, exist_ok=True)
                (place / path).write_bytes(content)
            damage(draw, place)
            for command in draw.sample(COMMANDS, 2):
                result = models(*command, "--registry", str(place))
                if result.exception and not isinstance(result.exception, SystemExit):
                    raise result.exception
                if result.exit_code not in (0, 1, 2) or (result.exit_code == 2 and result.stderr.count("\n") != 1):
                    raise Finding(f"{command}: {result.exit_code} {result.output}")
                if "\x1b" in result.output or "Traceback" in result.output:
                    raise Finding(f"{command}: {result.output!r}")
            for call in draw.sample(calls(place, source), 4):
                with suppress(UserError):
                    call(Registry(place))

        yield case


# --- requests to the rating page -------------------------------------------------------------------------------------

PATHS = (
    "/",
    "/rate",
    "/draft",
    "/undo",
    "/practice/1",
    "/start",
    "/l/TOKEN",
    "/l/TOKEN/",
    "/static/rate.js",
    "/nothing",
    "*",
    "",
)
METHODS = ("GET", "POST", "POST", "HEAD", "PUT", "OPTIONS", "get", "PRI")
ANSWERS = ("first", "second", "tie", "1", "2", "3", "-2", "skip", "a", "b", "bad", "")
HTTP = [
    *(
        b"\r\n",
        b"\r\n\r\n",
        b"HTTP/1.1",
        b"HTTP/2.0",
        b"Transfer-Encoding: chunked\r\n",
        b"Content-Length: 5\r\n",
        b"ffffffff\r\n",
    ),
    *(
        b"Content-Length: -1\r\n",
        b"Content-Length: 99999999999999999999\r\n",
        b"Expect: 100-continue\r\n",
        b"Host: evil\r\n",
    ),
    *(
        b"Cookie: rating=x; rating=\xff\r\n",
        b"Content-Type: multipart/form-data; boundary=x\r\n",
        b"%00",
        b"%ff",
        b"%ud800",
    ),
    *(
        b"&rating=1",
        b"&rating=99999999999999999999999",
        b"&answer=\xff",
        b"&csrf=",
        b"&comment=%00%ED%A0%80",
        b"?saved=rank-9",
    ),
    *(b"Upgrade: websocket\r\nConnection: Upgrade\r\n", b"X: " + b"y" * 70000 + b"\r\n", b"/../", b"//", b"http://x/"),
]


class PageUnderFire:
    """The page's server in a thread, with every exception and every logged error kept."""

    def __init__(self, db: Path) -> None:
        self.db, self.found = db, []
        with RatingsStore(db, create=True) as store:
            store.settings.repeat_share = 0.0
            self.token = store.people.invite("ann")
        app = make_app(db)

        async def watched(scope: Any, receive: Any, send: Any) -> None:
            try:
                await app(scope, receive, send)
            except Exception as error:
                self.found.append(repr(error))
                raise

        self.server = page_server(watched)
        self.listener = listen("127.0.0.1", 0, self.server)
        self.address = self.listener.getsockname()
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.listener]}, daemon=True)
        self.thread.start()

    def page(self) -> Page:
        """What an honest labeler sees."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.address[1]}/", headers={"Cookie": f"rating={self.token}"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return Page(answer.read().decode())

    def form(self) -> dict[str, str]:
        fields = self.page().fields
        if "rating" not in fields:  # all is rated
            with RatingsStore(self.db) as store:
                texts = [{"text": "Hello"}, {"text": "No"}, {"text": "So"}]
                start = len(store.items())
                pairs(store, 20, start)
                for number in range(20):
                    asked = [{"role": "user", "content": f"{start} {number}"}]
                    store.add_item(asked, texts[: 1 if number % 2 else 3], kind="single" if number % 2 else "rank")
            fields = self.page().fields
        return fields

    def send(self, data: bytes) -> None:
        """The bytes of one connection; the answer is read as long as there is one."""
        with socket.create_connection(self.address, timeout=30) as connection, suppress(ConnectionError):
            connection.sendall(data)
            connection.settimeout(0.1)
            with suppress(TimeoutError):
                while connection.recv(65536):
                    pass

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(20)


def request(draw: random.Random, page: PageUnderFire, fields: dict[str, str]) -> bytes:
    path = draw.choice(PATHS).replace("TOKEN", page.token)
    form = fields | {
        "answer": draw.choice(ANSWERS),
        "comment": draw.choice(["", "ok", "x" * 5000]),
        "token": page.token,
    }
    if draw.random() < 0.5:
        form[draw.choice(list(form))] = changed(draw, draw.choice(list(form.values())).encode()).decode(
            "utf-8", "replace"
        )
    method, body = draw.choice(METHODS), urlencode(form).encode()
    headers = {
        "Host": "127.0.0.1",
        "Cookie": f"rating={page.token}",
        "Connection": draw.choice(["close", "keep-alive"]),
    }
    if method != "GET":
        headers |= {"Origin": "http://127.0.0.1", "Sec-Fetch-Site": "same-origin", "Content-Length": str(len(body))}
        headers |= {"Content-Type": "application/x-www-form-urlencoded"}
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
    whole = "\r\n".join(lines).encode() + (body if method != "GET" else b"")
    return whole if draw.random() < 0.3 else changed(draw, whole, HTTP + PIECES)


@contextmanager
def requests(folder: Path) -> Iterator[Case]:
    """Requests to the rating page as it is served; a labeler is answered in between."""
    logged: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            logged.append(self.format(record))

    keep = Keep(logging.ERROR)
    for name in ("uvicorn.error", "asyncio"):
        logging.getLogger(name).addHandler(keep)
    page = PageUnderFire(folder / "ratings.db")

    def case(draw: random.Random, place: Path) -> None:
        fields = page.form()
        for _ in range(5):
            page.send(b"".join(request(draw, page, fields) for _ in range(draw.choice([1, 1, 2]))))
        page.page()
        if page.found or logged:
            raise Finding("\n".join([*page.found, *logged]))

    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield case
    finally:
        page.stop()
        for name in ("uvicorn.error", "asyncio"):
            logging.getLogger(name).removeHandler(keep)


TARGETS: dict[str, Callable[[Path], AbstractContextManager[Case]]] = {
    "data": data,
    "configs": configs,
    "registry": registry,
    "requests": requests,
}
