"""Flags that are no options: overrides as `wandb agent` writes them, and what users of Hugging Face's scripts type."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel

from alignment.config.arguments import OWNED_ARGUMENTS, TrainerSection
from alignment.config.reference import keys, nearest, trl_keys
from alignment.errors import ConfigError

SAME = {
    "model_name_or_path": ("model.name", "model.policy"),
    "sft_model_path": ("model.policy",),
    "reward_model_path": ("model.reward",),
    "dataset_name": ("data.train",),
    "train_file": ("data.train",),
    "validation_file": ("data.eval",),
    "max_seq_length": ("data.max_length",),
    "torch_dtype": ("model.dtype",),
    "run_name": ("name",),
    "per_device_train_batch_size": ("training.microbatch_tokens",),
    "num_train_epochs": ("training.max_steps",),
    "num_ppo_epochs": ("ppo.num_epochs",),
    "num_mini_batches": ("ppo.num_minibatches",),
    "response_length": ("rollout.max_new_tokens",),
    "cliprange": ("ppo.clip_range",),
    "cliprange_value": ("ppo.value_clip_range",),
    "lam": ("ppo.gae_lambda",),
}
"""Names of Hugging Face's scripts, and the keys that stand for them where a stage has one."""


def overrides_of_flags(cls: type[BaseModel], argv: Sequence[str], options: Sequence[str]) -> list[str]:
    """The arguments with `--training.seed=3`, as `wandb agent` writes what it has drawn, as `training.seed=3`.

    Args:
        cls: the stage's config class.
        options: the options that the command has; `--over` for `--overwrite` is one too.

    Raises:
        ConfigError: another flag that is no option; it says which key to set instead.
    """
    known = [key.name for key in keys(cls)]
    taken: list[str] = []
    for place, word in enumerate(argv):
        flag, equals, value = word.partition("=")
        if word == "--":
            return [*taken, *argv[place:]]
        if not flag.startswith("--") or any(option.startswith(flag) for option in options):
            taken.append(word)
        elif equals and (flag[2:] in known or "." in flag):
            taken.append(word[2:])
        else:
            following = next(iter(argv[place + 1 : place + 2]), "")
            value = value if equals else "" if following.startswith("--") or "=" in following else following
            raise ConfigError(f"{flag} is not an option; {_advice(cls, known, flag[2:], value)}")
    return taken


def _advice(cls: type[BaseModel], known: list[str], flag: str, value: str) -> str:
    name, value = flag.replace("-", "_"), value or "VALUE"
    if name in known:
        return f"write {name}={value}"
    if key := _key_called(cls, known, name):
        return f"write {key}={value}"
    if key := next((key for key in SAME.get(name, ()) if key in known), None):
        return f"the key for it here is {key}; --keys {key} says what it takes"
    removed = getattr(cls, "removed_keys", {})
    if key := next((key for key in removed if key == name or key.endswith(f".{name}")), None):
        return f"key {key} was taken out: {removed[key]}"
    if name in OWNED_ARGUMENTS:
        return OWNED_ARGUMENTS[name]
    near = nearest(name, known)
    hint = f"; did you mean {near}={value}?" if near else ""
    return f"keys of the config are written key=value, and --keys lists them{hint}"


def _key_called(cls: type[BaseModel], known: list[str], name: str) -> str | None:
    """The key whose last word is a name: in `training` first, among TRL's own arguments last."""
    ends = sorted((key for key in known if key.endswith(f".{name}")), key=lambda key: not key.startswith("training."))
    trainer = getattr(cls, "trainer", None)
    if not ends and name not in OWNED_ARGUMENTS and isinstance(trainer, TrainerSection):
        ends = [key.name for key in trl_keys(trainer) if key.name == f"training.{name}"]
    return ends[0] if ends else None
