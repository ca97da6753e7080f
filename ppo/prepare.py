"""The inputs of a PPO run: prompts in the policy's tokens, demonstrations, answers, and where the models are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from alignment.data.check import DataReport, Inspector
from alignment.data.parsing import to_prompts
from alignment.data.reading import Records, train_and_eval
from alignment.data.records import Prompt
from alignment.distributed import heartbeat, processes
from alignment.distributed.launch_files import check_against_config
from alignment.errors import ConfigError
from alignment.models.lengths import check_length
from alignment.models.sources import ModelSource
from alignment.registry import Registry
from alignment.templates.rendering import Encoded
from alignment.terminal import say
from alignment.training.data_check import check_before_training
from ppo.best_policy import check_selection
from ppo.config import PPOStageConfig
from ppo.prompts import EncodedPrompt, encode_prompts, prompt_limit
from ppo.ptx import PTXData, read_ptx
from ppo.sources import find_models, load_policy_tokenizer
from ppo.value_data import Answers, read_answers


@dataclass(frozen=True)
class Prepared:
    """The inputs of the loop, before any model is loaded."""

    sources: dict[str, ModelSource]
    tokenizer: PreTrainedTokenizerBase
    train_set: Records[Prompt]
    eval_set: Records[Prompt]
    prompts: list[EncodedPrompt]
    held_out: list[EncodedPrompt]
    too_long: dict[str, int]
    """How many prompts were longer than they may be, by set."""
    ptx: PTXData
    answers: Answers
    report: DataReport
    """The check of the prompts."""

    @property
    def fingerprints(self) -> list[Mapping[str, Any]]:
        """Fingerprints of all data."""
        parts = (self.train_set, self.eval_set, self.ptx, self.answers)
        return [mark for part in parts for mark in part.fingerprints]

    @property
    def bad(self) -> list[tuple[str, str]]:
        """Rows that were set aside: where they stand, and why."""
        return [*self.train_set.bad, *self.ptx.bad, *self.answers.bad]


def prepare(config: PPOStageConfig, registry: Registry) -> Prepared:
    """Read the data, find the models, and encode the prompts with the policy's tokenizer; writes nothing.

    Raises:
        DataError, ConfigError, ModelError, RegistryError: they cannot be had, or do not fit together.
    """
    check_config(config)
    processes.start_processes()
    heartbeat.enter("reading the data", patient=True)
    train_set, eval_set = train_and_eval(config.data, to_prompts)
    check_selection(config.training, num_held_out=len(eval_set.items))
    if config.rollout.vllm is not None:
        from alignment.generation.vllm import check_installed

        check_installed()
    if config.rollout.lag and not config.rollout.by_server and processes.is_main_process():
        say(
            "warning: rollout.lag=1 lets a vLLM server sample while an update runs, and here none does "
            "(rollout.vllm.server_base_url): nothing is faster, and responses are one update old; set rollout.lag=0"
        )
    heartbeat.enter("finding the models", patient=True)
    sources = processes.on_main_process(lambda: find_models(config, registry))
    _check_lengths(config, sources)
    tokenizer = load_policy_tokenizer(config, sources)
    inspector = Inspector(config.data, tokenizer, stage="ppo") if processes.is_main_process() else None
    prompts, long_prompts = _encode(config, train_set, tokenizer, inspector, held_out=False)
    held_out, long_held_out = _encode(config, eval_set, tokenizer, inspector, held_out=True)
    report = processes.on_main_process(lambda: check_before_training(config, inspector))
    too_long = {"too_long": long_prompts, "held_out_too_long": long_held_out}
    ptx, answers = read_ptx(config, tokenizer), read_answers(config, tokenizer)
    return Prepared(sources, tokenizer, train_set, eval_set, prompts, held_out, too_long, ptx, answers, report)


def check_config(config: PPOStageConfig) -> None:
    """Refuse keys that do not go together, or not with the launch file.

    Raises:
        UserError: names the keys.
    """
    training = config.training
    check_against_config(bf16=bool(training.bf16), accumulation=1, max_grad_norm=training.max_grad_norm)
    if config.rollout.max_new_tokens >= config.data.max_length:
        raise ConfigError(
            f"rollout.max_new_tokens={config.rollout.max_new_tokens} leaves no room for a prompt in "
            f"data.max_length={config.data.max_length}; raise data.max_length"
        )


def _check_lengths(config: PPOStageConfig, sources: Mapping[str, ModelSource]) -> None:
    """`data.max_length` is that of prompt and response together, which every model reads."""
    for path in dict.fromkeys(source.config_path for source in sources.values()):
        check_length(path, config.data.max_length, "data.max_length", config.model.trust_remote_code)


def _encode(
    config: PPOStageConfig,
    records: Records[Prompt],
    tokenizer: PreTrainedTokenizerBase,
    inspector: Inspector | None,
    held_out: bool,
) -> tuple[list[EncodedPrompt], int]:
    """The prompts with their tokens, and how many were too long; the inspector looks at each on its way."""
    limit, too_long = prompt_limit(config), config.data.too_long
    if inspector is None:
        return encode_prompts(records.items, tokenizer, limit, too_long)
    inspector.add_unused(records.unused)
    for where, reason in records.bad:
        inspector.add_bad(where, reason)

    def look(prompt: Prompt, ids: list[int]) -> None:
        encoded = Encoded(ids, [False] * len(ids))
        inspector.look(prompt, encoded, encoded, held_out)  # PPO itself says what becomes of long prompts

    return encode_prompts(records.items, tokenizer, limit, too_long, look)
