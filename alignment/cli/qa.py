"""`alignment data qa`: documents to question-answer pairs."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from alignment.errors import UserError
from alignment.files import new_file
from alignment.terminal import one_line, progress, screen

if TYPE_CHECKING:
    from alignment.config.sections import ModelConfig
    from alignment.generation.chat_models import ChatModel
    from alignment.qa.documents import Chunk
    from alignment.qa.pairs import QAPair
    from alignment.qa.report import QAReport
    from alignment.qa.writing import Outcome, WritingRecipe

KEY_VARIABLE = "OPENAI_API_KEY"
_OPTION = {"num_pairs": "pairs"}  # where the option's name is not the parameter's
_BY_RULES = ("questions", "sentences")
_BY_MODEL = (
    *("judge_model", "min_rating", "min_support", "num_pairs", "prompt", "temperature", "seed", "max_new_tokens"),
    *("max_bad", "price_in", "price_out", "url", "batch_size", "config"),
)
_BY_URL = ("key_env", "concurrency", "timeout")
_LOCAL = ("config", "batch_size")
EARLY = 10  # passages looked at before a model whose replies are of no use is given up


DocsArgument = Annotated[
    list[Path], typer.Argument(metavar="DOCS...", help="Folders or files: .md, .html, .txt, .jsonl (text).")
]
OutOption = Annotated[Path, typer.Option("--out", help="The pairs, a .jsonl file; OUT.work beside it keeps replies.")]
ModelOption = Annotated[
    str | None,
    typer.Option("--model", help="Who writes: registry reference, folder, hub name, or the name at --url."),
]
UrlOption = Annotated[str | None, typer.Option("--url", help="OpenAI-compatible server, up to /v1.")]
KeyEnvOption = Annotated[
    str | None, typer.Option("--key-env", help=f"Environment variable with the key (default: {KEY_VARIABLE}).")
]
JudgeModelOption = Annotated[
    str | None, typer.Option("--judge-model", help="Who judges, at the same place (default: --model).")
]
MinRatingOption = Annotated[
    float, typer.Option("--min-rating", min=0, max=10, help="Drop pairs the judge rates lower; 0: no judge.")
]
MinSupportOption = Annotated[
    float,
    typer.Option("--min-support", min=0, max=1, help="Share of an answer's words that its passage must have."),
]
NumPairsOption = Annotated[int, typer.Option("--pairs", min=1, help="Pairs to ask for, per passage.")]
ChunkSizeOption = Annotated[int, typer.Option("--chunk-size", min=100, help="Characters of a passage at most.")]
QuestionsOption = Annotated[
    Path | None, typer.Option("--questions", help="Without a model: a Jinja template of questions.")
]
SentencesOption = Annotated[
    int | None, typer.Option("--sentences", min=1, help="Without a model: answer with the first so many sentences.")
]
PromptOption = Annotated[Path | None, typer.Option("--prompt", help="With a model: a Jinja template of the prompt.")]
ConfigOption = Annotated[
    Path | None, typer.Option("--config", help="A stage's YAML, whose model section says how --model is loaded.")
]
TemperatureOption = Annotated[float, typer.Option("--temperature", min=0, help="0 is greedy.")]
SeedOption = Annotated[int, typer.Option("--seed", min=0)]
MaxNewTokensOption = Annotated[int, typer.Option("--max-new-tokens", min=1, help="Tokens of a reply at most.")]
ConcurrencyOption = Annotated[int, typer.Option("--concurrency", min=1, help="Questions to --url at a time.")]
BatchSizeOption = Annotated[int, typer.Option("--batch-size", min=1, help="Passages at a time, local model.")]
TimeoutOption = Annotated[float, typer.Option("--timeout", min=1, help="Seconds to wait for a reply of --url.")]
MaxBadOption = Annotated[
    float, typer.Option("--max-bad", min=0, max=1, help="Stop when more of the replies are of no use.")
]
PriceInOption = Annotated[float | None, typer.Option("--price-in", min=0, help="Per million tokens read.")]
PriceOutOption = Annotated[float | None, typer.Option("--price-out", min=0, help="Per million tokens written.")]
ReportOption = Annotated[bool, typer.Option("--json", help="The report as one JSON object on stdout.")]

qa_command = typer.Typer()


@qa_command.command("qa")
def qa(
    context: typer.Context,
    docs: DocsArgument,
    out: OutOption,
    model: ModelOption = None,
    url: UrlOption = None,
    key_env: KeyEnvOption = None,
    judge_model: JudgeModelOption = None,
    min_rating: MinRatingOption = 7,
    min_support: MinSupportOption = 0.7,
    num_pairs: NumPairsOption = 3,
    chunk_size: ChunkSizeOption = 4000,
    questions: QuestionsOption = None,
    sentences: SentencesOption = None,
    prompt: PromptOption = None,
    config: ConfigOption = None,
    temperature: TemperatureOption = 0.7,
    seed: SeedOption = 0,
    max_new_tokens: MaxNewTokensOption = 1024,
    concurrency: ConcurrencyOption = 8,
    batch_size: BatchSizeOption = 8,
    timeout: TimeoutOption = 300,
    max_bad: MaxBadOption = 0.5,
    price_in: PriceInOption = None,
    price_out: PriceOutOption = None,
    as_json: ReportOption = False,
) -> None:
    """Question-answer pairs from documents, by rules or by a model.  Example: alignment data qa docs/ --out pairs.jsonl

    By a model: alignment data qa docs/ --out pairs.jsonl --model NAME --url https://HOST/v1  (or a local model, without
    --url). A run that was cut short goes on where it stopped when the same command is given again.
    """
    from alignment.qa.writing import PROMPT, WritingRecipe

    _check_options(context, model, url)
    _check_out(out, bool(model))
    made_before = out.exists()  # by this command, whose work file is beside it
    chunks, report = _passages(docs, chunk_size)
    report.price_in, report.price_out = price_in, price_out
    stopped = None
    if model is None:
        pairs = _by_rules(chunks, questions, sentences)
        report.made = len(pairs)
    else:
        written = (_template(prompt, "--prompt") if prompt else PROMPT, str(prompt or "the prompt"))
        recipe = WritingRecipe(num_pairs, temperature, seed, max_new_tokens, min_support, min_rating, *written)
        if judge_model and not min_rating:
            raise UserError("--judge-model: --min-rating 0 asks no judge; leave one of them out")
        names = [model, *([judge_model] if judge_model else [])]
        if url:
            models = _endpoints(names, url, key_env, concurrency, timeout)
        else:
            models = _local_models(names, config, batch_size)
        pairs, stopped = _by_model(chunks, models, recipe, out, max_bad, report)
    _finish(pairs, stopped, report, out, made_before, as_json)


def _check_options(context: typer.Context, model: str | None, url: str | None) -> None:
    """Refuse an option that this way of making pairs would not read."""
    # By its name: the enum itself is in a package that typer brings along or has inside, by its version.
    given = [name for name in context.params if str(context.get_parameter_source(name)).endswith("COMMANDLINE")]
    groups = (
        (_BY_MODEL, model is None, "is for pairs by a model: give --model too, or leave it out"),
        (_BY_RULES, model is not None, "is for pairs without a model: leave it out, or --model"),
        (_BY_URL, url is None, "is for a model at --url: give that too, or leave it out"),
        (_LOCAL, url is not None, "is for a local model: leave it out, or --url"),
    )
    for names, is_needless, why in groups:
        for name in given:
            if is_needless and name in names:
                raise UserError(f"--{_OPTION.get(name, name).replace('_', '-')} {why}")


def _check_out(out: Path, has_work: bool) -> None:
    if out.suffix != ".jsonl":
        raise UserError(f"--out {out}: the pairs are written as JSON lines; name it .jsonl")
    if not out.parent.is_dir():
        raise UserError(f"--out {out}: no folder {out.parent}; make it, or name another --out")
    if out.exists() and not (has_work and _work_path(out).exists()):
        raise UserError(f"--out {out}: exists already; remove it or name another file")


def _work_path(out: Path) -> Path:
    return out.with_name(f"{out.name}.work")


def _template(path: Path, option: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UserError(f"{option} {path}: not UTF-8; save it as UTF-8") from None
    except OSError as error:
        raise UserError(f"{option} {path}: cannot be read: {error.strerror}") from None


def _passages(docs: Sequence[Path], chunk_size: int) -> tuple[list[Chunk], QAReport]:
    """The passages to ask about, each once, and a report with what was left out so far."""
    from alignment.qa.documents import cut, read_documents
    from alignment.qa.report import QAReport

    documents, set_aside = read_documents(docs, lambda text: typer.echo(one_line(text), err=True))
    every = [chunk for document in documents for chunk in cut(document, chunk_size)]
    told = [chunk for chunk in every if chunk.body]
    once = {chunk.sha256: chunk for chunk in reversed(told)}
    chunks = [chunk for chunk in told if once[chunk.sha256] is chunk]
    oversized = sum(len(chunk.body) > chunk_size for chunk in chunks)
    if not chunks:
        raise UserError(
            f"{', '.join(map(str, docs))}: the documents hold nothing but headings; there is nothing to ask"
        )
    return chunks, QAReport(
        len(documents), set_aside, len(chunks), len(every) - len(told), len(told) - len(chunks), oversized
    )


def _endpoints(
    names: Sequence[str], url: str, key_env: str | None, concurrency: int, timeout: float
) -> list[ChatModel]:
    from alignment.generation.chat_models import Endpoint

    key = os.environ.get(key_env or KEY_VARIABLE, "").strip() or None
    if key_env and not key:
        raise UserError(f"--key-env {key_env}: this environment variable is not set; put the key of {url} into it")
    return [Endpoint(url, name, key, concurrency, timeout) for name in names]


def _local_models(names: Sequence[str], config: Path | None, batch_size: int) -> list[ChatModel]:
    from alignment.config.recipes import read_recipe
    from alignment.generation.chat_models import LocalModel

    how: ModelConfig | None = read_recipe(config).model if config else None
    with contextlib.redirect_stdout(sys.stderr):  # some libraries greet when they are imported
        return [LocalModel(name, how, batch_size) for name in names]


def _by_rules(chunks: Sequence[Chunk], questions: Path | None, sentences: int | None) -> list[QAPair]:
    from alignment.qa.questions import QUESTIONS, Questions

    source = _template(questions, "--questions") if questions else QUESTIONS
    asker = Questions(source, str(questions) if questions else "the question template", sentences)
    return [pair for chunk in chunks for pair in asker.pairs(chunk)]


def _by_model(
    chunks: Sequence[Chunk],
    models: Sequence[ChatModel],
    recipe: WritingRecipe,
    out: Path,
    max_bad: float,
    report: QAReport,
) -> tuple[list[QAPair], str | None]:
    """The pairs of all passages, or of those seen until too many replies were of no use, and then why it stopped."""
    from alignment.qa.work import WorkFile
    from alignment.qa.writing import Writer

    done: dict[int, list[Outcome]] = {}
    seen = 0
    stopped = None
    with WorkFile(_work_path(out)) as work, progress("writing pairs", len(chunks)) as line:
        batches = Writer(work, models[0], models[-1], recipe).write_all(chunks)
        for number, outcomes in batches:
            done[number] = outcomes
            seen += len(outcomes)
            report.failed += sum(outcome.failed for outcome in outcomes)
            line.advance(len(outcomes), failed=report.failed)
            if seen >= EARLY and report.failed > max_bad * seen:
                last = next(o.dropped[-1] for o in reversed(outcomes) if o.failed)
                stopped = f"{report.failed} of {seen} replies are of no use (--max-bad {max_bad:g}); the last: "
                stopped += f"{last.reason}: {one_line(last.example)[:120]}"
                batches.close()
                break
        report.asked = work.num_asked
    pairs: list[QAPair] = []
    for number in sorted(done):
        for outcome in done[number]:
            pairs += outcome.pairs
            report.made += outcome.num_made
            report.add_dropped(outcome.dropped)
            report.add_replies(outcome.replies)
    return pairs, stopped


def _finish(
    pairs: list[QAPair], stopped: str | None, report: QAReport, out: Path, replace: bool, as_json: bool
) -> None:
    from alignment.qa.pairs import drop_duplicates

    kept, dropped = drop_duplicates(pairs)
    report.kept = len(kept)
    report.add_dropped(dropped)
    if kept and not stopped:
        _write(kept, out, replace)
    if as_json:
        typer.echo(json.dumps({"out": str(out)} | report.to_dict(), indent=2))
    else:
        output = screen()
        for text in report.lines():
            output.print(Text(text))
    if stopped:
        raise UserError(f"stopped after {stopped}; try another --model or --prompt")
    if not kept:
        raise UserError(f"no pair is left, so {out} was not written; the report says why")
    if report.failed:
        typer.echo(
            f"{report.failed} passages have no pairs yet; the same command asks again where no reply came", err=True
        )


def _write(pairs: Sequence[QAPair], out: Path, replace: bool) -> None:
    """The pairs as JSON lines, in a file that appears when all are written."""
    try:
        with new_file(out, replace=replace) as part, part.open("w", encoding="utf-8") as stream:
            for pair in pairs:
                stream.write(_line(pair.to_row()))
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written: {error.strerror}; make room or name another file") from None


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"
