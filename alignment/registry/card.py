"""The model card: README.md of a version whose source folder had none."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from alignment.registry.lineage import LineageNode, describe_data, flat_metrics, walk
from alignment.registry.manifest import Manifest
from alignment.registry.words import in_words, with_intervals
from alignment.terminal import one_line

if TYPE_CHECKING:
    from alignment.registry.store import Registry
    from alignment.registry.version import Version

_ROLES = {
    "policy": "A policy: a language model that writes answers.",
    "reward": "A reward model: it reads a prompt with an answer and says in one number how good the answer is.",
    "value": "A critic: before each token of an answer it says what score it expects the whole answer to get.",
}
_STAGES = {
    "base": "A new model with random weights, which training starts from.",
    "sft": "It was fine-tuned on demonstrations, answers that somebody wrote.",
    "reward": "It was trained on ratings, which say which answer is better.",
    "ppo": "It was trained with PPO to write answers that its reward scores higher.",
    "dpo": "It was trained with DPO on ratings, without a reward model.",
    "import": "It was made elsewhere and copied into the registry.",
}
_CLASSES = {
    "policy": "AutoModelForCausalLM",
    "reward": "AutoModelForSequenceClassification",
    "value": "AutoModelForSequenceClassification",
}
_SIMULATED = (
    "**Simulated ratings.** The ratings behind this model were made by a program, not by people. "
    "It says nothing about what people prefer."
)


def model_card(manifest: Manifest, simulated: bool, parents: Sequence[LineageNode] = ()) -> str:
    """The card in Markdown: description, use, training data, results, lineage, limits, and how to reproduce it.

    Everything taken from the manifest is escaped: it cannot make links, HTML or table cells.

    Args:
        simulated: whether ratings made by a program are in its lineage.
        parents: its parents with their ancestors.
    """
    ref = f"{manifest.name}@v{manifest.version}"
    made = "It was trained with PPO, beside a policy." if manifest.role == "value" else _STAGES[manifest.stage]
    lines = [f"# {escape(ref)}", "", f"{_ROLES[manifest.role]} {made}", ""]
    if manifest.base:
        lines += [f"What is stored is an adapter on {escape(manifest.base.ref)}.", ""]
    if simulated:
        lines += [f"> {_SIMULATED}", ""]
    lines += _use(manifest, ref)
    lines += _trained_on(manifest)
    lines += _results(manifest)
    lines += _lineage(manifest, ref, parents)
    lines += _limits(manifest, simulated)
    return "\n".join([*lines, *_reproduce(manifest)])


def _use(manifest: Manifest, ref: str) -> list[str]:
    key = {"policy": "model.policy", "reward": "model.reward", "value": "model.value_init"}[manifest.role]
    messages = 'messages = [{"role": "user", "content": "..."}]'
    calls = [
        messages,
        "ids = tokenizer.apply_chat_template(",
        '    messages, add_generation_prompt=True, return_tensors="pt", return_dict=True',
        ")",
        "print(tokenizer.decode(model.generate(**ids, max_new_tokens=200)[0]))",
    ]
    if manifest.role != "policy":
        calls = [
            messages.replace("]", ', {"role": "assistant", "content": "..."}]'),
            'text = tokenizer.apply_chat_template(messages, tokenize=False).rstrip("\\n")  # it ends with the EOS',
            'print(model(**tokenizer(text, add_special_tokens=False, return_tensors="pt")).logits)',
        ]
    return [
        "## Use",
        "",
        f"In a config of this suite: `{key}: {ref}`. With plain transformers, once it is exported:",
        "",
        "```bash",
        f"alignment models export {ref} FOLDER",
        "```",
        "```python",
        f"from transformers import {_CLASSES[manifest.role]}, AutoTokenizer",
        "",
        f'model = {_CLASSES[manifest.role]}.from_pretrained("FOLDER")',
        'tokenizer = AutoTokenizer.from_pretrained("FOLDER")',
        *calls,
        "```",
        "",
    ]


def _trained_on(manifest: Manifest) -> list[str]:
    lines = [f"- {escape(describe_data(data))}" for data in manifest.data]
    if origin := manifest.origin:
        revision = f" at {origin.revision}" if origin.revision else ""
        lines += [f"- unknown here; it comes from {escape(origin.source + revision)}"]
    return ["## What it was trained on", "", *lines, ""] if lines else []


def _results(manifest: Manifest) -> list[str]:
    metrics = manifest.metrics or {}
    rows = list(flat_metrics(with_intervals(metrics)))
    if not rows:
        return []
    words = [f"- {escape(sentence)}" for sentence in in_words(metrics)]
    lines = ["## How it did", "", *words, *([""] if words else [])]
    table = _table(("metric", "value"), rows)
    if len(rows) > 6:
        table = [f"<details><summary>All {len(rows)} figures</summary>", "", *table, "</details>", ""]
    return (
        [*lines, *table, "In brackets: the 95% interval.", ""] if any("[" in row[1] for row in rows) else lines + table
    )


def evaluated(registry: Registry, version: Version) -> list[str]:
    """Lines of Markdown on evaluations of a version: they are made after its card was written."""
    from alignment.registry.evaluations import newest_evaluations  # the registry's store writes cards

    found = newest_evaluations(registry, version)
    wins = [f"- It {escape(each.text)}." for each in found if each.label == "compared"]
    figures = [f"- {escape(each.text)}." for each in found if each.label == "measured"]
    lines = ["", "## Compared with other models", "", *wins] if wins else []
    lines += ["", "## Measured after training", "", *figures] if figures else []
    return [*lines, ""] if lines else []


def _lineage(manifest: Manifest, ref: str, parents: Sequence[LineageNode]) -> list[str]:
    made = [*manifest.parents, *([manifest.base] if manifest.base else [])]
    if not made:
        return []
    lines = ["## Where it comes from", ""]
    lines += _table(("as", "model", "digest"), [(p.role, p.ref, p.digest or "not recorded") for p in made])
    versions = [node.version for node in walk(iter(parents)) if node.version]
    versions.sort(key=lambda version: version.manifest.created_at)
    if chain := list(dict.fromkeys(version.ref for version in versions)):
        lines += [" \u2192 ".join(map(escape, [*chain, ref])), ""]
    rejected = {node.ref: node.rejected for node in walk(iter(parents)) if node.rejected}
    lines += [
        f"- **{escape(parent)}** was {escape(said)} when this was published." for parent, said in rejected.items()
    ]
    lines += [""] if rejected else []
    return [*lines, f"`alignment models graph {ref}` shows the whole lineage, with the data of each step.", ""]


def _limits(manifest: Manifest, simulated: bool) -> list[str]:
    limits = [_SIMULATED.split("** ")[1]] if simulated else []
    if manifest.stage == "base":
        limits.append("It is untrained: what it writes means nothing.")
    if manifest.role == "reward":
        limits.append(
            "Its scores compare answers to one prompt. They are no grade, and an answer far from those that were rated "
            "can score high without being good."
        )
    if manifest.role == "value":
        limits.append(
            "It knows the answers of the policy that it was trained beside, and their scores. It is no judge."
        )
    elif manifest.stage == "ppo":
        limits.append(
            "It was rewarded by a program (a reward model, a function or a service), not by people. A high score may "
            "come from what that overlooks: read samples, or have people compare."
        )
    if manifest.remote_code:
        limits.append("It brings Python code of its own, which runs when it is loaded with `trust_remote_code`.")
    if manifest.code and manifest.code.dirty:
        limits.append("The code had uncommitted changes when it was made; the commit alone does not give it again.")
    limits.append("Nobody has checked here what it knows, or whether it is safe for your use.")
    return ["## Limits", "", *[f"- {line}" for line in limits], ""]


def _reproduce(manifest: Manifest) -> list[str]:
    made = [
        ("published", f"{manifest.created_at:%Y-%m-%d %H:%M} UTC"),
        ("run", manifest.run_id),
        ("W&B", manifest.wandb_url),
        ("seed", manifest.seed),
        ("processes", manifest.world_size),
        ("license", manifest.origin.license if manifest.origin else None),
    ]
    if manifest.code:
        made.append(("commit", manifest.code.commit + (" with uncommitted changes" if manifest.code.dirty else "")))
    made += list(manifest.packages.items())
    lines = ["## How to make it again", ""]
    if manifest.stage in ("sft", "reward", "ppo") and manifest.config:
        start = "python" if manifest.world_size == 1 else f"accelerate launch --num_processes {manifest.world_size}"
        lines += [
            "At the commit below, with the config below as `config.yaml` (JSON is YAML) and the same data:",
            *["", "```bash", f"{start} -m {manifest.stage} config.yaml", "```", ""],
        ]
    lines += _table(("what", "which"), [(key, str(value)) for key, value in made if value is not None])
    if manifest.config:
        # as HTML, since a fence in Markdown could be closed by a text inside it
        config = html.escape(json.dumps(manifest.config, indent=2), quote=False)
        lines += ["<details><summary>Config</summary>", f"<pre>{_tight(config)}</pre>", "</details>", ""]
    return [*lines, "`manifest.json` beside this file holds every detail.", ""]


def _tight(text: str) -> str:
    """The text without blank lines, which would end the HTML block in Markdown."""
    return "\n".join(line for line in text.split("\n") if line.strip())


def escape(text: str) -> str:
    """Untrusted text as one line of Markdown that renders verbatim."""
    plain = re.sub(r"([\\`*\[\]|~])", r"\\\1", html.escape(one_line(text), quote=False))
    plain = re.sub(r"(?i)(://|(?<=www)\.)", r"\\\1", plain)  # readers turn bare addresses into links
    return re.sub(r"^([#+=-])", r"\\\1", plain)


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    if not rows:
        return []
    body = [f"| {' | '.join(map(escape, row))} |" for row in rows]
    return [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}", *body, ""]
