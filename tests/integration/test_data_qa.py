"""`alignment data qa` as a user runs it: against a real server that fails, killed and continued, then split."""

import json
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from helpers import tiny
from helpers.chat_server import Answer, ChatServer, completion, passage
from typer.testing import CliRunner, Result

import alignment.cli.main

ROOT = Path(__file__).resolve().parents[2]
THINGS = "lamp desk chair shelf map globe clock stamp ladder basket carpet mirror".split()  # noqa: SIM905 - readable


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    """Twelve sections of one fact each, and one without any text."""
    folder = tmp_path / "docs"
    folder.mkdir()
    sections = [f"## The {thing}\n\nThe {thing} costs {n + 5} dollars and is green." for n, thing in enumerate(THINGS)]
    (folder / "prices.md").write_text("# Prices\n\n" + "\n\n".join(sections) + "\n")
    return folder


def good_pairs(prompt: str) -> list[dict[str, str]]:
    said = passage(prompt)
    thing = said.split()[1]
    return [
        {"question": f"How much is the {thing}?", "answer": said.split(" and")[0] + "."},
        {"question": f"Which colour has the {thing}?", "answer": f"The {thing} is green."},
    ]


def is_judge(prompt: str) -> bool:
    return "You judge" in prompt


def good(prompt: str, seen: int = 0) -> Answer:
    if is_judge(prompt):
        return completion(json.dumps({"ratings": [{"rating": 9, "supported": True}] * prompt.count('"question":')}))
    return completion(json.dumps({"pairs": good_pairs(prompt)}))


def run(*arguments: Any) -> Result:
    return CliRunner().invoke(alignment.cli.main.app, ["data", "qa", *map(str, arguments)])


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_pairs_by_rules_can_be_checked_and_split_by_passage(docs: Path, tmp_path: Path) -> None:
    (docs / "words.md").write_text("# Words\n\n- **Fee**: what is paid.\n- **Loan**: a thing lent.\n")
    out = tmp_path / "pairs.jsonl"
    done = run(docs, "--out", out)
    assert done.exit_code == 0, done.output
    assert "14 asked about" not in done.stdout and "13 asked about, 1 without text" in done.stdout
    made = rows(out)
    assert [row["prompt"] for row in made[:2]] == [f'What does "Prices" say about "The {t}"?' for t in THINGS[:2]]
    assert len({row["source_id"] for row in made[-3:]}) == 1 and made[-1]["prompt"] == "What is meant by Loan?"
    cli = CliRunner()
    assert cli.invoke(alignment.cli.main.app, ["data", "check", str(out)]).exit_code == 0
    parted = cli.invoke(
        alignment.cli.main.app, ["data", "split", str(out), "--out", str(tmp_path / "s"), "--test", "0.4"]
    )
    assert parted.exit_code == 0, parted.output
    sides = [{row["source_id"] for row in rows(tmp_path / "s" / f"{side}.jsonl")} for side in ("train", "test")]
    assert all(sides) and not sides[0] & sides[1]
    assert "exists already" in run(docs, "--out", out).stderr


def test_what_a_server_does_wrong_is_retried_dropped_and_reported(docs: Path, tmp_path: Path) -> None:
    def answer(prompt: str, seen: int) -> Answer:
        thing = passage(prompt).split()[1]
        pairs = good_pairs(prompt)
        if is_judge(prompt):
            low = {"rating": 3, "supported": True}
            return completion(json.dumps({"ratings": [low, low]})) if thing == "stamp" else good(prompt)
        if thing in ("lamp", "desk") and seen < 2:
            return (429 if thing == "lamp" else 500), {"Retry-After": "0"}, "not now"
        bad = {
            "chair": completion("Here you go: pairs\x1b[31m!"),
            "shelf": completion('{"pairs": [{"question": "How mu', "length"),
            "map": completion(json.dumps({"pairs": [{**pairs[0], "answer": "The map costs 99 dollars."}, pairs[1]]})),
            "globe": completion(json.dumps({"pairs": [pairs[0], pairs[0], pairs[1]]}), usage=None),
            "clock": completion(
                json.dumps({"pairs": [{**pairs[0], "answer": "A wizard sells them at dawn."}, pairs[1]]})
            ),
            "ladder": (400, {}, {"error": {"message": "filtered"}}),
            "basket": completion(json.dumps({"pairs": [{"question": "Q?"}, pairs[0]]})),
        }
        return bad.get(thing) or good(prompt)

    out = tmp_path / "pairs.jsonl"
    with ChatServer(answer) as server:
        arguments = (docs, "--out", out, "--model", "m", "--url", server.url, "--price-in", 2, "--price-out", 10)
        done = run(*arguments, "--json")
        asked = len(server.prompts)
        again = run(*arguments)
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert {item["reason"]: item["count"] for item in report["dropped"]} == {
        "rated below 7": 2,
        "a number in the answer is not in the passage": 1,
        "duplicate": 1,
        "no reply": 1,
        "not a question and an answer": 1,
        "the passage has too few of the answer's words": 1,
        "the reply is not JSON": 1,
        "the reply was cut off at --max-new-tokens": 1,
    }
    # 12 passages, 9 of them with pairs for the judge; two were tried three times each, and what was refused was asked
    # once more without the schema of the reply.
    assert asked == 12 + 9 + 4 + 1 and report["replies"] == {"asked_now": 21, "used": 20, "without_token_counts": 1}
    assert report["tokens"] == {"in": 1900, "out": 190} and report["cost"] == pytest.approx(1900 * 2e-6 + 190 * 10e-6)
    assert report["pairs"] == {"made": 19, "kept": 13} and report["passages"]["failed"] == 3
    made = rows(out)
    assert len(made) == 13 and {row["model"] for row in made} == {"m"} and {row["rating"] for row in made} == {9}
    assert [row["prompt"] for row in made[:2]] == ["How much is the lamp?", "Which colour has the lamp?"]  # their order
    # Once more: nothing but what got no reply is asked for, and the same stands there.
    assert server.prompts[asked:] == [p for p in server.prompts[:asked] if passage(p).split()[1] == "ladder"]
    assert again.exit_code == 0 and rows(out) == made and "1 asked for now, 20 used" in again.stdout
    assert "pairs␛[31m!" in again.stdout and "\x1b" not in again.output


def test_a_model_that_never_answers_in_json_is_given_up_early(docs: Path, tmp_path: Path) -> None:
    (docs / "more.md").write_text("".join(f"# Part {n}\n\nText {n}.\n\n" for n in range(200)))
    with ChatServer(lambda *_: completion("I would rather\nchat.")) as server:
        done = run(docs, "--out", tmp_path / "o.jsonl", "--model", "m", "--url", server.url, "--concurrency", 2)
    assert done.exit_code == 2 and len(server.prompts) < 20
    assert (
        "stopped after 10 of 10 replies are of no use (--max-bad 0.5); the last: the reply is not JSON" in done.stderr
    )
    assert "I would rather chat." in done.stderr and not (tmp_path / "o.jsonl").exists()
    assert "dropped    10: the reply is not JSON" in done.stdout


def test_a_key_is_sent_and_stands_nowhere(docs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "s3cr3t-key")
    out = tmp_path / "o.jsonl"
    with ChatServer(good) as server:
        arguments = (docs, "--out", out, "--model", "m", "--url", server.url, "--key-env")
        assert "NO_KEY: this environment variable is not set" in run(*arguments, "NO_KEY").stderr
        done = run(*arguments, "MY_KEY")
    assert done.exit_code == 0 and {request["key"] for request in server.requests} == {"Bearer s3cr3t-key"}
    written = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert {out, tmp_path / "o.jsonl.work"} <= set(written)
    assert not any("s3cr3t" in file.read_text() for file in written) and "s3cr3t" not in done.output


@pytest.mark.parametrize("fatal", [1, 2, 9, 24])
def test_killed_and_continued_asks_nothing_twice_and_ends_the_same(docs: Path, tmp_path: Path, fatal: int) -> None:
    """SIGKILL while the server holds a request: what it answered before is never asked again."""
    answered: Counter[str] = Counter()
    victim: list[subprocess.Popen[bytes]] = []

    def answer(prompt: str, seen: int) -> Answer:
        if sum(answered.values()) + 1 == fatal and victim[0].poll() is None and len(victim) == 1:
            os.kill(victim[0].pid, signal.SIGKILL)
            victim[0].wait()
            return good(prompt)
        answered[prompt] += 1
        return good(prompt)

    with ChatServer(good) as server:
        whole = tmp_path / "whole.jsonl"
        assert run(docs, "--out", whole, "--model", "m", "--url", server.url).exit_code == 0
    out = tmp_path / "pairs.jsonl"
    with ChatServer(answer) as server:
        options = ["--model", "m", "--url", server.url, "--concurrency", "1"]
        command = [sys.executable, "-m", "alignment.cli.main", "data", "qa", str(docs), "--out", str(out), *options]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        for _ in range(2):
            victim.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE))
            victim[-1].communicate(timeout=60)
            if len(victim) == 1:
                assert victim[0].returncode == -signal.SIGKILL and not out.exists()
    assert victim[1].returncode == 0
    assert len(answered) == 24 and set(answered.values()) == {1}
    assert out.read_bytes() == whole.read_bytes()


def test_a_local_model_that_talks_nonsense_leaves_nothing_and_says_why(
    docs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALIGNMENT_REGISTRY", str(tmp_path / "registry"))
    tokenizer = tiny.make_tokenizer("chatml")
    shape = tiny.SHAPE.model_copy(update={"max_position_embeddings": 4096})
    model = tiny.write(tmp_path / "model", tiny.make_policy(tokenizer, shape=shape), tokenizer)
    arguments = (docs, "--out", tmp_path / "o.jsonl", "--model", model, "--max-new-tokens", 4, "--batch-size", 5)
    done = run(*arguments, "--max-bad", 1)
    assert done.exit_code == 2 and "no pair is left" in done.stderr and not (tmp_path / "o.jsonl").exists()
    counts = [int(n) for n in re.findall(r"dropped +(\d+): the reply (?:is not JSON|was cut off)", done.stdout)]
    assert sum(counts) == 12 and "12 asked for now, 12 used" in done.stdout
    work = (tmp_path / "o.jsonl.work").read_text().splitlines()
    (tmp_path / "o.jsonl.work").write_text("\n".join(work[:7]) + "\n")  # five and two: the second batch was cut short
    assert "7 asked for now, 12 used" in run(*arguments, "--max-bad", 1).stdout
    assert (tmp_path / "o.jsonl.work").read_text().splitlines()[7:] == work[5:]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--seed", "3"], "--seed is for pairs by a model"),
        (["--model", "m", "--judge-model", "j", "--min-rating", "0"], "--min-rating 0 asks no judge"),
        (["--pairs", "3"], "--pairs is for pairs by a model"),
        (["--model", "m", "--questions", "q.jinja"], "--questions is for pairs without a model"),
        (["--model", "m", "--timeout", "9"], "--timeout is for a model at --url"),
        (["--model", "m", "--url", "http://127.0.0.1:9", "--batch-size", "2"], "--batch-size is for a local model"),
        (["--model", "m", "--url", "http://127.0.0.1:9"], "is the server running"),
        (["--model", "nobody"], "no model 'nobody'"),
        (["--questions", "none.jinja"], "--questions none.jinja: cannot be read: No such file"),
        (["--out", "o.csv"], "name it .jsonl"),
        (["--out", "nowhere/o.jsonl"], "no folder nowhere"),
    ],
)
def test_mistakes_are_one_line(docs: Path, tmp_path: Path, monkeypatch: Any, arguments: list[str], said: str) -> None:
    monkeypatch.setenv("ALIGNMENT_REGISTRY", str(tmp_path / "registry"))
    monkeypatch.chdir(tmp_path)
    done = run(docs, *(["--out", "o.jsonl"] if "--out" not in arguments else []), *arguments)
    assert done.exit_code == 2 and said in done.stderr and done.stderr.count("\n") == 1, done.output
    assert not list(tmp_path.glob("o.*"))
