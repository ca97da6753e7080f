"""The engine that samples the policy's responses, and its settings."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from alignment.distributed.processes import Accelerator
from alignment.generation.engine import TransformersEngine
from alignment.generation.sampling import Engine, Sampling
from alignment.models.tokenizers import vocabulary_of
from alignment.templates.ends import end_token_ids
from ppo.config import PPOStageConfig
from ppo.models import Models


def how_to_sample(config: PPOStageConfig, tokenizer: PreTrainedTokenizerBase) -> Sampling:
    """The settings of the sampling engine."""
    rollout = config.rollout
    return Sampling(
        max_new_tokens=rollout.max_new_tokens,
        temperature=rollout.temperature,
        end_token_ids=end_token_ids(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        batch_size=rollout.generation_batch_size,
        stop=tuple(rollout.stop),
        vocabulary=vocabulary_of(tokenizer),
    )


def make_sampler(config: PPOStageConfig, models: Models, accelerator: Accelerator) -> Engine:
    """The engine that samples the policy's responses."""
    vllm = config.rollout.vllm
    if vllm is None:
        return TransformersEngine(models.policy.model, models.tokenizer)
    from alignment.generation.vllm import VLLMEngine
    from alignment.generation.vllm_server import free_port

    return VLLMEngine(
        models.policy.model,
        accelerator,
        models.tokenizer,
        how_to_sample(config, models.tokenizer),
        config.data.max_length,
        mode=vllm.mode,
        server_base_url=vllm.server_base_url,
        group_port=free_port(),
        tensor_parallel_size=vllm.tensor_parallel_size,
        gpu_memory_utilization=vllm.gpu_memory_utilization,
        enable_sleep_mode=vllm.sleeps and accelerator.device.type == "cuda",
        dtype=config.sampled_in,
        weights_folder=config.run_dir / "vllm-weights",
    )
