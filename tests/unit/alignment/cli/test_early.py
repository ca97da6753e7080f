"""Mistakes in the names of files, models and judges are told before torch is imported."""

import json
import subprocess
import sys

import pytest

PROGRAM = """
import importlib, sys
code = importlib.import_module(f"alignment.cli.{sys.argv[1]}").main(sys.argv[2:])
print(code, "torch" in sys.modules or "transformers" in sys.modules)
"""


@pytest.fixture
def house(tmp_path, monkeypatch):
    """A working folder with two data files, and a registry of one policy without weights."""
    from alignment.registry import Registry

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ALIGNMENT_REGISTRY", raising=False)
    (tmp_path / "prompts.jsonl").write_text(json.dumps({"prompt": "Open?", "completion": "At nine."}) + "\n")
    source = tmp_path / "source"
    source.mkdir()
    (source / "config.json").write_text("{}")
    (source / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}" + b"weights")
    Registry().publish("one", source, stage="sft", role="policy")


COMPARE = ("compare", "one", "one", "--prompts")


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ((*COMPARE, "promts.jsonl"), "--prompts promts.jsonl: no such file; did you mean prompts.jsonl?"),
        (("compare", "one", "two", "--prompts", "prompts.jsonl"), "no model 'two' in the registry"),
        (("compare", "one", "./two", "--prompts", "prompts.jsonl"), "./two: no such folder"),
        (("compare", "one", "--prompts", "prompts.jsonl"), "1 side to compare; name two or more"),
        ((*COMPARE, "prompts.jsonl", "--by", "peple"), "--by peple: expected one of people, reward=REF"),
        (
            (*COMPARE, "prompts.jsonl", "--by", "python=no.py:f"),
            "no.py cannot be imported: no such file",
        ),
        ((*COMPARE, "prompts.jsonl", "--by", "reward=one"), "one@v1 is a policy; a reward model was asked for"),
        (("compare", "--answers", "no.jsonl", "--by", "json"), "--answers no.jsonl: no such file"),
        (("score", "one", "promts.jsonl"), "FILE promts.jsonl: no such file; did you mean prompts.jsonl?"),
        (("score", "two", "prompts.jsonl"), "no model 'two' in the registry"),
        (("score", "prompts.jsonl", "one"), "the model stands first: alignment score one prompts.jsonl"),
        (("choose", "one", "--data", "nowhere.txt"), "--data nowhere.txt: no such file; name a data file or folder"),
        (("choose", "two", "--data", "prompts.jsonl"), "no model 'two' in the registry"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_wrong_name_is_told_without_torch(house, command, message):
    done = subprocess.run([sys.executable, "-c", PROGRAM, *command], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["2", "False"]
    assert message in done.stderr and done.stderr.count("\n") == 1, done.stderr
