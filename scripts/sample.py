#!/usr/bin/env python3
"""Draw completions for rating: prompts and a model in, pairs in a ratings database out.

    scripts/sample.py help-desk-sft --prompts prompts.jsonl --db ratings.db --k 2
    scripts/sample.py help-desk-sft@v1 help-desk-ppo@v1 --prompts prompts.jsonl --db ratings.db
    scripts/sample.py help-desk-sft --prompts prompts.jsonl --db ratings.db --k 4 --kind rank

Each prompt gets K completions, drawn from the models in turn. Every two of them become one item, or all of them one to
rank, or each by itself one to rate from 1 to 7 (`--kind`). Which model made which is stored, and never shown to a
labeler.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from alignment.ratings import Completion, Kind

MOST_RANKED = 9


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
    import torch

    from alignment.config.sections import ModelConfig
    from alignment.generation.engine import complete
    from alignment.models.lengths import check_prompts
    from alignment.models.policies import load_policy
    from alignment.models.sources import find_model
    from alignment.models.tokenizers import load_tokenizer
    from alignment.ratings import Completion, RatingsStore
    from alignment.registry import Registry
    from alignment.seeds import stream_seed
    from alignment.terminal import progress

    registry = Registry(registry_path)
    sources = [find_model(name, registry, role="policy") for name in names]
    options = ModelConfig(name=names[0], template=template, eos_token=eos_token)
    messages = [prompt.messages for prompt in prompts]
    for source in dict.fromkeys(sources):
        check_prompts(source.config_path, load_tokenizer(source, options), messages, max_new_tokens)
    RatingsStore(db, create=True, seed=seed).close()  # a path that cannot be written is found before the sampling
    answers: list[list[Completion]] = [[] for _ in prompts]
    with progress("sampling", k * len(prompts)) as line:
        for number in range(k):
            source = sources[number % len(sources)]
            policy, tokenizer = load_policy(source), load_tokenizer(source, options)
            policy.to("cuda" if torch.cuda.is_available() else "cpu")
            for start in range(0, len(prompts), 8 * batch_size):
                part = slice(start, start + 8 * batch_size)
                drawn = complete(
                    policy,
                    tokenizer,
                    messages[part],
                    max_new_tokens=max_new_tokens,
                    temperature=temperature,
                    batch_size=batch_size,
                    seed=stream_seed("completions", seed, number),
                    first=start,
                )
                for slot, made in zip(answers[part], drawn, strict=True):
                    slot.append(Completion(made.text, made.ended, source.label, len(made.ids)))
                line.advance(len(drawn))
    items = same = 0
    with RatingsStore(db) as store, store.transaction():
        for prompt, completions in zip(prompts, answers, strict=True):
            made, left_out = groups(completions, kind)
            for group in made:
                store.add_item(list(prompt.messages), group, need=need, metadata=dict(prompt.columns), kind=kind)
            items, same = items + len(made), same + left_out
    return {
        "db": str(db),
        "prompts": len(prompts),
        "items": items,
        "same": same,
        "models": [source.label for source in sources],
    }


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


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Draw completions for rating.",
        epilog="example: scripts/sample.py help-desk-sft --prompts prompts.jsonl --db ratings.db --k 2",
    )
    parser.add_argument("models", nargs="+", help="registry references, folders or hub names")
    parser.add_argument("--prompts", required=True, help="a data file; the prompt of each row is used")
    parser.add_argument("--db", required=True, type=Path, help="ratings database, made if it is missing")
    parser.add_argument("--k", type=int, default=2, help="completions per prompt (default 2)")
    parser.add_argument(
        "--kind", choices=["pair", "rank", "single"], default="pair", help="every two, all to rank, or one by one"
    )
    parser.add_argument("--need", type=int, default=1, help="labelers per item (default 1)")
    parser.add_argument("--limit", type=int, help="use only the first N prompts")
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--template", help="a chat template for models that have none, as a config's model.template")
    parser.add_argument("--eos-token", help="the end token of models that name none, as a config's model.eos_token")
    parser.add_argument("--registry", help="registry folder (default: $ALIGNMENT_REGISTRY or ./registry)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    args = parser.parse_args(argv)

    from alignment.distributed.ticker import ticking
    from alignment.errors import UserError
    from alignment.terminal import one_line
    from alignment.training.stage import quiet_libraries

    quiet_libraries()
    ticker = ExitStack()
    try:
        least = {
            "k": 1 if args.kind == "single" else 2,
            "need": 1,
            "limit": 1,
            "max_new_tokens": 1,
            "temperature": 0,
            "batch_size": 1,
            "seed": 0,
        }
        for name, bound in least.items():
            value = getattr(args, name)
            if value is not None and not bound <= value < 2**32:  # a NaN neither
                raise UserError(f"--{name.replace('_', '-')} {value}: expected {bound} or more, below 2**32")
        if args.kind == "rank" and args.k > MOST_RANKED:
            raise UserError(f"--k {args.k}: expected {MOST_RANKED} or fewer completions to rank")
        from alignment.config.sections import DataConfig
        from alignment.data.parsing import to_prompts
        from alignment.data.reading import read_records

        ticker.enter_context(ticking("sample"))
        records = read_records(args.prompts, to_prompts, DataConfig(train=args.prompts)).items[: args.limit]
        counts = sample_into(
            args.db,
            args.models,
            records,
            registry_path=args.registry,
            k=args.k,
            need=args.need,
            kind=args.kind,
            max_new_tokens=args.max_new_tokens,
            temperature=args.temperature,
            batch_size=args.batch_size,
            seed=args.seed,
            template=args.template,
            eos_token=args.eos_token,
        )
    except UserError as error:
        print(f"error: {one_line(str(error))}", file=sys.stderr)
        return 2
    finally:
        ticker.close()
    if args.json:
        print(json.dumps(counts))
    else:
        print(
            f"{counts['items']} items in {counts['db']} from {', '.join(counts['models'])}"
            f" ({counts['same']} {'pairs' if args.kind == 'pair' else 'answers'} left out: the same as another)"
            f"\nrate them: scripts/rate.py --db {counts['db']} --labeler NAME"
        )
    return 0


if __name__ == "__main__":
    from project_python import use_project_python

    use_project_python()
    sys.exit(main())
