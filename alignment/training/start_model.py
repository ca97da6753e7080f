"""The initial model of SFT or a reward model: looked up, or built from scratch and published as NAME-base."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from alignment.config.sections import SCRATCH, ScratchConfig, TrainerConfig
from alignment.distributed import processes, zero3
from alignment.models.policies import build_scratch_model
from alignment.models.same_tokenizer import check_same
from alignment.models.sources import ModelSource, find_model
from alignment.models.tokenizers import load_tokenizer, pad_apart_from_ends, train_tokenizer
from alignment.registry import Registry
from alignment.registry.manifest import Stage
from alignment.runs.run import Run


@dataclass(frozen=True)
class StartModel:
    """A stage's initial model and its checked tokenizer."""

    source: ModelSource
    tokenizer: PreTrainedTokenizerBase


def start_model(config: TrainerConfig, registry: Registry, texts: Iterable[str], stage: Stage = "sft") -> StartModel:
    """Find the initial model; a `scratch:` model has only its tokenizer before `publish_base`.

    Args:
        texts: training data of a scratch model's tokenizer.

    Raises:
        TokenizerError: the config would give the model another tokenizer or template.
    """
    name = config.model.name
    if name.startswith(SCRATCH):
        tokenizer = processes.on_main_process(lambda: _scratch_tokenizer(config, texts))
        with zero3.on_meta_device():  # checks the shape without using memory
            _scratch_model(config, tokenizer)
        return StartModel(ModelSource(name), tokenizer)
    source = processes.on_main_process(
        lambda: find_model(name, registry, role="policy")
    )  # it reads and hashes all files
    tokenizer = load_tokenizer(source, config.model)
    if not config.registry.allow_new_tokenizer:
        original = AutoTokenizer.from_pretrained(source.path, trust_remote_code=config.model.trust_remote_code)
        check_same(tokenizer, original, source.label, **compared_parts(config.model, stage))
    if stage == "reward":
        pad_apart_from_ends(tokenizer)
    return StartModel(source, tokenizer)


def compared_parts(model: Any, stage: Stage) -> dict[str, bool]:
    """The parts of the tokenizer that must equal the parent's: in SFT, those that the config does not set."""
    eos, template = (stage == "sft" and getattr(model, key, None) is not None for key in ("eos_token", "template"))
    return {"eos": not eos, "template": not (template or eos)}  # templates write the EOS


def _scratch_tokenizer(config: TrainerConfig, texts: Iterable[str]) -> PreTrainedTokenizerBase:
    shape = config.model.scratch or ScratchConfig()
    with tempfile.TemporaryDirectory() as folder:
        train_tokenizer(texts, shape.vocab_size, config.model.template).save_pretrained(folder)
        return load_tokenizer(folder, config.model)  # the same steps as loading the published base


def publish_base(config: TrainerConfig, registry: Registry, start: StartModel, seed: int, run: Run) -> StartModel:
    """Build a `scratch:` model and publish it as `<registry.name>-base`; any other model is returned unchanged.

    Call it once the rows are encoded, since a mistake in the data would otherwise leave a base without a child.
    """
    if not config.model.name.startswith(SCRATCH):
        return start

    def build_and_publish() -> str:
        with tempfile.TemporaryDirectory(dir=config.run_dir) as folder:
            _save_base(config, start, seed, folder)
            return registry.publish(
                f"{config.registry.name}-base",
                Path(folder),
                stage="base",
                role="policy",
                config=config.model.model_dump(mode="json"),
                seed=seed,
                run_id=config.name,
                publish_id=run.publish_id(f"{config.registry.name}-base"),
            ).ref

    ref = processes.on_main_process(build_and_publish)
    registry.own.add(ref)
    source = processes.on_main_process(lambda: find_model(ref, registry, role="policy"))
    return StartModel(source, start.tokenizer)


@contextmanager
def unpublished_base(config: TrainerConfig, start: StartModel, seed: int) -> Iterator[StartModel]:
    """The model of `publish_base` in a temporary folder, for trials that publish nothing."""
    if not config.model.name.startswith(SCRATCH):
        yield start
        return

    def build() -> str:
        config.run_dir.mkdir(parents=True, exist_ok=True)
        folder = tempfile.mkdtemp(prefix="base-", dir=config.run_dir)
        _save_base(config, start, seed, folder)
        return folder

    folder = processes.on_main_process(build)
    try:
        yield StartModel(ModelSource(folder), start.tokenizer)
    finally:
        if processes.is_main_process():
            shutil.rmtree(folder, ignore_errors=True)


def _save_base(config: TrainerConfig, start: StartModel, seed: int, folder: str) -> None:
    torch.manual_seed(seed)
    _scratch_model(config, start.tokenizer).save_pretrained(folder)
    start.tokenizer.save_pretrained(folder)


def _scratch_model(config: TrainerConfig, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    shape = config.model.scratch or ScratchConfig()
    return build_scratch_model(config.model.name.removeprefix(SCRATCH), shape, tokenizer)
