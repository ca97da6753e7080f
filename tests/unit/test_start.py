"""Help, a config error, and what else needs no model answer without torch, which takes seconds to import."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import alignment.cli.main
from alignment.memory import shapes

ROOT = Path(__file__).resolve().parents[2]

PROGRAM = """
import contextlib, importlib, io, sys
module, *sys.argv = {arguments!r}
with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()) as out:
    importlib.import_module(module).main()
loaded = [name for name in ("torch", "transformers", "trl", "accelerate", "deepspeed", "wandb") if name in sys.modules]
print(len(out.getvalue()) > 200, loaded)
"""


PLAN = """
import contextlib, importlib, sys
module, *sys.argv = {arguments!r}
with contextlib.suppress(SystemExit):
    importlib.import_module(module).main()
names = ("torch", "transformers", "tokenizers", "peft", "bitsandbytes", "datasets", "trl", "accelerate", "numpy")
print([name for name in names if name in sys.modules], file=sys.stderr)
"""


@pytest.mark.parametrize(
    "arguments",
    [
        ("alignment.cli.main", "alignment", "--help"),
        ("alignment.cli.main", "alignment", "models", "--help"),
        ("alignment.cli.main", "alignment", "rate", "--help"),
        ("alignment.cli.main", "alignment", "sample", "--help"),
        ("alignment.cli.main", "alignment", "score", "--help"),
        ("alignment.cli.main", "alignment", "eval", "--help"),
        ("sft.__main__", "sft", "--help"),
        ("reward.__main__", "reward", "--help"),
        ("ppo.__main__", "ppo", "--help"),
    ],
    ids=lambda arguments: " ".join(arguments[1:]),
)
def test_help_is_shown_without_the_heavy_libraries(arguments):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(arguments=arguments)], capture_output=True, text=True, check=True
    )
    assert done.stdout.split(maxsplit=1) == ["True", "[]\n"], done.stdout + done.stderr


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
    code = PLAN.format(arguments=("alignment.cli.main", "alignment", *arguments))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == first.stdout
    assert done.stderr.splitlines()[-1] == "[]", done.stderr
