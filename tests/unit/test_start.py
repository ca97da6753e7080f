"""Help and a config error answer without torch, which takes seconds to import."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import contextlib, importlib, io, sys
module, *sys.argv = {arguments!r}
with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()) as out:
    importlib.import_module(module).main()
loaded = [name for name in ("torch", "transformers", "trl", "accelerate", "deepspeed", "wandb") if name in sys.modules]
print(len(out.getvalue()) > 200, loaded)
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
