"""`alignment serve`: the openai client against a served model, whole and adapter; nothing is left running."""

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import httpx
import launching
import pytest
import torch
from helpers import tiny
from peft import LoraConfig, get_peft_model

from alignment.evaluation.serving import plain_model
from alignment.models.policies import load_policy
from alignment.models.sources import find_model
from alignment.registry import Parent, Registry
from alignment.templates.rendering import encode_prompt

MISSING = [name for name in ("fastapi", "uvicorn", "openai") if find_spec(name) is None]
needs_extra = pytest.mark.skipif(bool(MISSING), reason=f"the extra `serve` is not installed: no {', '.join(MISSING)}")


@pytest.fixture
def house(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    registry, tokenizer = Registry("registry"), tiny.make_tokenizer()
    policy = tiny.make_policy(tokenizer, seed=1)
    policy.generation_config.pad_token_id = tokenizer.pad_token_id
    base = registry.publish("sft", tiny.write(tmp_path / "policy", policy, tokenizer), stage="sft", role="policy")
    torch.manual_seed(0)
    adapted = get_peft_model(policy, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    adapted.save_pretrained(tmp_path / "adapter")
    tokenizer.save_pretrained(tmp_path / "adapter")
    registry.publish(
        "lora", tmp_path / "adapter", stage="sft", role="policy", base=Parent("base", base.ref, base.digest),
        config={"model": {"name": base.ref, "method": "lora", "adapter": {"r": 2}}},
    )  # fmt: skip
    return registry


@contextmanager
def serving(*arguments):
    """The server in a process group of its own; yields its base address once it answers."""
    command = [
        sys.executable,
        "-m",
        "alignment.cli.main",
        "serve",
        *arguments,
        "--port",
        "0",
        "--engine",
        "transformers",
    ]
    process = subprocess.Popen(
        command, env=launching.environment(), stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    said, base = [], None
    try:
        for line in process.stderr:
            said.append(line)
            if found := re.search(r"(http://[\d.]+:\d+/v1) \(Ctrl-C", line):
                base = found[1]
                break
        assert base, "".join(said)
        _wait(base, process)
        yield base
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.communicate(timeout=60)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


def _wait(base, process):
    for _ in range(600):
        assert process.poll() is None, process.stderr.read()
        try:
            if httpx.get(f"{base.removesuffix('/v1')}/health").status_code == 200:
                return
        except httpx.HTTPError:
            time.sleep(0.2)
    raise AssertionError("the server does not answer")


def greedy(policy, tokenizer, text, count):
    ids = torch.tensor([encode_prompt(tokenizer, [{"role": "user", "content": text}])])
    found = policy.generate(ids, max_new_tokens=count, do_sample=False, pad_token_id=tokenizer.pad_token_id)
    return tokenizer.decode(found[0, ids.shape[1] :], skip_special_tokens=True)


@needs_extra
def test_a_client_gets_the_answers_of_the_version(house):
    from openai import OpenAI

    with serving("lora") as base:
        client = OpenAI(base_url=base, api_key="none", max_retries=0)
        said = client.chat.completions.create(
            model="lora-v1", messages=[{"role": "user", "content": "When does it open?"}], max_tokens=8, temperature=0.0
        )
    tokenizer = tiny.make_tokenizer()
    expected = greedy(load_policy(find_model("lora", house, role="policy")), tokenizer, "When does it open?", 8)
    assert said.choices[0].message.content.strip() == expected.strip()
    plain = greedy(load_policy(find_model("sft", house, role="policy")), tokenizer, "When does it open?", 8)
    assert plain != expected  # the adapter was not lost


def test_a_whole_model_is_served_from_its_place_and_an_adapter_is_merged_once(house):
    whole, merged = plain_model("sft", house), plain_model("lora@v1", house)
    assert whole.path.resolve() == house.resolve("sft").path.resolve()
    assert (whole.name, merged.name) == ("sft-v1", "lora-v1")
    stamp = (merged.path / "model.safetensors").stat().st_mtime_ns
    assert plain_model("lora", house) == merged
    assert (merged.path / "model.safetensors").stat().st_mtime_ns == stamp


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["sfd"], ["sfd", "sft"]),
        (["sft", "--engine", "vllm"], ["vllm", "rlhf-alignment-suite[vllm]"]),
        (["sft", "--port", "99999", "--engine", "transformers"], ["--port 99999"]),
    ],
    ids=["no-model", "no-vllm", "no-port"],
)
def test_a_mistake_is_one_line(house, arguments, words, capsys):
    from alignment.cli.serve import main

    if "vllm" in arguments and find_spec("vllm"):
        pytest.skip("vLLM is installed")
    if "vllm" not in arguments and MISSING:
        pytest.skip("the extra `serve` is not installed")
    assert main(arguments) == 2
    said = capsys.readouterr().err.strip()
    assert all(word in said for word in words), said
    assert said.startswith("error: ") and "\n" not in said
    assert Path("registry").is_dir()
