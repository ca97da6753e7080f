"""The commands on a ratings file and a tiny reward model, as people run them."""

from __future__ import annotations

import json
import random
import shutil

import pytest
from helpers import tiny

from alignment.cli.rate import main
from alignment.data.reading import is_held_out
from alignment.data.records import Prompt
from alignment.labeling.refit.commands import forgetting
from alignment.labeling.refit.table import load_refit
from alignment.labeling.refit.text import forgetting_sentence
from alignment.ratings import RatingsStore
from alignment.registry import Registry

WORDS = ("library", "opens", "nine", "book", "weeks", "three", "weekdays", "line")
PEOPLE = ("ann", "bob", "cyn")
NUMBER = 90


def ask(number):
    return [{"role": "user", "content": f"Question {number}?"}]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Rated pairs: people prefer the answer that speaks of a book, and cyn its opposite. One ranking, one single."""
    folder = tmp_path_factory.mktemp("refit")
    tokenizer = tiny.make_tokenizer()
    scalar = tiny.make_scalar(folder / "policy", tiny.make_policy(tokenizer), tokenizer)
    tiny.write(folder / "reward", scalar.model, tokenizer)
    rng = random.Random(0)
    with RatingsStore(folder / "r.db", create=True) as store:
        for number in range(NUMBER):
            texts = [rng.choice(WORDS) + " nine" * 4 for _ in range(2)]
            texts[number % 2] = rng.choice(WORDS) + " book" * 4
            item = store.add_item(
                ask(number), [{"text": text} for text in texts], need=3, metadata={"part": "ab"[number % 2]}
            )
            for name in PEOPLE:
                liked = number % 2 if name != "cyn" else 1 - number % 2
                store.import_rating(item, labeler=name, choice="tie" if number % 9 == 0 else ("first", "second")[liked])
        rank = store.add_item(ask("r"), [{"text": text} for text in ("book", "a book", "nine")], kind="rank", need=1)
        store.import_rating(rank, labeler="ann", choice="ranked", ranks=[1, 1, 2])
        single = store.add_item(ask("s"), [{"text": "book"}], kind="single", need=1)
        store.import_rating(single, labeler="ann", choice="scored", score=6)
    return folder


def said(capsys, *arguments, code=0):
    assert main([str(each) for each in arguments]) == code
    return capsys.readouterr()


def test_influence_says_who_and_which_items(home, capsys):
    found = json.loads(said(capsys, "influence", "--db", home / "r.db", "--model", home / "reward", "--json").out)
    assert {each["labeler"] for each in found["labelers"]} == set(PEOPLE)
    assert found["labelers"][-1]["labeler"] == "cyn"  # the least helpful comes last
    assert found["left_out"] == {"single answers": 1}
    held_out = [number for number in (*range(NUMBER), "r") if is_held_out(Prompt(tuple(ask(number))), 0.2, 0)]
    assert found["held_out"]["prompts"] == len(held_out)
    assert found["items"] == NUMBER + 1 - len(held_out)
    assert {each["item"] for each in found["harmful_items"]} <= set(range(1, NUMBER + 2))
    shown = said(capsys, "influence", "--db", home / "r.db", "--model", home / "reward").out
    assert "cyn" in shown and "turned" in shown and "left out: 1 rating of single answers" in shown
    assert max(map(len, shown.splitlines())) < 400


def test_answers_of_a_policy_are_ranked(home, capsys):
    file = home / "answers.jsonl"
    rows = [{"prompt": f"q{number}", "completion": f"book {word}"} for number, word in enumerate(WORDS)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ("influence", "--db", home / "r.db", "--model", home / "reward", "--answers", file, "--json")
    assert json.loads(said(capsys, *command).out)["ranked"] == {"source": str(file), "answers": len(WORDS)}
    file.write_text('{"prompt": "q"}\n')
    assert str(file) in said(capsys, *command, code=2).err


def test_a_report_foretells(home, capsys):
    command = ("report", "--db", home / "r.db", "--model", home / "reward")
    found = json.loads(said(capsys, *command, "--more", "90", "--slice", "part", "--json").out)["growth"]
    assert found["forecast"]["sentence"].startswith("90 more ratings: ")
    low, high = found["forecast"]["ci"]
    assert low <= found["forecast"]["then"] <= found["forecast"]["now"]
    assert found["forecast"]["now"] == pytest.approx(found["held_out"]["log_loss"]["value"], abs=1e-6)
    assert low < high
    assert {each["name"] for each in found["slices"]} == {"a", "b", "(none)"} or {
        each["name"] for each in found["slices"]
    } == {"a", "b"}
    assert sum(each["held_out"] for each in found["slices"]) == found["forecast"]["held_out"]
    shown = said(capsys, *command).out
    assert "200 more ratings: " in shown and "If you go on" in shown


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("report", "--slice", "part"), "--slice, --more and --registry go with --model REF"),
        (("report", "--model", "REWARD", "--more", "0"), "--more 0: expected the number of further ratings, 1 or more"),
        (("report", "--model", "REWARD", "--slice", "topic"), "--slice topic: no item of"),
        (("influence", "--model", "POLICY"), "a policy, which has no score head"),
    ],
)
def test_mistakes_are_said_in_a_line(home, capsys, arguments, words):
    places = {"REWARD": str(home / "reward"), "POLICY": str(home / "policy")}
    error = said(capsys, *(places.get(each, each) for each in arguments), "--db", home / "r.db", code=2).err
    assert words in error and len(error.strip().splitlines()) == 1


def test_too_few_prompts_are_said(tmp_path, home, capsys):
    with RatingsStore(tmp_path / "few.db", create=True) as store:
        item = store.add_item(ask(0), [{"text": "a"}, {"text": "b"}])
        store.import_rating(item, labeler="ann", choice="first")
    error = said(capsys, "influence", "--db", tmp_path / "few.db", "--model", home / "reward", code=2).err
    assert "and a refit needs 10 or more; rate more pairs" in error


def test_what_forgetting_would_change_is_a_sentence(home):
    found = forgetting(str(home / "r.db"), "cyn", str(home / "reward"))
    sentence = forgetting_sentence(found)
    assert sentence.startswith("Without the ratings of cyn (") and sentence.endswith("held-out pairs otherwise.")
    assert found["change"]["log_loss"]["value"] < 0
    with RatingsStore(home / "r.db") as store:
        assert "cyn" in store.labelers()  # it only says so
    nobody = forgetting_sentence(forgetting(str(home / "r.db"), "eve", str(home / "reward")))
    assert nobody.startswith("eve has no ratings that ")


def test_a_published_model_says_whose_ratings_and_which_prompts(home, tmp_path):
    with RatingsStore(home / "r.db") as store:
        fingerprint = store.fingerprint(["ann", "cyn"])
    registry = Registry(tmp_path / "registry")
    registry.publish(
        "rm", home / "reward", stage="reward", role="reward",
        config={"data": {"train": "r.db", "eval_share": 0.4, "split_seed": 3}},
        data=[{"name": "r.db", **fingerprint}],
    )  # fmt: skip
    fitted = load_refit(str(home / "r.db"), "rm", str(registry.path))
    assert fitted.table.labelers == ("ann", "cyn")
    held_out = {number for number in range(NUMBER) if is_held_out(Prompt(tuple(ask(number))), 0.4, 3)}
    table = fitted.table
    assert {item - 1 for item in table.items[table.held_out].tolist()} - {NUMBER} == held_out


def test_forgetting_says_what_it_changes_before_it_is_done(home, tmp_path, capsys):
    db = tmp_path / "r.db"
    with RatingsStore(home / "r.db"):  # folds the log into the file
        pass
    shutil.copy(home / "r.db", db)
    command = ("forget", "cyn", "--db", db, "--model", home / "reward")
    assert "Without the ratings of cyn" in (refused := said(capsys, *command, code=2).err) and "--yes" in refused
    done = said(capsys, *command, "--yes", "--json")
    assert "Without the ratings of cyn" in done.err and json.loads(done.out)["change"]["labeler"] == "cyn"
    with RatingsStore(db) as store:
        assert "cyn" not in {rating.labeler for rating in store.ratings()}


def test_progress_has_the_forecast_too(home, capsys):
    command = ("progress", "--db", home / "r.db", "--model", home / "reward")
    assert json.loads(said(capsys, *command, "--json").out)["growth"]["more"] == 200
    assert "If you go on" in said(capsys, *command).out
    assert "--model" in said(capsys, "progress", "--db", home / "r.db", "--more", "9", code=2).err
    assert "leave one of them out" in said(capsys, *command, "--link", code=2).err
