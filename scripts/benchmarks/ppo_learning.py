"""Compare the rewards that our PPO and TRL's reach from the same policy, reward model and prompts, over several seeds.

The task is small, so that ten runs take minutes: a language of sixty random words, of which a third are wanted. The
reward model has learned the fraction of wanted words in a response. Differences are in standard deviations of its
scores over responses of the initial policy.
"""

from __future__ import annotations

import json
import math
import random
import statistics
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.ppo_work import Work, fine_tuned, parameters, response_stats, sample, save_prompts

if TYPE_CHECKING:
    from alignment.templates.rendering import Message

SHAPE = {"hidden_size": 64, "intermediate_size": 172, "num_hidden_layers": 2, "num_attention_heads": 2}
NUM_WORDS, NUM_WANTED = 60, 20
NUM_PROMPTS = 512
MAX_NEW_TOKENS = 24
ITERATIONS = 40
TAIL = 0.2
"""Fraction of the iterations, at the end, whose rewards are compared."""
QUANTILES = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""97.5% quantiles of Student's t for 1 to 9 degrees of freedom."""


def prepare(folder: Path, options: Namespace) -> dict[str, Any]:
    """Write the prompts, a policy trained on the language, and the reward model."""
    import torch

    from alignment.config.sections import ScratchConfig
    from alignment.models.policies import build_scratch_model
    from alignment.models.tokenizers import train_tokenizer
    from alignment.templates.rendering import encode_prompt
    from ppo.prompts import prompt_batches

    words = language(options.seed)
    chats = conversations(words, options.seed)
    tokenizer = train_tokenizer((m["content"] for chat in chats for m in chat), 600, "chatml")
    torch.manual_seed(options.seed)
    shape = ScratchConfig(vocab_size=600, max_position_embeddings=128, **SHAPE)
    model = build_scratch_model("llama", shape, tokenizer)
    for name in ("model", "policy", "reward"):
        tokenizer.save_pretrained(folder / name)
    model.save_pretrained(folder / "model")
    lines = [json.dumps({"messages": chat}) + "\n" for chat in chats]
    (folder / "sft.jsonl").write_text("".join(lines), encoding="utf-8")
    fine_tuned(folder, 400_000, learning_rate=3e-3).save_pretrained(folder / "policy")

    questions = list({chat[0]["content"]: chat[:1] for chat in chats}.values())[:NUM_PROMPTS]
    save_prompts(folder, questions)
    prompts = [encode_prompt(tokenizer, question) for question in questions]
    sd = train_reward(folder, prompts, tokenizer, set(words[:NUM_WANTED]))
    batches = {str(seed): prompt_batches(len(prompts), options.rows, seed) for seed in range(options.rounds)}
    responses = sample(folder, prompts, MAX_NEW_TOKENS)
    work = Work(
        prompts,
        responses,
        episodes=options.rows,
        max_new_tokens=MAX_NEW_TOKENS,
        iterations=ITERATIONS,
        learning_rate=2e-3,
        kl_coef=0.15,
        order={seed: [n for _ in range(ITERATIONS) for n in next(stream)] for seed, stream in batches.items()},
    )
    work.write(folder)
    return {
        "rollouts": options.rows,
        "iterations": ITERATIONS,
        "epochs": work.num_epochs,
        "parameters": parameters(folder),
        "learning_rate": work.learning_rate,
        "kl_coef": work.kl_coef,
        "reward_sd": sd,
        **response_stats(responses, tokenizer.eos_token_id),
    }


def language(seed: int) -> list[str]:
    """Distinct words, the wanted ones first."""
    draw = random.Random(seed)
    letters = "aeiou", "bcdfghlmnprstvw"
    words: dict[str, None] = {}
    while len(words) < NUM_WORDS:
        words["".join(draw.choice(letters[n % 2]) for n in range(draw.randint(3, 6)))] = None
    return list(words)


def conversations(words: Sequence[str], seed: int) -> list[list[Message]]:
    """Conversations whose answers may end after any word."""
    draw = random.Random(seed)
    chats: list[list[Message]] = []
    for _ in range(2000):
        question = " ".join(draw.choices(words, k=draw.randint(1, 5)))
        answer = " ".join(draw.choices(words, k=1 + int(draw.expovariate(1 / 9))))
        chats.append([{"role": "user", "content": question}, {"role": "assistant", "content": answer}])
    return chats


def train_reward(folder: Path, prompts: Sequence[list[int]], tokenizer: Any, wanted: set[str]) -> float:
    """Train a reward model on the fraction of wanted words; returns the standard deviation of its scores."""
    import torch

    from alignment.models.scalar import load_scalar_model
    from alignment.tensors import pad_rows

    responses = sample(folder, list(prompts) * 8, MAX_NEW_TOKENS)
    texts = [tokenizer.decode(response, skip_special_tokens=True).split() for response in responses]
    shares = torch.tensor([sum(word in wanted for word in text) / max(1, len(text)) for text in texts])
    targets = (shares - shares.mean()) / shares.std()
    rows = [prompt + response for prompt, response in zip(list(prompts) * 8, responses, strict=True)]
    torch.manual_seed(0)
    model = load_scalar_model(str(folder / "policy"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(3):
        for part in torch.randperm(len(rows)).split(64):
            ids, mask = pad_rows([rows[index] for index in part.tolist()], tokenizer.pad_token_id, "right")
            loss = (model.score(ids, mask) - targets[part]).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    model.model.save_pretrained(folder / "reward")
    with torch.no_grad():
        ids, mask = pad_rows(rows[: len(prompts)], tokenizer.pad_token_id, "right")
        return round(float(model.score(ids, mask).std()), 4)


# --- summing up ------------------------------------------------------------------------------------------------------


def more(work: Mapping[str, Any], runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """The difference in mean reward, ours minus TRL's, paired by seed, in standard deviations of the reward."""
    tails = {name: [tail_mean(run["rewards"]) for run in done] for name, done in runs.items()}
    pairs = zip(tails["ours"], tails["trl"], strict=True)
    value, ci = interval([(ours - theirs) / work["reward_sd"] for ours, theirs in pairs])
    starts = {name: statistics.fmean(run["rewards"][0] for run in done) for name, done in runs.items()}
    return {
        "difference": round(value, 4),
        "ci": [round(bound, 4) for bound in ci],
        "interval": f"Student's t over {len(tails['ours'])} seeds, 95%",
        "start_reward": {name: round(start, 4) for name, start in starts.items()},
        "tail_rewards": {name: [round(tail, 4) for tail in values] for name, values in tails.items()},
        "curves": {
            name: [round(statistics.fmean(step), 3) for step in zip(*(run["rewards"] for run in done), strict=True)]
            for name, done in runs.items()
        },
        "seconds": {name: round(statistics.fmean(run["seconds"] for run in done), 1) for name, done in runs.items()},
        "notes": [f"ours minus TRL's: {value:+.3f} sd of the reward (95% {ci[0]:+.3f} to {ci[1]:+.3f})"],
    }


def tail_mean(rewards: Sequence[float]) -> float:
    """Mean over the last TAIL of the iterations."""
    return statistics.fmean(rewards[-max(1, round(TAIL * len(rewards))) :])


def interval(values: Sequence[float]) -> tuple[float, tuple[float, float]]:
    """Mean and Student's 95% interval; a bootstrap of five values would be too narrow."""
    mean = statistics.fmean(values)
    if not 2 <= len(values) <= len(QUANTILES) + 1:
        return mean, (-math.inf, math.inf)
    reach = QUANTILES[len(values) - 2] * statistics.stdev(values) / math.sqrt(len(values))
    return mean, (mean - reach, mean + reach)
