"""Score every row of a file, in order and by any number of processes, into a file that a killed run goes on with.

Rows are scored in batches of consecutive rows, which processes take in turn; the main process writes them in order. So
the file is the same to the byte with one process, with several, and after a kill.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import itertools
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from alignment.config.sections import Format
from alignment.data.records import prompt_group
from alignment.data.row_files import DataError
from alignment.distributed import heartbeat, processes
from alignment.errors import UserError
from alignment.evaluation.scored_rows import Found, ScorableAnswers, UnscorableRow, open_rows, rows_to_score
from alignment.evaluation.scorers import Scorer
from alignment.files import disk_errors, replace_text
from alignment.intervals import bootstrap_mean, bootstrap_sums, spearman
from alignment.models.saved_adapters import folder_digest
from alignment.terminal import one_line, progress

ROWS_AT_ONCE = 64
ABOUT = ".about.json"
"""Beside the scores: what they are of, so that other scores are not added to them."""


class OutputError(UserError):
    """A file of scores that cannot be written, or is of something else."""


@dataclass(frozen=True)
class ScoringJob:
    """What is scored and how its rows are put together; a change of any of it would change the scores."""

    data: str
    format: Format = "auto"
    columns: Mapping[str, str | None] | None = None
    batch_size: int = ROWS_AT_ONCE


def score_file(scorer: Scorer, job: ScoringJob, out: Path | None = None) -> dict[str, Any]:
    """Score every row; returns the summary, the same on every process.

    Args:
        out: gets a JSON line for each row as soon as its batch is done; rows that are there already are kept. None:
            only the summary.

    Raises:
        DataError: the data cannot be read, or none of its rows can be scored.
        OutputError: `out` cannot be written, or holds other scores.
    """
    about = _about(scorer, job)
    with _Output(out, about, job.batch_size) as output:
        done = processes.on_main_process(output.begin)
        lines = itertools.chain(output.kept(), _new_lines(scorer, job, done, output))
        return (
            processes.on_main_process(lambda: summary(lines, about))
            if processes.is_main_process()
            else (_follow(lines))
        )


def _follow(lines: Iterator[dict[str, Any]]) -> dict[str, Any]:
    """What the other processes do: score their batches, and wait for the summary."""
    for _ in lines:
        pass
    return processes.on_main_process(dict)


def _about(scorer: Scorer, job: ScoringJob) -> dict[str, Any]:
    source = scorer.source
    digest, fingerprint = source.digest, open_rows(job.data, job.format, job.columns).fingerprint()
    if digest is None and Path(source.path).is_dir():
        digest = folder_digest(source.path)
    return {
        "model": source.label,
        "digest": digest,
        "role": scorer.role,
        "data": {name: value for name, value in fingerprint.items() if name != "rows"},
        "format": job.format,
        "columns": dict(job.columns or {}),
        "batch_size": job.batch_size,
        "max_length": getattr(scorer, "max_length", None),
    } | ({} if (head := getattr(scorer, "head", None)) is None else {"head": head})


def _new_lines(scorer: Scorer, job: ScoringJob, done: int, output: _Output) -> Iterator[dict[str, Any]]:
    """The lines of all rows but the first `done`, in order on the main process; others yield none."""
    world, rank = processes.world_size(), processes.process_index()
    source = open_rows(job.data, job.format, job.columns)
    rows = itertools.islice(enumerate(rows_to_score(source, job.format), 1), done, None)
    batches = iter(lambda: list(itertools.islice(rows, job.batch_size)), [])
    with progress(f"score {Path(job.data).name}", 0, processes.is_main_process()) as line:
        while round_of_all := list(itertools.islice(batches, world)):
            heartbeat.enter(f"scoring, row {round_of_all[0][0][0]}")
            mine = round_of_all[rank] if rank < len(round_of_all) else []
            scored = processes.on_every_process(functools.partial(_score_rows, scorer, mine))
            for part in processes.gather_lists(scored):
                if part and processes.is_main_process():
                    output.append(part)
                    line.advance(len({each["row"] for each in part}))
                    yield from part


def _score_rows(scorer: Scorer, rows: Sequence[tuple[int, tuple[str, list[Found]]]]) -> list[dict[str, Any]]:
    """The lines of one batch of rows."""
    flat = [(row, place, found, part, len(parts)) for row, (place, parts) in rows for part, found in enumerate(parts)]
    scorable = [found for _, _, found, _, _ in flat if isinstance(found, ScorableAnswers)]
    results = iter(scorer.score(scorable) if scorable else [])
    lines = []
    for row, place, found, part, parts in flat:
        line: dict[str, Any] = {"row": row, "place": place}
        if parts > 1:
            line |= {"part": part + 1, "parts": parts}
        if isinstance(found, UnscorableRow):
            line["skipped" if found.skipped else "error"] = found.reason
        else:
            line |= {"prompt_id": _prompt_id(found)} | next(results)
            line |= _judged(found, line)
        lines.append(line)
    return lines


def _prompt_id(found: ScorableAnswers) -> str:
    """A hash of the prompt, or of the text; rows with one prompt are one in intervals."""
    key = found.text if found.text is not None else prompt_group(found.prompt)
    return hashlib.sha256(key.encode()).hexdigest()[:16]


def _judged(found: ScorableAnswers, line: Mapping[str, Any]) -> dict[str, Any]:
    """How far the scores (or log-probabilities) agree with what people said."""
    values = line.get("scores") or line.get("logprobs")
    if values is None:
        return {}
    if found.rating is not None:
        return {"rating": found.rating}
    votes = sum(pair.for_first + pair.for_second for pair in found.judged)
    if not found.judged:
        return {}
    return {"votes": votes, "votes_agreed": sum(_agreed(values, pair) for pair in found.judged)}


def _agreed(values: Sequence[float], pair: Any) -> float:
    ahead = values[pair.first] - values[pair.second]
    if ahead == 0:
        return 0.5 * (pair.for_first + pair.for_second)
    return float(pair.for_first if ahead > 0 else pair.for_second)


# --- the file of scores ----------------------------------------------------------------------------------------------


class _Output:
    """The file of scores and what it is of. Only the main process opens it, and only one at a time."""

    def __init__(self, path: Path | None, about: Mapping[str, Any], batch_size: int) -> None:
        self.path, self.about, self.batch_size = path, dict(about), batch_size
        self._file: BinaryIO | None = None
        self._kept_bytes = 0

    def __enter__(self) -> _Output:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._file is not None:
            self._file.close()

    def begin(self) -> int:
        """Open the file, cut off what is not a whole batch, and return how many rows stand in it."""
        if self.path is None:
            return 0
        note = self.path.with_name(self.path.name + ABOUT)
        with disk_errors(f"--out {self.path}: cannot be written", OutputError):
            self._file = self.path.open("a+b")
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise OutputError(f"--out {self.path}: another run is writing to it; wait, or name another") from None
            if os.fstat(self._file.fileno()).st_size:
                self._check_note(note)
            else:
                replace_text(note, json.dumps(self.about, indent=2) + "\n")
            done, self._kept_bytes = self._whole_batches()
            self._file.truncate(self._kept_bytes)
        return done

    def _check_note(self, note: Path) -> None:
        try:
            known = json.loads(note.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            known = None
        if known == self.about:
            return
        what = "is not a file of scores that this command began"
        if isinstance(known, dict):
            name = next((name for name, value in self.about.items() if known.get(name) != value), None)
            what = "holds scores that were made in another way"
            if name is not None:
                earlier, now = (_about_in_words(about.get(name)) for about in (known, self.about))
                what = f"holds scores of {_another(name)}: {earlier}, now {now}"
        raise OutputError(f"--out {self.path} {what}; name another with --out")

    def _whole_batches(self) -> tuple[int, int]:
        """How many rows of whole batches the file begins with, and their bytes."""
        assert self._file is not None
        self._file.seek(0)
        rows, size, position = 0, 0, 0
        for raw in self._file:
            try:
                line = json.loads(raw) if raw.endswith(b"\n") else None
            except ValueError:
                line = None
            if line is None:
                break
            position += len(raw)
            if line.get("part", 1) == line.get("parts", 1) and line["row"] % self.batch_size == 0:
                rows, size = line["row"], position
        return rows, size

    def kept(self) -> Iterator[dict[str, Any]]:
        """The lines that were there before."""
        if self._file is None or self.path is None:
            return
        position = 0
        with self.path.open("rb") as file:
            while position < self._kept_bytes:
                raw = file.readline()
                position += len(raw)
                yield json.loads(raw)

    def append(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Write lines through to the disk."""
        if self._file is None:
            return
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        with disk_errors(f"--out {self.path}: cannot be written", OutputError, "; what is there is kept"):
            self._file.write(text.encode())
            self._file.flush()
            os.fsync(self._file.fileno())


def _another(name: str) -> str:
    """A setting of the scores after "of"."""
    return "other data" if name == "data" else f"another {name.replace('_', ' ')}"


def _about_in_words(value: Any) -> str:
    """A setting of the scores; data by its name, and by its hash, since two files may have one name."""
    if not isinstance(value, Mapping):
        return "none" if value is None else one_line(str(value))
    if "name" in value:
        return one_line(f"{value['name']} (sha256 {str(value.get('sha256', 'unknown'))[:8]})")
    return one_line(", ".join(f"{key}={each}" for key, each in value.items())) or "none"


# --- the summary -----------------------------------------------------------------------------------------------------


def summary(lines: Iterable[Mapping[str, Any]], about: Mapping[str, Any]) -> dict[str, Any]:
    """What all lines say together; intervals are over prompts.

    Raises:
        DataError: none of the rows could be scored.
    """
    rows: set[int] = set()
    bad: list[str] = []
    skipped = 0
    scored: list[Mapping[str, Any]] = []
    for line in lines:
        rows.add(line["row"])
        if "error" in line:
            bad.append(f"{line['place']}: {line['error']}")
        elif "skipped" in line:
            skipped += 1
        else:
            scored.append(line)
    name = about["data"].get("name", "the data")
    if not scored:
        reason = bad[0] if bad else f"{name}: no row has an answer to score"
        raise DataError(f"{reason}; nothing was scored" + (f" ({len(bad)} such rows)" if len(bad) > 1 else ""))
    key = "scores" if about["role"] == "reward" else "logprobs"
    heads = [name for name in scored[0] if name.startswith("scores/")]
    found: dict[str, Any] = {
        **{name: about[name] for name in ("model", "digest", "head", "role", "data") if name in about},
        "rows": len(rows),
        "completions": sum(len(line["tokens"]) for line in scored),
        "not_scored": len(bad),
        "skipped": skipped,
        "first_problem": bad[0] if bad else None,
    }
    if heads:
        return found | {"heads": {name.partition("/")[2]: _score_figures(scored, name) for name in heads}}
    found |= _score_figures(scored, key) if key == "scores" else _text_figures(scored)
    return found | _agreement_figures(scored, key)


def _score_figures(scored: Sequence[Mapping[str, Any]], key: str) -> dict[str, Any]:
    """Mean with its interval, and standard deviation of a column of scores."""
    values = np.array([value for line in scored for value in line[key]])
    sums, counts = (np.array([float(part(line[key])) for line in scored]) for part in (sum, len))
    interval = bootstrap_sums((sums, counts), lambda a, b: a / b, [line["prompt_id"] for line in scored])["ci"]
    return {"mean": float(values.mean()), "std": float(values.std()), "mean_ci": interval}


def _text_figures(scored: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    groups = [line["prompt_id"] for line in scored]
    bits = np.array([sum(b * n for b, n in zip(line["bits_per_byte"], line["bytes"], strict=True)) for line in scored])
    size, tokens, total = (
        np.array([float(sum(line[name])) for line in scored]) for name in ("bytes", "tokens", "logprobs")
    )
    return {
        "tokens": int(tokens.sum()),
        "bits_per_byte": bootstrap_sums((bits, size), lambda a, b: a / np.maximum(b, 1e-12), groups),
        "logprob_per_token": bootstrap_sums((total, tokens), lambda a, b: a / np.maximum(b, 1e-12), groups),
    }


def _agreement_figures(scored: Sequence[Mapping[str, Any]], key: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    judged = [line for line in scored if line.get("votes")]
    if judged:
        shares = [line["votes_agreed"] / line["votes"] for line in judged]
        estimate = bootstrap_mean(shares, [line["prompt_id"] for line in judged], [line["votes"] for line in judged])
        found["accuracy"] = {**estimate, "n": int(sum(line["votes"] for line in judged))}
    rated = [(line[key][0], line["rating"]) for line in scored if "rating" in line]
    if len({rating for _, rating in rated}) > 1:
        ours, theirs = (np.array(column, dtype=np.float64) for column in zip(*rated, strict=True))
        found["rating_correlation"] = {"spearman": spearman(ours, theirs), "n": len(rated)}
    return found
