"""Answers for labelers to rate: prompts and models in, items in a ratings file out."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from alignment.config.sections import ModelConfig
    from alignment.models.sources import ModelSource
    from alignment.ratings import Completion, Kind


def sample_into(
    db: Path,
    names: Sequence[str],
    prompts: Sequence[Any],
    *,
    registry_path: str | None = None,
    k: int = 2,
    need: int = 1,
    kind: Kind = "pair",
    max_new_tokens: int = 64,
    temperature: float = 1.0,
    batch_size: int = 64,
    seed: int = 0,
    template: str | None = None,
    eos_token: str | None = None,
) -> dict[str, Any]:
    """Sample `k` completions per prompt and add items of them that `need` labelers shall rate.

    Args:
        db: ratings database; made if it is missing, else added to.
        names: models that make the completions in turn: with two names and k=2 each makes one of every pair.
        prompts: `alignment.data.records.Prompt` records.
        template, eos_token: for models that have none, as `model.template` and `model.eos_token` of a config.
        kind: what an item holds: every `pair` of a prompt's completions, all of them to `rank`, or a `single` one.

    Returns:
        Counts: prompts, items, the completions (of a pair: pairs) left out because their texts are the same, and the
        pinned models.
    """
    from alignment.config.sections import ModelConfig
    from alignment.models.lengths import check_prompts
    from alignment.models.sources import find_model
    from alignment.models.tokenizers import load_tokenizer
    from alignment.ratings import RatingsStore
    from alignment.registry import Registry

    registry = Registry(registry_path)
    sources = [find_model(name, registry, role="policy") for name in names]
    options = ModelConfig(name=names[0], template=template, eos_token=eos_token)
    messages = [prompt.messages for prompt in prompts]
    for source in dict.fromkeys(sources):
        check_prompts(source.config_path, load_tokenizer(source, options), messages, max_new_tokens)
    RatingsStore(db, create=True, seed=seed).close()  # a path that cannot be written is found before the sampling
    in_turn = [sources[place % len(sources)] for place in range(k)]
    answers = _sample(in_turn, options, messages, max_new_tokens, temperature, batch_size, seed)
    items = same = 0
    with RatingsStore(db) as store, store.transaction():
        for prompt, completions in zip(prompts, answers, strict=True):
            made, left_out = groups(completions, kind)
            for group in made:
                store.add_item(list(prompt.messages), group, need=need, metadata=dict(prompt.columns), kind=kind)
            items, same = items + len(made), same + left_out
    labels = [source.label for source in sources]
    return {"db": str(db), "prompts": len(prompts), "items": items, "same": same, "models": labels}


def _sample(
    sources: Sequence[ModelSource],
    options: ModelConfig,
    messages: Sequence[Any],
    max_new_tokens: int,
    temperature: float,
    batch_size: int,
    seed: int,
) -> list[list[Completion]]:
    """The completions of each prompt, one by each of the sources."""
    import torch

    from alignment.generation.engine import complete
    from alignment.models.policies import load_policy
    from alignment.models.tokenizers import load_tokenizer
    from alignment.ratings import Completion
    from alignment.seeds import stream_seed
    from alignment.terminal import progress

    answers: list[list[Completion]] = [[] for _ in messages]
    with progress("sampling", len(sources) * len(messages)) as line:
        for place, source in enumerate(sources):
            policy, tokenizer = load_policy(source), load_tokenizer(source, options)
            policy.to("cuda" if torch.cuda.is_available() else "cpu")
            for start in range(0, len(messages), 8 * batch_size):
                part = slice(start, start + 8 * batch_size)
                drawn = complete(
                    policy,
                    tokenizer,
                    messages[part],
                    max_new_tokens=max_new_tokens,
                    temperature=temperature,
                    batch_size=batch_size,
                    seed=stream_seed("completions", seed, place),
                    first=start,
                )
                for slot, made in zip(answers[part], drawn, strict=True):
                    slot.append(Completion(made.text, made.ended, source.label, len(made.ids)))
                line.advance(len(drawn))
    return answers


def groups(completions: Sequence[Completion], kind: Kind) -> tuple[list[list[Completion]], int]:
    """The completions of each item, and how many pairs or completions are left out because their texts are the same."""
    if kind == "pair":
        pairs = [[*pair] for pair in itertools.combinations(completions, 2)]
        differ = [pair for pair in pairs if pair[0].text != pair[1].text]
        return differ, len(pairs) - len(differ)
    first_of: dict[str, Completion] = {}
    for completion in completions:
        first_of.setdefault(completion.text, completion)
    distinct = list(first_of.values())
    left_out = len(completions) - len(distinct)
    if kind == "single":
        return [[completion] for completion in distinct], left_out
    return ([distinct] if len(distinct) > 1 else []), left_out
