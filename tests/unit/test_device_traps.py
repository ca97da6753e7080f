"""Loops of hot files do not wait for the device at each turn: each `.item()`, `.tolist()`, `.cpu()` has a reason."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HOT = (
    "alignment/distributed/engine.py", "alignment/generation/choosing.py", "alignment/generation/engine.py",
    "alignment/generation/kv_cache.py", "alignment/models/forward.py", "alignment/models/packing.py",
    "alignment/models/scalar.py", "alignment/tensors.py", "alignment/training/finite_steps.py",
    "alignment/training/throughput.py", "ppo/algorithm.py", "ppo/ema.py", "ppo/episodes.py", "ppo/reward_model.py",
    "ppo/roles.py", "ppo/rollout.py", "ppo/sequences.py", "ppo/targets.py", "ppo/update.py", "reward/batches.py",
    "reward/loss.py", "reward/trainer.py", "sft/loss.py", "sft/packing.py", "sft/trainer.py",
)  # fmt: skip
WAITING = ("item", "tolist", "cpu", "numpy")
ALLOWED = {
    ("reward/batches.py", "score_heads"): "the scores of a batch of an evaluation are kept on the host",
    ("sft/trainer.py", "rows_in"): "rows of a batch that is taken apart: memory ran out, or a step was not finite",
    ("sft/trainer.py", "split"): "a batch is packed anew after memory ran out",
    ("ppo/update.py", "minibatches"): "rows are shuffled on the host",
}
LOOPS = (ast.For, ast.While, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


def repeated(loop):
    """The nodes of a loop that are evaluated at each turn."""
    if isinstance(loop, ast.For):
        return loop.body
    if isinstance(loop, ast.While):
        return [loop.test, *loop.body]
    first, *others = loop.generators
    inner = [first.ifs, *([other.iter, *other.ifs] for other in others)]
    return [*(node for nodes in inner for node in nodes), *(
        [loop.key, loop.value] if isinstance(loop, ast.DictComp) else [loop.elt])]  # fmt: skip


def waits_in_loops(tree):
    """(function, line) of each call in a loop that waits for the device, if it is of a tensor there."""
    found = set()
    for function in ast.walk(tree):
        if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        for loop in (node for node in ast.walk(function) if isinstance(node, LOOPS)):
            for part in repeated(loop):
                for call in ast.walk(part):
                    if (isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute)
                            and call.func.attr in WAITING):  # fmt: skip
                        found.add((function.name, call.lineno))
    return found


@pytest.mark.parametrize("file", HOT)
def test_loops_of_hot_files_wait_for_a_reason_alone(file):
    found = waits_in_loops(ast.parse((ROOT / file).read_text(encoding="utf-8")))
    unknown = {(name, line) for name, line in found if (file, name) not in ALLOWED}
    assert not unknown
    assert {name for name, _ in found} == {name for path, name in ALLOWED if path == file}


def test_the_search_finds_what_it_is_for():
    text = """
def f(xs):
    for x in xs.tolist():
        y = x.item()
    while xs.cpu():
        pass
    return [x.tolist() for x in xs.numpy()]
"""
    assert waits_in_loops(ast.parse(text)) == {("f", 4), ("f", 5), ("f", 7)}
