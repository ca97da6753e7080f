"""One model through the three stages and out again, each step compared with plain transformers."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from alignment.config.loading import validate
from alignment.models.classifiers import needs_own
from alignment.models.export import export
from alignment.models.policies import load_policy
from alignment.models.scalar import load_scalar_model
from alignment.models.sources import find_model
from alignment.registry import Registry
from alignment.templates.rendering import Message, encode_conversation, encode_to_score

TOLERANCE = 2e-3
"""Nats, or units of the largest score: float32 sums in another order are off by 1e-5, a wrong path by tenths."""
WORDS = ("cats", "rain", "bread", "old trains", "tea", "snow on the road", "maps", "bells")
COMMON = {"tracking": {"wandb": "disabled"}}


class Wrong(Exception):
    """Numbers that are not plain transformers'."""


def run(folder: Path, note: Callable[[str], object]) -> None:
    """All steps in the present folder, of the model in `folder`; `note` is told which one begins.

    Raises:
        UserError: the suite refuses the model.
        Wrong: it does not, and should have.
    """
    _write_data()
    registry = Registry("registry")
    note("sft")
    loss = _sft(folder)
    _compare("the held-out loss", [loss], [_plain_loss(Path(_path(registry, "sft")))])
    note("reward")
    _reward(registry)
    note("ppo")
    _ppo()
    note("export")
    _export(registry)


def _write_data() -> None:
    random.seed(0)

    def said(*ends: str) -> list[dict[str, str]]:
        return [{"prompt": f"Say that {word} {end}", "completion": f"{word} {end}"} for word in WORDS for end in ends]

    rows, held_out = said("a", "bb"), said("ccc")
    pairs = [{"prompt": row["prompt"], "chosen": row["completion"], "rejected": "no"} for row in rows]
    prompts = [{"prompt": row["prompt"]} for row in rows]
    for name, lines in {"sft": rows, "held_out": held_out, "pairs": pairs, "prompts": prompts}.items():
        Path(f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def _path(registry: Registry, name: str) -> str:
    role = registry.resolve(name).manifest.role
    return find_model(name, registry, role=role).path


def _sft(folder: Path) -> float:
    from sft.config import SFTStageConfig
    from sft.train import train

    config = COMMON | {
        "name": "sft",
        "model": {"name": f"./{folder}"},
        "data": {"train": "sft.jsonl", "eval": "held_out.jsonl", "max_length": 96},
        "training": {"max_steps": 2, "per_device_train_batch_size": 4, "learning_rate": 1e-4},
        "registry": {"name": "sft", "path": "registry"},
    }
    return float(train(_config(SFTStageConfig, config))["metrics"]["eval_loss"])


def _config(kind: Any, values: dict[str, Any]) -> Any:
    config = validate(kind, values, "a trial")
    config.run_dir.mkdir(parents=True, exist_ok=True)
    return config


def _plain_loss(folder: Path) -> float:
    """Mean loss of the answers' tokens by the published files, row by row."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    losses = []
    for line in Path("held_out.jsonl").read_text().splitlines():
        row = json.loads(line)
        ids, answer = _encoded(tokenizer, row["prompt"], row["completion"])
        logits = _logits(model, ids)
        losses += [-float(logits[t - 1].log_softmax(-1)[ids[t]]) for t in range(len(ids) - answer, len(ids))]
    return sum(losses) / len(losses)


def _encoded(tokenizer: Any, prompt: str, answer: str) -> tuple[list[int], int]:
    """Tokens of the conversation, and how many of them are the answer's."""
    messages: list[Message] = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
    example = encode_conversation(tokenizer, messages)
    assert example is not None
    return example.input_ids, sum(example.loss_mask)


@torch.no_grad()
def _logits(model: nn.Module, ids: Sequence[int]) -> Tensor:
    logits: Tensor = model(input_ids=torch.tensor([list(ids)])).logits[0].float()
    return logits


def _reward(registry: Registry) -> None:
    from reward.config import RewardStageConfig
    from reward.train import train

    config = COMMON | {
        "name": "reward",
        "model": {"name": "sft"},
        "data": {"train": "pairs.jsonl", "eval_share": 0.2, "max_length": 96},
        "training": {"max_steps": 2, "per_device_train_batch_size": 4, "learning_rate": 1e-4},
        "registry": {"name": "reward", "path": "registry"},
    }
    train(_config(RewardStageConfig, config))


def _ppo() -> None:
    import ppo.loop
    from ppo.config import PPOStageConfig
    from ppo.train import train

    config = COMMON | {
        "name": "ppo",
        "model": {"policy": "sft", "reward": "reward"},
        "data": {"train": "prompts.jsonl", "max_length": 96},
        "rollout": {"batch_size": 8, "max_new_tokens": 10, "num_generations": 2},
        "ppo": {"num_minibatches": 2},
        "training": {"max_steps": 2, "learning_rate": 1e-4, "save_steps": 0, "load_best_model_at_end": False},
        "registry": {"name": "ppo", "path": "registry"},
    }
    ppo.loop.Collector = _watched(ppo.loop.Collector)  # type: ignore[misc]
    train(_config(PPOStageConfig, config))


def _watched(collector: Any) -> Any:
    """A collector whose every rollout is computed again by plain forward passes: tokens, log-probabilities, scores."""
    from alignment.generation.engine import _uniforms, choose_tokens
    from alignment.seeds import stream_seed

    class Watched(collector):
        def collect(self, tasks: Any, *seed: int, **options: Any) -> Any:
            rollout = super().collect(tasks, *seed, **options)
            models, vocabulary = self.models, self.sampling.vocabulary
            wrong = tokens = 0
            for number, row in enumerate(rollout.rows):
                start, ids = len(row.prompt) - 1, torch.tensor(row.response)
                for role, found in ((models.policy, rollout.old_logprobs), (models.reference, rollout.ref_logprobs)):
                    logits = _logits(role.base, row.prompt + row.response)[start:-1, :vocabulary]
                    plain = logits.log_softmax(-1).gather(-1, ids[:, None]).squeeze(-1)
                    _compare("log-probabilities", found[number, : len(ids)].tolist(), plain.tolist())
                    if role is models.policy and "responses" not in options:
                        task = rollout.tasks[number]
                        stream = stream_seed("sample", *seed, task.prompt_index, task.repeat)
                        uniforms = _uniforms([stream], len(ids))[0]
                        chosen = choose_tokens(logits, uniforms, self.sampling)
                        wrong += int((chosen != ids).sum())
                        tokens += len(ids)
                member = models.reward.members[0]
                plain_score = _plain_state(member.base, row.prompt + row.response)
                assert member.head is not None
                score = member.read(plain_score[None])
                _compare("PPO's scores", [float(rollout.parts["model"][number])], [float(score)])
            if wrong > 1:  # a random number can fall on a boundary
                raise Wrong(f"{wrong} of {tokens} sampled tokens are not what a plain forward pass chooses")
            return rollout

    return Watched


@torch.no_grad()
def _plain_state(model: Any, ids: Sequence[int]) -> Tensor:
    state: Tensor = model.base_model(input_ids=torch.tensor([list(ids)])).last_hidden_state[0, -1]
    return state


def _export(registry: Registry) -> None:
    """Both models as plain folders: the policy's logits, and the reward model's scores."""
    for name in ("ppo", "reward"):
        export(name, Path("exported", name), registry)
    ids = [5, 9, 17, 4, 8, 33, 2]
    policy, info = AutoModelForCausalLM.from_pretrained("exported/ppo", output_loading_info=True)
    if info["missing_keys"] or info["mismatched_keys"] or info["unexpected_keys"]:
        raise Wrong(f"the exported policy does not load whole: {info}")
    ours = load_policy(find_model("ppo", registry, role="policy")).eval()
    _compare("the exported policy's logits", _logits(policy.eval(), ids)[-1].tolist(), _logits(ours, ids)[-1].tolist())
    maker = json.loads(Path("model", "config.json").read_text())
    kept = json.loads(Path("exported", "ppo", "config.json").read_text())
    for key in ("output_router_logits", "router_aux_loss_coef"):
        if maker.get(key) != kept.get(key):
            raise Wrong(f"the published config has {key}={kept.get(key)}, its maker's {maker.get(key)}")
    tokenizer = AutoTokenizer.from_pretrained("exported/reward")
    scalar = load_scalar_model(find_model("reward", registry, role="reward"), trained=True).eval()
    bias, found, expected = scalar.model.score.score_bias, [], []
    for word in WORDS[:3]:
        messages: list[Message] = [
            {"role": "user", "content": f"Say that {word}"},
            {"role": "assistant", "content": word},
        ]
        row = torch.tensor([encode_to_score(tokenizer, messages)])
        with torch.no_grad():
            found.append(float(scalar.score(row, torch.ones_like(row, dtype=torch.bool))))
        expected.append(_plain_score("exported/reward", row) - bias)
    _compare("the exported reward model's scores", found, expected)


@torch.no_grad()
def _plain_score(folder: str, row: Tensor) -> float:
    """As the exported README says."""
    if not needs_own(AutoConfig.from_pretrained(folder)):
        return float(AutoModelForSequenceClassification.from_pretrained(folder).eval()(input_ids=row).logits)
    body = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval().base_model
    with safe_open(f"{folder}/model.safetensors", "pt") as file:
        head = file.get_tensor("score.weight").float()
    return float(body(input_ids=row).last_hidden_state[0, -1] @ head[0])


def _compare(what: str, found: Sequence[float], expected: Sequence[float]) -> None:
    scale = max(1.0, *map(abs, expected))
    apart = max(abs(one - other) for one, other in zip(found, expected, strict=True))
    if not apart <= TOLERANCE * scale:
        raise Wrong(f"{what} is off by {apart:.2g}")
