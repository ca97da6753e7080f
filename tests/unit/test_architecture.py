"""The rules of DESIGN.md that code can be asked about: who imports whom, and that importing does nothing.

Also that each shipped config is one, and that each key of each config is read by somebody.
"""

import ast
import itertools
import re
import sys
from pathlib import Path

import pytest
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

# Who may name a library: nobody else does, so that a change of it is a change of one file.
KEEPERS = {
    "accelerate": ("alignment/distributed/", "alignment/training/"),
    "deepspeed": ("alignment/distributed/", "alignment/training/"),
    "wandb": ("alignment/tracking/",),
    "yaml": ("alignment/config/",),
}
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
    """What in a file breaks rules 1 to 4."""
    tree = ast.parse(source)
    package = path.rsplit("/", 1)[0].replace("/", ".")
    names = imports(tree, package)
    tops = {top(name) for name in names}
    found = []
    home = path.split("/")[0]
    may = {"scripts": set(PACKAGES), FLOOR: {FLOOR}, **{stage: {FLOOR, stage} for stage in STAGES}}[home]
    if path == "alignment/cli/main.py":
        may = set(PACKAGES)
        early = {top(name) for node in tree.body for name in imports_if_import(node)}
        found += [f"imports {name} before a command needs it" for name in sorted(early & set(STAGES))]
    found += [f"imports {name}" for name in sorted(tops & {*PACKAGES, "scripts", "tests"} - may)]
    if path in PURE:
        found += [
            f"imports {name}"
            for name in sorted(names)
            if not any((name + ".").startswith(m + ".") for m in PURE_MAY_IMPORT)
        ]
    for library, keepers in KEEPERS.items():
        if library in tops and not path.startswith(keepers):
            found.append(f"imports {library}")
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
def test_scripts_import_what_they_may(path):
    named = [rule for rule in violations(relative(path), path.read_text(encoding="utf-8")) if "at import" not in rule]
    assert named == []


@pytest.mark.parametrize(
    ("path", "source", "broken"),
    [
        ("sft/x.py", "import reward.loss", "imports reward"),
        ("sft/x.py", "def f():\n    from ppo import train", "imports ppo"),
        ("alignment/x.py", "def f():\n    import sft", "imports sft"),
        ("alignment/cli/main.py", "from ppo.train import train", "imports ppo before a command needs it"),
        ("ppo/x.py", "from accelerate.utils import x", "imports accelerate"),
        ("sft/x.py", "import wandb", "imports wandb"),
        ("alignment/data/reading.py", "import yaml", "imports yaml"),
        ("ppo/algorithm.py", "import numpy as np", "imports numpy"),
        ("reward/loss.py", "from alignment.data.reading import Comparison", "imports alignment.data.reading"),
        ("reward/loss.py", "from . import data", "imports reward"),
        ("sft/x.py", "import os\nos.environ['A'] = 'b'", "line 2 does something at import"),
        ("sft/x.py", "import torch\ntorch.set_num_threads(1)", "line 2 does something at import"),
        ("sft/x.py", "try:\n    import a\nexcept ImportError:\n    pass", "line 1 does something at import"),
        ("alignment/x.py", "import tests.tiny", "imports tests"),
    ],
)
def test_the_rules_can_be_broken(path, source, broken):
    assert broken in violations(path, source)


def test_the_command_line_may_import_a_stage_inside_a_command():
    assert violations("alignment/cli/main.py", "def f():\n    import ppo.train") == []


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
    of = {"yaml": "pyyaml", "wandb_workspaces": "wandb-workspaces"}
    third = {top(name) for path in SOURCES for name in imports(parse(path), "alignment")} - {""}
    third -= set(sys.stdlib_module_names) | set(PACKAGES)
    assert {name for name in third if of.get(name, name) not in declared} == set()


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
