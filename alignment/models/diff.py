"""Differences between two versions: config, data, metrics, code, packages, and the distance of their weights."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import JsonValue
from safetensors import safe_open
from torch import Tensor

from alignment.models.ensembles import load_member
from alignment.models.policies import load_policy
from alignment.models.reward_files import is_ensemble, member_name, num_members
from alignment.models.sources import ModelSource, find_model
from alignment.registry import DataFingerprint, Manifest, Registry, Version
from alignment.registry.lineage import describe_data, flat_metrics
from alignment.registry.words import with_intervals

_LAYER = re.compile(r"(.*?\.\d+)\.|(.+)\.[^.]+$")


def diff(ref: str, other: str, registry: Registry, weights: bool = True) -> dict[str, Any]:
    """Everything that differs between two versions, as pairs [first, second].

    Raises:
        RegistryError: one of them cannot be resolved, or is damaged.
        ModelError, AdapterError: an adapter cannot be merged for comparison.
    """
    one, two = registry.resolve(ref), registry.resolve(other)
    a, b = one.manifest, two.manifest
    differences: dict[str, Any] = {
        "versions": [one.ref, two.ref],
        "digests": [one.digest, two.digest],
        "made_from": _changed(_parents(a), _parents(b)),
        "config": _changed(dict(dotted(a.config or {})), dict(dotted(b.config or {}))),
        "data": _data(a.data, b.data),
        "metrics": _changed(_metrics(a), _metrics(b)),
        "code": _changed(_code(a), _code(b)),
        "packages": _changed(a.packages, b.packages),
        "made": _changed(_made(a), _made(b)),
    }
    if weights:
        differences["weights"] = compare_weights(one, two, registry)
    return differences


def dotted(value: Mapping[str, JsonValue], prefix: str = "") -> Iterator[tuple[str, JsonValue]]:
    """Each leaf of a nested mapping under its dotted key."""
    for key, item in value.items():
        if isinstance(item, Mapping) and item:
            yield from dotted(item, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", item


def _changed(one: Mapping[str, Any], two: Mapping[str, Any]) -> dict[str, list[Any]]:
    """The keys with different values; a missing key counts as None."""
    keys = [*one, *(key for key in two if key not in one)]
    pairs = {key: [one.get(key), two.get(key)] for key in keys}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def _parents(manifest: Manifest) -> dict[str, str]:
    parents = [*manifest.parents, *([manifest.base] if manifest.base else [])]
    return {parent.role: f"{parent.ref} {(parent.digest or '')[:19]}".strip() for parent in parents}


def _metrics(manifest: Manifest) -> dict[str, str]:
    return dict(flat_metrics(with_intervals(manifest.metrics or {})))


def _code(manifest: Manifest) -> dict[str, str | None]:
    code = manifest.code
    return {"commit": code.commit, "uncommitted": code.dirty} if code else {}


def _made(manifest: Manifest) -> dict[str, Any]:
    return {
        "stage": manifest.stage,
        "role": manifest.role,
        "seed": manifest.seed,
        "processes": manifest.world_size,
        "tokenizer": manifest.tokenizer_hash,
        "chat_template": manifest.chat_template_hash,
    }


def _data(one: tuple[DataFingerprint, ...], two: tuple[DataFingerprint, ...]) -> dict[str, list[str]]:
    """Data sets in only one of them, and in both, matched by digest rather than name."""

    def named(entries: tuple[DataFingerprint, ...]) -> dict[str, str]:
        lines = {}
        for data in entries:
            digest = f" - sha256 {data.sha256[:12]}" if data.sha256 else ""
            lines[f"{data.use} {data.sha256 or data.name} {data.rows} {data.split}"] = describe_data(data) + digest
        return lines

    a, b = named(one), named(two)
    return {
        "only_first": [line for key, line in a.items() if key not in b],
        "only_second": [line for key, line in b.items() if key not in a],
        "both": [line for key, line in a.items() if key in b],
    }


# --- weights -------------------------------------------------------------------------------------------------------


Reader = Callable[[str], Tensor]


def compare_weights(one: Version, two: Version, registry: Registry) -> dict[str, Any]:
    """The Frobenius norm of each layer's difference, relative to the first model's weights.

    Tensors are read one at a time. Two adapters on the same base are compared as stored; otherwise adapters are merged
    first, in memory.
    """
    sources = [find_model(version.ref, registry, version.manifest.role) for version in (one, two)]
    bases = [version.manifest.base for version in (one, two)]
    as_adapters = all(bases) and bases[0] == bases[1]
    with contextlib.ExitStack() as stack:
        (names, read), (other_names, other_read) = (
            _stored(Path(s.path), stack) if as_adapters or s.base is None else _merged(s, v.manifest.role)
            for s, v in zip(sources, (one, two), strict=True)
        )
        common = [name for name in names if name in other_names]
        layers: dict[str, list[float]] = {}
        shapes = {}
        for name in common:
            a, b = read(name), other_read(name)
            if a.shape != b.shape:
                shapes[name] = [list(a.shape), list(b.shape)]
                continue
            sums = layers.setdefault(layer_of(name), [0.0, 0.0, 0])
            sums[0] += float((b.double() - a.double()).square().sum())
            sums[1] += float(a.double().square().sum())
            sums[2] += 1
    return {
        "compared": "adapters" if as_adapters else "weights",
        "merged": [] if as_adapters else [v.ref for v, s in zip((one, two), sources, strict=True) if s.base],
        "relative": _relative([sum(column) for column in zip(*layers.values(), strict=True)] or [0.0, 0.0, 0]),
        "layers": {layer: {"tensors": sums[2], "relative": _relative(sums)} for layer, sums in layers.items()},
        "other_shapes": shapes,
        "only_first": [name for name in names if name not in other_names],
        "only_second": [name for name in other_names if name not in names],
    }


def layer_of(name: str) -> str:
    """The layer of a tensor: `model.layers.3` of `model.layers.3.mlp.up_proj.weight`, `lm_head` of `lm_head.weight`."""
    match = _LAYER.match(name)
    return (match[1] or match[2]) if match else name


def _relative(sums: list[float]) -> float | None:
    """The relative distance; None if the first's weights are all zero and the second's are not."""
    if sums[1] == 0:
        return 0.0 if sums[0] == 0 else None
    return math.sqrt(sums[0] / sums[1])


def _stored(folder: Path, stack: contextlib.ExitStack) -> tuple[list[str], Reader]:
    """Names of the tensors in a version's files, and a function that reads one; ensemble members keep their folder."""
    locations: dict[str, Any] = {}
    for file in sorted(folder.rglob("*.safetensors")):
        opened = stack.enter_context(safe_open(file, framework="pt"))
        inside = file.parent.relative_to(folder).as_posix()
        for name in opened.keys():  # noqa: SIM118 - not a dict
            locations[name if inside == "." else f"{inside}/{name}"] = (opened, name)

    def read(name: str) -> Tensor:
        opened, stored_name = locations[name]
        tensor: Tensor = opened.get_tensor(stored_name)
        return tensor

    return list(locations), read


def _merged(source: ModelSource, role: str) -> tuple[list[str], Reader]:
    if role == "policy":
        state = load_policy(source).state_dict()
    elif is_ensemble(source):
        members = range(num_members(source))
        states = {member_name(n): load_member(source, n).model.state_dict() for n in members}
        state = {f"{member}/{name}": value for member, weights in states.items() for name, value in weights.items()}
    else:
        state = load_member(source, 0).model.state_dict()
    with torch.no_grad():
        return list(state), lambda name: state[name]
