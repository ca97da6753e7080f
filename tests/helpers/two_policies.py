"""Two tiny policies in a registry."""

from pathlib import Path

from helpers import tiny

from alignment.registry import Registry


def publish_two_policies(folder: Path, tokenizer) -> None:
    """Publish `one` and `two` to the registry of a working folder."""
    for seed, name in enumerate(("one", "two")):
        model = tiny.write(folder / "model", tiny.make_policy(tokenizer, seed=seed), tokenizer)
        Registry(folder / "registry").publish(name, model, stage="sft", role="policy")
