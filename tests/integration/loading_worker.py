"""One of two processes that load models with one reader: `loading_worker.py FOLDER`.

FOLDER/whole has the models. The second process loads from FOLDER/bare, where there are no weights, and compares with
what it then reads from FOLDER/whole. Each writes FOLDER/RANK.json: by model what differs, and in which way it failed.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from torch import nn

from alignment.config.sections import ModelConfig
from alignment.distributed import one_reader, processes
from alignment.errors import UserError
from alignment.models import trainable
from alignment.models.policies import load_policy
from alignment.models.scalar import load_scalar_model
from alignment.training.stage import exit_process

UNEQUAL = {"_name_or_path": ""}
"""The folders that the two were read from."""


def load(kind: str, path: Path, dtype: str) -> nn.Module:
    options = ModelConfig(name="x", dtype=dtype)
    torch.manual_seed(3)
    if kind == "policy":
        return load_policy(str(path), options)
    if kind == "lora":
        options = ModelConfig(name="x", method="lora")
        return trainable.apply_method(load_policy(str(path), options), options)
    return load_scalar_model(str(path), options, 5, trained=kind == "reward")


def differences(ours: nn.Module, plain: nn.Module) -> list[str]:
    found = [name for name in ("training",) if getattr(ours, name) != getattr(plain, name)]
    if one_reader.entries_of(ours) != one_reader.entries_of(plain):  # names, ties, shapes, types
        return [*found, "entries"]
    for (name, x), (_, y) in zip(one_reader._named_tensors(ours), one_reader._named_tensors(plain), strict=True):
        if x.device != y.device or not torch.equal(x, y):
            found.append(name)
    ours, plain = (getattr(each, "model", each) for each in (ours, plain))
    for name in ("config", "generation_config"):
        one, other = (getattr(each, name, None) for each in (ours, plain))
        if one is None or one.to_dict() | UNEQUAL != other.to_dict() | UNEQUAL:
            found += [name] if one is not other else []
    return found


def main(folder: Path) -> None:
    rank, results = processes.process_index(), {}
    own = folder / ("whole", "bare")[rank]
    for name, kind, dtype in json.loads((folder / "cases.json").read_text()):
        try:
            with one_reader.reading_once():
                ours = load(kind, own / name, dtype)
        except UserError as error:
            results[f"{name} {kind} {dtype}"] = str(error)
            continue
        drawn = torch.rand(2)
        plain = load(kind, folder / "whole" / name, dtype)
        found = differences(ours, plain)
        results[f"{name} {kind} {dtype}"] = found + ["drawn"] * (not torch.equal(drawn, torch.rand(2)))
    (folder / f"{rank}.json").write_text(json.dumps(results))
    processes.wait_for_everyone()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    exit_process(0)
