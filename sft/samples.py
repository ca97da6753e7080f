"""Sample answers to the same held-out prompts before and after training, to be read beside the reference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from alignment.config.sections import ModelConfig
from alignment.data.records import Demonstration
from alignment.data.trimming import trim_prompt
from alignment.distributed import heartbeat, processes, zero3
from alignment.errors import UserError
from alignment.generation.engine import complete
from alignment.models.policies import load_policy
from alignment.models.sources import ModelSource
from alignment.models.tokenizers import fit_embeddings
from alignment.runs.journal import Journal
from alignment.seeds import random_state, set_random_state
from sft.config import SFTStageConfig

MAX_NEW_TOKENS = 128


def write_samples(
    journal: Journal,
    step: int,
    config: SFTStageConfig,
    source: ModelSource,
    tokenizer: PreTrainedTokenizerBase,
    held_out: Sequence[Demonstration],
) -> None:
    """Journal a model's greedy answers.

    Only the main process loads the model from its files, while the others wait; neither ZeRO shards of the trained
    model nor random states are touched. If memory does not suffice for a second model, an event is journaled instead.
    """

    def write() -> None:
        state = random_state()
        heartbeat.enter(f"answers to {len(held_out)} held-out prompts, at step {step}", patient=True)
        try:
            journal.samples(step, answers(config, source, tokenizer, held_out))
        except (UserError, RuntimeError) as error:  # CUDA's out-of-memory errors have several types
            journal.event("no_samples", step=step, reason=str(error).splitlines()[0])
        finally:
            set_random_state(state)

    if held_out:
        processes.on_main_process(write)


def answers(
    config: SFTStageConfig,
    source: ModelSource,
    tokenizer: PreTrainedTokenizerBase,
    held_out: Sequence[Demonstration],
) -> list[dict[str, Any]]:
    """Rows for `Journal.samples`. A prompt that leaves too little room within `data.max_length` is trimmed, or skipped
    if it cannot be."""
    on_gpu = not processes.on_cpu()
    options = ModelConfig(
        name=source.label,
        dtype="bfloat16" if on_gpu else "float32",
        trust_remote_code=config.model.trust_remote_code,
    )
    with zero3.unpartitioned_loading():
        policy = load_policy(source, options)
        fit_embeddings(policy, tokenizer)
    policy = policy.to(processes.start_processes().device).eval()
    room = min(MAX_NEW_TOKENS, config.data.max_length // 2)
    prompts = [trim_prompt(tokenizer, row.messages[:-1], config.data.max_length - room) for row in held_out]
    asked = [(row, prompt) for row, prompt in zip(held_out, prompts, strict=True) if prompt is not None]
    if not asked:
        return []
    completions = complete(
        policy,
        tokenizer,
        [prompt for _, prompt in asked],
        max_new_tokens=room,
        temperature=0.0,
        batch_size=len(asked),
    )
    return [
        {
            "id": index,
            "prompt": list(row.messages[:-1]),
            "response": completion.text,
            "reference": row.messages[-1]["content"],
            "length": len(completion.ids),
            "ended": completion.ended,
        }
        for index, ((row, _), completion) in enumerate(zip(asked, completions, strict=True))
    ]
