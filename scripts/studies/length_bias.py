"""Length bias: PPO on scores that do not depend on the answer, for which the mean length must not change.

    scripts/study.py length_bias            the full study: both worlds, both signs, both critics, three seeds
    scripts/study.py length_bias --quick    one seed, the short world

The scores are drawn from N(c, 1), so no answer is better than another, and an unbiased algorithm does not change the
length. With lambda below 1 and a critic that has not learned the mean yet, the last tokens of an answer get the whole
score and the first ones nothing: a positive mean then rewards ending early, and a negative one never ending. Rows go to
stdout as JSON lines; docs/development/studies/length-bias.md has the results.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import transformers

from alignment.data.records import Prompt
from alignment.distributed import processes
from alignment.models.scalar import ScoreHead
from alignment.runs.journal import Journal
from alignment.seeds import stream_seed
from ppo.config import PPOStageConfig
from ppo.critic import new_head
from ppo.loading import finalize_models
from ppo.loop import Loop
from ppo.models import Models
from ppo.prompts import encode_prompts, prompt_limit
from ppo.roles import PolicyAndValue, Role

ITERATIONS = 25
MEASURED = 512
"""Number of answers for a mean length; its standard error is 4%."""


@dataclass(frozen=True)
class World:
    """A policy that ends with probability 1 / `vocabulary` at each token, truncated at `limit` tokens."""

    vocabulary: int
    limit: int
    episodes: int
    learning_rate: float


SHORT = World(vocabulary=40, limit=256, episodes=64, learning_rate=3e-4)
LONG = World(vocabulary=256, limit=1024, episodes=32, learning_rate=3e-4)
WORLDS = {"short": SHORT, "long": LONG}


class Tokens:
    """A tokenizer whose tokens are digits; token 0 is both EOS and padding."""

    pad_token_id, eos_token_id, bos_token_id, cls_token_id = 0, 0, None, None
    chat_template, unk_token = "", None
    added_tokens_decoder: ClassVar[dict[int, Any]] = {}

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def get_vocab(self) -> dict[str, int]:
        return {str(token): token for token in range(len(self))}

    def __call__(self, texts: list[str], **_: Any) -> dict[str, Any]:
        return {"input_ids": [[int(digit) for digit in text] for text in texts]}

    def apply_chat_template(self, messages: list[dict[str, str]], **_: Any) -> str:
        return messages[0]["content"]

    def decode(self, ids: list[int], **_: Any) -> str:
        return " ".join(map(str, ids))


class RandomScores:
    """A stand-in for a reward model with scores from N(mean, 1), whatever the answer is."""

    members, heads = (), ()

    def __init__(self, mean: float, seed: int) -> None:
        self.mean, self.generator = mean, torch.Generator().manual_seed(seed)

    def member_scores(self, rows: list[Any], conversations: list[Any], device: torch.device) -> torch.Tensor:
        return (self.mean + torch.randn(len(rows), generator=self.generator))[None]

    def combined(self, scores: torch.Tensor) -> tuple[torch.Tensor, None]:
        return scores[0], None

    def modules(self) -> list[torch.nn.Module]:
        return []


def llama(kind: Any, world: World) -> Any:
    config = transformers.LlamaConfig(
        vocab_size=world.vocabulary,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=world.limit + 8,
        initializer_range=0.02,
        num_labels=1,
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=None,
    )
    return kind(config).eval()


def build_models(world: World, critic: str | None, mean: float, seed: int, scorer: Any = None) -> Models:
    torch.manual_seed(seed)
    policy = Role(llama(transformers.LlamaForCausalLM, world))
    reference = Role(llama(transformers.LlamaForCausalLM, world).requires_grad_(False))
    reference.model.load_state_dict(policy.model.state_dict())
    value = None
    if critic == "separate":
        scalar = llama(transformers.LlamaForSequenceClassification, world)
        scalar.score = ScoreHead(32)
        torch.nn.init.zeros_(scalar.score.weight)
        value = Role(scalar, head=scalar.score)
    elif critic == "trunk":
        value = Role(policy.model, head=new_head(policy))
    scores: Any = scorer or RandomScores(mean, seed)
    return Models(PolicyAndValue(policy, value), reference, scores, None, Tokens(world.vocabulary), {})


def run(
    world: World,
    critic: str | None,
    mean: float,
    seed: int,
    iterations: int = ITERATIONS,
    scorer: Any = None,
    measured: int = MEASURED,
    asked: Sequence[str] = tuple("12345678"),
    **sections: Any,
) -> tuple[float, float]:
    """Mean length of `measured` answers before and after training, sampled with the same random numbers.

    Args:
        critic: `separate` or `trunk`, newly initialized; None if the estimator has no critic.
        scorer: replaces the random scores.
        measured: number of answers.
        asked: the prompts, which are digits.
        sections: changes to the config.
    """
    values: dict[str, Any] = {
        "name": "length-bias",
        "model": {"policy": "p", "reward": "r"},
        "data": {"train": "none", "max_length": world.limit + 8},
        "rewards": {"missing_eos_penalty": None},
        "rollout": {
            "batch_size": world.episodes,
            "generation_batch_size": 256,
            "max_new_tokens": world.limit,
        },
        "training": {
            "max_steps": iterations,
            "learning_rate": world.learning_rate,
            "lr_scheduler_type": "constant",
            "microbatch_tokens": 16384,
            "packing": False,
            "seed": seed,
        },
        "registry": {"name": "length-bias"},
    }
    for name, changes in sections.items():
        values[name] = {**values.get(name, {}), **changes}
    config = PPOStageConfig.model_validate(values)
    models = build_models(world, critic if config.ppo.has_critic else None, mean, seed, scorer)
    finalize_models(models, config)
    accelerator = processes.make_accelerator()
    prompts = [Prompt(({"role": "user", "content": digits},)) for digits in asked]
    encoded, _ = encode_prompts(prompts, models.tokenizer, prompt_limit(config), config.data.too_long)
    with tempfile.TemporaryDirectory() as folder:
        loop = Loop(config, models, accelerator, Journal(Path(folder), enabled=False), encoded)
        before = mean_length(loop, measured)
        loop.run()
        return before, mean_length(loop, measured)


def mean_length(loop: Loop, count: int) -> float:
    """Mean length of `count` answers of the current policy."""
    prompts = [loop.prompts[index % len(loop.prompts)][1] for index in range(count)]
    seeds = [stream_seed("length", index) for index in range(count)]
    sampled = loop.collector.sampler.generate(prompts, seeds, loop.collector.sampling)
    return statistics.fmean(map(len, sampled.responses))


SETTINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "before": {
        "ppo": {"gae_lambda": 0.95, "value_clip_range": 0.2},
        "rewards": {"normalize": None},
        "training": {"adam_epsilon": 1e-5},
    },
    "lambda .95, centred": {"ppo": {"gae_lambda": 0.95}, "rewards": {"normalize": "reference"}},
    "lambda 1, raw": {"ppo": {"gae_lambda": 1.0}, "rewards": {"normalize": None}},
    "rloo": {"ppo": {"advantage_estimator": "rloo"}, "rollout": {"num_generations": 8}},
}


def cells(
    quick: bool, settings: list[str], worlds: list[str], seeds: int
) -> Iterator[tuple[str, str, str | None, float, int]]:
    for setting in settings:
        for world in ["short"] if quick else worlds:
            for critic in ("separate", "trunk") if setting != "rloo" else (None,):
                for mean in (3.0, -3.0):
                    for seed in range(1 if quick else seeds):
                        yield setting, world, critic, mean, seed


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one seed, the short world")
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS), metavar="NAME")
    parser.add_argument("--worlds", nargs="+", choices=WORLDS, default=list(WORLDS))
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    for setting, world, critic, mean, seed in cells(options.quick, options.settings, options.worlds, options.seeds):
        start, end = run(WORLDS[world], critic, mean, seed, **SETTINGS[setting])
        row = {"setting": setting, "world": world, "critic": critic, "mean": mean, "seed": seed}
        row |= {"start": round(start, 1), "end": round(end, 1), "change": round(end / start - 1, 3)}
        print(json.dumps(row), flush=True)
    return 0
