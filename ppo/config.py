"""The PPO stage's config, and how its batch sizes divide over processes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from alignment.config import ConfigError, Count, NonNegative, Positive, RunConfig, Section, Seed

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


class ModelsConfig(Section):
    """The models, each a registry reference, a local folder or a hub name."""

    policy: str
    """The policy to improve: the SFT model."""
    reward: str
    """The reward model. It must speak the policy's tokenizer and chat template."""
    reference: str | None = None
    """What the KL is measured against; the policy as it starts by default."""
    value: str | None = None
    """What the value model starts from; the reward model by default."""
    reward_ensemble: Literal["mean", "min"] | NonNegative | None = None
    """How the scores of an ensemble's members (`training.members` of `python -m reward`) become one: `mean`, the
    default; `min`; or a number k for the mean minus k standard deviations. Refused for a single reward model."""
    trust_remote_code: bool = False


class RolloutConfig(Section):
    """One collection of episodes: one response to each of `batch_size` prompts."""

    batch_size: Count = 64
    """Episodes of one iteration, over all processes."""
    generation_batch_size: Count = 64
    """Prompts that are sampled, and rows that are scored without gradients, at a time on each process."""
    max_new_tokens: Count = 64
    temperature: Positive = 1.0
    """Divides the logits when sampling and in every log-probability."""
    missing_eos_score: float | None = -1.0
    """Score of a response that does not end within `max_new_tokens`, in place of the reward model's (as OpenAI's
    lm-human-preferences does). None keeps the reward model's. Meant for scores around 0, as
    `python -m reward` publishes them; with a reward model from elsewhere, set it below what its usual answers get."""


class PPOConfig(Section):
    """The algorithm's numbers."""

    kl_coef: NonNegative = 0.05
    """Reward lost per nat of log(policy / reference), at each token."""
    gamma: Fraction = 1.0
    gae_lambda: Fraction = 0.95
    clip_range: Positive = 0.2
    value_clip_range: Positive = 0.2
    vf_coef: NonNegative = 0.1
    whiten_advantages: bool = True
    num_epochs: Count = 2
    """Passes over each rollout."""
    num_minibatches: Count = 1
    """Optimizer steps per pass."""


class TrainingConfig(Section):
    """Names and meanings are those of Hugging Face's TrainingArguments where it has them."""

    max_steps: Count = 100
    """Iterations: each one rollout and `num_epochs * num_minibatches` optimizer steps."""
    learning_rate: Positive = 1e-6
    value_learning_rate: Positive | None = None
    """Learning rate of the value model; five times the policy's by default."""
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "linear"
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Iterations of warm-up."""
    per_device_train_batch_size: Count = 8
    """Rows of one backward pass on each process."""
    max_grad_norm: Positive = 1.0
    """Of the policy's and the value model's gradient together."""
    adam_epsilon: Positive = 1e-5
    weight_decay: NonNegative = 0.0
    bf16: bool = False
    seed: Seed = 42
    eval_steps: Annotated[int, Field(ge=0)] = 0
    """Iterations between two evaluations on held-out prompts; 0 evaluates only before the first and after the last."""


class PPOStageConfig(RunConfig):
    """Sections: name, model, data, rollout, ppo, training, registry, tracking."""

    model: ModelsConfig
    rollout: RolloutConfig = RolloutConfig()
    ppo: PPOConfig = PPOConfig()
    training: TrainingConfig = TrainingConfig()


@dataclass(frozen=True)
class BatchPlan:
    """Sizes on each process."""

    episodes: int
    minibatch: int
    microbatch: int

    @property
    def accumulation(self) -> int:
        return self.minibatch // self.microbatch


def batch_plan(config: PPOStageConfig, world_size: int) -> BatchPlan:
    """Divide one rollout over processes, minibatches and backward passes.

    Raises:
        ConfigError: something does not divide; it names the keys and the nearest size that works.
    """
    total, count = config.rollout.batch_size, config.ppo.num_minibatches
    step = world_size * count
    if total % step:
        raise ConfigError(
            f"rollout.batch_size={total} does not divide into {world_size} processes x "
            f"ppo.num_minibatches={count}; use {max(step, total // step * step)}"
        )
    minibatch = total // step
    microbatch = min(config.training.per_device_train_batch_size, minibatch)
    if minibatch % microbatch:
        fits = max(size for size in range(1, microbatch + 1) if minibatch % size == 0)
        raise ConfigError(
            f"training.per_device_train_batch_size={microbatch} does not divide the {minibatch} rows of a minibatch "
            f"on each process; use {fits}"
        )
    return BatchPlan(episodes=total // world_size, minibatch=minibatch, microbatch=microbatch)
