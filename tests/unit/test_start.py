"""Help, a config error, and what else needs no model answer without torch, which takes seconds to import."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import alignment.cli.main
from alignment.memory import shapes
from alignment.ratings import RatingsStore

ROOT = Path(__file__).resolve().parents[2]

HEAVY = (
    "torch",
    "transformers",
    "tokenizers",
    "peft",
    "bitsandbytes",
    "datasets",
    "trl",
    "accelerate",
    "deepspeed",
    "wandb",
)
HELP = """
import contextlib, importlib, io, json, sys
for module, *sys.argv in {commands!r}:
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()) as out:
        importlib.import_module(module).main()
    print(json.dumps([sys.argv, len(out.getvalue()) > 200, [name for name in {heavy!r} if name in sys.modules]]))
"""
PLAN = """
import contextlib, importlib, sys
module, *sys.argv = {arguments!r}
with contextlib.suppress(SystemExit):
    importlib.import_module(module).main()
print([name for name in {heavy!r} if name in sys.modules], file=sys.stderr)
"""


def test_every_help_is_shown_without_the_heavy_libraries():
    names = [command.name or command.callback.__name__ for command in alignment.cli.main.app.registered_commands]
    groups = [group.name for group in alignment.cli.main.app.registered_groups if group.name]
    assert {"plan", "rate", "compare", "models", "runs"} <= {*names, *groups}
    stages = ("sft", "reward", "ppo")
    commands = [("alignment.cli.main", "alignment", *name, "--help") for name in [(), *zip([*names, *groups, *stages])]]
    commands += [(f"{stage}.__main__", stage, "--help") for stage in stages]
    commands += [("alignment.cli.rate", "rate", *name, "--help") for name in [(), ("report",), ("import",)]]
    code = HELP.format(commands=commands, heavy=HEAVY)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert answers == [[list(command[1:]), True, []] for command in commands]


@pytest.mark.parametrize(
    ("recipe", "changes"),
    [
        ("sft/8b", ("training.per_device_train_batch_size=2",)),
        ("sft/demo", ()),
        ("reward/8b", ()),
        ("ppo/8b", ()),
        ("ppo/8b", ("model.mode=shared", "model.value=adapter")),
    ],
)
def test_a_plan_of_models_that_were_measured_before_is_the_same_without_the_heavy_libraries(
    tmp_path, monkeypatch, recipe, changes
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("ALIGNMENT_REGISTRY", str(tmp_path / "registry"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(shapes, "_sizes", {})  # another test of this process may have measured them
    arguments = ["plan", str(ROOT / "configs" / f"{recipe}.yaml"), *changes, "--json"]
    first = CliRunner().invoke(alignment.cli.main.app, arguments)
    assert first.exit_code == 0, first.output
    code = PLAN.format(arguments=("alignment.cli.main", "alignment", *arguments), heavy=(*HEAVY, "numpy"))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == first.stdout
    assert done.stderr.splitlines()[-1] == "[]", done.stderr


def test_an_item_is_shown_and_rated_without_the_heavy_libraries(tmp_path):
    database = tmp_path / "ratings.db"
    with RatingsStore(database, create=True) as store:
        store.add_item([{"role": "user", "content": "When do you open?"}], [{"text": "At nine."}, {"text": "Never."}])
    arguments = ("alignment.cli.rate", "rate", "--db", str(database), "--labeler", "ada", "--plain")
    code = PLAN.format(arguments=arguments, heavy=(*HEAVY, "textual"))
    done = subprocess.run([sys.executable, "-c", code], input="1\n", capture_output=True, text=True, check=True)
    assert "When do you open?" in done.stdout
    assert done.stderr.splitlines()[-1] == "[]", done.stderr
    with RatingsStore(database) as store:
        assert len(store.ratings()) == 1
