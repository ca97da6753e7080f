"""`alignment data`: look at data files before training on them, part them, write them in another shape."""

from __future__ import annotations

import contextlib
import gzip
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer
from rich.text import Text

from alignment import html as pages
from alignment.cli.qa import qa_command
from alignment.errors import UserError
from alignment.terminal import clean, one_line, progress, screen

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from alignment.config.sections import DataConfig, DataPart, ModelConfig
    from alignment.data.check import Inspector

data = typer.Typer(no_args_is_help=True)
data.add_typer(qa_command)

JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]
ConfigOption = Annotated[
    Path | None, typer.Option("--config", help="A stage's YAML: its columns, max_length, split and model are used.")
]
ModelOption = Annotated[
    str | None, typer.Option("--model", help="Registry reference, folder or hub name whose tokenizer is used.")
]
TemplateOption = Annotated[
    str | None,
    typer.Option("--template", help="A chat template for a --model that has none, as a config's model.template."),
]
EosOption = Annotated[
    str | None, typer.Option("--eos-token", help="The end token of a --model that names none, as model.eos_token.")
]
FormatOption = Annotated[
    str | None,
    typer.Option("--format", help="The shape of the rows (chat, alpaca, faq, ...), if their keys do not tell."),
]
ColumnsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--column",
        metavar="OURS=THEIRS",
        help="Rename a column: --column prompt=question; leave one out: --column rating=",
    ),
]
AgentsOption = Annotated[
    list[str] | None,
    typer.Option("--agent", metavar="NAME", help="Who answers in tickets and Slack exports, as data.agents."),
]
BadOption = Annotated[
    Path | None, typer.Option("--bad", help="Write place and reason of each row set aside here (.jsonl).")
]
_SHOWN_BAD = 10
_LONG = 8 << 20  # bytes: shorter files are read before a progress bar could be


@data.command("check")
def check(
    files: Annotated[list[str] | None, typer.Argument(metavar="FILE...", help="Data files or folders.")] = None,
    config: ConfigOption = None,
    model: ModelOption = None,
    template: TemplateOption = None,
    eos_token: EosOption = None,
    stage: Annotated[
        str | None, typer.Option("--for", metavar="STAGE", help="Read the rows as sft, reward or ppo does.")
    ] = None,
    format: FormatOption = None,
    columns: ColumnsOption = None,
    agents: AgentsOption = None,
    as_json: JsonOption = False,
    html: Annotated[Path | None, typer.Option("--html", help="Write the report as a page.")] = None,
    schema: Annotated[Path | None, typer.Option("--schema", help="JSON schema that the answers must fit.")] = None,
    scrub: Annotated[
        Path | None, typer.Option("--scrub", help="Write the rows here, personal data replaced (.jsonl, .gz allowed).")
    ] = None,
    bad: BadOption = None,
) -> None:
    """What is in data files, and what would go wrong.  Example: alignment data check demos.jsonl --html report.html"""
    from alignment.data.check import (
        STAGES,
        Inspector,
        example_lines,
        html_page,
        read_schema,
        refuse,
        report_of,
        text_lines,
    )

    recipe = _recipe(config, files, format, columns, agents)
    if stage is not None and stage not in STAGES:
        raise UserError(f"--for {stage}: expected one of {', '.join(STAGES)}")
    tokenizer = _tokenizer(model, recipe.model, template, eos_token)
    validate = read_schema(schema) if schema else None
    reader = STAGES.get(stage or recipe.stage or "")
    needs_pairs = reader == "reward" and recipe.objective == "pairs"
    inspector = Inspector(recipe.data, tokenizer, validate, reader, needs_pairs)
    _inspect(inspector, recipe.data.parts, recipe.data.eval_part, scrub, bad)
    paths = [part.path for part in recipe.data.parts]
    report = report_of(inspector, [*paths, *([recipe.data.eval] if recipe.data.eval else [])])
    if html:
        pages.write(html, html_page(report), "--html")
    if as_json:
        typer.echo(json.dumps(report.to_dict(), indent=2))
    else:
        output = screen()
        for line in text_lines(report, output.width if output.is_terminal else None):
            output.print(line)
        for line in example_lines(inspector.first, tokenizer):
            output.print(line)
    refuse(report, recipe.data)


@data.command("preview")
def preview(
    file: Annotated[str, typer.Argument(help="Data file or folder.")],
    model: ModelOption = None,
    template: TemplateOption = None,
    eos_token: EosOption = None,
    config: ConfigOption = None,
    format: FormatOption = None,
    columns: ColumnsOption = None,
    agents: AgentsOption = None,
    rows: Annotated[int, typer.Option("--rows", min=1, help="How many rows.")] = 1,
    as_json: JsonOption = False,
) -> None:
    """The exact tokens of a row, those trained on in colour.  Example: alignment data preview d.jsonl --model my-sft"""
    from alignment.data.preview import each_example, encode_for_preview, preview_json, preview_lines

    recipe = _recipe(config, [file], format, columns, agents)
    tokenizer = _tokenizer(model, recipe.model, template, eos_token)
    if tokenizer is None:
        raise UserError("a preview needs a tokenizer: give --model, or a --config whose model exists already")
    shown: list[dict[str, Any]] = []
    output = screen()
    for where, example in each_example(recipe.data):
        for encoded in encode_for_preview(example, tokenizer, recipe.data)[: rows - len(shown)]:
            shown.append(preview_json(where, encoded, tokenizer))
            if not as_json:
                for line in preview_lines(shown[-1], tokenizer, marks=not output.is_terminal or output.no_color):
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
    from alignment.config.sections import DataPart
    from alignment.data.splitting import TEST, TRAIN, plan_split, write_split

    if not 0.0 < test < 1.0:
        raise UserError(f"--test {test:g}: expected a share between 0 and 1, for example 0.1")
    for name in (TRAIN, TEST):
        if (out / name).exists():
            raise UserError(f"{out / name} exists already; remove it or name another --out")
    with _progress("reading", [DataPart(path=file)]) as advance:
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


@data.command("convert")
def convert(
    files: Annotated[
        list[str], typer.Argument(metavar="FILE... OUT", help="Data files or folders; the last is written.")
    ],
    target: Annotated[
        str, typer.Option("--to", help="chat, openai, sharegpt, alpaca, completion, pair or text.", show_default=False)
    ],
    config: ConfigOption = None,
    format: FormatOption = None,
    columns: ColumnsOption = None,
    agents: AgentsOption = None,
    bad: BadOption = None,
    as_json: JsonOption = False,
) -> None:
    """Rows of any shape written in another; OUT is .jsonl, .jsonl.gz, .csv or .parquet.

    Example: alignment data convert chats.json rows.csv out.jsonl --to chat
    """
    from alignment.data.convert import TARGETS
    from alignment.data.convert import convert as convert_rows

    if target not in TARGETS:
        raise UserError(f"--to {target}: expected one of {', '.join(TARGETS)}")
    if len(files) < 2:
        raise UserError(f"what is written? Name a file after {files[0]}: alignment data convert {files[0]} out.jsonl")
    *sources, out = files
    recipe = _recipe(config, sources, format, columns, agents)
    with _progress("converting", recipe.data.parts) as advance, _rows_to("--bad", bad) as write_bad:
        done = convert_rows(recipe.data, Path(out), target, advance)
        for where, reason in done.bad:
            write_bad({"where": where, "reason": reason})
    if as_json:
        rows = [{"where": where, "reason": reason} for where, reason in done.bad]
        facts = {"out": out, "format": target, "rows": done.written, "bad": rows}
        typer.echo(
            json.dumps(
                facts | {"not_carried": done.lost, "passed_over": done.passed_over, "notes": done.notes}, indent=2
            )
        )
        return
    output = screen()
    output.print(Text(f"{clean(out)}  {done.written:,} rows"))
    for text in done.notes:
        output.print(Text(f"  note         {one_line(text)}"))
    for reason, count in done.passed_over.items():
        output.print(Text(f"  passed over  {count:,} rows: {one_line(reason)}"))
    for key, count in done.lost.most_common():
        output.print(Text(f"  not carried  {one_line(key)} ({count:,} rows)", style="yellow"))
    for where, reason in done.bad[:_SHOWN_BAD]:
        output.print(Text(f"  set aside    {one_line(where)}: {one_line(reason)}", style="yellow"))
    if len(done.bad) > _SHOWN_BAD:
        output.print(
            Text(f"  and {len(done.bad) - _SHOWN_BAD:,} more rows set aside: --bad FILE lists all", style="yellow")
        )


class _Recipe(NamedTuple):
    """What a stage's config says about its data."""

    data: DataConfig
    model: ModelConfig | None
    stage: str | None
    objective: str


def _recipe(
    path: Path | None,
    files: list[str] | None,
    format: str | None = None,
    columns: list[str] | None = None,
    agents: list[str] | None = None,
) -> _Recipe:
    """The config's data section, with the files of the command line in place of its own."""
    from alignment.config.loading import validate
    from alignment.config.recipes import read_recipe
    from alignment.config.sections import DataConfig

    if path is None and not files:
        raise UserError("which data? Give a FILE, or a --config whose data.train names one")
    config = read_recipe(path) if path else None
    values = config.data.model_dump() if config else {}
    if files:
        values["train"] = [{"path": file} for file in files]
    if format:
        values["format"] = format
    for column in columns or []:
        ours, equals, theirs = column.partition("=")
        if not (ours and equals):
            raise UserError(f"--column {column}: expected OURS=THEIRS, for example prompt=question")
        values["columns"] = {**values.get("columns", {}), ours: theirs or None}
    if agents:
        values["agents"] = agents
    data = validate(DataConfig, values, str(path or "alignment data"))
    return _Recipe(
        data,
        config.model if config else None,
        config.stage if config else None,
        config.objective if config else "pairs",
    )


def _tokenizer(
    name: str | None, config: ModelConfig | None, template: str | None, eos_token: str | None
) -> PreTrainedTokenizerBase | None:
    """The tokenizer of --model, else of the config's model; none for a model that is yet to be made."""
    from alignment.config.sections import ModelConfig

    options = {key: value for key, value in (("template", template), ("eos_token", eos_token)) if value}
    name = name or (config.name if config else None)
    if name is None or name.startswith("scratch:"):
        if options:
            raise UserError("--template and --eos-token are for a model: give --model too")
        return None
    from alignment.models.sources import find_model
    from alignment.models.tokenizers import load_tokenizer
    from alignment.registry import Registry

    config = config or ModelConfig(name=name)
    return load_tokenizer(find_model(name, Registry(), "policy"), config.model_copy(update=options))


def _inspect(
    inspector: Inspector, parts: Sequence[DataPart], held_out: DataPart | None, scrub: Path | None, bad: Path | None
) -> None:
    from alignment.data.row_files import BadRow
    from alignment.data.sources import open_source

    everything = [*parts, *([held_out] if held_out else [])]
    with (
        _rows_to("--scrub", scrub) as write_scrubbed,
        _rows_to("--bad", bad) as write_bad,
        _progress("checking", everything) as advance,
    ):
        for part in everything:
            # Where a held-out file is named, the split draws nothing from the others.
            is_held_out = None if held_out is None else part is held_out
            stop = inspector.num_kept + part.cap if part.cap else None
            source = open_source(part, inspector.config)
            for where, row in source.rows:
                scrubbed, reason = inspector.add(where, row, part.format or "auto", is_held_out)
                if not isinstance(row, BadRow):
                    write_scrubbed(scrubbed)
                if reason is not None:
                    write_bad({"where": where, "reason": reason})
                advance()
                if stop is not None and inspector.num_kept >= stop:
                    break
            inspector.file_notes += source.notes


@contextlib.contextmanager
def _rows_to(option: str, path: Path | None) -> Iterator[Callable[[Any], object]]:
    """Writes rows as JSON lines where a file is named."""
    from alignment.data.writers import row_writer

    if path is None:
        yield lambda row: None
        return
    with row_writer(path, option, (".jsonl", ".jsonl.gz")) as write:
        yield write


@contextlib.contextmanager
def _progress(description: str, parts: Sequence[DataPart]) -> Iterator[Callable[[], None]]:
    """Progress over the rows of long sources; to their end, where rows can be counted by their line breaks."""
    from alignment.data.row_files import DataError, data_files

    paths = [Path(part.path) for part in parts]
    try:
        files = [file for path in paths for file in data_files(path)]
    except DataError:
        files = []  # another kind of source, or none, of which the reading will tell
    enabled = not files or sum(file.stat().st_size for file in files) >= _LONG
    plain = all(file.name.removesuffix(".gz").endswith((".jsonl", ".ndjson", ".csv", ".tsv")) for file in files)
    with progress(description, sum(map(_count_lines, files)) if enabled and plain else 0, enabled) as line:
        yield line.advance


def _count_lines(file: Path) -> int:
    with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as stream:
        return sum(block.count(b"\n") for block in iter(lambda: stream.read(1 << 20), b""))
