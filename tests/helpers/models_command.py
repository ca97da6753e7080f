"""Run `alignment models` in tests, and look at the registry that it leaves."""

import json
from typing import Any

from typer.testing import CliRunner, Result

import alignment.cli.main
from alignment.registry import (
    Parent,
    Registry,
    Version,
)

CONTENT = (2).to_bytes(8, "little") + b"{}" + b"weights"


def publish(registry: Registry, name: str = "m", *parents: str, **fields: Any) -> Version:
    source = registry.path.parent / "source"
    made_from = [Parent("init", parent) for parent in parents]
    return registry.publish(name, source, **{"stage": "sft", "role": "policy", "parents": made_from, **fields})


def run(*arguments: str) -> Result:
    return CliRunner().invoke(alignment.cli.main.app, ["models", *arguments])


def as_json(*arguments: str, code: int = 0) -> Any:
    result = run(*arguments, "--json")
    assert (result.exit_code, result.stderr) == (code, "")
    return json.loads(result.stdout)


def refused(*arguments: str) -> str:
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.count("\n") == 1
    return result.stderr.removeprefix("error: ").strip()
