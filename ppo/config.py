"""The PPO stage's config."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from alignment.config.sections import Count, NonNegative, Positive, RunConfig, Section, Seed
from alignment.reports.judges import reward_parts
from ppo.bounds import Bound, check_components, parse_bounds
from ppo.removed_keys import REMOVED_KEYS

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Estimator = Literal["gae", "rloo", "grpo", "dr_grpo", "reinforce++", "reinforce++-baseline"]
Precision = Literal["float32", "bfloat16", "float16"]
GROUPED = ("rloo", "grpo", "dr_grpo", "reinforce++-baseline")
"""Estimators that compare the responses to one prompt."""


def _without_effect(section: Section, keys: Sequence[str], why: str) -> None:
    """Refuse a key that something else in the config leaves without effect, where it is not at its default.

    Raises:
        ValueError: names the key, and why.
    """
    for key in keys:
        if getattr(section, key) != type(section).model_fields[key].default:
            raise ValueError(f"{key} {why}, or take it out")


class ModelsConfig(Section):
    """The models, each a registry reference, a local folder or a hub name, and how they are held."""

    policy: str
    """The policy to improve: the SFT model."""
    template: str | None = None
    """A chat template for a policy that has none, as in `python -m sft`."""
    eos_token: str | None = None
    """For a policy whose tokenizer has none, as in `python -m sft`."""
    reward: str | None = None
    """The reward model; None where `rewards.others` says it all. One with another tokenizer reads the text anew."""
    reward_weights: dict[str, float] = Field(default_factory=dict)
    """The weight of each head of a reward model of several attributes (`{helpful: 1.0, harmless: 0.5}`) in the score.
    0: it is logged, and may be constrained. The critic starts from the same sum of the heads."""
    reward_ensemble: Literal["mean", "min"] | NonNegative | None = None
    """How the scores of an ensemble's members (`training.members` of `python -m reward`) become one: `mean`, the
    default; `min`; or a number k for the mean minus k standard deviations. Refused for a single reward model."""
    held_out_reward: str | None = None
    """A reward model that training never sees, to judge held-out answers and choose the best policy by."""
    reference: str | None = None
    """The model that the KL is measured against; the initial policy by default."""
    mode: Literal["separate", "shared"] = "separate"
    """`separate`: four models. `shared`: one frozen base with an adapter for each role (docs/guides/ppo.md)."""
    value: Literal["separate", "adapter", "trunk"] | None = None
    """The critic: a model of its own (the default of `separate`), an adapter on frozen weights (of `shared`), or a head
    on the policy's hidden states, in one forward and backward pass with the policy."""
    value_init: str | None = None
    """The critic's start: the critic of an earlier run (`NAME-value`, published beside its policy) or a reward
    model; `model.reward` by default."""
    method: Literal["full", "lora", "dora", "rslora", "qlora"] | None = None
    """The part of the policy that is trained (docs/guides/methods.md). None: `full`; in `shared` mode `lora`."""
    adapter: dict[str, Any] = Field(default_factory=dict)
    """Arguments of the method's PEFT config class, as `model.adapter` of `python -m sft`."""
    offload: bool = False
    """Keep the reference and the reward model in the host's memory, and on the device only while they are used."""
    trust_remote_code: bool = False
    """Run Python code that comes with a hub model. Off: such a model is refused."""


class RewardSource(Section):
    """A reward beside the reward model's: a Python function or an HTTP service."""

    function: str | None = None
    """`module:function`, called as `function(prompts, responses, **columns) -> list[float]`."""
    url: str | None = None
    """Gets `{"prompts": [...], "responses": [...], **columns}` by POST, answers `{"scores": [...]}`. The service of
    `alignment score --serve` asks for the token ids too, and for its key."""
    weight: float = 1.0
    """Weight of this reward in the sum. 0: it is logged, and may be constrained."""
    timeout: Positive | None = None
    """Seconds that one request may take; 30 by default. Only with `url`."""

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if (self.function is None) == (self.url is None):
            raise ValueError("a reward has either `function` or `url`")
        if self.function is not None and not re.fullmatch(r"[\w.]+:\w+", self.function):
            raise ValueError(f"function={self.function!r} is not of the form module:function")
        if self.function is not None and self.timeout is not None:
            raise ValueError("timeout is only for `url`; take it out")
        return self


class RewardsConfig(Section):
    """The score of a response, before the KL."""

    others: tuple[RewardSource, ...] = ()
    """Functions and services, added by their weights to the reward model's score, whose weight is 1."""
    constraints: dict[str, str] = Field(default_factory=dict)
    """Bounds on the means of components, `{harmless: ">= 0.2"}`: the score is maximised as far as they hold. A head by
    its attribute, one of `others` by its name in the journal (the function's, the host's), in its own points. A weight
    of each bound adapts (a Lagrange multiplier; Dai et al. 2023, Safe RLHF). docs/guides/ppo.md."""
    normalize: Literal["running", "reference", "each"] | None = "reference"
    """How scores are normalised. `reference`: with the mean and the standard deviation of the first iteration's scores,
    which are those of the initial policy; where these are all equal, of the scores up to the first iteration in which
    they differ. `running`: of all scores so far. `each`: as `reference`, and each component by its own before the sum,
    where they are of unlike scale. None: not at all. With `ppo.kl_in=reward` the optimum is the same: `ppo.kl_coef` is
    per point of the sum, and is divided by the same standard deviation."""
    missing_eos_penalty: NonNegative | None = 3.0
    """Subtracted from the score of a response that does not end within `rollout.max_new_tokens`, in those standard
    deviations. None: a truncated response counts as an ended one."""

    @property
    def bounds(self) -> tuple[Bound, ...]:
        return parse_bounds(self.constraints)

    @field_validator("constraints")
    @classmethod
    def _are_bounds(cls, constraints: dict[str, str]) -> dict[str, str]:
        parse_bounds(constraints)
        return constraints


class VLLMConfig(Section):
    """How vLLM samples, by the names of TRL's VLLMGeneration."""

    server_base_url: str | None = None
    """A server samples, with `vllm serve` on other nodes: `http://node7:8000`. A `/` or `/v1` at its end is taken off.
    None: vLLM runs colocated, in the training processes beside the policy."""
    tensor_parallel_size: Count = 1
    """Colocated: neighbouring processes that share one copy of the policy."""
    gpu_memory_utilization: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.3
    """Colocated: vLLM's share of each GPU's memory; the rest is for training."""
    dtype: Precision | None = None
    """Colocated: the type that vLLM computes in; by default that of the policy's training (vLLM's own default is
    bfloat16 for a folder in float32). Of a server: what it was started with, bfloat16 by default. Decides how far its
    log-probabilities may differ from the policy's."""

    @field_validator("server_base_url")
    @classmethod
    def _base_of_the_server(cls, url: str | None) -> str | None:
        """vLLM's health and weights are beside `/v1`, not below it: a run would wait for a server that is there."""
        if url is None:
            return None
        plain = url.strip().rstrip("/").removesuffix("/v1").rstrip("/")
        if not re.match(r"https?://[^/]", plain):
            fix = f"use http://{plain}" if re.fullmatch(r"[\w.-]+(:\d+)?", plain) else "expected http://HOST:PORT"
            raise ValueError(f"{url!r} is no address of a server; {fix}")
        return plain

    @model_validator(mode="after")
    def _keys_of_the_place(self) -> Self:
        if self.server_base_url is not None:
            why = "is for a colocated vLLM, and with server_base_url a server samples; give it to `vllm serve`"
            _without_effect(self, ("tensor_parallel_size", "gpu_memory_utilization"), why)
        return self

    @property
    def sleeps(self) -> bool:
        """True if vLLM gives its memory back while the policy is trained; it has no such mode on a CPU."""
        return self.mode == "colocate"

    @property
    def mode(self) -> Literal["colocate", "server"]:
        """In the training processes, beside the policy; or a server, with `vllm serve` on other nodes."""
        return "colocate" if self.server_base_url is None else "server"


class RolloutConfig(Section):
    """One collection of episodes."""

    batch_size: Count = 64
    """Episodes of one iteration, over all processes."""
    num_generations: Count = 1
    """Responses to each prompt; `rloo`, `grpo`, `dr_grpo` and `reinforce++-baseline` compare them."""
    dynamic_sampling: Annotated[int, Field(ge=0)] = 0
    """Prompts whose responses all have one score are replaced by other prompts, in at most so many further rounds of
    sampling (Yu et al. 2025, DAPO, section 3.2). 0: they stay, and teach nothing."""
    generation_batch_size: Count = 64
    """Responses that are sampled at a time on each process."""
    max_new_tokens: Count = 64
    """Longest response, in tokens."""
    temperature: Positive = 1.0
    """Divides the logits when sampling and in every log-probability."""
    stop: tuple[str, ...] = ()
    """Texts that end a response too, beside the model's end tokens (`["\\nUser:"]`); the reward does not read them."""
    lag: Literal[0, 1] = 0
    """1: the responses of an iteration are sampled before the update of the iteration before, so that a vLLM server
    (`server_base_url`) samples while the update runs; the loss is corrected for it (docs/cluster/vllm.md)."""
    vllm: VLLMConfig | None = None
    """With a mapping, also an empty one (`{}`), vLLM samples: it is faster on GPUs, and draws from a generator of its
    own, so that no run can be repeated to the bit. None: transformers samples."""

    @property
    def by_server(self) -> bool:
        """Whether a server samples, on other hardware than this run's."""
        return self.vllm is not None and self.vllm.mode == "server"


class PPOConfig(Section):
    """The algorithm's numbers."""

    advantage_estimator: Estimator = "gae"
    """All but `gae` need no critic, and none is loaded."""
    kl_coef: NonNegative = 0.05
    """Points of the score (or loss, see `kl_in`) per nat of log(policy / reference), at each token."""
    kl_in: Literal["reward", "loss"] = "reward"
    """In the loss, the default of `grpo`, it stands beside advantages that are whitened or normalised in their groups:
    `kl_coef` is then in their standard deviations, and the scale of the scores changes nothing. (With `dr_grpo` in
    points of the score.)"""
    kl_target: Positive | None = None
    """Adapt `kl_coef` so that the KL of a response is about so many nats (Ziegler et al. 2019, section 2.2), over
    10,000 episodes or, where that is less, a sixth of the run's."""
    gae_lambda: Fraction = 1.0
    """Lambda of advantages and returns. Below 1, a critic that does not know the mean score yet makes answers shorter
    (mean above 0) or longer (below): the last 1 / (1 - lambda) tokens get the whole score.
    docs/development/studies/length-bias.md."""
    clip_range: Positive | tuple[Positive, Positive] = 0.2
    """Ratios are cut to 1 +- this; a pair is the lower and the upper side (DAPO's clip-higher: `[0.2, 0.28]`)."""
    value_clip_range: Positive = 0.2
    """In standard deviations of the scores (see `rewards.normalize`)."""
    vf_coef: NonNegative = 0.1
    """Weight of the critic's loss."""
    num_epochs: Count = 2
    """Passes over each rollout."""
    num_minibatches: Count = 1
    """Optimizer steps per pass."""
    value_pretrain: str | None = None
    """Fit the critic before the first iteration, for as long as it explains more on answers that are held out of this
    (VC-PPO, Yuan et al. 2025). On what: `rollouts`, answers of the policy as it starts; or answers that there are
    already, in a ratings database or a file of rows with `prompt` and `completion`, `completions`, or `chosen` and
    `rejected`."""

    @property
    def clip_sides(self) -> tuple[float, float]:
        """The lower and the upper side of the clip."""
        return self.clip_range if isinstance(self.clip_range, tuple) else (self.clip_range, self.clip_range)

    @property
    def has_critic(self) -> bool:
        return self.advantage_estimator == "gae"

    @model_validator(mode="before")
    @classmethod
    def _kl_where_the_estimator_has_it(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("advantage_estimator") == "grpo" and "kl_in" not in values:
            return {**values, "kl_in": "loss"}
        return values

    @model_validator(mode="after")
    def _kl_that_converges(self) -> Self:
        if self.advantage_estimator == "grpo" and self.kl_in == "reward" and self.kl_coef:
            raise ValueError(
                "kl_in=reward with advantage_estimator=grpo divides the KL by the spread of a prompt's rewards, so "
                "that prompts whose answers all score alike train on noise at full strength; use kl_in=loss, or "
                "advantage_estimator=rloo"
            )
        return self

    @model_validator(mode="after")
    def _keys_of_the_estimator(self) -> Self:
        if not self.has_critic:
            # Not the critic's other keys: whoever compares estimators changes this one alone.
            why = f"is of the critic, and advantage_estimator={self.advantage_estimator} has none; set it to gae"
            _without_effect(self, ("value_pretrain",), why)
        if self.value_pretrain is not None and not self.vf_coef:
            raise ValueError("vf_coef=0 gives the critic no gradient, so value_pretrain has no effect; raise vf_coef")
        if self.kl_target is not None and not self.kl_coef:
            raise ValueError("kl_target adapts kl_coef by a factor, and 0 stays 0; start with kl_coef=0.05")
        return self


class PTXConfig(Section):
    """Demonstrations or text mixed into the updates (InstructGPT's PPO-ptx)."""

    train: str | None = None
    """Rows as `python -m sft` reads them; None: no mixing."""
    coef: NonNegative = 0.05
    """Weight of their mean loss per token. InstructGPT used 27.8, at which DeepSpeed-Chat found training unstable."""

    @model_validator(mode="after")
    def _of_something(self) -> Self:
        if self.train is None:
            _without_effect(self, ("coef",), "is of the demonstrations that are mixed in; set ptx.train")
        return self


class TrainingConfig(Section):
    """Names and meanings are those of Hugging Face's TrainingArguments where it has them."""

    max_steps: Count = 1000
    """Iterations: each one rollout and `num_epochs * num_minibatches` optimizer steps. With the other defaults 64,000
    episodes."""
    learning_rate: Positive | None = None
    """The policy's; 1e-6 by default, for an adapter 1e-5."""
    value_learning_rate: Positive | None = None
    """Learning rate of the critic; five times the policy's by default."""
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "linear"
    """How the learning rate falls after the warm-up, by iterations."""
    warmup_steps: NonNegative = 0.03
    """Iterations of warm-up; below 1 a fraction of `max_steps`, rounded up."""
    microbatch_tokens: Count = 2048
    """Tokens of one backward pass on each process; of a pass without gradients four times as many."""
    packing: bool | None = None
    """Rows without padding, a prompt once for all its responses. None: where the model can."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass: less memory, more time."""
    max_grad_norm: Positive = 1.0
    """The norm that the policy's gradient is clipped to, and the critic's by itself."""
    adam_epsilon: Positive = 1e-8
    """The gradient of a large model has a root mean square of about max_grad_norm / sqrt(parameters), 1e-5 at 8B: an
    epsilon near that would make the same learning rate a smaller step there."""
    bf16: bool | None = None
    """bfloat16 arithmetic on float32 weights. None: where the GPU has it."""
    seed: Seed = 42
    """Seed of sampling, minibatches and new weights. Held-out prompts follow `data.split_seed`."""
    ema_decay: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    """Evaluate and publish a moving average of the policy, by this decay at each optimizer step."""
    eval_steps: Annotated[int, Field(ge=0)] = 0
    """Iterations between two evaluations on held-out prompts; 0 evaluates only before the first and after the last."""
    load_best_model_at_end: bool = True
    """Publish the policy of the best evaluation, not the last."""
    max_kl: Positive | None = None
    """An evaluation whose KL from the reference is above so many nats a response is no candidate for the best."""
    early_stopping_patience: Count | None = None
    """Stop after so many evaluations in a row that are no better than the best one before."""
    save_steps: Annotated[int, Field(ge=0)] = 500
    """Iterations between two checkpoints, of which the newest two are kept; 0 saves none."""

    @model_validator(mode="after")
    def _warm_up_that_happens(self) -> Self:
        asked = "warmup_steps" in self.model_fields_set and self.warmup_steps > 0
        if asked and self.lr_scheduler_type == "constant":
            raise ValueError("warmup_steps has no effect with lr_scheduler_type=constant; use constant_with_warmup")
        if self.warmup_steps > 1 and self.warmup_steps != int(self.warmup_steps):
            raise ValueError(f"warmup_steps={self.warmup_steps} is neither a share below 1 nor a whole number")
        if self.warmup_steps >= max(self.max_steps, 2):
            raise ValueError(
                f"warmup_steps={self.warmup_steps:g} leaves none of max_steps={self.max_steps} at the full rate"
            )
        return self


class PPOStageConfig(RunConfig):
    """Sections: name, model, data, rewards, rollout, ppo, ptx, training, registry, tracking."""

    removed_keys: ClassVar[dict[str, str]] = RunConfig.removed_keys | REMOVED_KEYS

    model: ModelsConfig
    rewards: RewardsConfig = RewardsConfig()
    rollout: RolloutConfig = RolloutConfig()
    ppo: PPOConfig = PPOConfig()
    ptx: PTXConfig = PTXConfig()
    training: TrainingConfig = TrainingConfig()

    def with_bf16(self, default: Callable[[], bool]) -> Self:
        """The config with `training.bf16` settled, by what this machine can do where it is None."""
        if self.training.bf16 is not None:
            return self
        return self.model_copy(update={"training": self.training.model_copy(update={"bf16": default()})})

    @property
    def sampled_in(self) -> Precision:
        """The type that vLLM computes in."""
        given = None if self.rollout.vllm is None else self.rollout.vllm.dtype
        return given or ("bfloat16" if self.training.bf16 or self.rollout.by_server else "float32")

    @property
    def rounded_to(self) -> Precision:
        """The coarser of this and what the policy computes in."""
        return "bfloat16" if self.training.bf16 else self.sampled_in

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.model.reward is None and not self.rewards.others:
            raise ValueError("nothing gives a reward; set model.reward, or rewards.others to a function or a service")
        if self.model.reward_weights and self.model.reward is None:
            raise ValueError("model.reward_weights is of the heads of model.reward; set that, or take it out")
        weights = {name: weight for name, _, weight in reward_parts(self.model_dump())}
        check_components(weights, self.rewards.constraints, each=self.rewards.normalize == "each")
        estimator, generations = self.ppo.advantage_estimator, self.rollout.num_generations
        if estimator in GROUPED and generations < 2:
            raise ValueError(
                f"ppo.advantage_estimator={estimator} compares the responses to a prompt; set rollout.num_generations=4"
            )
        if self.rollout.dynamic_sampling and self.rollout.lag:
            raise ValueError(
                "rollout.dynamic_sampling samples anew once scores are known, and with rollout.lag=1 the sampler is at "
                "the next iteration by then; take one of them out"
            )
        if self.rollout.dynamic_sampling and estimator not in GROUPED:
            raise ValueError(
                f"rollout.dynamic_sampling is for estimators that compare the responses to a prompt, and "
                f"ppo.advantage_estimator={estimator} does not; take it out"
            )
        return self
