"""Answers for labelers to rate: prompts and models in, items in a ratings file out."""

from __future__ import annotations

import hashlib
import itertools
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignment.terminal import clean

if TYPE_CHECKING:
    from alignment.config.sections import ModelConfig
    from alignment.models.sources import ModelSource
    from alignment.ratings import Completion, Kind, RatingsStore
    from alignment.terminal import ProgressLine


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

    Each batch is saved as it is drawn; the same call again draws only what is missing.

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
    from alignment.templates.rendering import encode_prompt

    registry = Registry(registry_path)
    sources = [find_model(name, registry, role="policy") for name in names]
    options = ModelConfig(name=names[0], template=template, eos_token=eos_token)
    messages = [prompt.messages for prompt in prompts]
    rows = {}
    for source in dict.fromkeys(sources):
        tokenizer = load_tokenizer(source, options)
        check_prompts(source.config_path, tokenizer, messages, max_new_tokens)
        rows[source] = [encode_prompt(tokenizer, prompt) for prompt in messages]
    in_turn = [sources[place % len(sources)] for place in range(k)]
    settings = DrawSettings(max_new_tokens, temperature, batch_size, seed)
    with RatingsStore(db, create=True, seed=seed) as store:
        items, same = _Drawing(store, prompts, rows, in_turn, options, settings, kind, need).run()
    labels = [source.label for source in sources]
    return {"db": str(db), "prompts": len(prompts), "items": items, "same": same, "models": labels}


@dataclass(frozen=True)
class DrawSettings:
    """How completions are drawn."""

    max_new_tokens: int
    temperature: float
    batch_size: int
    seed: int


class _Drawing:
    """Completions of prompts on their way into a store, one batch at a time.

    Each batch is saved as soon as it is drawn. Items are added in the order of the prompts, as far as these have all
    their completions. So a run that was killed and resumed leaves the same items as one that was not.
    """

    def __init__(
        self,
        store: RatingsStore,
        prompts: Sequence[Any],
        rows: Mapping[ModelSource, Sequence[Sequence[int]]],
        sources: Sequence[ModelSource],
        options: ModelConfig,
        settings: DrawSettings,
        kind: Kind,
        need: int,
    ) -> None:
        """`rows`: the prompts as token ids, for each of the sources; the k-th completion comes from `sources[k]`."""
        self.store, self.prompts, self.rows, self.sources, self.options = store, prompts, rows, sources, options
        self.settings, self.kind, self.need = settings, kind, need
        identities = {source: _identity(source) for source in sources}
        self.keys = [
            [self._key(identities[source], rows[source][index], index, place) for place, source in enumerate(sources)]
            for index in range(len(prompts))
        ]
        known = store.draws.known(itertools.chain.from_iterable(self.keys))
        self.answers = [[known.get(key) for key in keys] for keys in self.keys]
        self.drawn_before = len(known)
        self.added = self.items = self.same = 0

    def run(self) -> tuple[int, int]:
        """Draw what is missing; returns the number of items and of pairs or completions left out as the same."""
        from alignment.terminal import progress

        total = len(self.sources) * len(self.prompts)
        if self.drawn_before:
            print(
                f"{self.drawn_before} of {total} completions are in {clean(str(self.store.path))} already, drawn by "
                "this command before" + ("; another --seed draws others" if self.drawn_before == total else ""),
                file=sys.stderr,
            )
        with self.store.transaction():
            self._add_items()
        with progress("sampling", total) as line:
            line.advance(self.drawn_before)
            for source in dict.fromkeys(self.sources):
                places = [place for place, other in enumerate(self.sources) if other == source]
                if any(answers[place] is None for answers in self.answers for place in places):
                    self._draw_all(source, places, line)
        return self.items, self.same

    def _draw_all(self, source: ModelSource, places: Sequence[int], line: ProgressLine) -> None:
        """What one model has to draw. Eight batches at a time are sorted by length, which leaves little padding."""
        import torch

        from alignment.models.policies import load_policy
        from alignment.models.tokenizers import load_tokenizer

        rows = self.rows[source]
        policy, tokenizer = load_policy(source), load_tokenizer(source, self.options)
        policy.to("cuda" if torch.cuda.is_available() else "cpu")
        size = self.settings.batch_size
        for start in range(0, len(self.prompts), 8 * size):
            window = range(start, min(start + 8 * size, len(self.prompts)))
            order = sorted(window, key=lambda index: (-len(rows[index]), rows[index]))
            for first in range(0, len(order), size):
                for place in places:
                    missing = [index for index in order[first : first + size] if self.answers[index][place] is None]
                    if missing:
                        self._draw(policy, tokenizer, missing, place)
                        line.advance(len(missing))

    def _draw(self, policy: Any, tokenizer: Any, indices: Sequence[int], place: int) -> None:
        """Draw one batch and save it."""
        from alignment.generation.engine import complete
        from alignment.ratings import Completion
        from alignment.seeds import stream_seed

        drawn = complete(
            policy,
            tokenizer,
            [self.prompts[index].messages for index in indices],
            max_new_tokens=self.settings.max_new_tokens,
            temperature=self.settings.temperature,
            batch_size=self.settings.batch_size,
            seed=stream_seed("completions", self.settings.seed, place),
            indices=indices,
        )
        label = self.sources[place].label
        made = [Completion(each.text, each.ended, label, len(each.ids)) for each in drawn]
        with self.store.transaction():
            self.store.draws.add({self.keys[index][place]: each for index, each in zip(indices, made, strict=True)})
            for index, each in zip(indices, made, strict=True):
                self.answers[index][place] = each
            self._add_items()

    def _add_items(self) -> None:
        """Add the items of the next prompts that have all their completions."""
        for prompt, answers in zip(self.prompts[self.added :], self.answers[self.added :], strict=True):
            drawn = [answer for answer in answers if answer is not None]
            if len(drawn) < len(answers):
                return
            made, left_out = groups(drawn, self.kind)
            for group in made:
                self.store.add_item(
                    list(prompt.messages), group, need=self.need, metadata=dict(prompt.columns), kind=self.kind
                )
            self.added, self.items, self.same = self.added + 1, self.items + len(made), self.same + left_out

    def _key(self, identity: str, row: Sequence[int], index: int, place: int) -> str:
        """Names a completion by all that decides what it says."""
        settings = self.settings
        parts = [
            identity, list(row), index, place, settings.seed, settings.max_new_tokens, settings.temperature,
            self.options.eos_token,
        ]  # fmt: skip
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _identity(source: ModelSource) -> str:
    """A model's name and digest, so that a folder with other weights is another model."""
    parents = [each.as_base() for each in (source, source.base) if each is not None]
    return " ".join(f"{parent.ref} {parent.digest}" for parent in parents)


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
