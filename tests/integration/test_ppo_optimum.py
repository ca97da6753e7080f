"""PPO reaches the optimum that theory names: pi*(y) in proportion to ref(y) exp(r(y) / kl_coef).

Two prompts, two tokens from eight, a reward for each of the 64 answers: small enough to write the optimum down and
hold the trained policy against it. The real loop runs, from sampling to the optimizer; a wrong sign, a shifted
advantage or another estimator of the KL in the reward ends somewhere else, which the last tests show.
"""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
import transformers

import ppo.train
from alignment import distributed
from alignment.data import Prompt
from alignment.scalar_models import ScalarModel, ScoreHead
from alignment.tensors import last_kept
from alignment.tracking import Journal
from ppo.algorithm import estimate_advantages, shape_rewards
from ppo.config import PPOStageConfig, batch_plan
from ppo.models import Models, PolicyAndValue
from ppo.train import _Loop, prepare

VOCABULARY, LENGTH, KL_COEF = 8, 2, 0.5
PROMPTS = ("1", "23")  # of unequal length: one is padded
ANSWERS = torch.tensor(list(itertools.product(range(VOCABULARY), repeat=LENGTH)))


class Tokens:
    """Digits are tokens; the EOS is none of them, so that every answer has two."""

    pad_token_id, eos_token_id, bos_token_id, cls_token_id = 0, VOCABULARY, None, None
    chat_template, unk_token, added_tokens_decoder = "", None, {}

    def __len__(self):
        return VOCABULARY

    def __call__(self, texts, **_):
        return {"input_ids": [[int(digit) for digit in text] for text in texts]}

    def apply_chat_template(self, messages, **_):
        return messages[0]["content"]


class RewardTable:
    """A reward for each prompt (told by its last token) and answer."""

    def __init__(self, seed):
        self.table = torch.randn(len(PROMPTS), VOCABULARY**LENGTH, generator=torch.Generator().manual_seed(seed))

    def score(self, input_ids, attention_mask):
        prompt = (input_ids[:, -LENGTH - 1] == int(PROMPTS[1][-1])).long()
        return self.table[prompt, input_ids[:, -2] * VOCABULARY + input_ids[:, -1]]

    def to(self, device):
        return self


def llama(kind):
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
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


def log_probabilities(policy):
    """log pi(answer | prompt), of all 64 answers to each prompt, in float64: (2, 64)."""
    rows = []
    for prompt in PROMPTS:
        ids = torch.tensor([int(digit) for digit in prompt]).expand(len(ANSWERS), -1)
        with torch.no_grad():
            logits = policy(input_ids=torch.cat([ids, ANSWERS], dim=1)).logits[:, -LENGTH - 1 : -1]
        rows.append(logits.double().log_softmax(-1).gather(-1, ANSWERS[..., None]).squeeze(-1).sum(1))
    return torch.stack(rows)


class Outcome(NamedTuple):
    """`gap`: share of the way from the reference's objective to the optimum's. `distance`: total variation to pi*.
    `kl`: KL to the reference over the optimum's. Each the mean of both prompts."""

    gap: float
    distance: float
    kl: float

    @property
    def passes(self):
        return self.gap >= 0.95 and self.distance <= 0.08


def train_and_measure(tmp_path, seed):
    torch.manual_seed(seed)
    policy = llama(transformers.LlamaForCausalLM)
    critic = llama(transformers.LlamaForSequenceClassification)
    critic.score = ScoreHead(32)
    reference = llama(transformers.LlamaForCausalLM).requires_grad_(False)
    reference.load_state_dict(policy.state_dict())
    rewards = RewardTable(seed)
    models = Models(PolicyAndValue(policy, ScalarModel(critic)).eval(), reference, rewards, Tokens(), {})
    config = PPOStageConfig.model_validate(
        {
            "name": "optimum",
            "model": {"policy": "p", "reward": "r"},
            "data": {"train": "none", "max_length": 8},
            "rollout": {
                "batch_size": 256,
                "generation_batch_size": 256,
                "max_new_tokens": LENGTH,
                "missing_eos_score": None,
            },
            "ppo": {"kl_coef": KL_COEF, "vf_coef": 0.5, "num_epochs": 2},
            "training": {
                "max_steps": 200,
                "learning_rate": 3e-3,
                "value_learning_rate": 3e-3,
                "per_device_train_batch_size": 256,
                "seed": seed,
            },
            "registry": {"name": "optimum"},
        }
    )
    start = log_probabilities(policy)
    sizes = batch_plan(config, 1)
    accelerator = distributed.make_accelerator(accumulation=1, microbatch=256, max_grad_norm=1.0)
    engine, optimizer, schedule = prepare(models, accelerator, config.training)
    journal = Journal(tmp_path, enabled=False)
    loop = _Loop(config, sizes, models, engine, accelerator, optimizer, schedule, journal)
    loop.run([Prompt(({"role": "user", "content": prompt},)) for prompt in PROMPTS], [])
    return measure(start, log_probabilities(policy), rewards.table.double())


def measure(start, end, rewards):
    best = (start + rewards / KL_COEF).log_softmax(-1)

    def objective(logp):
        return (logp.exp() * (rewards - KL_COEF * (logp - start))).sum(1)

    def divergence(logp):
        return (logp.exp() * (logp - start)).sum(1)

    gap = (objective(end) - objective(start)) / (objective(best) - objective(start))
    # The optimum's objective has a closed form, which the one above must meet.
    closed = KL_COEF * (start + rewards / KL_COEF).logsumexp(1)
    torch.testing.assert_close(objective(best), closed)
    distance = 0.5 * (end.exp() - best.exp()).abs().sum(1)
    return Outcome(*(float(x.mean()) for x in (gap, distance, divergence(end) / divergence(best))))


@pytest.mark.parametrize("seed", [5, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (0, 2, 3, 4, 7))])
def test_ppo_finds_the_optimum_of_reward_less_kl(tmp_path, seed):
    """Seeds whose optimum one layer of this width can hold: for 1 and 6, ascent on the exact objective ends no nearer
    (gaps .960 and .925) than PPO does (.961 and .923)."""
    outcome = train_and_measure(tmp_path, seed)
    assert outcome.gap >= 0.95, outcome
    assert outcome.distance <= 0.08, outcome
    assert outcome.kl == pytest.approx(1.0, abs=0.1), outcome


# --- does it catch anything? ----------------------------------------------------------------------------------------


def k3_reward(scores, kl, mask, kl_coef):
    return shape_rewards(scores, torch.expm1(-kl) + kl, mask, kl_coef)


def clamped_reward(scores, kl, mask, kl_coef):
    return shape_rewards(scores, kl.clamp(min=0), mask, kl_coef)


def wrong_sign(scores, kl, mask, kl_coef):
    return shape_rewards(scores, -kl, mask, kl_coef)


def no_kl(scores, kl, mask, kl_coef):
    return shape_rewards(scores, kl, mask, 0.0)


def stronger_kl(scores, kl, mask, kl_coef):
    return shape_rewards(scores, kl, mask, 1.5 * kl_coef)


def first_token_kl(scores, kl, mask, kl_coef):
    return shape_rewards(scores, torch.where(torch.arange(LENGTH) == 0, kl, 0.0), mask, kl_coef)


def score_everywhere(scores, kl, mask, kl_coef):
    return torch.where(mask, scores[:, None] - kl_coef * kl, 0.0)


def shifted(rewards, values, mask, gamma, gae_lambda):
    advantages, returns = estimate_advantages(rewards, values, mask, gamma, gae_lambda)
    return advantages.roll(1, dims=1), returns


def last_token_only(rewards, values, mask, gamma, gae_lambda):
    advantages, returns = estimate_advantages(rewards, values, mask, gamma, gae_lambda)
    last = torch.arange(LENGTH) == last_kept(mask)[:, None]
    return torch.where(last, advantages, 0.0), returns


BUGS = {
    "shape_rewards": (
        wrong_sign,
        stronger_kl,
        k3_reward,
        clamped_reward,
        no_kl,
        first_token_kl,
        score_everywhere,
    ),
    "estimate_advantages": (shifted, last_token_only),
}
QUICK = (stronger_kl,)  # the one nearest to passing


@pytest.mark.parametrize(
    ("name", "bug"),
    [
        pytest.param(name, bug, marks=() if bug in QUICK else pytest.mark.slow, id=bug.__name__)
        for name, bugs in BUGS.items()
        for bug in bugs
    ],
)
def test_a_bug_ends_somewhere_else(tmp_path, monkeypatch, name, bug):
    monkeypatch.setattr(ppo.train, name, bug)
    assert not train_and_measure(tmp_path, 5).passes


def test_the_measure_itself():
    """Staying where it was closes none of the gap; being the optimum closes all of it."""
    start = torch.randn(2, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    rewards = RewardTable(0).table.double()
    assert measure(start, start, rewards).gap == pytest.approx(0.0)
    best = measure(start, (start + rewards / KL_COEF).log_softmax(-1), rewards)
    assert best == pytest.approx((1.0, 0.0, 1.0))
    assert math.isclose(best.gap, 1.0)
    assert not SimpleNamespace(passes=best.gap < 0.95).passes
