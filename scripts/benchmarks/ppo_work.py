"""The work that every contestant of the PPO benchmarks does: model, prompts and responses."""

from __future__ import annotations

import json
import math
import random
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.sft import made_up_words

PROMPT_TOKENS, RESPONSE_TOKENS = 48, 64
LONG_PROMPT_TOKENS = 96
"""Maximum tokens of a prompt to a model of the user's own, whose template may have a system turn."""
SPEED = {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 4, "num_attention_heads": 4}
MEMORY = {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 12}
MEMORY_ROWS = 32  # two iterations of one epoch, so that scoring also runs beside Adam's moments
SEED = 0
SFT_TOKENS = 200_000
"""Number of SFT tokens after which the policy ends its responses as often as the data does."""


@dataclass
class Work:
    """The work of every contestant, as in `work.json`."""

    prompts: list[list[int]]
    """Token ids."""
    responses: list[list[int]]
    """One response per prompt by the initial policy, on which `check` compares the contestants."""
    episodes: int
    """Number of episodes per iteration."""
    prompt_tokens: int = PROMPT_TOKENS
    """Maximum tokens of a prompt."""
    max_new_tokens: int = RESPONSE_TOKENS
    iterations: int = 1
    num_epochs: int = 4
    kl_coef: float = 0.05
    missing_eos_penalty: float = 1.0
    """Subtracted from the score of a response without EOS, because TRL cannot replace the score."""
    learning_rate: float = 3e-6
    adam_epsilon: float = 1e-5
    microbatch_rows: int = 8
    """Rows of TRL's padded microbatch."""
    microbatch_tokens: int = 2048
    """Tokens of our microbatch."""
    gradient_checkpointing: bool = False
    """Activation checkpointing in ours. It is TRL's default, but its trainer does not apply it."""
    rollout_rows: int = 32
    """Rows that TRL samples and scores at a time."""
    order: dict[str, list[int]] = field(default_factory=dict)
    """Prompt indices of all iterations by seed; by default all prompts in order."""

    def write(self, folder: Path) -> None:
        (folder / "work.json").write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Work:
        return cls(**json.loads((folder / "work.json").read_text(encoding="utf-8")))

    def prompts_of(self, seed: int) -> list[int]:
        """Indices of the prompts of all iterations."""
        in_order = [index % len(self.prompts) for index in range(self.episodes * self.iterations)]
        return self.order.get(str(seed), in_order)


def response_stats(responses: Sequence[Sequence[int]], eos_token_id: int) -> dict[str, float]:
    """Mean length of responses and the fraction that ends."""
    ended = statistics.fmean(response[-1] == eos_token_id for response in responses)
    return {"mean_response_tokens": round(statistics.fmean(map(len, responses)), 1), "ended": round(ended, 3)}


def save_policy(folder: Path, model: Any, tokenizer: Any, records: Sequence[Any] = ()) -> None:
    """Save a policy, and a copy with a new scalar head.

    Args:
        records: what the policy is trained on first, until it ends its turns; none: it stays as it is.
    """
    from alignment.models.scalar import load_scalar_model

    if records:
        rows = [json.dumps({"messages": record.messages}) + "\n" for record in records]
        (folder / "sft.jsonl").write_text("".join(rows), encoding="utf-8")
        model.save_pretrained(folder / "model")
        tokenizer.save_pretrained(folder / "model")
        model = fine_tuned(folder, SFT_TOKENS)
    model.save_pretrained(folder / "policy")
    tokenizer.save_pretrained(folder / "policy")
    load_scalar_model(str(folder / "policy"), seed=SEED).model.save_pretrained(folder / "reward")
    tokenizer.save_pretrained(folder / "reward")


def fine_tuned(folder: Path, num_tokens: int, learning_rate: float = 2e-3) -> Any:
    """`folder/model` after SFT by our stage on about `num_tokens` tokens of `folder/sft.jsonl`."""
    import tempfile

    from alignment.config.loading import validate
    from sft.building import build_trainer
    from sft.config import SFTStageConfig
    from sft.prepare import prepare as prepare_sft

    values = {
        "name": "bench",
        "model": {"name": str(folder / "model")},
        "data": {"train": str(folder / "sft.jsonl"), "eval_share": 0.0, "max_length": 256},
        "training": {"per_device_train_batch_size": 16, "learning_rate": learning_rate, "bf16": False},
        "registry": {"name": "bench"},
        "tracking": {"runs": tempfile.mkdtemp(), "wandb": "disabled"},
    }
    config = validate(SFTStageConfig, values, "bench")
    prepared = prepare_sft(config)
    mean = statistics.fmean(map(len, prepared.data.train["input_ids"]))
    prepared.arguments.max_steps = math.ceil(num_tokens / mean / 16)
    trainer = build_trainer(config, prepared)
    trainer.train()
    return trainer.model


def short_prompts(
    records: Sequence[Any], tokenizer: Any, count: int, most: int = PROMPT_TOKENS
) -> list[tuple[Any, list[int]]]:
    """The first `count` distinct prompts of at most `most` tokens: their messages and ids.

    Raises:
        UserError: there are too few.
    """
    from alignment.errors import UserError
    from alignment.templates.rendering import encode_prompt

    prompts: dict[tuple[int, ...], Any] = {}
    for record in records:
        ids = tuple(encode_prompt(tokenizer, record.messages[:-1]))
        if len(ids) <= most and len(prompts) < count:
            prompts.setdefault(ids, record.messages[:-1])
    if len(prompts) < count:
        raise UserError(f"found {len(prompts)} prompts of at most {most} tokens, {count} needed; lower --rows")
    return [(messages, list(ids)) for ids, messages in prompts.items()]


def save_prompts(folder: Path, prompts: Sequence[Any]) -> None:
    lines = [json.dumps({"prompt": messages}) + "\n" for messages in prompts]
    (folder / "prompts.jsonl").write_text("".join(lines), encoding="utf-8")


def save_reward_adapter(folder: Path) -> None:
    """Publish the policy, and a reward model as an adapter on it, to `folder/registry`, as `shared` requires; and
    another as `reward-upper`, whose adapter is on the upper half of the layers."""
    import tempfile

    from alignment.config.sections import ModelConfig
    from alignment.models.reward_files import SCORE
    from alignment.models.scalar import load_scalar_model
    from alignment.models.sources import find_model
    from alignment.models.tokenizers import load_tokenizer
    from alignment.models.trainable import apply_method
    from alignment.registry import Registry

    registry = Registry(folder / "registry")
    policy = registry.publish("policy", folder / "policy", stage="base", role="policy").ref
    source = find_model(policy, registry, role="policy")
    for name, adapter in (("reward", {}), ("reward-upper", upper_half(folder))):
        options = ModelConfig(name=policy, method="lora", adapter=adapter)
        adapted = apply_method(load_scalar_model(source, seed=SEED).model, options)
        with tempfile.TemporaryDirectory() as saved:
            adapted.save_pretrained(saved)
            load_tokenizer(source).save_pretrained(saved)
            (Path(saved) / SCORE).write_text(json.dumps({"score_bias": 0.0}), encoding="utf-8")
            section = {"model": options.model_dump(mode="json")}
            registry.publish(name, saved, stage="reward", role="reward", base=source.as_base(), config=section)


def upper_half(folder: Path) -> dict[str, list[int]]:
    """`model.adapter` of an adapter on the upper half of the policy's layers."""
    number = json.loads((folder / "policy" / "config.json").read_text(encoding="utf-8"))["num_hidden_layers"]
    return {"layers_to_transform": list(range(number // 2, number))}


def sample(folder: Path, prompts: Sequence[list[int]], max_new_tokens: int = RESPONSE_TOKENS) -> list[list[int]]:
    """A response to each prompt by the initial policy."""
    import torch

    from alignment.generation.engine import TransformersEngine
    from alignment.generation.sampling import Sampling
    from alignment.models.policies import load_policy
    from alignment.models.tokenizers import load_tokenizer
    from alignment.seeds import stream_seed
    from alignment.templates.ends import end_token_ids

    tokenizer, policy = load_tokenizer(str(folder / "policy")), load_policy(str(folder / "policy"))
    policy.to("cuda" if torch.cuda.is_available() else "cpu")
    sampling = Sampling(max_new_tokens, 1.0, end_token_ids(tokenizer), tokenizer.pad_token_id, batch_size=64)
    seeds = [stream_seed("bench", index) for index in range(len(prompts))]
    return TransformersEngine(policy, tokenizer).generate(prompts, seeds, sampling).responses


def parameters(folder: Path) -> int:
    from alignment.models.policies import load_policy

    return int(load_policy(str(folder / "policy")).num_parameters())


def write_transcripts(path: Path, seed: int) -> Path:
    """Write questions of random words that fit into a prompt, and answers of any length, most below 64 tokens.

    An answer may end after any word with the same probability, so a policy only needs to learn that probability.
    """
    draw = random.Random(seed)
    words, weights = made_up_words(draw)
    lines = []
    for _ in range(1000):
        question = draw.choices(words, weights, k=draw.randint(3, 22))
        answer = draw.choices(words, weights, k=min(180, 1 + int(draw.expovariate(1 / 60))))
        messages = [{"role": "user", "content": " ".join(question)}, {"role": "assistant", "content": " ".join(answer)}]
        lines.append(json.dumps({"messages": messages}))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
