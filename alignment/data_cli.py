"""`alignment data`: look at a data file before training on it, and part it."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer
from rich.text import Text

from alignment.errors import UserError
from alignment.qa_cli import qa_command
from alignment.terminal import clean, one_line, progress, screen

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from alignment.config import DataConfig, ModelConfig
    from alignment.inspection import Inspector
    from alignment.templates import Encoded

data = typer.Typer(no_args_is_help=True, help="Data files: check them, see what is trained on, part them.")
data.add_typer(qa_command)

JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]
ConfigOption = Annotated[
    Path | None, typer.Option("--config", help="A stage's YAML: its columns, max_length, split and model are used.")
]
ModelOption = Annotated[
    str | None, typer.Option("--model", help="Registry reference, folder or hub name whose tokenizer is used.")
]
_DEFAULT_SEED = 42  # of the stages, where training.seed says nothing
_LONG = 8 << 20  # bytes: shorter files are read before a progress bar could be


@data.command("check")
def check(
    files: Annotated[list[str] | None, typer.Argument(metavar="FILE...", help="Data files or folders.")] = None,
    config: ConfigOption = None,
    model: ModelOption = None,
    as_json: JsonOption = False,
    html: Annotated[Path | None, typer.Option("--html", help="Write the report as a page.")] = None,
    schema: Annotated[Path | None, typer.Option("--schema", help="JSON schema that the answers must fit.")] = None,
    scrub: Annotated[
        Path | None, typer.Option("--scrub", help="Write the rows here, personal data replaced (.jsonl, .gz allowed).")
    ] = None,
) -> None:
    """What is in data files, and what would go wrong.  Example: alignment data check demos.jsonl --html report.html"""
    from alignment.data import check_bad
    from alignment.inspection import Inspector
    from alignment.inspection_report import html_page, text_lines

    recipe = _recipe(config, files)
    sources = files or [part.path for part in recipe.data.parts]
    tokenizer = _tokenizer(model, recipe.model)
    inspector = Inspector(recipe.data, recipe.seed, tokenizer, _validator(schema) if schema else None)
    _inspect(inspector, sources, recipe.data.eval, scrub)
    report = inspector.report([*sources, *([recipe.data.eval] if recipe.data.eval else [])])
    if html:
        _write_text(html, html_page(report))
    if as_json:
        typer.echo(json.dumps(report.to_dict(), indent=2))
    else:
        output = screen()
        for line in text_lines(report):
            output.print(line)
    bad = [(place, item.reason) for item in report.set_aside for place in item.places]
    bad += [("", "")] * (report.rows - report.kept - len(bad))
    check_bad(", ".join(sources), report.kept, bad, recipe.data.max_bad_share)


@data.command("preview")
def preview(
    file: Annotated[str, typer.Argument(help="Data file or folder.")],
    model: ModelOption = None,
    config: ConfigOption = None,
    rows: Annotated[int, typer.Option("--rows", min=1, help="How many rows.")] = 1,
    as_json: JsonOption = False,
) -> None:
    """The exact tokens of a row, those trained on in colour.  Example: alignment data preview d.jsonl --model my-sft"""
    from alignment.inspection import each_record
    from alignment.templates import encode_conversation

    recipe = _recipe(config, [file])
    tokenizer = _tokenizer(model, recipe.model)
    if tokenizer is None:
        raise UserError("a preview needs a tokenizer: give --model, or a --config whose model exists already")
    shown: list[dict[str, Any]] = []
    output = screen()
    for where, record in each_record(file, recipe.data):
        encoded = encode_conversation(tokenizer, record.messages, recipe.data.max_length)
        shown.append(_preview_json(where, encoded, tokenizer))
        if not as_json:
            for line in _preview_lines(shown[-1], tokenizer, marks=not output.is_terminal or output.no_color):
                output.print(line)
        if len(shown) == rows:
            break
    if not shown:
        raise UserError(f"{file}: no row that can be trained on; `alignment data check` says why")
    if as_json:
        typer.echo(json.dumps({"rows": shown}))


@data.command("split")
def split(
    file: Annotated[str, typer.Argument(help="Data file or folder.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for train.jsonl and test.jsonl.")],
    test: Annotated[float, typer.Option("--test", help="Share of the prompts for the test file.")] = 0.1,
    seed: Annotated[int, typer.Option("--seed", help="Another seed draws other prompts.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Train and test files that share no prompt.  Example: alignment data split demos.jsonl --out parted --test 0.1"""
    from alignment.splitting import TEST, TRAIN, plan_split, write_split

    if not 0.0 < test < 1.0:
        raise UserError(f"--test {test:g}: expected a share between 0 and 1, for example 0.1")
    for name in (TRAIN, TEST):
        if (out / name).exists():
            raise UserError(f"{out / name} exists already; remove it or name another --out")
    with _progress("reading", [file]) as advance:
        plan = plan_split(file, test, seed, advance)
    try:
        fingerprints = write_split(file, plan, out)
    except OSError as error:
        raise UserError(f"{out}: cannot be written: {error.strerror}; name another --out") from None
    if plan.num_unseen:
        typer.echo(f"nearly equal prompts among the last {plan.num_unseen} rows were not looked for", err=True)
    if as_json:
        facts = {"out": str(out), "share": test, "seed": seed, "groups": plan.num_groups, "set_aside": len(plan.bad)}
        typer.echo(json.dumps(facts | fingerprints, indent=2))
        return
    output = screen()
    for name, side in ((TRAIN, "train"), (TEST, "test")):
        mark = fingerprints[side]
        output.print(Text(f"{clean(str(out / name))}  {mark['rows']} rows  sha256:{mark['sha256']}"))
    typer.echo(f"{plan.num_groups} groups of prompts, seed {seed}; {len(plan.bad)} rows set aside", err=True)


class _Recipe(NamedTuple):
    """What a stage's config says about its data."""

    data: DataConfig
    model: ModelConfig | None
    seed: int


def _recipe(path: Path | None, files: list[str] | None) -> _Recipe:
    from alignment.config import DataConfig, TrainerConfig, load_config

    if path is None:
        if not files:
            raise UserError("which data? Give a FILE, or a --config whose data.train names one")
        return _Recipe(DataConfig(train=files[0]), None, _DEFAULT_SEED)
    config = load_config(TrainerConfig, path)
    return _Recipe(config.data, config.model, config.training.get("seed", _DEFAULT_SEED))


def _tokenizer(name: str | None, config: ModelConfig | None) -> PreTrainedTokenizerBase | None:
    """The tokenizer of --model, else of the config's model; none for a model that is yet to be made."""
    name = name or (config.name if config else None)
    if name is None or name.startswith("scratch:"):
        return None
    from alignment.models import find_model, load_tokenizer
    from alignment.registry import Registry

    return load_tokenizer(find_model(name, Registry(), "policy"), config)


def _validator(path: Path) -> Callable[[str], str | None]:
    from alignment.inspection import schema_validator

    try:
        return schema_validator(json.loads(path.read_text(encoding="utf-8")))
    except ImportError:
        raise UserError("--schema needs the package jsonschema: pip install 'rlhf-alignment-suite[schema]'") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}; --schema takes a file with a JSON schema") from None
    except Exception as error:  # noqa: BLE001 - ValueError, or jsonschema's SchemaError, which need not be there
        raise UserError(f"{path}: not a JSON schema: {str(error).splitlines()[0]}") from None


def _inspect(inspector: Inspector, sources: list[str], held_out: str | None, scrub: Path | None) -> None:
    from alignment.readers import read_rows

    everything = [*sources, *([held_out] if held_out else [])]
    with _scrubbed(scrub) as write, _progress("checking", everything) as advance:
        for number, source in enumerate(everything):
            # Where a held-out file is named, the split draws nothing from the others.
            is_held_out = None if held_out is None else number >= len(sources)
            for where, row in read_rows(source):
                scrubbed = inspector.add(where, row, is_held_out)
                if scrubbed is not None:
                    write(scrubbed)
                advance()


@contextlib.contextmanager
def _scrubbed(path: Path | None) -> Iterator[Callable[[Any], object]]:
    """Writes rows as JSON lines to a file that appears when all are written."""
    if path is None:
        yield lambda row: None
        return
    if not path.name.endswith((".jsonl", ".jsonl.gz")):
        raise UserError(f"--scrub {path}: the copy is written as JSON lines; name it .jsonl or .jsonl.gz")
    if path.exists():
        raise UserError(f"--scrub {path}: exists already; remove it or name another file")
    part = path.with_name(f".{path.name}.part")
    try:
        with (
            gzip.open(part, "wt", encoding="utf-8") if path.suffix == ".gz" else part.open("w", encoding="utf-8") as to
        ):
            yield lambda row: to.write(_json_line(row))
        os.replace(part, path)
    except OSError as error:
        raise UserError(f"--scrub {path}: cannot be written: {error.strerror}; name another file") from None
    finally:
        part.unlink(missing_ok=True)


def _json_line(row: Any) -> str:
    line = json.dumps(row, ensure_ascii=False, default=str)
    if not line.isascii() and any("\ud800" <= char <= "\udfff" for char in line):
        line = json.dumps(row, default=str)  # half a surrogate pair cannot be written as UTF-8
    return line + "\n"


def _write_text(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"--html {path}: cannot be written: {error.strerror}; name another file") from None


@contextlib.contextmanager
def _progress(description: str, sources: list[str]) -> Iterator[Callable[[], None]]:
    """Progress over the rows of long files whose rows can be counted by their line breaks."""
    from alignment.readers import data_files

    files = [file for source in sources for file in data_files(source)]
    plain = all(file.name.removesuffix(".gz").endswith((".jsonl", ".csv")) for file in files)
    enabled = plain and sum(file.stat().st_size for file in files) >= _LONG
    with progress(description, sum(map(_count_lines, files)) if enabled else 0, enabled) as line:
        yield line.advance


def _count_lines(file: Path) -> int:
    with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as stream:
        return sum(block.count(b"\n") for block in iter(lambda: stream.read(1 << 20), b""))


def _preview_json(where: str, encoded: Encoded | None, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    if encoded is None:
        return {"place": where, "left_out": "the answer alone is longer than max_length"}
    special = set(tokenizer.all_special_ids)
    return {
        "place": where,
        "ids": encoded.input_ids,
        "tokens": tokenizer.convert_ids_to_tokens(encoded.input_ids),
        "mask": encoded.loss_mask,
        "special": [number in special for number in encoded.input_ids],
    }


def _preview_lines(row: dict[str, Any], tokenizer: PreTrainedTokenizerBase, marks: bool) -> Iterator[Text]:
    """A row as text: trained tokens green, others dim, special ones reversed; with `marks`, trained in [[ ]]."""
    if "left_out" in row:
        yield Text(f"{one_line(row['place'])}: left out, {row['left_out']}", style="yellow")
        return
    ids, mask = row["ids"], row["mask"]
    yield Text(f"{one_line(row['place'])}: {len(ids)} tokens, {sum(mask)} trained on", style="bold")
    shown, numbers = Text(), Text("ids:")
    start = 0
    for stop in range(1, len(ids) + 1):
        numbers.append(f" {ids[stop - 1]}", style=_style(mask[stop - 1], False))
        kinds = [(mask[i], row["special"][i]) for i in (stop - 1, stop) if i < len(ids)]
        if len(kinds) == 2 and kinds[0] == kinds[1] and not kinds[0][1]:
            continue  # a character may take several tokens, so a run is decoded as one
        trained, special = kinds[0]
        text = clean(tokenizer.decode(ids[start:stop], clean_up_tokenization_spaces=False))
        opens = marks and trained and (start == 0 or not mask[start - 1])
        closes = marks and trained and (stop == len(ids) or not mask[stop])
        shown.append(f"{'[[' if opens else ''}{text}{']]' if closes else ''}", style=_style(trained, special))
        start = stop
    yield shown
    yield numbers


def _style(trained: bool, special: bool) -> str:
    return f"{'green' if trained else 'dim'}{' reverse' if special else ''}"
