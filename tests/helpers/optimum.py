"""Worlds in which the optimum of the reward less the KL is known: two prompts, so few answers that all can be listed.

The optimum is pi*(y) in proportion to ref(y) exp(r(y) / kl_coef), and its objective kl_coef * log(sum of the same).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
import transformers
from peft import LoraConfig

from alignment.data.records import Prompt
from alignment.distributed import processes
from alignment.models.scalar import ScoreHead
from alignment.models.shared_base import add_adapter
from alignment.runs.journal import Journal
from alignment.tensors import pad_rows
from ppo.config import PPOStageConfig
from ppo.critic import new_head
from ppo.loading import finalize_models
from ppo.loop import Loop
from ppo.models import Models
from ppo.prompts import encode_prompts, prompt_limit
from ppo.roles import PolicyAndValue, Role

PROMPTS = ("1", "23")  # of unequal length, and told apart by their first token
LORA = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear")


@dataclass(frozen=True)
class World:
    """Answers are of `length` tokens, or end earlier with `eos`; an `eos` outside the vocabulary never comes."""

    vocabulary: int
    length: int
    eos: int

    @cached_property
    def answers(self) -> list[list[int]]:
        cut = (
            word[: word.index(self.eos) + 1] if self.eos in word else word
            for word in itertools.product(range(self.vocabulary), repeat=self.length)
        )
        return [list(answer) for answer in dict.fromkeys(cut)]

    def rewards(self, seed: int) -> torch.Tensor:
        """Of each answer to each prompt, from N(0, 1): (2, N)."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(len(PROMPTS), len(self.answers), generator=generator)

    def log_probabilities(self, policy: Role, temperature: float = 1.0) -> torch.Tensor:
        """log pi(answer | prompt) of all answers, in float64 and by padded forward passes of our own: (2, N)."""
        ids, mask = pad_rows(self.answers, 0, "right")
        lines = []
        for prompt in PROMPTS:
            start = torch.tensor([int(digit) for digit in prompt]).expand(len(ids), -1)
            with policy.active():
                logits = policy.base(input_ids=torch.cat([start, ids], dim=1)).logits[:, len(prompt) - 1 : -1]
            logprobs = (logits.double() / temperature).log_softmax(-1).gather(-1, ids[..., None]).squeeze(-1)
            lines.append(torch.where(mask.bool(), logprobs, 0.0).sum(1))
        return torch.stack(lines)


FIXED = World(vocabulary=8, length=2, eos=8)


class Tokens:
    """Digits are tokens."""

    pad_token_id, bos_token_id, cls_token_id = 0, None, None
    chat_template, unk_token, added_tokens_decoder = "", None, {}

    def __init__(self, world):
        self.world, self.eos_token_id = world, world.eos

    def __len__(self):
        return self.world.vocabulary

    def get_vocab(self):
        return {str(token): token for token in range(len(self))}

    def __call__(self, texts, **_):
        return {"input_ids": [[int(digit) for digit in text] for text in texts]}

    def apply_chat_template(self, messages, **_):
        return messages[0]["content"]

    def decode(self, ids, **_):
        return "".join(map(str, ids))


class RewardTable:
    """In a reward model's place."""

    members, heads = (), ()

    def __init__(self, world, table):
        self.table = table
        self.places = {tuple(answer): place for place, answer in enumerate(world.answers)}

    def member_scores(self, rows, conversations, device):
        prompts = [PROMPTS.index("".join(map(str, row.prompt))) for row in rows]
        return self.table[prompts, [self.places[tuple(row.response)] for row in rows]][None]

    def combined(self, scores):
        return scores[0], None

    def modules(self):
        return []


class HeadsTable(RewardTable):
    """In the place of a reward model with two heads; the table is (2, prompts, answers)."""

    heads = ("good", "safe")

    def member_scores(self, rows, conversations, device):
        prompts = [PROMPTS.index("".join(map(str, row.prompt))) for row in rows]
        return self.table[:, prompts, [self.places[tuple(row.response)] for row in rows]]


def llama(kind, vocabulary):
    config = transformers.LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=8,
        initializer_range=0.3,
        num_labels=1,
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=None,
    )
    return kind(config).eval()


def build_models(world, seed, critic, rewards) -> Models:
    """
    Args:
        critic: `separate`, `adapter`, `trunk`; `shared`, where the policy too is an adapter on the reference; or None.
    """
    torch.manual_seed(seed)
    policy = Role(llama(transformers.LlamaForCausalLM, world.vocabulary))
    reference = Role(llama(transformers.LlamaForCausalLM, world.vocabulary).requires_grad_(False))
    reference.model.load_state_dict(policy.model.state_dict())
    value = None
    if critic == "separate":
        scalar = llama(transformers.LlamaForSequenceClassification, world.vocabulary)
        scalar.score = ScoreHead(32)
        value = Role(scalar, head=scalar.score)
    elif critic == "trunk":
        value = Role(policy.model, head=new_head(policy))
    elif critic is not None:
        if critic == "shared":
            adapted = add_adapter(reference.model, "default", LORA, trainable=True)
            policy = Role(adapted, "default")
        adapted = add_adapter(reference.model if critic == "adapter" else adapted, "value", LORA, trainable=True)
        value = Role(adapted, "value", new_head(policy))
        reference = Role(adapted, None)
    table = HeadsTable(world, rewards) if rewards.dim() == 3 else RewardTable(world, rewards)
    return Models(PolicyAndValue(policy, value), reference, table, None, Tokens(world), {})


class Outcome(NamedTuple):
    """`gap`: share of the way from the reference's objective to the optimum's. `distance`: total variation to pi*.
    `kl`: KL to the reference over the optimum's. Each the mean of both prompts."""

    gap: float
    distance: float
    kl: float

    @property
    def passes(self) -> bool:
        return self.gap >= 0.95 and self.distance <= 0.08


def measure(start, end, rewards, kl_coef) -> Outcome:
    """Of log-probabilities (2, N) before and after."""
    best = (start + rewards / kl_coef).log_softmax(-1)

    def divergence(logp):
        return (logp.exp() * (logp - start)).sum(1)

    def objective(logp):
        return (logp.exp() * rewards).sum(1) - kl_coef * divergence(logp)

    # The optimum's objective has a closed form, which the one above must meet.
    closed = kl_coef * (start + rewards / kl_coef).logsumexp(1)
    torch.testing.assert_close(objective(best), closed)
    gap = (objective(end) - objective(start)) / (closed - objective(start))
    distance = 0.5 * (end.exp() - best.exp()).abs().sum(1)
    return Outcome(*(float(x.mean()) for x in (gap, distance, divergence(end) / divergence(best))))


def make_config(world, seed, **sections) -> PPOStageConfig:
    values = {
        "name": "optimum",
        "model": {"policy": "p", "reward": "r"},
        "data": {"train": "none", "max_length": 8},
        "rewards": {"missing_eos_penalty": None},
        "rollout": {"batch_size": 256, "generation_batch_size": 256, "max_new_tokens": world.length},
        "ppo": {"kl_coef": 0.5, "vf_coef": 0.5},
        "training": {"max_steps": 200, "learning_rate": 3e-3, "value_learning_rate": 3e-3, "seed": seed},
        "registry": {"name": "optimum"},
    }
    for name, changes in sections.items():
        values[name] = {**values[name], **changes}
    return PPOStageConfig.model_validate(values)


def train_and_measure(folder, seed, *, world=FIXED, critic="separate", **sections) -> Outcome:
    """The real loop from a random policy on, held against the optimum."""
    config = make_config(world, seed, **sections)
    rewards = world.rewards(seed)
    start, loop = make_loop(folder, config, seed, world, critic, rewards)
    loop.run()
    end = world.log_probabilities(loop.models.policy, config.rollout.temperature)
    return measure(start, end.detach(), rewards.double(), config.ppo.kl_coef)


def make_loop(folder, config, seed, world, critic, rewards) -> tuple[torch.Tensor, Loop]:
    """The log-probabilities of all answers before, (2, N), and the real loop from a random policy on."""
    models = build_models(world, seed, critic if config.ppo.has_critic else None, rewards)
    finalize_models(models, config)
    temperature = config.rollout.temperature
    start = world.log_probabilities(models.reference, temperature)
    accelerator = processes.make_accelerator()
    prompts = [Prompt(({"role": "user", "content": prompt},)) for prompt in PROMPTS]
    encoded, _ = encode_prompts(prompts, models.tokenizer, prompt_limit(config), config.data.too_long)
    return start.detach(), Loop(config, models, accelerator, Journal(folder, enabled=False), encoded)
