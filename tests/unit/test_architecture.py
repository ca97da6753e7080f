"""The rules of DESIGN.md that code can be asked about. Contracts in pyproject.toml say who imports whom; here is what
import-linter cannot ask: that importing does nothing, what the pure files import, sizes, and names.

Also that each shipped config is one, and that each key of each config is read by somebody.
"""

import ast
import itertools
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from importlinter.cli import EXIT_STATUS_SUCCESS, lint_imports
from pydantic import BaseModel

from alignment.config.loading import load_config
from alignment.config.sections import RunConfig
from ppo.config import PPOStageConfig
from reward.config import RewardStageConfig
from sft.config import SFTStageConfig

ROOT = Path(__file__).resolve().parents[2]
STAGES = ("sft", "reward", "ppo")
FLOOR = "alignment"
PACKAGES = (FLOOR, *STAGES)
CONFIGS = {"sft": SFTStageConfig, "reward": RewardStageConfig, "ppo": PPOStageConfig}
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
SCRIPTS = sorted(path for path in (ROOT / "scripts").rglob("*.py"))

PURE = ("alignment/tensors.py", "ppo/algorithm.py", "reward/loss.py")
PURE_MAY_IMPORT = {"__future__", "collections", "dataclasses", "math", "torch", "typing", "alignment.tensors"}


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports(tree: ast.AST, package: str = "") -> set[str]:
    """Full names of everything imported, at any depth: `from a.b import c` gives a.b and a.b.c."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(part for part in (package if node.level else "", node.module or "") if part)
            found |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
    return found


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def top(name: str) -> str:
    return name.split(".")[0]


def violations(path: str, source: str) -> list[str]:
    """What in a file breaks the rules on imports."""
    tree = ast.parse(source)
    names = imports(tree, path.rsplit("/", 1)[0].replace("/", "."))
    found = []
    if path == "alignment/cli/main.py":
        early = {top(name) for node in tree.body for name in imports_if_import(node)}
        found += [f"imports {name} before a command needs it" for name in sorted(early & set(STAGES))]
    if path in PURE:
        found += [
            f"imports {name}"
            for name in sorted(names)
            if not any((name + ".").startswith(m + ".") for m in PURE_MAY_IMPORT)
        ]
    own = {
        target.id
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    own |= {node.name for node in tree.body if isinstance(node, ast.ClassDef)}
    found += [f"line {node.lineno} does something at import" for node in tree.body if not is_definition(node, own)]
    return found


def imports_if_import(node: ast.stmt) -> set[str]:
    return imports(node) if isinstance(node, ast.Import | ast.ImportFrom) else set()


def is_definition(node: ast.stmt, own: set[str]) -> bool:
    """Imports, functions, classes, docstrings, constants, the `__main__` block, and registering with one's `own`."""
    match node:
        case ast.Import() | ast.ImportFrom() | ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
            return True
        case ast.Expr(value=ast.Constant()):
            return True
        case ast.Assign(targets=targets):
            return all(isinstance(target, ast.Name | ast.Tuple) for target in targets)
        case ast.AnnAssign(target=ast.Name()):
            return True
        case ast.If(test=ast.Compare(left=ast.Name(id="__name__"))) | ast.If(test=ast.Name(id="TYPE_CHECKING")):
            return True
        case ast.Expr(value=ast.Call(func=ast.Attribute(value=ast.Name(id=name)))):
            return name in own
        case _:
            return False


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_each_file_keeps_the_rules(path):
    assert violations(relative(path), path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("path", SCRIPTS, ids=relative)
def test_scripts_leave_these_libraries_to_the_package(path):
    assert {top(name) for name in imports(parse(path))} & {"accelerate", "deepspeed", "wandb", "yaml"} == set()


@pytest.mark.parametrize(
    ("path", "source", "broken"),
    [
        ("alignment/cli/main.py", "from ppo.train import train", "imports ppo before a command needs it"),
        ("ppo/algorithm.py", "import numpy as np", "imports numpy"),
        ("reward/loss.py", "from alignment.data.reading import Comparison", "imports alignment.data.reading"),
        ("reward/loss.py", "from . import data", "imports reward"),
        ("sft/x.py", "import os\nos.environ['A'] = 'b'", "line 2 does something at import"),
        ("sft/x.py", "import torch\ntorch.set_num_threads(1)", "line 2 does something at import"),
        ("sft/x.py", "try:\n    import a\nexcept ImportError:\n    pass", "line 1 does something at import"),
    ],
)
def test_the_rules_can_be_broken(path, source, broken):
    assert broken in violations(path, source)


def test_the_command_line_may_import_a_stage_inside_a_command():
    assert violations("alignment/cli/main.py", "def f():\n    import ppo.train") == []


def lint(*arguments, folder):
    """Run import-linter on the packages of a folder; returns its exit code and what it printed."""
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as main; main()"]
    environment = {**os.environ, "PYTHONPATH": str(folder), "COLUMNS": "200"}
    done = subprocess.run([*command, *arguments], cwd=folder, env=environment, capture_output=True, text=True)
    return done.returncode, done.stdout


def test_the_import_contracts_hold(capsys):
    status = lint_imports(config_filename=str(ROOT / "pyproject.toml"), no_cache=True, no_logo=True)
    assert status == EXIT_STATUS_SUCCESS, capsys.readouterr().out


def test_each_import_contract_can_be_broken(tmp_path):
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    planted = {
        "sft/x.py": "import reward.loss",
        "alignment/data/x.py": "def f():\n    from ppo import train",
        "alignment/registry/x.py": "def f():\n    import alignment.models.policies",
        "alignment/models/x.py": "from accelerate.utils import x",
        "ppo/x.py": "import wandb",
        "alignment/data/y.py": "import yaml",
    }
    for name, source in planted.items():
        (tmp_path / name).write_text(source + "\n")
    code, said = lint("--no-cache", "--no-logo", folder=tmp_path)
    assert code == 1 and "Contracts: 0 kept, 6 broken." in said
    for importer, imported in {
        "sft.x": "reward.loss",
        "alignment.data.x": "ppo.train",
        "alignment.registry.x": "alignment.models.policies",
        "alignment.models.x": "accelerate",
        "ppo.x": "wandb",
        "alignment.data.y": "yaml",
    }.items():
        assert f"{importer} -> {imported}" in said
    (tmp_path / "alignment" / "shed").mkdir()
    (tmp_path / "alignment" / "shed" / "__init__.py").touch()
    assert "alignment.shed" in lint("--no-cache", "--no-logo", folder=tmp_path)[1]  # a room that has no place yet


def test_banned_calls_are_nowhere():
    """Pickles, shells and unsafe YAML run what is in a file."""
    for path in SOURCES + SCRIPTS:
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                assert given.get("shell") != "True", f"{relative(path)}:{node.lineno}"
                assert called not in ("yaml.load", "yaml.unsafe_load", "eval", "exec", "os.system"), relative(path)
                if called == "torch.load":
                    assert given.get("weights_only") == "True", f"{relative(path)}:{node.lineno}"
        assert not imports(parse(path)) & {"pickle", "dill", "cloudpickle", "marshal", "shelve"}, relative(path)


def test_every_name_imported_is_declared():
    """An import that only a bigger environment has would break a fresh clone."""
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = itertools.chain.from_iterable(project["optional-dependencies"].values())
    declared = {
        "".join(itertools.takewhile(lambda c: c.isalnum() or c in "-_", line)).lower()
        for line in [*project["dependencies"], *extras]
    }
    of = {
        "yaml": "pyyaml",
        "wandb_workspaces": "wandb-workspaces",
        "markdown_it": "markdown-it-py",
        "lm_eval": "lm-eval",
    }
    third = {top(name) for path in SOURCES for name in imports(parse(path), "alignment")} - {""}
    third -= set(sys.stdlib_module_names) | set(PACKAGES)
    assert {name for name in third if of.get(name, name) not in declared} == set()


# --- sizes and names -------------------------------------------------------------------------------------------------


def long_files() -> set[str]:
    return {relative(path) for path in SOURCES + SCRIPTS if len(path.read_text(encoding="utf-8").splitlines()) > 400}


def long_functions() -> set[str]:
    return {
        f"{relative(path)}:{node.name}"
        for path in SOURCES + SCRIPTS
        for node in ast.walk(parse(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (node.end_lineno or 0) - node.lineno >= 60
    }


def test_files_and_functions_are_short():
    assert long_files() == set()
    assert long_functions() == set()


def test_few_files_are_in_no_room():
    assert len(list((ROOT / FLOOR).glob("*.py"))) <= 10


def test_a_class_name_is_one_class():
    """But `Contestant`, by which the benchmarks' worker finds the one class of each contestant's file."""
    places: dict[str, list[str]] = {}
    for path in SOURCES + SCRIPTS:
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.ClassDef) and node.name != "Contestant":
                places.setdefault(node.name, []).append(relative(path))
    assert {name: files for name, files in places.items() if len(files) > 1} == {}


# --- configs ---------------------------------------------------------------------------------------------------------

RECIPES = sorted(path for stage in STAGES for path in (ROOT / "configs" / stage).glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=relative)
def test_each_shipped_config_is_one(path):
    stage = path.parent.name
    config = load_config(CONFIGS[stage], path)
    assert isinstance(config, RunConfig)
    if stage in ("sft", "reward"):
        import importlib

        import trl

        from alignment.config.arguments import trainer_arguments

        cls = {"sft": trl.SFTConfig, "reward": trl.RewardConfig}[stage]
        trainer_arguments(cls, importlib.import_module(f"{stage}.config").DEFAULTS, config.training)


@pytest.mark.parametrize("stage", STAGES)
def test_each_stage_ships_the_demos_recipe_and_one_on_real_data(stage):
    assert {"demo", "hh"} <= {path.stem for path in RECIPES if path.parent.name == stage}


def readme_commands() -> list[tuple[str, str, list[str]]]:
    """Stage, recipe and overrides of each command of a stage in the README."""
    text = (ROOT / "README.md").read_text().replace("\\\n", " ")
    found = re.findall(r"-m (sft|reward|ppo) (configs/\S+)((?: +\S+=\S+)*)", text)
    return [(stage, path, overrides.split()) for stage, path, overrides in found]


def test_the_readmes_commands_are_read_as_they_stand():
    commands = readme_commands()
    assert {stage for stage, *_ in commands} == set(STAGES)
    for stage, path, overrides in commands:
        config = load_config(CONFIGS[stage], ROOT / path, overrides)
        assert overrides and config.name == config.registry.name  # else one run's folder would be in the next one's way


def sections(cls: type[BaseModel]) -> set[type[BaseModel]]:
    import typing

    found = {cls}
    for field in cls.model_fields.values():
        for part in (field.annotation, *typing.get_args(field.annotation)):
            if isinstance(part, type) and issubclass(part, BaseModel):
                found |= sections(part)
    return found


@pytest.mark.parametrize("stage", STAGES)
def test_each_key_is_read_by_somebody(stage):
    """As an attribute, in the stage itself or on the shared floor: a key that nobody reads is a promise not kept."""
    read = {
        node.attr
        for path in SOURCES
        if path.relative_to(ROOT).parts[0] in (FLOOR, stage)
        for node in ast.walk(parse(path))
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
    }
    keys = {name for cls in sections(CONFIGS[stage]) for name in cls.model_fields}
    assert keys - read == set()


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_has_as_few_keys_as_it_can(stage):
    """About forty; PPO, which is an algorithm, four models and their rewards, twice as many."""
    leaves = [
        name
        for cls in sections(CONFIGS[stage])
        for name, field in cls.model_fields.items()
        if not (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel))
    ]
    assert len(leaves) <= (85 if stage == "ppo" else 45)


@pytest.mark.parametrize("stage", STAGES)
def test_each_key_says_what_it_is_or_speaks_for_itself(stage):
    """No section without a docstring."""
    for cls in sections(CONFIGS[stage]):
        assert cls.__doc__ and cls.__doc__.strip(), cls
