"""The organiser's commands as they are typed: three labelers by lines, a referee, and what the organiser then reads."""

import io
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from alignment.cli.rate import main
from alignment.ratings import RatingsStore


class Typed:
    """Runs commands in a folder; what they printed, and their exit code."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self.db, self.folder = folder / "ratings.db", folder
        self._capsys, self._monkeypatch = capsys, monkeypatch

    def __call__(self, *words: object, keys: str = "", code: int = 0, tty: bool = False) -> str:
        class Lines(io.TextIOWrapper):
            def isatty(self) -> bool:
                return tty

        self._monkeypatch.setattr(sys, "stdin", Lines(io.BytesIO(keys.encode())))
        self._monkeypatch.setattr(sys.stderr, "isatty", lambda: tty, raising=False)
        self._capsys.readouterr()
        assert main([*map(str, words), "--db", str(self.db)]) == code
        printed = self._capsys.readouterr()
        self.errors = printed.err
        return printed.out

    def json(self, *words: object, **more: Any) -> Any:
        return json.loads(self(*words, "--json", **more))


@pytest.fixture
def typed(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Typed:
    """A file with four pairs; ada and cy prefer the good answer, bob the bad one; eve is invited."""
    typed = Typed(tmp_path, capsys, monkeypatch)
    rows = [
        {
            "kind": "pair",
            "prompt": [{"role": "user", "content": f"question {number}"}],
            "completions": [{"text": "good"}, {"text": "bad"}],
            "need": 3,
        }
        for number in range(4)
    ]
    (tmp_path / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    typed("import", tmp_path / "items.jsonl")
    (tmp_path / "guide.txt").write_text("Prefer the good one.\n")
    typed("settings", "--guideline", tmp_path / "guide.txt", "--gold-share", "0", "--repeat-share", "0")
    typed("invite", "eve")
    for name, wanted in {"ada": "good", "bob": "bad", "cy": "good"}.items():
        shown = typed("--labeler", name, "--plain", keys="")
        for _ in range(4):
            left = re.findall(r"LEFT:\n  (\w+)", shown)[-1]
            lines = ("f\nc odd one\n" if name == "bob" else "") + ("1\n" if left == wanted else "7\n")
            shown = typed("--labeler", name, "--plain", keys=lines)
    return typed


def test_an_organiser_finds_what_is_disputed_and_by_whom(typed: Typed) -> None:
    assert [row["item"] for row in typed.json("items", "--disputed", "--flagged", "--by", "bob")["items"]] == [
        1,
        2,
        3,
        4,
    ]
    assert typed.json("items", "--commented", "--by", "ada")["items"] == []
    assert "disputed: 2 first, 1 second; 1 flagged; 1 comment" in typed("items", "--disputed")
    shown = typed("show", "3")
    assert re.search(r"^bob: SECOND is much better   20.*guideline 1$", shown, re.M) and '"odd one"' in shown
    typed("show", "7", code=2)
    assert "no item 7; the items have the numbers 1 to 4" in typed.errors
    typed("items", "--by", "bop", code=2)
    assert "no labeler 'bop'; here are 'bob'" in typed.errors


def test_a_referee_decides_and_training_and_export_follow(typed: Typed) -> None:
    asked = typed("--labeler", "rita", "--adjudicate", "--plain", keys="")
    assert "1 of 4" in asked and "odd one" not in asked
    side = "1" if re.findall(r"LEFT:\n  (\w+)", asked)[-1] == "bad" else "7"
    decided = typed("--labeler", "rita", "--adjudicate", "--plain", keys=f"{side}\n")
    assert "Your verdict: " in decided and "2 labelers: " in decided and '"odd one"' in decided
    typed("export", "--format", "hh", typed.folder / "out.jsonl")
    rows = [json.loads(line) for line in (typed.folder / "out.jsonl").read_text().splitlines()]
    verdicts = [row["item"] for row in rows if row["chosen"].endswith("Assistant: bad")]
    assert len(rows) == 4 and len(verdicts) == 1
    assert "verdict: second" in typed("items", "--disputed")
    assert "No disputed item is left for you" in typed("--labeler", "ada", "--adjudicate", "--plain")
    typed("export", "--format", "jsonl", typed.folder / "all.jsonl")
    again = Typed(typed.folder / "again", typed._capsys, typed._monkeypatch)
    again.folder.mkdir()
    again("import", typed.folder / "all.jsonl")
    with RatingsStore(typed.db) as old, RatingsStore(again.db) as new:
        kept = [sorted((each.item, each.choice) for each in file.ratings(for_training=True)) for file in (old, new)]
        assert kept[0] == kept[1] and len(kept[0]) == 1 + 3 * 3
        assert sum(rating.why == "verdict" for rating in new.ratings()) == 1


@pytest.mark.parametrize(
    ("words", "fix"),
    [
        (("--web", "--adjudicate"), "invite --adjudicate"),
        (("--labeler", "rita", "--adjudicate", "--order", "uncertain"), "leave --order out"),
    ],
)
def test_refereeing_where_it_cannot_be_names_the_fix(typed: Typed, words: tuple[str, ...], fix: str) -> None:
    with pytest.raises(SystemExit) as stopped:
        typed(*words)
    assert stopped.value.code == 2 and fix in typed._capsys.readouterr().err


def test_progress_and_labelers_say_who_has_begun(typed: Typed) -> None:
    found = typed.json("progress")
    assert (found["items"], found["complete"], found["votes"], found["left"]) == (4, 4, 12, 0)
    people = {row["labeler"]: row for row in found["labelers"]}
    assert list(people) == ["ada", "bob", "cy", "eve"]
    assert people["eve"]["seen"] is None and people["ada"]["answers"] == 4
    assert people["ada"]["agreement"] == {"value": 0.5, "n": 8}
    hashes = {row["labeler"]: row["hash"] for row in typed.json("labelers")["labelers"]}
    with RatingsStore(typed.db) as store:
        assert hashes == {name: store.people.labeler_hash(name) for name in people}
    assert hashes["bob"] in typed("labelers") and "never; invited" in typed("invite", "--list")


def test_a_link_to_the_progress_is_made_and_shown_once(typed: Typed) -> None:
    link = typed("progress", "--link", "--url", "https://rate.example.org").strip()
    assert link.startswith("https://rate.example.org/progress/")
    with RatingsStore(typed.db) as store:
        assert store.desk.opens(link.rpartition("/")[2])
    typed("progress", "--link", "--url", "rate.example.org", code=2)
    assert "expected the page's address with http://" in typed.errors


def test_a_mistyped_labeler_does_not_begin_as_somebody_else(typed: Typed) -> None:
    for words in (("--labeler", "Ada", "--plain"), ("invite", "evee")):
        typed(*words, code=2)
        assert "is new in" in typed.errors and "add --new-labeler if this is another person" in typed.errors
    assert "1 of" not in typed("--labeler", "ada", "--plain")
    typed("--labeler", "Ada", "--plain", "--new-labeler")
    typed("invite", "evee", "--new-labeler")
    assert [row["labeler"] for row in typed.json("invite", "--list")["invited"]] == ["eve", "evee"]


def test_a_revoked_link_is_gone_and_the_answers_stay(typed: Typed) -> None:
    link = typed("invite", "ada").split()[1]
    assert "the link is dead" in typed("revoke", "ada", "eve")
    with RatingsStore(typed.db) as store:
        assert store.people.labeler_of(link.rpartition("/")[2]) is None and len(store.ratings()) == 12
    typed("invite", "eve")
    typed("revoke", "eve", "ada", code=2)  # all or none
    assert "'ada' has no open link" in typed.errors
    assert [row["labeler"] for row in typed.json("invite", "--list")["invited"]] == ["eve"]


def test_forgetting_shows_what_goes_and_asks(typed: Typed) -> None:
    registry = ("--registry", typed.folder / "registry")
    typed("forget", "bob", *registry, code=2)
    assert "forget removes 4 ratings, 8 events of the log of bob" in typed.errors and "add --yes" in typed.errors
    typed("forget", "bob", *registry, keys="n\n", tty=True, code=2)
    assert "Remove it? [y/N]" in typed.errors and "nothing of bob was removed" in typed.errors
    with RatingsStore(typed.db) as store:
        assert len(store.ratings()) == 12
    assert "bob: 4 ratings removed" in typed("forget", "bob", *registry, keys="y\n", tty=True)
    assert "ada: 4 ratings removed" in typed("forget", "ada", *registry, "--yes")
    assert "ada: 0 ratings removed" in typed("forget", "ada", *registry)  # nothing is left to ask about


def test_a_set_up_that_lacks_something_says_so_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    typed = Typed(tmp_path, capsys, monkeypatch)
    with RatingsStore(typed.db, create=True) as store:
        for number in range(2):
            prompt = [{"role": "user", "content": f"question {number}"}]
            store.add_item(prompt, [{"text": "a"}, {"text": "b"}])
    settings = typed("settings", "--calibration", 10)
    assert "the calibration round wants 10 gold items and there are none" in settings
    typed("--labeler", "ada", "--plain", keys="1\n")
    assert "no guideline says what to prefer" in typed.errors and typed.errors.count("! ") == 2
    typed("--labeler", "ada", "--plain", keys="1\n")
    assert typed.errors == ""
