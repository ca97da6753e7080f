"""The commands in a Markdown page, and whether each is one: its options exist, its config and overrides are valid."""

from __future__ import annotations

import importlib
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import reference

from alignment.config.arguments import trainer_arguments
from alignment.config.flags import overrides_of_flags
from alignment.config.loading import load_config

ROOT = Path(__file__).resolve().parents[2]
STAGES = ("sft", "reward", "ppo")
FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
OURS = ("accelerate launch", "python -m", "alignment ", "scripts/", "sbatch ")
FOREIGN = {".", "cd", "export", "ls", "pip", "ssh", "touch", "vllm", "wandb"}


@dataclass(frozen=True)
class Command:
    page: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.page}: {' '.join(self.words)}"


def commands(page: Path) -> Iterator[Command]:
    """Each command of a page's fenced blocks, continued lines joined, variables before it and comments taken off."""
    for language, block in FENCE.findall(page.read_text(encoding="utf-8")):
        lines = block.replace("\\\n", " ").splitlines()
        if language == "console":
            lines = [line[2:] for line in lines if line.startswith("$ ")]
        elif language != "bash":
            lines = [line for line in lines if line.strip().startswith(OURS)]
        for line in lines:
            words = shlex.split(line, comments=True)
            while words and re.match(r"[A-Z_]+=", words[0]):
                del words[0]
            if words and not re.fullmatch(r"\w+=.*", words[0]):
                yield Command(page.relative_to(ROOT).as_posix(), tuple(words))


def problem(command: Command) -> str | None:
    """What is wrong with a command, None if nothing is; it is parsed and its config is validated, nothing runs."""
    words = list(command.words)
    try:
        if words[:2] == ["accelerate", "launch"]:
            return _launch(words[2:])
        if words[:2] == ["python", "-m"]:
            return _stage(words[2], words[3:])
        if words[0] == "sbatch":
            script = next(place for place, word in enumerate(words) if word.startswith("scripts/"))
            stage = Path(words[script]).stem
            return _missing(words[script]) or _stage(stage, words[script + 1 :])
        if words[0] == "scripts/slurm/pipeline.sbatch":
            return next(filter(None, map(_missing, words)), None)
        if words[0] == "alignment":
            return _alignment(words[1:])
        if words[0].startswith("scripts/"):
            return _script(words[0], words[1:])
    except SystemExit as left:
        return f"exit code {left.code}" if left.code else None
    except Exception as error:  # noqa: BLE001 - whatever a wrong command raises
        return f"{type(error).__name__}: {error}"
    return None if words[0] in FOREIGN else f"no command of ours, and not in {sorted(FOREIGN)}"


def _missing(path: str) -> str | None:
    return None if (ROOT / path).is_file() else f"no file {path}"


def _launch(words: list[str]) -> str | None:
    at = words.index("-m")
    if "--config_file" in words and "FILE" not in words[words.index("--config_file") + 1]:
        path = words[words.index("--config_file") + 1]
        if missing := _missing(path):
            return missing
    return _stage(words[at + 1], words[at + 2 :])


def _stage(stage: str, words: list[str]) -> str | None:
    if stage not in STAGES:
        return f"no stage {stage}"
    cls = reference.stage_config(stage)
    parser = reference.parser_of(importlib.import_module(f"{stage}.__main__").main)
    if "--keys" in words or "--help" in words:
        parser.parse_args(words)  # leaves
    args = parser.parse_intermixed_args(overrides_of_flags(cls, words, list(parser._option_string_actions)))
    named = args.config if args.config.startswith("configs/") else f"configs/{stage}/hh.yaml"
    config = load_config(cls, ROOT / named, args.overrides)
    if hasattr(cls, "trainer"):
        import trl

        beside = [each for each in cls.trainer.beside if each.__name__ == "EnsembleArguments"]
        trainer_arguments(getattr(trl, cls.trainer.trl_class), cls.trainer.defaults, config.training, beside=beside)
    return None


def _alignment(words: list[str]) -> str | None:
    if words[0] in STAGES:
        return _stage(words[0], words[1:])
    import typer

    from alignment.cli.main import app

    command: Any = typer.main.get_command(app)
    while words and words[0] in getattr(command, "commands", {}):
        command = command.commands[words.pop(0)]
    if words in (["--help"], ["--install-completion"]):
        return None
    if hasattr(command, "commands"):
        return f"no command {words[:1]}"
    if command.context_settings.get("ignore_unknown_options"):
        return _argparse(f"alignment.cli.{command.name}", words)
    options = {name: each for each in command.params for name in (*each.opts, *each.secondary_opts) if name[0] == "-"}
    arguments = [each for each in command.params if not each.opts[0].startswith("-")]
    given, plain = set(), 0
    while words:
        word, equals, _ = words.pop(0).partition("=")
        if not word.startswith("--"):
            plain += 1
        elif word not in options:
            return f"no option {word}"
        else:
            given.add(options[word].name)
            if not equals and not options[word].is_flag:
                words.pop(0)
    needed = [each.name for each in options.values() if each.required and each.name not in given]
    if needed or plain < sum(each.required for each in arguments):
        return f"{needed or 'an argument'} is required"
    if plain > len(arguments) and all(each.nargs == 1 for each in arguments):
        return f"{plain} arguments for {len(arguments)}"
    return None


def _script(script: str, words: list[str]) -> str | None:
    path = ROOT / script
    if not path.is_file():
        return f"no file {script}"
    if path.suffix != ".py" and not (ROOT / f"{script}.py").is_file():
        return None  # a shell script: scripts/test, scripts/check
    if path.name == "study.py":
        return _argparse(f"studies.{words[0]}", words[1:])
    return _argparse(f"alignment.cli.{path.stem}" if path.stem in ("rate", "sample") else path.stem, words)


def _argparse(name: str, words: list[str]) -> str | None:
    module = importlib.import_module(name)
    reference.parser_of(module.main, words).parse_args(
        words[1:] if words[:1] and words[0] in _subcommands(module) else words
    )
    return None


def _subcommands(module: Any) -> Any:
    return getattr(module, "COMMANDS", ())
