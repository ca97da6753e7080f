"""README and docs: generated pages are fresh, links lead somewhere, and every command that a page shows is one."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import reference
from helpers.doc_commands import Command, commands, problem
from typer.testing import CliRunner

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
COMMANDS = [each for page in PAGES for each in commands(page)]
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


@pytest.mark.parametrize("name", reference.PAGES)
def test_a_generated_page_says_what_the_code_says(name):
    assert (reference.FOLDER / name).read_text(encoding="utf-8") == reference.pages([name])[name], (
        f"docs/reference/{name} is stale; run scripts/reference.py"
    )


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"^ *```.*?^ *```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", re.sub(r"[`*]", "", title).lower()).replace(" ", "-") for title in titles}


def broken_links(page: Path) -> list[str]:
    text = re.sub(r"^ *```.*?^ *```|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    wrong = []
    for target in LINK.findall(text):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            wrong.append(target)
    return wrong


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_link_of_a_page_leads_somewhere(page):
    assert broken_links(page) == []


def test_a_broken_link_is_found(tmp_path):
    page = tmp_path / "a.md"
    page.write_text("# One *two*: `x`\n[a](#one-two-x) [b](b.md) [c](#two) [d](https://e.org) `[e](f.md)`\n")
    assert broken_links(page) == ["b.md", "#two"]


def test_every_page_that_code_or_a_config_names_is_there():
    files = [
        path
        for name in ("alignment", "sft", "reward", "ppo", "scripts", "configs")
        for path in (ROOT / name).rglob("*")
    ]
    named = {
        match
        for path in files
        if path.suffix in (".py", ".yaml", ".sbatch", ".sh", ".jinja", "") and path.is_file()
        for match in re.findall(r"\bdocs/[\w/.-]+\.md", path.read_text(encoding="utf-8", errors="ignore"))
    }
    examples = {"docs/guide.md"}  # of a user's documents
    assert named
    assert sorted(page for page in named - examples if not (ROOT / page).is_file()) == []


def test_every_page_is_in_the_index():
    index = ROOT / "docs" / "README.md"
    listed = {(index.parent / target.partition("#")[0]).resolve() for target in LINK.findall(index.read_text())}
    assert [page for page in PAGES if page.is_relative_to(index.parent) and page not in {*listed, index}] == []


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120


# --- commands --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_a_command_of_a_page_is_one(command):
    assert problem(command) is None


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("python -m sft configs/sft/demo.yaml training.learning_rte=1", "no such argument"),
        ("python -m ppo configs/ppo/demo.yaml ppo.kl_coeff=1", "unknown key"),
        ("python -m ppo configs/ppo/none.yaml", "no config file"),
        ("python -m ppo configs/ppo/demo.yaml --find-lr", "not an option"),
        ("accelerate launch --config_file configs/accelerate/zero9.yaml -m sft configs/sft/demo.yaml", "zero9"),
        ("alignment models promote a@v1", "required"),
        ("alignment data check a.jsonl --modl x", "no option --modl"),
        ("alignment data chek a.jsonl", "no command"),
        ("scripts/rate.py --db x --labler ada", "exit code 2"),
        ("scripts/rate.py invite ada", "exit code 2"),
        ("scripts/rat.py --db x", "no file"),
        ("git push", "no command of ours"),
    ],
)
def test_a_wrong_command_is_found(line, said):
    assert said in (problem(Command("a.md", tuple(line.split()))) or "")


# What needs nothing but a small file of demonstrations is run.
CHEAP = [
    each
    for each in dict.fromkeys(each.words for each in COMMANDS)
    if each[-1] == "--help"
    or ("--keys" in each and each[:2] != ("alignment", "models"))
    or each[:2] == ("alignment", "plan")
    or each == ("alignment", "data", "check", "demonstrations.jsonl")
    or (each[:3] == ("python", "-m", "sft") and "--dry-run" in each and not any("model.name" in word for word in each))
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    rows = [{"prompt": f"What is {n} and {n}?", "completion": f"It is {2 * n}."} for n in range(40)]
    (tmp_path / "demonstrations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_there_are_commands_to_run():
    assert {"plan", "check", "--keys", "--dry-run"} <= {word for each in CHEAP for word in each}


@pytest.mark.parametrize("words", CHEAP, ids=" ".join)
def test_a_cheap_command_does_what_it_says(words, folder, capfd):
    if words[0] == "alignment" and words[1] not in reference.STAGES:
        from alignment.cli.main import app

        done = CliRunner().invoke(app, list(words[1:]))
        assert done.exit_code == 0, done.output
        assert done.output.strip()
        return
    import importlib

    stage = importlib.import_module(f"{words[2]}.__main__")
    try:
        code = stage.main(list(words[3:]))
    except SystemExit as left:
        code = left.code
    shown = capfd.readouterr()
    assert code == 0, shown.err
    assert shown.out.strip()
