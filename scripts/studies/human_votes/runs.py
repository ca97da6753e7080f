"""What is run: the three stages as a user runs them, answers, and what each reward model says of them.

Each function is one step, works in the current folder (HOME) and returns what the step's row holds.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from studies.human_votes.data import OWN_PROMPTS, pair_key, write
from studies.human_votes.sizes import Size
from studies.human_votes.statistics import best_of_n_kl, pick_best, selection_rewards

ROOT = Path(__file__).resolve().parents[3]
SAVE_EVERY = 25
Row = dict[str, Any]


def stage(name: str, run: str, *overrides: str) -> Row:
    """A stage with its recipe for SmolLM2; returns RUN/evaluation.json where the stage leaves one.

    A run that was killed goes on from its newest checkpoint.

    Raises:
        UserError: it failed.
    """
    from alignment.errors import UserError

    config = ROOT / "configs" / name / "smollm2.yaml"
    own = (f"name={run}", f"registry.name={run}", "tracking.wandb=disabled")
    command = [sys.executable, "-m", name, str(config), *own, *overrides, "--resume", "auto"]
    print("$ python " + " ".join(command[1:]), file=sys.stderr, flush=True)
    done = subprocess.run(command, stdout=sys.stderr, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False)
    if done.returncode:
        raise UserError(f"the {name} stage failed with exit code {done.returncode}; its message is above")
    report = Path("runs") / run / "evaluation.json"
    return json.loads(report.read_text(encoding="utf-8")) if report.exists() else {}


def read_jsonl(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# --- the steps -----------------------------------------------------------------------------------------------------


def prepare(size: Size, votes: Path) -> Row:
    """The model into the registry, the votes into their parts."""
    from help_desk import real_model

    from alignment.models.sources import find_model
    from alignment.models.tokenizers import load_tokenizer
    from alignment.registry import Registry

    model = real_model.fetch(Path())
    tokenizer = load_tokenizer(find_model(model, Registry(), role="policy"))
    return {"model": model} | write(votes, size, tokenizer, Path())


def sft(size: Size) -> Row:
    """The start of everything: what people chose in half A, shown to SmolLM2. Half B is nowhere in it."""
    stage(
        "sft", "start", "data.train=a.jsonl", "data.eval=test.jsonl", f"data.max_length={size.max_length}",
        f"training.num_train_epochs={size.epochs}", "training.learning_rate=3e-4",
        f"training.save_steps={SAVE_EVERY}",
    )  # fmt: skip
    journal = read_jsonl(Path("runs/start/metrics.jsonl"))
    losses = [row["eval/loss"] for row in journal if "eval/loss" in row]
    return {"loss_before": losses[0], "loss_after": losses[-1]}


def reward(size: Size, half: str, seed: int) -> Row:
    """A reward model of one half, judged on the held-out prompts; what it says of each held-out pair."""
    run = f"reward-{half}-{seed}"
    report = stage(
        "reward", run, f"data.train={half}.jsonl", "data.eval=test.jsonl", f"data.max_length={size.max_length}",
        f"training.num_train_epochs={size.epochs}", f"training.seed={seed}", f"training.save_steps={SAVE_EVERY}",
    )  # fmt: skip
    pairs = []
    for pair in read_jsonl(Path("runs") / run / "eval_pairs.jsonl"):
        first_won = pair["votes"]["first"] > pair["votes"]["second"]
        texts = (pair["first"], pair["second"]) if first_won else (pair["second"], pair["first"])
        margin = (pair["first_score"] - pair["second_score"]) * (1 if first_won else -1)
        group = next(turn["content"] for turn in pair["prompt"] if turn["role"] == "user")
        pairs.append({"pair": pair_key(*texts), "group": pair_key(group, ""), "margin": round(margin, 6)})
    return {"half": half, "seed": seed} | _figures(report) | {"pairs": pairs}


def several_votes(size: Size, path: Path) -> Row:
    """A reward model of votes of which there are several on each pair, where agreement can be known; longer pairs are
    left out as they are of the others."""
    report = stage(
        "reward", "reward-several", f"data.train={path}", "data.eval_share=0.2", f"data.max_length={size.max_length}",
        "data.too_long=drop", "training.seed=0", f"training.save_steps={SAVE_EVERY}",
        f"training.num_train_epochs={size.epochs}",
    )  # fmt: skip
    return _figures(report)


def _figures(report: Row) -> Row:
    names = ("prompts", "votes", "accuracy", "log_loss", "shared")
    return {name: report.get(name) for name in names} | {"length": report["length"]}


def ppo(size: Size, seed: int) -> Row:
    """PPO on the prompts of half A against half A's reward model; the last policy is taken, chosen by nothing."""
    run = f"ppo-{seed}"
    target = [f"ppo.kl_target={best_of_n_kl(size.n):.4f}"]
    stage(
        "ppo", run, "model.policy=start", f"model.reward=reward-a-{seed}", "model.held_out_reward=null",
        "data.train=prompts.jsonl", "data.eval=dev.jsonl",
        f"data.max_length={size.prompt_length + size.max_new_tokens}",
        f"rollout.batch_size={size.batch_size}", f"rollout.generation_batch_size={min(32, size.batch_size)}",
        f"rollout.max_new_tokens={size.max_new_tokens}", f"rollout.temperature={size.temperature}",
        f"training.max_steps={size.iterations}", "training.eval_steps=0", "training.load_best_model_at_end=false",
        "training.save_steps=8", f"training.seed={seed}", *(target if size.match_kl else ()),
    )  # fmt: skip
    return {"seed": seed}


def answers(size: Size, seed: int) -> Row:
    """To each prompt one answer of the start, one of PPO's policy, and the n that best-of-n chooses from.

    Texts and token ids go to answers-SEED.jsonl; the row has lengths, whether they ended, PPO's KL from the start
    (log(policy / start) summed over each answer, nats), and the texts of the answers to the study's own prompts.
    """
    from alignment.distributed import heartbeat
    from alignment.generation.engine import complete
    from alignment.models.policies import load_policy
    from alignment.models.sources import find_model
    from alignment.models.tokenizers import load_tokenizer
    from alignment.registry import Registry

    own = [[{"role": "user", "content": text}] for text in OWN_PROMPTS[: size.own_prompts]]
    prompts = [row["prompt"] for row in read_jsonl(Path("held_out.jsonl"))] + own
    registry = Registry()
    source = find_model("start", registry, role="policy")
    tokenizer, start = load_tokenizer(source), load_policy(source).eval()
    settings: dict[str, Any] = {
        "max_new_tokens": size.max_new_tokens,
        "temperature": size.temperature,
        "batch_size": size.sampling_batch,
    }
    many = [prompt for prompt in prompts for _ in range(size.n + 1)]
    heartbeat.enter(f"sampling {len(many)} answers of the start")
    first = complete(start, tokenizer, many, seed=seed, **settings)
    policy = load_policy(find_model(f"ppo-{seed}", registry, role="policy")).eval()
    heartbeat.enter("sampling PPO's answers")
    after = complete(policy, tokenizer, prompts, seed=1000 + seed, **settings)
    kl = divergence(policy, start, tokenizer, prompts, after, size.temperature, size.sampling_batch)
    rows = []
    for number, prompt in enumerate(prompts):
        pool = first[number * (size.n + 1) : (number + 1) * (size.n + 1)]
        each = {"start": [pool[0]], "pool": pool[1:], "ppo": [after[number]]}
        texts = {name: [{"text": a.text, "ids": a.ids, "ended": a.ended} for a in some] for name, some in each.items()}
        rows.append({"prompt": prompt, **texts})
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    Path(f"answers-{seed}.jsonl").write_text(text, encoding="utf-8")
    told = {
        name: {"lengths": [[len(a["ids"]) for a in row[name]] for row in rows],
               "ended": [[a["ended"] for a in row[name]] for row in rows]}
        for name in ("start", "pool", "ppo")
    }  # fmt: skip
    shown = [{name: [a["text"] for a in row[name]] for name in told} for row in rows[len(prompts) - len(own) :]]
    return {"seed": seed, "own": len(own), "answers": told, "kl": kl, "shown": shown}


def divergence(
    policy: Any,
    start: Any,
    tokenizer: Any,
    prompts: Sequence[Any],
    responses: Sequence[Any],
    temperature: float,
    batch_size: int,
) -> list[float]:
    """log(policy / start) of each response, summed over its tokens, in nats: its mean estimates the KL."""
    import torch

    from alignment.models.policies import response_logprobs
    from alignment.templates.rendering import encode_prompt
    from alignment.tensors import pad_rows

    found = []
    for at in range(0, len(prompts), batch_size):
        some = list(zip(prompts[at : at + batch_size], responses[at : at + batch_size], strict=True))
        rows = [encode_prompt(tokenizer, prompt) + answer.ids for prompt, answer in some]
        ids, mask = pad_rows(rows, tokenizer.pad_token_id, "left")
        longest = max(len(answer.ids) for _, answer in some)
        with torch.no_grad():
            ours, theirs = (response_logprobs(model, ids, mask, longest, temperature)[0] for model in (policy, start))
        found += [
            float((ours - theirs)[row, longest - len(answer.ids) :].sum()) for row, (_, answer) in enumerate(some)
        ]
    return found


def scored(size: Size, seed: int, judge: str, chooser: Row | None) -> Row:
    """What one reward model says of the start's, PPO's and best-of-n's answers.

    Args:
        judge: name of the reward model.
        chooser: the row of the reward model that PPO went against, which chooses; None: this is that one.
    """
    rows = read_jsonl(Path(f"answers-{seed}.jsonl"))
    picks = chooser["picks"] if chooser else None
    texts: list[tuple[int, str, int]] = []
    for number in range(len(rows)):
        chosen = range(size.n) if picks is None else sorted({picks[str(n)][number] for n in size.counts})
        texts += [(number, "start", 0), (number, "ppo", 0), *((number, "pool", index) for index in chosen)]
    values = dict(zip(texts, _score(judge, rows, texts, size.sampling_batch), strict=True))
    if picks is None:
        ended = [[a["ended"] for a in row["pool"]] for row in rows]
        pool = [[values[number, "pool", index] for index in range(size.n)] for number in range(len(rows))]
        rewards = selection_rewards(pool, ended)
        picks = {str(n): [pick_best(row, n) for row in rewards] for n in size.counts}
    return {
        "seed": seed,
        "judge": judge,
        "scores": {name: [values[number, name, 0] for number in range(len(rows))] for name in ("start", "ppo")}
        | {str(n): [values[i, "pool", pick] for i, pick in enumerate(picks[str(n)])] for n in size.counts},
        "picks": picks,
    }


def _score(judge: str, rows: Sequence[Row], texts: Sequence[tuple[int, str, int]], batch_size: int) -> list[float]:
    import torch

    from alignment.distributed import heartbeat
    from alignment.models.ensembles import load_reward_model
    from alignment.models.sources import find_model
    from alignment.models.tokenizers import load_tokenizer
    from alignment.registry import Registry
    from alignment.templates.rendering import encode_prompt
    from alignment.tensors import pad_rows

    source = find_model(judge, Registry(), role="reward")
    model, tokenizer = load_reward_model(source).eval(), load_tokenizer(source)
    heads = [encode_prompt(tokenizer, row["prompt"]) for row in rows]
    ids = [heads[number] + rows[number][name][index]["ids"] for number, name, index in texts]
    found: dict[int, float] = {}
    order = sorted(range(len(ids)), key=lambda index: len(ids[index]))
    for at in range(0, len(order), batch_size):
        some = order[at : at + batch_size]
        heartbeat.enter(f"answers scored: {at} of {len(order)}")
        with torch.no_grad():
            scores = model.score(*pad_rows([ids[index] for index in some], tokenizer.pad_token_id, "left"))
        found |= {index: round(float(score), 6) for index, score in zip(some, scores, strict=True)}
    return [found[index] for index in range(len(ids))]
