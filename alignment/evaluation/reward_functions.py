"""Rewards that are Python functions, in PPO and as judges of `alignment compare`."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from alignment.data.records import Prompt
from alignment.distributed import heartbeat
from alignment.errors import ConfigError
from alignment.evaluation.reward_values import FunctionLeft, RewardError, TokenIds, checked, columns_of, prompt_of
from alignment.redaction import without_secrets

PACKAGES = {"alignment", "sft", "reward", "ppo"}
"""This suite's own, which hide files of the same names."""
OWN = {"prompts", "responses"}
"""Names that every reward is given; a column of that name is not."""


class FunctionReward:
    """`function(prompts, responses, **columns) -> list[float]`, given the columns that it takes."""

    def __init__(self, path: str, key: str, columns: Sequence[str], weight: float = 1.0) -> None:
        """`path` is `module:function` or `file.py:function`; `key` is the config key, or the option, that gave it."""
        self.key, self.path, self.weight = key, path, weight
        self.name = path.rpartition(":")[2]
        self._function = _find(path, key)
        try:
            parameters = inspect.signature(self._function).parameters.values()
        except (TypeError, ValueError):  # a builtin
            raise ConfigError(f"{self.key}={path}: it does not say what it takes; name a function") from None
        takes_all = any(p.kind == p.VAR_KEYWORD for p in parameters)
        named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        if not takes_all and OWN - {p.name for p in named}:
            raise ConfigError(
                f"{self.key}={path}: it is called as {self.name}(prompts=..., responses=..., **columns), "
                f"and takes ({', '.join(p.name for p in named)})"
            )
        self._required = [p.name for p in named if p.name not in OWN and p.default is p.empty]
        self._columns = [name for name in columns if takes_all or name in {p.name for p in named}]

    def check_columns(self, where: str, names: Sequence[str]) -> None:
        """Raises ConfigError if the function takes a column that is not among these of `where`."""
        if missing := [name for name in self._required if name not in names]:
            raise ConfigError(
                f"{self.key}={self.path}: it takes a column '{missing[0]}', which no prompt of {where} has; there: "
                f"{', '.join(names) or 'none'}"
            )

    def score(
        self, prompts: Sequence[Prompt], responses: Sequence[str], tokens: Sequence[TokenIds] = ()
    ) -> list[float]:
        """A finite number for each response; `tokens` are not given to functions."""
        given = columns_of(prompts, self._columns)
        try:
            with heartbeat.within(f"the reward function {self.path}"):
                scores = self._function(prompts=[prompt_of(p) for p in prompts], responses=list(responses), **given)
        except BaseException as error:  # an exit would end the run as if it were done
            # The last frame is where the user's code, or what it called, went wrong; W&B puts one around sys.exit.
            frames = traceback.extract_tb(error.__traceback__)
            place = next((each for each in reversed(frames) if "wandb" not in Path(each.filename).parts), frames[-1])
            kind = RewardError if isinstance(error, Exception) else FunctionLeft
            raise kind(
                f"{self.path} raised {type(error).__name__}: {_first_line(error)} ({place.filename}:{place.lineno})"
            ) from error
        return checked(scores, len(responses), self.path)


def _first_line(error: BaseException) -> str:
    """The first line of an error's text, without secrets that it quotes."""
    return (without_secrets(str(error)).strip().splitlines() or [""])[0]


def _find(path: str, key: str) -> Callable[..., Any]:
    module_name, _, name = path.rpartition(":")
    try:
        module = _import(module_name)
    except BaseException as error:
        message = _first_line(error) or type(error).__name__
        if isinstance(error, SystemExit):
            message = f"it calls sys.exit({error.code})"
        raise ConfigError(
            f"{key}={path}: the module {module_name} cannot be imported ({message}); it is looked for in the current "
            "folder and among the installed packages"
        ) from error
    if name not in vars(module) and module_name.partition(".")[0] in PACKAGES:
        raise ConfigError(
            f"{key}={path}: {module_name} is a package of this suite, and there is no {module_name}.py in the current "
            "folder; rename your file (my_rewards.py, say) and name it here"
        )
    function = getattr(module, name, None)
    if not callable(function):
        callables = [each for each in vars(module) if callable(getattr(module, each)) and not each.startswith("_")]
        near = difflib.get_close_matches(name, callables, 1) or callables[:1]
        hint = f"; did you mean {module_name}:{near[0]}?" if near else ""
        raise ConfigError(f"{key}={path}: {module_name} has no function {name}{hint}")
    checked_function: Callable[..., Any] = function
    return checked_function


def _import(name: str) -> ModuleType:
    """The module of the current folder, else the installed one, or a file. A file there is taken even where a package
    hides it, as this suite's `reward` does."""
    folder = Path.cwd()
    if not {"", str(folder)} & set(sys.path):  # as with the command `alignment`
        sys.path.insert(0, str(folder))
    if name.endswith(".py"):
        return _run_file(f"reward_functions_of_{Path(name).stem}", Path(name).expanduser())
    file = folder.joinpath(*name.split(".")).with_suffix(".py")
    installed = importlib.util.find_spec(name)
    if not file.is_file() or (installed and installed.origin and file.samefile(installed.origin)):
        return importlib.import_module(name)
    return _run_file(f"reward_functions_of_{name}", file)


def _run_file(name: str, file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
